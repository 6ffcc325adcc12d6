//! How much is taken at once.
//!
//! Knows: numbers. Must never know: what they bound.

/// Requests that are under way at once.
pub const IN_FLIGHT: usize = 128;
/// Bytes of one read or write, at most: so much memory has each of those.
pub const TRANSFER: usize = 256 << 10;
