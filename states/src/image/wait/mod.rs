//! Requests that wait for each other.

pub(in crate::image) mod claims;
mod sectors;
