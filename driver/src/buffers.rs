//! Memory: guest buffers as scatter lists, and the arena of aligned buffers for tables, bounces and fills.
//!
//! Knows: addresses, lengths, alignment. Must never know: files, offsets in files, machines.
//! The only room of the driver with `unsafe`. Invariants: a segment given to an operation stays valid until the
//! operation's completion was reaped, because guest buffers stay in their request's slot and arena buffers are given back
//! only then; and because the driver drops its backend (which waits for what is in flight) before both.

use quod_backend::{Buffer, Segment, Segments};

/// Memory that is valid because somebody promised it: guest memory, for instance.
#[derive(Clone, Debug, Default)]
pub struct RawBuffers {
    segments: Segments,
}

impl RawBuffers {
    /// # Safety
    /// From the submission of the request that carries them until its completion was taken (or the driver dropped), the
    /// segments keep the promise of [`Segment::new`]: they stay valid, and nobody else writes to them (reads from them,
    /// if the request is a read). Guest memory that the guest changes meanwhile is allowed.
    pub unsafe fn new(segments: Segments) -> RawBuffers {
        RawBuffers { segments }
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// Where the bytes of a request are.
#[derive(Debug, Default)]
pub enum Buffers {
    /// One buffer of our own.
    Owned(Buffer),
    /// Several.
    Vec(Vec<Buffer>),
    /// Memory of the embedder.
    Raw(RawBuffers),
    /// The request has no bytes.
    #[default]
    None,
}

impl Buffers {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Buffers::Owned(buffer) => buffer.as_slice().len() as u64,
            Buffers::Vec(buffers) => buffers.iter().map(|buffer| buffer.as_slice().len() as u64).sum(),
            Buffers::Raw(raw) => raw.segments.iter().map(|segment| segment.len() as u64).sum(),
            Buffers::None => 0,
        }
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer of [`Buffers::Owned`].
    pub fn into_owned(self) -> Option<Buffer> {
        match self {
            Buffers::Owned(buffer) => Some(buffer),
            _ => None,
        }
    }
}

impl From<Buffer> for Buffers {
    fn from(buffer: Buffer) -> Buffers {
        Buffers::Owned(buffer)
    }
}

impl From<Vec<Buffer>> for Buffers {
    fn from(buffers: Vec<Buffer>) -> Buffers {
        Buffers::Vec(buffers)
    }
}

impl From<RawBuffers> for Buffers {
    fn from(raw: RawBuffers) -> Buffers {
        Buffers::Raw(raw)
    }
}
