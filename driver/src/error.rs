//! Errors of the driver: what the machine or the operating system said, with the file that it is about.
//!
//! Knows: paths, roles, error numbers, the machine's errors. Must never know: how to recover.
//! Invariants: every error names whose fault it is, and where; of a file it says which it is of its disk, so
//! that nobody has to look for it by its name; words are made here and nowhere else in the driver.

mod lack;
mod op;

pub use lack::Lack;
pub use op::{BackendOp, DeviceOp, FileOp};
use quod_states::{Fault, Foreign};
use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, sorted by whose fault it is. `Display` is a sentence for people, with file and place;
/// everything in it is in the fields too, so that no program needs to read it.
///
/// ```
/// use quod::{Error, ErrorKind, FileRole};
/// /// What the keeper of a virtual machine does about it.
/// fn next_step(error: &Error) -> &'static str {
///     match error {
///         Error::Busy => "submit it again after a completion",
///         Error::File { kind: ErrorKind::NoSpace, .. } => "stop the guest, make room, submit it again",
///         Error::File { kind: ErrorKind::Gone { .. } | ErrorKind::Poisoned, .. } => "open the disk again",
///         Error::File { kind: ErrorKind::Corrupt(_), role, .. } if role.is_below() => "see the template",
///         Error::File { kind: ErrorKind::Corrupt(_), .. } => "check the image",
///         Error::File { kind: ErrorKind::Locked(_), .. } => "somebody else has it: give up",
///         _ => "tell the guest, go on",
///     }
/// }
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("torn.qcow2");
/// std::fs::write(&path, b"QFI\xfb\0\0\0\x03")?; // the begin of a header, and nothing else
/// let mut driver = quod::Driver::new(quod::Config::default())?;
/// driver.open(&path, quod::OpenOptions::new())?;
/// let error = loop {
///     driver.wait(None)?;
///     if let Some(done) = driver.next_completion() {
///         break done.result.unwrap_err();
///     }
/// };
/// assert_eq!((error.path(), error.role()), (Some(path.as_path()), Some(FileRole::Image)));
/// assert_eq!((next_step(&error), error.errno()), ("check the image", libc::EIO));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that makes no sense, or is not allowed.
    Misuse(&'static str),
    /// Something about one file.
    File {
        /// Which file.
        path: PathBuf,
        /// Which file of the disk that is.
        role: FileRole,
        /// What.
        kind: ErrorKind,
    },
    /// The backend itself failed.
    Backend {
        /// What was tried.
        op: BackendOp,
        /// The operating system's error number.
        errno: i32,
    },
    /// A driver on io_uring was called by another thread than the first one that used it. Nothing was done.
    WrongThread,
    /// All slots ([`Config::requests`](field@crate::Config::requests)) are in use: try again after a
    /// completion.
    Busy,
    /// The disk is closed, closing or was never open.
    Closed,
    /// `Driver::cancel` came before all of the request was done.
    Cancelled,
}

/// Which file of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileRole {
    /// The image itself.
    Image,
    /// Its data file.
    Data,
    /// A backing file: the image's own is at depth 1.
    Backing(u32),
    /// The data file of the backing file at this depth.
    BackingData(u32),
}

impl FileRole {
    /// Of the image at a depth of the chain.
    #[doc(hidden)]
    pub const fn image(depth: usize) -> FileRole {
        match depth {
            0 => FileRole::Image,
            _ => FileRole::Backing(depth as u32),
        }
    }

    /// Of its data file.
    #[doc(hidden)]
    pub const fn data(depth: usize) -> FileRole {
        match depth {
            0 => FileRole::Data,
            _ => FileRole::BackingData(depth as u32),
        }
    }

    /// It is a backing file, or belongs to one.
    pub const fn is_below(self) -> bool {
        matches!(self, FileRole::Backing(_) | FileRole::BackingData(_))
    }
}

/// What is the matter with a file. Exhaustive: whoever has words of his own for it chooses them for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The image needs something that quod does not do.
    Unsupported(Lack),
    /// Nobody said what the file is, and its bytes say that it is of a format that quod does not read. With
    /// the format raw its bytes can be used as they are.
    Foreign(Foreign),
    /// The image contradicts its format.
    Corrupt(Fault),
    /// The host's file failed.
    Device {
        /// What was tried.
        op: DeviceOp,
        /// Host offset.
        offset: u64,
        /// The operating system's error number.
        errno: i32,
    },
    /// What holds the file is gone, or was for a while: what it has answered before may be lost. From then on
    /// the image only reads until it is opened again (docs/distributed.md).
    Gone {
        /// The error number that said so.
        errno: i32,
    },
    /// The image has no such snapshot.
    NoSnapshot,
    /// The image has no such persistent bitmap.
    NoBitmap,
    /// The host's file system, or the device that the image is on, is full.
    NoSpace,
    /// A compressed write of a cluster that is allocated: it has data, or space, already. Nothing was
    /// changed.
    Occupied {
        /// Where the cluster begins on the guest disk.
        offset: u64,
    },
    /// The device has no room for the image that is to be made on it.
    DeviceTooSmall {
        /// Bytes of the device.
        has: u64,
        /// Bytes that the image takes from the start.
        needs: u64,
    },
    /// An earlier metadata write or sync failed, what holds the file has gone, or an entry of the image
    /// contradicted the format: it only reads until it is opened again. (In the last case flushes go on, for
    /// what was answered before.)
    Poisoned,
    /// The open gate refused a backing file, or a data file, that the image names.
    NotAllowed {
        /// The name as it stands in the image.
        name: String,
    },
    /// The open gate refused a file that QEMU takes from the working directory, whatever folder the image is
    /// in: it was not said which of the two is meant.
    Ambiguous {
        /// The name as it stands in the image.
        name: String,
        /// The file that QEMU opens.
        here: PathBuf,
        /// The file of this name beside the image.
        beside: PathBuf,
    },
    /// Another process holds a lock that conflicts with the one that we wanted.
    Locked(Lock),
    /// The image names a file that stands in the chain already.
    BackingLoop {
        /// That file.
        repeated: PathBuf,
    },
    /// The image has a backing file, and the chain is as long as it may be.
    TooDeep {
        /// The limit, in layers.
        limit: u32,
    },
    /// A file could not be opened, examined or closed.
    Io {
        /// What was tried.
        op: FileOp,
        /// The operating system's error number.
        errno: i32,
    },
}

/// A lock that we wanted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lock {
    /// For writing: nobody else may write.
    Write,
    /// For reading.
    Read,
}

impl Lock {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Lock::Write => "write",
            Lock::Read => "read",
        }
    }
}

impl Error {
    /// Something about a file of a disk.
    #[doc(hidden)]
    pub fn of(path: &Path, role: FileRole, kind: ErrorKind) -> Error {
        Error::File { path: path.to_path_buf(), role, kind }
    }

    /// Adds the file to what its machine said.
    #[doc(hidden)]
    pub fn from_core(path: &Path, role: FileRole, error: &quod_states::Error) -> Error {
        use quod_states::Error as Core;
        let kind = match error {
            Core::Misuse(what) => return Error::Misuse(what),
            Core::Closed => return Error::Closed,
            Core::Cancelled => return Error::Cancelled,
            Core::Unsupported(lack) => ErrorKind::Unsupported(Lack::Format(lack.clone())),
            Core::Foreign(format) => ErrorKind::Foreign(*format),
            Core::Corrupt(fault) => ErrorKind::Corrupt(*fault),
            Core::Device { op, offset, errno } => {
                ErrorKind::Device { op: DeviceOp::Machine(*op), offset: *offset, errno: *errno }
            }
            Core::Gone(errno) => ErrorKind::Gone { errno: *errno },
            Core::NoSnapshot => ErrorKind::NoSnapshot,
            Core::NoBitmap => ErrorKind::NoBitmap,
            Core::Occupied(guest) => ErrorKind::Occupied { offset: *guest },
            Core::NoSpace => ErrorKind::NoSpace,
            Core::Poisoned => ErrorKind::Poisoned,
        };
        Error::of(path, role, kind)
    }

    /// A failed system call about no file in particular.
    #[doc(hidden)]
    pub fn backend(op: BackendOp, error: &std::io::Error) -> Error {
        if quod_backend::uring::is_wrong_thread(error) {
            return Error::WrongThread;
        }
        Error::Backend { op, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// A failed system call about a file.
    #[doc(hidden)]
    pub fn io(path: &Path, role: FileRole, op: FileOp, errno: i32) -> Error {
        Error::of(path, role, ErrorKind::Io { op, errno })
    }

    /// What is the matter with a file, if it is about one.
    pub fn kind(&self) -> Option<&ErrorKind> {
        match self {
            Error::File { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// Which file, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::File { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Which file of the disk, if it is about one.
    pub fn role(&self) -> Option<FileRole> {
        match self {
            Error::File { role, .. } => Some(*role),
            _ => None,
        }
    }

    /// The operating system's error number that comes closest: that of the failed call where there was one,
    /// otherwise EINVAL (misuse), EAGAIN (busy, locked), EBADF (closed), ECANCELED, EPERM (gate, thread),
    /// ENOSPC, ENOTSUP (unsupported, foreign), ELOOP (chains), EIO (corrupt, poisoned, occupied).
    pub fn errno(&self) -> i32 {
        match self {
            Error::Misuse(_) => libc::EINVAL,
            Error::File { kind, .. } => kind.errno(),
            Error::Backend { errno, .. } => *errno,
            Error::WrongThread => libc::EPERM,
            Error::Busy => libc::EAGAIN,
            Error::Closed => libc::EBADF,
            Error::Cancelled => libc::ECANCELED,
        }
    }
}

impl ErrorKind {
    fn errno(&self) -> i32 {
        match self {
            ErrorKind::Device { errno, .. } | ErrorKind::Io { errno, .. } | ErrorKind::Gone { errno } => {
                *errno
            }
            ErrorKind::NoSpace | ErrorKind::DeviceTooSmall { .. } => libc::ENOSPC,
            ErrorKind::NoSnapshot | ErrorKind::NoBitmap => libc::ENOENT,
            ErrorKind::Unsupported(_) | ErrorKind::Foreign(_) => libc::ENOTSUP,
            ErrorKind::Locked(_) => libc::EAGAIN,
            ErrorKind::NotAllowed { .. } | ErrorKind::Ambiguous { .. } => libc::EPERM,
            ErrorKind::BackingLoop { .. } | ErrorKind::TooDeep { .. } => libc::ELOOP,
            ErrorKind::Corrupt(_) | ErrorKind::Poisoned | ErrorKind::Occupied { .. } => libc::EIO,
        }
    }
}

/// The operating system's text for an error number, without Rust's "(os error N)".
pub fn describe(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let number = format!(" (os error {errno})");
    text.strip_suffix(&number).map_or_else(|| text.clone(), str::to_string)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Misuse(what) => write!(f, "not a valid request: {what}"),
            Error::File { path, kind, .. } => kind.tell(path, f),
            Error::Backend { op, errno } => write!(f, "{op} failed: {}", describe(*errno)),
            Error::WrongThread => f.write_str(
                "a driver belongs to the thread that used it first, and was called by another one",
            ),
            Error::Busy => f.write_str("all request slots are in use"),
            Error::Closed => f.write_str("the disk is not open"),
            Error::Cancelled => f.write_str("the request was cancelled"),
        }
    }
}

impl ErrorKind {
    /// What is the matter with the file at `path`, which the text begins with.
    fn tell(&self, path: &Path, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = path.display();
        match self {
            ErrorKind::Unsupported(lack) => write!(f, "{path}: unsupported: {lack}"),
            ErrorKind::Foreign(format) => {
                let format = format.name();
                write!(f, "{path} is a {format} image: quod reads raw, qed and qcow2, and, as raw, its bytes")
            }
            ErrorKind::Corrupt(fault) => write!(f, "{path}: corrupt image: {fault}"),
            ErrorKind::Device { op, offset, errno } => {
                write!(f, "{path}: {op} at host offset {offset:#x} failed: {}", describe(*errno))
            }
            ErrorKind::Gone { errno } => {
                let why = describe(*errno);
                write!(f, "{path}: what holds it has gone ({why}); it only reads until it is opened again")
            }
            ErrorKind::NoSnapshot => write!(f, "{path}: the image has no such snapshot"),
            ErrorKind::NoBitmap => write!(f, "{path}: the image has no such bitmap"),
            ErrorKind::NoSpace => write!(f, "{path}: no space left on the host device"),
            ErrorKind::Occupied { offset } => write!(
                f,
                "{path}: the cluster at guest offset {offset:#x} is allocated, and a compressed write goes \
                 only where nothing is"
            ),
            ErrorKind::DeviceTooSmall { has, needs } => {
                write!(f, "{path}: the device has {has} bytes, and the image takes {needs} from the start")
            }
            ErrorKind::Poisoned => write!(
                f,
                "{path}: metadata could not be written, or contradicted itself; the image only reads now"
            ),
            ErrorKind::NotAllowed { name } => {
                write!(f, "{path}: the file that it names, '{name}', may not be opened (open gate)")
            }
            ErrorKind::Ambiguous { name, here, beside } => {
                let (here, beside) = (here.display(), beside.display());
                write!(
                    f,
                    "{path}: the file that it names, '{name}', may not be opened (open gate): for QEMU it is \
                     '{here}' in the working directory, and not '{beside}' beside the image"
                )
            }
            ErrorKind::Locked(lock) => {
                let lock = lock.name();
                write!(f, "{path}: Failed to get \"{lock}\" lock: is another process using the image?")
            }
            ErrorKind::BackingLoop { repeated } => {
                let repeated = repeated.display();
                write!(f, "{path}: the file that it names, '{repeated}', stands in the chain already")
            }
            ErrorKind::TooDeep { limit } => {
                write!(f, "{path}: has a backing file, but {limit} layers is the limit")
            }
            ErrorKind::Io { op, errno } => write!(f, "{path}: could not {op}: {}", describe(*errno)),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use quod_states::fault::Op;

    #[test]
    fn every_text_names_what_and_where() {
        let image = |kind| Error::of(Path::new("/images/a.qed"), FileRole::Image, kind).to_string();
        let lock = image(ErrorKind::Locked(Lock::Write));
        assert!(lock.contains("/images/a.qed") && lock.contains("Failed to get \"write\" lock"));
        let op = DeviceOp::Machine(Op::WriteData);
        assert_eq!(
            image(ErrorKind::Device { op, offset: 4096, errno: libc::EIO }),
            "/images/a.qed: write data at host offset 0x1000 failed: Input/output error"
        );
        let foreign = image(ErrorKind::Foreign(Foreign::Vmdk));
        assert!(foreign.starts_with("/images/a.qed is a vmdk image"), "{foreign}");
        let gate = image(ErrorKind::NotAllowed { name: "base".into() });
        assert!(gate.contains("a.qed") && gate.contains("'base'"));
    }

    #[test]
    fn a_file_s_role_says_whose_it_is() {
        let roles = [0, 1, 7].map(|depth| (FileRole::image(depth), FileRole::data(depth)));
        let below = |depth| (FileRole::Backing(depth), FileRole::BackingData(depth));
        assert_eq!(roles, [(FileRole::Image, FileRole::Data), below(1), below(7)]);
        assert_eq!(
            roles.map(|(image, data)| (image.is_below(), data.is_below()))[..2],
            [(false, false), (true, true)]
        );
    }
}
