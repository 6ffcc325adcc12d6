//! Compressed clusters: read whole, decompressed a slice at a time, kept for the next read of them.
//!
//! Knows: raw deflate and zstd streams, clusters by the host offset of their data. Must never know: table
//! entries, requests and control blocks beyond the buffer that is to be filled.
//!
//! Invariants:
//! * a turn decompresses at most one slice ([`SLICE`] bytes of output, as many of input; zstd decodes whole
//!   blocks, so up to 128 KiB), whatever the streams say; the rest waits in a queue while
//!   `next_timeout` is zero;
//! * a stream yields one cluster or the I/O fails with EIO: its output goes to a buffer of exactly that size;
//! * concurrent reads of one cluster share one decompression; what a read waits for is bounded by the
//!   machine's acbs, the clusters kept by [`KEEP`] and [`FEWEST`];
//! * what is kept is never stale: the machine says which host ranges may be used again, and a cluster that
//!   lies there is dropped, or, in progress, serves those who wait for it and nobody else;
//! * one stream is open per driver: the memory of its decoder (zstd: a window of up to 128 MiB if the image
//!   says so) is bounded however many disks there are.

use crate::arena::{Arena, Loan};
use crate::buffers;
use crate::disk::{Layer, Origin};
use crate::driver::Driver;
use crate::error::Error;
use crate::fill::side;
use crate::port::{Dest, Task};
use crate::pump::Job;
use crate::translate::{Out, Place, round_out};
use flate2::{Decompress, FlushDecompress, Status};
use quod_backend::{Backend, Op, Segments};
use quod_states::qcow2::Compression;
use quod_states::{Info, IoId};
use std::collections::VecDeque;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Bytes that one step takes or makes at most.
const SLICE: usize = 32 << 10;
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
    /// In progress, and its compressed bytes may have changed since: nobody else may have it.
    stale: bool,
    /// When it was last wanted.
    used: u64,
    contents: Vec<u8>,
    wants: Vec<Want>,
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
                let contents = vec![0; self.size];
                self.clusters.push(Cluster {
                    key,
                    stage: Stage::Empty,
                    stale: false,
                    used: 0,
                    contents,
                    wants: Vec::new(),
                });
                self.clusters.len() - 1
            }
            None => {
                let idle = self.clusters.iter().enumerate().filter(|(_, one)| one.stage == Stage::Ready);
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
                Stage::Busy => cluster.stale = true,
                Stage::Ready => cluster.stage = Stage::Empty,
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
    if stage == Stage::Ready {
        serve(&out.port.arena, layer, index, &want);
        out.jobs.push_back(answer(out.place, &want, Ok(())));
        return true;
    }
    let cluster = &mut layer.compressed.clusters[index];
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

/// Copies what is wanted of a cluster that is there.
fn serve(arena: &Arena, layer: &Layer, index: usize, want: &Want) {
    let segments = match want.dest {
        Dest::Request { index, offset } => {
            buffers::cut(&layer.slots[index as usize].segments, offset, want.len)
        }
        Dest::Fill { acb, part, at } => {
            let fill = &layer.fills[acb.index as usize][side(part)];
            fill.part(arena, acb.generation, at, want.len).into_iter().collect()
        }
    };
    let from = want.within as usize;
    let contents = &layer.compressed.clusters[index].contents;
    buffers::scatter(contents.get(from..from + want.len as usize).unwrap_or_default(), &segments);
}

fn answer(place: Place, want: &Want, result: Result<(), Box<Error>>) -> Job {
    let origin = match want.dest {
        Dest::Request { index, .. } => Origin::Request(index),
        Dest::Fill { acb, part, .. } => Origin::Fill(acb, part),
    };
    Job::Answer { place, io: want.io, origin, result }
}

/// A cluster is there or will not come: its wants are answered, and those that waited for room go on.
fn end<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, index: usize, result: Result<(), Error>) {
    let cluster = &mut layer.compressed.clusters[index];
    let keep = !std::mem::take(&mut cluster.stale) && result.is_ok();
    cluster.stage = if keep { Stage::Ready } else { Stage::Empty };
    let mut wants = std::mem::take(&mut cluster.wants);
    for want in wants.drain(..) {
        if result.is_ok() {
            serve(&out.port.arena, layer, index, &want);
        }
        out.jobs.push_back(answer(out.place, &want, result.clone().map_err(Box::new)));
    }
    layer.compressed.clusters[index].wants = wants;
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
    compression: Compression,
    loan: Loan,
    /// What is left of the input.
    at: usize,
    end: usize,
    /// Bytes of output so far.
    made: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    More,
    Whole,
    Broken,
}

/// The decompressions that wait for their turn, and the decoders; they are made when first used.
#[derive(Default)]
pub(crate) struct Decompressor {
    queue: VecDeque<Work>,
    /// The first of the queue has begun.
    begun: bool,
    deflate: Option<Decompress>,
    zstd: Option<Decoder<'static>>,
}

impl Decompressor {
    /// Nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    fn step(&mut self, arena: &Arena, contents: &mut [u8]) -> Progress {
        let begins = !std::mem::replace(&mut self.begun, true);
        let Some(work) = self.queue.front_mut() else { return Progress::Broken };
        let input = &arena.bytes(&work.loan, work.end)[work.at..];
        let input = &input[..input.len().min(SLICE)];
        let until = contents.len().min(work.made + SLICE);
        let output = &mut contents[work.made..until];
        let moved = match work.compression {
            Compression::Deflate => inflate(&mut self.deflate, begins, input, output),
            Compression::Zstd => unzstd(&mut self.zstd, begins, input, output),
        };
        let Some((taken, made, ended)) = moved else { return Progress::Broken };
        work.at += taken;
        work.made += made;
        // deflate: what follows the last byte does not matter; zstd: the frame must end with the cluster
        let full = work.made == contents.len();
        match work.compression {
            Compression::Deflate if full => Progress::Whole,
            Compression::Zstd if full && ended => Progress::Whole,
            Compression::Deflate if ended => Progress::Broken,
            _ if taken + made == 0 => Progress::Broken,
            _ => Progress::More,
        }
    }
}

/// How much was taken and made, and whether the stream has ended; None if it is corrupt.
fn inflate(
    decoder: &mut Option<Decompress>,
    begins: bool,
    input: &[u8],
    output: &mut [u8],
) -> Option<(usize, usize, bool)> {
    let decoder = decoder.get_or_insert_with(|| Decompress::new(false));
    if begins {
        decoder.reset(false);
    }
    let before = (decoder.total_in(), decoder.total_out());
    let status = decoder.decompress(input, output, FlushDecompress::None).ok()?;
    let (taken, made) = (decoder.total_in() - before.0, decoder.total_out() - before.1);
    Some((taken as usize, made as usize, status == Status::StreamEnd))
}

/// As `inflate`; "ended": a frame has, and another one may follow.
fn unzstd(
    decoder: &mut Option<Decoder<'static>>,
    begins: bool,
    input: &[u8],
    output: &mut [u8],
) -> Option<(usize, usize, bool)> {
    if decoder.is_none() {
        *decoder = Decoder::new().ok();
    }
    let decoder = decoder.as_mut()?;
    if begins {
        decoder.reinit().ok()?;
    }
    let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(output));
    let room = to.capacity();
    loop {
        let before = from.pos();
        let ended = decoder.run(&mut from, &mut to).ok()? == 0;
        // frames may be empty: a step ends with its slice, not with a frame
        let more = ended && to.pos() < room && from.pos() > before && from.pos() < input.len();
        if !more {
            return Some((from.pos(), to.pos(), ended));
        }
    }
}

impl<B: Backend> Driver<B> {
    /// The bytes of a compressed cluster were read: `got` of those from `skip` on, at most `bytes`.
    pub(crate) fn compressed_read(&mut self, place: Place, task: Task, got: Result<u64, i32>) {
        let Task::ReadCompressed { cluster, loan, skip, bytes } = task else { return };
        let disk = &mut self.disks[place.disk as usize];
        let Some(layer) = disk.layers.get_mut(place.layer as usize) else { return };
        match got {
            Ok(got) => {
                let at = skip as usize;
                let end = at + got.saturating_sub(u64::from(skip)).min(u64::from(bytes)) as usize;
                let compression = layer.compressed.compression;
                disk.flights += 1;
                let work = Work { place, cluster, compression, loan, at, end, made: 0 };
                self.decompressor.queue.push_back(work);
            }
            Err(errno) => {
                self.port.arena.give_back(loan);
                let offset = layer.compressed.clusters[cluster].key.0;
                let path = layer.file.path.clone();
                let error = Error::Device { path, op: "read compressed data", offset, errno };
                let mut out =
                    Out { port: &mut self.port, jobs: &mut self.jobs, flights: &mut disk.flights, place };
                end(&mut out, layer, cluster, Err(error));
            }
        }
    }

    /// One slice of the decompression that waits longest.
    pub(crate) fn decompress(&mut self) {
        let Some(work) = self.decompressor.queue.front() else { return };
        let (place, index) = (work.place, work.cluster);
        let disk = &mut self.disks[place.disk as usize];
        let Some(layer) = disk.layers.get_mut(place.layer as usize) else { return };
        let cluster = &mut layer.compressed.clusters[index];
        let progress = self.decompressor.step(&self.port.arena, &mut cluster.contents);
        if progress == Progress::More {
            return;
        }
        self.decompressor.begun = false;
        if let Some(work) = self.decompressor.queue.pop_front() {
            self.port.arena.give_back(work.loan);
        }
        let result = match progress {
            Progress::Whole => Ok(()),
            _ => Err(Error::Corrupt {
                path: layer.file.path.clone(),
                place: "compressed data, bytes and host offset",
                index: u64::from(cluster.key.1),
                value: cluster.key.0,
                what: "it does not decompress to one cluster",
            }),
        };
        if let Some(stats) = &mut disk.stats {
            stats.decompressions += 1;
        }
        let mut out = Out { port: &mut self.port, jobs: &mut self.jobs, flights: &mut disk.flights, place };
        end(&mut out, layer, index, result);
        self.settle(place);
        self.disks[place.disk as usize].flights -= 1;
        self.try_close(place.disk);
    }
}

#[cfg(test)]
mod tests;
