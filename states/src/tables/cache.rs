//! The cache of table slices: bounded, found by index, one load a miss, nothing dirty is ever dropped.
//!
//! Knows: slots and how they are replaced: a clock, whose second chances a slice earns only by hits long
//! after it was loaded. Reading a disk from end to end hits each slice often, but within a short time: it
//! replaces its own slices, not those in steady use. Must never know: requests, the commit's rules.
//!
//! Invariants: at most `capacity` slots; a slice has one slot at most; only idle slices are evicted.

use crate::base::directory::Directory;
use crate::base::geometry::{SLICE_BYTES, SliceNumber};
use crate::options::Options;
use crate::rule::Rule;
use crate::tables::slice::{CHANCES_MAX, Slice, SliceState};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

#[derive(Clone, Debug)]
pub(crate) struct TableCache {
    slots: Vec<Slice>,
    capacity: usize,
    directory: Directory,
    hand: usize,
    /// Which rules are removed.
    #[cfg(feature = "sabotage")]
    removed: u128,
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
            #[cfg(feature = "sabotage")]
            removed: 0,
            free: Vec::new(),
            dirty: 0,
            young: 0,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        debug_assert!(self.capacity >= 2, "an L1 slice and an L2 slice must fit");
        debug_assert!(self.slots.len() <= self.capacity);
        self.capacity
    }

    pub(crate) fn reserve(&mut self, slice_count: u64) {
        self.directory.reserve(slice_count);
        debug_assert!(self.slots.len() <= self.capacity, "slots are made up to the capacity");
    }

    #[inline]
    pub(crate) fn find(&self, number: SliceNumber) -> Option<u32> {
        let holds = |slot| self.slot(slot).number == number.0;
        debug_assert!(self.directory.get(number.0).is_none_or(holds), "its slot holds it");
        self.directory.get(number.0)
    }

    #[inline]
    pub(crate) fn slot(&self, slot: u32) -> &Slice {
        debug_assert!(self.slots.len() <= self.capacity);
        &self.slots[slot as usize]
    }

    #[inline]
    pub(crate) fn slot_mut(&mut self, slot: u32) -> &mut Slice {
        debug_assert!(self.slots.len() <= self.capacity);
        &mut self.slots[slot as usize]
    }

    /// A slice was of use.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32) {
        debug_assert_ne!(self.slot(slot).state, SliceState::Empty, "it was found there");
        self.slots[slot as usize].touch();
    }

    pub(crate) fn slots(&self) -> &[Slice] {
        debug_assert!(self.slots.len() <= self.capacity, "slots are made up to the capacity");
        &self.slots
    }

    /// A slot for a slice that is not cached, in state `Loading` with `entries` zero entries; None when none
    /// is idle.
    pub(crate) fn claim(&mut self, number: SliceNumber, host: u64, entries: usize) -> Option<u32> {
        debug_assert!(host < 1 << 63, "a slice lies where a file may have it");
        debug_assert!(entries > 0 && entries <= SLICE_BYTES as usize / 8);
        debug_assert!(self.find(number).is_none());
        let (slot, broken) = (self.free_slot()?, self.is_broken());
        let slice = &mut self.slots[slot as usize];
        debug_assert_eq!(slice.state, SliceState::Empty, "it holds nothing any more");
        debug_assert!(broken || !slice.is_dirty() && slice.waiters.is_empty() && slice.pins == 0);
        slice.number = number.0;
        slice.host = host;
        slice.state = SliceState::Loading;
        slice.chances = 0;
        slice.fresh = true;
        slice.entries.clear();
        slice.dangling.clear();
        slice.shared = false;
        slice.entries.resize(entries, 0);
        self.directory.insert(number.0, slot);
        debug_assert_eq!(self.find(number), Some(slot), "a slice that is claimed is found");
        Some(slot)
    }

    fn free_slot(&mut self) -> Option<u32> {
        debug_assert!(self.free.len() <= self.slots.len() && self.slots.len() <= self.capacity);
        if let Some(slot) = self.free.pop() {
            debug_assert_eq!(self.slots[slot as usize].state, SliceState::Empty, "a free slot holds nothing");
            return Some(slot);
        }
        if self.slots.len() < self.capacity {
            self.slots.push(Slice::empty());
            let slot = self.slots.len() - 1;
            self.ripen(slot);
            return Some(slot as u32);
        }
        // every turn of the clock takes one chance from each idle slice, so this ends
        for _ in 0..self.slots.len() * (CHANCES_MAX as usize + 1) {
            let slot = self.hand;
            debug_assert!(slot < self.slots.len(), "the hand stands on a slot");
            self.hand = (self.hand + 1) % self.slots.len();
            self.ripen(slot);
            if !self.slots[slot].is_idle() && !self.robs(slot) {
                continue;
            }
            let slice = &mut self.slots[slot];
            if slice.chances > 0 {
                slice.chances -= 1;
                continue;
            }
            self.forget(slot as u32);
            debug_assert_eq!(self.slots[slot].state, SliceState::Empty, "what is evicted is forgotten");
            return Some(slot as u32);
        }
        None
    }

    /// The clock has reached `slot`: what it passed an eighth of a turn ago is not fresh any more.
    fn ripen(&mut self, slot: usize) {
        debug_assert!(slot < self.slots.len());
        let behind = (self.capacity / 8).max(1);
        let count = self.slots.len();
        debug_assert!(count <= self.capacity, "slots are made up to the capacity");
        if count > behind {
            self.slots[(slot + count - behind) % count].fresh = false;
        }
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        debug_assert!(self.dirty <= self.slots.len(), "each dirty slot is counted once");
        let (mut dirty, mut young, mut free) = (0, 0, 0);
        for (slot, slice) in self.slots.iter().enumerate() {
            if slice.state == SliceState::Empty {
                free += 1;
                if !self.free.contains(&(slot as u32)) {
                    return Err(format!("slot {slot} holds nothing, and nobody can have it"));
                }
                continue;
            }
            dirty += usize::from(slice.is_dirty());
            young += slice.young.len();
            let found = self.find(SliceNumber(slice.number));
            if found != Some(slot as u32) {
                return Err(format!("slot {slot} holds slice {}, found in {found:?}", slice.number));
            }
            slice.check().map_err(|said| format!("slot {slot}: {said}"))?;
        }
        match (dirty, young) == (self.dirty, self.young) {
            true if free == self.free.len() => Ok(()),
            true => Err(format!("{free} slots hold nothing, {} are free", self.free.len())),
            false => {
                let counts = (self.dirty, self.young);
                Err(format!("dirty and young are {:?}, counted as {counts:?}", (dirty, young)))
            }
        }
    }

    /// Forgets a slice that could not be loaded.
    pub(crate) fn drop_slot(&mut self, slot: u32) {
        debug_assert!(self.slot(slot).waiters.is_empty(), "whatever waited for it was told");
        self.forget(slot);
        debug_assert!(!self.free.contains(&slot), "a slot is free once");
        self.free.push(slot);
    }

    fn forget(&mut self, slot: u32) {
        debug_assert!(!matches!(self.slots[slot as usize].state, SliceState::Empty), "a slot is freed once");
        #[cfg(feature = "sabotage")]
        self.rob(slot as usize);
        let broken = self.is_broken();
        let slice = &mut self.slots[slot as usize];
        debug_assert!(broken || !slice.is_dirty() && slice.pins == 0);
        slice.state = SliceState::Empty;
        let number = slice.number;
        debug_assert!(broken || self.find(SliceNumber(number)) == Some(slot), "a slice is found in its slot");
        self.directory.remove(number);
    }
}

/// What removed rules forbid: taking a slot that is in use. What it held is lost.
#[cfg(feature = "sabotage")]
impl TableCache {
    /// Without the rules that these options remove.
    pub(crate) const fn without(mut self, options: &Options) -> TableCache {
        self.removed = options.sabotage;
        self
    }

    const fn is_broken(&self) -> bool {
        self.removed != 0
    }

    pub(super) const fn is_removed(&self, rule: Rule) -> bool {
        self.removed & rule as u128 != 0
    }

    fn robs(&self, slot: usize) -> bool {
        let slice = &self.slots[slot];
        let removed = |rule| self.is_removed(rule);
        slice.pins == 0
            && match slice.state {
                SliceState::Empty => false,
                SliceState::Loading => removed(Rule::LoadingSlot),
                SliceState::Present => removed(Rule::WaitSlot),
                SliceState::Writing => removed(Rule::WritingSlot),
            }
    }

    fn rob(&mut self, slot: usize) {
        let slice = &mut self.slots[slot];
        if slice.is_dirty() {
            debug_assert!(self.dirty > 0 && self.young >= slice.young.len());
            self.dirty -= 1;
            self.young -= slice.young.len();
            slice.young.clear();
            (slice.dirty, slice.writing) = (0, 0);
        }
    }
}

#[cfg(not(feature = "sabotage"))]
impl TableCache {
    pub(crate) const fn without(self, _options: &Options) -> TableCache {
        self
    }

    #[inline]
    const fn is_broken(&self) -> bool {
        false
    }

    #[inline]
    pub(super) const fn is_removed(&self, _rule: Rule) -> bool {
        false
    }

    #[inline]
    const fn robs(&self, _slot: usize) -> bool {
        false
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(cache: &mut TableCache, number: u64) -> u32 {
        if let Some(slot) = cache.find(SliceNumber(number)) {
            return slot;
        }
        let slot = cache.claim(SliceNumber(number), number << 12, 8).unwrap();
        cache.slot_mut(slot).state = SliceState::Present;
        slot
    }

    /// Reads from end to end, each slice many times, do not drive out what is in steady use.
    #[test]
    fn a_scan_replaces_its_own_slices() {
        let mut cache = TableCache::new(64, 1 << 20);
        let mut misses = 0;
        for step in 0..10_000u64 {
            for _ in 0..50 {
                let slot = load(&mut cache, 1000 + step);
                cache.touch(slot);
            }
            // twenty slices, each of use now and then
            let number = step * 7 % 20;
            misses += u32::from(cache.find(SliceNumber(number)).is_none());
            let slot = load(&mut cache, number);
            cache.touch(slot);
        }
        assert!(misses < 200, "{misses} of 10000 lookups of slices in use missed");
    }

    /// Without a scan, what is used most stays.
    #[test]
    fn the_clock_keeps_what_is_used_most() {
        let mut cache = TableCache::new(64, 1 << 20);
        let (mut misses, mut random) = (0, 1u64);
        for step in 0..20_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // half of all lookups go to 40 of 4000 slices
            let number = if step % 2 == 0 { (random >> 33) % 40 } else { 40 + (random >> 33) % 4000 };
            misses += u32::from(step % 2 == 0 && cache.find(SliceNumber(number)).is_none());
            let slot = load(&mut cache, number);
            cache.touch(slot);
        }
        assert!(misses < 2000, "{misses} of 10000 lookups of hot slices missed");
    }

    #[test]
    fn no_more_slots_than_there_is_room_for_and_each_gets_its_turn() {
        let mut cache = TableCache::new(16, 1 << 20);
        for number in 0..16 {
            assert_eq!(load(&mut cache, number), number as u32);
        }
        // all in steady use: each loses its chances one turn at a time, the first is the first to go
        for slot in 0..16 {
            cache.slot_mut(slot).fresh = false;
            cache.touch(slot);
        }
        assert_eq!((load(&mut cache, 100), cache.slots().len()), (0, 16));
        assert_eq!((cache.find(SliceNumber(0)), cache.find(SliceNumber(100))), (None, Some(0)));
        assert_eq!(load(&mut cache, 101), 1, "the next one has no chance left either");
        // what is pinned stays
        for slot in 0..16 {
            cache.slot_mut(slot).pins = 1;
        }
        assert_eq!(cache.claim(SliceNumber(102), 0, 8), None);
        cache.slot_mut(9).pins = 0;
        assert_eq!(cache.claim(SliceNumber(102), 0, 8), Some(9));
        // a slice that could not be loaded leaves its slot to the next one
        cache.drop_slot(9);
        assert_eq!(cache.find(SliceNumber(102)), None);
        assert_eq!(load(&mut cache, 103), 9);
        assert_eq!(cache.slots().len(), 16);
    }

    /// The hand makes stale what it passed an eighth of a turn ago, and nothing sooner.
    #[test]
    fn slices_ripen_an_eighth_of_a_turn_later() {
        let mut cache = TableCache::new(64, 1 << 20);
        let fresh = |cache: &TableCache| cache.slots().iter().map(|slice| slice.fresh).collect::<Vec<_>>();
        for number in 0..8 {
            load(&mut cache, number);
        }
        assert_eq!(fresh(&cache), [true; 8]);
        for number in 8..20 {
            load(&mut cache, number);
        }
        assert_eq!(fresh(&cache), [[false; 12].as_slice(), &[true; 8]].concat());
    }

    #[test]
    fn the_check_sees_a_slot_that_is_not_free() {
        let mut cache = TableCache::new(4, 100);
        load(&mut cache, 1);
        assert_eq!(cache.check(), Ok(()));
        cache.free.push(0);
        assert_eq!(cache.check(), Err(String::from("0 slots hold nothing, 1 are free")));
    }

    #[test]
    fn caches_of_different_room_differ() {
        let (a, b) = (TableCache::new(4, 100), TableCache::new(8, 100));
        assert_ne!(a, b);
        assert_ne!(crate::base::digest::digest(&a), crate::base::digest::digest(&b));
        assert_eq!(a, a.clone());
    }
}
