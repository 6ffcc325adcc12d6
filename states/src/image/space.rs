//! Space in the file: an append pointer, and a file that grows in large steps ahead of it.
//!
//! The pointer begins at the end of the file; or, where counts say that nothing is in use there (qcow2: who
//! was killed left the space that the file had grown ahead), at the begin of that free end. Nobody knows
//! what bytes it holds, so it is cleared step by step before it is handed out, as if the file grew. When it
//! is used up, the file grows.
//!
//! Knows: host offsets, the file's length. Must never know: what is stored where.
//!
//! Invariants:
//! * space is handed out below `grown` only, whole clusters; space from `append` on was beyond the end of
//!   the file when it was opened, or was cleared, so it reads as zeros (a partial cluster at the end is never
//!   used: trap in formats.md 1.4);
//! * what another program counted down just before is durable, by a sync of ours, before it is cleared;
//! * a free end into which an entry of a table leads is not free: it is left alone as soon as one is met;
//! * nothing is written beyond `grown`; one growth at a time, so on XFS no allocation runs beside a write
//!   behind it;
//! * metadata that the header names beyond the end of the file is reached by a longer file before any space
//!   is handed out: a close, which cuts off what is behind `append`, leaves it;
//! * space that a failed write got is not handed out again from here: it may hold bytes (QED: a leak; qcow2
//!   punches a hole first, in `quarantine.rs`).

use super::{Image, Purpose};
use crate::acb::State;
use crate::base::geometry::{align_down, align_up};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::rule::Rule;

/// Blocks of file systems have at most so many bytes, as a rule.
const BLOCK: u64 = 4096;
/// The first steps are at least this long.
const STEP_MIN: u64 = 8 << 20;
/// So much of a free end is cleared at once: no more than is about to be wanted, should the counts lie.
const CLEAR: u64 = 4 << 20;
/// Host offsets stay below this, as a file's length does (off_t is signed).
const HOST_MAX: u64 = 1 << 62;
/// No file is as long.
const NOWHERE: u64 = 1 << 63;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Space {
    /// Where the next cluster comes from.
    append: u64,
    /// First byte behind all that the file had, and all that was handed out since.
    end: u64,
    /// Where a partial cluster that nothing may refer to began when the file was opened, or `NOWHERE`.
    torn: u64,
    /// Where what may be handed out ends,
    grown: u64,
    /// and where the file does.
    len: u64,
    /// Metadata that will be written reaches so far, be the file shorter.
    floor: u64,
    /// The free end that was found: where it begins, and up to where it was taken; and where it ends, `grown`
    /// if nothing is left of it.
    found: (u64, u64),
    found_end: u64,
    distrusted: bool,
    cluster: u64,
    step_max: u64,
    /// The length that the growth in flight will give.
    growing: Option<u64>,
    /// The growth in flight was already the smallest that helps.
    smallest: bool,
    /// Bytes that the waiters need.
    wanted: u64,
    waiters: Queue,
    /// Why the file could not grow, the last time that somebody waited for it.
    full: Option<Error>,
}

impl Space {
    /// A file in which nothing is allocated.
    pub(super) fn fixed(len: u64) -> Space {
        Space {
            append: len,
            end: len,
            torn: NOWHERE,
            grown: len,
            floor: 0,
            len,
            found: (len, len),
            found_end: len,
            distrusted: false,
            cluster: 1,
            step_max: 0,
            growing: None,
            smallest: false,
            wanted: 0,
            waiters: Queue::new(),
            full: None,
        }
    }

    pub(super) fn new(file_len: u64, cluster: u64, step_max: u64) -> Space {
        // both are rounded up: what is in a partial last cluster is not known, and `grown` must not exceed
        // the file's length, so the first growth starts from there
        let (append, len) = (align_up(file_len, cluster), file_len);
        Space { append, grown: append.min(len), found_end: 0, cluster, step_max, ..Space::fixed(append) }
            .with_len(len)
    }

    fn with_len(self, len: u64) -> Space {
        Space { len, ..self }
    }

    /// Nothing of the file is in use from `tail` on, whole clusters.
    pub(super) fn begin_at(&mut self, tail: u64) {
        debug_assert!(tail.is_multiple_of(self.cluster));
        let end = align_down(self.len, self.cluster);
        if tail < end {
            (self.append, self.grown, self.found, self.found_end) = (tail, tail, (tail, tail), end);
        }
    }

    /// There is something left of a free end that was found.
    pub(super) fn has_found(&self) -> bool {
        self.grown < self.found_end
    }

    /// Of the free end that was found: where it begins, and up to where it was taken.
    pub(super) fn found(&self) -> (u64, u64) {
        self.found
    }

    /// Entries lead into the free end that was found: what is left of it is left alone.
    pub(super) fn distrust_found(&mut self) {
        self.distrusted = true;
        if self.has_found() {
            self.leave_found();
        }
    }

    /// That happened.
    pub(super) fn was_left(&self) -> bool {
        self.distrusted
    }

    /// What is left of the free end that was found is not used.
    fn leave_found(&mut self) {
        self.found_end = 0;
        (self.append, self.grown) = (self.end, self.len.min(self.end));
    }

    /// Metadata that will be written reaches up to `end`, maybe beyond the end of the file: space is handed
    /// out behind it, and when the file is as long.
    pub(super) fn reach(&mut self, end: u64) {
        let end = align_up(end, self.cluster);
        if end > self.append {
            (self.append, self.end, self.floor) = (end, self.end.max(end), end);
        }
    }

    /// Metadata that will be written lies beyond the end of the file.
    pub(super) fn is_short(&self) -> bool {
        self.len < self.floor
    }

    /// First byte behind everything that is, or was, allocated.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Where the next cluster comes from.
    pub(super) fn next(&self) -> u64 {
        self.append
    }

    /// A format whose clusters lie wholly inside the file (QED): one that the file cuts off holds nothing.
    pub(super) fn whole_clusters(self) -> Space {
        let torn = if self.len < self.append { align_down(self.len, self.cluster) } else { NOWHERE };
        Space { torn, ..self }
    }

    /// The end that a reference to `len` bytes at `offset` must keep: the file's, or its whole clusters'.
    #[inline]
    pub(super) fn end_for(&self, offset: u64, len: u64) -> u64 {
        if offset <= self.torn && self.torn - offset < len { self.torn } else { self.end }
    }

    /// Is it the cluster that the file cuts off?
    #[inline]
    pub(super) fn is_torn(&self, cluster: u64) -> bool {
        cluster == self.torn
    }

    /// As if the file had grown.
    #[cfg(feature = "sabotage")]
    pub(super) fn believe(&mut self, grown: u64) {
        self.grown = self.grown.max(grown);
        self.len = self.len.max(grown);
    }

    /// The file grows, or its free end is being cleared.
    pub(super) fn is_growing(&self) -> bool {
        self.growing.is_some()
    }

    /// The file's length.
    pub(super) fn file_len(&self) -> u64 {
        self.len
    }

    /// The file is about to be cut behind what was handed out: how long it will be, if it is longer.
    pub(super) fn cut(&mut self) -> Option<u64> {
        if self.len <= self.append || self.has_found() {
            return None;
        }
        (self.grown, self.len) = (self.append, self.append);
        Some(self.append)
    }

    pub(super) fn waiters(&self) -> &Queue {
        &self.waiters
    }

    /// The file cannot grow, or could not when somebody waited for it last.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    pub(super) fn set_full(&mut self, error: Error) {
        self.full = Some(error);
    }

    pub(super) fn take_full(&mut self) -> Option<Error> {
        self.full.take()
    }

    /// What lies before `offset` is not used, though it may be free.
    pub(super) fn skip_to(&mut self, offset: u64) {
        debug_assert!(offset >= self.append);
        self.append = offset;
        self.end = self.end.max(offset);
    }

    fn take(&mut self, len: u64) -> Option<u64> {
        debug_assert!(len.is_multiple_of(self.cluster));
        let end = self.append.checked_add(len)?;
        if end > self.grown {
            return None;
        }
        let offset = self.append;
        self.append = end;
        self.end = self.end.max(end);
        Some(offset)
    }

    /// A length at a border of clusters, and of the blocks of file systems: where a file ends within a
    /// block, growing it again goes through the page cache, which collides with direct transfers to that
    /// block.
    fn whole(&self, len: u64) -> u64 {
        align_up(len, self.cluster.max(BLOCK))
    }

    /// The next length to grow to, `need` bytes behind `append` at least.
    pub(super) fn target(&self, need: u64) -> u64 {
        self.whole(self.append.saturating_add(need).saturating_add(self.step()))
    }

    /// How far ahead of the data the file grows: half of what it has, within limits.
    fn step(&self) -> u64 {
        (self.append / 2).clamp(STEP_MIN, STEP_MIN.max(self.step_max)).min(self.step_max.max(self.cluster))
    }

    /// So little space is left that the next growth should start before anybody has to wait for it.
    fn runs_low(&self) -> bool {
        let left = self.grown.saturating_sub(self.append);
        let step = if self.has_found() { CLEAR } else { self.step() };
        self.growing.is_none() && self.step_max >= STEP_MIN && left < step / 2
    }

    /// Behind what may be handed out lies the cluster that the file cuts off: it is left out when what is in
    /// front of it does not do any more.
    fn stops_short(&self) -> bool {
        !self.has_found() && self.grown < self.len
    }

    /// The next piece of the free end to be cleared, `need` bytes behind `append` at least: from where to
    /// where. What was found to be in use there is left out.
    fn next_found(&mut self, need: u64) -> Option<(u64, u64)> {
        if !self.has_found() {
            if self.stops_short() {
                self.leave_found();
            }
            return None;
        }
        let from = self.grown.max(self.append);
        let to = align_up(self.append.saturating_add(need.max(CLEAR)), self.cluster).min(self.found_end);
        if from >= to {
            self.leave_found();
            return None;
        }
        self.grown = from;
        self.found.1 = to;
        Some((from, to))
    }
}

impl Image {
    /// `len` bytes of space, or None: then the acb waits in `state` for the file to grow (or has failed).
    pub(super) fn allocate(&mut self, a: u32, len: u64, state: State) -> Option<u64> {
        if self.refcounted.is_some() {
            return self.allocate_counted(a, len, state);
        }
        if !self.has_space(a, len, state) {
            return None;
        }
        let offset = self.space.append;
        self.take_space(len);
        Some(offset)
    }

    /// Takes space that is there.
    pub(super) fn take_space(&mut self, len: u64) {
        let taken = self.space.take(len);
        debug_assert!(taken.is_some());
        if self.space.runs_low() {
            self.more_space(0);
        }
    }

    /// Is there so much space behind what is in use? If not, the acb waits in `state` for the file to grow
    /// (or has failed).
    pub(super) fn has_space(&mut self, a: u32, len: u64, state: State) -> bool {
        if self.space.append.checked_add(len).is_some_and(|end| end <= self.space.grown) {
            return true;
        }
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::WaitGrowFile) {
            return self.use_before_growth(len);
        }
        if self.space.append.checked_add(len).is_none_or(|end| end > HOST_MAX) {
            self.finish(a, Err(Error::NoSpace));
            return false;
        }
        self.requests.set_state(a, state);
        self.requests.wait_in(&mut self.space.waiters, a);
        self.space.wanted = self.space.wanted.saturating_add(len);
        if self.space.growing.is_none() {
            self.more_space(self.space.wanted);
        }
        false
    }

    /// Space behind what is in use, `need` bytes of it at least (0: nobody waits for it): what the file has
    /// there, and when that is used up, more of a file.
    fn more_space(&mut self, need: u64) {
        debug_assert!(self.space.growing.is_none());
        if self.health.is_halted() {
            return self.answer_waiters(&Error::Poisoned);
        }
        if self.space.has_found() && self.commit.durable() == 0 {
            // a sync first: see the module's header
            if need > 0 {
                self.commit.demand_sync();
                self.kick();
            }
            return;
        }
        if need == 0 && self.space.stops_short() {
            return;
        }
        if let Some((from, to)) = self.space.next_found(need) {
            if self.options.sabotaged(Rule::ClearBeforeUse) {
                self.space.grown = to;
                return self.wake_waiters();
            }
            self.space.growing = Some(to);
            let op = IoOp::Clear { host: from, len: to - from };
            return self.outbox.emit(Purpose::Clear, Op::Clear, from, op);
        }
        if !self.may_grow(need > 0) {
            return;
        }
        let target = self.space.target(need).min(HOST_MAX);
        self.grow(target, false);
    }

    /// Something that those who wait for space waited for has happened.
    pub(super) fn space_on(&mut self) {
        if !self.space.waiters.is_empty() && self.space.growing.is_none() && !self.space.is_full() {
            self.more_space(self.space.wanted);
        }
    }

    pub(super) fn grow(&mut self, to: u64, smallest: bool) {
        debug_assert!(self.space.growing.is_none());
        let from = self.space.len;
        // up to metadata that lies far behind the end there is a hole
        let (to, op) = match self.space.is_short() {
            true => (self.space.floor, IoOp::SetLen { len: self.space.floor }),
            false => (to, IoOp::Grow { from, to }),
        };
        if to <= from {
            return;
        }
        self.space.growing = Some(to);
        self.space.smallest = smallest;
        self.observed.counters.grows += 1;
        self.outbox.emit(Purpose::Grow, Op::Grow, from, op);
    }

    /// A growth ended.
    pub(super) fn grown(&mut self, result: Result<(), Error>) {
        let Some(to) = self.space.growing.take() else { return };
        match result {
            Ok(()) => {
                (self.space.grown, self.space.len, self.space.full) = (to, to, None);
                if let Some(counted) = self.refcounted.as_deref_mut() {
                    counted.starving = false;
                }
                // the new length must be durable before a pointer into it is (QE4)
                self.commit.unsynced |= !self.options.sabotaged(Rule::LengthBeforePointer);
                self.wake_waiters();
            }
            Err(_) if !self.space.smallest => {
                // a large step failed: what is needed may still fit (nothing, if nobody waits)
                let need = self.space.whole(self.space.append.saturating_add(self.space.wanted));
                self.grow(need, true);
                if self.space.is_growing() {
                    return;
                }
            }
            Err(error) => {
                let error = match error {
                    // ENOSPC, EDQUOT; a limit of a file's size (EFBIG) says so itself
                    Error::Device { errno: 28 | 122, .. } => Error::NoSpace,
                    other => other,
                };
                match self.refcounted.is_some() {
                    true => self.search_all(error),
                    false => self.answer_waiters(&error),
                }
            }
        }
        // the dirty bit is not cleared before the growth in flight has ended
        self.kick();
    }

    /// A piece of the free end reads as zeros, or will not: then the file grows instead.
    pub(super) fn space_cleared(&mut self, result: &Result<(), Error>) {
        let Some(to) = self.space.growing.take() else { return };
        // durable before a pointer to it, as a hole is (QC6)
        self.commit.unsynced |= !self.options.sabotaged(Rule::HoleBeforePointer);
        match result {
            // it was left alone meanwhile
            _ if !self.space.has_found() => {}
            Ok(()) => self.space.grown = to,
            Err(_) => self.space.leave_found(),
        }
        self.wake_waiters();
    }

    /// Who waits for space looks again.
    pub(super) fn wake_waiters(&mut self) {
        self.space.wanted = 0;
        self.requests.wake(&mut self.space.waiters);
    }

    /// Who waits for space gets this answer.
    pub(super) fn answer_waiters(&mut self, error: &Error) {
        self.requests.fail_all(&self.space.waiters, error);
        self.wake_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 65536;
    const MIB: u64 = 1 << 20;

    #[test]
    fn a_cluster_that_the_file_cuts_off_is_torn() {
        let cut = Space::new(10 * CLUSTER + 700, CLUSTER, 0);
        assert_eq!((cut.end(), cut.file_len()), (11 * CLUSTER, 10 * CLUSTER + 700));
        assert!(!cut.is_torn(10 * CLUSTER), "not yet");
        let cut = cut.whole_clusters();
        for (offset, len, end) in
            [(10, 1, 10), (9, 2, 10), (8, 4, 10), (9, 1, 11), (8, 2, 11), (11, 1, 11), (12, 9, 11)]
        {
            assert_eq!(
                cut.end_for(offset * CLUSTER, len * CLUSTER),
                end * CLUSTER,
                "{len} clusters at {offset}"
            );
        }
        assert_eq!([9, 10, 11].map(|n| cut.is_torn(n * CLUSTER)), [false, true, false]);
        let whole = Space::new(10 * CLUSTER, CLUSTER, 0).whole_clusters();
        assert_eq!([9, 10, 11].map(|n| whole.is_torn(n * CLUSTER)), [false; 3]);
        assert_eq!([9, 10, 11].map(|n| whole.end_for(n * CLUSTER, CLUSTER)), [10 * CLUSTER; 3]);
    }

    #[test]
    fn the_file_grows_by_half_of_what_it_has_within_limits() {
        let step = |len, step_max| Space::new(len, CLUSTER, step_max).step();
        for (len, step_max, expected) in [
            (0, 64 * MIB, 8 * MIB),
            (17 * MIB, 64 * MIB, 17 * MIB / 2),
            (100 * MIB, 64 * MIB, 50 * MIB),
            (1 << 40, 64 * MIB, 64 * MIB),
            (1 << 40, MIB, MIB),
            (100 * MIB, 0, CLUSTER),
        ] {
            assert_eq!(step(len, step_max), expected, "{len} bytes, at most {step_max}");
        }
        let space = Space::new(100 * MIB, CLUSTER, 64 * MIB);
        assert_eq!(space.target(CLUSTER), 150 * MIB + CLUSTER);
        assert_eq!(space.target(1), 150 * MIB + CLUSTER, "whole clusters");
        assert_eq!(Space::new(MIB, 512, 0).target(1), MIB + 4096, "and whole blocks");
    }

    #[test]
    fn space_runs_low_at_half_a_step() {
        let mut space = Space::new(100 * MIB, CLUSTER, 8 * MIB);
        assert!(space.runs_low());
        space.grown = space.append + 4 * MIB;
        assert!(!space.runs_low(), "half a step is left");
        space.grown -= 1;
        assert!(space.runs_low());
        space.growing = Some(200 * MIB);
        assert!(!space.runs_low(), "it grows already");
        // small steps are not taken ahead
        let space = Space::new(100 * MIB, CLUSTER, 8 * MIB - 1);
        assert!(!space.runs_low());
    }
}
