//! Where metadata lies, so that whoever leads there by mistake is told.
//!
//! Knows: ranges and their names. Must never know: who leads where.

use super::telling::KNOWN_MAX;
use std::collections::HashSet;

/// Ranges of the file, and clusters that are L2 tables.
#[derive(Default)]
pub(super) struct Places {
    /// Begin, end, what lies there; by their begin once `sort` was called.
    ranges: Vec<(u64, u64, &'static str)>,
    /// L2 tables of the disk.
    tables: HashSet<u64>,
}

impl Places {
    /// Something lies there.
    pub(super) fn add(&mut self, at: u64, len: u64, what: &'static str) {
        if len > 0 && at.checked_add(len).is_some() {
            self.ranges.push((at, at + len, what));
        }
    }

    /// All is there: it can be looked at.
    pub(super) fn sort(&mut self) {
        self.ranges.sort_unstable();
    }

    /// An L2 table of the disk lies there. Says whether one was known to: two entries lead to it.
    pub(super) fn add_table(&mut self, at: u64) -> bool {
        if self.tables.len() < KNOWN_MAX { !self.tables.insert(at) } else { self.tables.contains(&at) }
    }

    /// What an L2 table at this range of one cluster would overlap.
    pub(super) fn under_table(&self, at: u64, len: u64) -> Option<&'static str> {
        let end = at.saturating_add(len);
        let behind = self.ranges.partition_point(|(begin, _, _)| *begin < end);
        let (_, last, what) = self.ranges[..behind].last()?;
        (*last > at).then_some(*what)
    }

    /// What data at this range would overlap, which is at most a cluster in length and begins at one.
    pub(super) fn under_data(&self, at: u64, len: u64) -> Option<&'static str> {
        match self.tables.contains(&at) {
            true => Some("overlaps an L2 table"),
            false => self.under_table(at, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_under_a_range() {
        let mut places = Places::default();
        places.add(1024, 512, "b");
        places.add(0, 512, "a");
        places.add(u64::MAX, 512, "nothing");
        places.sort();
        assert!(!places.add_table(4096) && places.add_table(4096));
        let under = |at, len| places.under_data(at, len);
        assert_eq!([under(0, 1), under(511, 1), under(512, 512)], [Some("a"), Some("a"), None]);
        assert_eq!([under(512, 513), under(1535, 512), under(1536, 512)], [Some("b"), Some("b"), None]);
        assert_eq!([under(4096, 512), places.under_table(4096, 512)], [Some("overlaps an L2 table"), None]);
    }
}
