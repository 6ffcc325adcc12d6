//! One cluster's stream: raw deflate or zstd, as a whole or a slice at a time.
//!
//! Knows: compressed bytes, decompressed bytes. Must never know: clusters, wants, threads.
//!
//! Invariants:
//! * a step takes and makes at most `slice` bytes (zstd decodes whole blocks, so up to 128 KiB), whatever the
//!   stream says;
//! * a stream yields exactly one cluster or is broken: its output goes to a buffer of exactly that size.

#[cfg(any(not(feature = "deflate"), not(feature = "zstd")))]
mod absent;
#[cfg(feature = "deflate")]
mod deflate;
#[cfg(feature = "zstd")]
mod zstd;

#[cfg(not(feature = "deflate"))]
use absent::Absent as Deflate;
#[cfg(not(feature = "zstd"))]
use absent::Absent as Zstd;
#[cfg(feature = "deflate")]
use deflate::Deflate;
#[cfg(feature = "zstd")]
use zstd::Zstd;

use quod_states::qcow2::Compression;

/// The decoders that quod was built with. One stream at a time. Their steps say how much was taken and made,
/// and whether the stream (zstd: a frame of it) has ended.
#[derive(Default)]
pub(super) struct Decoders {
    deflate: Deflate,
    zstd: Zstd,
}

/// Was quod built with a decoder for it?
pub(crate) const fn is_built_in(compression: Compression) -> bool {
    match compression {
        Compression::Deflate => cfg!(feature = "deflate"),
        Compression::Zstd => cfg!(feature = "zstd"),
    }
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
            Compression::Deflate => decoders.deflate.step(begins, input, output),
            Compression::Zstd => decoders.zstd.step(begins, input, output),
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
            // a stream may go on behind the cluster, and what can only do it as a whole takes that for an
            // error: the other one judges what it refuses
            && decoders.deflate.whole(input, contents)
        {
            return Progress::Whole;
        }
        loop {
            let progress = self.step(decoders, input, contents, usize::MAX);
            if progress != Progress::More {
                return progress;
            }
        }
    }
}

#[cfg(test)]
mod tests;
