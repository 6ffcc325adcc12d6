//! Windows: the time between rounds, numbered; what is durable, what is written, what is wanted.
//!
//! Data that was written in a window is durable when a sync that was submitted after the window closed has
//! completed. A sync closes a window for new data and makes the pointers of the round before it durable, so
//! under a stream of flushes each costs one sync, and one flush alone costs two.
//!
//! Knows: numbers. Must never know: what is written in a window.
//!
//! Invariants: `tables_durable <= written <= round < open`, `durable <= round`.

use alloc::format;
use alloc::string::String;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Windows {
    /// The open window: data that is written now belongs to it.
    open: u64,
    /// The window that the running round closed.
    round: u64,
    /// Data of windows up to this one is durable.
    durable: u64,
    /// Pointers of windows up to this one are in the file.
    written: u64,
    /// The value of `written` when the running sync was submitted.
    written_before: u64,
    /// Pointers of windows up to this one are durable.
    tables_durable: u64,
    /// Pointers of windows up to this one shall be written,
    demand: u64,
    /// and durable.
    demand_durable: u64,
    /// The header's dirty bit shall be cleared, durably.
    demand_clean: bool,
}

impl Windows {
    pub(super) const fn new() -> Windows {
        Windows {
            open: 1,
            round: 0,
            durable: 0,
            written: 0,
            written_before: 0,
            tables_durable: 0,
            demand: 0,
            demand_durable: 0,
            demand_clean: false,
        }
    }

    #[inline]
    pub(crate) const fn open(&self) -> u64 {
        debug_assert!(self.round < self.open);
        self.open
    }

    pub(crate) const fn round(&self) -> u64 {
        debug_assert!(self.round < self.open);
        self.round
    }

    pub(crate) const fn durable(&self) -> u64 {
        debug_assert!(self.durable <= self.round);
        self.durable
    }

    pub(crate) const fn written(&self) -> u64 {
        debug_assert!(self.written <= self.round);
        self.written
    }

    pub(crate) const fn tables_durable(&self) -> u64 {
        debug_assert!(self.tables_durable <= self.written);
        self.tables_durable
    }

    /// A round begins: it closes the open window.
    pub(crate) const fn begin_round(&mut self) {
        debug_assert!(self.written <= self.round && self.round < self.open);
        self.round = self.open;
        self.open += 1;
        debug_assert!(self.durable < self.round && self.written < self.round, "nothing of it is there yet");
    }

    /// A sync is submitted.
    pub(super) const fn sync_begun(&mut self) {
        debug_assert!(self.written_before <= self.written);
        self.written_before = self.written;
        debug_assert!(self.written_before <= self.round, "it covers no pointers of a round to come");
    }

    /// It ended: pointers that were written before it are durable.
    pub(crate) fn sync_ended(&mut self) {
        debug_assert!(self.written_before <= self.written);
        self.tables_durable = self.tables_durable.max(self.written_before);
        debug_assert!(self.tables_durable <= self.written);
    }

    /// It was the round's own: its data is durable.
    pub(crate) const fn data_durable(&mut self) {
        debug_assert!(self.durable <= self.round);
        self.durable = self.round;
        debug_assert!(self.durable < self.open, "what is written now is not durable");
    }

    /// The round's pointers are in the file; `nothing`: there were none to write.
    pub(crate) const fn pointers_written(&mut self, nothing: bool) {
        debug_assert!(self.tables_durable <= self.written && self.written <= self.round);
        let all_durable = self.tables_durable == self.written;
        self.written = self.round;
        debug_assert!(self.written < self.open, "pointers of the open window wait for the next round");
        if nothing && all_durable {
            self.tables_durable = self.written;
        }
    }

    /// As if they were durable: only where that rule is removed.
    pub(crate) const fn believe_durable(&mut self) {
        debug_assert!(self.written <= self.round);
        self.tables_durable = self.written;
    }

    /// Pointers of this window shall be written, and be durable if `durably`.
    pub(crate) fn demand(&mut self, window: u64, durably: bool) {
        debug_assert!(window <= self.open);
        self.demand = self.demand.max(window);
        if durably {
            self.demand_durable = self.demand_durable.max(window);
            debug_assert!(self.demand_durable <= self.demand, "what shall be durable shall be written");
        }
    }

    /// That was said of this window.
    pub(super) const fn is_demanded(&self, window: u64, durably: bool) -> bool {
        debug_assert!(window > 0 && window <= self.open, "something was written in it");
        window <= if durably { self.demand_durable } else { self.demand }
    }

    /// All that was written up to now shall be durable, though nothing may wait to be written.
    pub(crate) fn demand_sync(&mut self) {
        self.demand(self.open, false);
    }

    /// Everything shall be in order, and the header say so.
    pub(crate) const fn demand_clean(&mut self) {
        self.demand_clean = true;
    }

    /// Somebody waits for that; or not any more.
    pub(super) const fn still_clean(&mut self, wanted: bool) {
        debug_assert!(!wanted || self.demand_clean, "whoever waits for that has demanded it");
        self.demand_clean = wanted;
    }

    pub(crate) const fn wants_clean(&self) -> bool {
        self.demand_clean
    }

    /// Pointers shall be written that are not.
    pub(crate) const fn wants_pointers(&self) -> bool {
        debug_assert!(self.demand <= self.open, "nobody demands what is to come");
        self.demand > self.written
    }

    /// Or be durable.
    pub(super) const fn wants_more(&self) -> bool {
        debug_assert!(self.demand_durable <= self.open, "nobody demands what is to come");
        self.wants_pointers() || self.demand_durable > self.tables_durable
    }

    /// All that is wanted is written, and all that is written is durable.
    pub(crate) const fn all_durable(&self) -> bool {
        debug_assert!(self.tables_durable <= self.written);
        self.tables_durable == self.written && !self.wants_pointers()
    }

    /// The first invariant that does not hold.
    pub(super) fn check(&self) -> Result<(), String> {
        let order = [self.tables_durable, self.written, self.round];
        let good = order.is_sorted() && self.durable <= self.round && self.round < self.open;
        let demands = self.demand_durable <= self.demand && self.demand <= self.open;
        match good && demands && self.written_before <= self.written {
            true => Ok(()),
            false => Err(format!("windows are out of order: {self:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round with a sync of its own.
    fn round(windows: &mut Windows, nothing: bool) {
        windows.begin_round();
        windows.sync_begun();
        windows.sync_ended();
        windows.data_durable();
        windows.pointers_written(nothing);
        assert_eq!(windows.check(), Ok(()));
    }

    #[test]
    fn a_lone_flush_costs_two_syncs_and_a_stream_of_them_one_each() {
        let mut windows = Windows::new();
        windows.demand(1, true);
        assert!(windows.wants_pointers());
        round(&mut windows, false);
        assert!(!windows.wants_pointers() && windows.wants_more(), "written, and not durable");
        windows.demand(windows.open(), true);
        round(&mut windows, false);
        assert_eq!((windows.durable(), windows.written(), windows.tables_durable()), (2, 2, 1));
        round(&mut windows, true);
        assert_eq!((windows.written(), windows.tables_durable()), (3, 3), "this one had nothing to write");
        assert!(!windows.wants_more());
    }

    #[test]
    fn where_nothing_is_written_nothing_has_to_become_durable() {
        let mut windows = Windows::new();
        windows.demand_sync();
        assert!(windows.wants_more());
        round(&mut windows, true);
        assert!(windows.all_durable() && !windows.wants_more());
        windows.demand_clean();
        assert!(windows.wants_clean());
        windows.still_clean(false);
        assert!(!windows.wants_clean());
        windows.durable = 9;
        assert!(windows.check().is_err_and(|said| said.starts_with("windows are out of order")));
    }
}
