//! A slab of fixed size whose ids carry a generation, so that a stale id is noticed.
//!
//! Knows: slots and generations. Must never know: what is stored.
//!
//! Invariants: never more than `limit` values; an id is valid from `insert` until `remove` and never again.

use core::hash::{Hash, Hasher};
use slab::Slab;

#[derive(Clone, Debug)]
struct Slot<T> {
    generation: u32,
    value: T,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Arena<T> {
    slots: Slab<Slot<T>>,
    limit: u32,
    generation: u32,
}

impl<T> Arena<T> {
    /// Room for `limit` values; grows to it on demand.
    pub(crate) fn new(limit: u32) -> Arena<T> {
        debug_assert!(limit > 0);
        Arena { slots: Slab::new(), limit, generation: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() >= self.limit as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Index and generation of the stored value, or the value back when full.
    pub(crate) fn insert(&mut self, value: T) -> Result<(u32, u32), T> {
        if self.is_full() {
            return Err(value);
        }
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.slots.insert(Slot { generation, value });
        debug_assert!(index < self.limit as usize);
        Ok((index as u32, generation))
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize).map(|slot| &slot.value)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize).map(|slot| &mut slot.value)
    }

    pub(crate) fn generation(&self, index: u32) -> u32 {
        self.slots.get(index as usize).map_or(0, |slot| slot.generation)
    }

    /// Takes the value out if the id is still valid.
    pub(crate) fn remove(&mut self, index: u32, generation: u32) -> Option<T> {
        if self.slots.get(index as usize)?.generation != generation {
            return None;
        }
        self.slots.try_remove(index as usize).map(|slot| slot.value)
    }

    /// Drops the value; its id is known to be valid.
    pub(crate) fn discard(&mut self, index: u32) {
        debug_assert!(self.slots.contains(index as usize));
        self.slots.try_remove(index as usize);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().map(|(index, slot)| (index as u32, &slot.value))
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
        assert_eq!(arena.insert('c'), Err('c'));
        assert_eq!(arena.remove(a, ga), Some('a'));
        assert_eq!(arena.remove(a, ga), None);
        let (c, gc) = arena.insert('c').unwrap();
        assert_eq!(c, a, "the slot is used again");
        assert_ne!(gc, ga, "under another generation");
        assert_eq!(arena.remove(a, ga), None);
        assert_eq!(arena.get(b), Some(&'b'));
        assert_eq!(arena.remove(b, gb), Some('b'));
    }
}
