//! Which layer of a disk each run of its bytes comes from, and where it lies there.
//!
//! Knows: layers, their extents, holes in the host's files. Must never know: whose driver answers, how runs
//! are printed.
//!
//! Invariant: holes inside clusters count only where QEMU counts them: in qcow2 images whose metadata was
//! preallocated, which it tells by a file that takes clearly less space than its refcounts say. Such a
//! cluster has a place, and reads as zeros.

use crate::host::Host;
use crate::info::read_qcow2;
use quod::{DiskInfo, Error, LayerInfo};
use quod_states::qcow2::Purpose;
use quod_states::{Extent, Format, Status};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// Pieces of tables that are asked for at once: a turn for each would take longer than to read it.
const AHEAD: u64 = 32;
/// Bytes of such a piece: what the driver reads of a table at once.
const SLICE: u64 = 4096;

/// An open disk, to be asked about its layers.
pub(crate) trait Ask {
    /// The first run of a range in a layer.
    ///
    /// # Errors
    /// How the request ended.
    fn map(&mut self, layer: usize, offset: u64, len: u64) -> Result<Extent, Error>;

    /// Has the piece of a table read that tells about this byte, and does not wait; false: not now.
    fn ahead(&mut self, layer: usize, offset: u64) -> bool;
}

/// A run of guest bytes of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapRun {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The layer that it comes from; 0: the image.
    pub depth: usize,
    /// That layer has something to say about it.
    pub present: bool,
    /// It reads as zeros.
    pub zero: bool,
    /// A file has room for it.
    pub data: bool,
    /// It is compressed.
    pub compressed: bool,
    /// Where it lies in the layer's file of guest data.
    pub offset: Option<u64>,
}

impl MapRun {
    /// The next run continues this one.
    pub(crate) fn joins(&self, next: &MapRun) -> bool {
        let kind =
            |run: &MapRun| (run.depth, run.present, run.zero, run.data, run.compressed, run.offset.is_some());
        kind(self) == kind(next) && self.offset.is_none_or(|offset| Some(offset + self.length) == next.offset)
    }
}

/// The layers of an open disk.
pub(crate) struct Layers {
    layers: Vec<Layer>,
}

struct Layer {
    info: LayerInfo,
    /// Where its guest bytes are, to find holes.
    file: Option<File>,
    /// Its metadata was preallocated; None: nobody asked yet.
    preallocated: Option<bool>,
    /// The stretch of that file that was looked at last: where it begins, data or hole, where it ends.
    stretch: Option<(u64, bool, u64)>,
    /// The tables are asked for up to here, guest bytes.
    ahead: u64,
}

impl Layers {
    /// Of the disk's files.
    pub(crate) fn of(info: &DiskInfo) -> Layers {
        let layers = info.layers().iter().cloned().map(|info| {
            let file = File::open(info.data_file.as_ref().unwrap_or(&info.path)).ok();
            Layer { info, file, preallocated: None, stretch: None, ahead: 0 }
        });
        Layers { layers: layers.collect() }
    }

    /// What they are.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &LayerInfo> {
        self.layers.iter().map(|layer| &layer.info)
    }

    /// Bytes of a layer's disk, in whole sectors; 0 if there is no such layer.
    pub(crate) fn size(&self, layer: usize) -> u64 {
        self.layers.get(layer).map_or(0, |layer| layer.info.info.virtual_size.next_multiple_of(512))
    }

    /// The first run of a range: the first layer that has something to say about it.
    ///
    /// # Errors
    /// An entry that contradicts the format, or cannot be read.
    pub(crate) fn run(&mut self, disk: &mut dyn Ask, start: u64, mut length: u64) -> Result<MapRun, Error> {
        let mut depth = 0;
        loop {
            if self.layers[depth].info.info.format == Format::Raw {
                return Ok(self.raw_run(depth, start, length));
            }
            self.ask_ahead(disk, depth, start, length);
            let extent = disk.map(depth, start, length)?;
            length = length.min(extent.len);
            assert!(length > 0, "an extent has bytes");
            let below = self.size(depth + 1);
            let run = MapRun { start, length, depth, offset: extent.host, ..MapRun::default() };
            match extent.status {
                Status::Data => return Ok(self.holes(MapRun { present: true, data: true, ..run })),
                Status::Zero => return Ok(MapRun { present: true, zero: true, ..run }),
                Status::Compressed => {
                    return Ok(MapRun { present: true, data: true, compressed: true, ..run });
                }
                Status::Unallocated if start >= below => return Ok(MapRun { zero: true, ..run }),
                Status::Unallocated => length = length.min(below - start),
            }
            depth += 1;
        }
    }

    /// Has the pieces of tables read that follow in this range. What comes of it is told when it is its turn.
    fn ask_ahead(&mut self, disk: &mut dyn Ask, depth: usize, start: u64, length: u64) {
        let (end, Some(layer)) = (start.saturating_add(length), self.layers.get_mut(depth)) else { return };
        if start < layer.ahead {
            return;
        }
        let info = &layer.info.info;
        let entry = if info.unit < info.cluster_size { 16 } else { 8 };
        let span = SLICE / entry * u64::from(info.cluster_size);
        layer.ahead = start.saturating_add(span * AHEAD);
        let follow = (1..AHEAD).map(|n| (start / span + n).saturating_mul(span));
        for offset in follow.take_while(|offset| *offset < end) {
            if !disk.ahead(depth, offset) {
                return;
            }
        }
    }

    /// A run of data, up to where the host's file changes from data to hole or back, if that counts.
    fn holes(&mut self, run: MapRun) -> MapRun {
        let Some(layer) = self.layers.get_mut(run.depth) else { return run };
        let (Some(file), Some(offset)) = (&layer.file, run.offset) else { return run };
        let info = &layer.info;
        let counts = *layer.preallocated.get_or_insert_with(|| is_preallocated(info).unwrap_or(false));
        if !counts {
            return run;
        }
        let known = layer.stretch.filter(|(from, _, end)| (*from..*end).contains(&offset));
        let known = known.or_else(|| stretch(file, offset).map(|(data, end)| (offset, data, end)));
        layer.stretch = known;
        match known {
            Some((_, data, end)) => MapRun { zero: !data, length: run.length.min(end - offset), ..run },
            None => run,
        }
    }

    /// Data and holes of a raw file; all of it is data if the file system cannot tell.
    fn raw_run(&self, depth: usize, start: u64, length: u64) -> MapRun {
        let offset = Some(start);
        let run = MapRun { start, length, depth, present: true, data: true, offset, ..MapRun::default() };
        let file = self.layers.get(depth).and_then(|layer| layer.file.as_ref());
        match file.and_then(|file| stretch(file, start)) {
            Some((data, end)) => MapRun { length: length.min(end - start), zero: !data, data, ..run },
            None => run,
        }
    }
}
/// Does data begin here, or a hole, and where does it end? None: the file system cannot tell.
fn stretch(file: &File, at: u64) -> Option<(bool, u64)> {
    let next_data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(next) => next,
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(_) => return None,
    };
    if next_data > at {
        return Some((false, next_data));
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(at)).ok().filter(|hole| *hole > at)?;
    Some((true, hole))
}

/// QEMU's rule: the refcounts count clearly more clusters than the file has space for.
fn is_preallocated(layer: &LayerInfo) -> Result<bool, Error> {
    if layer.info.format != Format::Qcow2 {
        return Ok(false);
    }
    // the session has the lock
    let mut host = Host::open(&layer.path, false, false)?;
    let header = read_qcow2(&mut host, Purpose::Read)?;
    let cluster = header.cluster_size();
    let blocks = std::fs::metadata(&layer.path).map_or(u64::MAX, |facts| facts.blocks());
    let real = blocks.saturating_mul(512) / cluster;
    let threshold = (real.saturating_mul(10) / 9).max(real.saturating_add(2));
    let (layout, clusters) = (header.refcounts(), host.len().div_ceil(cluster));
    let table =
        host.read(header.reftable_offset, (u64::from(header.reftable_clusters) * cluster) as usize)?;
    let mut used = 0;
    for (index, entry) in table.as_chunks::<8>().0.iter().enumerate() {
        let first = index as u64 * layout.block_entries();
        let offset = u64::from_be_bytes(*entry) & !511;
        if first >= clusters || used >= threshold {
            break;
        }
        if offset == 0 {
            continue;
        }
        let block = host.read(offset, cluster as usize)?;
        let counted = layout.block_entries().min(clusters - first);
        used += (0..counted).filter(|counter| layout.get(&block, *counter) != 0).count() as u64;
    }
    Ok(used >= threshold)
}
