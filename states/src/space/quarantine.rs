//! Quarantine: clusters that nothing points to any more, on their way back to the allocator.
//!
//! A cluster waits until the removal of the pointer to it is durable (QC4); then its count goes down. If
//! nobody counts it any more it waits until no request, and no load of a slice, that found it earlier is in
//! flight (QC5), then a hole is punched (QC6), so that it reads as zeros like all free space; then it is
//! free. What is known of it on each step is its kind, a type (`kind.rs`).
//!
//! Knows: host clusters. Must never know: what they held, who uses them.
//!
//! Invariants:
//! * a cluster is in one of the lists at most; `free` holds only clusters whose count is 0 and that read as
//!   zeros;
//! * what cannot be punched may hold bytes: it is not used again before it is cleared, which is tried when
//!   the file cannot grow (`image/full.rs`);
//! * a cluster whose write failed was never pointed to: it comes here at once.

use super::kind::{ClusterRun, Freed, Punching, Removed, Uncounted, Zeroed};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Holes punched at once.
pub(crate) const PUNCHES_MAX: u32 = 8;
/// Free runs that are looked at for one long enough.
const LOOK_MAX: usize = 64;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Quarantine {
    /// Until the removal is durable.
    waiting: VecDeque<Freed>,
    /// Their counts go down.
    counting: VecDeque<Removed>,
    /// The rest of them go down in the embedder's next turn.
    paused: bool,
    /// Not counted any more.
    dead: VecDeque<Uncounted>,
    /// Holes on their way.
    punching: Vec<Punching>,
    /// Runs of free clusters, first and number, and clusters in them.
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
    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.counting.is_empty()
    }

    /// The pointer to these is gone in memory.
    pub(crate) fn wait(&mut self, freed: Freed) {
        if !self.waiting.back_mut().is_some_and(|last| last.join(freed)) {
            self.waiting.push_back(freed);
        }
    }

    /// Tables of the windows up to `durable` are durable: whose removal is among them?
    pub(crate) fn removals_durable(&mut self, durable: u64) {
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front().map(|freed| freed.removed(durable)) {
                Some(Ok(removed)) => self.counting.push_back(removed),
                Some(Err(freed)) => self.waiting.push_back(freed),
                None => {}
            }
        }
        debug_assert!(self.waiting.iter().all(|freed| freed.window() > durable));
    }

    /// Whose count goes down next, unless that has to wait for the embedder's next turn.
    pub(crate) fn counting(&self) -> Option<Removed> {
        if self.paused { None } else { self.counting.front().copied() }
    }

    /// The first cluster of the first of them is done with.
    pub(crate) fn counted(&mut self) {
        debug_assert!(!self.counting.is_empty());
        debug_assert!(!self.paused, "nothing goes down before the embedder's next turn");
        if let Some(rest) = self.counting.pop_front().and_then(Removed::rest) {
            self.counting.push_front(rest);
        }
    }

    /// The rest in the embedder's next turn. True: it is not on its way yet.
    pub(crate) const fn pause(&mut self) -> bool {
        !core::mem::replace(&mut self.paused, true)
    }

    /// That is now.
    pub(crate) const fn resume(&mut self) {
        debug_assert!(self.paused);
        self.paused = false;
    }

    /// Counts cannot be read: what waits for them leaks.
    pub(crate) fn give_up(&mut self) {
        self.counting.clear();
        debug_assert!(!self.is_counting(), "nothing waits for counts any more");
    }

    /// Whose clusters these are is in doubt: none of them is freed. What waits is a leak.
    pub(crate) fn abandon(&mut self) {
        self.waiting.clear();
        self.counting.clear();
        self.dead.clear();
        debug_assert!(self.window().is_none(), "nothing waits for a window any more");
        debug_assert!(!self.has_work() && !self.has_dead());
    }

    /// The last window that removals wait for.
    pub(crate) fn window(&self) -> Option<u64> {
        self.waiting.iter().map(Freed::window).max()
    }

    /// Nothing more can be done before a slice is loaded or finds room.
    pub(crate) fn is_counting(&self) -> bool {
        !self.counting.is_empty()
    }

    /// Nobody counts these clusters any more.
    pub(crate) fn bury(&mut self, dead: Uncounted) {
        debug_assert!(dead.run().count > 0);
        debug_assert!(dead.run().first > 0, "the header's cluster is never free");
        if !self.dead.back_mut().is_some_and(|last| last.join(dead)) {
            self.dead.push_back(dead);
        }
    }

    /// There are some.
    #[inline]
    pub(crate) fn has_dead(&self) -> bool {
        !self.dead.is_empty()
    }

    /// How many runs of them there are.
    pub(crate) fn dead_runs(&self) -> usize {
        self.dead.len()
    }

    /// The next run of them, if a hole may be punched now: `in_use` says whether a request in flight is
    /// there.
    /// What is in use waits on.
    pub(crate) fn next_punch(&mut self, in_use: impl Fn(ClusterRun) -> bool) -> Option<Punching> {
        debug_assert!(self.punching.len() <= PUNCHES_MAX as usize, "so many holes at once");
        if self.punching.len() >= PUNCHES_MAX as usize {
            return None;
        }
        let dead = self.dead.pop_front()?;
        match dead.punch(in_use(dead.run())) {
            Ok(hole) => {
                self.punching.push(hole);
                Some(hole)
            }
            Err(dead) => {
                self.dead.push_back(dead);
                None
            }
        }
    }

    /// A hole is there, or will not be. `again`: if not, its halves may be.
    pub(crate) fn punched(&mut self, hole: Punching, good: bool, again: bool) {
        debug_assert!(self.punching.contains(&hole));
        self.punching.retain(|other| *other != hole);
        debug_assert!(!self.punching.contains(&hole), "a hole is on its way once");
        match hole.ended(good) {
            Ok(free) => self.give(free),
            Err(dead) if again => self.dead.extend(dead.halves().into_iter().flatten()),
            Err(dead) => {
                let first = dead.run().first;
                self.unpunched = Some(self.unpunched.map_or(first, |known| known.min(first)));
            }
        }
    }

    /// A hole is on its way, and its clusters were handed out, or lost, before: only where a rule is removed.
    pub(crate) fn forget_hole(&mut self, hole: Punching) {
        self.punching.retain(|other| *other != hole);
        debug_assert!(!self.punching.contains(&hole), "a hole is on its way once");
    }

    /// So many free clusters in a row: the first. Looks at a bounded number of runs, from where it ended last
    /// time: runs that are too short for most do not hide the others.
    pub(crate) fn free_run(&mut self, count: u64) -> Option<u64> {
        debug_assert!(count > 0);
        let (before, behind) = (self.free.range(..self.hand), self.free.range(self.hand..));
        let mut looked = self.hand;
        let found = behind.chain(before).take(LOOK_MAX).find(|(first, run)| {
            looked = **first;
            **run >= count
        });
        let found = found.map(|(first, _)| *first);
        self.hand = if found.is_some() { looked } else { looked + 1 };
        debug_assert!(found.is_none_or(|first| self.free.get(&first).is_some_and(|run| *run >= count)));
        found
    }

    /// Takes clusters out of the run that holds them.
    pub(crate) fn take(&mut self, first: u64, count: u64) {
        debug_assert!(count > 0 && count <= self.total, "only what is free is taken");
        let Some((&start, &run)) = self.free.range(..=first).next_back() else { return };
        debug_assert!(first + count <= start + run);
        debug_assert!(start <= first, "the run begins there, or before");
        self.free.remove(&start);
        self.total -= count;
        if start < first {
            self.free.insert(start, first - start);
        }
        if first + count < start + run {
            self.free.insert(first + count, start + run - first - count);
        }
    }

    pub(crate) fn give(&mut self, zeroed: Zeroed) {
        let ClusterRun { mut first, mut count } = zeroed.run();
        debug_assert!(self.free.range(first..first + count).next().is_none(), "it is free already");
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
        debug_assert!(count > 0 && self.total >= count, "what is free is counted");
        debug_assert!(!self.free.contains_key(&(first + count)), "neighbours are one run");
        self.free.insert(first, count);
    }

    /// Has something come free since the last time?
    pub(crate) const fn take_news(&mut self) -> bool {
        core::mem::replace(&mut self.news, false)
    }

    /// Where clusters begin that could not be punched.
    pub(crate) fn take_unpunched(&mut self) -> u64 {
        debug_assert!(self.unpunched.is_none_or(|first| first > 0), "the header's cluster is never free");
        self.unpunched.take().unwrap_or(u64::MAX)
    }

    /// Free clusters.
    pub(crate) fn total(&self) -> u64 {
        debug_assert_eq!(self.total == 0, self.free.is_empty());
        self.total
    }

    /// Holes are wanted or being punched.
    pub(crate) fn is_punching(&self) -> bool {
        debug_assert!(self.punching.len() <= PUNCHES_MAX as usize);
        self.punching.len() + self.dead.len() > 0
    }

    /// What is free, or on its way, is not used again.
    pub(crate) fn forget_free(&mut self) {
        self.dead.clear();
        self.free.clear();
        self.total = 0;
        debug_assert!(!self.has_dead(), "nothing is on its way to be free but holes");
    }

    /// A cluster that nobody counts is on its way, or free.
    pub(crate) fn holds(&self, cluster: u64) -> bool {
        let free = self.free.range(..=cluster).next_back();
        self.dead.iter().any(|dead| dead.run().contains(cluster))
            || self.punching.iter().any(|hole| hole.run().contains(cluster))
            || free.is_some_and(|(first, count)| cluster < first + count)
    }

    /// The free run that ends at `end` is given up: where it begins.
    pub(crate) fn cut_tail(&mut self, end: u64) -> Option<u64> {
        let (&first, &count) = self.free.last_key_value()?;
        if first + count != end {
            return None;
        }
        debug_assert!(self.total >= count);
        self.free.remove(&first);
        self.total -= count;
        debug_assert!(first < end, "a run is not empty");
        Some(first)
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        let total: u64 = self.free.values().sum();
        if total != self.total {
            return Err(format!("{total} clusters are free, counted as {}", self.total));
        }
        let dead = self.dead.iter().map(Uncounted::run);
        let free = self.free.iter().map(|(first, count)| ClusterRun::new(*first, *count));
        let mut runs: Vec<ClusterRun> =
            dead.chain(self.punching.iter().map(Punching::run)).chain(free).collect();
        runs.sort_unstable();
        match runs.windows(2).find(|pair| pair[0].end() > pair[1].first) {
            Some(pair) => Err(format!("{:?} and {:?} are two kinds of free space at once", pair[0], pair[1])),
            None if self.punching.len() > PUNCHES_MAX as usize => Err(String::from("too many holes at once")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zeroed(first: u64, count: u64) -> Zeroed {
        Zeroed::new_space(ClusterRun::new(first, count))
    }

    proptest! {
        #[test]
        fn free_runs_are_a_set(ops in prop::collection::vec((any::<bool>(), 0..60u64, 1..9u64), 1..60)) {
            let (mut quarantine, mut model) = (Quarantine::default(), [false; 80]);
            for (give, first, count) in ops {
                let range = first as usize..(first + count) as usize;
                if model[range.clone()].contains(&give) {
                    continue;
                }
                if give { quarantine.give(zeroed(first, count)) } else { quarantine.take(first, count) }
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
        for (first, count) in [(30, 2), (10, 2), (12, 1), (20, 1)] {
            quarantine.bury(Uncounted::found(ClusterRun::new(first, count)));
        }
        assert_eq!(quarantine.dead.len(), 3, "neighbours are one run");
        assert!(quarantine.next_punch(|_| false).is_some_and(|hole| hole.run().first == 30));
        quarantine.give(zeroed(40, 3));
        quarantine.give(zeroed(50, 4));
        assert_eq!(quarantine.check(), Ok(()));
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
        let freed = |window| Freed::new(ClusterRun::new(0, 1), window, false);
        [freed(3), freed(9), freed(4)].into_iter().for_each(|freed| quarantine.wait(freed));
        assert_eq!(quarantine.window(), Some(9));
        assert!(quarantine.has_work() && !quarantine.is_counting());
        quarantine.removals_durable(4);
        assert_eq!((quarantine.window(), quarantine.counting.len()), (Some(9), 2));
        quarantine.removals_durable(9);
        assert_eq!(quarantine.window(), None);
        assert!(quarantine.has_work() && quarantine.is_counting());
        quarantine.give_up();
        assert!(!quarantine.has_work());
    }

    /// The search goes on where it ended, and round.
    #[test]
    fn a_run_is_looked_for_from_where_the_last_was_found() {
        let mut quarantine = Quarantine::default();
        for n in 0..100 {
            quarantine.give(zeroed(n * 10, if n == 80 { 5 } else { 1 }));
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

    #[test]
    fn what_is_in_use_waits_and_what_was_refused_is_tried_in_halves() {
        let mut quarantine = Quarantine::default();
        quarantine.bury(Uncounted::found(ClusterRun::new(10, 3)));
        assert_eq!(quarantine.next_punch(|run| run.contains(12)), None);
        let hole = quarantine.next_punch(|run| run.contains(13)).unwrap();
        quarantine.punched(hole, false, true);
        assert_eq!(quarantine.dead_runs(), 2);
        let [first, second] = [(); 2].map(|()| quarantine.next_punch(|_| false).unwrap());
        assert_eq!((first.run(), second.run()), (ClusterRun::new(10, 1), ClusterRun::new(11, 2)));
        quarantine.punched(second, false, false);
        quarantine.punched(first, true, false);
        assert_eq!((quarantine.total(), quarantine.take_news(), quarantine.take_news()), (1, true, false));
        assert_eq!((quarantine.take_unpunched(), quarantine.take_unpunched()), (11, u64::MAX));
    }

    #[test]
    fn the_check_sees_space_that_is_two_things() {
        let mut quarantine = Quarantine::default();
        quarantine.give(zeroed(10, 4));
        quarantine.bury(Uncounted::found(ClusterRun::new(13, 1)));
        assert!(quarantine.check().is_err_and(|said| said.contains("two kinds of free space at once")));
        quarantine.dead.clear();
        quarantine.total = 3;
        assert_eq!(quarantine.check(), Err(String::from("4 clusters are free, counted as 3")));
    }
}
