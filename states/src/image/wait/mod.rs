//! Requests that wait for each other.

pub(crate) mod claims;
mod sectors;
