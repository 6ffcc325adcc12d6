//! zstd, one frame a cluster.
//!
//! Knows: bytes, compressed bytes. Must never know: how long a slice is, what a cluster is.

use ::zstd::bulk::Compressor;
use ::zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

/// The library's own, and QEMU's.
const LEVEL: i32 = 3;

/// Encoders, made when first used.
#[derive(Default)]
pub(super) struct Zstd {
    stream: Option<Encoder<'static>>,
    whole: Option<Compressor<'static>>,
}

impl Zstd {
    /// As of deflate: a piece.
    pub(super) fn step(
        &mut self,
        _near: bool,
        begins: Option<usize>,
        input: &[u8],
        last: bool,
        output: &mut [u8],
    ) -> Option<usize> {
        if self.stream.is_none() {
            self.stream = Encoder::new(LEVEL).ok();
        }
        let encoder = self.stream.as_mut()?;
        if let Some(size) = begins {
            encoder.reinit().ok()?;
            encoder.set_pledged_src_size(Some(size as u64)).ok()?;
        }
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
        while from.pos() < input.len() {
            let before = (from.pos(), to.pos());
            encoder.run(&mut from, &mut to).ok()?;
            if before == (from.pos(), to.pos()) {
                return None;
            }
        }
        let mut left = usize::from(last);
        while left > 0 {
            let before = to.pos();
            left = encoder.finish(&mut to, true).ok()?;
            if left > 0 && before == to.pos() {
                return None;
            }
        }
        Some(to.pos())
    }

    /// All of it.
    pub(super) fn whole(&mut self, _near: bool, input: &[u8], output: &mut [u8]) -> Option<usize> {
        if self.whole.is_none() {
            self.whole = Compressor::new(LEVEL).ok();
        }
        self.whole.as_mut()?.compress_to_buffer(input, output).ok()
    }
}
