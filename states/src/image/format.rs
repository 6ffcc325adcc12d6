//! What the formats do differently: the only place that asks which one it is.
//!
//! Knows: how each names clusters, encodes words, says that it is dirty, and what sizes it may have. Must
//! never know: requests, and when anything is asked.
//!
//! Invariant: counts are there if, and only if, the layout is qcow2's and the image may be written.

use crate::acb::edges::EdgeTable;
use crate::base::geometry::{Geometry, L1_BYTES_MAX, SliceNumber};
use crate::error::Error;
use crate::fault::Lack;
use crate::info::Format;
use crate::options::Options;
use crate::qcow2::{self, L1, Shape, entry::COPIED};
use crate::qed;
use crate::rule::Rule;
use crate::space::append::Append;
use crate::space::counts::Refcounted;
use crate::tables::dangling::Pointers;
use crate::tables::decode::{decode_qcow2, decode_qed};
use crate::tables::mapping::Run;
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
    pub(super) space: Append,
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
        debug_assert!(header.cluster_size.is_power_of_two(), "the header was validated");
        Layout::Qed(header.geometry(), header)
    }

    pub(super) fn qcow2(header: &qcow2::Header) -> Layout {
        debug_assert!((9..=21).contains(&header.cluster_bits), "the header was validated");
        let shape = header.shape();
        Layout::Qcow2(Geometry::qcow2(header.cluster_bits, shape.extended, header.l1_offset), shape)
    }

    pub(super) fn start(&self, size: u64, file_len: u64, options: &Options) -> Start {
        let file_end = |cluster: u64| match options.sabotaged(Rule::WholeClusters) {
            true => file_len - file_len % cluster,
            false => file_len,
        };
        let align = u64::from(options.align);
        debug_assert!(size.is_multiple_of(512), "a disk has whole sectors");
        debug_assert!(align.is_power_of_two() && align <= self.cluster_size().max(65536));
        match self {
            Layout::Raw => {
                let space = Append::fixed(file_len).on_device(options.fixed_len);
                Start { edges: EdgeTable::RAW, space, slices: 1, slots_min: 2 }
            }
            Layout::Qed(geometry, _) => {
                let cluster = geometry.cluster_size();
                let space = Append::new(file_end(cluster), cluster, options.grow_step)
                    .whole_clusters()
                    .on_device(options.fixed_len);
                Start { edges: EdgeTable::QED, space, slices: geometry.slice_count(size), slots_min: 2 }
            }
            Layout::Qcow2(geometry, _) => {
                let cluster = geometry.cluster_size();
                let space =
                    Append::new(file_end(cluster), cluster, options.grow_step).on_device(options.fixed_len);
                Start { edges: EdgeTable::QCOW2, space, slices: geometry.slice_count(size), slots_min: 16 }
            }
        }
    }

    fn cluster_size(&self) -> u64 {
        let size = self.geometry().map_or(1, Geometry::cluster_size);
        debug_assert!(size.is_power_of_two(), "limits of the formats");
        size
    }

    /// As qemu-img calls the format.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Layout::Raw => Format::Raw.name(),
            Layout::Qed(..) => Format::Qed.name(),
            Layout::Qcow2(..) => Format::Qcow2.name(),
        }
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
        debug_assert!(!self.is_raw(), "a raw image has no entries");
        if matches!(self, Layout::Qcow2(..)) { word & !COPIED } else { word }
    }

    /// Such an entry's cluster may be somebody else's too: it is not written in place.
    #[inline]
    pub(super) fn is_shared(&self, word: u64) -> bool {
        debug_assert!(!self.is_raw(), "a raw image has no entries");
        matches!(self, Layout::Qcow2(..)) && word & COPIED == 0
    }

    /// A word of a table, from its bytes.
    pub(super) fn decoding(&self) -> fn([u8; 8]) -> u64 {
        debug_assert!(!self.is_raw(), "a raw image has no tables");
        if matches!(self, Layout::Qcow2(..)) { u64::from_be_bytes } else { u64::from_le_bytes }
    }

    /// And back.
    pub(super) fn encoding(&self) -> fn(u64) -> [u8; 8] {
        debug_assert!(!self.is_raw(), "a raw image has no tables");
        if matches!(self, Layout::Qcow2(..)) { u64::to_be_bytes } else { u64::to_le_bytes }
    }

    /// What an L2 slice maps `pos` to, from `entry` on.
    #[inline]
    pub(super) fn decode(
        &self,
        entries: &[u64],
        space: &Append,
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
            L1::Table { host, copied } => {
                debug_assert!(
                    host > 0 && host.is_multiple_of(self.cluster_size()),
                    "it begins with a cluster"
                );
                Ok((host, !copied))
            }
        }
    }

    /// How the entries of a slice say where they point to; None: they do not, into this file.
    pub(super) fn pointers(&self, number: SliceNumber) -> Option<Pointers> {
        let geometry = self.geometry()?;
        match self.shape() {
            _ if geometry.is_refcount(number) => None,
            Some(shape) if shape.data_file => None,
            Some(_) if geometry.is_l1(number) => Some(Pointers::L1),
            Some(shape) => Some(Pointers::L2(shape)),
            None => Some(Pointers::Plain),
        }
    }

    /// May the disk, of size `now` over a backing layer of so many bytes, get this size?
    pub(super) fn admit_resize(
        &self,
        counted: Option<&Refcounted>,
        (now, backing_len): (u64, Option<u64>),
        size: u64,
    ) -> Result<(), Error> {
        debug_assert!(counted.is_none() || self.shape().is_some(), "of the formats qcow2 alone counts");
        match self {
            Layout::Raw if size > 1 << 62 => Err(Error::Misuse("the size is beyond what a file can hold")),
            Layout::Raw => Ok(()),
            Layout::Qed(..) | Layout::Qcow2(..) if !size.is_multiple_of(512) => {
                Err(Error::Misuse("the size of an image with tables is a multiple of 512"))
            }
            Layout::Qed(..) if size < now => Err(Error::Unsupported(Lack::ShrinkQed)),
            Layout::Qed(_, header) if size > header.size_max() => {
                Err(Error::Misuse("the size is beyond what tables of this geometry map"))
            }
            // the new part would show what the backing file holds behind the old end; QEMU refuses it too
            Layout::Qed(..) if size > now && backing_len.is_some_and(|len| len > now) => {
                Err(Error::Unsupported(Lack::GrowQed))
            }
            Layout::Qed(..) => Ok(()),
            Layout::Qcow2(_, shape) => {
                let Some(counted) = counted else {
                    return Err(Error::Misuse("the image is open for reading only"));
                };
                if size != now && counted.header.snapshots > 0 && shape.version < 3 {
                    return Err(Error::Unsupported(Lack::ResizeVersion2));
                }
                if shape.data_file && size != now {
                    return Err(Error::Unsupported(Lack::ResizeDataFile));
                }
                if shape.l1_entries(size) * 8 > L1_BYTES_MAX {
                    return Err(Error::Misuse("the size is beyond what an L1 table of 32 MiB maps"));
                }
                Ok(())
            }
        }
    }

    /// May these bytes of a disk of `size` bytes be written as a compressed cluster?
    pub(super) fn admit_compressed(&self, offset: u64, len: u64, size: u64) -> Result<(), Error> {
        debug_assert!(offset.checked_add(len).is_some_and(|end| end <= size), "the range was looked at");
        let Layout::Qcow2(geometry, shape) = self else {
            return Err(Error::Unsupported(Lack::WriteCompressed));
        };
        if shape.data_file {
            return Err(Error::Unsupported(Lack::WriteCompressed));
        }
        let whole = len == geometry.cluster_size() || offset + len == size && len < geometry.cluster_size();
        if len == 0 || !whole || offset != geometry.cluster_start(offset) {
            return Err(Error::Misuse("a compressed write is one whole cluster, or the disk's last"));
        }
        Ok(())
    }

    /// Does this image's dirty bit allow what is not in order to be written?
    pub(super) fn uses_dirty_bit(&self, counted: Option<&Refcounted>) -> bool {
        debug_assert!(counted.is_none() || self.shape().is_some(), "of the formats qcow2 alone counts");
        match self {
            Layout::Raw => false,
            Layout::Qed(..) => true,
            Layout::Qcow2(..) => {
                counted.is_some_and(|counted| counted.header.version >= 3 && counted.header.lazy_refcounts())
            }
        }
    }

    /// The header, to be changed in memory.
    pub(super) fn header_mut<'a>(&'a mut self, counted: Option<&'a mut Refcounted>) -> Option<HeaderMut<'a>> {
        debug_assert!(counted.is_none() || self.shape().is_some(), "of the formats qcow2 alone counts");
        match (self, counted) {
            (Layout::Qed(_, header), _) => Some(HeaderMut::Qed(header)),
            (_, Some(counted)) => Some(HeaderMut::Qcow2(&mut counted.header)),
            _ => None,
        }
    }

    /// The header, as it shall be.
    pub(super) fn header<'a>(&'a self, counted: Option<&'a Refcounted>) -> Option<HeaderRef<'a>> {
        debug_assert!(counted.is_none() || self.shape().is_some(), "of the formats qcow2 alone counts");
        match (self, counted) {
            (Layout::Qed(_, header), _) => Some(HeaderRef::Qed(header)),
            (_, Some(counted)) => Some(HeaderRef::Qcow2(&counted.header)),
            _ => None,
        }
    }
}

/// A header of either format.
pub(super) enum HeaderRef<'a> {
    Qed(&'a qed::Header),
    Qcow2(&'a qcow2::Header),
}

/// The same, to be changed.
pub(super) enum HeaderMut<'a> {
    Qed(&'a mut qed::Header),
    Qcow2(&'a mut qcow2::Header),
}

impl HeaderMut<'_> {
    /// Sets the dirty bit.
    pub(super) fn set_dirty_bit(self, set: bool) {
        match self {
            HeaderMut::Qed(header) => header.set_need_check(set),
            HeaderMut::Qcow2(header) => header.set_dirty(set),
        }
    }

    /// Clears the autoclear bits that are not kept up: others than those of `keep`.
    pub(super) fn clear_autoclear(self, keep: u64) {
        match self {
            HeaderMut::Qed(header) => header.autoclear_features = 0,
            HeaderMut::Qcow2(header) => header.clear_autoclear(keep),
        }
    }
}

impl HeaderRef<'_> {
    /// The dirty bit.
    pub(super) fn dirty_bit(&self) -> bool {
        match self {
            HeaderRef::Qed(header) => header.need_check(),
            HeaderRef::Qcow2(header) => header.is_dirty(),
        }
    }

    /// Bytes of the block that a change of the header writes.
    pub(super) fn block_len(&self) -> u32 {
        match self {
            HeaderRef::Qed(header) => header.block_len(),
            HeaderRef::Qcow2(header) => header.block_len(),
        }
    }

    pub(super) fn encode_block(&self, buf: &mut [u8]) {
        match self {
            HeaderRef::Qed(header) => header.encode_block(buf),
            HeaderRef::Qcow2(header) => header.encode_block(buf),
        }
    }
}
