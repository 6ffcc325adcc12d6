//! One cluster's bytes made shorter: raw deflate, or one zstd frame, as a whole or a slice at a time.
//!
//! Knows: a cluster's bytes, compressed bytes. Must never know: requests, places in a file, threads.
//!
//! Invariants:
//! * what comes out has fewer bytes than went in, else it is none: the caller's output ends there;
//! * deflate refers back over the whole window of 32 KiB, which some readers do not follow, or over
//!   4 KiB, which all do; a cluster is one frame of zstd, as some readers look at the first alone.

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

use crate::layer::packs::Method;
use quod_states::qcow2::Compression;

/// The encoders that quod was built with. One cluster at a time.
#[derive(Default)]
pub(super) struct Encoders {
    deflate: Deflate,
    zstd: Zstd,
}

impl Encoders {
    /// All of a cluster: how many bytes of the output it has become. None: it has no room there.
    pub(super) fn whole(&mut self, method: Method, input: &[u8], output: &mut [u8]) -> Option<usize> {
        match method.compression {
            Compression::Deflate => self.deflate.whole(method.near, input, output),
            Compression::Zstd => self.zstd.whole(method.near, input, output),
        }
    }
}

/// How a cluster is after a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Packed {
    More,
    /// It has become so many bytes.
    Shorter(usize),
    Not,
}

/// How far it is, where it is done in slices.
#[derive(Debug)]
pub(super) struct Packing {
    method: Method,
    /// Bytes of the cluster,
    size: usize,
    /// those that were taken,
    taken: usize,
    /// and those that came out.
    made: usize,
}

impl Packing {
    /// A cluster of `size` bytes.
    pub(super) fn new(method: Method, size: usize) -> Packing {
        Packing { method, size, taken: 0, made: 0 }
    }

    /// Bytes of the cluster.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where the next slice begins in the cluster, of `slice` bytes at most, and how long it is.
    pub(super) fn next(&self, slice: usize) -> (usize, usize) {
        (self.taken, slice.min(self.size - self.taken))
    }

    /// The next slice. `output`: all that there is room for. The encoders serve no other cluster until this
    /// one has ended.
    pub(super) fn step(&mut self, encoders: &mut Encoders, input: &[u8], output: &mut [u8]) -> Packed {
        let begins = (self.taken == 0).then_some(self.size);
        let last = self.taken + input.len() >= self.size;
        let Some(room) = output.get_mut(self.made..) else { return Packed::Not };
        let near = self.method.near;
        let made = match self.method.compression {
            Compression::Deflate => encoders.deflate.step(near, begins, input, last, room),
            Compression::Zstd => encoders.zstd.step(near, begins, input, last, room),
        };
        let Some(made) = made else { return Packed::Not };
        self.taken += input.len();
        self.made += made;
        if last { Packed::Shorter(self.made) } else { Packed::More }
    }
}

#[cfg(test)]
mod tests;
