//! The cache of table slices: bounded, found by index, one load a miss, nothing dirty is ever dropped.
//!
//! Knows: slots and how they are replaced (clock with second chances). Must never know: requests, the
//! commit's rules.
//!
//! Invariants: at most `capacity` slots; a slice has one slot at most; only idle slices are evicted.

use crate::directory::Directory;
use crate::geometry::{HostOffset, SliceNumber};
use crate::table::{Slice, SliceState};
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

/// A slice that was hit often survives this many turns of the clock.
const CHANCES_MAX: u8 = 3;

#[derive(Clone, Debug)]
pub(crate) struct TableCache {
    slots: Vec<Slice>,
    capacity: usize,
    directory: Directory,
    hand: usize,
    /// Slots that hold nothing.
    free: Vec<u32>,
    /// Slots with something that the file does not have.
    pub(crate) dirty: usize,
    /// Young records in all slices.
    pub(crate) young: usize,
}

impl TableCache {
    pub(crate) fn new(capacity: usize, slice_count: u64) -> TableCache {
        debug_assert!(capacity >= 2, "an L1 slice and an L2 slice must fit");
        TableCache {
            slots: Vec::new(),
            capacity,
            directory: Directory::new(slice_count),
            hand: 0,
            free: Vec::new(),
            dirty: 0,
            young: 0,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn reserve(&mut self, slice_count: u64) {
        self.directory.reserve(slice_count);
    }

    #[inline]
    pub(crate) fn find(&self, number: SliceNumber) -> Option<u32> {
        self.directory.get(number.0)
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> &Slice {
        &self.slots[slot as usize]
    }

    #[inline]
    pub(crate) fn slot_mut(&mut self, slot: u32) -> &mut Slice {
        &mut self.slots[slot as usize]
    }

    #[inline]
    pub(crate) fn touch(&mut self, slot: u32) {
        let slice = &mut self.slots[slot as usize];
        if slice.chances < CHANCES_MAX {
            slice.chances += 1;
        }
    }

    pub(crate) fn slots(&self) -> &[Slice] {
        &self.slots
    }

    /// A slot for a slice that is not cached, in state `Loading` with `entries` zero entries; None when none
    /// is idle.
    pub(crate) fn claim(&mut self, number: SliceNumber, host: HostOffset, entries: usize) -> Option<u32> {
        debug_assert!(self.find(number).is_none());
        let slot = self.free_slot()?;
        let slice = &mut self.slots[slot as usize];
        debug_assert!(!slice.is_dirty() && slice.waiters.is_empty() && slice.pins == 0);
        slice.number = number.0;
        slice.host = host.0;
        slice.state = SliceState::Loading;
        slice.chances = 1;
        slice.entries.clear();
        slice.dangling.clear();
        slice.shared = false;
        slice.entries.resize(entries, 0);
        self.directory.insert(number.0, slot);
        Some(slot)
    }

    fn free_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.slots.len() < self.capacity {
            self.slots.push(Slice::empty());
            return Some(self.slots.len() as u32 - 1);
        }
        // every turn of the clock takes one chance from each idle slice, so this ends
        for _ in 0..self.slots.len() * (CHANCES_MAX as usize + 1) {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slice = &mut self.slots[slot];
            if !slice.is_idle() {
                continue;
            }
            if slice.chances > 0 {
                slice.chances -= 1;
                continue;
            }
            self.forget(slot as u32);
            return Some(slot as u32);
        }
        None
    }

    /// Forgets a slice that could not be loaded.
    pub(crate) fn drop_slot(&mut self, slot: u32) {
        self.forget(slot);
        self.free.push(slot);
    }

    fn forget(&mut self, slot: u32) {
        let slice = &mut self.slots[slot as usize];
        debug_assert!(!slice.is_dirty() && slice.pins == 0);
        slice.state = SliceState::Empty;
        let number = slice.number;
        self.directory.remove(number);
    }
}

impl PartialEq for TableCache {
    fn eq(&self, other: &Self) -> bool {
        self.slots == other.slots && self.capacity == other.capacity && self.hand == other.hand
    }
}

impl Eq for TableCache {}

impl Hash for TableCache {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.slots, self.capacity, self.hand).hash(state);
    }
}
