//! Bytes that are looked at by the sector: where two ranges differ, where one is not zero.
//!
//! Knows: memory. Must never know: whose.

/// What differences are told in, bytes.
pub(crate) const SECTOR: usize = 512;

/// Long enough that a comparison with it costs no more than reading.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// All of it is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// The first sector that differs, as an offset; both are of one length.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let pairs = a.chunks(SECTOR).zip(b.chunks(SECTOR));
    pairs.into_iter().position(|(a, b)| a != b).map(|sector| sector * SECTOR)
}

/// The first sector that is not zero, as an offset.
pub(crate) fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.chunks(SECTOR).position(|sector| !is_zero(sector)).map(|sector| sector * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_is_told() {
        let mut bytes = vec![0; 200_000];
        assert_eq!((first_nonzero(&bytes), first_difference(&bytes, &bytes)), (None, None));
        for at in [199_999, 66_000, 511, 0] {
            let zeros = vec![0; bytes.len()];
            bytes[at] = 1;
            let sector = Some(at / SECTOR * SECTOR);
            assert_eq!((first_nonzero(&bytes), first_difference(&bytes, &zeros)), (sector, sector));
        }
        assert!(is_zero(&[]) && first_nonzero(&[]).is_none());
    }
}
