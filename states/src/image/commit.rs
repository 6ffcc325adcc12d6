//! The commit pipeline: one small machine an image, shared by everybody who needs durability.
//!
//! A round: [header marked dirty] -> [refcounts written] -> sync -> (data is durable) -> [refcount table
//! written, sync] -> pointers written -> [next round's sync makes them durable]. Steps in brackets that
//! have nothing to do cost nothing; those of refcounts are qcow2's alone (`metadata.rs`). *Windows* number
//! the time between rounds: data that was written in a window is durable when a sync that was submitted
//! after the window closed has completed. A sync closes a window for new data and makes the pointers of the
//! round before it durable, so under a stream of flushes each costs one sync, and one flush alone costs
//! two.
//!
//! Knows: which slices are dirty, who waits for what. Must never know: what the pointers mean.
//!
//! Invariants (docs/ordering.md):
//! * a pointer is written only when a sync submitted after its data was written has completed (QE3, QE2,
//!   QE4);
//! * the header's need-check bit is durable before the first pointer of a dirty period is written (QE1);
//! * the bit is cleared only when every written pointer is durable (QE5);
//! * of QED, it is in the file before the file grows, and the file is cut before it is cleared (QE12);
//! * a failed metadata write or sync poisons the image: nothing is written after it.

use super::{Alarm, Image, Purpose, TABLE_WRITES_MAX};
use crate::acb::State;
use crate::acb::Want;
use crate::acb::request::{Event, Met};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::rule::Rule;
use crate::tables::slice::SliceState;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

mod ahead;

/// The timers of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// Write dirty tables after a while.
    Commit,
    /// Clear the need-check bit after a while.
    NeedCheck,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Phase {
    Idle,
    /// The header is being written: need-check set, or a new size.
    Mark,
    /// Refcount blocks are being written.
    Refcounts,
    Sync,
    /// The refcount table is being written,
    Reftable,
    /// and made durable.
    SyncReftable,
    /// The header is being written: the refcount table has moved,
    Switch,
    /// durably.
    SyncSwitch,
    /// Pointers are being written.
    Tables,
    /// The space ahead of the data is being cut off, before the bit is cleared (QED).
    Cut,
    /// The header is being written: the dirty bit cleared.
    Clear,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Commit {
    /// The open window: data that is written now belongs to it.
    pub(super) window: u64,
    phase: Phase,
    /// The window that the running round closed.
    round: u64,
    /// Data of windows up to this one is durable.
    durable: u64,
    /// Pointers of windows up to this one are in the file.
    written: u64,
    /// The value of `written` when the running sync was submitted.
    written_before: u64,
    /// Pointers of windows up to this one are durable.
    tables_durable: u64,
    /// Pointers of windows up to this one shall be written,
    demand: u64,
    /// and durable.
    demand_durable: u64,
    /// The header's dirty bit shall be cleared, durably.
    demand_clean: bool,
    /// Something was written since the last sync was submitted.
    pub(super) unsynced: bool,
    /// The header in the file lacks a change.
    pub(super) header_dirty: bool,
    /// The bit is set in the file, durably.
    marked: bool,
    /// The bit may be set in the file.
    maybe_marked: bool,
    /// The bit was written to the file, if not durably.
    bit: bool,
    /// The file is to grow, and the bit has to be in it before (QED).
    wants_bit: bool,
    /// The header that is being written is about that alone: no round.
    ahead: bool,
    /// The bit was cleared in the file, and that is not durable yet.
    clearing: bool,
    /// Slots that may be dirty.
    dirty: Vec<u32>,
    /// The slots of the running round, and how far it got.
    writing: Vec<u32>,
    cursor: usize,
    in_flight: u32,
    wrote: bool,
    pub(super) waiters: Queue,
    commit_armed: bool,
    check_armed: bool,
    /// Place and clusters of the refcount table that the running round replaces.
    old_reftable: (u64, u64),
}

impl Commit {
    /// `marked`: the header's bit is set and must stay.
    pub(super) fn new(marked: bool) -> Commit {
        Commit {
            window: 1,
            phase: Phase::Idle,
            round: 0,
            durable: 0,
            written: 0,
            written_before: 0,
            tables_durable: 0,
            demand: 0,
            demand_durable: 0,
            demand_clean: false,
            // what another program wrote before us may not be durable
            unsynced: true,
            header_dirty: false,
            marked,
            maybe_marked: marked,
            bit: marked,
            wants_bit: false,
            ahead: false,
            clearing: false,
            dirty: Vec::new(),
            writing: Vec::new(),
            cursor: 0,
            in_flight: 0,
            wrote: false,
            waiters: Queue::new(),
            commit_armed: false,
            check_armed: false,
            old_reftable: (0, 0),
        }
    }

    /// A slice became dirty.
    pub(super) fn note_dirty(&mut self, slot: u32, after_ms: u32, alarms: &mut VecDeque<Alarm>) {
        self.dirty.push(slot);
        self.arm(after_ms, alarms);
        if self.check_armed {
            self.check_armed = false;
            alarms.push_back(Alarm { timer: Timer::NeedCheck, after_ms: None });
        }
    }

    /// There is something to write: after a while at the latest.
    pub(super) fn arm(&mut self, after_ms: u32, alarms: &mut VecDeque<Alarm>) {
        if !self.commit_armed {
            self.commit_armed = true;
            alarms.push_back(Alarm { timer: Timer::Commit, after_ms: Some(after_ms) });
        }
    }

    /// Data of windows up to this one is durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Pointers of windows up to this one are durable.
    pub(super) fn tables_durable(&self) -> u64 {
        self.tables_durable
    }

    /// Somebody waits for everything to be in order.
    pub(super) fn wants_clean(&self) -> bool {
        self.demand_clean
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    pub(super) fn cursor(&self) -> usize {
        self.cursor
    }

    pub(super) fn set_cursor(&mut self, cursor: usize) {
        self.cursor = cursor;
    }

    pub(super) fn writes_in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn write_named(&mut self) {
        self.in_flight += 1;
    }

    pub(super) fn write_ended(&mut self) {
        debug_assert!(self.in_flight > 0);
        self.in_flight -= 1;
    }

    pub(super) fn set_old_reftable(&mut self, old: (u64, u64)) {
        self.old_reftable = old;
    }

    pub(super) fn take_old_reftable(&mut self) -> (u64, u64) {
        core::mem::take(&mut self.old_reftable)
    }

    fn idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The bit was cleared in the file, as if durably.
    #[cfg(feature = "sabotage")]
    pub(super) fn forget_clearing(&mut self) {
        (self.clearing, self.maybe_marked) = (false, false);
    }
}

impl Image {
    /// A timer ran out.
    pub fn handle_timeout(&mut self, timer: Timer) {
        if self.health.is_poisoned() {
            return;
        }
        match timer {
            Timer::Commit => {
                self.commit.commit_armed = false;
                // removals are durable only with the sync after the next
                if let Some(window) =
                    self.refcounted.as_deref().and_then(|counted| counted.quarantine.window())
                {
                    self.commit.demand_durable = self.commit.demand_durable.max(window);
                }
                self.commit_soon();
            }
            Timer::NeedCheck => {
                self.commit.check_armed = false;
                // an allocation in flight would set it again at once
                if self.claims.is_empty() && !self.is_due() {
                    self.commit.demand_clean = true;
                    self.kick();
                } else {
                    self.arm_need_check();
                }
            }
        }
        self.run_ready();
    }

    /// Write what is dirty, though nobody waits for it.
    pub(super) fn commit_soon(&mut self) {
        if (self.tables.dirty > 0 || !self.refcounts_settled()) && !self.health.is_poisoned() {
            self.commit.demand = self.commit.window;
            self.kick();
        }
    }

    /// The acb waits until what it wrote (or, without a write, all that was written before now) is as it
    /// wants it.
    pub(super) fn join_commit(&mut self, a: u32, want: Want) {
        if self.health.is_poisoned() {
            return self.finish(a, Err(Error::Poisoned));
        }
        self.requests.note(a, Met::FLUSH);
        if self.requests.acb(a).state != State::SyncData {
            self.requests.set_state(a, State::SyncData);
        }
        let window = self.commit.window;
        let acb = self.requests.acb_mut(a);
        // the acb may have waited since it wrote, but its own window is the one that counts
        if acb.window == 0 {
            acb.window = window;
        }
        acb.want = want;
        let needed = acb.window;
        let commit = &mut self.commit;
        commit.demand = commit.demand.max(needed);
        if want >= Want::Durable {
            commit.demand_durable = commit.demand_durable.max(needed);
        }
        commit.demand_clean |= want == Want::Clean;
        self.requests.wait_in(&mut commit.waiters, a);
        self.kick();
    }

    /// Starts a round if there is a reason for one and none is running.
    pub(super) fn kick(&mut self) {
        self.demand_removals();
        // counts that go down wait for a slice: a round does not help before it is there
        let counting = self.refcounted.as_deref().is_some_and(|counted| counted.quarantine.is_counting());
        let held = counting || self.holds_clearing();
        let commit = &self.commit;
        let reason = commit.demand > commit.written
            || commit.demand_durable > commit.tables_durable
            || commit.demand_clean && !held
            || commit.header_dirty
            || self.health.is_clearing()
            || commit.clearing;
        let ahead = commit.wants_bit && !commit.bit;
        if !commit.idle() || !(reason || ahead) || self.health.is_poisoned() || self.options.read_only {
            return;
        }
        if !reason {
            return self.mark_ahead();
        }
        self.observed.counters.commits += 1;
        if commit.clearing {
            // nothing but a sync may follow the clearing of the bit
            return self.start_round(false);
        }
        let writes_pointers = commit.demand > commit.written && !commit.dirty.is_empty();
        let mark = (writes_pointers || ahead) && !commit.bit && self.uses_dirty_bit();
        if mark {
            self.set_dirty_bit(true);
        }
        let write = (mark && !self.options.sabotaged(Rule::MarkDirty)) || self.commit.header_dirty;
        self.start_round(write);
    }

    /// Who wants everything in order wants clusters that nothing points to any more counted so, too: their
    /// removals go out.
    fn demand_removals(&mut self) {
        if !self.commit.demand_clean {
            return;
        }
        if let Some(window) = self.refcounted.as_deref().and_then(|counted| counted.quarantine.window()) {
            self.commit.demand_durable(window);
        }
    }

    fn start_round(&mut self, write_header: bool) {
        let commit = &mut self.commit;
        commit.round = commit.window;
        commit.window += 1;
        if write_header {
            commit.phase = Phase::Mark;
            self.commit.maybe_marked = self.dirty_bit() && self.uses_dirty_bit();
            self.write_header(Op::WriteHeader);
        }
        if !write_header || self.options.sabotaged(Rule::WaitMarkDirty) {
            self.start_refcounts();
        }
        self.show_phase();
    }

    pub(super) fn write_header(&mut self, tried: Op) {
        self.commit.header_dirty = false;
        // the sync of the running round covers it, or that of the next
        let commit = &self.commit;
        self.health.header_emitted(if commit.phase == Phase::Mark { commit.round } else { commit.window });
        self.observed.counters.header_writes += 1;
        let Some(len) = self.header_len() else { return };
        self.outbox.emit(Purpose::Header, tried, 0, IoOp::WriteTable { offset: 0, len });
    }

    pub(super) fn encode_header(&self, buf: &mut [u8]) {
        self.encode_header_block(buf);
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::HeaderBytes) {
            self.clear_header_rest(buf);
        }
    }

    pub(super) fn header_written(&mut self, result: Result<(), Error>) {
        if self.health.is_poisoned() {
            return;
        }
        if let Err(error) = result {
            return self.poison_with(error);
        }
        self.commit.unsynced = true;
        self.commit.bit = self.commit.phase != Phase::Clear && self.commit.maybe_marked;
        match self.commit.phase {
            Phase::Mark if self.commit.ahead => self.marked_ahead(),
            Phase::Mark => {
                self.start_refcounts();
                self.bit_is_there();
            }
            Phase::Switch if self.options.sabotaged(Rule::SwitchBeforeFree) => self.switch_durable(),
            Phase::Switch => self.start_sync(Phase::SyncSwitch),
            Phase::Clear => {
                self.commit.phase = Phase::Idle;
                self.commit.marked = false;
                self.commit.clearing = true;
                #[cfg(feature = "sabotage")]
                if self.options.sabotaged(Rule::ClearedBeforeClosed) {
                    self.clear_at_once();
                }
                self.kick();
            }
            phase => {
                debug_assert!(self.options.sabotaged(Rule::WaitMarkDirty), "header written in {phase:?}")
            }
        }
        self.show_phase();
    }

    pub(super) fn start_sync(&mut self, phase: Phase) {
        let commit = &mut self.commit;
        commit.phase = phase;
        commit.written_before = commit.written;
        if !commit.unsynced {
            return self.synced(Ok(()));
        }
        commit.unsynced = false;
        self.observed.counters.syncs += 1;
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::WaitSyncData) && phase == Phase::Sync {
            self.spill(Op::Sync, IoOp::Sync);
            self.show_phase();
            return self.synced(Ok(()));
        }
        self.outbox.emit(Purpose::Sync, Op::Sync, 0, IoOp::Sync);
        self.show_phase();
    }

    /// The round's sync ended.
    pub(super) fn synced(&mut self, result: Result<(), Error>) {
        if self.health.is_poisoned() {
            return;
        }
        if let Err(error) = result {
            return self.poison_with(error);
        }
        let covers_all = self.options.sabotaged(Rule::CoveredBefore);
        let commit = &mut self.commit;
        commit.unsynced &= !covers_all;
        commit.tables_durable = commit.tables_durable.max(commit.written_before);
        match commit.phase {
            Phase::SyncReftable => return self.reftable_durable(),
            Phase::SyncSwitch => return self.switch_durable(),
            phase => debug_assert_eq!(phase, Phase::Sync),
        }
        commit.durable = commit.round;
        self.health.synced(self.commit.durable());
        let commit = &mut self.commit;
        if commit.clearing {
            commit.clearing = false;
            (commit.marked, commit.maybe_marked) = (false, false);
            self.mark_again();
            self.release(true);
            return self.end_round();
        }
        commit.marked = commit.maybe_marked;
        self.space_on();
        self.removals_durable();
        self.start_reftable();
    }

    /// All that has to be durable before the round's pointers is.
    pub(super) fn pointers_may_go(&mut self) {
        if self.commit.demand > self.commit.written {
            self.start_tables();
        } else {
            self.end_round();
        }
    }

    fn start_tables(&mut self) {
        let commit = &mut self.commit;
        commit.wrote = false;
        let mut slots = core::mem::take(&mut commit.writing);
        slots.clear();
        core::mem::swap(&mut slots, &mut commit.dirty);
        self.begin_writing(Phase::Tables, slots);
        if !self.commit.writing.is_empty() {
            self.show_phase();
        }
        self.write_tables();
    }

    /// Names writes of slices up to the limit; when all are written the phase ends.
    pub(super) fn write_tables(&mut self) {
        let entries_per_block = (self.options.align.max(512) / 8) as usize;
        while self.commit.in_flight < TABLE_WRITES_MAX {
            let Some(&slot) = self.commit.writing.get(self.commit.cursor) else { break };
            self.commit.cursor += 1;
            let durable =
                if self.options.sabotaged(Rule::DataBeforePointer) { u64::MAX } else { self.commit.durable };
            let slice = self.tables.slot_mut(slot);
            let young = slice.young.len();
            slice.settle(durable, entries_per_block);
            let settled = young - slice.young.len();
            debug_assert_eq!(slice.state, SliceState::Present);
            let unchanged = slice.dirty == 0;
            debug_assert!(!unchanged || self.commit.phase == Phase::Tables);
            self.tables.young -= settled;
            if unchanged {
                // all of it is younger than this round
                self.commit.dirty.push(slot);
                continue;
            }
            self.write_slice(slot, entries_per_block as u64 * 8);
        }
        let waits = self.commit.in_flight > 0 && !self.leaves_tables();
        if !waits && self.commit.cursor == self.commit.writing.len() {
            match self.commit.phase {
                Phase::Refcounts => self.start_sync(Phase::Sync),
                _ => self.tables_written(),
            }
        }
    }

    fn write_slice(&mut self, slot: u32, block: u64) {
        let slice = self.tables.slot_mut(slot);
        let slice_bytes = slice.entries.len() as u64 * 8;
        slice.writing = slice.dirty;
        slice.dirty = 0;
        slice.state = SliceState::Writing;
        // one contiguous write from the first to the last changed block; what lies between is written as it
        // is (QE9)
        let start = u64::from(slice.writing.trailing_zeros()) * block;
        let end = (u64::from(64 - slice.writing.leading_zeros()) * block).min(slice_bytes.max(block));
        let offset = slice.host + start;
        let len = (end - start) as u32;
        self.commit.in_flight += 1;
        self.commit.wrote = true;
        self.observed.counters.table_writes += 1;
        self.observed.counters.table_bytes_written += u64::from(len);
        self.outbox.emit(Purpose::Table(slot), Op::WriteTable, offset, IoOp::WriteTable { offset, len });
    }

    pub(super) fn table_written(&mut self, slot: u32, result: Result<(), Error>) {
        let slice = self.tables.slot_mut(slot);
        debug_assert_eq!(slice.state, SliceState::Writing);
        slice.state = SliceState::Present;
        self.commit.in_flight -= 1;
        self.commit.unsynced = true;
        let slice = self.tables.slot_mut(slot);
        if let Err(error) = result {
            slice.dirty |= core::mem::take(&mut slice.writing);
            return if !self.health.is_poisoned() {
                self.poison_with(error)
            };
        }
        slice.writing = 0;
        if !slice.is_dirty() {
            self.tables.dirty -= 1;
        } else if self.commit.phase == Phase::Refcounts {
            if let Some(counted) = self.refcounted.as_deref_mut() {
                counted.dirty.push(slot);
            }
        } else {
            self.commit.dirty.push(slot);
        }
        if !self.health.is_poisoned() && !self.leaves_tables() {
            self.write_tables();
        }
    }

    /// The pipeline goes on before the tables are written: only where that rule is removed.
    #[inline]
    fn leaves_tables(&self) -> bool {
        let (counts, tables) =
            (self.options.sabotaged(Rule::WaitMarkDirty), self.options.sabotaged(Rule::WaitUpdateL2));
        match self.commit.phase {
            Phase::Refcounts => counts,
            Phase::Tables => tables,
            _ => counts || tables,
        }
    }

    /// A phase begins that writes these slices, or what it finds itself.
    pub(super) fn begin_writing(&mut self, phase: Phase, slots: Vec<u32>) {
        debug_assert!(self.commit.in_flight == 0 || self.leaves_tables());
        let commit = &mut self.commit;
        (commit.phase, commit.cursor, commit.writing) = (phase, 0, slots);
    }

    fn tables_written(&mut self) {
        let commit = &mut self.commit;
        let all_durable = commit.tables_durable == commit.written;
        commit.written = commit.round;
        if !commit.wrote && all_durable {
            commit.tables_durable = commit.written;
        }
        if self.options.sabotaged(Rule::SyncTables) {
            self.commit.tables_durable = self.commit.written;
        }
        self.wake_slot_waiters();
        self.end_round();
    }

    /// Answers who has what it wants; clears the dirty bit if that is wanted and possible; goes on if there
    /// is a reason.
    fn end_round(&mut self) {
        self.commit.phase = Phase::Idle;
        self.release(false);
        let commit = &self.commit;
        let all_durable = commit.tables_durable == commit.written && commit.demand <= commit.written;
        let all_durable = all_durable && self.refcounts_settled();
        if commit.demand_clean && (all_durable || self.options.sabotaged(Rule::ClearAfterSync)) {
            if commit.marked && !self.holds_clearing() {
                return self.cut_ahead();
            }
            if !self.commit.marked {
                self.release(true);
            }
        }
        self.kick();
        self.show_phase();
        if !self.commit.idle() {
            return;
        }
        // young entries that this round left behind still need their alarm
        match self.is_due() {
            true => self.commit.arm(self.options.commit_ms, &mut self.outbox.alarms),
            false => self.arm_need_check(),
        }
    }

    /// Readies the acbs that have what they want. `clean`: the dirty bit is cleared, or was never set.
    pub(super) fn release(&mut self, clean: bool) {
        let mut waiters = core::mem::replace(&mut self.commit.waiters, Queue::new());
        let mut left = Queue::new();
        let mut clean_wanted = false;
        let (written, durable) = (self.commit.written, self.commit.tables_durable);
        while let Some(a) = self.requests.take_first(&mut waiters) {
            let acb = self.requests.acb(a);
            let satisfied = match acb.want {
                Want::Header => self.health.is_clear(),
                Want::Written => acb.window <= written,
                Want::Durable => acb.window <= durable,
                Want::Clean => clean && acb.window <= durable,
            };
            clean_wanted |= acb.want == Want::Clean && !satisfied;
            if satisfied { self.requests.ready(a) } else { self.requests.wait_in(&mut left, a) }
        }
        if clean {
            self.commit.demand_clean = clean_wanted;
        }
        self.commit.waiters = left;
    }

    /// Sets the waiters' states to what they wait for now.
    pub(super) fn show_phase(&mut self) {
        let mut waiters = core::mem::replace(&mut self.commit.waiters, Queue::new());
        let mut kept = Queue::new();
        let has_tables = !self.layout.is_raw();
        while let Some(a) = self.requests.take_first(&mut waiters) {
            self.requests.wait_in(&mut kept, a);
            let commit = &self.commit;
            let acb = self.requests.acb(a);
            let next = if acb.window > commit.round || commit.idle() || acb.want == Want::Header {
                acb.state
            } else if has_tables && acb.window <= commit.written {
                State::SyncTables
            } else {
                match commit.phase {
                    Phase::Mark | Phase::Refcounts => State::MarkDirty,
                    Phase::Tables => State::UpdateL2,
                    _ => State::SyncData,
                }
            };
            if next != acb.state {
                self.requests.set_state(a, next);
            }
        }
        self.commit.waiters = kept;
    }

    /// From now on reads only: memory knows mappings that the file may never have got.
    pub(super) fn poison_with(&mut self, error: Error) {
        self.health.poison(error.clone());
        self.outbox.events.push_back(Event::Poisoned(error.clone()));
        self.commit.phase = Phase::Idle;
        self.requests.fail_all(&self.commit.waiters, &error);
        self.requests.wake(&mut self.commit.waiters);
        if !self.space.is_growing() {
            self.answer_waiters(&Error::Poisoned);
        }
        self.wake_slot_waiters();
    }
}
