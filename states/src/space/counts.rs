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

use super::Cx;
use super::copies::Copies;
use super::kind::{ClusterRun, Freed};
use super::metadata_map::MetadataMap;
use super::overlaps::{beyond_the_end, overlapping, two_entries};
use super::owners::Owners;
use super::quarantine::Quarantine;
use super::tracking::Tracking;
use crate::base::geometry::Geometry;
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::{Fault, Op, ReftableFault};
use crate::io::IoOp;
use crate::outbox::{Due, Outbox, Purpose};
use crate::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use crate::qcow2::refcount::BlockShape;
use crate::qcow2::{Header, entry};
use crate::rule::Rule;
use crate::tables::slice::{SliceState, block_mask};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// So many counts that go down are enough for one call.
const PAUSE: u32 = 1024;

/// What is known of a qcow2 image's metadata when it is opened for writing.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenedMetadata {
    /// The refcount table.
    pub(crate) reftable: Vec<u64>,
    /// Where snapshots have their metadata.
    pub(crate) snapshots: Vec<Span>,
    /// L2 tables, and which L1 entries lead there.
    pub(crate) l2: Owners,
    /// The first L1 entry that leads to a table that is another one's alone, or its own, and which.
    pub(crate) twice: Option<(u64, u64)>,
    /// Of the clusters from here on, bytes, the counts are 0.
    pub(crate) tail: Option<u64>,
    /// Bitmaps that are kept up.
    pub(crate) tracking: Option<Tracking>,
}

/// A refcount table that is to be replaced by a larger one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Move {
    /// Clusters of the new one,
    pub(crate) clusters: u64,
    /// and where they lie, once they have space,
    pub(crate) offset: Option<u64>,
    /// which they got in this window.
    pub(crate) window: u64,
}

/// Clusters of the file, as it was opened, that were not looked at for free ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Unseen {
    /// The first of them,
    pub(crate) next: u64,
    /// and the one behind the last.
    pub(crate) end: u64,
}

/// What an image that counts its clusters has besides its tables, when it may be written.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Refcounted {
    pub(crate) header: Header,
    pub(crate) counts: BlockShape,
    /// The refcount table as it shall be.
    pub(crate) table: Vec<u64>,
    /// Entries that the file lacks: index, and the window whose sync makes the block durable.
    pub(crate) changed: Vec<(usize, u64)>,
    pub(crate) moving: Option<Move>,
    /// Where metadata lies, but for the refcount table.
    pub(crate) map: MetadataMap,
    /// Slots of refcount slices that may be dirty.
    pub(crate) dirty: Vec<u32>,
    pub(crate) quarantine: Quarantine,
    pub(crate) copies: Copies,
    pub(crate) unseen: Unseen,
    /// More free clusters are wanted than are known.
    pub(crate) hungry: bool,
    /// Somebody waits for them: the file cannot grow.
    pub(crate) starving: bool,
    /// Where compressed bytes may follow those that were placed last; at a border of clusters: nowhere.
    pub(crate) packed: u64,
    /// Metadata overlaps, or is not counted: no count, no table may change.
    pub(crate) broken: Option<Error>,
    /// What the guest may have changed, if bitmaps are kept up.
    pub(crate) tracking: Option<Tracking>,
}

/// What the counts of a run say.
pub(crate) enum Counted {
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
    pub(crate) fn new(header: Header, tables: OpenedMetadata, end: u64) -> Refcounted {
        debug_assert!(end.is_multiple_of(header.cluster_size()));
        let OpenedMetadata { reftable: table, snapshots, l2, twice, tracking, .. } = tables;
        let cluster = header.cluster_size();
        debug_assert!(cluster.is_power_of_two(), "limits of the format");
        let mut fixed = alloc::vec![Span::at(0, cluster)];
        fixed.push(Span::at(header.l1_offset, u64::from(header.l1_entries) * 8));
        fixed.extend(snapshots);
        let broken = beyond_the_end(&header, &table, end)
            .or_else(|| overlapping(&header, &table, &fixed, &l2))
            .or_else(|| twice.map(two_entries));
        let mut map = MetadataMap::new(header.cluster_bits, fixed, l2);
        if let Some(directory) = header.bitmap_directory() {
            map.add_fixed(directory);
        }
        table
            .iter()
            .map(|entry| entry & entry::OFFSET)
            .filter(|entry| *entry != 0)
            .for_each(|block| map.add_block(block));
        Refcounted {
            counts: header.refcounts(),
            map,
            table,
            changed: Vec::new(),
            moving: None,
            dirty: Vec::new(),
            quarantine: Quarantine::default(),
            copies: Copies::default(),
            unseen: Unseen { next: 0, end: end >> header.cluster_bits },
            hungry: false,
            starving: false,
            packed: 0,
            broken,
            tracking,
            header,
        }
    }

    /// Autoclear bits that are kept up.
    pub(crate) fn kept_up(&self) -> u64 {
        let kept = self.tracking.as_ref().is_some_and(|tracking| !tracking.is_given_up());
        debug_assert!(!kept || self.header.bitmaps().is_some(), "what is kept up is there");
        if kept { RAW_DATA_FILE | BITMAPS } else { RAW_DATA_FILE }
    }

    /// Before the guest's data changes the header, or the directory of bitmaps, has to say so.
    pub(crate) fn is_stale(&self) -> bool {
        let marks = self.tracking.as_ref().is_some_and(Tracking::must_mark);
        debug_assert!(!marks || self.header.bitmaps().is_some(), "what is kept up is there");
        marks || self.header.stale_autoclear(self.kept_up()) != 0
    }

    /// First byte behind the metadata whose place is known.
    pub(crate) fn metadata_end(&self) -> u64 {
        let bytes = u64::from(self.header.reftable_clusters) << self.header.cluster_bits;
        debug_assert!(bytes.is_multiple_of(self.header.cluster_size()), "a table is whole clusters");
        self.map.end().max(self.header.reftable_offset + bytes)
    }

    /// Entries of the refcount table in the file.
    pub(crate) fn file_entries(&self) -> usize {
        debug_assert!(
            self.counts.cluster_bits == self.header.cluster_bits,
            "one image, one size of clusters"
        );
        ((u64::from(self.header.reftable_clusters) << self.counts.cluster_bits) / 8) as usize
    }

    /// Some counts are lower than they should be: none of the clusters that were free when the image was
    /// opened, or came free since, is used any more.
    pub(super) fn distrust(&mut self) {
        self.unseen.next = self.unseen.end;
        self.hungry = false;
        debug_assert!(self.unseen.next >= self.unseen.end, "nothing more is looked for");
        self.quarantine.forget_free();
        debug_assert_eq!(self.quarantine.total(), 0);
    }

    /// Something of the refcounts is not in the file, or has yet to be counted.
    pub(crate) fn has_work(&self) -> bool {
        // entries behind the end of a table whose successor finds no space count nothing that is pointed to
        let placed = self.moving.as_ref().is_none_or(|moving| moving.offset.is_some());
        let changed = self.changed.iter().any(|(index, _)| placed || *index < self.file_entries());
        !self.dirty.is_empty() || changed || self.quarantine.has_work()
    }

    /// Entries of the refcount table that the file lacks may be written: their blocks are durable.
    pub(crate) fn table_is_due(&self, durable: u64) -> bool {
        let placed = self.moving.as_ref().is_some_and(|moving| moving.is_due(durable));
        debug_assert!(self.changed.iter().all(|(index, _)| *index < self.table.len()), "of the table");
        let entries = if placed { usize::MAX } else { self.file_entries() };
        placed || self.changed.iter().any(|(index, window)| *index < entries && *window <= durable)
    }

    /// Counters of a slice.
    pub(crate) fn slice_counters(&self, geometry: &Geometry) -> u64 {
        debug_assert!(self.counts.order <= 6);
        (u64::from(geometry.slice_bytes()) * 8) >> self.counts.order
    }
}

impl Move {
    /// It has space, durably.
    pub(crate) fn is_due(&self, durable: u64) -> bool {
        debug_assert!(self.clusters > 0, "a table is not empty");
        self.offset.is_some() && self.window <= durable
    }
}

/// Counter `index` of big-endian words.
pub(crate) fn count_of(counts: BlockShape, words: &[u64], index: u64) -> u64 {
    debug_assert!(place_of(counts, index).0 < words.len(), "the slice counts the cluster");
    let (word, shift) = place_of(counts, index);
    debug_assert!(shift < 64, "a counter lies in its word");
    words.get(word).map_or(0, |word| (word >> shift) & counts.max())
}

fn set_count_of(counts: BlockShape, words: &mut [u64], index: u64, count: u64) {
    debug_assert!(place_of(counts, index).0 < words.len(), "the slice counts the cluster");
    debug_assert!(count <= counts.max());
    let (word, shift) = place_of(counts, index);
    if let Some(word) = words.get_mut(word) {
        *word = *word & !(counts.max() << shift) | count << shift;
        debug_assert!(*word >> shift & counts.max() == count, "it is there");
    }
}

/// The word of a counter and its distance from the word's least significant bit.
fn place_of(counts: BlockShape, index: u64) -> (usize, u32) {
    debug_assert!(counts.order <= 6);
    let bit = index << counts.order;
    let (word, bit) = ((bit / 64) as usize, (bit % 64) as u32);
    // bytes come from the most significant one, counters of less than a byte from the byte's least
    // significant bit
    let shift = match counts.order {
        3.. => 64 - counts.bits() - bit,
        _ => 56 - bit / 8 * 8 + bit % 8,
    };
    debug_assert!(shift + counts.bits() <= 64);
    (word, shift)
}

impl Refcounted {
    /// Are all of these clusters free?
    pub(super) fn count_run(&self, first: u64, count: u64, cx: &mut Cx<'_>) -> Counted {
        debug_assert!(count > 0);
        let mut at = first;
        while at < first + count {
            let (slot, start, end) = match self.refcount_slice(at, cx) {
                Ok(found) => found,
                Err(counted) => return counted,
            };
            let slice = cx.tables.slot(slot);
            let until = end.min(first + count);
            debug_assert!(until > at, "a look gets on");
            let used = (at..until).find(|at| count_of(self.counts, &slice.entries, at - start) != 0);
            if let Some(used) = used {
                return Counted::Used(used);
            }
            at = until;
        }
        Counted::Free
    }

    /// The cached slice that counts a cluster: its slot, the first cluster that it counts and the one behind.
    pub(super) fn refcount_slice(&self, cluster: u64, cx: &mut Cx<'_>) -> Result<(u32, u64, u64), Counted> {
        let (counts, per_slice) = (self.counts, self.slice_counters(cx.geometry));
        let (index, within) = (counts.table_index(cluster), counts.block_index(cluster));
        let entry = self.table.get(index as usize).copied().unwrap_or(0);
        debug_assert!(per_slice.is_power_of_two(), "a slice counts a power of two");
        let block = self.check_block(index, entry, cx.append.end()).map_err(Counted::Bad)?;
        let Some(block) = block else { return Err(Counted::NoBlock(index)) };
        let byte = within / per_slice * u64::from(cx.geometry.slice_bytes());
        let number = cx.geometry.refcount_slice(index, byte);
        let slot = match cx.tables.find(number) {
            Some(slot) => slot,
            None => match cx.tables.load(number, block + byte, cx.geometry, cx.out) {
                Some(slot) => slot,
                None => return Err(Counted::NoSlot),
            },
        };
        let loading = cx.tables.slot(slot).state == SliceState::Loading;
        if loading && !cx.options.sabotaged(Rule::WaitAllocRefcount) {
            return Err(Counted::Loading(slot));
        }
        let start = cluster - within % per_slice;
        debug_assert!(start <= cluster && cluster < start + per_slice);
        Ok((slot, start, start + per_slice))
    }

    fn check_block(&self, index: u64, entry: u64, file_end: u64) -> Result<Option<u64>, Error> {
        debug_assert!(file_end <= 1 << 63, "no file is longer");
        let Some(block) = self.header.shape().decode_reftable(index, entry)? else { return Ok(None) };
        if block.checked_add(self.header.cluster_size()).is_none_or(|end| end > file_end) {
            return Err(Error::Corrupt(Fault::Reftable { index, entry, why: ReftableFault::Beyond }));
        }
        Ok(Some(block))
    }

    /// Sets the counts of clusters whose slices are cached.
    pub(super) fn set_counts(&mut self, run: ClusterRun, value: u64, cx: &mut Cx<'_>) {
        debug_assert!(self.broken.is_none(), "no count may change");
        if value == 0 {
            self.close_packed(run, cx.options);
        }
        let (mut at, counts) = (run.first, self.counts);
        let per_block = (cx.options.align.max(512) / 8) as usize;
        while at < run.end() {
            let Ok((slot, start, end)) = self.refcount_slice(at, cx) else {
                debug_assert!(false, "the slices were looked at just before");
                return;
            };
            let until = end.min(run.end());
            debug_assert!(start <= at && at < until, "a slice counts the cluster");
            for cluster in at..until {
                set_count_of(counts, &mut cx.tables.slot_mut(slot).entries, cluster - start, value);
            }
            let (low, high) = (place_of(counts, at - start).0, place_of(counts, until - 1 - start).0);
            // they may be written at any time
            if cx.tables.mark_dirty(slot, block_mask(low, high - low + 1, per_block), cx.out) {
                self.dirty.push(slot);
                cx.out.due |= Due::ARM;
            }
            at = until;
        }
    }

    /// The count of one cluster, and what is needed before it is known.
    pub(crate) fn count(&self, cluster: u64, cx: &mut Cx<'_>) -> Result<u64, Wait> {
        match self.refcount_slice(cluster, cx) {
            Ok((slot, start, end)) => {
                debug_assert!(start <= cluster && cluster < end, "the slice counts the cluster");
                Ok(count_of(self.counts, &cx.tables.slot(slot).entries, cluster - start))
            }
            Err(Counted::Loading(_)) => Err(Wait::Load),
            Err(Counted::NoSlot) => Err(Wait::Slot),
            Err(_) => Err(Wait::Never),
        }
    }

    /// Nothing points to these clusters once the tables of `window` are durable (0: nothing ever did).
    /// `shared`: other entries of the active tables still do.
    pub(crate) fn free(&mut self, run: ClusterRun, window: u64, shared: bool, out: &mut Outbox) {
        debug_assert!(run.count > 0);
        debug_assert!(run.first > 0, "the header's cluster is never free");
        self.quarantine.wait(Freed::new(run, window, shared));
        out.due |= if window == 0 { Due::COUNT } else { Due::ARM };
    }

    /// Lets counts go down, as far as their slices are there.
    pub(crate) fn count_down(&mut self, cx: &mut Cx<'_>) {
        let mut left = PAUSE;
        while let Some(removed) = self.quarantine.counting() {
            if left == 0 {
                return self.pause_counting(cx.out);
            }
            left -= 1;
            let first = removed.first();
            debug_assert!(first > 0, "the header's cluster is never free");
            match self.count(first, cx) {
                Ok(0) | Err(Wait::Never) => {}
                // what lies there is metadata, and stays counted: no hole may be punched in it
                Ok(1) if self.check_uncounted(first, 1).is_err() => {}
                Ok(1) => {
                    self.set_counts(ClusterRun::new(first, 1), 0, cx);
                    self.quarantine.bury(removed.uncounted());
                    cx.out.due |= Due::PUNCH;
                }
                // the one entry that is left does not say that the cluster is its own, and who it is, is not
                // known: rather a leak than a count that contradicts it
                Ok(2) if removed.is_shared() => {}
                Ok(more) => self.set_counts(ClusterRun::new(first, 1), more - 1, cx),
                Err(Wait::Load | Wait::Slot) => return,
            }
            self.quarantine.counted();
        }
    }

    /// The embedder's thread is not held for as long as a large disk takes.
    pub(crate) fn pause_counting(&mut self, out: &mut Outbox) {
        if self.quarantine.pause() {
            out.emit(Purpose::CountDown, Op::CountDown, 0, IoOp::Yield);
        }
    }

    /// A slice of the refcounts could not be loaded: trying again at once would not end.
    pub(crate) fn give_up_counting(&mut self) {
        self.quarantine.give_up();
        self.unseen.next = self.unseen.end;
        debug_assert!(!self.quarantine.is_counting(), "nothing waits for counts any more");
    }

    /// The refcount table is durable: entries are no news any more. Some: so is a new one, which the header
    /// has to lead to; the clusters of the old one.
    pub(crate) fn table_durable(&mut self, durable: u64) -> Option<ClusterRun> {
        let entries = match self.moving.as_ref().filter(|moving| moving.is_due(durable)) {
            Some(_) => usize::MAX,
            None => self.file_entries(),
        };
        self.changed.retain(|(index, window)| *window > durable || *index >= entries);
        let moving = self.moving.take_if(|moving| moving.is_due(durable))?;
        let old = self.header.reftable_offset >> self.header.cluster_bits;
        let old = ClusterRun::new(old, self.header.reftable_clusters.into());
        debug_assert!(old.first > 0, "the header's cluster is no table");
        debug_assert!(moving.offset.is_some_and(|offset| offset > 0), "it has space");
        self.header.reftable_offset = moving.offset.unwrap_or(0);
        self.header.reftable_clusters = moving.clusters as u32;
        debug_assert!(self.file_entries() >= self.table.len(), "all entries have a place in the file");
        Some(old)
    }

    /// Entries from byte `at` of the refcount table on; entries whose blocks are not `durable` are left out.
    pub(crate) fn encode_table(&self, at: u64, durable: u64, buf: &mut [u8]) {
        debug_assert!(at.is_multiple_of(8) && buf.len().is_multiple_of(8));
        let first = (at / 8) as usize;
        debug_assert!(first <= self.table.len(), "it begins in the table");
        let end = first + buf.len() / 8;
        debug_assert!(end <= self.table.len().max(self.file_entries()), "and ends there");
        for (index, bytes) in (first..).zip(buf.chunks_exact_mut(8)) {
            let young = self.changed.iter().any(|(changed, window)| *changed == index && *window > durable);
            let entry = if young { 0 } else { self.table.get(index).copied().unwrap_or(0) };
            bytes.copy_from_slice(&entry.to_be_bytes());
        }
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.quarantine.check()?;
        self.map.check()?;
        self.copies.check()?;
        let moved = self.moving.as_ref().map_or(0, |moving| moving.clusters << self.header.cluster_bits);
        if self.table.len() as u64 * 8 > moved.max(self.file_entries() as u64 * 8) {
            return Err(String::from("the refcount table has no room for all entries"));
        }
        if self.unseen.next > self.unseen.end {
            return Err(format!(
                "clusters up to {} were looked at, of {}",
                self.unseen.next, self.unseen.end
            ));
        }
        match self.changed.iter().find(|(index, _)| self.table.get(*index).is_none_or(|entry| *entry == 0)) {
            Some((index, _)) => Err(format!("entry {index} of the refcount table changed to nothing")),
            None => Ok(()),
        }
    }
}

/// Why a count is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
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
            let counts = BlockShape { cluster_bits: 9, order };
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
