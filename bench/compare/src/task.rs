//! What a process of its own is told, and what it tells.
//!
//! Knows: the words between the two processes. Must never know: how often and beside what it runs.

use crate::engine::Maker;
use crate::setting::Format;
use crate::workload::Work;
use quod_bench::measure::histogram::{Latencies, Percentiles};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// By whom.
    pub maker: Maker,
    /// On what.
    pub image: PathBuf,
    /// Of which format.
    pub format: Format,
    /// What.
    pub work: Work,
    /// Memory for tables, bytes; `None`: what the library takes by itself.
    pub cache: Option<u64>,
    /// Record how long each request takes.
    pub latency: bool,
}

/// The percentiles that are told.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tail {
    /// Microseconds: half are not longer.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
}

impl Tail {
    /// Nothing, if nothing was recorded.
    pub fn of(latencies: &Latencies) -> Option<Tail> {
        let Percentiles { count, p50_us, p99_us, p999_us, .. } = latencies.summary();
        (count > 0).then_some(Tail { p50: p50_us, p99: p99_us, p999: p999_us })
    }
}

/// What came of a run.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Seconds from the first request to the end of the last flush.
    pub seconds: f64,
    /// Of each request, if it was asked for.
    pub tail: Option<Tail>,
    /// The longest time that one call held the thread in the driver's own code, microseconds.
    pub hold_own: Option<f64>,
    /// The longest time that one call was in the kernel, microseconds.
    pub hold_kernel: Option<f64>,
}
