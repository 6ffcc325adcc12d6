//! The part of the check that looks at the copied flags of the active tables: set exactly where the refcount
//! is one. It needs no second look at tables where all flags are set, if all refcounts are right and one.
//!
//! Knows: the refcounts as they are stored now. Must never know: how they came about.

use super::finding::Finding;
use super::state::{Check, CheckStep, decode};
use super::walk::{EntryKind, kind};
use crate::check::Repair;
use crate::fault::{Fault, L1Fault, WalkFault};
use crate::qcow2::be;
use crate::qcow2::entry::{COPIED, OFFSET};
use alloc::vec::Vec;

impl Check {
    pub(super) fn check_copied(&mut self) {
        debug_assert!(self.dirty.is_empty(), "all blocks are written");
        debug_assert!(self.rebuilt.is_none() || self.fix == Some(Repair::All), "a rebuild was asked for");
        let entries = self.header.l1_entries as usize;
        self.l1_fixed = false;
        if entries == 0 || self.flags_are_right() {
            return self.finish();
        }
        self.load(CheckStep::CopiedL1, self.header.l1_offset, entries * 8);
    }

    /// Known without a look: every entry has the flag, its cluster has one reference, and each refcount is
    /// the number of references.
    fn flags_are_right(&self) -> bool {
        let report = &self.report;
        let counted = report.is_sound() && report.leaks == 0 && self.bad_blocks.is_empty() && !self.wrote;
        debug_assert!(!counted || !self.beyond.overflow && !self.beyond.entries_stay());
        counted && self.all_copied && self.computed.all_alone()
    }

    /// Flags may be corrected when the refcounts are right.
    fn corrects(&self) -> bool {
        match self.fix {
            Some(Repair::All) => true,
            Some(Repair::Leaks) => self.report.is_sound() && self.report.leaks == 0,
            None => false,
        }
    }

    /// None: the refcount cannot be read.
    fn refcount(&self, offset: u64) -> Option<u64> {
        let cluster = offset >> self.shape.cluster_bits;
        debug_assert!(cluster < 1 << 55, "entries hold offsets below 2^56");
        let bad = self.bad_blocks.contains(&self.layout.table_index(cluster));
        (!bad).then(|| self.stored.get(cluster))
    }

    pub(super) fn copied_l1_loaded(&mut self, bytes: &[u8]) {
        // where other metadata lies on it, that is what the entries are
        let range = (self.header.l1_offset, u64::from(self.header.l1_entries) * 8);
        self.l1_overlaps = self.fix.is_some() && self.overlaps_others(range);
        self.l1 = decode(bytes);
        debug_assert!(self.l1.len() <= self.header.l1_entries as usize, "the table that was asked for");
        (self.l1_next, self.ahead) = (0, 0);
        self.next_copied();
    }

    pub(super) fn next_copied(&mut self) {
        while let Some(&entry) = self.l1.get(self.l1_next) {
            let (index, offset) = (self.l1_next, entry & OFFSET);
            self.l1_next += 1;
            if offset == 0 {
                continue;
            }
            let Some(count) = self.refcount(offset) else { continue };
            if (count == 1) != (entry & COPIED != 0) {
                let corrects = self.corrects() && !self.l1_overlaps;
                let why = L1Fault::Copied;
                let l1_index = Some(index as u64);
                self.wrong(
                    Finding::Copied { l1_index, entry, refcount: count, repaired: corrects },
                    Fault::L1Entry { index: index as u64, entry, why },
                );
                if corrects && let Some(entry) = self.l1.get_mut(index) {
                    *entry ^= COPIED;
                    self.l1_fixed = true;
                    self.repaired();
                }
            }
            self.l2_offset = offset;
            return self.load(CheckStep::CopiedL2, offset, 1 << self.shape.cluster_bits);
        }
        if self.l1_fixed {
            debug_assert!(self.fix.is_some() && !self.l1_overlaps, "the table may be written");
            let bytes = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            return self.store(CheckStep::FixCopiedL1, self.header.l1_offset, bytes);
        }
        self.finish();
    }

    /// The flag of an L2 entry is wrong: the refcount. None: it is right, or nobody can say.
    fn wrong_flag(&self, entry: u64) -> Option<u64> {
        if kind(self.shape, entry) != EntryKind::Allocated {
            return None;
        }
        let copied = entry & COPIED != 0;
        if self.shape.data_file {
            return Some(1).filter(|_| !copied);
        }
        if self.stored.is_one((entry & OFFSET) >> self.shape.cluster_bits) == copied {
            // as it should be, or of a block that cannot be read
            return None;
        }
        let refcount = self.refcount(entry & OFFSET);
        debug_assert!(refcount.is_none_or(|count| (count == 1) != copied));
        refcount
    }

    pub(super) fn copied_l2_loaded(&mut self, bytes: &[u8]) {
        let corrects = self.corrects() && !self.overlaps(self.l2_offset);
        let step = self.shape.l2_entry_bytes() as usize;
        let mut fixed = Vec::new();
        for at in (0..bytes.len()).step_by(step) {
            let entry = be::u64_at(bytes, at);
            let Some(refcount) = self.wrong_flag(entry) else { continue };
            let why = WalkFault::Copied;
            self.wrong(
                Finding::Copied { l1_index: None, entry, refcount, repaired: corrects },
                Fault::L2Walk { index: (at / step) as u64, entry, why },
            );
            if corrects {
                if fixed.is_empty() {
                    fixed = bytes.to_vec();
                }
                be::put_u64(&mut fixed, at, entry ^ COPIED);
                self.repaired();
            }
        }
        if !fixed.is_empty() {
            debug_assert!(self.fix.is_some() && fixed.len() == bytes.len(), "the table may be written");
            return self.store(CheckStep::FixCopiedL2, self.l2_offset, fixed);
        }
        self.next_copied();
    }
}
