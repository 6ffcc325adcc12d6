//! A count for every cluster of a file: references to it, or its refcount.
//!
//! Knows: counts, and how a refcount block has them. Must never know: what they are for.
//!
//! Invariants:
//! * most clusters of most files are counted once, or not at all: that takes a bit, and less where neighbours
//!   are as one another. Memory follows what was counted: a page of 512 clusters of which one is counted more
//!   than once takes 512 bytes, and 4 KiB if it is counted more than 256 times;
//! * no count is higher than a refcount can say.

use super::super::refcount::BlockShape;
use crate::base::clusters::{ClusterSet, PAGE, PAGE_BITS, Pages};
use alloc::boxed::Box;
use alloc::vec;

/// Counters that are taken from a block at once: every block has a multiple of that.
const UNIT: u64 = 64;

/// How much more than one the counts of a page are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum More {
    #[default]
    Nowhere,
    Bytes(Box<[u8; PAGE as usize]>),
    Words(Box<[u64; PAGE as usize]>),
}

impl More {
    fn get(&self, at: usize) -> u64 {
        debug_assert!(at < PAGE as usize);
        match self {
            More::Nowhere => 0,
            More::Bytes(bytes) => bytes.get(at).copied().map_or(0, u64::from),
            More::Words(words) => words.get(at).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, at: usize, more: u64) {
        debug_assert!(at < PAGE as usize);
        if matches!(self, More::Nowhere) {
            *self = More::Bytes(Box::new([0; PAGE as usize]));
        }
        if let (More::Bytes(bytes), 256..) = (&*self, more) {
            *self = More::Words(Box::new(bytes.map(u64::from)));
        }
        match self {
            More::Bytes(bytes) => bytes[at] = more as u8,
            More::Words(words) => words[at] = more,
            More::Nowhere => unreachable!("just made"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Counts {
    layout: BlockShape,
    /// Those that are counted.
    used: ClusterSet,
    more: Pages<More>,
}

impl Counts {
    pub(super) const fn new(layout: BlockShape) -> Counts {
        Counts { layout, used: ClusterSet::new(), more: Pages::new() }
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let count = if self.used.contains(cluster) { 1 + self.more(cluster) } else { 0 };
        debug_assert!(count <= self.layout.max(), "no count is higher than a refcount can say");
        count
    }

    /// Is it counted once?
    pub(super) fn is_one(&self, cluster: u64) -> bool {
        let one = self.used.contains(cluster) && (self.more.is_empty() || self.more(cluster) == 0);
        debug_assert!(one == (self.get(cluster) == 1), "the short way says the same");
        one
    }

    fn more(&self, cluster: u64) -> u64 {
        self.more.get(cluster >> PAGE_BITS).map_or(0, |page| page.get((cluster % PAGE) as usize))
    }

    /// No cluster was ever counted more than once.
    pub(super) fn all_alone(&self) -> bool {
        self.more.is_empty()
    }

    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        debug_assert!(count <= self.layout.max());
        if count == 0 {
            self.used.remove(cluster);
        } else {
            self.used.claim(cluster, cluster + 1);
        }
        let more = count.saturating_sub(1);
        if more != self.more(cluster) {
            self.more.entry(cluster >> PAGE_BITS).set((cluster % PAGE) as usize, more);
        }
        debug_assert_eq!(self.get(cluster), count);
    }

    /// Counts the clusters from `first` on once more, up to one that can be counted no higher, or `end`:
    /// which that is.
    pub(super) fn raise(&mut self, first: u64, end: u64) -> u64 {
        debug_assert!(first <= end);
        let mut at = first;
        loop {
            at = self.used.claim(at, end);
            if at == end {
                return end;
            }
            let more = self.more(at) + 1;
            debug_assert!(more <= self.layout.max(), "no count is higher");
            if more == self.layout.max() {
                return at;
            }
            self.more.entry(at >> PAGE_BITS).set((at % PAGE) as usize, more);
            at += 1;
        }
    }

    /// The first cluster at or behind `cluster` that has a count.
    pub(super) fn next_used(&self, cluster: u64) -> Option<u64> {
        let next = self.used.next(cluster);
        debug_assert!(next.is_none_or(|next| self.get(next) > 0), "it has a count");
        next
    }

    /// The last cluster in front of `end` that has a count.
    pub(super) fn last_used(&self, end: u64) -> Option<u64> {
        let last = self.used.last_below(end);
        debug_assert!(last.is_none_or(|last| self.get(last) > 0), "it has a count");
        last
    }

    /// The first cluster from `at` on, in front of `end`, whose count is another one in `other`.
    pub(super) fn next_difference(&self, other: &Counts, mut at: u64, end: u64) -> Option<u64> {
        debug_assert!(self.layout == other.layout, "counts of one file");
        let end = end.min(self.used.end().max(other.used.end()));
        let none = More::Nowhere;
        while at < end {
            let page = at >> PAGE_BITS;
            let stop = ((page + 1) << PAGE_BITS).min(end);
            let same = self.used.same_page(&other.used, page)
                && self.more.get(page).unwrap_or(&none) == other.more.get(page).unwrap_or(&none);
            if !same && let Some(found) = (at..stop).find(|n| self.get(*n) != other.get(*n)) {
                return Some(found);
            }
            at = stop;
        }
        None
    }

    /// Takes the counters of block `index`, whose clusters have no counts yet.
    pub(super) fn load(&mut self, index: u64, block: &[u8]) {
        debug_assert!(block.len() <= 1 << self.layout.cluster_bits);
        // what 64 bits of a block are in which each counter is one
        let ones = u64::from_ne_bytes((u64::MAX / self.layout.max()).to_be_bytes());
        let mut at = index << self.layout.block_bits();
        let behind = at + self.layout.block_entries();
        debug_assert!(self.used.next(at).is_none_or(|used| used >= behind), "a block is taken once");
        // clusters that are counted once, and are not yet put in
        let mut run = at;
        for unit in block.chunks((UNIT as usize) << self.layout.order >> 3) {
            let words = unit.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
            let (all, any) = words.fold((u64::MAX, 0), |(all, any), word| (all & word, any | word));
            if (all, any) != (ones, ones) {
                self.used.claim(run, at);
                run = at + UNIT;
                for n in (0..UNIT).filter(|_| any != 0) {
                    match self.layout.get(unit, n) {
                        0 => {}
                        count => self.set(at + n, count),
                    }
                }
            }
            at += UNIT;
        }
        self.used.claim(run, at);
    }

    /// The bytes of block `index`.
    pub(super) fn block(&self, index: u64) -> vec::Vec<u8> {
        let mut block = vec![0; 1 << self.layout.cluster_bits];
        let (first, mut at) = (index << self.layout.block_bits(), index << self.layout.block_bits());
        while let Some(cluster) = self.next_used(at).filter(|n| self.layout.table_index(*n) == index) {
            debug_assert!(self.get(cluster) > 0 && cluster >= first);
            self.layout.set(&mut block, cluster - first, self.get(cluster));
            at = cluster + 1;
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_hold_what_was_set(
            order in 0..=6u32,
            bits in 9..=12u32,
            at in prop::collection::vec((0..3000u64, 1..600u64, 1..4u64), 1..20),
        ) {
            let layout = BlockShape { cluster_bits: bits, order };
            let (mut counts, mut model) = (Counts::new(layout), BTreeMap::new());
            for (first, len, times) in at {
                for _ in 0..times {
                    // up to the first that can be no higher
                    let full = |n: &u64| model.get(n) == Some(&layout.max());
                    let end = (first..first + len).find(full).unwrap_or(first + len);
                    prop_assert_eq!(counts.raise(first, first + len), end);
                    (first..end).for_each(|n| *model.entry(n).or_insert(0) += 1);
                }
            }
            // in the order of refcount blocks, and back
            let mut again = Counts::new(layout);
            for index in 0..=layout.table_index(3600) {
                let block = counts.block(index);
                prop_assert_eq!(block.len(), 1 << bits);
                again.load(index, &block);
            }
            prop_assert_eq!(counts.all_alone(), model.values().all(|count| *count == 1));
            prop_assert_eq!(counts.next_difference(&again, 0, u64::MAX), None);
            for cluster in 0..3700 {
                let count = model.get(&cluster).copied().unwrap_or(0);
                prop_assert_eq!((counts.get(cluster), again.get(cluster)), (count, count));
                prop_assert_eq!(again.is_one(cluster), count == 1);
                let (next, last) = (model.range(cluster..).next(), model.range(..cluster).next_back());
                prop_assert_eq!(again.next_used(cluster), next.map(|(n, _)| *n));
                prop_assert_eq!(again.last_used(cluster), last.map(|(n, _)| *n));
            }
        }

        #[test]
        fn a_difference_is_found(
            order in 0..=6u32,
            same in prop::collection::vec((0..3000u64, 1..600u64), 1..5),
            (at, count) in (0..3700u64, any::<u64>()),
        ) {
            let layout = BlockShape { cluster_bits: 12, order };
            let mut one = Counts::new(layout);
            for (first, len) in same {
                one.raise(first, first + len);
            }
            let (mut other, count) = (one.clone(), count & layout.max());
            other.set(at, count);
            prop_assert_eq!(other.get(at), count);
            let found = (one.get(at) != count).then_some(at);
            prop_assert_eq!(one.next_difference(&other, 0, 4000), found);
            prop_assert_eq!(other.next_difference(&one, at, 4000), found);
            prop_assert_eq!(one.next_difference(&other, at + 1, 4000), None);
            prop_assert_eq!(one.next_difference(&other, 0, at), None);
            // what was set is taken back
            other.set(at, one.get(at));
            prop_assert_eq!(one.next_difference(&other, 0, 4000), None);
        }
    }
}
