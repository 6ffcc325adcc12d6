//! A new image: every byte of it, laid out exactly as `qemu-img create -f qcow2` does.
//!
//! Knows: options, their conflicts, the layout. Must never know: files; the pieces are for the caller to
//! write.
//!
//! Invariants:
//! * pieces are made one at a time: a preallocated image of any size needs memory for one table;
//! * what no piece covers reads as zeros.

use super::entry::COPIED;
use super::header::{Compression, Header, LAZY_REFCOUNTS, Purpose, RAW_DATA_FILE, incompatible};
use super::refcount::BlockShape;
use crate::error::Error;
use crate::fault::{Fault, NewFault};
use alloc::vec;
use alloc::vec::Vec;

mod options;
mod space;
pub use options::{CreateOptions, Preallocation};
use space::Space;

/// QEMU's limit for an L1 table, entries.
const L1_MAX: u64 = (32 << 20) / 8;
/// QEMU allocates no more bytes at once.
const ALLOCATION_MAX: u64 = i32::MAX as u64;

/// A run of guest clusters that has space: first guest cluster, first host cluster, clusters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Extent {
    guest: u64,
    host: u64,
    count: u64,
}

/// The layout of a new image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    header: Header,
    space: Space,
    /// L2 tables, in clusters: the one at `n` belongs to L1 entry `n`.
    l2: Vec<u64>,
    /// In guest order, without gaps.
    extents: Vec<Extent>,
    len: u64,
    reserve: Option<(u64, u64)>,
    data_file_len: Option<u64>,
}

/// Lays out a new image.
///
/// # Errors
/// [`Error::Misuse`] and [`Error::Corrupt`] for options that the format does not have, or that exclude each
/// other.
pub fn create(options: &CreateOptions<'_>) -> Result<Created, Error> {
    options::check_options(options)?;
    let layout = BlockShape {
        cluster_bits: options.cluster_size.trailing_zeros(),
        order: options.refcount_bits.trailing_zeros(),
    };
    let bit = |set, bit| if set { bit } else { 0 };
    let features = [
        bit(options.data_file.is_some(), incompatible::DATA_FILE)
            | bit(options.compression == Compression::Zstd, incompatible::COMPRESSION)
            | bit(options.extended_l2, incompatible::EXTENDED_L2),
        bit(options.lazy_refcounts, LAZY_REFCOUNTS),
        bit(options.data_file_raw, RAW_DATA_FILE),
    ];
    let header =
        Header::new(options.version, layout.cluster_bits, layout.order, features, options.data_file)?;
    let size = options.size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    let l1_entries = header.shape().l1_entries(size);
    if l1_entries > L1_MAX {
        return Err(Error::Corrupt(Fault::New { value: options.size, why: NewFault::Size }));
    }
    let mut created = Created {
        header,
        space: Space::new(layout),
        l2: Vec::new(),
        extents: Vec::new(),
        len: 0,
        reserve: None,
        data_file_len: options.data_file.is_some().then_some(size),
    };
    created.header.size = size;
    created.header.l1_entries = l1_entries as u32;
    if l1_entries > 0 {
        let at = created.space.alloc((l1_entries * 8).div_ceil(created.header.cluster_size()))?;
        created.header.l1_offset = at << layout.cluster_bits;
    }
    match options.preallocation {
        Preallocation::Off if !options.data_file_raw => {}
        Preallocation::Falloc | Preallocation::Full if options.data_file.is_none() => created.reserve()?,
        _ => created.preallocate()?,
    }
    created.header.reftable_offset = created.space.table_at << layout.cluster_bits;
    created.header.reftable_clusters = created.space.table_clusters() as u32;
    if options.backing.is_some() {
        created.header.set_backing(options.backing, options.backing_format)?;
    }
    debug_assert!(created.space.table.len() <= (8 << 20) / 8, "a longer table was refused");
    created.len = (0..created.piece_count()).map(|n| created.piece_range(n).1).fold(created.len, u64::max);
    Ok(created)
}

impl Created {
    fn clusters(&self) -> u64 {
        debug_assert!(self.header.size > 0 || self.header.l1_entries == 0, "no disk has no tables");
        self.header.size.div_ceil(self.header.cluster_size())
    }

    /// preallocation=metadata, and the others with a data file: L2 table and data take turns.
    fn preallocate(&mut self) -> Result<(), Error> {
        debug_assert!(self.l2.is_empty() && self.extents.is_empty());
        let (shape, clusters) = (self.header.shape(), self.clusters());
        let mut guest = 0;
        while guest < clusters {
            let first = guest;
            let end = clusters.min(guest + (ALLOCATION_MAX >> shape.cluster_bits));
            let mut host = None;
            while guest < end {
                let table = guest >> shape.l2_bits();
                if table == self.l2.len() as u64 {
                    let at = self.space.alloc(1)?;
                    self.l2.push(at);
                }
                let count = end.min((table + 1) << shape.l2_bits()) - guest;
                debug_assert!(count > 0, "it gets on");
                let got = match host {
                    _ if shape.data_file => {
                        self.push(guest, guest, count);
                        count
                    }
                    None => {
                        let at = self.space.alloc(count)?;
                        host = Some(at);
                        self.push(guest, at, count);
                        count
                    }
                    Some(first_host) => {
                        let at = first_host + guest - first;
                        let got = self.space.alloc_at(at, count)?;
                        self.push(guest, at, got);
                        got
                    }
                };
                guest += got;
                if got < count {
                    break;
                }
            }
            // what the disk does not need of its last cluster is written with zeros, in units of subclusters
            let unit = shape.cluster_size() / if shape.extended { 32 } else { 1 };
            let end = (guest << shape.cluster_bits).min(self.header.size).next_multiple_of(unit);
            let bytes = end - (first << shape.cluster_bits);
            match host {
                _ if shape.data_file => self.data_file_len = Some(end),
                Some(host) => self.len = self.len.max((host << shape.cluster_bits) + bytes),
                None => {}
            }
        }
        Ok(())
    }

    /// preallocation=falloc and full: refcounts first, then the data in one run, then the L2 tables wherever
    /// they fit.
    fn reserve(&mut self) -> Result<(), Error> {
        debug_assert!(self.l2.is_empty() && self.extents.is_empty());
        let (shape, clusters) = (self.header.shape(), self.clusters());
        let tables = clusters.div_ceil(shape.l2_entries());
        let from = self.space.used.end();
        debug_assert!(from > 0, "the header comes first");
        let start = self.space.make_area(from, clusters + tables + 1, true, None)?;
        self.space.alloc_at(start, clusters)?;
        for _ in 0..tables {
            let at = self.space.alloc(1)?;
            self.l2.push(at);
        }
        self.push(0, start, clusters);
        self.len = (start + clusters) << shape.cluster_bits;
        self.reserve = Some((start << shape.cluster_bits, clusters << shape.cluster_bits));
        Ok(())
    }

    /// The next clusters of the disk have space.
    fn push(&mut self, guest: u64, host: u64, count: u64) {
        match self.extents.last_mut() {
            Some(last) if last.host + last.count == host => {
                debug_assert_eq!(last.guest + last.count, guest);
                last.count += count;
            }
            _ => self.extents.push(Extent { guest, host, count }),
        }
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file in bytes.
    pub const fn len(&self) -> u64 {
        debug_assert!(self.len > 0, "a new image is never empty");
        self.len
    }

    /// A new image is never empty.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// preallocation=falloc: the range (offset, bytes) whose space is to be reserved; full: to be written
    /// with zeros.
    pub const fn data_range(&self) -> Option<(u64, u64)> {
        debug_assert!(self.len > 0, "it was laid out");
        self.reserve
    }

    /// Length of the data file in bytes; its space is to be reserved or written as `preallocation` says.
    pub const fn data_file_len(&self) -> Option<u64> {
        debug_assert!(self.data_file_len.is_none() || self.header.has_data_file(), "only with a data file");
        self.data_file_len
    }

    /// What is to be written: offset and bytes, in an order in which later pieces may cover earlier ones.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        (0..self.piece_count()).filter_map(|n| {
            let (offset, end) = self.piece_range(n);
            debug_assert!(offset <= end, "it does not run backwards");
            let bytes = (offset < end).then(|| self.piece(n));
            let whole = |bytes: &Vec<u8>| bytes.len() as u64 == end - offset;
            debug_assert!(bytes.as_ref().is_none_or(whole), "its bytes fill its place");
            bytes.map(|bytes| (offset, bytes))
        })
    }

    /// Old refcount tables, the header, the refcount table, the L1 table, then refcount blocks and L2 tables.
    fn piece_count(&self) -> usize {
        self.space.old_tables.len() + 3 + self.space.table.len() + self.l2.len()
    }

    /// Which piece `n` is: an old table, one of the three, a refcount block, an L2 table.
    fn kind(&self, n: usize) -> Piece {
        debug_assert!(n < self.piece_count());
        let old = self.space.old_tables.len();
        let blocks = old + 3 + self.space.table.len();
        match n {
            _ if n < old => Piece::OldTable(n),
            _ if n == old => Piece::Header,
            _ if n == old + 1 => Piece::Reftable,
            _ if n == old + 2 => Piece::L1,
            _ if n < blocks => Piece::Block(n - old - 3),
            _ => Piece::L2(n - blocks),
        }
    }

    /// First byte, and first behind the last.
    fn piece_range(&self, n: usize) -> (u64, u64) {
        let bits = self.header.cluster_bits;
        let cluster = |at: Option<&u64>| at.map_or((0, 0), |at| (at << bits, (at + 1) << bits));
        match self.kind(n) {
            Piece::OldTable(n) => self.space.old_tables.get(n).map_or((0, 0), |(at, table)| {
                let end = at + (table.len() as u64 >> (bits - 3));
                // what was put in its place since then is zeros or another piece
                let taken = self.space.used.within(*at, end).next().is_some();
                if taken { (0, 0) } else { (at << bits, end << bits) }
            }),
            Piece::Header => (0, 1 << bits),
            Piece::Reftable => {
                (self.header.reftable_offset, (self.space.table_at + self.space.table_clusters()) << bits)
            }
            Piece::L1 => {
                (self.header.l1_offset, self.header.l1_offset + u64::from(self.header.l1_entries) * 8)
            }
            Piece::Block(n) => cluster(self.space.table.get(n).filter(|at| **at != 0)),
            Piece::L2(n) => cluster(self.l2.get(n)),
        }
    }

    fn piece(&self, n: usize) -> Vec<u8> {
        let bits = self.header.cluster_bits;
        let longs = |entries: &[u64], flag: u64| {
            let entry = |at: &u64| if *at == 0 { [0; 8] } else { (at << bits | flag).to_be_bytes() };
            entries.iter().flat_map(entry).collect::<Vec<u8>>()
        };
        match self.kind(n) {
            Piece::OldTable(n) => self.space.old_tables.get(n).map_or(Vec::new(), |(_, old)| longs(old, 0)),
            Piece::Header => {
                let mut block = self.header.encode();
                block.resize(1 << bits, 0);
                debug_assert!(Header::parse(&block, Purpose::Write).is_ok(), "what is made is read");
                block
            }
            Piece::Reftable => longs(&self.space.table, 0),
            Piece::L1 => {
                let mut table = longs(&self.l2, COPIED);
                table.resize(self.header.l1_entries as usize * 8, 0);
                table
            }
            Piece::Block(n) => self.block(n as u64),
            Piece::L2(n) => self.l2_table(n as u64),
        }
    }

    fn block(&self, n: u64) -> Vec<u8> {
        debug_assert!(n < self.space.table.len() as u64);
        let (layout, mut block) = (self.space.layout, vec![0; 1 << self.header.cluster_bits]);
        let first = n << layout.block_bits();
        for (run, end) in self.space.used.within(first, first + layout.block_entries()) {
            for cluster in run..end {
                layout.set(&mut block, layout.block_index(cluster), 1);
            }
        }
        block
    }

    fn l2_table(&self, n: u64) -> Vec<u8> {
        debug_assert!(n < self.l2.len() as u64);
        let shape = self.header.shape();
        let mut table = vec![0; 1 << shape.cluster_bits];
        let (first, end) = (n << shape.l2_bits(), (n + 1) << shape.l2_bits());
        let from = self.extents.partition_point(|extent| extent.guest + extent.count <= first);
        let extents = self.extents.iter().skip(from).take_while(|extent| extent.guest < end);
        for extent in extents {
            for guest in extent.guest.max(first)..(extent.guest + extent.count).min(end) {
                let host = (extent.host + guest - extent.guest) << shape.cluster_bits;
                let at = ((guest - first) * shape.l2_entry_bytes()) as usize;
                super::be::put_u64(&mut table, at, host | COPIED);
            }
        }
        table
    }
}

enum Piece {
    OldTable(usize),
    Header,
    Reftable,
    L1,
    Block(usize),
    L2(usize),
}

#[cfg(test)]
mod tests;
