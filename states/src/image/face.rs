//! The face of an image: requests go in, I/O and answers come out.
//!
//! Knows: what a caller may ask, whom an I/O that ended belongs to. Must never know: what follows from it.
//!
//! Invariants: every mutator ends with nothing ready and nothing due; a stale id is counted and changes
//! nothing.

use super::value::Image;
use crate::acb::request::{Event, HitEnded, Refused, Request, RequestId, RequestKind};
use crate::acb::{Source, State, Transition};
use crate::base::queue::NONE;
use crate::error::Error;
use crate::io::{Hit, Io, IoId, Outcome};
use crate::machine::Machine;
use crate::outbox::{Alarm, Due, Purpose, Timer};
use crate::rule::Rule;
use crate::tables::slice::SliceState;
use alloc::boxed::Box;

impl Image {
    /// Takes a request, or says why not.
    ///
    /// # Errors
    /// [`Refused::Busy`] while all slots are in use, [`Refused::Invalid`] for what can never be done.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refused> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        match self.begin_hit(&request) {
            Some(hit) => {
                self.outbox.emit_hit(hit, request.kind == RequestKind::Read, request.len);
                Ok(hit.request)
            }
            None => self.submit_no_hit(request),
        }
    }

    /// A read that is one read of the file, within one cluster that is there, or a write that is one write
    /// of it, of whole blocks: what `submit` and `poll_io` come to, at once, without a queue between. The
    /// embedder does the [`IoOp::ReadData`](crate::IoOp::ReadData) or
    /// [`IoOp::WriteData`](crate::IoOp::WriteData) of all its bytes, and says how it ended: with `end_hit`,
    /// or `handle_completion`. None: it is no such request, and nothing was done.
    #[inline]
    pub fn begin_hit(&mut self, request: &Request) -> Option<Hit> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        match request.kind {
            RequestKind::Read => self.begin_hit_of::<false>(request),
            RequestKind::Write if request.flags.is_empty() && self.may_write_at_once() => {
                self.begin_hit_of::<true>(request)
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn begin_hit_of<const WRITES: bool>(&mut self, request: &Request) -> Option<Hit> {
        if self.jobs.refuse() || self.requests.is_full() {
            return None;
        }
        let end = request.offset.checked_add(request.len).filter(|end| *end <= self.size)?;
        let host = self.hit::<WRITES>(request.offset, end)?;
        let generation = self.outbox.next_generation();
        let (a, acb, id) = self.requests.begin_hit::<WRITES>(request, host, generation);
        Some(Hit { request: id, acb, io: self.outbox.own_id(a, generation), host })
    }

    /// Nothing is in the way of a write in place.
    #[inline]
    fn may_write_at_once(&self) -> bool {
        let noted = || self.refcounted.as_deref().is_some_and(|counted| counted.tracking.is_some());
        !self.options.read_only && !self.health.is_held() && self.waits.has_no_modifiers() && !noted()
    }

    /// The I/O of a hit has ended without an error: what `handle_completion` and `poll_event` come to, at
    /// once. None: more follows than that the request has ended, and nothing was done.
    #[inline]
    pub fn end_hit(&mut self, id: IoId) -> Option<HitEnded> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        if !self.outbox.is_own(id) || !id.index.is_multiple_of(2) || self.has_dead() {
            return None;
        }
        let slot = id.index / 2;
        match self.requests.is_hit(slot)? {
            false => self.requests.end_hit::<false>(slot, id.generation),
            true if self.waits.has_no_modifiers() => {
                let ended = self.requests.end_hit::<true>(slot, id.generation)?;
                self.commit.wrote();
                Some(ended)
            }
            true => None,
        }
    }

    /// As `submit`, of a request that `begin_hit` said no to: it is not asked again.
    ///
    /// # Errors
    /// As of `submit`.
    #[inline(never)]
    pub fn submit_no_hit(&mut self, request: Request) -> Result<RequestId, Refused> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        // the common case at one glance, the reasons for a refusal apart
        let inside = request.offset.checked_add(request.len).is_some_and(|end| end <= self.size);
        let plain = matches!(request.kind, RequestKind::Read | RequestKind::Write);
        if !inside || self.jobs.refuse() || !plain || self.options.read_only {
            self.admit(&request)?;
        }
        if self.requests.is_full() {
            return Err(Refused::Busy);
        }
        let (pos, end) = match request.kind {
            RequestKind::Read
            | RequestKind::Write
            | RequestKind::WriteCompressed
            | RequestKind::WriteZeroes
            | RequestKind::Discard
            | RequestKind::Map => (request.offset, request.offset + request.len),
            RequestKind::Flush
            | RequestKind::Quiesce
            | RequestKind::Close
            | RequestKind::Resize { .. }
            | RequestKind::Snapshot
            | RequestKind::Empty => (0, 0),
        };
        debug_assert!(pos <= end && end <= self.size);
        self.note_change(&request);
        let (acb, id) = self.requests.begin(&request, pos, end);
        self.start(acb, request.kind);
        self.settle();
        Ok(id)
    }

    fn admit(&self, request: &Request) -> Result<(), Refused> {
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        if self.jobs.is_closing() {
            return Err(Refused::Invalid(Error::Closed));
        }
        if request.kind.changes() && self.options.read_only {
            return misuse("the image is open for reading only");
        }
        let (now, counted) = ((self.size, self.backing_len), self.refcounted.as_deref());
        match request.kind {
            RequestKind::Flush | RequestKind::Quiesce | RequestKind::Close => {}
            RequestKind::Resize { size } => {
                debug_assert_eq!((request.offset, request.len), (0, 0), "it has no range");
                self.layout.admit_resize(counted, now, size).map_err(Refused::Invalid)?;
            }
            RequestKind::Snapshot => self.admit_snapshot().map_err(Refused::Invalid)?,
            RequestKind::Empty if self.layout.is_raw() => return misuse("a raw image is never empty"),
            RequestKind::Empty if counted.is_some_and(|counted| counted.header.data_file_raw()) => {
                return misuse("an image whose data file is a raw disk is never empty");
            }
            RequestKind::Empty => debug_assert_eq!((request.offset, request.len), (0, 0), "it has no range"),
            _ if request.offset.checked_add(request.len).is_none_or(|end| end > self.size) => {
                return misuse("the range lies beyond the end of the disk");
            }
            RequestKind::WriteCompressed => {
                self.layout
                    .admit_compressed(request.offset, request.len, self.size)
                    .map_err(Refused::Invalid)?;
            }
            RequestKind::Read | RequestKind::Write | RequestKind::WriteZeroes => {}
            RequestKind::Discard | RequestKind::Map => {}
        }
        self.jobs.admits(request.kind, !self.options.sabotaged(Rule::Exclusive))
    }

    /// Begins nothing more for the requests with this `user` value: reads, writes, write-zeroes, discards and
    /// maps; the others run to their end. One that is left undone, or in part, ends with
    /// [`Error::Cancelled`]: of its range any part may have been done. How many are so.
    pub fn cancel(&mut self, user: u64) -> usize {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        self.requests.cancel(user)
    }

    /// There is I/O to poll.
    #[inline]
    pub fn has_io(&self) -> bool {
        !self.outbox.io.is_empty()
    }

    /// There is an event or a change of a timer to poll.
    #[inline]
    pub fn has_news(&self) -> bool {
        !self.outbox.events.is_empty() || !self.outbox.alarms.is_empty()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        self.outbox.events.pop_front()
    }

    /// The next change of a timer.
    pub fn poll_timeout(&mut self) -> Option<Alarm> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        self.outbox.alarms.pop_front()
    }

    /// The next transition, if tracing is on: from a ring of 4096, whose oldest go first.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        self.requests.poll_transition()
    }

    /// A timer ran out.
    pub fn handle_timeout(&mut self, timer: Timer) {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        if self.health.is_poisoned() {
            return;
        }
        self.commit.disarm(timer);
        match timer {
            Timer::Commit => {
                // removals are durable only with the sync after the next
                self.demand_removals();
                self.outbox.due |= Due::SOON;
            }
            // an allocation in flight would set it again at once
            Timer::NeedCheck if self.waits.has_no_claims() && !self.is_due() && !self.jobs.is_alone() => {
                self.commit.windows.demand_clean();
                self.outbox.due |= Due::ROUND;
            }
            Timer::NeedCheck => self.commit.arm_check(self.options.need_check_ms, &mut self.outbox),
        }
        self.settle();
    }

    /// What holds the file is gone, or cannot be trusted any more, says the embedder: from now on reads only,
    /// as after a failed sync. Nothing happens to an image that is so already, or is open for reading.
    pub fn poison(&mut self, error: Error) {
        if !self.health.is_poisoned() && !self.options.read_only {
            self.poison_with(error);
            self.settle();
        }
        debug_assert!(self.health.is_poisoned() || self.options.read_only);
    }

    /// An acb's own I/O ended; with its last the acb goes on.
    #[inline]
    fn own_io_ended(&mut self, id: IoId, outcome: Outcome<'_>) {
        let bit = 1 << (id.index % 2);
        let found = self.requests.find(id.index / 2);
        let known = found.filter(|(_, acb)| acb.io.generation == id.generation && acb.io.pending & bit != 0);
        let Some((a, _)) = known else {
            self.outbox.counters.stale_completions += 1;
            return;
        };
        let acb = self.requests.acb_mut(a);
        debug_assert!(acb.link == NONE, "its own I/O is all that it waits for");
        acb.io.pending &= !bit;
        match outcome {
            Outcome::Done | Outcome::Table(_) => {}
            // what cannot be compressed is written as it is
            Outcome::Failed(_) if acb.state == State::Compress => {}
            Outcome::Failed(errno) => {
                let error = Error::Device { op: acb.state.operation(), offset: acb.extent.host, errno };
                acb.error.get_or_insert_with(|| Box::new(error));
            }
            Outcome::Length(len) => self.jobs.tell_length(len),
            Outcome::Compressed(len) if acb.state == State::Compress => {
                acb.extent.source = Source::Packed(len);
            }
            Outcome::Compressed(_) => debug_assert!(false, "nothing was to be compressed"),
        }
        if acb.io.pending != 0 {
            if !self.options.sabotaged(Rule::WaitAllParts) {
                return;
            }
            acb.io.pending = 0;
        }
        self.advance(a);
    }

    /// Are there clusters that wait for requests in flight, or does anybody wait for clusters?
    #[inline]
    fn has_dead(&self) -> bool {
        self.refcounted.as_deref().is_some_and(|counted| counted.starving || counted.quarantine.has_dead())
    }

    fn encode_reftable(&self, at: u64, buf: &mut [u8]) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has one");
        if let Some(counted) = self.refcounted.as_deref() {
            counted.encode_table(at, self.commit.windows.durable(), buf);
        }
    }

    /// The embedder's next turn: the rest of the counts go down.
    fn count_on(&mut self) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone counts");
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.quarantine.resume();
        }
        self.outbox.due |= Due::COUNT;
    }
}

impl Machine for Image {
    fn poll_io(&mut self) -> Option<Io> {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        let changes = || self.outbox.io.front().is_some_and(|io| io.op.changes_file());
        debug_assert!(!self.options.read_only || !changes(), "what is read alone stays as it is");
        self.outbox.io.pop_front()
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        let Some(io) = self.outbox.shared(id) else { return };
        match io.purpose {
            Purpose::Header => self.encode_header(buf),
            Purpose::Reftable(at) => self.encode_reftable(at, buf),
            #[cfg(feature = "sabotage")]
            Purpose::Spill(at) => self.encode_reftable(at, buf),
            Purpose::CopyWrite(l1_index) => {
                if let Some(counted) = self.refcounted.as_deref() {
                    counted.copies.encode(l1_index, buf);
                }
            }
            Purpose::L1Write => self.encode_l1(buf),
            Purpose::Snapshot => self.encode_snapshot(buf),
            Purpose::Marks => self.encode_marks(buf),
            Purpose::Table(slot) => {
                let encode = self.layout.encoding();
                let slice = self.tables.slot(slot);
                debug_assert!(slice.state == SliceState::Writing && io.offset >= slice.host);
                let skip = ((io.offset - slice.host) / 8) as usize;
                slice.snapshot(&mut self.scratch);
                #[cfg(feature = "sabotage")]
                self.break_snapshot(slot);
                let entries = self.scratch.iter().skip(skip).copied().chain(core::iter::repeat(0));
                for (bytes, entry) in buf.chunks_exact_mut(8).zip(entries) {
                    bytes.copy_from_slice(&encode(entry));
                }
            }
            _ => debug_assert!(false, "only table writes are encoded"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        if matches!(outcome, Outcome::Done)
            && let Some(HitEnded { request, user, met }) = self.end_hit(id)
        {
            let done = Event::Done { request, user, result: Ok(()), met, extent: None };
            self.outbox.events.push_back(done);
            return;
        }
        if self.outbox.is_own(id) {
            self.own_io_ended(id, outcome);
            if self.has_dead() {
                self.outbox.due |= Due::PUNCH | Due::FEED;
            }
            return self.settle();
        }
        let Some(io) = self.outbox.take_shared(id) else {
            self.outbox.counters.stale_completions += 1;
            return;
        };
        let result = match outcome {
            #[cfg(feature = "sabotage")]
            Outcome::Failed(_) if self.ignores_failure(&io.purpose) => Ok(()),
            Outcome::Failed(errno) => Err(Error::Device { op: io.tried, offset: io.offset, errno }),
            Outcome::Done | Outcome::Table(_) | Outcome::Length(_) | Outcome::Compressed(_) => Ok(()),
        };
        match io.purpose {
            Purpose::Load(slot) => self.loaded(slot, outcome, result),
            Purpose::Table(slot) => self.table_written(slot, result),
            Purpose::Header => self.header_written(result),
            Purpose::Sync => self.synced(result),
            Purpose::Grow => self.grown(result),
            Purpose::Length => self.length_told(outcome, result),
            Purpose::Clear => self.space_cleared(&result),
            Purpose::Cut => self.cut_off(result),
            Purpose::Reftable(_) => self.reftable_written(result),
            #[cfg(feature = "sabotage")]
            Purpose::Spill(_) => self.commit.wrote(),
            Purpose::CountDown => self.count_on(),
            Purpose::Punch(hole) => self.punched(hole, &result),
            Purpose::CopyRead(l1_index) => self.copy_read(l1_index, outcome, result),
            Purpose::CopyWrite(l1_index) => self.copy_written(l1_index, result),
            Purpose::L1Read => self.l1_read(outcome, result),
            Purpose::L1Write => self.l1_written(result),
            Purpose::Snapshot => self.snapshot_answered(outcome, result),
            Purpose::Marks => self.marks_written(result),
        }
        self.outbox.due |= Due::FEED;
        if self.edit.is_some() {
            self.outbox.due |= Due::JOB;
        }
        self.settle();
    }
}
