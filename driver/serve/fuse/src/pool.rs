//! Buffers that were used and will be again.
//!
//! Knows: lengths. Must never know: what the bytes are.
//! Invariant: at most [`KEPT`] bytes are kept.

use quod::Buffer;

/// Bytes that are kept for later.
const KEPT: usize = 16 << 20;

/// Buffers at rest. Clients ask in few lengths, so that one of the right length is mostly found at the end.
#[derive(Default)]
pub struct Pool {
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl Pool {
    /// A buffer of this length, with any bytes of this disk in it.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fits = |buffer: &Buffer| buffer.as_slice().len() == len;
        match self.buffers.iter().rposition(fits) {
            Some(at) => {
                self.bytes -= len;
                self.buffers.swap_remove(at)
            }
            None => Buffer::zeroed(len),
        }
    }

    /// Keeps a buffer, and forgets older ones for it if there are too many.
    pub fn give(&mut self, buffer: Buffer) {
        self.bytes += buffer.as_slice().len();
        self.buffers.push(buffer);
        while self.bytes > KEPT {
            self.bytes -= self.buffers.swap_remove(0).as_slice().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_do_not_pile_up() {
        let mut pool = Pool::default();
        let mut buffer = pool.take(4096);
        buffer.as_mut_slice()[0] = 7;
        pool.give(buffer);
        assert_eq!(pool.take(8192).as_slice()[0], 0, "another length");
        assert_eq!(pool.take(4096).as_slice()[0], 7, "the same one");
        for _ in 0..100 {
            pool.give(Buffer::zeroed(1 << 20));
        }
        assert_eq!((pool.bytes, pool.buffers.len()), (KEPT, KEPT >> 20));
        assert_eq!(pool.take(1 << 20).as_slice().len(), 1 << 20);
        assert_eq!(pool.bytes, KEPT - (1 << 20));
    }
}
