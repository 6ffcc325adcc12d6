//! Questions to the chooser about what shall happen.
//!
//! Knows: numbers. Must never know: what they decide.

use quod_backend::sim::{Choice, Chooser, pick};

/// A number below `n`.
pub(crate) fn ask(chooser: &mut dyn Chooser, n: usize) -> usize {
    pick(chooser, Choice::Workload, n)
}

/// One in `n`.
pub(crate) fn chance(chooser: &mut dyn Chooser, n: usize) -> bool {
    ask(chooser, n) == n - 1
}
