//! What a replay writes: every 512-byte block says which seed, which block and which version it is.
//!
//! A block is four words of header (magic, seed, block, version) and sixty words of a stream keyed by all of
//! them, so that a block in the wrong place, of the wrong age, torn or half overwritten is told apart.
//!
//! Knows: bytes of one block. Must never know: what the model expects, images, drivers.

use std::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 512;
const WORDS: usize = BLOCK / 8;
const HEADER: usize = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"quodPAYL");
const POISON: [u8; 8] = *b"unfilled";

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(seed: u64, block: u64, version: u32) -> u64 {
    mix(mix(mix(seed) ^ block) ^ u64::from(version))
}

/// Word `index` of the stream: one multiplication, so that making payload is cheaper than moving it.
fn word(key: u64, index: usize) -> u64 {
    let x = key.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Fills whole blocks; the first of them is `block`.
pub fn fill(bytes: &mut [u8], seed: u64, block: u64, version: u32) {
    debug_assert!(bytes.len().is_multiple_of(BLOCK));
    for (index, chunk) in bytes.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        fill_block(chunk, seed, block + index as u64, version);
    }
}

fn fill_block(bytes: &mut [u8; BLOCK], seed: u64, block: u64, version: u32) {
    let key = key(seed, block, version);
    let words = bytes.as_chunks_mut::<8>().0;
    for (index, out) in words.iter_mut().enumerate() {
        *out = word(key, index).to_le_bytes();
    }
    for (out, value) in words.iter_mut().zip([MAGIC, seed, block, u64::from(version)]) {
        *out = value.to_le_bytes();
    }
}

/// Is this the block that [`fill`] made?
pub fn matches(bytes: &[u8; BLOCK], seed: u64, block: u64, version: u32) -> bool {
    let words = bytes.as_chunks::<8>().0;
    let head = [MAGIC, seed, block, u64::from(version)];
    if words.iter().zip(head).any(|(found, wanted)| u64::from_le_bytes(*found) != wanted) {
        return false;
    }
    let key = key(seed, block, version);
    let mut difference = 0;
    for (index, found) in words.iter().enumerate().skip(HEADER) {
        difference |= u64::from_le_bytes(*found) ^ word(key, index);
    }
    difference == 0
}

/// Nothing but zeros?
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|&byte| byte == 0)
}

/// Marks every block of a buffer so that bytes which a read did not deliver are not mistaken for what it
/// should.
pub fn poison(bytes: &mut [u8]) {
    for chunk in bytes.as_chunks_mut::<BLOCK>().0 {
        let words = chunk.as_chunks_mut::<8>().0;
        words[0] = POISON;
        words[WORDS - 1] = POISON;
    }
}

/// What a block turns out to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Zeros.
    Zeros,
    /// Payload.
    Payload {
        /// Its seed.
        seed: u64,
        /// Its block.
        block: u64,
        /// Its version.
        version: u64,
        /// The stream fits its header; otherwise the block is torn or damaged.
        intact: bool,
    },
    /// The read delivered nothing here.
    Unfilled,
    /// Something else; its first bytes.
    Foreign([u8; 8]),
}

/// Reads a block's own account of itself.
pub fn decode(bytes: &[u8; BLOCK]) -> Found {
    if is_zero(bytes) {
        return Found::Zeros;
    }
    let words = bytes.as_chunks::<8>().0;
    let [magic, seed, block, version] = [words[0], words[1], words[2], words[3]].map(u64::from_le_bytes);
    if magic == MAGIC {
        let intact = u32::try_from(version).is_ok_and(|version| matches(bytes, seed, block, version));
        Found::Payload { seed, block, version, intact }
    } else if words[0] == POISON || words[WORDS - 1] == POISON {
        Found::Unfilled
    } else {
        Found::Foreign(words[0])
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Zeros => f.write_str("zeros"),
            Found::Payload { seed, block, version, intact } => {
                let damage = if *intact { "" } else { ", damaged" };
                write!(f, "block {block} version {version} of seed {seed}{damage}")
            }
            Found::Unfilled => f.write_str("bytes that the read did not fill"),
            Found::Foreign(bytes) => write!(f, "foreign bytes `{}`...", bytes.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(seed: u64, block: u64, version: u32) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        fill(&mut bytes, seed, block, version);
        bytes
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_seen(seed: u64, block in 0..1u64 << 54, version: u32, bit in 0..BLOCK * 8) {
            let mut bytes = one(seed, block, version);
            prop_assert!(matches(&bytes, seed, block, version));
            let whole = Found::Payload { seed, block, version: version.into(), intact: true };
            prop_assert_eq!(decode(&bytes), whole);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches(&bytes, seed, block, version));
            let intact = matches!(decode(&bytes), Found::Payload { intact: true, .. });
            prop_assert!(!intact);
        }

        #[test]
        fn neighbours_differ_everywhere(seed: u64, block in 0..1u64 << 54, version in 0..u32::MAX) {
            let here = one(seed, block, version);
            let others = [(seed ^ 1, block, version), (seed, block + 1, version), (seed, block, version + 1)];
            for other in others.map(|(seed, block, version)| one(seed, block, version)) {
                let word = |bytes: &[u8; BLOCK], index| bytes.as_chunks::<8>().0[index];
                let same = (HEADER..WORDS).filter(|i| word(&here, *i) == word(&other, *i)).count();
                prop_assert_eq!(same, 0);
            }
        }
    }

    #[test]
    fn many_blocks_are_numbered() {
        let mut bytes = vec![0; BLOCK * 3];
        fill(&mut bytes, 7, 100, 9);
        for (index, chunk) in bytes.as_chunks::<BLOCK>().0.iter().enumerate() {
            assert!(matches(chunk, 7, 100 + index as u64, 9));
        }
        poison(&mut bytes);
        assert_eq!(decode(&bytes.as_chunks::<BLOCK>().0[1]), Found::Unfilled);
        assert_eq!(decode(&[0; BLOCK]), Found::Zeros);
        assert_eq!(decode(&[1; BLOCK]), Found::Foreign([1; 8]));
    }
}
