//! Loads that need no trace.
//!
//! Knows: the public face of the driver. Must never know: traces, what a disk must contain.

pub mod order;
pub(crate) mod registered;
pub mod sequential;
