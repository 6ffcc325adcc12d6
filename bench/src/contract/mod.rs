//! The contract between a disk and its guest: what a read may find, given what was asked of the disk so far.
//!
//! One contract at two grains. [`blocks`] covers disks of terabytes at the speed of a replay: blocks of 512
//! bytes, four bytes of memory for each that was touched, no power cuts. [`exact`] covers small disks: every
//! byte, every order, and what a power cut may leave. What both can judge they judge alike; a test holds them
//! to it.
//!
//! Knows: requests, their order, the bytes that they write. Must never know: images, drivers, files.

pub mod blocks;
mod cells;
pub mod exact;
pub mod hash;
pub mod payload;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use verdict::{Checked, Failure, fail};
