//! Errors that name the blame: the caller's misuse, an unsupported feature, a corrupt image, the device,
//! full, poisoned.

use crate::fault::{Fault, Foreign, Lack, Op};
use core::fmt;

/// What went wrong, sorted by whose fault it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Error {
    /// The caller asked for something that makes no sense, or is not allowed (write to a read-only image).
    Misuse(&'static str),
    /// The image, or the request, needs something that quod does not do.
    Unsupported(Lack),
    /// Nobody said what the file is, and its bytes say that it is this, which quod does not read.
    Foreign(Foreign),
    /// The image contradicts its format.
    Corrupt(Fault),
    /// The host's file failed.
    Device {
        /// What was tried.
        op: Op,
        /// Host offset.
        offset: u64,
        /// The operating system's error number.
        errno: i32,
    },
    /// What holds the file is gone, says the embedder, who got this error number from it.
    Gone(i32),
    /// The image has no such snapshot.
    NoSnapshot,
    /// The image has no such persistent bitmap.
    NoBitmap,
    /// A compressed write of the cluster at this guest offset, which has data, or space, already.
    Occupied(u64),
    /// The host's file system is full.
    NoSpace,
    /// An earlier metadata write or sync failed, what holds the file has gone, or an entry of the image
    /// contradicted the format: it only reads until it is opened again.
    Poisoned,
    /// The image is closed or closing.
    Closed,
    /// The embedder cancelled the request.
    Cancelled,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Misuse(what) => write!(f, "not a valid request: {what}"),
            Error::Unsupported(what) => write!(f, "unsupported: {what}"),
            Error::Foreign(foreign) => write!(f, "the file is a {} image", foreign.name()),
            Error::Corrupt(fault) => write!(f, "corrupt image: {fault}"),
            Error::Device { op, offset, errno } => {
                write!(f, "device error {errno} in {op} at host offset {offset:#x}")
            }
            Error::Gone(errno) => write!(f, "what holds the image is gone (device error {errno})"),
            Error::NoSnapshot => f.write_str("the image has no such snapshot"),
            Error::NoBitmap => f.write_str("the image has no such bitmap"),
            Error::Occupied(guest) => {
                write!(
                    f,
                    "the cluster at guest offset {guest:#x} is allocated: nothing compressed goes there"
                )
            }
            Error::NoSpace => f.write_str("no space left on the host device"),
            Error::Poisoned => f.write_str(
                "the image is poisoned: metadata could not be written, or contradicted itself, earlier",
            ),
            Error::Closed => f.write_str("the image is closed"),
            Error::Cancelled => f.write_str("the request was cancelled"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::Corrupt(fault)
    }
}

impl From<Lack> for Error {
    fn from(lack: Lack) -> Error {
        Error::Unsupported(lack)
    }
}
