//! Raw deflate, in slices; and, with the feature `libdeflate`, as a whole in half of the time.
//!
//! Knows: bytes, compressed bytes. Must never know: how long a slice is, what a cluster is.

use flate2::{Compress, Compression, FlushCompress, Status};

/// Of all encoders that were measured it makes the shortest in less time than QEMU's takes
/// (docs/performance.md).
const LEVEL: u32 = 6;
/// Of the distance that matches of a near window reach back.
pub(super) const NEAR_BITS: u8 = 12;
/// The window of the others.
const FAR_BITS: u8 = 15;

/// Encoders, made when first used.
#[derive(Default)]
pub(super) struct Deflate {
    far: Option<Compress>,
    near: Option<Compress>,
    #[cfg(feature = "libdeflate")]
    whole: Option<libdeflater::Compressor>,
}

impl Deflate {
    /// A piece, all of which is taken: bytes that came out. `begins`: it is the first; `last`: the stream
    /// ends with it. None: there is no room for them.
    pub(super) fn step(
        &mut self,
        near: bool,
        begins: Option<usize>,
        input: &[u8],
        last: bool,
        output: &mut [u8],
    ) -> Option<usize> {
        let (stream, bits) = if near { (&mut self.near, NEAR_BITS) } else { (&mut self.far, FAR_BITS) };
        let stream = stream
            .get_or_insert_with(|| Compress::new_with_window_bits(Compression::new(LEVEL), false, bits));
        if begins.is_some() {
            stream.reset();
        }
        let flush = if last { FlushCompress::Finish } else { FlushCompress::None };
        let (mut taken, mut made) = (0, 0);
        loop {
            let before = (stream.total_in(), stream.total_out());
            let status = stream.compress(&input[taken..], &mut output[made..], flush).ok()?;
            let moved = (stream.total_in() - before.0, stream.total_out() - before.1);
            taken += moved.0 as usize;
            made += moved.1 as usize;
            match status {
                Status::StreamEnd => return Some(made),
                _ if taken == input.len() && !last => return Some(made),
                _ if moved == (0, 0) => return None,
                _ => {}
            }
        }
    }

    /// All of it.
    pub(super) fn whole(&mut self, near: bool, input: &[u8], output: &mut [u8]) -> Option<usize> {
        // it has one window
        #[cfg(feature = "libdeflate")]
        if !near {
            let level = libdeflater::CompressionLvl::new(LEVEL as i32).unwrap_or_default();
            let encoder = self.whole.get_or_insert_with(|| libdeflater::Compressor::new(level));
            return encoder.deflate_compress(input, output).ok();
        }
        self.step(near, Some(input.len()), input, true, output)
    }
}
