//! Reads, and questions what is mapped where.
//!
//! Knows: where a run lies. Must never know: the guest's bytes.
//!
//! Invariant: what is read belongs to the guest's disk: to the cluster that an entry names, or the backing
//! layer within its length; all else is zeros.

use crate::acb::request::{Extent, Met, Status};
use crate::acb::{AcbIndex, Source, State};
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::tables::mapping::{Mapping, Run};

/// Data moves in extents of at most this many bytes (an allocating extent: to the next cluster end).
pub(crate) const EXTENT_MAX: u64 = 8 << 20;

impl Image {
    pub(crate) fn read_run(&mut self, a: AcbIndex, run: Run) -> Next {
        debug_assert!(run.len > 0);
        let Run { mapping, len, .. } = run;
        let acb = self.requests.acb(a);
        let (pos, request) = (acb.pos, acb.request);
        let buffer_offset = pos - acb.origin;
        debug_assert!(pos >= acb.origin, "the buffer begins with the request");
        let shows = self.backing_len.unwrap_or(0);
        let (state, op) = match mapping {
            Mapping::Data(host) => {
                let len = self.requests.take_run(a, len.min(EXTENT_MAX), host, Met::HIT);
                (State::ReadData, IoOp::ReadData { request, buffer_offset, len, host })
            }
            Mapping::NoTable | Mapping::Unallocated | Mapping::Reserved(_) if shows > pos => {
                let len = len.min(EXTENT_MAX).min(shows - pos);
                let len = self.requests.take_run(a, len, pos, Met::BACKING);
                debug_assert!(len > 0 && pos + len <= shows, "the range lies inside the backing layer");
                (State::ReadBacking, IoOp::ReadBacking { request, buffer_offset, len, guest: pos })
            }
            Mapping::Compressed { host, len: bytes } => {
                let len = self.requests.take_run(a, len, host, Met::COMPRESSED);
                let start = self.layout.geometry().map_or(pos, |geometry| geometry.cluster_start(pos));
                self.requests.acb_mut(a).extent.source = Source::Compressed(host, bytes);
                let within = (pos - start) as u32;
                let op = IoOp::ReadCompressed { request, buffer_offset, len, host, bytes, within };
                (State::ReadCompressed, op)
            }
            _ => {
                self.requests.note(a, Met::ZERO);
                self.outbox.tell(IoOp::ZeroBuffer { request, buffer_offset, len });
                self.requests.skip(a, len);
                return Next::On;
            }
        };
        self.requests.set_state(a, state);
        self.outbox.emit_own(&mut self.requests, a, Part::Head, op);
        Next::Wait
    }

    pub(crate) fn map_run(&mut self, a: AcbIndex, run: Run) -> Next {
        debug_assert!(run.len > 0);
        let offset = self.requests.acb(a).pos;
        debug_assert!(offset + run.len <= self.requests.acb(a).end, "not behind the end of what was asked");
        let (status, host) = match run.mapping {
            Mapping::Data(host) => (Status::Data, Some(host)),
            Mapping::Zero => (Status::Zero, None),
            Mapping::ZeroAllocated(host) => (Status::Zero, Some(host)),
            Mapping::Compressed { .. } => (Status::Compressed, None),
            Mapping::Reserved(host) => (Status::Unallocated, Some(host)),
            Mapping::NoTable | Mapping::Unallocated => (Status::Unallocated, None),
        };
        self.requests.answer_map(a, Extent { offset, len: run.len, status, host });
        Next::Done
    }

    /// `ReadData`, `ReadBacking`, `ReadCompressed`: the bytes are there.
    pub(crate) fn extent_read(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb_mut(a);
        debug_assert!(acb.pos < acb.extent.end);
        acb.pos = acb.extent.end;
        if acb.pos == acb.end { Next::Done } else { Next::Look }
    }
}
