//! The bits of a persistent bitmap, all of them in memory: set, merged, and cut into the clusters that hold
//! some.
//!
//! Knows: which bytes a bit stands for. Must never know: where bits lie in a file.
//!
//! Invariants:
//! * bounded by `BITS_MAX`;
//! * bits behind the end of the disk are 0.

use super::ask::BitmapBits;
use crate::qcow2::bitmap;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of bits that are in memory at most.
pub const BITS_MAX: u64 = 32 << 20;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Bits {
    bytes: Vec<u8>,
    /// So many bits stand for something,
    count: u64,
    /// each of them for this power of two of bytes.
    granularity_bits: u8,
}

impl Bits {
    /// None is set. The disk's bits are known to fit the bound.
    pub(super) fn new(size: u64, granularity_bits: u8) -> Bits {
        let bytes = bitmap::bytes_of(size, granularity_bits);
        debug_assert!(bytes <= BITS_MAX, "more was refused");
        let bytes = vec![0; bytes.min(BITS_MAX) as usize];
        Bits { bytes, count: size.div_ceil(1 << granularity_bits), granularity_bits }
    }

    /// What the file holds from this byte of the bits on.
    pub(super) fn read(&mut self, at: u64, bytes: &[u8]) {
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get_mut(at..)).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        debug_assert!(len > 0, "a cluster of bits holds some");
        rest[..len].copy_from_slice(&bytes[..len]);
        self.cut();
    }

    /// Every bit is set from this byte of the bits on, so many bytes of them.
    pub(super) fn fill(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.bytes.len() as u64) as usize;
        debug_assert!(len > 0, "a cluster of bits holds some");
        if let Some(bytes) = self.bytes.get_mut((at as usize).min(end)..end) {
            bytes.fill(0xff);
        }
        self.cut();
    }

    /// What stands for nothing is 0.
    fn cut(&mut self) {
        debug_assert!(self.count <= self.bytes.len() as u64 * 8, "each bit has a place");
        let over = (self.bytes.len() as u64 * 8 - self.count) as u32;
        if let Some(last) = self.bytes.last_mut() {
            *last &= 0xffu8.checked_shr(over).unwrap_or(0);
        }
    }

    /// Sets the bits from `first` on, up to `end`.
    fn set(&mut self, first: u64, end: u64) {
        debug_assert!(first < self.count, "it stands for something");
        bitmap::set_bits(&mut self.bytes, first, end.min(self.count));
    }

    /// Every byte that one of `other`'s bits stands for has its bit.
    pub(super) fn merge(&mut self, other: &BitmapBits) {
        debug_assert!(bitmap::GRANULARITY_BITS.contains(&other.granularity_bits), "others were refused");
        let (own, theirs) = (self.granularity_bits, other.granularity_bits);
        if own == theirs {
            self.bytes.iter_mut().zip(&other.bits).for_each(|(own, other)| *own |= other);
            return self.cut();
        }
        for (at, byte) in (0u64..).zip(&other.bits).filter(|(_, byte)| **byte != 0) {
            for bit in (at * 8..at * 8 + 8).filter(|bit| byte >> (bit % 8) & 1 != 0) {
                let (first, behind) = match own < theirs {
                    true => (bit << (theirs - own), (bit + 1) << (theirs - own)),
                    false => (bit >> (own - theirs), (bit >> (own - theirs)) + 1),
                };
                if first < self.count {
                    self.set(first, behind);
                }
            }
        }
    }

    /// The clusters of them in which a bit is set.
    pub(super) fn stored(&self, cluster: u64) -> Vec<u64> {
        debug_assert!(cluster.is_power_of_two(), "limits of the format");
        let chunks = (0..).zip(self.bytes.chunks(cluster as usize));
        chunks.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)).map(|(index, _)| index).collect()
    }

    /// The bytes from `at` on, zeros behind the last.
    pub(super) fn encode(&self, at: u64, buf: &mut [u8]) {
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        debug_assert!(at.is_multiple_of(512), "clusters are whole sectors");
        buf[..len].copy_from_slice(&rest[..len]);
        buf[len..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(granularity_bits: u8, bits: &[u8]) -> BitmapBits {
        BitmapBits { granularity_bits, size: 0, bits: bits.to_vec() }
    }

    #[test]
    fn bits_of_other_granularities_are_merged() {
        // 20 bits of 512 bytes
        let mut bits = Bits::new(20 * 512 - 1, 9);
        assert_eq!((bits.bytes.len(), bits.count), (3, 20));
        bits.merge(&other(9, &[0x81, 0, 0xff]));
        assert_eq!(bits.bytes, [0x81, 0, 0x0f], "behind the end is nothing");
        // one bit for eight
        bits.merge(&other(12, &[0b010]));
        assert_eq!(bits.bytes, [0x81, 0xff, 0x0f]);
        bits.merge(&other(12, &[0b1001]));
        assert_eq!(bits.bytes, [0xff, 0xff, 0x0f], "one that stands for nothing here");
        // eight for one
        let mut coarse = Bits::new(20 * 512, 12);
        coarse.merge(&other(9, &[0, 0x10, 0]));
        assert_eq!(coarse.bytes, [2]);
        coarse.merge(&other(9, &[0, 0, 8]));
        assert_eq!(coarse.bytes, [6]);
    }

    #[test]
    fn bits_are_filled_read_and_stored() {
        let mut bits = Bits::new(3 * 4096 * 512 + 5 * 512, 9);
        assert!(bits.stored(512).is_empty());
        bits.fill(1024, 512);
        bits.read(512, &[0; 512]);
        bits.read(1536, &[0xff; 512]);
        assert_eq!(bits.stored(512), [2, 3]);
        let mut buf = [9; 512];
        bits.encode(1536, &mut buf);
        assert_eq!((buf[0], buf[1]), (0x1f, 0));
        bits.encode(1024, &mut buf);
        assert_eq!(buf, [0xff; 512]);
        assert_eq!(bits.stored(1024), [1]);
    }

    #[test]
    fn a_disk_of_whole_bytes_loses_no_bit() {
        let mut bits = Bits::new(16 * 512, 9);
        bits.fill(0, 512);
        assert_eq!(bits.bytes, [0xff, 0xff]);
    }
}
