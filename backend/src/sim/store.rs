//! Sparse bytes: 4 KiB chunks, shared between copies until one of them writes.
//!
//! Knows: byte ranges. Must never know: versions, durability, operations.
//! Invariant: what was never written reads as zeros and costs nothing; equal content has an equal digest,
//! whether zeros were written or never touched.

use super::digest::{Digest, of_bytes};
use crate::buffer::Segments;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

pub(super) const CHUNK: usize = 4096;

/// Four KiB of content; remembers its digest, since explorers ask for it at every step.
#[derive(Clone)]
pub(super) struct Chunk {
    bytes: [u8; CHUNK],
    digest: OnceLock<u128>,
}

impl Chunk {
    fn zeroed() -> Chunk {
        Chunk { bytes: [0; CHUNK], digest: OnceLock::new() }
    }

    pub(super) fn bytes(&self) -> &[u8; CHUNK] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8; CHUNK] {
        self.digest = OnceLock::new();
        &mut self.bytes
    }

    /// Zero for a chunk of zeros: as if it were not there.
    fn digest(&self) -> u128 {
        *self.digest.get_or_init(|| match self.bytes.iter().all(|&b| b == 0) {
            true => 0,
            false => of_bytes(&self.bytes),
        })
    }
}

/// A chunk, or zeros.
pub(super) type Content = Option<Arc<Chunk>>;

/// The part of a write that falls into one chunk: its bytes are at their place in a chunk of their own, zero
/// elsewhere.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) chunk: u64,
    pub(super) range: Range<u16>,
    data: Arc<Chunk>,
}

/// What an operation does to content.
#[derive(Clone)]
pub(super) enum Change {
    Nothing,
    Write(SmallVec<[Piece; 2]>),
    Zero(Range<u64>),
}

/// `range` clipped to a chunk, relative to it.
fn within(range: &Range<u64>, chunk: u64) -> Range<usize> {
    let base = chunk * CHUNK as u64;
    let start = range.start.clamp(base, base + CHUNK as u64) - base;
    let end = range.end.clamp(base, base + CHUNK as u64) - base;
    start as usize..end.max(start) as usize
}

/// The chunks that a range touches.
fn chunks(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK as u64..range.end.div_ceil(CHUNK as u64)
}

impl Change {
    /// Copies what is in memory now.
    ///
    /// # Safety
    /// The segments are valid for reads.
    pub(super) unsafe fn capture(offset: u64, segments: &Segments) -> Change {
        let mut pieces: SmallVec<[Piece; 2]> = SmallVec::new();
        let mut at = offset;
        for segment in segments {
            let (mut from, mut left) = (segment.address().cast_const(), segment.len());
            while left > 0 {
                let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
                let step = left.min(CHUNK - start);
                match pieces.last_mut() {
                    Some(last) if last.chunk == chunk => last.range.end = (start + step) as u16,
                    _ => {
                        let range = start as u16..(start + step) as u16;
                        pieces.push(Piece { chunk, range, data: Arc::new(Chunk::zeroed()) });
                    }
                }
                // pieces is not empty, and nobody else has the new chunk
                if let Some(data) = pieces.last_mut().and_then(|piece| Arc::get_mut(&mut piece.data)) {
                    // SAFETY: `step` bytes are left in the segment (valid, promised) and in the chunk.
                    unsafe { std::ptr::copy_nonoverlapping(from, data.bytes.as_mut_ptr().add(start), step) };
                }
                (from, left, at) = (from.wrapping_add(step), left - step, at + step as u64);
            }
        }
        Change::Write(pieces)
    }

    /// Only the first `bytes` of a write; other changes happen entirely or not at all.
    pub(super) fn first_bytes(&self, bytes: u64) -> Change {
        let Change::Write(pieces) = self else {
            return if bytes == 0 { Change::Nothing } else { self.clone() };
        };
        let mut left = bytes;
        let mut kept = SmallVec::new();
        for piece in pieces {
            let len = (u64::from(piece.range.end - piece.range.start)).min(left);
            if len > 0 {
                let mut piece = piece.clone();
                let end = piece.range.start + len as u16;
                if end < piece.range.end {
                    // outside its range a piece is zero: `Store::apply` relies on it
                    Arc::make_mut(&mut piece.data).bytes_mut()[usize::from(end)..].fill(0);
                    piece.range.end = end;
                }
                kept.push(piece);
            }
            left -= len;
        }
        Change::Write(kept)
    }

    /// The chunks that this may change, each with the byte range inside it; of a zeroing only those that
    /// `present` names, since others are zero already.
    pub(super) fn touched(&self, present: impl Fn(Range<u64>) -> Vec<u64>) -> Vec<(u64, Range<usize>)> {
        match self {
            Change::Nothing => Vec::new(),
            Change::Write(pieces) => {
                pieces.iter().map(|p| (p.chunk, p.range.start.into()..p.range.end.into())).collect()
            }
            Change::Zero(range) => {
                present(chunks(range)).into_iter().map(|chunk| (chunk, within(range, chunk))).collect()
            }
        }
    }

    /// One chunk after this change.
    pub(super) fn over(&self, chunk: u64, content: &Content) -> Content {
        let mut content = content.clone();
        match self {
            Change::Nothing => {}
            Change::Write(pieces) => {
                for piece in pieces.iter().filter(|p| p.chunk == chunk) {
                    overlay(&mut content, piece);
                }
            }
            Change::Zero(range) => zero_in(&mut content, within(range, chunk)),
        }
        content
    }

    pub(super) fn digest(&self, digest: &mut Digest) {
        match self {
            Change::Nothing => drop(digest.word(0)),
            Change::Write(pieces) => {
                digest.word(1);
                for piece in pieces {
                    digest
                        .word(piece.chunk)
                        .word(u64::from(piece.range.start))
                        .word(u64::from(piece.range.end));
                    digest.wide(piece.data.digest());
                }
            }
            Change::Zero(range) => {
                digest.word(2).word(range.start).word(range.end);
            }
        }
    }
}

fn overlay(content: &mut Content, piece: &Piece) {
    let range = usize::from(piece.range.start)..usize::from(piece.range.end);
    if range == (0..CHUNK) {
        *content = Some(Arc::clone(&piece.data));
        return;
    }
    let chunk = content.get_or_insert_with(|| Arc::new(Chunk::zeroed()));
    Arc::make_mut(chunk).bytes_mut()[range.clone()].copy_from_slice(&piece.data.bytes[range]);
}

fn zero_in(content: &mut Content, range: Range<usize>) {
    if range == (0..CHUNK) {
        *content = None;
    } else if let Some(chunk) = content
        && !range.is_empty()
    {
        Arc::make_mut(chunk).bytes_mut()[range].fill(0);
    }
}

/// Content by chunk number. Cloning is cheap: the map too is shared until written.
#[derive(Clone, Default)]
pub(super) struct Store {
    chunks: Arc<BTreeMap<u64, Arc<Chunk>>>,
}

impl Store {
    pub(super) fn from_bytes(bytes: &[u8]) -> Store {
        let mut chunks = BTreeMap::new();
        for (number, part) in bytes.chunks(CHUNK).enumerate() {
            if part.iter().any(|&b| b != 0) {
                let mut chunk = Chunk::zeroed();
                chunk.bytes[..part.len()].copy_from_slice(part);
                chunks.insert(number as u64, Arc::new(chunk));
            }
        }
        Store { chunks: Arc::new(chunks) }
    }

    pub(super) fn get(&self, chunk: u64) -> Content {
        self.chunks.get(&chunk).cloned()
    }

    pub(super) fn set(&mut self, chunk: u64, content: Content) {
        let chunks = Arc::make_mut(&mut self.chunks);
        match content {
            Some(content) => drop(chunks.insert(chunk, content)),
            None => drop(chunks.remove(&chunk)),
        }
    }

    /// Puts these bytes there.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let start = (at % CHUNK as u64) as usize;
            let (part, behind) = rest.split_at(rest.len().min(CHUNK - start));
            let chunk = chunks.entry(at / CHUNK as u64).or_insert_with(|| Arc::new(Chunk::zeroed()));
            Arc::make_mut(chunk).bytes_mut()[start..start + part.len()].copy_from_slice(part);
            (rest, at) = (behind, at + part.len() as u64);
        }
    }

    /// Numbers of the chunks in `range` that are stored.
    pub(super) fn present(&self, range: Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        self.chunks.range(range).map(|(&number, _)| number).collect()
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Nothing => {}
            Change::Write(pieces) => {
                let chunks = Arc::make_mut(&mut self.chunks);
                for piece in pieces {
                    match chunks.get_mut(&piece.chunk) {
                        Some(stored) if piece.range == (0..CHUNK as u16) => *stored = Arc::clone(&piece.data),
                        Some(stored) => {
                            let range = usize::from(piece.range.start)..usize::from(piece.range.end);
                            let bytes = Arc::make_mut(stored).bytes_mut();
                            bytes[range.clone()].copy_from_slice(&piece.data.bytes[range]);
                        }
                        // around the piece's range its chunk is zero, as is what was never written
                        None => drop(chunks.insert(piece.chunk, Arc::clone(&piece.data))),
                    }
                }
            }
            Change::Zero(range) => {
                for number in self.present(chunks(range)) {
                    let mut content = Arc::make_mut(&mut self.chunks).remove(&number);
                    zero_in(&mut content, within(range, number));
                    if content.is_some() {
                        self.set(number, content);
                    }
                }
            }
        }
    }

    /// Copies bytes out.
    ///
    /// # Safety
    /// `len` bytes at `to` are valid for writes.
    pub(super) unsafe fn read(&self, offset: u64, to: *mut u8, len: usize) {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let step = (len - done).min(CHUNK - start);
            let to = to.wrapping_add(done);
            match self.chunks.get(&chunk) {
                // SAFETY: inside the chunk, and `step` of the caller's bytes are left.
                Some(chunk) => unsafe {
                    std::ptr::copy_nonoverlapping(chunk.bytes.as_ptr().add(start), to, step)
                },
                // SAFETY: as above.
                None => unsafe { std::ptr::write_bytes(to, 0, step) },
            }
            done += step;
        }
    }

    /// Does not depend on order or on stored zeros.
    pub(super) fn digest(&self) -> u128 {
        let mut sum = 0u128;
        for (&number, chunk) in self.chunks.iter() {
            let content = chunk.digest();
            if content != 0 {
                let mut digest = Digest::new();
                digest.word(number).wide(content);
                sum = sum.wrapping_add(digest.finish());
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Segment;
    use crate::sim::chooser::{Choice, Chooser, Seeded};

    fn read(store: &Store, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xEE; len];
        // SAFETY: the vector's own memory.
        unsafe { store.read(0, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// The captured write of two segments.
    fn write(offset: u64, a: &mut [u8], b: &mut [u8]) -> Change {
        // SAFETY: the slices outlive the segments.
        let list = [&mut *a, b].map(|s| unsafe { Segment::new(s.as_mut_ptr(), s.len()) });
        // SAFETY: as above.
        unsafe { Change::capture(offset, &Segments::from_slice(&list)) }
    }

    #[test]
    fn a_store_is_an_array_of_bytes() {
        let (mut store, mut model) = (Store::default(), vec![0u8; 40_000]);
        let mut rng = Seeded::new(1);
        for round in 0..2000u32 {
            let offset = rng.choose(Choice::Other, 39_000);
            let len = rng.choose(Choice::Other, (40_000 - offset).min(9000));
            let cut = rng.choose(Choice::Other, len + 1);
            let change = if round % 3 == 0 {
                model[offset..offset + len].fill(0);
                Change::Zero(offset as u64..(offset + len) as u64)
            } else {
                let mut bytes: Vec<u8> = (0..len).map(|i| (i as u32 ^ round) as u8 | 1).collect();
                model[offset..offset + len].copy_from_slice(&bytes);
                let (a, b) = bytes.split_at_mut(cut);
                write(offset as u64, a, b)
            };
            let by_chunk: Vec<_> = (0..10).map(|c| change.over(c, &store.get(c))).collect();
            let before = store.clone();
            store.apply(&change);
            assert!(read(&store, 40_000) == model, "round {round}");
            for (number, content) in by_chunk.into_iter().enumerate() {
                let mut other = before.clone();
                other.set(number as u64, content);
                let range = number * CHUNK..(number * CHUNK + CHUNK).min(40_000);
                assert!(read(&other, 40_000)[range.clone()] == model[range], "round {round} chunk {number}");
            }
            assert_eq!(store.digest(), Store::from_bytes(&model).digest());
            assert_eq!(before.digest() == store.digest(), read(&before, 40_000) == model);
        }
    }

    #[test]
    fn bytes_are_put_over_what_is_there() {
        let mut store = Store::from_bytes(&[1; 10_000]);
        let before = store.clone();
        store.put(9000, &[2; 5000]);
        assert_eq!(read(&store, 15_000), [&[1; 9000][..], &[2; 5000], &[0; 1000]].concat());
        assert_eq!(read(&before, 15_000), [&[1; 10_000][..], &[0; 5000]].concat(), "a copy keeps its own");
    }

    #[test]
    fn zeroing_a_huge_range_costs_what_is_stored() {
        let mut store = Store::from_bytes(&[1; 10_000]);
        store.apply(&Change::Zero(5000..u64::MAX));
        assert_eq!(store.present(0..u64::MAX / CHUNK as u64), [0, 1]);
        assert_eq!(read(&store, 5001), [&[1; 5000][..], &[0]].concat());
    }

    #[test]
    fn the_first_bytes_of_a_write() {
        let (mut a, mut b) = (vec![1; 5000], vec![2; 5000]);
        let change = write(100, &mut a, &mut b);
        for bytes in [0usize, 1, 3996, 3997, 9999, 10_000] {
            let mut store = Store::default();
            store.apply(&change.first_bytes(bytes as u64));
            let mut want = vec![0; 20_000];
            want[100..5100].fill(1);
            want[5100..10_100].fill(2);
            want[100 + bytes..].fill(0);
            assert!(read(&store, 20_000) == want, "{bytes}");
        }
    }
}
