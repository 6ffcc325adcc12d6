//! What grows, and how far.
//!
//! Knows: the points. Must never know: files, the driver.

use serde::{Deserialize, Serialize};

/// What grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Axis {
    /// Bytes of the guest's disk.
    Size,
    /// Requests in flight.
    Depth,
    /// Disks of one driver.
    Disks,
    /// Images of a chain.
    Chain,
}

/// An image's format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Format {
    Raw,
    Qed,
    Qcow2,
}

impl Format {
    pub const ALL: [Format; 3] = [Format::Raw, Format::Qed, Format::Qcow2];

    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qed => "qed",
            Format::Qcow2 => "qcow2",
        }
    }

    pub fn of_quod(self) -> quod::Format {
        match self {
            Format::Raw => quod::Format::Raw,
            Format::Qed => quod::Format::Qed,
            Format::Qcow2 => quod::Format::Qcow2,
        }
    }
}

/// What one process measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    pub axis: Axis,
    /// How far.
    pub at: u64,
    pub format: Format,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub iops: f64,
    /// Processor time of a read, microseconds.
    pub cpu_us: f64,
    /// Memory that opening a disk took, and that it has when all was read; KiB.
    pub open_kib: f64,
    pub read_kib: f64,
}

const GIB: u64 = 1 << 30;

impl Axis {
    pub const ALL: [Axis; 4] = [Axis::Size, Axis::Depth, Axis::Disks, Axis::Chain];

    pub fn name(self) -> &'static str {
        match self {
            Axis::Size => "size",
            Axis::Depth => "depth",
            Axis::Disks => "disks",
            Axis::Chain => "chain",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Axis::Size => "GiB of the image",
            Axis::Depth => "requests in flight",
            Axis::Disks => "disks of 1 TiB",
            Axis::Chain => "images of the chain",
        }
    }

    /// A place on it, as the title counts.
    pub fn label(self, at: u64) -> String {
        match self {
            Axis::Size => (at / GIB).to_string(),
            Axis::Depth | Axis::Disks | Axis::Chain => at.to_string(),
        }
    }

    fn places(self) -> &'static [u64] {
        match self {
            Axis::Size => &[GIB, 8 * GIB, 64 * GIB, 512 * GIB, 1024 * GIB, 8192 * GIB],
            Axis::Depth => &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
            Axis::Disks => &[1, 4, 16, 64, 256],
            Axis::Chain => &[1, 2, 4, 8, 16],
        }
    }
}

/// All points.
pub fn points() -> impl Iterator<Item = Point> {
    Axis::ALL.into_iter().flat_map(|axis| {
        // a raw image has no backing file
        let formats =
            Format::ALL.into_iter().filter(move |format| axis != Axis::Chain || *format != Format::Raw);
        formats.flat_map(move |format| axis.places().iter().map(move |&at| Point { axis, at, format }))
    })
}
