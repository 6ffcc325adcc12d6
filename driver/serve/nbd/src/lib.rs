//! The server's side of the NBD protocol, as a codec: bytes in, bytes out, and nothing else.
//!
//! A [`Connection`] is a value. Whoever owns the socket shows it a window of the bytes that came
//! ([`Connection::negotiate`], [`Connection::receive`]), drops what it took, and sends what it wrote into a
//! [`Sink`]. What it answers about exports it asks an [`Exports`]; what requests do is not its business.
//!
//! It speaks fixed newstyle with `EXPORT_NAME`, `LIST`, `INFO`, `GO`, `STARTTLS`, `STRUCTURED_REPLY`,
//! `EXTENDED_HEADERS`, `LIST_META_CONTEXT`, `SET_META_CONTEXT` and `ABORT`; simple, structured and extended
//! replies. The source of its rules is doc/proto.md of the NBD project (with the branch
//! extension-ext-header); a rule names its section there.
//!
//! Knows: the protocol. Must never know: sockets, TLS, disks, time.
//! Invariants: no allocation; nothing that a client sends panics, and a client makes it keep nothing beyond
//! the value itself; a state is entered over an edge of [`EDGES`] alone.
#![no_std]
#![forbid(unsafe_code)]

mod answer;
mod bytes;
mod connection;
mod context;
mod export;
mod extents;
mod option;
mod reply;
mod request;
mod state;
mod wire;

pub use bytes::Sink;
pub use connection::{Connection, End, Negotiated, Next, Received, Tls, Violation, What};
pub use context::{Context, Contexts, Kind, STATE_HOLE, STATE_ZERO};
pub use export::{Export, Exports};
pub use extents::Descriptors;
pub use reply::{REPLY_HEAD_MAX, Style};
pub use request::{Command, Refused, Request};
pub use state::{EDGES, State, Taken};
pub use wire::{Errno, MAXIMUM_PAYLOAD, NAME_MAX, OPTION_MAX, SINK_MIN, WINDOW_MIN};

/// The example of the README, compiled and run.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
