//! Where metadata lies that is known.
//!
//! Knows: places. Must never know: what they say, who asks.
//!
//! Invariants:
//! * a search costs a few steps in ordered sets, whatever the size of the image; of data far from metadata a
//!   few bits;
//! * known are the header, the active L1 table, the refcount blocks, snapshots' L1 tables and their table;
//!   L2 tables of an L1 table that was read when the image was opened, and those that were met. (The refcount
//!   table's place is the header's.)

use super::owners::Owners;
use crate::base::aside::Aside;
use crate::base::span::Span;
use crate::fault::Metadata;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

/// Clusters whose metadata is looked for one by one; of more, in the sets at once.
const FEW: u64 = 8;

/// A piece of metadata of so many clusters is near everything.
const MANY: u64 = 1024;

/// Which clusters hold no metadata: for each, by the last bits of its number, whether one with the same was
/// ever told of. It only saves time.
#[derive(Clone, Debug)]
struct Near([u64; 64]);

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct MetadataMap {
    cluster_bits: u32,
    /// Offsets of all refcount blocks.
    blocks: BTreeSet<u64>,
    /// L2 tables that are known, and which L1 entries lead to them.
    l2_tables: Owners,
    /// Other metadata.
    fixed: Vec<Span>,
    near: Aside<Near>,
}

impl Near {
    /// The clusters of it: word and bit.
    fn bits(cluster_bits: u32, span: Span) -> impl Iterator<Item = (usize, u64)> {
        let (first, last) = (span.start >> cluster_bits, span.end.saturating_sub(1) >> cluster_bits);
        debug_assert!(first <= last, "it has a byte");
        (first..=last).map(|cluster| ((cluster / 64 % 64) as usize, 1 << (cluster % 64)))
    }

    fn add(&mut self, cluster_bits: u32, span: Span) {
        debug_assert!((9..=21).contains(&cluster_bits), "limits of the format");
        debug_assert!(span.start < span.end);
        if span.len() >> cluster_bits >= MANY {
            self.0 = [u64::MAX; 64];
            return;
        }
        Near::bits(cluster_bits, span).for_each(|(word, bit)| self.0[word] |= bit);
    }
}

impl MetadataMap {
    pub(crate) fn new(cluster_bits: u32, fixed: Vec<Span>, l2_tables: Owners) -> MetadataMap {
        debug_assert!((9..=21).contains(&cluster_bits), "limits of the format");
        let near = Aside(Near([0; 64]));
        let mut map = MetadataMap { cluster_bits, blocks: BTreeSet::new(), l2_tables, fixed, near };
        for span in map.fixed.iter().filter(|span| !span.is_empty()) {
            map.near.add(cluster_bits, *span);
        }
        for (table, _) in map.l2_tables.tables() {
            map.near.add(cluster_bits, Span::at(table, 1));
        }
        map
    }

    /// Metadata of another kind lies there from now on.
    pub(crate) fn add_fixed(&mut self, span: Span) {
        debug_assert!(span.start <= span.end);
        self.fixed.push(span);
        if !span.is_empty() {
            self.near.add(self.cluster_bits, span);
        }
        debug_assert!(span.is_empty() || self.any_overlap(span).is_some(), "it is found from now on");
    }

    /// This piece of it is none any more. One without bytes takes nothing with it that begins where it did:
    /// an L1 table without entries may lie at 0, as the header does.
    pub(crate) fn remove_fixed(&mut self, old: Span) {
        debug_assert!(old.start > 0 || old.is_empty(), "the header stays where it is");
        self.fixed.retain(|span| *span != old);
    }

    pub(crate) fn add_block(&mut self, block: u64) {
        debug_assert!(block > 0);
        self.blocks.insert(block);
        self.near.add(self.cluster_bits, Span::at(block, 1));
        debug_assert!(self.any_overlap(Span::at(block, 1)).is_some(), "it is found from now on");
    }

    /// L1 entry `index` leads to `table`, and says whether that is `copied`. False: it is none of the owners.
    pub(crate) fn add_l2_table(&mut self, table: u64, index: u64, copied: bool) -> bool {
        debug_assert!(table > 0);
        debug_assert!(index < 1 << 32, "no L1 table is as long");
        self.near.add(self.cluster_bits, Span::at(table, 1));
        let owns = self.l2_tables.add(table, index, copied);
        debug_assert!(self.any_overlap(Span::at(table, 1)).is_some(), "it is found from now on");
        owns
    }

    /// It leads there no more.
    pub(crate) fn remove_l2_table(&mut self, table: u64, index: u64) {
        debug_assert!(table > 0, "offset 0 is no table");
        self.l2_tables.remove(table, index);
    }

    /// So many other entries lead there.
    pub(crate) fn shared_with(&self, table: u64, index: u64) -> usize {
        debug_assert!(table > 0, "offset 0 is no table");
        self.l2_tables.shared_with(table, index)
    }

    /// Which metadata but L2 tables it overlaps.
    pub(crate) fn overlap(&self, span: Span) -> Option<Metadata> {
        debug_assert!(span.start <= span.end);
        if self.fixed.iter().any(|fixed| !fixed.is_empty() && fixed.overlaps(span)) {
            return Some(Metadata::Fixed);
        }
        self.blocks.range(span.start..span.end).next().map(|_| Metadata::RefcountBlock)
    }

    /// Which metadata it overlaps, from a cluster's start on.
    #[inline]
    pub(crate) fn any_overlap(&self, span: Span) -> Option<Metadata> {
        debug_assert!(span.start <= span.end);
        let few = span.len() >> self.cluster_bits < FEW;
        if few && Near::bits(self.cluster_bits, span).all(|(word, bit)| self.near.0.0[word] & bit == 0) {
            debug_assert_eq!(self.search(span), None);
            return None;
        }
        self.search(span)
    }

    fn search(&self, span: Span) -> Option<Metadata> {
        debug_assert!(span.start <= span.end);
        self.overlap(span).or_else(|| self.l2_tables.any(span).then_some(Metadata::L2Table))
    }

    /// First byte behind all of it.
    pub(crate) fn end(&self) -> u64 {
        debug_assert!(!self.fixed.is_empty(), "an image has a header");
        let cluster = 1 << self.cluster_bits;
        let blocks = self.blocks.last().map_or(0, |block| block.saturating_add(cluster));
        let tables = self.l2_tables.last().map_or(0, |table| table.saturating_add(cluster));
        self.fixed.iter().map(|span| span.end).chain([tables, blocks]).max().unwrap_or(0)
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        debug_assert!(self.fixed.iter().all(|span| span.start <= span.end), "none runs backwards");
        let places = self.blocks.iter().copied().chain(self.l2_tables.tables().map(|(table, _)| table));
        let known = |place: u64| {
            Near::bits(self.cluster_bits, Span::at(place, 1))
                .all(|(word, bit)| self.near.0.0[word] & bit != 0)
        };
        match places.into_iter().find(|place| !known(*place)) {
            Some(place) => Err(alloc::format!("metadata at {place:#x} would not be found")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 512;

    #[test]
    fn metadata_is_found_wherever_it_lies() {
        let mut l2 = Owners::default();
        l2.add(6 * CLUSTER, 0, true);
        let mut map = MetadataMap::new(9, alloc::vec![Span::at(0, CLUSTER), Span::at(CLUSTER, 0)], l2);
        map.add_block(3 * CLUSTER);
        map.add_fixed(Span::at(4 * CLUSTER, 8));
        let of = |map: &MetadataMap, cluster: u64| map.any_overlap(Span::at(cluster * CLUSTER, CLUSTER));
        let (fixed, block, table) = (Metadata::Fixed, Metadata::RefcountBlock, Metadata::L2Table);
        let expected = [Some(fixed), None, None, Some(block), Some(fixed), None, Some(table), None];
        for (cluster, expected) in (0..).zip(expected) {
            assert_eq!(of(&map, cluster), expected, "{cluster}");
            // a cluster with the same last bits
            assert_eq!(of(&map, cluster + 4096), None);
        }
        assert_eq!(map.any_overlap(Span::new(5 * CLUSTER, 60 * CLUSTER)), Some(table), "many at once");
        assert_eq!((map.overlap(Span::at(6 * CLUSTER, CLUSTER)), map.end()), (None, 7 * CLUSTER));
        map.remove_fixed(Span::at(4 * CLUSTER, 8));
        map.remove_l2_table(6 * CLUSTER, 0);
        assert_eq!((of(&map, 4), of(&map, 6)), (None, None));
        assert!(map.add_l2_table(9 * CLUSTER, 1, true) && !map.add_l2_table(9 * CLUSTER, 2, false));
        assert_eq!((of(&map, 9), map.check()), (Some(table), Ok(())));
        map.near.0.0[0] = 0;
        assert_eq!(map.check(), Err(String::from("metadata at 0x600 would not be found")));
    }

    /// An image of size 0 has an L1 table without entries, at 0 as QEMU makes it: when it gets a larger one,
    /// the header stays metadata.
    #[test]
    fn an_empty_table_takes_no_other_with_it() {
        let fixed = alloc::vec![Span::at(0, CLUSTER), Span::at(0, 0)];
        let mut map = MetadataMap::new(9, fixed, Owners::default());
        map.remove_fixed(Span::at(0, 0));
        assert_eq!(map.any_overlap(Span::at(0, CLUSTER)), Some(Metadata::Fixed));
    }

    #[test]
    fn a_long_table_is_near_everywhere() {
        let map = MetadataMap::new(9, alloc::vec![Span::at(0, MANY * CLUSTER)], Owners::default());
        assert!(map.near.0.0.iter().all(|word| *word == u64::MAX));
    }
}
