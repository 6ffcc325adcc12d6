//! Places beyond the end of the file that something leads to: how many entries do, and where nothing may be
//! put because of them.
//!
//! Knows: ranges of clusters. Must never know: which tables lead there.
//!
//! Invariant: at most `KEPT_MAX` places are kept in mind; more than that are known to be too many.

use alloc::collections::BTreeMap;

/// Places that are kept in mind at most.
const KEPT_MAX: usize = 1 << 16;
/// See the module's header.
#[derive(Clone, Debug, Default)]
pub(super) struct Beyond {
    /// Bytes of the file when this run began.
    pub(super) end: u64,
    /// Entries of L1 and L2 tables that lead beyond it, and those of them that cannot be dropped.
    pub(super) told: u64,
    pub(super) stay: u64,
    /// Where something leads to still, or where it lies: first cluster, and the one behind.
    pub(super) kept: BTreeMap<u64, u64>,
    pub(super) too_many: bool,
    /// A cluster has more references than can be counted.
    pub(super) overflow: bool,
    /// May the table that is being looked at be changed?
    pub(super) writable: bool,
    /// This run has dropped what it could.
    pub(super) dropped: bool,
}

impl Beyond {
    /// A run begins, in a file of `end` bytes.
    pub(super) fn new(end: u64) -> Beyond {
        Beyond { end, ..Beyond::default() }
    }

    /// References are counted anew.
    pub(super) fn forget(&mut self) {
        *self = Beyond { end: self.end, dropped: self.dropped, ..Beyond::default() };
    }

    /// Entries of L1 or L2 tables lead there still.
    pub(super) fn entries_stay(&self) -> bool {
        debug_assert!(self.told >= self.stay, "what stays was told");
        self.told > 0
    }

    /// Where the last kept place that reaches into these clusters ends.
    pub(super) fn kept_until(&self, first: u64, count: u64) -> Option<u64> {
        debug_assert!(count > 0, "nobody asks about nothing");
        let (_, &end) = self.kept.range(..first.saturating_add(count)).next_back()?;
        (end > first).then_some(end)
    }

    pub(super) fn keep(&mut self, mut first: u64, mut end: u64) {
        debug_assert!(first < end);
        while let Some((&start, &until)) = self.kept.range(..=end).next_back()
            && until >= first
        {
            self.kept.remove(&start);
            (first, end) = (first.min(start), end.max(until));
        }
        if self.kept.len() < KEPT_MAX {
            self.kept.insert(first, end);
        } else {
            self.too_many = true;
        }
        debug_assert!(self.kept.len() <= KEPT_MAX);
    }
}
