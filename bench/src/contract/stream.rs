//! Bytes that say who wrote them: a function of the request and the place on the guest disk.
//!
//! Knows: numbers. Must never know: what was written where. Invariants: no byte is zero, so that data is
//! never taken for zeros; any byte range of any write can be made alone.

/// The crash unit of the guest's contract, and the grain of the model.
pub const SECTOR: u64 = 512;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Eight bytes of write `id` at guest offset `word * 8`.
fn word(id: u64, word: u64) -> [u8; 8] {
    (mix(id.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ word.wrapping_mul(0xD134_2543_DE82_EF95))
        | 0x0101_0101_0101_0101)
        .to_le_bytes()
}

/// The byte that write `id` puts at guest offset `at`.
pub fn byte(id: u64, at: u64) -> u8 {
    word(id, at / 8)[(at % 8) as usize]
}

/// Fills `to` with the bytes of write `id` from guest offset `at` on.
pub fn fill(id: u64, at: u64, to: &mut [u8]) {
    let (mut done, mut at) = (0, at);
    while done < to.len() {
        let bytes = word(id, at / 8);
        let skip = (at % 8) as usize;
        let take = (8 - skip).min(to.len() - done);
        to[done..done + take].copy_from_slice(&bytes[skip..skip + take]);
        (done, at) = (done + take, at + take as u64);
    }
}

/// The bytes of write `id` over `[start, end)`.
pub fn bytes(id: u64, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    fill(id, start, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_agree_with_the_whole_and_no_byte_is_zero() {
        let whole = bytes(7, 1000, 3000);
        assert!(whole.iter().all(|&b| b != 0));
        for (start, end) in [(1000, 1001), (1003, 1777), (2999, 3000), (1024, 1536)] {
            assert_eq!(bytes(7, start, end), whole[start as usize - 1000..end as usize - 1000]);
        }
        assert_eq!(byte(7, 1777), whole[777]);
        assert_ne!(bytes(8, 1000, 1512), whole[..512]);
    }
}
