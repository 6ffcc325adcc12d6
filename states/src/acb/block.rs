//! The AIO control block: one extent of one request on its way, all of it as data.
//!
//! Knows: its guest range, its host range, what it owns. Must never know: how it gets on (`Image::advance`).
//!
//! Invariants:
//! * `pos <= extent.end <= end`; `[pos, extent.end)` is the extent in progress, what follows is still to be
//!   looked up;
//! * `io.pending` marks its own I/O in flight; it is in a queue only while that is 0, and then no extent is
//!   in progress: `extent.end` is `pos`.

use crate::acb::State;
use crate::acb::request::{Flags, Met, Request, RequestId, RequestKind};
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
    /// The cluster itself, which the embedder has compressed to so many bytes and keeps for the request; 0:
    /// it does not become shorter. It stays while the acb waits for a place for them.
    Packed(u32),
}

/// The part `[pos, end)` of an acb's range that is in progress: it is read or written.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct InProgress {
    /// `pos` while nothing is in progress.
    pub(crate) end: u64,
    /// Host offset of `pos`.
    pub(crate) host: u64,
    /// Where fills come from. While a compressed cluster is read: that.
    pub(crate) source: Source,
}

/// What is written with the extent: meaningful from `ReadModify`, `CopyOnWrite`, `WriteData` or `ZeroData`
/// on, while it is in progress.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Transfer {
    /// Guest range that is written, fills included, in host order,
    pub(crate) fill: Span,
    /// and how much of that is.
    pub(crate) at: u64,
    /// What of it comes to hold the guest's data: the rest belongs to others.
    pub(crate) unit: Span,
    /// The space may hold anything: fills without a source are written as zeros.
    pub(crate) stale: bool,
}

/// What it holds, and gives back when its extent is done or has failed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Held {
    /// A claim on the clusters that it writes.
    pub(crate) claims: bool,
    /// The cache slot that it pinned until its new clusters are linked.
    pub(crate) pinned: Option<u32>,
    /// Sectors: its write only partly covers some.
    pub(crate) modifies: bool,
}

impl Held {
    /// It holds something.
    #[inline]
    pub(crate) const fn any(&self) -> bool {
        self.claims || self.modifies || self.pinned.is_some()
    }
}

/// Its own I/O in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct OwnIo {
    /// Bit 0: the head's or the only one; bit 1: the tail's. 0: none is in flight.
    pub(crate) pending: u8,
    /// Of the ids of those.
    pub(crate) generation: u32,
}

/// What the commit pipeline has to do with it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Committing {
    /// Window that its finished data belongs to; 0: it has finished none.
    pub(crate) window: u64,
    /// What it waits to hear, or will before it completes.
    pub(crate) want: Want,
    /// Something of it needs the pipeline before it may complete.
    pub(crate) uncommitted: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Acb {
    pub(crate) request: RequestId,
    pub(crate) state: State,
    /// What its request asks for.
    pub(crate) kind: RequestKind,
    pub(crate) flags: Flags,
    /// What it met; told to the request when it ends.
    pub(crate) met: Met,
    /// First guest byte of the request: where its buffer starts.
    pub(crate) origin: u64,
    /// What is left of its range, `[pos, end)`, the extent in progress included.
    pub(crate) pos: u64,
    pub(crate) end: u64,
    pub(crate) extent: InProgress,
    pub(crate) write: Transfer,
    pub(crate) io: OwnIo,
    pub(crate) held: Held,
    pub(crate) commit: Committing,
    pub(crate) error: Option<Box<Error>>,
    /// Next in the queue that it is in.
    pub(crate) link: u32,
}

impl Acb {
    pub(crate) fn new(id: RequestId, request: &Request, pos: u64, end: u64) -> Acb {
        debug_assert!(pos <= end);
        let nothing = Span::new(0, 0);
        Acb {
            request: id,
            state: State::Free,
            kind: request.kind,
            flags: request.flags,
            met: Met::empty(),
            origin: request.offset,
            pos,
            end,
            extent: InProgress { end: pos, host: 0, source: Source::Zeros },
            write: Transfer { fill: nothing, at: 0, unit: nothing, stale: false },
            io: OwnIo { pending: 0, generation: 0 },
            held: Held::default(),
            commit: Committing { window: 0, want: Want::Written, uncommitted: false },
            error: None,
            link: NONE,
        }
    }

    /// What `new` makes, made of one that has ended, where it lies.
    #[inline(always)]
    pub(crate) fn renew(&mut self, id: RequestId, asked: &Request, begin: u64, behind: u64) {
        debug_assert!(begin <= behind);
        let nothing = Span::new(0, 0);
        // each by its name, so that none is forgotten
        let Acb {
            request,
            state,
            kind,
            flags,
            met,
            origin,
            pos,
            end,
            extent,
            write,
            io,
            held,
            commit,
            error,
            link,
        } = self;
        (*request, *state, *kind, *flags) = (id, State::Free, asked.kind, asked.flags);
        (*met, *origin, *pos, *end) = (Met::empty(), asked.offset, begin, behind);
        (extent.end, extent.host, extent.source) = (begin, 0, Source::Zeros);
        (write.fill, write.at, write.unit, write.stale) = (nothing, 0, nothing, false);
        (io.pending, io.generation) = (0, 0);
        *held = Held::default();
        (commit.window, commit.want, commit.uncommitted) = (0, Want::Written, false);
        *link = NONE;
        // asked first: dropping nothing is a call
        if error.is_some() {
            *error = None;
        }
    }

    /// A sibling that takes over what lies behind the extent in progress, which is cut off here.
    pub(crate) fn split(&mut self) -> Acb {
        debug_assert!(self.pos <= self.extent.end && self.extent.end < self.end, "something lies behind");
        debug_assert!(self.io.pending == 0, "nothing of it is in flight yet");
        let mut sibling = Acb { pos: self.extent.end, ..self.clone() };
        sibling.state = State::Free;
        sibling.met = Met::empty();
        sibling.held = Held::default();
        (sibling.commit.uncommitted, sibling.commit.window) = (false, 0);
        (sibling.io.pending, sibling.link, sibling.error) = (0, NONE, None);
        self.end = self.extent.end;
        debug_assert!(sibling.pos == self.end && sibling.pos < sibling.end, "nothing is left out");
        sibling
    }

    /// What is written is the guest's bytes, all that is left of them, in place, and the request waits for
    /// nothing else.
    #[inline]
    pub(crate) fn is_plain_write(&self) -> bool {
        debug_assert!(self.state == State::WriteData);
        self.kind == RequestKind::Write
            && self.flags.is_empty()
            && !self.held.any()
            && !self.commit.uncommitted
            && self.write.at == self.write.fill.end
            && (self.write.fill.start, self.write.fill.end) == (self.pos, self.extent.end)
    }

    /// The host range that a write of this acb in place touches, sectors rounded out by `fill`.
    pub(crate) fn host_range(&self) -> Span {
        debug_assert!(self.write.fill.start <= self.pos, "what is filled begins with the extent, or before");
        Span::at(self.extent.host - (self.pos - self.write.fill.start), self.write.fill.len())
    }
}

impl Linked for Acb {
    #[inline]
    fn link(&self) -> u32 {
        self.link
    }

    #[inline]
    fn set_link(&mut self, link: u32) {
        debug_assert!(link == NONE || self.io.pending == 0, "whoever stands in a list has no I/O in flight");
        debug_assert!(link == NONE || self.extent.end == self.pos, "nor an extent in progress");
        self.link = link;
    }

    fn fail(&mut self, error: &Error) {
        debug_assert!(self.link != NONE, "only whatever waits can wait in vain");
        self.error = Some(Box::new(error.clone()));
    }
}
