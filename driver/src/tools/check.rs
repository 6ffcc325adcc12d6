//! Checks an image, and repairs it if asked.

use crate::error::Error;
use quod_states::Format;
use std::path::Path;

/// What to repair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Repair {
    /// Leaked clusters only.
    Leaks,
    /// Everything that can be.
    All,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong, and where.
    pub what: String,
    /// It was repaired.
    pub repaired: bool,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Errors that endanger data.
    pub corruptions: u64,
    /// Clusters that nothing uses.
    pub leaks: u64,
    /// The check itself could not finish (read errors).
    pub check_errors: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Clusters in use.
    pub allocated_clusters: u64,
    /// Clusters of the guest disk.
    pub total_clusters: u64,
    /// Clusters that are not behind their predecessor in the file.
    pub fragmented_clusters: u64,
    /// End of the last used cluster, bytes.
    pub image_end_offset: u64,
    /// The first findings, in words; bounded.
    pub problems: Vec<Problem>,
}

/// Checks an image.
pub fn check(
    path: impl AsRef<Path>,
    format: Option<Format>,
    repair: Option<Repair>,
) -> Result<CheckReport, Error> {
    let _ = (path.as_ref(), format, repair);
    Err(Error::Busy)
}
