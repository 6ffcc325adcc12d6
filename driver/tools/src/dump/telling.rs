//! An image on its way to a text: its file in pieces, and which tables are known.
//!
//! Knows: ranges of the file. Must never know: formats.

use super::text::Text;
use crate::host::Host;
use quod::Error;
use std::collections::HashSet;
use std::io;

/// Offsets that are kept in a set at most. What is not in it is told twice, or not compared.
pub(super) const KNOWN_MAX: usize = 1 << 20;
/// Bytes of a table that are read at once.
const PIECE: u64 = 64 << 10;

/// Why an image could not be told.
#[derive(Debug)]
pub enum DumpError {
    /// It is raw: there is no metadata.
    Raw,
    /// It could not be opened or read.
    Image(Error),
    /// The text could not be written.
    Text(io::Error),
}

impl From<Error> for DumpError {
    fn from(error: Error) -> DumpError {
        DumpError::Image(error)
    }
}

impl From<io::Error> for DumpError {
    fn from(error: io::Error) -> DumpError {
        DumpError::Text(error)
    }
}

/// An image that is told.
pub(super) struct Telling<'a, 'b> {
    pub(super) host: Host,
    pub(super) text: &'a mut Text<'b>,
    /// Tables that have been told.
    pub(super) known: HashSet<u64>,
}

impl Telling<'_, '_> {
    /// Calls with each piece of a range of the file, as far as the file goes: its offset and its bytes. A
    /// multiple of 16 bytes but for the last.
    pub(super) fn pieces(
        &mut self,
        at: u64,
        len: u64,
        mut each: impl FnMut(&mut Self, u64, &[u8]) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        let end = at.saturating_add(len).min(self.host.len());
        let mut at = at;
        while at < end {
            self.host.go_on()?;
            let piece = self.host.read(at, PIECE.min(end - at) as usize)?;
            if piece.is_empty() {
                // the file has become shorter
                return Ok(());
            }
            each(self, at, &piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// How many whole entries of this many bytes a table has in the file, of those that it should have. Says
    /// so if that is not all.
    pub(super) fn entries_there(&mut self, at: u64, entries: u64, bytes: u64) -> Result<u64, DumpError> {
        let there = self.host.len().saturating_sub(at) / bytes;
        if there < entries {
            self.text.fault(&format!("of {entries} entries {there} are in the file"))?;
        }
        Ok(there.min(entries))
    }

    /// This table was not told yet, as far as is known.
    pub(super) fn is_new(&mut self, table: u64) -> bool {
        if self.known.len() < KNOWN_MAX { self.known.insert(table) } else { !self.known.contains(&table) }
    }
}

impl std::fmt::Display for DumpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DumpError::Raw => f.write_str("a raw image has no metadata"),
            DumpError::Image(error) => write!(f, "{error}"),
            DumpError::Text(error) => write!(f, "the text could not be written: {error}"),
        }
    }
}

impl std::error::Error for DumpError {}
