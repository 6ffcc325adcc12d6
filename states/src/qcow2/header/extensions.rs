//! The header extensions: a list of typed byte strings between the header's fields and the backing file's
//! name.
//!
//! Knows: their layout, and the feature name table. Must never know: what unknown extensions mean; they are
//! kept.
//!
//! Invariants:
//! * an extension takes memory for bytes that were really read.

use super::super::be;
use crate::error::Error;
use crate::fault::{ExtensionFault, Fault, Lack};
use alloc::string::String;
use alloc::vec::Vec;

/// One header extension.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its data without padding.
    pub data: Vec<u8>,
}

impl Extension {
    /// Ends the list.
    pub const END: u32 = 0;
    /// The backing file's format.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Names of feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// Where the persistent bitmaps lie.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Where the LUKS header lies.
    pub const ENCRYPTION: u32 = 0x0537_be77;
    /// The data file's name.
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// Bytes of a record of the feature name table: set, bit, name.
const RECORD: usize = 48;

/// The table that QEMU writes.
const FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// The extensions from `start` on. They must end before `end`.
pub(super) fn parse(bytes: &[u8], start: usize, end: usize) -> Result<Vec<Extension>, Error> {
    let mut extensions = Vec::new();
    let mut at = start;
    while at < end {
        let (kind, len) = (be::u32_at(bytes, at), be::u32_at(bytes, at + 4));
        at += 8;
        if at > end || len as usize > end - at {
            let fault = Fault::Extension { value: len.into(), why: ExtensionFault::TooLong };
            return Err(Error::Corrupt(fault));
        }
        if kind == Extension::END {
            break;
        }
        let Some(data) = bytes.get(at..at + len as usize) else {
            return Err(Error::Misuse("too few bytes of the header were read"));
        };
        extensions.push(Extension { kind, data: data.to_vec() });
        at += (len as usize).next_multiple_of(8);
    }
    let kept = || extensions.iter().map(|extension| extension.data.len()).sum::<usize>();
    debug_assert!(kept() <= bytes.len(), "they take memory for bytes that were read");
    Ok(extensions)
}

/// Where the extensions that `parse` accepted end.
pub(super) fn end(bytes: &[u8], start: usize, end: usize) -> usize {
    let mut at = start;
    while at < end {
        let (kind, len) = (be::u32_at(bytes, at), be::u32_at(bytes, at + 4) as usize);
        at += 8;
        if kind == Extension::END {
            break;
        }
        at = at.saturating_add(len).checked_next_multiple_of(8).unwrap_or(end);
    }
    at.min(end)
}

/// Unknown incompatible bits, by the names that the image gives to them.
pub(super) fn name_features(extensions: &[Extension], unknown: u64) -> Lack {
    let (mut left, mut named) = (unknown, Vec::new());
    let table = extensions.iter().rfind(|extension| extension.kind == Extension::FEATURE_NAMES);
    // the last one may be cut off, as QEMU takes it: zeros follow
    for record in table.map_or(&[][..], |table| &table.data).chunks(RECORD) {
        let [set, bit, name @ ..] = record else { break };
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        if len == 0 {
            break;
        }
        let mask = 1u64.checked_shl((*bit).into()).unwrap_or(0);
        if *set == 0 && left & mask != 0 {
            named.push(String::from_utf8_lossy(name.get(..len).unwrap_or(name)).into_owned());
            left &= !mask;
        }
    }
    debug_assert!(left & !unknown == 0 && named.len() <= 64, "each bit is told once");
    Lack::Features { named, unknown: left }
}

/// The feature name table that QEMU writes.
pub(super) fn feature_names() -> Extension {
    let mut data = Vec::with_capacity(FEATURES.len() * RECORD);
    for (set, bit, name) in FEATURES {
        data.extend([set, bit]);
        debug_assert!(name.len() <= RECORD - 2 && bit < 64, "a record names one bit");
        data.extend(name.bytes());
        data.resize(data.len().next_multiple_of(RECORD), 0);
    }
    Extension { kind: Extension::FEATURE_NAMES, data }
}

/// Appends an extension with its padding. Where the first one begins is the header's length, which may be
/// any.
pub(super) fn push(block: &mut Vec<u8>, kind: u32, data: &[u8]) {
    let start = block.len();
    block.extend(kind.to_be_bytes());
    block.extend((data.len() as u32).to_be_bytes());
    block.extend(data);
    block.resize(block.len() + data.len().next_multiple_of(8) - data.len(), 0);
    debug_assert!((block.len() - start).is_multiple_of(8), "each takes whole words");
}
