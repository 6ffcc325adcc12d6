//! What the first bytes of a file say.
//!
//! Knows: the bits of headers that the contract is about. Must never know: tables.

use quod_backend::sim::Sim;
use quod_states::{Format, probe};

/// What the first bytes of a file say that it is.
pub fn probe(sim: &Sim, path: &str) -> Format {
    probe::head(&sim.file_range(path, 0, 512)).unwrap_or(Format::Raw)
}

/// Does this first block of a file have the need-check bit (QED) or the dirty bit (qcow2) set?
pub fn is_marked(block: &[u8]) -> bool {
    match probe::head(block).unwrap_or(Format::Raw) {
        Format::Qed => block.get(16).is_some_and(|byte| byte & 2 != 0),
        Format::Qcow2 => block[7] == 3 && block.get(79).is_some_and(|byte| byte & 1 != 0),
        Format::Raw => false,
    }
}

/// Bits of this first block that a writer must clear which does not know them: the autoclear bits, but for
/// those of a raw data file and of bitmaps (`maps` tells which of those somebody may trust).
pub fn autoclear(block: &[u8]) -> u64 {
    let long = |at: usize| block.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default();
    match probe::head(block).unwrap_or(Format::Raw) {
        Format::Qed => u64::from_le_bytes(long(32)),
        Format::Qcow2 if block[7] == 3 => u64::from_be_bytes(long(88)) & !3,
        Format::Qcow2 | Format::Raw => 0,
    }
}
