//! The AIO control block: one extent of one request on its way, all of it as data.
//!
//! Knows: its guest range, its host range, what it owns. Must never know: how it gets on (`Image::advance`).
//!
//! Invariants:
//! * `pos <= run_end <= end`; `[pos, run_end)` is the extent in progress, `[run_end, end)` is still to be
//!   looked up;
//! * `pending` marks its own I/O in flight; it is in a queue only while `pending` is 0, and then no extent
//!   is in progress: `run_end` is `pos`.

use crate::acb::State;
use crate::acb::request::{Flags, Kind, Met, Request, RequestId};
use crate::base::queue::{Linked, NONE};
use crate::base::span::Span;
use crate::error::Error;
use alloc::boxed::Box;

/// Names a control block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct AcbId {
    /// Slot: below the configured number of acbs.
    pub index: u32,
    /// Changes whenever the slot is used again.
    pub generation: u32,
}

/// Where a live acb lies in the slab: what the machine itself calls it by. It is kept no longer than the acb
/// lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct AcbIndex(pub(super) u32);

impl AcbIndex {
    /// The first acb of an image.
    #[cfg(test)]
    pub(crate) const FIRST: AcbIndex = AcbIndex(0);

    /// As a number below the configured number of acbs.
    #[inline]
    pub(crate) const fn slot(self) -> u32 {
        self.0
    }
}

impl core::fmt::Display for AcbIndex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an acb that waits for the commit pipeline needs to hear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) enum Want {
    /// The header is durable with the autoclear bits cleared; then it begins.
    Header,
    /// Its pointers are written (writethrough).
    Written,
    /// Its data and pointers are durable (flush, FUA).
    Durable,
    /// And the dirty bit is cleared, durably (quiesce, close).
    Clean,
}

/// Where the bytes come from that surround the guest's in new clusters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Source {
    /// Nowhere: they are zeros.
    Zeros,
    /// The backing layer.
    Backing,
    /// This image's file: the clusters before, from this host offset on.
    Host(u64),
    /// The compressed cluster before: its host offset, and how many bytes it has at most.
    Compressed(u64, u32),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Acb {
    pub(crate) request: RequestId,
    pub(crate) state: State,
    /// What its request asks for.
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    /// What it met; told to the request when it ends.
    pub(crate) met: Met,
    /// First guest byte of the request: where its buffer starts.
    pub(crate) origin: u64,
    pub(crate) pos: u64,
    pub(crate) run_end: u64,
    pub(crate) end: u64,
    /// Host offset of `pos`, while an extent is in progress.
    pub(crate) host: u64,
    /// Guest range that is written with the extent, fills included, in host order: `[fill_start, fill_end)`.
    pub(crate) fill_start: u64,
    pub(crate) fill_end: u64,
    /// How much of `[fill_start, fill_end)` is written.
    pub(crate) fill_at: u64,
    /// What of it comes to hold the guest's data: the rest belongs to others.
    pub(crate) unit_start: u64,
    pub(crate) unit_end: u64,
    /// Where fills come from. While it reads a compressed cluster: that.
    pub(crate) source: Source,
    /// The space that it writes may hold anything: fills without a source are written as zeros.
    pub(crate) stale: bool,
    /// Own I/O in flight: bit 0 the head's or the only one, bit 1 the tail's,
    pub(crate) pending: u8,
    /// and the generation of their ids.
    pub(crate) io_generation: u32,
    /// It holds a claim on the clusters it writes.
    pub(crate) claims: bool,
    /// Cache slot that it pinned until its new clusters are linked.
    pub(crate) pinned: Option<u32>,
    /// Commit window that its finished data belongs to.
    pub(crate) window: u64,
    pub(crate) want: Want,
    /// Something of it needs the commit pipeline before it may complete.
    pub(crate) uncommitted: bool,
    /// Its write in flight only partly covers sectors.
    pub(crate) modifies: bool,
    pub(crate) error: Option<Box<Error>>,
    /// Next in the queue that it is in.
    pub(crate) link: u32,
}

impl Acb {
    pub(crate) fn new(id: RequestId, request: &Request, pos: u64, end: u64) -> Acb {
        debug_assert!(pos <= end);
        Acb {
            request: id,
            state: State::Free,
            kind: request.kind,
            flags: request.flags,
            met: Met::empty(),
            origin: request.offset,
            pos,
            run_end: pos,
            end,
            host: 0,
            fill_start: 0,
            fill_end: 0,
            fill_at: 0,
            unit_start: 0,
            unit_end: 0,
            source: Source::Zeros,
            stale: false,
            pending: 0,
            io_generation: 0,
            claims: false,
            pinned: None,
            window: 0,
            want: Want::Written,
            uncommitted: false,
            modifies: false,
            error: None,
            link: NONE,
        }
    }

    /// A sibling that takes over `[run_end, end)`, which is cut off here.
    pub(crate) fn split(&mut self) -> Acb {
        let mut sibling = Acb { pos: self.run_end, ..self.clone() };
        sibling.state = State::Free;
        sibling.met = Met::empty();
        (sibling.claims, sibling.pinned, sibling.modifies, sibling.uncommitted) = (false, None, false, false);
        (sibling.pending, sibling.window, sibling.link, sibling.error) = (0, 0, NONE, None);
        self.end = self.run_end;
        sibling
    }

    /// The host range that a write of this acb in place touches, sectors rounded out by `fill_start` and
    /// `fill_end`.
    pub(crate) fn host_range(&self) -> Span {
        Span::at(self.host - (self.pos - self.fill_start), self.fill_end - self.fill_start)
    }
}

impl Linked for Acb {
    #[inline]
    fn link(&self) -> u32 {
        self.link
    }

    #[inline]
    fn set_link(&mut self, link: u32) {
        self.link = link;
    }

    fn fail(&mut self, error: &Error) {
        self.error = Some(Box::new(error.clone()));
    }
}
