//! The steps of a round that only qcow2 has: refcount blocks before the sync, the refcount table between
//! the sync and the tables.
//!
//! Knows: which of them the file lacks. Must never know: why clusters are counted.
//!
//! Invariants (docs/ordering.md):
//! * counts of what a round's pointers point to are written before the round's sync (QC1), unless the dirty
//!   bit says that they may be wrong (lazy refcounts, QC12);
//! * an entry of the refcount table is written when its block is durable (QC9), and is durable before a
//!   pointer to anything that the block counts is written;
//! * a new refcount table is complete and durable before the header leads to it, which is durable before
//!   the old one's clusters are free (QC10).

use super::commit::Phase;
use super::{Image, Purpose, TABLE_WRITES_MAX};
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::rule::Rule;

/// Bytes of a new refcount table that are written at once.
const CHUNK: u64 = 64 << 10;

impl Image {
    /// The counts go out, if they have to before the sync.
    pub(super) fn start_refcounts(&mut self) {
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::BlockBeforeReftable) {
            self.spill_reftable();
        }
        let lazy = self.counts_come_late() && self.tables.dirty * 2 < self.tables.capacity();
        let skip = lazy || self.options.sabotaged(Rule::RefcountBeforePointer) && !self.commit.wants_clean();
        let dirty = match self.refcounted.as_deref_mut() {
            Some(counted) if !skip && !counted.dirty.is_empty() => core::mem::take(&mut counted.dirty),
            _ => return self.start_sync(Phase::Sync),
        };
        self.begin_writing(Phase::Refcounts, dirty);
        self.show_phase();
        self.write_tables();
    }

    /// After the round's sync: entries of the refcount table whose blocks it made durable.
    pub(super) fn start_reftable(&mut self) {
        let durable = self.commit.durable();
        let moving = self.refcounted.as_deref().is_some_and(|counted| counted.moving.is_some());
        let lazy = self.counts_come_late() && !moving;
        if lazy || self.refcounted.as_deref().is_none_or(|counted| !counted.table_is_due(durable)) {
            return self.pointers_may_go();
        }
        self.begin_writing(Phase::Reftable, alloc::vec::Vec::new());
        self.write_reftable();
    }

    /// Names writes of the refcount table: the blocks that changed, or all of a new one.
    fn write_reftable(&mut self) {
        let (durable, align) = (self.commit.durable(), self.options.align.max(512));
        let Some(counted) = self.refcounted.as_deref() else { return };
        let moving = counted.moving.as_ref().filter(|moving| moving.is_due(durable));
        let (offset, step, moved) = match moving {
            Some(moving) => (moving.offset.unwrap_or(0), CHUNK, true),
            None => (counted.header.reftable_offset, u64::from(align), false),
        };
        let bytes = if moved { counted.table.len() * 8 } else { counted.file_entries() * 8 } as u64;
        let mut next = self.commit.cursor() as u64;
        while next * step < bytes && self.commit.writes_in_flight() < TABLE_WRITES_MAX {
            let (at, len) = (next * step, step.min(bytes - next * step));
            next += 1;
            let Some(counted) = self.refcounted.as_deref() else { return };
            let due = counted.changed.iter().any(|(index, window)| {
                let place = *index as u64 * 8;
                *window <= durable && place >= at && place < at + len
            });
            if !moved && !due {
                continue;
            }
            self.commit.write_named();
            let op = IoOp::WriteTable { offset: offset + at, len: len as u32 };
            self.outbox.emit(Purpose::Reftable(at), Op::WriteReftable, offset + at, op);
        }
        self.commit.set_cursor(next as usize);
        if self.commit.writes_in_flight() == 0 {
            match self.options.sabotaged(Rule::ReftableBeforeHeader) {
                true => self.reftable_durable(),
                false => self.start_sync(Phase::SyncReftable),
            }
        }
    }

    /// Entries from byte `at` of the refcount table on; those whose blocks are not durable are left out.
    pub(super) fn encode_reftable(&self, at: u64, buf: &mut [u8]) {
        let durable = self.commit.durable();
        let Some(counted) = self.refcounted.as_deref() else { return };
        let first = (at / 8) as usize;
        for (index, bytes) in (first..).zip(buf.chunks_exact_mut(8)) {
            let young =
                counted.changed.iter().any(|(changed, window)| *changed == index && *window > durable);
            let entry = if young { 0 } else { counted.table.get(index).copied().unwrap_or(0) };
            bytes.copy_from_slice(&entry.to_be_bytes());
        }
    }

    /// A write of the refcount table ended.
    pub(super) fn reftable_written(&mut self, result: Result<(), Error>) {
        self.commit.write_ended();
        self.commit.unsynced = true;
        if self.health.is_poisoned() {
            return;
        }
        match result {
            Err(error) => self.poison_with(error),
            Ok(()) => self.write_reftable(),
        }
    }

    /// The refcount table is durable: entries are no news any more; a new table needs the header to lead to
    /// it.
    pub(super) fn reftable_durable(&mut self) {
        let durable = self.commit.durable();
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let entries = match counted.moving.as_ref().filter(|moving| moving.is_due(durable)) {
            Some(_) => usize::MAX,
            None => counted.file_entries(),
        };
        counted.changed.retain(|(index, window)| *window > durable || *index >= entries);
        let Some(moving) = counted.moving.take_if(|moving| moving.is_due(durable)) else {
            return self.pointers_may_go();
        };
        let old = (counted.header.reftable_offset, u64::from(counted.header.reftable_clusters));
        counted.header.reftable_offset = moving.offset.unwrap_or(0);
        counted.header.reftable_clusters = moving.clusters as u32;
        self.commit.set_old_reftable(old);
        self.commit.set_phase(Phase::Switch);
        self.write_header(Op::WriteHeader);
    }

    /// The header leads to the new refcount table, durably: the old one's clusters are free.
    pub(super) fn switch_durable(&mut self) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let (offset, clusters) = self.commit.take_old_reftable();
        self.free_clusters(offset >> bits, clusters, 0);
        self.pointers_may_go();
    }

    /// Counts may be missing in the file: the bit that says so is set, or this round's header sets it.
    /// Without it they go out in time, as the header itself may be the pointer (a table that has moved).
    fn counts_come_late(&self) -> bool {
        self.uses_dirty_bit() && self.dirty_bit() && !self.commit.wants_clean()
    }

    /// Nothing of the refcounts is left to do, as far as it can be done now.
    pub(super) fn refcounts_settled(&self) -> bool {
        self.refcounted.as_deref().is_none_or(|counted| !counted.has_work())
    }
}
