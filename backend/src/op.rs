//! What a backend can do, and how it answers.
//!
//! Knows: files by slot number, byte ranges, memory segments. Must never know: image formats, guests,
//! requests.

use crate::buffer::Segments;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Chosen by the caller, given back with the completion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Token(pub u64);

/// An open file of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Memory that is registered with a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct MemoryId(pub u32);

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OpenFlags {
    /// For writing too.
    pub write: bool,
    /// Bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Claim a block device (O_EXCL), as mount, mkfs and LVM do: EBUSY when somebody else has claimed it. No
    /// matter to files, nor to a descriptor that is given ([`Op::Adopt`]).
    pub claim: bool,
}

/// How QEMU's programs and we keep out of each other's way: shared byte-range (OFD) locks on the bytes 100..
/// and 200.. that QEMU uses (one byte a permission).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum LockMode {
    /// We read, and tolerate writers, as QEMU does with raw files.
    Share,
    /// We read and tolerate no writer.
    Read,
    /// We read and write and tolerate no other writer (readers that tolerate no writer are refused by it
    /// too).
    Write,
    /// Give the locks back.
    #[default]
    None,
}

/// An operation. Data segments must stay valid until its completion was reaped (see
/// [`crate::buffer::Segment`]).
#[derive(Clone, Debug)]
pub enum Op {
    /// Open; completes with [`Output::Opened`]. Never creates.
    Open {
        /// Path.
        path: CString,
        /// How.
        flags: OpenFlags,
    },
    /// Takes over a descriptor that is open; completes with [`Output::Opened`]. What it may do must include
    /// what the flags want (EACCES), and it must not append (EINVAL). It may have O_DIRECT already.
    Adopt {
        /// Closed with the last of its owners.
        fd: Arc<OwnedFd>,
        /// How it is used.
        flags: OpenFlags,
    },
    /// Length, kind and alignment; completes with [`Output::Stat`].
    Stat {
        /// Which file.
        file: FileId,
    },
    /// Take, change or drop QEMU-compatible locks. Fails with EAGAIN when somebody else holds a conflicting
    /// one. Locks hold on a device's node, not on the device behind it ([`OpenFlags::claim`] does).
    Lock {
        /// Which file.
        file: FileId,
        /// What to hold.
        mode: LockMode,
    },
    /// Close; locks go with it.
    Close {
        /// Which file.
        file: FileId,
    },
    /// Read; completes with [`Output::Bytes`]: the full length, or less only at the end of the file.
    Read {
        /// Which file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Where to.
        segments: Segments,
    },
    /// Write; completes with [`Output::Bytes`] only when all is written.
    Write {
        /// Which file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Where from.
        segments: Segments,
    },
    /// fdatasync.
    Sync {
        /// Which file.
        file: FileId,
    },
    /// Make the range read as zeros without writing data if the file system can (fallocate ZERO_RANGE, or
    /// PUNCH_HOLE with `unmap`); falls back to writing zeros where it cannot, or is not believed
    /// ([`Op::Prove`]).
    ZeroRange {
        /// Which file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Host space may be given back.
        unmap: bool,
    },
    /// Punch a hole; where the file system cannot, or is not believed, completes with EOPNOTSUPP.
    PunchHole {
        /// Which file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Nobody needs the range's bytes any more: of a block device its own discard (BLKDISCARD; the range may
    /// read as anything then), else a hole where one can be punched (zeros), else nothing. Parts of blocks
    /// stay as they are.
    Discard {
        /// Which file.
        file: FileId,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Grow the file to `to` bytes: by allocating (fallocate mode 0) if `allocate`, falling back to a sparse
    /// extension where the file system cannot, or is not believed. A block device is as long as it is: done
    /// if that is enough, else ENOSPC.
    Grow {
        /// Which file.
        file: FileId,
        /// Present length.
        from: u64,
        /// New length.
        to: u64,
        /// Allocate blocks ahead.
        allocate: bool,
    },
    /// ftruncate. A block device is as long as it is: nothing is done if that is enough, else ENOSPC.
    SetLen {
        /// Which file.
        file: FileId,
        /// New length.
        len: u64,
    },
    /// Believe what fallocate answers for this file from now on: completes with [`Output::Proven`]. A file of
    /// a file system that is not known starts with nothing believed, see [`Stat::store`].
    Prove {
        /// Which file.
        file: FileId,
        /// What a proof on the same file system has shown. None: do it now, on a file of its own in the same
        /// folder, of which nothing is left afterwards; the file itself is not touched.
        shown: Option<Proven>,
    },
}

/// Whose answers a file's operations get.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Store {
    /// A file system of the kernel, or a device: known to do what it answers.
    Known,
    /// FUSE: whatever program serves it, a distributed store among others.
    Fuse,
    /// Any other: on a network, stacked, or new.
    Unknown,
}

/// Which answers of fallocate are believed: what was seen to be so, not what was said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Proven {
    /// A punched hole reads as zeros.
    pub punch_hole: bool,
    /// A zeroed range reads as zeros.
    pub zero_range: bool,
    /// A file that was given space is longer, and its new part reads as zeros.
    pub allocate: bool,
}

impl Proven {
    /// All of them.
    pub const ALL: Proven = Proven { punch_hole: true, zero_range: true, allocate: true };
    /// None of them: zeros are written, files grow by ftruncate, no holes are punched.
    pub const NONE: Proven = Proven { punch_hole: false, zero_range: false, allocate: false };

    /// As one number below 8.
    pub(crate) fn bits(self) -> u8 {
        u8::from(self.punch_hole) | u8::from(self.zero_range) << 1 | u8::from(self.allocate) << 2
    }

    /// And back.
    pub(crate) const fn from_bits(bits: u8) -> Proven {
        Proven { punch_hole: bits & 1 != 0, zero_range: bits & 2 != 0, allocate: bits & 4 != 0 }
    }
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stat {
    /// Length in bytes (of a block device: its size).
    pub len: u64,
    /// Device and inode: two names of one file compare equal.
    pub identity: (u64, u64),
    /// Bytes that offsets and lengths must be multiples of, a power of two: 1 for buffered files.
    pub offset_align: u32,
    /// Bytes that memory addresses must be multiples of, a power of two: 1 for buffered files.
    pub memory_align: u32,
    /// It is a block device: it neither grows nor shrinks by our doing, but may by others', and what it holds
    /// where nothing was written is not known.
    pub block_device: bool,
    /// What its answers are worth.
    pub store: Store,
}

/// What came out of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// [`Op::Open`].
    Opened(FileId),
    /// [`Op::Stat`].
    Stat(Stat),
    /// [`Op::Read`] and [`Op::Write`]: bytes moved.
    Bytes(u64),
    /// [`Op::Prove`]: what is believed from now on.
    Proven(Proven),
    /// Everything else.
    Done,
}

/// An operating system error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Errno(pub i32);

/// The answer to one operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: Token,
    /// How it ended.
    pub result: Result<Output, Errno>,
}
