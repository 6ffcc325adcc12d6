//! What every part stands on: slabs and lists, a map of slices, offsets and ranges of them, sets of clusters,
//! a digest.
//!
//! Must never know: images, requests or formats beyond the shape of their tables.

pub(crate) mod arena;
pub(crate) mod aside;
pub(crate) mod clusters;
pub(crate) mod digest;
pub(crate) mod directory;
pub mod geometry;
pub(crate) mod queue;
pub(crate) mod span;
