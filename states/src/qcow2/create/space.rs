//! The space of an image that is being made: which clusters are in use, and the refcount structures that say
//! so.
//!
//! Knows: QEMU's way of allocating, step by step, so that everything lies where `qemu-img create` puts it.
//! Must never know: what the clusters are for.
//!
//! Invariants:
//! * clusters in use have a refcount of one, the others of zero;
//! * every cluster in use has a refcount block, and blocks and table are in use themselves.

use super::super::refcount::BlockShape;
use crate::error::Error;
use crate::fault::{Fault, NewFault};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of a refcount table at most.
const TABLE_MAX: u64 = 8 << 20;

/// Runs of clusters: first, and first behind the last. They neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Runs(BTreeMap<u64, u64>);

impl Runs {
    fn insert(&mut self, mut first: u64, mut end: u64) {
        debug_assert!(first < end);
        if let Some((&before, &stop)) = self.0.range(..=first).next_back()
            && stop >= first
        {
            (first, end) = (before, end.max(stop));
        }
        while let Some((&next, &stop)) = self.0.range(first..=end).next() {
            end = end.max(stop);
            self.0.remove(&next);
        }
        debug_assert!(self.0.range(first..=end).next().is_none(), "runs neither overlap nor touch");
        self.0.insert(first, end);
    }

    fn remove(&mut self, first: u64, end: u64) {
        debug_assert!(first <= end);
        while let Some((&run, &stop)) = self.0.range(..end).next_back() {
            if stop <= first {
                break;
            }
            self.0.remove(&run);
            if stop > end {
                self.0.insert(end, stop);
            }
            if run < first {
                self.0.insert(run, first);
            }
        }
        debug_assert!(self.within(first, end).next().is_none(), "none of them is in a run");
    }

    /// The first place at or behind `from` with `count` clusters that are in no run.
    fn free(&self, mut from: u64, count: u64) -> u64 {
        debug_assert!(count > 0, "nobody looks for nothing");
        if let Some((_, &stop)) = self.0.range(..=from).next_back() {
            from = from.max(stop);
        }
        for (&run, &stop) in self.0.range(from..) {
            if run - from >= count {
                break;
            }
            from = stop;
        }
        debug_assert!(self.within(from, from + count).next().is_none());
        from
    }

    /// The parts of `first..end` that are in a run.
    pub(super) fn within(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        debug_assert!(first <= end);
        let before = self.0.range(..first).next_back();
        let runs = before.into_iter().chain(self.0.range(first..end));
        runs.map(move |(&run, &stop)| (run.max(first), stop.min(end))).filter(|(run, stop)| run < stop)
    }

    /// First cluster behind the last run.
    pub(super) fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, &stop)| stop)
    }
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Space {
    pub(super) layout: BlockShape,
    pub(super) used: Runs,
    /// Where each refcount block lies, in clusters; 0: nowhere.
    pub(super) table: Vec<u64>,
    /// Where the refcount table lies, in clusters.
    pub(super) table_at: u64,
    /// Tables that were in use before, and their entries: their bytes still stand in the file.
    pub(super) old_tables: Vec<(u64, Vec<u64>)>,
    /// Where the search begins.
    next: u64,
}

/// A refcount block was made: the search has to be done again.
struct Again;

impl Space {
    /// Header, refcount table and its first block.
    pub(super) fn new(layout: BlockShape) -> Space {
        let mut table = vec![0; 1 << (layout.cluster_bits - 3)];
        if let Some(first) = table.first_mut() {
            *first = 2;
        }
        let mut used = Runs::default();
        used.insert(0, 3);
        Space { layout, used, table, table_at: 1, old_tables: Vec::new(), next: 3 }
    }

    /// Clusters of the refcount table.
    pub(super) fn table_clusters(&self) -> u64 {
        debug_assert!(self.table.len().is_multiple_of(1 << (self.layout.cluster_bits - 3)), "whole ones");
        self.table.len() as u64 >> (self.layout.cluster_bits - 3)
    }

    fn search(&mut self, count: u64) -> u64 {
        debug_assert!(count > 0);
        let first = self.used.free(self.next, count);
        debug_assert!(first > 0, "the header comes first");
        self.next = first + count;
        first
    }

    /// So many clusters in a row: the first.
    pub(super) fn alloc(&mut self, count: u64) -> Result<u64, Error> {
        loop {
            let first = self.search(count);
            if self.claim(first, count)?.is_ok() {
                let all = (first, first + count);
                debug_assert!(self.used.within(all.0, all.1).eq([all]), "they are in use from now on");
                return Ok(first);
            }
        }
    }

    /// The clusters from `first` on that are free, at most so many: their number.
    pub(super) fn alloc_at(&mut self, first: u64, most: u64) -> Result<u64, Error> {
        loop {
            let taken = self.used.within(first, first + most).next();
            let count = taken.map_or(most, |(run, _)| run - first);
            debug_assert!(count <= most, "no more than were asked for");
            if self.claim(first, count)?.is_ok() {
                return Ok(count);
            }
        }
    }

    fn claim(&mut self, first: u64, count: u64) -> Result<Result<(), Again>, Error> {
        let (mut at, end) = (first, first + count);
        while at < end {
            let index = self.layout.table_index(at);
            if self.table.get(index as usize).is_none_or(|block| *block == 0) {
                self.make_block(index, at)?;
                self.used.remove(first, at);
                self.next = self.next.min(first);
                return Ok(Err(Again));
            }
            let stop = end.min((index + 1) << self.layout.block_bits());
            debug_assert!(at < stop, "it gets on");
            self.used.insert(at, stop);
            at = stop;
        }
        Ok(Ok(()))
    }

    /// A refcount block for `cluster`, or what is needed before it can be made.
    fn make_block(&mut self, index: u64, cluster: u64) -> Result<(), Error> {
        debug_assert!(self.table.get(index as usize).is_none_or(|block| *block == 0));
        let block = self.search(1);
        debug_assert!(block != 0, "entry 0 is none");
        if self.layout.table_index(block) == index {
            self.used.insert(block, block + 1);
        } else if self.claim(block, 1)?.is_err() {
            return Ok(());
        }
        if let Some(entry) = self.table.get_mut(index as usize) {
            *entry = block;
            return Ok(());
        }
        let blocks = self.layout.table_index(cluster.max(block)) + 1;
        self.make_area(blocks << self.layout.block_bits(), 0, false, Some((index, block)))?;
        Ok(())
    }

    /// Refcount blocks that a file of so many clusters needs, its refcount structures counted in.
    fn blocks_for(&self, mut clusters: u64, mut generous: bool) -> u64 {
        let (mut blocks, mut table) = (0u64, 0u64);
        loop {
            let last = blocks;
            blocks = (clusters + table + blocks).div_ceil(self.layout.block_entries());
            table = blocks.div_ceil(1 << (self.layout.cluster_bits - 3));
            if blocks > last {
                continue;
            }
            let counted = blocks * self.layout.block_entries();
            debug_assert!(counted >= clusters + table + blocks, "they count themselves, too");
            if !generous {
                return blocks;
            }
            clusters += table.div_ceil(2);
            generous = false;
        }
    }

    /// A new refcount table at `start`, behind all that is in use, with blocks for itself and `more` clusters
    /// behind it: where it ends.
    pub(super) fn make_area(
        &mut self,
        start: u64,
        more: u64,
        exact: bool,
        block: Option<(u64, u64)>,
    ) -> Result<u64, Error> {
        let per_cluster = 1 << (self.layout.cluster_bits - 3);
        let blocks = self.blocks_for(start + more, !exact);
        let entries = if exact { blocks } else { blocks + blocks.div_ceil(2) };
        let entries = entries.next_multiple_of(per_cluster);
        if entries * 8 > TABLE_MAX {
            return Err(Error::Corrupt(Fault::New { value: entries * 8, why: NewFault::Reftable }));
        }
        let mut table = self.table.clone();
        table.resize(entries as usize, 0);
        if let Some((index, block)) = block
            && let Some(entry) = table.get_mut(index as usize)
        {
            *entry = block;
        }
        let from = self.layout.table_index(start) as usize;
        let mut at = start;
        for entry in table.iter_mut().take(blocks as usize).skip(from).filter(|entry| **entry == 0) {
            *entry = at;
            at += 1;
        }
        let end = at + entries / per_cluster;
        debug_assert!(at >= start, "blocks come first");
        self.used.insert(start, end);
        let old = core::mem::replace(&mut self.table, table);
        let (first, count) = (self.table_at, old.len() as u64 / per_cluster);
        self.table_at = at;
        self.used.remove(first, first + count);
        self.next = self.next.min(first);
        self.old_tables.push((first, old));
        debug_assert!(start < end && self.table.len() as u64 * 8 <= TABLE_MAX);
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_a_set(ops in prop::collection::vec((any::<bool>(), 0..60u64, 0..9u64), 1..40)) {
            let (mut runs, mut model) = (Runs::default(), [false; 80]);
            for (insert, first, len) in ops {
                match insert {
                    true if len > 0 => runs.insert(first, first + len),
                    true => continue,
                    false => runs.remove(first, first + len),
                }
                model[first as usize..(first + len) as usize].fill(insert);
            }
            let mut found = [false; 80];
            for (first, end) in runs.within(0, 80) {
                found[first as usize..end as usize].fill(true);
            }
            prop_assert_eq!(found, model);
            for from in 0..60 {
                let place = (from..).find(|at| (*at..at + 3).all(|n| model.get(n).is_none_or(|used| !used)));
                prop_assert_eq!(Some(runs.free(from as u64, 3)), place.map(|at| at as u64));
            }
        }

        #[test]
        fn everything_in_use_is_counted(
            cluster_bits in 9..=12u32,
            order in 0..=6u32,
            counts in prop::collection::vec(1..3000u64, 1..60),
        ) {
            let mut space = Space::new(BlockShape { cluster_bits, order });
            let mut taken = Runs::default();
            for count in counts {
                let first = space.alloc(count).unwrap();
                prop_assert_eq!(taken.within(first, first + count).next(), None);
                taken.insert(first, first + count);
            }
            for (first, end) in space.used.within(0, u64::MAX) {
                let (from, to) = (space.layout.table_index(first), space.layout.table_index(end - 1));
                for index in from..=to {
                    let block = space.table[index as usize];
                    prop_assert!(block != 0 && space.used.within(block, block + 1).next().is_some());
                }
            }
        }
    }
}
