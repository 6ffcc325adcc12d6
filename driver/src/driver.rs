//! The driver: one backend, many disks. The public calls and nothing else; the work is in `engine`.
//!
//! Knows: disks, completions, time. Must never know: image formats, system calls.
//! Invariants: no call but [`Driver::wait`] blocks; whatever a call changed is settled when it returns; the
//! number of accepted requests and of undelivered completions is bounded by [`Config::requests`] per disk.

use crate::config::{Config, OpenOptions};
use crate::engine::open::Opener;
use crate::engine::pump::{Job, occupy};
use crate::engine::translate::Place;
use crate::error::Error;
use crate::hold::Hold;
use crate::layer::disk::{Disk, Phase};
use crate::layer::port::Port;
use crate::request::{Completion, CompletionKind, DiskId, DiskInfo, Refusal, Rejected, Request};
use crate::stats::{Stats, add_counters};
use crate::trace::Transitions;
use crate::transform::drive::Decompressor;
use quod_backend::{AnyBackend, Backend, Completion as Landed};
use quod_states::{Counters, Kind, Machine, Outcome, Refused};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

pub use crate::trace::TimedTransition;

/// Submissions to the backend that one `turn` makes at most.
const ROUNDS: usize = 4;

/// See the crate's documentation.
///
/// Dropping a driver without closing its disks is like a power cut for them: nothing is corrupt, what was not
/// flushed may be lost. It waits for the operations in flight, because they use the buffers.
pub struct Driver<B: Backend = AnyBackend> {
    // Fields are dropped in this order: the workers of the decompressor end first, who read the arena's
    // buffers; the port's first field is the backend, which waits for everything in
    // flight, so the buffers in the port's arena and in the disks' request slots go only when nothing uses
    // them any more.
    pub(crate) decompressor: Decompressor,
    pub(crate) port: Port<B>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) vacant: Vec<u32>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) done: VecDeque<Completion>,
    pub(crate) transitions: Transitions,
    /// The earliest deadline of any timer, or an earlier moment.
    pub(crate) earliest: Option<Duration>,
    /// The backend's clock when the present call began (in `wait`: after the sleep).
    pub(crate) now: Duration,
    /// Requests and openings accepted and not completed.
    pub(crate) accepted: usize,
    pub(crate) config: Config,
    /// In `submit`: what ends now gets its time when the call ends.
    pub(crate) submitting: bool,
    reaped: Vec<Landed>,
    hold: Hold,
}

impl Driver<AnyBackend> {
    /// A driver on the backend that the configuration names.
    pub fn new(config: Config) -> Result<Self, Error> {
        let backend = AnyBackend::new(config.backend, config.queue_depth)
            .map_err(|error| Error::backend("setting up the backend", &error))?;
        Ok(Driver::with_backend(backend, config))
    }
}

#[allow(clippy::result_large_err, reason = "a rejected request gives its buffers back")]
impl<B: Backend> Driver<B> {
    /// A driver on this backend.
    pub fn with_backend(backend: B, config: Config) -> Self {
        let room = backend.capacity().clamp(64, 4096);
        Driver {
            decompressor: Decompressor::default(),
            port: Port::new(backend),
            disks: Vec::new(),
            vacant: Vec::new(),
            jobs: VecDeque::with_capacity(room),
            done: VecDeque::with_capacity(config.requests as usize + 1),
            transitions: Transitions::new(config.trace),
            earliest: None,
            now: Duration::ZERO,
            accepted: 0,
            config,
            submitting: false,
            reaped: Vec::with_capacity(room),
            hold: Hold::new(),
        }
    }

    /// Starts to open an image and its backing files; ends as a completion of kind `Opened`. Until then the
    /// disk takes no requests.
    pub fn open(&mut self, path: impl AsRef<Path>, options: OpenOptions) -> Result<DiskId, Error> {
        self.now = self.port.backend.now();
        if path.as_ref().as_os_str().is_empty() {
            return Err(Error::Misuse("an empty path"));
        }
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                self.disks.push(Disk::vacant());
                self.disks.len() as u32 - 1
            }
        };
        let disk = &mut self.disks[index as usize];
        disk.phase = Phase::Opening(Box::new(Opener::new(path.as_ref().to_path_buf(), options, self.now)));
        disk.outstanding = 1;
        self.accepted += 1;
        let id = disk.id(index);
        self.open_layer(index);
        self.measured();
        Ok(id)
    }

    /// Takes a request, or gives it back. Never blocks, makes no system call: call `turn` after the last one
    /// of a batch.
    pub fn submit(&mut self, disk: DiskId, request: Request) -> Result<(), Rejected> {
        self.now = self.port.backend.now();
        let before = self.done.len();
        self.submitting = true;
        let result = match self.admit(disk, request) {
            Ok(place) => {
                self.settle(place);
                Ok(())
            }
            Err(rejected) => Err(*rejected),
        };
        self.submitting = false;
        let elapsed = self.measured();
        if self.done.len() > before {
            self.time_from(before, elapsed);
        }
        result
    }

    /// What began and ended in this call took as long as the call: on its one clock reading it took no time.
    fn time_from(&mut self, before: usize, elapsed: Duration) {
        for done in self.done.range_mut(before..).filter(|done| done.latency.is_zero()) {
            done.latency = elapsed;
            let stats = self.disks[done.disk.index as usize].stats.as_mut();
            if let (CompletionKind::Request(kind), Some(stats)) = (done.kind, stats) {
                stats.time(kind, done.met, elapsed);
            }
        }
    }

    /// Begins nothing more for the disk's requests with this `user` value. Returns how many are left undone,
    /// or in part: each of those ends with [`Error::Cancelled`], when what is in flight for it, or what it
    /// waits for, has ended; its buffers come back then. Of the range of a write any part may have been done,
    /// as after an error. A flush, quiesce, close or resize runs to its end, and so does an opening.
    ///
    /// Never blocks. Costs a look at every control block of the disk ([`OpenOptions::acbs`]).
    pub fn cancel(&mut self, disk: DiskId, user: u64) -> usize {
        let disk =
            self.disks.get_mut(disk.index as usize).filter(|found| found.generation == disk.generation);
        match disk.and_then(|disk| disk.layers.first_mut()) {
            Some(layer) => layer.image.cancel(user),
            None => 0,
        }
    }

    /// Puts a request into its machine.
    fn admit(&mut self, id: DiskId, request: Request) -> Result<Place, Box<Rejected>> {
        let reject = |reason, request| Err(Box::new(Rejected { reason, request }));
        let most = self.config.requests;
        let Some(disk) =
            self.disks.get_mut(id.index as usize).filter(|disk| disk.generation == id.generation)
        else {
            return reject(Refusal::Error(Error::Closed), request);
        };
        if let Err(error) = check(disk, &request) {
            return reject(Refusal::Error(error), request);
        }
        if disk.outstanding >= most {
            return reject(Refusal::Busy, request);
        }
        let Request { kind, offset, len, flags, user, layer: index, .. } = request;
        let layer = &mut disk.layers[index];
        match layer.image.submit(quod_states::Request { kind, offset, len, flags, user }) {
            Ok(slot) => {
                occupy(layer, slot, kind, len, request.buffers, self.now);
                disk.outstanding += 1;
                self.accepted += 1;
                Ok(Place { disk: id.index, layer: index as u16 })
            }
            Err(Refused::Busy) => reject(Refusal::Busy, request),
            Err(Refused::Invalid(error)) => {
                let error = Error::from_core(&layer.file.path, &error);
                reject(Refusal::Error(error), request)
            }
        }
    }

    /// Hands operations to the backend, takes what finished, fires the timers that are due. Never blocks.
    ///
    /// Call it when the descriptor is readable, when [`Driver::next_timeout`] has passed, and after
    /// submitting.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.now = self.port.backend.now();
        let result = self.rounds();
        self.measured();
        result
    }

    /// Bounded: a few submissions and one slice of a decompression; what finishes later makes the descriptor
    /// readable again.
    fn rounds(&mut self) -> Result<(), Error> {
        self.fire_timers();
        self.go_on();
        for _ in 0..ROUNDS {
            self.start()?;
            self.port.backend.clear_notify();
            self.reap();
            if !self.port.unsent() {
                break;
            }
        }
        self.decompress();
        if self.port.unsent() { self.start() } else { Ok(()) }
    }

    /// Work that was cut short in the turn before.
    fn go_on(&mut self) {
        for (place, io) in std::mem::take(&mut self.port.yielded) {
            let layer = self.disks[place.disk as usize].layers.get_mut(place.layer as usize);
            if let Some(layer) = layer {
                layer.image.handle_completion(io, Outcome::Done);
                self.settle(place);
            }
        }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.port.submit().map_err(|error| Error::backend("submitting operations", &error))
    }

    /// Takes what the backend has finished.
    fn reap(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        while self.port.backend.reap(&mut reaped) > 0 {
            for landed in reaped.drain(..) {
                self.land(landed);
            }
        }
        self.reaped = reaped;
    }

    /// As `turn`, but sleeps until something finished, a timer is due, or `timeout` ran out; returns at once
    /// when there is something to take, or nothing to wait for. For tools and tests.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.now = self.port.backend.now();
        let alarm = self.earliest.map(|deadline| deadline.saturating_sub(self.now));
        let until = [timeout, alarm].into_iter().flatten().min();
        let idle = self.done.is_empty() && self.decompressor.is_idle() && self.port.yielded.is_empty();
        let expects = self.port.in_flight() > 0 || self.decompressor.is_busy() || until.is_some();
        if idle && expects {
            self.sleep(until).map_err(|error| Error::backend("waiting", &error))?;
        }
        self.now = self.port.backend.now();
        // what the backend collected while it slept
        self.port.backend.clear_notify();
        self.reap();
        let result = self.rounds();
        self.measured();
        result
    }

    fn sleep(&mut self, until: Option<Duration>) -> std::io::Result<()> {
        if self.decompressor.is_busy() {
            self.port.submit()?;
            self.decompressor.sleep(until)?;
        } else {
            self.port.push_pending();
            self.port.backend.wait(until)?;
        }
        self.port.backend.take_syscall_nanos();
        Ok(())
    }

    /// The next thing that ended. Only takes it from a queue.
    pub fn next_completion(&mut self) -> Option<Completion> {
        let completion = self.done.pop_front()?;
        if let Some(disk) = self.disks.get_mut(completion.disk.index as usize)
            && disk.generation == completion.disk.generation
        {
            disk.outstanding -= 1;
        }
        Some(completion)
    }

    /// Call `turn` and take completions when this much time has passed, if not before. Zero: there are
    /// operations to hand over, completions to take, or clusters to decompress, now. A loop that sleeps no
    /// longer than this needs no other care.
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.port.unsent()
            || !self.port.yielded.is_empty()
            || !self.done.is_empty()
            || !self.decompressor.is_idle()
        {
            return Some(Duration::ZERO);
        }
        self.earliest.map(|deadline| deadline.saturating_sub(self.port.backend.now()))
    }

    fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.disks.get(id.index as usize).filter(|disk| disk.generation == id.generation)
    }

    /// Facts about a disk, once it is open.
    pub fn disk_info(&self, disk: DiskId) -> Option<&DiskInfo> {
        self.disk(disk)?.info.as_ref()
    }

    /// How many files make up the disk; 0 if it is not open.
    pub fn layers(&self, disk: DiskId) -> usize {
        self.disk_info(disk).map_or(0, |info| info.layers.len())
    }

    /// What the disk has done. Copies the histograms: for reports, not for the hot path.
    pub fn stats(&self, disk: DiskId) -> Option<Stats> {
        let disk = self.disk(disk)?;
        let mut stats = Stats::clone(disk.stats.as_ref()?);
        for layer in &disk.layers {
            add_counters(&mut stats.counters, layer.image.counters());
        }
        Some(stats)
    }

    /// The counters of one layer's machine.
    pub fn layer_counters(&self, disk: DiskId, layer: usize) -> Option<&Counters> {
        Some(self.disk(disk)?.layers.get(layer)?.image.counters())
    }

    /// The error that poisoned the disk, if any.
    pub fn poisoned(&self, disk: DiskId) -> Option<Error> {
        let layer = self.disk(disk)?.layers.first()?;
        Some(Error::from_core(&layer.file.path, layer.image.poisoned()?))
    }

    /// The image's persistent bitmaps are valid: it has some, and nothing has changed since it was opened
    /// (see [`Info::bitmaps`](crate::Info)).
    pub fn keeps_bitmaps(&self, disk: DiskId) -> bool {
        self.disk(disk).and_then(|disk| disk.layers.first()).is_some_and(|layer| layer.image.keeps_bitmaps())
    }

    /// The machine of one layer, to look at: for proofs and tests, no promise is made about it.
    #[doc(hidden)]
    pub fn image(&self, disk: DiskId, layer: usize) -> Option<&quod_states::Image> {
        Some(&self.disk(disk)?.layers.get(layer)?.image)
    }

    /// How long calls into the driver held the thread.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Forgets the times measured so far.
    pub fn reset_hold(&mut self) {
        self.hold.reset();
    }

    /// Takes the recorded transitions (see [`Config::trace`]). Take them often: beyond a bound they are
    /// dropped and counted by [`Driver::lost_transitions`].
    pub fn drain_transitions(&mut self, sink: &mut dyn FnMut(TimedTransition)) {
        self.transitions.drain(sink);
    }

    /// Transitions that were dropped because nobody took them.
    pub fn lost_transitions(&self) -> u64 {
        self.transitions.lost()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.port.backend
    }

    /// The backend, to change.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.port.backend
    }

    /// Nothing is in flight, nothing waits to be taken.
    pub fn idle(&self) -> bool {
        self.port.in_flight() == 0 && self.accepted == 0 && self.done.is_empty()
    }

    /// The end of a call: the second of its two clock reads.
    fn measured(&mut self) -> Duration {
        let elapsed = self.port.backend.now().saturating_sub(self.now);
        self.hold.record(elapsed, self.port.backend.take_syscall_nanos());
        elapsed
    }
}

/// What the machine cannot see: phase, layer, buffers.
fn check(disk: &Disk, request: &Request) -> Result<(), Error> {
    match disk.phase {
        Phase::Open => {}
        Phase::Opening(_) => return Err(Error::Misuse("the disk is not open yet")),
        Phase::Vacant | Phase::Closing(_) => return Err(Error::Closed),
    }
    if request.layer >= disk.layers.len() {
        return Err(Error::Misuse("the disk has fewer layers"));
    }
    if request.layer > 0 && request.kind != Kind::Map {
        return Err(Error::Misuse("only map asks deeper layers"));
    }
    let moves = matches!(request.kind, Kind::Read | Kind::Write);
    if moves && request.buffers.len() != request.len {
        return Err(Error::Misuse("the buffers' length is not the request's"));
    }
    if !moves && !request.buffers.is_empty() {
        return Err(Error::Misuse("this kind of request has no buffers"));
    }
    Ok(())
}
