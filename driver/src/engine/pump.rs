//! The pump: after every change of a machine everything that it wants is taken from it and sent on its way.
//!
//! Knows: all rooms of the driver. Must never know: what a machine's states mean.
//! Invariants: between two changes of one machine it is drained dry; layers talk to each other only through
//! the job list, so nothing recurses however long the chain; a public call returns with the job list empty.

use super::Engine;
use super::translate::{land_plain, read_data, translate, write_data};
use crate::completion::{CompletionKind, Ended};
use crate::error::Error;
use crate::layer::flight::{Dest, Flight, FlightTask, Place};
use crate::layer::out::{LayerJob, plain_outcome};
use crate::layer::{Child, Layer, Origin, Owner, timer_index};
use crate::memory::arena::Arena;
use crate::memory::buffers;
use crate::memory::fill::side;
use crate::trace::TimedTransition;
use quod_backend::{Backend, Errno, Output, Segments};
use quod_states::{
    AcbId, Alarm, Event, Flags, IoId, IoOp, Machine, Outcome, Part, Refused, Request, RequestKind,
};
use std::time::Duration;

impl<B: Backend> Engine<B> {
    /// Takes everything that a layer's machine wants, and then everything that follows from it in other
    /// layers.
    #[inline]
    pub(crate) fn settle(&mut self, place: Place) {
        self.drain(place);
        if !self.jobs.is_empty() {
            self.do_jobs();
        }
    }

    #[inline(never)]
    fn do_jobs(&mut self) {
        while let Some(job) = self.jobs.pop_front() {
            match job {
                LayerJob::Submit { place, child } => self.submit_child(place, child),
                LayerJob::Answer { place, io, origin, result } => self.answer(place, io, origin, result),
            }
        }
    }

    #[inline]
    fn layer(&mut self, place: Place) -> Option<&mut Layer> {
        self.disks.get_mut(place.disk as usize)?.layers.get_mut(place.layer as usize)
    }

    // in parts, so that a hit pays for what it meets
    #[inline]
    fn drain(&mut self, place: Place) {
        let Some(layer) = self.layer(place) else { return };
        if layer.image.has_io() {
            self.drain_io(place);
        }
        if self.config.trace {
            self.keep_transitions(place);
        }
        if self.layer(place).is_some_and(|layer| layer.image.has_news()) {
            self.hear(place);
        }
    }

    #[inline(never)]
    fn drain_io(&mut self, place: Place) {
        let Some((mut out, layer, transform)) = self.at(place) else { return };
        while let Some(io) = layer.image.poll_io() {
            if let IoOp::ReadData { request, buffer_offset, len, host } = io.op {
                read_data(&mut out, layer, io.id, request, buffer_offset, len, host);
                continue;
            }
            if write_data(&mut out, layer, &io, false) {
                continue;
            }
            translate(&mut out, layer, &io);
            if layer.clusters.is_wanted() {
                transform.serve(&mut out, layer);
            }
            if layer.packs.are_asked() {
                transform.shrink(&mut out, layer);
            }
        }
    }

    /// What the machine has to say: alarms, and requests that have ended.
    #[inline(never)]
    fn hear(&mut self, place: Place) {
        if let Some(alarm) = self.layer(place).and_then(|layer| layer.image.poll_timeout()) {
            self.set_alarms(place, alarm);
        }
        let timed = self.config.timing;
        loop {
            let Some(disk) = self.disks.get_mut(place.disk as usize) else { return };
            let Some(layer) = disk.layers.get_mut(place.layer as usize) else { return };
            let Some(event) = layer.image.poll_event() else { return };
            // what nearly all come to, apart from the rest
            if let Event::Done { request, user, result: Ok(()), met, extent: None } = event
                && !timed
                && layer.parked.is_empty()
                && let slot = &mut layer.slots[request.index as usize]
                && let Some(kind) = slot.take_moved()
            {
                if let Some(stats) = &mut disk.stats {
                    stats.moved(&kind, slot.len);
                }
                let done =
                    Ended { disk: disk.id(place.disk), user, kind, result: Ok(()), met, latency: None };
                self.complete(done);
                continue;
            }
            // `Poisoned` needs no delivery: from now on every write says so, and `Driver::poisoned` tells
            if let Event::Done { .. } = event {
                self.finish(place, event);
            }
        }
    }

    #[cold]
    fn set_alarms(&mut self, place: Place, first: Alarm) {
        let now = self.time();
        let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
        let mut next = Some(first);
        while let Some(alarm) = next {
            let deadline = alarm.after_ms.map(|ms| now + Duration::from_millis(u64::from(ms)));
            layer.deadlines[timer_index(alarm.timer)] = deadline;
            self.earliest = [self.earliest, deadline].into_iter().flatten().min();
            next = layer.image.poll_timeout();
        }
    }

    #[cold]
    fn keep_transitions(&mut self, place: Place) {
        let disk = &mut self.disks[place.disk as usize];
        let id = disk.id(place.disk);
        let Some(layer) = disk.layers.get_mut(place.layer as usize) else { return };
        while let Some(transition) = layer.image.poll_transition() {
            let layer = usize::from(place.layer);
            self.transitions.push(TimedTransition { disk: id, layer, at: self.now, transition });
        }
    }

    /// A request has ended in its machine: its slot is free, its owner hears of it.
    #[inline(never)]
    fn finish(&mut self, place: Place, event: Event) {
        let Event::Done { request, user, result, met, extent } = event else { return };
        let disk = &mut self.disks[place.disk as usize];
        let layer = &mut disk.layers[place.layer as usize];
        let slot = &mut layer.slots[request.index as usize];
        let (owner, len, cause) = (slot.vacate(), slot.len, slot.cause.take());
        let result = result.map_err(|error| Box::new(blame(layer, cause, &error)));
        // a compressed write that came to nothing
        if let Some(loan) = layer.packs.take(request.index) {
            self.port.arena.give_back(loan);
        }
        if let Some(child) = layer.parked.pop_front() {
            self.jobs.push_back(LayerJob::Submit { place, child });
        }
        match owner {
            Some(Owner::Guest { kind, started, .. }) => {
                let latency = self.config.timing.then(|| self.now.saturating_sub(started));
                let mut ended = Ended { disk: disk.id(place.disk), user, kind, result, met, latency };
                if let (Some(stats), Some(kind)) = (&mut disk.stats, ended.kind.request()) {
                    stats.count(kind, len, ended.result.is_ok());
                    // what took no time yet gets its time when the call ends
                    if let Some(latency) = latency.filter(|latency| !(self.submitting && latency.is_zero())) {
                        stats.time(kind, met, latency);
                    }
                }
                match &mut ended.kind {
                    CompletionKind::Close => return self.begin_close(place.disk, ended),
                    CompletionKind::Map(answer) => *answer = extent.map(|extent| *extent),
                    CompletionKind::Resize | CompletionKind::Snapshot if ended.result.is_ok() => {
                        disk.resized()
                    }
                    _ => {}
                }
                self.complete(ended);
            }
            Some(Owner::Child { io, origin }) => {
                let above = Place { disk: place.disk, layer: place.layer - 1 };
                self.jobs.push_back(LayerJob::Answer { place: above, io, origin, result });
            }
            None => debug_assert!(false, "the machine ended a request that nobody made"),
        }
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
                let owner = Owner::Child { io: child.io, origin: child.origin };
                layer.slots[id.index as usize].occupy(owner, child.segments, len);
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

    /// A write of a request's own bytes has ended well: what nearly all writes come to.
    fn written(&mut self, place: Place, acb: AcbId, request: u32, io: IoId) {
        let layer = &mut self.disks[place.disk as usize].layers[place.layer as usize];
        layer.slots[request as usize].busy -= 1;
        for fill in &mut layer.fills[acb.index as usize] {
            fill.release(&mut self.port.arena, acb.generation);
        }
        layer.image.handle_completion(io, Outcome::Done);
        self.settle(place);
    }

    /// An operation of a layer came back.
    pub(super) fn layer_landed(&mut self, place: Place, flight: Flight, result: Result<Output, Errno>) {
        if let FlightTask::Write { acb, request, bounce: None, .. } = flight.task
            && result.is_ok()
        {
            return self.written(place, acb, request, flight.io);
        }
        self.other_landed(place, flight, result);
    }

    #[inline(never)]
    fn other_landed(&mut self, place: Place, flight: Flight, result: Result<Output, Errno>) {
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
            FlightTask::Write { acb, request, bounce, .. } => {
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
