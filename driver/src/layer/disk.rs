//! One disk: its phase, its layers, its files.
//!
//! Knows: layers, files, what was asked of the disk. Must never know: the backend.
//! Invariant: a disk's files are closed only when none of its operations is in flight.

use super::flight::Flight;
use super::opener::Opener;
use super::{Layer, Origin, Owner};
use crate::completion::Ended;
use crate::info::DiskInfo;
use crate::request::DiskId;
use crate::stats::Stats;
use quod_backend::FileId;
use std::path::PathBuf;

/// A disk that is going away.
#[derive(Debug)]
pub(crate) struct Closing {
    /// Delivered when the last file is closed.
    pub ended: Ended,
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
    /// Which driver of the process it belongs to.
    driver: u32,
    generation: u32,
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
    /// A slot of this driver's.
    pub(crate) fn vacant(driver: u32) -> Disk {
        Disk {
            driver,
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
        *self = Disk { generation, ..Disk::vacant(self.driver) };
    }

    pub(crate) fn id(&self, index: u32) -> DiskId {
        DiskId { driver: self.driver, index, generation: self.generation }
    }

    /// The image has another size.
    pub(crate) fn resized(&mut self) {
        let size = self.layers.first().map(|layer| layer.image.virtual_size());
        if let (Some(info), Some(size)) = (&mut self.info, size) {
            info.resized(size);
        }
    }

    /// Is it this disk's?
    pub(crate) fn has(&self, id: DiskId) -> bool {
        (self.driver, self.generation) == (id.driver, id.generation)
    }

    /// The guest request, by its slot in the image's layer, that a read of guest data is for:
    /// through the layers above, if it is one of a backing file. None: another kind of operation, or one
    /// whose bytes others may need.
    pub(crate) fn request_of(&self, flight: &Flight) -> Option<u32> {
        let (mut layer, mut slot) = flight.reads()?;
        loop {
            match self.layers.get(usize::from(layer))?.slots.get(slot as usize)?.owner.as_ref()? {
                Owner::Guest { .. } => return Some(slot),
                Owner::Child { origin: Origin::Request(above), .. } => {
                    (layer, slot) = (layer.checked_sub(1)?, *above);
                }
                Owner::Child { .. } => return None,
            }
        }
    }

    /// The guest request in this slot of the image's layer has this `user` value.
    pub(crate) fn is_user_s(&self, slot: u32, user: u64) -> bool {
        let owner = self.layers.first().and_then(|layer| layer.slots.get(slot as usize)?.owner.as_ref());
        matches!(owner, Some(Owner::Guest { user: own, .. }) if *own == user)
    }
}
