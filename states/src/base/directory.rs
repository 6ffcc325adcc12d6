//! From slice number to cache slot by array indexes: no hash, and memory in proportion to what is cached.
//!
//! Knows: numbers. Must never know: what a slice holds. Invariant: a level without entries is given back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

const FAN: usize = 512;
const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Leaf {
    used: u32,
    slots: [u32; FAN],
}

#[derive(Clone, Debug)]
struct Node {
    used: u32,
    leaves: Vec<Option<Box<Leaf>>>,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    nodes: Vec<Option<Node>>,
}

impl Directory {
    pub(crate) fn new(slices: u64) -> Directory {
        let mut directory = Directory { nodes: Vec::new() };
        directory.reserve(slices);
        directory
    }

    /// Makes room for numbers below `slices`.
    pub(crate) fn reserve(&mut self, slices: u64) {
        let nodes = slices.div_ceil((FAN * FAN) as u64) as usize;
        debug_assert!(nodes.checked_mul(FAN * FAN).is_some(), "every number has a place");
        if nodes > self.nodes.len() {
            self.nodes.resize_with(nodes, || None);
        }
        debug_assert!((self.nodes.len() * FAN * FAN) as u64 >= slices, "those below have a place");
    }

    #[inline(always)]
    pub(crate) fn get(&self, number: u64) -> Option<u32> {
        debug_assert!(number < u64::MAX / 2, "numbers of slices are small");
        let node = self.nodes.get((number / (FAN * FAN) as u64) as usize)?.as_ref()?;
        let leaf = node.leaves[(number as usize / FAN) % FAN].as_ref()?;
        debug_assert!(node.used > 0 && leaf.used > 0, "a level without entries is given back");
        let slot = leaf.slots[number as usize % FAN];
        debug_assert!(leaf.used <= FAN as u32 && node.used <= FAN as u32, "no more entries than places");
        (slot != NO_SLOT).then_some(slot)
    }

    pub(crate) fn insert(&mut self, number: u64, slot: u32) {
        debug_assert!(slot != NO_SLOT && self.get(number).is_none());
        let index = (number / (FAN * FAN) as u64) as usize;
        debug_assert!(index < self.nodes.len(), "the directory covers the whole disk");
        let Some(place) = self.nodes.get_mut(index) else { return };
        let node = place.get_or_insert_with(|| {
            let mut leaves = Vec::new();
            leaves.resize_with(FAN, || None);
            Node { used: 0, leaves }
        });
        let leaf = node.leaves[(number as usize / FAN) % FAN].get_or_insert_with(|| {
            node.used += 1;
            Box::new(Leaf { used: 0, slots: [NO_SLOT; FAN] })
        });
        leaf.used += 1;
        debug_assert!(leaf.used <= FAN as u32, "no more entries than places");
        leaf.slots[number as usize % FAN] = slot;
        debug_assert_eq!(self.get(number), Some(slot));
    }

    pub(crate) fn remove(&mut self, number: u64) {
        debug_assert!(self.get(number).is_some(), "what is forgotten was there");
        let Some(place) = self.nodes.get_mut((number / (FAN * FAN) as u64) as usize) else { return };
        let Some(node) = place.as_mut() else { return };
        let home = &mut node.leaves[(number as usize / FAN) % FAN];
        let Some(leaf) = home.as_mut() else { return };
        debug_assert!(leaf.slots[number as usize % FAN] != NO_SLOT);
        leaf.slots[number as usize % FAN] = NO_SLOT;
        debug_assert!(leaf.used > 0, "the entry was counted");
        leaf.used -= 1;
        if leaf.used == 0 {
            *home = None;
            debug_assert!(node.used > 0, "the leaf was counted");
            node.used -= 1;
            if node.used == 0 {
                *place = None;
            }
        }
    }
}

// The directory is derived from the slots: it adds nothing to what decides future behaviour.
impl Hash for Directory {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((0u64..2_000_000, 0u32..100), 1..200)) {
            let mut directory = Directory::new(2_000_000);
            let mut model = BTreeMap::new();
            for (number, slot) in ops {
                if model.remove(&number).is_some() {
                    directory.remove(number);
                } else {
                    model.insert(number, slot);
                    directory.insert(number, slot);
                }
                prop_assert_eq!(directory.get(number), model.get(&number).copied());
            }
            for number in model.keys() {
                directory.remove(*number);
            }
            prop_assert!(directory.nodes.iter().all(Option::is_none), "empty levels are given back");
        }
    }

    #[test]
    fn room_is_made_for_the_numbers_that_are_asked_for() {
        let mut directory = Directory::new(1);
        assert_eq!(directory.nodes.len(), 1);
        for (slices, nodes) in [(262_144, 1), (262_145, 2), (2_000_000, 8), (5, 8)] {
            directory.reserve(slices);
            assert_eq!(directory.nodes.len(), nodes);
        }
    }
}
