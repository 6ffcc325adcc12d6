//! What every server of quod has, on its one thread in its event loop: listeners; a control socket that
//! tells, quiesces, resizes and stops; metrics for Prometheus.
//!
//! The loop is the server's. It implements [`Door`] for what it serves, and gives a [`Control`] its turns.
//! Whoever connects there is not to be trusted with the server's time or memory: requests, clients and what
//! is kept for them are bounded, and one that is slow or silent waits for itself alone.
//!
//! Knows: sockets, the driver's public face. Must never know: what is served to whom, how the driver works.
#![forbid(unsafe_code)]

mod client;
mod control;
mod door;
mod facts;
mod http;
mod listen;
mod metrics;
mod operation;
mod request;
mod socket;

pub use control::Control;
pub use door::{Count, Door, Shown};
pub use listen::{Address, Listener};
pub use socket::Socket;

/// The example of the README, compiled.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
