//! The counts of an image, as they are and as they shall be: those stay where they are, these are made beside
//! them, in blocks of their own.
//!
//! Knows: refcount blocks, of which a bounded number is in memory. Must never know: what the clusters hold.
//!
//! Invariants:
//! * no byte of an old block is written: what changes is the new block, which begins as a copy;
//! * whatever stops a change has changed nothing: it is tried again when the block is there;
//! * a cluster whose count becomes 0 is told once (`freed`); no count rises from 0 but that of a cluster that
//!   is placed.

use super::stop::Stop;
use crate::error::Error;
use crate::fault::{Fault, Lack};
use crate::qcow2::refcount::BlockShape;
use crate::space::kind::ClusterRun;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of blocks that are in memory at most,
const ROOM: usize = 16 << 20;
/// but so many blocks at least.
const BLOCKS_MIN: usize = 4;
/// Runs of freed clusters that are remembered; what is more is found when space is wanted.
const FREED_MAX: usize = 1 << 16;

/// A new block in memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Block {
    index: u64,
    bytes: Vec<u8>,
    /// The file lacks it.
    dirty: bool,
    used: u64,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Counts {
    shape: BlockShape,
    /// Where the old blocks lie; 0: there is none.
    old: Vec<u64>,
    /// Where the new ones will.
    new: Vec<u64>,
    /// Those that were written there, by index.
    written: Vec<bool>,
    slots: Vec<Block>,
    /// Which slot holds a block.
    held: BTreeMap<u64, usize>,
    last: usize,
    room: usize,
    clock: u64,
    freed: Vec<ClusterRun>,
}

impl Counts {
    /// `table`: where the old blocks lie.
    pub(super) fn new(shape: BlockShape, table: &[u64]) -> Counts {
        debug_assert!(shape.order <= 6, "limits of the format");
        Counts {
            shape,
            old: table.to_vec(),
            new: vec![0; table.len()],
            written: vec![false; table.len()],
            slots: Vec::new(),
            held: BTreeMap::new(),
            last: 0,
            room: (ROOM >> shape.cluster_bits).max(BLOCKS_MIN),
            clock: 0,
            freed: Vec::new(),
        }
    }

    /// Where the old block of this index lies; 0: there is none.
    pub(super) fn old_block(&self, index: u64) -> u64 {
        debug_assert!(self.old.len() <= self.new.len(), "new blocks come behind the old ones");
        usize::try_from(index).ok().and_then(|index| self.old.get(index)).copied().unwrap_or(0)
    }

    /// Where the new one lies.
    pub(super) fn new_block(&self, index: u64) -> u64 {
        debug_assert!(self.new.len() == self.written.len(), "each is written, or not");
        usize::try_from(index).ok().and_then(|index| self.new.get(index)).copied().unwrap_or(0)
    }

    /// Indices of blocks.
    pub(super) fn len(&self) -> u64 {
        debug_assert!(self.new.len() == self.written.len(), "each is written, or not");
        self.new.len() as u64
    }

    /// The index behind that of the last new block.
    pub(super) fn end(&self) -> u64 {
        let last = self.new.iter().rposition(|block| *block != 0);
        debug_assert!(last.is_none_or(|last| last < self.new.len()), "it is one of them");
        last.map_or(0, |last| last as u64 + 1)
    }

    pub(super) const fn shape(&self) -> BlockShape {
        debug_assert!(self.shape.order <= 6, "limits of the format");
        self.shape
    }

    /// The new block of this index will lie there; of one that has no old block it is zeros.
    pub(super) fn place(&mut self, index: u64, host: u64) {
        debug_assert!(host > 0 && self.new_block(index) == 0, "a block has one place");
        let at = index as usize;
        if at >= self.new.len() {
            self.new.resize(at + 1, 0);
            self.written.resize(at + 1, false);
        }
        self.new[at] = host;
        if self.old_block(index) == 0 {
            let bytes = vec![0; 1 << self.shape.cluster_bits];
            self.hold(index, bytes, true);
        }
    }

    /// The bytes of a block that was asked for.
    pub(super) fn loaded(&mut self, index: u64, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), 1 << self.shape.cluster_bits, "whole blocks are read");
        debug_assert!(!self.held.contains_key(&index), "it was not there");
        // a copy of the old block is not in its new place yet
        let dirty = !self.written.get(index as usize).copied().unwrap_or(false);
        self.hold(index, bytes.to_vec(), dirty);
    }

    fn hold(&mut self, index: u64, bytes: Vec<u8>, dirty: bool) {
        self.clock += 1;
        let block = Block { index, bytes, dirty, used: self.clock };
        debug_assert!(!self.held.contains_key(&index), "a block has one slot");
        self.held.insert(index, self.slots.len());
        self.slots.push(block);
    }

    /// The slot of a block, if it is in memory, or what has to happen first.
    fn slot(&mut self, index: u64) -> Result<usize, Stop> {
        debug_assert!(self.held.len() == self.slots.len(), "each slot holds a block");
        if self.slots.get(self.last).is_some_and(|block| block.index == index) {
            return Ok(self.last);
        }
        if let Some(&slot) = self.held.get(&index) {
            self.clock += 1;
            self.slots[slot].used = self.clock;
            self.last = slot;
            return Ok(slot);
        }
        let host = match self.written.get(index as usize).copied().unwrap_or(false) {
            true => self.new_block(index),
            false => self.old_block(index),
        };
        if host == 0 {
            return Err(Stop::Bad(Error::Corrupt(Fault::Refcount {
                cluster: index << self.shape.block_bits(),
                stored: 0,
            })));
        }
        // what has no place yet stays
        let leaves = |slot: &usize| {
            let block = &self.slots[*slot];
            !block.dirty || self.new_block(block.index) > 0
        };
        if self.slots.len() >= self.room
            && let Some(oldest) =
                (0..self.slots.len()).filter(leaves).min_by_key(|slot| self.slots[*slot].used)
        {
            if self.slots[oldest].dirty {
                return Err(Stop::WriteBlock(self.slots[oldest].index));
            }
            self.held.remove(&self.slots[oldest].index);
            self.slots.swap_remove(oldest);
            if let Some(moved) = self.slots.get(oldest) {
                self.held.insert(moved.index, oldest);
            }
        }
        Err(Stop::ReadBlock { index, host })
    }

    /// The count of a cluster, as it shall be.
    pub(super) fn get(&mut self, cluster: u64) -> Result<u64, Stop> {
        let slot = self.slot(self.shape.table_index(cluster))?;
        debug_assert!(slot < self.slots.len(), "it is in memory");
        Ok(self.shape.get(&self.slots[slot].bytes, self.shape.block_index(cluster)))
    }

    /// A cluster that nobody counts gets the count 1.
    pub(super) fn count_new(&mut self, cluster: u64) -> Result<(), Stop> {
        let count = self.get(cluster)?;
        debug_assert_eq!(count, 0, "it was free");
        self.set(cluster, 1);
        Ok(())
    }

    /// One reference more.
    pub(super) fn add(&mut self, cluster: u64) -> Result<(), Stop> {
        let count = self.get(cluster)?;
        debug_assert!(count <= self.shape.max(), "a counter says no more");
        if count == 0 {
            return Err(low(cluster));
        }
        if count >= self.shape.max() {
            return Err(Stop::Bad(Error::Unsupported(Lack::RefcountOverflow(self.shape.bits()))));
        }
        self.set(cluster, count + 1);
        Ok(())
    }

    /// One reference less.
    pub(super) fn remove(&mut self, cluster: u64) -> Result<(), Stop> {
        let count = self.get(cluster)?;
        debug_assert!(count <= self.shape.max(), "a counter says no more");
        if count == 0 {
            return Err(low(cluster));
        }
        self.set(cluster, count - 1);
        if count == 1 {
            self.note_freed(cluster);
        }
        Ok(())
    }

    fn set(&mut self, cluster: u64, count: u64) {
        debug_assert!(count <= self.shape.max());
        let (slot, index) = (self.last, self.shape.block_index(cluster));
        debug_assert_eq!(self.slots[slot].index, self.shape.table_index(cluster), "it was just looked at");
        let block = &mut self.slots[slot];
        self.shape.set(&mut block.bytes, index, count);
        block.dirty = true;
    }

    fn note_freed(&mut self, cluster: u64) {
        debug_assert!(cluster > 0, "the header's cluster is never free");
        let room = self.freed.len() < FREED_MAX;
        match self.freed.last_mut() {
            Some(last) if last.end() == cluster => last.count += 1,
            _ if room => self.freed.push(ClusterRun::new(cluster, 1)),
            _ => {}
        }
    }

    /// A block of its index is to be written: from memory.
    pub(super) fn encode(&self, index: u64, buf: &mut [u8]) {
        let block = self.held.get(&index).and_then(|slot| self.slots.get(*slot));
        debug_assert!(block.is_some_and(|block| block.bytes.len() == buf.len()), "it is in memory");
        if let Some(block) = block.filter(|block| block.bytes.len() == buf.len()) {
            buf.copy_from_slice(&block.bytes);
        }
    }

    /// It was.
    pub(super) fn wrote(&mut self, index: u64) {
        debug_assert!(self.new_block(index) > 0, "it has a place");
        if let Some(written) = self.written.get_mut(index as usize) {
            *written = true;
        }
        if let Some(slot) = self.held.get(&index) {
            self.slots[*slot].dirty = false;
        }
    }

    /// Is the block of this index in its new place? If not, what has to happen first.
    pub(super) fn flush(&mut self, index: u64) -> Result<(), Stop> {
        if self.new_block(index) == 0 {
            return Ok(());
        }
        if self.written[index as usize] && !self.held.contains_key(&index) {
            return Ok(());
        }
        let slot = self.slot(index)?;
        debug_assert!(self.new_block(index) > 0, "what changes has a place");
        if self.slots[slot].dirty { Err(Stop::WriteBlock(index)) } else { Ok(()) }
    }

    /// The new refcount table.
    pub(super) fn table(&self) -> &[u64] {
        debug_assert!(self.new.len() == self.written.len(), "each is written, or not");
        &self.new
    }

    /// Clusters that nobody counts any more, as far as they are remembered.
    pub(super) fn take_freed(&mut self) -> Vec<ClusterRun> {
        debug_assert!(self.freed.len() <= FREED_MAX, "no more are remembered");
        core::mem::take(&mut self.freed)
    }
}

/// A count that is lower than the references.
fn low(cluster: u64) -> Stop {
    debug_assert!(cluster > 0, "the header's cluster is nobody's");
    Stop::Bad(Error::Corrupt(Fault::Refcount { cluster, stored: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of 512 bytes, counters of 16 bits: 256 clusters each; so many old blocks, all ones.
    fn counts(blocks: u64) -> Counts {
        let table: Vec<u64> = (0..blocks).map(|index| (index + 1) << 20).collect();
        let mut counts = Counts::new(BlockShape { cluster_bits: 9, order: 4 }, &table);
        (0..blocks).for_each(|index| counts.place(index, (index + 1) << 30));
        counts
    }

    fn load(counts: &mut Counts, stop: Stop) {
        match stop {
            Stop::ReadBlock { index, host } => {
                assert!(host == (index + 1) << 20 || host == (index + 1) << 30, "{host:#x}");
                counts.loaded(index, &[0, 1].repeat(256));
            }
            Stop::WriteBlock(index) => counts.wrote(index),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn counts_go_up_and_down_and_what_nobody_counts_is_told() {
        let mut counts = counts(2);
        let stop = counts.add(300).unwrap_err();
        assert!(matches!(stop, Stop::ReadBlock { index: 1, .. }), "{stop:?}");
        load(&mut counts, stop);
        assert!(counts.add(300).is_ok() && counts.get(300).is_ok_and(|count| count == 2));
        for cluster in [300, 300, 301, 303] {
            assert!(counts.remove(cluster).is_ok());
        }
        assert!(matches!(counts.remove(300), Err(Stop::Bad(Error::Corrupt(_)))));
        assert!(matches!(counts.add(301), Err(Stop::Bad(Error::Corrupt(_)))), "nothing comes back");
        assert_eq!(counts.take_freed(), [ClusterRun::new(300, 2), ClusterRun::new(303, 1)]);
    }

    #[test]
    fn a_count_that_can_say_no_more_is_told() {
        let mut counts = Counts::new(BlockShape { cluster_bits: 9, order: 0 }, &[512]);
        counts.place(0, 1024);
        counts.loaded(0, &[0xff; 512]);
        let full = Err(Stop::Bad(Error::Unsupported(Lack::RefcountOverflow(1))));
        assert_eq!(counts.add(7), full);
        assert!(counts.get(7).is_ok_and(|count| count == 1), "and nothing has changed");
    }

    #[test]
    fn memory_has_a_bound_and_what_leaves_it_is_written_first() {
        let mut counts = counts(40);
        counts.room = 4;
        for round in 0..2 {
            for index in 0..40 {
                let mut tries = 0;
                while let Err(stop) = counts.add(index * 256 + 5 + round) {
                    load(&mut counts, stop);
                    tries += 1;
                    assert!(tries < 5 && counts.slots.len() <= 4);
                }
            }
        }
        for index in 0..40 {
            while let Err(stop) = counts.flush(index) {
                load(&mut counts, stop);
            }
        }
        assert!(counts.written.iter().all(|written| *written));
    }
}
