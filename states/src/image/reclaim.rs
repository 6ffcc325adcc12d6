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
//! * where the file cannot grow, all of it is looked at before anybody is told so (`full.rs`).

use super::Image;
use super::refcounts::{Counted, count_of};
use crate::rule::Rule;

/// Bytes that are reclaimed at once, when fewer are free.
const BATCH: u64 = 4 << 20;
/// Slices of the refcounts that are looked at in one go.
const SLICES: u32 = 4;
/// And loaded at once.
const LOADS: u64 = 4;

impl Image {
    /// Looks for clusters to reclaim, in a few slices of the refcounts at most.
    pub(super) fn look_for_free(&mut self) {
        // nothing that the counts say is to be trusted
        let Some(counted) = self.refcounted.as_deref().filter(|counted| counted.broken.is_none()) else {
            return;
        };
        let batch = (BATCH >> counted.header.cluster_bits).max(1);
        let known = counted.quarantine.total() > batch && !counted.starving;
        let enough = counted.unseen.0 >= counted.unseen.1 || known;
        let later = counted.quarantine.is_punching() || self.commit.durable() == 0 || self.health.is_halted();
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.hungry = !enough;
        }
        if enough || later {
            return;
        }
        let mut found = 0;
        for _ in 0..SLICES {
            let Some((at, end)) = self.refcounted.as_deref().map(|counted| counted.unseen) else { return };
            if at >= end || found >= batch {
                break;
            }
            let (next, more) = match self.refcount_slice(at) {
                Ok((slot, start, stop)) => self.reclaim(slot, start, at, stop.min(end), batch - found),
                Err(Counted::NoBlock(index)) => self.refcounted.as_deref().map_or((end, 0), |counted| {
                    // a block that is not there counts nothing; what it would count is not worth a new one
                    ((index + 1) << counted.counts.block_bits(), 0)
                }),
                Err(Counted::Loading(_)) => {
                    self.load_ahead(at, end);
                    break;
                }
                Err(Counted::NoSlot) => break,
                Err(_) => (end, 0),
            };
            found += more;
            if let Some(counted) = self.refcounted.as_deref_mut() {
                counted.unseen.0 = next;
            }
        }
        self.punch_dead();
    }

    /// Slices of the refcounts that will be looked at next are loaded together.
    fn load_ahead(&mut self, at: u64, end: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let step = self.refcounted.as_deref().map_or(1, |counted| counted.slice_counters(&geometry));
        for slice in 1..LOADS {
            let cluster = at + slice * step;
            if cluster >= end || !matches!(self.refcount_slice(cluster), Err(Counted::Loading(_)) | Ok(_)) {
                return;
            }
        }
    }

    /// Something was loaded, or became free: was more wanted?
    pub(super) fn look_on(&mut self) {
        if self.refcounted.as_deref().is_some_and(|counted| counted.hungry) {
            self.look_for_free();
        }
    }

    /// Takes the first run of free clusters of `[at, stop)`: where to look next, and how many they are.
    fn reclaim(&mut self, slot: u32, start: u64, at: u64, stop: u64, most: u64) -> (u64, u64) {
        let twice = self.options.sabotaged(Rule::HeldOnce);
        let Some(counted) = self.refcounted.as_deref() else { return (stop, 0) };
        let words = &self.tables.slot(slot).entries;
        let free = |cluster: &u64| {
            let held = counted.quarantine.holds(*cluster) && !twice;
            count_of(counted.counts, words, cluster - start) == 0 && !held
        };
        let Some(first) = (at..stop).find(free) else { return (stop, 0) };
        let until = stop.min(first + most);
        let end = (first..until).find(|cluster| !free(cluster)).unwrap_or(until);
        let Some(counted) = self.refcounted.as_deref_mut() else { return (stop, 0) };
        if counted.check_uncounted(first, end - first).is_err() {
            // what the counts call free is not: from here on space comes from behind the end of the file
            let end = counted.unseen.1;
            self.distrust_counts();
            return (end, 0);
        }
        counted.quarantine.bury(first, end - first);
        (end, end - first)
    }
}
