//! Compressed writes: a cluster that holds nothing yet gets the bytes that the embedder makes of it.
//!
//! First it is looked at, then compressed, then looked at again: meanwhile another request may have given it
//! space. What does not become shorter is a write like any other from there on. Places are given in the order
//! in which the writes were asked for, so that the same requests make the same file.
//!
//! Knows: how long the compressed bytes are. Must never know: the bytes, how they are made.
//!
//! Invariants:
//! * a cluster that has space, of whatever kind, is refused, and nothing of it was changed;
//! * nothing is held while the embedder compresses; its bytes outlive every wait for a place, until they are
//!   written or the request ends;
//! * the entry changes when the bytes are written, in a slice that stayed pinned meanwhile, young as any
//!   other change (QE3, QC3); the counts of their host clusters went up before (QC1, QC23).

use crate::acb::request::{Met, RequestKind};
use crate::acb::{AcbIndex, Source, State, Transfer};
use crate::base::geometry::align_up;
use crate::base::span::Span;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::rule::Rule;
use crate::tables::mapping::{Mapping, Run};

impl Image {
    /// The cluster of a compressed write.
    pub(crate) fn compress_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(run.len > 0 && !self.options.read_only);
        let acb = self.requests.acb(a);
        let (pos, source) = (acb.pos, acb.extent.source);
        debug_assert_eq!(pos, acb.origin, "it is one cluster");
        match run.mapping {
            Mapping::NoTable | Mapping::Unallocated | Mapping::Zero => {}
            Mapping::Data(_) | Mapping::ZeroAllocated(_) | Mapping::Reserved(_) => {
                return Next::fail(Error::Occupied(pos));
            }
            Mapping::Compressed { .. } => return Next::fail(Error::Occupied(pos)),
        }
        if matches!(source, Source::Packed(_)) && !self.waits.has_turn(&mut self.requests, a) {
            return Next::Wait;
        }
        match source {
            Source::Packed(0) => {
                self.write_plain(a);
                Next::On
            }
            Source::Packed(_) if slot.is_some_and(|slot| self.must_copy(slot, pos)) => {
                self.copy_table(a, pos)
            }
            Source::Packed(len) => self.write_packed(a, len, slot),
            Source::Zeros | Source::Backing | Source::Host(_) | Source::Compressed(..) => self.compress(a),
        }
    }

    /// The embedder is to compress it.
    fn compress(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb(a);
        debug_assert!(!acb.held.any(), "nothing is held while it is compressed");
        let op = IoOp::Compress { request: acb.request, len: acb.end - acb.pos };
        self.requests.set_state(a, State::Compress);
        self.outbox.emit_own(&mut self.requests, a, Part::Head, op);
        Next::Wait
    }

    /// `Compress`: it has become shorter, or not.
    pub(crate) fn compressed(&mut self, a: AcbIndex) -> Next {
        let cluster = self.layout.geometry().map_or(0, |geometry| geometry.cluster_size());
        let acb = self.requests.acb_mut(a);
        debug_assert_eq!(acb.pos, acb.extent.end, "nothing of it is written");
        match acb.extent.source {
            Source::Packed(len) if u64::from(len) < cluster => {}
            _ => acb.extent.source = Source::Packed(0),
        }
        Next::Look
    }

    /// From here on it is a write like any other.
    fn write_plain(&mut self, a: AcbIndex) {
        let acb = self.requests.acb_mut(a);
        debug_assert_eq!(acb.kind, RequestKind::WriteCompressed, "it was none");
        (acb.kind, acb.extent.source) = (RequestKind::Write, Source::Zeros);
    }

    /// Gate, table, place, claim, as of any new cluster; then the write.
    fn write_packed(&mut self, a: AcbIndex, len: u32, slot: Option<u32>) -> Next {
        let (Some(geometry), Some(shape)) = (self.layout.geometry().copied(), self.layout.shape()) else {
            return Next::On;
        };
        let acb = self.requests.acb(a);
        let (pos, request, guest_len) = (acb.pos, acb.request, acb.end - acb.pos);
        debug_assert_eq!(pos, geometry.cluster_start(pos), "it is a whole cluster");
        let cluster = Span::at(pos, geometry.cluster_size());
        if self.tables.is_overfull() {
            return self.wait_for_slot(a);
        }
        if !self.pass_gate(a, cluster, slot.is_none()) {
            return Next::Wait;
        }
        let Some(slot) = slot else { return self.new_table(a, pos) };
        self.tables.pin(slot, Rule::PinCount);
        let host = self.allocate_packed(a, len.into());
        self.tables.unpin_quietly(slot, Rule::PinCount);
        let host = match host {
            Ok(host) => host,
            Err(next) => return next,
        };
        if shape.encode_compressed(host, len).is_none() {
            // so far into the file that only a cluster's border can be named
            self.give_back_packed(host, len);
            self.write_plain(a);
            return Next::On;
        }
        let made_table = self.requests.acb(a).met.contains(Met::NEW_TABLE);
        self.waits.claim(&mut self.requests, a, cluster, made_table);
        self.waits.turn_over(&mut self.requests, a);
        self.tables.pin(slot, Rule::PinLink);
        self.outbox.counters.allocations += 1;
        self.requests.take_run(a, guest_len, host, Met::ALLOCATE | Met::COMPRESSED);
        let bytes = align_up(len.into(), self.options.align.into());
        let acb = self.requests.acb_mut(a);
        acb.held.pinned = Some(slot);
        let fill = Span::at(pos, bytes);
        acb.write = Transfer { fill, at: fill.end, unit: fill, stale: false };
        let pad = (bytes - u64::from(len)) as u32;
        self.outbox.emit_first(acb, a, IoOp::WriteCompressed { request, host, len, pad });
        self.requests.set_state(a, State::WriteData);
        Next::Wait
    }
}
