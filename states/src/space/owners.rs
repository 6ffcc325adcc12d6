//! Owners of L2 tables: which entries of the active L1 table lead to which.
//!
//! Several may lead to one table, as a snapshot's and the active one's may: whoever wants to change it gets a
//! copy. None of them may say that the table is its own then.
//!
//! Knows: places and indices. Must never know: what a table says, or whether its place is a good one.
//!
//! Invariant: an entry leads to one table at most, as far as it was told.

use crate::base::span::Span;
use alloc::collections::BTreeMap;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Owners(BTreeMap<(u64, u64), bool>);

impl Owners {
    /// L1 entry `index` leads to `table`, and says whether that is `copied`: counted once. False: it is none
    /// of the owners, as another entry is and one of them says so.
    pub(crate) fn add(&mut self, table: u64, index: u64, copied: bool) -> bool {
        debug_assert!(table > 0, "offset 0 is no table");
        let owns = !self.others(table, index).any(|other| copied || other);
        if owns {
            self.0.insert((table, index), copied);
            debug_assert!(self.0.contains_key(&(table, index)), "it is one of the owners");
        }
        owns
    }

    /// The last table in the file.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|((table, _), _)| *table)
    }

    pub(crate) fn remove(&mut self, table: u64, index: u64) {
        let known = self.0.remove(&(table, index));
        debug_assert!(known.is_some(), "it led there");
    }

    /// Do other entries lead there, and does each say that the table is its own?
    fn others(&self, table: u64, index: u64) -> impl Iterator<Item = bool> {
        self.0
            .range((table, 0)..=(table, u64::MAX))
            .filter(move |(key, _)| key.1 != index)
            .map(|entry| *entry.1)
    }

    /// So many other entries lead there.
    pub(crate) fn shared_with(&self, table: u64, index: u64) -> usize {
        debug_assert!(table > 0, "offset 0 is no table");
        self.others(table, index).count()
    }

    /// Does a table begin there?
    pub(crate) fn any(&self, span: Span) -> bool {
        debug_assert!(span.start <= span.end, "it does not run backwards");
        !span.is_empty() && self.0.range((span.start, 0)..(span.end, 0)).next().is_some()
    }

    /// Each table once, with the first entry that leads there.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut last = None;
        self.0.keys().copied().filter(move |(table, _)| last.replace(*table) != Some(*table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_table_has_several_owners_if_none_says_that_it_is_its_own() {
        let mut owners = Owners::default();
        assert!(owners.add(512, 3, true) && owners.add(512, 3, true), "one and the same entry");
        assert!(owners.add(1024, 4, false) && owners.add(1024, 2, false) && owners.add(1024, 9, false));
        assert!(!owners.add(512, 5, false), "the first says that it is its own");
        assert!(!owners.add(1024, 7, true), "the last says so");
        assert!(owners.add(512, 3, true) && owners.add(1024, 2, false), "those before stay owners");
        assert_eq!((owners.shared_with(1024, 2), owners.shared_with(1024, 7)), (2, 3));
        assert_eq!((owners.shared_with(512, 3), owners.shared_with(2048, 0)), (0, 0));
        assert_eq!(owners.tables().collect::<Vec<_>>(), [(512, 3), (1024, 2)]);
        owners.remove(512, 3);
        assert!(owners.add(512, 5, false));
        let any = |start, end| owners.any(Span::new(start, end));
        assert!(!any(0, 512) && any(512, 513));
        assert!(any(0, 513) && any(512, 513) && any(513, 1025) && !any(513, 1024) && !any(1025, 9000));
        assert!(!any(512, 512));
    }
}
