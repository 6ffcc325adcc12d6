//! The compression of these tests: eight bytes are a cluster.

/// What these eight bytes stand for, from byte `within` of the cluster on.
pub fn decompress(seed: &[u8], within: u64, len: u64) -> Vec<u8> {
    let seed = u64::from_le_bytes(seed[..8].try_into().unwrap());
    (within..within + len).map(|at| (seed.wrapping_mul(at / 512 + 3) >> 8) as u8).collect()
}

/// What becomes such a cluster: `value` in its first block, and so on.
pub fn text(value: u8, len: u64) -> Vec<u8> {
    decompress(&(u64::from(value) << 8).to_le_bytes(), 0, len)
}

/// Eight bytes and some more, of [`text`]; nothing shorter of all else.
pub fn deflate(bytes: &[u8]) -> Option<Vec<u8>> {
    // three times the value stands in the first block, and 171 * 3 is 1 in a byte
    let value = bytes.first()?.wrapping_mul(171);
    let len = 8 + usize::from(value) * 7 % 300;
    if text(value, bytes.len() as u64) != bytes {
        return None;
    }
    let mut packed = (u64::from(value) << 8).to_le_bytes().to_vec();
    packed.resize(len, 0x5a);
    Some(packed)
}
