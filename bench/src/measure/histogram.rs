//! Latencies: recorded without allocation, told as percentiles.
//!
//! Knows: durations. Must never know: what was measured.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// A distribution of durations, up to an hour, three significant digits, the maximum exact.
#[derive(Clone, Debug)]
pub struct Latencies {
    nanos: Histogram<u32>,
    max: u64,
    total: u128,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

impl Latencies {
    /// Empty.
    pub fn new() -> Latencies {
        let bounds = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        // constants that the histogram accepts: every test of this module builds one
        let nanos = bounds.unwrap_or_else(|_| unreachable!("constant bounds"));
        Latencies { nanos, max: 0, total: 0 }
    }

    /// Counts one duration. Allocates nothing.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.saturating_record(nanos);
        self.max = self.max.max(nanos);
        self.total += u128::from(nanos);
    }

    /// Counts all of another distribution too.
    pub fn add(&mut self, other: &Latencies) {
        // cannot fail: both have the bounds of `new`
        let added = self.nanos.add(&other.nanos);
        debug_assert!(added.is_ok());
        self.max = self.max.max(other.max);
        self.total += other.total;
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// How many were longer than this.
    pub fn count_above(&self, limit: Duration) -> u64 {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.len() - self.nanos.count_between(0, nanos)
    }

    /// The usual percentiles.
    pub fn summary(&self) -> Percentiles {
        let mut percentiles = Percentiles::of(&self.nanos, self.max);
        if self.count() > 0 {
            percentiles.mean_us = self.total as f64 / self.count() as f64 / 1e3;
        }
        percentiles
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Percentiles {
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Half are not longer.
    pub p50_us: f64,
    /// Nine of ten.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1000.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Percentiles {
    /// Of a histogram of nanoseconds, whose largest value is this exactly.
    pub fn of(nanos: &Histogram<u32>, max: u64) -> Percentiles {
        if nanos.is_empty() {
            return Percentiles::default();
        }
        // a bucket's upper edge may lie above the largest value in it, and a bucket may be the last one
        let at = |quantile| nanos.value_at_quantile(quantile).min(max) as f64 / 1e3;
        Percentiles {
            count: nanos.len(),
            mean_us: (nanos.mean() / 1e3).min(max as f64 / 1e3),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: max as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_ramp() {
        let mut latencies = Latencies::new();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let summary = latencies.summary();
        assert_eq!(summary.count, 1000);
        for (found, wanted) in [
            (summary.p50_us, 500.0),
            (summary.p90_us, 900.0),
            (summary.p99_us, 990.0),
            (summary.p999_us, 999.0),
        ] {
            assert!((found - wanted).abs() / wanted < 0.002, "{found} {wanted}");
        }
        assert_eq!((summary.max_us, summary.mean_us), (1000.0, 500.5));
        assert!((latencies.count_above(Duration::from_micros(900)) as i64 - 100).abs() <= 1);
        assert_eq!(Latencies::new().summary(), Percentiles::default());
    }

    #[test]
    fn two_distributions_are_one() {
        let (mut even, mut odd, mut all) = (Latencies::new(), Latencies::new(), Latencies::new());
        for us in 1..=1000 {
            if us % 2 == 0 { &mut even } else { &mut odd }.record(Duration::from_micros(us));
            all.record(Duration::from_micros(us));
        }
        even.add(&odd);
        assert_eq!(even.summary(), all.summary());
    }

    #[test]
    fn absurd_durations_are_kept() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::MAX);
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        let summary = latencies.summary();
        // two values: half are not longer than the shorter
        assert_eq!(summary.p50_us, 0.0);
        assert!(summary.p999_us <= summary.max_us && summary.max_us > 1e15, "{summary:?}");
    }

    #[test]
    fn no_percentile_is_above_the_maximum() {
        for nanos in [1, 127, 1001, 12_345, 987_654_321, 3_599_999_999_999] {
            let mut latencies = Latencies::new();
            (0..3).for_each(|_| latencies.record(Duration::from_nanos(nanos)));
            let exact = nanos as f64 / 1e3;
            let coarse = {
                let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 2).unwrap();
                (0..3).for_each(|_| histogram.saturating_record(nanos));
                Percentiles::of(&histogram, nanos)
            };
            for p in [latencies.summary(), coarse] {
                assert_eq!(p.max_us, exact);
                assert!(p.p50_us <= p.p90_us && p.p99_us <= p.p999_us && p.p999_us <= exact, "{p:?}");
                assert!(p.mean_us <= exact, "{p:?}");
            }
        }
    }
}
