//! The part of the check that compares references with refcounts, corrects these, or builds them anew.
//!
//! Knows: both counts of every cluster. Must never know: who refers to a cluster.

use super::finding::Finding;
use super::state::{After, Check, CheckStep};
use crate::check::Repair;
use crate::error::Error;
use crate::fault::{Fault, ReftableFault};
use crate::io::IoOp;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

impl Check {
    /// The refcount blocks, read once: a block that several entries lead to counts for the first of them.
    pub(super) fn load_blocks(&mut self) {
        debug_assert!(self.steps.step().is_none(), "all references are counted");
        if self.rebuilt.is_some() {
            return self.compare();
        }
        if self.starts_dropping() {
            return;
        }
        self.ahead = 0;
        let mut seen = BTreeSet::new();
        for (index, entry) in self.reftable.iter_mut().enumerate() {
            *entry &= !511;
            let first = (index as u64) << self.layout.block_bits();
            // blocks of clusters that the file does not have, and blocks met before, are not read
            if first >= self.clusters || *entry > i64::MAX as u64 || !seen.insert(*entry) {
                continue;
            }
            if *entry != 0 && !self.bad_blocks.contains(&(index as u64)) {
                self.dirty.insert(index as u64);
            }
        }
        self.load_block();
    }

    fn load_block(&mut self) {
        let Some(index) = self.dirty.first().copied() else { return self.compare() };
        let offset = self.reftable.get(index as usize).copied().unwrap_or(0);
        debug_assert!(offset > 0, "a block that is read has a place");
        self.load(CheckStep::Block, offset, 1 << self.shape.cluster_bits);
    }

    pub(super) fn block_loaded(&mut self, bytes: &[u8]) {
        debug_assert!(!self.dirty.is_empty(), "a block was asked for");
        if let Some(index) = self.dirty.pop_first() {
            self.stored.load(index, bytes);
        }
        self.load_block();
    }

    fn compare(&mut self) {
        if let Some((corruptions, leaks)) = self.rebuilt {
            // what the old structures took is free now, and that is no news
            let walked = self.report.corruptions;
            let fixed = (self.report.corruptions_fixed, self.report.leaks_fixed);
            self.compare_counts(Some(Repair::Leaks));
            self.report.corruptions = walked;
            self.report.corruptions_fixed = fixed.0 + corruptions.saturating_sub(walked);
            self.report.leaks_fixed = fixed.1 + leaks;
            return self.write_blocks();
        }
        let before = (self.report.corruptions, self.report.check_errors, self.report.problems.len());
        debug_assert!(self.dirty.is_empty(), "all blocks were read");
        self.compare_counts(None);
        match self.fix {
            None => {}
            Some(Repair::All) if self.rebuild => {
                self.say(Finding::Rebuild { repaired: true });
                return self.build();
            }
            Some(Repair::Leaks) if self.rebuild => {
                self.say(Finding::Rebuild { repaired: false });
                let what = "the refcount structures have to be rebuilt: that is not a repair of leaks";
                return self.fail(Error::Misuse(what));
            }
            fix if self.report.leaks > 0 || self.report.corruptions > 0 => {
                (self.report.corruptions, self.report.check_errors) = (before.0, before.1);
                self.report.leaks = 0;
                self.report.problems.truncate(before.2);
                self.compare_counts(fix);
            }
            _ => {}
        }
        self.free_dropped();
        self.write_blocks();
    }

    /// Goes through all clusters whose counts are not what they should be.
    fn compare_counts(&mut self, fix: Option<Repair>) {
        debug_assert!(fix.is_none() || self.fix.is_some(), "without leave no count changes");
        self.highest = self.highest_used();
        let bad = self.bad_blocks.iter().map(|index| {
            let (first, end) = (index << self.layout.block_bits(), (index + 1) << self.layout.block_bits());
            end.min(self.clusters).saturating_sub(first)
        });
        self.report.check_errors += bad.sum::<u64>();
        let mut at = 0;
        while let Some(cluster) = self.computed.next_difference(&self.stored, at, self.clusters) {
            at = cluster + 1;
            self.compare_cluster(cluster, fix);
        }
    }

    /// The last cluster of the file that has a count or should have one, but where no count can be read.
    fn highest_used(&self) -> u64 {
        let mut end = self.clusters;
        while let Some(last) = self.computed.last_used(end).max(self.stored.last_used(end)) {
            let index = self.layout.table_index(last);
            debug_assert!(last < end);
            if !self.bad_blocks.contains(&index) {
                return last;
            }
            end = index << self.layout.block_bits();
        }
        0
    }

    fn compare_cluster(&mut self, cluster: u64, fix: Option<Repair>) {
        debug_assert!(cluster < self.clusters, "it is one of the file's");
        let index = self.layout.table_index(cluster);
        if self.bad_blocks.contains(&index) {
            return;
        }
        let (stored, computed) = (self.stored.get(cluster), self.computed.get(cluster));
        debug_assert_ne!(stored, computed);
        let leak = stored > computed;
        // as QEMU: what counts nothing where something is may be anything, and is made anew. A device may
        // have no room for that: there a block that can be read is put right where it lies
        let block = self.room.is_some() && self.reftable.get(index as usize).is_some_and(|block| *block != 0);
        let anew = stored == 0 && !block;
        let fixable = !anew && (leak && fix.is_some() || !leak && fix == Some(Repair::All));
        self.rebuild |= anew;
        self.say(Finding::Refcount { cluster, stored, computed, repaired: fixable });
        if fixable {
            self.stored.set(cluster, computed);
            self.dirty.insert(index);
            let fixed = if leak { &mut self.report.leaks_fixed } else { &mut self.report.corruptions_fixed };
            *fixed += 1;
        } else if leak {
            self.report.leaks += 1;
        } else {
            self.report.corruptions += 1;
            self.report.problem(Error::Corrupt(Fault::Refcount { cluster, stored }));
        }
    }

    /// Writes the blocks whose counts were corrected.
    pub(super) fn write_blocks(&mut self) {
        while let Some(index) = self.dirty.pop_first() {
            let offset = self.reftable.get(index as usize).copied().unwrap_or(0);
            debug_assert!(self.fix.is_some(), "without leave no count changes");
            if offset != 0 {
                return self.store(CheckStep::FixBlock, offset, self.stored.block(index));
            }
        }
        match core::mem::replace(&mut self.after, After::Copied) {
            After::Copied => self.check_copied(),
            After::Snapshots(offset, bytes) => self.write_snapshots(offset, bytes),
            After::Finish => self.finish(),
        }
    }

    /// The first of so many free clusters in a row at or behind `first`, or where a device has some; now in
    /// use.
    fn take(&mut self, count: u64, first: u64) -> u64 {
        debug_assert!(count > 0, "nobody takes nothing");
        let outside = |check: &Check, first: u64| check.room.is_some_and(|room| first + count > room);
        let mut found = self.free(count, first);
        if outside(self, found) && first > 0 {
            found = self.free(count, 0);
        }
        self.full |= outside(self, found);
        (found..found + count).for_each(|cluster| self.computed.set(cluster, 1));
        self.clusters = self.clusters.max(found + count);
        found
    }

    fn free(&self, count: u64, mut first: u64) -> u64 {
        loop {
            let used = self.computed.next_used(first).filter(|used| *used < first + count);
            let Some(next) = used.map(|used| used + 1).or_else(|| self.beyond.kept_until(first, count))
            else {
                break;
            };
            first = next;
        }
        debug_assert!(self.computed.next_used(first).is_none_or(|used| used >= first + count));
        debug_assert!(self.beyond.kept_until(first, count).is_none(), "nothing leads there");
        first
    }

    /// Places blocks for the clusters in use, their own ones included: did the table grow?
    fn place_blocks(&mut self, first: u64, table: &mut Vec<u64>) -> bool {
        let (mut block, mut at, mut grown) = (0, first, false);
        debug_assert!(self.fix == Some(Repair::All), "nothing less makes counts anew");
        while let Some(cluster) = self.computed.next_used(at) {
            let index = self.layout.table_index(cluster);
            at = (index + 1) << self.layout.block_bits();
            if table.get(index as usize).is_some_and(|block| *block != 0) {
                continue;
            }
            let first = block.max(index << self.layout.block_bits());
            block = self.take(1, first);
            if block < first {
                // what counts this one may be missing, too
                at = 0;
            }
            if index as usize >= table.len() {
                let per_cluster = 1 << (self.shape.cluster_bits - 3);
                table.resize((index as usize + 1).next_multiple_of(per_cluster), 0);
                grown = true;
            }
            if let Some(entry) = table.get_mut(index as usize) {
                *entry = block << self.shape.cluster_bits;
            }
        }
        grown
    }

    /// New refcount structures from what was counted, in clusters that nothing refers to.
    fn build(&mut self) {
        if let Err(error) = self.check_places() {
            return self.fail(error);
        }
        self.rebuilt = Some((self.report.corruptions, self.report.leaks));
        (self.report.corruptions, self.report.leaks, self.report.check_errors) = (0, 0, 0);
        self.report.problems.clear();
        self.rebuild = false;
        debug_assert!(self.fix == Some(Repair::All), "nothing less makes counts anew");
        let mut table = Vec::new();
        self.place_blocks(0, &mut table);
        let offset = loop {
            let clusters = (table.len() as u64 * 8) >> self.shape.cluster_bits;
            if clusters << self.shape.cluster_bits > 8 << 20 {
                let (entry, why) = (table.len() as u64, ReftableFault::TooLarge);
                return self.fail(Error::Corrupt(Fault::Reftable { index: 0, entry, why }));
            }
            let first = self.take(clusters, 0);
            if !self.place_blocks(first, &mut table) {
                break first << self.shape.cluster_bits;
            }
        };
        if self.full {
            return self.fail(Error::NoSpace);
        }
        self.header.reftable_offset = offset;
        self.header.reftable_clusters = ((table.len() as u64 * 8) >> self.shape.cluster_bits) as u32;
        self.len = self.len.max(self.clusters << self.shape.cluster_bits);
        let blocks = table.iter().enumerate().filter(|(_, block)| **block != 0);
        self.dirty = blocks.map(|(index, _)| index as u64).collect();
        self.reftable = table;
        self.stored = self.computed.clone();
        self.write_new_blocks();
    }

    pub(super) fn write_new_blocks(&mut self) {
        debug_assert!(self.rebuilt.is_some(), "the structures are made anew");
        let Some(index) = self.dirty.pop_first() else {
            return self.emit(CheckStep::SyncNewBlocks, IoOp::Sync);
        };
        let offset = self.reftable.get(index as usize).copied().unwrap_or(0);
        self.store(CheckStep::NewBlock, offset, self.stored.block(index));
    }

    pub(super) fn write_new_reftable(&mut self) {
        debug_assert!(self.rebuilt.is_some() && self.dirty.is_empty(), "blocks are durable before it");
        let bytes = self.reftable.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.store(CheckStep::NewReftable, self.header.reftable_offset, bytes);
    }
}
