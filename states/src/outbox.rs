//! What leaves a machine, and what it still owes: I/O, answers, alarms, counts; and what is due before a
//! mutator ends.
//!
//! Knows: whose I/O is in flight, by its id. Must never know: why it was named, or what follows when it ends.
//!
//! Invariants: an id is answered once; ids below `own_ids` are acbs' own, two an acb (its only I/O or its
//! head's fill, and its tail's), so that the hot path touches no second slab; between two mutators nothing
//! is due.

use crate::acb::request::Event;
use crate::acb::requests::Requests;
use crate::acb::{Acb, AcbIndex};
use crate::base::arena::Arena;
use crate::base::aside::Aside;
use crate::base::queue::NONE;
use crate::counters::Counters;
use crate::fault::Op;
use crate::io::{Hit, Io, IoId, IoOp, Part};
use crate::space::kind::Punching;
use alloc::collections::VecDeque;
use alloc::string::String;
use bitflags::bitflags;

bitflags! {
    /// What may have become possible, or is wanted, since that was last looked at: `image/settle.rs` sees to
    /// it.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub(crate) struct Due: u16 {
        /// The commit pipeline may have a reason for a round.
        const ROUND = 1;
        /// What is dirty shall be written, though nobody waits for it.
        const SOON = 1 << 1;
        /// A slot of the cache may be free.
        const SLOTS = 1 << 2;
        /// Counts may go down.
        const COUNT = 1 << 3;
        /// Clusters that are not counted any more may be punched.
        const PUNCH = 1 << 4;
        /// More free clusters may be found.
        const LOOK = 1 << 5;
        /// More space is wanted, or may be had now.
        const SPACE = 1 << 6;
        /// The states of those that wait for the pipeline may be another's.
        const SHOW = 1 << 7;
        /// Something has to be written after a while.
        const ARM = 1 << 8;
        /// A round has ended: timers are looked at.
        const REST = 1 << 9;
        /// Something was written that the next sync has to cover.
        const WROTE = 1 << 10;
        /// The round's tables are to be written.
        const TABLES = 1 << 12;
        /// Work on a snapshot may begin.
        const JOB = 1 << 13;
        /// Space that the file cannot give may have come free inside it.
        const FEED = 1 << 11;
    }
}

/// The timers of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// Write dirty tables after a while.
    Commit,
    /// Clear the need-check bit after a while.
    NeedCheck,
}

/// Set or clear a timer: a new alarm replaces the timer's old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Alarm {
    /// Which.
    pub timer: Timer,
    /// Milliseconds from now; None: off.
    pub after_ms: Option<u32>,
}

/// Whose I/O it is, if no acb's own.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Purpose {
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
    /// A device telling how long it is.
    Length,
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
    /// A hole where clusters were.
    Punch(Punching),
    /// The old table of a copy, by L1 index,
    CopyRead(u64),
    /// and the new one.
    CopyWrite(u64),
    /// The L1 table that moves: the old one,
    L1Read,
    /// and the new one.
    L1Write,
    /// A snapshot being made, applied or deleted, or a bitmap changed.
    Snapshot,
    /// The directory of bitmaps, which says that they are in use.
    Marks,
}

/// I/O of a shared object that is in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct InFlight {
    pub(crate) purpose: Purpose,
    pub(crate) tried: Op,
    pub(crate) offset: u64,
}

/// What goes out: I/O, answers, alarms; and whose I/O is in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Outbox {
    /// I/O of shared objects; its ids start behind `own_ids`.
    ios: Arena<InFlight>,
    /// Ids below this are acbs' own: two an acb.
    own_ids: u32,
    /// Of the ids of acbs' own I/O.
    generation: Aside<u32>,
    pub(crate) io: VecDeque<Io>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) alarms: VecDeque<Alarm>,
    pub(crate) counters: Aside<Counters>,
    pub(crate) due: Due,
}

impl Outbox {
    /// Room for the I/O of so many acbs, `shared` of shared objects, and the answers of so many requests.
    pub(crate) fn new(acbs: u32, shared: u32, requests: u32) -> Outbox {
        debug_assert!(acbs.checked_mul(2).is_some_and(|own| own.checked_add(shared).is_some()));
        Outbox {
            ios: Arena::new(shared),
            own_ids: acbs * 2,
            generation: Aside(0),
            io: VecDeque::with_capacity(acbs as usize),
            events: VecDeque::with_capacity(requests as usize),
            alarms: VecDeque::new(),
            counters: Aside::default(),
            due: Due::empty(),
        }
    }

    /// An I/O of a shared object.
    pub(crate) fn emit(&mut self, purpose: Purpose, tried: Op, offset: u64, op: IoOp) {
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
    pub(crate) fn emit_own(&mut self, requests: &mut Requests, a: AcbIndex, part: Part, op: IoOp) {
        let acb = requests.acb_mut(a);
        if acb.io.pending == 0 {
            self.generation.0 = self.generation.0.wrapping_add(1);
            acb.io.generation = self.generation.0;
        }
        debug_assert!(acb.link == NONE, "whoever stands in a list has no I/O");
        let bit = part as u8;
        debug_assert_eq!(acb.io.pending & (1 << bit), 0);
        acb.io.pending |= 1 << bit;
        debug_assert!(acb.io.pending <= 3, "two at most");
        let id = IoId { index: a.slot() * 2 + u32::from(bit), generation: acb.io.generation };
        debug_assert!(id.index < self.own_ids, "an acb's own id");
        self.io.push_back(Io { id, op });
    }

    /// For an acb that has no I/O in flight.
    #[inline]
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.generation.0 = self.generation.0.wrapping_add(1);
        self.generation.0
    }

    /// An I/O of an acb that has none in flight, and gets no other beside it.
    #[inline]
    pub(crate) fn emit_first(&mut self, acb: &mut Acb, a: AcbIndex, op: IoOp) {
        debug_assert_eq!(acb.io.pending, 0);
        debug_assert!(acb.link == NONE, "whoever stands in a list has no I/O");
        let generation = self.next_generation();
        debug_assert!(a.slot() * 2 < self.own_ids, "an acb's own id");
        (acb.io.pending, acb.io.generation) = (1, generation);
        self.io.push_back(Io { id: IoId { index: a.slot() * 2, generation }, op });
    }

    /// The I/O of a hit: a whole request of `len` bytes is one read, or one write.
    #[inline]
    pub(crate) fn emit_hit(&mut self, hit: Hit, reads: bool, len: u64) {
        debug_assert!(len > 0 && self.is_own(hit.io));
        let Hit { request, acb, io, host } = hit;
        let op = match reads {
            true => IoOp::ReadData { request, buffer_offset: 0, len, host },
            false => {
                IoOp::WriteData { acb, request, buffer_offset: 0, len, host, head: 0, tail: 0, zero: false }
            }
        };
        self.io.push_back(Io { id: io, op });
    }

    /// Names the only I/O of an acb.
    #[inline]
    pub(crate) fn own_id(&self, a: AcbIndex, generation: u32) -> IoId {
        debug_assert!(a.slot() * 2 < self.own_ids);
        IoId { index: a.slot() * 2, generation }
    }

    /// The I/O of shared objects that is in flight.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &InFlight> {
        debug_assert!(self.ios.len() <= self.ios.limit() as usize, "so many at once");
        self.ios.iter().map(|(_, io)| io)
    }

    /// The I/O of a shared object with this id; None: it is an acb's own, or none.
    pub(crate) fn shared(&self, id: IoId) -> Option<&InFlight> {
        debug_assert!(self.own_ids < u32::MAX, "ids of shared objects come behind");
        self.ios.find(id.index.checked_sub(self.own_ids)?)
    }

    /// It ended.
    pub(crate) fn take_shared(&mut self, id: IoId) -> Option<InFlight> {
        debug_assert!(!self.is_own(id));
        self.ios.remove(id.index - self.own_ids, id.generation)
    }

    /// Is it an acb's own?
    #[inline]
    pub(crate) fn is_own(&self, id: IoId) -> bool {
        id.index < self.own_ids
    }

    /// What of this is due, and is seen to now; the rest stays due.
    pub(crate) fn take_due(&mut self, which: Due) -> Due {
        let taken = self.due & which;
        self.due -= taken;
        debug_assert!(!self.due.intersects(which));
        taken
    }

    /// For the embedder to do, and nobody waits for it.
    pub(crate) fn tell(&mut self, op: IoOp) {
        debug_assert!(
            matches!(op, IoOp::ForgetCompressed { .. } | IoOp::ZeroBuffer { .. }),
            "no answer comes"
        );
        self.io.push_back(Io { id: IoId { index: u32::MAX, generation: 0 }, op });
    }

    /// The first invariant that does not hold between two mutators.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.due.is_empty() {
            true => self.ios.check(),
            false => Err(alloc::format!("{:?} is due, and nobody has seen to it", self.due)),
        }
    }
}
