//! The pump: after every change of a machine everything that it wants is taken from it and sent on its way.
//!
//! Knows: all rooms of the driver. Must never know: what a machine's states mean.
//! Invariants: between two changes of one machine it is drained dry; layers talk to each other only through
//! the job list, so nothing recurses however long the chain; a public call returns with the job list empty.

use super::Engine;
use super::translate::{land_plain, translate};
use crate::error::Error;
use crate::layer::flight::{Dest, Flight, FlightTask, Place};
use crate::layer::out::{LayerJob, plain_outcome};
use crate::layer::{Child, Layer, Origin, Owner, RequestSlot, timer_index};
use crate::memory::arena::Arena;
use crate::memory::buffers;
use crate::memory::fill::side;
use crate::request::{Completion, CompletionKind};
use crate::trace::TimedTransition;
use quod_backend::{Backend, Errno, Output, Segments};
use quod_states::{
    Event, Extent, Flags, IoId, Machine, Met, Outcome, Part, Refused, Request, RequestId, RequestKind,
};
use std::time::Duration;

/// What a machine says about an ended request.
struct Done {
    request: RequestId,
    user: u64,
    result: Result<(), quod_states::Error>,
    met: Met,
    extent: Option<Extent>,
}

impl<B: Backend> Engine<B> {
    /// Takes everything that a layer's machine wants, and then everything that follows from it in other
    /// layers.
    pub(crate) fn settle(&mut self, place: Place) {
        self.drain(place);
        while let Some(job) = self.jobs.pop_front() {
            match job {
                LayerJob::Submit { place, child } => self.submit_child(place, child),
                LayerJob::Answer { place, io, origin, result } => self.answer(place, io, origin, result),
            }
        }
    }

    fn drain(&mut self, place: Place) {
        let Some((mut out, layer, transform)) = self.at(place) else { return };
        while let Some(io) = layer.image.poll_io() {
            translate(&mut out, layer, io);
            if layer.clusters.is_wanted() {
                transform.serve(&mut out, layer);
            }
        }
        let disk = &mut self.disks[place.disk as usize];
        let id = disk.id(place.disk);
        let layer = &mut disk.layers[place.layer as usize];
        while let Some(alarm) = layer.image.poll_timeout() {
            let deadline = alarm.after_ms.map(|ms| self.now + Duration::from_millis(u64::from(ms)));
            layer.deadlines[timer_index(alarm.timer)] = deadline;
            self.earliest = [self.earliest, deadline].into_iter().flatten().min();
        }
        if self.config.trace {
            while let Some(transition) = layer.image.poll_transition() {
                let layer = usize::from(place.layer);
                self.transitions.push(TimedTransition { disk: id, layer, at: self.now, transition });
            }
        }
        while let Some(event) = self.next_event(place) {
            // `Poisoned` needs no delivery: from now on every write says so, and `Driver::poisoned` tells
            if let Event::Done { request, user, result, met, extent } = event {
                let (result, extent) = (result.map_err(|error| *error), extent.map(|extent| *extent));
                self.finish(place, Done { request, user, result, met, extent });
            }
        }
    }

    fn next_event(&mut self, place: Place) -> Option<Event> {
        self.disks[place.disk as usize].layers.get_mut(place.layer as usize)?.image.poll_event()
    }

    /// A request has ended in its machine: its slot is free, its owner hears of it.
    fn finish(&mut self, place: Place, done: Done) {
        let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
        let slot = &mut layer.slots[done.request.index as usize];
        // a buffer must not go back to its owner while an operation uses it
        assert_eq!(slot.busy, 0, "the machine ended a request whose buffer is in use");
        let RequestSlot { owner, cause, .. } = std::mem::take(slot);
        let result = done.result.as_ref().map_err(|error| blame(layer, cause, error)).copied();
        if let Some(child) = layer.parked.pop_front() {
            self.jobs.push_back(LayerJob::Submit { place, child });
        }
        match owner {
            Some(Owner::Child { io, origin }) => {
                let above = Place { disk: place.disk, layer: place.layer - 1 };
                let result = result.map_err(Box::new);
                self.jobs.push_back(LayerJob::Answer { place: above, io, origin, result });
            }
            Some(Owner::Guest { kind: mut ended, len, started, .. }) => {
                let kind = ended.request();
                if let CompletionKind::Map(extent) = &mut ended {
                    *extent = done.extent;
                }
                let latency = self.now.saturating_sub(started);
                let disk = &mut self.disks[place.disk as usize];
                if let (Some(stats), Some(kind)) = (&mut disk.stats, kind) {
                    stats.count(kind, len, result.is_ok());
                    if !(self.submitting && latency.is_zero()) {
                        stats.time(kind, done.met, latency);
                    }
                }
                let completion = Completion {
                    disk: disk.id(place.disk),
                    user: done.user,
                    kind: ended,
                    result,
                    met: done.met,
                    latency,
                };
                self.deliver(place, completion);
            }
            None => debug_assert!(false, "the machine ended a request that nobody made"),
        }
    }

    fn deliver(&mut self, place: Place, completion: Completion) {
        let disk = &mut self.disks[place.disk as usize];
        match completion.kind {
            CompletionKind::Close => return self.begin_close(place.disk, completion),
            CompletionKind::Resize if completion.result.is_ok() => {
                let size = disk.layers[0].image.virtual_size();
                if let Some(info) = &mut disk.info {
                    info.resized(size);
                }
            }
            _ => {}
        }
        self.complete(completion);
    }

    fn submit_child(&mut self, place: Place, child: Child) {
        let Some(layer) = self.disks[place.disk as usize].layers.get_mut(place.layer as usize) else {
            debug_assert!(false, "a machine without a backing layer read from it");
            return self.refuse_child(place, &child, Error::Misuse("there is no backing layer"));
        };
        let (offset, len) = (child.offset, child.len);
        let request = Request { kind: RequestKind::Read, offset, len, flags: Flags::empty(), user: 0 };
        match layer.image.submit(request) {
            Ok(id) => {
                let owner = Some(Owner::Child { io: child.io, origin: child.origin });
                let slot = RequestSlot { owner, segments: child.segments, ..RequestSlot::default() };
                layer.slots[id.index as usize] = slot;
                self.drain(place);
            }
            Err(Refused::Busy) => layer.parked.push_back(child),
            Err(Refused::Invalid(error)) => {
                let error = layer.file.error(&error);
                self.refuse_child(place, &child, error);
            }
        }
    }

    /// A child that its layer does not take fails in the layer above.
    fn refuse_child(&mut self, place: Place, child: &Child, error: Error) {
        let (io, origin, result) = (child.io, child.origin, Err(Box::new(error)));
        let above = Place { disk: place.disk, layer: place.layer - 1 };
        self.jobs.push_back(LayerJob::Answer { place: above, io, origin, result });
    }

    fn answer(&mut self, place: Place, io: IoId, origin: Origin, result: Result<(), Box<Error>>) {
        let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
        match origin {
            Origin::Request(index) => layer.slots[index as usize].busy -= 1,
            Origin::Fill(acb, part) => {
                layer.fills[acb.index as usize][side(part)].end(acb.generation);
            }
        }
        match result {
            Ok(()) => layer.image.handle_completion(io, Outcome::Done),
            Err(error) => {
                let errno = error.errno();
                match origin {
                    Origin::Request(index) => layer.slots[index as usize].cause = Some(error),
                    Origin::Fill(..) => layer.fill_cause = Some(error),
                }
                layer.image.handle_completion(io, Outcome::Failed(errno));
            }
        }
        self.drain(place);
    }

    /// An operation of a layer came back.
    pub(super) fn layer_landed(&mut self, place: Place, flight: Flight, result: Result<Output, Errno>) {
        let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
        let arena = &mut self.port.arena;
        let lost = result.err().filter(|errno| place.layer == 0 && layer.is_lost(*errno));
        match flight.task {
            FlightTask::Read { dest, len, bounce, skip } => {
                let moved = result.map(|output| bytes_of(output).saturating_sub(u64::from(skip)).min(len));
                if let Some(segments) = destination(layer, arena, dest, len)
                    && let Ok(moved) = moved
                {
                    match &bounce {
                        Some(loan) => {
                            let end = skip as usize + moved as usize;
                            buffers::scatter(&arena.bytes(loan, end)[skip as usize..], &segments);
                        }
                        None if moved < len => buffers::zero(&buffers::cut(&segments, moved, len - moved)),
                        None => {}
                    }
                }
                bounce.into_iter().for_each(|loan| arena.give_back(loan));
                layer.image.handle_completion(flight.io, plain_outcome(result));
            }
            FlightTask::Write { acb, request, bounce } => {
                bounce.into_iter().for_each(|loan| arena.give_back(loan));
                layer.slots[request as usize].busy -= 1;
                for part in [Part::Head, Part::Tail] {
                    layer.fills[acb.index as usize][side(part)].release(arena, acb.generation);
                }
                layer.image.handle_completion(flight.io, plain_outcome(result));
            }
            FlightTask::HalfSync => {
                if let Some(both) = layer.half_synced(flight.io, result.map(drop)) {
                    let outcome = both.map_or_else(|errno| Outcome::Failed(errno.0), |()| Outcome::Done);
                    layer.image.handle_completion(flight.io, outcome);
                }
            }
            task @ FlightTask::ReadCompressed { .. } => {
                let got = result.map(bytes_of).map_err(|errno| errno.0);
                if let Some((mut out, layer, transform)) = self.at(place) {
                    transform.compressed_read(&mut out, layer, task, got);
                }
            }
            task => land_plain(&mut layer.image, arena, flight.io, task, result),
        }
        if let Some(errno) = lost {
            let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
            layer.image.poison(quod_states::Error::Gone(errno.0));
        }
        self.settle(place);
    }
}

/// Where a landed read belongs; None if its owner is gone. The owner is not waiting for it any more
/// afterwards.
fn destination(layer: &mut Layer, arena: &Arena, dest: Dest, len: u64) -> Option<Segments> {
    match dest {
        Dest::Request { index, offset } => {
            let slot = &mut layer.slots[index as usize];
            slot.busy -= 1;
            Some(buffers::cut(&slot.segments, offset, len))
        }
        Dest::Fill { acb, part, at } => {
            let fill = &mut layer.fills[acb.index as usize][side(part)];
            fill.end(acb.generation)
                .then(|| fill.part(arena, acb.generation, at, len))?
                .map(|s| [s].into_iter().collect())
        }
    }
}

fn bytes_of(output: Output) -> u64 {
    match output {
        Output::Bytes(bytes) => bytes,
        Output::Opened(_) | Output::Stat(_) | Output::Proven(_) | Output::Done => 0,
    }
}

/// The error of a request: what the layer below said, if that is what made it fail, otherwise what the
/// machine says.
fn blame(layer: &mut Layer, cause: Option<Box<Error>>, error: &quod_states::Error) -> Error {
    let mut file = &layer.file;
    if let quod_states::Error::Device { op, errno, .. } = error {
        if op.is_guest_data() {
            file = layer.data.as_ref().unwrap_or(file);
        }
        let cause = cause.or_else(|| layer.fill_cause.take());
        if let Some(cause) = cause.filter(|cause| cause.errno() == *errno) {
            return *cause;
        }
    }
    file.error(error)
}
