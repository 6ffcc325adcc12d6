//! One simulated file: what is durable, what is visible, and the log of what lies between.
//!
//! Knows: versions. Must never know: operations' order or results (its owner decides), other files.
//! Invariants: `visible` is `durable` with the whole log applied in order of completion; a sync makes a
//! prefix of the log durable, namely what had completed when the sync was submitted.

use super::digest::Digest;
use super::store::{Change, Store as Content};
use crate::op::Store;
use std::collections::VecDeque;

/// What a simulated file is like.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileOptions {
    /// Of offsets and lengths, when opened with O_DIRECT: 512 or 4096.
    pub offset_align: u32,
    /// Of memory addresses and segment lengths, when opened with O_DIRECT.
    pub memory_align: u32,
    /// A block device: it cannot grow or shrink.
    pub block_device: bool,
    /// Holes can be punched; otherwise PunchHole answers EOPNOTSUPP.
    pub holes: bool,
    /// What the file system says of itself.
    pub store: Store,
    /// Its fallocate answers that ranges are zeroed, holes punched, and does nothing.
    pub lies: bool,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions {
            offset_align: 512,
            memory_align: 512,
            block_device: false,
            holes: true,
            store: Store::Known,
            lies: false,
        }
    }
}

/// What an operation does to a file.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) change: Change,
    /// The file is at least so long afterwards.
    pub(super) reach: u64,
    /// The file is exactly so long afterwards.
    pub(super) set: Option<u64>,
}

impl Entry {
    pub(super) fn len_after(&self, len: u64) -> u64 {
        self.set.unwrap_or(len.max(self.reach))
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        self.change.digest(digest);
        digest.word(self.reach).word(self.set.map_or(0, |len| len.wrapping_add(1)));
        digest.word(u64::from(self.set.is_some()));
    }
}

#[derive(Clone)]
pub(super) struct File {
    pub(super) path: Vec<u8>,
    pub(super) options: FileOptions,
    pub(super) durable: Content,
    pub(super) durable_len: u64,
    pub(super) visible: Content,
    pub(super) len: u64,
    /// Completed, not durable, oldest first.
    pub(super) log: VecDeque<Entry>,
    /// How many entries were ever taken off the log: the number of `log[0]`.
    first: u64,
}

impl File {
    pub(super) fn new(path: &[u8], content: Content, len: u64, options: FileOptions) -> File {
        File {
            path: path.to_vec(),
            options,
            durable: content.clone(),
            durable_len: len,
            visible: content,
            len,
            log: VecDeque::new(),
            first: 0,
        }
    }

    /// It gets longer by itself, durably: its new space holds `fill`.
    pub(super) fn lengthen(&mut self, to: u64, fill: u8) {
        let more = vec![fill; (to - self.len) as usize];
        for content in [&mut self.durable, &mut self.visible] {
            content.put(self.len, &more);
        }
        (self.len, self.durable_len) = (to, to);
    }

    /// An operation completed.
    pub(super) fn complete(&mut self, mut entry: Entry) {
        if let Some(len) = entry.set
            && len < self.len
        {
            entry.change = Change::Zero(len..u64::MAX);
        }
        self.visible.apply(&entry.change);
        self.len = entry.len_after(self.len);
        self.log.push_back(entry);
    }

    /// What a sync that is submitted now will make durable.
    pub(super) fn mark(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// How many log entries a mark covers.
    pub(super) fn covered(&self, mark: u64) -> usize {
        (mark.saturating_sub(self.first) as usize).min(self.log.len())
    }

    /// A sync succeeded.
    pub(super) fn sync(&mut self, mark: u64) {
        for _ in 0..self.covered(mark) {
            if let Some(entry) = self.log.pop_front() {
                self.durable.apply(&entry.change);
                self.durable_len = entry.len_after(self.durable_len);
                self.first += 1;
            }
        }
    }

    /// A sync failed, and the pages that it should have written are dropped: reads see the disk again.
    pub(super) fn drop_unsynced(&mut self, mark: u64) {
        for _ in 0..self.covered(mark) {
            self.log.pop_front();
            self.first += 1;
        }
        self.visible = self.durable.clone();
        self.len = self.durable_len;
        for entry in &self.log {
            self.visible.apply(&entry.change);
            self.len = entry.len_after(self.len);
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        // SAFETY: the vector's own memory.
        unsafe { self.visible.read(0, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        digest.bytes(&self.path).word(self.durable_len).word(self.len);
        // visible follows from durable and the log
        digest.wide(self.durable.digest()).word(self.log.len() as u64);
        for entry in &self.log {
            entry.digest(digest);
        }
    }
}
