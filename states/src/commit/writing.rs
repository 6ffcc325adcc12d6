//! Slices on their way into the file: which are dirty, which a round writes, and how far it has got.
//!
//! Knows: slots, blocks. Must never know: what an entry says.
//!
//! Invariants:
//! * at most `TABLE_WRITES_MAX` writes are in flight, and one of a slice;
//! * what is written of a slice is one contiguous piece from the first to the last block that changed (QE9);
//! * a young change stays out of it until its window's data is durable (QE3).

use super::pipeline::{Commit, Phase};
use super::progress::TABLE_WRITES_MAX;
use crate::fault::Op;
use crate::io::IoOp;
use crate::options::Options;
use crate::outbox::{Due, Outbox, Purpose};
use crate::rule::Rule;
use crate::tables::cache::TableCache;
use crate::tables::slice::SliceState;
use alloc::vec::Vec;

impl Commit {
    /// A phase begins that writes these slices, or what it finds itself.
    pub(crate) fn begin_writing(
        &mut self,
        phase: Phase,
        slots: Vec<u32>,
        options: &Options,
        out: &mut Outbox,
    ) {
        debug_assert!(matches!(phase, Phase::Refcounts | Phase::Reftable | Phase::Tables));
        debug_assert!(
            self.writing.in_flight() == 0 || self.leaves_tables(options),
            "the phase before has ended"
        );
        (self.writing.cursor, self.writing.slots) = (0, slots);
        self.set_phase(phase, out);
    }

    /// The slices that are dirty: the round's pointers. False: there are none.
    pub(crate) fn begin_tables(&mut self, options: &Options, out: &mut Outbox) -> bool {
        self.writing.wrote = false;
        let mut slots = core::mem::take(&mut self.writing.slots);
        slots.clear();
        core::mem::swap(&mut slots, &mut self.writing.dirty);
        let some = !slots.is_empty();
        debug_assert!(self.writing.dirty.is_empty(), "what becomes dirty from now on is the next round's");
        self.begin_writing(Phase::Tables, slots, options, out);
        some
    }

    /// Names writes of slices up to the limit. True: all are written.
    pub(crate) fn write_slices(
        &mut self,
        tables: &mut TableCache,
        options: &Options,
        out: &mut Outbox,
    ) -> bool {
        let per_block = (options.align.max(512) / 8) as usize;
        let durable = match options.sabotaged(Rule::DataBeforePointer) {
            true => u64::MAX,
            false => self.windows.durable(),
        };
        while self.writing.in_flight() < TABLE_WRITES_MAX {
            let Some(&slot) = self.writing.slots.get(self.writing.cursor) else { break };
            self.writing.cursor += 1;
            tables.age(slot, durable, per_block);
            let slice = tables.slot(slot);
            debug_assert_eq!(slice.state, SliceState::Present);
            if slice.dirty == 0 {
                // all of it is younger than this round
                debug_assert_eq!(self.phase, Phase::Tables);
                self.writing.dirty.push(slot);
                continue;
            }
            self.write_slice(tables, slot, per_block as u64 * 8, out);
        }
        debug_assert!(self.writing.cursor <= self.writing.slots.len());
        let waits = self.writing.in_flight() > 0 && !self.leaves_tables(options);
        !waits && self.writing.cursor == self.writing.slots.len()
    }

    fn write_slice(&mut self, tables: &mut TableCache, slot: u32, block: u64, out: &mut Outbox) {
        let slice = tables.slot_mut(slot);
        let slice_bytes = slice.entries.len() as u64 * 8;
        debug_assert!(slice_bytes > 0, "what is dirty has entries");
        debug_assert!(slice.writing == 0 && slice.dirty != 0, "one write of a slice at a time");
        slice.writing = slice.dirty;
        slice.dirty = 0;
        slice.state = SliceState::Writing;
        let start = u64::from(slice.writing.trailing_zeros()) * block;
        let end = (u64::from(64 - slice.writing.leading_zeros()) * block).min(slice_bytes.max(block));
        debug_assert!(start < end);
        let (offset, len) = (slice.host + start, (end - start) as u32);
        self.writing.emitted();
        self.writing.wrote = true;
        out.counters.table_writes += 1;
        out.counters.table_bytes_written += u64::from(len);
        out.emit(Purpose::Table(slot), Op::WriteTable, offset, IoOp::WriteTable { offset, len });
    }

    /// The write of a slice ended. True: the slice is dirty still, and of the refcounts.
    pub(crate) fn slice_written(
        &mut self,
        tables: &mut TableCache,
        slot: u32,
        good: bool,
        out: &mut Outbox,
    ) -> bool {
        self.writing.ended();
        self.wrote();
        let slice = tables.slot_mut(slot);
        debug_assert_eq!(slice.state, SliceState::Writing);
        slice.state = SliceState::Present;
        let writing = core::mem::take(&mut slice.writing);
        debug_assert!(writing != 0, "a write covers blocks");
        if !good {
            slice.dirty |= writing;
            return false;
        }
        if !slice.is_dirty() {
            debug_assert!(tables.dirty > 0, "the slice was counted");
            tables.dirty -= 1;
            out.due |= Due::SLOTS;
            return false;
        }
        let counts = self.phase == Phase::Refcounts;
        if !counts {
            self.writing.dirty.push(slot);
        }
        counts
    }

    /// The pipeline goes on before the tables are written: only where that rule is removed.
    #[inline]
    pub(crate) fn leaves_tables(&self, options: &Options) -> bool {
        let (counts, tables) =
            (options.sabotaged(Rule::WaitMarkDirty), options.sabotaged(Rule::WaitUpdateL2));
        match self.phase {
            Phase::Refcounts => counts,
            Phase::Tables => tables,
            _ => counts || tables,
        }
    }

    /// All pointers of the round are written.
    pub(crate) fn tables_written(&mut self) {
        debug_assert_eq!(self.phase, Phase::Tables);
        debug_assert_eq!(self.writing.cursor, self.writing.slots.len(), "each slice had its turn");
        self.windows.pointers_written(!self.writing.wrote);
    }
}
