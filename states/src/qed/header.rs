//! The QED header: 64 little-endian bytes, validated field by field.
//!
//! Knows: the header's layout and limits. Must never know: tables' contents.
//!
//! Invariants:
//! * a header that `parse` accepted describes a geometry in which all arithmetic is safe;
//! * `encode_block` returns the block as it was read, with only the known fields changed (QE11, Q8).

use crate::base::geometry::Geometry;
use crate::error::Error;
use crate::fault::{Fault, Lack, NewFault, QedFault};
use alloc::vec::Vec;

/// Bytes of the header's fields.
pub const HEADER_BYTES: usize = 64;
const MAGIC: u32 = 0x0044_4551;
const BACKING_FILE: u64 = 1;
const NEED_CHECK: u64 = 2;
const NO_PROBE: u64 = 4;
const KNOWN_FEATURES: u64 = BACKING_FILE | NEED_CHECK | NO_PROBE;
/// QEMU's buffer for the name holds 4096 bytes with its end (a path may be as long).
const BACKING_NAME_MAX: u32 = 4095;

/// A validated header. See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// Bytes of a cluster, 4 KiB to 64 MiB.
    pub cluster_size: u32,
    /// Clusters of a table, 1 to 16.
    pub table_size: u32,
    /// Clusters in front of the first that may be allocated, at least 1 (Q4).
    pub header_size: u32,
    /// Incompatible feature bits.
    pub features: u64,
    /// Compatible feature bits.
    pub compat_features: u64,
    /// Autoclear feature bits.
    pub autoclear_features: u64,
    /// Where the L1 table lies.
    pub l1_table_offset: u64,
    /// Bytes of the guest disk.
    pub image_size: u64,
    /// Where the backing file's name lies.
    pub backing_filename_offset: u32,
    /// Its length in bytes.
    pub backing_filename_size: u32,
    /// The first block of the file as it was read.
    block: Vec<u8>,
    /// The last check found damage that it could not repair: the need-check bit stays (Q7).
    keep_need_check: bool,
}

/// What a new image shall be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CreateOptions<'a> {
    /// Bytes of the guest disk, rounded up to 512.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Clusters of a table.
    pub table_size: u32,
    /// Name of the backing file.
    pub backing: Option<&'a [u8]>,
    /// The backing file is raw: readers must not guess.
    pub backing_raw: bool,
}

fn corrupt<T>(why: QedFault, value: u64) -> Result<T, Error> {
    Err(Error::Corrupt(Fault::QedHeader { value, why }))
}

fn refuse<T>(why: NewFault, value: u64) -> Result<T, Error> {
    Err(Error::Corrupt(Fault::New { value, why }))
}

fn check_shape(cluster_size: u32, table_size: u32) -> Result<(), Error> {
    if !cluster_size.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster_size) {
        return corrupt(QedFault::ClusterSize, cluster_size.into());
    }
    if !table_size.is_power_of_two() || !(1..=16).contains(&table_size) {
        return corrupt(QedFault::TableSize, table_size.into());
    }
    Ok(())
}

/// The largest guest disk that tables of this shape map (Q2: more bits than 64 are needed on the way).
pub fn size_max(cluster_size: u32, table_size: u32) -> u64 {
    let entries = u128::from(cluster_size) * u128::from(table_size) / 8;
    debug_assert!(cluster_size.is_power_of_two() && table_size.is_power_of_two(), "the shape was validated");
    // guest offsets stay below 2^63, as QEMU's do
    let most = u64::try_from((entries * entries * u128::from(cluster_size)).min((1 << 63) - 512));
    debug_assert!(most.is_ok_and(|most| most > 0 && most.is_multiple_of(512)), "a disk has whole sectors");
    most.unwrap_or(0)
}

impl Header {
    /// Does the file start with QED's magic?
    pub fn probe(bytes: &[u8]) -> bool {
        bytes.len() >= HEADER_BYTES && bytes.starts_with(&MAGIC.to_le_bytes())
    }

    /// Reads and validates. `block` is the first block of the file, at least 64 bytes; `file_len` the file's
    /// length.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what no image may say, [`Error::Unsupported`] for what quod does not do.
    pub fn parse(block: &[u8], file_len: u64) -> Result<Header, Error> {
        if !Header::probe(block) {
            return corrupt(QedFault::Magic, u64::from(word(block, 0)));
        }
        let header = Header {
            cluster_size: word(block, 4),
            table_size: word(block, 8),
            header_size: word(block, 12),
            features: long(block, 16),
            compat_features: long(block, 24),
            autoclear_features: long(block, 32),
            l1_table_offset: long(block, 40),
            image_size: long(block, 48),
            backing_filename_offset: word(block, 56),
            backing_filename_size: word(block, 60),
            block: block.to_vec(),
            keep_need_check: false,
        };
        header.validate(file_len)?;
        debug_assert!(block.starts_with(&header.encode()), "the fields as they were read");
        Ok(header)
    }

    fn validate(&self, file_len: u64) -> Result<(), Error> {
        let unknown = self.features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(Error::Unsupported(Lack::QedFeatures(unknown)));
        }
        check_shape(self.cluster_size, self.table_size)?;
        if !self.image_size.is_multiple_of(512) {
            return corrupt(QedFault::SizeUnaligned, self.image_size);
        }
        if self.image_size > self.size_max() {
            return corrupt(QedFault::SizeTooLarge, self.image_size);
        }
        let header_bytes = u64::from(self.header_size) * u64::from(self.cluster_size);
        if self.header_size == 0 {
            return corrupt(QedFault::NoHeader, 0);
        }
        if header_bytes > u64::from(u32::MAX) {
            return corrupt(QedFault::HeaderTooLarge, self.header_size.into());
        }
        let l1 = self.l1_table_offset;
        if !l1.is_multiple_of(u64::from(self.cluster_size)) {
            return corrupt(QedFault::L1Unaligned, l1);
        }
        if l1 < header_bytes {
            return corrupt(QedFault::L1InHeader, l1);
        }
        if l1.checked_add(self.table_bytes()).is_none_or(|end| end > file_len) {
            return corrupt(QedFault::L1Beyond, l1);
        }
        self.validate_backing(header_bytes)
    }

    fn validate_backing(&self, header_bytes: u64) -> Result<(), Error> {
        debug_assert!(header_bytes > 0, "the header was validated");
        if self.features & BACKING_FILE == 0 {
            return Ok(());
        }
        let (offset, size) = (u64::from(self.backing_filename_offset), u64::from(self.backing_filename_size));
        if self.backing_filename_size > BACKING_NAME_MAX {
            return corrupt(QedFault::BackingTooLong, size);
        }
        if offset + size > header_bytes {
            return corrupt(QedFault::BackingOutside, offset);
        }
        Ok(())
    }

    /// The largest guest disk that tables of this shape map.
    pub fn size_max(&self) -> u64 {
        debug_assert!(self.table_size <= 16, "the shape was validated");
        size_max(self.cluster_size, self.table_size)
    }

    /// Bytes of a table.
    pub fn table_bytes(&self) -> u64 {
        debug_assert!(self.table_size.is_power_of_two(), "the shape was validated");
        u64::from(self.table_size) * u64::from(self.cluster_size)
    }

    /// The shape that the machine works with.
    pub fn geometry(&self) -> Geometry {
        debug_assert!(self.table_size.is_power_of_two() && self.cluster_size.is_power_of_two());
        let table = self.table_bytes();
        let header = u64::from(self.header_size) * u64::from(self.cluster_size);
        debug_assert!(header > 0 && self.l1_table_offset >= header, "the L1 table lies behind the header");
        Geometry::new(self.cluster_size.trailing_zeros(), table / 8, table, self.l1_table_offset, header)
    }

    /// Where the backing file's name lies: offset and length in bytes.
    pub fn backing_name(&self) -> Option<(u64, u32)> {
        debug_assert!(self.features & !KNOWN_FEATURES == 0, "unknown features were refused");
        (self.features & BACKING_FILE != 0)
            .then_some((self.backing_filename_offset.into(), self.backing_filename_size))
    }

    /// The backing file must be taken as raw.
    pub fn backing_raw(&self) -> bool {
        debug_assert!(self.features & !KNOWN_FEATURES == 0, "unknown features were refused");
        self.features & NO_PROBE != 0
    }

    /// The need-check bit.
    pub fn need_check(&self) -> bool {
        debug_assert!(self.features & !KNOWN_FEATURES == 0, "unknown features were refused");
        self.features & NEED_CHECK != 0
    }

    pub(crate) fn set_need_check(&mut self, set: bool) {
        debug_assert!(set || !self.keep_need_check);
        self.features = if set { self.features | NEED_CHECK } else { self.features & !NEED_CHECK };
    }

    pub(crate) fn keeps_need_check(&self) -> bool {
        self.keep_need_check
    }

    pub(crate) fn keep_need_check(&mut self) {
        self.keep_need_check = true;
    }

    /// Bytes of the block that holds the header.
    pub(crate) fn block_len(&self) -> u32 {
        debug_assert!(!self.block.is_empty(), "the header was read");
        self.block.len() as u32
    }

    /// The header's block with the fields as they are now.
    pub fn encode_block(&self, buf: &mut [u8]) {
        debug_assert!(buf.len() >= HEADER_BYTES);
        let len = buf.len().min(self.block.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), self.block.get(..len)) {
            to.copy_from_slice(from);
        }
        let fields = self.encode();
        if let Some(to) = buf.get_mut(..HEADER_BYTES) {
            to.copy_from_slice(&fields);
        }
    }

    /// The 64 bytes of the fields.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [
            (0, MAGIC),
            (4, self.cluster_size),
            (8, self.table_size),
            (12, self.header_size),
            (56, self.backing_filename_offset),
            (60, self.backing_filename_size),
        ];
        let longs = [
            (16, self.features),
            (24, self.compat_features),
            (32, self.autoclear_features),
            (40, self.l1_table_offset),
            (48, self.image_size),
        ];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (at, long) in longs {
            bytes[at..at + 8].copy_from_slice(&long.to_le_bytes());
        }
        debug_assert!(Header::probe(&bytes), "it begins with the magic");
        bytes
    }

    /// A new image: its header, whose first cluster is `encode` and the backing name from byte 64 on; behind
    /// it at `l1_table_offset` an L1 table of zeros ends the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for sizes and names that the format does not have.
    pub fn create(options: &CreateOptions<'_>) -> Result<Header, Error> {
        check_shape(options.cluster_size, options.table_size)?;
        let size = options.size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        if size > size_max(options.cluster_size, options.table_size) {
            return refuse(NewFault::QedSize, options.size);
        }
        let name = options.backing.unwrap_or(b"");
        if name.len() > BACKING_NAME_MAX as usize {
            return refuse(NewFault::QedBackingTooLong, name.len() as u64);
        }
        if HEADER_BYTES + name.len() > options.cluster_size as usize {
            return refuse(NewFault::QedBackingOutside, name.len() as u64);
        }
        debug_assert!(size.is_multiple_of(512), "a disk has whole sectors");
        let mut features = 0;
        if options.backing.is_some() {
            features |= BACKING_FILE | if options.backing_raw { NO_PROBE } else { 0 };
        }
        let header = Header {
            cluster_size: options.cluster_size,
            table_size: options.table_size,
            header_size: 1,
            features,
            compat_features: 0,
            autoclear_features: 0,
            l1_table_offset: options.cluster_size.into(),
            image_size: size,
            backing_filename_offset: if name.is_empty() { 0 } else { HEADER_BYTES as u32 },
            backing_filename_size: name.len() as u32,
            block: Vec::new(),
            keep_need_check: false,
        };
        let file_len = header.l1_table_offset + header.table_bytes();
        debug_assert!(header.validate(file_len).is_ok(), "what is made is read");
        Ok(header)
    }

    /// Names another backing file, or none. The name is to be written at byte 64, durable before the header
    /// (QE11).
    ///
    /// # Errors
    /// [`Error::Unsupported`] beside unknown compatible features, [`Error::NoSpace`] for a name without room.
    pub fn set_backing(&mut self, name: Option<&[u8]>, raw: bool) -> Result<(), Error> {
        if self.compat_features != 0 && name.is_some() {
            return Err(Error::Unsupported(Lack::QedCompatFeatures(self.compat_features)));
        }
        let len = name.map_or(0, <[u8]>::len) as u64;
        if HEADER_BYTES as u64 + len > u64::from(self.header_size) * u64::from(self.cluster_size) {
            return Err(Error::NoSpace);
        }
        if len > u64::from(BACKING_NAME_MAX) {
            return refuse(NewFault::QedBackingTooLong, len);
        }
        self.features &= !(BACKING_FILE | NO_PROBE);
        if name.is_some() {
            self.features |= BACKING_FILE | if raw { NO_PROBE } else { 0 };
        }
        self.backing_filename_offset = if len == 0 { 0 } else { HEADER_BYTES as u32 };
        self.backing_filename_size = len as u32;
        debug_assert!(self.backing_name().is_some() == name.is_some(), "the feature says so");
        let header_bytes = u64::from(self.header_size) * u64::from(self.cluster_size);
        debug_assert!(self.validate_backing(header_bytes).is_ok(), "what is written is read");
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
