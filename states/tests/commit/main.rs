//! The commit pipeline: rounds, windows and timers.

mod gone;
mod metadata;
mod rounds;
mod timers;
