//! Hashes of bytes and numbers, for digests of states: the same on every machine and in every run.
//!
//! Knows: bytes, numbers. Must never know: what they mean.

fn mix(hash: u128, word: u64) -> u128 {
    let hash = (hash ^ u128::from(word)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    hash ^ (hash >> 71)
}

/// A hash of bytes.
pub fn hash_bytes(seed: u128, bytes: &[u8]) -> u128 {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash =
        words.iter().fold(seed ^ 0x6c62_272e_07bb_0142, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

/// A hash of numbers.
pub fn hash_words(seed: u128, words: impl IntoIterator<Item = u64>) -> u128 {
    words.into_iter().fold(seed ^ 0x62b8_2175_6295_c58d, mix)
}
