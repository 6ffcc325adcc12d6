//! First-in first-out lists of things in a slab, threaded through the things themselves: no allocation, and
//! each is in one list at most.
//!
//! Knows: indexes. Must never know: what waits there, and why.
//!
//! Invariants: an element whose link is not `NONE` is in exactly one list; a list's last links to `END`.

use crate::base::arena::Arena;
use crate::error::Error;

/// Not in a list.
pub(crate) const NONE: u32 = u32::MAX;
/// In a list, last.
const END: u32 = u32::MAX - 1;

/// What can stand in a list.
pub(crate) trait Linked {
    /// Next in the list that it is in; `NONE` if it is in none.
    fn link(&self) -> u32;
    /// Sets that; nobody but the list does.
    fn set_link(&mut self, link: u32);
    /// What it waited for will not come.
    fn fail(&mut self, error: &Error);
}

/// See the module's header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Queue {
    first: u32,
    last: u32,
}

impl Queue {
    pub(crate) const fn new() -> Queue {
        Queue { first: END, last: END }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        debug_assert!((self.first == END) == (self.last == END));
        self.first == END
    }

    /// Appends.
    pub(crate) fn push<T: Linked>(&mut self, items: &mut Arena<T>, index: u32) {
        debug_assert!((self.first == END) == (self.last == END), "the ends of a list go together");
        debug_assert!(index < END, "an index is no mark");
        let item = items.get_mut(index);
        debug_assert_eq!(item.link(), NONE, "an acb waits for one thing at a time");
        item.set_link(END);
        if self.first == END {
            self.first = index;
        } else {
            items.get_mut(self.last).set_link(index);
        }
        self.last = index;
    }

    /// Takes the first.
    pub(crate) fn pop<T: Linked>(&mut self, items: &mut Arena<T>) -> Option<u32> {
        debug_assert!((self.first == END) == (self.last == END), "the ends of a list go together");
        if self.first == END {
            return None;
        }
        let index = self.first;
        let item = items.get_mut(index);
        self.first = item.link();
        item.set_link(NONE);
        if self.first == END {
            self.last = END;
        }
        debug_assert!(self.first != NONE, "a member links to the next, or to the end");
        Some(index)
    }

    /// Moves everything of `other` behind our last.
    pub(crate) fn append<T: Linked>(&mut self, items: &mut Arena<T>, other: &mut Queue) {
        debug_assert!(self.first == END || self.first != other.first, "a member is in one list");
        if other.first == END {
            return;
        }
        if self.first == END {
            self.first = other.first;
        } else {
            items.get_mut(self.last).set_link(other.first);
        }
        self.last = other.last;
        *other = Queue::new();
        debug_assert!(other.is_empty());
    }

    /// Moves everything of `other` in front of our first.
    pub(crate) fn prepend<T: Linked>(&mut self, items: &mut Arena<T>, other: &mut Queue) {
        debug_assert!(self.first == END || self.first != other.first, "a member is in one list");
        core::mem::swap(self, other);
        self.append(items, other);
        debug_assert!(other.is_empty());
    }

    /// Tells every member what it waited for in vain; they stay in the list.
    pub(crate) fn fail<T: Linked>(&self, items: &mut Arena<T>, error: &Error) {
        let mut next = self.first;
        while next != END {
            debug_assert!(next != NONE, "a member links to the next, or to the end");
            let item = items.get_mut(next);
            item.fail(error);
            next = item.link();
        }
    }

    /// The members, first to last.
    pub(crate) fn iter<'a, T: Linked>(&self, items: &'a Arena<T>) -> impl Iterator<Item = u32> + 'a {
        debug_assert!((self.first == END) == (self.last == END), "the ends of a list go together");
        let mut next = self.first;
        core::iter::from_fn(move || {
            if next == END {
                return None;
            }
            debug_assert!(next != NONE, "a member links to the next, or to the end");
            let index = next;
            next = items.get(index).link();
            debug_assert!(next != index, "nothing is behind itself");
            Some(index)
        })
    }
}
