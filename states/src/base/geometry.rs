//! All arithmetic on offsets: which table slice and entry maps a guest offset, what fits, what is aligned.
//!
//! Knows: sizes. Must never know: tables' contents, requests.
//!
//! Invariants: every sum and product that could leave 64 bits is checked or proved by the limits in
//! `Geometry::new`; geometry is a value, so the explorer may use tables of four entries that no header would
//! be allowed to ask for.

use crate::error::Error;
use crate::fault::{Fault, L1Fault, PointerFault};

/// Bytes of a table slice: the unit in which tables are cached and read.
pub const SLICE_BYTES: u32 = 4096;
/// Bytes of a qcow2 L1 table at most, and refcount blocks at most: what 8 MiB of refcount table lead to
/// (formats.md 3.12).
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// See [`L1_BYTES_MAX`].
pub const REFCOUNT_BLOCKS_MAX: u64 = (8 << 20) / 8;
/// Bytes that no power cut tears.
pub const SECTOR: u64 = 512;

/// Names a table slice by what it maps: first all slices of the L1 table, then those of each possible L2
/// table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SliceNumber(pub u64);

/// The shape of a two-level image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// log2 of the entries in one table.
    pub table_bits: u32,
    /// log2 of the entries in one slice.
    pub slice_bits: u32,
    /// log2 of the entries in one slice of the L1 table.
    pub l1_slice_bits: u32,
    /// Slices of the L1 table (qcow2: of the largest one).
    pub l1_slices: u64,
    /// Number of the first L2 slice. Between the L1 table's and this come those of qcow2's refcount blocks.
    pub l2_base: u64,
    /// log2 of the 64-bit words of an L2 entry: 1 for qcow2's extended entries.
    pub entry_word_bits: u32,
    /// Bytes that one L2 table takes in the file.
    pub table_bytes: u64,
    /// Where the L1 table lies, a host offset.
    pub l1_offset: u64,
    /// First host byte that is not the header's.
    pub data_start: u64,
}

impl Geometry {
    /// `entries` must be a power of two; a slice holds at most 512 of them.
    pub fn new(cluster_bits: u32, entries: u64, table_bytes: u64, l1: u64, data_start: u64) -> Geometry {
        debug_assert!(table_bytes / 8 >= entries, "a table holds its entries");
        debug_assert!(entries.is_power_of_two() && cluster_bits < 32);
        let table_bits = entries.trailing_zeros();
        let slice_bits = table_bits.min((SLICE_BYTES / 8).trailing_zeros());
        debug_assert!(data_start > 0, "offset 0 is the header's: an entry of 0 is no place");
        Geometry {
            cluster_bits,
            table_bits,
            slice_bits,
            l1_slice_bits: slice_bits,
            l1_slices: 1 << (table_bits - slice_bits),
            l2_base: 1 << (table_bits - slice_bits),
            entry_word_bits: 0,
            table_bytes,
            l1_offset: l1,
            data_start,
        }
    }

    /// qcow2: L2 tables of one cluster with entries of one or (`extended`) two words.
    pub fn qcow2(cluster_bits: u32, extended: bool, l1: u64) -> Geometry {
        debug_assert!((9..=21).contains(&cluster_bits), "limits of the format");
        let entry_word_bits = u32::from(extended);
        let table_bits = cluster_bits - 3 - entry_word_bits;
        let slice_bits = table_bits.min((SLICE_BYTES / 8).trailing_zeros() - entry_word_bits);
        debug_assert!(table_bits >= slice_bits, "a table has a whole slice");
        let l1_slice_bits = (SLICE_BYTES / 8).trailing_zeros();
        let l1_slices = L1_BYTES_MAX / u64::from(SLICE_BYTES);
        let block_slices = (1u64 << cluster_bits).div_ceil(u64::from(SLICE_BYTES));
        Geometry {
            cluster_bits,
            table_bits,
            slice_bits,
            l1_slice_bits,
            l1_slices,
            l2_base: l1_slices + REFCOUNT_BLOCKS_MAX * block_slices,
            entry_word_bits,
            table_bytes: 1 << cluster_bits,
            l1_offset: l1,
            data_start: 1,
        }
    }

    /// Bytes of a cluster.
    pub const fn cluster_size(&self) -> u64 {
        debug_assert!(self.cluster_bits < 63);
        1 << self.cluster_bits
    }

    /// First byte of the cluster that holds `guest`.
    pub const fn cluster_start(&self, guest: u64) -> u64 {
        debug_assert!(self.cluster_bits > 0, "a cluster is more than a byte");
        guest & !(self.cluster_size() - 1)
    }

    /// First byte behind the cluster that holds the byte before `guest`. Guest offsets are below 2^63.
    pub const fn cluster_end(&self, guest: u64) -> u64 {
        debug_assert!(guest < 1 << 63);
        let end = self.cluster_start(guest + (self.cluster_size() - 1));
        debug_assert!(end >= guest && end - guest < self.cluster_size(), "the cluster ends there");
        end
    }

    /// Guest bytes that one L2 table maps; saturates for the largest geometries.
    pub const fn table_span(&self) -> u64 {
        debug_assert!(self.table_bits < 64 && self.cluster_bits < 64, "limits of the formats");
        let bits = self.cluster_bits + self.table_bits;
        if bits >= 63 { 1 << 63 } else { 1 << bits }
    }

    /// Guest bytes that one L2 slice maps.
    pub const fn slice_span(&self) -> u64 {
        debug_assert!(self.cluster_bits + self.slice_bits < 63);
        1 << (self.cluster_bits + self.slice_bits)
    }

    /// Bytes of a slice in the file.
    pub const fn slice_bytes(&self) -> u32 {
        debug_assert!(self.table_bytes > 0);
        if self.table_bytes < SLICE_BYTES as u64 { self.table_bytes as u32 } else { SLICE_BYTES }
    }

    /// 64-bit words of an L2 slice.
    pub const fn slice_words(&self) -> usize {
        debug_assert!(self.slice_bits + self.entry_word_bits <= 9, "a slice has 4 KiB at most");
        let words = 1 << (self.slice_bits + self.entry_word_bits);
        debug_assert!(words * 8 <= self.slice_bytes() as usize, "the slice has room for them");
        words
    }

    /// Bytes of an L1 slice in the file.
    pub const fn l1_slice_bytes(&self) -> u32 {
        debug_assert!(self.l1_slice_bits <= 9, "a slice has 4 KiB at most");
        let bytes = 8 << self.l1_slice_bits;
        // a table of few entries still takes whole sectors
        if bytes < SECTOR as u32 { SECTOR as u32 } else { bytes }
    }

    /// Slices of one table.
    pub const fn slices_per_table(&self) -> u64 {
        debug_assert!(self.slice_bits <= self.table_bits);
        1 << (self.table_bits - self.slice_bits)
    }

    /// Index into the L1 table.
    pub const fn l1_index(&self, guest: u64) -> u64 {
        debug_assert!(self.cluster_bits + self.table_bits > 0, "an L2 table maps more than a byte");
        let bits = self.cluster_bits + self.table_bits;
        if bits >= 64 { 0 } else { guest >> bits }
    }

    /// The slice of the L1 table that holds entry `l1_index`, and the entry's place in it.
    pub const fn l1_slice(&self, l1_index: u64) -> (SliceNumber, usize) {
        debug_assert!(l1_index >> self.l1_slice_bits < self.l1_slices, "no L1 table is as long");
        let (number, entry) = (l1_index >> self.l1_slice_bits, l1_index & ((1 << self.l1_slice_bits) - 1));
        debug_assert!((number << self.l1_slice_bits) + entry == l1_index, "both name the entry");
        (SliceNumber(number), entry as usize)
    }

    /// The L2 slice that maps `guest`, and the place of the entry's first word in it.
    pub const fn l2_slice(&self, guest: u64) -> (SliceNumber, usize) {
        debug_assert!(guest < 1 << 63);
        let cluster = guest >> self.cluster_bits;
        let number = self.l2_base + (cluster >> self.slice_bits);
        debug_assert!(!self.is_l1(SliceNumber(number)), "slices of the L1 table come first");
        let entry = cluster & ((1 << self.slice_bits) - 1);
        debug_assert!(
            ((number - self.l2_base) << self.slice_bits) + entry == cluster,
            "both name the cluster"
        );
        (SliceNumber(number), (entry << self.entry_word_bits) as usize)
    }

    /// qcow2: the slice of refcount block `block` that begins at byte `within` of it.
    pub const fn refcount_slice(&self, block: u64, within: u64) -> SliceNumber {
        debug_assert!(block <= REFCOUNT_BLOCKS_MAX && within < self.table_bytes);
        let slice_bytes = self.slice_bytes() as u64;
        debug_assert!(self.table_bytes.is_multiple_of(slice_bytes), "a block is whole slices");
        let before = block * (self.table_bytes / slice_bytes) + within / slice_bytes;
        let slice = SliceNumber(self.l1_slices + before);
        debug_assert!(self.is_refcount(slice), "it is no slice of an L2 table");
        slice
    }

    /// QED: where an image without tables but the L1 table ends.
    pub const fn first_free(&self) -> u64 {
        debug_assert!(
            self.l1_slices == 1 << (self.table_bits - self.slice_bits),
            "its tables are of one size"
        );
        let end = self.l1_offset + self.table_bytes;
        debug_assert!(end > self.l1_offset, "a table takes space");
        align_up(if end > self.data_start { end } else { self.data_start }, self.cluster_size())
    }

    /// Is it a slice of a refcount block?
    pub const fn is_refcount(&self, slice: SliceNumber) -> bool {
        debug_assert!(self.l1_slices <= self.l2_base);
        slice.0 >= self.l1_slices && slice.0 < self.l2_base
    }

    /// Is it a slice of the L1 table?
    pub const fn is_l1(&self, slice: SliceNumber) -> bool {
        debug_assert!(self.l1_slices > 0);
        slice.0 < self.l1_slices
    }

    /// Byte offset of an L1 slice in the file.
    pub const fn l1_slice_host(&self, slice: SliceNumber) -> u64 {
        debug_assert!(self.is_l1(slice));
        self.l1_offset + slice.0 * self.l1_slice_bytes() as u64
    }

    /// Byte offset in the file of the L2 slice that maps `guest`, in a table at `table`.
    pub const fn l2_slice_host(&self, table: u64, guest: u64) -> u64 {
        debug_assert!(table >= self.data_start, "no table lies in the header");
        let cluster = guest >> self.cluster_bits;
        let within = (cluster >> self.slice_bits) & (self.slices_per_table() - 1);
        debug_assert!(within < self.slices_per_table(), "it is one of the table's slices");
        debug_assert!((within + 1) * self.slice_bytes() as u64 <= self.table_bytes, "it ends with the table");
        table + within * self.slice_bytes() as u64
    }

    /// How many slice numbers a guest disk of `size` bytes can need.
    pub const fn slice_count(&self, size: u64) -> u64 {
        debug_assert!(size <= 1 << 63);
        self.l2_base + size.div_ceil(self.slice_span())
    }

    /// An L1 entry that is not 0 must name a whole table inside the file (below `end`).
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the entry, and what is wrong with it.
    pub fn check_table(&self, index: u64, entry: u64, end: u64) -> Result<(), Error> {
        debug_assert!(end <= 1 << 63, "no file is longer");
        let bad = |why| Err(Error::Corrupt(Fault::L1Entry { index, entry, why }));
        if entry & (self.cluster_size() - 1) != 0 {
            return bad(L1Fault::QedUnaligned);
        }
        if entry < self.data_start {
            return bad(L1Fault::InHeader);
        }
        if entry.checked_add(self.table_bytes).is_none_or(|table_end| table_end > end) {
            return bad(L1Fault::Beyond);
        }
        Ok(())
    }

    /// A data entry must name a cluster inside the file (below `end`). `guest` is only for the message.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the entry, and what is wrong with it.
    #[inline]
    pub fn check_data(&self, guest: u64, entry: u64, end: u64) -> Result<(), Error> {
        debug_assert!(end <= 1 << 63, "no file is longer");
        let aligned = entry & (self.cluster_size() - 1) == 0;
        // `end` is at most 2^63, so the sum only wraps for an entry that is too large anyway
        let inside = entry < end && entry + self.cluster_size() <= end;
        if aligned && entry >= self.data_start && inside { Ok(()) } else { self.bad_data(guest, entry) }
    }

    #[cold]
    fn bad_data(&self, guest: u64, entry: u64) -> Result<(), Error> {
        debug_assert!(self.cluster_bits < 63, "limits of the formats");
        let cluster = guest >> self.cluster_bits;
        let bad = |why| Err(Error::Corrupt(Fault::Pointer { cluster, host: entry, why }));
        if entry & (self.cluster_size() - 1) != 0 {
            return bad(PointerFault::Unaligned);
        }
        if entry < self.data_start {
            return bad(PointerFault::InHeader);
        }
        bad(PointerFault::Beyond)
    }
}

/// Rounds down to a multiple of `align`, a power of two.
pub const fn align_down(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    value & !(align - 1)
}

/// Rounds up to a multiple of `align`, a power of two. Saturates at the last multiple.
pub const fn align_up(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    match value.checked_add(align - 1) {
        Some(sum) => align_down(sum, align),
        None => align_down(u64::MAX, align),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // every guest offset has one slice, one entry, and its host place lies inside its table
        #[test]
        fn slices_partition_the_guest(
            cluster_bits in 12u32..=26, table_clusters in 0u32..=4, guest in 0u64..(1 << 62),
        ) {
            let cluster = 1u64 << cluster_bits;
            let table = cluster << table_clusters;
            let g = Geometry::new(cluster_bits, table / 8, table, cluster, cluster);
            let guest = guest % (g.table_span().saturating_mul(4)).min(1 << 62);
            let (slice, entry) = g.l2_slice(guest);
            prop_assert!(!g.is_l1(slice) && entry < g.slice_words());
            prop_assert_eq!(slice.0, g.slices_per_table()
                + g.l1_index(guest) * g.slices_per_table() + (guest % g.table_span()) / g.slice_span());
            let host = g.l2_slice_host(1 << 40, guest);
            prop_assert!(host >= 1 << 40 && host + u64::from(g.slice_bytes()) <= (1 << 40) + table);
            prop_assert_eq!((host - (1 << 40)) / 8 + entry as u64, (guest % g.table_span()) >> cluster_bits);
        }

        #[test]
        fn entries_are_checked_at_both_ends(cluster_bits in 12u32..=26, entry: u64, end in 0u64..(1 << 50)) {
            let cluster = 1u64 << cluster_bits;
            let g = Geometry::new(cluster_bits, cluster / 2, cluster * 4, cluster, cluster);
            if g.check_data(0, entry, end).is_ok() {
                prop_assert!(entry >= cluster && entry % cluster == 0 && entry + cluster <= end);
            }
            if g.check_table(0, entry, end).is_ok() {
                prop_assert!(entry >= cluster && entry % cluster == 0 && entry + cluster * 4 <= end);
            }
        }
    }
}
