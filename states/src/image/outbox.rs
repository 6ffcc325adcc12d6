//! The I/O of an image: naming it, encoding tables that are written, and what follows when it ended.
//!
//! Knows: whose I/O is in flight, by its id. Must never know: why it was named.
//!
//! Invariants: an id is answered once; ids below `own_ids` are acbs' own, two an acb (its only I/O or its
//! head's fill, and its tail's), so that the hot path touches no second slab; a stale id is counted and
//! changes nothing.

use super::{Image, InFlight, Purpose};
use crate::acb::State;
use crate::error::Error;
use crate::fault::Op;
use crate::io::{Io, IoId, IoOp, Outcome, Part};
use crate::machine::Machine;
use crate::rule::Rule;
use alloc::boxed::Box;

impl Image {
    /// Names an I/O of a shared object.
    pub(super) fn emit_io(&mut self, purpose: Purpose, tried: Op, offset: u64, op: IoOp) {
        match self.ios.insert(InFlight { purpose, tried, offset }) {
            Some((index, generation)) => {
                self.out_io.push_back(Io { id: IoId { index: self.own_ids + index, generation }, op });
            }
            // the arena's limit is the sum of what may be in flight
            None => debug_assert!(false, "more I/O in flight than the limits allow"),
        }
    }

    /// Names an I/O of an acb's own: its only one, or the head's or the tail's fill.
    #[inline]
    pub(super) fn name_own(&mut self, a: u32, part: Part, op: IoOp) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if acb.pending == 0 {
            self.own_generation = self.own_generation.wrapping_add(1);
            acb.io_generation = self.own_generation;
        }
        let bit = part as u8;
        debug_assert_eq!(acb.pending & (1 << bit), 0);
        acb.pending |= 1 << bit;
        let id = IoId { index: a * 2 + u32::from(bit), generation: acb.io_generation };
        self.out_io.push_back(Io { id, op });
    }

    /// An acb's own I/O ended; with its last the acb goes on.
    #[inline]
    fn own_io_ended(&mut self, id: IoId, outcome: Outcome<'_>) {
        let (a, bit) = (id.index / 2, 1 << (id.index % 2));
        let known =
            self.acbs.find(a).is_some_and(|acb| acb.io_generation == id.generation && acb.pending & bit != 0);
        if !known {
            self.counters.stale_completions += 1;
            return;
        }
        let Some(acb) = self.acbs.get_mut(a) else { return };
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
        self.out_io.pop_front()
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        let Some(io) = id.index.checked_sub(self.own_ids).and_then(|index| self.ios.find(index)) else {
            return;
        };
        match io.purpose {
            Purpose::Header => self.encode_header(buf),
            Purpose::Reftable(at) => self.encode_reftable(at, buf),
            #[cfg(feature = "sabotage")]
            Purpose::Spill(at) => self.encode_reftable(at, buf),
            Purpose::CopyWrite(l1_index) => self.encode_copy(l1_index, buf),
            Purpose::L1Write => self.encode_l1(buf),
            Purpose::Table(slot) => {
                let big_endian = matches!(self.layout, super::Layout::Qcow2(..));
                let slice = self.tables.slot(slot);
                let skip = ((io.offset - slice.host) / 8) as usize;
                slice.snapshot(&mut self.scratch);
                #[cfg(feature = "sabotage")]
                self.break_snapshot(slot);
                let entries = self.scratch.iter().skip(skip).copied().chain(core::iter::repeat(0));
                for (bytes, entry) in buf.chunks_exact_mut(8).zip(entries) {
                    let entry = if big_endian { entry.to_be_bytes() } else { entry.to_le_bytes() };
                    bytes.copy_from_slice(&entry);
                }
            }
            _ => debug_assert!(false, "only table writes are encoded"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if id.index < self.own_ids {
            self.own_io_ended(id, outcome);
            self.run_ready();
            if self.has_dead() {
                self.punch_dead();
                self.feed();
            }
            return;
        }
        let Some(io) = self.ios.remove(id.index - self.own_ids, id.generation) else {
            self.counters.stale_completions += 1;
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
