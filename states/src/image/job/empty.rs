//! An image that shall hold nothing: its clusters are given up, then its tables, and the backing layer shows.
//!
//! Entries go first (qcow2: each cluster is counted), the tables with the L1 entries that lead to them, and
//! then what the cache knows of those. Each of these changes leaves the disk as it is for whoever finds there
//! what the image held until now: a merge, which has copied it to the backing file, durably. Snapshots keep
//! what they have. QED counts nothing: its tables go, and the file is cut behind the L1 table (QE13).
//!
//! Knows: L1 entries, where they lead. Must never know: how entries change (`unmap.rs`), why the image shall
//! be empty.
//!
//! Invariants:
//! * it runs alone: it waits for all that is in flight, and nothing is accepted meanwhile;
//! * a table's space is free when the entry that led to it is gone, durably (QC4); QED's file is cut then;
//! * no slice of a table that is gone is left in the cache when it ends.

use crate::acb::job::Emptying;
use crate::acb::{AcbIndex, State, Want};
use crate::base::geometry::{Geometry, SliceNumber};
use crate::error::Error;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use crate::tables::slice::SliceState;
use alloc::boxed::Box;

/// So many tables are enough for one call.
const PAUSE: u64 = 256;

impl Image {
    pub(super) fn start_empty(&mut self, a: AcbIndex) -> Next {
        debug_assert!(!self.options.read_only && !self.layout.is_raw(), "others were refused");
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        // others must know of it before it waits for anything
        let counted = self.refcounted.is_some();
        self.jobs.empty(if counted { Emptying::Entries } else { Emptying::Tables(0) });
        let held = if self.health.is_held() { self.may_change(a) } else { None };
        held.unwrap_or_else(|| self.empty(a))
    }

    /// It may change the image now.
    pub(super) fn empty(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.jobs.is_alone(), "nothing is accepted meanwhile");
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return self.empty_alone(a);
        }
        self.requests.wait_for_others(a);
        Next::Wait
    }

    /// All else has ended.
    pub(super) fn empty_alone(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests));
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        let (acb, size) = (self.requests.acb_mut(a), self.size);
        debug_assert_eq!(acb.pos, 0, "it has no range of its own");
        acb.end = if self.jobs.emptying() == Some(Emptying::Entries) { size } else { 0 };
        Next::Look
    }

    /// `FindCluster`, with nothing (more) to look up: the next step that waits for no answer.
    pub(super) fn range_emptied(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.requests.acb(a).kind.is_job(), "a job's range");
        match self.jobs.emptying() {
            _ if self.health.is_halted() => Next::fail(Error::Poisoned),
            Some(Emptying::Entries) => self.drop_tables(a, 0),
            Some(Emptying::Tables(first)) => self.drop_tables(a, first),
            Some(Emptying::Forget) => self.forget_tables(a),
            Some(Emptying::Sync) | None => Next::Join(Want::Durable),
        }
    }

    /// Gives up the tables from that of L1 entry `first` on.
    fn drop_tables(&mut self, a: AcbIndex, first: u64) -> Next {
        let Some(geometry) = self.layout.geometry().copied() else { return Next::Done };
        let end = self.size.div_ceil(geometry.table_span());
        debug_assert!(first <= end, "an entry maps a part of the disk");
        for index in first..end {
            self.jobs.next_emptying(Emptying::Tables(index));
            let (number, entry) = geometry.l1_slice(index);
            let slot = match self.tables.find(number) {
                Some(slot) if self.tables.slot(slot).state != SliceState::Loading => slot,
                Some(slot) => return self.wait_for_slice(a, slot),
                None => {
                    let host = geometry.l1_slice_host(number);
                    return match self.tables.load(number, host, &geometry, &mut self.outbox) {
                        Some(slot) => self.wait_for_slice(a, slot),
                        None => self.wait_for_slot(a),
                    };
                }
            };
            if self.tables.is_overfull() {
                return self.wait_for_slot(a);
            }
            match self.drop_table(a, &geometry, slot, (index, entry)) {
                Err(error) => return self.fail_lookup(Box::new(error)),
                // the embedder's thread is not held for as long as a large table takes
                Ok(true) if index > first && (index - first).is_multiple_of(PAUSE) => {
                    self.outbox.emit_own(&mut self.requests, a, Part::Head, IoOp::Yield);
                    return Next::Wait;
                }
                Ok(_) => {}
            }
        }
        self.jobs.next_emptying(Emptying::Sync);
        Next::Join(self.after_tables(a, &geometry))
    }

    /// What is to be waited for. QED's file is cut in front of the cleared bit, which comes when the table is
    /// durable.
    fn after_tables(&mut self, a: AcbIndex, geometry: &Geometry) -> Want {
        debug_assert!(self.jobs.emptying() == Some(Emptying::Sync));
        // without a change the bit is not set, and nothing is cut
        if self.layout.marks_growth() && self.requests.acb(a).commit.window > 0 {
            self.space.empty_from(geometry.first_free());
            return Want::Clean;
        }
        Want::Durable
    }

    /// L1 entry `index` leads nowhere any more. Did it lead to a table?
    fn drop_table(
        &mut self,
        a: AcbIndex,
        geometry: &Geometry,
        slot: u32,
        (index, entry): (u64, usize),
    ) -> Result<bool, Error> {
        let Some((table, _)) = self.l2_table(geometry, slot, index, entry)? else { return Ok(false) };
        debug_assert!(table.is_multiple_of(geometry.cluster_size()), "a table begins with a cluster");
        let window = self.commit.windows.open();
        self.set_entries(slot, (entry, 1), (0, 0));
        self.note_written(a, true);
        let Some(counted) = self.refcounted.as_deref_mut() else { return Ok(true) };
        counted.map.remove_l2_table(table, index);
        let shared = counted.header.snapshots == 0 && counted.map.shared_with(table, index) > 0;
        let cluster = table >> geometry.cluster_bits;
        match shared {
            true => self.free_shared(cluster, window),
            false => self.free_clusters(ClusterRun::new(cluster, 1), window),
        }
        Ok(true)
    }

    /// The pipeline answers: no table is left, durably.
    pub(super) fn emptied_durably(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.jobs.emptying() == Some(Emptying::Sync), "nothing else waits for the pipeline");
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        self.jobs.next_emptying(Emptying::Forget);
        self.look_again(a)
    }

    /// Slices of the tables that were are not those of tables to come.
    fn forget_tables(&mut self, a: AcbIndex) -> Next {
        let Some(geometry) = self.layout.geometry().copied() else { return Next::Done };
        let is_l2 = |number| !geometry.is_l1(number) && !geometry.is_refcount(number);
        for slot in 0..self.tables.slots().len() as u32 {
            let slice = self.tables.slot(slot);
            match slice.state {
                SliceState::Empty => {}
                _ if !is_l2(SliceNumber(slice.number)) => {}
                // whoever wanted it was cancelled
                SliceState::Loading => return self.wait_for_slice(a, slot),
                SliceState::Present | SliceState::Writing => {
                    debug_assert!(slice.is_idle(), "all of it is durable, and nobody is here");
                    self.tables.drop_slot(slot);
                }
            }
        }
        self.dangling.forget_l2(geometry.l2_base);
        Next::Done
    }
}
