//! What judging a disk comes to: blocks that hold what they must not, counted and told; or a property that
//! does not hold, in words.
//!
//! Knows: what a block may hold, what it holds. Must never know: how either was found out.

use super::payload::{self, BLOCK, Found};
use std::fmt;

/// Mismatches that are kept in full; further ones are only counted.
pub const MISMATCHES_MAX: usize = 16;

/// A property does not hold: what, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The outcome of a check.
pub type Checked<T = ()> = Result<T, Failure>;

/// A failed check.
pub fn fail<T>(what: impl Into<String>) -> Checked<T> {
    Err(Failure(what.into()))
}

/// What a block may hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// Anything: it was never written by us.
    pub unknown: bool,
    /// Zeros.
    pub zeros: bool,
    /// One of these versions.
    pub versions: Vec<u32>,
}

/// A block that holds what it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Guest offset of the block.
    pub offset: u64,
    /// What it may hold.
    pub expected: Expected,
    /// What it holds.
    pub found: Found,
}

/// What verification found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Blocks compared.
    pub verified: u64,
    /// Blocks of unknown content, passed over.
    pub unknown: u64,
    /// Blocks that were wrong.
    pub wrong: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
}

impl Verdict {
    /// Counts another verdict in.
    pub fn add(&mut self, other: Verdict) {
        self.verified += other.verified;
        self.unknown += other.unknown;
        self.wrong += other.wrong;
        let room = MISMATCHES_MAX.saturating_sub(self.mismatches.len());
        self.mismatches.extend(other.mismatches.into_iter().take(room));
    }

    pub(super) fn wrong(&mut self, block: u64, expected: Expected, bytes: &[u8; BLOCK]) {
        self.wrong += 1;
        if self.mismatches.len() < MISMATCHES_MAX {
            let found = payload::decode(bytes);
            self.mismatches.push(Mismatch { offset: block * BLOCK as u64, expected, found });
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unknown {
            return f.write_str("anything");
        }
        let mut glue = "";
        if self.zeros {
            f.write_str("zeros")?;
            glue = " or ";
        }
        for version in &self.versions {
            write!(f, "{glue}version {version}")?;
            glue = " or ";
        }
        Ok(())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, block) = (self.offset, self.offset / BLOCK as u64);
        write!(f, "offset {offset:#x} (block {block}): expected {}, found {}", self.expected, self.found)
    }
}
