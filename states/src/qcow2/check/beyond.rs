//! What leads beyond the end of the file. A repair drops entries of L1 and L2 tables that do, as there is no
//! data that they could lead to, when all references are counted; the places of what stays are kept in mind,
//! so that the repair puts nothing there.
//!
//! Knows: where the file ended, what still leads behind it. Must never know: what entries mean otherwise.
//!
//! Invariants:
//! * entries are dropped only in an L2 table that nothing but L1 tables lead to, and in an L1 table that
//!   nothing but the header or one snapshot leads to: anything else may be a guest's data;
//! * what is dropped is durable before a count goes down or anything is written where the repair has placed
//!   it (QC20): else a power cut in between would leave an entry that leads to refcounts, and they would be
//!   the guest's data;
//! * memory is bounded: a check that has more than `KEPT_MAX` places in mind does not build new structures.

use super::finding::Finding;
use super::state::{CLUSTERS_MAX, Check, CheckStep, decode};
use super::walk::{EntryKind, kind, overlap};
use crate::check::Repair;
use crate::error::Error;
use crate::fault::{Fault, ReferenceFault};
use crate::io::IoOp;
use crate::qcow2::be;
use crate::qcow2::entry::{COMPRESSED, OFFSET, Subclusters, ZERO};
use alloc::vec::Vec;

/// Bytes of a device's block at most, as a rule.
const BLOCK: u64 = 4096;
/// Clusters behind twice the file where nothing is ever put.
const REACH: u64 = 1 << 20;

impl Check {
    /// Does a range go beyond `end` by a cluster or more? The last cluster may be there in part.
    pub(super) fn goes_beyond(&self, end: u64, offset: u64, len: u64) -> bool {
        debug_assert!(end <= 1 << 63, "no file is longer");
        // offsets and lengths are below 2^63
        len > 0 && offset.saturating_add(len) >= end.saturating_add(self.shape.cluster_size())
    }

    /// Does it go beyond the end of the file, as that is by now?
    pub(super) fn is_beyond(&self, offset: u64, len: u64) -> bool {
        debug_assert!(self.len.is_multiple_of(512), "whole sectors");
        self.goes_beyond(self.len, offset, len)
    }

    fn tell_beyond(&mut self, offset: u64, len: u64) {
        let (cluster, why) = (offset >> self.shape.cluster_bits, ReferenceFault::Beyond);
        self.wrong(Finding::Beyond { offset, len }, Fault::Reference { cluster, offset, why });
    }

    /// Something lies beyond the end of the file.
    pub(super) fn lies_beyond(&mut self, offset: u64, len: u64) {
        debug_assert!(self.is_beyond(offset, len));
        self.tell_beyond(offset, len);
        self.keep_place(offset, len);
    }

    fn keep_place(&mut self, offset: u64, len: u64) {
        debug_assert!(len > 0);
        let (bits, reach) = (self.shape.cluster_bits, 2 * self.clusters + REACH);
        if self.fix.is_some() && offset >> bits < reach {
            self.beyond.keep(offset >> bits, (offset.saturating_add(len - 1) >> bits) + 1);
        }
    }

    /// One more reference, by an entry, to each cluster of a range.
    pub(super) fn mark_entry(&mut self, offset: u64, len: u64) {
        if self.goes_beyond(self.beyond.end, offset, len) {
            self.beyond.told += 1;
            if self.rebuilt.is_some() {
                self.keep_place(offset, len);
            }
            return self.tell_beyond(offset, len);
        }
        self.mark(offset, len);
    }

    /// The same by an L1 entry to its table.
    pub(super) fn mark_table(&mut self, offset: u64) {
        self.mark_entry(offset, self.shape.cluster_size());
        self.count_table(offset);
    }

    /// Is it the sync that makes what was dropped durable?
    pub(crate) fn syncs_dropped(&self) -> bool {
        matches!(self.steps.step(), Some(CheckStep::SyncDropped))
    }

    /// All references are counted: drops the entries that lead beyond the end of the file, if there are some
    /// and that is wanted. False: nothing to do.
    pub(super) fn starts_dropping(&mut self) -> bool {
        let wanted = self.fix == Some(Repair::All) && self.rebuilt.is_none() && !self.beyond.dropped;
        if !wanted || self.beyond.told == 0 {
            return false;
        }
        (self.beyond.dropped, self.which) = (true, 0);
        if !self.drops_from(self.header.l1_offset, self.header.l1_entries) {
            self.next_dropping();
        }
        true
    }

    /// Starts with an L1 table. False: it has no entries, or none that were looked at.
    fn drops_from(&mut self, offset: u64, entries: u32) -> bool {
        let len = u64::from(entries) * 8;
        let usable = offset.is_multiple_of(self.shape.cluster_size()) && len <= 32 << 20;
        if len == 0 || !usable {
            return false;
        }
        self.l1_offset = offset;
        debug_assert!(self.fix == Some(Repair::All), "nothing else drops entries");
        self.load(CheckStep::DropL1, offset, len as usize);
        true
    }

    /// Goes on with the next L1 table.
    pub(super) fn next_dropping(&mut self) {
        while let Some(snapshot) = self.snapshots.get(self.which) {
            let (offset, entries) = (snapshot.l1_offset, snapshot.l1_entries);
            self.which += 1;
            if self.drops_from(offset, entries) {
                return;
            }
        }
        // a table that several L1 entries lead to was met as often, with its entries only once
        let gone = self.beyond.told.saturating_sub(self.beyond.stay);
        self.beyond.told = self.beyond.stay;
        debug_assert!(gone <= self.report.corruptions, "each was counted when it was told");
        self.report.corruptions -= gone;
        self.report.corruptions_fixed += gone;
        self.report.dropped += gone;
        if gone == 0 {
            return self.load_blocks();
        }
        self.say(Finding::Dropped { entries: gone });
        self.emit(CheckStep::SyncDropped, IoOp::Sync);
    }

    pub(super) fn drop_l1_loaded(&mut self, bytes: &[u8]) {
        self.l1 = decode(bytes);
        debug_assert!(self.fix == Some(Repair::All), "nothing else drops entries");
        (self.l1_next, self.ahead, self.l1_fixed) = (0, 0, false);
        self.l1_writable = self.l1_is_alone();
        self.drop_next();
    }

    /// Goes on with the next L2 table of the L1 table.
    pub(super) fn drop_next(&mut self) {
        let cluster = self.shape.cluster_size();
        debug_assert!(self.fix == Some(Repair::All) && self.beyond.dropped, "nothing else drops entries");
        while let Some(&entry) = self.l1.get(self.l1_next) {
            let offset = entry & OFFSET;
            self.l1_next += 1;
            if entry == 0 {
                continue;
            }
            if self.goes_beyond(self.beyond.end, offset, cluster) {
                match self.l1.get_mut(self.l1_next - 1) {
                    Some(entry) if self.l1_writable => (*entry, self.l1_fixed) = (0, true),
                    _ => self.stays(offset, cluster),
                }
                continue;
            }
            self.l2_offset = offset;
            return self.load(CheckStep::DropL2, offset, cluster as usize);
        }
        if core::mem::take(&mut self.l1_fixed) {
            let mut bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            // whole blocks of the device: the rest of the last cluster is the table's, and nothing
            bytes.resize(bytes.len().next_multiple_of(cluster.min(BLOCK) as usize), 0);
            return self.store(CheckStep::StoreL1, self.l1_offset, bytes);
        }
        self.next_dropping();
    }

    fn stays(&mut self, offset: u64, len: u64) {
        self.beyond.stay += 1;
        debug_assert!(self.beyond.dropped, "it stays though others are dropped");
        self.keep_place(offset, len);
    }

    pub(super) fn drop_l2_loaded(&mut self, mut bytes: Vec<u8>) {
        let (step, mut dropped) = (self.shape.l2_entry_bytes() as usize, false);
        self.beyond.writable = self.l2_is_alone();
        debug_assert!(self.l1_next > 0, "an entry led here");
        for at in (0..bytes.len()).step_by(step) {
            let entry = be::u64_at(&bytes, at);
            let bitmap = if self.shape.extended { be::u64_at(&bytes, at + 8) } else { 0 };
            let (offset, len) = match kind(self.shape, entry) {
                EntryKind::Compressed if bitmap == 0 => {
                    let (offset, len) = self.shape.compressed_range(entry);
                    (offset, u64::from(len))
                }
                EntryKind::Allocated => (entry & OFFSET, self.shape.cluster_size()),
                _ => continue,
            };
            if self.shape.data_file || !self.goes_beyond(self.beyond.end, offset, len) {
                continue;
            }
            if !self.beyond.writable {
                self.stays(offset, len);
                continue;
            }
            // what it says without its space; version 2 knows no zeros
            let plain = self.shape.version >= 3 && !self.shape.extended && entry & COMPRESSED == 0;
            be::put_u64(&mut bytes, at, if plain { entry & ZERO } else { 0 });
            if self.shape.extended {
                be::put_u64(&mut bytes, at + 8, bitmap & Subclusters::ALL_ZERO.0);
            }
            dropped = true;
        }
        if dropped {
            return self.store(CheckStep::StoreL2, self.l2_offset, bytes);
        }
        self.drop_next();
    }

    /// Nothing but L1 entries leads to this L2 table.
    fn l2_is_alone(&self) -> bool {
        debug_assert!(self.fix == Some(Repair::All), "tables are counted where entries may be dropped");
        let cluster = self.l2_offset >> self.shape.cluster_bits;
        !self.beyond.overflow
            && !self.overlaps(self.l2_offset)
            && self.hidden.tables.get(&cluster) == Some(&self.computed.get(cluster))
    }

    /// Nothing else leads to this L1 table.
    fn l1_is_alone(&self) -> bool {
        let (offset, len) = (self.l1_offset, self.l1.len() as u64 * 8);
        debug_assert!(len > 0, "the table has entries");
        let active = (0, self.header.l1_offset, self.header.l1_entries);
        let others = (1..).zip(&self.snapshots).map(|(n, s)| (n, s.l1_offset, s.l1_entries));
        let apart = |(n, at, entries): (usize, u64, u32)| {
            n == self.which || !overlap((offset, len), (at, u64::from(entries) * 8))
        };
        let mut clusters =
            offset >> self.shape.cluster_bits..(offset + len).div_ceil(self.shape.cluster_size());
        !self.beyond.overflow
            && !self.is_beyond(offset, len)
            && !self.overlaps_others((offset, len))
            && clusters.all(|cluster| self.computed.get(cluster) == 1)
            && core::iter::once(active).chain(others).all(apart)
    }

    /// What entries counted that were dropped is free, behind the end of the file as well.
    pub(super) fn free_dropped(&mut self) {
        if !self.beyond.dropped {
            return;
        }
        debug_assert!(self.fix == Some(Repair::All), "nothing else drops entries");
        let mut at = self.clusters;
        while let Some(cluster) = self.stored.next_used(at) {
            at = cluster + 1;
            if self.computed.get(cluster) == 0 && self.beyond.kept_until(cluster, 1).is_none() {
                self.stored.set(cluster, 0);
                self.dirty.insert(self.layout.table_index(cluster));
            }
        }
    }

    /// New structures need places that nothing leads to.
    pub(super) fn check_places(&self) -> Result<(), Error> {
        if !self.beyond.too_many {
            return Ok(());
        }
        let (offset, why) = (self.beyond.end, ReferenceFault::TooManyBeyond);
        Err(Error::Corrupt(Fault::Reference { cluster: 0, offset, why }))
    }

    /// The active L1 table lies beyond the end of the file, though not out of reach: the file gets as long.
    pub(super) fn reaches_l1(&mut self) -> bool {
        let (offset, bytes) = (self.header.l1_offset, u64::from(self.header.l1_entries) * 8);
        if self.which > 0 || self.fix != Some(Repair::All) || self.rebuilt.is_some() {
            return false;
        }
        let end = (offset + bytes).next_multiple_of(self.shape.cluster_size());
        let near = end >> self.shape.cluster_bits <= CLUSTERS_MAX && self.header.l1_is_in_reach(self.len);
        debug_assert!(end >= offset + bytes, "the file gets long enough");
        if !near || !self.is_beyond(offset, bytes) {
            return false;
        }
        self.wrote = true;
        self.emit(CheckStep::ExtendL1, IoOp::SetLen { len: end });
        true
    }

    /// The file is as long, or will not be.
    pub(super) fn l1_reached(&mut self, reached: bool) {
        debug_assert_eq!(self.which, 0, "only the active one is worth a longer file");
        let (offset, entries) = (self.header.l1_offset, self.header.l1_entries);
        if reached {
            self.tell_beyond(offset, u64::from(entries) * 8);
            self.repaired();
            self.len = (offset + u64::from(entries) * 8).next_multiple_of(self.shape.cluster_size());
            self.clusters = self.clusters.max(self.len >> self.shape.cluster_bits);
        }
        self.read_l1(offset, entries);
    }
}
