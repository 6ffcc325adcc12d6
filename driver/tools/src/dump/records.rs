//! The snapshot table and the bitmap directory as text, a record each.
//!
//! Knows: fields of both. Must never know: the tables that they lead to.
//!
//! Invariants:
//! * a record that says it is longer than any may be is the last that is told: where the next one begins is
//!   not known;
//! * what a record says of its length takes memory only as far as the file has it, and as any may have.

use super::header::Facts;
use super::telling::{DumpError, Telling};
use super::text::Value;
use super::words;

use quod_states::Error;
use quod_states::qcow2::bitmap;
use quod_states::qcow2::snapshot::{self, SNAPSHOTS_MAX, Snapshot};

/// Extra data that is told at most; sound records have 1024 bytes at most.
const EXTRA_MAX: u64 = 64 << 10;
/// Name and width of each field of a record's fixed part.
type Fields = &'static [(&'static str, usize)];
const SNAPSHOT: Fields = &[
    ("l1_table_offset", 8),
    ("l1_size", 4),
    ("id_size", 2),
    ("name_size", 2),
    ("date_sec", 4),
    ("date_nsec", 4),
    ("vm_clock_nsec", 8),
    ("vm_state_size", 4),
    ("extra_data_size", 4),
];
const EXTRA: Fields = &[("vm_state_size_large", 8), ("virtual_disk_size", 8), ("icount", 8)];
const BITMAP: Fields = &[
    ("bitmap_table_offset", 8),
    ("bitmap_table_size", 4),
    ("flags", 4),
    ("type", 1),
    ("granularity_bits", 1),
    ("name_size", 2),
    ("extra_data_size", 4),
];

/// A table that a record leads to.
#[derive(Clone, Copy)]
pub(super) struct Table {
    /// Which record.
    pub(super) index: u64,
    pub(super) at: u64,
    pub(super) entries: u64,
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes.get(at..at + width).unwrap_or(&[]);
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What there is of a record: its bytes with padding, and where its extra data ends. None: the file ends, or
/// nobody can say how long it is; that is told.
fn record(
    telling: &mut Telling<'_, '_>,
    at: u64,
    what: &str,
    fixed: usize,
    lengths: impl Fn(&[u8]) -> (u64, u64),
) -> Result<Option<(Vec<u8>, usize)>, DumpError> {
    let start = if at < telling.host.len() { telling.host.read(at, fixed)? } else { Vec::new() };
    if start.len() < fixed {
        telling.text.line("")?;
        telling.text.fault(&format!("{what} lies beyond the end of the file"))?;
        return Ok(None);
    }
    let (extra, names) = lengths(&start);
    if extra > EXTRA_MAX {
        telling.text.line("")?;
        telling.text.line(&format!("{what} at {at:#x} length {fixed}"))?;
        telling.text.fault("too much extra data: where the next one begins is not known")?;
        return Ok(Some((start, fixed)));
    }
    let fixed = fixed + extra as usize;
    let len = (fixed + names as usize).next_multiple_of(8);
    let bytes = telling.host.read(at, len)?;
    telling.text.line("")?;
    telling.text.line(&format!("{what} at {at:#x} length {}", bytes.len()))?;
    if bytes.len() < fixed + names as usize {
        telling.text.fault("goes beyond the end of the file")?;
    }
    Ok(Some((bytes, fixed)))
}

/// Tells fields one behind the other, as far as there are bytes; where they end.
fn fields(
    telling: &mut Telling<'_, '_>,
    at: u64,
    bytes: &[u8],
    from: usize,
    fields: Fields,
) -> Result<usize, DumpError> {
    let mut within = from;
    for (name, width) in fields {
        let Some(value) = bytes.get(within..within + width) else { break };
        let what = match *name {
            "l1_table_offset" | "bitmap_table_offset" => String::new(),
            "flags" if value == [0, 0, 0, 1] => "in use".into(),
            "flags" if value == [0, 0, 0, 2] => "auto".into(),
            "flags" if value == [0, 0, 0, 3] => "in use, auto".into(),
            _ => number(value, 0, *width).to_string(),
        };
        telling.text.field_with(at + within as u64, name, Value::Big(value), &what, None)?;
        within += width;
    }
    Ok(within)
}

/// Tells texts of these lengths one behind the other, and what is left of the record.
fn texts(
    telling: &mut Telling<'_, '_>,
    at: u64,
    bytes: &[u8],
    mut within: usize,
    texts: &[(&str, u64)],
) -> Result<(), DumpError> {
    for (name, len) in texts {
        let end = (within + *len as usize).min(bytes.len());
        if end > within {
            telling.text.field(at + within as u64, name, Value::Text(&bytes[within..end]))?;
        }
        within = end;
    }
    Ok(telling.text.rest(at + within as u64, &bytes[within..])?)
}

/// Tells the snapshot table; the L1 tables of the snapshots.
pub(super) fn snapshots(telling: &mut Telling<'_, '_>, facts: &Facts) -> Result<Vec<Table>, DumpError> {
    let (mut at, count) = facts.snapshots;
    let begin = at;
    let mut tables = Vec::new();
    for index in 0..u64::from(count.min(SNAPSHOTS_MAX)) {
        let what = format!("snapshot {index}");
        let lengths = |start: &[u8]| (number(start, 36, 4), number(start, 12, 2) + number(start, 14, 2));
        let Some((bytes, extra_end)) = record(telling, at, &what, snapshot::FIXED, lengths)? else { break };
        match Snapshot::parse(&bytes, index, true) {
            Ok(snapshot::Parsed::Entry(snapshot, _)) => {
                let too_long = number(&bytes, 36, 4) > u64::from(snapshot::EXTRA_MAX);
                let place = snapshot.check_l1(index, facts.shape.cluster_size());
                if let Err(Error::Corrupt(fault)) = place {
                    telling.text.fault(words::of_fault(&fault))?;
                }
                if too_long {
                    telling.text.fault("too much extra data")?;
                } else if facts.shape.version >= 3 && !snapshot.is_complete() {
                    telling.text.fault("has less extra data than version 3 asks for")?;
                }
            }
            Ok(snapshot::Parsed::Needs(_)) => {}
            Err(error) => telling.text.fault(&error.to_string())?,
        }
        tables.push(Table { index, at: number(&bytes, 0, 8), entries: number(&bytes, 8, 4) });
        let within = fields(telling, at, &bytes, 0, SNAPSHOT)?;
        let within = fields(telling, at, &bytes[..extra_end.min(bytes.len())], within, EXTRA)?;
        let rest = extra_end.min(bytes.len());
        telling.text.rest(at + within as u64, &bytes[within..rest])?;
        let names = [("id", number(&bytes, 12, 2)), ("name", number(&bytes, 14, 2))];
        texts(telling, at, &bytes, rest, &names)?;
        if number(&bytes, 36, 4) > EXTRA_MAX || bytes.len() as u64 + (at - begin) > snapshot::TABLE_MAX {
            break;
        }
        at += bytes.len() as u64;
    }
    if count > SNAPSHOTS_MAX {
        telling.text.fault(&format!("of {count} snapshots none may be behind number {SNAPSHOTS_MAX}"))?;
    }
    Ok(tables)
}

/// Tells the bitmap directory; the bitmaps' tables.
pub(super) fn bitmaps(telling: &mut Telling<'_, '_>, facts: &Facts) -> Result<Vec<Table>, DumpError> {
    let Some((count, len, mut at)) = facts.bitmaps else { return Ok(Vec::new()) };
    let end = at.saturating_add(len.min(bitmap::DIRECTORY_MAX));
    let mut tables = Vec::new();
    for index in 0..u64::from(count.min(bitmap::BITMAPS_MAX)) {
        let what = format!("bitmap {index}");
        if at >= end {
            telling.text.line("")?;
            telling.text.fault(&format!("{what} lies behind the end of the directory"))?;
            break;
        }
        let lengths = |start: &[u8]| (number(start, 20, 4), number(start, 18, 2));
        let Some((bytes, extra_end)) = record(telling, at, &what, 24, lengths)? else { break };
        if let Err(error) = bitmap::parse_directory(&bytes, 1, facts.shape, facts.size) {
            telling.text.fault(words::of(&error))?;
        }
        tables.push(Table { index, at: number(&bytes, 0, 8), entries: number(&bytes, 8, 4) });
        let within = fields(telling, at, &bytes, 0, BITMAP)?;
        let rest = extra_end.min(bytes.len());
        telling.text.rest(at + within as u64, &bytes[within..rest])?;
        texts(telling, at, &bytes, rest, &[("name", number(&bytes, 18, 2))])?;
        if number(&bytes, 20, 4) > EXTRA_MAX {
            break;
        }
        at += bytes.len() as u64;
    }
    Ok(tables)
}
