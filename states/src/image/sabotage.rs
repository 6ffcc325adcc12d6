//! What removed rules forbid, where it takes more than a condition: only in builds for the proof.
//!
//! Knows: how to break each rule. Must never know: who notices. The conditions stand where the rules are
//! kept; what is here is only reached through them.

use super::run::find::{Mapping, Run};
use super::{Image, Purpose, Resizing};
use crate::acb::State;
use crate::acb::request::Met;
use crate::base::geometry::{Geometry, align_down};
use crate::fault::Op;
use crate::io::IoOp;
use crate::rule::Rule;
use alloc::vec::Vec;

impl Image {
    /// QC9: entries of the refcount table before their blocks.
    pub(super) fn spill_reftable(&mut self) {
        let Some(counted) = self.refcounted.as_deref() else { return };
        let (table, entries) = (counted.header.reftable_offset, counted.file_entries());
        let block = u64::from(self.options.align.max(512));
        let changed: Vec<usize> = counted.changed.iter().map(|(index, _)| *index).collect();
        for index in changed.into_iter().filter(|index| *index < entries) {
            let at = align_down(index as u64 * 8, block);
            let op = IoOp::WriteTable { offset: table + at, len: block as u32 };
            self.commit.unsynced = true;
            self.outbox.emit(Purpose::Spill(at), Op::WriteReftable, table + at, op);
        }
    }

    /// QE2, QC2: changes of a slice that may be written before the next sync.
    pub(super) fn make_old(&mut self, slot: u32) {
        let durable = self.commit.durable();
        for young in &mut self.tables.slot_mut(slot).young {
            young.window = durable;
        }
    }

    /// An I/O that nobody waits for.
    pub(super) fn spill(&mut self, tried: Op, op: IoOp) {
        self.outbox.emit(Purpose::Spill(0), tried, 0, op);
    }

    /// QE9: blocks that did not change, between those that did, are not what memory holds.
    fn leave_out_neighbours(&mut self, slot: u32) {
        let per_block = (self.options.align.max(512) / 8) as usize;
        let writing = self.tables.slot(slot).writing;
        for (block, entries) in self.observed.scratch.chunks_mut(per_block).enumerate() {
            if writing >> block & 1 == 0 {
                entries.fill(0);
            }
        }
    }

    /// QE11: what follows the header's fields is lost.
    pub(super) fn clear_header_rest(&self, buf: &mut [u8]) {
        let fields = if self.layout.qed_header().is_some() { 64 } else { 112 };
        if let Some(rest) = buf.get_mut(fields..) {
            rest.fill(0);
        }
    }

    /// QC6: holes where the pointer's removal is not durable.
    pub(super) fn punch_early(&mut self, first: u64, count: u64) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        for cluster in first..first + count {
            if self.count(cluster) == Ok(1) {
                let (host, len) = (cluster << bits, 1 << bits);
                self.spill(Op::PunchHole, IoOp::PunchHole { host, len });
            }
        }
    }

    /// QC11: the old L1 table's clusters before the header leads to the new one.
    pub(super) fn free_l1_early(&mut self, from: u64, bytes: u64) {
        let Some((bits, cluster)) =
            self.layout.geometry().map(|geometry| (geometry.cluster_bits, geometry.cluster_size()))
        else {
            return;
        };
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.fixed.retain(|range| range.0 != from);
        }
        self.free_clusters(from >> bits, bytes.div_ceil(cluster).max(1), 0);
    }

    /// "Look again": to who has waited, the cluster is as it was before.
    pub(super) fn as_it_was(&self, a: u32, run: Run) -> Run {
        let waited = self.requests.acb(a).met.contains(Met::WAITED);
        let mapping = if waited { Mapping::Unallocated } else { run.mapping };
        Run { mapping, ..run }
    }

    /// QE5: the bit is cleared, and nobody waits for that to be durable.
    pub(super) fn clear_at_once(&mut self) {
        self.commit.forget_clearing();
        self.release(true);
    }

    /// `WaitAllocL2`: is the table being copied for somebody else?
    pub(super) fn is_copying(&self, pos: u64) -> bool {
        let l1_index = self.layout.geometry().map(|geometry| geometry.l1_index(pos));
        let mut copies = self.refcounted.as_deref().into_iter().flat_map(|counted| &counted.copies);
        copies.any(|copy| Some(copy.l1_index) == l1_index)
    }

    /// `GrowFile`: space that the file does not have yet.
    pub(super) fn use_before_growth(&mut self, len: u64) -> bool {
        let target = self.space.target(len);
        if !self.space.is_growing() {
            self.grow(target, false);
        }
        self.space.believe(target);
        true
    }

    /// `AllocL2`: the new L1 table is used before it is written.
    pub(super) fn leave_l1_copy(&mut self, a: u32) {
        if let Some(Resizing::Copy(copying)) = &mut self.resizing {
            self.requests.take_first(&mut copying.waiter);
        }
        self.requests.set_state(a, State::FindCluster);
        self.l1_copied(a);
    }

    /// QE10: the entry of a cluster becomes a zero entry, where the request covers it.
    pub(super) fn zero_entry(&mut self, a: u32, run: Run, slot: Option<u32>) -> bool {
        let Some(cluster) = self.layout.geometry().map(Geometry::cluster_size) else { return false };
        let pos = self.requests.acb(a).pos;
        match run.mapping {
            _ if pos.is_multiple_of(cluster) && run.len >= cluster => {
                self.set_zero_entries(a, pos, pos + cluster, cluster, slot)
            }
            Mapping::Data(host) => self.zero_in_place(a, host, run.len.min(cluster - pos % cluster)),
            _ => self.requests.skip(a, run.len),
        }
    }

    /// What is written of a slice, in `scratch`, is not what it should be.
    pub(super) fn break_snapshot(&mut self, slot: u32) {
        if self.options.sabotaged(Rule::YoungChanges) {
            self.observed.scratch.clone_from(&self.tables.slot(slot).entries);
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
