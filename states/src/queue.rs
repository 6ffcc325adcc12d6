//! First-in first-out lists of acbs, threaded through the acbs themselves: no allocation, and an acb is in
//! one list at most.
//!
//! Knows: acb indexes. Must never know: why they wait.
//!
//! Invariants: an acb whose `link` is not `NONE` is in exactly one list; a list's last acb links to `END`.

use crate::acb::Acb;
use crate::arena::Arena;
use crate::error::Error;
use alloc::boxed::Box;

/// Not in a list.
pub(crate) const NONE: u32 = u32::MAX;
/// In a list, last.
const END: u32 = u32::MAX - 1;

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
        self.first == END
    }

    /// Appends.
    pub(crate) fn push(&mut self, acbs: &mut Arena<Acb>, index: u32) {
        let Some(acb) = acbs.get_mut(index) else { return };
        debug_assert_eq!(acb.link, NONE, "an acb waits for one thing at a time");
        acb.link = END;
        if self.first == END {
            self.first = index;
        } else if let Some(last) = acbs.get_mut(self.last) {
            last.link = index;
        }
        self.last = index;
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self, acbs: &mut Arena<Acb>) -> Option<u32> {
        if self.first == END {
            return None;
        }
        let index = self.first;
        let acb = acbs.get_mut(index)?;
        self.first = acb.link;
        acb.link = NONE;
        if self.first == END {
            self.last = END;
        }
        Some(index)
    }

    /// Moves everything of `other` behind our last.
    pub(crate) fn append(&mut self, acbs: &mut Arena<Acb>, other: &mut Queue) {
        if other.first == END {
            return;
        }
        if self.first == END {
            self.first = other.first;
        } else if let Some(last) = acbs.get_mut(self.last) {
            last.link = other.first;
        }
        self.last = other.last;
        *other = Queue::new();
    }

    /// Moves everything of `other` in front of our first.
    pub(crate) fn prepend(&mut self, acbs: &mut Arena<Acb>, other: &mut Queue) {
        core::mem::swap(self, other);
        self.append(acbs, other);
    }

    /// Tells every member what it waited for in vain; they stay in the list.
    pub(crate) fn fail(&self, acbs: &mut Arena<Acb>, error: &Error) {
        let mut next = self.first;
        while let Some(acb) = acbs.get_mut(next) {
            acb.error = Some(Box::new(error.clone()));
            next = acb.link;
        }
    }

    /// The members, first to last.
    pub(crate) fn iter<'a>(&self, acbs: &'a Arena<Acb>) -> impl Iterator<Item = u32> + 'a {
        let mut next = self.first;
        core::iter::from_fn(move || {
            if next == END {
                return None;
            }
            let index = next;
            next = acbs.get(index).map_or(END, |acb| acb.link);
            Some(index)
        })
    }
}
