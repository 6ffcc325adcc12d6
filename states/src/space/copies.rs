//! Copies of L2 tables that are shared with a snapshot: a table changes only when its refcount is one.
//!
//! Knows: tables on their way from one place to another, a chunk at a time. Must never know: what the
//! entries mean, what is done with a copy.
//!
//! Invariants:
//! * one copy of a table at a time; whoever wants to change it waits for that;
//! * nothing of a shared table is changed in memory, so the file has all of it.

use crate::base::queue::Queue;
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::{Outbox, Purpose};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes read and written at once.
const CHUNK: u64 = 64 << 10;
/// Copies at once.
const COPIES_MAX: usize = 8;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TableCopy {
    pub(crate) l1_index: u64,
    /// The slot of the L1 slice, which stays in the cache.
    pub(crate) l1_slot: u32,
    pub(crate) old: u64,
    pub(crate) new: u64,
    /// Bytes that are written.
    done: u64,
    chunk: Vec<u8>,
    pub(crate) waiters: Queue,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Copies(Vec<TableCopy>);

impl Copies {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &TableCopy> {
        debug_assert!(self.0.len() <= COPIES_MAX, "so many copies at once");
        self.0.iter()
    }

    /// The copy that is being made of this table.
    pub(crate) fn find(&mut self, l1_index: u64) -> Option<&mut TableCopy> {
        debug_assert!(self.0.len() <= COPIES_MAX);
        self.0.iter_mut().find(|copy| copy.l1_index == l1_index)
    }

    /// Whose end to wait for before this table can be copied: its own copy's; beyond the limit any one's.
    pub(crate) fn in_the_way(&mut self, l1_index: u64) -> Option<&mut TableCopy> {
        debug_assert!(self.0.len() <= COPIES_MAX);
        let own = self.0.iter().position(|copy| copy.l1_index == l1_index);
        let full = (self.0.len() >= COPIES_MAX).then_some(0);
        debug_assert!(own.is_none_or(|own| self.0[own].l1_index == l1_index), "its own copy's end");
        self.0.get_mut(own.or(full)?)
    }

    /// A table begins to move from `old` to `new`; `bytes` long.
    pub(crate) fn begin(
        &mut self,
        (l1_index, l1_slot): (u64, u32),
        (old, new): (u64, u64),
        bytes: u64,
        out: &mut Outbox,
    ) -> &mut TableCopy {
        debug_assert!(old != 0 && new != old && self.0.len() < COPIES_MAX);
        debug_assert!(self.0.iter().all(|copy| copy.l1_index != l1_index), "one copy of a table at a time");
        let copy =
            TableCopy { l1_index, l1_slot, old, new, done: 0, chunk: Vec::new(), waiters: Queue::new() };
        copy.read(bytes, out);
        self.0.push(copy);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    /// It ended, well or not.
    pub(crate) fn end(&mut self, l1_index: u64) -> Option<TableCopy> {
        let index = self.0.iter().position(|copy| copy.l1_index == l1_index)?;
        let copy = self.0.swap_remove(index);
        debug_assert!(self.find(l1_index).is_none(), "there was one copy of the table");
        Some(copy)
    }

    /// The bytes of the chunk that is being written.
    pub(crate) fn encode(&self, l1_index: u64, buf: &mut [u8]) {
        let copy = self.0.iter().find(|copy| copy.l1_index == l1_index);
        if let Some(bytes) = copy.and_then(|copy| copy.chunk.get(..buf.len())) {
            buf.copy_from_slice(bytes);
        }
        debug_assert!(copy.is_some_and(|copy| copy.chunk.len() == buf.len()), "the chunk that was named");
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        debug_assert!(self.0.len() <= COPIES_MAX, "so many copies at once");
        let twice =
            |copy: &&TableCopy| self.0.iter().filter(|other| other.l1_index == copy.l1_index).count() > 1;
        match self.0.iter().find(twice) {
            Some(copy) => Err(format!("the table of L1 entry {} is copied twice at once", copy.l1_index)),
            None => Ok(()),
        }
    }
}

impl TableCopy {
    /// Reads the next chunk.
    fn read(&self, bytes: u64, out: &mut Outbox) {
        debug_assert!(self.done < bytes);
        let offset = self.old + self.done;
        // both are powers of two: there is no smaller last chunk
        let len = bytes.min(CHUNK) as u32;
        debug_assert!(len > 0 && u64::from(len) <= CHUNK, "a chunk at a time");
        out.counters.table_reads += 1;
        out.emit(Purpose::CopyRead(self.l1_index), Op::ReadL2, offset, IoOp::ReadTable { offset, len });
    }

    /// A chunk of the old table was read: it is written to the new one.
    pub(crate) fn write(&mut self, bytes: &[u8], out: &mut Outbox) {
        debug_assert!(!bytes.is_empty() && bytes.len() as u64 <= CHUNK);
        self.chunk.clear();
        self.chunk.extend_from_slice(bytes);
        let (offset, len) = (self.new + self.done, self.chunk.len() as u32);
        debug_assert!(offset != self.old, "the old table stays as it is");
        out.counters.table_writes += 1;
        out.counters.table_bytes_written += u64::from(len);
        let op = IoOp::WriteTable { offset, len };
        out.emit(Purpose::CopyWrite(self.l1_index), Op::WriteTable, offset, op);
    }

    /// That is written. True: all of it is there; else the next chunk is read.
    pub(crate) fn written(&mut self, bytes: u64, out: &mut Outbox) -> bool {
        debug_assert!(!self.chunk.is_empty());
        self.done += self.chunk.len() as u64;
        debug_assert!(self.done <= bytes, "no more than the table is copied");
        if self.done < bytes {
            self.read(bytes, out);
        }
        self.done >= bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(out: &mut Outbox) -> Vec<IoOp> {
        out.io.drain(..).map(|io| io.op).collect()
    }

    #[test]
    fn a_table_moves_chunk_by_chunk() {
        let (mut copies, mut out) = (Copies::default(), Outbox::new(1, 9, 1));
        copies.begin((3, 0), (1 << 20, 2 << 20), 2 * CHUNK, &mut out);
        let read = |offset| [IoOp::ReadTable { offset, len: CHUNK as u32 }];
        let write = |offset| [IoOp::WriteTable { offset, len: CHUNK as u32 }];
        assert_eq!(ops(&mut out), read(1 << 20));
        let bytes = alloc::vec![7; CHUNK as usize];
        copies.find(3).unwrap().write(&bytes, &mut out);
        assert_eq!(ops(&mut out), write(2 << 20));
        let mut encoded = alloc::vec![0; CHUNK as usize];
        copies.encode(3, &mut encoded);
        assert_eq!(encoded, bytes);
        assert!(!copies.find(3).unwrap().written(2 * CHUNK, &mut out));
        assert_eq!(ops(&mut out), read((1 << 20) + CHUNK));
        copies.find(3).unwrap().write(&bytes, &mut out);
        assert_eq!(ops(&mut out), write((2 << 20) + CHUNK));
        assert!(copies.find(3).unwrap().written(2 * CHUNK, &mut out));
        assert_eq!((copies.end(3).map(|copy| copy.new), copies.end(3)), (Some(2 << 20), None));
    }

    #[test]
    fn one_copy_of_a_table_and_so_many_of_all() {
        let (mut copies, mut out) = (Copies::default(), Outbox::new(1, 9, 1));
        for l1_index in 0..COPIES_MAX as u64 {
            assert!(copies.in_the_way(l1_index).is_none());
            copies.begin((l1_index, 0), (512, 1024), 512, &mut out);
            assert_eq!(copies.in_the_way(l1_index).map(|copy| copy.l1_index), Some(l1_index));
        }
        assert_eq!(copies.in_the_way(99).map(|copy| copy.l1_index), Some(0), "any of them");
        assert_eq!(copies.check(), Ok(()));
        copies.0[1].l1_index = 0;
        assert_eq!(copies.check(), Err(String::from("the table of L1 entry 0 is copied twice at once")));
    }
}
