//! What a work begins with: the format of an image, and what it holds.
//!
//! Knows: names. Must never know: files, engines, works.

use serde::{Deserialize, Serialize};

/// Of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Format {
    /// No format.
    Raw,
    /// QED.
    Qed,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// QEMU's word.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qed => "qed",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What an image holds before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Bytes that do not compress, 256 MiB of them.
    Full,
    /// Nothing, 16 GiB.
    Empty,
    /// The same; raw files are not told to grow by a MiB at a time.
    Wide,
    /// Nothing, before a full qcow2 image.
    Overlay,
    /// The same with extended L2 entries.
    OverlayExtended,
    /// All tables of 1 TiB, and no data.
    Cold,
    /// Clusters of zlib that compress about 2:1.
    Deflate,
    /// Clusters of zstd.
    Zstd,
    /// 16 clusters of zlib.
    HotDeflate,
    /// 16 clusters of zstd.
    HotZstd,
    /// Full, the clusters scattered in the file.
    Fragmented,
    /// Nothing, as long as the trace needs.
    Guest,
}

impl Start {
    /// The first part of its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Start::Full => "full",
            Start::Empty => "empty",
            Start::Wide => "wide",
            Start::Overlay => "overlay",
            Start::OverlayExtended => "extended",
            Start::Cold => "cold",
            Start::Deflate => "zlib",
            Start::Zstd => "zstd",
            Start::HotDeflate => "zlib-small",
            Start::HotZstd => "zstd-small",
            Start::Fragmented => "fragmented",
            Start::Guest => "guest",
        }
    }

    /// Whether there are such images of a format.
    pub fn has(self, format: Format) -> bool {
        format == Format::Qcow2 || matches!(self, Start::Full | Start::Empty | Start::Wide | Start::Guest)
    }
}
