//! Read hits: a read of the guest's that is one read of the image's file goes from the request to the backend
//! and back without a queue between, as nothing else follows from it.
//!
//! Knows: what must be so for that. Must never know: which clusters are there (the machine says so).
//! Invariant: what happens is what `Driver::submit` and the pump would do; whenever one of them might have to
//! do more (times are taken, transitions kept, somebody waits for a slot), it is left to them.

use super::Engine;
use super::translate::read_data;
use crate::layer::disk::Phase;
use crate::layer::flight::{Place, WholeRead};
use crate::request::{DiskId, Ended, Request, RequestKind};
use quod_backend::Backend;
use quod_states::{Flags, Hit};
use std::time::Duration;

impl<B: Backend> Engine<B> {
    /// Puts a request into its machine, if it is such a read. None: nothing was done.
    #[inline]
    pub(crate) fn begin_hit(&mut self, id: DiskId, request: &Request) -> Option<(Place, Hit)> {
        let RequestKind::Read { offset, ref buffers } = request.kind else { return None };
        if self.timed {
            return None;
        }
        let most = self.config.requests;
        let disk = self.disk_mut(id)?;
        if !matches!(disk.phase, Phase::Open) || disk.outstanding >= most {
            return None;
        }
        let kind = quod_states::RequestKind::Read;
        let (len, user) = (buffers.len(), request.user);
        let core = quod_states::Request { kind, offset, len, flags: Flags::empty(), user };
        let hit = disk.layers.first_mut()?.image.begin_hit(&core)?;
        disk.outstanding += 1;
        self.accepted += 1;
        Some((Place { disk: id.index, layer: 0 }, hit))
    }

    /// And hands over its read.
    #[inline]
    pub(crate) fn send_hit(&mut self, place: Place, hit: Hit, request: Request) {
        let Some((mut out, layer, _)) = self.at(place) else { return };
        let len = layer.occupy(hit.request, request, Duration::ZERO);
        read_data(&mut out, layer, hit.io, hit.request, 0, len, hit.host);
    }

    /// A read of a request's own bytes has ended. False: it is more than a hit, and nothing was done.
    #[inline]
    pub(super) fn end_hit(&mut self, read: WholeRead) -> bool {
        if self.timed {
            return false;
        }
        let WholeRead { place, io, slot } = read;
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
