//! What an embedder is told of an open disk.
//!
//! Knows: what headers say, where files were opened. Must never know: layers' machines.
//! Invariant: a disk has an image.

use quod_states::{Format, Info, Report};
use std::path::PathBuf;

/// An open disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskInfo {
    layers: Vec<LayerInfo>,
}

impl DiskInfo {
    /// Of the image, then its backing files. Without an image there is no disk.
    pub(crate) fn of(layers: Vec<LayerInfo>) -> Option<DiskInfo> {
        (!layers.is_empty()).then_some(DiskInfo { layers })
    }

    /// The image, then its backing files.
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// The image.
    pub fn image(&self) -> &LayerInfo {
        &self.layers[0]
    }

    /// Format of the image.
    pub fn format(&self) -> Format {
        self.image().info.format
    }

    /// Size of the guest disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.image().info.virtual_size
    }

    /// The disk has another size now.
    pub(crate) fn resized(&mut self, size: u64) {
        self.layers[0].info.virtual_size = size;
    }
}

/// One layer of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct LayerInfo {
    /// Where it was opened.
    pub path: PathBuf,
    /// Where its external data file was opened, if it has one (qcow2).
    pub data_file: Option<PathBuf>,
    /// Its format, and what its header says.
    pub info: Info,
    /// It was dirty and is open for writing: what its check found and repaired.
    pub report: Option<Report>,
}
