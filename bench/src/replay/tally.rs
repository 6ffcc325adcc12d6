//! Counts what a replay did, and when.
//!
//! Knows: operations, latencies. Must never know: bytes.

use super::options::{Options, Speed};
use crate::measure::histogram::Latencies;
use crate::report::{Pacing, ReplayReport, Row};
use crate::trace::Op;
use quod::{Met, PathClass};
use std::time::Duration;

const OPS: [(Op, &str); 4] =
    [(Op::Read, "read"), (Op::Write, "write"), (Op::Trim, "discard"), (Op::Sync, "flush")];
const LATE: Duration = Duration::from_micros(100);
/// Failures that are kept in words.
const FAILURES_MAX: usize = 16;

/// Running totals.
#[derive(Debug)]
pub struct Tally {
    kinds: [Latencies; OPS.len()],
    paths: Vec<Latencies>,
    lateness: Latencies,
    response: Latencies,
    bytes_read: u64,
    bytes_written: u64,
    failed: u64,
    failures: Vec<String>,
    last_due: Duration,
}

impl Tally {
    pub fn new() -> Tally {
        Tally {
            kinds: std::array::from_fn(|_| Latencies::new()),
            paths: PathClass::ALL.iter().map(|_| Latencies::new()).collect(),
            lateness: Latencies::new(),
            response: Latencies::new(),
            bytes_read: 0,
            bytes_written: 0,
            failed: 0,
            failures: Vec::new(),
            last_due: Duration::ZERO,
        }
    }

    /// An operation that was due at `due` is submitted at `now`.
    pub fn submitted(&mut self, due: Duration, now: Duration) {
        self.lateness.record(now.saturating_sub(due));
        self.last_due = self.last_due.max(due);
    }

    /// An operation ended well.
    pub fn completed(&mut self, op: Op, len: u64, met: Met, latency: Duration) {
        self.kinds[op as usize].record(latency);
        if let Some(class) = PathClass::of(met) {
            self.paths[class as usize].record(latency);
        }
        match op {
            Op::Read => self.bytes_read += len,
            Op::Write => self.bytes_written += len,
            Op::Trim | Op::Sync => {}
        }
    }

    /// How long after it was due.
    pub fn responded(&mut self, after: Duration) {
        self.response.record(after);
    }

    /// An operation failed.
    pub fn failed(&mut self, what: impl FnOnce() -> String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(what());
        }
    }

    /// The numbers of a report.
    pub fn report(self, options: &Options, elapsed: Duration, cpu: Duration) -> ReplayReport {
        let operations = self.kinds.iter().map(Latencies::count).sum::<u64>() + self.failed;
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let row = |name: &str, latencies: &Latencies| {
            let latency = latencies.summary();
            (latency.count > 0).then(|| Row { name: name.to_owned(), latency })
        };
        let kinds = OPS.iter().zip(&self.kinds).filter_map(|((_, name), latencies)| row(name, latencies));
        let paths =
            PathClass::ALL.iter().zip(&self.paths).filter_map(|(class, seen)| row(class.name(), seen));
        let pacing = matches!(options.speed, Speed::Times(_)).then(|| Pacing {
            intended_s: self.last_due.as_secs_f64(),
            lateness: self.lateness.summary(),
            late_share: self.lateness.count_above(LATE) as f64 / self.lateness.count().max(1) as f64,
            response: self.response.summary(),
        });
        let mut report = ReplayReport {
            operations,
            elapsed_s: elapsed.as_secs_f64(),
            operations_per_s: operations as f64 / seconds,
            bytes_read: self.bytes_read,
            bytes_written: self.bytes_written,
            mib_per_s: (self.bytes_read + self.bytes_written) as f64 / seconds / f64::from(1 << 20),
            cpu_us_per_operation: cpu.as_secs_f64() * 1e6 / operations.max(1) as f64,
            kinds: kinds.collect(),
            paths: paths.collect(),
            pacing,
            ..ReplayReport::default()
        };
        report.verification.operations_failed = self.failed;
        report.verification.failures = self.failures;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::OPS;

    #[test]
    fn indices_agree_with_the_list() {
        assert!(OPS.iter().enumerate().all(|(index, (op, _))| *op as usize == index));
    }
}
