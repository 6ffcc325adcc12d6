//! The qcow2 header: fields, feature bits, header extensions and the backing file's name, all in the first
//! cluster.
//!
//! Knows: the header's layout and limits. Must never know: tables' contents.
//!
//! Invariants:
//! * a header that `parse` accepted describes a geometry in which all arithmetic is safe;
//! * `encode_block` returns the block as it was read, with only the known fields changed; unknown fields and
//!   extensions stay, also when [`Header::set_backing`] lays the block out anew.

use super::be;
use super::bitmap;
use super::entry::Shape;
use super::refcount::BlockShape;
use crate::error::Error;
use crate::fault::{ExtensionFault, Fault, HeaderFault, Lack};
use alloc::vec::Vec;

mod extensions;
pub use extensions::Extension;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header that QEMU writes: version 2, version 3.
const LENGTHS: [usize; 2] = [72, 112];
/// QEMU's limits: bytes of the L1 table, of the refcount table, of the backing file's name.
const L1_MAX: u64 = 32 << 20;
const REFTABLE_MAX: u64 = 8 << 20;
/// Metadata in front of the L1 table, generously.
const L1_REACH: u64 = 1 << 30;
const NAME_MAX: usize = 1023;
/// More than any header region that is read at once: see [`Header::region`].
const REGION_MIN: usize = 512;

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be wrong.
    pub const DIRTY: u64 = 1;
    /// Not to be written but by repair.
    pub const CORRUPT: u64 = 2;
    /// Guest data lies in another file.
    pub const DATA_FILE: u64 = 4;
    /// The compression type is not deflate.
    pub const COMPRESSION: u64 = 8;
    /// L2 entries have 128 bits.
    pub const EXTENDED_L2: u64 = 16;
    /// All of them.
    pub const KNOWN: u64 = 31;
}

/// Compatible feature bit: refcounts may be postponed while the dirty bit is set.
pub const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear feature bit: the bitmaps are consistent with the data.
pub const BITMAPS: u64 = 1;
/// Autoclear feature bit: the data file alone is a valid raw image.
pub const RAW_DATA_FILE: u64 = 2;
const KNOWN_AUTOCLEAR: u64 = BITMAPS | RAW_DATA_FILE;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Compression {
    /// Raw deflate.
    #[default]
    Deflate,
    /// One zstd frame a cluster.
    Zstd,
}

/// How an image is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encryption {
    /// AES with a password of QEMU's own making.
    Aes,
    /// LUKS.
    Luks {
        /// Where the LUKS header lies in the file.
        offset: u64,
        /// Bytes of it.
        len: u64,
    },
}

/// What the image is opened for decides what is bearable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// It is told what the header says: encrypted images are shown too.
    Look,
    /// Nothing is written.
    Read,
    /// Guest writes.
    Write,
    /// A check: the snapshot table and a missing refcount table are its business, a corrupt image may be
    /// repaired.
    Check,
}

/// A validated header. See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has this power of two of bytes: 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the guest disk as stored; see [`Header::guest_size`].
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Where it lies.
    pub l1_offset: u64,
    /// Where the refcount table lies.
    pub reftable_offset: u64,
    /// Its clusters.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where the snapshot table lies.
    pub snapshots_offset: u64,
    /// Feature bits that a reader must know; see [`incompatible`].
    pub incompatible: u64,
    /// Feature bits that a reader may ignore.
    pub compatible: u64,
    /// Feature bits that a writer must clear when it does not know them.
    pub autoclear: u64,
    /// Refcounts have this power of two of bits: 0 to 6.
    pub refcount_order: u32,
    /// See [`Compression`].
    pub compression: Compression,
    /// See [`Encryption`]. Only a header that was read for [`Purpose::Look`] has one.
    pub encryption: Option<Encryption>,
    header_length: u32,
    backing_offset: u64,
    backing: Option<Vec<u8>>,
    extensions: Vec<Extension>,
    bitmaps: Option<bitmap::Extension>,
    /// The first bytes of the file as they were read, to the end of what belongs to the header.
    block: Vec<u8>,
}

fn corrupt<T>(why: HeaderFault, value: u64) -> Result<T, Error> {
    Err(Error::Corrupt(Fault::Header { value, why }))
}

/// What is wrong with a table that the header leads to: it is too large, or its offset is no good.
type TableFaults = [HeaderFault; 2];

/// QEMU's rule for a table: so many entries of so many bytes, at a cluster, below 2^63.
fn check_table(faults: TableFaults, offset: u64, bytes: u64, max: u64, cluster: u64) -> Result<(), Error> {
    let [too_large, unaligned] = faults;
    if bytes > max {
        return corrupt(too_large, bytes);
    }
    if !offset.is_multiple_of(cluster) || offset > i64::MAX as u64 - bytes {
        return corrupt(unaligned, offset);
    }
    Ok(())
}

impl Header {
    /// Does the file start with qcow2's magic?
    pub fn probe(bytes: &[u8]) -> bool {
        bytes.len() >= 72 && be::u32_at(bytes, 0) == MAGIC
    }

    /// How many bytes from the start of the file `parse` needs: found from its first 512, at most 2 MiB.
    pub fn region(bytes: &[u8]) -> usize {
        let cluster = 1usize << be::u32_at(bytes, 20).clamp(9, 21);
        let region = match usize::try_from(be::u64_at(bytes, 8)) {
            Ok(0) => cluster,
            Ok(offset) => offset.saturating_add(NAME_MAX).clamp(REGION_MIN, cluster),
            Err(_) => REGION_MIN,
        };
        debug_assert!((REGION_MIN..=2 << 20).contains(&region), "whatever the bytes say");
        region
    }

    /// Reads and validates. `bytes` is the start of the file, zeros past its end, at least
    /// [`Header::region`] of them. The order is QEMU's: what QEMU reports first is reported first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what no image may say, [`Error::Unsupported`] for what quod does not do.
    pub fn parse(bytes: &[u8], purpose: Purpose) -> Result<Header, Error> {
        let mut header = Header::fields(bytes)?;
        header.check_features(bytes, purpose)?;
        header.check_shape()?;
        header.check_encryption(bytes, purpose)?;
        header.check_tables(purpose)?;
        header.extensions = extensions::parse(bytes, header.header_length as usize, header.extensions_end())?;
        header.check_extensions()?;
        header.read_backing(bytes)?;
        let block = header.used(bytes).next_multiple_of(header.cluster_size().min(4096) as usize);
        debug_assert!(block <= 1 << 21, "the header is one cluster at most");
        header.block = bytes.get(..block).unwrap_or(bytes).to_vec();
        let short = header.block.len() < LENGTHS[1];
        debug_assert!(short || header.encode() == header.block, "the block as it was read");
        Ok(header)
    }

    fn fields(bytes: &[u8]) -> Result<Header, Error> {
        if !Header::probe(bytes) {
            return corrupt(HeaderFault::Magic, be::u32_at(bytes, 0).into());
        }
        let version = be::u32_at(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(Error::Unsupported(Lack::Version(version)));
        }
        let cluster_bits = be::u32_at(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return corrupt(HeaderFault::ClusterBits, cluster_bits.into());
        }
        let v3 = |value| if version == 3 { value } else { 0 };
        let header = Header {
            version,
            cluster_bits,
            size: be::u64_at(bytes, 24),
            l1_entries: be::u32_at(bytes, 36),
            l1_offset: be::u64_at(bytes, 40),
            reftable_offset: be::u64_at(bytes, 48),
            reftable_clusters: be::u32_at(bytes, 56),
            snapshots: be::u32_at(bytes, 60),
            snapshots_offset: be::u64_at(bytes, 64),
            incompatible: v3(be::u64_at(bytes, 72)),
            compatible: v3(be::u64_at(bytes, 80)),
            autoclear: v3(be::u64_at(bytes, 88)),
            refcount_order: if version == 3 { be::u32_at(bytes, 96) } else { 4 },
            compression: Compression::Deflate,
            encryption: None,
            header_length: if version == 3 { be::u32_at(bytes, 100) } else { 72 },
            backing_offset: be::u64_at(bytes, 8),
            backing: None,
            extensions: Vec::new(),
            bitmaps: None,
            block: Vec::new(),
        };
        let length = u64::from(header.header_length);
        debug_assert!(header.version >= 3 || header.incompatible == 0, "version 2 has no feature bits");
        if version == 3 && length < 104 {
            return corrupt(HeaderFault::TooShort, length);
        }
        if length > header.cluster_size() {
            return corrupt(HeaderFault::TooLong, length);
        }
        if header.backing_offset > header.cluster_size() {
            return corrupt(HeaderFault::BackingOutside, header.backing_offset);
        }
        if bytes.len() < Header::region(bytes).min(header.extensions_end()) {
            return Err(Error::Misuse("too few bytes of the header were read"));
        }
        Ok(header)
    }

    fn check_features(&mut self, bytes: &[u8], purpose: Purpose) -> Result<(), Error> {
        let kind = if self.header_length > 104 { bytes.get(104).copied().unwrap_or(0) } else { 0 };
        self.compression = match kind {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            _ => return Err(Error::Unsupported(Lack::Compression(kind))),
        };
        if (kind != 0) != (self.incompatible & incompatible::COMPRESSION != 0) {
            return corrupt(HeaderFault::Compression, kind.into());
        }
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            // the table only names the bits: what is wrong with it does not matter now
            let names = extensions::parse(bytes, self.header_length as usize, self.extensions_end())
                .unwrap_or_default();
            return Err(Error::Unsupported(extensions::name_features(&names, unknown)));
        }
        if self.is_corrupt() && purpose == Purpose::Write {
            return corrupt(HeaderFault::MarkedCorrupt, self.incompatible);
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), Error> {
        if self.shape().extended && self.cluster_bits < 14 {
            return corrupt(HeaderFault::Subclusters, self.cluster_bits.into());
        }
        if self.refcount_order > 6 {
            return corrupt(HeaderFault::RefcountOrder, self.refcount_order.into());
        }
        Ok(())
    }

    fn check_encryption(&mut self, bytes: &[u8], purpose: Purpose) -> Result<(), Error> {
        let number = be::u32_at(bytes, 32);
        self.encryption = match number {
            1 => Some(Encryption::Aes),
            // where its header lies stands in an extension
            2 => Some(Encryption::Luks { offset: 0, len: 0 }),
            _ => None,
        };
        match number {
            0 => Ok(()),
            1 | 2 if purpose == Purpose::Look => Ok(()),
            _ => Err(Error::Unsupported(Lack::Encryption(number))),
        }
    }

    fn check_tables(&self, purpose: Purpose) -> Result<(), Error> {
        let cluster = self.cluster_size();
        if self.reftable_clusters == 0 && purpose != Purpose::Check {
            return corrupt(HeaderFault::NoReftable, 0);
        }
        let bytes = u64::from(self.reftable_clusters) * cluster;
        let faults = [HeaderFault::ReftableTooLarge, HeaderFault::ReftableUnaligned];
        check_table(faults, self.reftable_offset, bytes, REFTABLE_MAX, cluster)?;
        if purpose != Purpose::Check {
            self.check_snapshots()?;
        }
        let bytes = u64::from(self.l1_entries) * 8;
        let faults = [HeaderFault::L1TooLarge, HeaderFault::L1Unaligned];
        check_table(faults, self.l1_offset, bytes, L1_MAX, cluster)?;
        let needed = self.shape().l1_entries(self.size);
        if needed > i32::MAX as u64 {
            return corrupt(HeaderFault::SizeTooLarge, self.size);
        }
        if u64::from(self.l1_entries) < needed {
            return corrupt(HeaderFault::L1TooSmall, self.l1_entries.into());
        }
        Ok(())
    }

    /// Count and place of the snapshot table, which a check does not ask for before it reads the table.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a table that is too large, or begins in the middle of a cluster.
    pub fn check_snapshots(&self) -> Result<(), Error> {
        let (bytes, max) = (u64::from(self.snapshots) * 40, u64::from(super::snapshot::SNAPSHOTS_MAX) * 40);
        let faults = [HeaderFault::SnapshotsTooLarge, HeaderFault::SnapshotsUnaligned];
        check_table(faults, self.snapshots_offset, bytes, max, self.cluster_size())
    }

    fn check_extensions(&mut self) -> Result<(), Error> {
        let wrong = |why, value| Err(Error::Corrupt(Fault::Extension { value, why }));
        for extension in &self.extensions {
            let (data, len) = (&extension.data, extension.data.len() as u64);
            match extension.kind {
                Extension::BACKING_FORMAT if len >= 16 => {
                    return wrong(ExtensionFault::BackingFormat, len);
                }
                Extension::ENCRYPTION => {
                    let Some(Encryption::Luks { .. }) = self.encryption else {
                        return wrong(ExtensionFault::NotLuks, len);
                    };
                    let (offset, bytes) = (be::u64_at(data, 0), be::u64_at(data, 8));
                    if len != 16 || !offset.is_multiple_of(1 << self.cluster_bits) {
                        return wrong(ExtensionFault::Luks, offset);
                    }
                    self.encryption = Some(Encryption::Luks { offset, len: bytes });
                }
                Extension::BITMAPS if self.autoclear & BITMAPS != 0 => {
                    self.bitmaps = Some(bitmap::Extension::parse(data, 1 << self.cluster_bits)?);
                }
                _ => {}
            }
        }
        if self.autoclear & RAW_DATA_FILE != 0 && self.incompatible & incompatible::DATA_FILE == 0 {
            return corrupt(HeaderFault::RawDataFile, self.autoclear);
        }
        Ok(())
    }

    fn read_backing(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.backing_offset == 0 {
            return Ok(());
        }
        let len = be::u32_at(bytes, 16);
        debug_assert!(self.backing_offset <= self.cluster_size(), "what lies outside was refused");
        if u64::from(len) > (self.cluster_size() - self.backing_offset).min(NAME_MAX as u64) {
            return corrupt(HeaderFault::BackingTooLong, len.into());
        }
        let at = usize::try_from(self.backing_offset).unwrap_or(usize::MAX);
        let Some(name) = bytes.get(at..at.saturating_add(len as usize)) else {
            return Err(Error::Misuse("too few bytes of the header were read"));
        };
        self.backing = Some(name.to_vec());
        Ok(())
    }

    /// Where the extensions end at the latest.
    fn extensions_end(&self) -> usize {
        debug_assert!(self.backing_offset <= self.cluster_size(), "the header is one cluster at most");
        if self.backing_offset != 0 { self.backing_offset as usize } else { 1 << self.cluster_bits }
    }

    /// Bytes from the start of the file that belong to the header.
    fn used(&self, bytes: &[u8]) -> usize {
        let extensions = extensions::end(bytes, self.header_length as usize, self.extensions_end());
        let name = self.backing.as_ref().map_or(0, |name| self.backing_offset as usize + name.len());
        debug_assert!(extensions <= self.extensions_end(), "extensions end before the name");
        extensions.max(name).max(LENGTHS[0])
    }
}

mod access;
mod switch;

#[cfg(test)]
mod tests;
