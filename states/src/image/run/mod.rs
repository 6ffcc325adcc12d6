//! What an acb does with a run of its range, step by step.
//!
//! Knows: one acb. Must never know: what comes after a step (`advance.rs`).

mod compress;
mod copy;
mod find;
mod l1;
mod link;
mod read;
mod unmap;
mod wait;
mod write;
mod zero;
