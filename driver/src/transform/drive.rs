//! Compressed clusters: read whole, decompressed beside the event loop, kept for the next read of them.
//!
//! Knows: clusters by the host offset of their data, how much a turn may do. Must never know: table
//! entries, requests and control blocks beyond the buffer that is to be filled.
//!
//! Invariants:
//! * decompression does not hold the thread: it is done by `workers`, or, where nothing could wake the
//!   event loop, a slice a turn; what is made is copied at most [`COPY`] bytes a turn, what is there at
//!   most [`AT_ONCE`] bytes a want. What is left to do on this thread waits in queues while `next_timeout` is
//!   zero;
//! * a stream yields one cluster or the I/O fails with EIO;
//! * concurrent reads of one cluster share one decompression; what a read waits for is bounded by the
//!   machine's acbs, the clusters kept by [`KEEP`] and [`FEWEST`];
//! * what is kept is never stale: the machine says which host ranges may be used again, and a cluster that
//!   lies there is dropped, or, in progress, serves those who wait for it and nobody else;
//! * one stream is open per worker: the memory of decoders (zstd: a window of up to 128 MiB if the image says
//!   so) is bounded however many disks there are.

use super::inflate::{Decoders, Progress, Stream};
use super::workers::{Pool, Task as PoolTask};
use crate::driver::Driver;
use crate::engine::pump::Job;
use crate::engine::translate::{Out, Place, round_out};
use crate::error::Error;
use crate::layer::disk::{Layer, Origin};
use crate::layer::port::{Dest, Task};
use crate::memory::arena::{Arena, Loan};
use crate::memory::buffers;
use crate::memory::fill::side;
use quod_backend::{Backend, Op, Segments};
use quod_states::qcow2::Compression;
use quod_states::{Info, IoId};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Bytes that one slice takes or makes at most.
const SLICE: usize = 32 << 10;
/// Bytes that a turn copies to those who wait, at most.
const COPY: u64 = 64 << 10;
/// Bytes that are copied at once if their cluster is there.
const AT_ONCE: u64 = 16 << 10;
/// Decompressed bytes that a layer keeps, unless [`FEWEST`] clusters are more.
const KEEP: usize = 2 << 20;
/// Clusters that a layer keeps and has in progress, at least.
const FEWEST: usize = 4;
/// And at most.
const MOST: usize = 32;

/// Part of a compressed cluster that an I/O wants in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub io: IoId,
    /// Whose buffer; its owner counts this want as an operation on it.
    pub dest: Dest,
    pub len: u64,
    /// Where the compressed bytes begin in the file.
    pub host: u64,
    /// How many there are at most.
    pub bytes: u32,
    /// Where in the cluster.
    pub within: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Empty,
    /// Its bytes are being read or wait for their turn to be decompressed.
    Busy,
    Ready,
}

/// A cluster that is kept or in progress.
#[derive(Debug)]
struct Cluster {
    /// Offset and number of the compressed bytes.
    key: (u64, u32),
    stage: Stage,
    /// In use, and its compressed bytes may have changed since: nobody else may have it.
    stale: bool,
    /// When it was last wanted.
    used: u64,
    /// Empty while a worker has it.
    contents: Vec<u8>,
    wants: Vec<Want>,
    /// Copies that are still to be made of it: until then it stays.
    copies: u32,
}

/// The compressed clusters of one layer.
#[derive(Debug)]
pub(crate) struct Clusters {
    size: usize,
    compression: Compression,
    most: usize,
    clusters: Vec<Cluster>,
    /// Wants that found every cluster busy.
    parked: VecDeque<Want>,
    clock: u64,
}

impl Clusters {
    pub(crate) fn new(info: &Info) -> Clusters {
        let size = info.cluster_size as usize;
        Clusters {
            size,
            compression: info.compression,
            most: (KEEP / size.max(1)).clamp(FEWEST, MOST),
            clusters: Vec::new(),
            parked: VecDeque::new(),
            clock: 0,
        }
    }

    /// The place of a want's cluster, and whether it is there already (or on its way). None: all are busy.
    fn place(&mut self, want: &Want) -> Option<(usize, Stage)> {
        self.clock += 1;
        let key = (want.host, want.bytes);
        let known = |cluster: &Cluster| cluster.stage != Stage::Empty && !cluster.stale && cluster.key == key;
        let index = match self.clusters.iter().position(known) {
            Some(index) => index,
            None => self.replace(key)?,
        };
        let cluster = &mut self.clusters[index];
        cluster.used = self.clock;
        Some((index, cluster.stage))
    }

    /// Makes room: one that is empty, a new one, or the one whose last use is the longest ago.
    fn replace(&mut self, key: (u64, u32)) -> Option<usize> {
        let empty = self.clusters.iter().position(|cluster| cluster.stage == Stage::Empty);
        let index = match empty {
            Some(index) => index,
            None if self.clusters.len() < self.most => {
                // whoever decompresses to it makes it as long as it must be: fresh memory takes long
                let contents = Vec::new();
                self.clusters.push(Cluster {
                    key,
                    stage: Stage::Empty,
                    stale: false,
                    used: 0,
                    contents,
                    wants: Vec::new(),
                    copies: 0,
                });
                self.clusters.len() - 1
            }
            None => {
                let all = self.clusters.iter().enumerate();
                let idle = all.filter(|(_, one)| one.stage == Stage::Ready && one.copies == 0);
                idle.min_by_key(|(_, cluster)| cluster.used)?.0
            }
        };
        let cluster = &mut self.clusters[index];
        (cluster.key, cluster.stage) = (key, Stage::Empty);
        Some(index)
    }

    /// The host range may be used again.
    pub(crate) fn forget(&mut self, host: u64, len: u64) {
        let end = host.saturating_add(len);
        for cluster in &mut self.clusters {
            let (start, bytes) = cluster.key;
            if start >= end || start.saturating_add(u64::from(bytes)) <= host {
                continue;
            }
            match cluster.stage {
                Stage::Empty => {}
                Stage::Ready if cluster.copies == 0 => cluster.stage = Stage::Empty,
                Stage::Busy | Stage::Ready => cluster.stale = true,
            }
        }
    }
}

/// Serves a want, now or when its cluster is there.
pub(crate) fn want<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, want: Want) {
    if !begin(out, layer, want) {
        layer.compressed.parked.push_back(want);
    }
}

/// False: every cluster is busy.
fn begin<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, want: Want) -> bool {
    let Some((index, stage)) = layer.compressed.place(&want) else { return false };
    if stage == Stage::Ready && want.len <= AT_ONCE {
        serve(&out.port.arena, layer, index, &want, 0, want.len);
        out.jobs.push_back(answer(out.place, &want, Ok(())));
        return true;
    }
    let cluster = &mut layer.compressed.clusters[index];
    if stage == Stage::Ready {
        cluster.copies += 1;
        out.decompressor.copies.push_back(Copying { place: out.place, cluster: index, want, done: 0 });
        return true;
    }
    cluster.wants.push(want);
    if stage == Stage::Empty {
        cluster.stage = Stage::Busy;
        let (start, span, skip) = round_out(&layer.file.stat, want.host, u64::from(want.bytes));
        let loan = out.port.arena.take(span as usize);
        let segments = Segments::from_iter([out.port.arena.segment(&loan, 0, span as usize)]);
        let task = Task::ReadCompressed { cluster: index, loan, skip, bytes: want.bytes };
        out.send(want.io, task, Op::Read { file: layer.file.id, offset: start, segments });
    }
    true
}

/// Copies `len` bytes of what is wanted of a cluster that is there, from byte `at` of it on.
fn serve(arena: &Arena, layer: &Layer, index: usize, want: &Want, at: u64, len: u64) {
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
    let contents = &layer.compressed.clusters[index].contents;
    buffers::scatter(contents.get(from..from + len as usize).unwrap_or_default(), &segments);
}

fn answer(place: Place, want: &Want, result: Result<(), Box<Error>>) -> Job {
    let origin = match want.dest {
        Dest::Request { index, .. } => Origin::Request(index),
        Dest::Fill { acb, part, .. } => Origin::Fill(acb, part),
    };
    Job::Answer { place, io: want.io, origin, result }
}

/// A cluster is there or will not come: its wants are to be copied or answered.
fn end<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, index: usize, result: Result<(), Error>) {
    let cluster = &mut layer.compressed.clusters[index];
    match result {
        Ok(()) => {
            cluster.stage = Stage::Ready;
            cluster.copies = cluster.wants.len() as u32;
            let copying = |want| Copying { place: out.place, cluster: index, want, done: 0 };
            out.decompressor.copies.extend(cluster.wants.drain(..).map(copying));
        }
        Err(error) => {
            cluster.stage = Stage::Empty;
            cluster.stale = false;
            let failed = |want| answer(out.place, &want, Err(Box::new(error.clone())));
            out.jobs.extend(cluster.wants.drain(..).map(failed));
            unpark(out, layer);
        }
    }
}

/// A copy was made.
fn copied<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, index: usize, want: &Want) {
    out.jobs.push_back(answer(out.place, want, Ok(())));
    let cluster = &mut layer.compressed.clusters[index];
    cluster.copies -= 1;
    if cluster.copies == 0 {
        if std::mem::take(&mut cluster.stale) {
            cluster.stage = Stage::Empty;
        }
        unpark(out, layer);
    }
}

/// Those that waited for room go on.
fn unpark<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer) {
    while let Some(want) = layer.compressed.parked.front().copied() {
        if !begin(out, layer, want) {
            return;
        }
        layer.compressed.parked.pop_front();
    }
}

/// A cluster whose compressed bytes are there.
#[derive(Debug)]
struct Work {
    place: Place,
    cluster: usize,
    loan: Loan,
}

/// A want whose cluster is there.
#[derive(Clone, Copy, Debug)]
struct Copying {
    place: Place,
    cluster: usize,
    want: Want,
    done: u64,
}

/// What waits for its turn on this thread, and the workers.
#[derive(Default)]
pub(crate) struct Decompressor {
    /// What no worker does.
    queue: VecDeque<(Work, Stream)>,
    decoders: Decoders,
    copies: VecDeque<Copying>,
    /// Made when first used; None: it could not be made.
    pool: Option<Option<Pool<Work>>>,
}

impl Decompressor {
    /// Nothing waits for its turn on this thread.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.copies.is_empty()
    }

    /// Workers are at it: they tell the descriptor, but a backend that sleeps may not listen.
    pub(crate) fn is_busy(&self) -> bool {
        self.workers().is_some_and(|pool| pool.is_busy())
    }

    fn workers(&self) -> Option<&Pool<Work>> {
        self.pool.as_ref()?.as_ref()
    }

    /// Sleeps until the backend's descriptor is readable.
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match &mut self.pool {
            Some(Some(pool)) => pool.sleep(timeout),
            _ => Ok(()),
        }
    }
}

impl<B: Backend> Driver<B> {
    /// The bytes of a compressed cluster were read: `got` of those from `skip` on, at most `bytes`.
    pub(crate) fn compressed_read(&mut self, place: Place, task: Task, got: Result<u64, i32>) {
        let Task::ReadCompressed { cluster, loan, skip, bytes } = task else { return };
        let Some((mut out, layer)) = self.at(place) else { return };
        let got = match got {
            Ok(got) => got,
            Err(errno) => {
                out.port.arena.give_back(loan);
                let offset = layer.compressed.clusters[cluster].key.0;
                let path = layer.file.path.clone();
                let error = Error::Device { path, op: "read compressed data", offset, errno };
                return end(&mut out, layer, cluster, Err(error));
            }
        };
        let at = skip as usize;
        let end = at + got.saturating_sub(u64::from(skip)).min(u64::from(bytes)) as usize;
        let stream = Stream::new(layer.compressed.compression, at, end);
        // it holds the disk open as an operation does
        *out.flights += 1;
        let input = out.port.arena.segment(&loan, 0, end);
        let tag = Work { place, cluster, loan };
        let most = self.config.decompressors as usize;
        let pool = self.decompressor.pool.get_or_insert_with(|| {
            let notify = self.port.backend.notify_fd().filter(|_| most > 0)?;
            Pool::new(notify, most).ok()
        });
        match pool {
            Some(pool) => {
                let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
                let Clusters { clusters, size, .. } = &mut layer.compressed;
                let contents = std::mem::take(&mut clusters[cluster].contents);
                let (size, progress) = (*size, Progress::More);
                pool.send(PoolTask { stream, input, contents, size, progress, tag });
            }
            None => self.decompressor.queue.push_back((tag, stream)),
        }
    }

    /// What a call may do for compressed clusters: take what workers have made, or make a slice; copy.
    pub(crate) fn decompress(&mut self) {
        while let Some(Some(pool)) = &mut self.decompressor.pool
            && let Some(task) = pool.next()
        {
            let PoolTask { contents, progress, tag, .. } = task;
            if let Some((_, layer)) = self.at(tag.place) {
                layer.compressed.clusters[tag.cluster].contents = contents;
            }
            self.decompressed(tag, progress);
        }
        if let Some(Some(pool)) = &mut self.decompressor.pool {
            pool.reinforce();
        }
        if !self.decompressor.queue.is_empty() {
            self.slice();
        }
        if !self.decompressor.copies.is_empty() {
            self.copy();
        }
    }

    /// One slice of the decompression that waits longest.
    fn slice(&mut self) {
        let Driver { decompressor, port, disks, .. } = self;
        let Some((work, stream)) = decompressor.queue.front_mut() else { return };
        let layer = &mut disks[work.place.disk as usize].layers[work.place.layer as usize];
        let Clusters { clusters, size, .. } = &mut layer.compressed;
        let contents = &mut clusters[work.cluster].contents;
        contents.resize(*size, 0);
        let input = port.arena.bytes(&work.loan, stream.end());
        let progress = stream.step(&mut decompressor.decoders, input, contents, SLICE);
        if progress != Progress::More
            && let Some((work, _)) = decompressor.queue.pop_front()
        {
            self.decompressed(work, progress);
        }
    }

    /// A stream has ended.
    fn decompressed(&mut self, work: Work, progress: Progress) {
        let Work { place, cluster: index, loan } = work;
        self.port.arena.give_back(loan);
        if let Some(stats) = &mut self.disks[place.disk as usize].stats {
            stats.decompressions += 1;
        }
        let Some((mut out, layer)) = self.at(place) else { return };
        let (host, bytes) = layer.compressed.clusters[index].key;
        let result = match progress {
            Progress::Whole => Ok(()),
            _ => Err(Error::Corrupt {
                path: layer.file.path.clone(),
                place: "compressed data, bytes and host offset",
                index: u64::from(bytes),
                value: host,
                what: "it does not decompress to one cluster",
            }),
        };
        end(&mut out, layer, index, result);
        self.settle(place);
        self.disks[place.disk as usize].flights -= 1;
        self.try_close(place.disk);
    }

    /// Copies to those who wait, the first to come first.
    fn copy(&mut self) {
        let mut left = COPY;
        while left > 0 {
            let Some(first) = self.decompressor.copies.front_mut() else { return };
            let Copying { place, cluster, want, done } = *first;
            let len = left.min(want.len - done);
            first.done += len;
            left -= len;
            let ended = first.done == want.len;
            if ended {
                self.decompressor.copies.pop_front();
            }
            let Some((mut out, layer)) = self.at(place) else { return };
            serve(&out.port.arena, layer, cluster, &want, done, len);
            if ended {
                copied(&mut out, layer, cluster, &want);
                self.settle(place);
            }
        }
    }
}

#[cfg(test)]
mod tests;
