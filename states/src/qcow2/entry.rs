//! Entries of L1, L2, refcount and bitmap tables: 64 (extended L2: 128) bits that say where a cluster lies.
//!
//! Knows: bits of one entry. Must never know: which entries stand around it, or what the clusters hold.
//!
//! Invariants:
//! * an entry that `decode` accepted has no reserved bit set and points at a cluster boundary (compressed
//!   data: at any byte below 2^56);
//! * `encode` of what `decode` gave is the entry as it was, but for a COPIED flag on an unallocated one.

use crate::error::Error;
use crate::fault::{Fault, L1Fault, L2Fault, ReftableFault};

/// Bit 63: the refcount of what is pointed at is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry.
pub const ZERO: u64 = 1;
/// Bits 9 to 55.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Reserved bits of an L1 entry.
pub const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Reserved bits of an L2 entry that is not compressed (bit 0 aside).
pub const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Reserved bits of a refcount table entry.
pub const REFTABLE_RESERVED: u64 = 0x1ff;

/// What the entries of an image mean depends on this.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// L2 entries have 128 bits and 32 subclusters.
    pub extended: bool,
    /// Guest data lies in another file.
    pub data_file: bool,
}

/// An L1 entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum L1 {
    /// No L2 table.
    Unallocated,
    /// An L2 table.
    Table {
        /// Where it lies.
        host: u64,
        /// Its refcount is one.
        copied: bool,
    },
}

/// What one subcluster holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sub {
    /// Reads come from the backing layer.
    Unallocated,
    /// Reads as zeros.
    Zero,
    /// Its data is in the cluster.
    Allocated,
}

/// The bitmap of an extended entry: bit i (0..31) subcluster i is allocated, bit 32 + i it reads as zeros;
/// never both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Subclusters(pub u64);

/// An L2 entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum L2 {
    /// Reads come from the backing layer.
    Unallocated,
    /// Reads as zeros, has no space.
    ZeroPlain,
    /// Reads as zeros, keeps space.
    ZeroAllocated {
        /// Where the space lies.
        host: u64,
        /// Its refcount is one.
        copied: bool,
    },
    /// Data.
    Normal {
        /// Where it lies.
        host: u64,
        /// Its refcount is one: it may be written in place.
        copied: bool,
    },
    /// Compressed data.
    Compressed {
        /// Its first byte.
        host: u64,
        /// Bytes from there to the end of its last sector.
        len: u32,
    },
    /// An extended entry with at least one bit of its bitmap or with space.
    Split {
        /// The cluster's space, if it has any.
        host: Option<u64>,
        /// Its refcount is one.
        copied: bool,
        /// What its subclusters hold.
        subclusters: Subclusters,
    },
}

fn corrupt<T>(why: L2Fault, guest: u64, entry: u64) -> Result<T, Error> {
    Err(Error::Corrupt(Fault::L2Entry { guest, entry, why }))
}

impl Subclusters {
    /// Subclusters of a cluster.
    pub const COUNT: u32 = 32;
    /// All are allocated.
    pub const ALL_ALLOCATED: Subclusters = Subclusters(0xffff_ffff);
    /// All read as zeros.
    pub const ALL_ZERO: Subclusters = Subclusters(0xffff_ffff << 32);

    /// No subcluster is both allocated and zero.
    pub const fn is_valid(self) -> bool {
        self.0 & (self.0 >> 32) == 0
    }

    /// The allocated ones, bit i for subcluster i.
    pub const fn allocated(self) -> u32 {
        self.0 as u32
    }

    /// Those that read as zeros.
    pub const fn zero(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What subcluster `index` holds.
    pub const fn get(self, index: u32) -> Sub {
        debug_assert!(index < Subclusters::COUNT);
        if (self.zero() >> (index % 32)) & 1 != 0 {
            Sub::Zero
        } else if (self.allocated() >> (index % 32)) & 1 != 0 {
            Sub::Allocated
        } else {
            Sub::Unallocated
        }
    }

    /// With the subclusters of `mask` (bit i for subcluster i) made `sub`.
    pub const fn with(self, mask: u32, sub: Sub) -> Subclusters {
        debug_assert!(self.is_valid(), "no subcluster is of both kinds");
        let both = mask as u64 | (mask as u64) << 32;
        let bits = match sub {
            Sub::Unallocated => 0,
            Sub::Zero => (mask as u64) << 32,
            Sub::Allocated => mask as u64,
        };
        let with = Subclusters(self.0 & !both | bits);
        debug_assert!(with.is_valid(), "no subcluster is of both kinds");
        with
    }
}

impl Shape {
    /// Bytes of a cluster.
    pub const fn cluster_size(self) -> u64 {
        debug_assert!(self.cluster_bits >= 9 && self.cluster_bits <= 21, "limits of the format");
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub const fn l2_entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// The L2 entries of a table are this power of two.
    pub const fn l2_bits(self) -> u32 {
        debug_assert!(self.cluster_bits >= 9 && self.cluster_bits <= 21, "limits of the format");
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// L2 entries of a table.
    pub const fn l2_entries(self) -> u64 {
        debug_assert!(self.l2_bits() < 32, "limits of the format");
        1 << self.l2_bits()
    }

    /// L1 entries that a guest disk of `size` bytes needs.
    pub const fn l1_entries(self, size: u64) -> u64 {
        let bits = self.cluster_bits + self.l2_bits();
        debug_assert!(bits < 63, "an L2 table maps less than all there is");
        (size >> bits) + !size.is_multiple_of(1 << bits) as u64
    }

    /// Bits of the offset in a compressed entry; the sector count stands above it.
    const fn offset_width(self) -> u32 {
        debug_assert!(self.cluster_bits >= 9 && self.cluster_bits <= 21, "limits of the format");
        62 - (self.cluster_bits - 8)
    }

    /// Offset and length in bytes of a compressed entry, without checks.
    pub const fn compressed_range(self, entry: u64) -> (u64, u32) {
        debug_assert!(entry & COMPRESSED != 0);
        let host = entry & ((1 << self.offset_width()) - 1);
        let sectors = ((entry >> self.offset_width()) & ((1 << (self.cluster_bits - 8)) - 1)) + 1;
        (host, (sectors * 512 - host % 512) as u32)
    }

    /// The entry of compressed data of `len` bytes at `host`. None when the entry cannot name that range.
    pub const fn encode_compressed(self, host: u64, len: u32) -> Option<u64> {
        if len == 0 || host >> 56 != 0 || host >> self.offset_width() != 0 {
            return None;
        }
        let more = (host + len as u64 - 1) / 512 - host / 512;
        if more >> (self.cluster_bits - 8) != 0 {
            return None;
        }
        let entry = COMPRESSED | more << self.offset_width() | host;
        debug_assert!(self.compressed_range(entry).0 == host, "it begins there");
        debug_assert!(
            self.compressed_range(entry).1.wrapping_sub(len) < 512,
            "and ends with its last sector"
        );
        Some(entry)
    }

    /// `index` is only for the error.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for reserved bits, and a place that is no cluster's.
    pub fn decode_l1(self, index: u64, entry: u64) -> Result<L1, Error> {
        let corrupt = |why| Err(Error::Corrupt(Fault::L1Entry { index, entry, why }));
        if entry & L1_RESERVED != 0 {
            return corrupt(L1Fault::Reserved);
        }
        let host = entry & OFFSET;
        if !host.is_multiple_of(self.cluster_size()) {
            return corrupt(L1Fault::Unaligned);
        }
        let decoded =
            if host == 0 { L1::Unallocated } else { L1::Table { host, copied: entry & COPIED != 0 } };
        debug_assert!(decoded.encode() | entry & COPIED == entry, "the entry as it was");
        Ok(decoded)
    }

    /// `guest` names the entry in the error: the guest offset of its cluster. `bitmap`: the second word of
    /// an extended entry, else 0.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for reserved bits, a place that is no cluster's, and bits that exclude each other.
    pub fn decode_l2(self, guest: u64, entry: u64, bitmap: u64) -> Result<L2, Error> {
        debug_assert!(self.extended || bitmap == 0);
        if entry & COMPRESSED != 0 {
            return self.decode_compressed(guest, entry, bitmap);
        }
        if entry & L2_RESERVED != 0 {
            return corrupt(L2Fault::Reserved, guest, entry);
        }
        let (zero, copied, host) = (entry & ZERO != 0, entry & COPIED != 0, entry & OFFSET);
        if zero && self.version < 3 {
            return corrupt(L2Fault::ZeroInVersion2, guest, entry);
        }
        if zero && self.extended {
            return corrupt(L2Fault::ZeroInExtended, guest, entry);
        }
        if !host.is_multiple_of(self.cluster_size()) {
            return corrupt(L2Fault::Unaligned, guest, entry);
        }
        // a data file has its clusters where the guest has them: 0 is a place too, and COPIED tells it from
        // none
        let allocated = host != 0 || self.data_file && copied;
        if self.extended {
            return self.decode_split(guest, entry, bitmap, allocated.then_some(host));
        }
        let decoded = match (zero, allocated) {
            (true, true) => L2::ZeroAllocated { host, copied },
            (true, false) => L2::ZeroPlain,
            (false, true) => L2::Normal { host, copied },
            (false, false) => L2::Unallocated,
        };
        debug_assert!(self.encode_l2(decoded).0 | entry & COPIED == entry, "the entry as it was");
        Ok(decoded)
    }

    fn decode_compressed(self, guest: u64, entry: u64, bitmap: u64) -> Result<L2, Error> {
        debug_assert!(entry & COMPRESSED != 0);
        if entry & COPIED != 0 {
            return corrupt(L2Fault::CompressedCopied, guest, entry);
        }
        if self.data_file {
            return corrupt(L2Fault::CompressedInDataFile, guest, entry);
        }
        if bitmap != 0 {
            return corrupt(L2Fault::CompressedSubclusters, guest, bitmap);
        }
        let (host, len) = self.compressed_range(entry);
        if host >> 56 != 0 {
            return corrupt(L2Fault::CompressedReserved, guest, entry);
        }
        let decoded = L2::Compressed { host, len };
        debug_assert!(self.encode_l2(decoded) == (entry, 0), "the entry as it was");
        Ok(decoded)
    }

    fn decode_split(self, guest: u64, entry: u64, bitmap: u64, host: Option<u64>) -> Result<L2, Error> {
        debug_assert!(self.extended);
        let subclusters = Subclusters(bitmap);
        if !subclusters.is_valid() {
            return corrupt(L2Fault::BothKinds, guest, bitmap);
        }
        if host.is_none() && subclusters.allocated() != 0 {
            return corrupt(L2Fault::NoCluster, guest, bitmap);
        }
        if host.is_none() && bitmap == 0 {
            return Ok(L2::Unallocated);
        }
        let copied = entry & COPIED != 0;
        debug_assert!(host.is_some() || subclusters.zero() != 0, "something of it is there");
        let decoded = L2::Split { host, copied: copied && host.is_some(), subclusters };
        let same = |(word, words)| word | entry & COPIED == entry && words == bitmap;
        debug_assert!(same(self.encode_l2(decoded)), "the entry as it was");
        Ok(decoded)
    }

    /// The entry and its bitmap. A compressed entry must be one that `decode_l2` gave or `encode_compressed`
    /// can name.
    pub fn encode_l2(self, entry: L2) -> (u64, u64) {
        debug_assert!(match entry {
            L2::ZeroAllocated { host, .. } | L2::Normal { host, .. } => host & !OFFSET == 0,
            L2::Compressed { host, len } => self.encode_compressed(host, len).is_some(),
            _ => true,
        });
        let flag = |copied| if copied { COPIED } else { 0 };
        match entry {
            L2::Unallocated => (0, 0),
            L2::ZeroPlain => (ZERO, 0),
            L2::ZeroAllocated { host, copied } => (host | ZERO | flag(copied), 0),
            L2::Normal { host, copied } => (host | flag(copied), 0),
            L2::Compressed { host, len } => (self.encode_compressed(host, len).unwrap_or(0), 0),
            L2::Split { host, copied, subclusters } => (host.unwrap_or(0) | flag(copied), subclusters.0),
        }
    }

    /// A refcount table's entry: where the refcount block lies, if there is one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for reserved bits, and a place that is no cluster's.
    pub fn decode_reftable(self, index: u64, entry: u64) -> Result<Option<u64>, Error> {
        let corrupt = |why| Err(Error::Corrupt(Fault::Reftable { index, entry, why }));
        if entry & REFTABLE_RESERVED != 0 {
            return corrupt(ReftableFault::Reserved);
        }
        if !entry.is_multiple_of(self.cluster_size()) {
            return corrupt(ReftableFault::Unaligned);
        }
        Ok((entry != 0).then_some(entry))
    }
}

impl L1 {
    /// The entry.
    pub const fn encode(self) -> u64 {
        debug_assert!(!matches!(self, L1::Table { host, .. } if host == 0 || host & !OFFSET != 0));
        match self {
            L1::Unallocated => 0,
            L1::Table { host, copied: true } => host | COPIED,
            L1::Table { host, copied: false } => host,
        }
    }
}

#[cfg(test)]
mod tests;
