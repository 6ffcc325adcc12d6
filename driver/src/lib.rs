//! An asynchronous block driver for QED and qcow2 disk images that an event loop embeds.
//!
//! [`Driver`] owns one backend (io_uring, or a worker pool) and many disks. No call blocks, except
//! [`Driver::wait`]; what blocks otherwise (the tools of images) is the crate `quod-tools`. Every
//! guest request is an explicit state machine in `quod-states`; bytes are moved by `quod-backend`; this crate
//! is the pump between the two.
//!
//! ```no_run
//! use quod::{Buffer, Config, Driver, OpenOptions, Request};
//! # fn main() -> Result<(), quod::Error> {
//! let mut driver = Driver::new(Config::default())?; // mio's event::Source, and AsFd
//! let disk = driver.open("disk.qed", OpenOptions::new().write(true))?; // completes as an event
//! // in the event loop, when the descriptor is readable or `next_timeout` has passed:
//! driver.turn()?; // never blocks
//! while let Some(done) = driver.next_completion() {
//!     println!("{:?} of {:?}: {:?}", done.kind, done.disk, done.result);
//! }
//! driver.submit(disk, Request::read(0, Buffer::zeroed(4096), 1))?;
//! # Ok(())
//! # }
//! ```
//!
//! Knows: both sides. Must never know: how an image is laid out, how a system call is made.

mod config;
mod driver;
mod engine;
mod error;
mod event_loop;
pub mod fault;
mod gate;
mod hold;
mod layer;
mod memory;
mod request;
mod stats;
mod trace;
mod transform;

pub use config::{Config, OpenOptions};
pub use driver::Driver;
pub use error::{BackendOp, DeviceOp, Error, ErrorKind, FileOp, FileRole, Lack, Lock};
pub use gate::{AllowAll, Allowed, DenyBacking, Named, OpenGate, Role, SameDirectory};
pub use hold::Hold;
pub use memory::buffers::{Buffers, RawBuffers};
pub use request::{
    Completion, CompletionKind, DiskId, DiskInfo, LayerInfo, Refusal, Rejected, Request, RequestKind,
};
pub use stats::{PathClass, Stats};
pub use trace::TimedTransition;

pub use quod_backend::{BackendKind, Buffer, Segment};
pub use quod_states::{
    AcbId, AllocationGate, Backing, Bitmaps, Counters, Extent, Fault, Foreign, Format, Info, Kind, Met,
    Policy, Report, RequestId, State, Status, Transition, qcow2::Compression,
};

// for the crates of the workspace
#[doc(hidden)]
pub use config::{LOCK_PATIENCE, LOCK_RETRY};
#[doc(hidden)]
pub use error::describe;

/// The example of the README, compiled and run.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
