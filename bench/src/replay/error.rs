//! Why a replay could not be carried through.
//!
//! Knows: what traces and the driver complain of. Must never know: what came out wrong (the report
//! says so).

use crate::trace;
use std::fmt;
use std::path::PathBuf;

/// Why a replay could not be carried through. What merely came out wrong is in the report.
#[derive(Debug)]
pub enum ReplayError {
    /// The trace.
    Trace(trace::TraceError),
    /// The driver.
    Driver(quod::Error),
    /// The timeline's file.
    Timeline(PathBuf, std::io::Error),
    /// The image is smaller than the trace, or the trace larger than a replay can model.
    Size(String),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Trace(error) => error.fmt(f),
            ReplayError::Driver(error) => error.fmt(f),
            ReplayError::Timeline(path, error) => {
                write!(f, "cannot write the timeline '{}': {error}", path.display())
            }
            ReplayError::Size(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ReplayError {}

impl From<trace::TraceError> for ReplayError {
    fn from(error: trace::TraceError) -> ReplayError {
        ReplayError::Trace(error)
    }
}

impl From<quod::Error> for ReplayError {
    fn from(error: quod::Error) -> ReplayError {
        ReplayError::Driver(error)
    }
}
