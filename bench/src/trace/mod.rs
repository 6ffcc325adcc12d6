//! Block traces: what a guest asked of its disk, and when.
//!
//! Knows: operations, byte ranges, times. Must never know: images, drivers, payloads.
//!
//! Invariants: traces are streamed, one line in memory at a time; a hostile trace gives an error that names
//! the line.

mod iolog;
mod record;
mod source;

pub use iolog::{Extras, Reader, Version, Waits, Writer};
pub use record::{Op, Record, TraceError};
pub use source::{SHIPPED, SHIPPED_NAME, Source};

/// Which part of a trace is played, and how it is read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// The file whose operations are played; None: the first that has one.
    pub file: Option<String>,
    /// What `wait` means.
    pub waits: Waits,
}

/// What the operations of one file of a trace amount to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Operations.
    pub operations: u64,
    /// End of the range furthest out.
    pub max_extent: u64,
    /// When its last operation begins, microseconds.
    pub duration_us: u64,
    /// Longest read or write, bytes.
    pub max_transfer: u64,
    /// The file: [`Record::file`].
    pub file: u32,
    /// Its name.
    pub file_name: String,
    /// Other files, and how many operations of them are left out.
    pub others: Vec<(String, u64)>,
    /// What there was besides operations.
    pub extras: Extras,
    /// How it was read.
    pub waits: Waits,
    /// It writes, or trims.
    pub changes: bool,
}

/// Other files that are told by name.
const OTHERS_MAX: usize = 4;

impl Summary {
    /// What somebody who knows the trace should know about how it is played.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let Extras { logs, waits, ranges } = self.extras;
        if !self.others.is_empty() {
            notes.push(format!("file {}; left out: {}", self.file_name, list(&self.others)));
        }
        if logs > 1 {
            notes.push(format!("{logs} logs, one behind the other"));
        }
        if ranges > 0 {
            notes.push(format!("skipped: {ranges} sync_file_range, which no disk is asked for"));
        }
        match self.waits {
            _ if waits == 0 => {}
            Waits::Micros => notes.push("`wait` in microseconds since the one before".into()),
            Waits::Millis => notes.push("`wait` as a moment, in milliseconds since the start".into()),
        }
        notes
    }
}

fn list(files: &[(String, u64)]) -> String {
    let some = files.iter().take(OTHERS_MAX).map(|(name, count)| match count {
        1 => format!("{name} (1 operation)"),
        _ => format!("{name} ({count} operations)"),
    });
    let mut text = some.collect::<Vec<String>>().join(", ");
    if files.len() > OTHERS_MAX {
        text += &format!(" and {} more", files.len() - OTHERS_MAX);
    }
    text
}

/// Reads a trace once, refusing what a replay on one disk cannot do: ranges off the 512-byte grid, and
/// transfers above `transfer_max`.
pub fn summarise(source: &Source, choice: &Choice, transfer_max: u64) -> Result<Summary, TraceError> {
    let mut summary = Summary { waits: choice.waits, ..Summary::default() };
    let mut reader = source.open(choice.waits)?;
    // operations of each file
    let mut counts: Vec<u64> = Vec::new();
    let mut chosen = None;
    while let Some(record) = reader.next_record()? {
        let file = record.file as usize;
        if counts.len() <= file {
            counts.resize(file + 1, 0);
        }
        counts[file] += 1;
        if chosen.is_none() && choice.file.as_ref().is_none_or(|name| reader.file_name(record.file) == *name)
        {
            chosen = Some(record.file);
        }
        if chosen != Some(record.file) {
            continue;
        }
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
    summary.extras = reader.extras();
    summary.file = chosen.unwrap_or(0);
    summary.file_name = reader.file_name(summary.file);
    let others = (0u32..).zip(counts).filter(|(file, count)| Some(*file) != chosen && *count > 0);
    summary.others = others.map(|(file, count)| (reader.file_name(file), count)).collect();
    match (&choice.file, chosen) {
        (Some(name), None) if summary.others.is_empty() => {
            Err(TraceError::File(format!("no operation at all, so none of the file '{name}'")))
        }
        (Some(name), None) => Err(TraceError::File(format!(
            "no operation of the file '{name}'; there are: {}",
            list(&summary.others)
        ))),
        _ => Ok(summary),
    }
}

/// Can a replay do this?
pub(crate) fn check(record: &Record, transfer_max: u64) -> Result<(), TraceError> {
    if !record.offset.is_multiple_of(512) || !record.len.is_multiple_of(512) {
        let what = format!("offset {} or length {} is not a multiple of 512", record.offset, record.len);
        return Err(TraceError::line(record.line, what));
    }
    if matches!(record.op, Op::Read | Op::Write) && record.len == 0 {
        return Err(TraceError::line(record.line, "a transfer of no bytes"));
    }
    if record.op != Op::Trim && record.len > transfer_max {
        let what = format!("a transfer of {} bytes; the limit is {transfer_max}", record.len);
        return Err(TraceError::line(record.line, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
