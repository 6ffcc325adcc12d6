//! One disk: its phase, its layers, its files.
//!
//! Knows: layers, files, what was asked of the disk. Must never know: the backend.
//! Invariant: a disk's files are closed only when none of its operations is in flight.

use super::Layer;
use super::opener::Opener;
use crate::request::{Completion, DiskId, DiskInfo};
use crate::stats::Stats;
use quod_backend::FileId;
use std::path::PathBuf;

/// A disk that is going away.
#[derive(Debug)]
pub(crate) struct Closing {
    /// Delivered when the last file is closed.
    pub completion: Completion,
    /// The close operations were sent.
    pub sent: bool,
    /// Those that have not come back.
    pub left: usize,
}

/// Where in its life a disk is.
pub(crate) enum Phase {
    Vacant,
    Opening(Box<Opener>),
    Open,
    Closing(Box<Closing>),
}

/// A slot of the driver's table of disks.
pub(crate) struct Disk {
    pub generation: u32,
    pub phase: Phase,
    pub layers: Vec<Layer>,
    /// Every file that was opened for it.
    pub files: Vec<(FileId, PathBuf)>,
    pub info: Option<DiskInfo>,
    pub stats: Option<Box<Stats>>,
    /// Backend operations.
    pub flights: usize,
    /// Guest requests accepted and not yet delivered, the opening included.
    pub outstanding: u32,
}

impl Disk {
    pub(crate) fn vacant() -> Disk {
        Disk {
            generation: 0,
            phase: Phase::Vacant,
            layers: Vec::new(),
            files: Vec::new(),
            info: None,
            stats: None,
            flights: 0,
            outstanding: 0,
        }
    }

    /// Makes room for another; the old id is invalid from now on.
    pub(crate) fn vacate(&mut self) {
        let generation = self.generation.wrapping_add(1);
        *self = Disk { generation, ..Disk::vacant() };
    }

    pub(crate) fn id(&self, index: u32) -> DiskId {
        DiskId { index, generation: self.generation }
    }
}
