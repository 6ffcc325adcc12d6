//! Raw deflate, in slices; and, with the feature `libdeflate`, as a whole at twice the speed.
//!
//! Knows: compressed bytes, decompressed bytes. Must never know: how long a slice is, what a cluster is.

use flate2::{Decompress, FlushDecompress, Status};

/// Decoders, made when first used.
#[derive(Default)]
pub(super) struct Deflate {
    stream: Option<Decompress>,
    #[cfg(feature = "libdeflate")]
    whole: Option<libdeflater::Decompressor>,
}

impl Deflate {
    /// A piece of a stream; None if it is corrupt.
    pub(super) fn step(
        &mut self,
        begins: bool,
        input: &[u8],
        output: &mut [u8],
    ) -> Option<(usize, usize, bool)> {
        let decoder = self.stream.get_or_insert_with(|| Decompress::new(false));
        if begins {
            decoder.reset(false);
        }
        let before = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress(input, output, FlushDecompress::None).ok()?;
        let (taken, made) = (decoder.total_in() - before.0, decoder.total_out() - before.1);
        Some((taken as usize, made as usize, status == Status::StreamEnd))
    }

    /// A stream that ends with its output; false: it was not done.
    #[cfg(feature = "libdeflate")]
    pub(super) fn whole(&mut self, input: &[u8], output: &mut [u8]) -> bool {
        let decoder = self.whole.get_or_insert_with(libdeflater::Decompressor::new);
        decoder.deflate_decompress(input, output) == Ok(output.len())
    }

    /// A stream that ends with its output: there is no decoder that does no more than that.
    #[cfg(not(feature = "libdeflate"))]
    pub(super) fn whole(&mut self, _input: &[u8], _output: &mut [u8]) -> bool {
        false
    }
}
