//! Looking at a simulated disk: content, pending operations, counters, digest. Changes nothing.

use super::digest::Digest;
use super::fault::OpKind;
use super::log::{Logged, OpCounts, PendingOp};
use super::{Action, Pending, Sim};
use crate::op::{Errno, FileId, LockMode, OpenFlags, Output, Proven};

impl Sim {
    /// Paths of all files, in order of insertion.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|file| &file.path[..])
    }

    /// The path of an open file.
    pub fn path_of(&self, file: FileId) -> Option<&[u8]> {
        self.handles.get(file.0 as usize).map(|handle| self.files[handle.file].path.as_slice())
    }

    /// What a read of the whole file would see now.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn file_bytes(&self, path: impl AsRef<[u8]>) -> Vec<u8> {
        match self.find(path.as_ref()) {
            Some(number) => self.files[number].bytes(),
            None => panic!("no file {:?}", String::from_utf8_lossy(path.as_ref())),
        }
    }

    /// Its present length, if there is such a file.
    pub fn file_len(&self, path: impl AsRef<[u8]>) -> Option<u64> {
        self.find(path.as_ref()).map(|number| self.files[number].len)
    }

    /// It is a block device.
    pub fn is_device(&self, path: impl AsRef<[u8]>) -> bool {
        self.find(path.as_ref()).is_some_and(|number| self.files[number].options.block_device)
    }

    /// Part of it, zeros past its end.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn file_range(&self, path: impl AsRef<[u8]>, offset: u64, len: usize) -> Vec<u8> {
        let Some(number) = self.find(path.as_ref()) else {
            panic!("no file {:?}", String::from_utf8_lossy(path.as_ref()))
        };
        let mut bytes = vec![0; len];
        // SAFETY: the vector's own memory.
        unsafe { self.files[number].visible.read(offset, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Operations that have not completed, oldest first; those that were not even submitted come last.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = PendingOp> + '_ {
        self.pending.iter().map(|pending| pending.op)
    }

    /// How many of [`Sim::pending`] were submitted: what [`Sim::step`] chooses from.
    pub fn steppable(&self) -> usize {
        self.submitted
    }

    /// Nothing volatile: a power cut now would change nothing.
    pub fn is_settled(&self) -> bool {
        self.crash_candidates().is_empty()
    }

    /// How much was done so far.
    pub fn counters(&self) -> &OpCounts {
        &self.counters
    }

    /// Starts (anew) or stops logging completed operations.
    pub fn record_log(&mut self, on: bool) {
        self.log = on.then(Vec::new);
    }

    /// Completed operations since [`Sim::record_log`], oldest first.
    pub fn log(&self) -> &[Logged] {
        self.log.as_deref().unwrap_or_default()
    }

    /// Completed writes of the log.
    pub fn writes_log(&self) -> impl Iterator<Item = &Logged> {
        self.log().iter().filter(|logged| logged.op.kind == OpKind::Write)
    }

    /// Of everything that decides what may happen from here on: content, open files, pending operations (as a
    /// set: in which order they were pushed does not matter), answers not yet reaped, faults to come. Not of
    /// counters, logs, memory addresses, or the clock.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::new();
        digest.word(self.files.len() as u64).word(self.crash_unit as u64);
        for file in &self.files {
            file.digest(&mut digest);
        }
        for (id, handle) in &self.handles {
            digest
                .word(id as u64)
                .word(handle.file as u64)
                .word(flag_bits(handle.flags))
                .word(lock_bits(handle.lock));
            if handle.believed != Proven::ALL {
                digest.word(handle.believed.bits().into());
            }
        }
        let pending = self.pending.iter().enumerate();
        let set =
            |sum: u128, (index, p): (usize, &Pending)| sum.wrapping_add(self.one(p, index < self.submitted));
        digest.wide(pending.fold(0u128, set));
        for done in &self.done {
            digest.word(done.token.0).wide(result_bits(&done.result));
        }
        for fault in &self.faults.faults {
            digest.word(fault.state());
        }
        digest.finish()
    }

    fn one(&self, pending: &Pending, submitted: bool) -> u128 {
        let mut digest = Digest::new();
        let op = &pending.op;
        digest.word(op.token.0).word(op.kind as u64).word(op.offset).word(op.len).word(submitted.into());
        digest.word(op.file.map_or(u64::MAX, |file| file.0.into()));
        match &pending.action {
            Action::Fail(errno) => drop(digest.word(errno.0 as u64)),
            Action::Open { path, flags } => drop(digest.bytes(path).word(flag_bits(*flags))),
            Action::Lock { mode, .. } => drop(digest.word(lock_bits(*mode))),
            Action::Change { entry, .. } => entry.digest(&mut digest),
            Action::Prove { shown, .. } => drop(digest.word(shown.map_or(8, |proven| proven.bits().into()))),
            Action::Sync { file, mark } => drop(digest.word(self.files[*file].covered(*mark) as u64)),
            Action::Stat { .. } | Action::Close { .. } | Action::Read { .. } => {}
        }
        digest.finish()
    }
}

fn flag_bits(flags: OpenFlags) -> u64 {
    u64::from(flags.write) | u64::from(flags.direct) << 1
}

fn lock_bits(mode: LockMode) -> u64 {
    match mode {
        LockMode::None => 0,
        LockMode::Read => 1,
        LockMode::Write => 2,
        LockMode::Share => 3,
    }
}

fn result_bits(result: &Result<Output, Errno>) -> u128 {
    match result {
        Err(errno) => u128::from(errno.0 as u32) << 8 | 1,
        Ok(Output::Opened(file)) => u128::from(file.0) << 8 | 2,
        Ok(Output::Bytes(bytes)) => u128::from(*bytes) << 8 | 3,
        Ok(Output::Stat(stat)) => u128::from(stat.len) << 8 | 4,
        Ok(Output::Done) => 5,
        Ok(Output::Proven(proven)) => u128::from(proven.bits()) << 8 | 6,
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self.paths().map(String::from_utf8_lossy).collect();
        f.debug_struct("Sim")
            .field("files", &paths)
            .field("pending", &self.pending().collect::<Vec<_>>())
            .finish()
    }
}
