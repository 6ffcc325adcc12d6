//! The commit pipeline: rounds, windows and timers.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/narrow.rs"]
mod narrow;

mod gone;
mod metadata;
mod rounds;
mod timers;
