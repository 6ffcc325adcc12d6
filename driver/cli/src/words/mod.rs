//! Words: what the command line reads and says. Options, names, sizes, JSON, failures in QEMU's words.
//!
//! Knows: texts. Must never know: which subcommand asks; nothing here opens an image.

pub mod cache;
pub mod errno;
pub mod failure;
pub mod format;
pub mod getopt;
pub mod holder;
pub mod json;
pub mod keyval;
pub mod luks;
pub mod nodes;
pub mod numbers;
pub mod open;
pub mod qcow2;
pub mod runtime;
pub mod sizes;
pub mod snapshot;
