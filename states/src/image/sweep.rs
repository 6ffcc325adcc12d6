//! The invariant sweep and the digest: what tests, simulator and explorer ask of an image between two steps.
//!
//! Knows: everything, changes nothing.

use super::Image;
use crate::acb::State;
use crate::base::digest::digest;
use crate::base::queue::{NONE, Queue};
use crate::rule::Rule;
use crate::tables::slice::SliceState;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::hash::{Hash, Hasher};

impl Image {
    /// A stable 128-bit digest of everything that decides future behaviour (no counters, no generations).
    pub fn digest(&self) -> u128 {
        digest(self)
    }

    /// Checks what must hold whenever all drains are empty; says what does not.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_places()?;
        self.check_requests()?;
        self.check_tables()?;
        self.check_claims()?;
        match self.held == (self.is_halted() || self.autoclear != super::Autoclear::Clear) {
            true => Ok(()),
            false => Err(format!("held {} with {:?}", self.held, self.autoclear)),
        }
    }

    /// Who waits for what, for a person to read.
    pub fn describe(&self) -> String {
        let acbs = self.acbs.iter().map(|(a, acb)| {
            format!("acb {a}: {:?} [{:#x}, {:#x}) window {} ", acb.state, acb.pos, acb.end, acb.window)
        });
        let mut text: String = acbs.collect();
        text += &format!("commit {:?} dirty {} poison {:?}", self.commit, self.tables.dirty, self.poison);
        text
    }

    fn queues(&self) -> impl Iterator<Item = (&Queue, &'static [State])> {
        use State::{
            AllocL2, AllocRefcount, ClearAutoclear, GrowFile, MarkDirty, ReadL2, SyncData, SyncTables,
            UpdateL2, WaitCluster, WaitSector, WaitSlot,
        };
        let loads =
            self.tables.slots().iter().map(|slice| (&slice.waiters, &[ReadL2, AllocRefcount] as &[State]));
        let claims = self.claims.iter().map(|claim| (&claim.waiters, &[WaitCluster] as &[State]));
        let rest: [(&Queue, &'static [State]); 4] = [
            (&self.sector_waiters, &[WaitSector]),
            (&self.slot_waiters, &[WaitSlot]),
            (self.space.waiters(), &[GrowFile, AllocL2, AllocRefcount]),
            (&self.commit.waiters, &[ClearAutoclear, MarkDirty, SyncData, UpdateL2, SyncTables]),
        ];
        let copies = self.counted().into_iter().flat_map(|counted| &counted.copies);
        let copies = copies.map(|copy| (&copy.waiters, &[AllocL2] as &[State]));
        let moving = match &self.resizing {
            Some(super::Resizing::Copy(copying)) => Some((&copying.waiter, &[AllocL2] as &[State])),
            _ => None,
        };
        loads.chain(claims).chain(copies).chain(moving).chain(rest)
    }

    /// Each live acb is in exactly one place, and its state says which.
    fn check_places(&self) -> Result<(), String> {
        if !self.ready.is_empty() {
            return Err(String::from("the ready queue is not empty"));
        }
        let mut places = vec![0u32; self.options.acbs.max(1) as usize];
        for (queue, states) in self.queues() {
            for a in queue.iter(&self.acbs) {
                let state = self.acbs.get(a).map(|acb| acb.state);
                if !state.is_some_and(|state| states.contains(&state)) {
                    return Err(format!("acb {a} in state {state:?} waits in the queue of {states:?}"));
                }
                places[a as usize] += 1;
            }
        }
        if let Some(closer) = self.closer {
            places[closer as usize] += 1;
        }
        for (a, acb) in self.acbs.iter() {
            let own = acb.pending.count_ones();
            if places[a as usize] + u32::from(own > 0) != 1 {
                return Err(format!(
                    "acb {a} in {:?} is in {} places, {own} I/Os",
                    acb.state, places[a as usize]
                ));
            }
            if acb.pos > acb.run_end || acb.run_end > acb.end {
                return Err(format!("acb {a} has a range that runs backwards"));
            }
            if (acb.link == NONE) != (own > 0 || self.closer == Some(a)) {
                return Err(format!("acb {a} in {:?} has the wrong link", acb.state));
            }
            if own == 0 && self.closer != Some(a) && acb.pos != acb.run_end {
                return Err(format!("acb {a} in {:?} has an extent in progress", acb.state));
            }
        }
        Ok(())
    }

    fn check_requests(&self) -> Result<(), String> {
        for (index, open) in self.requests.iter() {
            let acbs = self.acbs.iter().filter(|(_, acb)| acb.request.index == index).count();
            if acbs != open.acbs as usize || acbs == 0 {
                return Err(format!("request {index} counts {} acbs, there are {acbs}", open.acbs));
            }
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), String> {
        let (mut dirty, mut young) = (0, 0);
        for (slot, slice) in self.tables.slots().iter().enumerate() {
            if slice.state == SliceState::Empty {
                continue;
            }
            dirty += usize::from(slice.is_dirty());
            young += slice.young.len();
            let found = self.tables.find(crate::base::geometry::SliceNumber(slice.number));
            if found != Some(slot as u32) {
                return Err(format!("slot {slot} holds slice {}, found in {found:?}", slice.number));
            }
            if !slice.young.is_sorted_by_key(|young| young.window) {
                return Err(format!("slot {slot}: young changes are out of order"));
            }
            if (slice.state == SliceState::Writing) != (slice.writing != 0) {
                return Err(format!(
                    "slot {slot}: state {:?} with writing {:#x}",
                    slice.state, slice.writing
                ));
            }
            let copies = self.counted().into_iter().flat_map(|counted| &counted.copies);
            let copies = copies.filter(|copy| copy.l1_slot == slot as u32).count();
            let acbs = self.acbs.iter().filter(|(_, acb)| acb.pinned == Some(slot as u32)).count();
            let pins = acbs + copies;
            if pins != slice.pins as usize && !self.sabotaged(Rule::PinLink) && !self.sabotaged(Rule::PinCopy)
            {
                return Err(format!("slot {slot} counts {} pins, there are {pins}", slice.pins));
            }
        }
        if (dirty, young) != (self.tables.dirty, self.tables.young) {
            let counts = (self.tables.dirty, self.tables.young);
            return Err(format!("dirty and young are {:?}, counted as {counts:?}", (dirty, young)));
        }
        Ok(())
    }

    fn check_claims(&self) -> Result<(), String> {
        for (index, claim) in self.claims.iter().enumerate() {
            if !self.acbs.get(claim.acb).is_some_and(|acb| acb.claims) {
                return Err(format!("claim of acb {} that does not know of it", claim.acb));
            }
            let overlaps = |other: &super::Claim| claim.start < other.end && other.start < claim.end;
            if self.claims.iter().skip(index + 1).any(overlaps) && !self.sabotaged(Rule::ClusterClaim) {
                return Err(format!("claims overlap at {:#x}", claim.start));
            }
        }
        let modifying = self.acbs.iter().filter(|(_, acb)| acb.modifies).count();
        if modifying != self.modifying as usize {
            return Err(format!("{modifying} acbs modify sectors, counted as {}", self.modifying));
        }
        Ok(())
    }
}

impl Hash for Image {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.layout, self.options, self.size, self.backing_len).hash(state);
        (&self.acbs, &self.requests, &self.ios, &self.tables, &self.space, &self.commit).hash(state);
        (&self.dangling, &self.refcounted).hash(state);
        (&self.claims, self.sector_waiters, self.modifying, self.slot_waiters).hash(state);
        (self.closer, self.closing, &self.resizing, self.exclusive, self.ready, &self.poison).hash(state);
        (self.autoclear, self.held, &self.corrupt).hash(state);
        (&self.out_io, &self.out_alarms).hash(state);
    }
}

impl PartialEq for Image {
    /// Equal in everything that decides future behaviour.
    fn eq(&self, other: &Image) -> bool {
        (&self.layout, self.options, self.size, self.backing_len)
            == (&other.layout, other.options, other.size, other.backing_len)
            && (&self.acbs, &self.requests, &self.ios, &self.tables, &self.space, &self.commit)
                == (&other.acbs, &other.requests, &other.ios, &other.tables, &other.space, &other.commit)
            && (&self.claims, self.sector_waiters, self.modifying, self.slot_waiters)
                == (&other.claims, other.sector_waiters, other.modifying, other.slot_waiters)
            && (self.closer, self.closing, &self.resizing, self.exclusive, self.ready, &self.poison)
                == (other.closer, other.closing, &other.resizing, other.exclusive, other.ready, &other.poison)
            && self.refcounted == other.refcounted
            && (self.autoclear, self.held, &self.corrupt) == (other.autoclear, other.held, &other.corrupt)
    }
}

impl Eq for Image {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acb::request::{Flags, Kind, Met, Request};
    use crate::image::{Open, SliceNumber};
    use crate::options::Options;
    use crate::qed::{CreateOptions, Header};
    use crate::tables::slice::Young;

    /// A reader that waits for a slice: acb 0, slot 0.
    fn waiting() -> Image {
        let create = CreateOptions {
            size: 1 << 30,
            cluster_size: 65536,
            table_size: 1,
            backing: None,
            backing_raw: false,
        };
        let mut image = Image::qed(Header::create(&create).unwrap(), 1 << 20, &Options::default());
        read(&mut image);
        assert_eq!(image.acbs.get(0).unwrap().state, State::ReadL2);
        image
    }

    /// A reader with its own I/O: acb 0.
    fn reading() -> Image {
        let mut image = Image::raw(1 << 20, &Options::default());
        read(&mut image);
        assert_eq!(image.acbs.get(0).unwrap().state, State::ReadData);
        image
    }

    fn read(image: &mut Image) {
        let request = Request { kind: Kind::Read, offset: 0, len: 512, flags: Flags::empty(), user: 0 };
        image.submit(request).unwrap();
        assert_eq!(image.check_invariants(), Ok(()));
    }

    fn sees(mut image: Image, wrong: impl Fn(&mut Image), said: &str) {
        wrong(&mut image);
        let found = image.check_invariants().expect_err(said);
        assert!(found.contains(said), "{found}");
    }

    fn acb(image: &mut Image) -> &mut crate::acb::Acb {
        image.acbs.get_mut(0).unwrap()
    }

    fn pop(image: &mut Image) -> Option<u32> {
        let mut waiters = image.tables.slot(0).waiters;
        let popped = waiters.pop(&mut image.acbs);
        image.tables.slot_mut(0).waiters = waiters;
        popped
    }

    #[test]
    fn the_sweep_sees_an_acb_in_the_wrong_place() {
        let ready = |image: &mut Image| {
            let a = pop(image).unwrap();
            image.ready.push(&mut image.acbs, a);
        };
        sees(waiting(), ready, "the ready queue is not empty");
        sees(waiting(), |image| acb(image).state = State::WaitSlot, "waits in the queue of [ReadL2");
        sees(waiting(), |image| assert_eq!(pop(image), Some(0)), "is in 0 places, 0 I/Os");
        sees(waiting(), |image| acb(image).run_end = 512, "has an extent in progress");
        sees(waiting(), |image| acb(image).pending = 1, "is in 1 places, 1 I/Os");
        sees(waiting(), |image| image.closer = Some(0), "is in 2 places, 0 I/Os");
        sees(reading(), |image| acb(image).pending = 0, "is in 0 places, 0 I/Os");
        sees(reading(), |image| acb(image).pos = 513, "a range that runs backwards");
        sees(reading(), |image| acb(image).link = 7, "has the wrong link");
        sees(reading(), |image| acb(image).end = 511, "a range that runs backwards");
        let mut image = reading();
        (image.closer, acb(&mut image).pending) = (Some(0), 0);
        assert_eq!(image.check_invariants(), Ok(()), "a closer is in no list");
    }

    #[test]
    fn the_sweep_sees_requests_and_claims_that_are_counted_wrong() {
        sees(waiting(), |image| image.requests.get_mut(0).unwrap().acbs = 2, "counts 2 acbs, there are 1");
        let none = Open { user: 0, acbs: 0, met: Met::empty(), error: None, extent: None };
        let lost = |image: &mut Image| assert!(image.requests.insert(none.clone()).is_some());
        sees(waiting(), lost, "counts 0 acbs, there are 0");
        sees(reading(), |image| image.modifying = 1, "0 acbs modify sectors, counted as 1");
        sees(reading(), |image| acb(image).modifies = true, "1 acbs modify sectors, counted as 0");
        let unknown = |image: &mut Image| {
            image.claim(0, 0, 4096, false);
            acb(image).claims = false;
        };
        sees(reading(), unknown, "that does not know of it");
        let claimed = |second| {
            let mut image = reading();
            image.claim(0, 4096, 8192, false);
            image.claim(0, second, second + 4096, false);
            image
        };
        for (second, overlaps) in [(0, false), (512, true), (4096, true), (8191, true), (8192, false)] {
            assert_eq!(claimed(second).check_invariants().is_err(), overlaps, "{second}");
        }
        sees(claimed(512), |_| (), "claims overlap at 0x1000");
    }

    #[test]
    fn the_sweep_sees_slices_that_are_counted_wrong() {
        sees(waiting(), |image| image.tables.dirty = 1, "dirty and young are (0, 0), counted as (1, 0)");
        sees(waiting(), |image| image.tables.young = 1, "dirty and young are (0, 0), counted as (0, 1)");
        sees(waiting(), |image| image.tables.slot_mut(0).dirty = 1, "dirty and young are (1, 0)");
        sees(waiting(), |image| image.tables.slot_mut(0).number = 5, "holds slice 5, found in None");
        sees(waiting(), |image| image.tables.slot_mut(0).pins = 1, "counts 1 pins, there are 0");
        sees(waiting(), |image| acb(image).pinned = Some(0), "counts 0 pins, there are 1");
        sees(waiting(), |image| image.tables.slot_mut(0).writing = 1, "with writing 0x1");
        let writing = |image: &mut Image| image.tables.slot_mut(0).state = SliceState::Writing;
        sees(waiting(), writing, "state Writing with writing 0x0");
        let young = |window| Young { first: 0, count: 1, old: 0, window };
        let unsorted = |image: &mut Image| image.tables.slot_mut(0).young = [young(2), young(1)].into();
        sees(waiting(), unsorted, "young changes are out of order");
        // a slot that holds nothing is not looked at
        let mut image = waiting();
        let empty = image.tables.claim(SliceNumber(9), crate::base::geometry::HostOffset(0), 8).unwrap();
        image.tables.drop_slot(empty);
        assert_eq!(image.check_invariants(), Ok(()));
    }

    #[test]
    fn a_description_names_who_waits() {
        let text = waiting().describe();
        assert!(text.starts_with("acb 0: ReadL2 [0x0, 0x200) window 0 commit"), "{text}");
    }

    #[test]
    fn images_differ_that_behave_differently() {
        let image = reading();
        let mut other = image.clone();
        assert!(image == other && image.digest() == other.digest());
        other.size += 1;
        assert!(image != other && image.digest() != other.digest());
        let mut other = image.clone();
        other.exclusive = true;
        assert!(image != other && image.digest() != other.digest());
    }
}
