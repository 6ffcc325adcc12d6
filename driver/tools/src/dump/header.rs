//! The header of a qcow2 image as text, whatever it says: fields, extensions, the backing file's name, and
//! all other bytes of its cluster. What of it the tables' telling needs.
//!
//! Knows: where fields stand. Must never know: tables.
//!
//! Invariants:
//! * each byte of the header's cluster is told once;
//! * a header that `Header::parse` refuses is told as far as it makes sense.

use super::telling::{DumpError, Telling};
use super::text::Value;
use super::words;

use quod_states::qcow2::header::{Extension, incompatible};
use quod_states::qcow2::refcount::BlockShape;
use quod_states::qcow2::{Header, Purpose, Shape};
use quod_states::{Error, Fault};

/// Name, offset and width of each field, as QEMU's specification calls them. Version 2 has the first of them.
const FIELDS: [(&str, usize, usize); 19] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
];
const FIELDS_V2: usize = 13;
/// Bytes of a header of version 2, and of one of version 3 at least.
const LENGTH_V2: usize = 72;
const LENGTH_V3: usize = 104;
/// Bytes of a record of the table of feature names.
const FEATURE: usize = 48;
/// Clusters that the walk keeps to.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// What the header says, be it sound or not.
pub(super) struct Facts {
    pub(super) shape: Shape,
    pub(super) counts: BlockShape,
    pub(super) size: u64,
    pub(super) l1: (u64, u64),
    /// Offset and bytes.
    pub(super) reftable: (u64, u64),
    pub(super) snapshots: (u64, u32),
    /// Count, bytes and offset of the bitmap directory.
    pub(super) bitmaps: Option<(u32, u64, u64)>,
    /// The data file alone is the disk.
    pub(super) raw_data: bool,
    pub(super) lazy: bool,
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes.get(at..at + width).unwrap_or(&[]);
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Tells the header. None: the tables cannot be found.
pub(super) fn tell(telling: &mut Telling<'_, '_>) -> Result<Option<Facts>, DumpError> {
    let head = telling.host.head(512)?;
    let cluster_bits = number(&head, 20, 4) as u32;
    let known_bits = CLUSTER_BITS.contains(&cluster_bits);
    let cluster = if known_bits { 1 << cluster_bits } else { 512 };
    let block = telling.host.read(0, cluster)?;
    telling.text.line("")?;
    telling.text.line(&format!("header at 0x0 length {}", block.len()))?;
    let mut whole = block.clone();
    whole.resize(Header::region(&head).max(cluster), 0);
    let fault = match Header::parse(&whole, Purpose::Look).map(drop) {
        Ok(()) => None,
        Err(Error::Corrupt(fault)) if words::field(&fault).is_some() => Some(fault),
        Err(error) => {
            telling.text.fault(&error.to_string())?;
            None
        }
    };
    let version = number(&block, 4, 4) as u32;
    let mut at = tell_fields(telling, &block, version, fault.as_ref())?;
    let name = (number(&block, 8, 8), number(&block, 16, 4));
    let limit = match usize::try_from(name.0) {
        Ok(offset) if offset > at => offset.min(block.len()),
        _ => block.len(),
    };
    let bitmaps = tell_extensions(telling, &block, &mut at, limit)?;
    tell_name(telling, &block, at, name)?;
    if !known_bits {
        telling.text.fault("how large a cluster is is not known: no table is told")?;
        return Ok(None);
    }
    let bits = |at| if version >= 3 { number(&block, at, 8) } else { 0 };
    let order = if version >= 3 { number(&block, 96, 4) as u32 } else { 4 };
    let shape = Shape {
        version,
        cluster_bits,
        extended: bits(72) & incompatible::EXTENDED_L2 != 0 && cluster_bits >= 14,
        data_file: bits(72) & incompatible::DATA_FILE != 0,
    };
    if order > 6 {
        telling.text.fault("how wide a refcount is is not known: as 16 bits they are told")?;
    }
    Ok(Some(Facts {
        shape,
        counts: BlockShape { cluster_bits, order: if order > 6 { 4 } else { order } },
        size: number(&block, 24, 8),
        l1: (number(&block, 40, 8), number(&block, 36, 4)),
        reftable: (number(&block, 48, 8), number(&block, 56, 4) << cluster_bits),
        snapshots: (number(&block, 64, 8), number(&block, 60, 4) as u32),
        bitmaps,
        raw_data: bits(88) & quod_states::qcow2::header::RAW_DATA_FILE != 0,
        lazy: bits(80) & quod_states::qcow2::header::LAZY_REFCOUNTS != 0
            && bits(72) & incompatible::DIRTY != 0,
    }))
}

/// The fields, and what belongs to the header behind them; where they end.
fn tell_fields(
    telling: &mut Telling<'_, '_>,
    block: &[u8],
    version: u32,
    fault: Option<&Fault>,
) -> Result<usize, DumpError> {
    let length = match version {
        3.. => (number(block, 100, 4) as usize).clamp(LENGTH_V3, block.len().max(LENGTH_V3)),
        _ => LENGTH_V2,
    };
    let mut told = 0;
    for (n, (name, at, width)) in FIELDS.into_iter().enumerate() {
        let Some(bytes) = block.get(at..at + width) else { break };
        if version < 3 && n >= FIELDS_V2 || at + width > length {
            break;
        }
        let wrong = fault.filter(|fault| words::field(fault) == Some(name)).map(words::of_fault);
        telling.text.field_with(
            at as u64,
            name,
            Value::Big(bytes),
            &about(name, number(block, at, width)),
            wrong,
        )?;
        told = at + width;
    }
    let end = length.min(block.len());
    if told < end {
        telling.text.rest(told as u64, &block[told..end])?;
    }
    Ok(end.max(told))
}

/// What a field's value means.
fn about(name: &str, value: u64) -> String {
    let bits = |names: &[&str]| {
        let set = names.iter().enumerate().filter(|(bit, _)| value >> bit & 1 != 0);
        set.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    };
    match name {
        "magic" => String::new(),
        "cluster_bits" if value < 64 => format!("{} bytes", 1u64 << value),
        "refcount_order" if value < 7 => format!("{} bits", 1 << value),
        "incompatible_features" => {
            bits(&["dirty", "corrupt", "external data file", "compression type", "extended L2 entries"])
        }
        "compatible_features" => bits(&["lazy refcounts"]),
        "autoclear_features" => bits(&["bitmaps", "raw external data"]),
        "compression_type" => {
            ["zlib", "zstd"].get(value as usize).map_or(String::new(), |name| name.to_string())
        }
        "crypt_method" => {
            ["", "AES", "LUKS"].get(value as usize).map_or(String::new(), |name| name.to_string())
        }
        _ if name.ends_with("offset") => String::new(),
        _ => value.to_string(),
    }
}

/// The extensions from `at` on, which is behind them then. What the one of bitmaps says.
fn tell_extensions(
    telling: &mut Telling<'_, '_>,
    block: &[u8],
    at: &mut usize,
    limit: usize,
) -> Result<Option<(u32, u64, u64)>, DumpError> {
    let mut bitmaps = None;
    while *at + 8 <= limit {
        let (kind, len) = (number(block, *at, 4) as u32, number(block, *at + 4, 4) as usize);
        let what = match kind {
            Extension::END => "the end of extensions",
            Extension::BACKING_FORMAT => "format of the backing file",
            Extension::FEATURE_NAMES => "names of features",
            Extension::BITMAPS => "bitmaps",
            Extension::ENCRYPTION => "encryption",
            Extension::DATA_FILE => "name of the data file",
            _ => "unknown",
        };
        let data = *at + 8;
        let beyond = len > limit - data && kind != Extension::END;
        telling.text.field_with(*at as u64, "extension", Value::Big(&block[*at..*at + 4]), what, None)?;
        let wrong = beyond.then_some("goes beyond the space for extensions");
        let length = Value::Big(&block[*at + 4..data]);
        telling.text.field_with((*at + 4) as u64, "extension_length", length, &format!("{len}"), wrong)?;
        *at = data;
        if beyond || kind == Extension::END {
            break;
        }
        let bytes = &block[data..data + len];
        if kind == Extension::BITMAPS && len == 24 {
            bitmaps = Some((number(bytes, 0, 4) as u32, number(bytes, 8, 8), number(bytes, 16, 8)));
        }
        tell_extension(telling, data as u64, kind, bytes)?;
        let end = (data + len.next_multiple_of(8)).min(limit);
        telling.text.rest((data + len) as u64, &block[data + len..end])?;
        *at = end;
    }
    Ok(bitmaps)
}

fn tell_extension(telling: &mut Telling<'_, '_>, at: u64, kind: u32, bytes: &[u8]) -> Result<(), DumpError> {
    let text = &mut telling.text;
    match kind {
        Extension::BACKING_FORMAT | Extension::DATA_FILE if !bytes.is_empty() => {
            text.field(at, "name", Value::Text(bytes))?;
        }
        Extension::BITMAPS if bytes.len() == 24 => {
            let count = number(bytes, 0, 4).to_string();
            text.field_with(at, "nb_bitmaps", Value::Big(&bytes[..4]), &count, None)?;
            text.field(at + 4, "reserved", Value::Big(&bytes[4..8]))?;
            text.field(at + 8, "bitmap_directory_size", Value::Big(&bytes[8..16]))?;
            text.field(at + 16, "bitmap_directory_offset", Value::Big(&bytes[16..]))?;
        }
        Extension::ENCRYPTION if bytes.len() == 16 => {
            text.field(at, "luks_offset", Value::Big(&bytes[..8]))?;
            text.field(at + 8, "luks_length", Value::Big(&bytes[8..]))?;
        }
        Extension::FEATURE_NAMES => {
            for (n, record) in bytes.chunks(FEATURE).enumerate() {
                let name = record.get(2..).unwrap_or(&[]);
                let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or(name));
                let set = match record.first() {
                    Some(0) => "incompatible",
                    Some(1) => "compatible",
                    Some(2) => "autoclear",
                    _ => "unknown",
                };
                let bit = record.get(1).copied().unwrap_or(0);
                let what = format!("{set} bit {bit}: {}", name.escape_debug());
                text.field_with(at + (n * FEATURE) as u64, "feature", Value::Bytes(record), &what, None)?;
            }
        }
        _ => text.rest(at, bytes)?,
    }
    Ok(())
}

/// The backing file's name, and all that is told nowhere else.
fn tell_name(
    telling: &mut Telling<'_, '_>,
    block: &[u8],
    at: usize,
    name: (u64, u64),
) -> Result<(), DumpError> {
    let range = usize::try_from(name.0).ok().zip(usize::try_from(name.1).ok());
    let range = range.and_then(|(from, len)| Some(from..from.checked_add(len)?));
    match range.filter(|range| range.start >= at && range.start > 0 && range.end <= block.len()) {
        Some(range) if !range.is_empty() => {
            telling.text.rest(at as u64, &block[at..range.start])?;
            telling.text.field(name.0, "backing_file", Value::Text(&block[range.clone()]))?;
            telling.text.rest(range.end as u64, &block[range.end..])?;
        }
        _ => telling.text.rest(at as u64, block.get(at..).unwrap_or(&[]))?,
    }
    Ok(())
}
