//! What removed rules forbid, where it takes more than a condition: only in builds for the proof.
//!
//! Knows: how to break each rule. Must never know: who notices. The conditions stand where the rules are
//! kept; what is here is only reached through them.

use super::next::Next;
use super::value::Image;
use crate::acb::request::Met;
use crate::acb::{AcbIndex, State};
use crate::base::geometry::align_down;
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::Purpose;
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use crate::tables::mapping::{Mapping, Run};
use alloc::vec::Vec;

impl Image {
    /// QC9: entries of the refcount table before their blocks.
    pub(super) fn spill_reftable(&mut self) {
        debug_assert!(self.options.sabotaged(Rule::BlockBeforeReftable));
        let Some(counted) = self.refcounted.as_deref() else { return };
        let (table, entries) = (counted.header.reftable_offset, counted.file_entries());
        let block = u64::from(self.options.align.max(512));
        let changed: Vec<usize> = counted.changed.iter().map(|(index, _)| *index).collect();
        for index in changed.into_iter().filter(|index| *index < entries) {
            let at = align_down(index as u64 * 8, block);
            let op = IoOp::WriteTable { offset: table + at, len: block as u32 };
            self.commit.wrote();
            self.outbox.emit(Purpose::Spill(at), Op::WriteReftable, table + at, op);
        }
    }

    /// QE2, QC2: changes of a slice that may be written before the next sync.
    pub(super) fn make_old(&mut self, slot: u32) {
        debug_assert!(
            self.options.sabotaged(Rule::NewTableBeforeL1) || self.options.sabotaged(Rule::TableBeforeL1)
        );
        let durable = self.commit.windows.durable();
        for young in &mut self.tables.slot_mut(slot).young {
            young.window = durable;
        }
    }

    /// An I/O that nobody waits for.
    pub(super) fn spill(&mut self, tried: Op, op: IoOp) {
        debug_assert!(self.options.breaks_rules(), "only where a rule is removed");
        self.outbox.emit(Purpose::Spill(0), tried, 0, op);
    }

    /// QE9: blocks that did not change, between those that did, are not what memory holds.
    fn leave_out_neighbours(&mut self, slot: u32) {
        debug_assert!(self.options.sabotaged(Rule::Neighbours));
        let per_block = (self.options.align.max(512) / 8) as usize;
        let writing = self.tables.slot(slot).writing;
        for (block, entries) in self.scratch.chunks_mut(per_block).enumerate() {
            if writing >> block & 1 == 0 {
                entries.fill(0);
            }
        }
    }

    /// QE11: what follows the header's fields is lost.
    pub(super) fn clear_header_rest(&self, buf: &mut [u8]) {
        debug_assert!(self.options.sabotaged(Rule::HeaderBytes));
        let fields = if self.layout.qed_header().is_some() { 64 } else { 112 };
        if let Some(rest) = buf.get_mut(fields..) {
            rest.fill(0);
        }
    }

    /// QC6: holes where the pointer's removal is not durable.
    pub(super) fn punch_early(&mut self, run: ClusterRun) {
        debug_assert!(self.options.sabotaged(Rule::PunchAfterRemoval));
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        for cluster in run.first..run.end() {
            let count = self.counting().map(|(counted, mut cx)| counted.count(cluster, &mut cx));
            if count == Some(Ok(1)) {
                let (host, len) = (cluster << bits, 1 << bits);
                self.spill(Op::PunchHole, IoOp::PunchHole { host, len });
            }
        }
    }

    /// "Look again": to an acb that has waited, the cluster is as it was before.
    pub(super) fn as_it_was(&self, a: AcbIndex, run: Run) -> Run {
        debug_assert!(self.options.sabotaged(Rule::LookAgain));
        let waited = self.requests.acb(a).met.contains(Met::WAITED);
        let mapping = if waited { Mapping::Unallocated } else { run.mapping };
        Run { mapping, ..run }
    }

    /// `WaitAllocL2`: is the table being copied for somebody else?
    pub(super) fn is_copying(&self, pos: u64) -> bool {
        debug_assert!(self.options.sabotaged(Rule::WaitAllocL2));
        let l1_index = self.layout.geometry().map(|geometry| geometry.l1_index(pos));
        let mut copies = self.refcounted.as_deref().into_iter().flat_map(|counted| counted.copies.iter());
        copies.any(|copy| Some(copy.l1_index) == l1_index)
    }

    /// `AllocL2`: the new L1 table is used before it is written.
    pub(super) fn leave_l1_copy(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.options.sabotaged(Rule::WaitAllocL2));
        if let Some(copying) = self.jobs.copying() {
            self.requests.take_first(&mut copying.waiter);
        }
        self.requests.set_state(a, State::FindCluster);
        Next::Range
    }

    /// What is written of a slice, in `scratch`, is not what it should be.
    pub(super) fn break_snapshot(&mut self, slot: u32) {
        if self.options.sabotaged(Rule::YoungChanges) {
            self.scratch.0.clone_from(&self.tables.slot(slot).entries);
        }
        if self.options.sabotaged(Rule::Neighbours) {
            self.leave_out_neighbours(slot);
        }
    }

    /// "Poison": a failed write of metadata, or sync, counts as done.
    pub(super) fn ignores_failure(&self, purpose: &Purpose) -> bool {
        let fatal =
            matches!(purpose, Purpose::Table(_) | Purpose::Header | Purpose::Sync | Purpose::Reftable(_));
        fatal && self.options.sabotaged(Rule::Poison)
    }
}
