//! A deterministic disk in memory: volatile write cache, chosen completion order, injected faults, power
//! cuts.
//!
//! Knows: files by path, operations, what is durable. Must never know: image formats; who chooses (a
//! [`Chooser`] is handed in with every step, so one harness drives everything).
//!
//! The rules that crash proofs stand on:
//! * a write's bytes are captured at push, and become visible when it completes; a read sees what is visible
//!   when *it* completes: so overlapping operations take effect in order of completion;
//! * a change becomes durable only by a sync that was submitted after the change completed, and that itself
//!   succeeds;
//! * until then a power cut leaves, crash unit by crash unit, the durable or any volatile version (see
//!   [`crash`]);
//! * operations that were pushed but not submitted never reached the disk.
//!
//! A clone holds the memory segments of pending reads: step only one of two copies; a clone is for
//! [`Sim::crash`], [`Sim::digest`] and looking.
//!
//! It is test equipment: misuse (misaligned O_DIRECT transfers) panics with a message.

pub mod chooser;
pub mod crash;
mod digest;
pub mod fault;
mod file;
mod inspect;
mod log;
mod run;
mod store;

pub use chooser::{Choice, Chooser, Fifo, Script, Seeded, pick};
pub use crash::{Candidate, CrashPlan, Volatile};
pub use fault::{Aftermath, Fault, FaultPlan, OpKind, When};
pub use file::FileOptions;
pub use log::{Logged, OpCounts, PendingOp};

use crate::buffer::{Segment, Segments};
use crate::op::{Completion, Errno, FileId, LockMode, Op, OpenFlags, Proven, Token};
use crate::{Backend, Full};
use file::{Entry, File};
use slab::Slab;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use store::{Change, Store};

/// Operations in flight unless told otherwise.
const CAPACITY: usize = 256;

/// An open file.
#[derive(Clone)]
struct Handle {
    file: usize,
    flags: OpenFlags,
    lock: LockMode,
    believed: Proven,
}

/// What a pending operation will do.
#[derive(Clone)]
enum Action {
    Fail(Errno),
    Open { path: Vec<u8>, flags: OpenFlags },
    Stat { file: usize, direct: bool },
    Lock { handle: usize, mode: LockMode },
    Close { handle: usize },
    Read { file: usize, segments: Segments },
    Change { file: usize, entry: Entry },
    Sync { file: usize, mark: u64 },
    Prove { handle: usize, shown: Option<Proven> },
}

#[derive(Clone)]
struct Pending {
    op: PendingOp,
    action: Action,
}

/// The disk. See the module's header.
#[derive(Clone)]
pub struct Sim {
    files: Vec<File>,
    handles: Slab<Handle>,
    /// Submitted ones first, each group oldest first.
    pending: Vec<Pending>,
    submitted: usize,
    done: Vec<Completion>,
    faults: FaultPlan,
    crash_unit: usize,
    capacity: usize,
    now: Duration,
    counters: OpCounts,
    log: Option<Vec<Logged>>,
}

impl Default for Sim {
    fn default() -> Sim {
        Sim::new()
    }
}

impl Sim {
    /// An empty disk: crash unit 512, no faults.
    pub fn new() -> Sim {
        Sim {
            files: Vec::new(),
            handles: Slab::new(),
            pending: Vec::new(),
            submitted: 0,
            done: Vec::new(),
            faults: FaultPlan::none(),
            crash_unit: 512,
            capacity: CAPACITY,
            now: Duration::ZERO,
            counters: OpCounts::default(),
            log: None,
        }
    }

    /// How many operations may be in flight.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    /// What is written atomically: 512 or 4096 bytes.
    ///
    /// # Panics
    /// If it is neither 512, 1024, 2048 nor 4096.
    pub fn set_crash_unit(&mut self, bytes: usize) {
        assert!(
            bytes.is_power_of_two() && (512..=store::CHUNK).contains(&bytes),
            "no such crash unit: {bytes}"
        );
        self.crash_unit = bytes;
    }

    /// From now on operations fail so. Counting starts anew.
    pub fn set_faults(&mut self, faults: FaultPlan) {
        self.faults = faults;
    }

    /// Creates or replaces a file; its content is durable.
    pub fn insert_file(&mut self, path: impl AsRef<[u8]>, bytes: &[u8], options: FileOptions) {
        self.insert(path.as_ref(), Store::from_bytes(bytes), bytes.len() as u64, options);
    }

    /// Creates or replaces a file of zeros, which costs nothing.
    pub fn insert_sparse(&mut self, path: impl AsRef<[u8]>, len: u64, options: FileOptions) {
        self.insert(path.as_ref(), Store::default(), len, options);
    }

    /// A block device becomes longer under whoever has it open; the new space holds `fill` in every byte.
    ///
    /// # Panics
    /// If there is no such device, or it is longer.
    pub fn grow_device(&mut self, path: impl AsRef<[u8]>, to: u64, fill: u8) {
        let file = self.find(path.as_ref()).and_then(|number| self.files.get_mut(number));
        match file.filter(|file| file.options.block_device && file.len <= to) {
            Some(file) => file.lengthen(to, fill),
            None => panic!("there is no device that could grow to {to} bytes"),
        }
    }

    fn insert(&mut self, path: &[u8], content: Store, len: u64, options: FileOptions) {
        let file = File::new(path, content, len, options);
        match self.find(path) {
            Some(number) => self.files[number] = file,
            None => self.files.push(file),
        }
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        self.files.iter().position(|file| file.path == path)
    }

    /// Sets the virtual clock.
    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    /// Moves the virtual clock.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Durable content only: nobody has anything open, nothing is pending. What every power cut starts from.
    fn settled(&self) -> Sim {
        let mut sim =
            Sim { crash_unit: self.crash_unit, capacity: self.capacity, now: self.now, ..Sim::new() };
        for file in &self.files {
            sim.files.push(File::new(&file.path, file.durable.clone(), file.durable_len, file.options));
        }
        sim
    }

    fn handle(&self, id: FileId) -> Result<&Handle, Errno> {
        self.handles.get(id.0 as usize).ok_or(Errno(libc::EBADF))
    }

    fn writable(&self, id: FileId) -> Result<usize, Errno> {
        let handle = self.handle(id)?;
        if handle.flags.write { Ok(handle.file) } else { Err(Errno(libc::EBADF)) }
    }

    fn action(&self, op: Op) -> Result<Action, Errno> {
        let change = |file, change, reach, set| Action::Change { file, entry: Entry { change, reach, set } };
        let end = |offset: u64, len| {
            offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or(Errno(libc::EFBIG))
        };
        Ok(match op {
            // descriptors are the operating system's
            Op::Adopt { .. } => return Err(Errno(libc::EOPNOTSUPP)),
            Op::Open { path, flags } => Action::Open { path: path.into_bytes(), flags },
            Op::Stat { file } => {
                let handle = self.handle(file)?;
                Action::Stat { file: handle.file, direct: handle.flags.direct }
            }
            Op::Lock { file, mode } => {
                self.handle(file).map(|_| Action::Lock { handle: file.0 as usize, mode })?
            }
            Op::Close { file } => self.handle(file).map(|_| Action::Close { handle: file.0 as usize })?,
            Op::Read { file, segments, .. } => Action::Read { file: self.handle(file)?.file, segments },
            Op::Write { file, offset, segments } => {
                // SAFETY: the segments' maker promised that they are valid from push on.
                let captured = unsafe { Change::capture(offset, &segments) };
                let len: u64 = segments.iter().map(|s| s.len() as u64).sum();
                // a write of nothing does not make a file longer
                let reach = if len == 0 { 0 } else { end(offset, len)? };
                change(self.writable(file)?, captured, reach, None)
            }
            Op::Sync { file } => Action::Sync { file: self.handle(file)?.file, mark: 0 },
            Op::ZeroRange { file, offset, len, unmap } => {
                let end = end(offset, len)?;
                let (number, believed) = (self.writable(file)?, self.handle(file)?.believed);
                let punched = unmap && believed.punch_hole;
                // zeros are written where nothing is believed
                let done = !self.files[number].options.lies || !punched && !believed.zero_range;
                let zeros = if done { Change::Zero(offset..end) } else { Change::Nothing };
                // punching keeps the length, zeroing extends: as fallocate does
                let reach = if punched || len == 0 { 0 } else { end };
                change(number, zeros, reach, None)
            }
            Op::PunchHole { file, offset, len } => {
                let number = self.writable(file)?;
                let options = self.files[number].options;
                if !options.holes || !self.handle(file)?.believed.punch_hole {
                    return Err(Errno(libc::EOPNOTSUPP));
                }
                let zeros = Change::Zero(offset..end(offset, len)?);
                change(number, if options.lies { Change::Nothing } else { zeros }, 0, None)
            }
            Op::Discard { file, offset, len } => {
                let number = self.writable(file)?;
                let zeros = Change::Zero(offset..end(offset, len)?);
                let kept = !self.files[number].options.holes;
                change(number, if kept { Change::Nothing } else { zeros }, 0, None)
            }
            Op::Grow { file, to, .. } => change(self.writable(file)?, Change::Nothing, end(0, to)?, None),
            Op::Prove { file, shown } => {
                self.writable(file).map(|_| Action::Prove { handle: file.0 as usize, shown })?
            }
            Op::SetLen { file, len } => change(self.writable(file)?, Change::Nothing, 0, Some(end(0, len)?)),
        })
    }

    /// # Panics
    /// If an O_DIRECT transfer is not aligned: the kernel would answer EINVAL, and it is a bug of the
    /// caller's.
    fn check_alignment(&self, op: &Op) {
        let (Op::Read { file, offset, segments } | Op::Write { file, offset, segments }) = op else { return };
        let Ok(handle) = self.handle(*file) else { return };
        if !handle.flags.direct {
            return;
        }
        let file = &self.files[handle.file];
        let (align, memory) = (u64::from(file.options.offset_align), file.options.memory_align as usize);
        let len: u64 = segments.iter().map(|s| s.len() as u64).sum();
        let aligned =
            |s: &Segment| s.address().addr().is_multiple_of(memory) && s.len().is_multiple_of(memory);
        assert!(
            offset.is_multiple_of(align) && len.is_multiple_of(align) && segments.iter().all(aligned),
            "misaligned O_DIRECT {:?} of {:?}: offset {offset} len {len} align {align}, \
             memory align {memory}: {segments:?}",
            OpKind::of(op),
            String::from_utf8_lossy(&file.path),
        );
    }
}

impl Backend for Sim {
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        if self.in_flight() >= self.capacity {
            return Err(Full(op));
        }
        self.check_alignment(&op);
        let summary = PendingOp::of(token, &op);
        let action = self.action(op).unwrap_or_else(Action::Fail);
        self.pending.push(Pending { op: summary, action });
        Ok(())
    }

    fn submit(&mut self) -> std::io::Result<()> {
        for pending in &mut self.pending[self.submitted..] {
            if let Action::Sync { file, mark } = &mut pending.action {
                *mark = self.files[*file].mark();
            }
        }
        self.submitted = self.pending.len();
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let count = self.done.len();
        out.append(&mut self.done);
        count
    }

    /// Completes the oldest operation; if there is none, the virtual clock moves on by `timeout`.
    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.submit()?;
        if self.done.is_empty() && !self.step(&mut Fifo) {
            self.advance(timeout.unwrap_or_default());
        }
        Ok(())
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_notify(&mut self) {}

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.done.len()
    }

    fn now(&self) -> Duration {
        self.now
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

    fn register_memory(&mut self, _: Segment) -> std::io::Result<crate::MemoryId> {
        Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn unregister_memory(&mut self, _: crate::MemoryId) -> bool {
        false
    }
}
