//! Buffers that come back from completions and serve again; registered with the driver, if that is wanted.
//!
//! Knows: sizes, which regions are registered. Must never know: requests.
//! Invariants: what lies idle is bounded in bytes; a registered buffer is taken back before it is freed.

use crate::load::registered::register_one;
use quod::{Buffer, Driver, Error, MemoryId};
use std::collections::HashMap;

const IDLE_MAX: usize = 64 << 20;

/// Idle buffers by their size.
#[derive(Debug, Default)]
pub struct BufferPool {
    idle: HashMap<usize, Vec<Buffer>>,
    bytes: usize,
    /// By the buffer's address.
    regions: HashMap<usize, MemoryId>,
}

fn address(buffer: &Buffer) -> usize {
    buffer.as_slice().as_ptr().addr()
}

impl BufferPool {
    fn idle(&mut self, len: usize) -> Option<Buffer> {
        let buffer = self.idle.get_mut(&len).and_then(Vec::pop)?;
        self.bytes -= len;
        Some(buffer)
    }

    /// A buffer of this size; its content is arbitrary.
    pub fn take(&mut self, len: usize) -> Buffer {
        self.idle(len).unwrap_or_else(|| Buffer::zeroed(len))
    }

    /// The same, registered with the driver.
    pub fn take_registered(&mut self, len: usize, driver: &mut Driver) -> Result<Buffer, Error> {
        if let Some(buffer) = self.idle(len) {
            return Ok(buffer);
        }
        let mut buffer = Buffer::zeroed(len);
        let region = register_one(driver, &mut buffer)?;
        self.regions.insert(address(&buffer), region);
        Ok(buffer)
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Buffer, driver: &mut Driver) -> Result<(), Error> {
        let len = buffer.as_slice().len();
        if self.bytes + len <= IDLE_MAX {
            self.bytes += len;
            self.idle.entry(len).or_default().push(buffer);
            return Ok(());
        }
        self.regions.remove(&address(&buffer)).map_or(Ok(()), |region| driver.unregister_memory(region))
    }

    /// All are back: frees them.
    pub fn end(mut self, driver: &mut Driver) -> Result<(), Error> {
        self.regions.drain().try_for_each(|(_, region)| driver.unregister_memory(region))
    }
}
