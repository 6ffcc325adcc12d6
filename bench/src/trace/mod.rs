//! Block traces: what a guest asked of its disk, and when.
//!
//! Knows: operations, byte ranges, times. Must never know: images, drivers, payloads.
//!
//! Invariants: traces are streamed, one line in memory at a time; a hostile trace gives an error that names
//! the line.

mod iolog;

pub use iolog::{Reader, Version, Writer};

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The trace that ships with the project: an ext4 guest runs mkfs, unpacks files, syncs small ones, copies,
/// deletes, trims, and loads a database of 8 KiB pages. 8540 operations on a disk of 1 GiB.
pub const SHIPPED: &[u8] = include_bytes!("../../traces/ext4-guest.iolog");

/// The name of [`SHIPPED`] in reports.
pub const SHIPPED_NAME: &str = "ext4-guest (shipped)";

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
pub enum Error {
    /// The trace's file failed.
    Io(io::Error),
    /// A line makes no sense.
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    pub(crate) fn line(line: u64, what: impl Into<String>) -> Error {
        Error::Line { line, what: what.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "cannot read the trace: {error}"),
            Error::Line { line, what } => write!(f, "trace line {line}: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

/// Where a trace comes from. It is read twice: once for its extent, once to play it.
#[derive(Clone, Debug)]
pub enum Source {
    /// [`SHIPPED`].
    Shipped,
    /// A file, which must be seekable or at least readable twice.
    File(PathBuf),
    /// Text in memory.
    Text(Vec<u8>),
}

impl Source {
    /// A reader at the beginning.
    pub fn open(&self) -> Result<Reader<Box<dyn BufRead + '_>>, Error> {
        let input: Box<dyn BufRead + '_> = match self {
            Source::Shipped => Box::new(SHIPPED),
            Source::File(path) => Box::new(BufReader::new(File::open(path)?)),
            Source::Text(text) => Box::new(text.as_slice()),
        };
        Reader::new(input)
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        match self {
            Source::Shipped => SHIPPED_NAME.to_owned(),
            Source::File(path) => Path::display(path).to_string(),
            Source::Text(_) => "text".to_owned(),
        }
    }
}

/// What a whole trace amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Operations.
    pub operations: u64,
    /// End of the range furthest out.
    pub max_extent: u64,
    /// When its last operation begins, microseconds.
    pub duration_us: u64,
    /// Longest read or write, bytes.
    pub max_transfer: u64,
    /// It writes, or trims.
    pub changes: bool,
}

/// Reads a trace once, refusing what a replay on one disk cannot do: several files, ranges off the 512-byte
/// grid, and transfers above `transfer_max`.
pub fn summarise(source: &Source, transfer_max: u64) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let mut reader = source.open()?;
    while let Some(record) = reader.next_record()? {
        check(&record, transfer_max)?;
        summary.operations += 1;
        summary.changes |= record.op.changes();
        // the reader promises that offset + len does not overflow
        summary.max_extent = summary.max_extent.max(record.offset + record.len);
        summary.duration_us = summary.duration_us.max(record.at_us);
        if record.op != Op::Trim {
            summary.max_transfer = summary.max_transfer.max(record.len);
        }
    }
    Ok(summary)
}

fn check(record: &Record, transfer_max: u64) -> Result<(), Error> {
    if record.file > 0 {
        return Err(Error::line(record.line, "a second file; a replay plays the trace of one disk"));
    }
    if !record.offset.is_multiple_of(512) || !record.len.is_multiple_of(512) {
        let what = format!("offset {} or length {} is not a multiple of 512", record.offset, record.len);
        return Err(Error::line(record.line, what));
    }
    if matches!(record.op, Op::Read | Op::Write) && record.len == 0 {
        return Err(Error::line(record.line, "a transfer of no bytes"));
    }
    if record.op != Op::Trim && record.len > transfer_max {
        let what = format!("a transfer of {} bytes; the limit is {transfer_max}", record.len);
        return Err(Error::line(record.line, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
