//! Buffers that come back from completions and serve again.
//!
//! Knows: sizes. Must never know: requests.
//! Invariant: what lies idle is bounded in bytes.

use quod::Buffer;
use std::collections::HashMap;

const IDLE_MAX: usize = 64 << 20;

/// Idle buffers by their size.
#[derive(Debug, Default)]
pub struct BufferPool {
    idle: HashMap<usize, Vec<Buffer>>,
    bytes: usize,
}

impl BufferPool {
    /// A buffer of this size; its content is arbitrary.
    pub fn take(&mut self, len: usize) -> Buffer {
        match self.idle.get_mut(&len).and_then(Vec::pop) {
            Some(buffer) => {
                self.bytes -= len;
                buffer
            }
            None => Buffer::zeroed(len),
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        let len = buffer.as_slice().len();
        if self.bytes + len <= IDLE_MAX {
            self.bytes += len;
            self.idle.entry(len).or_default().push(buffer);
        }
    }
}
