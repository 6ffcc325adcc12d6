//! The ways out of a layer: operations to the backend, jobs for other layers; and the rules of alignment.
//!
//! Knows: files, scatter lists, what is in flight. Must never know: what a machine named, and why.
//! Invariant: a direct transfer satisfies the file's alignment in offset, lengths and addresses; a read that
//! does not is rounded out and goes through a bounce buffer.

use super::flight::{Dest, Flight, FlightTask, Place, Target};
use super::port::Port;
use super::{Child, LayerFile, Origin};
use crate::error::Error;
use crate::memory::buffers;
use quod_backend::{Backend, Errno, Op, Output, Segment, Segments, Stat};
use quod_states::{IoId, Outcome};
use std::collections::VecDeque;

/// Longer scatter lists are copied to a bounce buffer: one operation takes at most 1024 pieces.
const MOST_PIECES: usize = 1000;

/// One change of one machine that another machine asked for.
#[derive(Debug)]
pub(crate) enum LayerJob {
    /// The layer above wants bytes.
    Submit { place: Place, child: Child },
    /// The layer below has answered.
    Answer { place: Place, io: IoId, origin: Origin, result: Result<(), Box<Error>> },
}

/// A transfer of these pieces at this offset can go to the file as it is.
#[inline]
pub(crate) fn fits(stat: &Stat, offset: u64, segments: &[Segment]) -> bool {
    debug_assert!(stat.offset_align.is_power_of_two() && stat.memory_align.is_power_of_two());
    let (grain, memory) = (u64::from(stat.offset_align) - 1, u64::from(stat.memory_align) - 1);
    if grain | memory == 0 {
        return segments.len() <= MOST_PIECES;
    }
    let good = |segment: &Segment| {
        let (address, len) = (segment.address().addr() as u64, segment.len() as u64);
        address & memory == 0 && len & (memory | grain) == 0
    };
    let all = match segments {
        [only] => good(only),
        list => list.len() <= MOST_PIECES && list.iter().all(good),
    };
    offset & grain == 0 && all
}

/// A range rounded out to the file's grain: its start, its length, and where in it the wanted bytes begin.
pub(crate) fn round_out(stat: &Stat, offset: u64, len: u64) -> (u64, u64, u32) {
    let grain = u64::from(stat.offset_align.max(1));
    let start = offset - offset % grain;
    let end = (offset + len).next_multiple_of(grain);
    (start, end - start, (offset - start) as u32)
}

/// The outcome of everything but table reads.
pub(crate) fn plain_outcome(result: Result<Output, Errno>) -> Outcome<'static> {
    match result {
        Ok(Output::Stat(stat)) => Outcome::Length(stat.len),
        Ok(_) => Outcome::Done,
        Err(errno) => Outcome::Failed(errno.0),
    }
}

/// Everything else that a translation touches.
pub(crate) struct Out<'a, B> {
    pub port: &'a mut Port<B>,
    pub jobs: &'a mut VecDeque<LayerJob>,
    /// Operations of this disk in flight.
    pub flights: &'a mut usize,
    pub place: Place,
}

impl<B: Backend> Out<'_, B> {
    #[inline]
    pub(crate) fn send(&mut self, io: IoId, task: FlightTask, op: Op) {
        *self.flights += 1;
        let target = Target::Layer(self.place.layer);
        self.port.send(Flight { disk: self.place.disk, target, io, task }, op);
    }

    /// Reads `len` bytes at `host`, which is what the segments take.
    #[inline]
    pub(crate) fn read(
        &mut self,
        file: &LayerFile,
        io: IoId,
        host: u64,
        len: u64,
        dest: Dest,
        segments: Segments,
    ) {
        debug_assert_eq!(len, buffers::total(&segments));
        if fits(&file.stat, host, &segments) {
            let task = FlightTask::Read { dest, len, bounce: None, skip: 0 };
            return self.send(io, task, Op::Read { file: file.id, offset: host, segments });
        }
        self.read_bounced(file, io, host, len, dest);
    }

    #[cold]
    fn read_bounced(&mut self, file: &LayerFile, io: IoId, host: u64, len: u64, dest: Dest) {
        let (start, span, skip) = round_out(&file.stat, host, len);
        let loan = self.port.arena.take(span as usize);
        let segments = Segments::from_buf([self.port.arena.segment(&loan, 0, span as usize)]);
        let task = FlightTask::Read { dest, len, bounce: Some(loan), skip };
        self.send(io, task, Op::Read { file: file.id, offset: start, segments });
    }

    pub(crate) fn child(&mut self, child: Child) {
        let place = Place { disk: self.place.disk, layer: self.place.layer + 1 };
        self.jobs.push_back(LayerJob::Submit { place, child });
    }
}

#[cfg(test)]
mod tests;
