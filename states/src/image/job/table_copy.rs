//! Copies of L2 tables that are shared with a snapshot: a table changes only when its refcount is one.
//!
//! Knows: tables on their way from one place to another, a chunk at a time. Must never know: what the
//! entries mean.
//!
//! Invariants:
//! * one copy of a table at a time; whoever wants to change it waits for that;
//! * nothing of a shared table is changed in memory, so the file has all of it;
//! * the L1 entry changes when the copy is written, and is young like any other: it is written after the
//!   sync that makes the copy durable (QC2). The old table's count goes down when that is durable (QC4).

use crate::acb::State;
use crate::base::geometry::SliceNumber;
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::image::{Image, Purpose};
use crate::io::{IoOp, Outcome};
use crate::qcow2::{L1, entry};
use crate::rule::Rule;
use alloc::vec::Vec;

/// Bytes read and written at once.
const CHUNK: u64 = 64 << 10;
/// Copies at once.
pub(crate) const COPIES_MAX: usize = 8;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TableCopy {
    pub(crate) l1_index: u64,
    /// The slot of the L1 slice, which stays in the cache.
    pub(crate) l1_slot: u32,
    old: u64,
    new: u64,
    /// Bytes that are written.
    done: u64,
    chunk: Vec<u8>,
    pub(crate) waiters: Queue,
}

impl Image {
    /// The acb wants to change a table that is shared: it waits until there is a copy.
    pub(crate) fn copy_table(&mut self, a: u32, pos: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let l1_index = geometry.l1_index(pos);
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let copying = counted.copies.iter().position(|copy| copy.l1_index == l1_index);
        // beyond the limit it waits for any of them, and looks again
        let full = counted.copies.len() >= COPIES_MAX;
        if let Some(index) = copying.or_else(|| full.then_some(0)) {
            return self.wait_for_copy(a, index);
        }
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        let l1_slot = match self.tables.find(l1_number) {
            Some(slot) if self.tables.slot(slot).state != crate::tables::slice::SliceState::Loading => slot,
            Some(slot) => return self.wait_for_slice(a, slot),
            None => match self.load(l1_number, geometry.l1_slice_host(l1_number), &geometry) {
                crate::image::run::find::Lookup::Loading(slot) => return self.wait_for_slice(a, slot),
                _ => return self.wait_for_slot(a),
            },
        };
        let old = self.tables.slot(l1_slot).entries.get(l1_entry).copied().unwrap_or(0) & entry::OFFSET;
        debug_assert!(old != 0);
        // counts need slots of the cache, but not this one; where space is waited for, it is looked up again
        self.pin(l1_slot, Rule::PinL1);
        let new = self.allocate_counted(a, geometry.table_bytes, State::AllocL2);
        self.unpin_quietly(l1_slot, Rule::PinL1);
        let Some(new) = new else { return };
        self.pin(l1_slot, Rule::PinCopy);
        let copy =
            TableCopy { l1_index, l1_slot, old, new, done: 0, chunk: Vec::new(), waiters: Queue::new() };
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        counted.copies.push(copy);
        let index = counted.copies.len() - 1;
        self.read_chunk(index);
        self.wait_for_copy(a, index);
    }

    fn wait_for_copy(&mut self, a: u32, index: usize) {
        self.requests.note(a, crate::acb::request::Met::WAITED);
        self.requests.set_state(a, State::AllocL2);
        if let Some(copy) = self.refcounted.as_deref_mut().and_then(|counted| counted.copies.get_mut(index)) {
            self.requests.wait_in(&mut copy.waiters, a);
        }
    }

    fn read_chunk(&mut self, index: usize) {
        let bytes = self.layout.geometry().map_or(0, |geometry| geometry.table_bytes);
        let Some(copy) = self.refcounted.as_deref().and_then(|counted| counted.copies.get(index)) else {
            return;
        };
        let (offset, l1_index) = (copy.old + copy.done, copy.l1_index);
        // both are powers of two: there is no smaller last chunk
        let len = bytes.min(CHUNK) as u32;
        self.observed.counters.table_reads += 1;
        self.outbox.emit(Purpose::CopyRead(l1_index), Op::ReadL2, offset, IoOp::ReadTable { offset, len });
    }

    fn copy_index(&self, l1_index: u64) -> Option<usize> {
        self.refcounted.as_deref()?.copies.iter().position(|copy| copy.l1_index == l1_index)
    }

    /// A chunk of the old table was read.
    pub(crate) fn copy_read(&mut self, l1_index: u64, outcome: Outcome<'_>, result: Result<(), Error>) {
        let Some(index) = self.copy_index(l1_index) else { return };
        let Outcome::Table(bytes) = outcome else {
            let error = result.err().unwrap_or(Error::Misuse("a table read was completed without its bytes"));
            return self.copy_failed(index, &error);
        };
        if self.health.is_halted() {
            return self.copy_failed(index, &Error::Poisoned);
        }
        let Some(copy) = self.refcounted.as_deref_mut().and_then(|counted| counted.copies.get_mut(index))
        else {
            return;
        };
        copy.chunk.clear();
        copy.chunk.extend_from_slice(bytes);
        let (offset, len) = (copy.new + copy.done, copy.chunk.len() as u32);
        self.observed.counters.table_writes += 1;
        self.observed.counters.table_bytes_written += u64::from(len);
        self.outbox.emit(
            Purpose::CopyWrite(l1_index),
            Op::WriteTable,
            offset,
            IoOp::WriteTable { offset, len },
        );
    }

    /// The bytes of the chunk that is being written.
    pub(crate) fn encode_copy(&self, l1_index: u64, buf: &mut [u8]) {
        let copy = self.copy_index(l1_index).and_then(|index| self.refcounted.as_deref()?.copies.get(index));
        if let Some(bytes) = copy.and_then(|copy| copy.chunk.get(..buf.len())) {
            buf.copy_from_slice(bytes);
        }
    }

    /// A chunk of the new table was written.
    pub(crate) fn copy_written(&mut self, l1_index: u64, result: Result<(), Error>) {
        self.commit.unsynced = true;
        let Some(index) = self.copy_index(l1_index) else { return };
        let result = if self.health.is_corrupt() { result.and(Err(Error::Poisoned)) } else { result };
        if let Err(error) = result {
            return self.copy_failed(index, &error);
        }
        let bytes = self.layout.geometry().map_or(0, |geometry| geometry.table_bytes);
        let Some(copy) = self.refcounted.as_deref_mut().and_then(|counted| counted.copies.get_mut(index))
        else {
            return;
        };
        copy.done += copy.chunk.len() as u64;
        if copy.done < bytes {
            return self.read_chunk(index);
        }
        self.copy_done(index);
    }

    fn copy_failed(&mut self, index: usize, error: &Error) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let mut copy = counted.copies.swap_remove(index);
        self.requests.fail_all(&copy.waiters, error);
        self.requests.wake(&mut copy.waiters);
        self.unpin(copy.l1_slot, Rule::PinCopy);
        self.free_clusters(copy.new >> bits, 1, 0);
    }

    /// The copy is complete: the L1 entry leads to it, and so do the cached slices.
    fn copy_done(&mut self, index: usize) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let mut copy = counted.copies.swap_remove(index);
        // the old table is a snapshot's alone, or that of other entries; where nobody else counts it, its
        // cluster comes free
        counted.l2_tables.remove(copy.old, copy.l1_index);
        counted.l2_tables.add(copy.new, copy.l1_index, true);
        let shared =
            counted.header.snapshots == 0 && counted.l2_tables.shared_with(copy.old, copy.l1_index) > 0;
        let (_, l1_entry) = geometry.l1_slice(copy.l1_index);
        let window = self.commit.window;
        let value = L1::Table { host: copy.new, copied: true }.encode();
        self.set_entries(copy.l1_slot, l1_entry, 1, value, 0);
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::TableBeforeL1) {
            self.make_old(copy.l1_slot);
        }
        let first = geometry.l2_base + copy.l1_index * geometry.slices_per_table();
        for number in first..first + geometry.slices_per_table() {
            if let Some(slot) = self.tables.find(SliceNumber(number)) {
                let slice = self.tables.slot_mut(slot);
                debug_assert!(self.options.sabotaged(Rule::WaitAllocL2) || slice.shared && !slice.is_dirty());
                slice.host = slice.host - copy.old + copy.new;
                slice.shared = false;
            }
        }
        self.observed.counters.new_tables += 1;
        self.commit.unsynced = true;
        match shared {
            true => self.free_shared(copy.old >> geometry.cluster_bits, window),
            false => self.free_clusters(copy.old >> geometry.cluster_bits, 1, window),
        }
        self.requests.wake(&mut copy.waiters);
        self.unpin(copy.l1_slot, Rule::PinCopy);
    }

    /// Has the table to be copied before the entry at guest offset `pos` changes? (`pos` matters only where a
    /// rule is removed.)
    #[inline]
    pub(crate) fn must_copy(&self, slot: u32, pos: u64) -> bool {
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::SharedTable)
            || self.options.sabotaged(Rule::WaitAllocL2) && self.is_copying(pos)
        {
            return false;
        }
        let _ = pos;
        self.tables.slot(slot).shared
    }

    /// One reason more for a slice to stay in the cache; `rule` names it.
    pub(crate) fn pin(&mut self, slot: u32, rule: Rule) {
        self.tables.slot_mut(slot).pins += u32::from(!self.options.sabotaged(rule));
    }

    /// One reason less.
    pub(crate) fn unpin(&mut self, slot: u32, rule: Rule) {
        self.unpin_quietly(slot, rule);
        if self.tables.slot(slot).pins == 0 {
            self.wake_slot_waiters();
        }
    }

    /// The same, where nobody can have waited for it.
    pub(crate) fn unpin_quietly(&mut self, slot: u32, rule: Rule) {
        let pins = u32::from(!self.options.sabotaged(rule));
        let slice = self.tables.slot_mut(slot);
        debug_assert!(slice.pins >= pins);
        slice.pins -= pins;
    }
}
