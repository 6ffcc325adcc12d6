//! The simulated disk behind a backend that renames tokens.
//!
//! The pump's tokens count how often a slot was used, so two paths to one state differ in them. Here each
//! operation in flight is named after what it does instead, and the disk's digest is equal where the state
//! is.
//!
//! Knows: operations' summaries, tokens. Must never know: contents' meaning, formats.
//! Invariant: names of operations in flight are unique; a completion goes back under the token it came with.

use quod_backend::sim::{Chooser, Logged, OpKind, Sim};
use quod_backend::{Backend, Completion, FileId, Full, Op, Segment, Token};
use quod_bench::contract::hash::{hash_bytes, hash_words};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// See the module's header.
pub struct Probe {
    sim: Sim,
    names: Vec<(u64, Token)>,
    /// Sum over completed reads of what they saw: in it lies what is in buffers that nobody can look into.
    seen: u128,
    watch: bool,
    /// Completed operations.
    pub completed: u64,
}

fn summary(op: &Op) -> [u64; 4] {
    let (file, offset, len) = match op {
        Op::Open { .. } | Op::Adopt { .. } => (FileId(u32::MAX), 0, 0),
        Op::Stat { file }
        | Op::Lock { file, .. }
        | Op::Close { file }
        | Op::Sync { file }
        | Op::Prove { file, .. } => (*file, 0, 0),
        Op::Read { file, offset, segments } | Op::Write { file, offset, segments } => {
            (*file, *offset, segments.iter().map(|segment| segment.len() as u64).sum())
        }
        Op::ZeroRange { file, offset, len, .. }
        | Op::Discard { file, offset, len }
        | Op::PunchHole { file, offset, len } => (*file, *offset, *len),
        Op::Grow { file, from, to, .. } => (*file, *from, *to),
        Op::SetLen { file, len } => (*file, 0, *len),
    };
    [OpKind::of(op) as u64, u64::from(file.0), offset, len]
}

impl Probe {
    /// Around this disk.
    pub fn new(sim: Sim) -> Probe {
        Probe { sim, names: Vec::new(), seen: 0, watch: false, completed: 0 }
    }

    /// From now on what reads see counts in the digest.
    pub fn watch_reads(&mut self) {
        self.watch = true;
        self.sim.record_log(true);
    }

    /// The disk.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// The disk, to change.
    pub fn sim_mut(&mut self) -> &mut Sim {
        &mut self.sim
    }

    /// Completes one operation of the chooser's choice. False if there is none.
    pub fn step(&mut self, chooser: &mut dyn Chooser) -> bool {
        if !self.sim.step(chooser) {
            return false;
        }
        self.completed += 1;
        if self.watch {
            if let Some(logged) = self.sim.log().last().copied() {
                self.look(&logged);
            }
            self.sim.record_log(true);
        }
        true
    }

    fn look(&mut self, logged: &Logged) {
        let (OpKind::Read, Some(file)) = (logged.op.kind, logged.op.file) else { return };
        let Some(path) = self.sim.path_of(file) else { return };
        let bytes = self.sim.file_range(path, logged.op.offset, logged.op.len as usize);
        let place = hash_words(1, [u64::from(file.0), logged.op.offset]);
        self.seen = self.seen.wrapping_add(hash_bytes(place, &bytes));
    }

    /// Equal for equal states, however they were reached.
    pub fn digest(&self) -> u128 {
        hash_words(self.sim.digest(), [self.seen as u64, (self.seen >> 64) as u64])
    }

    /// All operations that failed since the disk was made.
    pub fn failed(&self) -> u64 {
        const KINDS: [OpKind; 8] = [
            OpKind::Open,
            OpKind::Stat,
            OpKind::Read,
            OpKind::Write,
            OpKind::Sync,
            OpKind::ZeroRange,
            OpKind::Grow,
            OpKind::SetLen,
        ];
        let counters = self.sim.counters();
        KINDS.iter().map(|kind| counters.failed(*kind)).sum::<u64>()
            + counters.failed(OpKind::Lock)
            + counters.failed(OpKind::Close)
    }
}

impl Backend for Probe {
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        let mut name = hash_words(0, summary(&op)) as u64;
        while self.names.iter().any(|(other, _)| *other == name) {
            name = name.wrapping_add(1);
        }
        self.sim.push(Token(name), op)?;
        self.names.push((name, token));
        Ok(())
    }

    fn submit(&mut self) -> std::io::Result<()> {
        self.sim.submit()
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let first = out.len();
        let count = self.sim.reap(out);
        for completion in &mut out[first..] {
            let index = self.names.iter().position(|(name, _)| *name == completion.token.0);
            // what completes was pushed: a panic here is a finding
            let index = index.unwrap_or_else(|| panic!("an operation completed twice: {completion:?}"));
            completion.token = self.names.swap_remove(index).1;
        }
        count
    }

    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.sim.wait(timeout)
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_notify(&mut self) {}

    fn capacity(&self) -> usize {
        self.sim.capacity()
    }

    fn in_flight(&self) -> usize {
        self.sim.in_flight()
    }

    fn now(&self) -> Duration {
        self.sim.now()
    }

    fn name(&self) -> &'static str {
        "sim"
    }

    fn time_calls(&mut self, _: bool) {}

    fn take_syscall_nanos(&mut self) -> u64 {
        0
    }

    fn is_model(&self) -> bool {
        true
    }

    fn register_memory(&mut self, _: Segment) -> std::io::Result<quod_backend::MemoryId> {
        Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn unregister_memory(&mut self, _: quod_backend::MemoryId) -> bool {
        false
    }
}
