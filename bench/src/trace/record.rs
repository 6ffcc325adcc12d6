//! One operation of a trace, and why a trace cannot be read.
//!
//! Knows: operations, byte ranges, times. Must never know: how a line is written, where traces come from.

use std::fmt;
use std::io;

/// What a line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Disk -> guest.
    Read,
    /// Guest -> disk.
    Write,
    /// The guest does not need the range any more.
    Trim,
    /// Make what completed before durable. `datasync` too: a disk knows no difference.
    Sync,
}

impl Op {
    /// May change bytes of its range.
    pub fn changes(self) -> bool {
        matches!(self, Op::Write | Op::Trim)
    }
}

/// One operation of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Microseconds since the trace began.
    pub at_us: u64,
    /// Which of the trace's files (in order of their first mention).
    pub file: u32,
    /// What.
    pub op: Op,
    /// First byte; 0 for [`Op::Sync`].
    pub offset: u64,
    /// Bytes; 0 for [`Op::Sync`].
    pub len: u64,
    /// Line of the trace, from 1.
    pub line: u64,
}

/// Why a trace cannot be read.
#[derive(Debug)]
pub enum TraceError {
    /// The trace's file failed.
    Io(io::Error),
    /// A line makes no sense.
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// It has nothing of the file that was chosen.
    File(String),
}

impl TraceError {
    pub(crate) fn line(line: u64, what: impl Into<String>) -> TraceError {
        TraceError::Line { line, what: what.into() }
    }
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TraceError::Io(error) => write!(f, "cannot read the trace: {error}"),
            TraceError::Line { line, what } => write!(f, "trace line {line}: {what}"),
            TraceError::File(what) => write!(f, "the trace has {what}"),
        }
    }
}

impl std::error::Error for TraceError {}

impl From<io::Error> for TraceError {
    fn from(error: io::Error) -> TraceError {
        TraceError::Io(error)
    }
}
