//! The part of the check that reads the snapshot table, and writes a better one elsewhere when it is to be
//! repaired.
//!
//! Knows: the table's entries. Must never know: the snapshots' L1 tables.
//!
//! Invariants:
//! * the new table and its refcounts are durable before the header leads to it, and that before the old one
//!   is free.

use super::finding::Finding;
use super::state::{After, Check, CheckStep, Job};
use crate::check::Repair;
use crate::error::Error;
use crate::fault::{Fault, SnapshotFault};
use crate::qcow2::be;
use crate::qcow2::snapshot::{EXTRA_MAX, Parsed, Snapshot, TABLE_MAX};
use alloc::vec::Vec;

impl Check {
    /// Snapshot entries from what was read of their table so far.
    pub(super) fn parse_snapshots(&mut self, mut bytes: Vec<u8>) {
        let (mut at, trim) = (0, self.fix == Some(Repair::All));
        while (self.snapshots.len() as u64) < u64::from(self.header.snapshots) {
            let index = self.snapshots.len() as u64;
            let entry = bytes.get(at..).unwrap_or(&[]);
            let (len, parsed) = match Snapshot::parse(entry, index, trim) {
                Ok(Parsed::Entry(snapshot, len)) => (len, Some(snapshot)),
                Ok(Parsed::Needs(more)) => (more, None),
                Err(error) => return self.fail(error),
            };
            let end = self.snapshots_len + len as u64;
            if end > TABLE_MAX {
                let why = SnapshotFault::TooLong;
                return self.fail(Error::Corrupt(Fault::Snapshot { index, value: end, why }));
            }
            match parsed {
                Some(snapshot) => {
                    self.judge_snapshot(index, be::u32_at(entry, 36), snapshot.is_complete());
                    self.snapshots.push(snapshot);
                    at += len;
                    self.snapshots_len = end;
                }
                None => {
                    bytes.drain(..at.min(bytes.len()));
                    let (offset, have) = (self.header.snapshots_offset + self.snapshots_len, bytes.len());
                    let len = len.max(have + 4096);
                    self.job = Job { offset, len, done: have, bytes, write: false };
                    return self.go_on(CheckStep::Snapshots);
                }
            }
        }
        debug_assert!(self.snapshots_len <= TABLE_MAX, "a longer table was refused");
        self.bitmaps = Vec::new();
        let bytes = (self.header.reftable_clusters as usize) << self.shape.cluster_bits;
        if bytes == 0 {
            self.reftable = Vec::new();
            return self.walk();
        }
        self.load(CheckStep::Reftable, self.header.reftable_offset, bytes);
    }

    /// Has an entry too much extra data, or too little? That is no corruption yet: it may be repaired.
    fn judge_snapshot(&mut self, index: u64, extra: u32, complete: bool) {
        let why = if extra > EXTRA_MAX {
            SnapshotFault::ExtraTooLong
        } else if self.header.version >= 3 && !complete {
            SnapshotFault::ExtraTooShort
        } else {
            return;
        };
        self.say(Finding::Snapshot { index, extra, repaired: self.fix == Some(Repair::All) });
        let fault = Fault::Snapshot { index, value: extra.into(), why };
        self.report.problem(Error::Corrupt(fault));
        self.snapshot_corruptions += 1;
    }

    /// Completes the entries and starts writing them to a free place. False: there is none.
    pub(super) fn move_snapshots(&mut self) -> bool {
        debug_assert!(self.fix == Some(Repair::All) && self.snapshot_corruptions > 0);
        let size = self.header.guest_size();
        let mut bytes = Vec::new();
        for snapshot in &mut self.snapshots {
            if self.header.version >= 3 && !snapshot.is_complete() {
                snapshot.complete(size);
            }
            snapshot.encode(&mut bytes);
        }
        let count = (bytes.len() as u64).div_ceil(self.shape.cluster_size());
        debug_assert!(count > 0);
        let Some(first) = self.free_run(count) else { return false };
        for cluster in first..first + count {
            self.computed.set(cluster, 1);
            self.stored.set(cluster, 1);
            self.dirty.insert(self.layout.table_index(cluster));
        }
        self.report.corruptions_fixed += core::mem::take(&mut self.snapshot_corruptions);
        self.clusters = self.clusters.max(first + count);
        self.after = After::Snapshots(first << self.shape.cluster_bits, bytes);
        self.write_blocks();
        true
    }

    /// Free clusters in a row that refcount blocks exist for.
    fn free_run(&self, count: u64) -> Option<u64> {
        debug_assert!(count > 0);
        self.check_places().ok()?;
        let mut first = 0;
        loop {
            let used = [self.computed.next_used(first), self.stored.next_used(first)];
            let used = used.into_iter().flatten().min().filter(|used| *used < first + count);
            match used.map(|used| used + 1).or_else(|| self.beyond.kept_until(first, count)) {
                Some(next) => first = next,
                None => break,
            }
        }
        let (from, to) = (self.layout.table_index(first), self.layout.table_index(first + count - 1));
        let has_block = |index: u64| {
            let block = self.reftable.get(index as usize).is_some_and(|block| *block != 0);
            block && !self.bad_blocks.contains(&index)
        };
        (from..=to).all(has_block).then_some(first)
    }

    /// The refcounts are written: now the table, then the header; the old table is free after that.
    pub(super) fn write_snapshots(&mut self, offset: u64, bytes: Vec<u8>) {
        debug_assert!(offset > 0 && offset.is_multiple_of(self.shape.cluster_size()));
        let (bits, old, len) = (self.shape.cluster_bits, self.header.snapshots_offset, self.snapshots_len);
        for cluster in old >> bits..(old + len).div_ceil(self.shape.cluster_size()) {
            let count = self.stored.get(cluster);
            if count > 0 && !self.bad_blocks.contains(&self.layout.table_index(cluster)) {
                self.stored.set(cluster, count - 1);
                self.dirty.insert(self.layout.table_index(cluster));
            }
        }
        self.header.snapshots_offset = offset;
        self.snapshots_len = bytes.len() as u64;
        self.len = self.len.max(self.clusters << bits);
        self.after = After::Finish;
        self.store(CheckStep::NewSnapshots, offset, bytes);
    }
}
