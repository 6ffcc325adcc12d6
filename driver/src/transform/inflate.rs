//! One cluster's stream: raw deflate or zstd, as a whole or a slice at a time.
//!
//! Knows: compressed bytes, decompressed bytes. Must never know: clusters, wants, threads.
//!
//! Invariants:
//! * a step takes and makes at most `slice` bytes (zstd decodes whole blocks, so up to 128 KiB), whatever the
//!   stream says;
//! * a stream yields exactly one cluster or is broken: its output goes to a buffer of exactly that size.

use flate2::{Decompress, FlushDecompress, Status};
use quod_states::qcow2::Compression;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Decoders, made when first used. One stream at a time.
#[derive(Default)]
pub(super) struct Decoders {
    deflate: Option<Decompress>,
    whole_deflate: Option<libdeflater::Decompressor>,
    zstd: Option<Decoder<'static>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    More,
    Whole,
    Broken,
}

/// How far a stream is.
#[derive(Debug)]
pub(super) struct Stream {
    compression: Compression,
    begun: bool,
    /// What is left of the input.
    at: usize,
    end: usize,
    /// Bytes of output so far.
    made: usize,
}

impl Stream {
    /// The stream in bytes `at..end` of its input.
    pub(super) fn new(compression: Compression, at: usize, end: usize) -> Stream {
        Stream { compression, begun: false, at, end, made: 0 }
    }

    /// Bytes of input that are looked at.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The next slice. The decoders serve no other stream until this one has ended.
    pub(super) fn step(
        &mut self,
        decoders: &mut Decoders,
        input: &[u8],
        contents: &mut [u8],
        slice: usize,
    ) -> Progress {
        let begins = !std::mem::replace(&mut self.begun, true);
        let until = self.end.min(self.at.saturating_add(slice));
        let Some(input) = input.get(self.at..until) else { return Progress::Broken };
        let until = contents.len().min(self.made.saturating_add(slice));
        let output = &mut contents[self.made..until];
        let moved = match self.compression {
            Compression::Deflate => inflate(&mut decoders.deflate, begins, input, output),
            Compression::Zstd => unzstd(&mut decoders.zstd, begins, input, output),
        };
        let Some((taken, made, ended)) = moved else { return Progress::Broken };
        self.at += taken;
        self.made += made;
        // deflate: what follows the last byte does not matter; zstd: the frame must end with the cluster
        let full = self.made == contents.len();
        match self.compression {
            Compression::Deflate if full => Progress::Whole,
            Compression::Zstd if full && ended => Progress::Whole,
            Compression::Deflate if ended => Progress::Broken,
            _ if taken + made == 0 => Progress::Broken,
            _ => Progress::More,
        }
    }

    /// All of it, instead of steps.
    pub(super) fn run(&mut self, decoders: &mut Decoders, input: &[u8], contents: &mut [u8]) -> Progress {
        if self.compression == Compression::Deflate
            && let Some(input) = input.get(self.at..self.end)
        {
            // twice as fast as one that can stop in between. A stream may go on behind the cluster, which it
            // takes for an error, so the other one judges what it refuses
            let decoder = decoders.whole_deflate.get_or_insert_with(libdeflater::Decompressor::new);
            if decoder.deflate_decompress(input, contents) == Ok(contents.len()) {
                return Progress::Whole;
            }
        }
        loop {
            let progress = self.step(decoders, input, contents, usize::MAX);
            if progress != Progress::More {
                return progress;
            }
        }
    }
}

/// How much was taken and made, and whether the stream has ended; None if it is corrupt.
fn inflate(
    decoder: &mut Option<Decompress>,
    begins: bool,
    input: &[u8],
    output: &mut [u8],
) -> Option<(usize, usize, bool)> {
    let decoder = decoder.get_or_insert_with(|| Decompress::new(false));
    if begins {
        decoder.reset(false);
    }
    let before = (decoder.total_in(), decoder.total_out());
    let status = decoder.decompress(input, output, FlushDecompress::None).ok()?;
    let (taken, made) = (decoder.total_in() - before.0, decoder.total_out() - before.1);
    Some((taken as usize, made as usize, status == Status::StreamEnd))
}

/// As `inflate`; "ended": a frame has, and another one may follow.
fn unzstd(
    decoder: &mut Option<Decoder<'static>>,
    begins: bool,
    input: &[u8],
    output: &mut [u8],
) -> Option<(usize, usize, bool)> {
    if decoder.is_none() {
        *decoder = Decoder::new().ok();
    }
    let decoder = decoder.as_mut()?;
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

#[cfg(test)]
mod tests;
