//! Copies of tables that are shared with a snapshot, from the wish to change one to the L1 entry that leads
//! to the copy.
//!
//! Knows: which acb wants a copy, what follows when it is there. Must never know: how its bytes move
//! (`space/copies.rs`).
//!
//! Invariant: the L1 entry changes when the copy is written, and is young like any other: it is written after
//! the sync that makes the copy durable (QC2). The old table's count goes down when that is durable (QC4).

use crate::acb::request::Met;
use crate::acb::{AcbIndex, State};
use crate::base::geometry::SliceNumber;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::Outcome;
use crate::qcow2::{L1, entry};
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use crate::tables::slice::SliceState;

impl Image {
    /// The acb wants to change a table that is shared: it waits until there is a copy.
    pub(crate) fn copy_table(&mut self, a: AcbIndex, pos: u64) -> Next {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone shares tables");
        let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
        let l1_index = geometry.l1_index(pos);
        let Some(counted) = self.refcounted.as_deref_mut() else { return Next::On };
        if let Some(copy) = counted.copies.in_the_way(l1_index) {
            self.requests.note(a, Met::WAITED);
            self.requests.set_state(a, State::AllocL2);
            self.requests.wait_in(&mut copy.waiters, a);
            return Next::Wait;
        }
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        let l1_slot = match self.tables.find(l1_number) {
            Some(slot) if self.tables.slot(slot).state != SliceState::Loading => slot,
            Some(slot) => return self.wait_for_slice(a, slot),
            None => {
                let host = geometry.l1_slice_host(l1_number);
                return match self.tables.load(l1_number, host, &geometry, &mut self.outbox) {
                    Some(slot) => self.wait_for_slice(a, slot),
                    None => self.wait_for_slot(a),
                };
            }
        };
        let old = self.tables.slot(l1_slot).entries.get(l1_entry).copied().unwrap_or(0) & entry::OFFSET;
        debug_assert!(old != 0);
        // counts need slots of the cache, but not this one; where space is waited for, it is looked up again
        self.tables.pin(l1_slot, Rule::PinL1);
        let new = self.allocate(a, geometry.table_bytes, State::AllocL2);
        self.tables.unpin_quietly(l1_slot, Rule::PinL1);
        let new = match new {
            Ok(new) => new,
            Err(next) => return next,
        };
        self.tables.pin(l1_slot, Rule::PinCopy);
        self.requests.note(a, Met::WAITED);
        self.requests.set_state(a, State::AllocL2);
        if let Some(counted) = self.refcounted.as_deref_mut() {
            let (bytes, out) = (geometry.table_bytes, &mut self.outbox);
            let copy = counted.copies.begin((l1_index, l1_slot), (old, new), bytes, out);
            self.requests.wait_in(&mut copy.waiters, a);
        }
        Next::Wait
    }

    /// A chunk of the old table was read.
    pub(crate) fn copy_read(&mut self, l1_index: u64, outcome: Outcome<'_>, result: Result<(), Error>) {
        let Outcome::Table(bytes) = outcome else {
            let error = result.err().unwrap_or(Error::Misuse("a table read was completed without its bytes"));
            return self.copy_failed(l1_index, &error);
        };
        if self.health.is_halted() {
            return self.copy_failed(l1_index, &Error::Poisoned);
        }
        let copy = self.refcounted.as_deref_mut().and_then(|counted| counted.copies.find(l1_index));
        debug_assert!(copy.is_some());
        if let Some(copy) = copy {
            copy.write(bytes, &mut self.outbox);
        }
    }

    /// A chunk of the new table was written.
    pub(crate) fn copy_written(&mut self, l1_index: u64, result: Result<(), Error>) {
        self.commit.wrote();
        let result = if self.health.is_corrupt() { result.and(Err(Error::Poisoned)) } else { result };
        if let Err(error) = result {
            return self.copy_failed(l1_index, &error);
        }
        let bytes = self.layout.geometry().map_or(0, |geometry| geometry.table_bytes);
        let copy = self.refcounted.as_deref_mut().and_then(|counted| counted.copies.find(l1_index));
        debug_assert!(copy.is_some());
        if copy.is_some_and(|copy| copy.written(bytes, &mut self.outbox)) {
            self.copy_done(l1_index);
        }
    }

    fn copy_failed(&mut self, l1_index: u64, error: &Error) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone shares tables");
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let Some(mut copy) = counted.copies.end(l1_index) else { return };
        let bits = counted.header.cluster_bits;
        self.requests.fail_all(&copy.waiters, error);
        self.requests.wake(&mut copy.waiters);
        self.tables.unpin(copy.l1_slot, Rule::PinCopy, &mut self.outbox);
        self.free_clusters(ClusterRun::new(copy.new >> bits, 1), 0);
    }

    /// The copy is complete: the L1 entry leads to it, and so do the cached slices.
    fn copy_done(&mut self, l1_index: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let Some(mut copy) = counted.copies.end(l1_index) else { return };
        // the old table is a snapshot's alone, or that of other entries; where nobody else counts it, its
        // cluster comes free
        counted.map.remove_l2_table(copy.old, l1_index);
        counted.map.add_l2_table(copy.new, l1_index, true);
        let shared = counted.header.snapshots == 0 && counted.map.shared_with(copy.old, l1_index) > 0;
        debug_assert!(copy.new.is_multiple_of(geometry.table_bytes) && copy.new != copy.old);
        let (_, l1_entry) = geometry.l1_slice(l1_index);
        let window = self.commit.windows.open();
        let value = L1::Table { host: copy.new, copied: true }.encode();
        self.set_entries(copy.l1_slot, (l1_entry, 1), (value, 0));
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::TableBeforeL1) {
            self.make_old(copy.l1_slot);
        }
        let first = geometry.l2_base + l1_index * geometry.slices_per_table();
        for number in first..first + geometry.slices_per_table() {
            if let Some(slot) = self.tables.find(SliceNumber(number)) {
                let slice = self.tables.slot_mut(slot);
                debug_assert!(self.options.sabotaged(Rule::WaitAllocL2) || slice.shared && !slice.is_dirty());
                slice.host = slice.host - copy.old + copy.new;
                slice.shared = false;
            }
        }
        self.outbox.counters.new_tables += 1;
        self.commit.wrote();
        let old = copy.old >> geometry.cluster_bits;
        match shared {
            true => self.free_shared(old, window),
            false => self.free_clusters(ClusterRun::new(old, 1), window),
        }
        self.requests.wake(&mut copy.waiters);
        self.tables.unpin(copy.l1_slot, Rule::PinCopy, &mut self.outbox);
    }
}
