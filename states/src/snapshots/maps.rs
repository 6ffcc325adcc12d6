//! The directory of persistent bitmaps: read whole, changed in one place, written whole to another place; and
//! the table of the bitmap that is changed.
//!
//! Knows: entries of both. Must never know: counts, where something new lies before it is told.
//!
//! Invariant: bounded by the limits of the format: 64 MiB of directory, 8 MiB of a table, and that of `bits`.

use super::ask::{BitmapAsk, BitmapChange};
use super::bits::{BITS_MAX, Bits};
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::{BitmapFault, BitmapLack, Fault, Lack};
use crate::qcow2::bitmap::{self, Bitmap, Extension, Piece};
use crate::qcow2::{Header, Shape};
use alloc::vec;
use alloc::vec::Vec;

/// Bytes that are read at once.
const CHUNK: u64 = 64 << 10;

/// What becomes of the table of the bitmap that is changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Table {
    /// It stays.
    Stays,
    /// There is none yet, and one without bits comes.
    Comes,
    /// It goes,
    Goes,
    /// and one without bits comes,
    Cleared,
    /// or one with its bits, and more.
    Merged,
}

impl Table {
    /// The old one is wanted.
    pub(super) const fn is_read(self) -> bool {
        matches!(self, Table::Goes | Table::Cleared | Table::Merged)
    }

    /// There will be a new one.
    const fn is_written(self) -> bool {
        matches!(self, Table::Comes | Table::Cleared | Table::Merged)
    }
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Maps {
    /// The directory as it was read,
    bytes: Vec<u8>,
    /// and as it shall be.
    entries: Vec<Bitmap>,
    /// The bitmap that is changed: what it is now, and which entry it shall have.
    old: Option<Bitmap>,
    index: Option<usize>,
    pub(super) table: Option<Table>,
    /// Clusters that the old table leads to: which piece of the bits each is, and where it lies.
    pieces: Vec<(u64, u64)>,
    bits: Bits,
    /// Which clusters of the bits are stored, and the new table.
    stored: Vec<u64>,
    words: Vec<u64>,
}

/// May this be asked of an image with this header?
pub(crate) fn admit(ask: &BitmapAsk, header: &Header) -> Result<(), Error> {
    if header.version < 3 {
        return Err(refused(BitmapLack::Version2));
    }
    if ask.name.is_empty() || ask.name.len() > usize::from(bitmap::NAME_MAX) {
        return Err(Error::Misuse("the name of a bitmap has 1 to 1023 bytes"));
    }
    let (size, bits) = (header.guest_size(), header.cluster_bits);
    match &ask.change {
        BitmapChange::Add { granularity_bits, .. } => {
            let granularity = granularity_bits.unwrap_or(bitmap::default_granularity_bits(bits));
            if !bitmap::GRANULARITY_BITS.contains(&granularity) {
                return Err(Error::Misuse("a bit of a bitmap stands for 2^9 to 2^31 bytes"));
            }
            Ok(())
        }
        BitmapChange::Merge(other) if other.size != size => {
            Err(refused(BitmapLack::OtherSize(size, other.size)))
        }
        BitmapChange::Merge(other) if !bitmap::GRANULARITY_BITS.contains(&other.granularity_bits) => {
            Err(Error::Misuse("a bit of a bitmap stands for 2^9 to 2^31 bytes"))
        }
        BitmapChange::Merge(other) if other.bits.len() as u64 > BITS_MAX => {
            Err(refused(BitmapLack::TooLargeToMerge))
        }
        BitmapChange::Merge(_) | BitmapChange::Remove | BitmapChange::Clear => Ok(()),
        BitmapChange::Enable | BitmapChange::Disable => Ok(()),
    }
}

const fn refused(lack: BitmapLack) -> Error {
    Error::Unsupported(Lack::Bitmap(lack))
}

impl Maps {
    /// The piece of the directory that has to be read next; None: all of it is there.
    pub(super) fn next(&self, header: &Header) -> Option<(u64, u64)> {
        let list = header.bitmaps()?;
        let done = self.bytes.len() as u64;
        debug_assert!(list.directory_size <= bitmap::DIRECTORY_MAX, "a longer one was refused");
        (done < list.directory_size)
            .then(|| (list.directory_offset + done, (list.directory_size - done).min(CHUNK)))
    }

    /// That piece.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        debug_assert!(!bytes.is_empty(), "a piece has bytes");
        self.bytes.extend_from_slice(bytes);
    }

    /// Changes the directory as it was asked.
    pub(super) fn change(&mut self, ask: &BitmapAsk, stores: bool, header: &Header) -> Result<Table, Error> {
        debug_assert!(self.table.is_none(), "it is changed once");
        if let Some(list) = header.bitmaps() {
            let bytes = self.bytes.get(..list.directory_size as usize).unwrap_or(&self.bytes);
            self.entries = bitmap::parse_directory(bytes, list.count, header.shape(), header.guest_size())?;
        }
        let index = self.entries.iter().position(|bitmap| bitmap.name == ask.name);
        let table = match (&ask.change, index) {
            (BitmapChange::Add { .. }, Some(_)) => return Err(refused(BitmapLack::Exists)),
            (BitmapChange::Add { granularity_bits, enabled }, None) => {
                self.add(&ask.name, *granularity_bits, *enabled, header)?;
                Table::Comes
            }
            (_, None) => return Err(Error::NoBitmap),
            (change, Some(index)) => self.change_entry(index, change, stores, header)?,
        };
        self.table = Some(table);
        Ok(table)
    }

    fn add(
        &mut self,
        name: &[u8],
        granularity_bits: Option<u8>,
        enabled: bool,
        header: &Header,
    ) -> Result<(), Error> {
        let (size, bits) = (header.guest_size(), header.cluster_bits);
        let granularity_bits = granularity_bits.unwrap_or(bitmap::default_granularity_bits(bits));
        let table_entries = match bitmap::entries_of(size, granularity_bits, bits) {
            None => return Err(refused(BitmapLack::TooLarge)),
            Some(0) => return Err(refused(BitmapLack::EmptyDisk)),
            Some(entries) => entries,
        };
        debug_assert!(bitmap::GRANULARITY_BITS.contains(&granularity_bits), "it was admitted");
        let mut new = Bitmap {
            // it is told later
            table_offset: header.cluster_size(),
            table_entries,
            flags: 0,
            granularity_bits,
            name: name.to_vec(),
            at: 0,
        };
        new.set_auto(enabled);
        self.index = Some(self.entries.len());
        self.entries.push(new);
        let bytes = bitmap::encode_directory(&self.entries).len() as u64;
        match self.entries.len() > bitmap::BITMAPS_MAX as usize || bytes > bitmap::DIRECTORY_MAX {
            true => Err(refused(BitmapLack::TooMany)),
            false => Ok(()),
        }
    }

    fn change_entry(
        &mut self,
        index: usize,
        change: &BitmapChange,
        stores: bool,
        header: &Header,
    ) -> Result<Table, Error> {
        // cannot fail: it was found there
        let Some(bitmap) = self.entries.get_mut(index) else { return Err(Error::NoBitmap) };
        if bitmap.in_use() && *change != BitmapChange::Remove && !stores {
            return Err(refused(BitmapLack::InUse));
        }
        (self.old, self.index) = (Some(bitmap.clone()), Some(index));
        debug_assert!(bitmap.table_entries > 0, "a bitmap has a table");
        if stores {
            bitmap.set_stored();
        }
        Ok(match change {
            BitmapChange::Remove => {
                self.entries.remove(index);
                self.index = None;
                Table::Goes
            }
            BitmapChange::Clear => Table::Cleared,
            BitmapChange::Merge(_) => {
                let (size, granularity_bits) = (header.guest_size(), bitmap.granularity_bits);
                if bitmap::bytes_of(size, granularity_bits) > BITS_MAX {
                    return Err(refused(BitmapLack::TooLargeToMerge));
                }
                self.bits = Bits::new(size, granularity_bits);
                Table::Merged
            }
            BitmapChange::Enable | BitmapChange::Disable => {
                bitmap.set_auto(*change == BitmapChange::Enable);
                Table::Stays
            }
            BitmapChange::Add { .. } => return Err(refused(BitmapLack::Exists)),
        })
    }

    /// Where the old table lies, and its entries.
    pub(super) fn old_table(&self) -> Option<(u64, u32)> {
        let read = self.table.is_some_and(Table::is_read);
        debug_assert!(!read || self.old.is_some(), "what is read is there");
        self.old.as_ref().filter(|_| read).map(|old| (old.table_offset, old.table_entries))
    }

    /// The words of the old table.
    pub(super) fn table_read(&mut self, words: &[u64], header: &Header) -> Result<(), Error> {
        let (shape, merged) = (header.shape(), self.table == Some(Table::Merged));
        let cluster = header.cluster_size();
        let old = self.old.as_ref();
        debug_assert!(old.is_some_and(|old| old.table_entries as usize == words.len()), "all of it");
        let size = bitmap::bytes_of(header.guest_size(), old.map_or(9, |old| old.granularity_bits));
        if merged && words.len() as u64 != size.div_ceil(cluster) {
            let (value, why) = (words.len() as u64, BitmapFault::TableSize);
            return Err(Error::Corrupt(Fault::Bitmap { index: self.index.unwrap_or(0) as u64, value, why }));
        }
        for (index, word) in (0..).zip(words) {
            match bitmap::decode_piece(index, *word, shape)? {
                Piece::All(false) => {}
                Piece::All(true) if merged => self.bits.fill(index * cluster, cluster),
                Piece::All(true) => {}
                Piece::Stored(host) => self.pieces.push((index, host)),
            }
        }
        Ok(())
    }

    /// Where the old bits lie.
    pub(super) fn pieces(&self) -> impl Iterator<Item = u64> {
        debug_assert!(self.old.is_some() || self.pieces.is_empty(), "what is read is there");
        self.pieces.iter().map(|(_, host)| *host)
    }

    /// The next cluster of old bits that is to be read: where it lies.
    pub(super) fn piece(&self, at: u64) -> Option<u64> {
        debug_assert!(self.table.is_some(), "it is known what is changed");
        if self.table != Some(Table::Merged) {
            return None;
        }
        usize::try_from(at).ok().and_then(|at| self.pieces.get(at)).map(|(_, host)| *host)
    }

    /// It was read.
    pub(super) fn piece_read(&mut self, at: u64, cluster: u64, bytes: &[u8]) {
        debug_assert!(self.piece(at).is_some(), "it was asked for");
        if let Some((index, _)) = usize::try_from(at).ok().and_then(|at| self.pieces.get(at)) {
            self.bits.read(index * cluster, bytes);
        }
    }

    /// Nothing leads there any more: the old directory, table and bits.
    pub(super) fn dropped(&self, header: &Header) -> Vec<Span> {
        let cluster = header.cluster_size();
        let mut old = Vec::new();
        debug_assert!(cluster.is_power_of_two(), "limits of the format");
        if let Some(list) = header.bitmaps() {
            old.push(Span::at(list.directory_offset, list.directory_size));
        }
        if let Some((offset, entries)) = self.old_table() {
            old.push(Span::at(offset, u64::from(entries) * 8));
            old.extend(self.pieces.iter().map(|(_, host)| Span::at(*host, cluster)));
        }
        old
    }

    /// All old bits are there: how many clusters the new ones take.
    pub(super) fn prepare(&mut self, change: &BitmapChange, cluster: u64) -> u64 {
        debug_assert!(self.stored.is_empty(), "once");
        if let BitmapChange::Merge(other) = change {
            self.bits.merge(other);
            self.stored = self.bits.stored(cluster);
        }
        self.stored.len() as u64
    }

    /// They lie from there on: bytes of the new table.
    pub(super) fn place_bits(&mut self, host: u64, cluster: u64) -> u64 {
        let written = self.table.is_some_and(Table::is_written);
        let Some(new) = self.index.and_then(|index| self.entries.get(index)).filter(|_| written) else {
            return 0;
        };
        self.words = vec![0; new.table_entries as usize];
        for (place, index) in (0..).zip(&self.stored) {
            debug_assert!(host > 0, "they have a place");
            if let Some(word) = self.words.get_mut(*index as usize) {
                *word = host + place * cluster;
            }
        }
        u64::from(new.table_entries) * 8
    }

    /// The new table lies there, if there is one: the new directory.
    pub(super) fn place_table(&mut self, host: Option<u64>) -> Vec<u8> {
        if let (Some(host), Some(new)) = (host, self.index.and_then(|index| self.entries.get_mut(index))) {
            debug_assert!(self.table.is_some_and(Table::is_written), "only a new one has a place");
            new.table_offset = host;
        }
        bitmap::encode_directory(&self.entries)
    }

    /// What the header says of the new directory.
    pub(super) fn extension(&self, host: u64, bytes: u64) -> Option<Extension> {
        let count = self.entries.len() as u32;
        debug_assert!(count == 0 || host > 0 && bytes > 0, "it has a place");
        (count > 0).then_some(Extension { count, directory_size: bytes, directory_offset: host })
    }

    /// The new table.
    pub(super) fn words(&self) -> &[u64] {
        debug_assert!(self.table.is_some(), "it is known what is changed");
        &self.words
    }

    /// The bits that lie behind each other from this byte of their clusters on.
    pub(super) fn encode_bits(&self, at: u64, shape: Shape, buf: &mut [u8]) {
        let cluster = shape.cluster_size();
        debug_assert!(at < self.stored.len() as u64 * cluster, "what is stored is written");
        let step = cluster.min(buf.len() as u64);
        for (at, buf) in (0..).map(|n| at + n * step).zip(buf.chunks_mut(step as usize)) {
            if let Some(index) = self.stored.get((at / cluster) as usize) {
                self.bits.encode(index * cluster + at % cluster, buf);
            }
        }
    }
}
