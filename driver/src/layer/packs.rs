//! Clusters that are being made shorter for compressed writes, of one layer: asked for, and made.
//!
//! Knows: requests by slot, the loan that keeps what was made. Must never know: who makes it, where it goes.
//!
//! Invariant: a slot keeps one loan at most, from the answer that it was made to its write, or to the end of
//! its request.

use crate::memory::arena::Loan;
use quod_states::IoId;
use quod_states::qcow2::Compression;
use std::collections::VecDeque;

/// What a cluster is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Method {
    pub compression: Compression,
    /// Deflate keeps to the window that all readers have.
    pub near: bool,
}

/// A request's cluster is to be made shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pack {
    pub io: IoId,
    /// The request's slot, which counts this as an operation on its buffer.
    pub request: u32,
    /// Bytes of the buffer; zeros follow to the end of the cluster.
    pub len: u64,
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Packs {
    pub method: Method,
    /// Those that nobody has looked at.
    asked: VecDeque<Pack>,
    /// By slot; as long as it had to be.
    made: Vec<Option<Loan>>,
}

impl Packs {
    pub(crate) fn new(method: Method) -> Packs {
        Packs { method, asked: VecDeque::new(), made: Vec::new() }
    }

    /// It is for the transforms to do.
    pub(crate) fn ask(&mut self, pack: Pack) {
        self.asked.push_back(pack);
    }

    /// There are some that nobody has looked at.
    pub(crate) fn are_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(crate) fn next(&mut self) -> Option<Pack> {
        self.asked.pop_front()
    }

    /// It was made, and is kept for the request.
    pub(crate) fn keep(&mut self, request: u32, loan: Loan) {
        let slot = request as usize;
        if self.made.len() <= slot {
            self.made.resize_with(slot + 1, || None);
        }
        debug_assert!(self.made[slot].is_none(), "a request has one cluster");
        self.made[slot] = Some(loan);
    }

    /// What is kept for the request.
    pub(crate) fn take(&mut self, request: u32) -> Option<Loan> {
        self.made.get_mut(request as usize)?.take()
    }
}
