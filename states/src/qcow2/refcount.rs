//! Refcounts: counters of 1 to 64 bits in a block, and which block counts a cluster.
//!
//! Knows: widths and positions. Must never know: what a count means for the cluster.
//!
//! Invariants:
//! * counters of a byte and more are big endian; smaller ones fill a byte from its least significant bit;
//! * a position outside the bytes reads as 0 and is not written.

/// Where the refcounts of an image lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockShape {
    /// 9 to 21.
    pub cluster_bits: u32,
    /// The width in bits is this power of two: 0 to 6.
    pub order: u32,
}

impl BlockShape {
    /// Bits of a counter.
    pub const fn bits(self) -> u32 {
        debug_assert!(self.order <= 6);
        1 << self.order
    }

    /// The highest count.
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The counters of a block are this power of two.
    pub const fn block_bits(self) -> u32 {
        debug_assert!(self.order <= 6 && self.cluster_bits >= 9, "limits of the format");
        self.cluster_bits + 3 - self.order
    }

    /// Counters of a block.
    pub const fn block_entries(self) -> u64 {
        1 << self.block_bits()
    }

    /// Which entry of the refcount table leads to the block of `cluster`.
    pub const fn table_index(self, cluster: u64) -> u64 {
        cluster >> self.block_bits()
    }

    /// Which counter of its block is that of `cluster`.
    pub const fn block_index(self, cluster: u64) -> u64 {
        let index = cluster & (self.block_entries() - 1);
        let first = self.table_index(cluster) << self.block_bits();
        debug_assert!(first + index == cluster, "block and counter name the cluster");
        index
    }

    /// Counter `index` of a block (or a piece of one that begins at a byte).
    pub fn get(self, block: &[u8], index: u64) -> u64 {
        debug_assert!(self.order <= 6);
        let Ok(at) = usize::try_from((index << self.order) / 8) else { return 0 };
        if self.order < 3 {
            let shift = (index << self.order) % 8;
            return block.get(at).map_or(0, |byte| u64::from(*byte) >> shift & self.max());
        }
        let bytes = block.get(at..at + self.bits() as usize / 8).unwrap_or(&[]);
        let count = bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte));
        debug_assert!(count <= self.max(), "a counter says no more");
        count
    }

    /// Sets counter `index`; `count` must not be higher than `max`.
    pub fn set(self, block: &mut [u8], index: u64, count: u64) {
        debug_assert!(self.order <= 6 && count <= self.max());
        let Ok(at) = usize::try_from((index << self.order) / 8) else { return };
        if self.order < 3 {
            let shift = (index << self.order) % 8;
            if let Some(byte) = block.get_mut(at) {
                *byte = *byte & !((self.max() << shift) as u8) | (count << shift) as u8;
                debug_assert!(self.get(block, index) == count, "it is read as it was written");
            }
            return;
        }
        let len = self.bits() as usize / 8;
        if let (Some(to), Some(from)) = (block.get_mut(at..at + len), count.to_be_bytes().get(8 - len..)) {
            to.copy_from_slice(from);
            debug_assert!(self.get(block, index) == count, "it is read as it was written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn layout(order: u32) -> BlockShape {
        BlockShape { cluster_bits: 16, order }
    }

    #[test]
    fn small_counters_fill_a_byte_from_its_low_end() {
        let bytes = [0b1110_0100, 0b0000_0001];
        assert_eq!((0..9).map(|n| layout(0).get(&bytes, n)).collect::<Vec<_>>(), [0, 0, 1, 0, 0, 1, 1, 1, 1]);
        assert_eq!((0..5).map(|n| layout(1).get(&bytes, n)).collect::<Vec<_>>(), [0, 1, 2, 3, 1]);
        assert_eq!((0..3).map(|n| layout(2).get(&bytes, n)).collect::<Vec<_>>(), [4, 14, 1]);
    }

    #[test]
    fn wide_counters_are_big_endian() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(layout(3).get(&bytes, 2), 3);
        assert_eq!(layout(4).get(&bytes, 1), 0x0304);
        assert_eq!(layout(5).get(&bytes, 1), 0x0506_0708);
        assert_eq!(layout(6).get(&bytes, 0), 0x0102_0304_0506_0708);
        assert_eq!(layout(6).get(&bytes, 1), 0);
        assert_eq!(layout(4).get(&bytes, u64::MAX), 0);
    }

    #[test]
    fn positions() {
        let usual = layout(4);
        assert_eq!((usual.block_entries(), usual.max()), (32768, 65535));
        assert_eq!((usual.table_index(32768), usual.block_index(32769)), (1, 1));
        assert_eq!(layout(6).max(), u64::MAX);
        assert_eq!(layout(0).max(), 1);
        assert_eq!(BlockShape { cluster_bits: 9, order: 6 }.block_entries(), 64);
        assert_eq!(BlockShape { cluster_bits: 21, order: 0 }.block_entries(), 1 << 24);
    }

    proptest! {
        #[test]
        fn set_then_get(order in 0..=6u32, sets in prop::collection::vec((0..64u64, any::<u64>()), 1..40)) {
            let layout = layout(order);
            let mut block = vec![0; 64 * 8];
            let mut model = [0; 64];
            for (index, count) in sets {
                layout.set(&mut block, index, count & layout.max());
                model[index as usize] = count & layout.max();
                layout.set(&mut block, 1 << 40, 1);
            }
            for (index, count) in model.iter().enumerate() {
                prop_assert_eq!(layout.get(&block, index as u64), *count);
            }
        }
    }
}
