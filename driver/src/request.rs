//! What an embedder asks: requests, and the names of disks.
//!
//! Knows: offsets, lengths, guest buffers. Must never know: completions, layers' machines, operations.
//! Invariant: buffers travel with the request and come back exactly once: rejected, or completed.

use crate::memory::buffers::Buffers;
use quod_states::{BitmapAsk, Flags, SnapshotAsk};

/// Names a disk of one driver, from [`Driver::open`](crate::Driver::open) to the completion of its close, or
/// of the opening if that fails. Never reused: a closed disk's id stays invalid, and to another driver of
/// the process it is that of a closed disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct DiskId {
    /// Which driver of the process.
    pub(crate) driver: u32,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl DiskId {
    /// Where an embedder's own table has the disk: no other disk of this driver has the same number
    /// meanwhile. They are small, and used again: a table by number keeps the id beside what it holds.
    ///
    /// ```
    /// use quod::{Config, Driver, OpenOptions};
    /// let mut driver = Driver::new(Config::default())?;
    /// let first = driver.open("a.qcow2", OpenOptions::new())?;
    /// let second = driver.open("b.qcow2", OpenOptions::new())?;
    /// assert_eq!((first.index(), second.index()), (0, 1));
    /// # Ok::<(), quod::Error>(())
    /// ```
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// Names memory that is registered with one driver
/// ([`Driver::register_memory`](crate::Driver::register_memory)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct MemoryId {
    pub(crate) driver: u32,
    pub(crate) region: quod_backend::MemoryId,
}

/// One guest request. Offsets, lengths and sizes are bytes, of any alignment; a range lies inside the disk
/// ([`DiskInfo::virtual_size`](crate::DiskInfo::virtual_size)), or the request is refused. `user` is the
/// embedder's, and comes back with the completion; several may have the same.
///
/// ```
/// use quod::{Buffer, CompletionKind, Config, Driver, OpenOptions, Request, Status};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
/// # let mut driver = Driver::new(Config::default())?;
/// # let disk = driver.open(&path, OpenOptions::new().write(true))?;
/// # while driver.next_completion().is_none() {
/// #     driver.wait(None)?;
/// # }
/// // one after the other, as each relies on the one before
/// for request in [
///     Request::write(0, Buffer::from(&[1; 8192][..]), 1),
///     Request::write(8192, vec![Buffer::zeroed(512), Buffer::zeroed(3584)], 2).fua(), // durable then
///     Request::read(100, Buffer::zeroed(50), 3),
///     Request::write_zeroes(0, 4096, 4),
///     Request::write_zeroes(0, 64 << 10, 5).may_unmap(), // and the space may go
///     Request::discard(512 << 10, 256 << 10, 6),
///     Request::flush(7), // what completed before is durable when it ends
///     Request::map(0, 0, 1 << 20, 8),
///     Request::resize(2 << 20, 9),
///     Request::quiesce(10), // a copy of the file would be sound now
///     Request::close(11),
/// ] {
///     driver.submit(disk, request)?;
///     let done = loop {
///         driver.wait(None)?;
///         if let Some(done) = driver.next_completion() {
///             break done;
///         }
///     };
///     done.result?;
///     match done.kind {
///         CompletionKind::Read(buffers) => assert_eq!(buffers.to_vec(), [1; 50]),
///         CompletionKind::Map(Some(extent)) => {
///             assert_eq!((extent.offset, extent.status), (0, Status::Zero));
///         }
///         _ => {}
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Request {
    /// What is asked, with all that this kind of request needs.
    pub kind: RequestKind,
    /// Given back with the completion.
    pub user: u64,
}

/// What a guest asks. Offsets are bytes of the guest disk, lengths are bytes.
#[derive(Debug)]
#[allow(missing_docs, reason = "offsets, lengths and buffers, as said above")]
pub enum RequestKind {
    /// Fill the buffers.
    Read { offset: u64, buffers: Buffers },
    /// Write the buffers.
    Write {
        offset: u64,
        buffers: Buffers,
        /// Forced unit access: durable, its mapping included, before it completes.
        fua: bool,
    },
    /// Write the buffers compressed: one whole cluster, or the disk's last, that holds nothing yet.
    WriteCompressed {
        offset: u64,
        buffers: Buffers,
        /// As of a write.
        fua: bool,
    },
    /// The range reads as zeros afterwards.
    WriteZeroes {
        offset: u64,
        len: u64,
        /// As of a write.
        fua: bool,
        /// Host space may be given back.
        may_unmap: bool,
    },
    /// The guest does not need the range any more.
    Discard { offset: u64, len: u64 },
    /// All that completed before becomes durable.
    Flush,
    /// What is the first run of the range made of?
    Map {
        /// In which file of the chain; 0: the image.
        layer: usize,
        offset: u64,
        len: u64,
    },
    /// Make the file self-consistent without stopping service.
    Quiesce,
    /// Finish everything, close the files.
    Close,
    /// Set the size of the guest disk.
    Resize {
        /// Bytes.
        size: u64,
    },
    /// Make, apply or delete a snapshot in the image (qcow2).
    Snapshot(Box<SnapshotAsk>),
    /// Change a persistent bitmap of the image (qcow2).
    Bitmap(Box<BitmapAsk>),
    /// The image holds nothing of the disk any more: its backing layer shows.
    Empty,
    /// Fill the buffers from the VM state (qcow2).
    ReadState {
        /// Bytes of the state.
        offset: u64,
        buffers: Buffers,
    },
    /// Write the buffers there.
    WriteState {
        /// Bytes of the state.
        offset: u64,
        buffers: Buffers,
    },
    /// Make room for so many bytes of VM state; what is written of it needs it.
    GrowState { len: u64 },
}

/// The kinds of request, by name alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// [`RequestKind::Read`].
    Read,
    /// [`RequestKind::Write`].
    Write,
    /// [`RequestKind::WriteCompressed`].
    WriteCompressed,
    /// [`RequestKind::WriteZeroes`].
    WriteZeroes,
    /// [`RequestKind::Discard`].
    Discard,
    /// [`RequestKind::Flush`].
    Flush,
    /// [`RequestKind::Map`].
    Map,
    /// [`RequestKind::Quiesce`].
    Quiesce,
    /// [`RequestKind::Close`].
    Close,
    /// [`RequestKind::Resize`].
    Resize,
    /// [`RequestKind::Snapshot`].
    Snapshot,
    /// [`RequestKind::Bitmap`].
    Bitmap,
    /// [`RequestKind::Empty`].
    Empty,
}

impl Kind {
    /// All of them; each one's index is its number.
    pub const ALL: [Kind; 13] = [
        Kind::Read,
        Kind::Write,
        Kind::WriteCompressed,
        Kind::WriteZeroes,
        Kind::Discard,
        Kind::Flush,
        Kind::Map,
        Kind::Quiesce,
        Kind::Close,
        Kind::Resize,
        Kind::Snapshot,
        Kind::Bitmap,
        Kind::Empty,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::WriteCompressed => "write_compressed",
            Kind::WriteZeroes => "write_zeroes",
            Kind::Discard => "discard",
            Kind::Flush => "flush",
            Kind::Map => "map",
            Kind::Quiesce => "quiesce",
            Kind::Close => "close",
            Kind::Resize => "resize",
            Kind::Snapshot => "snapshot",
            Kind::Bitmap => "bitmap",
            Kind::Empty => "empty",
        }
    }

    /// It may change what the guest reads, or the size of its disk.
    pub const fn changes(self) -> bool {
        match self {
            Kind::Write | Kind::WriteCompressed | Kind::WriteZeroes | Kind::Discard => true,
            Kind::Resize | Kind::Snapshot | Kind::Empty => true,
            Kind::Read | Kind::Flush | Kind::Map | Kind::Quiesce | Kind::Close | Kind::Bitmap => false,
        }
    }
}

impl RequestKind {
    /// Its name alone.
    pub const fn name(&self) -> Kind {
        match self {
            RequestKind::Read { .. } => Kind::Read,
            RequestKind::Write { .. } => Kind::Write,
            RequestKind::WriteCompressed { .. } => Kind::WriteCompressed,
            RequestKind::WriteZeroes { .. } => Kind::WriteZeroes,
            RequestKind::Discard { .. } => Kind::Discard,
            RequestKind::Flush => Kind::Flush,
            RequestKind::Map { .. } => Kind::Map,
            RequestKind::Quiesce => Kind::Quiesce,
            RequestKind::Close => Kind::Close,
            RequestKind::Resize { .. } => Kind::Resize,
            RequestKind::Snapshot(_) => Kind::Snapshot,
            RequestKind::Bitmap(_) => Kind::Bitmap,
            RequestKind::Empty => Kind::Empty,
            RequestKind::ReadState { .. } => Kind::Read,
            RequestKind::WriteState { .. } => Kind::Write,
            RequestKind::GrowState { .. } => Kind::Resize,
        }
    }

    /// The buffers of a read or a write, compressed or not.
    pub fn into_buffers(self) -> Option<Buffers> {
        match self {
            RequestKind::Read { buffers, .. }
            | RequestKind::Write { buffers, .. }
            | RequestKind::WriteCompressed { buffers, .. }
            | RequestKind::ReadState { buffers, .. }
            | RequestKind::WriteState { buffers, .. } => Some(buffers),
            _ => None,
        }
    }

    /// Bytes that it is about.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        match self {
            RequestKind::Read { buffers, .. }
            | RequestKind::Write { buffers, .. }
            | RequestKind::WriteCompressed { buffers, .. }
            | RequestKind::ReadState { buffers, .. }
            | RequestKind::WriteState { buffers, .. } => buffers.len(),
            RequestKind::WriteZeroes { len, .. }
            | RequestKind::Discard { len, .. }
            | RequestKind::Map { len, .. } => *len,
            RequestKind::Flush | RequestKind::Quiesce | RequestKind::Close => 0,
            RequestKind::Resize { .. } | RequestKind::GrowState { .. } => 0,
            RequestKind::Snapshot(_) | RequestKind::Bitmap(_) | RequestKind::Empty => 0,
        }
    }

    /// As the machine of a layer takes it.
    pub(crate) fn to_core(&self, user: u64) -> quod_states::Request {
        use quod_states::RequestKind as Core;
        let plain = Flags::empty();
        let (kind, offset, len, flags) = match *self {
            RequestKind::Read { offset, ref buffers } => (Core::Read, offset, buffers.len(), plain),
            RequestKind::Write { offset, ref buffers, fua } => {
                (Core::Write, offset, buffers.len(), flags(fua, false))
            }
            RequestKind::WriteCompressed { offset, ref buffers, fua } => {
                (Core::WriteCompressed, offset, buffers.len(), flags(fua, false))
            }
            RequestKind::WriteZeroes { offset, len, fua, may_unmap } => {
                (Core::WriteZeroes, offset, len, flags(fua, may_unmap))
            }
            RequestKind::Discard { offset, len } => (Core::Discard, offset, len, plain),
            RequestKind::Map { offset, len, .. } => (Core::Map, offset, len, plain),
            RequestKind::Flush => (Core::Flush, 0, 0, plain),
            RequestKind::Quiesce => (Core::Quiesce, 0, 0, plain),
            RequestKind::Close => (Core::Close, 0, 0, plain),
            RequestKind::Resize { size } => (Core::Resize { size }, 0, 0, plain),
            RequestKind::Snapshot(_) | RequestKind::Bitmap(_) => (Core::Snapshot, 0, 0, plain),
            RequestKind::Empty => (Core::Empty, 0, 0, plain),
            RequestKind::ReadState { offset, ref buffers } => {
                (Core::Read, offset, buffers.len(), Flags::STATE)
            }
            RequestKind::WriteState { offset, ref buffers } => {
                (Core::Write, offset, buffers.len(), Flags::STATE)
            }
            RequestKind::GrowState { len } => (Core::Resize { size: len }, 0, 0, Flags::STATE),
        };
        quod_states::Request { kind, offset, len, flags, user }
    }
}

fn flags(fua: bool, may_unmap: bool) -> Flags {
    let mut flags = Flags::empty();
    flags.set(Flags::FUA, fua);
    flags.set(Flags::MAY_UNMAP, may_unmap);
    flags
}

impl Request {
    /// Fill `buffers` from `offset` on; their length is the request's. After an error they hold anything.
    pub fn read(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        Request { kind: RequestKind::Read { offset, buffers: buffers.into() }, user }
    }

    /// Write `buffers` from `offset` on; their length is the request's. When it completes reads see the data,
    /// and the next flush makes it durable. After an error, and after a power cut before that flush, any part
    /// of it may be there.
    pub fn write(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        Request { kind: RequestKind::Write { offset, buffers: buffers.into(), fua: false }, user }
    }

    /// As a write, compressed, of qcow2: with deflate or zstd as the image says
    /// ([`Info::compression`](crate::Info)), by worker threads where there are some
    /// ([`Config::decompressors`](field@crate::Config::decompressors)). One whole cluster a request
    /// ([`Info::cluster_size`](crate::Info)), where nothing is allocated: it has neither data nor space of
    /// its own, else the request fails with [`ErrorKind::Occupied`](crate::ErrorKind::Occupied) and changes
    /// nothing. The disk's last cluster may end with the disk. What does not become shorter is written as it
    /// is. Any number of clusters may be under way at once; they are placed in the file in the order in which
    /// they were submitted.
    ///
    /// ```
    /// use quod::{Buffer, Config, Driver, ErrorKind, OpenOptions, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
    /// # let mut driver = Driver::new(Config::default())?;
    /// # let disk = driver.open(&path, OpenOptions::new().write(true))?;
    /// # let mut next = |driver: &mut Driver| loop {
    /// #     if let Some(done) = driver.next_completion() {
    /// #         break Ok::<_, quod::Error>(done);
    /// #     }
    /// #     driver.wait(None)?;
    /// # };
    /// # next(&mut driver)?.result?;
    /// let cluster = Buffer::from(&[7; 64 << 10][..]);
    /// driver.submit(disk, Request::write_compressed(128 << 10, cluster, 1))?;
    /// next(&mut driver)?.result?;
    /// // a part of a cluster is refused, and so is one that is there already
    /// let part = Request::write_compressed(0, Buffer::zeroed(4096), 2);
    /// assert_eq!(quod::Error::from(driver.submit(disk, part).unwrap_err()).errno(), libc::EINVAL);
    /// driver.submit(disk, Request::write_compressed(128 << 10, Buffer::zeroed(64 << 10), 3))?;
    /// let error = next(&mut driver)?.result.unwrap_err();
    /// assert_eq!(error.kind(), Some(&ErrorKind::Occupied { offset: 128 << 10 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_compressed(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        Request { kind: RequestKind::WriteCompressed { offset, buffers: buffers.into(), fua: false }, user }
    }

    /// The range reads as zeros afterwards, whatever a backing file has there; as durable as a write. Costs
    /// little where a format can say it (whole clusters), otherwise the host's own zeroing, or a write.
    pub fn write_zeroes(offset: u64, len: u64, user: u64) -> Request {
        Request { kind: RequestKind::WriteZeroes { offset, len, fua: false, may_unmap: false }, user }
    }

    /// The guest does not need the range any more: a hint. What is read there afterwards is the old data or
    /// zeros; of a raw disk on a block device, whatever the device gives. Whole clusters (qcow2) or blocks
    /// (raw) are given back to the host, QED keeps all.
    pub fn discard(offset: u64, len: u64, user: u64) -> Request {
        Request { kind: RequestKind::Discard { offset, len }, user }
    }

    /// All that completed before it was submitted becomes durable, mappings included, before it completes:
    /// what a guest means by a flush. A flush that fails ends the writing of the image: what was not durable
    /// before may be lost ([`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned)).
    pub fn flush(user: u64) -> Request {
        Request { kind: RequestKind::Flush, user }
    }

    /// What is the first run of the range made of, in this layer (0: the image, 1: its backing file)? The
    /// answer is in [`CompletionKind::Map`](crate::CompletionKind::Map), begins at `offset`, and may be
    /// shorter than it could be: ask again for the rest.
    pub fn map(layer: usize, offset: u64, len: u64, user: u64) -> Request {
        Request { kind: RequestKind::Map { layer, offset, len }, user }
    }

    /// Make the file self-consistent without stopping service: all metadata durable, no dirty bit, as far as
    /// what completed before it was submitted is concerned.
    pub fn quiesce(user: u64) -> Request {
        Request { kind: RequestKind::Quiesce, user }
    }

    /// Finish everything that was taken, write and sync the metadata, give back the space ahead of the data,
    /// close the files and with that the locks. From its submission on the disk takes no requests; its
    /// completion is the last, and with it, error or not, the disk's id is invalid.
    pub fn close(user: u64) -> Request {
        Request { kind: RequestKind::Close, user }
    }

    /// Set the size of the guest disk, durably; what is new reads as zeros. Raw: any size up to 2^62. qcow2
    /// and QED: a multiple of 512, as far as the tables reach; QED only grows. Another resize meanwhile is
    /// refused as busy.
    pub fn resize(size: u64, user: u64) -> Request {
        Request { kind: RequestKind::Resize { size }, user }
    }

    /// Fill `buffers` from byte `offset` of the VM state on: what QEMU keeps of a machine beside its disk
    /// (qcow2). What was never written reads as zeros.
    ///
    /// ```
    /// use quod::{Buffer, OpenOptions, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 30))?;
    /// let mut session = quod_tools::Session::open(&path, OpenOptions::new().write(true))?;
    /// let mut state = Buffer::zeroed(100_000);
    /// state.as_mut_slice().fill(7);
    /// session.run(Request::grow_state(100_000, 0))?;
    /// session.run(Request::write_state(0, state, 0))?;
    /// session.run(Request::read_state(0, Buffer::zeroed(100_000), 0))?;
    /// session.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_state(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        Request { kind: RequestKind::ReadState { offset, buffers: buffers.into() }, user }
    }

    /// Write `buffers` to byte `offset` of the VM state and on, where there is room
    /// ([`Request::grow_state`]). A snapshot that is made keeps it, and one that is applied brings it back. A
    /// disk that grows to where it lies reads as zeros there, and of the state that part is gone.
    pub fn write_state(offset: u64, buffers: impl Into<Buffers>, user: u64) -> Request {
        Request { kind: RequestKind::WriteState { offset, buffers: buffers.into() }, user }
    }

    /// Make room for `len` bytes of VM state, durably: the table that leads to tables (L1) gets longer, if it
    /// has to, and then meanwhile every request is refused as busy. The state takes space when it is written.
    pub fn grow_state(len: u64, user: u64) -> Request {
        Request { kind: RequestKind::GrowState { len }, user }
    }

    /// Make, apply or delete a snapshot in the image (qcow2), durably: all of it or, after an error or a
    /// power cut, nothing. It begins when all that was taken before it has ended, and until it has ended
    /// every request is refused as busy; it takes as long as reading all tables of the disk and of the
    /// snapshot, and writing those that change. An applied one gives the disk the size that it had.
    ///
    /// [`ErrorKind::NoSnapshot`](crate::ErrorKind::NoSnapshot) if there is no such snapshot.
    ///
    /// ```
    /// use quod::{CompletionKind, Config, Driver, OpenOptions, Request, SnapshotAsk, SnapshotSelector};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 30))?;
    /// # let mut driver = Driver::new(Config::default())?;
    /// # let disk = driver.open(&path, OpenOptions::new().write(true))?;
    /// # while driver.next_completion().is_none() {
    /// #     driver.wait(None)?;
    /// # }
    /// let create = SnapshotAsk::Create { name: b"before".to_vec(), date_sec: 1_800_000_000, date_nsec: 0 };
    /// let which = || SnapshotSelector::Name(b"before".to_vec());
    /// for ask in [create, SnapshotAsk::Apply(which()), SnapshotAsk::Delete(which())] {
    ///     driver.submit(disk, Request::snapshot(ask, 1))?;
    ///     let done = loop {
    ///         driver.wait(None)?;
    ///         if let Some(done) = driver.next_completion() {
    ///             break done;
    ///         }
    ///     };
    ///     done.result?;
    ///     assert!(matches!(done.kind, CompletionKind::Snapshot));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot(ask: SnapshotAsk, user: u64) -> Request {
        Request { kind: RequestKind::Snapshot(Box::new(ask)), user }
    }

    /// Change a persistent bitmap of the image (qcow2), durably: all of it or, after an error or a power cut,
    /// nothing. Bitmaps that are enabled are for whoever writes the image and keeps them up; quod does not,
    /// so the first change of the guest's data makes all of them invalid ([`Info::bitmaps`](crate::Info)).
    /// What a snapshot's request waits for, and refuses, this one does.
    ///
    /// [`ErrorKind::NoBitmap`](crate::ErrorKind::NoBitmap) if there is no such bitmap,
    /// [`BitmapLack`](crate::fault::BitmapLack) for what cannot be done.
    ///
    /// ```
    /// use quod::{BitmapAsk, BitmapChange, CompletionKind, Config, Driver, OpenOptions, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 30))?;
    /// # let mut driver = Driver::new(Config::default())?;
    /// # let disk = driver.open(&path, OpenOptions::new().write(true))?;
    /// # while driver.next_completion().is_none() {
    /// #     driver.wait(None)?;
    /// # }
    /// for change in [BitmapChange::Add { granularity_bits: None, enabled: true }, BitmapChange::Remove] {
    ///     let ask = BitmapAsk { name: b"monday".to_vec(), change };
    ///     driver.submit(disk, Request::bitmap(ask, 1))?;
    ///     let done = loop {
    ///         driver.wait(None)?;
    ///         if let Some(done) = driver.next_completion() {
    ///             break done;
    ///         }
    ///     };
    ///     done.result?;
    ///     assert!(matches!(done.kind, CompletionKind::Bitmap));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bitmap(ask: BitmapAsk, user: u64) -> Request {
        Request { kind: RequestKind::Bitmap(Box::new(ask)), user }
    }

    /// The image holds nothing of the disk any more, durably: what its backing layer has shows, or zeros, and
    /// its space comes free. Snapshots keep what they have. For an image whose contents were merged into its
    /// backing layer, durably; anything else is lost. qcow2 and QED alone. It waits for all that is in
    /// flight, and what is submitted meanwhile is refused as busy.
    pub fn empty(user: u64) -> Request {
        Request { kind: RequestKind::Empty, user }
    }

    /// Durable, its mapping included, before it completes: a write, compressed or not, or write-zeroes. Of
    /// other kinds it means nothing.
    pub fn fua(mut self) -> Request {
        match &mut self.kind {
            RequestKind::Write { fua, .. }
            | RequestKind::WriteCompressed { fua, .. }
            | RequestKind::WriteZeroes { fua, .. } => *fua = true,
            _ => {}
        }
        self
    }

    /// Write-zeroes may give host space back. Of other kinds it means nothing.
    pub fn may_unmap(mut self) -> Request {
        if let RequestKind::WriteZeroes { may_unmap, .. } = &mut self.kind {
            *may_unmap = true;
        }
        self
    }
}
