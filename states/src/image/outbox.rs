//! The I/O of an image: naming it, encoding tables that are written, and what follows when it ended.
//!
//! Knows: whose I/O is in flight, by its id. Must never know: why it was named.
//!
//! Invariants: an id is answered once; ids below `own_ids` are acbs' own, two an acb (its only I/O or its
//! head's fill, and its tail's), so that the hot path touches no second slab; a stale id is counted and
//! changes nothing.

use super::{Alarm, Image};
use crate::acb::Acb;
use crate::acb::State;
use crate::acb::request::Event;
use crate::acb::requests::Requests;
use crate::base::arena::Arena;
use crate::base::aside::Aside;
use crate::error::Error;
use crate::fault::Op;
use crate::io::{Io, IoId, IoOp, Outcome, Part};
use crate::machine::Machine;
use crate::rule::Rule;
use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// Whose I/O it is, if no acb's own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    /// A slice being loaded.
    Load(u32),
    /// A slice being written.
    Table(u32),
    /// The header, by the commit pipeline.
    Header,
    /// Of the commit pipeline.
    Sync,
    /// The file growing.
    Grow,
    /// What the file has behind its last cluster in use being cleared.
    Clear,
    /// The file being cut behind the data, before the dirty bit is cleared.
    Cut,
    /// The refcount table from this byte on.
    Reftable(u64),
    /// What a removed rule forbids, and nobody waits for; the refcount table from this byte on, if that is
    /// written.
    #[cfg(feature = "sabotage")]
    Spill(u64),
    /// Nothing: counts go down in more than one call.
    CountDown,
    /// A hole where clusters were: the first, how many.
    Punch(u64, u64),
    /// The old table of a copy, by L1 index,
    CopyRead(u64),
    /// and the new one.
    CopyWrite(u64),
    /// The L1 table that moves: the old one,
    L1Read,
    /// and the new one.
    L1Write,
}

/// I/O of a shared object that is in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct InFlight {
    pub(super) purpose: Purpose,
    pub(super) tried: Op,
    pub(super) offset: u64,
}

/// What goes out: I/O, answers, alarms; and whose I/O is in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Outbox {
    /// I/O of shared objects; its ids start behind `own_ids`.
    ios: Arena<InFlight>,
    /// Ids below this are acbs' own: two an acb.
    own_ids: u32,
    /// Of the ids of acbs' own I/O.
    generation: Aside<u32>,
    pub(super) io: VecDeque<Io>,
    pub(super) events: VecDeque<Event>,
    pub(super) alarms: VecDeque<Alarm>,
}

impl Outbox {
    /// Room for the I/O of so many acbs, `shared` of shared objects, and the answers of so many requests.
    pub(super) fn new(acbs: u32, shared: u32, requests: u32) -> Outbox {
        Outbox {
            ios: Arena::new(shared),
            own_ids: acbs * 2,
            generation: Aside(0),
            io: VecDeque::with_capacity(acbs as usize),
            events: VecDeque::with_capacity(requests as usize),
            alarms: VecDeque::new(),
        }
    }

    /// An I/O of a shared object.
    pub(super) fn emit(&mut self, purpose: Purpose, tried: Op, offset: u64, op: IoOp) {
        match self.ios.insert(InFlight { purpose, tried, offset }) {
            Some((index, generation)) => {
                self.io.push_back(Io { id: IoId { index: self.own_ids + index, generation }, op });
            }
            // the arena's limit is the sum of what may be in flight
            None => debug_assert!(false, "more I/O in flight than the limits allow"),
        }
    }

    /// An I/O of an acb's own: its only one, or the head's or the tail's fill.
    #[inline]
    pub(super) fn emit_own(&mut self, requests: &mut Requests, a: u32, part: Part, op: IoOp) {
        let acb = requests.acb_mut(a);
        if acb.pending == 0 {
            self.generation.0 = self.generation.0.wrapping_add(1);
            acb.io_generation = self.generation.0;
        }
        let bit = part as u8;
        debug_assert_eq!(acb.pending & (1 << bit), 0);
        acb.pending |= 1 << bit;
        let id = IoId { index: a * 2 + u32::from(bit), generation: acb.io_generation };
        self.io.push_back(Io { id, op });
    }

    /// The first I/O of an acb that has none in flight, and will have no other.
    #[inline]
    pub(super) fn emit_first(&mut self, acb: &mut Acb, a: u32, op: IoOp) {
        debug_assert_eq!(acb.pending, 0);
        let generation = self.generation.0.wrapping_add(1);
        self.generation.0 = generation;
        (acb.pending, acb.io_generation) = (1, generation);
        self.io.push_back(Io { id: IoId { index: a * 2, generation }, op });
    }

    /// The I/O of shared objects that is in flight.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &InFlight> {
        self.ios.iter().map(|(_, io)| io)
    }

    /// The I/O of a shared object with this id; None: it is an acb's own, or none.
    fn shared(&self, id: IoId) -> Option<&InFlight> {
        self.ios.find(id.index.checked_sub(self.own_ids)?)
    }

    /// It ended.
    fn take_shared(&mut self, id: IoId) -> Option<InFlight> {
        debug_assert!(!self.is_own(id));
        self.ios.remove(id.index - self.own_ids, id.generation)
    }

    /// Is it an acb's own?
    #[inline]
    fn is_own(&self, id: IoId) -> bool {
        id.index < self.own_ids
    }
}

impl Image {
    /// An acb's own I/O ended; with its last the acb goes on.
    #[inline]
    fn own_io_ended(&mut self, id: IoId, outcome: Outcome<'_>) {
        let (a, bit) = (id.index / 2, 1 << (id.index % 2));
        let known = self
            .requests
            .find(a)
            .is_some_and(|acb| acb.io_generation == id.generation && acb.pending & bit != 0);
        if !known {
            self.observed.counters.stale_completions += 1;
            return;
        }
        let acb = self.requests.acb_mut(a);
        acb.pending &= !bit;
        if let Outcome::Failed(errno) = outcome {
            let error = Error::Device { op: acb.state.operation(), offset: acb.host, errno };
            acb.error.get_or_insert_with(|| Box::new(error));
        }
        if acb.pending != 0 {
            if !self.options.sabotaged(Rule::WaitAllParts) {
                return;
            }
            acb.pending = 0;
        }
        if acb.state == State::ReadData && acb.run_end == acb.end && acb.error.is_none() {
            // the hot path: what `advance` would do
            return self.end_acb(a, None);
        }
        self.advance(a);
    }
}

impl Machine for Image {
    fn poll_io(&mut self) -> Option<Io> {
        self.outbox.io.pop_front()
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        let Some(io) = self.outbox.shared(id) else { return };
        match io.purpose {
            Purpose::Header => self.encode_header(buf),
            Purpose::Reftable(at) => self.encode_reftable(at, buf),
            #[cfg(feature = "sabotage")]
            Purpose::Spill(at) => self.encode_reftable(at, buf),
            Purpose::CopyWrite(l1_index) => self.encode_copy(l1_index, buf),
            Purpose::L1Write => self.encode_l1(buf),
            Purpose::Table(slot) => {
                let encode = self.layout.encoding();
                let slice = self.tables.slot(slot);
                let skip = ((io.offset - slice.host) / 8) as usize;
                slice.snapshot(&mut self.observed.scratch);
                #[cfg(feature = "sabotage")]
                self.break_snapshot(slot);
                let entries = self.observed.scratch.iter().skip(skip).copied().chain(core::iter::repeat(0));
                for (bytes, entry) in buf.chunks_exact_mut(8).zip(entries) {
                    bytes.copy_from_slice(&encode(entry));
                }
            }
            _ => debug_assert!(false, "only table writes are encoded"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if self.outbox.is_own(id) {
            self.own_io_ended(id, outcome);
            self.run_ready();
            if self.has_dead() {
                self.punch_dead();
                self.feed();
            }
            return;
        }
        let Some(io) = self.outbox.take_shared(id) else {
            self.observed.counters.stale_completions += 1;
            return;
        };
        let result = match outcome {
            #[cfg(feature = "sabotage")]
            Outcome::Failed(_) if self.ignores_failure(&io.purpose) => Ok(()),
            Outcome::Failed(errno) => Err(Error::Device { op: io.tried, offset: io.offset, errno }),
            Outcome::Done | Outcome::Table(_) => Ok(()),
        };
        match io.purpose {
            Purpose::Load(slot) => self.loaded(slot, outcome, result),
            Purpose::Table(slot) => self.table_written(slot, result),
            Purpose::Header => self.header_written(result),
            Purpose::Sync => self.synced(result),
            Purpose::Grow => self.grown(result),
            Purpose::Clear => self.space_cleared(&result),
            Purpose::Cut => self.cut_off(),
            Purpose::Reftable(_) => self.reftable_written(result),
            #[cfg(feature = "sabotage")]
            Purpose::Spill(_) => self.commit.unsynced = true,
            Purpose::CountDown => self.count_on(),
            Purpose::Punch(first, count) => self.punched(first, count, &result),
            Purpose::CopyRead(l1_index) => self.copy_read(l1_index, outcome, result),
            Purpose::CopyWrite(l1_index) => self.copy_written(l1_index, result),
            Purpose::L1Read => self.l1_read(outcome, result),
            Purpose::L1Write => self.l1_written(result),
        }
        self.feed();
        self.run_ready();
    }
}
