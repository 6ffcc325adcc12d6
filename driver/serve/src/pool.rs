//! Buffers that come back: a request takes one that is long enough, and gives it back when its reply is sent.
//!
//! Knows: lengths. Must never know: requests, clients.
//! Invariants: a buffer's length is a power of two, of at most [`LENGTH_MAX`]; what is kept is bounded.

use quod::Buffer;

/// Longest buffer, bytes.
pub(crate) const LENGTH_MAX: usize = 1 << 20;
const LENGTH_MIN: usize = 4096;
const CLASSES: usize = (LENGTH_MAX / LENGTH_MIN).trailing_zeros() as usize + 1;
/// Bytes that are kept for later; more is given back to the host.
const KEPT_MAX: usize = 64 << 20;

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: [Vec<Buffer>; CLASSES],
    kept: usize,
}

/// The length of the buffer that so many bytes get.
pub(crate) fn length_for(len: usize) -> usize {
    debug_assert!(len <= LENGTH_MAX, "longer requests go in pieces");
    len.next_power_of_two().max(LENGTH_MIN)
}

fn class(length: usize) -> usize {
    (length / LENGTH_MIN).trailing_zeros() as usize
}

impl Pool {
    /// A buffer of [`length_for`] so many bytes, with whatever it had.
    pub fn take(&mut self, len: usize) -> Buffer {
        let length = length_for(len);
        match self.free[class(length)].pop() {
            Some(buffer) => {
                self.kept -= length;
                buffer
            }
            None => Buffer::zeroed(length),
        }
    }

    /// It is not used any more.
    pub fn give(&mut self, buffer: Buffer) {
        let length = buffer.as_slice().len();
        debug_assert_eq!(length, length_for(length), "a buffer of the pool");
        if self.kept + length <= KEPT_MAX {
            self.kept += length;
            self.free[class(length)].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let mut pool = Pool::default();
        for (len, length) in [(1, 4096), (4096, 4096), (4097, 8192), (LENGTH_MAX, LENGTH_MAX)] {
            let buffer = pool.take(len);
            assert_eq!(buffer.as_slice().len(), length);
            let place = buffer.as_slice().as_ptr();
            pool.give(buffer);
            assert_eq!(pool.take(length).as_slice().as_ptr(), place);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut pool = Pool::default();
        let taken: Vec<Buffer> = (0..KEPT_MAX / LENGTH_MAX + 3).map(|_| pool.take(LENGTH_MAX)).collect();
        taken.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!((pool.kept, pool.free[CLASSES - 1].len()), (KEPT_MAX, KEPT_MAX / LENGTH_MAX));
    }
}
