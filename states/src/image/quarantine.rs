//! Quarantine: clusters that nothing points to any more, on their way back to the allocator.
//!
//! A cluster waits until the removal of the pointer to it is durable (QC4); then its count goes down. If
//! nobody counts it any more it waits until no request, and no load of a slice, that found it earlier is in
//! flight (QC5), then a hole is punched (QC6), so that it reads as zeros like all free space; then it is
//! free.
//!
//! Knows: host clusters. Must never know: what they held.
//!
//! Invariants:
//! * a cluster is in one of the lists at most; `free` holds only clusters whose count is 0 and that read as
//!   zeros;
//! * what cannot be punched may hold bytes: it is not used again before it is cleared, which is tried when
//!   the file cannot grow (`full.rs`);
//! * a cluster whose write failed was never pointed to: it comes here at once.

use super::outbox::InFlight;
use super::refcounts::Wait;
use super::{Image, Purpose};
use crate::acb::State;
use crate::error::Error;
use crate::fault::Op;
use crate::io::{Io, IoId, IoOp};
use crate::rule::Rule;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Holes punched at once.
pub(super) const PUNCHES_MAX: u32 = 8;
/// So many counts that go down are enough for one call.
const PAUSE: u32 = 1024;
/// Free runs that are looked at for one long enough.
const LOOK_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Freed {
    first: u64,
    count: u64,
    /// The removal of the pointer is durable with the tables of this window.
    window: u64,
    /// Other entries of the active tables lead there.
    shared: bool,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Quarantine {
    /// Until the removal is durable.
    waiting: VecDeque<Freed>,
    /// Their counts go down.
    counting: VecDeque<Freed>,
    /// The rest of them go down in the embedder's next turn.
    paused: bool,
    /// Not counted any more: first cluster, number.
    dead: VecDeque<(u64, u64)>,
    /// Holes on their way.
    punching: Vec<(u64, u64)>,
    /// Runs of free clusters, and clusters in them.
    free: BTreeMap<u64, u64>,
    total: u64,
    /// Where the search for a run begins.
    hand: u64,
    /// Something has come free since somebody asked.
    news: bool,
    /// The first cluster that could not be punched.
    unpunched: Option<u64>,
}

impl Quarantine {
    /// Counts have yet to go down.
    pub(super) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.counting.is_empty()
    }

    /// Counts cannot be read: what waits for them leaks.
    pub(super) fn give_up(&mut self) {
        self.counting.clear();
    }

    /// Whose clusters these are is in doubt: none of them is freed. What waits is a leak.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.counting.clear();
        self.dead.clear();
    }

    /// The last window that removals wait for.
    pub(super) fn window(&self) -> Option<u64> {
        self.waiting.iter().map(|freed| freed.window).max()
    }

    /// Nothing more can be done before a slice is loaded or finds room.
    pub(super) fn is_counting(&self) -> bool {
        !self.counting.is_empty()
    }

    /// So many free clusters in a row: the first. Looks at a bounded number of runs, from where it ended last
    /// time: runs that are too short for most do not hide the others.
    pub(super) fn free_run(&mut self, count: u64) -> Option<u64> {
        let (before, behind) = (self.free.range(..self.hand), self.free.range(self.hand..));
        let mut looked = self.hand;
        let found = behind.chain(before).take(LOOK_MAX).find(|(first, run)| {
            looked = **first;
            **run >= count
        });
        let found = found.map(|(first, _)| *first);
        self.hand = if found.is_some() { looked } else { looked + 1 };
        found
    }

    /// Takes clusters out of the run that holds them.
    pub(super) fn take(&mut self, first: u64, count: u64) {
        let Some((&start, &run)) = self.free.range(..=first).next_back() else { return };
        debug_assert!(first + count <= start + run);
        self.free.remove(&start);
        self.total -= count;
        if start < first {
            self.free.insert(start, first - start);
        }
        if first + count < start + run {
            self.free.insert(first + count, start + run - first - count);
        }
    }

    fn give(&mut self, mut first: u64, mut count: u64) {
        self.total += count;
        self.news = true;
        if let Some((&start, &run)) = self.free.range(..first).next_back()
            && start + run == first
        {
            self.free.remove(&start);
            (first, count) = (start, run + count);
        }
        if let Some(run) = self.free.remove(&(first + count)) {
            count += run;
        }
        self.free.insert(first, count);
    }

    /// Has something come free since the last time?
    pub(super) fn take_news(&mut self) -> bool {
        core::mem::take(&mut self.news)
    }

    /// Where clusters begin that could not be punched.
    pub(super) fn take_unpunched(&mut self) -> u64 {
        self.unpunched.take().unwrap_or(u64::MAX)
    }

    /// A run could not be punched, or cleared; `again`: its halves may be.
    fn refused(&mut self, first: u64, count: u64, again: bool) {
        if again && count > 1 {
            self.dead.push_back((first, count / 2));
            self.dead.push_back((first + count / 2, count - count / 2));
        } else if !again {
            self.unpunched = Some(self.unpunched.map_or(first, |known| known.min(first)));
        }
    }

    /// Free clusters.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Holes are wanted or being punched.
    pub(super) fn is_punching(&self) -> bool {
        self.punching.len() + self.dead.len() > 0
    }

    /// What is free, or on its way, is not used again.
    pub(super) fn forget_free(&mut self) {
        self.dead.clear();
        self.free.clear();
        self.total = 0;
    }

    /// A cluster that nobody counts is on its way, or free.
    pub(super) fn holds(&self, cluster: u64) -> bool {
        let within = |(first, count): &(u64, u64)| (*first..first + count).contains(&cluster);
        let free = self.free.range(..=cluster).next_back();
        self.dead.iter().any(within)
            || self.punching.iter().any(within)
            || free.is_some_and(|(first, count)| cluster < first + count)
    }

    /// Nobody counts these clusters any more.
    pub(super) fn bury(&mut self, first: u64, count: u64) {
        match self.dead.back_mut() {
            Some((start, run)) if *start + *run == first => *run += count,
            _ => self.dead.push_back((first, count)),
        }
    }

    /// The free run that ends at `end` is given up: where it begins.
    pub(super) fn cut_tail(&mut self, end: u64) -> Option<u64> {
        let (&first, &count) = self.free.last_key_value()?;
        if first + count != end {
            return None;
        }
        self.free.remove(&first);
        self.total -= count;
        Some(first)
    }
}

impl Image {
    /// Nothing points to these clusters once the tables of `window` are durable (0: nothing ever did).
    pub(super) fn free_clusters(&mut self, first: u64, count: u64, window: u64) {
        self.free(Freed { first, count, window, shared: false });
    }

    /// Of several entries of the active tables that lead to a cluster one less does, once the tables of
    /// `window` are durable.
    pub(super) fn free_shared(&mut self, first: u64, window: u64) {
        self.free(Freed { first, count: 1, window, shared: true });
    }

    fn free(&mut self, freed: Freed) {
        let Freed { first, count, window, shared } = freed;
        debug_assert!(count > 0);
        #[cfg(feature = "sabotage")]
        if window > 0 && self.options.sabotaged(Rule::PunchAfterRemoval) {
            self.punch_early(first, count);
        }
        let window = if self.options.sabotaged(Rule::FreeAfterRemoval) { 0 } else { window };
        if self.health.is_halted() {
            return;
        }
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let quarantine = &mut counted.quarantine;
        match quarantine.waiting.back_mut() {
            Some(last)
                if last.first + last.count == first && last.window == window && last.shared == shared =>
            {
                last.count += count;
            }
            _ => quarantine.waiting.push_back(Freed { window, ..freed }),
        }
        if window == 0 {
            self.removals_durable();
        } else {
            self.commit.arm(self.options.commit_ms, &mut self.outbox.alarms);
        }
    }

    /// Tables have become durable: whose removal is among them?
    pub(super) fn removals_durable(&mut self) {
        let durable = self.commit.tables_durable();
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let quarantine = &mut counted.quarantine;
        if quarantine.waiting.is_empty() {
            return;
        }
        let waiting = core::mem::take(&mut quarantine.waiting);
        for freed in waiting {
            match freed.window <= durable {
                true => quarantine.counting.push_back(freed),
                false => quarantine.waiting.push_back(freed),
            }
        }
        self.count_down();
    }

    /// Lets counts go down, as far as their slices are there.
    pub(super) fn count_down(&mut self) {
        if self.refcounted.as_deref().is_some_and(|counted| counted.quarantine.paused) {
            return;
        }
        let mut left = PAUSE;
        while let Some(Freed { first, shared, .. }) =
            self.refcounted.as_deref().and_then(|counted| counted.quarantine.counting.front().copied())
        {
            if left == 0 {
                return self.pause_counting();
            }
            left -= 1;
            match self.count(first) {
                Ok(0) | Err(Wait::Never) => {}
                // what lies there is metadata, and stays counted: no hole may be punched in it
                Ok(1)
                    if self
                        .refcounted
                        .as_deref()
                        .is_some_and(|counted| counted.check_uncounted(first, 1).is_err()) => {}
                Ok(1) => {
                    self.set_counts(first, 1, 0);
                    if let Some(counted) = self.refcounted.as_deref_mut() {
                        counted.quarantine.bury(first, 1);
                    }
                }
                // the one entry that is left does not say that the cluster is its own, and who it is, is not
                // known: rather a leak than a count that contradicts it
                Ok(2) if shared => {}
                Ok(more) => self.set_counts(first, 1, more - 1),
                Err(Wait::Load | Wait::Slot) => return,
            }
            let Some(counted) = self.refcounted.as_deref_mut() else { return };
            if let Some(freed) = counted.quarantine.counting.pop_front().filter(|freed| freed.count > 1) {
                let rest = Freed { first: first + 1, count: freed.count - 1, ..freed };
                counted.quarantine.counting.push_front(rest);
            }
        }
        self.punch_dead();
    }

    /// The embedder's thread is not held for as long as a large disk takes.
    pub(super) fn pause_counting(&mut self) {
        if let Some(counted) = self.refcounted.as_deref_mut()
            && !core::mem::replace(&mut counted.quarantine.paused, true)
        {
            self.outbox.emit(Purpose::CountDown, Op::CountDown, 0, IoOp::Yield);
        }
    }

    /// A slice of the refcounts could not be loaded: trying again at once would not end.
    pub(super) fn give_up_counting(&mut self) {
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.quarantine.give_up();
            counted.unseen.0 = counted.unseen.1;
        }
    }

    /// The embedder's next turn: the rest.
    pub(super) fn count_on(&mut self) {
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.quarantine.paused = false;
        }
        self.count_down();
        self.kick();
    }

    /// Are there clusters that wait for requests in flight, or does anybody wait for clusters?
    #[inline]
    pub(super) fn has_dead(&self) -> bool {
        self.refcounted
            .as_deref()
            .is_some_and(|counted| counted.starving || !counted.quarantine.dead.is_empty())
    }

    /// Punches holes where no request in flight is.
    pub(super) fn punch_dead(&mut self) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let left = self.refcounted.as_deref().map_or(0, |counted| counted.quarantine.dead.len());
        for _ in 0..left {
            if self.health.is_halted() {
                return;
            }
            let Some(counted) = self.refcounted.as_deref_mut() else { return };
            if counted.quarantine.punching.len() >= PUNCHES_MAX as usize {
                return;
            }
            let Some((first, count)) = counted.quarantine.dead.pop_front() else { return };
            let (host, len) = (first << bits, count << bits);
            if self.host_in_use(host, host + len) && !self.options.sabotaged(Rule::ReuseAfterReaders) {
                if let Some(counted) = self.refcounted.as_deref_mut() {
                    counted.quarantine.dead.push_back((first, count));
                }
                continue;
            }
            if let Some(counted) = self.refcounted.as_deref_mut() {
                counted.quarantine.punching.push((first, count));
            }
            self.outbox.io.push_back(Io {
                id: IoId { index: u32::MAX, generation: 0 },
                op: IoOp::ForgetCompressed { host, len },
            });
            if self.options.sabotaged(Rule::PunchedFirst)
                && let Some(counted) = self.refcounted.as_deref_mut()
            {
                counted.quarantine.give(first, count);
            }
            // where the file cannot grow its space is kept
            let (tried, op) = match self.refcounted.as_deref().is_some_and(|counted| counted.starving) {
                true => (Op::Clear, IoOp::Clear { host, len }),
                false => (Op::PunchHole, IoOp::PunchHole { host, len }),
            };
            self.outbox.emit(Purpose::Punch(first, count), tried, host, op);
        }
    }

    /// A hole is there, or will not be.
    pub(super) fn punched(&mut self, first: u64, count: u64, result: &Result<(), Error>) {
        // the sync that comes before the next pointer to it makes the hole durable too
        self.commit.unsynced |= !self.options.sabotaged(Rule::HoleBeforePointer);
        let may_be_used = (result.is_ok() || self.options.sabotaged(Rule::UnpunchedStays))
            && !self.options.sabotaged(Rule::PunchedFirst);
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        counted.quarantine.punching.retain(|hole| *hole != (first, count));
        match may_be_used {
            true => counted.quarantine.give(first, count),
            false if result.is_err() => counted.quarantine.refused(first, count, counted.starving),
            false => {}
        }
        self.punch_dead();
        self.look_on();
    }

    /// Does a request in flight use host bytes of `[start, end)`, or is a slice being loaded from there (of a
    /// table that was copied since)?
    fn host_in_use(&self, start: u64, end: u64) -> bool {
        use crate::acb::Source;
        let overlaps = |low: u64, high: u64| low < end && start < high;
        // a slice of such a table lies in one cluster
        let loads =
            |io: &InFlight| matches!(io.purpose, Purpose::Load(_)) && start <= io.offset && io.offset < end;
        if self.outbox.in_flight().any(loads) {
            return true;
        }
        self.requests.iter().any(|(_, acb)| {
            if acb.pending == 0 {
                return false;
            }
            let own = match acb.state {
                State::ReadData => overlaps(acb.host, acb.host + (acb.run_end - acb.pos)),
                State::WriteData | State::ZeroData | State::ReadModify | State::CopyOnWrite => {
                    let (low, high) = acb.host_range();
                    overlaps(low, high)
                }
                _ => false,
            };
            let source = match acb.source {
                Source::Host(old) => overlaps(old, old + (acb.fill_end - acb.fill_start)),
                Source::Compressed(host, len) => overlaps(host, host + u64::from(len)),
                Source::Zeros | Source::Backing => false,
            };
            own || source
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn free_runs_are_a_set(ops in prop::collection::vec((any::<bool>(), 0..60u64, 1..9u64), 1..60)) {
            let (mut quarantine, mut model) = (Quarantine::default(), [false; 80]);
            for (give, first, count) in ops {
                let range = first as usize..(first + count) as usize;
                if model[range.clone()].contains(&give) {
                    continue;
                }
                if give { quarantine.give(first, count) } else { quarantine.take(first, count) }
                model[range].fill(give);
            }
            let mut found = [false; 80];
            let mut end = None;
            for (&first, &count) in &quarantine.free {
                prop_assert!(end.is_none_or(|end| end < first), "runs touch");
                end = Some(first + count);
                found[first as usize..(first + count) as usize].fill(true);
            }
            prop_assert_eq!(found, model);
        }
    }

    #[test]
    fn what_is_on_its_way_is_held_and_what_is_free_is_counted() {
        let mut quarantine = Quarantine::default();
        assert!(!quarantine.is_punching() && !quarantine.has_work() && !quarantine.is_counting());
        quarantine.bury(10, 2);
        quarantine.bury(12, 1);
        quarantine.bury(20, 1);
        assert_eq!(quarantine.dead, [(10, 3), (20, 1)], "neighbours are one run");
        quarantine.punching.push((30, 2));
        quarantine.give(40, 3);
        quarantine.give(50, 4);
        let held: Vec<u64> = (0..60).filter(|cluster| quarantine.holds(*cluster)).collect();
        assert_eq!(held, [10, 11, 12, 20, 30, 31, 40, 41, 42, 50, 51, 52, 53]);
        assert!(quarantine.is_punching());
        quarantine.dead.clear();
        assert!(quarantine.is_punching());
        quarantine.punching.clear();
        assert!(!quarantine.is_punching());
        assert_eq!(quarantine.total(), 7);
        quarantine.take(41, 1);
        assert_eq!(quarantine.total(), 6);
        assert_eq!(quarantine.cut_tail(55), None);
        assert_eq!(quarantine.cut_tail(53), None);
        assert_eq!((quarantine.cut_tail(54), quarantine.total()), (Some(50), 2));
        assert_eq!((quarantine.cut_tail(43), quarantine.cut_tail(41)), (Some(42), Some(40)));
        assert_eq!((quarantine.cut_tail(41), quarantine.total()), (None, 0));
        let freed = |window| Freed { first: 0, count: 1, window, shared: false };
        quarantine.waiting.extend([freed(3), freed(9), freed(4)]);
        assert_eq!(quarantine.window(), Some(9));
        assert!(quarantine.has_work() && !quarantine.is_counting());
        quarantine.waiting.clear();
        assert_eq!(quarantine.window(), None);
        quarantine.counting.push_back(freed(0));
        assert!(quarantine.has_work() && quarantine.is_counting());
        quarantine.give_up();
        assert!(!quarantine.has_work());
    }

    /// The search goes on where it ended, and round.
    #[test]
    fn a_run_is_looked_for_from_where_the_last_was_found() {
        let mut quarantine = Quarantine::default();
        for n in 0..100 {
            quarantine.give(n * 10, if n == 80 { 5 } else { 1 });
        }
        assert_eq!(quarantine.free_run(5), None, "only so many are looked at");
        assert_eq!(quarantine.hand, 631);
        assert_eq!(quarantine.free_run(5), Some(800));
        assert_eq!(quarantine.free_run(1), Some(800), "it is still there");
        quarantine.take(800, 5);
        assert_eq!(quarantine.free_run(1), Some(810));
        assert_eq!(quarantine.free_run(2), None);
        assert_eq!(quarantine.hand, 441, "64 runs further, past the last one");
    }
}
