//! Waiting for room and for sectors.
//!
//! Two writers of one sector under O_DIRECT: one that covers it only partly reads it, changes its bytes and
//! writes it back, so whatever another writes in between would be lost. Rule: while an acb modifies sectors,
//! no other write in place touches them, and it starts only when no write that touches them is in flight.
//!
//! Invariants: `modifying` counts the acbs in `ReadModify`, or in `CopyOnWrite` or `WriteData` after it;
//! without any, writes pay one comparison.

use crate::acb::State;
use crate::acb::request::Met;
use crate::image::Image;
use crate::rule::Rule;

impl Image {
    /// No slot of the cache is free, or too many mappings are uncommitted: wait for a commit, a load or an
    /// unpin.
    pub(crate) fn wait_for_slot(&mut self, a: u32) {
        if self.health.is_poisoned() {
            // dirty slices stay in memory for ever now: nothing will come free
            return self.finish(a, Err(crate::error::Error::Poisoned));
        }
        self.requests.note(a, Met::WAITED);
        self.requests.set_state(a, State::WaitSlot);
        self.requests.wait_in(&mut self.slot_waiters, a);
        self.commit_soon();
    }

    pub(crate) fn wake_slot_waiters(&mut self) {
        self.requests.wake(&mut self.slot_waiters);
        if self.refcounted.as_deref().is_some_and(|counted| counted.quarantine.is_counting()) {
            self.count_down();
        }
    }

    /// May a write in place of host bytes `[start, end)` start? If not, the acb waits.
    pub(crate) fn pass_sectors(&mut self, a: u32, start: u64, end: u64, modifies: bool) -> bool {
        if self.modifying == 0 && !modifies {
            return true;
        }
        let conflict = self.requests.iter().any(|(other, acb)| {
            // one that modifies may read its surroundings (`CopyOnWrite`) after its neighbours
            let writes =
                acb.modifies || matches!(acb.state, State::ReadModify | State::WriteData | State::ZeroData);
            if other == a || !writes || !(modifies || acb.modifies) {
                return false;
            }
            let (low, high) = acb.host_range();
            low < end && start < high
        });
        let conflict = conflict && !self.options.sabotaged(Rule::SectorWait);
        if conflict {
            self.requests.note(a, Met::WAITED);
            self.requests.set_state(a, State::WaitSector);
            self.requests.wait_in(&mut self.sector_waiters, a);
        }
        !conflict
    }

    pub(crate) fn wake_sector_waiters(&mut self) {
        self.requests.wake(&mut self.sector_waiters);
    }
}
