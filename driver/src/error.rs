//! Errors of the driver: what the machine or the operating system said, with the file that it is about.
//!
//! Knows: paths, error numbers, the machine's errors. Must never know: how to recover.
//! Invariant: every error names whose fault it is, and where.

use quod_states::Foreign;
use std::fmt;
use std::path::{Path, PathBuf};

/// The operation of an [`Error::Io`] with EINVAL: the file's system has no O_DIRECT.
pub const OPEN_DIRECT: &str = "open with O_DIRECT, which its file system may not have";

/// What went wrong, sorted by whose fault it is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that makes no sense, or is not allowed.
    Misuse(&'static str),
    /// The image needs something that quod does not do.
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// The bits or the feature.
        what: String,
    },
    /// Nobody said what the file is, and its bytes say that it is of a format that quod does not read. With
    /// the format raw its bytes can be used as they are.
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What it is.
        format: Foreign,
    },
    /// The image contradicts its format.
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// The table or header field.
        place: &'static str,
        /// Index in that table (0 for header fields).
        index: u64,
        /// The value found.
        value: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The host's file failed.
    Device {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Host offset.
        offset: u64,
        /// The operating system's error number.
        errno: i32,
    },
    /// The host's file system is full.
    NoSpace {
        /// Which file.
        path: PathBuf,
    },
    /// An earlier metadata write or sync failed, or an entry of the image contradicted the format: it only
    /// reads until it is opened again. (In the second case flushes go on, for what was answered before.)
    Poisoned {
        /// Which file.
        path: PathBuf,
    },
    /// A driver on io_uring was called by another thread than the first one that used it. Nothing was done.
    WrongThread,
    /// All slots are in use: try again after a completion.
    Busy,
    /// The disk is closed, closing or was never open.
    Closed,
    /// `Driver::cancel` came before all of the request was done.
    Cancelled,
    /// The open gate refused a backing file, or a data file.
    NotAllowed {
        /// The image that names it.
        image: PathBuf,
        /// The name as it stands in the image.
        backing: String,
    },
    /// The open gate refused a file that QEMU takes from the working directory, whatever folder the image is
    /// in: it was not said which of the two is meant.
    Ambiguous {
        /// The image that names it.
        image: PathBuf,
        /// The name as it stands in the image.
        name: String,
        /// The file that QEMU opens.
        here: PathBuf,
        /// The file of this name beside the image.
        beside: PathBuf,
    },
    /// Another process holds a conflicting lock.
    Locked {
        /// Which file.
        path: PathBuf,
        /// The lock that we wanted: "write" or "read".
        lock: &'static str,
    },
    /// The chain of backing and data files leads back to a file above.
    BackingLoop {
        /// The image that names it.
        image: PathBuf,
        /// The file that stands in the chain already.
        repeated: PathBuf,
    },
    /// The chain of backing files is longer than allowed.
    TooDeep {
        /// The last file that was opened.
        image: PathBuf,
        /// The limit, in layers.
        depth: u32,
    },
    /// A file could not be opened, examined or closed, or the backend itself failed.
    Io {
        /// Which file; empty when it is about the backend.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// The operating system's error number.
        errno: i32,
    },
}

impl Error {
    /// Adds the file to what its machine said.
    pub fn from_core(path: &Path, error: &quod_states::Error) -> Error {
        use quod_states::Error as Core;
        let path = path.to_path_buf();
        match error {
            Core::Misuse(what) => Error::Misuse(what),
            Core::Unsupported(what) => Error::Unsupported { path, what: what.clone() },
            Core::Foreign(format) => Error::Foreign { path, format: *format },
            Core::Corrupt { place, index, value, what } => {
                Error::Corrupt { path, place, index: *index, value: *value, what }
            }
            Core::Device { op, offset, errno } => {
                Error::Device { path, op: op.name(), offset: *offset, errno: *errno }
            }
            Core::NoSpace => Error::NoSpace { path },
            Core::Poisoned => Error::Poisoned { path },
            Core::Closed => Error::Closed,
            Core::Cancelled => Error::Cancelled,
            other => Error::Unsupported { path, what: other.to_string() },
        }
    }

    /// A failed system call about no file in particular.
    pub fn backend(op: &'static str, error: &std::io::Error) -> Error {
        if quod_backend::uring::is_wrong_thread(error) {
            return Error::WrongThread;
        }
        Error::Io { path: PathBuf::new(), op, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// A failed system call about a file.
    pub fn io(path: &Path, op: &'static str, errno: i32) -> Error {
        Error::Io { path: path.to_path_buf(), op, errno }
    }

    /// The operating system's error number that comes closest.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Device { errno, .. } | Error::Io { errno, .. } => *errno,
            Error::NoSpace { .. } => libc::ENOSPC,
            Error::Misuse(_) => libc::EINVAL,
            Error::WrongThread => libc::EPERM,
            Error::Unsupported { .. } | Error::Foreign { .. } => libc::ENOTSUP,
            Error::Busy | Error::Locked { .. } => libc::EAGAIN,
            Error::Closed => libc::EBADF,
            Error::Cancelled => libc::ECANCELED,
            Error::NotAllowed { .. } | Error::Ambiguous { .. } => libc::EPERM,
            Error::BackingLoop { .. } | Error::TooDeep { .. } => libc::ELOOP,
            Error::Corrupt { .. } | Error::Poisoned { .. } => libc::EIO,
        }
    }
}

/// The operating system's text for an error number, without Rust's "(os error N)".
fn describe(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Misuse(what) => write!(f, "not a valid request: {what}"),
            Error::Unsupported { path, what } => write!(f, "{}: unsupported: {what}", path.display()),
            Error::Foreign { path, format } => {
                let (path, format) = (path.display(), format.name());
                write!(f, "{path} is a {format} image: quod reads raw, qed and qcow2, and, as raw, its bytes")
            }
            Error::Corrupt { path, place, index, value, what } => {
                write!(f, "{}: corrupt image: {place}[{index}] = {value:#x}: {what}", path.display())
            }
            Error::Device { path, op, offset, errno } => {
                write!(f, "{}: {op} at host offset {offset:#x} failed: {}", path.display(), describe(*errno))
            }
            Error::NoSpace { path } => write!(f, "{}: no space left on the host device", path.display()),
            Error::Poisoned { path } => {
                write!(
                    f,
                    "{}: metadata could not be written, or contradicted itself; the image only reads now",
                    path.display()
                )
            }
            Error::WrongThread => f.write_str(
                "a driver belongs to the thread that used it first, and was called by another one",
            ),
            Error::Busy => f.write_str("all request slots are in use"),
            Error::Closed => f.write_str("the disk is not open"),
            Error::Cancelled => f.write_str("the request was cancelled"),
            Error::NotAllowed { image, backing } => {
                write!(
                    f,
                    "{}: the file that it names, '{backing}', may not be opened (open gate)",
                    image.display()
                )
            }
            Error::Ambiguous { image, name, here, beside } => {
                let (image, here, beside) = (image.display(), here.display(), beside.display());
                write!(
                    f,
                    "{image}: the file that it names, '{name}', may not be opened (open gate): for QEMU it \
                     is '{here}' in the working directory, and not '{beside}' beside the image"
                )
            }
            Error::Locked { path, lock } => {
                let file = path.display();
                write!(f, "{file}: Failed to get \"{lock}\" lock: is another process using the image?")
            }
            Error::BackingLoop { image, repeated } => {
                let (image, repeated) = (image.display(), repeated.display());
                write!(f, "{image}: the file that it names, '{repeated}', stands in the chain already")
            }
            Error::TooDeep { image, depth } => {
                write!(f, "{}: has a backing file, but {depth} layers is the limit", image.display())
            }
            Error::Io { path, op, errno } if path.as_os_str().is_empty() => {
                write!(f, "{op} failed: {}", describe(*errno))
            }
            Error::Io { path, op, errno } => {
                write!(f, "{}: could not {op}: {}", path.display(), describe(*errno))
            }
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_names_what_and_where() {
        let path = PathBuf::from("/images/a.qed");
        let lock = Error::Locked { path: path.clone(), lock: "write" }.to_string();
        assert!(lock.contains("/images/a.qed") && lock.contains("Failed to get \"write\" lock"));
        let device = Error::Device { path: path.clone(), op: "WriteData", offset: 4096, errno: libc::EIO };
        assert_eq!(
            device.to_string(),
            "/images/a.qed: WriteData at host offset 0x1000 failed: Input/output error"
        );
        let foreign = Error::Foreign { path: path.clone(), format: Foreign::Vmdk }.to_string();
        assert!(foreign.starts_with("/images/a.qed is a vmdk image"), "{foreign}");
        let gate = Error::NotAllowed { image: path, backing: "base".into() }.to_string();
        assert!(gate.contains("a.qed") && gate.contains("'base'"));
    }
}
