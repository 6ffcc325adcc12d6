//! What commands take: numbers as C reads them, whole sectors, lengths of scatter lists.
//!
//! Knows: QEMU's limits and complaints. Must never know: which command asks.

use super::tool::{Failed, Tool};

/// Bytes of one request at most: what fits an int, whole sectors.
pub const BYTES_MAX: u64 = 2_147_483_136;

/// Refuses what is no whole sector.
pub fn sectors(tool: &mut Tool, value: u64, name: &str) -> Result<(), Failed> {
    if value.is_multiple_of(512) {
        return Ok(());
    }
    Err(tool.refuse(&format!("{value} is not a sector-aligned value for '{name}'")))
}

/// Lengths of a scatter list.
pub fn vector(tool: &mut Tool, texts: &[String]) -> Result<Vec<u64>, Failed> {
    let mut lengths = Vec::new();
    let mut total = 0;
    for text in texts {
        let length = tool.number(text)?;
        if length > BYTES_MAX {
            return Err(tool.refuse(&format!("Argument '{text}' exceeds maximum size {BYTES_MAX}")));
        }
        if total + length > BYTES_MAX {
            let text = format!("The total number of bytes exceed the maximum size {BYTES_MAX}");
            return Err(tool.refuse(&text));
        }
        total += length;
        lengths.push(length);
    }
    Ok(lengths)
}
