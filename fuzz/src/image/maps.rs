//! Persistent bitmaps as they stand in a file, and as they should.
//!
//! Knows: the directory, tables and bits, through `quod-states`. Must never know: requests in flight.

use super::qcow2::header;
use quod::{BitmapAsk, BitmapBits, BitmapChange};
use quod_backend::sim::Sim;
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2::bitmap::{self, Piece};

/// A bit stands for a sector.
const GRANULARITY_BITS: u8 = 9;

/// A bitmap.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Map {
    name: Vec<u8>,
    enabled: bool,
    bits: Vec<u8>,
}

/// What a scenario does to one of its bitmaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapChange {
    /// It comes,
    Add,
    /// or goes.
    Remove,
    /// No bit is set.
    Clear,
    /// It is kept up no more.
    Disable,
    /// The bits of the first sector, and of the last, are set.
    Merge,
}

fn name(index: u8) -> Vec<u8> {
    vec![b'a' + index; 5]
}

/// Bits of the first sector, and of the last.
fn ends(size: u64) -> Vec<u8> {
    let mut bits = vec![0; bitmap::bytes_of(size, GRANULARITY_BITS) as usize];
    bits[0] |= 1;
    let last = (size - 1) >> GRANULARITY_BITS;
    bits[(last / 8) as usize] |= 1 << (last % 8);
    bits
}

impl Map {
    /// Whoever writes the image keeps it up.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The guest may have changed these bytes.
    pub fn note(&mut self, start: u64, end: u64) {
        if self.enabled && start < end {
            for bit in start >> GRANULARITY_BITS..=(end - 1) >> GRANULARITY_BITS {
                self.bits[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
    }
}

impl MapChange {
    /// As the driver is asked for it, of a disk of so many bytes.
    pub fn ask(self, index: u8, size: u64) -> BitmapAsk {
        let change = match self {
            MapChange::Add => BitmapChange::Add { granularity_bits: Some(GRANULARITY_BITS), enabled: true },
            MapChange::Remove => BitmapChange::Remove,
            MapChange::Clear => BitmapChange::Clear,
            MapChange::Disable => BitmapChange::Disable,
            MapChange::Merge => {
                BitmapChange::Merge(BitmapBits { granularity_bits: GRANULARITY_BITS, size, bits: ends(size) })
            }
        };
        BitmapAsk { name: name(index), change }
    }

    /// The bitmaps when it was done.
    pub fn done(self, index: u8, size: u64, maps: &[Map]) -> Checked<Vec<Map>> {
        let (mut maps, name) = (maps.to_vec(), name(index));
        let at = maps.iter().position(|map| map.name == name);
        match (self, at) {
            (MapChange::Add, None) => {
                let bits = vec![0; bitmap::bytes_of(size, GRANULARITY_BITS) as usize];
                maps.push(Map { name, enabled: true, bits });
            }
            (MapChange::Remove, Some(at)) => drop(maps.remove(at)),
            (MapChange::Clear, Some(at)) => maps[at].bits.fill(0),
            (MapChange::Disable, Some(at)) => maps[at].enabled = false,
            (MapChange::Merge, Some(at)) => {
                maps[at].bits.iter_mut().zip(ends(size)).for_each(|(bits, more)| *bits |= more);
            }
            _ => return fail(format!("{self:?} of a bitmap that is there, or is not: {maps:?}")),
        }
        Ok(maps)
    }
}

/// The bitmaps of a file that somebody may trust.
pub fn maps(sim: &Sim, path: &str) -> Checked<Vec<Map>> {
    let header = header(sim, path)?;
    let Some(list) = header.bitmaps() else { return Ok(Vec::new()) };
    let (shape, cluster, size) = (header.shape(), header.cluster_size() as usize, header.guest_size());
    let bad = |error| Failure(format!("{path}, a bitmap: {error}"));
    let directory = sim.file_range(path, list.directory_offset, list.directory_size as usize);
    let mut maps = Vec::new();
    for found in bitmap::parse_directory(&directory, list.count, shape, size).map_err(bad)? {
        if found.in_use() {
            continue;
        }
        let mut bits = vec![0; bitmap::bytes_of(size, found.granularity_bits) as usize];
        let table = sim.file_range(path, found.table_offset, found.table_bytes() as usize);
        let words = table.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        for ((index, word), bits) in (0..).zip(words).zip(bits.chunks_mut(cluster)) {
            match bitmap::decode_piece(index, word, shape).map_err(bad)? {
                Piece::All(set) => bits.fill(if set { 0xff } else { 0 }),
                Piece::Stored(host) => bits.copy_from_slice(&sim.file_range(path, host, bits.len())),
            }
        }
        maps.push(Map { enabled: found.auto(), name: found.name, bits });
    }
    Ok(maps)
}
