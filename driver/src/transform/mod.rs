//! Transforms of guest bytes on their way between an image and the backend: decompression.
//!
//! Knows: the bytes of clusters. Must never know: table entries, the guest's requests.

pub(crate) mod drive;
mod inflate;
mod workers;
