//! Why a replay could not be carried through.
//!
//! Knows: what traces and the driver complain of. Must never know: what came out wrong (the report
//! says so).

use crate::trace;
use std::fmt;
use std::path::PathBuf;

/// Why a replay could not be carried through. What merely came out wrong is in the report.
#[derive(Debug)]
pub enum Error {
    /// The trace.
    Trace(trace::Error),
    /// The driver.
    Driver(quod::Error),
    /// The timeline's file.
    Timeline(PathBuf, std::io::Error),
    /// The image is smaller than the trace, or the trace larger than a replay can model.
    Size(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Trace(error) => error.fmt(f),
            Error::Driver(error) => error.fmt(f),
            Error::Timeline(path, error) => {
                write!(f, "cannot write the timeline '{}': {error}", path.display())
            }
            Error::Size(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<trace::Error> for Error {
    fn from(error: trace::Error) -> Error {
        Error::Trace(error)
    }
}

impl From<quod::Error> for Error {
    fn from(error: quod::Error) -> Error {
        Error::Driver(error)
    }
}
