//! The machine of one open image: requests go in, named I/O comes out, each request an explicit state
//! machine.
//!
//! Grammar (as quinn-proto and str0m have it): *mutators* are `submit`, `handle_completion`,
//! `handle_timeout` (`face.rs`); after each of them drain `poll_io`, `poll_timeout`, `poll_event` (and
//! `poll_transition`) until all are empty.
//!
//! The parts are values of their own (`acb/`, `tables/`, `space/`, `commit/`, `health.rs`, `outbox.rs`), put
//! together in `value.rs`. What is here says what follows from what: `advance.rs` takes an acb from step to
//! step (`run/`, `job/`), `round.rs` the commit pipeline, `settle.rs` starts what nobody asked for by name.
//!
//! Knows: acbs, requests, tables, space, the commit pipeline. Must never know: file descriptors, clocks,
//! threads, guest bytes.
//!
//! Invariants:
//! * nothing recurses: waking an acb puts it into the ready queue, which `settle` empties before a mutator
//!   returns;
//! * calls go down: face, settle, advance, jobs, runs, parts; a step says what comes next, and calls no step.

mod advance;
mod change;
mod face;
mod format;
mod full;
mod header;
mod job;
mod next;
mod round;
mod run;
#[cfg(feature = "sabotage")]
mod sabotage;
mod settle;
mod sweep;
mod value;

pub use value::Image;
