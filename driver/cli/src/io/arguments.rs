//! What commands take: options that those that move bytes share, whole sectors, lengths of scatter lists.
//!
//! Knows: QEMU's limits and complaints. Must never know: which command asks.

use super::tool::{Failed, Tool};

/// Bytes of one request at most: what fits an int, whole sectors.
pub const BYTES_MAX: u64 = 2_147_483_136;

/// What commands that move bytes can be asked, whichever way these go.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// `-C`
    pub condensed: bool,
    /// `-q`
    pub quiet: bool,
    /// `-b`
    pub state: bool,
    /// `-i`
    pub invalid: bool,
    /// `-P`
    pub pattern: Option<u8>,
}

impl Common {
    /// Takes an option that the command does not have for itself.
    pub fn take(&mut self, tool: &mut Tool, letter: char, value: &str) -> Result<(), Failed> {
        match letter {
            'C' => self.condensed = true,
            'q' => self.quiet = true,
            'b' => self.state = true,
            'i' => self.invalid = true,
            'P' => self.pattern = Some(tool.pattern(value)?),
            // -p is the default, and registering a buffer (-r) changes nothing that can be seen
            _ => {}
        }
        Ok(())
    }
}

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
