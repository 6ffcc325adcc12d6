//! The dirty bit and the space ahead of the data, of QED.
//!
//! QED counts nothing: space behind its last cluster in use is found by a check alone, and an image is
//! checked when it is opened if its need-check bit is set. So the bit is in the file before the file grows,
//! and the file ends with its data before the bit is cleared: what a program that was killed leaves is
//! given back by the next opening. (A power cut may keep the length and not the bit: what nobody waits for,
//! a sync in front of the first growth, is not worth its time. `check -r` finds that space.)
//!
//! Knows: what the header in the file says. Must never know: who wants space.
//!
//! Invariants:
//! * the file grows while the bit is in it (QE12);
//! * what is behind the data is cut off before the bit is cleared; a growth in flight ends before (QE12).

use super::{Alarm, Phase, Timer};
use crate::fault::Op;
use crate::image::{Image, Purpose};
use crate::io::IoOp;
use crate::rule::Rule;

impl super::Commit {
    /// A sync shall come, though nothing waits to be written.
    pub(crate) fn demand_sync(&mut self) {
        self.demand = self.demand.max(self.window);
    }

    /// Pointers of windows up to this one shall be durable.
    pub(crate) fn demand_durable(&mut self, window: u64) {
        self.demand = self.demand.max(window);
        self.demand_durable = self.demand_durable.max(window);
    }
}

impl Image {
    /// May the file grow now? If not, and somebody waits for it, it may soon.
    pub(crate) fn may_grow(&mut self, wanted: bool) -> bool {
        let removed =
            self.options.sabotaged(Rule::BitBeforeGrowth) || self.options.sabotaged(Rule::MarkDirty);
        if !self.layout.marks_growth() || removed {
            return true;
        }
        let commit = &mut self.commit;
        if commit.bit && !matches!(commit.phase, Phase::Cut | Phase::Clear) {
            return true;
        }
        commit.wants_bit |= wanted;
        self.kick();
        false
    }

    /// Writes the header for the growth that waits for it.
    pub(super) fn mark_ahead(&mut self) {
        self.set_dirty_bit(true);
        self.commit.phase = Phase::Mark;
        (self.commit.ahead, self.commit.maybe_marked) = (true, true);
        self.write_header(Op::WriteHeader);
    }

    /// It is written.
    pub(super) fn marked_ahead(&mut self) {
        self.commit.phase = Phase::Idle;
        self.commit.ahead = false;
        self.bit_is_there();
        self.kick();
    }

    pub(super) fn bit_is_there(&mut self) {
        self.commit.wants_bit = false;
        self.space_on();
    }

    /// The bit may not be cleared yet: the file is growing.
    pub(super) fn holds_clearing(&self) -> bool {
        self.layout.marks_growth() && self.space.is_growing()
    }

    /// The bit was cleared for who wants the image in order now. What has space and is not linked, or linked
    /// in memory alone, is behind the end of what a check would find.
    pub(super) fn mark_again(&mut self) {
        let qed = self.layout.marks_growth() && !self.closing;
        self.commit.wants_bit |= qed && (!self.claims.is_empty() || self.tables.dirty > 0);
    }

    /// The bit is to be cleared, and nothing is left to be written: first the file is cut.
    pub(super) fn cut_ahead(&mut self) {
        let qed = self.layout.marks_growth() && !self.options.sabotaged(Rule::CutBeforeClear);
        match if qed { self.space.cut() } else { None } {
            None => self.start_clear(),
            Some(len) => {
                self.commit.phase = Phase::Cut;
                self.outbox.emit(Purpose::Cut, Op::SetLen, len, IoOp::SetLen { len });
                self.show_phase();
            }
        }
    }

    /// It is; or is as long as it was, which is no harm.
    pub(crate) fn cut_off(&mut self) {
        self.commit.unsynced = true;
        if !self.health.is_poisoned() {
            self.start_clear();
            self.show_phase();
        }
    }

    fn start_clear(&mut self) {
        if let Some(header) = self.layout.qed_header()
            && header.keeps_need_check()
        {
            // in order, but for what a check found
            self.commit.phase = Phase::Idle;
            return self.release(true);
        }
        self.set_dirty_bit(false);
        self.commit.phase = Phase::Clear;
        self.write_header(Op::ClearDirty);
    }

    /// Something is to be written after a while, though nobody asks for it. Counts that may be wrong in the
    /// file (lazy refcounts) wait until the dirty bit is to be cleared.
    pub(super) fn is_due(&self) -> bool {
        match self.refcounted.as_deref() {
            Some(counted) if self.uses_dirty_bit() && self.commit.marked => {
                !self.commit.dirty.is_empty() || counted.quarantine.has_work()
            }
            _ => self.tables.dirty > 0 || !self.refcounts_settled(),
        }
    }

    pub(super) fn arm_need_check(&mut self) {
        if self.commit.marked && !self.commit.check_armed {
            self.commit.check_armed = true;
            let alarm = Alarm { timer: Timer::NeedCheck, after_ms: Some(self.options.need_check_ms) };
            self.outbox.alarms.push_back(alarm);
        }
    }
}
