//! What a guest asks of an image.
//!
//! Knows: guest offsets and lengths. Must never know: buffers (the embedder keeps them, found by
//! [`RequestId`]).

use crate::error::Error;
use alloc::boxed::Box;

bitflags::bitflags! {
    /// Options of a request.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Flags: u8 {
        /// Forced unit access: durable, its mapping included, before it completes.
        const FUA = 1;
        /// Write-zeroes may give host space back.
        const MAY_UNMAP = 2;
        /// Of the VM state, which qcow2 keeps behind the disk: a read or a write, whose offset is one of the
        /// state then; or a resize, which leaves the disk as it is and gets the L1 table room for that many
        /// bytes of state.
        const STATE = 4;
    }
}

bitflags::bitflags! {
    /// What a request met on its way, for statistics. A request with none of them was answered from nothing.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Met: u16 {
        /// Data found in an allocated cluster, tables in the cache.
        const HIT = 1;
        /// A table had to be read.
        const MISS = 2;
        /// New clusters were allocated.
        const ALLOCATE = 4;
        /// The backing layer was read.
        const BACKING = 8;
        /// A range known to be zero.
        const ZERO = 16;
        /// Waited for the commit pipeline (flush, FUA, writethrough).
        const FLUSH = 32;
        /// A sector was read, modified and written back.
        const MODIFY = 64;
        /// A new L2 table was allocated.
        const NEW_TABLE = 128;
        /// Waited for another request.
        const WAITED = 256;
        /// A compressed cluster was read, or written.
        const COMPRESSED = 512;
    }
}

/// The kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestKind {
    /// Guest disk -> buffer.
    Read,
    /// Buffer -> guest disk.
    Write,
    /// Buffer -> guest disk, compressed: one whole cluster (the disk's last may end with the disk) that holds
    /// nothing yet. What does not shrink is written as it is.
    WriteCompressed,
    /// The range reads as zeros afterwards.
    WriteZeroes,
    /// The guest does not need the range any more.
    Discard,
    /// All that completed before becomes durable.
    Flush,
    /// What is the first run of the range made of? Answered with an [`Extent`].
    Map,
    /// Make the file self-consistent (all metadata written and durable, no dirty bit), without stopping
    /// service.
    Quiesce,
    /// As quiesce, then give back space ahead of the data; nothing is accepted afterwards.
    Close,
    /// Set the size of the guest disk.
    Resize {
        /// Bytes.
        size: u64,
    },
    /// Make, apply or delete a snapshot, or change a persistent bitmap: what was said by
    /// [`Image::plan_snapshot`](crate::Image::plan_snapshot), or
    /// [`Image::plan_bitmap`](crate::Image::plan_bitmap), just before.
    Snapshot,
    /// Nothing of the disk is in this image any more, durably: its backing layer shows, or zeros.
    Empty,
}

impl RequestKind {
    /// It may change what the guest reads, or the size of its disk.
    #[inline]
    pub const fn changes(self) -> bool {
        match self {
            RequestKind::Write | RequestKind::WriteCompressed | RequestKind::WriteZeroes => true,
            RequestKind::Discard | RequestKind::Resize { .. } => true,
            RequestKind::Snapshot | RequestKind::Empty => true,
            RequestKind::Read | RequestKind::Map => false,
            RequestKind::Flush | RequestKind::Quiesce | RequestKind::Close => false,
        }
    }

    /// It is a job on the whole image: its steps follow each other, one acb takes them.
    #[inline]
    pub(crate) const fn is_job(self) -> bool {
        let alone = matches!(self, RequestKind::Snapshot | RequestKind::Empty);
        alone || matches!(self, RequestKind::Close | RequestKind::Resize { .. })
    }
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// What.
    pub kind: RequestKind,
    /// First byte of the guest disk; 0 for a kind that has no range: flush, quiesce, close, resize, snapshot,
    /// empty.
    pub offset: u64,
    /// Bytes; 0 for a kind that has no range.
    pub len: u64,
    /// Options.
    pub flags: Flags,
    /// Given back with the answer.
    pub user: u64,
}

/// Names an accepted request. `index` is below the configured number of requests: use it as an array index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RequestId {
    /// Slot.
    pub index: u32,
    /// Changes whenever the slot is used again.
    pub generation: u32,
}

/// What a run of the guest disk is made of, in this layer alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Nothing here: the backing layer shows through, or zeros without one.
    Unallocated,
    /// Reads as zeros, hides the backing layer.
    Zero,
    /// Data in this image's file.
    Data,
    /// Compressed data in this image's file.
    Compressed,
}

/// A run of the guest disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Extent {
    /// First guest byte: where the range that was asked for begins.
    pub offset: u64,
    /// Bytes, not behind the end of that range.
    pub len: u64,
    /// What it is.
    pub status: Status,
    /// Where it lies in this image's file; of what is not allocated, where it would (subclusters of qcow2
    /// beside others that are).
    pub host: Option<u64>,
}

/// What the machine has to tell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A request ended.
    Done {
        /// Which.
        request: RequestId,
        /// Its `user` value.
        user: u64,
        /// How.
        result: Result<(), Box<Error>>,
        /// What it met.
        met: Met,
        /// The answer to [`RequestKind::Map`].
        extent: Option<Box<Extent>>,
    },
    /// A metadata write or sync failed, or an entry contradicts the format (qcow2): from now on reads only.
    Poisoned(Error),
}

/// A [`Hit`](crate::Hit) that has ended: [`Image::end_hit`](crate::Image::end_hit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HitEnded {
    /// Which request.
    pub request: RequestId,
    /// Its `user` value.
    pub user: u64,
    /// What it met.
    pub met: Met,
}

/// Why a request was not accepted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Refused {
    /// All slots are in use: submit again after a completion.
    Busy,
    /// It can never be accepted.
    Invalid(Error),
}
