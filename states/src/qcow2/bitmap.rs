//! Persistent dirty bitmaps: the header extension, the directory, the entries of a bitmap's table.
//!
//! Knows: what is stored about bitmaps, and how long it is. Must never know: which bits are set.
//!
//! Invariants:
//! * a directory takes memory only for entries that it really has;
//! * a bitmap that `parse` accepted keeps to QEMU's limits, so its table has at most 2^20 clusters of data.

use super::be;
use super::entry::{OFFSET, Shape};
use crate::error::Error;
use crate::fault::{BitmapFault, BitsFault, ExtensionFault, Fault};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// Bitmaps of an image.
pub const BITMAPS_MAX: u32 = 65535;
/// Bytes of a directory.
pub const DIRECTORY_MAX: u64 = 1024 * 65535;
/// Entries of a bitmap's table.
pub const TABLE_MAX: u32 = 0x0800_0000;
/// Bytes of a bitmap's data.
const DATA_MAX: u64 = 0x2000_0000;
/// Bytes of an entry's fixed part.
const FIXED: usize = 24;
/// Dirty tracking, the only type that there is.
const KIND: u8 = 1;
const IN_USE: u32 = 1;
const AUTO: u32 = 2;
/// Bytes of a name.
pub const NAME_MAX: u16 = 1023;
/// The smallest and the largest power of two that a bit may stand for.
pub const GRANULARITY_BITS: RangeInclusive<u8> = 9..=31;

/// The header extension.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extension {
    /// Bitmaps in the directory.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Where it lies.
    pub directory_offset: u64,
}

/// An entry of the directory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Bitmap {
    /// Where its table lies.
    pub table_offset: u64,
    /// Entries of its table.
    pub table_entries: u32,
    /// The flags as stored.
    pub flags: u32,
    /// A bit stands for this power of two of bytes.
    pub granularity_bits: u8,
    /// Its name.
    pub name: Vec<u8>,
    /// Where the entry stands in the directory.
    pub at: usize,
}

/// An entry of a bitmap's table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Piece {
    /// All bits are this.
    All(bool),
    /// The bits stand in this cluster.
    Stored(u64),
}

fn corrupt<T>(why: BitmapFault, index: u64, value: u64) -> Result<T, Error> {
    Err(Error::Corrupt(Fault::Bitmap { index, value, why }))
}

impl Extension {
    /// Reads and validates the extension's data.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for lengths and places that no image may have.
    pub fn parse(data: &[u8], cluster_size: u64) -> Result<Extension, Error> {
        let corrupt = |why, value| Err(Error::Corrupt(Fault::Extension { value, why }));
        if data.len() != 24 {
            return corrupt(ExtensionFault::BitmapsLength, data.len() as u64);
        }
        if be::u32_at(data, 4) != 0 {
            return corrupt(ExtensionFault::BitmapsReserved, be::u32_at(data, 4).into());
        }
        let extension = Extension {
            count: be::u32_at(data, 0),
            directory_size: be::u64_at(data, 8),
            directory_offset: be::u64_at(data, 16),
        };
        if extension.count > BITMAPS_MAX || extension.count == 0 {
            return corrupt(ExtensionFault::BitmapsCount, extension.count.into());
        }
        if !extension.directory_offset.is_multiple_of(cluster_size) {
            return corrupt(ExtensionFault::BitmapsUnaligned, extension.directory_offset);
        }
        if extension.directory_size > DIRECTORY_MAX {
            return corrupt(ExtensionFault::BitmapsTooLong, extension.directory_size);
        }
        Ok(extension)
    }

    /// The extension's data.
    pub fn encode(&self) -> [u8; 24] {
        debug_assert!(self.count > 0 && self.count <= BITMAPS_MAX, "without bitmaps there is no extension");
        let mut data = [0; 24];
        be::put_u32(&mut data, 0, self.count);
        be::put_u64(&mut data, 8, self.directory_size);
        be::put_u64(&mut data, 16, self.directory_offset);
        data
    }
}

/// A directory of these bitmaps.
pub fn encode_directory(bitmaps: &[Bitmap]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bitmap in bitmaps {
        bitmap.encode(&mut bytes);
    }
    debug_assert!(bytes.len().is_multiple_of(8), "entries are padded");
    bytes
}

/// What a granularity is where nobody has said one: the size of a cluster, between 4 and 64 KiB.
pub const fn default_granularity_bits(cluster_bits: u32) -> u8 {
    debug_assert!(cluster_bits >= 9 && cluster_bits <= 21, "limits of the format");
    match cluster_bits {
        ..12 => 12,
        17.. => 16,
        bits => bits as u8,
    }
}

/// Bytes of the bits of a disk of `size` bytes.
pub const fn bytes_of(size: u64, granularity_bits: u8) -> u64 {
    debug_assert!(granularity_bits >= 9 && granularity_bits <= 31, "limits of the format");
    size.div_ceil(1 << granularity_bits).div_ceil(8)
}

/// Sets the bits from `first` on, up to `end`.
pub(crate) fn set_bits(bytes: &mut [u8], first: u64, end: u64) {
    let mut at = first;
    debug_assert!(end <= bytes.len() as u64 * 8, "each has a place");
    while at < end {
        let (index, bit) = ((at / 8) as usize, at % 8);
        if bit == 0 && end - at >= 16 {
            // whole bytes at once
            let last = (end / 8) as usize;
            if let Some(bytes) = bytes.get_mut(index..last) {
                bytes.fill(0xff);
            }
            at = end / 8 * 8;
            continue;
        }
        let count = (8 - bit).min(end - at);
        if let Some(byte) = bytes.get_mut(index) {
            *byte |= ((0xffu16 >> (8 - count)) << bit) as u8;
        }
        at += count;
    }
}

/// Entries of the table of a bitmap of a disk of `size` bytes; None: the bitmap would be too large.
pub fn entries_of(size: u64, granularity_bits: u8, cluster_bits: u32) -> Option<u32> {
    let entries = bytes_of(size, granularity_bits).div_ceil(1 << cluster_bits);
    debug_assert!((9..=21).contains(&cluster_bits), "limits of the format");
    let fits = entries <= TABLE_MAX.into() && entries << cluster_bits <= DATA_MAX;
    u32::try_from(entries).ok().filter(|_| fits)
}

/// Reads a directory of `count` bitmaps of a guest disk of `size` bytes.
///
/// # Errors
/// [`Error::Corrupt`] with the entry, and what is wrong with it.
pub fn parse_directory(bytes: &[u8], count: u32, shape: Shape, size: u64) -> Result<Vec<Bitmap>, Error> {
    let mut bitmaps = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let index = bitmaps.len() as u64;
        debug_assert!(bitmaps.len() <= BITMAPS_MAX as usize, "the header's count was validated");
        if index >= count.into() {
            return corrupt(BitmapFault::MoreEntries, index, at as u64);
        }
        let entry = bytes.get(at..).unwrap_or(&[]);
        let (name_len, extra_len) = (be::u16_at(entry, 18), be::u32_at(entry, 20));
        // the entry's end, without and with padding: 24 + 65535 + 2^32 fits
        let end = FIXED as u64 + u64::from(name_len) + u64::from(extra_len);
        if entry.len() < FIXED || end.next_multiple_of(8) > entry.len() as u64 {
            return corrupt(BitmapFault::CutOff, index, at as u64);
        }
        if extra_len != 0 {
            return corrupt(BitmapFault::ExtraData, index, extra_len.into());
        }
        let name = entry.get(FIXED..FIXED + usize::from(name_len)).unwrap_or(&[]);
        let bitmap = Bitmap {
            table_offset: be::u64_at(entry, 0),
            table_entries: be::u32_at(entry, 8),
            flags: be::u32_at(entry, 12),
            granularity_bits: entry.get(17).copied().unwrap_or(0),
            name: name.to_vec(),
            at,
        };
        bitmap.validate(index, entry.get(16).copied().unwrap_or(0), name_len, shape, size)?;
        debug_assert!(bitmap.at == at && at.is_multiple_of(8), "an entry begins at a multiple of 8");
        bitmaps.push(bitmap);
        at += usize::try_from(end.next_multiple_of(8)).unwrap_or(usize::MAX);
    }
    if bitmaps.len() as u64 != u64::from(count) {
        return corrupt(BitmapFault::FewerEntries, 0, bitmaps.len() as u64);
    }
    Ok(bitmaps)
}

/// Names of the valid bitmaps in the first bytes of a directory of `count`, up to the first entry that is
/// cut off or makes no sense; and how many entries before that are of invalid ones.
pub fn names(bytes: &[u8], count: u32) -> (Vec<Vec<u8>>, u32) {
    let (mut names, mut invalid, mut at) = (Vec::new(), 0, 0);
    for _ in 0..count {
        let entry = bytes.get(at..).unwrap_or(&[]);
        debug_assert!(at.is_multiple_of(8), "an entry begins at a multiple of 8");
        let (name_len, extra_len) = (be::u16_at(entry, 18), be::u32_at(entry, 20));
        let Some(name) = entry.get(FIXED..FIXED + usize::from(name_len)) else { break };
        if extra_len != 0 || name_len == 0 || name_len > NAME_MAX {
            break;
        }
        match be::u32_at(entry, 12) & IN_USE {
            0 => names.push(name.to_vec()),
            _ => invalid += 1,
        }
        at += (FIXED + usize::from(name_len)).next_multiple_of(8);
    }
    (names, invalid)
}

impl Bitmap {
    /// It was open for writing when its driver ended, or still is: its bits are not to be trusted.
    pub const fn in_use(&self) -> bool {
        debug_assert!(self.flags & !(IN_USE | AUTO) == 0, "other flags were refused");
        self.flags & IN_USE != 0
    }

    /// It shall be loaded and kept up to date by whoever writes the image.
    pub const fn auto(&self) -> bool {
        debug_assert!(self.flags & !(IN_USE | AUTO) == 0, "other flags were refused");
        self.flags & AUTO != 0
    }

    /// In the bytes of its directory: it is in use.
    pub(crate) fn mark_in_use(&self, directory: &mut [u8]) {
        // the flags' last byte: no sector of them is torn
        let flags = directory.get_mut(self.at + 15);
        debug_assert!(flags.is_some(), "the entry was read there");
        if let Some(flags) = flags {
            *flags |= IN_USE as u8;
        }
    }

    /// All that was noted is in it.
    pub(crate) fn set_stored(&mut self) {
        self.flags &= !IN_USE;
        debug_assert!(!self.in_use(), "it says so");
    }

    /// It is kept up, or is not.
    pub fn set_auto(&mut self, set: bool) {
        self.flags = if set { self.flags | AUTO } else { self.flags & !AUTO };
        debug_assert!(self.auto() == set, "it says so");
    }

    /// The entry, with its padding.
    pub fn encode(&self, directory: &mut Vec<u8>) {
        debug_assert!(self.table_offset > 0 && self.table_entries > 0, "a bitmap has a table");
        let (start, len) = (directory.len(), FIXED + self.name.len());
        directory.resize(start + len.next_multiple_of(8), 0);
        let entry = directory.get_mut(start..).unwrap_or_default();
        be::put_u64(entry, 0, self.table_offset);
        be::put_u32(entry, 8, self.table_entries);
        be::put_u32(entry, 12, self.flags);
        be::put(entry, 16, &[KIND, self.granularity_bits]);
        be::put(entry, 18, &(self.name.len() as u16).to_be_bytes());
        be::put(entry, FIXED, &self.name);
    }

    /// Bytes of its table.
    pub const fn table_bytes(&self) -> u64 {
        debug_assert!(self.table_entries <= TABLE_MAX, "a longer table was refused");
        self.table_entries as u64 * 8
    }

    fn validate(&self, index: u64, kind: u8, name_len: u16, shape: Shape, size: u64) -> Result<(), Error> {
        if self.table_entries == 0 || self.table_entries > TABLE_MAX {
            return corrupt(BitmapFault::TableSize, index, self.table_entries.into());
        }
        if self.table_offset == 0 || !self.table_offset.is_multiple_of(shape.cluster_size()) {
            return corrupt(BitmapFault::TableUnaligned, index, self.table_offset);
        }
        if !GRANULARITY_BITS.contains(&self.granularity_bits) {
            return corrupt(BitmapFault::Granularity, index, self.granularity_bits.into());
        }
        if self.flags & !(IN_USE | AUTO) != 0 {
            return corrupt(BitmapFault::Flags, index, self.flags.into());
        }
        if name_len == 0 || name_len > NAME_MAX {
            return corrupt(BitmapFault::Name, index, name_len.into());
        }
        if kind != KIND {
            return corrupt(BitmapFault::Kind, index, kind.into());
        }
        let data = u64::from(self.table_entries) << shape.cluster_bits;
        if data > DATA_MAX {
            return corrupt(BitmapFault::TooLarge, index, data);
        }
        // at most 2^29 bytes of 2^3 bits of 2^31 bytes each: fits
        if !self.in_use() && size > (data * 8) << self.granularity_bits {
            return corrupt(BitmapFault::TooSmall, index, data);
        }
        Ok(())
    }
}

/// An entry of a bitmap's table. `index` is only for the error.
///
/// # Errors
/// [`Error::Corrupt`] for reserved bits, and a place that is no cluster's.
pub fn decode_piece(index: u64, entry: u64, shape: Shape) -> Result<Piece, Error> {
    let host = entry & OFFSET;
    let corrupt = |why| Err(Error::Corrupt(Fault::BitmapTable { index, entry, why }));
    if entry & !(OFFSET | 1) != 0 || host != 0 && entry & 1 != 0 {
        return corrupt(BitsFault::Reserved);
    }
    if !host.is_multiple_of(shape.cluster_size()) {
        return corrupt(BitsFault::Unaligned);
    }
    let piece = if host == 0 { Piece::All(entry & 1 != 0) } else { Piece::Stored(host) };
    let all = u64::from(piece == Piece::All(true));
    debug_assert!(host | all == entry, "nothing that the entry says is lost");
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape { version: 3, cluster_bits: 16, extended: false, data_file: false };

    fn entry(name: &[u8], flags: u32) -> Vec<u8> {
        let mut entry = vec![0; 24];
        be::put_u64(&mut entry, 0, 0x7_0000);
        be::put_u32(&mut entry, 8, 1);
        be::put_u32(&mut entry, 12, flags);
        entry[16] = 1;
        entry[17] = 16;
        entry[19] = name.len() as u8;
        entry.extend(name);
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }

    #[test]
    fn a_directory() {
        let mut bytes = entry(b"first", 2);
        bytes.extend(entry(b"second", 1));
        let bitmaps = parse_directory(&bytes, 2, SHAPE, 1 << 30).unwrap();
        assert_eq!((bitmaps[0].auto(), bitmaps[0].in_use(), bitmaps[0].at), (true, false, 0));
        assert_eq!((bitmaps[1].in_use(), &bitmaps[1].name[..], bitmaps[1].at), (true, &b"second"[..], 32));
        assert!(parse_directory(&bytes, 1, SHAPE, 1 << 30).is_err());
        assert!(parse_directory(&bytes, 3, SHAPE, 1 << 30).is_err());
        assert!(parse_directory(&bytes[..60], 2, SHAPE, 1 << 30).is_err());
        // one cluster of bits at 64 KiB: 32 GiB
        assert!(parse_directory(&bytes, 2, SHAPE, 1 << 36).is_err());
    }

    #[test]
    fn what_is_written_is_what_was_read() {
        let mut bytes = entry(b"first", 2);
        bytes.extend(entry(b"eight by", 1));
        let bitmaps = parse_directory(&bytes, 2, SHAPE, 1 << 30).unwrap();
        assert_eq!(encode_directory(&bitmaps), bytes);
        let mut bitmap = bitmaps[0].clone();
        bitmap.set_auto(false);
        assert!(!bitmap.auto() && !bitmap.in_use());
        let extension = Extension { count: 2, directory_size: 64, directory_offset: 0x5_0000 };
        assert_eq!(Extension::parse(&extension.encode(), 65536), Ok(extension));
    }

    /// qemu-img's numbers.
    #[test]
    fn sizes() {
        assert_eq!([9, 12, 14, 16, 21].map(default_granularity_bits), [12, 12, 14, 16, 16]);
        assert_eq!((bytes_of(1 << 30, 16), bytes_of((1 << 30) + 1, 16), bytes_of(0, 9)), (2048, 2049, 0));
        assert_eq!((entries_of(1 << 30, 16, 16), entries_of(64 << 40, 16, 16)), (Some(1), Some(2048)));
        assert_eq!((entries_of(64 << 40, 14, 16), entries_of(64 << 40, 13, 16)), (Some(8192), None));
        assert_eq!((entries_of(64 << 30, 9, 9), entries_of(0, 16, 16)), (Some(32768), Some(0)));
    }

    #[test]
    fn bits_are_set() {
        let all = |bits: &[u8]| {
            (0..bits.len() as u64 * 8)
                .filter(|n| bits[(n / 8) as usize] >> (n % 8) & 1 != 0)
                .collect::<Vec<u64>>()
        };
        for first in 0..40 {
            for end in first..=40 {
                let mut bits = [0; 5];
                set_bits(&mut bits, first, end);
                assert_eq!(all(&bits), (first..end).collect::<Vec<u64>>());
            }
        }
    }

    #[test]
    fn names_of_what_is_valid_as_far_as_the_bytes_go() {
        let mut bytes = entry(b"first", 2);
        bytes.extend(entry(b"used", 1));
        bytes.extend(entry(b"third one", 0));
        let first = vec![b"first".to_vec()];
        assert_eq!(names(&bytes, 3), (vec![b"first".to_vec(), b"third one".to_vec()], 1));
        assert_eq!((names(&bytes, 2), names(&bytes, 1)), ((first.clone(), 1), (first.clone(), 0)));
        assert_eq!(names(&bytes, 9).0.len(), 2, "there are no more");
        assert_eq!(names(&bytes[..64 + 32], 3), (first.clone(), 1), "cut off in a name");
        assert_eq!((names(&bytes[..20], 3), names(&[], 3)), ((vec![], 0), (vec![], 0)));
        for (at, value) in [(64 + 23, 1), (64 + 19, 0), (64 + 18, 4)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            bad.resize(4096, b'n');
            assert_eq!(names(&bad, 3), (first.clone(), 1), "byte {at}");
        }
    }

    #[test]
    fn bad_fields() {
        let bad: [fn(&mut [u8]); 10] = [
            |e| e[7] = 1,
            |e| e[5] = 0,
            |e| e[11] = 0,
            |e| e[8] = 0xff,
            |e| e[15] = 4,
            |e| e[16] = 2,
            |e| e[17] = 8,
            |e| e[17] = 32,
            |e| e[19] = 0,
            |e| e[23] = 1,
        ];
        for (n, change) in bad.iter().enumerate() {
            let mut bytes = entry(b"name", 0);
            bytes.extend([0; 8]);
            assert!(parse_directory(&bytes[..32], 1, SHAPE, 0).is_ok());
            change(&mut bytes);
            assert!(parse_directory(&bytes, 1, SHAPE, 0).is_err(), "{n}");
        }
    }

    #[test]
    fn the_extension() {
        let mut data = vec![0; 24];
        data[3] = 1;
        data[15] = 32;
        data[21] = 5;
        let extension = Extension { count: 1, directory_size: 32, directory_offset: 0x5_0000 };
        assert_eq!(Extension::parse(&data, 65536), Ok(extension));
        for at in [0, 3, 4, 7, 8, 22] {
            let mut bad = data.clone();
            bad[at] ^= 1;
            assert!(Extension::parse(&bad, 65536).is_err(), "{at}");
        }
        assert!(Extension::parse(&data[..23], 65536).is_err());
    }

    /// The last value that is good, and the first that is not, and what is said of it.
    #[test]
    fn limits() {
        let bad = |why, value| Err(Error::Corrupt(Fault::Bitmap { index: 0, value, why }));
        let parse = |change: &dyn Fn(&mut Vec<u8>), size| {
            let mut bytes = entry(b"name", 0);
            change(&mut bytes);
            let shape = Shape { cluster_bits: 9, ..SHAPE };
            parse_directory(&bytes, 1, shape, size).map(|bitmaps| bitmaps[0].name.len())
        };
        let entries = |count| parse(&move |e| be::put_u32(e, 8, count), 0);
        // 512 MiB of bits
        assert_eq!(entries(1 << 20), Ok(4));
        assert_eq!(entries((1 << 20) + 1), bad(BitmapFault::TooLarge, (1 << 29) + 512));
        assert_eq!(entries(TABLE_MAX), bad(BitmapFault::TooLarge, 1 << 36));
        assert_eq!(entries(TABLE_MAX + 1), bad(BitmapFault::TableSize, 0x0800_0001));
        let offset = |offset| parse(&move |e| be::put_u64(e, 0, offset), 0);
        assert_eq!(offset(512), Ok(4));
        for value in [0, 511, 513] {
            assert_eq!(offset(value), bad(BitmapFault::TableUnaligned, value));
        }
        let name = |len: u16| {
            let long = move |e: &mut Vec<u8>| {
                be::put(e, 18, &len.to_be_bytes());
                e.resize(24 + usize::from(len).next_multiple_of(8), b'n');
            };
            parse(&long, 0)
        };
        assert_eq!((name(1), name(1023)), (Ok(1), Ok(1023)));
        let long = BitmapFault::Name;
        assert_eq!((name(0), name(1024)), (bad(long, 0), bad(long, 1024)));
        // one cluster of 4096 bits at 64 KiB
        assert_eq!(parse(&|_| {}, 4096 << 16), Ok(4));
        assert_eq!(parse(&|_| {}, (4096 << 16) + 1), bad(BitmapFault::TooSmall, 512));
        assert_eq!(parse(&|e| e[15] = 1, (4096 << 16) + 1), Ok(4), "in use: it is not trusted anyway");
        let flags = |flags| parse(&move |e| be::put_u32(e, 12, flags), 0);
        assert_eq!((flags(3), flags(7)), (Ok(4), bad(BitmapFault::Flags, 7)));
        let mut short = entry(b"eight by", 1);
        assert_eq!(short.len(), 32);
        let [bitmap] = &parse_directory(&short, 1, SHAPE, 0).unwrap()[..] else { panic!("one") };
        assert!(bitmap.in_use() && !bitmap.auto());
        short.truncate(31);
        assert_eq!(parse_directory(&short, 1, SHAPE, 0).map(|_| 0), bad(BitmapFault::CutOff, 0));
        short.truncate(23);
        assert_eq!(parse_directory(&short, 1, SHAPE, 0).map(|_| 0), bad(BitmapFault::CutOff, 0));
    }

    #[test]
    fn limits_of_the_extension() {
        let parse = |count, size| {
            let mut data = vec![0; 24];
            be::put_u32(&mut data, 0, count);
            be::put_u64(&mut data, 8, size);
            Extension::parse(&data, 512).is_ok()
        };
        assert_eq!([0, 1, 65535, 65536].map(|count| parse(count, 32)), [false, true, true, false]);
        assert_eq!([0, 1024 * 65535, 1024 * 65535 + 1].map(|size| parse(1, size)), [true, true, false]);
    }

    #[test]
    fn pieces() {
        assert_eq!(decode_piece(0, 0, SHAPE), Ok(Piece::All(false)));
        assert_eq!(decode_piece(0, 1, SHAPE), Ok(Piece::All(true)));
        assert_eq!(decode_piece(0, 0x9_0000, SHAPE), Ok(Piece::Stored(0x9_0000)));
        for bad in [2, 0x9_0001, 0x9_0200, 1 << 56] {
            assert!(decode_piece(0, bad, SHAPE).is_err(), "{bad:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), count: u32, size: u64) {
            let _ = parse_directory(&bytes, count, SHAPE, size);
            let _ = (Extension::parse(&bytes, 512), names(&bytes, count));
        }
    }
}
