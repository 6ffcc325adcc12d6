//! What runs have covered, to be added up and printed.
//!
//! Knows: numbers. Must never know: where they come from.

use quod::{Format, State};
use std::collections::BTreeMap;

/// What runs have covered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Requests answered well.
    pub done: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Requests that were cancelled before all of them was done.
    pub cancelled: u64,
    /// Backend operations.
    pub operations: u64,
    /// Operations that were made to fail.
    pub faults: u64,
    /// Power cuts survived.
    pub crashes: u64,
    /// Volatile units and lengths at those moments.
    pub volatile: u64,
    /// Closes without a fault.
    pub clean_closes: u64,
    /// Openings that repaired.
    pub repairs: u64,
    /// Timers that ran out.
    pub timers: u64,
    /// Sessions that a failed write or sync poisoned.
    pub poisoned: u64,
    /// Edges of the state tables that the image took: (format, from, to) by index, with counts.
    pub edges: BTreeMap<(u8, u8, u8), u64>,
}

impl Tally {
    /// The edges of a format's table that were not taken.
    pub fn missing(&self, format: Format, edges: &[(State, State)]) -> Vec<(State, State)> {
        let taken = |from, to| self.edges.contains_key(&(format as u8, from as u8, to as u8));
        edges.iter().filter(|(from, to)| !taken(*from, *to)).copied().collect()
    }

    /// Adds another.
    pub fn add(&mut self, other: &Tally) {
        self.done += other.done;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.operations += other.operations;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.volatile += other.volatile;
        self.clean_closes += other.clean_closes;
        self.repairs += other.repairs;
        self.timers += other.timers;
        self.poisoned += other.poisoned;
        for (edge, count) in &other.edges {
            *self.edges.entry(*edge).or_default() += count;
        }
    }
}
