//! Clusters of compressed writes, from the guest's bytes to the loan that keeps what they have become: by
//! workers, or a slice at a time.
//!
//! Knows: requests' buffers, workers, the buffers on loan. Must never know: which machine asked, where the
//! bytes go.
//! Invariants: what is in progress counts as an operation of its disk and of its request's buffer; each is
//! answered once; no more than a cluster is kept for a request, beside what a worker works with.

use super::pack::{Packed, Packing};
use super::work::{MadePack, PackWork};
use super::workers::PackTask;
use super::{SLICE, Transform};
use crate::layer::Layer;
use crate::layer::out::Out;
use crate::layer::packs::Pack;
use crate::memory::arena::Arena;
use crate::memory::buffers;
use quod_backend::{Backend, Segments};
use quod_states::{Machine, Outcome};

impl Transform {
    /// Begins what the layer asks for.
    pub(crate) fn shrink<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer) {
        while let Some(pack) = layer.packs.next() {
            self.begin_pack(out, layer, pack);
        }
    }

    fn begin_pack<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer, pack: Pack) {
        let Pack { io, request, len } = pack;
        let (size, method) = (layer.clusters.size(), layer.packs.method);
        let slot = &mut layer.slots[request as usize];
        slot.busy += 1;
        let input = buffers::cut(&slot.segments, 0, len);
        // it holds the disk open as an operation does
        *out.flights += 1;
        self.open += 1;
        // whole blocks will be written of it
        let room = size.next_multiple_of(layer.file.stat.offset_align.max(1) as usize);
        let loan = out.port.arena.take(room);
        let output = out.port.arena.segment(&loan, 0, room);
        let work = PackWork { place: out.place, io, request, loan };
        match self.workers(out) {
            Some(workers) => workers.send(PackTask { method, input, size, output, made: None, work }),
            None => self.packing.push_back((work, Packing::new(method, size), input)),
        }
    }

    /// One slice of the cluster that has waited longest.
    pub(crate) fn pack_slice(&mut self, arena: &mut Arena) -> Option<MadePack> {
        let (work, packing, input) = self.packing.front_mut()?;
        let size = packing.size();
        let (at, len) = packing.next(SLICE);
        let piece = &mut self.piece;
        piece.clear();
        piece.resize(len, 0);
        let has = (buffers::total(input) as usize).saturating_sub(at).min(len);
        gather(input, at, &mut piece[..has]);
        let output = arena.bytes_mut(&work.loan, size - 1);
        let made = match packing.step(&mut self.encoders, piece, output) {
            Packed::More => return None,
            Packed::Shorter(len) => Some(len as u32),
            Packed::Not => None,
        };
        self.packing.pop_front().map(|(work, ..)| MadePack { work, made })
    }

    /// A cluster has become shorter, or not. It is no operation of its disk any more, as soon as the caller
    /// has counted it down.
    pub(crate) fn packed<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer, made: MadePack) {
        let MadePack { work: PackWork { io, request, loan, .. }, made } = made;
        self.open -= 1;
        layer.slots[request as usize].busy -= 1;
        let outcome = match made {
            Some(len) => {
                layer.packs.keep(request, loan);
                Outcome::Compressed(len)
            }
            None => {
                out.port.arena.give_back(loan);
                Outcome::Done
            }
        };
        layer.image.handle_completion(io, outcome);
    }
}

fn gather(input: &Segments, at: usize, to: &mut [u8]) {
    let list = buffers::cut(input, at as u64, to.len() as u64);
    buffers::gather(&list, to);
}
