//! What an embedder asks and gets: requests, completions, and the names of disks.
//!
//! Knows: offsets, lengths, guest buffers. Must never know: layers' machines, operations.
//! Invariant: buffers travel with the request and come back exactly once: rejected, or completed.

use crate::error::Error;
use crate::memory::buffers::Buffers;
use quod_states::{Extent, Flags, Format, Info, Kind, Met, Report};
use std::path::PathBuf;
use std::time::Duration;

/// Names an open disk. Never reused: a closed disk's id stays invalid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct DiskId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// One guest request.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub kind: Kind,
    /// First byte of the guest disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Options.
    pub flags: Flags,
    /// Given back with the completion.
    pub user: u64,
    /// Which layer is asked ([`Kind::Map`] only; otherwise 0).
    pub layer: usize,
    /// Where the bytes are, or go.
    pub buffers: Buffers,
}

impl Request {
    fn new(kind: Kind, offset: u64, len: u64, user: u64) -> Request {
        Request { kind, offset, len, flags: Flags::empty(), user, layer: 0, buffers: Buffers::None }
    }

    /// Fill `buffers` from `offset` on.
    pub fn read(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        let buffers = buffers.into();
        Request { buffers, ..Request::new(Kind::Read, offset, 0, user) }.sized()
    }

    /// Write `buffers` from `offset` on.
    pub fn write(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        let buffers = buffers.into();
        Request { buffers, ..Request::new(Kind::Write, offset, 0, user) }.sized()
    }

    /// The range reads as zeros afterwards.
    pub fn write_zeroes(offset: u64, len: u64, user: u64) -> Request {
        Request::new(Kind::WriteZeroes, offset, len, user)
    }

    /// The guest does not need the range any more.
    pub fn discard(offset: u64, len: u64, user: u64) -> Request {
        Request::new(Kind::Discard, offset, len, user)
    }

    /// All that completed before becomes durable.
    pub fn flush(user: u64) -> Request {
        Request::new(Kind::Flush, 0, 0, user)
    }

    /// What is the first run of the range made of, in this layer? The answer is `Completion::extent`.
    pub fn map(layer: usize, offset: u64, len: u64, user: u64) -> Request {
        Request { layer, ..Request::new(Kind::Map, offset, len, user) }
    }

    /// Make the file self-consistent without stopping service.
    pub fn quiesce(user: u64) -> Request {
        Request::new(Kind::Quiesce, 0, 0, user)
    }

    /// Finish everything, close the files; the disk's id is invalid when it completed.
    pub fn close(user: u64) -> Request {
        Request::new(Kind::Close, 0, 0, user)
    }

    /// Set the size of the guest disk.
    pub fn resize(len: u64, user: u64) -> Request {
        Request::new(Kind::Resize, len, 0, user)
    }

    /// Durable, its mapping included, before it completes.
    pub fn fua(mut self) -> Request {
        self.flags |= Flags::FUA;
        self
    }

    /// Write-zeroes may give host space back.
    pub fn may_unmap(mut self) -> Request {
        self.flags |= Flags::MAY_UNMAP;
        self
    }

    fn sized(mut self) -> Request {
        self.len = self.buffers.len();
        self
    }
}

/// Why a request was not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// All slots are in use: submit again after a completion.
    Busy,
    /// It can never be accepted.
    Error(Error),
}

/// A request that was not accepted, given back with its buffers.
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

/// What a completion is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CompletionKind {
    /// `Driver::open` ended; the disk takes requests now, or (with an error) its id is invalid.
    Opened,
    /// A request of this kind ended.
    Request(Kind),
}

/// Something ended.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub disk: DiskId,
    /// The `user` value of the request or of the open options.
    pub user: u64,
    /// What.
    pub kind: CompletionKind,
    /// How.
    pub result: Result<(), Error>,
    /// The request's buffers.
    pub buffers: Buffers,
    /// What the request met on its way.
    pub met: Met,
    /// The answer to [`Kind::Map`].
    pub extent: Option<Extent>,
    /// From submission to completion; of a request that ended in the call that brought it, the call's time.
    pub latency: Duration,
}

/// An open disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    /// Format of the image.
    pub format: Format,
    /// Size of the guest disk, bytes.
    pub virtual_size: u64,
    /// The image, then its backing files.
    pub layers: Vec<LayerInfo>,
}

/// One layer of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerInfo {
    /// Where it was opened.
    pub path: PathBuf,
    /// Where its external data file was opened, if it has one (qcow2).
    pub data_file: Option<PathBuf>,
    /// Its format, and what its header says.
    pub info: Info,
    /// It was dirty and is open for writing: what its check found and repaired.
    pub report: Option<Report>,
}
