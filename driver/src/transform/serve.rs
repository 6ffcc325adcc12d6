//! Wants of compressed clusters, from the layer that has them to the copy in their buffer.
//!
//! Knows: a layer's clusters, request slots and fills, the ways out. Must never know: streams, workers.
//! Invariant: every want is answered once.

use super::Transform;
use super::inflate::is_built_in;
use super::work::Copying;
use crate::error::{Error, ErrorKind, Lack};
use crate::layer::clusters::{Stage, Want};
use crate::layer::flight::{Dest, FlightTask, Place};
use crate::layer::out::{LayerJob, Out, round_out};
use crate::layer::{Layer, Origin};
use crate::memory::arena::Arena;
use crate::memory::buffers;
use crate::memory::fill::side;
use quod_backend::{Backend, Op, Segments};

/// Bytes that are copied at once if their cluster is there.
pub(super) const AT_ONCE: u64 = 16 << 10;

impl Transform {
    /// Serves what the layer wants, now or when its cluster is there.
    pub(crate) fn serve<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer) {
        while let Some(want) = layer.clusters.next_want() {
            if !self.begin(out, layer, want) {
                layer.clusters.park(want);
            }
        }
    }

    /// False: every cluster is busy.
    fn begin<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer, want: Want) -> bool {
        let compression = layer.clusters.compression();
        if !is_built_in(compression) {
            let lack = layer.file.fault(ErrorKind::Unsupported(Lack::Decoder(compression)));
            out.jobs.push_back(answer(out.place, &want, Err(Box::new(lack))));
            return true;
        }
        let Some((index, stage)) = layer.clusters.place(&want) else { return false };
        if stage == Stage::Ready {
            if want.len <= AT_ONCE {
                copy(&out.port.arena, layer, index, &want, 0, want.len);
                out.jobs.push_back(answer(out.place, &want, Ok(())));
            } else {
                layer.clusters.copying(index);
                self.copies.push_back(Copying { place: out.place, cluster: index, want, done: 0 });
                self.open += 1;
            }
        } else if layer.clusters.join(index, want) {
            let (start, span, skip) = round_out(&layer.file.stat, want.host, u64::from(want.bytes));
            let loan = out.port.arena.take(span as usize);
            let segments = Segments::from_buf([out.port.arena.segment(&loan, 0, span as usize)]);
            let task = FlightTask::ReadCompressed { cluster: index, loan, skip, bytes: want.bytes };
            out.send(want.io, task, Op::Read { file: layer.file.id, offset: start, segments });
        }
        true
    }

    /// A cluster is there or will not come: its wants are to be copied or answered.
    pub(super) fn end<B: Backend>(
        &mut self,
        out: &mut Out<'_, B>,
        layer: &mut Layer,
        index: usize,
        result: Result<(), Error>,
    ) {
        let place = out.place;
        match result {
            Ok(()) => {
                let copying = |want| Copying { place, cluster: index, want, done: 0 };
                let copies = layer.clusters.ready(index).map(copying);
                self.open += copies.len();
                self.copies.extend(copies);
            }
            Err(error) => {
                let failed = |want| answer(place, &want, Err(Box::new(error.clone())));
                out.jobs.extend(layer.clusters.broken(index).map(failed));
                self.unpark(out, layer);
            }
        }
    }

    /// The layer whose copy is the next to be made.
    pub(crate) fn next_copy(&self) -> Option<Place> {
        self.copies.front().map(|copying| copying.place)
    }

    /// Goes on with the copy to be made next, by at most `left` bytes, which it counts down. True: it has
    /// ended, and its want was answered.
    pub(crate) fn copy<B: Backend>(
        &mut self,
        out: &mut Out<'_, B>,
        layer: &mut Layer,
        left: &mut u64,
    ) -> bool {
        let Some(first) = self.copies.front_mut() else { return false };
        let Copying { cluster, want, done, .. } = *first;
        let len = (*left).min(want.len - done);
        first.done += len;
        *left -= len;
        copy(&out.port.arena, layer, cluster, &want, done, len);
        if done + len < want.len {
            return false;
        }
        self.copies.pop_front();
        self.open -= 1;
        out.jobs.push_back(answer(out.place, &want, Ok(())));
        if layer.clusters.copied(cluster) {
            self.unpark(out, layer);
        }
        true
    }

    /// Those that waited for room go on.
    fn unpark<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer) {
        while let Some(want) = layer.clusters.first_parked() {
            if !self.begin(out, layer, want) {
                return;
            }
            layer.clusters.unpark();
        }
    }
}

/// Copies `len` bytes of what is wanted of a cluster that is there, from byte `at` of it on.
fn copy(arena: &Arena, layer: &Layer, index: usize, want: &Want, at: u64, len: u64) {
    let segments = match want.dest {
        Dest::Request { index, offset } => {
            buffers::cut(&layer.slots[index as usize].segments, offset + at, len)
        }
        Dest::Fill { acb, part, at: start } => {
            let fill = &layer.fills[acb.index as usize][side(part)];
            fill.part(arena, acb.generation, start + at as u32, len).into_iter().collect()
        }
    };
    let from = want.within as usize + at as usize;
    buffers::scatter(layer.clusters.bytes(index, from, len as usize), &segments);
}

fn answer(place: Place, want: &Want, result: Result<(), Box<Error>>) -> LayerJob {
    let origin = match want.dest {
        Dest::Request { index, .. } => Origin::Request(index),
        Dest::Fill { acb, part, .. } => Origin::Fill(acb, part),
    };
    LayerJob::Answer { place, io: want.io, origin, result }
}
