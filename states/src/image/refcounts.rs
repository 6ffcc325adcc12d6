//! Space of qcow2: clusters that are counted before anybody may point to them.
//!
//! Knows: refcount blocks (slices of them are cached like those of tables), the refcount table (wholly in
//! memory, at most 8 MiB), where free clusters are. Must never know: what the clusters are for.
//!
//! Invariants:
//! * a cluster is handed out only if its count is 0, and has the count 1 from then on: whatever the image
//!   says elsewhere, nothing that is counted is handed out twice;
//! * all space handed out reads as zeros: it was beyond the end of the file, or a hole was punched in it;
//! * a new refcount block is such space, and counts itself where it can; its entry in the refcount table is
//!   written after the sync that makes the block durable (QC9), pointers to what it counts after the sync
//!   after that (QC1);
//! * no scan at open: counts are looked at when space is wanted.

use super::job::table_copy::TableCopy;
use super::overlap::{beyond_the_end, overlapping, two_entries};
use super::quarantine::Quarantine;
use super::{Image, Owners, Tables};
use crate::acb::State;
use crate::base::geometry::{Geometry, HostOffset};
use crate::error::Error;
use crate::fault::{Fault, ReftableFault};
use crate::qcow2::refcount::Layout as Counts;
use crate::qcow2::{Header, entry};
use crate::rule::Rule;
use crate::tables::slice::{SliceState, block_mask};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Bytes of a refcount table at most (formats.md 3.12).
const TABLE_MAX: u64 = 8 << 20;
/// qcow2's entries hold offsets below this.
const HOST_MAX: u64 = 1 << 56;

/// A refcount table that is to be replaced by a larger one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Move {
    /// Clusters of the new one,
    pub(super) clusters: u64,
    /// and where they lie, once they have space,
    pub(super) offset: Option<u64>,
    /// which they got in this window.
    pub(super) window: u64,
}

/// What an image that counts its clusters has besides its tables, when it may be written.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Refcounted {
    pub(super) header: Header,
    pub(super) counts: Counts,
    /// The refcount table as it shall be.
    pub(super) table: Vec<u64>,
    /// Entries that the file lacks: index, and the window whose sync makes the block durable.
    pub(super) changed: Vec<(usize, u64)>,
    pub(super) moving: Option<Move>,
    /// Offsets of all refcount blocks.
    pub(super) blocks: BTreeSet<u64>,
    /// L2 tables that are known, and which L1 entries lead to them.
    pub(super) l2_tables: Owners,
    /// Other metadata: first byte and the one behind.
    pub(super) fixed: Vec<(u64, u64)>,
    /// Slots of refcount slices that may be dirty.
    pub(super) dirty: Vec<u32>,
    pub(super) quarantine: Quarantine,
    pub(super) copies: Vec<TableCopy>,
    /// Clusters of the file, as it was opened, that were not looked at for free ones: the first, and the end.
    pub(super) unseen: (u64, u64),
    /// More free clusters are wanted than are known.
    pub(super) hungry: bool,
    /// Somebody waits for them: the file cannot grow.
    pub(super) starving: bool,
    /// Metadata overlaps, or is not counted: no count, no table may change.
    pub(super) broken: Option<Error>,
}

/// What the counts of a run say.
pub(super) enum Counted {
    /// All are 0.
    Free,
    /// This cluster is in use.
    Used(u64),
    /// A slice is being loaded.
    Loading(u32),
    NoSlot,
    /// The refcount block of this index does not exist.
    NoBlock(u64),
    Bad(Error),
}

impl Refcounted {
    /// The file ends at `end`, a border of clusters.
    pub(super) fn new(header: Header, tables: Tables, end: u64) -> Refcounted {
        let Tables { reftable: table, snapshots, l2, twice, .. } = tables;
        let cluster = header.cluster_size();
        let mut fixed = alloc::vec![(0, cluster)];
        fixed.push((header.l1_offset, header.l1_offset + u64::from(header.l1_entries) * 8));
        fixed.extend(snapshots);
        let broken = beyond_the_end(&header, &table, end)
            .or_else(|| overlapping(&header, &table, &fixed, &l2))
            .or_else(|| twice.map(two_entries));
        fixed.extend(header.bitmap_directory());
        Refcounted {
            counts: header.refcounts(),
            blocks: table.iter().map(|entry| entry & entry::OFFSET).filter(|entry| *entry != 0).collect(),
            table,
            changed: Vec::new(),
            moving: None,
            l2_tables: l2,
            fixed,
            dirty: Vec::new(),
            quarantine: Quarantine::default(),
            copies: Vec::new(),
            unseen: (0, end >> header.cluster_bits),
            hungry: false,
            starving: false,
            broken,
            header,
        }
    }

    /// First byte behind the metadata whose place is known.
    pub(super) fn metadata_end(&self) -> u64 {
        let cluster = self.header.cluster_size();
        let table = self.header.reftable_offset
            + (u64::from(self.header.reftable_clusters) << self.header.cluster_bits);
        let blocks = self.blocks.last().map_or(0, |block| block.saturating_add(cluster));
        let tables = self.l2_tables.last().map_or(0, |table| table.saturating_add(cluster));
        self.fixed.iter().map(|(_, end)| *end).chain([table, blocks, tables]).max().unwrap_or(0)
    }

    /// Entries of the refcount table in the file.
    pub(super) fn file_entries(&self) -> usize {
        ((u64::from(self.header.reftable_clusters) << self.counts.cluster_bits) / 8) as usize
    }

    /// Some counts are lower than they should be: none of the clusters that were free when the image was
    /// opened, or came free since, is used any more.
    fn distrust(&mut self) {
        self.unseen.0 = self.unseen.1;
        self.hungry = false;
        self.quarantine.forget_free();
    }

    /// Something of the refcounts is not in the file, or has yet to be counted.
    pub(super) fn has_work(&self) -> bool {
        // entries behind the end of a table whose successor finds no space count nothing that is pointed to
        let placed = self.moving.as_ref().is_none_or(|moving| moving.offset.is_some());
        let changed = self.changed.iter().any(|(index, _)| placed || *index < self.file_entries());
        !self.dirty.is_empty() || changed || self.quarantine.has_work()
    }

    /// Entries of the refcount table that the file lacks may be written: their blocks are durable.
    pub(super) fn table_is_due(&self, durable: u64) -> bool {
        let placed = self.moving.as_ref().is_some_and(|moving| moving.is_due(durable));
        let entries = if placed { usize::MAX } else { self.file_entries() };
        placed || self.changed.iter().any(|(index, window)| *index < entries && *window <= durable)
    }

    /// Counters of a slice.
    pub(super) fn slice_counters(&self, geometry: &Geometry) -> u64 {
        (u64::from(geometry.slice_bytes()) * 8) >> self.counts.order
    }
}

impl Move {
    /// It has space, durably.
    pub(super) fn is_due(&self, durable: u64) -> bool {
        self.offset.is_some() && self.window <= durable
    }
}

/// Counter `index` of big-endian words.
pub(super) fn count_of(counts: Counts, words: &[u64], index: u64) -> u64 {
    let (word, shift) = place_of(counts, index);
    words.get(word).map_or(0, |word| (word >> shift) & counts.max())
}

fn set_count_of(counts: Counts, words: &mut [u64], index: u64, count: u64) {
    debug_assert!(count <= counts.max());
    let (word, shift) = place_of(counts, index);
    if let Some(word) = words.get_mut(word) {
        *word = *word & !(counts.max() << shift) | count << shift;
    }
}

/// The word of a counter and its distance from the word's least significant bit.
fn place_of(counts: Counts, index: u64) -> (usize, u32) {
    let bit = index << counts.order;
    let (word, bit) = ((bit / 64) as usize, (bit % 64) as u32);
    // bytes come from the most significant one, counters of less than a byte from the byte's least
    // significant bit
    let shift = match counts.order {
        3.. => 64 - counts.bits() - bit,
        _ => 56 - bit / 8 * 8 + bit % 8,
    };
    (word, shift)
}

impl Image {
    /// `len` bytes of space that nobody refers to, all zeros, each cluster counted once; or None: then the
    /// acb waits, in `state` if it is for the file to grow, or has failed.
    pub(super) fn allocate_counted(&mut self, a: u32, len: u64, state: State) -> Option<u64> {
        let unplaced = self
            .refcounted
            .as_deref()
            .is_some_and(|counted| counted.moving.as_ref().is_some_and(|m| m.offset.is_none()));
        if unplaced {
            self.place_reftable(a)?;
        }
        self.allocate_run(a, len, state)
    }

    fn allocate_run(&mut self, a: u32, len: u64, state: State) -> Option<u64> {
        let bits = self.layout.geometry()?.cluster_bits;
        let count = len >> bits;
        self.look_for_free();
        if let Some(error) = self.refcounted.as_deref()?.broken.clone() {
            self.fail_lookup(a, Box::new(error));
            return None;
        }
        loop {
            let reused = self.refcounted.as_deref_mut()?.quarantine.free_run(count);
            let first = reused.unwrap_or(self.space.next() >> bits);
            if reused.is_none() && (first + count) << bits > HOST_MAX {
                self.finish(a, Err(Error::NoSpace));
                return None;
            }
            if (reused.is_none() || self.space.is_short()) && !self.has_space(a, len, state) {
                return None;
            }
            match self.count_run(first, count) {
                Counted::Free => {
                    if self.step_over_metadata(first, count, reused.is_some()) {
                        continue;
                    }
                    self.set_counts(first, count, 1);
                    match reused {
                        Some(first) => self.refcounted.as_deref_mut()?.quarantine.take(first, count),
                        None => self.take_space(len),
                    }
                    return Some(first << bits);
                }
                // in use, though nothing should be there: it stays as it is
                Counted::Used(cluster) => match reused {
                    Some(_) => self.refcounted.as_deref_mut()?.quarantine.take(cluster, 1),
                    None => self.space.skip_to((cluster + 1) << bits),
                },
                Counted::Loading(slot) => {
                    self.requests.set_state(a, State::AllocRefcount);
                    self.requests.wait_in(&mut self.tables.slot_mut(slot).waiters, a);
                    return None;
                }
                Counted::NoSlot => {
                    self.wait_for_slot(a);
                    return None;
                }
                Counted::NoBlock(index) => self.make_block(a, index, state)?,
                Counted::Bad(error) => {
                    self.fail_lookup(a, Box::new(error));
                    return None;
                }
            }
        }
    }

    /// Some counts are lower than they should be: of what they call free within the file nothing is used.
    pub(super) fn distrust_counts(&mut self) {
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.distrust();
        }
        self.space.distrust_found();
    }

    /// Metadata that nobody counts is not free: such a run is left alone, and where it was found within the
    /// file the counts are not to be trusted.
    fn step_over_metadata(&mut self, first: u64, count: u64, reused: bool) -> bool {
        let Some(counted) = self.refcounted.as_deref() else { return false };
        if counted.check_uncounted(first, count).is_ok() {
            return false;
        }
        if reused || self.space.has_found() {
            self.distrust_counts();
            return true;
        }
        let last = (first..first + count).rfind(|cluster| counted.check_uncounted(*cluster, 1).is_err());
        let behind = (last.unwrap_or(first) + 1) << counted.counts.cluster_bits;
        self.space.skip_to(behind);
        true
    }

    /// Are all of these clusters free?
    fn count_run(&mut self, first: u64, count: u64) -> Counted {
        let mut at = first;
        while at < first + count {
            let (slot, start, end) = match self.refcount_slice(at) {
                Ok(found) => found,
                Err(counted) => return counted,
            };
            let (Some(counted), slice) = (self.refcounted.as_deref(), self.tables.slot(slot)) else {
                return Counted::NoSlot;
            };
            let until = end.min(first + count);
            let used = (at..until).find(|at| count_of(counted.counts, &slice.entries, at - start) != 0);
            if let Some(used) = used {
                return Counted::Used(used);
            }
            at = until;
        }
        Counted::Free
    }

    /// The cached slice that counts a cluster: its slot, the first cluster that it counts and the one behind.
    pub(super) fn refcount_slice(&mut self, cluster: u64) -> Result<(u32, u64, u64), Counted> {
        let Some(geometry) = self.layout.geometry().copied() else { return Err(Counted::NoSlot) };
        let Some(counted) = self.refcounted.as_deref() else { return Err(Counted::NoSlot) };
        let (counts, per_slice) = (counted.counts, counted.slice_counters(&geometry));
        let (index, within) = (counts.table_index(cluster), counts.block_index(cluster));
        let entry = counted.table.get(index as usize).copied().unwrap_or(0);
        let block = self.check_block(&geometry, index, entry).map_err(Counted::Bad)?;
        let Some(block) = block else { return Err(Counted::NoBlock(index)) };
        let byte = within / per_slice * u64::from(geometry.slice_bytes());
        let number = geometry.refcount_slice(index, byte);
        let slot = match self.tables.find(number) {
            Some(slot) => slot,
            None => match self.load(number, HostOffset(block + byte), &geometry) {
                super::run::find::Lookup::Loading(slot) => slot,
                _ => return Err(Counted::NoSlot),
            },
        };
        if self.tables.slot(slot).state == SliceState::Loading
            && !self.options.sabotaged(Rule::WaitAllocRefcount)
        {
            return Err(Counted::Loading(slot));
        }
        let start = cluster - within % per_slice;
        Ok((slot, start, start + per_slice))
    }

    fn check_block(&self, geometry: &Geometry, index: u64, entry: u64) -> Result<Option<u64>, Error> {
        let Some(shape) = self.layout.shape() else { return Ok(None) };
        let Some(block) = shape.decode_reftable(index, entry)? else { return Ok(None) };
        if block.checked_add(geometry.cluster_size()).is_none_or(|end| end > self.space.end()) {
            return Err(Error::Corrupt(Fault::Reftable { index, entry, why: ReftableFault::Beyond }));
        }
        Ok(Some(block))
    }

    /// Sets the counts of clusters whose slices are cached.
    pub(super) fn set_counts(&mut self, first: u64, count: u64, value: u64) {
        let Some(counts) = self.refcounted.as_deref().map(|counted| counted.counts) else { return };
        let mut at = first;
        while at < first + count {
            let Ok((slot, start, end)) = self.refcount_slice(at) else {
                debug_assert!(false, "the slices were looked at just before");
                return;
            };
            let until = end.min(first + count);
            for cluster in at..until {
                set_count_of(counts, &mut self.tables.slot_mut(slot).entries, cluster - start, value);
            }
            let (low, high) = (place_of(counts, at - start).0, place_of(counts, until - 1 - start).0);
            self.refcounts_changed(slot, low, high - low + 1);
            at = until;
        }
    }

    /// The count of one cluster, and what is needed before it is known.
    pub(super) fn count(&mut self, cluster: u64) -> Result<u64, Wait> {
        match self.refcount_slice(cluster) {
            Ok((slot, start, _)) => {
                let counts = self.refcounted.as_deref().map(|counted| counted.counts).ok_or(Wait::Never)?;
                Ok(count_of(counts, &self.tables.slot(slot).entries, cluster - start))
            }
            Err(Counted::Loading(_)) => Err(Wait::Load),
            Err(Counted::NoSlot) => Err(Wait::Slot),
            Err(_) => Err(Wait::Never),
        }
    }

    /// Words of a refcount slice have changed; they may be written at any time.
    fn refcounts_changed(&mut self, slot: u32, first: usize, count: usize) {
        let per_block = (self.options.align.max(512) / 8) as usize;
        let slice = self.tables.slot_mut(slot);
        let was_dirty = slice.is_dirty();
        slice.dirty |= block_mask(first, count, per_block);
        if was_dirty {
            return;
        }
        self.tables.dirty += 1;
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.dirty.push(slot);
        }
        self.commit.arm(self.options.commit_ms, &mut self.outbox.alarms);
        if self.tables.dirty > self.tables.capacity() / 2 {
            self.commit_soon();
        }
    }

    /// A refcount block for an index that has none. None: the acb waits or has failed.
    fn make_block(&mut self, a: u32, index: u64, state: State) -> Option<()> {
        let geometry = self.layout.geometry().copied()?;
        let counted = self.refcounted.as_deref()?;
        let (counts, entries) = (counted.counts, counted.table.len() as u64);
        let (first, clusters) = (index << counts.block_bits(), 1 << counts.block_bits());
        if let Err(error) = counted.check_uncounted(first, clusters) {
            self.fail_lookup(a, Box::new(error));
            return None;
        }
        if index >= entries {
            return self.grow_reftable(a, index);
        }
        if !self.has_space(a, geometry.cluster_size(), state) {
            return None;
        }
        let cluster = self.space.next() >> geometry.cluster_bits;
        let own = counts.table_index(cluster);
        if own != index {
            // the space at hand is counted elsewhere: its block comes first
            let missing = self.refcounted.as_deref()?.table.get(own as usize).is_none_or(|entry| *entry == 0);
            if missing {
                return self.make_block(a, own, state);
            }
            let block = self.allocate_run(a, geometry.cluster_size(), state)?;
            self.add_block(index, block);
            return Some(());
        }
        let per_slice = self.refcounted.as_deref()?.slice_counters(&geometry);
        let byte = counts.block_index(cluster) / per_slice * u64::from(geometry.slice_bytes());
        let number = geometry.refcount_slice(index, byte);
        let block = cluster << geometry.cluster_bits;
        let Some(slot) = self.tables.claim(number, HostOffset(block + byte), geometry.slice_words()) else {
            self.wait_for_slot(a);
            return None;
        };
        // known to be zeros
        self.tables.slot_mut(slot).state = SliceState::Present;
        self.take_space(geometry.cluster_size());
        self.add_block(index, block);
        self.set_counts(cluster, 1, 1);
        Some(())
    }

    fn add_block(&mut self, index: u64, block: u64) {
        let window = self.commit.window;
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        if let Some(entry) = counted.table.get_mut(index as usize) {
            debug_assert_eq!(*entry, 0);
            *entry = block;
        }
        counted.blocks.insert(block);
        counted.changed.push((index as usize, window));
    }

    /// The refcount table gets room for entry `index`: in memory at once, in the file by the commit pipeline.
    fn grow_reftable(&mut self, a: u32, index: u64) -> Option<()> {
        let cluster = self.layout.geometry()?.cluster_size();
        let counted = self.refcounted.as_deref_mut()?;
        if counted.moving.is_some() {
            // one move at a time: the round that is due makes room
            self.wait_for_slot(a);
            return None;
        }
        let wanted = (index + 1).max(counted.table.len() as u64 * 3 / 2);
        let bytes = (wanted * 8).next_multiple_of(cluster).min(TABLE_MAX);
        if index >= bytes / 8 {
            self.finish(a, Err(Error::NoSpace));
            return None;
        }
        counted.table.resize((bytes / 8) as usize, 0);
        counted.moving = Some(Move { clusters: bytes / cluster, offset: None, window: 0 });
        self.place_reftable(a)
    }

    /// Space for the new refcount table.
    fn place_reftable(&mut self, a: u32) -> Option<()> {
        let bits = self.layout.geometry()?.cluster_bits;
        let clusters = self.refcounted.as_deref()?.moving.as_ref()?.clusters;
        let offset = self.allocate_run(a, clusters << bits, State::AllocRefcount)?;
        let window = self.commit.window;
        let moving = self.refcounted.as_deref_mut()?.moving.as_mut()?;
        (moving.offset, moving.window) = (Some(offset), window);
        // nobody waits for it, but the entries beyond the old table's end do
        self.commit.unsynced = true;
        Some(())
    }
}

/// Why a count is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Its slice is being loaded.
    Load,
    /// Its slice finds no slot in the cache.
    Slot,
    /// There is no such count.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // words and bytes give the same counters
        #[test]
        fn counters_in_words_are_those_in_bytes(
            order in 0..=6u32,
            ops in prop::collection::vec((0..64u64, any::<u64>()), 1..60),
        ) {
            let counts = Counts { cluster_bits: 9, order };
            let (mut words, mut bytes) = ([0u64; 64], [0u8; 512]);
            for (index, value) in ops {
                set_count_of(counts, &mut words, index, value & counts.max());
                counts.set(&mut bytes, index, value & counts.max());
            }
            for (word, bytes) in words.iter().zip(bytes.as_chunks::<8>().0) {
                prop_assert_eq!(*word, u64::from_be_bytes(*bytes));
            }
            for index in 0..64 {
                prop_assert_eq!(count_of(counts, &words, index), counts.get(&bytes, index));
            }
        }
    }
}
