//! The file cannot grow: what is free inside it is looked for, all of it, before anybody is told "no space".
//!
//! Knows: who waits for space, what may still come free. Must never know: why the file cannot grow.
//!
//! Invariants:
//! * those who wait for space are woken when something has come free, and are answered when nothing can come
//!   any more: all counts were looked at, no removal waits to be durable, nothing is on its way through
//!   quarantine; each look is bounded, and the next follows something that was loaded, written or cleared;
//! * what is found is cleared, not punched: its space stays the file's, so nobody else on the full file
//!   system gets it;
//! * as long as the file cannot grow, extents are one cluster: the free ones may be single.

use super::Image;
use crate::error::Error;

/// So many looks, each at a few slices, are enough for one call.
const LOOKS: u32 = 64;

impl Image {
    /// The file could not grow, for this reason.
    pub(super) fn search_all(&mut self, error: Error) {
        let first = !self.space.is_full();
        self.space.set_full(error);
        let (begun, lies) = (self.space.next(), self.space.was_left());
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        if !counted.starving {
            counted.starving = true;
            if !lies {
                // clusters that came and went since the opening, and could not be punched
                counted.unseen.0 = counted.unseen.0.min(counted.quarantine.take_unpunched());
                counted.unseen.1 = counted.unseen.1.max(begun >> counted.header.cluster_bits);
            }
        }
        if first && counted.quarantine.total() > 0 {
            // enough for somebody who asks for less
            return self.wake_waiters();
        }
        self.feed();
    }

    /// Something has happened that may have made space, or may go on making it.
    pub(super) fn feed(&mut self) {
        if !self.space.is_full() || self.space.is_growing() {
            return;
        }
        let waits = !self.space.waiters().is_empty();
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        if !waits {
            counted.starving = false;
            return;
        }
        // who looks again is told what is wrong with the counts
        if counted.quarantine.take_news() || counted.broken.is_some() {
            return self.wake_waiters();
        }
        if !self.health.is_halted() && self.search_on() {
            return;
        }
        let error = self.space.take_full().unwrap_or(Error::NoSpace);
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.starving = false;
        }
        self.answer_waiters(&error);
    }

    /// Looks at counts until something is on its way, has to be loaded, or nothing is left.
    fn look_on_for_all(&mut self) {
        for _ in 0..LOOKS {
            let before = self.refcounted.as_deref().map(|counted| counted.unseen.0);
            self.look_for_free();
            let Some(counted) = self.refcounted.as_deref() else { return };
            if counted.quarantine.is_punching() || before == Some(counted.unseen.0) {
                return;
            }
        }
        // the rest in the embedder's next turn
        self.pause_counting();
    }

    /// Goes on with the search; can it still find something?
    fn search_on(&mut self) -> bool {
        if let Some(window) = self.refcounted.as_deref().and_then(|counted| counted.quarantine.window()) {
            self.commit.demand_durable(window);
        }
        let synced = self.commit.durable() > 0;
        if !synced {
            self.commit.demand_sync();
        }
        self.look_on_for_all();
        // a slot that the search lacks comes free with a round
        self.commit_soon();
        self.kick();
        self.refcounted.as_deref().is_some_and(|counted| {
            let on_its_way = counted.quarantine.is_punching() || counted.quarantine.has_work();
            on_its_way || !synced || counted.unseen.0 < counted.unseen.1
        })
    }
}
