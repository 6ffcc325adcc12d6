//! The file cannot grow: what is free inside it is looked for, all of it, before anybody is told "no space".
//!
//! Knows: that acbs wait for space, what may still come free. Must never know: why the file cannot grow.
//!
//! Invariants:
//! * the acbs that wait for space are woken when something has come free, and are answered when nothing can
//!   come any more: all counts were looked at, no removal waits to be durable, nothing is on its way through
//!   quarantine; each look is bounded, and the next follows something that was loaded, written or cleared;
//! * what is found is cleared, not punched: its space stays the file's, so nobody else on the full file
//!   system gets it;
//! * of a device, which cannot grow by our doing, its length is asked for anew whenever something did not
//!   fit;
//! * as long as the file cannot grow, extents are one cluster: the free ones may be single.

use super::value::Image;
use crate::error::Error;
use crate::io::Outcome;
use crate::outbox::Due;
use crate::rule::Rule;
use crate::space::append::Grown;
use crate::space::kind::Punching;

/// So many looks, each at a few slices, are enough for one call.
const LOOKS: u32 = 64;

impl Image {
    /// A growth ended.
    pub(super) fn grown(&mut self, result: Result<(), Error>) {
        debug_assert!(self.space.is_growing());
        let grown = self.space.grown(result, &mut self.outbox);
        self.growth_ended(grown);
    }

    /// A device has told its length.
    pub(super) fn length_told(&mut self, outcome: Outcome<'_>, result: Result<(), Error>) {
        let told = match outcome {
            Outcome::Length(len) => Ok(len),
            _ => Err(result.err().unwrap_or(Error::Misuse("a length was asked for and not told"))),
        };
        let grown = self.space.told_length(told);
        debug_assert!(!self.space.is_growing(), "a device is asked again when somebody waits again");
        self.growth_ended(grown);
    }

    fn growth_ended(&mut self, grown: Grown) {
        debug_assert!(!self.options.read_only, "nothing grows that is read alone");
        match grown {
            Grown::Longer => {
                if let Some(counted) = self.refcounted.as_deref_mut() {
                    counted.starving = false;
                }
                // the new length must be durable before a pointer into it is (QE4)
                if !self.options.sabotaged(Rule::LengthBeforePointer) {
                    self.commit.wrote();
                }
                self.space.wake(&mut self.requests);
            }
            Grown::Less => {}
            Grown::Not(error) if self.space.has_rest() && !self.space.is_full() => {
                self.space.set_full(error);
                self.space.wake(&mut self.requests);
            }
            Grown::Not(error) if self.refcounted.is_some() => self.search_all(error),
            Grown::Not(error) => self.space.answer(&mut self.requests, &error),
        }
        // the dirty bit is not cleared before the growth in flight has ended
        self.outbox.due |= Due::ROUND;
    }

    /// A piece of the free end reads as zeros, or will not: then the file grows instead.
    pub(super) fn space_cleared(&mut self, result: &Result<(), Error>) {
        debug_assert!(self.space.is_growing());
        // durable before a pointer to it, as a hole is (QC6)
        self.hole_made();
        self.space.cleared(result.is_ok());
        match result {
            Err(error) if self.space.is_device() => self.space.answer(&mut self.requests, error),
            _ => self.space.wake(&mut self.requests),
        }
    }

    /// The sync that comes before the next pointer to it makes the hole durable too.
    fn hole_made(&mut self) {
        debug_assert!(!self.options.read_only, "no hole is made in what is read alone");
        if !self.options.sabotaged(Rule::HoleBeforePointer) {
            self.commit.wrote();
        }
    }

    /// A hole is there, or will not be.
    pub(super) fn punched(&mut self, hole: Punching, result: &Result<(), Error>) {
        debug_assert!(self.refcounted.is_some());
        self.hole_made();
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        match self.options.sabotaged(Rule::PunchedFirst) && result.is_ok() {
            true => counted.quarantine.forget_hole(hole),
            false => {
                let good = result.is_ok() || self.options.sabotaged(Rule::UnpunchedStays);
                counted.quarantine.punched(hole, good, counted.starving);
            }
        }
        self.outbox.due |= Due::PUNCH | Due::LOOK;
    }

    /// The file could not grow, for this reason.
    fn search_all(&mut self, error: Error) {
        debug_assert!(self.refcounted.is_some());
        let first = !self.space.is_full();
        self.space.set_full(error);
        let (begun, lies) = (self.space.used_end(), self.space.was_left());
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        if !counted.starving {
            counted.starving = true;
            if !lies {
                // clusters that came and went since the opening, and could not be punched
                counted.unseen.next = counted.unseen.next.min(counted.quarantine.take_unpunched());
                counted.unseen.end = counted.unseen.end.max(begun >> counted.header.cluster_bits);
            }
        }
        match first && counted.quarantine.total() > 0 {
            // enough for an acb that asks for less
            true => self.space.wake(&mut self.requests),
            false => self.outbox.due |= Due::FEED,
        }
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
        // the acbs that look again are told what is wrong with the counts
        if counted.quarantine.take_news() || counted.broken.is_some() {
            return self.space.wake(&mut self.requests);
        }
        if !self.health.is_halted() && self.search_on() {
            return;
        }
        let error = self.space.take_full().unwrap_or(Error::NoSpace);
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.starving = false;
        }
        self.space.answer(&mut self.requests, &error);
        debug_assert!(!self.space.is_full(), "whoever asks next has the file tried again");
    }

    /// Looks at counts until something is on its way, has to be loaded, or nothing is left.
    fn look_on_for_all(&mut self) {
        let Some((counted, mut cx)) = self.counting() else { return };
        for _ in 0..LOOKS {
            let before = counted.unseen.next;
            debug_assert!(before <= counted.unseen.end, "it looks up to the end");
            counted.look_for_free(&mut cx);
            if counted.quarantine.is_punching() || before == counted.unseen.next {
                return;
            }
        }
        // the rest in the embedder's next turn
        counted.pause_counting(cx.out);
    }

    /// Goes on with the search; can it still find something?
    fn search_on(&mut self) -> bool {
        debug_assert!(self.space.is_full() && !self.space.is_growing());
        self.demand_removals();
        let synced = self.commit.windows.durable() > 0;
        if !synced {
            self.commit.windows.demand_sync();
        }
        self.look_on_for_all();
        // a slot that the search lacks comes free with a round
        self.outbox.due |= Due::SOON | Due::ROUND;
        self.refcounted.as_deref().is_some_and(|counted| {
            let on_its_way = counted.quarantine.is_punching() || counted.quarantine.has_work();
            on_its_way || !synced || counted.unseen.next < counted.unseen.end
        })
    }
}
