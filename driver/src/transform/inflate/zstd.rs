//! zstd, in slices: frames that follow each other.
//!
//! Knows: compressed bytes, decompressed bytes. Must never know: how long a slice is, what a cluster is.

use ::zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// The decoder, made when first used.
#[derive(Default)]
pub(super) struct Zstd {
    stream: Option<Decoder<'static>>,
}

impl Zstd {
    /// A piece of a stream; None if it is corrupt. "Ended": a frame has, and another one may follow.
    pub(super) fn step(
        &mut self,
        begins: bool,
        input: &[u8],
        output: &mut [u8],
    ) -> Option<(usize, usize, bool)> {
        if self.stream.is_none() {
            self.stream = Decoder::new().ok();
        }
        let decoder = self.stream.as_mut()?;
        if begins {
            decoder.reinit().ok()?;
        }
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
        let room = to.capacity();
        loop {
            let before = from.pos();
            let ended = decoder.run(&mut from, &mut to).ok()? == 0;
            // frames may be empty: a step ends with its slice, not with a frame
            let more = ended && to.pos() < room && from.pos() > before && from.pos() < input.len();
            if !more {
                return Some((from.pos(), to.pos(), ended));
            }
        }
    }
}
