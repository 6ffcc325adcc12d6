//! How far a round has got with what it writes.
//!
//! Knows: slots, numbers of writes. Must never know: what is written.
//!
//! Invariant: at most `TABLE_WRITES_MAX` writes are in flight.

use alloc::vec::Vec;

/// Table writes in flight at once.
pub(crate) const TABLE_WRITES_MAX: u32 = 32;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Writing {
    /// Slots that may be dirty.
    pub(super) dirty: Vec<u32>,
    /// The slots of the running phase, and how far it got.
    pub(super) slots: Vec<u32>,
    pub(super) cursor: usize,
    in_flight: u32,
    pub(super) wrote: bool,
}

impl Writing {
    pub(super) fn note_dirty(&mut self, slot: u32) {
        self.dirty.push(slot);
    }

    pub(super) const fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) const fn in_flight(&self) -> u32 {
        debug_assert!(self.in_flight <= TABLE_WRITES_MAX);
        self.in_flight
    }

    pub(super) fn emitted(&mut self) {
        debug_assert!(self.in_flight < TABLE_WRITES_MAX);
        self.in_flight += 1;
    }

    pub(super) fn ended(&mut self) {
        debug_assert!(self.in_flight > 0);
        self.in_flight -= 1;
    }
}
