//! A stable 128-bit digest (FNV-1a) of anything that implements `Hash`: the same on every machine and in
//! every run.

use core::hash::{Hash, Hasher};

const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

struct Fnv(u128);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        (self.0 ^ (self.0 >> 64)) as u64
    }

    // by words where there are some: tables are long, and the explorer looks at them after every step
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        for &byte in rest {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }

    // a word at a time: weaker mixing inside a word is made up for by the fold
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ u128::from(word)).wrapping_mul(PRIME);
        self.0 ^= self.0 >> 71;
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// The digest of `value`.
pub fn digest(value: &impl Hash) -> u128 {
    let mut fnv = Fnv(BASIS);
    value.hash(&mut fnv);
    fnv.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_stable_and_tell_values_apart() {
        assert_eq!(digest(&1u64), digest(&1u64));
        assert_ne!(digest(&1u64), digest(&2u64));
        assert_ne!(digest(&(1u64, 2u64)), digest(&(2u64, 1u64)));
        assert_ne!(digest(&[0u8; 3].as_slice()), digest(&[0u8; 4].as_slice()));
    }

    /// What a digest is must not change between two versions: schedules that were found name states by it.
    #[test]
    fn digests_are_those_of_fnv() {
        let mut fnv = Fnv(BASIS);
        fnv.write(b"foobar");
        assert_eq!(fnv.0, 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18, "FNV-1a, 128 bits");
        assert_eq!(fnv.finish(), 0x343e_1662_793c_64bf ^ 0x6f0d_3597_ba44_6f18);
        let word = |fnv: u128, word: u64| {
            let mixed = (fnv ^ u128::from(word)).wrapping_mul((1 << 88) + 0x13b);
            mixed ^ (mixed >> 71)
        };
        // eight bytes are a word
        let mut fnv = Fnv(BASIS);
        fnv.write(b"foobarfoo");
        let first = word(BASIS, u64::from_le_bytes(*b"foobarfo"));
        assert_eq!(fnv.0, (first ^ u128::from(b'o')).wrapping_mul((1 << 88) + 0x13b));
        for value in [0, 1, 0x8000_0000_0000_0001, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(digest(&value), word(BASIS, value));
            assert_eq!(
                digest(&(value as u32, value as u8)),
                word(word(BASIS, value & 0xffff_ffff), value & 0xff)
            );
            assert_eq!(digest(&(value as usize, 7u64)), word(word(BASIS, value), 7));
        }
    }
}
