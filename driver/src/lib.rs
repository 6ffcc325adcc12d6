//! An asynchronous block driver for QED and qcow2 disk images that an event loop embeds.
//!
//! [`Driver`] owns one backend (io_uring, or a worker pool) and many disks, all on one thread. No call
//! blocks, except [`Driver::wait`]; what blocks otherwise (the tools of images) is the crate `quod-tools`.
//! Every guest request is an explicit state machine in `quod-states`; bytes are moved by `quod-backend`; this
//! crate is the pump between the two.
//!
//! An opening or a request that was taken ends as a [`Completion`], once, whatever happens, and gives its
//! buffers back. All offsets, lengths and sizes are bytes, times are [`std::time::Duration`] or, where a name
//! says so, milliseconds. An image is written through a cache of its tables: what must survive a power cut is
//! followed by [`Request::flush`], or is a request with [`Request::fua`].
//!
//! ```
//! use quod::{Buffer, CompletionKind, Config, Driver, OpenOptions, Request};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("disk.qed");
//! # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qed, 1 << 30))?;
//! let mut driver = Driver::new(Config::default())?;
//! let disk = driver.open(&path, OpenOptions::new().write(true))?; // ends as a completion
//! 'ends: loop {
//!     driver.wait(None)?; // an event loop calls `turn`, which never blocks, instead
//!     while let Some(done) = driver.next_completion() {
//!         done.result?;
//!         let next = match done.kind {
//!             CompletionKind::Opened => Request::write(4096, Buffer::from(&b"some bytes"[..]), 1),
//!             CompletionKind::Write(_) => Request::flush(2), // now it would survive
//!             CompletionKind::Flush => Request::close(3),
//!             _ => break 'ends,
//!         };
//!         driver.submit(disk, next)?;
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to go on: [`Driver`] in an event loop, [`OpenOptions`], [`Request`], [`Completion`], [`Error`],
//! [`OpenGate`] for images that name other files, [`RawBuffers`] for guest memory. The contract as a whole is
//! docs/embedding.md in the repository.
//!
//! Knows: both sides. Must never know: how an image is laid out, how a system call is made.

#![warn(clippy::missing_errors_doc)]

mod completion;
mod config;
mod driver;
mod engine;
mod error;
mod event_loop;
pub mod fault;
mod gate;
mod hold;
mod info;
mod layer;
mod memory;
mod refusal;
mod registered;
mod request;
mod stats;
mod trace;
mod transform;

pub use completion::{Completion, CompletionKind};
pub use config::{Config, OpenOptions};
pub use driver::Driver;
pub use error::{BackendOp, DeviceOp, Error, ErrorKind, FileOp, FileRole, Lack, Lock};
pub use gate::{AllowAll, Allowed, DenyBacking, InDirectory, Named, OpenGate, Role, SameDirectory};
pub use hold::Hold;
pub use info::{DiskInfo, LayerInfo};
pub use memory::buffers::{Buffers, RawBuffers};
pub use refusal::{Refusal, Rejected};
pub use request::{DiskId, Kind, MemoryId, Request, RequestKind};
pub use stats::{PathClass, Stats};
pub use trace::TimedTransition;

pub use quod_backend::{BackendKind, Buffer, CpuSet, Segment};
pub use quod_states::{
    AcbId, AllocationGate, Backing, BitmapAsk, BitmapBits, BitmapChange, Bitmaps, Counters, Extent, Fault,
    Foreign, Format, Info, Met, Policy, Report, RequestId, SnapshotAsk, SnapshotSelector, State, Status,
    Transition, qcow2::Compression,
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
