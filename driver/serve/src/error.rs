//! Why a server cannot serve.
//!
//! Knows: what was tried. Must never know: how it is told in the command's words.

use quod::Error;
use quod_door::Address;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a server cannot begin, or go on. What goes wrong with one client is that client's.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// Nobody can be listened for there.
    Listen {
        /// Where.
        address: Address,
        /// Why: [`io::ErrorKind::AddrInUse`] if another server listens there.
        error: io::Error,
    },
    /// An image cannot be opened.
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Box<Error>,
    },
    /// An image could not be closed in order: what was written since the last flush may be lost.
    Close {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Box<Error>,
    },
    /// An image that is served for writing has no signature of a format, and nobody said that it is raw. A
    /// client could make an image of another format of it.
    Guessed(PathBuf),
    /// Two exports have one name.
    SameName(String),
    /// A name that the protocol cannot carry: more than 4096 bytes, or with a NUL.
    BadName(String),
    /// The driver itself, or the loop's own wait.
    Driver(Box<Error>),
    /// The loop's own wait, or what it waits for.
    Wait(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeError::Listen { address, error } if error.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{address}: another server listens there already")
            }
            ServeError::Listen { address, error } => {
                let (text, number) = (error.to_string(), error.raw_os_error().unwrap_or_default());
                // the operating system's text alone
                let why = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
                write!(f, "cannot listen at {address}: {why}")
            }
            ServeError::Open { error, .. } => error.fmt(f),
            ServeError::Close { path, error } => {
                write!(f, "{}: not closed in order: {error}", path.display())
            }
            ServeError::Guessed(path) => write!(
                f,
                "{}: it has no signature of a format; name it (raw), or serve it read-only, because whoever \
                 writes to a raw disk chooses what it looks like the next time",
                path.display()
            ),
            ServeError::SameName(name) => write!(f, "there are two exports of the name '{name}'"),
            ServeError::BadName(name) => write!(f, "'{}' cannot be a name", name.escape_debug()),
            ServeError::Driver(error) => error.fmt(f),
            ServeError::Wait(error) => write!(f, "the server cannot wait for its clients: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

impl From<Error> for ServeError {
    fn from(error: Error) -> ServeError {
        ServeError::Driver(Box::new(error))
    }
}
