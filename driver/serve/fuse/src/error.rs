//! Why an image cannot be mounted, or not go on being so.
//!
//! Knows: what was tried. Must never know: how it is told in the command's words.

use quod::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a mount cannot begin, or did not end in order. What goes wrong with one request is its client's.
#[derive(Debug)]
#[non_exhaustive]
pub enum MountError {
    /// The image cannot be opened.
    Open(Error),
    /// The image could not be closed in order: what was written since the last fsync may be lost.
    Close(Error),
    /// The image is to be written, has no signature of a format, and nobody said that it is raw. A client
    /// could make an image of another format of it.
    Guessed(PathBuf),
    /// The place is not a regular file that exists.
    NotAFile(PathBuf),
    /// Somebody was killed who had mounted something at this place, and the dead mount is still there.
    Dead(PathBuf),
    /// The device of FUSE is not there, or not for this user.
    NoFuse(io::Error),
    /// It cannot be mounted there.
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The loop's own wait, or the descriptor of the mount.
    Wait(io::Error),
    /// The driver itself.
    Driver(Error),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountError::Open(error) | MountError::Driver(error) => error.fmt(f),
            MountError::Close(error) => write!(f, "not closed in order: {error}"),
            MountError::Guessed(path) => write!(
                f,
                "{}: it has no signature of a format; name it (raw), or mount it read-only, because whoever \
                 writes to a raw disk chooses what it looks like the next time",
                path.display()
            ),
            MountError::NotAFile(path) => {
                write!(f, "{}: a disk is mounted over a regular file, which has to be there", path.display())
            }
            MountError::Dead(path) => write!(
                f,
                "{0}: what was mounted there has died; 'fusermount3 -u {0}' takes it away",
                path.display()
            ),
            MountError::Mount { path, error } => {
                write!(f, "{}: cannot be mounted there: {}", path.display(), why(error))
            }
            MountError::NoFuse(error) => write!(f, "FUSE is not to be had: /dev/fuse: {}", why(error)),
            MountError::Wait(error) => write!(f, "the mount cannot be waited for: {error}"),
        }
    }
}

impl std::error::Error for MountError {}

impl From<Error> for MountError {
    fn from(error: Error) -> MountError {
        MountError::Driver(error)
    }
}

/// The host's words, without the number.
fn why(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().trim().to_string()
}
