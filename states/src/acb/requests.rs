//! All requests of an image, their control blocks, and which of those are ready to go on.
//!
//! Knows: which acb works for which request, and what a state may follow. Must never know: what a step does,
//! where bytes lie.
//!
//! Invariants:
//! * an index that is kept anywhere names a live acb: whoever asks for it gets it;
//! * a request has as many acbs as it counts, one at least; with its last it ends, and is told once;
//! * an acb is in one list at most;
//! * `set_state` and `set_state_through` are the only assignments of a state.

use super::block::{Acb, AcbId, AcbIndex, Source};
use super::edges::{EdgeCounts, EdgeTable, Transition};
use super::request::{Event, Extent, Flags, HitEnded, Met, Request, RequestId, RequestKind};
use super::state::State;
use crate::base::arena::Arena;
use crate::base::aside::Aside;
use crate::base::queue::Queue;
use crate::base::span::Span;
use crate::error::Error;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

/// Transitions that are kept until they are polled; then the oldest is dropped, and counted.
const TRANSITIONS_MAX: usize = 4096;

/// An accepted request: what its extents have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Open {
    pub(crate) user: u64,
    /// Acbs that work for it.
    pub(crate) acbs: u32,
    pub(crate) met: Met,
    pub(crate) error: Option<Box<Error>>,
    pub(crate) extent: Option<Box<Extent>>,
}

/// Which steps were taken: it observes, and decides nothing.
#[derive(Clone, Debug)]
struct Steps {
    counts: EdgeCounts,
    trace: bool,
    kept: VecDeque<Transition>,
    lost: u64,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Requests {
    edges: EdgeTable,
    acbs: Arena<Acb>,
    open: Arena<Open>,
    ready: Queue,
    /// The acb of the request that waits for all others: close, empty, or a resize to less.
    closer: Option<AcbIndex>,
    steps: Aside<Steps>,
}

impl Requests {
    /// Room for so many of both. `trace`: transitions are kept.
    pub(crate) fn new(edges: EdgeTable, acbs: u32, requests: u32, trace: bool) -> Requests {
        debug_assert!(acbs > 0 && requests > 0);
        let steps = Aside(Steps { counts: EdgeCounts::new(), trace, kept: VecDeque::new(), lost: 0 });
        let (acbs, open) = (Arena::new(acbs), Arena::new(requests));
        Requests { edges, acbs, open, ready: Queue::new(), closer: None, steps }
    }

    /// There is no room for another request.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        debug_assert!(self.open.len() <= self.acbs.len(), "a request has an acb at least");
        self.open.is_full() || self.acbs.is_full()
    }

    /// Requests that were accepted and have not ended.
    pub(crate) fn len(&self) -> usize {
        debug_assert!(self.open.len() <= self.acbs.len(), "a request has an acb at least");
        self.open.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        debug_assert!(!self.open.is_empty() || self.acbs.is_empty(), "an acb works for a request");
        self.open.is_empty()
    }

    /// A request with its first acb, for `[pos, end)`. There is room, as the caller has seen (`is_full`).
    #[inline]
    pub(crate) fn begin(&mut self, request: &Request, pos: u64, end: u64) -> (AcbIndex, RequestId) {
        debug_assert!(!self.is_full());
        debug_assert!(pos <= end, "a range does not run backwards");
        let (a, id, _) = self.enter(request, pos, end, |_| {});
        (a, id)
    }

    #[inline(always)]
    fn enter(
        &mut self,
        request: &Request,
        pos: u64,
        end: u64,
        begin: impl Fn(&mut Acb),
    ) -> (AcbIndex, RequestId, u32) {
        let (index, generation) = match self.open.reuse() {
            Some((index, generation, open)) => {
                debug_assert!(open.error.is_none() && open.extent.is_none(), "both are taken when it ends");
                (open.user, open.acbs, open.met) = (request.user, 1, Met::empty());
                (index, generation)
            }
            None => {
                let open = Open { user: request.user, acbs: 1, met: Met::empty(), error: None, extent: None };
                // cannot fail: there is room
                self.open.insert(open).expect("room")
            }
        };
        let id = RequestId { index, generation };
        if let Some((a, generation, acb)) = self.acbs.reuse() {
            acb.renew(id, request, pos, end);
            begin(acb);
            return (AcbIndex(a), id, generation);
        }
        let mut acb = Acb::new(id, request, pos, end);
        begin(&mut acb);
        // cannot fail: nor is this slab full
        let (a, generation) = self.acbs.insert(acb).expect("room");
        (AcbIndex(a), id, generation)
    }

    /// As `begin`, of a request that is one transfer of the file, whole: in `ReadData` or `WriteData`, its
    /// I/O in flight.
    #[inline(always)]
    pub(crate) fn begin_hit<const WRITES: bool>(
        &mut self,
        request: &Request,
        host: u64,
        generation: u32,
    ) -> (AcbIndex, AcbId, RequestId) {
        let kind = if WRITES { RequestKind::Write } else { RequestKind::Read };
        debug_assert!(!self.is_full() && request.kind == kind);
        let (pos, end) = (request.offset, request.offset + request.len);
        debug_assert!(pos < end, "a hit moves something");
        let state = if WRITES { State::WriteData } else { State::ReadData };
        let (a, id, acb_generation) = self.enter(request, pos, end, |acb| {
            (acb.state, acb.met) = (state, Met::HIT);
            (acb.extent.end, acb.extent.host) = (end, host);
            (acb.io.pending, acb.io.generation) = (1, generation);
            if WRITES {
                let own = Span::new(pos, end);
                (acb.write.fill, acb.write.at, acb.write.unit) = (own, end, own);
            }
        });
        self.note_steps(a, State::Free, State::FindCluster, state);
        (a, AcbId { index: a.0, generation: acb_generation }, id)
    }

    /// In which of the states of a hit an acb is: true in `WriteData`, of a write that has nothing but the
    /// guest's bytes. None: in neither.
    #[inline(always)]
    pub(crate) fn is_hit(&self, slot: u32) -> Option<bool> {
        let acb = self.acbs.find(slot)?;
        match acb.state {
            State::ReadData => Some(false),
            State::WriteData if acb.is_plain_write() => Some(true),
            _ => None,
        }
    }

    /// The only I/O of an acb that is a hit has ended without an error: ends the acb and its request, if that
    /// is all that follows. None: it is not, and nothing was done.
    #[inline(always)]
    pub(crate) fn end_hit<const WRITES: bool>(&mut self, slot: u32, generation: u32) -> Option<HitEnded> {
        debug_assert_eq!(self.is_hit(slot), Some(WRITES));
        let state = if WRITES { State::WriteData } else { State::ReadData };
        let acb = self.acbs.find_mut(slot)?;
        if (acb.io.pending, acb.io.generation) != (1, generation)
            || acb.extent.end != acb.end
            || acb.error.is_some()
            || self.closer.is_some()
        {
            return None;
        }
        let (request, met) = (acb.request, acb.met);
        let open = self.open.get_mut(request.index);
        if open.acbs != 1 || open.error.is_some() || !open.met.is_empty() {
            return None;
        }
        debug_assert!(!acb.held.any() && open.extent.is_none());
        (acb.io.pending, acb.state) = (0, State::Free);
        let user = open.user;
        self.note_steps(AcbIndex(slot), state, State::Done, State::Free);
        self.acbs.discard(slot);
        self.open.discard(request.index);
        debug_assert!(self.open.len() <= self.acbs.len(), "a request has an acb at least");
        Some(HitEnded { request, user, met })
    }

    #[inline]
    pub(crate) fn acb(&self, a: AcbIndex) -> &Acb {
        self.acbs.get(a.0)
    }

    #[inline]
    pub(crate) fn acb_mut(&mut self, a: AcbIndex) -> &mut Acb {
        self.acbs.get_mut(a.0)
    }

    /// The live acb in a slot that was named from outside.
    #[inline]
    pub(crate) fn find(&self, slot: u32) -> Option<(AcbIndex, &Acb)> {
        self.acbs.find(slot).map(|acb| (AcbIndex(slot), acb))
    }

    /// All acbs, by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (AcbIndex, &Acb)> {
        self.acbs.iter().map(|(slot, acb)| (AcbIndex(slot), acb))
    }

    /// Names an acb to the outside.
    pub(crate) fn id(&self, a: AcbIndex) -> AcbId {
        AcbId { index: a.0, generation: self.acbs.generation(a.0) }
    }

    /// What stands for the run that a `Map` asked for.
    pub(crate) fn answer_map(&mut self, a: AcbIndex, extent: Extent) {
        let request = self.acb(a).request.index;
        debug_assert_eq!(self.acb(a).kind, RequestKind::Map);
        debug_assert!(self.open.get(request).extent.is_none(), "one run is asked for");
        self.open.get_mut(request).extent = Some(Box::new(extent));
    }

    /// The acb's next `len` bytes need nothing more.
    pub(crate) fn skip(&mut self, a: AcbIndex, len: u64) -> bool {
        debug_assert!(len > 0, "a step gets on");
        let acb = self.acb_mut(a);
        acb.pos += len;
        acb.extent.end = acb.pos;
        debug_assert!(acb.pos <= acb.end);
        true
    }

    /// Makes `[pos, pos + len)` the acb's extent in progress. What lies behind it goes to a sibling acb, so
    /// that the extents of one request run concurrently, or stays for later when there is none.
    pub(crate) fn take_run(&mut self, a: AcbIndex, len: u64, host: u64, met: Met) -> u64 {
        let acb = self.acb_mut(a);
        debug_assert!(acb.extent.end == acb.pos && acb.io.pending == 0, "one extent at a time");
        acb.met |= met;
        acb.extent.end = acb.pos + len;
        acb.extent.host = host;
        debug_assert!(acb.extent.end <= acb.end);
        if acb.extent.end < acb.end {
            self.split(a);
        }
        len
    }

    /// What lies behind the acb's extent in progress goes to a sibling, which is ready to go on; if there is
    /// room for one.
    #[cold]
    fn split(&mut self, a: AcbIndex) {
        if self.acbs.is_full() {
            return;
        }
        let acb = self.acb_mut(a);
        if acb.kind.is_job() {
            return;
        }
        let (sibling, request) = (acb.split(), acb.request.index);
        debug_assert_eq!(sibling.request.index, request, "a sibling works for the same request");
        debug_assert!(sibling.pos < sibling.end);
        // cannot fail: there is room, as was seen above
        let (sibling, _) = self.acbs.insert(sibling).expect("room");
        self.open.get_mut(request).acbs += 1;
        self.ready.push(&mut self.acbs, sibling);
    }

    /// Marks what the acb met.
    #[inline]
    pub(crate) fn note(&mut self, a: AcbIndex, met: Met) {
        self.acb_mut(a).met |= met;
    }

    /// The acb stands in a list from now on.
    pub(crate) fn wait_in(&mut self, queue: &mut Queue, a: AcbIndex) {
        debug_assert_eq!(self.acb(a).io.pending, 0, "an acb waits for one thing at a time");
        debug_assert!(
            !matches!(self.acb(a).state, State::Free | State::Done),
            "it has something to wait for"
        );
        queue.push(&mut self.acbs, a.0);
    }

    /// Takes the first out of a list.
    pub(crate) fn take_first(&mut self, queue: &mut Queue) -> Option<AcbIndex> {
        queue.pop(&mut self.acbs).map(AcbIndex)
    }

    /// All of a list are ready.
    pub(crate) fn wake(&mut self, queue: &mut Queue) {
        self.ready.append(&mut self.acbs, queue);
        debug_assert!(queue.is_empty());
    }

    /// And before those that are ready already.
    pub(crate) fn wake_first(&mut self, queue: &mut Queue) {
        self.ready.prepend(&mut self.acbs, queue);
        debug_assert!(queue.is_empty());
    }

    /// What all of a list wait for will not come; they stay in it.
    pub(crate) fn fail_all(&mut self, queue: &Queue, error: &Error) {
        debug_assert!(!matches!(error, Error::Cancelled), "nobody leaves a list for a cancel");
        queue.fail(&mut self.acbs, error);
    }

    /// This one is ready.
    pub(crate) fn ready(&mut self, a: AcbIndex) {
        debug_assert_eq!(self.acb(a).io.pending, 0);
        self.ready.push(&mut self.acbs, a.0);
    }

    /// Some are.
    #[inline]
    pub(crate) const fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next that is.
    #[inline]
    pub(crate) fn next_ready(&mut self) -> Option<AcbIndex> {
        self.ready.pop(&mut self.acbs).map(AcbIndex)
    }

    /// The members of a list, first to last.
    pub(crate) fn members<'a>(&'a self, queue: &'a Queue) -> impl Iterator<Item = AcbIndex> + 'a {
        queue.iter(&self.acbs).map(AcbIndex)
    }

    /// Does a request in flight use bytes of this host range?
    pub(crate) fn use_host(&self, host: Span) -> bool {
        debug_assert!(!host.is_empty());
        self.iter().filter(|(_, acb)| acb.io.pending != 0).any(|(_, acb)| {
            debug_assert!(acb.pos <= acb.extent.end, "an extent does not run backwards");
            let own = match acb.state {
                State::ReadData => host.overlaps(Span::at(acb.extent.host, acb.extent.end - acb.pos)),
                State::WriteData | State::ZeroData | State::ReadModify | State::CopyOnWrite => {
                    host.overlaps(acb.host_range())
                }
                _ => false,
            };
            let source = match acb.extent.source {
                Source::Host(old) => host.overlaps(Span::at(old, acb.write.fill.len())),
                Source::Compressed(at, len) => host.overlaps(Span::at(at, len.into())),
                Source::Zeros | Source::Backing | Source::Packed(_) => false,
            };
            own || source
        })
    }

    /// The acb goes on when its request is the only one.
    pub(crate) fn wait_for_others(&mut self, a: AcbIndex) {
        debug_assert!(self.closer.is_none());
        debug_assert_eq!(self.acb(a).state, State::WaitRequests);
        self.closer = Some(a);
    }

    /// The one that waits so.
    pub(crate) fn closer(&self) -> Option<AcbIndex> {
        self.closer
    }

    #[inline]
    pub(crate) fn set_state(&mut self, a: AcbIndex, next: State) {
        debug_assert!(next != State::Free || self.acb(a).io.pending == 0, "a slot is free without I/O");
        let acb = self.acb_mut(a);
        let from = core::mem::replace(&mut acb.state, next);
        debug_assert!(self.edges.allows(from, next), "no edge {from:?} -> {next:?}");
        self.steps.counts.count(from, next);
        if self.steps.trace {
            self.record(a, from, next);
        }
    }

    /// Two steps at once: through `via`, where nothing is waited for, to `next`.
    #[inline]
    pub(crate) fn set_state_through(&mut self, a: AcbIndex, via: State, next: State) {
        debug_assert!(via != next, "two steps");
        let acb = self.acb_mut(a);
        let from = core::mem::replace(&mut acb.state, next);
        self.note_steps(a, from, via, next);
    }

    /// Two steps were taken.
    #[inline(always)]
    fn note_steps(&mut self, a: AcbIndex, from: State, via: State, to: State) {
        debug_assert!(self.edges.allows(from, via), "no edge {from:?} -> {via:?}");
        debug_assert!(self.edges.allows(via, to), "no edge {via:?} -> {to:?}");
        debug_assert_eq!(self.acb(a).state, to, "they were taken");
        self.steps.counts.count(from, via);
        self.steps.counts.count(via, to);
        if self.steps.trace {
            self.record(a, from, via);
            self.record(a, via, to);
        }
    }

    #[cold]
    fn record(&mut self, a: AcbIndex, from: State, to: State) {
        let (acb, request) = (self.id(a), self.acb(a).request);
        let steps = &mut *self.steps;
        debug_assert!(steps.kept.len() <= TRANSITIONS_MAX, "so many are kept");
        if steps.kept.len() == TRANSITIONS_MAX {
            steps.kept.pop_front();
            steps.lost += 1;
        }
        steps.kept.push_back(Transition { acb, request, from, to });
    }

    /// The next transition that nobody has polled.
    pub(crate) fn poll_transition(&mut self) -> Option<Transition> {
        debug_assert!(self.steps.kept.len() <= TRANSITIONS_MAX, "so many are kept");
        self.steps.kept.pop_front()
    }

    /// Transitions that nobody polled in time.
    pub(crate) fn lost_transitions(&self) -> u64 {
        self.steps.lost
    }

    /// How often each edge was taken.
    pub(crate) fn edge_counts(&self) -> &EdgeCounts {
        &self.steps.counts
    }

    /// The acb goes; with its last acb the request ends, and says so.
    #[inline]
    pub(crate) fn end(&mut self, a: AcbIndex, error: Option<Box<Error>>, events: &mut VecDeque<Event>) {
        let acb = self.acb(a);
        debug_assert_eq!(acb.state, State::Free);
        debug_assert!(acb.io.pending == 0 && !acb.held.any());
        let (id, met) = (acb.request, acb.met);
        debug_assert!(self.acbs.len() >= self.open.len(), "a request has an acb at least");
        self.acbs.discard(a.0);
        let open = self.open.get_mut(id.index);
        open.met |= met;
        if error.is_some() && open.error.is_none() {
            open.error = error;
        }
        debug_assert!(open.acbs > 0);
        open.acbs -= 1;
        if open.acbs > 0 {
            return;
        }
        let result = match open.error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        };
        let (user, met, extent) = (open.user, open.met, open.extent.take());
        events.push_back(Event::Done { request: id, user, result, met, extent });
        self.open.discard(id.index);
        if self.open.len() == 1
            && let Some(closer) = self.closer.take()
        {
            debug_assert_eq!(self.acb(closer).state, State::WaitRequests);
            self.ready.push(&mut self.acbs, closer.0);
        }
    }

    /// Begins nothing more for the requests with this `user` value; how many are left undone, or in part.
    ///
    /// I/O in flight and extents in progress go on to their end: a cancelled write leaves an image as one
    /// that failed there does. Nobody leaves a list: an acb that waits is answered when what it waits for
    /// has happened.
    pub(crate) fn cancel(&mut self, user: u64) -> usize {
        let mut cancelled = 0;
        for slot in 0..self.acbs.limit() {
            let Some((a, acb)) = self.find(slot) else { continue };
            let index = acb.request.index;
            if self.open.get(index).user != user || !self.acb_mut(a).cancel() {
                continue;
            }
            let open = self.open.get_mut(index);
            if open.error.is_none() {
                open.error = Some(Box::new(Error::Cancelled));
                cancelled += 1;
                debug_assert!(cancelled <= self.open.len(), "a request is cancelled once");
            }
        }
        cancelled
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.ready.is_empty() {
            return Err(String::from("the ready queue is not empty"));
        }
        self.acbs.check().map_err(|said| format!("acbs: {said}"))?;
        self.open.check().map_err(|said| format!("requests: {said}"))?;
        for (a, acb) in self.iter() {
            if acb.pos > acb.extent.end || acb.extent.end > acb.end {
                return Err(format!("acb {a} has a range that runs backwards"));
            }
        }
        for (index, open) in self.open.iter() {
            let acbs = self.iter().filter(|(_, acb)| acb.request.index == index).count();
            if acbs != open.acbs as usize || acbs == 0 {
                return Err(format!("request {index} counts {} acbs, there are {acbs}", open.acbs));
            }
        }
        Ok(())
    }
}

impl Acb {
    /// Begins nothing more; is something left undone now?
    fn cancel(&mut self) -> bool {
        if matches!(
            self.kind,
            RequestKind::Flush
                | RequestKind::Quiesce
                | RequestKind::Close
                | RequestKind::Resize { .. }
                | RequestKind::Empty
        ) {
            return false;
        }
        // an acb that waits has no extent in progress: woken, it looks again, and finds nothing left to do
        let more = self.extent.end < self.end;
        debug_assert!(self.pos <= self.extent.end && self.extent.end <= self.end, "no range runs backwards");
        self.end = self.extent.end;
        if more {
            // what was not asked for any more need not be durable
            self.flags.remove(Flags::FUA);
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Requests {
        Requests::new(EdgeTable::QCOW2, 3, 2, true)
    }

    fn begin(requests: &mut Requests, user: u64, end: u64) -> AcbIndex {
        let request = Request { kind: RequestKind::Write, offset: 0, len: end, flags: Flags::FUA, user };
        requests.begin(&request, 0, end).0
    }

    fn finish(requests: &mut Requests, a: AcbIndex, error: Option<Error>) -> VecDeque<Event> {
        let mut events = VecDeque::new();
        requests.set_state_through(a, State::Done, State::Free);
        requests.end(a, error.map(Box::new), &mut events);
        events
    }

    #[test]
    fn a_request_ends_with_its_last_acb_and_the_first_error() {
        let mut requests = requests();
        let a = begin(&mut requests, 7, 4096);
        requests.set_state(a, State::FindCluster);
        requests.take_run(a, 512, 0, Met::HIT);
        let sibling = requests.next_ready().unwrap();
        assert_eq!((requests.acb(sibling).pos, requests.acb(a).end), (512, 512));
        assert_eq!(requests.check(), Ok(()));
        requests.skip(a, 512);
        assert_eq!(finish(&mut requests, a, Some(Error::NoSpace)), []);
        requests.set_state(sibling, State::FindCluster);
        requests.note(sibling, Met::WAITED);
        let events = finish(&mut requests, sibling, Some(Error::Poisoned));
        let [Event::Done { user: 7, result: Err(error), met, .. }] =
            &events.into_iter().collect::<alloc::vec::Vec<_>>()[..]
        else {
            panic!("one answer");
        };
        assert_eq!((&**error, *met), (&Error::NoSpace, Met::HIT | Met::WAITED));
        assert!(requests.is_empty());
    }

    #[test]
    fn who_waits_for_all_others_goes_on_when_they_have_ended() {
        let mut requests = requests();
        let (first, second) = (begin(&mut requests, 1, 512), begin(&mut requests, 2, 512));
        assert!(requests.is_full());
        requests.set_state(first, State::WaitRequests);
        requests.wait_for_others(first);
        assert_eq!((requests.closer(), requests.next_ready()), (Some(first), None));
        finish(&mut requests, second, None);
        assert_eq!((requests.closer(), requests.next_ready()), (None, Some(first)));
    }

    #[test]
    fn a_cancelled_request_keeps_its_extent_in_progress_and_no_promise() {
        let mut requests = requests();
        let a = begin(&mut requests, 7, 4096);
        let other = begin(&mut requests, 8, 4096);
        requests.acb_mut(a).extent.end = 512;
        assert_eq!(requests.cancel(7), 1);
        assert_eq!((requests.acb(a).end, requests.acb(a).flags), (512, Flags::empty()));
        assert_eq!((requests.acb(other).end, requests.acb(other).flags), (4096, Flags::FUA));
        assert_eq!(requests.cancel(7), 0, "nothing more is left undone");
    }

    #[test]
    fn the_check_sees_requests_that_are_counted_wrong() {
        let sees = |wrong: fn(&mut Requests), said: &str| {
            let mut requests = requests();
            begin(&mut requests, 7, 4096);
            wrong(&mut requests);
            assert_eq!(requests.check(), Err(String::from(said)));
        };
        sees(|requests| requests.ready(AcbIndex::FIRST), "the ready queue is not empty");
        sees(
            |requests| requests.acb_mut(AcbIndex::FIRST).extent.end = 4097,
            "acb 0 has a range that runs backwards",
        );
        sees(|requests| requests.acb_mut(AcbIndex::FIRST).pos = 1, "acb 0 has a range that runs backwards");
        let counts = |requests: &mut Requests| requests.open.get_mut(0).acbs = 2;
        sees(counts, "request 0 counts 2 acbs, there are 1");
        let lost = |requests: &mut Requests| {
            let open = requests.open.get_mut(0).clone();
            requests.open.insert(Open { acbs: 0, ..open }).unwrap();
        };
        sees(lost, "request 1 counts 0 acbs, there are 0");
    }

    #[test]
    fn the_oldest_transitions_go_first() {
        let mut requests = requests();
        let a = begin(&mut requests, 7, 512);
        for _ in 0..TRANSITIONS_MAX {
            requests.set_state(a, State::FindCluster);
            requests.set_state(a, State::ReadL2);
            requests.acb_mut(a).state = State::Free;
        }
        assert_eq!(requests.lost_transitions() as usize, TRANSITIONS_MAX);
        assert_eq!(requests.edge_counts().get(State::Free, State::FindCluster) as usize, TRANSITIONS_MAX);
        let kept = core::iter::from_fn(|| requests.poll_transition()).count();
        assert_eq!(kept, TRANSITIONS_MAX);
    }
}
