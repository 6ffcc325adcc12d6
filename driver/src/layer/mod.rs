//! The files of a disk and what is on its way to them.
//!
//! Knows: machines, files, operations in flight. Must never know: what a turn does.

pub(crate) mod disk;
pub(crate) mod port;
