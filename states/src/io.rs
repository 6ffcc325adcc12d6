//! What the machine wants done: I/O that is named, not performed.
//!
//! Knows: host offsets, lengths, which request's buffer a transfer belongs to.
//! Must never know: file descriptors, memory addresses, a byte of guest data.
//!
//! Invariants:
//! * every [`Io`] except [`IoOp::ZeroBuffer`] and [`IoOp::ForgetCompressed`] gets exactly one
//!   `handle_completion` with its id;
//! * an [`Io`] never depends on the order in which the embedder performs it: what must be ordered is not yet
//!   named;
//! * ranges of data transfers are exact bytes; the embedder rounds reads out to the device's alignment (reads
//!   have no neighbours to hurt). Writes are already aligned when head and tail are counted in.

use crate::acb::AcbId;
use crate::acb::request::RequestId;

/// Names one I/O in flight: slab index and generation, so that a stale completion is recognised.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct IoId {
    /// Slot of the machine's I/O slab.
    pub index: u32,
    /// Changes whenever the slot is used again.
    pub generation: u32,
}

/// One thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Io {
    /// To be given back with the outcome.
    pub id: IoId,
    /// What to do.
    pub op: IoOp,
}

/// A read that is one read of the file, or a write that is one write of it, and nothing else: begun by
/// [`Image::begin_hit`](crate::Image::begin_hit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hit {
    /// Which request.
    pub request: RequestId,
    /// Its acb.
    pub acb: AcbId,
    /// Its I/O.
    pub io: IoId,
    /// Where in the image's file its bytes are.
    pub host: u64,
}

/// Which side of the guest's bytes a fill belongs to: the part of the written range in front of them, or
/// behind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// In front of the guest's bytes (QEMU: prefill).
    Head,
    /// Behind the guest's bytes (QEMU: postfill).
    Tail,
}

/// Where the bytes of a fill come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FillSource {
    /// This image's file at a host offset (read-modify-write of a sector, copy of a shared cluster).
    Host(u64),
    /// The backing layer at a guest offset.
    Backing(u64),
    /// A compressed cluster of this image's file: as [`IoOp::ReadCompressed`], failure (EIO) included.
    Compressed {
        /// Host offset of the compressed data, any byte.
        host: u64,
        /// Compressed bytes at most.
        bytes: u32,
        /// Offset in the decompressed cluster.
        within: u32,
    },
}

/// The operations. Offsets and lengths are bytes; "host" is an offset in this image's file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoOp {
    /// Read metadata; complete with `Outcome::Table(bytes)`, exactly `len` bytes (zeros past the end of the
    /// file).
    ReadTable {
        /// Host offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write metadata. The bytes come from `Image::encode(id, buf)`, called before the next mutator.
    WriteTable {
        /// Host offset.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Host file -> the request's buffer. Bytes past the end of the file are zeros.
    ReadData {
        /// Whose buffer.
        request: RequestId,
        /// Where in that buffer.
        buffer_offset: u64,
        /// Bytes.
        len: u64,
        /// Host offset, any byte.
        host: u64,
    },
    /// Backing layer -> the request's buffer. The range lies inside the backing layer.
    ReadBacking {
        /// Whose buffer.
        request: RequestId,
        /// Where in that buffer.
        buffer_offset: u64,
        /// Bytes.
        len: u64,
        /// Offset in the backing layer's guest disk.
        guest: u64,
    },
    /// Compressed cluster -> the request's buffer: read up to `bytes` bytes at `host` (fewer at the end of
    /// the file), decompress one cluster from them, copy `len` bytes of it from offset `within` on. A
    /// decompressor that does not yield a whole cluster is an I/O error (EIO).
    ReadCompressed {
        /// Whose buffer.
        request: RequestId,
        /// Where in that buffer.
        buffer_offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Host offset of the compressed data, any byte.
        host: u64,
        /// Compressed bytes at most.
        bytes: u32,
        /// Offset in the decompressed cluster.
        within: u32,
    },
    /// Space of compressed clusters in [host, host + len) is given up: what the embedder keeps of clusters
    /// whose compressed bytes lie there, in part or whole, must not answer a later I/O. Named before the
    /// space can be used again. I/O in progress that reads there still gets what it asked for. Done at once;
    /// gets no completion (its id means nothing).
    ForgetCompressed {
        /// Host offset, any byte.
        host: u64,
        /// Bytes.
        len: u64,
    },
    /// Fill part of a request's buffer with zeros. Done at once; gets no completion (its id means nothing).
    ZeroBuffer {
        /// Whose buffer.
        request: RequestId,
        /// Where in that buffer.
        buffer_offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Read `len` bytes of `source` to position `at` of the fill buffer `part` of `acb`. The fill buffer has
    /// `part_len` bytes and starts out as zeros when its first fill (or, without fills, the write) is named.
    ReadFill {
        /// Whose fill buffer.
        acb: AcbId,
        /// Which of its two.
        part: Part,
        /// Size of that fill buffer, bytes.
        part_len: u32,
        /// Where in the fill buffer.
        at: u32,
        /// Bytes.
        len: u32,
        /// Where from.
        source: FillSource,
    },
    /// Host file <- head fill, guest bytes, tail fill, as one write at `host - head`. Frees the acb's fill
    /// buffers.
    WriteData {
        /// Whose fill buffers.
        acb: AcbId,
        /// Whose guest bytes.
        request: RequestId,
        /// Where in the request's buffer.
        buffer_offset: u64,
        /// Guest bytes.
        len: u64,
        /// Host offset of the first guest byte.
        host: u64,
        /// Bytes of head fill (zeros where nothing was read).
        head: u32,
        /// Bytes of tail fill (zeros where nothing was read).
        tail: u32,
        /// The request has no buffer: its bytes are `len` zeros (write-zeroes that must copy its
        /// surroundings).
        zero: bool,
    },
    /// Compress one cluster: `len` bytes of the request's buffer, from its begin on, and zeros to the end of
    /// the cluster. Complete with `Outcome::Compressed(n)` if it becomes shorter, of `n` bytes, which the
    /// embedder keeps until they are written ([`IoOp::WriteCompressed`]) or the request ends; with `Done` if
    /// it does not.
    Compress {
        /// Whose buffer.
        request: RequestId,
        /// Bytes of it.
        len: u64,
    },
    /// Host file <- the bytes that `Compress` has made for the request, then `pad` zeros, as one write.
    WriteCompressed {
        /// Whose.
        request: RequestId,
        /// Host offset of the first of them.
        host: u64,
        /// How many they are.
        len: u32,
        /// Zeros behind them: up to the end of the file's block, where it has blocks.
        pad: u32,
    },
    /// Make `len` bytes at `host` read as zeros. `unmap` lets the host give the space back.
    ZeroRange {
        /// Host offset, aligned.
        host: u64,
        /// Bytes, aligned.
        len: u64,
        /// Punching a hole is allowed (and wanted).
        unmap: bool,
    },
    /// Give space back to the host: a hole, reads as zeros.
    PunchHole {
        /// Host offset.
        host: u64,
        /// Bytes.
        len: u64,
    },
    /// Nobody needs `len` bytes at `host` any more: the device gets them back if it can, and they may read as
    /// anything. Named only where [`Options::fixed_len`](crate::Options::fixed_len) is set.
    Discard {
        /// Host offset.
        host: u64,
        /// Bytes.
        len: u64,
    },
    /// Make `len` bytes of the image's own file at `host` read as zeros, whatever they are (where guest data
    /// has a file of its own, they are not guest data). The space is about to be used: the host keeps it.
    Clear {
        /// Host offset.
        host: u64,
        /// Bytes.
        len: u64,
    },
    /// Make the file at least `to` bytes long; the new space reads as zeros. `from` is its length now.
    Grow {
        /// Present length (the file may be longer, if a `SetLen` failed).
        from: u64,
        /// Wanted length.
        to: u64,
    },
    /// Set the file's length to exactly `len`.
    SetLen {
        /// Bytes.
        len: u64,
    },
    /// How long is the file now? Complete with `Outcome::Length`. Named only where
    /// [`Options::fixed_len`](crate::Options::fixed_len) is set: in place of `Grow` and `SetLen`.
    Length,
    /// Nothing: to be completed in the embedder's next turn, so that a long piece of work does not hold its
    /// thread.
    Yield,
    /// Make every write completed before now durable, the file's length included (fdatasync).
    Sync,
}

impl IoOp {
    /// The file is another one afterwards: its bytes, its length, or where it has space.
    pub(crate) const fn changes_file(&self) -> bool {
        match self {
            IoOp::WriteTable { .. } | IoOp::WriteData { .. } | IoOp::WriteCompressed { .. } => true,
            IoOp::ZeroRange { .. } => true,
            IoOp::PunchHole { .. } | IoOp::Discard { .. } | IoOp::Clear { .. } => true,
            IoOp::Grow { .. } | IoOp::SetLen { .. } => true,
            IoOp::ReadTable { .. } | IoOp::ReadData { .. } | IoOp::ReadBacking { .. } => false,
            IoOp::ReadCompressed { .. } | IoOp::ReadFill { .. } | IoOp::ZeroBuffer { .. } => false,
            IoOp::Compress { .. } => false,
            IoOp::ForgetCompressed { .. } | IoOp::Length | IoOp::Yield | IoOp::Sync => false,
        }
    }
}

/// How an I/O ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// As asked.
    Done,
    /// [`IoOp::ReadTable`]: the bytes.
    Table(&'a [u8]),
    /// [`IoOp::Length`]: bytes.
    Length(u64),
    /// [`IoOp::Compress`]: so many bytes, fewer than a cluster has.
    Compressed(u32),
    /// It failed; the operating system's error number.
    Failed(i32),
}
