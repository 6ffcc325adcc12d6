//! What a check keeps in mind until all else is known to be sound: entries that only the machine refuses, and
//! metadata that nothing else may refer to.
//!
//! Knows: faults, counts. Must never know: which entries are refused, and why.
//!
//! Invariant: at most `PROBLEMS_MAX` faults are kept; all are counted.

use crate::check::PROBLEMS_MAX;
use crate::fault::Fault;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// See the module's header.
#[derive(Clone, Debug)]
pub(super) struct Hidden {
    /// Entries: the first of them, and how many.
    pub(super) problems: Vec<Fault>,
    pub(super) count: u64,
    /// Metadata that nothing else may refer to: first byte and bytes.
    pub(super) alone: Vec<(u64, u64)>,
    /// References to L2 tables by L1 entries, by cluster: in the file or beyond its end.
    pub(super) tables: BTreeMap<u64, u64>,
    /// L1 entries that are a flag alone, and counted as if they led to the header.
    pub(super) only_flags: u64,
}

impl Hidden {
    pub(super) fn new() -> Hidden {
        Hidden { problems: Vec::new(), count: 0, alone: Vec::new(), tables: BTreeMap::new(), only_flags: 0 }
    }

    pub(super) fn problem(&mut self, fault: Fault) {
        self.count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(fault);
        }
        debug_assert!(self.problems.len() <= PROBLEMS_MAX && self.problems.len() as u64 <= self.count);
    }
}
