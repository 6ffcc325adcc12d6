//! Compressed clusters from the bytes that were read to the end of their stream: by workers, or a slice at a
//! time.
//!
//! Knows: streams, workers, a layer's clusters, the buffers on loan. Must never know: who wants a cluster,
//! when a turn comes.
//! Invariants: what is in progress counts as an operation of its disk, which stays open; its loan is given
//! back once, when the stream has ended.

use super::inflate::{Progress, Stream};
use super::work::{Made, MadeCluster, MadePack, Work};
use super::workers::{StreamTask, Task};
use super::{SLICE, Transform};
use crate::error::{DeviceOp, ErrorKind};
use crate::layer::Layer;
use crate::layer::flight::{FlightTask, Place};
use crate::layer::out::Out;
use crate::memory::arena::Arena;
use quod_backend::Backend;
use quod_states::Fault;

impl Transform {
    /// The bytes of a compressed cluster were read: `got` of those from `skip` on, at most `bytes`.
    pub(crate) fn compressed_read<B: Backend>(
        &mut self,
        out: &mut Out<'_, B>,
        layer: &mut Layer,
        task: FlightTask,
        got: Result<u64, i32>,
    ) {
        let FlightTask::ReadCompressed { cluster, loan, skip, bytes } = task else { return };
        let got = match got {
            Ok(got) => got,
            Err(errno) => {
                out.port.arena.give_back(loan);
                let offset = layer.clusters.key(cluster).0;
                let error =
                    layer.file.fault(ErrorKind::Device { op: DeviceOp::ReadCompressed, offset, errno });
                return self.end(out, layer, cluster, Err(error));
            }
        };
        let at = skip as usize;
        let end = at + got.saturating_sub(u64::from(skip)).min(u64::from(bytes)) as usize;
        let stream = Stream::new(layer.clusters.compression(), at, end);
        // it holds the disk open as an operation does
        *out.flights += 1;
        self.open += 1;
        let input = out.port.arena.segment(&loan, 0, end);
        let work = Work { place: out.place, cluster, loan };
        match self.workers(out) {
            Some(workers) => {
                let size = layer.clusters.size();
                let contents = std::mem::take(layer.clusters.contents(cluster));
                workers.send(StreamTask { stream, input, contents, size, progress: Progress::More, work });
            }
            None => self.queue.push_back((work, stream)),
        }
    }

    /// The next cluster that workers have made.
    pub(crate) fn next_made(&mut self) -> Option<Made> {
        let Some(Some(workers)) = &mut self.workers else { return None };
        match workers.next() {
            Some(Task::Inflate(StreamTask { contents, progress, work, .. })) => {
                Some(Made::Cluster(MadeCluster { work, progress, contents: Some(contents) }))
            }
            Some(Task::Pack(task)) => Some(Made::Pack(MadePack { work: task.work, made: task.made })),
            None => {
                workers.reinforce();
                None
            }
        }
    }

    /// The layer whose cluster has waited longest for a slice.
    pub(crate) fn next_slice(&self) -> Option<Place> {
        let packs = self.packing.front().map(|(work, ..)| work.place);
        self.queue.front().map(|(work, _)| work.place).or(packs)
    }

    /// One slice of it.
    pub(crate) fn slice(&mut self, arena: &mut Arena, layer: &mut Layer) -> Option<Made> {
        match self.queue.is_empty() {
            true => self.pack_slice(arena).map(Made::Pack),
            false => self.stream_slice(arena, layer).map(Made::Cluster),
        }
    }

    fn stream_slice(&mut self, arena: &Arena, layer: &mut Layer) -> Option<MadeCluster> {
        let (work, stream) = self.queue.front_mut()?;
        let size = layer.clusters.size();
        let contents = layer.clusters.contents(work.cluster);
        contents.resize(size, 0);
        let input = arena.bytes(&work.loan, stream.end());
        let progress = stream.step(&mut self.decoders, input, contents, SLICE);
        if progress == Progress::More {
            return None;
        }
        self.queue.pop_front().map(|(work, _)| MadeCluster { work, progress, contents: None })
    }

    /// A cluster has come out. It is no operation of its disk any more, as soon as the caller has counted it
    /// down.
    pub(crate) fn made<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer, made: Made) {
        match made {
            Made::Cluster(made) => self.inflated(out, layer, made),
            Made::Pack(made) => self.packed(out, layer, made),
        }
    }

    /// A stream has ended: those that wait for its cluster are served.
    fn inflated<B: Backend>(&mut self, out: &mut Out<'_, B>, layer: &mut Layer, made: MadeCluster) {
        let MadeCluster { work, progress, contents } = made;
        self.open -= 1;
        out.port.arena.give_back(work.loan);
        if let Some(contents) = contents {
            *layer.clusters.contents(work.cluster) = contents;
        }
        let (host, bytes) = layer.clusters.key(work.cluster);
        let result = match progress {
            Progress::Whole => Ok(()),
            _ => {
                let fault = Fault::Compressed { bytes: bytes.into(), host };
                Err(layer.file.fault(ErrorKind::Corrupt(fault)))
            }
        };
        self.end(out, layer, work.cluster, result);
    }
}
