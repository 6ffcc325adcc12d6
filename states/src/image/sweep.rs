//! The invariant sweep and the digest: what tests, simulator and explorer ask of an image between two steps.
//!
//! Knows: everything, changes nothing.

use super::value::Image;
use crate::acb::State;
use crate::base::digest::digest;
use crate::base::queue::{NONE, Queue};
use crate::rule::Rule;
use crate::space::counts::Refcounted;
use crate::tables::slice::SliceState;
use alloc::format;
use alloc::string::String;
use alloc::vec;

impl Image {
    /// A stable 128-bit digest of everything that decides future behaviour (no counters, no generations).
    pub fn digest(&self) -> u128 {
        digest(self)
    }

    /// Checks what must hold whenever all drains are empty; says what does not.
    ///
    /// # Errors
    /// The first that does not hold, in words: a fault of quod's.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.requests.check()?;
        self.outbox.check()?;
        self.check_places()?;
        self.check_pins()?;
        self.tables.check()?;
        self.waits.check(&self.requests, self.options.sabotaged(Rule::ClusterClaim))?;
        self.jobs.check()?;
        self.health.check()?;
        if self.options.breaks_rules() {
            // what a removed rule leads to is to be noticed by what it does
            return Ok(());
        }
        self.dangling.check()?;
        self.space.check()?;
        self.commit.check()?;
        self.commit.check_waiters(&self.requests)?;
        self.refcounted.as_deref().map_or(Ok(()), Refcounted::check)
    }

    /// Which acb waits for what, for a person to read.
    pub fn describe(&self) -> String {
        let acbs = self.requests.iter().map(|(a, acb)| {
            format!("acb {a}: {:?} [{:#x}, {:#x}) window {} ", acb.state, acb.pos, acb.end, acb.commit.window)
        });
        let mut text: String = acbs.collect();
        text += &format!(
            "commit {:?} dirty {} poison {:?}",
            self.commit,
            self.tables.dirty,
            self.health.reason()
        );
        text
    }

    fn queues(&self) -> impl Iterator<Item = (&Queue, &'static [State])> {
        use State::{
            AllocL2, AllocRefcount, ClearAutoclear, GrowFile, MarkDirty, ReadL2, SyncData, SyncTables,
            UpdateL2,
        };
        let loads =
            self.tables.slots().iter().map(|slice| (&slice.waiters, &[ReadL2, AllocRefcount] as &[State]));
        let rest: [(&Queue, &'static [State]); 2] = [
            (self.space.waiters(), &[GrowFile, AllocL2, AllocRefcount]),
            (self.commit.waiters(), &[ClearAutoclear, MarkDirty, SyncData, UpdateL2, SyncTables]),
        ];
        let copies = self.refcounted.as_deref().into_iter().flat_map(|counted| counted.copies.iter());
        let copies = copies.map(|copy| (&copy.waiters, &[AllocL2] as &[State]));
        let moving = self.jobs.waiters().map(|waiter| (waiter, &[AllocL2] as &[State]));
        let edit = self.edit.as_deref().map(|edit| (edit.waiter(), &[State::Snapshot] as &[State]));
        loads.chain(self.waits.queues()).chain(copies).chain(moving).chain(edit).chain(rest)
    }

    /// Each live acb is in exactly one place, and its state says which.
    fn check_places(&self) -> Result<(), String> {
        let mut places = vec![0u32; self.options.acbs.max(1) as usize];
        for (queue, states) in self.queues() {
            for a in self.requests.members(queue) {
                let state = self.requests.acb(a).state;
                if !states.contains(&state) {
                    return Err(format!("acb {a} in state {state:?} waits in the queue of {states:?}"));
                }
                places[a.slot() as usize] += 1;
            }
        }
        if let Some(closer) = self.requests.closer() {
            places[closer.slot() as usize] += 1;
        }
        for (a, acb) in self.requests.iter() {
            let own = acb.io.pending.count_ones();
            if places[a.slot() as usize] + u32::from(own > 0) != 1 {
                return Err(format!(
                    "acb {a} in {:?} is in {} places, {own} I/Os",
                    acb.state,
                    places[a.slot() as usize]
                ));
            }
            if (acb.link == NONE) != (own > 0 || self.requests.closer() == Some(a)) {
                return Err(format!("acb {a} in {:?} has the wrong link", acb.state));
            }
            if own == 0 && self.requests.closer() != Some(a) && acb.pos != acb.extent.end {
                return Err(format!("acb {a} in {:?} has an extent in progress", acb.state));
            }
        }
        Ok(())
    }

    /// A slice counts as many pins as there are acbs and copies that hold it.
    fn check_pins(&self) -> Result<(), String> {
        if self.options.sabotaged(Rule::PinLink) || self.options.sabotaged(Rule::PinCopy) {
            return Ok(());
        }
        for (slot, slice) in self.tables.slots().iter().enumerate() {
            let copies = self.refcounted.as_deref().into_iter().flat_map(|counted| counted.copies.iter());
            let copies = copies.filter(|copy| copy.l1_slot == slot as u32).count();
            let acbs = self.requests.iter().filter(|(_, acb)| acb.held.pinned == Some(slot as u32)).count();
            let pins = acbs + copies;
            if slice.state != SliceState::Empty && pins != slice.pins as usize {
                return Err(format!("slot {slot} counts {} pins, there are {pins}", slice.pins));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acb::request::{Flags, Request, RequestKind};
    use crate::acb::{AcbIndex, Want};
    use crate::base::geometry::SliceNumber;
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
        let mut image = Image::qed(Header::create(&create).unwrap(), 1 << 20, None, &Options::default());
        read(&mut image);
        assert_eq!(image.requests.acb(AcbIndex::FIRST).state, State::ReadL2);
        image
    }

    /// A reader with its own I/O: acb 0.
    fn reading() -> Image {
        let mut image = Image::raw(1 << 20, &Options::default());
        read(&mut image);
        assert_eq!(image.requests.acb(AcbIndex::FIRST).state, State::ReadData);
        image
    }

    fn read(image: &mut Image) {
        let request =
            Request { kind: RequestKind::Read, offset: 0, len: 512, flags: Flags::empty(), user: 0 };
        image.submit(request).unwrap();
        assert_eq!(image.check_invariants(), Ok(()));
    }

    fn sees(mut image: Image, wrong: impl Fn(&mut Image), said: &str) {
        wrong(&mut image);
        let found = image.check_invariants().expect_err(said);
        assert!(found.contains(said), "{found}");
    }

    fn acb(image: &mut Image) -> &mut crate::acb::Acb {
        image.requests.acb_mut(AcbIndex::FIRST)
    }

    /// Acb 0 waits for all other requests.
    fn closes(image: &mut Image) {
        let state = core::mem::replace(&mut acb(image).state, State::WaitRequests);
        image.requests.wait_for_others(AcbIndex::FIRST);
        acb(image).state = state;
    }

    fn pop(image: &mut Image) -> Option<AcbIndex> {
        let mut waiters = image.tables.slot(0).waiters;
        let popped = image.requests.take_first(&mut waiters);
        image.tables.slot_mut(0).waiters = waiters;
        popped
    }

    #[test]
    fn the_sweep_sees_an_acb_in_the_wrong_place() {
        let ready = |image: &mut Image| {
            let a = pop(image).unwrap();
            image.requests.ready(a);
        };
        sees(waiting(), ready, "the ready queue is not empty");
        sees(waiting(), |image| acb(image).state = State::WaitSlot, "waits in the queue of [ReadL2");
        sees(waiting(), |image| assert_eq!(pop(image), Some(AcbIndex::FIRST)), "is in 0 places, 0 I/Os");
        sees(waiting(), |image| acb(image).extent.end = 512, "has an extent in progress");
        sees(waiting(), |image| acb(image).io.pending = 1, "is in 1 places, 1 I/Os");
        sees(waiting(), closes, "is in 2 places, 0 I/Os");
        sees(reading(), |image| acb(image).io.pending = 0, "is in 0 places, 0 I/Os");
        sees(reading(), |image| acb(image).pos = 513, "a range that runs backwards");
        sees(reading(), |image| acb(image).link = 7, "has the wrong link");
        sees(reading(), |image| acb(image).end = 511, "a range that runs backwards");
        let mut image = reading();
        acb(&mut image).io.pending = 0;
        closes(&mut image);
        assert_eq!(image.check_invariants(), Ok(()), "a closer is in no list");
    }

    #[test]
    fn the_sweep_asks_every_part() {
        sees(reading(), |image| acb(image).held.modifies = true, "1 acbs modify sectors, counted as 0");
        sees(reading(), |image| image.outbox.due = crate::outbox::Due::ROUND, "and nobody has seen to it");
    }

    #[test]
    fn the_sweep_sees_an_acb_that_no_round_answers() {
        let mut image = waiting();
        image.requests.acb_mut(AcbIndex::FIRST).state = State::FindCluster;
        pop(&mut image).unwrap();
        image.commit.join(&mut image.requests, AcbIndex::FIRST, Want::Clean, &mut image.outbox);
        image.outbox.due = crate::outbox::Due::empty();
        assert_eq!(image.check_invariants(), Ok(()));
        let forgotten = |want| {
            move |image: &mut Image| {
                image.requests.acb_mut(AcbIndex::FIRST).commit.want = want;
                image.commit.windows = crate::commit::Commit::new(false).windows;
            }
        };
        for want in [Want::Written, Want::Durable, Want::Clean] {
            sees(image.clone(), forgotten(want), "acb 0 waits for what nobody demands");
        }
        forgotten(Want::Header)(&mut image);
        assert_eq!(image.check_invariants(), Ok(()), "the header is in memory as it shall be");
    }

    #[test]
    fn the_sweep_sees_slices_that_are_counted_wrong() {
        sees(waiting(), |image| image.tables.dirty = 1, "dirty and young are (0, 0), counted as (1, 0)");
        sees(waiting(), |image| image.tables.young = 1, "dirty and young are (0, 0), counted as (0, 1)");
        sees(waiting(), |image| image.tables.slot_mut(0).dirty = 1, "dirty and young are (1, 0)");
        sees(waiting(), |image| image.tables.slot_mut(0).number = 5, "holds slice 5, found in None");
        sees(waiting(), |image| image.tables.slot_mut(0).pins = 1, "counts 1 pins, there are 0");
        sees(waiting(), |image| acb(image).held.pinned = Some(0), "counts 0 pins, there are 1");
        sees(waiting(), |image| image.tables.slot_mut(0).writing = 1, "with writing 0x1");
        let writing = |image: &mut Image| image.tables.slot_mut(0).state = SliceState::Writing;
        sees(waiting(), writing, "state Writing with writing 0x0");
        let young = |window| Young { first: 0, count: 1, old: 0, window };
        let unsorted = |image: &mut Image| image.tables.slot_mut(0).young = [young(2), young(1)].into();
        sees(waiting(), unsorted, "young changes are out of order");
        let missing = |image: &mut Image| {
            image.tables.slot_mut(0).young = [Young { first: 600, count: 1, old: 0, window: 1 }].into();
        };
        sees(waiting(), missing, "a young change of what is not there");
        let lost = |image: &mut Image| image.tables.slot_mut(0).state = SliceState::Empty;
        sees(waiting(), lost, "slot 0 holds nothing, and nobody can have it");
        // a slot that holds nothing is not looked at
        let mut image = waiting();
        let empty = image.tables.claim(SliceNumber(9), 0, 8).unwrap();
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
        other.jobs.close();
        assert!(image != other && image.digest() != other.digest());
    }
}
