//! The engine: what one turn of the driver does.
//!
//! Knows: all floors below. Must never know: how an image is laid out, how a system call is made.

pub(crate) mod open;
pub(crate) mod pump;
pub(crate) mod timers;
pub(crate) mod translate;
