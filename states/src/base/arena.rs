//! A slab of fixed size whose ids carry a generation, so that a stale id is noticed.
//!
//! Knows: slots and generations. Must never know: what is stored.
//!
//! Invariants: never more than `limit` values; an id is valid from `insert` until `remove` and never again.

use alloc::format;
use alloc::string::String;
use core::hash::{Hash, Hasher};
use slab::Slab;

/// No freed slot.
const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Slot<T> {
    generation: u32,
    live: bool,
    value: T,
}

/// See the module's header. A value that is removed stays in its slot until the slot is used again: nothing
/// is moved.
#[derive(Clone, Debug)]
pub(crate) struct Arena<T> {
    slots: Slab<Slot<T>>,
    /// The slot that was freed last, and through each freed slot's `generation` the one before.
    free: u32,
    live: u32,
    limit: u32,
    generation: u32,
}

impl<T> Arena<T> {
    /// Room for `limit` values; grows to it on demand.
    pub(crate) fn new(limit: u32) -> Arena<T> {
        debug_assert!(limit > 0);
        debug_assert!(limit < NO_SLOT, "the mark of no slot names none");
        Arena { slots: Slab::new(), free: NO_SLOT, live: 0, limit, generation: 0 }
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        debug_assert!(self.live <= self.limit, "more values than the limit allows");
        self.live >= self.limit
    }

    /// Indexes are below this.
    pub(crate) fn limit(&self) -> u32 {
        debug_assert!(self.slots.len() <= self.limit as usize, "slots are made up to the limit");
        self.limit
    }

    pub(crate) fn is_empty(&self) -> bool {
        debug_assert!(self.live as usize <= self.slots.len(), "a live value has a slot");
        self.live == 0
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        debug_assert!(self.live <= self.limit);
        self.live as usize
    }

    /// Index and generation of the stored value; None when full.
    #[inline(always)]
    pub(crate) fn insert(&mut self, value: T) -> Option<(u32, u32)> {
        if self.is_full() {
            return None;
        }
        debug_assert!(self.free == NO_SLOT || self.live < self.slots.len() as u32, "a free slot is not live");
        if let Some((index, generation, slot)) = self.reuse() {
            *slot = value;
            return Some((index, generation));
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        self.live += 1;
        let index = self.slots.insert(Slot { generation, live: true, value });
        debug_assert!(index < self.limit as usize);
        Some((index as u32, generation))
    }

    /// As `insert`, of whatever the slot had before, which the caller tells what to be where it lies. None:
    /// there is no slot that had a value and is free.
    #[inline(always)]
    pub(crate) fn reuse(&mut self) -> Option<(u32, u32, &mut T)> {
        let index = self.free;
        let slot = self.slots.get_mut(index as usize)?;
        debug_assert!(!slot.live && self.live < self.limit);
        self.free = slot.generation;
        self.generation = self.generation.wrapping_add(1);
        self.live += 1;
        (slot.live, slot.generation) = (true, self.generation);
        Some((index, self.generation, &mut slot.value))
    }

    /// What an index that was kept names.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &T {
        // cannot fail: an index is kept no longer than its value lives
        let slot = self.slots.get(index as usize).expect("a live value");
        debug_assert!(slot.live, "an index that is kept names a live value");
        &slot.value
    }

    /// The same, for an index that came from outside.
    pub(crate) fn find(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize).filter(|slot| slot.live).map(|slot| &slot.value)
    }

    /// As `find`.
    #[inline]
    pub(crate) fn find_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize).filter(|slot| slot.live).map(|slot| &mut slot.value)
    }

    /// As `get`.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut T {
        // cannot fail: an index is kept no longer than its value lives
        let slot = self.slots.get_mut(index as usize).expect("a live value");
        debug_assert!(slot.live, "an index that is kept names a live value");
        &mut slot.value
    }

    /// The generation of what an index that was kept names.
    #[inline]
    pub(crate) fn generation(&self, index: u32) -> u32 {
        // cannot fail: an index is kept no longer than its value lives
        let slot = self.slots.get(index as usize).expect("a live value");
        debug_assert!(slot.live, "an index that is kept names a live value");
        slot.generation
    }

    /// Takes the value out if the id is still valid.
    pub(crate) fn remove(&mut self, index: u32, generation: u32) -> Option<T>
    where
        T: Clone,
    {
        let slot =
            self.slots.get(index as usize).filter(|slot| slot.live && slot.generation == generation)?;
        let value = slot.value.clone();
        debug_assert!(self.live > 0, "what is taken out is counted");
        self.discard(index);
        debug_assert!(self.find(index).is_none(), "the id is valid no more");
        Some(value)
    }

    /// Frees the slot; its id is known to be valid.
    #[inline]
    pub(crate) fn discard(&mut self, index: u32) {
        debug_assert!(self.find(index).is_some(), "only what lives is freed");
        if let Some(slot) = self.slots.get_mut(index as usize) {
            debug_assert!(slot.live);
            slot.live = false;
            slot.generation = self.free;
            self.free = index;
            self.live -= 1;
            debug_assert!(self.live < self.limit, "there is room now");
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        debug_assert!(self.live as usize <= self.slots.len(), "a live value has a slot");
        self.slots.iter().filter(|(_, slot)| slot.live).map(|(index, slot)| (index as u32, &slot.value))
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        let live = self.iter().count();
        if live != self.live as usize || self.live > self.limit {
            return Err(format!("{live} values live, counted as {}, of {}", self.live, self.limit));
        }
        let (mut free, mut at) = (0, self.free);
        while let Some(slot) = self.slots.get(at as usize).filter(|_| free < self.slots.len()) {
            if slot.live {
                return Err(format!("slot {at} is free, and its value lives"));
            }
            (free, at) = (free + 1, slot.generation);
        }
        match free + live == self.slots.len() && at == NO_SLOT {
            true => Ok(()),
            false => Err(format!("{free} slots are free, and {live} live, of {}", self.slots.len())),
        }
    }
}

// Generations name, they decide nothing: two arenas that differ only in them behave alike.
impl<T: PartialEq> PartialEq for Arena<T> {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit && self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for Arena<T> {}

impl<T: Hash> Hash for Arena<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        for (index, value) in self.iter() {
            index.hash(state);
            value.hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_ids_and_a_full_arena_are_noticed() {
        let mut arena = Arena::new(2);
        let (a, ga) = arena.insert('a').unwrap();
        let (b, gb) = arena.insert('b').unwrap();
        assert_eq!(arena.insert('c'), None);
        assert_eq!(arena.remove(a, ga), Some('a'));
        assert_eq!(arena.remove(a, ga), None);
        let (c, gc) = arena.insert('c').unwrap();
        assert_eq!(c, a, "the slot is used again");
        assert_ne!(gc, ga, "under another generation");
        assert_eq!(arena.remove(a, ga), None);
        assert_eq!(arena.find(b), Some(&'b'));
        assert_eq!(arena.remove(b, gb), Some('b'));
    }

    #[test]
    fn the_check_sees_slots_that_are_lost_or_two_things() {
        let mut arena = Arena::new(4);
        ['a', 'b', 'c'].into_iter().for_each(|value| assert!(arena.insert(value).is_some()));
        arena.discard(0);
        arena.discard(2);
        assert_eq!(arena.check(), Ok(()));
        let lost = Arena { free: 0, ..arena.clone() };
        assert_eq!(lost.check(), Err(String::from("1 slots are free, and 1 live, of 3")));
        let twice = Arena { free: 1, ..arena.clone() };
        assert_eq!(twice.check(), Err(String::from("slot 1 is free, and its value lives")));
        let more = Arena { live: 2, ..arena.clone() };
        assert_eq!(more.check(), Err(String::from("1 values live, counted as 2, of 4")));
        let limited = Arena { limit: 0, ..arena };
        assert!(limited.check().is_err());
    }

    #[test]
    fn arenas_are_equal_that_behave_alike() {
        let of = |limit, values: &[char]| {
            let mut arena = Arena::new(limit);
            values.iter().for_each(|value| assert!(arena.insert(*value).is_some()));
            arena
        };
        let (empty, arena) = (of(3, &[]), of(3, &['a', 'b']));
        assert!(empty.is_empty() && !arena.is_empty() && arena.len() == 2);
        assert_eq!((arena.generation(0), arena.generation(1)), (1, 2));
        for other in [of(4, &['a', 'b']), of(3, &['a', 'c']), of(3, &['a'])] {
            assert_ne!(arena, other);
        }
        // neither generations nor values that were removed count
        let mut again = of(3, &['x', 'b', 'c']);
        again.discard(2);
        again.discard(0);
        assert_ne!(crate::base::digest::digest(&arena), crate::base::digest::digest(&again));
        assert_eq!(again.insert('a'), Some((0, 4)), "the slot that was freed last");
        assert_eq!(arena, again);
        assert_eq!(crate::base::digest::digest(&arena), crate::base::digest::digest(&again));
        assert_eq!(again.insert('c'), Some((2, 5)), "then the one before");
        assert!(again.is_full() && !arena.is_full());
    }
}
