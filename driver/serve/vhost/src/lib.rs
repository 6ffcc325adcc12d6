//! A disk image as a vhost-user-blk device, for QEMU, Cloud Hypervisor, Firecracker, on one thread in one
//! event loop over [`quod::Driver`].
//!
//! A [`Device`] listens at a UNIX socket for its front end, whose guest puts requests into rings in shared
//! memory. Data go from there to the image and back without a copy. A front end that goes, or a server that
//! is killed, loses nothing: what was under way is written down in memory of the front end's, and done by the
//! next server, in order, once.
//!
//! Knows: sockets, rings, guest memory, the driver's public face. Must never know: how an image is laid out,
//! how the driver works, what a command line looks like.

mod blk;
mod chain;
mod channel;
mod connection;
mod device;
mod disk;
mod error;
mod front;
mod inflight;
mod memory;
mod order;
mod ring;

pub use device::{Device, DeviceOptions};
pub use error::VhostError;

pub use quod_door::{Address, Control, Listener};

/// The example of the README, compiled.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
