//! A QED image as text: header, backing file's name, L1 table, L2 tables.
//!
//! Knows: the format's fields and entries. Must never know: what a repair does.

use super::telling::{DumpError, Telling};
use super::text::{About, Damage, Runs, Value};
use super::words;

use quod_states::qed::Header;
use quod_states::{Error, Fault};

/// Name, offset and width of each field.
const FIELDS: [(&str, usize, usize); 11] = [
    ("magic", 0, 4),
    ("cluster_size", 4, 4),
    ("table_size", 8, 4),
    ("header_size", 12, 4),
    ("features", 16, 8),
    ("compat_features", 24, 8),
    ("autoclear_features", 32, 8),
    ("l1_table_offset", 40, 8),
    ("image_size", 48, 8),
    ("backing_filename_offset", 56, 4),
    ("backing_filename_size", 60, 4),
];
/// Bytes of the header's first block.
const BLOCK: usize = 4096;
/// Bytes that are told of it at most, with the backing file's name.
const HEADER_MAX: usize = 64 << 10;
const FEATURES: [&str; 3] = ["backing file", "need check", "backing file is raw"];
const BEYOND: &str = "leads beyond the end of the file";

/// What entries are judged by.
struct Shape {
    cluster: u64,
    table: u64,
    /// Bytes of the header.
    header: u64,
    l1: u64,
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes.get(at..at + width).unwrap_or(&[]);
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn entries_of(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

/// Tells the whole image.
pub(super) fn tell(telling: &mut Telling<'_, '_>) -> Result<(), DumpError> {
    let Some(shape) = header(telling)? else { return Ok(()) };
    let entries = table(telling, &shape, "l1", shape.l1, None)?;
    let mut index = 0;
    telling.pieces(shape.l1, entries * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            let leads = entry >= shape.header && entry.is_multiple_of(shape.cluster);
            if leads && entry < telling.host.len() && telling.is_new(entry) {
                let guest = (index * shape.cluster).saturating_mul(shape.table / 8);
                table(telling, &shape, &format!("l2 {index}"), entry, Some(guest))?;
            }
            index += 1;
        }
        Ok(())
    })
}

/// Tells a table; how many of its entries are there.
fn table(
    telling: &mut Telling<'_, '_>,
    shape: &Shape,
    what: &str,
    at: u64,
    guest: Option<u64>,
) -> Result<u64, DumpError> {
    let there = (telling.host.len().saturating_sub(at) / 8).min(shape.table / 8);
    telling.text.line("")?;
    telling.text.line(&format!("{what} at {at:#x} entries {there}"))?;
    if let Some(guest) = guest {
        telling.text.remark(&format!("guest offset {guest:#x}"))?;
    }
    telling.entries_there(at, shape.table / 8, 8)?;
    let name = if guest.is_some() { "data" } else { "table" };
    let mut runs = Runs::of_entries(shape.cluster);
    let mut index = 0;
    telling.pieces(at, there * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            let wrong = match entry {
                0 => None,
                1 if guest.is_some() => None,
                _ if !entry.is_multiple_of(shape.cluster) => Some("is not aligned to a cluster"),
                _ if entry < shape.header => Some("points into the header"),
                _ if entry >= telling.host.len() => Some(BEYOND),
                _ if entry.checked_sub(shape.l1).is_some_and(|within| within < shape.table) => {
                    Some("overlaps the L1 table")
                }
                _ if guest.is_none() && entry + shape.table > telling.host.len() => {
                    Some("the L2 table lies beyond the end of the file")
                }
                _ if guest.is_some() && telling.known.contains(&entry) => Some("overlaps an L2 table"),
                _ => None,
            };
            let what = match entry {
                0 => "",
                1 if guest.is_some() => "zeros",
                _ => name,
            };
            let about = About { what, damage: wrong.map(Damage::Says) };
            runs.push(telling.text, index, entry, None, about)?;
            index += 1;
        }
        Ok(())
    })?;
    runs.end(telling.text)?;
    Ok(there)
}

/// Tells the header. None: the tables cannot be found.
fn header(telling: &mut Telling<'_, '_>) -> Result<Option<Shape>, DumpError> {
    let mut block = telling.host.read(0, BLOCK)?;
    let (from, len) = (number(&block, 56, 4) as usize, number(&block, 60, 4) as usize);
    if (BLOCK..=HEADER_MAX).contains(&(from + len)) && number(&block, 16, 8) & 1 != 0 {
        block = telling.host.read(0, from + len)?;
    }
    telling.text.line("")?;
    telling.text.line(&format!("header at 0x0 length {}", block.len()))?;
    let mut whole = block.clone();
    whole.resize(BLOCK.max(block.len()), 0);
    let fault = match Header::parse(&whole, telling.host.len()) {
        Ok(_) => None,
        Err(Error::Corrupt(fault @ Fault::QedHeader { .. })) => Some(fault),
        Err(error) => {
            telling.text.fault(&error.to_string())?;
            None
        }
    };
    for (name, at, width) in FIELDS {
        let Some(bytes) = block.get(at..at + width) else { break };
        let value = number(&block, at, width);
        let set = |(bit, name): (usize, &&'static str)| (value >> bit & 1 != 0).then_some(*name);
        let what = match name {
            "magic" | "l1_table_offset" => String::new(),
            "features" => FEATURES.iter().enumerate().filter_map(set).collect::<Vec<_>>().join(", "),
            _ => value.to_string(),
        };
        let told = fault.as_ref().filter(|fault| words::field(fault) == Some(name));
        let wrong = told.map(words::of_fault);
        telling.text.field_with(at as u64, name, Value::Little(bytes), &what, wrong)?;
    }
    let fields = 64.min(block.len());
    let name = from..from + len;
    match number(&block, 16, 8) & 1 != 0 && from >= fields && !name.is_empty() && name.end <= block.len() {
        true => {
            telling.text.rest(fields as u64, &block[fields..from])?;
            telling.text.field(from as u64, "backing_filename", Value::Text(&block[name.clone()]))?;
            telling.text.rest(name.end as u64, &block[name.end..])?;
        }
        false => telling.text.rest(fields as u64, &block[fields..])?,
    }
    let (cluster, table) = (number(&block, 4, 4), number(&block, 8, 4));
    let sound = cluster.is_power_of_two() && (1 << 12..=1 << 26).contains(&cluster);
    if !(sound && table.is_power_of_two() && (1..=16).contains(&table)) {
        telling.text.fault("how large a table is is not known: none is told")?;
        return Ok(None);
    }
    let header = number(&block, 12, 4) * cluster;
    Ok(Some(Shape { cluster, table: table * cluster, header: header.max(1), l1: number(&block, 40, 8) }))
}
