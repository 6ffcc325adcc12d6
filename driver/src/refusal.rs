//! A request that was not accepted, and why.
//!
//! Knows: requests. Must never know: what is asked of a disk beside it.
//! Invariant: it has the request's buffers.

use crate::error::Error;
use crate::request::Request;

/// Why a request was not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// All slots are in use: submit again after a completion.
    Busy,
    /// It can never be accepted.
    Error(Error),
}

/// A request that was not accepted, given back with its buffers; nothing of it was done. `?` makes an
/// [`Error`] of it, and drops the buffers.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub reason: Refusal,
    /// What.
    pub request: Request,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Busy => Error::Busy,
            Refusal::Error(error) => error,
        }
    }
}

impl From<Rejected> for Error {
    /// Why the request was not accepted; its buffers are dropped.
    fn from(rejected: Rejected) -> Error {
        rejected.reason.into()
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.reason.fmt(f)
    }
}

impl std::error::Error for Rejected {}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Busy => Error::Busy.fmt(f),
            Refusal::Error(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}
