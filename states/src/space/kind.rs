//! Kinds of free space: what is known of it, and so what has to happen before it may be handed out.
//!
//! Freed -> (the removal is durable, QC4) -> Removed -> (its count goes down) -> Uncounted -> (no request in
//! flight found it earlier, QC5) -> Punching -> (the hole is there, QC6) -> Zeroed. Only `Zeroed` is handed
//! out, and each step takes the kind before: what was not waited for does not compile. Beside it `Stale` is,
//! to what needs no more ([`Need::Any`]).
//!
//! Knows: runs of clusters. Must never know: what they held, which acbs wait.

/// `count` host clusters from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ClusterRun {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl ClusterRun {
    pub(crate) const fn new(first: u64, count: u64) -> ClusterRun {
        debug_assert!(count > 0);
        debug_assert!(first.checked_add(count).is_some(), "clusters have numbers");
        ClusterRun { first, count }
    }

    /// The first cluster behind it.
    pub(crate) const fn end(self) -> u64 {
        debug_assert!(self.count > 0 && self.first <= u64::MAX - self.count);
        self.first + self.count
    }

    pub(crate) const fn contains(self, cluster: u64) -> bool {
        debug_assert!(self.count > 0, "a run is not empty");
        self.first <= cluster && cluster < self.end()
    }
}

/// The pointer to it is gone in memory: durably so with the tables of `window`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Freed {
    run: ClusterRun,
    window: u64,
    /// Other entries of the active tables lead there.
    shared: bool,
}

impl Freed {
    /// `window` 0: nothing durable ever pointed there.
    pub(crate) const fn new(run: ClusterRun, window: u64, shared: bool) -> Freed {
        debug_assert!(run.count > 0, "a run is not empty");
        Freed { run, window, shared }
    }

    pub(crate) const fn window(&self) -> u64 {
        debug_assert!(self.run.count > 0, "a run is not empty");
        self.window
    }

    /// The same pointers' next clusters. False: they are not.
    pub(crate) fn join(&mut self, next: Freed) -> bool {
        debug_assert!(self.run.count > 0 && next.run.count > 0);
        let same = (self.run.end(), self.window, self.shared) == (next.run.first, next.window, next.shared);
        if same {
            self.run.count += next.run.count;
        }
        same
    }

    /// Tables of the windows up to `durable` are durable: is the removal among them?
    pub(crate) const fn removed(self, durable: u64) -> Result<Removed, Freed> {
        debug_assert!(self.run.count > 0, "a run is not empty");
        match self.window <= durable {
            true => Ok(Removed { run: self.run, shared: self.shared }),
            false => Err(self),
        }
    }
}

/// Nothing points to it, durably: its counts may go down.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Removed {
    run: ClusterRun,
    shared: bool,
}

impl Removed {
    pub(crate) const fn first(&self) -> u64 {
        debug_assert!(self.run.count > 0);
        self.run.first
    }

    pub(crate) const fn is_shared(&self) -> bool {
        debug_assert!(self.run.count > 0, "a run is not empty");
        self.shared
    }

    /// Its first cluster, whose count is 0 now.
    pub(crate) const fn uncounted(&self) -> Uncounted {
        debug_assert!(self.run.count > 0, "it has a first cluster");
        Uncounted(ClusterRun::new(self.run.first, 1))
    }

    /// Without its first cluster.
    pub(crate) fn rest(self) -> Option<Removed> {
        debug_assert!(self.run.count > 0);
        let run = ClusterRun { first: self.run.first + 1, count: self.run.count - 1 };
        (run.count > 0).then_some(Removed { run, ..self })
    }
}

/// Nobody counts it; a request in flight may have found it before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Uncounted(ClusterRun);

impl Uncounted {
    /// It was so when the image was opened, durably.
    pub(crate) const fn found(run: ClusterRun) -> Uncounted {
        debug_assert!(run.count > 0, "a run is not empty");
        Uncounted(run)
    }

    pub(crate) const fn run(&self) -> ClusterRun {
        debug_assert!(self.0.count > 0, "a run is not empty");
        self.0
    }

    /// Neighbours become one.
    pub(crate) fn join(&mut self, next: Uncounted) -> bool {
        debug_assert!(self.0.count > 0 && next.0.count > 0);
        let follows = self.0.end() == next.0.first;
        if follows {
            self.0.count += next.0.count;
        }
        follows
    }

    /// A hole is to be punched, unless a request in flight uses it.
    pub(crate) const fn punch(self, in_use: bool) -> Result<Punching, Uncounted> {
        debug_assert!(self.0.count > 0, "a hole is not empty");
        if in_use { Err(self) } else { Ok(Punching(self.0)) }
    }

    /// Its halves, if it has some.
    pub(crate) fn halves(self) -> Option<[Uncounted; 2]> {
        debug_assert!(self.0.count > 0);
        let ClusterRun { first, count } = self.0;
        let half = count / 2;
        (half > 0).then(|| {
            [(first, half), (first + half, count - half)].map(|(f, c)| Uncounted(ClusterRun::new(f, c)))
        })
    }
}

/// A hole is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Punching(ClusterRun);

impl Punching {
    pub(crate) const fn run(&self) -> ClusterRun {
        debug_assert!(self.0.count > 0, "a hole is not empty");
        self.0
    }

    /// The hole is there; or it may hold anything, as before.
    pub(crate) const fn ended(self, good: bool) -> Result<Zeroed, Uncounted> {
        debug_assert!(self.0.count > 0, "a hole is not empty");
        if good { Ok(Zeroed(self.0)) } else { Err(Uncounted(self.0)) }
    }

    /// As if the hole were there: only where that rule is removed.
    pub(crate) const fn believed(&self) -> Zeroed {
        debug_assert!(self.0.count > 0, "a hole is not empty");
        Zeroed(self.0)
    }
}

/// Nobody refers to it and it reads as zeros: it may be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Zeroed(ClusterRun);

impl Zeroed {
    /// The file never had it before, or it was cleared.
    pub(crate) const fn new_space(run: ClusterRun) -> Zeroed {
        debug_assert!(run.count > 0, "space is not empty");
        Zeroed(run)
    }

    pub(crate) const fn run(self) -> ClusterRun {
        debug_assert!(self.0.count > 0, "space is not empty");
        self.0
    }
}

/// Nobody refers to it, durably, and it may hold anything: the free end of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Stale(ClusterRun);

impl Stale {
    pub(crate) const fn free_end(run: ClusterRun) -> Stale {
        debug_assert!(run.count > 0, "space is not empty");
        Stale(run)
    }
}

/// What space is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Need {
    /// It must read as zeros where it is not written.
    Zeros,
    /// All of it will be written before anything leads there.
    Any,
}

/// Space that is handed out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Space {
    Zeroed(Zeroed),
    /// Only to [`Need::Any`].
    Stale(Stale),
}

impl Space {
    pub(crate) const fn run(self) -> ClusterRun {
        let (Space::Zeroed(Zeroed(run)) | Space::Stale(Stale(run))) = self;
        debug_assert!(run.count > 0, "space is not empty");
        run
    }

    pub(crate) const fn is_stale(self) -> bool {
        matches!(self, Space::Stale(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_goes_its_way_one_kind_at_a_time() {
        let mut freed = Freed::new(ClusterRun::new(10, 2), 5, false);
        assert!(freed.join(Freed::new(ClusterRun::new(12, 1), 5, false)));
        for other in [(13, 6, false), (13, 5, true), (14, 5, false)] {
            assert!(!freed.join(Freed::new(ClusterRun::new(other.0, 1), other.1, other.2)), "{other:?}");
        }
        assert_eq!(freed.removed(4), Err(freed));
        let removed = freed.removed(5).unwrap();
        assert_eq!((removed.first(), removed.is_shared()), (10, false));
        let mut dead = removed.uncounted();
        let removed = removed.rest().unwrap();
        assert!(dead.join(removed.uncounted()) && !dead.join(dead));
        assert_eq!(removed.rest().and_then(Removed::rest), None);
        assert_eq!(dead.punch(true), Err(dead));
        let hole = dead.punch(false).unwrap();
        assert_eq!(hole.ended(false), Err(dead));
        assert_eq!(hole.ended(true).unwrap().run(), ClusterRun::new(10, 2));
    }

    #[test]
    fn halves_are_all_of_it() {
        let halves = |count| Uncounted::found(ClusterRun::new(7, count)).halves();
        assert_eq!(halves(1), None);
        let five = [ClusterRun::new(7, 2), ClusterRun::new(9, 3)].map(Uncounted::found);
        assert_eq!(halves(5), Some(five));
    }
}
