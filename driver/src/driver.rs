//! The driver: one backend, many disks. The public calls and nothing else; the work is in `engine`.
//!
//! Knows: disks, completions, time. Must never know: image formats, system calls.
//! Invariants: no call but [`Driver::wait`] blocks; whatever a call changed is settled when it returns; the
//! number of accepted requests and of undelivered completions is bounded by [`Config::requests`] per disk.

use crate::completion::{Completion, Ended};
use crate::config::{Config, OpenOptions};
use crate::engine::Engine;
use crate::error::{BackendOp, Error, ErrorKind, Lack};
use crate::hold::Hold;
use crate::info::DiskInfo;
use crate::layer::disk::{Disk, Phase};
use crate::layer::flight::Place;
use crate::layer::opener::Opener;
use crate::refusal::{Refusal, Rejected};
use crate::request::{DiskId, Request, RequestKind};
use crate::stats::Stats;
use crate::trace::TimedTransition;
use crate::transform::inflate::is_built_in;
use quod_backend::{AnyBackend, Backend};
use quod_states::{BitmapAsk, Counters, Refused, SnapshotAsk};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// One backend and its disks, for one thread. See the crate's documentation for a first use.
///
/// In an event loop: wait until the descriptor ([`AsFd`](std::os::fd::AsFd), `AsRawFd`, with the feature
/// `mio` `mio::event::Source`) is readable or [`Driver::next_timeout`] has passed; call [`Driver::turn`];
/// take completions until there is none; submit what is next. A wake is a hint, which may come early or
/// without cause; that nothing is lost is up to `turn`.
///
/// A driver belongs to the thread that first calls it, and is dropped there; until then it may be moved. `B`
/// is the backend that the host has, and another one only in tests.
///
/// Dropping a driver without closing its disks is like a power cut for them: nothing is corrupt, what was not
/// flushed may be lost. It waits for the operations in flight, because they use the buffers.
pub struct Driver<B: Backend = AnyBackend> {
    pub(crate) engine: Engine<B>,
    hold: Hold,
}

impl Driver<AnyBackend> {
    /// A driver on the backend that the configuration names. It has a ring, an eventfd, and one worker thread
    /// from the first call on that a ring cannot make (locks, lengths); or an eventfd and up to 8 worker
    /// threads. No signal is delivered to any of them. Opens no file.
    ///
    /// ```
    /// use quod::{BackendKind, Config, Driver};
    /// let driver = Driver::new(Config::default())?; // io_uring, or threads where the host refuses it
    /// println!("bytes are moved by {}", driver.backend_name());
    /// let driver = Driver::new(Config::default().backend(BackendKind::Threads).queue_depth(64))?;
    /// assert_eq!(driver.backend_name(), "threads");
    /// assert!(driver.idle() && driver.next_timeout().is_none());
    /// # Ok::<(), quod::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] if the configuration allows no request at all
    /// ([`Config::requests`](field@Config::requests) is 0). [`Error::Backend`] with the operating system's
    /// number if the host has neither the memory nor the descriptors (ENOMEM, EMFILE), or, with
    /// [`BackendKind::Uring`](crate::BackendKind::Uring), no io_uring that will do (ENOSYS, EPERM).
    pub fn new(config: Config) -> Result<Self, Error> {
        config.check()?; // before anything of the host is taken
        let make = if config.restricted { AnyBackend::restricted } else { AnyBackend::new };
        let backend = make(config.backend, config.queue_depth)
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

    /// Starts to open an image and its backing files; ends as a completion of kind
    /// [`Opened`](crate::CompletionKind::Opened). Until then the disk takes no requests. Any number of disks
    /// may be open or opening.
    ///
    /// Files are opened, locked and read by the backend, off this thread. An image that was not closed
    /// cleanly, and is opened for writing, is checked and repaired before the opening ends. A lock that
    /// somebody else has is asked for again for 200 ms.
    ///
    /// ```
    /// use quod::{CompletionKind, Config, Driver, Error, ErrorKind, FileOp, Format, OpenOptions};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(Format::Qcow2, 1 << 30))?;
    /// let mut driver = Driver::new(Config::default())?;
    /// let disk = driver.open(&path, OpenOptions::new().write(true).user(7))?;
    /// let other = driver.open("no/such/file", OpenOptions::new().user(8))?;
    /// let mut left = 2;
    /// while left > 0 {
    ///     driver.wait(None)?; // an event loop: `turn`, when the descriptor is readable
    ///     while let Some(done) = driver.next_completion() {
    ///         assert!(matches!(done.kind, CompletionKind::Opened));
    ///         left -= 1;
    ///         match done.result {
    ///             Ok(()) => assert_eq!((done.disk, done.user), (disk, 7)),
    ///             // `other` names nothing any more, and all of its files are closed
    ///             Err(Error::File { path, kind: ErrorKind::Io { op: FileOp::Open, errno }, .. }) => {
    ///                 assert_eq!((done.disk, path.to_str(), errno), (other, Some("no/such/file"), 2));
    ///             }
    ///             Err(error) => return Err(error.into()),
    ///         }
    ///     }
    /// }
    /// assert_eq!(driver.disk_info(disk).map(|info| info.virtual_size()), Some(1 << 30));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] for an empty path. What goes wrong with the files is the completion's result, an
    /// [`Error::File`]: a backing or data file that the gate refuses, a format that quod does not read, an
    /// image that contradicts its format, a lock, the file system.
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
    /// ```
    /// use quod::{Config, Driver, Format, OpenOptions};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.raw");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(Format::Raw, 1 << 20))?;
    /// // from another process, or opened before the sandbox was closed
    /// let given = std::fs::File::options().read(true).write(true).open(&path)?;
    /// let mut driver = Driver::new(Config::default())?;
    /// let options = OpenOptions::new().write(true).format(Some(Format::Raw));
    /// let disk = driver.open_fd(given, "the guest's first disk", options)?;
    /// let opened = loop {
    ///     driver.wait(None)?;
    ///     if let Some(done) = driver.next_completion() {
    ///         break done;
    ///     }
    /// };
    /// opened.result?; // an error of this disk would begin with "the guest's first disk: "
    /// assert_eq!(driver.disk_info(disk).map(|info| info.virtual_size()), Some(1 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] for an empty name; the descriptor is closed. What is the matter with the descriptor
    /// is said by the completion.
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
        if options.writes() && options.snapshot.is_some() {
            return Err(Error::Misuse("a snapshot in an image is only read"));
        }
        let (index, now) = (self.engine.vacant(), self.engine.time());
        let disk = &mut self.engine.disks[index as usize];
        disk.phase = Phase::Opening(Box::new(Opener::new(path.to_path_buf(), fd, options, now)));
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
    /// Requests in flight have no order among each other, also where their ranges overlap: what must come
    /// first is waited for. One that was taken ends as a completion, with its buffers, and holds one of the
    /// disk's [`Config::requests`](field@Config::requests) slots until that was taken from
    /// [`Driver::next_completion`].
    ///
    /// ```
    /// use quod::{Buffer, Config, Driver, Error, OpenOptions, Refusal, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qed");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qed, 1 << 20))?;
    /// let mut driver = Driver::new(Config::default().requests(1))?;
    /// let disk = driver.open(&path, OpenOptions::new())?;
    /// # while driver.next_completion().is_none() {
    /// #     driver.wait(None)?;
    /// # }
    /// // ... it is open
    /// driver.submit(disk, Request::read(0, Buffer::zeroed(4096), 1))?;
    /// let rejected = driver.submit(disk, Request::read(4096, Buffer::zeroed(4096), 2)).unwrap_err();
    /// assert_eq!(rejected.reason, Refusal::Busy);
    /// let later = rejected.request; // with its buffers: for after the next completion
    /// while driver.next_completion().is_none() {
    ///     driver.wait(None)?;
    /// }
    /// driver.submit(disk, later)?;
    /// while driver.next_completion().is_none() {
    ///     driver.wait(None)?;
    /// }
    /// // what can never be done is said at once
    /// let beyond = driver.submit(disk, Request::read(1 << 20, Buffer::zeroed(1), 3)).unwrap_err();
    /// assert!(matches!(beyond.reason, Refusal::Error(Error::Misuse(_))));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Rejected`] has the request with its buffers, and why: [`Refusal::Busy`] while
    /// [`Config::requests`](field@Config::requests) of this disk are open or not taken yet;
    /// [`Error::Closed`] for a disk that is not open any more (or is another driver's); [`Error::Misuse`]
    /// before it is open, for ranges past its end, for a read or write without a buffer, and for changes of a
    /// disk that is open for reading; [`Error::File`] for a size that the image cannot have.
    #[inline]
    pub fn submit(&mut self, disk: DiskId, request: Request) -> Result<(), Rejected> {
        match self.engine.begin_hit(disk, &request) {
            Some((place, hit)) => {
                self.engine.send_hit(place, hit, request);
                Ok(())
            }
            None => self.submit_any(disk, request),
        }
    }

    #[inline(never)]
    fn submit_any(&mut self, disk: DiskId, request: Request) -> Result<(), Rejected> {
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
        if let Some(elapsed) = self.measured()
            && self.engine.done.len() > before
        {
            self.time_from(before, elapsed);
        }
        result
    }

    /// What began and ended in this call took as long as the call: on its one clock reading it took no time.
    fn time_from(&mut self, before: usize, elapsed: Duration) {
        let instant = |done: &&mut Ended| done.latency.is_some_and(|latency| latency.is_zero());
        for done in self.engine.done.range_mut(before..).filter(instant) {
            done.latency = Some(elapsed);
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
    /// Never blocks. Costs a look at every control block of the disk ([`OpenOptions::acbs`]). Of a disk that
    /// is not open nothing is cancelled: 0.
    ///
    /// ```
    /// use quod::{Buffer, Config, Driver, Error, OpenOptions, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.raw");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Raw, 1 << 20))?;
    /// # let mut driver = Driver::new(Config::default())?;
    /// # let disk = driver.open(&path, OpenOptions::new())?;
    /// # while driver.next_completion().is_none() {
    /// #     driver.wait(None)?;
    /// # }
    /// driver.submit(disk, Request::read(0, Buffer::zeroed(4096), 1))?;
    /// driver.submit(disk, Request::read(4096, Buffer::zeroed(4096), 2))?;
    /// assert_eq!(driver.cancel(disk, 1), 1); // no `turn` has handed it over yet
    /// let mut results = [None, None];
    /// while results.contains(&None) {
    ///     driver.wait(None)?;
    ///     while let Some(done) = driver.next_completion() {
    ///         assert!(done.kind.buffers().is_some()); // they come back all the same
    ///         results[done.user as usize - 1] = Some(done.result);
    ///     }
    /// }
    /// assert_eq!(results, [Some(Err(Error::Cancelled)), Some(Ok(()))]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        match &request.kind {
            RequestKind::Snapshot(ask) => layer.image.plan_snapshot(SnapshotAsk::clone(ask)),
            RequestKind::Bitmap(ask) => layer.image.plan_bitmap(BitmapAsk::clone(ask)),
            _ => {}
        }
        // a hit never comes here, but when times are taken
        match layer.image.submit_no_hit(core) {
            Ok(slot) => {
                layer.occupy(slot, request, now);
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
    /// submitting. It makes one system call, or none if there is nothing to hand over, and hands over no more
    /// than what should take 0.3 ms there (the rest goes with the next turn, for which `next_timeout` is zero
    /// and the descriptor readable); open gates run inside it, and with
    /// [`Config::decompressors`](field@Config::decompressors) of 0 it decompresses 32 KiB at most. The time
    /// that calls take is in [`Driver::hold`].
    ///
    /// ```
    /// # use std::os::fd::AsFd;
    /// use quod::{CompletionKind, Config, Driver, OpenOptions};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
    /// # let wait = |driver: &Driver| std::thread::sleep(std::time::Duration::from_millis(1));
    /// let mut driver = Driver::new(Config::default())?;
    /// driver.open(&path, OpenOptions::new())?;
    /// 'events: loop {
    ///     driver.turn()?;
    ///     while let Some(done) = driver.next_completion() {
    ///         done.result?;
    ///         if let CompletionKind::Opened = done.kind {
    ///             break 'events;
    ///         }
    ///     }
    ///     wait(&driver); // for `driver.as_fd()`, `driver.next_timeout()`, and all else that the loop is for
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::WrongThread`] on io_uring, if another thread has used the driver before: nothing was
    /// done, and nothing is lost. [`Error::Backend`] if the kernel refuses to take or give operations; try
    /// again later, or drop the driver. What goes wrong with a request is its completion's result.
    pub fn turn(&mut self) -> Result<(), Error> {
        self.begins();
        self.engine.port.fresh = true;
        let result = self.engine.turn(true);
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
        self.engine.port.fresh = true;
        self.engine.rest(timeout)?;
        let result = self.engine.turn(false);
        self.measured();
        result
    }

    /// The next thing that ended, in the order in which things ended; None: nothing, until the next call of
    /// `turn` (or a `submit` or `cancel` that ends something at once). Only takes it from a queue, and frees
    /// the request's slot.
    ///
    /// ```
    /// use quod::{Buffer, CompletionKind, Config, Driver, OpenOptions, Request};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
    /// # let mut driver = Driver::new(Config::default())?;
    /// # let disk = driver.open(&path, OpenOptions::new())?;
    /// # while driver.next_completion().is_none() {
    /// #     driver.wait(None)?;
    /// # }
    /// driver.submit(disk, Request::read(512, Buffer::zeroed(100), 1))?;
    /// driver.submit(disk, Request::close(2))?;
    /// while driver.disk_info(disk).is_some() {
    ///     driver.wait(None)?;
    ///     while let Some(done) = driver.next_completion() {
    ///         match (done.kind, done.result) {
    ///             (CompletionKind::Read(buffers), Ok(())) => assert_eq!(buffers.to_vec(), [0; 100]),
    ///             (CompletionKind::Read(_), Err(error)) => eprintln!("{error}"), // their bytes mean nothing
    ///             (kind, result) => result.map_err(|error| format!("{kind:?}: {error}"))?,
    ///         }
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn next_completion(&mut self) -> Option<Completion> {
        let ended = self.engine.done.pop_front()?;
        if let Some(disk) = self.engine.disk_mut(ended.disk) {
            disk.outstanding -= 1;
        }
        Some(ended.into())
    }

    /// Call `turn` and take completions when this much time has passed, if not before. Zero: there are
    /// operations to hand over, completions to take, or clusters to decompress, now. None: no timer runs, so
    /// only the descriptor says when. A loop that sleeps no longer than this needs no other care; one that is
    /// late delays commits ([`OpenOptions::commit_ms`]), and nothing else. No system call.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.engine.next_timeout()
    }

    fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.engine.disk(id)
    }

    /// Facts about a disk, from the completion of its opening to that of its close.
    pub fn disk_info(&self, disk: DiskId) -> Option<&DiskInfo> {
        self.disk(disk)?.info.as_ref()
    }

    /// How many layers make up the disk: the image, and its backing files; 0 if it is not open.
    pub fn layers(&self, disk: DiskId) -> usize {
        self.disk_info(disk).map_or(0, |info| info.layers().len())
    }

    /// Requests that `submit` has accepted, and whose completions were not taken yet; the opening is one,
    /// too. 0 if there is no such disk.
    pub fn outstanding(&self, disk: DiskId) -> usize {
        self.disk(disk).map_or(0, |disk| disk.outstanding as usize)
    }

    /// What the disk has done since it was opened; None if it is not open. Copies the histograms (a
    /// quarter of a MiB): for reports, not for the hot path.
    pub fn stats(&self, disk: DiskId) -> Option<Stats> {
        let disk = self.disk(disk)?;
        let mut stats = Stats::clone(disk.stats.as_ref()?);
        for layer in &disk.layers {
            stats.counters.add(&layer.image.counters());
        }
        Some(stats)
    }

    /// The counters of one layer's machine (0: the image); None if there is no such layer.
    pub fn layer_counters(&self, disk: DiskId, layer: usize) -> Option<Counters> {
        Some(self.disk(disk)?.layers.get(layer)?.image.counters())
    }

    /// The error that poisoned the disk, if any: it only reads until it is opened again, and changes end with
    /// [`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned).
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

    /// How long calls into the driver held the thread, of all disks together.
    /// Empty without [`Config::timing`](field@Config::timing).
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Forgets the times measured so far.
    pub fn reset_hold(&mut self) {
        self.hold.reset();
    }

    /// Takes the recorded transitions (see [`Config::trace`](field@Config::trace)), oldest first. Take them
    /// often: beyond 65,536 new ones are dropped and counted by [`Driver::lost_transitions`].
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

    /// The kernel does nothing for its ring but move bytes of open files
    /// ([`Config::restricted`](field@Config::restricted)).
    pub fn is_restricted(&self) -> bool {
        self.engine.port.backend.is_restricted()
    }

    /// Threads of the backend end, and others take their place when they are needed: these have whatever the
    /// calling thread is confined by then. For a process that confines itself when its images are open, by
    /// something that holds for one thread and those that it starts (Landlock). Blocks for a moment. Before
    /// the first request: threads that decompress stay.
    ///
    /// # Errors
    /// [`Error::Busy`] while something is in flight, [`Error::Backend`] if no thread is to be had.
    pub fn renew_workers(&mut self) -> Result<(), Error> {
        self.engine.port.backend.renew_workers().map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => Error::Busy,
            _ => Error::backend(BackendOp::SetUp, &error),
        })
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

    /// Nothing is in flight, nothing waits to be taken. Timers of open disks may run all the same.
    pub fn idle(&self) -> bool {
        self.engine.port.in_flight() == 0 && self.engine.accepted == 0 && self.engine.done.is_empty()
    }

    /// The beginning of a call: the first of its two clock reads.
    #[inline]
    fn begins(&mut self) {
        if self.engine.timed {
            self.engine.now = self.engine.port.backend.now();
        }
    }

    /// The end of a call: the second of its two clock reads.
    #[inline]
    fn measured(&mut self) -> Option<Duration> {
        self.engine.timed.then(|| self.record())
    }

    #[cold]
    fn record(&mut self) -> Duration {
        let elapsed = self.engine.port.backend.now().saturating_sub(self.engine.now);
        let (before, in_calls) = std::mem::take(&mut self.engine.held);
        let syscall = self.engine.port.backend.take_syscall_nanos().saturating_add(in_calls);
        self.hold.record(elapsed.saturating_add(before), syscall);
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
        RequestKind::Read { buffers, .. }
        | RequestKind::Write { buffers, .. }
        | RequestKind::WriteCompressed { buffers, .. }
        | RequestKind::ReadState { buffers, .. }
        | RequestKind::WriteState { buffers, .. }
            if buffers.is_nowhere() =>
        {
            Err(Error::Misuse("a read or write without a buffer"))
        }
        RequestKind::WriteCompressed { .. } => match disk.layers.first() {
            Some(layer) if !is_built_in(layer.packs.method.compression) => {
                let lack = Lack::Decoder(layer.packs.method.compression);
                Err(layer.file.fault(ErrorKind::Unsupported(lack)))
            }
            _ => Ok(()),
        },
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
