//! Why a device cannot be served.
//!
//! Knows: what was tried. Must never know: how it is told in the command's words.

use quod::Error;
use std::fmt;
use std::io;

/// Why a server cannot begin, or did not end in order. What goes wrong with one request is its guest's, and
/// what goes wrong with a front end ends its connection alone.
#[derive(Debug)]
#[non_exhaustive]
pub enum VhostError {
    /// The image cannot be opened.
    Open(Error),
    /// The image could not be closed in order: what was written since the last flush may be lost.
    Close(Error),
    /// The image is to be written, has no signature of a format, and nobody said that it is raw. A guest
    /// could make an image of another format of it.
    Guessed,
    /// The driver itself: the image is as after a power cut.
    Driver(Error),
    /// The loop's own wait, or what it waits for.
    Wait(io::Error),
}

impl fmt::Display for VhostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VhostError::Open(error) | VhostError::Driver(error) => error.fmt(f),
            VhostError::Close(error) => write!(f, "not closed in order: {error}"),
            VhostError::Guessed => f.write_str(
                "it has no signature of a format; name it (raw), or serve it read-only, because whoever \
                 writes to a raw disk chooses what it looks like the next time",
            ),
            VhostError::Wait(error) => write!(f, "the server cannot wait for its front end: {error}"),
        }
    }
}

impl std::error::Error for VhostError {}

impl From<Error> for VhostError {
    fn from(error: Error) -> VhostError {
        VhostError::Driver(error)
    }
}
