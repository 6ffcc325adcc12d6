//! All of a request's life, as data: the control block, its states and which may follow which, what a guest
//! asks.
//!
//! Knows: what is waited for, and what is owned. Must never know: how a block gets on (`image/`), what it is
//! made of on disk.

pub(crate) mod block;
pub mod edges;
pub(crate) mod job;
pub mod request;
pub(crate) mod requests;
pub mod state;
pub(crate) mod waits;

pub use block::AcbId;
pub(crate) use block::{Acb, AcbIndex, Source, Transfer, Want};
pub use edges::{QCOW2_EDGES, QED_EDGES, RAW_EDGES, Transition};
pub use state::State;
