//! Layers: one file of a chain with its machine, its request slots, and what is on its way to it.
//!
//! Knows: machines, files, guest buffers, operations in flight. Must never know: transforms, what a turn
//! does.
//! Invariants: a slot is filled from the machine's acceptance of a request to its `Done`; guest buffers stay
//! in it that long.

pub(crate) mod clusters;
pub(crate) mod disk;
pub(crate) mod flight;
pub(crate) mod opener;
pub(crate) mod out;
pub(crate) mod packs;
pub(crate) mod port;

use crate::completion::CompletionKind;
use crate::error::{Error, ErrorKind, FileRole};
use crate::memory::fill::Fill;
use crate::request::Request;
use clusters::Clusters;
use packs::{Method, Packs};
use quod_backend::{Errno, FileId, Proven, Segments, Stat, Store};
use quod_states::{AcbId, Image, Info, IoId, Options, Part, RequestId, Timer};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

/// The file of a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerFile {
    pub id: FileId,
    pub stat: Stat,
    pub path: PathBuf,
    pub role: FileRole,
    /// Opened with O_DIRECT.
    pub direct: bool,
    /// What was seen of its file system, if it had to be.
    pub proven: Option<Proven>,
}

impl LayerFile {
    /// What the machine said, of this file.
    pub(crate) fn error(&self, error: &quod_states::Error) -> Error {
        Error::from_core(&self.path, self.role, error)
    }

    /// What is the matter with it.
    pub(crate) fn fault(&self, kind: ErrorKind) -> Error {
        Error::of(&self.path, self.role, kind)
    }
}

/// This answer says that the store which gave it is gone, or cannot reach what it keeps: what it has answered
/// before may be lost, and a later success proves nothing.
pub(crate) fn is_gone(errno: Errno, store: Store) -> bool {
    match errno.0 {
        libc::ENOTCONN | libc::ESTALE | libc::ESHUTDOWN => true,
        // of a disk these may be about one bad place, and are the request's alone
        libc::EIO | libc::EREMOTEIO | libc::ETIMEDOUT | libc::ENOLINK => store != Store::Known,
        libc::ECONNABORTED | libc::ECONNREFUSED | libc::ECONNRESET | libc::EBADFD => store != Store::Known,
        libc::EHOSTDOWN | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENETUNREACH => store != Store::Known,
        _ => false,
    }
}

/// What in the layer above waits for a child request, besides the I/O: the owner of the buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A request's own buffer; its slot.
    Request(u32),
    /// A fill buffer.
    Fill(AcbId, Part),
}

/// A read that the layer above wants from this one.
#[derive(Debug)]
pub(crate) struct Child {
    /// The I/O of the layer above that it answers.
    pub io: IoId,
    pub origin: Origin,
    pub offset: u64,
    pub len: u64,
    pub segments: Segments,
}

/// Who asked.
#[derive(Debug)]
pub(crate) enum Owner {
    /// What will come back, the guest's buffers in it.
    Guest {
        kind: CompletionKind,
        user: u64,
        started: Duration,
    },
    Child {
        io: IoId,
        origin: Origin,
    },
}

/// A request slot of a machine.
#[derive(Debug, Default)]
pub(crate) struct RequestSlot {
    pub owner: Option<Owner>,
    /// Bytes that it asks for.
    pub len: u64,
    pub segments: Segments,
    /// Operations and children that use the segments.
    pub busy: u32,
    /// What the layer below said when it failed this request.
    pub cause: Option<Box<Error>>,
}

impl RequestSlot {
    /// A request enters.
    #[inline]
    pub(crate) fn occupy(&mut self, owner: Owner, segments: Segments, len: u64) {
        debug_assert!(self.owner.is_none() && self.busy == 0, "a slot is one request's");
        (self.owner, self.len, self.segments, self.cause) = (Some(owner), len, segments, None);
    }

    /// It has ended in its machine.
    #[inline]
    pub(crate) fn vacate(&mut self) -> Option<Owner> {
        // a buffer must not go back to its owner while an operation uses it
        assert_eq!(self.busy, 0, "the machine ended a request whose buffer is in use");
        self.segments = Segments::new();
        self.owner.take()
    }

    /// It is a read or a write of the guest's.
    #[inline]
    pub(crate) fn moves_for_guest(&self) -> bool {
        matches!(
            self.owner,
            Some(Owner::Guest { kind: CompletionKind::Read(_) | CompletionKind::Write(_), .. })
        )
    }

    /// As `vacate`, if it is so: what goes back to the guest.
    #[inline]
    pub(crate) fn take_moved(&mut self) -> Option<CompletionKind> {
        if !self.moves_for_guest() {
            return None;
        }
        match self.vacate() {
            Some(Owner::Guest { kind, .. }) => Some(kind),
            _ => None,
        }
    }
}

/// One file of the chain with its machine.
pub(crate) struct Layer {
    pub image: Image,
    /// Metadata, and guest data unless it has a file of its own.
    pub file: LayerFile,
    /// Guest data.
    pub data: Option<LayerFile>,
    /// Syncs of two files of which one has ended, and how.
    pub half_syncs: Vec<(IoId, Result<(), Errno>)>,
    pub allocate_ahead: bool,
    pub slots: Vec<RequestSlot>,
    /// By acb index.
    pub fills: Vec<[Fill; 2]>,
    /// Children that found every slot in use. Bounded by the acbs of the layer above.
    pub parked: VecDeque<Child>,
    /// By timer, on the backend's clock.
    pub deadlines: [Option<Duration>; 2],
    /// Compressed clusters, wanted, read and on their way.
    pub clusters: Clusters,
    /// Clusters of compressed writes.
    pub packs: Packs,
    /// What the layer below said when a fill failed.
    pub fill_cause: Option<Box<Error>>,
}

impl Layer {
    pub(crate) fn new(
        image: Image,
        info: &Info,
        file: LayerFile,
        data: Option<LayerFile>,
        options: &Options,
        allocate_ahead: bool,
    ) -> Layer {
        let mut slots = Vec::new();
        slots.resize_with(options.requests as usize, RequestSlot::default);
        let mut fills = Vec::new();
        fills.resize_with(options.acbs as usize, Default::default);
        Layer {
            image,
            file,
            data,
            half_syncs: Vec::new(),
            allocate_ahead,
            slots,
            fills,
            parked: VecDeque::new(),
            deadlines: [None; 2],
            clusters: Clusters::new(info),
            packs: Packs::new(Method { compression: info.compression, near: false }),
            fill_cause: None,
        }
    }

    /// Where guest data is.
    pub(crate) fn data(&self) -> &LayerFile {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// Its files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &LayerFile> {
        core::iter::once(&self.file).chain(&self.data)
    }

    /// A file of this layer has answered so, which ends the writing of its image.
    pub(crate) fn is_lost(&self, errno: Errno) -> bool {
        self.files().any(|file| is_gone(errno, file.stat.store))
    }

    /// A guest's request enters its slot. Its bytes.
    #[inline]
    pub(crate) fn occupy(&mut self, id: RequestId, request: Request, started: Duration) -> u64 {
        let Request { kind, user } = request;
        let len = kind.len();
        let mut kind = CompletionKind::answering(kind);
        let segments = match &mut kind {
            CompletionKind::Read(buffers)
            | CompletionKind::Write(buffers)
            | CompletionKind::WriteCompressed(buffers) => buffers.scatter_list(),
            _ => Segments::new(),
        };
        self.slots[id.index as usize].occupy(Owner::Guest { kind, user, started }, segments, len);
        len
    }

    /// One of the two syncs of an I/O has ended. With the second: how both have.
    pub(crate) fn half_synced(&mut self, io: IoId, result: Result<(), Errno>) -> Option<Result<(), Errno>> {
        match self.half_syncs.iter().position(|(first, _)| *first == io) {
            Some(index) => Some(self.half_syncs.swap_remove(index).1.and(result)),
            None => {
                self.half_syncs.push((io, result));
                None
            }
        }
    }
}

/// Index of a timer's deadline.
pub(crate) fn timer_index(timer: Timer) -> usize {
    match timer {
        Timer::Commit => 0,
        Timer::NeedCheck => 1,
    }
}

/// The timers, by index.
pub(crate) const TIMERS: [Timer; 2] = [Timer::Commit, Timer::NeedCheck];
