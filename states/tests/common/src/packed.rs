//! The compression of these tests: eight bytes are a cluster.

/// What these eight bytes stand for, from byte `within` of the cluster on.
pub fn decompress(seed: &[u8], within: u64, len: u64) -> Vec<u8> {
    let seed = u64::from_le_bytes(seed[..8].try_into().unwrap());
    (within..within + len).map(|at| (seed.wrapping_mul(at / 512 + 3) >> 8) as u8).collect()
}
