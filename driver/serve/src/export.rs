//! Exports: open disks with names.
//!
//! Knows: what a disk tells of itself, what the protocol wants to know of an export. Must never know: who
//! asks.
//! Invariants: no two exports have one name; an export's index is its own for ever.

use quod::{DiskId, DiskInfo, Driver, Format, OpenOptions};
use quod_nbd as nbd;
use std::path::{Path, PathBuf};

/// From which length on requests are efficient where the format does not say, bytes.
const PREFERRED: u32 = 64 << 10;

/// An image to be served.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) open: OpenOptions,
    pub(crate) read_only: bool,
    pub(crate) description: Option<String>,
}

impl ExportOptions {
    /// The image at this path, by this name: at most 4096 bytes; the empty one is that of the default export.
    /// Clients may write if it is opened for writing.
    pub fn new(name: impl Into<String>, path: impl AsRef<Path>, open: OpenOptions) -> ExportOptions {
        let (name, path) = (name.into(), path.as_ref().to_path_buf());
        ExportOptions { name, path, open, read_only: false, description: None }
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Clients may not write, however it is opened; default off.
    pub fn read_only(self, read_only: bool) -> ExportOptions {
        ExportOptions { read_only, ..self }
    }

    /// A text for people; default: the name of the file, and its format.
    pub fn description(self, text: impl Into<String>) -> ExportOptions {
        ExportOptions { description: Some(text.into()), ..self }
    }
}

/// An open one.
#[derive(Debug)]
pub(crate) struct Export {
    pub name: String,
    pub path: PathBuf,
    pub disk: DiskId,
    pub read_only: bool,
    description: String,
    preferred: u32,
    /// Zeroing ranges of multiples of so many bytes changes metadata alone.
    zero_unit: Option<u64>,
}

impl Export {
    pub fn new(options: &ExportOptions, writable: bool, disk: DiskId, info: &DiskInfo) -> Export {
        let image = &info.image().info;
        let file = options.path.file_name().unwrap_or_default().to_string_lossy();
        let preferred = if image.cluster_size == 0 { PREFERRED } else { image.cluster_size };
        // version 3 has a flag for it; in a raw data file the zeros themselves must be
        let flag = image.format == Format::Qcow2 && image.version >= 3 && image.data_file.is_none();
        Export {
            name: options.name.clone(),
            path: options.path.clone(),
            disk,
            read_only: options.read_only || !writable,
            description: options
                .description
                .clone()
                .unwrap_or_else(|| format!("{file} ({})", image.format.name())),
            preferred: preferred.clamp(512, nbd::MAXIMUM_PAYLOAD),
            zero_unit: flag.then_some(u64::from(image.unit.max(512))),
        }
    }

    /// Does zeroing this range take less than writing zeros, for sure?
    pub fn zeroes_fast(&self, size: u64, offset: u64, len: u64) -> bool {
        let end = offset + len;
        let whole = |at: u64, unit: u64| at.is_multiple_of(unit);
        self.zero_unit.is_some_and(|unit| whole(offset, unit) && (whole(end, unit) || end == size))
    }

    /// As the protocol wants it, with the disk's size as it is now.
    pub fn told<'a>(&'a self, driver: &Driver) -> nbd::Export<'a> {
        nbd::Export {
            name: &self.name,
            description: &self.description,
            size: driver.disk_info(self.disk).map_or(0, DiskInfo::virtual_size),
            read_only: self.read_only,
            minimum: 1,
            preferred: self.preferred,
        }
    }
}

/// All of them, with the driver that knows their sizes.
pub(crate) struct Told<'a> {
    pub exports: &'a [Export],
    pub driver: &'a Driver,
}

impl nbd::Exports for Told<'_> {
    fn count(&self) -> usize {
        self.exports.len()
    }

    fn export(&self, index: usize) -> nbd::Export<'_> {
        self.exports[index].told(self.driver)
    }
}
