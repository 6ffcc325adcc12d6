//! Disk images served to others, on one thread in one event loop: an NBD server over [`quod::Driver`].
//!
//! A [`Server`] listens, opens images as exports, and runs until it is asked to end; then it answers what is
//! under way, commits and closes. Clients are many and not to be trusted: each is bounded in memory and in
//! requests, and one that is slow, silent or hostile holds nobody else ([`ServerOptions`] has the limits).
//!
//! Knows: sockets, the driver's public face, the codec of the protocol. Must never know: how an image is laid
//! out, how the driver works, what a command line looks like.
#![forbid(unsafe_code)]

mod disks;
mod error;
mod export;
mod nbd;
mod pool;
mod server;
mod tls;
mod view;

pub use error::ServeError;
pub use export::ExportOptions;
pub use server::{Server, ServerOptions};
pub use tls::TlsOptions;

pub use quod_door::{Address, Control};

/// The example of the README, compiled.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
