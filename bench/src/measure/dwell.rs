//! Where requests spend their time: how long control blocks stay in each state.
//!
//! All that happens in one call of the driver happens at one moment of its clock: a stay that begins and ends
//! in one call has no time. Such stays are counted apart.
//!
//! Knows: timed transitions. Must never know: what the states mean, requests' bytes.
//!
//! Invariant: memory is bounded by the control blocks of all layers; slices are passed on at once.

use quod::{State, TimedTransition};
use serde::Serialize;
use std::time::Duration;

/// One control block was in one state for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Layer of the disk.
    pub layer: usize,
    /// Slot of the control block.
    pub acb: u32,
    /// Slot of its request.
    pub request: u32,
    /// In which state.
    pub state: State,
    /// Since when, on the backend's clock.
    pub from: Duration,
    /// For how long.
    pub lasted: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    visits: u64,
    at_once: u64,
    total: Duration,
    longest: Duration,
}

/// Sums up transitions of one disk.
#[derive(Debug)]
pub struct Dwell {
    /// When each control block entered its state, by layer and slot.
    since: Vec<Vec<Option<Duration>>>,
    sums: [Sum; State::COUNT],
}

impl Default for Dwell {
    fn default() -> Dwell {
        Dwell { since: Vec::new(), sums: [Sum::default(); State::COUNT] }
    }
}

/// A free control block is no request's, and a done one waits for nothing.
fn rests(state: State) -> bool {
    matches!(state, State::Free | State::Done)
}

impl Dwell {
    /// Takes one transition; gives the slice that it ended.
    pub fn transition(&mut self, timed: TimedTransition) -> Option<Slice> {
        let TimedTransition { layer, at, transition, .. } = timed;
        let slot = transition.acb.index as usize;
        if self.since.len() <= layer {
            self.since.resize_with(layer + 1, Vec::new);
        }
        let slots = &mut self.since[layer];
        if slots.len() <= slot {
            slots.resize(slot + 1, None);
        }
        let began = slots[slot].take();
        slots[slot] = (!rests(transition.to)).then_some(at);
        let from = began.filter(|_| !rests(transition.from))?;
        let lasted = at.saturating_sub(from);
        let sum = &mut self.sums[transition.from as usize];
        sum.visits += 1;
        sum.at_once += u64::from(lasted.is_zero());
        sum.total += lasted;
        sum.longest = sum.longest.max(lasted);
        let (acb, request) = (transition.acb.index, transition.request.index);
        Some(Slice { layer, acb, request, state: transition.from, from, lasted })
    }

    /// States that were visited, the longest total first.
    pub fn rows(&self) -> Vec<StateRow> {
        let whole: f64 = self.sums.iter().map(|sum| sum.total.as_secs_f64()).sum();
        let row = |(state, sum): (&State, &Sum)| StateRow {
            state: state.name().to_owned(),
            visits: sum.visits,
            at_once: sum.at_once,
            total_ms: sum.total.as_secs_f64() * 1e3,
            share: if whole > 0.0 { sum.total.as_secs_f64() / whole } else { 0.0 },
            mean_us: sum.total.as_secs_f64() * 1e6 / (sum.visits - sum.at_once).max(1) as f64,
            max_us: sum.longest.as_secs_f64() * 1e6,
        };
        let visited = State::ALL.iter().zip(&self.sums).filter(|(_, sum)| sum.visits > 0);
        let mut rows: Vec<StateRow> = visited.map(row).collect();
        rows.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        rows
    }
}

/// Time in one state.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StateRow {
    /// The state's name.
    pub state: String,
    /// How often a control block was in it.
    pub visits: u64,
    /// Stays that began and ended in one call of the driver, and were not timed.
    pub at_once: u64,
    /// All stays together.
    pub total_ms: f64,
    /// Part of the time in all states.
    pub share: f64,
    /// Mean of the stays that were timed.
    pub mean_us: f64,
    /// Longest stay.
    pub max_us: f64,
}
