//! What was tried when something failed.
//!
//! Knows: the names of operations. Must never know: their files, why they are wanted.

use quod_states::fault::Op;
use std::fmt;

/// What was tried with the bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum DeviceOp {
    /// What the image's machine wanted.
    Machine(Op),
    /// To read the bytes of a compressed cluster.
    ReadCompressed,
    /// To read, for a tool.
    Read,
    /// To write.
    Write,
    /// To reserve space.
    Reserve,
    /// To make what was written durable.
    Sync,
    /// To set the file's length.
    SetLen,
}

impl fmt::Display for DeviceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceOp::Machine(op) => return write!(f, "{op}"),
            DeviceOp::ReadCompressed => "read compressed data",
            DeviceOp::Read => "read",
            DeviceOp::Write => "write",
            DeviceOp::Reserve => "reserve space",
            DeviceOp::Sync => "sync",
            DeviceOp::SetLen => "set length",
        })
    }
}

/// What was tried with a file as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FileOp {
    /// To open it.
    Open,
    /// To open it past the page cache. EINVAL: its file system has no O_DIRECT.
    OpenDirect,
    /// To claim it, a block device that is mounted, or claimed by another program (EBUSY).
    Claim,
    /// To ask for its length and the like.
    Examine,
    /// To lock it.
    Lock,
    /// To lock it, where its file system has no locks.
    LockWithout,
    /// To read it while it is opened.
    Read,
    /// To create it.
    Create,
    /// To read its snapshot table.
    ReadSnapshots,
    /// To write what would make a disk that was only guessed to be raw an image of another format.
    WriteHeader,
}

impl FileOp {
    /// To open it, if the operating system answered so.
    #[doc(hidden)]
    pub const fn opening(errno: i32) -> FileOp {
        match errno {
            libc::EBUSY => FileOp::Claim,
            _ => FileOp::Open,
        }
    }

    /// To lock it, if the operating system answered so.
    #[doc(hidden)]
    pub const fn locking(errno: i32) -> FileOp {
        match errno {
            libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOLCK => FileOp::LockWithout,
            _ => FileOp::Lock,
        }
    }
}

impl fmt::Display for FileOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileOp::Open => "open",
            FileOp::OpenDirect => "open with O_DIRECT, which its file system may not have",
            FileOp::Claim => "claim: it is mounted, or another program has claimed it",
            FileOp::Examine => "examine",
            FileOp::Lock => "lock",
            FileOp::LockWithout => {
                "lock: its file system has no locks (OpenOptions::lock(false), file.locking=off on the \
                 command line, opens it without; then nothing keeps two writers apart)"
            }
            FileOp::Read => "read",
            FileOp::Create => "create",
            FileOp::ReadSnapshots => "read the snapshot table",
            FileOp::WriteHeader => {
                "write the header of another format to a disk that was only guessed to be raw"
            }
        })
    }
}

/// What was tried with the backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BackendOp {
    /// To set it up.
    SetUp,
    /// To hand operations to it.
    Submit,
    /// To wait for it.
    Wait,
    /// To register memory with it.
    Register,
}

impl fmt::Display for BackendOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendOp::SetUp => "setting up the backend",
            BackendOp::Submit => "submitting operations",
            BackendOp::Wait => "waiting",
            BackendOp::Register => "registering memory",
        })
    }
}
