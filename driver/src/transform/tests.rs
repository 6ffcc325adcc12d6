//! Bytes for tests: contents that shrink, and what deflate makes of them.

use flate2::{Compress, FlushCompress};

/// Bytes of which some repeat and some do not.
pub(crate) fn text(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| if at % 7 < 4 { at.wrapping_mul(2_654_435_761).to_be_bytes()[0] } else { 3 })
        .collect()
}

/// As a cluster of an image holds them: a stream without a header.
pub(crate) fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1000);
    let mut encoder = Compress::new(flate2::Compression::default(), false);
    encoder.compress_vec(bytes, &mut out, FlushCompress::Finish).unwrap();
    out
}
