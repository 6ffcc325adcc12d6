//! Free clusters that were there when the image was opened: found bit by bit, while new space is wanted.
//!
//! Nothing is scanned at open. Whenever space is wanted and little of it is free, a slice of the refcounts is
//! looked at; clusters that nobody counts go the way of all freed clusters (`quarantine.rs`): a
//! hole is punched, then they are free. So an image whose guest discards and writes again does not grow
//! without bound over its openings, and neither does one that a power cut left with space ahead of its data.
//!
//! Knows: how far it has looked. Must never know: what the clusters held.
//!
//! Invariants:
//! * it starts after the first sync since the opening: counts that another program lowered just before are
//!   durable then, and so are the removals of pointers that it made before (QC4);
//! * clusters that are in quarantine already are left to it; metadata that nobody counts is corruption;
//! * no more is punched at once than is about to be wanted: an image whose counts lie loses no more than it
//!   would to a writer that believes them;
//! * where the file cannot grow, all of it is looked at before anybody is told so (`image/full.rs`).

use super::Cx;
use super::counts::{Counted, Refcounted, Unseen, count_of};
use super::kind::{ClusterRun, Uncounted};
use crate::outbox::Due;
use crate::rule::Rule;

/// Bytes that are reclaimed at once, when fewer are free.
const BATCH: u64 = 4 << 20;
/// Slices of the refcounts that are looked at in one go.
const SLICES: u32 = 4;
/// And loaded at once.
const LOADS: u64 = 4;

impl Refcounted {
    /// Looks for clusters to reclaim, in a few slices of the refcounts at most.
    pub(crate) fn look_for_free(&mut self, cx: &mut Cx<'_>) {
        // nothing that the counts say is to be trusted
        if self.broken.is_some() {
            return;
        }
        let batch = (BATCH >> self.header.cluster_bits).max(1);
        debug_assert!(self.unseen.next <= self.unseen.end, "it looks up to the end");
        let known = self.quarantine.total() > batch && !self.starving;
        let enough = self.unseen.next >= self.unseen.end || known;
        let later = self.quarantine.is_punching() || cx.durable == 0 || cx.halted;
        self.hungry = !enough;
        if enough || later {
            return;
        }
        let mut found = 0;
        for _ in 0..SLICES {
            let Unseen { next: at, end } = self.unseen;
            if at >= end || found >= batch {
                break;
            }
            let (next, more) = match self.refcount_slice(at, cx) {
                Ok((slot, start, stop)) => self.reclaim(slot, start, at, stop.min(end), batch - found, cx),
                // a block that is not there counts nothing; what it would count is not worth a new one
                Err(Counted::NoBlock(index)) => (end.min((index + 1) << self.counts.block_bits()), 0),
                Err(Counted::Loading(_)) => {
                    self.load_ahead(at, end, cx);
                    break;
                }
                Err(Counted::NoSlot) => break,
                Err(_) => (end, 0),
            };
            found += more;
            debug_assert!(next > at, "a look gets on");
            debug_assert!(next <= end, "up to the end");
            self.unseen.next = next;
        }
    }

    /// Slices of the refcounts that will be looked at next are loaded together.
    fn load_ahead(&self, at: u64, end: u64, cx: &mut Cx<'_>) {
        debug_assert!(at < end);
        let step = self.slice_counters(cx.geometry);
        debug_assert!(step > 0, "a slice counts clusters");
        for slice in 1..LOADS {
            let cluster = at + slice * step;
            if cluster >= end || !matches!(self.refcount_slice(cluster, cx), Err(Counted::Loading(_)) | Ok(_))
            {
                return;
            }
        }
    }

    /// Takes the first run of free clusters of `[at, stop)`: where to look next, and how many they are.
    fn reclaim(
        &mut self,
        slot: u32,
        start: u64,
        at: u64,
        stop: u64,
        most: u64,
        cx: &mut Cx<'_>,
    ) -> (u64, u64) {
        debug_assert!(start <= at && at < stop && most > 0);
        let twice = cx.options.sabotaged(Rule::HeldOnce);
        let words = &cx.tables.slot(slot).entries;
        let free = |cluster: &u64| {
            let held = self.quarantine.holds(*cluster) && !twice;
            count_of(self.counts, words, cluster - start) == 0 && !held
        };
        let Some(first) = (at..stop).find(free) else { return (stop, 0) };
        let until = stop.min(first + most);
        let end = (first..until).find(|cluster| !free(cluster)).unwrap_or(until);
        debug_assert!(first < end && end <= stop, "a run of the slice");
        if self.check_uncounted(first, end - first).is_err() {
            // what the counts call free is not: from here on space comes from behind the end of the file
            let end = self.unseen.end;
            self.distrust();
            cx.append.distrust_found();
            return (end, 0);
        }
        self.quarantine.bury(Uncounted::found(ClusterRun::new(first, end - first)));
        cx.out.due |= Due::PUNCH;
        (end, end - first)
    }
}
