//! The NBD server: what a client's requests do, and how its replies go.
//!
//! Knows: the codec, the disks. Must never know: the loop, other clients.

mod client;
mod jobs;
mod outbox;
mod status;
mod ticket;
mod window;

pub(crate) use client::{Client, Served};
pub(crate) use ticket::Ticket;
