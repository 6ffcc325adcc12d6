//! How long one call into the driver holds the embedder's thread.
//!
//! Knows: durations. Must never know: a clock (callers pass times in), requests. Measured are `open`,
//! `submit`, `cancel`, `turn` and `wait` (without its sleep), each with two reads of the clock, the first of
//! which is also the time that everything in the call happens at. `next_completion` only pops a queue: not
//! measured. Invariant: recording never allocates.

use hdrhistogram::Histogram;
use std::time::Duration;

/// A histogram of nanoseconds, 1 ns to 60 s, two significant digits; longer times are recorded as 60 s.
pub(crate) fn nanos_histogram() -> Histogram<u32> {
    let bounds = Histogram::new_with_bounds(1, 60_000_000_000, 2);
    // the bounds are constants that the histogram accepts; the test below builds one
    bounds.unwrap_or_else(|_| unreachable!("constant bounds"))
}

/// One that nothing is recorded in: of a few bytes, where the other has 16 KiB.
pub(crate) fn no_histogram() -> Histogram<u32> {
    let bounds = Histogram::new_with_bounds(1, 2, 0);
    // as above
    bounds.unwrap_or_else(|_| unreachable!("constant bounds"))
}

/// Some times, and the longest and all of them together, exactly.
#[derive(Clone, Debug)]
struct Times {
    histogram: Histogram<u32>,
    max: u64,
    total: u64,
}

impl Times {
    fn new() -> Times {
        Times { histogram: nanos_histogram(), max: 0, total: 0 }
    }

    fn record(&mut self, nanos: u64) {
        self.histogram.saturating_record(nanos.max(1));
        self.max = self.max.max(nanos);
        self.total = self.total.saturating_add(nanos);
    }

    fn reset(&mut self) {
        self.histogram.reset();
        (self.max, self.total) = (0, 0);
    }
}

/// How long `open`, `submit`, `cancel`, `turn` and `wait` (without its sleep) held the thread; and the two
/// parts of that: the driver's own time, and the time inside system calls. Histograms are of nanoseconds,
/// 1 ns to 60 s (longer counts as that), two digits.
#[derive(Clone, Debug)]
pub struct Hold {
    whole: Times,
    own: Times,
    syscall: Times,
}

impl Hold {
    pub(crate) fn new() -> Hold {
        Hold { whole: Times::new(), own: Times::new(), syscall: Times::new() }
    }

    /// One call took `elapsed`, `syscall` nanoseconds of it inside the kernel.
    pub(crate) fn record(&mut self, elapsed: Duration, syscall: u64) {
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.whole.record(elapsed);
        self.own.record(elapsed.saturating_sub(syscall));
        if syscall > 0 {
            self.syscall.record(syscall);
        }
    }

    /// Distribution of how long one call held the thread, own code and kernel together, nanoseconds.
    pub fn histogram(&self) -> &Histogram<u32> {
        &self.whole.histogram
    }

    /// Longest that one call held the thread, own code and kernel together.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.whole.max)
    }

    /// How long all calls held the thread, own code and kernel together.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.whole.total)
    }

    /// Distribution of the driver's own time per call, nanoseconds.
    pub fn own_histogram(&self) -> &Histogram<u32> {
        &self.own.histogram
    }

    /// Longest own time of one call.
    pub fn own_max(&self) -> Duration {
        Duration::from_nanos(self.own.max)
    }

    /// Own time of all calls.
    pub fn own_total(&self) -> Duration {
        Duration::from_nanos(self.own.total)
    }

    /// Distribution of the time inside system calls, per call that made one, nanoseconds.
    pub fn syscall_histogram(&self) -> &Histogram<u32> {
        &self.syscall.histogram
    }

    /// Longest time that one call spent inside system calls.
    pub fn syscall_max(&self) -> Duration {
        Duration::from_nanos(self.syscall.max)
    }

    /// Time of all calls inside system calls.
    pub fn syscall_total(&self) -> Duration {
        Duration::from_nanos(self.syscall.total)
    }

    /// Forgets everything (to leave a warm-up out of a measurement). Allocates nothing.
    pub fn reset(&mut self) {
        self.whole.reset();
        self.own.reset();
        self.syscall.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_hold_are_reported_beside_it() {
        let mut hold = Hold::new();
        hold.record(Duration::from_micros(10), 4_000);
        hold.record(Duration::from_micros(8), 7_000);
        hold.record(Duration::from_micros(3), 0);
        assert_eq!((hold.max(), hold.total()), (Duration::from_micros(10), Duration::from_micros(21)));
        assert_eq!((hold.own_max(), hold.own_total()), (Duration::from_micros(6), Duration::from_micros(10)));
        assert_eq!(hold.syscall_max(), Duration::from_micros(7));
        assert_eq!(hold.syscall_total(), Duration::from_micros(11));
        assert_eq!((hold.histogram().len(), hold.own_histogram().len()), (3, 3));
        assert_eq!(hold.syscall_histogram().len(), 2);
        hold.record(Duration::from_secs(100), 0);
        assert_eq!(hold.max(), Duration::from_secs(100));
        hold.reset();
        assert_eq!((hold.max(), hold.histogram().len()), (Duration::ZERO, 0));
        assert_eq!((hold.own_max(), hold.own_histogram().len()), (Duration::ZERO, 0));
    }
}
