//! A file as bytes.
//!
//! Knows: ranges of bytes. Must never know: what is in them. Invariant: bytes past the end read as zeros, and
//! are zeros when the file grows.

use std::collections::BTreeMap;

/// A file.
pub trait Store {
    /// Its length.
    fn end(&self) -> u64;
    /// Makes it so long.
    fn set_end(&mut self, end: u64);
    /// Bytes from `offset` on; zeros past the end.
    fn read(&self, offset: u64, to: &mut [u8]);
    /// Writes; the file grows if it has to.
    fn write(&mut self, offset: u64, bytes: &[u8]);
    /// Writes zeros.
    fn zero(&mut self, offset: u64, len: u64);
}

impl Store for Vec<u8> {
    fn end(&self) -> u64 {
        self.len() as u64
    }

    fn set_end(&mut self, end: u64) {
        self.resize(end as usize, 0);
    }

    fn read(&self, offset: u64, to: &mut [u8]) {
        let there = self.get(offset as usize..).unwrap_or_default();
        let count = there.len().min(to.len());
        to[..count].copy_from_slice(&there[..count]);
        to[count..].fill(0);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        self.resize(self.len().max(end), 0);
        self[offset as usize..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len) as usize;
        self.resize(self.len().max(end), 0);
        self[offset as usize..end].fill(0);
    }
}

const CHUNK: u64 = 4096;

/// A file whose bytes exist only where something was written.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    end: u64,
    chunks: BTreeMap<u64, Box<[u8; CHUNK as usize]>>,
}

/// The pieces of `[offset, offset + len)`, chunk by chunk: which chunk, where in it, where in the range, how
/// many bytes.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let end = offset + len;
    (offset / CHUNK..end.div_ceil(CHUNK)).map(move |chunk| {
        let (start, stop) = (offset.max(chunk * CHUNK), end.min((chunk + 1) * CHUNK));
        (chunk, (start % CHUNK) as usize, (start - offset) as usize, (stop - start) as usize)
    })
}

impl Store for Sparse {
    fn end(&self) -> u64 {
        self.end
    }

    fn set_end(&mut self, end: u64) {
        if end < self.end {
            self.zero(end, self.end - end);
        }
        self.end = end;
    }

    fn read(&self, offset: u64, to: &mut [u8]) {
        for (chunk, within, at, count) in pieces(offset, to.len() as u64) {
            match self.chunks.get(&chunk) {
                Some(bytes) => to[at..at + count].copy_from_slice(&bytes[within..within + count]),
                None => to[at..at + count].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (chunk, within, at, count) in pieces(offset, bytes.len() as u64) {
            let chunk = self.chunks.entry(chunk).or_insert_with(|| Box::new([0; CHUNK as usize]));
            chunk[within..within + count].copy_from_slice(&bytes[at..at + count]);
        }
        self.end = self.end.max(offset + bytes.len() as u64);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for (&chunk, bytes) in self.chunks.range_mut(offset / CHUNK..end.div_ceil(CHUNK)) {
            let (start, stop) = (offset.max(chunk * CHUNK), end.min((chunk + 1) * CHUNK));
            bytes[(start - chunk * CHUNK) as usize..(stop - chunk * CHUNK) as usize].fill(0);
        }
        self.end = self.end.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short list of changes leaves the same in both.
    #[test]
    fn both_files_hold_the_same() {
        let (mut dense, mut sparse) = (Vec::new(), Sparse::default());
        let files: [&mut dyn Store; 2] = [&mut dense, &mut sparse];
        let contents = files.map(|file| {
            file.write(4050, &(0..100).collect::<Vec<u8>>());
            file.zero(4060, 50);
            file.write(20_000, &[7; 5000]);
            file.set_end(21_000);
            file.zero(24_000, 10);
            file.set_end(30_000);
            let mut bytes = vec![1; 31_000];
            file.read(0, &mut bytes);
            (bytes, file.end())
        });
        assert_eq!(contents[0], contents[1]);
        let bytes = &contents[0].0;
        assert_eq!((bytes[4051], bytes[4060], bytes[4110], bytes[20_999], bytes[21_000]), (1, 0, 60, 7, 0));
    }
}
