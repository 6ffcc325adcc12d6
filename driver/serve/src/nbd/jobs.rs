//! Requests that are under way.
//!
//! Knows: which pieces of a request are where. Must never know: sockets, replies.
//! Invariant: a job is over when nothing of it is in the driver, nothing is still to be handed over, and
//! nothing is still to come from the client.

use super::status::Status;
use crate::pool::LENGTH_MAX;
use quod_nbd::{Errno, Request};

/// Long reads and writes go in pieces of so many bytes.
pub(super) const PIECE: u64 = LENGTH_MAX as u64;

/// A request, and how far it is.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub work: Work,
    /// Requests in the driver.
    pub out: u32,
    /// Bytes of the range that were handed over.
    pub handed: u64,
    /// More of it is still to be handed over, or to come from the client.
    pub more: bool,
    /// The first thing that went wrong.
    pub failed: Option<(Errno, &'static str)>,
}

/// What it does.
#[derive(Debug)]
pub(super) enum Work {
    Read,
    /// A read for nobody.
    Cache,
    /// `flush`: what was written is flushed before the reply.
    Write {
        flush: bool,
    },
    /// One request of the driver's, then a flush if that is wanted.
    Single {
        flush: bool,
    },
    Status(Box<Status>),
}

impl Job {
    pub fn new(request: Request, work: Work) -> Job {
        Job { request, work, out: 0, handed: 0, more: false, failed: None }
    }

    /// Cookie and offset, as replies name it.
    pub fn tag(&self) -> (u64, u64) {
        (self.request.cookie, self.request.offset)
    }

    /// It goes in several pieces.
    pub fn is_long(&self) -> bool {
        self.request.len > PIECE
    }

    /// The next piece: number, offset, bytes.
    pub fn next_piece(&self) -> (u16, u64, usize) {
        let len = (self.request.len - self.handed).min(PIECE);
        ((self.handed / PIECE) as u16, self.request.offset + self.handed, len as usize)
    }

    /// The piece of this number: offset, bytes.
    pub fn piece(&self, number: u16) -> (u64, usize) {
        let before = u64::from(number) * PIECE;
        (self.request.offset + before, (self.request.len - before).min(PIECE) as usize)
    }

    /// A piece of so many bytes is in the driver.
    pub fn hand_over(&mut self, len: usize) {
        self.handed += len as u64;
        self.out += 1;
        debug_assert!(self.handed <= self.request.len, "pieces lie inside the request");
    }

    pub fn is_over(&self) -> bool {
        self.out == 0 && !self.more
    }

    pub fn fail(&mut self, errno: Errno, text: &'static str) {
        self.failed.get_or_insert((errno, text));
    }
}
