//! What the formats do differently: the only place that asks which one it is.
//!
//! Knows: how each names clusters, encodes words, says that it is dirty, and what sizes it may have. Must
//! never know: requests, and when anything is asked.
//!
//! Invariant: `refcounted` is there if, and only if, the layout is qcow2's and the image may be written.

use super::Image;
use super::run::decode::{decode_qcow2, decode_qed};
use super::run::find::Run;
use super::space::Space;
use crate::acb::edges::EdgeTable;
use crate::acb::request::Refused;
use crate::base::geometry::{Geometry, L1_BYTES_MAX};
use crate::error::Error;
use crate::fault::Lack;
use crate::options::Options;
use crate::qcow2::header::RAW_DATA_FILE;
use crate::qcow2::{self, L1, Shape, entry::COPIED};
use crate::qed;
use crate::rule::Rule;
use alloc::boxed::Box;

/// What stands between guest and host offsets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Layout {
    /// Guest offset = host offset.
    Raw,
    /// QED: two levels of tables.
    Qed(Geometry, qed::Header),
    /// qcow2: two levels of tables.
    Qcow2(Geometry, Shape),
}

/// What an image begins with.
pub(super) struct Start {
    pub(super) edges: EdgeTable,
    pub(super) space: Space,
    /// Slices that its tables have.
    pub(super) slices: u64,
    /// So many slots of the cache at least: an L1 slice and an L2 slice must fit; with qcow2 those that count
    /// an extent's clusters, too.
    pub(super) slots_min: u64,
}

impl Layout {
    pub(super) fn raw() -> Layout {
        Layout::Raw
    }

    pub(super) fn qed(header: qed::Header) -> Layout {
        Layout::Qed(header.geometry(), header)
    }

    pub(super) fn qcow2(header: &qcow2::Header) -> Layout {
        let shape = header.shape();
        Layout::Qcow2(Geometry::qcow2(header.cluster_bits, shape.extended, header.l1_offset), shape)
    }

    pub(super) fn start(&self, size: u64, file_len: u64, options: &Options) -> Start {
        let file_end = |cluster: u64| match options.sabotaged(Rule::WholeClusters) {
            true => file_len - file_len % cluster,
            false => file_len,
        };
        let align = u64::from(options.align);
        debug_assert!(align.is_power_of_two() && align <= self.cluster_size().max(65536));
        match self {
            Layout::Raw => {
                Start { edges: EdgeTable::RAW, space: Space::fixed(file_len), slices: 1, slots_min: 2 }
            }
            Layout::Qed(geometry, _) => {
                let cluster = geometry.cluster_size();
                let space = Space::new(file_end(cluster), cluster, options.grow_step).whole_clusters();
                Start { edges: EdgeTable::QED, space, slices: geometry.slice_count(size), slots_min: 2 }
            }
            Layout::Qcow2(geometry, _) => {
                let cluster = geometry.cluster_size();
                let space = Space::new(file_end(cluster), cluster, options.grow_step);
                Start { edges: EdgeTable::QCOW2, space, slices: geometry.slice_count(size), slots_min: 16 }
            }
        }
    }

    fn cluster_size(&self) -> u64 {
        self.geometry().map_or(1, Geometry::cluster_size)
    }

    /// No tables: the file is the disk.
    #[inline]
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Layout::Raw)
    }

    #[inline]
    pub(super) fn geometry(&self) -> Option<&Geometry> {
        match self {
            Layout::Raw => None,
            Layout::Qed(geometry, _) | Layout::Qcow2(geometry, _) => Some(geometry),
        }
    }

    pub(super) fn geometry_mut(&mut self) -> Option<&mut Geometry> {
        match self {
            Layout::Raw => None,
            Layout::Qed(geometry, _) | Layout::Qcow2(geometry, _) => Some(geometry),
        }
    }

    /// How the entries of qcow2's tables are read.
    #[inline]
    pub(super) fn shape(&self) -> Option<Shape> {
        match self {
            Layout::Qcow2(_, shape) => Some(*shape),
            Layout::Raw | Layout::Qed(..) => None,
        }
    }

    pub(super) fn qed_header(&self) -> Option<&qed::Header> {
        match self {
            Layout::Qed(_, header) => Some(header),
            Layout::Raw | Layout::Qcow2(..) => None,
        }
    }

    pub(super) fn qed_header_mut(&mut self) -> Option<&mut qed::Header> {
        match self {
            Layout::Qed(_, header) => Some(header),
            Layout::Raw | Layout::Qcow2(..) => None,
        }
    }

    /// Nothing but a check finds space that nobody refers to: the file grows while the dirty bit is set
    /// (QE12).
    #[inline]
    pub(super) fn marks_growth(&self) -> bool {
        matches!(self, Layout::Qed(..))
    }

    /// The geometry, if an entry with data is a host offset and flags, and nothing else.
    #[inline]
    pub(super) fn plain_geometry(&self) -> Option<&Geometry> {
        match self {
            Layout::Qed(geometry, _) => Some(geometry),
            Layout::Qcow2(geometry, shape) if !shape.extended && !shape.data_file => Some(geometry),
            Layout::Raw | Layout::Qcow2(..) => None,
        }
    }

    /// The cluster of such an entry. Any other flag than COPIED is left, and no valid offset.
    #[inline]
    pub(super) fn plain_cluster(&self, word: u64) -> u64 {
        if matches!(self, Layout::Qcow2(..)) { word & !COPIED } else { word }
    }

    /// A word of a table, from its bytes.
    pub(super) fn decoding(&self) -> fn([u8; 8]) -> u64 {
        if matches!(self, Layout::Qcow2(..)) { u64::from_be_bytes } else { u64::from_le_bytes }
    }

    /// And back.
    pub(super) fn encoding(&self) -> fn(u64) -> [u8; 8] {
        if matches!(self, Layout::Qcow2(..)) { u64::to_be_bytes } else { u64::to_le_bytes }
    }

    /// What an L2 slice maps `pos` to, from `entry` on.
    #[inline]
    pub(super) fn decode(
        &self,
        entries: &[u64],
        space: &Space,
        entry: usize,
        pos: u64,
        end: u64,
    ) -> Result<Run, Box<Error>> {
        debug_assert!(pos < end);
        match self {
            Layout::Qcow2(geometry, shape) => {
                decode_qcow2(geometry, *shape, entries, space.end(), entry, pos, end)
            }
            Layout::Qed(geometry, _) => decode_qed(geometry, entries, space, entry, pos, end),
            Layout::Raw => Err(Box::new(Error::Misuse("a raw image has no tables"))),
        }
    }

    /// Where the L2 table of an L1 entry lies (0: nowhere), and whether others may share it.
    pub(super) fn decode_l1(&self, index: u64, word: u64) -> Result<(u64, bool), Error> {
        let Some(shape) = self.shape() else { return Ok((word, false)) };
        match shape.decode_l1(index, word)? {
            L1::Unallocated => Ok((0, false)),
            L1::Table { host, copied } => Ok((host, !copied)),
        }
    }
}

impl Image {
    /// May the disk get this size?
    pub(super) fn admit_resize(&self, size: u64) -> Result<(), Refused> {
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        let unsupported = |lack| Err(Refused::Invalid(Error::Unsupported(lack)));
        match &self.layout {
            Layout::Raw if size > 1 << 62 => misuse("the size is beyond what a file can hold"),
            Layout::Raw => Ok(()),
            Layout::Qed(..) | Layout::Qcow2(..) if !size.is_multiple_of(512) => {
                misuse("the size of an image with tables is a multiple of 512")
            }
            Layout::Qed(..) if size < self.size => unsupported(Lack::ShrinkQed),
            Layout::Qed(_, header) if size > header.size_max() => {
                misuse("the size is beyond what tables of this geometry map")
            }
            // the new part would show what the backing file holds behind the old end; QEMU refuses it too
            Layout::Qed(..) if size > self.size && self.backing_len.is_some_and(|len| len > self.size) => {
                unsupported(Lack::GrowQed)
            }
            Layout::Qed(..) => Ok(()),
            Layout::Qcow2(_, shape) => {
                let Some(counted) = self.refcounted.as_deref() else {
                    return misuse("the image is open for reading only");
                };
                if self.resizing.is_some() {
                    return Err(Refused::Busy);
                }
                if size != self.size && counted.header.snapshots > 0 && shape.version < 3 {
                    return unsupported(Lack::ResizeVersion2);
                }
                if shape.data_file && size != self.size {
                    return unsupported(Lack::ResizeDataFile);
                }
                if shape.l1_entries(size) * 8 > L1_BYTES_MAX {
                    return misuse("the size is beyond what an L1 table of 32 MiB maps");
                }
                Ok(())
            }
        }
    }

    /// Does this image's dirty bit allow what is not in order to be written?
    pub(super) fn uses_dirty_bit(&self) -> bool {
        match &self.layout {
            Layout::Raw => false,
            Layout::Qed(..) => true,
            Layout::Qcow2(..) => self
                .refcounted
                .as_deref()
                .is_some_and(|counted| counted.header.version >= 3 && counted.header.lazy_refcounts()),
        }
    }

    /// Sets the bit that says so, in memory.
    pub(super) fn set_dirty_bit(&mut self, set: bool) {
        match (&mut self.layout, self.refcounted.as_deref_mut()) {
            (Layout::Qed(_, header), _) => header.set_need_check(set),
            (_, Some(counted)) => counted.header.set_dirty(set),
            _ => {}
        }
    }

    /// The bit, in memory.
    pub(super) fn dirty_bit(&self) -> bool {
        match (&self.layout, self.refcounted.as_deref()) {
            (Layout::Qed(_, header), _) => header.need_check(),
            (_, Some(counted)) => counted.header.is_dirty(),
            _ => false,
        }
    }

    /// Clears the autoclear bits that are not kept up, in memory.
    pub(super) fn clear_autoclear_bits(&mut self) {
        match (&mut self.layout, self.refcounted.as_deref_mut()) {
            (Layout::Qed(_, header), _) => header.autoclear_features = 0,
            (_, Some(counted)) => counted.header.clear_autoclear(RAW_DATA_FILE),
            _ => {}
        }
    }

    /// Bytes of the block that a change of the header writes.
    pub(super) fn header_len(&self) -> Option<u32> {
        match (&self.layout, self.refcounted.as_deref()) {
            (Layout::Qed(_, header), _) => Some(header.block_len()),
            (_, Some(counted)) => Some(counted.header.block_len()),
            _ => None,
        }
    }

    pub(super) fn encode_header_block(&self, buf: &mut [u8]) {
        match (&self.layout, self.refcounted.as_deref()) {
            (Layout::Qed(_, header), _) => header.encode_block(buf),
            (_, Some(counted)) => counted.header.encode_block(buf),
            _ => {}
        }
    }
}
