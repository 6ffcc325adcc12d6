//! Tables in memory: slices of L1 and L2 tables and of refcount blocks, and the cache that holds them; what
//! their entries say, and which of those must not be followed.
//!
//! Knows: words, which of them changed, which acbs wait for a slice. Must never know: requests, when a change
//! is written, what a change is for.

pub(crate) mod cache;
pub(crate) mod dangling;
pub(crate) mod decode;
pub(crate) mod load;
pub(crate) mod mapping;
pub(crate) mod slice;
