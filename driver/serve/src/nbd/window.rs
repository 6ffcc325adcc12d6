//! The bytes that came from a client and are not done with.
//!
//! Knows: a bounded buffer. Must never know: what the bytes are.
//! Invariants: what was not taken stays, in order; it never grows.

use quod_nbd::WINDOW_MIN;
use std::io::{self, IoSliceMut, Read};

/// Bytes: some requests with what they write, and an option as a whole.
const SIZE: usize = 64 << 10;
const _: () = assert!(SIZE > WINDOW_MIN, "the longest message fits");

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Window {
    pub fn new() -> Window {
        Window { bytes: vec![0; SIZE].into_boxed_slice(), start: 0, end: 0 }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// So many bytes are done with.
    pub fn take(&mut self, len: usize) {
        debug_assert!(len <= self.len(), "what is there is taken");
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves bytes to the front of `to`; how many.
    pub fn move_to(&mut self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len());
        to[..len].copy_from_slice(&self.as_slice()[..len]);
        self.take(len);
        len
    }

    /// Makes room behind what is there.
    fn make_room(&mut self) {
        if self.start > 0 && SIZE - self.end < SIZE / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Reads once, first into `direct` and what is more into the window, which is empty if `direct` is not:
    /// how many bytes came for `direct`, and whether the reading filled all that was there for it (so that
    /// there may be more). None: it has ended.
    pub fn fill(&mut self, from: &mut impl Read, direct: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        debug_assert!(direct.is_empty() || self.is_empty(), "bytes keep their order");
        self.make_room();
        let room = &mut self.bytes[self.end..];
        let asked = direct.len() + room.len();
        debug_assert!(asked > 0, "somebody takes what is there first");
        let len = if direct.is_empty() {
            from.read(room)?
        } else {
            from.read_vectored(&mut [IoSliceMut::new(direct), IoSliceMut::new(room)])?
        };
        if len == 0 {
            return Ok(None);
        }
        let straight = len.min(direct.len());
        self.end += len - straight;
        Ok(Some((straight, len == asked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_however_they_are_taken() {
        let source: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut from, mut window, mut got) = (&source[..], Window::new(), Vec::<u8>::new());
        let mut step = 1;
        while got.len() < source.len() {
            step = step * 7 % 30_011;
            if window.is_empty() && step % 2 == 0 {
                let mut direct = vec![0; step];
                let came = window.fill(&mut from, &mut direct).unwrap().map_or(0, |(came, _)| came);
                got.extend(&direct[..came]);
            } else if window.len() < step {
                window.fill(&mut from, &mut []).unwrap();
            }
            let mut part = vec![0; step];
            let len = window.move_to(&mut part);
            got.extend(&part[..len]);
        }
        assert!(got == source && window.fill(&mut from, &mut []).unwrap().is_none());
    }
}
