//! Claims: which guest clusters are being allocated, and the gates of the 2010 discussion.
//!
//! Knows: cluster ranges of allocating writes in flight. Must never know: their data.
//!
//! Invariants: two claims never overlap; a claim lives from before the first byte is written until the
//! clusters are linked in memory (or the write failed); whoever waits for a claim looks again when it goes.

use crate::acb::Source;
use crate::acb::State;
use crate::acb::request::Met;
use crate::base::queue::Queue;
use crate::image::Image;
use crate::options::AllocationGate;
use crate::rule::Rule;

/// Guest bytes `[start, end)`, whole clusters, that `acb` allocates.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Claim {
    pub(crate) acb: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// It had to allocate an L2 table.
    pub(crate) new_table: bool,
    pub(crate) waiters: Queue,
}

impl Image {
    /// May an allocating write of `[start, end)` start, by the gate in force? If not, the acb waits for the
    /// claim in its way.
    pub(crate) fn pass_gate(&mut self, a: u32, start: u64, end: u64, new_table: bool) -> bool {
        if self.claims.is_empty() {
            return true;
        }
        let gate = self.options.allocation_gate;
        let span = self.layout.geometry().map_or(1 << 63, |geometry| geometry.table_span());
        let blocks = |claim: &Claim| {
            let overlaps = claim.start < end && start < claim.end;
            overlaps
                || match gate {
                    AllocationGate::Image => true,
                    AllocationGate::NewTable => new_table || claim.new_table,
                    AllocationGate::Table => claim.start / span == start / span,
                    AllocationGate::Cluster => false,
                }
        };
        if self.options.sabotaged(Rule::ClusterClaim) {
            return true;
        }
        let Some(claim) = self.claims.iter_mut().find(|claim| blocks(claim)) else { return true };
        debug_assert_ne!(claim.acb, a);
        self.requests.wait_in(&mut claim.waiters, a);
        self.requests.note(a, Met::WAITED);
        self.requests.set_state(a, State::WaitCluster);
        false
    }

    pub(crate) fn claim(&mut self, a: u32, start: u64, end: u64, new_table: bool) {
        debug_assert!(start < end);
        self.claims.push(Claim { acb: a, start, end, new_table, waiters: Queue::new() });
        self.requests.acb_mut(a).claims = true;
    }

    /// Gives back what an acb holds: its claim, its pin, its part in sector waits. Wakes who waited for them.
    pub(crate) fn let_go(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        let (claims, pinned, modifies) = (acb.claims, acb.pinned.take(), acb.modifies);
        let wrote = matches!(acb.state, State::WriteData | State::ZeroData | State::ReadModify);
        acb.claims = false;
        acb.modifies = false;
        acb.source = Source::Zeros;
        if claims && let Some(index) = self.claims.iter().position(|claim| claim.acb == a) {
            let mut claim = self.claims.swap_remove(index);
            self.requests.wake(&mut claim.waiters);
        }
        if let Some(slot) = pinned {
            self.unpin(slot, Rule::PinLink);
        }
        if modifies {
            self.modifying -= 1;
        }
        if wrote || modifies {
            self.wake_sector_waiters();
        }
    }
}
