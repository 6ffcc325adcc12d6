//! What an exploration has come across, in numbers.
//!
//! Knows: states and edges by their numbers. Must never know: how they were reached.

use crate::world::World;
use quod_states::State;

/// What was explored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Runs from the beginning.
    pub runs: usize,
    /// Different ends.
    pub ends: usize,
    /// Crash images that were looked at, and how many different ones were recovered.
    pub images: usize,
    /// Of those, the different ones: recovered and read whole.
    pub recovered: usize,
    /// Images that power cuts within openings leave.
    pub within: usize,
    /// States with more images than the bound.
    pub sampled: usize,
    /// No bound on states was met.
    pub complete: bool,
    /// Edges of the state table that were taken: for each state, as bits.
    pub edges: [u32; State::COUNT],
}

impl Explored {
    /// The edges that this world has taken, too.
    pub(super) fn add_edges(&mut self, world: &World) {
        for (_, from, to) in world.tally.edges.keys() {
            self.edges[usize::from(*from)] |= 1 << to;
        }
    }

    /// Was this edge taken?
    pub fn took(&self, (from, to): (State, State)) -> bool {
        self.edges[from as usize] & 1 << to as u32 != 0
    }
}
