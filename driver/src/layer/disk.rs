//! One disk: its phase, its layers, and which request owns which slot of a layer's machine.
//!
//! Knows: machines, files, request slots. Must never know: the backend.
//! Invariants: a slot is filled from the machine's acceptance of a request to its `Done`; guest buffers stay
//! in it that long; a disk's files are closed only when none of its operations is in flight.

use crate::engine::open::Opener;
use crate::error::Error;
use crate::memory::buffers::Buffers;
use crate::memory::fill::Fill;
use crate::request::{Completion, DiskId, DiskInfo};
use crate::stats::Stats;
use crate::transform::drive::Clusters;
use quod_backend::{Errno, FileId, Segments, Stat};
use quod_states::{AcbId, Image, Info, IoId, Kind, Options, Part, Timer};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

/// The file of a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerFile {
    pub id: FileId,
    pub stat: Stat,
    pub path: PathBuf,
}

/// What in the layer above waits for a child request, besides the I/O: the owner of the buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A request's own buffer; its slot.
    Request(u32),
    /// A fill buffer.
    Fill(AcbId, Part),
}

/// A read that the layer above wants from this one.
#[derive(Debug)]
pub(crate) struct Child {
    /// The I/O of the layer above that it answers.
    pub io: IoId,
    pub origin: Origin,
    pub offset: u64,
    pub len: u64,
    pub segments: Segments,
}

/// Who asked.
#[derive(Debug)]
pub(crate) enum Owner {
    Guest { kind: Kind, len: u64, buffers: Buffers, started: Duration },
    Child { io: IoId, origin: Origin },
}

/// A request slot of a machine.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub owner: Option<Owner>,
    pub segments: Segments,
    /// Operations and children that use the segments.
    pub busy: u32,
    /// What the layer below said when it failed this request.
    pub cause: Option<Box<Error>>,
}

/// One file of the chain with its machine.
pub(crate) struct Layer {
    pub image: Image,
    /// Metadata, and guest data unless it has a file of its own.
    pub file: LayerFile,
    /// Guest data.
    pub data: Option<LayerFile>,
    /// Syncs of two files of which one has ended, and how.
    pub half_syncs: Vec<(IoId, Result<(), Errno>)>,
    pub allocate_ahead: bool,
    pub slots: Vec<Slot>,
    /// By acb index.
    pub fills: Vec<[Fill; 2]>,
    /// Children that found every slot in use. Bounded by the acbs of the layer above.
    pub parked: VecDeque<Child>,
    /// By timer, on the backend's clock.
    pub deadlines: [Option<Duration>; 2],
    /// Compressed clusters, read and on their way.
    pub compressed: Clusters,
    /// What the layer below said when a fill failed.
    pub fill_cause: Option<Box<Error>>,
}

impl Layer {
    pub(crate) fn new(
        image: Image,
        info: &Info,
        file: LayerFile,
        data: Option<LayerFile>,
        options: &Options,
        allocate_ahead: bool,
    ) -> Layer {
        let mut slots = Vec::new();
        slots.resize_with(options.requests as usize, Slot::default);
        let mut fills = Vec::new();
        fills.resize_with(options.acbs as usize, Default::default);
        Layer {
            image,
            file,
            data,
            half_syncs: Vec::new(),
            allocate_ahead,
            slots,
            fills,
            parked: VecDeque::new(),
            deadlines: [None; 2],
            compressed: Clusters::new(info),
            fill_cause: None,
        }
    }

    /// Where guest data is.
    pub(crate) fn data(&self) -> &LayerFile {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// One of the two syncs of an I/O has ended. With the second: how both have.
    pub(crate) fn half_synced(&mut self, io: IoId, result: Result<(), Errno>) -> Option<Result<(), Errno>> {
        match self.half_syncs.iter().position(|(first, _)| *first == io) {
            Some(index) => Some(self.half_syncs.swap_remove(index).1.and(result)),
            None => {
                self.half_syncs.push((io, result));
                None
            }
        }
    }
}

/// Index of a timer's deadline.
pub(crate) fn timer_index(timer: Timer) -> usize {
    match timer {
        Timer::Commit => 0,
        Timer::NeedCheck => 1,
    }
}

/// The timers, by index.
pub(crate) const TIMERS: [Timer; 2] = [Timer::Commit, Timer::NeedCheck];

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
