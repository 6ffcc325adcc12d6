//! A count for every cluster of a file, in the form of refcount blocks, kept only where it is not zero.
//!
//! Knows: counts. Must never know: what they are for.

use super::super::refcount::BlockShape;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;

/// Counters of a page: a power of two that every refcount block holds whole.
const PAGE_BITS: u32 = 6;
const PAGE: u64 = 1 << PAGE_BITS;

#[derive(Clone, Debug)]
pub(super) struct Counts {
    layout: BlockShape,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Counts {
    pub(super) const fn new(layout: BlockShape) -> Counts {
        Counts { layout, pages: BTreeMap::new() }
    }

    fn page_bytes(&self) -> usize {
        debug_assert!(self.layout.order <= 6);
        (PAGE as usize) << self.layout.order >> 3
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        self.pages.get(&(cluster >> PAGE_BITS)).map_or(0, |page| self.layout.get(page, cluster % PAGE))
    }

    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        let bytes = self.page_bytes();
        let page = self.pages.entry(cluster >> PAGE_BITS).or_insert_with(|| vec![0; bytes].into());
        self.layout.set(page, cluster % PAGE, count);
    }

    /// The first page of clusters at or behind `cluster` that may have counts: its first cluster and that
    /// behind it.
    pub(super) fn page_from(&self, cluster: u64) -> Option<(u64, u64)> {
        let (&page, _) = self.pages.range(cluster >> PAGE_BITS..).next()?;
        Some(((page << PAGE_BITS).max(cluster), (page + 1) << PAGE_BITS))
    }

    /// The first cluster at or behind `cluster` that has a count.
    pub(super) fn next_used(&self, mut cluster: u64) -> Option<u64> {
        loop {
            let (from, end) = self.page_from(cluster)?;
            if let Some(found) = (from..end).find(|n| self.get(*n) != 0) {
                return Some(found);
            }
            cluster = end;
        }
    }

    /// Takes the counters of block `index`.
    pub(super) fn load(&mut self, index: u64, block: &[u8]) {
        debug_assert!(block.len() <= 1 << self.layout.cluster_bits);
        let first = index << (self.layout.block_bits() - PAGE_BITS);
        for (n, bytes) in block.chunks(self.page_bytes()).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                self.pages.insert(first + n as u64, bytes.into());
            }
        }
    }

    /// The bytes of block `index`.
    pub(super) fn block(&self, index: u64) -> vec::Vec<u8> {
        let mut block = vec![0; 1 << self.layout.cluster_bits];
        let (bits, bytes) = (self.layout.block_bits() - PAGE_BITS, self.page_bytes());
        for (page, from) in self.pages.range(index << bits..(index + 1) << bits) {
            let at = (page - (index << bits)) as usize * bytes;
            crate::qcow2::be::put(&mut block, at, from);
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_hold_what_was_set(
            order in 0..=6u32,
            bits in 9..=12u32,
            at in prop::collection::vec(0..3000u64, 1..20),
        ) {
            let layout = BlockShape { cluster_bits: bits, order };
            let mut counts = Counts::new(layout);
            at.iter().for_each(|cluster| counts.set(*cluster, 1));
            let mut again = Counts::new(layout);
            for index in 0..=layout.table_index(3000) {
                let block = counts.block(index);
                prop_assert_eq!(block.len(), 1 << bits);
                again.load(index, &block);
            }
            let mut sorted = at.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let mut next = 0;
            for cluster in sorted {
                prop_assert_eq!(again.next_used(next), Some(cluster));
                prop_assert_eq!(again.get(cluster), 1);
                next = cluster + 1;
            }
            prop_assert_eq!(again.next_used(next), None);
        }
    }
}
