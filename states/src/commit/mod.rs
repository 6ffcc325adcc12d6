//! The commit pipeline: one small machine an image, shared by all that need durability.
//!
//! A round: [header marked dirty] -> [refcounts written] -> sync -> (data is durable) -> [refcount table
//! written, sync] -> pointers written -> [next round's sync makes them durable]. Steps in brackets that
//! have nothing to do cost nothing; those of refcounts are qcow2's alone. What stands here is the pipeline as
//! a value (`pipeline.rs`): what is wanted and how far it is (`windows.rs`), the header's dirty bit
//! (`bit.rs`), the slices and the refcount table on their way (`progress.rs`, `writing.rs`, `reftable.rs`),
//! and those that wait (`answers.rs`). Which step follows which is `image/round.rs`.
//!
//! Knows: which slices are dirty, which acb waits for what. Must never know: what the pointers mean, requests
//! but as those that wait.
//!
//! Invariants (docs/ordering.md):
//! * a pointer is written only when a sync submitted after its data was written has completed (QE3, QE2,
//!   QE4);
//! * the header's need-check bit is durable before the first pointer of a dirty period is written (QE1);
//! * the bit is cleared only when every written pointer is durable (QE5);
//! * a failed metadata write or sync poisons the image: nothing is written after it.

mod answers;
mod bit;
mod pipeline;
mod progress;
mod reftable;
mod windows;
mod writing;

pub(crate) use bit::DirtyBit;
pub(crate) use pipeline::{Commit, Phase, RoundStart};
pub(crate) use progress::TABLE_WRITES_MAX;
