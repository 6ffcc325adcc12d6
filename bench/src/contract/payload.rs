//! Bytes that say who wrote them: a stream that a seed, a place on the guest's disk and a version decide.
//!
//! No byte of the stream is zero, so that data is never taken for zeros, and any range of any write can be
//! made alone ([`fill`], [`byte`]). A labelled block ([`fill_labelled`]) begins with four words in clear
//! (magic, seed, block, version) in front of its stream, so that a block in the wrong place, of the wrong
//! age, torn or half overwritten is told apart without knowing what was written.
//!
//! Knows: bytes of one block. Must never know: what the model expects, images, drivers.

use std::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// The same: the crash unit of the guest's contract, and the grain of both models.
pub const SECTOR: u64 = BLOCK as u64;
const WORDS: usize = BLOCK / 8;
const LABEL: usize = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"quodPAYL");
const POISON: [u8; 8] = *b"unfilled";

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(seed: u64, block: u64, version: u64) -> u64 {
    mix(mix(mix(seed) ^ block) ^ version)
}

/// Word `index` of the stream: one multiplication, so that making payload is cheaper than moving it.
fn word(key: u64, index: usize) -> u64 {
    let x = key.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) | 0x0101_0101_0101_0101
}

/// In a write's id: each of its blocks repeats its first word, so that it can be compressed.
pub const THIN: u64 = 1 << 63;

/// The word of a write that stands for `index`.
fn chosen(id: u64, index: usize) -> usize {
    if id & THIN == 0 { index } else { 0 }
}

/// Fills `to` with the bytes of write `id` (seed 0, without labels) from guest offset `at` on.
pub fn fill(id: u64, at: u64, to: &mut [u8]) {
    let (mut at, mut rest) = (at, to);
    while !rest.is_empty() {
        let within = (at % SECTOR) as usize;
        let (part, behind) = rest.split_at_mut((BLOCK - within).min(rest.len()));
        fill_part(id, key(0, at / SECTOR, id), within, part);
        (at, rest) = (at + part.len() as u64, behind);
    }
}

/// Part of one block, from byte `within` of it on.
fn fill_part(id: u64, key: u64, within: usize, part: &mut [u8]) {
    let lead = (within.wrapping_neg() % 8).min(part.len());
    let (first, rest) = part.split_at_mut(lead);
    let bytes = word(key, chosen(id, within / 8)).to_le_bytes();
    first.copy_from_slice(&bytes[within % 8..][..lead]);
    let index = within.div_ceil(8);
    for (out, index) in rest.chunks_mut(8).zip(index..) {
        out.copy_from_slice(&word(key, chosen(id, index)).to_le_bytes()[..out.len()]);
    }
}

/// The byte that write `id` puts at guest offset `at`.
pub fn byte(id: u64, at: u64) -> u8 {
    let within = (at % SECTOR) as usize;
    word(key(0, at / SECTOR, id), chosen(id, within / 8)).to_le_bytes()[within % 8]
}

/// The bytes of write `id` over `[start, end)`.
pub fn bytes(id: u64, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    fill(id, start, &mut bytes);
    bytes
}

/// Fills whole labelled blocks; the first of them is `block`.
pub fn fill_labelled(bytes: &mut [u8], seed: u64, block: u64, version: u32) {
    debug_assert!(bytes.len().is_multiple_of(BLOCK));
    for (index, chunk) in bytes.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        fill_block(chunk, seed, block + index as u64, version);
    }
}

fn fill_block(bytes: &mut [u8; BLOCK], seed: u64, block: u64, version: u32) {
    let key = key(seed, block, version.into());
    let words = bytes.as_chunks_mut::<8>().0;
    for (index, out) in words.iter_mut().enumerate() {
        *out = word(key, index).to_le_bytes();
    }
    for (out, value) in words.iter_mut().zip([MAGIC, seed, block, u64::from(version)]) {
        *out = value.to_le_bytes();
    }
}

/// Is this the block that [`fill_labelled`] made?
pub fn matches(bytes: &[u8; BLOCK], seed: u64, block: u64, version: u32) -> bool {
    let words = bytes.as_chunks::<8>().0;
    let head = [MAGIC, seed, block, u64::from(version)];
    if words.iter().zip(head).any(|(found, wanted)| u64::from_le_bytes(*found) != wanted) {
        return false;
    }
    let key = key(seed, block, version.into());
    let mut difference = 0;
    for (index, found) in words.iter().enumerate().skip(LABEL) {
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
        fill_labelled(&mut bytes, seed, block, version);
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
                let same = (LABEL..WORDS).filter(|i| word(&here, *i) == word(&other, *i)).count();
                prop_assert_eq!(same, 0);
            }
        }
    }

    #[test]
    fn many_blocks_are_numbered() {
        let mut bytes = vec![0; BLOCK * 3];
        fill_labelled(&mut bytes, 7, 100, 9);
        for (index, chunk) in bytes.as_chunks::<BLOCK>().0.iter().enumerate() {
            assert!(matches(chunk, 7, 100 + index as u64, 9));
        }
        poison(&mut bytes);
        assert_eq!(decode(&bytes.as_chunks::<BLOCK>().0[1]), Found::Unfilled);
        assert_eq!(decode(&[0; BLOCK]), Found::Zeros);
        assert_eq!(decode(&[1; BLOCK]), Found::Foreign([1; 8]));
    }

    #[test]
    fn parts_agree_with_the_whole_and_no_byte_is_zero() {
        for id in [7, THIN | 7] {
            let whole = bytes(id, 1000, 3000);
            assert!(whole.iter().all(|&byte| byte != 0));
            for (start, end) in
                [(1000, 1001), (1003, 1777), (2999, 3000), (1024, 1536), (1535, 1537), (1001, 1004)]
            {
                assert_eq!(bytes(id, start, end), whole[start as usize - 1000..end as usize - 1000]);
            }
            for at in 1000..3000 {
                assert_eq!(byte(id, at), whole[at as usize - 1000]);
            }
        }
        let whole = bytes(7, 1000, 3000);
        let thin = bytes(THIN | 7, 512, 1024);
        assert!(thin.chunks(8).all(|word| word == &thin[..8]), "a block of it is one word");
        assert_ne!(bytes(8, 1000, 1512), whole[..512]);
    }

    #[test]
    fn a_labelled_block_is_the_stream_behind_its_label() {
        let labelled = one(0, 5, 7);
        assert_eq!(labelled[LABEL * 8..], bytes(7, 5 * SECTOR, 6 * SECTOR)[LABEL * 8..]);
    }
}
