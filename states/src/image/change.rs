//! May the image be changed? The first change waits until the autoclear bits that quod does not keep up are
//! cleared (QC14, QC15); after a corruption, or a failure of metadata, nothing changes any more.
//!
//! An image that is opened and read stays as it is. The first request that may change it has the header
//! written with those bits cleared, and whoever may change something waits until that is durable.
//!
//! A corruption is found by one request in one entry. What was answered before it was right when it was
//! made, and a flush just before would have written it: it is still committed, by whatever would have
//! committed it. But no table, count or link changes in memory any more, and nothing is freed: space whose
//! owner is in doubt is not punched.
//!
//! Knows: why a change has to wait, or cannot be made any more. Must never know: what is changed.
//!
//! Invariants:
//! * `held` is set whenever a change has to wait or cannot be made: requests that change nothing, and those
//!   of an image without such bits, pay for no more than that one test;
//! * the corrupt bit goes out with a round's header, so that one header is in flight at a time.

use super::Image;
use crate::acb::State;
use crate::acb::Want;
use crate::acb::request::{Event, Kind, Met};
use crate::error::Error;
use crate::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use crate::rule::Rule;
use alloc::boxed::Box;

impl Image {
    /// No bitmap was made invalid since the image was opened (qcow2).
    pub fn keeps_bitmaps(&self) -> bool {
        self.refcounted.as_deref().is_some_and(|counted| counted.header.bitmaps().is_some())
    }

    /// What holds the file is gone, or cannot be trusted any more, says the embedder: from now on reads only,
    /// as after a failed sync. Nothing happens to an image that is so already, or is open for reading.
    pub fn poison(&mut self, error: Error) {
        if !self.health.is_poisoned() && !self.options.read_only {
            self.poison_with(error);
            self.run_ready();
        }
    }

    /// May the acb change the image now? If not, it waits or has ended.
    #[cold]
    pub(super) fn may_change(&mut self, a: u32) -> bool {
        if self.health.is_halted() {
            self.finish(a, Err(Error::Poisoned));
            return false;
        }
        if self.health.is_stale() {
            self.clear_autoclear();
        }
        if self.health.is_clear() {
            return true;
        }
        self.requests.note(a, Met::WAITED);
        self.requests.set_state(a, State::ClearAutoclear);
        self.requests.acb_mut(a).want = Want::Header;
        self.requests.wait_in(&mut self.commit.waiters, a);
        self.kick();
        false
    }

    /// A bad pointer, or one to metadata, was found by this acb. If the image may be written nothing else
    /// changes in it, and (version 3) it says so.
    pub(super) fn fail_lookup(&mut self, a: u32, error: Box<Error>) {
        if matches!(*error, Error::Corrupt(_))
            && !self.health.is_halted()
            && self.refcounted.as_deref().is_some()
        {
            self.found_corrupt(&error);
        }
        self.fail(a, error);
    }

    fn found_corrupt(&mut self, error: &Error) {
        self.health.found_corrupt(error.clone());
        self.outbox.events.push_back(Event::Poisoned(error.clone()));
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        counted.quarantine.abandon();
        if counted.header.version >= 3 {
            counted.header.set_corrupt(true);
            // no guest data changes: bitmaps stay right
            counted.header.clear_autoclear(BITMAPS | RAW_DATA_FILE);
            self.commit.header_dirty = true;
        }
        if self.options.sabotaged(Rule::CommitAfterCorruption) {
            return self.poison_with(error.clone());
        }
        self.kick();
        // what some of them wait for will not come any more
        if !self.space.is_growing() {
            self.answer_waiters(&Error::Poisoned);
        }
        self.wake_slot_waiters();
    }

    /// The bits are cleared in memory; the next round writes the header.
    fn clear_autoclear(&mut self) {
        self.clear_autoclear_bits();
        self.commit.header_dirty = true;
        self.health.ask();
        if self.options.sabotaged(Rule::AutoclearFirst) {
            self.health.clear_at_once();
            self.kick();
        }
    }

    /// `ClearAutoclear`: the bits are clear, durably, and the acb begins.
    pub(super) fn cleared(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.want = Want::Written;
        match acb.kind {
            Kind::Resize => {
                let size = acb.origin;
                self.resize(a, size);
            }
            _ => self.look(a),
        }
    }
}
