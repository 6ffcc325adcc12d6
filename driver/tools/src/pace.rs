//! A bound of bytes a second.
//!
//! Knows: the clock. Must never know: whose bytes.

use std::time::{Duration, Instant};

/// Bytes that were let through, and since when.
pub(crate) struct Pace {
    /// Bytes a second at most; 0: no bound.
    rate: u64,
    began: Instant,
    done: u64,
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Pace {
        Pace { rate, began: Instant::now(), done: 0 }
    }

    /// Waits as long as the bound wants before so many bytes more. False: somebody asked for an end.
    pub(crate) fn pass(&mut self, len: u64, stop: fn() -> bool) -> bool {
        self.done += len;
        if self.rate == 0 {
            return true;
        }
        let due = self.done as f64 / self.rate as f64;
        loop {
            let left = due - self.began.elapsed().as_secs_f64();
            if left <= 0.0 {
                return true;
            }
            if stop() {
                return false;
            }
            std::thread::sleep(Duration::from_secs_f64(left.min(0.05)));
        }
    }
}
