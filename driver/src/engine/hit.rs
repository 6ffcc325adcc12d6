//! Hits: a read of the guest's that is one read of the image's file, and a write that is one write of it, go
//! from the request to the backend and back without a queue between, as nothing else follows from them.
//!
//! Knows: what must be so for that. Must never know: which clusters are there (the machine says so).
//! Invariant: what happens is what `Driver::submit` and the pump would do; whenever one of them might have to
//! do more (times are taken, transitions kept, somebody waits for a slot), it is left to them.

use super::Engine;
use super::translate::{read_data, translate, write_data};
use crate::completion::Ended;
use crate::layer::disk::Phase;
use crate::layer::flight::{Place, Whole};
use crate::request::{DiskId, Request, RequestKind};
use quod_backend::Backend;
use quod_states::{Flags, Hit, Io, IoOp};
use std::time::Duration;

impl<B: Backend> Engine<B> {
    /// Puts a request into its machine, if it is a hit. None: nothing was done.
    #[inline]
    pub(crate) fn begin_hit(&mut self, id: DiskId, request: &Request) -> Option<(Place, Hit)> {
        use quod_states::RequestKind as Core;
        let (kind, offset, buffers) = match &request.kind {
            RequestKind::Read { offset, buffers } => (Core::Read, *offset, buffers),
            RequestKind::Write { offset, buffers, fua: false } => (Core::Write, *offset, buffers),
            _ => return None,
        };
        if self.timed {
            return None;
        }
        let most = self.config.requests;
        let disk = self.disk_mut(id)?;
        if !matches!(disk.phase, Phase::Open) || disk.outstanding >= most {
            return None;
        }
        let (len, user) = (buffers.len(), request.user);
        let core = quod_states::Request { kind, offset, len, flags: Flags::empty(), user };
        let hit = disk.layers.first_mut()?.image.begin_hit(&core)?;
        disk.outstanding += 1;
        self.accepted += 1;
        Some((Place { disk: id.index, layer: 0 }, hit))
    }

    /// And hands over its transfer.
    #[inline]
    pub(crate) fn send_hit(&mut self, place: Place, hit: Hit, request: Request) {
        let Some((mut out, layer, _)) = self.at(place) else { return };
        let reads = matches!(request.kind, RequestKind::Read { .. });
        let len = layer.occupy(hit.request, request, Duration::ZERO);
        let Hit { request, acb, io, host } = hit;
        if reads {
            return read_data(&mut out, layer, io, request, 0, len, host);
        }
        let op = IoOp::WriteData { acb, request, buffer_offset: 0, len, host, head: 0, tail: 0, zero: false };
        let io = Io { id: io, op };
        if !write_data(&mut out, layer, &io, true) {
            translate(&mut out, layer, &io);
        }
    }

    /// A transfer of a request's own bytes has ended. False: it is more than a hit, and nothing was done.
    #[inline]
    pub(super) fn end_hit(&mut self, whole: Whole) -> bool {
        if self.timed {
            return false;
        }
        let Whole { place, io, slot } = whole;
        let disk = &mut self.disks[place.disk as usize];
        let layer = &mut disk.layers[place.layer as usize];
        let slot = &mut layer.slots[slot as usize];
        let open = matches!(disk.phase, Phase::Open);
        if !open || !layer.parked.is_empty() || slot.busy != 1 || !slot.moves_for_guest() {
            return false;
        }
        let Some(hit) = layer.image.end_hit(io) else { return false };
        slot.busy = 0;
        let Some(kind) = slot.take_moved() else { return false };
        if let Some(stats) = &mut disk.stats {
            stats.moved(&kind, slot.len);
        }
        disk.flights -= 1;
        let disk = disk.id(place.disk);
        self.complete(Ended { disk, user: hit.user, kind, result: Ok(()), met: hit.met, latency: None });
        true
    }
}
