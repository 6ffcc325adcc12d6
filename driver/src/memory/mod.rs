//! Memory: guest buffers as scatter lists, aligned buffers on loan, the bytes around a guest's bytes.
//!
//! Knows: addresses and lengths. Must never know: files, machines, requests.

pub(crate) mod arena;
pub(crate) mod buffers;
pub(crate) mod fill;
