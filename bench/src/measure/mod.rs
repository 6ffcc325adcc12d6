//! What a run is measured with: latencies, time spent in each state, a timeline for a viewer, CPU time.
//!
//! Knows: durations, states' names. Must never know: who is measured.

pub mod dwell;
pub mod histogram;
pub mod timeline;
pub mod usage;
