//! The pipeline as a value: its phase, what it knows of the header, its timers; and whether a round begins.
//!
//! Knows: what is wanted, what has to be in the file first. Must never know: how a step is done.
//!
//! Invariants: one round at a time; nothing but a sync follows the clearing of the dirty bit.

use super::bit::DirtyBit;
use super::progress::{TABLE_WRITES_MAX, Writing};
use super::windows::Windows;
use crate::base::queue::Queue;
use crate::outbox::{Alarm, Due, Outbox, Timer};
use crate::space::kind::ClusterRun;
use alloc::format;
use alloc::string::String;

/// Where the running round is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Phase {
    Idle,
    /// The header is being written: need-check set, or a new size.
    Mark,
    /// The header is being written for the growth that waits for its bit: no round (QED).
    MarkAhead,
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

impl Phase {
    /// Which may follow.
    fn leads_to(self, next: Phase) -> bool {
        // where a rule is removed the sync between is left out
        let removed =
            cfg!(feature = "sabotage") && matches!(next, Phase::Switch | Phase::Tables | Phase::Idle);
        match self {
            Phase::Reftable | Phase::Switch if removed => true,
            // to itself: nothing is left to be written, and what a check found keeps the bit
            Phase::Idle => !matches!(next, Phase::Reftable | Phase::SyncReftable | Phase::Switch),
            Phase::Mark => matches!(next, Phase::Refcounts | Phase::Sync),
            Phase::Refcounts => next == Phase::Sync,
            Phase::Sync => matches!(next, Phase::Reftable | Phase::Tables | Phase::Idle),
            Phase::Reftable => next == Phase::SyncReftable,
            Phase::SyncReftable => matches!(next, Phase::Switch | Phase::Tables | Phase::Idle),
            Phase::Switch => next == Phase::SyncSwitch,
            Phase::SyncSwitch => matches!(next, Phase::Tables | Phase::Idle),
            Phase::Cut => matches!(next, Phase::Clear | Phase::Idle),
            Phase::MarkAhead | Phase::Tables | Phase::Clear => next == Phase::Idle,
        }
    }
}

/// What begins, if no round is running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RoundStart {
    Nothing,
    /// The header is written for the growth that waits for its bit.
    Ahead,
    /// Nothing but a sync: the bit was cleared.
    Sync,
    /// A round; `mark`: the dirty bit has to be in the file first.
    Round {
        mark: bool,
    },
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Commit {
    pub(crate) windows: Windows,
    pub(crate) bit: DirtyBit,
    pub(super) phase: Phase,
    /// Something was written since the last sync was submitted.
    unsynced: bool,
    /// The header in the file lacks a change.
    header_dirty: bool,
    /// The file is to grow, and the bit has to be in it before (QED).
    wants_bit: bool,
    pub(super) writing: Writing,
    pub(super) waiters: Queue,
    commit_armed: bool,
    check_armed: bool,
    /// The refcount table that the running round replaces.
    old_reftable: Option<ClusterRun>,
}

impl Commit {
    /// `marked`: the header's bit is set and must stay.
    pub(crate) fn new(marked: bool) -> Commit {
        Commit {
            windows: Windows::new(),
            bit: if marked { DirtyBit::Set } else { DirtyBit::Clear },
            phase: Phase::Idle,
            // what another program wrote before us may not be durable
            unsynced: true,
            header_dirty: false,
            wants_bit: false,
            writing: Writing::default(),
            waiters: Queue::new(),
            commit_armed: false,
            check_armed: false,
            old_reftable: None,
        }
    }

    pub(crate) const fn phase(&self) -> Phase {
        debug_assert!(self.writing.in_flight() <= TABLE_WRITES_MAX, "so many writes at once");
        self.phase
    }

    pub(crate) fn set_phase(&mut self, phase: Phase, out: &mut Outbox) {
        debug_assert!(
            phase != Phase::Idle || self.old_reftable.is_none(),
            "a table that was replaced is free"
        );
        debug_assert!(self.phase.leads_to(phase), "{:?} does not lead to {phase:?}", self.phase);
        self.phase = phase;
        out.due |= Due::SHOW;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Something was written that the next sync has to cover.
    #[inline]
    pub(crate) const fn wrote(&mut self) {
        self.unsynced = true;
    }

    /// A sync is about to be submitted; false: there is nothing that it would make durable.
    pub(crate) const fn begin_sync(&mut self) -> bool {
        debug_assert!(matches!(self.phase, Phase::Sync | Phase::SyncReftable | Phase::SyncSwitch));
        self.windows.sync_begun();
        debug_assert!(self.windows.round() < self.windows.open(), "a sync covers a window that is closed");
        core::mem::replace(&mut self.unsynced, false)
    }

    /// As if it covered what was written since: only where that rule is removed.
    pub(crate) const fn covers_all(&mut self) {
        debug_assert!(!matches!(self.phase, Phase::Idle), "a sync is on its way");
        self.unsynced = false;
    }

    /// The header in the file lacks a change from now on.
    pub(crate) fn header_changed(&mut self, out: &mut Outbox) {
        self.header_dirty = true;
        out.due |= Due::ROUND;
    }

    pub(crate) const fn header_is_dirty(&self) -> bool {
        self.header_dirty
    }

    /// The header is being written: the window whose sync makes it durable.
    pub(crate) fn header_emitted(&mut self) -> u64 {
        debug_assert!(!self.is_idle(), "a round writes the header");
        debug_assert!(self.bit != DirtyBit::Cleared, "nothing but a sync follows the clearing");
        self.header_dirty = false;
        // the sync of the running round covers it, or that of the next
        if self.phase == Phase::Mark { self.windows.round() } else { self.windows.open() }
    }

    /// What begins now? `held`: the bit cannot be cleared yet; `autoclear`: the header's autoclear bits wait
    /// to be cleared.
    pub(crate) fn start(&self, held: bool, autoclear: bool) -> RoundStart {
        let reason = self.windows.wants_more()
            || self.windows.wants_clean() && !held
            || self.header_dirty
            || autoclear
            || self.bit == DirtyBit::Cleared;
        let ahead = self.wants_bit && !self.bit.is_in_file();
        debug_assert!(self.bit != DirtyBit::Marking || !self.is_idle(), "a header on its way is a round's");
        match self.bit {
            _ if !self.is_idle() || !(reason || ahead) => RoundStart::Nothing,
            _ if !reason => RoundStart::Ahead,
            DirtyBit::Cleared => RoundStart::Sync,
            _ => {
                let writes_pointers = self.windows.wants_pointers() && self.writing.has_dirty();
                RoundStart::Round { mark: (writes_pointers || ahead) && !self.bit.is_in_file() }
            }
        }
    }

    /// May the file grow now, if its bit has to be in it before? If not, and somebody waits for it, it may
    /// soon.
    pub(crate) fn may_grow(&mut self, wanted: bool, out: &mut Outbox) -> bool {
        if self.bit.is_in_file() && !matches!(self.phase, Phase::Cut | Phase::Clear) {
            return true;
        }
        self.wants_bit |= wanted;
        out.due |= Due::ROUND;
        false
    }

    /// The bit is wanted in the file again.
    pub(crate) const fn want_bit(&mut self) {
        debug_assert!(!self.bit.is_in_file(), "it is there");
        self.wants_bit = true;
    }

    /// The bit is in the file: what waited for it may go on.
    pub(crate) fn bit_is_there(&mut self, out: &mut Outbox) {
        debug_assert!(self.bit != DirtyBit::Cleared);
        self.wants_bit = false;
        out.due |= Due::SPACE;
    }

    /// Nothing begins any more, and nothing goes on.
    pub(crate) const fn stop(&mut self) {
        self.phase = Phase::Idle;
    }

    /// A slice became dirty.
    pub(crate) fn note_dirty(&mut self, slot: u32, after_ms: u32, out: &mut Outbox) {
        self.writing.note_dirty(slot);
        self.arm(after_ms, out);
        if core::mem::replace(&mut self.check_armed, false) {
            out.alarms.push_back(Alarm { timer: Timer::NeedCheck, after_ms: None });
        }
    }

    /// There is something to write: after a while at the latest.
    pub(crate) fn arm(&mut self, after_ms: u32, out: &mut Outbox) {
        if !core::mem::replace(&mut self.commit_armed, true) {
            out.alarms.push_back(Alarm { timer: Timer::Commit, after_ms: Some(after_ms) });
        }
    }

    /// The bit is to be cleared after a while without allocation.
    pub(crate) fn arm_check(&mut self, after_ms: u32, out: &mut Outbox) {
        if self.bit == DirtyBit::Set && !core::mem::replace(&mut self.check_armed, true) {
            out.alarms.push_back(Alarm { timer: Timer::NeedCheck, after_ms: Some(after_ms) });
        }
    }

    /// A timer ran out.
    pub(crate) const fn disarm(&mut self, timer: Timer) {
        match timer {
            Timer::Commit => self.commit_armed = false,
            Timer::NeedCheck => self.check_armed = false,
        }
    }

    /// Slices wait to be written that nobody asked for yet.
    pub(crate) fn has_dirty(&self) -> bool {
        self.writing.has_dirty()
    }

    /// The refcount table that the running round replaces.
    pub(crate) const fn replace_reftable(&mut self, old: ClusterRun) {
        debug_assert!(self.old_reftable.is_none(), "one table at a time is replaced");
        self.old_reftable = Some(old);
    }

    pub(crate) const fn take_old_reftable(&mut self) -> Option<ClusterRun> {
        debug_assert!(self.old_reftable.is_some(), "there is one");
        self.old_reftable.take()
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.windows.check()?;
        let writes = matches!(self.phase, Phase::Refcounts | Phase::Reftable | Phase::Tables);
        if self.writing.in_flight() > 0 && !writes && !self.is_idle() {
            return Err(format!("{} writes in flight in {:?}", self.writing.in_flight(), self.phase));
        }
        match (self.phase, self.bit) {
            (Phase::MarkAhead, DirtyBit::Marking) | (Phase::Clear, DirtyBit::Set) => Ok(()),
            (Phase::MarkAhead | Phase::Clear, bit) => Err(format!("{:?} with {bit:?}", self.phase)),
            (Phase::Cut, bit) if bit != DirtyBit::Set => Err(format!("the file is cut with {bit:?}")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(1, 4, 1)
    }

    #[test]
    fn a_round_begins_for_a_reason_alone() {
        let mut commit = Commit::new(false);
        assert_eq!(commit.start(false, false), RoundStart::Nothing);
        assert_eq!(commit.start(false, true), RoundStart::Round { mark: false }, "autoclear bits");
        commit.windows.demand_clean();
        assert_eq!(commit.start(true, false), RoundStart::Nothing, "held");
        assert_eq!(commit.start(false, false), RoundStart::Round { mark: false });
        let mut commit = Commit::new(false);
        let mut out = outbox();
        commit.header_changed(&mut out);
        assert_eq!((commit.start(true, false), out.due), (RoundStart::Round { mark: false }, Due::ROUND));
        commit.set_phase(Phase::Mark, &mut out);
        assert_eq!(commit.start(true, false), RoundStart::Nothing, "one runs");
        assert_eq!(commit.header_emitted(), 0, "the running round's sync covers it");
    }

    #[test]
    fn pointers_are_written_with_the_bit_in_the_file() {
        let (mut commit, mut out) = (Commit::new(false), outbox());
        commit.note_dirty(3, 1000, &mut out);
        assert_eq!(commit.start(false, false), RoundStart::Nothing, "nobody wants it");
        commit.windows.demand_sync();
        assert_eq!(commit.start(false, false), RoundStart::Round { mark: true });
        commit.bit = DirtyBit::Written;
        assert_eq!(commit.start(false, false), RoundStart::Round { mark: false });
        commit.bit = DirtyBit::Cleared;
        assert_eq!(commit.start(false, false), RoundStart::Sync, "nothing but a sync may follow");
    }

    #[test]
    fn the_file_grows_while_the_bit_is_in_it() {
        let (mut commit, mut out) = (Commit::new(true), outbox());
        assert!(commit.may_grow(true, &mut out));
        for phase in [Phase::Cut, Phase::Clear] {
            commit.set_phase(phase, &mut out);
            assert!(!commit.may_grow(false, &mut out), "{phase:?}");
        }
        commit.stop();
        commit.bit = DirtyBit::Clear;
        assert!(!commit.may_grow(false, &mut out));
        assert_eq!(commit.start(false, false), RoundStart::Nothing, "nobody waits for it");
        assert!(!commit.may_grow(true, &mut out));
        assert_eq!(commit.start(false, false), RoundStart::Ahead);
        commit.bit = DirtyBit::Written;
        commit.bit_is_there(&mut out);
        assert!(commit.may_grow(true, &mut out) && out.due.contains(Due::SPACE));
    }

    #[test]
    fn timers_are_armed_once_and_a_change_puts_the_check_off() {
        let (mut commit, mut out) = (Commit::new(true), outbox());
        commit.arm_check(5000, &mut out);
        commit.arm_check(5000, &mut out);
        commit.note_dirty(0, 1000, &mut out);
        commit.arm(1000, &mut out);
        commit.disarm(Timer::Commit);
        commit.arm(7, &mut out);
        let alarms: alloc::vec::Vec<_> =
            out.alarms.iter().map(|alarm| (alarm.timer, alarm.after_ms)).collect();
        let (write, check) = (Timer::Commit, Timer::NeedCheck);
        assert_eq!(alarms, [(check, Some(5000)), (write, Some(1000)), (check, None), (write, Some(7))]);
    }

    #[test]
    fn the_check_sees_phases_that_do_not_fit() {
        let (mut commit, mut out) = (Commit::new(false), outbox());
        assert_eq!(commit.check(), Ok(()));
        commit.set_phase(Phase::Cut, &mut out);
        assert_eq!(commit.check(), Err(String::from("the file is cut with Clear")));
        commit.set_phase(Phase::Clear, &mut out);
        assert_eq!(commit.check(), Err(String::from("Clear with Clear")));
    }
}
