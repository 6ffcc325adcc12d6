//! What is in flight: whose operation it is, and what to do when it is back.
//!
//! Knows: disks and layers by number, buffers on loan. Must never know: the files, the machines, the backend.

use crate::memory::arena::Loan;
use quod_states::{AcbId, IoId, Part};

/// Whose I/O it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub disk: u32,
    pub layer: u16,
}

/// Whose operation it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// The machine of this layer.
    Layer(u16),
    /// The machine that opens this layer, or a step before it starts.
    Opener(u16),
    /// Nobody's: a file that is being closed.
    Close,
}

/// Where the bytes of a read go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dest {
    /// The buffers of the request in this slot, from this byte on.
    Request { index: u32, offset: u64 },
    /// A fill buffer, from this byte on.
    Fill { acb: AcbId, part: Part, at: u32 },
}

/// What to do when it is back.
#[derive(Debug)]
pub(crate) enum FlightTask {
    /// Hand `len` bytes from `skip` on to the machine.
    ReadTable {
        loan: Loan,
        skip: u32,
        len: u32,
    },
    WriteTable {
        loan: Loan,
    },
    /// Zeros behind the end of the file; if it went through a bounce buffer, copy from its byte `skip` on.
    Read {
        dest: Dest,
        len: u64,
        bounce: Option<Loan>,
        skip: u32,
    },
    /// Decompress what follows byte `skip`, at most `bytes`, to this cluster.
    ReadCompressed {
        cluster: usize,
        loan: Loan,
        skip: u32,
        bytes: u32,
    },
    /// Give the fills back.
    Write {
        acb: AcbId,
        request: u32,
        bounce: Option<Loan>,
        /// It is all of a request, begun as a hit.
        hit: bool,
    },
    /// Tell the machine.
    Plain,
    /// One of two files: tell the machine when both are done.
    HalfSync,
    /// Open, stat or lock.
    Step,
    Close,
}

/// One operation in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    pub disk: u32,
    pub target: Target,
    pub io: IoId,
    pub task: FlightTask,
}

impl Flight {
    /// The layer, and in it the slot of the request, whose own bytes it reads.
    pub(crate) fn reads(&self) -> Option<(u16, u32)> {
        let Target::Layer(layer) = self.target else { return None };
        match self.task {
            FlightTask::Read { dest: Dest::Request { index, .. }, .. } => Some((layer, index)),
            _ => None,
        }
    }
}

/// A read of a request's own bytes that has ended, all of them there, or a write of them, without a bounce
/// buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    pub place: Place,
    pub io: IoId,
    /// Of the request.
    pub slot: u32,
}

/// The id of flights that no machine waits for.
pub(crate) const NO_IO: IoId = IoId { index: u32::MAX, generation: 0 };
