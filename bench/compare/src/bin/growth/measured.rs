//! A point, and what its runs made.
//!
//! Knows: figures. Must never know: how they were measured.

use crate::axis::{Outcome, Point};

/// A point and what came of its runs.
pub struct Measured {
    pub point: Point,
    pub runs: Vec<Outcome>,
}

impl Measured {
    /// Smallest, median and largest of a figure.
    pub fn spread(&self, figure: impl Fn(&Outcome) -> f64) -> (f64, f64, f64) {
        let mut all: Vec<f64> = self.runs.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        let at = |index: usize| all.get(index).copied().unwrap_or(f64::NAN);
        (at(0), at(all.len() / 2), at(all.len().saturating_sub(1)))
    }
}
