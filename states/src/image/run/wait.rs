//! What an acb waits for before it can do anything: slices, room for them, space, sectors, clusters.
//!
//! Knows: which list an acb stands in. Must never know: why it needs what it waits for.
//!
//! Invariant: whoever waits here has written nothing yet: it looks again when it is woken.

use crate::acb::request::Met;
use crate::acb::waits::Wanted;
use crate::acb::{AcbIndex, State};
use crate::base::geometry::SliceNumber;
use crate::base::span::Span;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::Outcome;
use crate::outbox::Due;
use crate::rule::Rule;
use crate::space::allocate::Stop;
use crate::space::kind::Need;
use crate::tables::slice::SliceState;
use alloc::boxed::Box;

/// Host space.
pub(crate) struct Place {
    pub(crate) host: u64,
    /// It may hold anything.
    pub(crate) stale: bool,
}

impl Image {
    /// A slice is being loaded.
    pub(crate) fn wait_for_slice(&mut self, a: AcbIndex, slot: u32) -> Next {
        debug_assert_eq!(self.tables.slot(slot).state, SliceState::Loading);
        self.requests.note(a, Met::MISS);
        self.outbox.counters.misses += 1;
        self.requests.set_state(a, State::ReadL2);
        self.requests.wait_in(&mut self.tables.slot_mut(slot).waiters, a);
        Next::Wait
    }

    /// A load ended. Its waiters use the slice before anything can evict it: they go to the head of the ready
    /// queue.
    pub(crate) fn loaded(&mut self, slot: u32, outcome: Outcome<'_>, result: Result<(), Error>) {
        debug_assert_eq!(self.tables.slot(slot).state, SliceState::Loading);
        let number = SliceNumber(self.tables.slot(slot).number);
        let result = match (result, outcome) {
            (Ok(()), Outcome::Table(bytes)) => {
                self.tables.fill(slot, bytes, self.layout.decoding());
                self.cut_l1(slot, number);
                self.find_dangling(slot, number)
            }
            (Ok(()), _) => Err(Error::Misuse("a table read was completed without its bytes")),
            (Err(error), _) => Err(error),
        };
        let slice = self.tables.slot_mut(slot);
        debug_assert_eq!(slice.number, number.0, "a slot keeps its slice while that is loaded");
        if let Err(error) = &result {
            self.requests.fail_all(&slice.waiters, error);
        }
        self.requests.wake_first(&mut slice.waiters);
        if result.is_err() {
            self.tables.drop_slot(slot);
            if self.layout.geometry().is_some_and(|geometry| geometry.is_refcount(number))
                && let Some(counted) = self.refcounted.as_deref_mut()
            {
                counted.give_up_counting();
            }
        }
        self.outbox.due |= Due::SLOTS | Due::PUNCH | Due::LOOK | Due::ROUND;
    }

    /// The last slice of an L1 table may be read from beyond its end.
    fn cut_l1(&mut self, slot: u32, number: SliceNumber) {
        debug_assert!(!self.tables.slot(slot).is_dirty(), "nothing of it has changed yet");
        let (Some(geometry), Some(counted)) = (self.layout.geometry(), self.refcounted.as_deref()) else {
            return;
        };
        if geometry.is_l1(number) {
            let entries = u64::from(counted.header.l1_entries);
            self.tables.cut(slot, entries.saturating_sub(number.0 << geometry.l1_slice_bits));
        }
    }

    /// A slice of an image that may be written was just loaded: does it lead beyond the end of the file?
    fn find_dangling(&mut self, slot: u32, number: SliceNumber) -> Result<(), Error> {
        debug_assert_eq!(self.tables.slot(slot).number, number.0, "the slice that was loaded");
        let Some(pointers) = self.layout.pointers(number) else { return Ok(()) };
        if self.options.read_only || self.options.sabotaged(Rule::DanglingStaysDead) {
            return Ok(());
        }
        if self.dangling.search(self.tables.slot_mut(slot), pointers, self.space.found())? {
            self.space.distrust_found();
        }
        Ok(())
    }

    /// No slot of the cache is free, or too many mappings are uncommitted.
    pub(crate) fn wait_for_slot(&mut self, a: AcbIndex) -> Next {
        debug_assert!(!self.layout.is_raw(), "a raw image has no tables");
        if self.health.is_poisoned() {
            // dirty slices stay in memory for ever now: nothing will come free
            return Next::fail(Error::Poisoned);
        }
        self.waits.wait_for_slot(&mut self.requests, a);
        self.outbox.due |= Due::SOON;
        Next::Wait
    }

    /// May the acb change entries of this guest range now, by the gate in force? If not, it waits.
    pub(crate) fn pass_gate(&mut self, a: AcbIndex, guest: Span, new_table: bool) -> bool {
        debug_assert!(!guest.is_empty(), "clusters are meant");
        let table_span = self.layout.geometry().map_or(1 << 63, |geometry| geometry.table_span());
        let wanted = Wanted { guest, new_table, table_span };
        self.waits.pass_gate(&mut self.requests, a, wanted, &self.options)
    }

    /// May a write in place of this host range start? If not, the acb waits.
    #[inline]
    pub(crate) fn pass_sectors(&mut self, a: AcbIndex, host: Span, modifies: bool) -> bool {
        debug_assert!(!host.is_empty(), "a write has bytes");
        self.waits.pass_sectors(&mut self.requests, a, host, modifies, &self.options)
    }

    /// `len` bytes of space that reads as zeros; or what becomes of the acb: it waits, in `state` if it is
    /// for the file to grow, or has failed.
    pub(crate) fn allocate(&mut self, a: AcbIndex, len: u64, state: State) -> Result<u64, Next> {
        debug_assert!(len > 0);
        self.allocate_for(a, len, Need::Zeros, state).map(|place| place.host)
    }

    /// The same for what may need less than zeros.
    pub(crate) fn allocate_for(
        &mut self,
        a: AcbIndex,
        len: u64,
        need: Need,
        state: State,
    ) -> Result<Place, Next> {
        debug_assert!(len > 0, "nobody asks for nothing");
        let Some((counted, mut cx)) = self.counting() else { return self.append(a, len, need, state) };
        let bits = counted.header.cluster_bits;
        match counted.allocate(len, need, &mut cx) {
            Ok(space) => Ok(Place { host: space.run().first << bits, stale: space.is_stale() }),
            Err(stop) => Err(self.stopped(a, stop, state)),
        }
    }

    /// A place for `len` compressed bytes; or what becomes of the acb.
    pub(crate) fn allocate_packed(&mut self, a: AcbIndex, len: u64) -> Result<u64, Next> {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has compressed clusters");
        let borders = self.old_borders();
        let Some((counted, mut cx)) = self.counting() else { return Err(Next::fail(Error::NoSpace)) };
        match counted.allocate_packed(len, borders, &mut cx) {
            Ok(host) => Ok(host),
            Err(stop) => Err(self.stopped(a, stop, State::GrowFile)),
        }
    }

    /// There is no space for the acb now: it waits, in `state` if it is for the file to grow, or has failed.
    fn stopped(&mut self, a: AcbIndex, stop: Stop, state: State) -> Next {
        debug_assert!(self.refcounted.is_some(), "counts have stopped it");
        match stop {
            Stop::Grow { len, need, counts } => {
                let state = if counts { State::AllocRefcount } else { state };
                self.wait_for_space(a, (len, need), state)
            }
            Stop::Load(slot) => {
                self.requests.set_state(a, State::AllocRefcount);
                self.requests.wait_in(&mut self.tables.slot_mut(slot).waiters, a);
                Next::Wait
            }
            Stop::Slot => self.wait_for_slot(a),
            Stop::NoSpace => Next::fail(Error::NoSpace),
            Stop::Bad(error) => self.fail_lookup(Box::new(error)),
        }
    }

    /// Where nobody counts clusters: what lies behind all others.
    fn append(&mut self, a: AcbIndex, len: u64, need: Need, state: State) -> Result<Place, Next> {
        debug_assert!(self.refcounted.is_none(), "counted clusters are allocated by their counts");
        let synced = self.commit.windows.durable() > 0;
        if need == Need::Any && self.space.has_stale(len, synced) {
            return Ok(Place { host: self.space.take_stale(len), stale: true });
        }
        match self.space.has(len, &self.options, &mut self.outbox) {
            Ok(true) => {}
            Ok(false) => return Err(self.wait_for_space(a, (len, need), state)),
            Err(error) => return Err(Next::fail(error)),
        }
        let host = self.space.take(len, need, &mut self.outbox);
        debug_assert!(host.is_some());
        host.map(|host| Place { host, stale: false }).ok_or_else(|| Next::fail(Error::NoSpace))
    }

    fn wait_for_space(&mut self, a: AcbIndex, wanted: (u64, Need), state: State) -> Next {
        debug_assert!(wanted.0 > 0, "nobody waits for nothing");
        debug_assert!(matches!(state, State::GrowFile | State::AllocL2 | State::AllocRefcount));
        self.requests.set_state(a, state);
        self.space.wait(&mut self.requests, a, wanted, &mut self.outbox);
        Next::Wait
    }

    /// Gives back what an acb holds: its claim, its pin, its part in sector waits.
    #[inline]
    pub(crate) fn let_go(&mut self, a: AcbIndex) {
        if let Some(slot) = self.waits.let_go(&mut self.requests, a) {
            self.tables.unpin(slot, Rule::PinLink, &mut self.outbox);
        }
        debug_assert!(!self.requests.acb(a).held.any(), "it has given all of it back");
    }
}
