//! The request state machines of quod: what a QED image needs done, decided without doing any of it.
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

extern crate alloc;

pub mod acb;
mod arena;
mod cache;
pub mod check;
mod digest;
mod directory;
pub mod error;
pub mod fault;
pub mod geometry;
pub mod image;
pub mod io;
pub mod machine;
pub mod open;
pub mod options;
pub mod probe;
pub mod qcow2;
pub mod qed;
mod queue;
pub mod request;
pub mod rule;
pub mod state;
mod table;

pub use acb::AcbId;
pub use check::{Repair, Report};
pub use error::Error;
pub use fault::Op;
pub use image::{Alarm, Counters, Image, Timer};
pub use io::{FillSource, Io, IoId, IoOp, Outcome, Part};
pub use machine::Machine;
pub use open::{Backing, Bitmaps, Format, Info, Opened, Opening};
pub use options::{AllocationGate, Options, Policy};
pub use probe::Foreign;
pub use request::{Event, Extent, Flags, Kind, Met, Refused, Request, RequestId, Status};
pub use rule::Rule;
pub use state::{State, Transition};
