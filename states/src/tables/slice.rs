//! One cached slice of a metadata table, as its own small machine: Loading -> Clean <-> Dirty -> Writing.
//!
//! Knows: its entries, which of its blocks are dirty, which changes must not be written yet. Must never know:
//! requests.
//!
//! Invariants:
//! * at most one write of a slice is in flight, and it writes a snapshot: what `encode` saw;
//! * a *young* change points to data that is not durable yet (QE3, QC3): readers use it at once, `encode`
//!   leaves it out;
//! * `dirty` marks blocks with changes that may be written; `young` lists those that may not, oldest first.

use crate::base::queue::Queue;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A slice that is in steady use survives this many turns of the cache's clock.
pub(crate) const CHANCES_MAX: u8 = 3;

/// Where a slice is. Absent slices have no slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum SliceState {
    /// The slot is free.
    Empty,
    /// Being read; its entries mean nothing yet.
    Loading,
    /// In memory.
    Present,
    /// In memory, and a snapshot is being written.
    Writing,
}

/// A change whose data is not durable yet: entries `[first, first + count)` were all `old`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Young {
    pub(crate) first: u16,
    pub(crate) count: u16,
    pub(crate) old: u64,
    /// The commit window that makes its data durable.
    pub(crate) window: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Slice {
    pub(crate) number: u64,
    pub(crate) host: u64,
    pub(crate) state: SliceState,
    /// Bit n: block n has changes that may be written.
    pub(crate) dirty: u64,
    /// Blocks that the write in flight covers.
    pub(crate) writing: u64,
    /// Oldest first.
    pub(crate) young: Vec<Young>,
    /// Acbs that wait for it to be loaded.
    pub(crate) waiters: Queue,
    /// Acbs that hold it in the cache.
    pub(crate) pins: u32,
    /// Second chances left before eviction.
    pub(crate) chances: u8,
    /// Loaded a short while ago: hits do not tell yet whether it is in steady use.
    pub(crate) fresh: bool,
    pub(crate) entries: Vec<u64>,
    /// qcow2, L2: the table's refcount is not one: it is copied before it changes.
    pub(crate) shared: bool,
    /// Entries that pointed beyond the end of the file when it was opened (QE7): never to be followed.
    pub(crate) dangling: Vec<u16>,
}

impl Slice {
    pub(crate) const fn empty() -> Slice {
        Slice {
            number: 0,
            host: 0,
            state: SliceState::Empty,
            dirty: 0,
            writing: 0,
            young: Vec::new(),
            waiters: Queue::new(),
            pins: 0,
            chances: 0,
            fresh: true,
            entries: Vec::new(),
            shared: false,
            dangling: Vec::new(),
        }
    }

    /// It was of use: if it is not fresh any more, it is in steady use.
    #[inline]
    pub(crate) fn touch(&mut self) {
        debug_assert!(self.chances <= CHANCES_MAX);
        debug_assert!(self.state != SliceState::Empty, "a slot that holds nothing is of no use");
        if !self.fresh {
            self.chances = CHANCES_MAX;
        }
    }

    /// It can be dropped without losing anything.
    pub(crate) fn is_idle(&self) -> bool {
        debug_assert_eq!(self.state == SliceState::Writing, self.writing != 0);
        debug_assert!(self.state != SliceState::Empty || self.pins == 0, "what is pinned is there");
        self.state == SliceState::Present && self.dirty == 0 && self.young.is_empty() && self.pins == 0
    }

    /// It holds something that the file does not.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty != 0 || self.writing != 0 || !self.young.is_empty()
    }

    /// Changes whose data became durable (`window <= durable`) may be written from now on.
    pub(crate) fn age(&mut self, durable: u64, entries_per_block: usize) {
        debug_assert!(entries_per_block > 0);
        let aged = self.young.iter().take_while(|young| young.window <= durable).count();
        for young in self.young.drain(..aged) {
            self.dirty |= block_mask(young.first as usize, young.count as usize, entries_per_block);
            debug_assert!(self.dirty != 0, "a change that may be written is marked");
        }
        debug_assert!(self.young.first().is_none_or(|young| young.window > durable), "they are sorted");
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        debug_assert!(self.chances <= CHANCES_MAX, "a slice has so many chances");
        if !self.young.is_sorted_by_key(|young| young.window) {
            return Err(String::from("young changes are out of order"));
        }
        let end = |young: &Young| usize::from(young.first) + usize::from(young.count);
        if self.young.iter().any(|young| end(young) > self.entries.len()) {
            return Err(String::from("a young change of what is not there"));
        }
        match (self.state == SliceState::Writing) == (self.writing != 0) {
            true => Ok(()),
            false => Err(format!("state {:?} with writing {:#x}", self.state, self.writing)),
        }
    }

    /// The snapshot: entry `index` without the changes that must not be written yet.
    pub(crate) fn snapshot(&self, buf: &mut Vec<u64>) {
        debug_assert!(!matches!(self.state, SliceState::Empty | SliceState::Loading), "it is in memory");
        buf.clear();
        buf.extend_from_slice(&self.entries);
        for young in self.young.iter().rev() {
            let first = young.first as usize;
            debug_assert!(first + young.count as usize <= self.entries.len(), "a change of this slice");
            if let Some(range) = buf.get_mut(first..first + young.count as usize) {
                range.fill(young.old);
            }
        }
        debug_assert_eq!(buf.len(), self.entries.len());
    }
}

/// The blocks that entries `[first, first + count)` lie in, as bits.
pub(crate) fn block_mask(first: usize, count: usize, entries_per_block: usize) -> u64 {
    debug_assert!(count > 0 && entries_per_block > 0);
    let (low, high) = (first / entries_per_block, (first + count - 1) / entries_per_block);
    debug_assert!(high < 64);
    debug_assert!(low <= high, "a range does not run backwards");
    (u64::MAX >> (63 - (high - low))) << low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_masks_cover_first_and_last() {
        assert_eq!(block_mask(0, 1, 64), 1);
        assert_eq!(block_mask(63, 2, 64), 0b11);
        assert_eq!(block_mask(0, 512, 64), 0xff);
        assert_eq!(block_mask(130, 1, 64), 0b100);
    }

    #[test]
    fn young_changes_stay_out_of_the_snapshot_until_their_data_is_durable() {
        let mut slice = Slice { state: SliceState::Present, ..Slice::empty() };
        slice.entries = alloc::vec![0; 8];
        // entry 3: 0 -> zero cluster (needs no data) -> 0x3000 -> and entry 4 later
        slice.entries[3] = 1;
        slice.dirty |= block_mask(3, 1, 8);
        slice.young.push(Young { first: 3, count: 1, old: 1, window: 5 });
        slice.entries[3] = 0x3000;
        slice.young.push(Young { first: 4, count: 1, old: 0, window: 6 });
        slice.entries[4] = 0x4000;
        let mut buf = Vec::new();
        slice.snapshot(&mut buf);
        assert_eq!((buf[3], buf[4]), (1, 0));
        slice.dirty = 0;
        slice.age(5, 8);
        slice.snapshot(&mut buf);
        assert_eq!((buf[3], buf[4], slice.dirty), (0x3000, 0, 1));
        slice.age(6, 8);
        slice.snapshot(&mut buf);
        assert_eq!((buf[3], buf[4], slice.young.len()), (0x3000, 0x4000, 0));
    }
}
