//! What the process of a point is told.
//!
//! Knows: its words. Must never know: what grows.

use crate::axis::Format;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Bytes of a read, and of what is written for it.
pub const READ: u64 = 4096;

/// What a process is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The disks.
    pub images: Vec<PathBuf>,
    pub format: Format,
    /// Places of each, and bytes from one to the next.
    pub places: u64,
    pub step: u64,
    /// Requests in flight, of all disks together.
    pub depth: u32,
    /// Reads.
    pub count: u64,
}
