//! Acbs that wait for each other: for clusters that are being allocated, for sectors that are being
//! modified, for room in the cache.
//!
//! Two writers of one sector under O_DIRECT: one that covers it only partly reads it, changes its bytes and
//! writes it back, so whatever another writes in between would be lost. Rule: while an acb modifies sectors,
//! no other write in place touches them, and it starts only when no write that touches them is in flight.
//!
//! Knows: ranges of writes in flight, the gates of the 2010 discussion. Must never know: their data, where
//! space comes from.
//!
//! Invariants:
//! * a compressed write leaves the line when it has its place, and when it ends;
//! * two claims never overlap; a claim lives from before the first byte is written until the clusters are
//!   linked in memory (or the write failed); whoever waits for a claim looks again when it goes;
//! * `modifying` counts the acbs in `ReadModify`, or in `CopyOnWrite` or `WriteData` after it; without any,
//!   writes pay one comparison.

use super::block::{AcbIndex, Held, Source};
use super::request::Met;
use super::requests::Requests;
use super::state::State;
use crate::base::queue::Queue;
use crate::base::span::Span;
use crate::options::{AllocationGate, Options};
use crate::rule::Rule;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Guest bytes, whole clusters, that `acb` allocates.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Claim {
    acb: AcbIndex,
    guest: Span,
    /// It had to allocate an L2 table.
    new_table: bool,
    waiters: Queue,
}

/// Guest bytes, whole clusters, that a request wants to change entries of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) guest: Span,
    /// An L2 table has to be allocated.
    pub(crate) new_table: bool,
    /// Guest bytes that one L2 table maps.
    pub(crate) table_span: u64,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Waits {
    claims: Vec<Claim>,
    /// Acbs that wait for a sector.
    sectors: Queue,
    /// Acbs that write only parts of sectors just now.
    modifying: u32,
    /// Acbs that wait for room in the cache.
    slots: Queue,
    /// Compressed writes that have no place yet, in the order in which they were asked for,
    line: VecDeque<AcbIndex>,
    /// and those of them that wait for their turn.
    turns: Queue,
}

impl Waits {
    /// Room for the claims of so many acbs.
    pub(crate) fn new(acbs: u32) -> Waits {
        debug_assert!(acbs > 0, "an image has acbs");
        let claims = Vec::with_capacity(acbs as usize);
        let (line, turns) = (VecDeque::new(), Queue::new());
        Waits { claims, sectors: Queue::new(), modifying: 0, slots: Queue::new(), line, turns }
    }

    /// Nothing is being allocated.
    pub(crate) const fn has_no_claims(&self) -> bool {
        self.claims.is_empty()
    }

    /// May an allocating write start, by the gate in force? If not, the acb waits for the claim in its way.
    pub(crate) fn pass_gate(
        &mut self,
        requests: &mut Requests,
        a: AcbIndex,
        wanted: Wanted,
        options: &Options,
    ) -> bool {
        debug_assert!(wanted.table_span > 0);
        debug_assert!(!wanted.guest.is_empty());
        if self.claims.is_empty() {
            return true;
        }
        let Wanted { guest, new_table, table_span } = wanted;
        let blocks = |claim: &Claim| {
            claim.guest.overlaps(guest)
                || match options.allocation_gate {
                    AllocationGate::Image => true,
                    AllocationGate::NewTable => new_table || claim.new_table,
                    AllocationGate::Table => claim.guest.start / table_span == guest.start / table_span,
                    AllocationGate::Cluster => false,
                }
        };
        if options.sabotaged(Rule::ClusterClaim) {
            return true;
        }
        let Some(claim) = self.claims.iter_mut().find(|claim| blocks(claim)) else { return true };
        debug_assert_ne!(claim.acb, a);
        requests.wait_in(&mut claim.waiters, a);
        requests.note(a, Met::WAITED);
        requests.set_state(a, State::WaitCluster);
        false
    }

    /// The acb allocates the clusters of this guest range.
    pub(crate) fn claim(&mut self, requests: &mut Requests, a: AcbIndex, guest: Span, new_table: bool) {
        debug_assert!(!guest.is_empty() && !requests.acb(a).held.claims);
        self.claims.push(Claim { acb: a, guest, new_table, waiters: Queue::new() });
        requests.acb_mut(a).held.claims = true;
    }

    /// May a write in place of this host range start? If not, the acb waits.
    #[inline]
    pub(crate) fn pass_sectors(
        &mut self,
        requests: &mut Requests,
        a: AcbIndex,
        host: Span,
        modifies: bool,
        options: &Options,
    ) -> bool {
        debug_assert!(host.start <= host.end);
        // the common case: nobody writes parts of sectors
        self.modifying == 0 && !modifies || self.pass_modifiers(requests, a, host, modifies, options)
    }

    fn pass_modifiers(
        &mut self,
        requests: &mut Requests,
        a: AcbIndex,
        host: Span,
        modifies: bool,
        options: &Options,
    ) -> bool {
        let conflict = requests.iter().any(|(other, acb)| {
            debug_assert!(modifies || self.modifying > 0, "the common case is none of these");
            // one that modifies may read its surroundings (`CopyOnWrite`) after its neighbours
            let writes = acb.held.modifies
                || matches!(acb.state, State::ReadModify | State::WriteData | State::ZeroData);
            if other == a || !writes || !(modifies || acb.held.modifies) {
                return false;
            }
            acb.host_range().overlaps(host)
        });
        let conflict = conflict && !options.sabotaged(Rule::SectorWait);
        if conflict {
            requests.note(a, Met::WAITED);
            requests.set_state(a, State::WaitSector);
            requests.wait_in(&mut self.sectors, a);
        }
        !conflict
    }

    /// Nobody writes parts of sectors, or waits for somebody who does: a write of whole ones may start, and
    /// end, as if it were alone.
    #[inline]
    pub(crate) fn has_no_modifiers(&self) -> bool {
        self.modifying == 0 && self.sectors.is_empty()
    }

    /// The acb's write covers sectors only partly.
    pub(crate) fn modify(&mut self, requests: &mut Requests, a: AcbIndex) {
        debug_assert!(!requests.acb(a).held.modifies);
        requests.acb_mut(a).held.modifies = true;
        self.modifying += 1;
    }

    /// No slot of the cache is free, or too many mappings are uncommitted: the acb waits for a commit, a load
    /// or an unpin.
    pub(crate) fn wait_for_slot(&mut self, requests: &mut Requests, a: AcbIndex) {
        debug_assert!(!requests.acb(a).held.any(), "it has written nothing yet");
        requests.note(a, Met::WAITED);
        requests.set_state(a, State::WaitSlot);
        requests.wait_in(&mut self.slots, a);
    }

    /// There may be room in the cache: those that wait for it look again.
    pub(crate) fn wake_slots(&mut self, requests: &mut Requests) {
        requests.wake(&mut self.slots);
    }

    /// A compressed write begins: it gets its place when those that began before have theirs, so that the
    /// same requests lie the same, whatever is compressed first.
    pub(crate) fn line_up(&mut self, a: AcbIndex) {
        debug_assert!(!self.line.contains(&a), "it begins once");
        self.line.push_back(a);
    }

    /// Is it its turn? If not, it waits.
    pub(crate) fn has_turn(&mut self, requests: &mut Requests, a: AcbIndex) -> bool {
        debug_assert!(self.line.contains(&a), "it has no place yet");
        if self.line.front() == Some(&a) {
            return true;
        }
        requests.note(a, Met::WAITED);
        requests.set_state(a, State::WaitTurn);
        requests.wait_in(&mut self.turns, a);
        false
    }

    /// It has its place, or needs none any more. Of others nothing happens.
    #[inline]
    pub(crate) fn turn_over(&mut self, requests: &mut Requests, a: AcbIndex) {
        if !self.line.is_empty() {
            self.leave_line(requests, a);
        }
    }

    #[inline(never)]
    fn leave_line(&mut self, requests: &mut Requests, a: AcbIndex) {
        let before = self.line.len();
        self.line.retain(|other| *other != a);
        debug_assert!(self.line.len() + 1 >= before, "it stood there once");
        if self.line.len() < before {
            requests.wake(&mut self.turns);
        }
    }

    /// Gives back what an acb holds: its claim, its part in sector waits. Wakes those that waited for them.
    /// What is left: the slot that it pinned.
    #[inline]
    pub(crate) fn let_go(&mut self, requests: &mut Requests, a: AcbIndex) -> Option<u32> {
        let acb = requests.acb_mut(a);
        let Held { claims, pinned, modifies } = core::mem::take(&mut acb.held);
        let wrote = matches!(acb.state, State::WriteData | State::ZeroData | State::ReadModify);
        debug_assert!(claims == pinned.is_some(), "what is claimed will be linked into a slice that stays");
        acb.extent.source = Source::Zeros;
        if claims {
            self.unclaim(requests, a);
        }
        if modifies {
            debug_assert!(self.modifying > 0);
            self.modifying -= 1;
        }
        if wrote || modifies {
            requests.wake(&mut self.sectors);
        }
        pinned
    }

    /// Its claim is gone: those that waited for it look again.
    fn unclaim(&mut self, requests: &mut Requests, a: AcbIndex) {
        let index = self.claims.iter().position(|claim| claim.acb == a);
        debug_assert!(index.is_some(), "an acb that claims stands in the list");
        if let Some(index) = index {
            let mut claim = self.claims.swap_remove(index);
            requests.wake(&mut claim.waiters);
        }
    }

    /// The lists that acbs stand in here, and which states they are in.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (&Queue, &'static [State])> {
        let claims = self.claims.iter().map(|claim| (&claim.waiters, &[State::WaitCluster] as &[State]));
        let rest: [(&Queue, &'static [State]); 3] = [
            (&self.sectors, &[State::WaitSector]),
            (&self.slots, &[State::WaitSlot]),
            (&self.turns, &[State::WaitTurn]),
        ];
        claims.chain(rest)
    }

    /// The first invariant that does not hold. `removed`: claims may overlap.
    pub(crate) fn check(&self, requests: &Requests, removed: bool) -> Result<(), String> {
        for (index, claim) in self.claims.iter().enumerate() {
            if !requests.find(claim.acb.slot()).is_some_and(|(_, acb)| acb.held.claims) {
                return Err(format!("claim of acb {} that does not know of it", claim.acb));
            }
            let overlaps = |other: &Claim| claim.guest.overlaps(other.guest);
            if self.claims.iter().skip(index + 1).any(overlaps) && !removed {
                return Err(format!("claims overlap at {:#x}", claim.guest.start));
            }
        }
        if let Some(gone) = self.line.iter().find(|a| requests.find(a.slot()).is_none()) {
            return Err(format!("acb {gone} has ended, and stands in the line of compressed writes"));
        }
        let modifying = requests.iter().filter(|(_, acb)| acb.held.modifies).count();
        match modifying == self.modifying as usize {
            true => Ok(()),
            false => Err(format!("{modifying} acbs modify sectors, counted as {}", self.modifying)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acb::edges::EdgeTable;
    use crate::acb::request::{Flags, Request, RequestKind};

    const FIRST: AcbIndex = AcbIndex(0);
    const SECOND: AcbIndex = AcbIndex(1);
    const THIRD: AcbIndex = AcbIndex(2);

    /// Three writers, and nothing in their way.
    fn writers() -> (Waits, Requests) {
        let mut requests = Requests::new(EdgeTable::QCOW2, 3, 3, false);
        for user in 0..3 {
            let request =
                Request { kind: RequestKind::Write, offset: 0, len: 512, flags: Flags::empty(), user };
            let (a, _) = requests.begin(&request, 0, 512);
            requests.set_state(a, State::FindCluster);
        }
        (Waits::new(3), requests)
    }

    fn wanted(start: u64, end: u64) -> Wanted {
        Wanted { guest: Span::new(start, end), new_table: false, table_span: 1 << 20 }
    }

    #[test]
    fn each_gate_lets_through_what_it_says() {
        use AllocationGate::{Cluster, Image, NewTable, Table};
        let near = wanted(65536, 131_072);
        let far = wanted(1 << 20, (1 << 20) + 65536);
        let makes = Wanted { new_table: true, ..far };
        for (gate, claim_makes, wanted, passes) in [
            (Cluster, false, near, true),
            (Cluster, true, makes, true),
            (Table, false, near, false),
            (Table, true, makes, true),
            (NewTable, false, near, true),
            (NewTable, false, makes, false),
            (NewTable, true, near, false),
            (Image, false, far, false),
            (Cluster, false, wanted(65535, 131_072), false),
        ] {
            let (mut waits, mut requests) = writers();
            let options = Options { allocation_gate: gate, ..Options::default() };
            waits.claim(&mut requests, FIRST, Span::new(0, 65536), claim_makes);
            requests.acb_mut(FIRST).held.pinned = Some(3);
            assert_eq!(
                waits.pass_gate(&mut requests, SECOND, wanted, &options),
                passes,
                "{gate:?} {wanted:?}"
            );
            assert_eq!(requests.acb(SECOND).state == State::WaitCluster, !passes);
            assert_eq!(waits.let_go(&mut requests, FIRST), Some(3));
            assert_eq!(requests.next_ready(), (!passes).then_some(SECOND), "the claim goes");
            assert_eq!(waits.check(&requests, false), Ok(()));
        }
    }

    #[test]
    fn whoever_modifies_a_sector_writes_alone() {
        let (mut waits, mut requests) = writers();
        let options = Options::default();
        assert!(waits.pass_sectors(&mut requests, FIRST, Span::new(0, 512), true, &options));
        waits.modify(&mut requests, FIRST);
        let acb = requests.acb_mut(FIRST);
        acb.write.fill = Span::new(0, 512);
        assert!(
            waits.pass_sectors(&mut requests, SECOND, Span::new(512, 1024), true, &options),
            "another sector"
        );
        assert!(!waits.pass_sectors(&mut requests, THIRD, Span::new(0, 4096), false, &options));
        assert_eq!(waits.check(&requests, false), Ok(()));
        waits.let_go(&mut requests, FIRST);
        assert_eq!((requests.next_ready(), waits.modifying), (Some(THIRD), 0));
    }

    #[test]
    fn the_check_sees_what_is_counted_wrong() {
        let (mut waits, mut requests) = writers();
        waits.claim(&mut requests, FIRST, Span::new(4096, 8192), false);
        for (second, overlaps) in [(0, false), (512, true), (4096, true), (8191, true), (8192, false)] {
            let (mut waits, mut requests) = (waits.clone(), requests.clone());
            waits.claim(&mut requests, SECOND, Span::at(second, 4096), false);
            assert_eq!(waits.check(&requests, false).is_err(), overlaps, "{second}");
            assert_eq!(waits.check(&requests, true), Ok(()));
        }
        waits.modifying = 1;
        let said = |waits: &Waits, requests: &Requests| waits.check(requests, false).unwrap_err();
        assert_eq!(said(&waits, &requests), "0 acbs modify sectors, counted as 1");
        requests.acb_mut(FIRST).held.claims = false;
        assert_eq!(said(&waits, &requests), "claim of acb 0 that does not know of it");
    }
}
