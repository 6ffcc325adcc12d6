//! What a check of an image found.

use crate::error::Error;
use alloc::vec::Vec;

/// How many problems a report describes; the rest is only counted.
pub const PROBLEMS_MAX: usize = 64;

/// What may be repaired.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Repair {
    /// Leaks. (QED repairs its entries too, as QEMU does.)
    Leaks,
    /// Everything.
    All,
}

/// The counts have qemu-img's names and meanings; they describe the image after repair.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Tables that could not be read.
    pub check_errors: u64,
    /// Entries that contradict the format.
    pub corruptions: u64,
    /// Clusters that nothing refers to.
    pub leaks: u64,
    /// Repaired entries.
    pub corruptions_fixed: u64,
    /// Those of them that led beyond the end of the file, and lead nowhere now (qcow2).
    pub dropped: u64,
    /// Clusters given back.
    pub leaks_fixed: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Those with data.
    pub allocated_clusters: u64,
    /// Those that do not follow the one before in the file.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// The first [`PROBLEMS_MAX`] problems.
    pub problems: Vec<Error>,
}

impl Report {
    /// Neither corruption nor unreadable tables.
    pub fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }

    pub(crate) fn problem(&mut self, error: Error) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(error);
        }
        debug_assert!(self.problems.len() <= PROBLEMS_MAX);
    }
}
