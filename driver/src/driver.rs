//! The driver: one backend, many disks. The public calls and nothing else; the work is in `engine`.
//!
//! Knows: disks, completions, time. Must never know: image formats, system calls.
//! Invariants: no call but [`Driver::wait`] blocks; whatever a call changed is settled when it returns; the
//! number of accepted requests and of undelivered completions is bounded by [`Config::requests`] per disk.

use crate::config::{Config, OpenOptions};
use crate::engine::Engine;
use crate::error::{BackendOp, Error};
use crate::hold::Hold;
use crate::layer::disk::{Disk, Phase};
use crate::layer::flight::Place;
use crate::layer::opener::Opener;
use crate::request::{Completion, DiskId, DiskInfo, Refusal, Rejected, Request, RequestKind};
use crate::stats::{Stats, add_counters};
use crate::trace::TimedTransition;
use quod_backend::{AnyBackend, Backend};
use quod_states::{Counters, Refused};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// See the crate's documentation.
///
/// Dropping a driver without closing its disks is like a power cut for them: nothing is corrupt, what was not
/// flushed may be lost. It waits for the operations in flight, because they use the buffers.
pub struct Driver<B: Backend = AnyBackend> {
    pub(crate) engine: Engine<B>,
    hold: Hold,
}

impl Driver<AnyBackend> {
    /// A driver on the backend that the configuration names.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the configuration allows no request at all; otherwise what the host refuses.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?; // before anything of the host is taken
        let backend = AnyBackend::new(config.backend, config.queue_depth)
            .map_err(|error| Error::backend(BackendOp::SetUp, &error))?;
        Driver::with_backend(backend, config)
    }
}

#[allow(clippy::result_large_err, reason = "a rejected request gives its buffers back")]
impl<B: Backend> Driver<B> {
    /// A driver on this backend, which may be the simulated disk of `quod-backend`: for tests.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the configuration allows no request at all.
    #[doc(hidden)]
    pub fn with_backend(backend: B, config: Config) -> Result<Self, Error> {
        config.check()?;
        Ok(Driver { engine: Engine::new(backend, config), hold: Hold::new() })
    }

    /// Starts to open an image and its backing files; ends as a completion of kind `Opened`. Until then the
    /// disk takes no requests.
    ///
    /// # Errors
    /// [`Error::Misuse`] for an empty path. What goes wrong with the files is the completion's result.
    pub fn open(&mut self, path: impl AsRef<Path>, options: OpenOptions) -> Result<DiskId, Error> {
        self.start(path.as_ref(), None, options)
    }

    /// As [`Driver::open`], of a file that is open already: for processes that may open none, and for
    /// embedders that get descriptors from others. `name` need not lead anywhere: errors and
    /// [`LayerInfo::path`](crate::LayerInfo) call the file by it, and relative names of backing files start
    /// in its folder. Those of a chain that is wholly given come from a gate
    /// ([`OpenGate::give`](crate::OpenGate::give)).
    ///
    /// The descriptor belongs to the driver from now on, which closes it with the disk, or when the opening
    /// has failed. It must be open for reading, and for writing if the options say so (EACCES), without
    /// O_APPEND (EINVAL). With O_DIRECT, or [`OpenOptions::direct`], transfers bypass the page cache. The
    /// driver changes flags (O_DIRECT, O_NONBLOCK) and takes locks, both of which belong to the open file
    /// description: duplicates share them, and two disks on duplicates of one descriptor do not lock each
    /// other out.
    ///
    /// # Errors
    /// As of [`Driver::open`]. What is the matter with the descriptor is said by the completion.
    pub fn open_fd(
        &mut self,
        fd: impl Into<OwnedFd>,
        name: impl AsRef<Path>,
        options: OpenOptions,
    ) -> Result<DiskId, Error> {
        self.start(name.as_ref(), Some(fd.into()), options)
    }

    fn start(&mut self, path: &Path, fd: Option<OwnedFd>, options: OpenOptions) -> Result<DiskId, Error> {
        self.begins();
        if path.as_os_str().is_empty() {
            return Err(Error::Misuse("an empty path"));
        }
        let index = self.engine.vacant();
        let disk = &mut self.engine.disks[index as usize];
        disk.phase = Phase::Opening(Box::new(Opener::new(path.to_path_buf(), fd, options, self.engine.now)));
        disk.outstanding = 1;
        self.engine.accepted += 1;
        let id = disk.id(index);
        self.engine.open_layer(index);
        self.measured();
        Ok(id)
    }

    /// Takes a request, or gives it back. Never blocks, makes no system call: call `turn` after the last one
    /// of a batch.
    ///
    /// # Errors
    /// [`Rejected`] has the request with its buffers, and why: [`Refusal::Busy`] while
    /// [`Config::requests`](field@Config::requests) of this disk are open or not taken yet;
    /// [`Error::Closed`] for a disk that is not open any more (or is another driver's); [`Error::Misuse`]
    /// before it is open, for ranges past its end, and for writes to a disk that is open for reading.
    pub fn submit(&mut self, disk: DiskId, request: Request) -> Result<(), Rejected> {
        self.begins();
        let before = self.engine.done.len();
        self.engine.submitting = true;
        let result = match self.admit(disk, request) {
            Ok(place) => {
                self.engine.settle(place);
                Ok(())
            }
            Err(rejected) => Err(*rejected),
        };
        self.engine.submitting = false;
        let elapsed = self.measured();
        if self.engine.done.len() > before {
            self.time_from(before, elapsed);
        }
        result
    }

    /// What began and ended in this call took as long as the call: on its one clock reading it took no time.
    fn time_from(&mut self, before: usize, elapsed: Duration) {
        for done in self.engine.done.range_mut(before..).filter(|done| done.latency.is_zero()) {
            done.latency = elapsed;
            let stats = self.engine.disks[done.disk.index as usize].stats.as_mut();
            if let (Some(kind), Some(stats)) = (done.kind.request(), stats) {
                stats.time(kind, done.met, elapsed);
            }
        }
    }

    /// Begins nothing more for the disk's requests with this `user` value: also no reads that `submit`
    /// accepted and no `turn` has handed over. Returns how many are left undone, or in part: each of those
    /// ends with [`Error::Cancelled`], when what is in flight for it, or what it waits for, has ended; its
    /// buffers come back then. Of the range of a write any part may have been done, as after an error. A
    /// flush, quiesce, close or resize runs to its end, and so does an opening.
    ///
    /// Never blocks. Costs a look at every control block of the disk ([`OpenOptions::acbs`]).
    pub fn cancel(&mut self, disk: DiskId, user: u64) -> usize {
        if self.engine.disk(disk).is_none() {
            return 0;
        }
        self.begins();
        let cancelled = self.engine.cancel(disk.index, user);
        self.measured();
        cancelled
    }

    /// Puts a request into its machine.
    fn admit(&mut self, id: DiskId, request: Request) -> Result<Place, Box<Rejected>> {
        let reject = |reason, request| Err(Box::new(Rejected { reason, request }));
        let (most, now) = (self.engine.config.requests, self.engine.now);
        let Some(disk) = self.engine.disk_mut(id) else {
            return reject(Refusal::Error(Error::Closed), request);
        };
        if let Err(error) = check(disk, &request) {
            return reject(Refusal::Error(error), request);
        }
        if disk.outstanding >= most {
            return reject(Refusal::Busy, request);
        }
        let index = layer_of(&request.kind);
        let layer = &mut disk.layers[index];
        let core = request.kind.to_core(request.user);
        match layer.image.submit(core) {
            Ok(slot) => {
                layer.occupy(slot, request, core.len, now);
                disk.outstanding += 1;
                self.engine.accepted += 1;
                Ok(Place { disk: id.index, layer: index as u16 })
            }
            Err(Refused::Busy) => reject(Refusal::Busy, request),
            Err(Refused::Invalid(error)) => {
                let error = layer.file.error(&error);
                reject(Refusal::Error(error), request)
            }
        }
    }

    /// Hands operations to the backend, takes what finished, fires the timers that are due. Never blocks.
    ///
    /// Call it when the descriptor is readable, when [`Driver::next_timeout`] has passed, and after
    /// submitting.
    ///
    /// # Errors
    /// [`Error::WrongThread`] on io_uring, if another thread has used the driver before: nothing was
    /// done, and nothing is lost. [`Error::Backend`] if the kernel refuses to take or give operations; try
    /// again later, or drop the driver. What goes wrong with a request is its completion's result.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.begins();
        let result = self.engine.turn();
        self.measured();
        result
    }

    /// As `turn`, but sleeps until something finished, a timer is due, or `timeout` ran out; returns at once
    /// when there is something to take, or nothing to wait for. For tools and tests.
    ///
    /// # Errors
    /// As of [`Driver::turn`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.begins();
        self.engine.rest(timeout)?;
        let result = self.engine.turn();
        self.measured();
        result
    }

    /// The next thing that ended. Only takes it from a queue.
    pub fn next_completion(&mut self) -> Option<Completion> {
        let completion = self.engine.done.pop_front()?;
        if let Some(disk) = self.engine.disk_mut(completion.disk) {
            disk.outstanding -= 1;
        }
        Some(completion)
    }

    /// Call `turn` and take completions when this much time has passed, if not before. Zero: there are
    /// operations to hand over, completions to take, or clusters to decompress, now. A loop that sleeps no
    /// longer than this needs no other care.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.engine.next_timeout()
    }

    fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.engine.disk(id)
    }

    /// Facts about a disk, once it is open.
    pub fn disk_info(&self, disk: DiskId) -> Option<&DiskInfo> {
        self.disk(disk)?.info.as_ref()
    }

    /// How many files make up the disk; 0 if it is not open.
    pub fn layers(&self, disk: DiskId) -> usize {
        self.disk_info(disk).map_or(0, |info| info.layers().len())
    }

    /// What the disk has done. Copies the histograms: for reports, not for the hot path.
    pub fn stats(&self, disk: DiskId) -> Option<Stats> {
        let disk = self.disk(disk)?;
        let mut stats = Stats::clone(disk.stats.as_ref()?);
        for layer in &disk.layers {
            add_counters(&mut stats.counters, &layer.image.counters());
        }
        Some(stats)
    }

    /// The counters of one layer's machine.
    pub fn layer_counters(&self, disk: DiskId, layer: usize) -> Option<Counters> {
        Some(self.disk(disk)?.layers.get(layer)?.image.counters())
    }

    /// The error that poisoned the disk, if any.
    pub fn poisoned(&self, disk: DiskId) -> Option<Error> {
        let layer = self.disk(disk)?.layers.first()?;
        Some(layer.file.error(layer.image.poisoned()?))
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
        self.engine.transitions.drain(sink);
    }

    /// Transitions that were dropped because nobody took them.
    pub fn lost_transitions(&self) -> u64 {
        self.engine.transitions.lost()
    }

    /// What moves the bytes: "io_uring" or "threads" ([`BackendKind::Auto`](crate::BackendKind::Auto) takes
    /// what the host allows).
    pub fn backend_name(&self) -> &'static str {
        self.engine.port.backend.name()
    }

    /// The backend, to look at: for tests over the simulated disk.
    #[doc(hidden)]
    pub fn backend(&self) -> &B {
        &self.engine.port.backend
    }

    /// The backend, to change.
    #[doc(hidden)]
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.engine.port.backend
    }

    /// Nothing is in flight, nothing waits to be taken.
    pub fn idle(&self) -> bool {
        self.engine.port.in_flight() == 0 && self.engine.accepted == 0 && self.engine.done.is_empty()
    }

    /// The beginning of a call: the first of its two clock reads.
    fn begins(&mut self) {
        self.engine.now = self.engine.port.backend.now();
    }

    /// The end of a call: the second of its two clock reads.
    fn measured(&mut self) -> Duration {
        let elapsed = self.engine.port.backend.now().saturating_sub(self.engine.now);
        self.hold.record(elapsed, self.engine.port.backend.take_syscall_nanos());
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
    match &request.kind {
        RequestKind::Map { layer, .. } if *layer >= disk.layers.len() => {
            Err(Error::Misuse("the disk has fewer layers"))
        }
        RequestKind::Read { buffers, .. } | RequestKind::Write { buffers, .. } if buffers.is_nowhere() => {
            Err(Error::Misuse("a read or write without a buffer"))
        }
        _ => Ok(()),
    }
}

/// The layer whose machine takes it: the image's, but for a map.
fn layer_of(kind: &RequestKind) -> usize {
    match kind {
        RequestKind::Map { layer, .. } => *layer,
        _ => 0,
    }
}
