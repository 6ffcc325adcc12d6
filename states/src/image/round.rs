//! A round of the commit pipeline: which step follows which. The steps themselves are `commit/`'s.
//!
//! QED counts nothing: space behind its last cluster in use is found by a check alone, and an image is
//! checked when it is opened if its need-check bit is set. So the bit is in the file before the file grows,
//! and the file ends with its data before the bit is cleared: what a program that was killed leaves is
//! given back by the next opening. (A power cut may keep the length and not the bit: what nobody waits for,
//! a sync in front of the first growth, is not worth its time. `check -r` finds that space.)
//!
//! Knows: the order of steps, what each needs of the parts. Must never know: which acbs wait for a round, and
//! why.
//!
//! Invariants (docs/ordering.md):
//! * counts of what a round's pointers point to are written before the round's sync (QC1), unless the dirty
//!   bit says that they may be wrong (lazy refcounts, QC12);
//! * the file grows while the bit is in it (QE12);
//! * what is behind the data is cut off before the bit is cleared; a growth in flight ends before (QE12).

use super::value::Image;
use crate::commit::{DirtyBit, Phase, RoundStart};
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::{Due, Purpose};
use crate::rule::Rule;
use alloc::vec::Vec;

impl Image {
    /// Starts a round if there is a reason for one and none is running.
    pub(super) fn next_round(&mut self) {
        if self.health.is_poisoned() || self.options.read_only {
            return;
        }
        if self.commit.windows.wants_clean() {
            // clusters that nothing points to any more are to be counted so, too
            self.demand_removals();
        }
        // counts that go down wait for a slice: a round does not help before it is there
        let held = self.is_counting() || self.holds_clearing();
        let mark = match self.commit.start(held, self.health.is_clearing()) {
            RoundStart::Nothing => return,
            RoundStart::Ahead => return self.mark_ahead(),
            RoundStart::Sync => None,
            RoundStart::Round { mark } => Some(mark && self.uses_dirty_bit()),
        };
        debug_assert!(self.commit.is_idle(), "one round at a time");
        self.outbox.counters.commits += 1;
        let Some(mark) = mark else { return self.start_round(false) };
        if mark {
            self.set_dirty_bit(true);
        }
        let write = (mark && !self.options.sabotaged(Rule::MarkDirty)) || self.commit.header_is_dirty();
        self.start_round(write);
    }

    /// Removals of pointers that clusters wait for go out, with the next round.
    pub(super) fn demand_removals(&mut self) {
        debug_assert!(!self.health.is_poisoned(), "after a failure nothing more is demanded");
        if let Some(window) = self.refcounted.as_deref().and_then(|counted| counted.quarantine.window()) {
            self.commit.windows.demand(window, true);
        }
    }

    fn start_round(&mut self, write_header: bool) {
        debug_assert!(self.commit.is_idle());
        self.commit.windows.begin_round();
        debug_assert!(!self.health.is_poisoned() && !self.options.read_only, "a round writes");
        if write_header {
            self.commit.set_phase(Phase::Mark, &mut self.outbox);
            let set = self.dirty_bit() && self.uses_dirty_bit();
            self.commit.bit.emitted(set);
            self.write_header(Op::WriteHeader);
        }
        if !write_header || self.options.sabotaged(Rule::WaitMarkDirty) {
            self.start_refcounts();
        }
    }

    fn write_header(&mut self, tried: Op) {
        debug_assert!(self.header_len().is_some(), "a raw image has none");
        debug_assert!(!self.health.is_poisoned(), "after a failure nothing more is written");
        let window = self.commit.header_emitted();
        self.health.header_emitted(window);
        self.outbox.counters.header_writes += 1;
        let Some(len) = self.header_len() else { return };
        self.outbox.emit(Purpose::Header, tried, 0, IoOp::WriteTable { offset: 0, len });
    }

    /// Writes the header for the growth that waits for it.
    fn mark_ahead(&mut self) {
        debug_assert!(self.commit.is_idle() && self.layout.marks_growth());
        self.set_dirty_bit(true);
        self.commit.set_phase(Phase::MarkAhead, &mut self.outbox);
        self.commit.bit.emitted(true);
        self.write_header(Op::WriteHeader);
    }

    pub(super) fn header_written(&mut self, result: Result<(), Error>) {
        if self.health.is_poisoned() {
            return;
        }
        if let Err(error) = result {
            return self.poison_with(error);
        }
        let phase = self.commit.phase();
        debug_assert!(!self.layout.is_raw(), "a raw image has no header");
        self.commit.wrote();
        self.commit.bit.written(phase == Phase::Clear);
        match phase {
            Phase::MarkAhead => {
                self.rest();
                self.commit.bit_is_there(&mut self.outbox);
            }
            Phase::Mark => {
                self.start_refcounts();
                self.commit.bit_is_there(&mut self.outbox);
            }
            Phase::Switch if self.options.sabotaged(Rule::SwitchBeforeFree) => self.switch_durable(),
            Phase::Switch => self.start_sync(Phase::SyncSwitch),
            Phase::Clear => {
                self.rest();
                if self.options.sabotaged(Rule::ClearedBeforeClosed) {
                    // as if durably
                    self.commit.bit = DirtyBit::Clear;
                    self.release(true);
                }
            }
            phase => {
                debug_assert!(self.options.sabotaged(Rule::WaitMarkDirty), "header written in {phase:?}");
            }
        }
    }

    /// The pipeline has nothing to do: is there a reason for a round?
    fn rest(&mut self) {
        debug_assert!(!self.commit.is_idle(), "a round ends once");
        self.commit.set_phase(Phase::Idle, &mut self.outbox);
        self.outbox.due |= Due::ROUND;
    }

    /// The counts go out, if they have to before the sync.
    fn start_refcounts(&mut self) {
        debug_assert!(!self.health.is_poisoned(), "after a failure nothing more is written");
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::BlockBeforeReftable) {
            self.spill_reftable();
        }
        let lazy = self.counts_come_late() && self.tables.dirty * 2 < self.tables.capacity();
        let clean = self.commit.windows.wants_clean();
        let skip = lazy || self.options.sabotaged(Rule::RefcountBeforePointer) && !clean;
        let dirty = match self.refcounted.as_deref_mut() {
            Some(counted) if !skip && !counted.dirty.is_empty() => core::mem::take(&mut counted.dirty),
            _ => return self.start_sync(Phase::Sync),
        };
        self.commit.begin_writing(Phase::Refcounts, dirty, &self.options, &mut self.outbox);
        self.write_tables();
    }

    fn start_sync(&mut self, phase: Phase) {
        debug_assert!(matches!(phase, Phase::Sync | Phase::SyncReftable | Phase::SyncSwitch));
        debug_assert!(!self.health.is_poisoned(), "after a failure nothing is made durable");
        self.commit.set_phase(phase, &mut self.outbox);
        if !self.commit.begin_sync() {
            return self.synced(Ok(()));
        }
        self.outbox.counters.syncs += 1;
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::WaitSyncData) && phase == Phase::Sync {
            self.spill(Op::Sync, IoOp::Sync);
            return self.synced(Ok(()));
        }
        self.outbox.emit(Purpose::Sync, Op::Sync, 0, IoOp::Sync);
    }

    /// The round's sync ended.
    pub(super) fn synced(&mut self, result: Result<(), Error>) {
        if self.health.is_poisoned() {
            return;
        }
        if let Err(error) = result {
            return self.poison_with(error);
        }
        if self.options.sabotaged(Rule::CoveredBefore) {
            self.commit.covers_all();
        }
        self.commit.windows.sync_ended();
        debug_assert!(!self.commit.is_idle(), "a sync is a round's");
        match self.commit.phase() {
            Phase::SyncReftable => return self.reftable_durable(),
            Phase::SyncSwitch => return self.switch_durable(),
            phase => debug_assert_eq!(phase, Phase::Sync),
        }
        self.commit.windows.data_durable();
        self.health.synced(self.commit.windows.durable());
        if self.commit.bit.synced() {
            self.mark_again();
            self.release(true);
            return self.end_round();
        }
        // those that wait for space may have waited for this; so may clusters whose pointers are gone
        self.outbox.due |= Due::SPACE | Due::COUNT;
        self.start_reftable();
    }

    /// The bit was cleared for a request that wants the image in order now. What has space and is not linked,
    /// or linked in memory alone, is behind the end of what a check would find.
    fn mark_again(&mut self) {
        let qed = self.layout.marks_growth() && !self.jobs.is_closing();
        debug_assert!(self.commit.bit == DirtyBit::Clear, "the bit was cleared, durably");
        if qed && (!self.waits.has_no_claims() || self.tables.dirty > 0) {
            self.commit.want_bit();
        }
    }

    /// After the round's sync: entries of the refcount table whose blocks it made durable.
    fn start_reftable(&mut self) {
        debug_assert_eq!(self.commit.phase(), Phase::Sync);
        let durable = self.commit.windows.durable();
        let moving = self.refcounted.as_deref().is_some_and(|counted| counted.moving.is_some());
        let lazy = self.counts_come_late() && !moving;
        if lazy || self.refcounted.as_deref().is_none_or(|counted| !counted.table_is_due(durable)) {
            return self.pointers_may_go();
        }
        self.commit.begin_writing(Phase::Reftable, Vec::new(), &self.options, &mut self.outbox);
        self.write_reftable();
    }

    fn write_reftable(&mut self) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has one");
        let Some(counted) = self.refcounted.as_deref() else { return };
        if !self.commit.write_reftable(counted, &self.options, &mut self.outbox) {
            return;
        }
        match self.options.sabotaged(Rule::ReftableBeforeHeader) {
            true => self.reftable_durable(),
            false => self.start_sync(Phase::SyncReftable),
        }
    }

    /// A write of the refcount table ended.
    pub(super) fn reftable_written(&mut self, result: Result<(), Error>) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has one");
        self.commit.reftable_write_ended();
        match result {
            _ if self.health.is_poisoned() => {}
            Err(error) => self.poison_with(error),
            Ok(()) => self.write_reftable(),
        }
    }

    /// The refcount table is durable: entries are no news any more; a new table needs the header to lead to
    /// it.
    fn reftable_durable(&mut self) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has one");
        let durable = self.commit.windows.durable();
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        match counted.table_durable(durable) {
            None => self.pointers_may_go(),
            Some(old) => {
                self.commit.replace_reftable(old);
                self.commit.set_phase(Phase::Switch, &mut self.outbox);
                self.write_header(Op::WriteHeader);
            }
        }
    }

    /// The header leads to the new refcount table, durably: the old one's clusters are free.
    fn switch_durable(&mut self) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has one");
        let old = self.commit.take_old_reftable();
        debug_assert!(old.is_some());
        if let Some(old) = old {
            self.free_clusters(old, 0);
        }
        self.pointers_may_go();
    }

    /// Counts may be missing in the file: the bit that says so is set, or this round's header sets it.
    /// Without it they go out in time, as the header itself may be the pointer (a table that has moved).
    fn counts_come_late(&self) -> bool {
        self.uses_dirty_bit() && self.dirty_bit() && !self.commit.windows.wants_clean()
    }

    /// All that has to be durable before the round's pointers is.
    fn pointers_may_go(&mut self) {
        debug_assert!(!self.commit.is_idle(), "they are a round's");
        if !self.commit.windows.wants_pointers() {
            return self.end_round();
        }
        match self.commit.begin_tables(&self.options, &mut self.outbox) {
            true => self.outbox.due |= Due::TABLES,
            false => self.write_tables(),
        }
    }

    /// Names writes of slices up to the limit; when all are written the phase ends.
    pub(super) fn write_tables(&mut self) {
        debug_assert!(!self.health.is_poisoned(), "after a failure nothing more is written");
        if !self.commit.write_slices(&mut self.tables, &self.options, &mut self.outbox) {
            return;
        }
        if self.commit.phase() == Phase::Refcounts {
            return self.start_sync(Phase::Sync);
        }
        self.commit.tables_written();
        if self.options.sabotaged(Rule::SyncTables) {
            self.commit.windows.believe_durable();
        }
        self.outbox.due |= Due::SLOTS;
        self.end_round();
    }

    pub(super) fn table_written(&mut self, slot: u32, result: Result<(), Error>) {
        debug_assert!(!self.layout.is_raw(), "a raw image has no tables");
        let counts = self.commit.slice_written(&mut self.tables, slot, result.is_ok(), &mut self.outbox);
        if counts && let Some(counted) = self.refcounted.as_deref_mut() {
            counted.dirty.push(slot);
        }
        match result {
            _ if self.health.is_poisoned() => {}
            Err(error) => self.poison_with(error),
            Ok(()) if !self.commit.leaves_tables(&self.options) => self.write_tables(),
            Ok(()) => {}
        }
    }

    /// Answers all that have what they want; clears the dirty bit if that is wanted and possible; goes on if
    /// there is a reason.
    fn end_round(&mut self) {
        debug_assert!(!self.commit.is_idle(), "a round ends once");
        self.commit.set_phase(Phase::Idle, &mut self.outbox);
        self.release(false);
        let all_durable = self.commit.windows.all_durable() && self.refcounts_settled();
        if self.commit.windows.wants_clean() && (all_durable || self.options.sabotaged(Rule::ClearAfterSync))
        {
            if self.commit.bit == DirtyBit::Set && !self.holds_clearing() {
                return self.cut_ahead();
            }
            if self.commit.bit != DirtyBit::Set {
                self.release(true);
            }
        }
        self.outbox.due |= Due::ROUND | Due::REST;
    }

    /// Readies the acbs that have what they want. `clean`: the dirty bit is cleared, or was never set.
    fn release(&mut self, clean: bool) {
        debug_assert!(!self.health.is_poisoned(), "a failure has answered all");
        self.commit.release(&mut self.requests, clean, self.health.is_clear());
    }

    /// The bit may not be cleared yet: the file is growing.
    fn holds_clearing(&self) -> bool {
        debug_assert!(!self.layout.is_raw() || !self.space.is_growing(), "a raw file grows by its requests");
        self.layout.marks_growth() && self.space.is_growing()
    }

    /// The bit is to be cleared, and nothing is left to be written: first the file is cut.
    fn cut_ahead(&mut self) {
        debug_assert_eq!(self.commit.bit, DirtyBit::Set);
        let qed = self.layout.marks_growth() && !self.options.sabotaged(Rule::CutBeforeClear);
        match if qed { self.space.cut() } else { None } {
            None => self.start_clear(),
            Some(len) => {
                self.commit.set_phase(Phase::Cut, &mut self.outbox);
                self.outbox.emit(Purpose::Cut, Op::SetLen, len, IoOp::SetLen { len });
            }
        }
    }

    /// It is; or is as long as it was, which is no harm, unless what stood there was given up just now.
    pub(super) fn cut_off(&mut self, result: Result<(), Error>) {
        debug_assert!(self.health.is_poisoned() || self.commit.phase() == Phase::Cut);
        self.commit.wrote();
        match result {
            _ if self.health.is_poisoned() => {}
            Err(error) if self.jobs.emptying().is_some() => self.poison_with(error),
            _ => self.start_clear(),
        }
    }

    fn start_clear(&mut self) {
        debug_assert!(self.uses_dirty_bit());
        debug_assert!(self.commit.windows.wants_clean(), "nobody asked for it");
        if self.layout.qed_header().is_some_and(crate::qed::Header::keeps_need_check) {
            // in order, but for what a check found
            self.commit.set_phase(Phase::Idle, &mut self.outbox);
            return self.release(true);
        }
        self.set_dirty_bit(false);
        self.commit.set_phase(Phase::Clear, &mut self.outbox);
        self.write_header(Op::ClearDirty);
    }

    /// Counts go down, as far as their slices are there.
    pub(super) fn is_counting(&self) -> bool {
        self.refcounted.as_deref().is_some_and(|counted| counted.quarantine.is_counting())
    }

    /// Nothing of the refcounts is left to do, as far as it can be done now.
    pub(super) fn refcounts_settled(&self) -> bool {
        self.refcounted.as_deref().is_none_or(|counted| !counted.has_work())
    }

    /// Something is to be written after a while, though nobody asks for it. Counts that may be wrong in the
    /// file (lazy refcounts) wait until the dirty bit is to be cleared.
    pub(super) fn is_due(&self) -> bool {
        match self.refcounted.as_deref() {
            Some(counted) if self.uses_dirty_bit() && self.commit.bit == DirtyBit::Set => {
                self.commit.has_dirty() || counted.quarantine.has_work()
            }
            _ => self.tables.dirty > 0 || !self.refcounts_settled(),
        }
    }
}
