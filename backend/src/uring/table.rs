//! The files that are registered with the ring, by number.
//!
//! Knows: which index means what. Must never know: operations.
//! Invariants: a file number is not given out again before its ring registration was undone; a closing file
//! has no target.

use super::budget::{self, Pace, Times};
use crate::op::{Errno, FileId};
use crate::sys::file::OpenFile;
use io_uring::{Submitter, types};
use slab::Slab;
use std::sync::Arc;

/// Files beyond these are used by plain descriptor.
const FIXED_FILES: u32 = 1024;

/// How an SQE names a file.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Fixed(types::Fixed),
    Plain(types::Fd),
}

struct Entry {
    file: Arc<OpenFile>,
    fixed: bool,
    closing: bool,
    /// Transfers must not be tried inside the system call.
    slow: bool,
    /// It is a device that has not refused the ring's discard.
    discards: bool,
    /// Bytes of one system call that need no look at what they cost, at most.
    at_once: u64,
    /// Of reads, and of writes.
    paces: [Pace; 2],
}

/// What a transfer must know of its file.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) target: Target,
    pub(super) slow: bool,
    pub(super) at_once: u64,
}

impl Entry {
    #[inline]
    fn target(&self, index: u32) -> Target {
        match self.fixed {
            true => Target::Fixed(types::Fixed(index)),
            false => Target::Plain(types::Fd(self.file.fd())),
        }
    }
}

/// Open files.
pub(super) struct Files {
    entries: Slab<Entry>,
    fixed: u32,
}

impl Files {
    pub(super) fn new(submitter: &Submitter<'_>, can_update: bool) -> Files {
        let fixed = can_update && submitter.register_files_sparse(FIXED_FILES).is_ok();
        Files { entries: Slab::new(), fixed: if fixed { FIXED_FILES } else { 0 } }
    }

    pub(super) fn insert(&mut self, file: OpenFile) -> u32 {
        let (slow, at_once) = (file.holds_the_caller(), file.bytes_at_once().min(budget::SMALL));
        let paces = [Pace::new(), Pace::new()];
        let discards = file.is_device();
        let entry =
            Entry { file: Arc::new(file), fixed: false, closing: false, slow, discards, at_once, paces };
        self.entries.insert(entry) as u32
    }

    /// How a transfer gets there.
    #[inline]
    pub(super) fn way(&self, index: u32) -> Result<Way, Errno> {
        let entry = self.open_entry(index)?;
        Ok(Way { target: entry.target(index), slow: entry.slow, at_once: entry.at_once })
    }

    /// Nanoseconds that a transfer is believed to take inside the system call, and picoseconds of a byte of
    /// it. None: it is for a worker.
    pub(super) fn price(&self, index: u32, write: bool, len: u64) -> Option<(u64, u64)> {
        let entry = self.entries.get(index as usize).filter(|entry| !entry.slow)?;
        let pace = &entry.paces[usize::from(write)];
        Some((pace.price(len)?, pace.byte()))
    }

    /// What such transfers took.
    pub(super) fn learn(&mut self, index: u32, write: bool, byte: u64, times: Times) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.paces[usize::from(write)].learn(byte, times);
        }
    }

    /// The ring's table has room for this file.
    pub(super) fn can_fix(&self, index: u32) -> bool {
        // the ring lets go of a file in its table some time after it was asked to: who takes a device down
        // that was closed, or claims it, would be refused meanwhile
        let is_device = self.entries.get(index as usize).is_some_and(|entry| entry.file.is_device());
        index < self.fixed && !is_device
    }

    /// The ring's discard may be tried.
    pub(super) fn discards(&self, index: u32) -> bool {
        self.entries.get(index as usize).is_some_and(|entry| entry.discards)
    }

    /// It was, in vain.
    pub(super) fn no_discards(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.discards = false;
        }
    }

    pub(super) fn set_fixed(&mut self, index: u32, fixed: bool) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.fixed = fixed;
        }
    }

    pub(super) fn is_fixed(&self, index: u32) -> bool {
        self.entries.get(index as usize).is_some_and(|entry| entry.fixed)
    }

    fn open_entry(&self, index: u32) -> Result<&Entry, Errno> {
        self.entries.get(index as usize).filter(|entry| !entry.closing).ok_or(Errno(libc::EBADF))
    }

    pub(super) fn get(&self, file: FileId) -> Result<&Arc<OpenFile>, Errno> {
        self.open_entry(file.0).map(|entry| &entry.file)
    }

    pub(super) fn target(&self, index: u32) -> Result<Target, Errno> {
        self.open_entry(index).map(|entry| entry.target(index))
    }

    /// From here on the number is nobody's.
    pub(super) fn start_closing(&mut self, file: FileId) -> Result<(), Errno> {
        self.open_entry(file.0)?;
        self.entries[file.0 as usize].closing = true;
        Ok(())
    }

    /// The number may be given out again.
    pub(super) fn remove(&mut self, index: u32) -> Option<Arc<OpenFile>> {
        self.entries.try_remove(index as usize).map(|entry| entry.file)
    }

    /// Gives all locks back: the ring's end lets go of its files only some time later.
    pub(super) fn unlock_all(&self) {
        for (_, entry) in &self.entries {
            entry.file.unlock();
        }
    }
}
