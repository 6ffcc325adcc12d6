//! The request state machines of quod: what an image needs done, decided without doing any of it.
//!
//! This crate holds no file descriptor, clock, thread or byte of guest data. Most users want the crate
//! `quod`; use this one to drive an image from another I/O engine, a simulator or a model checker. The
//! important types are [`Image`] (an open image: requests in, named I/O out), [`Opening`] (how it came to be
//! open) and [`State`] (what a request is waiting for).
//!
//! The contract, single mutation: after every mutator (`submit`, `handle_completion`, `handle_timeout`) drain
//! `poll_io`, `poll_timeout`, `poll_event` and `poll_transition` until they are empty, before the next
//! mutator.
#![no_std]
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

extern crate alloc;

pub mod acb;
pub mod base;
pub mod check;
mod commit;
mod counters;
pub mod error;
pub mod fault;
mod health;
pub mod image;
pub mod info;
pub mod io;
pub mod machine;
pub mod open;
pub mod options;
mod outbox;
pub mod probe;
pub mod qcow2;
pub mod qed;
mod rule;
pub mod snapshots;
mod space;
mod steps;
mod tables;

pub use acb::request::{
    Event, Extent, Flags, HitEnded, Met, Refused, Request, RequestId, RequestKind, Status,
};
pub use acb::{AcbId, State, Transition};
pub use check::{Repair, Report};
pub use counters::Counters;
pub use error::Error;
pub use fault::{Fault, Lack, Op};
pub use image::Image;
pub use info::{Backing, Bitmaps, Format, Info};
pub use io::{FillSource, Hit, Io, IoId, IoOp, Outcome, Part};
pub use machine::Machine;
pub use open::{Opened, Opening};
pub use options::{AllocationGate, Options, Policy};
pub use outbox::{Alarm, Timer};
pub use probe::Foreign;
pub use qcow2::snapshot::Selector as SnapshotSelector;
#[cfg(feature = "sabotage")]
pub use rule::Rule;
pub use snapshots::{Ask as SnapshotAsk, BitmapAsk, BitmapBits, BitmapChange};
