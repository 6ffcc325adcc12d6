//! What an embedder gets: completions.
//!
//! Knows: requests, guest buffers. Must never know: layers' machines, operations.
//! Invariant: buffers come back exactly once, with what their request has come to.

use crate::error::Error;
use crate::memory::buffers::Buffers;
use crate::request::{DiskId, Kind, RequestKind};
use quod_states::{Extent, Met};
use std::time::Duration;

/// What a completion is about, with all that comes back of this kind of request.
#[derive(Debug)]
#[non_exhaustive]
pub enum CompletionKind {
    /// `Driver::open` ended; the disk takes requests now, or (with an error) its id is invalid.
    Opened,
    /// A read ended: the buffers are filled, or (with an error) hold anything.
    Read(Buffers),
    /// A write ended.
    Write(Buffers),
    /// A compressed write ended.
    WriteCompressed(Buffers),
    /// The range reads as zeros.
    WriteZeroes,
    /// A discard ended.
    Discard,
    /// A flush ended.
    Flush,
    /// What the range begins with; None: it failed.
    Map(Option<Extent>),
    /// The file was self-consistent.
    Quiesce,
    /// The disk is closed, its id invalid, however it ended.
    Close,
    /// The disk has its new size.
    Resize,
    /// The snapshot is made, applied or deleted.
    Snapshot,
    /// The bitmap is changed.
    Bitmap,
    /// The image is empty.
    Empty,
}

impl CompletionKind {
    /// What will come back of a request: its buffers go along.
    pub(crate) fn answering(request: RequestKind) -> CompletionKind {
        match request {
            // each by itself: buffers lie in different places, and the usual two are not to pay for that
            RequestKind::Read { buffers, .. } => CompletionKind::Read(buffers),
            RequestKind::Write { buffers, .. } => CompletionKind::Write(buffers),
            RequestKind::ReadState { buffers, .. } => CompletionKind::Read(buffers),
            RequestKind::WriteState { buffers, .. } => CompletionKind::Write(buffers),
            RequestKind::WriteCompressed { buffers, .. } => CompletionKind::WriteCompressed(buffers),
            RequestKind::WriteZeroes { .. } => CompletionKind::WriteZeroes,
            RequestKind::Discard { .. } => CompletionKind::Discard,
            RequestKind::Flush => CompletionKind::Flush,
            RequestKind::Map { .. } => CompletionKind::Map(None),
            RequestKind::Quiesce => CompletionKind::Quiesce,
            RequestKind::Close => CompletionKind::Close,
            RequestKind::Resize { .. } | RequestKind::GrowState { .. } => CompletionKind::Resize,
            RequestKind::Snapshot(_) => CompletionKind::Snapshot,
            RequestKind::Bitmap(_) => CompletionKind::Bitmap,
            RequestKind::Empty => CompletionKind::Empty,
        }
    }

    /// Which kind of request ended; None: it was an opening.
    pub const fn request(&self) -> Option<Kind> {
        Some(match self {
            CompletionKind::Opened => return None,
            CompletionKind::Read(_) => Kind::Read,
            CompletionKind::Write(_) => Kind::Write,
            CompletionKind::WriteCompressed(_) => Kind::WriteCompressed,
            CompletionKind::WriteZeroes => Kind::WriteZeroes,
            CompletionKind::Discard => Kind::Discard,
            CompletionKind::Flush => Kind::Flush,
            CompletionKind::Map(_) => Kind::Map,
            CompletionKind::Quiesce => Kind::Quiesce,
            CompletionKind::Close => Kind::Close,
            CompletionKind::Resize => Kind::Resize,
            CompletionKind::Snapshot => Kind::Snapshot,
            CompletionKind::Bitmap => Kind::Bitmap,
            CompletionKind::Empty => Kind::Empty,
        })
    }

    /// The buffers of a read or a write, compressed or not.
    pub const fn buffers(&self) -> Option<&Buffers> {
        match self {
            CompletionKind::Read(buffers)
            | CompletionKind::Write(buffers)
            | CompletionKind::WriteCompressed(buffers) => Some(buffers),
            _ => None,
        }
    }

    /// What a map that succeeded has found.
    pub const fn extent(&self) -> Option<Extent> {
        match self {
            CompletionKind::Map(extent) => *extent,
            _ => None,
        }
    }

    /// As [`CompletionKind::buffers`], to keep.
    pub fn into_buffers(self) -> Option<Buffers> {
        match self {
            CompletionKind::Read(buffers)
            | CompletionKind::Write(buffers)
            | CompletionKind::WriteCompressed(buffers) => Some(buffers),
            _ => None,
        }
    }
}

/// Something ended. Each opening and each request that was taken has one.
///
/// ```
/// use quod::{Completion, CompletionKind, Error, ErrorKind};
/// /// What a virtio block device answers its guest: OK, IOERR or UNSUPP.
/// fn status(done: &Completion) -> u8 {
///     match &done.result {
///         Ok(()) => 0,
///         Err(Error::File { kind: ErrorKind::Unsupported(_), .. }) => 2,
///         Err(error) => {
///             eprintln!("{:?} after {:?}: {error}", done.kind.request(), done.latency);
///             1
///         }
///     }
/// }
/// # use quod::{Buffer, Config, Driver, OpenOptions, Request};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.raw");
/// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Raw, 1 << 20))?;
/// # let mut driver = Driver::new(Config::default())?;
/// # let disk = driver.open(&path, OpenOptions::new())?;
/// # let mut next = |driver: &mut Driver| loop {
/// #     if let Some(done) = driver.next_completion() {
/// #         break Ok::<_, Error>(done);
/// #     }
/// #     driver.wait(None)?;
/// # };
/// # assert_eq!(status(&next(&mut driver)?), 0);
/// # driver.submit(disk, Request::read(0, Buffer::zeroed(512), 5))?;
/// let done = next(&mut driver)?;
/// assert_eq!((status(&done), done.disk, done.user), (0, disk, 5));
/// if let CompletionKind::Read(buffers) = done.kind {
///     assert_eq!(buffers.len(), 512); // ours again: to be looked at, and used for the next request
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// Whose.
    pub disk: DiskId,
    /// The `user` value of the request or of the open options.
    pub user: u64,
    /// What, and what comes back with it.
    pub kind: CompletionKind,
    /// How.
    pub result: Result<(), Error>,
    /// What the request met on its way.
    pub met: Met,
    /// From submission to completion; of a request that ended in the call that brought it, the call's time.
    /// None without [`Config::timing`](field@crate::Config::timing).
    pub latency: Option<Duration>,
}

/// A completion until it is taken.
#[derive(Debug)]
pub(crate) struct Ended {
    pub disk: DiskId,
    pub user: u64,
    pub kind: CompletionKind,
    /// In a box: it is long, and there is none, nearly always.
    pub result: Result<(), Box<Error>>,
    pub met: Met,
    pub latency: Option<Duration>,
}

impl From<Ended> for Completion {
    #[inline]
    fn from(ended: Ended) -> Completion {
        let Ended { disk, user, kind, result, met, latency } = ended;
        let result = match result {
            Ok(()) => Ok(()),
            Err(error) => Err(*error),
        };
        Completion { disk, user, kind, result, met, latency }
    }
}
