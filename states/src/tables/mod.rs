//! Tables in memory: slices of L1 and L2 tables and of refcount blocks, and the cache that holds them.
//!
//! Knows: words, which of them changed, who waits for a slice. Must never know: what a word means.

pub(crate) mod cache;
pub(crate) mod slice;
