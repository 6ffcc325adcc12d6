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

use super::next::Next;
use super::value::Image;
use crate::acb::AcbIndex;
use crate::acb::request::{Event, Met, Request, RequestKind};
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::{Due, Purpose};
use crate::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use alloc::boxed::Box;

impl Image {
    /// No bitmap was made invalid since the image was opened (qcow2).
    pub fn keeps_bitmaps(&self) -> bool {
        debug_assert!(self.refcounted.is_none() || self.layout.shape().is_some(), "qcow2 alone has bitmaps");
        self.refcounted.as_deref().is_some_and(|counted| counted.header.bitmaps().is_some())
    }

    /// May the acb change the image now? If not, what becomes of it.
    #[cold]
    pub(super) fn may_change(&mut self, a: AcbIndex) -> Option<Next> {
        debug_assert!(self.health.is_held());
        if self.health.is_halted() {
            return Some(Next::fail(Error::Poisoned));
        }
        if self.health.is_stale() {
            self.clear_autoclear();
        }
        if self.health.is_clear() {
            return None;
        }
        self.requests.note(a, Met::WAITED);
        self.commit.wait_for_header(&mut self.requests, a, &mut self.outbox);
        Some(Next::Wait)
    }

    /// A bad pointer, or one to metadata, was found. If the image may be written nothing else changes in it,
    /// and (version 3) it says so.
    #[cold]
    pub(super) fn fail_lookup(&mut self, error: Box<Error>) -> Next {
        if matches!(*error, Error::Corrupt(_)) && !self.health.is_halted() && self.refcounted.is_some() {
            self.found_corrupt(&error);
            debug_assert!(self.health.is_halted(), "no change begins any more");
        }
        Next::Fail(error)
    }

    fn found_corrupt(&mut self, error: &Error) {
        debug_assert!(self.refcounted.is_some(), "of another format an entry fails its request alone");
        self.health.found_corrupt(error.clone());
        self.outbox.events.push_back(Event::Poisoned(error.clone()));
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        counted.quarantine.abandon();
        if counted.header.version >= 3 {
            counted.header.set_corrupt(true);
            // no guest data changes: bitmaps stay right
            counted.header.clear_autoclear(BITMAPS | RAW_DATA_FILE);
            self.commit.header_changed(&mut self.outbox);
        }
        if self.options.sabotaged(Rule::CommitAfterCorruption) {
            return self.poison_with(error.clone());
        }
        self.outbox.due |= Due::ROUND | Due::SLOTS;
        // what some of them wait for will not come any more
        if !self.space.is_growing() {
            self.space.answer(&mut self.requests, &Error::Poisoned);
        }
    }

    /// From now on reads only: memory knows mappings that the file may never have got.
    pub(super) fn poison_with(&mut self, error: Error) {
        debug_assert!(!self.options.read_only, "nothing was written");
        self.health.poison(error.clone());
        self.outbox.events.push_back(Event::Poisoned(error.clone()));
        self.commit.fail(&mut self.requests, &error);
        if !self.space.is_growing() {
            self.space.answer(&mut self.requests, &Error::Poisoned);
        }
        self.outbox.due |= Due::SLOTS | Due::JOB;
        debug_assert!(self.health.is_halted());
    }

    /// What the request may change is noted, if bitmaps are kept up.
    #[inline]
    pub(super) fn note_change(&mut self, request: &Request) {
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let Some(tracking) = &mut counted.tracking else { return };
        debug_assert!(!self.options.read_only, "what is read alone is not counted");
        match request.kind {
            RequestKind::Write
            | RequestKind::WriteCompressed
            | RequestKind::WriteZeroes
            | RequestKind::Discard => tracking.note(request.offset, request.offset + request.len),
            RequestKind::Empty => tracking.note(0, self.size),
            // a disk of another size has other bitmaps: these go, durably, before it changes
            RequestKind::Resize { .. } => {
                tracking.give_up();
                if counted.is_stale() {
                    self.health.stale_again();
                }
            }
            RequestKind::Read | RequestKind::Flush | RequestKind::Map => {}
            RequestKind::Quiesce | RequestKind::Close | RequestKind::Snapshot => {}
        }
    }

    /// Bitmaps that are kept up are in use, in the file, and the other bits cleared in memory; the next round
    /// writes the header.
    fn clear_autoclear(&mut self) {
        let tracking = self.refcounted.as_deref_mut().and_then(|counted| counted.tracking.as_mut());
        if let Some(tracking) = tracking {
            if let Some((offset, len)) = tracking.begin_mark() {
                let op = IoOp::WriteTable { offset, len };
                self.outbox.emit(Purpose::Marks, Op::WriteHeader, offset, op);
                if self.options.sabotaged(Rule::InUseFirst) {
                    self.health.ask();
                    self.health.clear_at_once();
                }
                return;
            }
            if tracking.is_marking() {
                return;
            }
        }
        self.clear_bits();
    }

    pub(super) fn encode_marks(&self, buf: &mut [u8]) {
        let tracking = self.refcounted.as_deref().and_then(|counted| counted.tracking.as_ref());
        debug_assert!(tracking.is_some(), "they are on their way");
        if let Some(tracking) = tracking {
            tracking.encode(buf);
        }
    }

    /// The directory says that bitmaps are in use, or a disk of another size has none of them.
    pub(super) fn marks_written(&mut self, result: Result<(), Error>) {
        if self.health.is_poisoned() {
            return;
        }
        if let Err(error) = result {
            return self.poison_with(error);
        }
        // a sync has to cover it
        self.commit.wrote();
        if let Some(tracking) = self.refcounted.as_deref_mut().and_then(|counted| counted.tracking.as_mut()) {
            tracking.marked();
        }
        if self.health.is_stale() && !self.health.is_halted() {
            self.clear_bits();
        }
    }

    fn clear_bits(&mut self) {
        debug_assert!(!self.options.read_only);
        self.clear_autoclear_bits();
        self.commit.header_changed(&mut self.outbox);
        self.health.ask();
        if self.options.sabotaged(Rule::AutoclearFirst) {
            self.health.clear_at_once();
        }
    }

    /// Nothing points to these clusters once the tables of `window` are durable (0: nothing ever did).
    pub(super) fn free_clusters(&mut self, run: ClusterRun, window: u64) {
        self.free(run, window, false);
    }

    /// Of several entries of the active tables that lead to a cluster one less does, once the tables of
    /// `window` are durable.
    pub(super) fn free_shared(&mut self, first: u64, window: u64) {
        debug_assert!(first > 0, "the header's cluster is never free");
        self.free(ClusterRun::new(first, 1), window, true);
    }

    fn free(&mut self, run: ClusterRun, window: u64, shared: bool) {
        debug_assert!(window <= self.commit.windows.open(), "no pointer is removed in a window to come");
        #[cfg(feature = "sabotage")]
        if window > 0 && self.options.sabotaged(Rule::PunchAfterRemoval) {
            self.punch_early(run);
        }
        let window = if self.options.sabotaged(Rule::FreeAfterRemoval) { 0 } else { window };
        if self.health.is_halted() {
            return;
        }
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.free(run, window, shared, &mut self.outbox);
        }
    }
}
