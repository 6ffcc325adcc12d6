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

/// How long `open`, `submit`, `cancel`, `turn` and `wait` (without its sleep) held the thread: the driver's
/// own time, and apart from it that inside system calls. Histograms are of nanoseconds, 1 ns to 60 s (longer
/// counts as that), two digits.
#[derive(Clone, Debug)]
pub struct Hold {
    own: Histogram<u32>,
    max: u64,
    syscall: Histogram<u32>,
    syscall_max: u64,
    total: u64,
    syscall_total: u64,
}

impl Hold {
    pub(crate) fn new() -> Hold {
        Hold {
            own: nanos_histogram(),
            max: 0,
            syscall: nanos_histogram(),
            syscall_max: 0,
            total: 0,
            syscall_total: 0,
        }
    }

    /// One call took `elapsed`, `syscall` nanoseconds of it inside the kernel.
    pub(crate) fn record(&mut self, elapsed: Duration, syscall: u64) {
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let own = elapsed.saturating_sub(syscall);
        self.own.saturating_record(own.max(1));
        self.max = self.max.max(own);
        self.total = self.total.saturating_add(own);
        if syscall > 0 {
            self.syscall.saturating_record(syscall);
            self.syscall_max = self.syscall_max.max(syscall);
            self.syscall_total = self.syscall_total.saturating_add(syscall);
        }
    }

    /// Distribution of the driver's own time per call, nanoseconds.
    pub fn histogram(&self) -> &Histogram<u32> {
        &self.own
    }

    /// Longest own time of one call.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// Own time of all calls.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total)
    }

    /// Distribution of the time inside system calls, per call that made one, nanoseconds.
    pub fn syscall_histogram(&self) -> &Histogram<u32> {
        &self.syscall
    }

    /// Longest time that one call spent inside system calls.
    pub fn syscall_max(&self) -> Duration {
        Duration::from_nanos(self.syscall_max)
    }

    /// Time of all calls inside system calls.
    pub fn syscall_total(&self) -> Duration {
        Duration::from_nanos(self.syscall_total)
    }

    /// Forgets everything (to leave a warm-up out of a measurement). Allocates nothing.
    pub fn reset(&mut self) {
        self.own.reset();
        self.syscall.reset();
        (self.max, self.syscall_max, self.total, self.syscall_total) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_are_reported_apart() {
        let mut hold = Hold::new();
        hold.record(Duration::from_micros(10), 4_000);
        hold.record(Duration::from_micros(3), 0);
        assert_eq!(hold.max(), Duration::from_micros(6));
        assert_eq!(hold.total(), Duration::from_micros(9));
        assert_eq!(hold.syscall_max(), Duration::from_micros(4));
        assert_eq!(hold.histogram().len(), 2);
        assert_eq!(hold.syscall_histogram().len(), 1);
        hold.record(Duration::from_secs(100), 0);
        assert_eq!(hold.max(), Duration::from_secs(100));
        hold.reset();
        assert_eq!((hold.max(), hold.histogram().len()), (Duration::ZERO, 0));
    }
}
