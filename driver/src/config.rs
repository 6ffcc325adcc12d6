//! What the embedder decides: [`Config`] for the whole driver, [`OpenOptions`] for one disk.
//!
//! Knows: limits and switches. Must never know: files, machines, operations.
//! Invariant: every number here is a hard bound; nothing in the driver grows beyond it.

use crate::error::Error;
use crate::gate::{Allowed, DenyBacking, Named, OpenGate};
use quod_backend::{BackendKind, CpuSet, Stat};
use quod_states::{AllocationGate, Format, Options, Policy, SnapshotSelector};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long an opening waits for a lock that somebody else holds. A program that was killed holds its locks
/// until the kernel has let go of its ring: for tens of milliseconds.
pub const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// How often it asks meanwhile.
pub const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Settings of a driver: [`Config::default`], and what is said to be otherwise.
///
/// ```
/// use quod::{BackendKind, Config, Driver};
/// let config = Config::default();
/// assert_eq!((config.backend, config.queue_depth), (BackendKind::Auto, 256));
/// assert_eq!((config.requests, config.decompressors), (128, 4));
/// assert_eq!((config.timing, config.trace), (false, false));
/// // one disk of a guest with a virtqueue of 64, no threads beside those of the backend
/// let driver = Driver::new(config.requests(64).decompressors(0))?;
/// # assert!(Driver::new(config.requests(0)).is_err());
/// # Ok::<(), quod::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How bytes are moved; default [`BackendKind::Auto`].
    pub backend: BackendKind,
    /// Backend operations in flight, of all disks together; default 256, 1 to 32,768 (io_uring; less if the
    /// host says so). What is more waits in the driver. A request is one operation, or some: a copy on write
    /// reads and writes, tables are read and written beside it.
    pub queue_depth: u32,
    /// Guest requests that may be open at once, per disk, completions that were not taken yet included;
    /// default 128, at least 1. One more is refused as busy.
    pub requests: u32,
    /// Worker threads that decompress and compress, at most; never more than the host has processors, and
    /// none before they are needed; default 4. 0: that is done in slices of `turn`, 32 KiB each.
    pub decompressors: u32,
    /// Processors for all threads that work for the loop: the kernel's, which do what would hold it (large
    /// transfers, syncs, writes into holes), and the driver's own. For a loop that has a processor to itself:
    /// what is left of long calls is that one of them runs there. The kernel has one set of workers a thread:
    /// this is for all rings of the thread that runs this driver (Linux 5.14). Default None: anywhere.
    pub worker_cpus: Option<CpuSet>,
    /// The ring does nothing but move bytes of files that are open, whatever is asked of it, where the kernel
    /// can make such a ring ([`Driver::is_restricted`](crate::Driver::is_restricted); Linux 6.1); files are
    /// opened and closed by a worker. For processes that confine themselves; default off.
    pub restricted: bool,
    /// Measure: [`Completion::latency`](crate::Completion), the histograms of
    /// [`Stats`](crate::Stats) and [`Driver::hold`](crate::Driver::hold). Costs two readings of the clock a
    /// call and some 500 instructions a request; default off: they are empty, and no request reads a clock.
    pub timing: bool,
    /// Record every state transition; take them with `Driver::drain_transitions`, which keeps 65,536
    /// at most; default off.
    pub trace: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            backend: BackendKind::Auto,
            queue_depth: 256,
            requests: 128,
            decompressors: 4,
            worker_cpus: None,
            restricted: false,
            timing: false,
            trace: false,
        }
    }
}

impl Config {
    /// See [`Config::backend`](field@Config::backend).
    pub fn backend(self, backend: BackendKind) -> Config {
        Config { backend, ..self }
    }

    /// See [`Config::queue_depth`](field@Config::queue_depth).
    pub fn queue_depth(self, queue_depth: u32) -> Config {
        Config { queue_depth, ..self }
    }

    /// See [`Config::requests`](field@Config::requests).
    pub fn requests(self, requests: u32) -> Config {
        Config { requests, ..self }
    }

    /// See [`Config::decompressors`](field@Config::decompressors).
    pub fn decompressors(self, decompressors: u32) -> Config {
        Config { decompressors, ..self }
    }

    /// See [`Config::worker_cpus`](field@Config::worker_cpus).
    pub fn worker_cpus(self, worker_cpus: Option<CpuSet>) -> Config {
        Config { worker_cpus, ..self }
    }

    /// See [`Config::restricted`](field@Config::restricted).
    pub fn restricted(self, restricted: bool) -> Config {
        Config { restricted, ..self }
    }

    /// See [`Config::timing`](field@Config::timing).
    pub fn timing(self, timing: bool) -> Config {
        Config { timing, ..self }
    }

    /// See [`Config::trace`](field@Config::trace).
    pub fn trace(self, trace: bool) -> Config {
        Config { trace, ..self }
    }

    /// What no driver can work with.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.requests == 0 {
            return Err(Error::Misuse("Config::requests is 0: no disk could take a request"));
        }
        Ok(())
    }
}

/// How to open a disk. Read-only unless [`OpenOptions::write`] says otherwise.
///
/// ```
/// use quod::{Config, Driver, Format, OpenOptions, SameDirectory};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # quod_tools::create(&path, &quod_tools::CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// let options = OpenOptions::new()
///     .write(true)
///     .direct(true) // past the page cache: calls into the kernel copy nothing and stay short
///     .format(Some(Format::Qcow2)) // of images that a guest writes: never guess
///     .open_gate(SameDirectory) // backing files beside the image, and no others
///     .cache_bytes(8 << 20) // tables of 64 GiB in clusters of 64 KiB
///     .user(1);
/// # let options = options.direct(false); // not every folder for temporary files has it
/// let mut driver = Driver::new(Config::default())?;
/// let disk = driver.open(&path, options)?;
/// # while driver.next_completion().map(|done| done.result).transpose()?.is_none() {
/// #     driver.wait(None)?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct OpenOptions {
    pub(crate) user: u64,
    pub(crate) write: bool,
    pub(crate) direct: bool,
    pub(crate) backing_direct: Option<bool>,
    pub(crate) format: Option<Format>,
    pub(crate) lock: bool,
    pub(crate) lock_data: Option<bool>,
    pub(crate) tolerate_writers: bool,
    pub(crate) policy: Policy,
    pub(crate) allocation_gate: AllocationGate,
    pub(crate) cache_bytes: u64,
    pub(crate) grow_step: u64,
    pub(crate) allocate_ahead: bool,
    pub(crate) commit_ms: u32,
    pub(crate) need_check_ms: u32,
    pub(crate) acbs: u32,
    pub(crate) follow_backing: bool,
    pub(crate) data_file: Option<PathBuf>,
    pub(crate) near_window: bool,
    pub(crate) align: u32,
    pub(crate) max_depth: u32,
    pub(crate) snapshot: Option<SnapshotSelector>,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: u128,
    open_gate: Arc<Mutex<dyn OpenGate + Send>>,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// Read-only, buffered, locked, format probed, no backing file allowed.
    pub fn new() -> OpenOptions {
        let core = Options::default();
        OpenOptions {
            user: 0,
            write: false,
            direct: false,
            backing_direct: None,
            format: None,
            lock: true,
            lock_data: None,
            tolerate_writers: false,
            policy: core.policy,
            allocation_gate: core.allocation_gate,
            cache_bytes: core.cache_bytes,
            grow_step: core.grow_step,
            allocate_ahead: true,
            commit_ms: core.commit_ms,
            need_check_ms: core.need_check_ms,
            acbs: core.acbs,
            follow_backing: true,
            data_file: None,
            near_window: false,
            align: 1,
            max_depth: 32,
            snapshot: None,
            #[cfg(feature = "sabotage")]
            sabotage: 0,
            open_gate: Arc::new(Mutex::new(DenyBacking)),
        }
    }

    /// Given back as [`Completion::user`](crate::Completion) when the opening ends; default 0.
    pub fn user(mut self, user: u64) -> Self {
        self.user = user;
        self
    }

    /// Open for writing, the data file of the image too; default off. Backing files are only read.
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Bypass the page cache (O_DIRECT); default off. Requests may be of any alignment all the same: what
    /// does not fit the device's blocks goes through a bounce buffer, and a write of a part of a block reads
    /// it first. A file system without O_DIRECT ends the opening with
    /// [`FileOp::OpenDirect`](crate::FileOp::OpenDirect).
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Bypass the page cache for the backing files too; None, the default: as the image.
    pub fn backing_direct(mut self, direct: Option<bool>) -> Self {
        self.backing_direct = direct;
        self
    }

    /// The image's format; None, the default: probe. Name that of raw images: see docs/embedding.md.
    pub fn format(mut self, format: Option<Format>) -> Self {
        self.format = format;
        self
    }

    /// A raw image that is only read, a backing file too, may be written by others meanwhile, as for QEMU's
    /// tools: what is read of it may be neither the old bytes nor the new ones. Off by default: whoever
    /// writes is refused, or refuses us.
    pub fn tolerate_writers(mut self, tolerate: bool) -> Self {
        self.tolerate_writers = tolerate;
        self
    }

    /// The disk may be written, and its format is not said: if it turns out to be raw, a guest could make
    /// another format of it (see docs/embedding.md).
    pub fn probes_for_writing(&self) -> bool {
        self.format.is_none() && self.write
    }

    /// The disk may be written: what [`OpenOptions::write`] says.
    pub fn writes(&self) -> bool {
        self.write
    }

    /// Take QEMU-compatible locks, on all files of the disk; default on. A lock that somebody else has is
    /// asked for again every 5 ms for 200 ms, by a timer of the driver; then the opening ends with
    /// [`ErrorKind::Locked`](crate::ErrorKind::Locked). On a file system without locks it ends with
    /// [`FileOp::LockWithout`](crate::FileOp::LockWithout). A block device that is opened by its path to be
    /// written is claimed as well (O_EXCL): [`FileOp::Claim`](crate::FileOp::Claim) if it is mounted, or
    /// another program has claimed it. Off: two writers destroy an image.
    pub fn lock(mut self, lock: bool) -> Self {
        self.lock = lock;
        self
    }

    /// Take locks on data files (qcow2); None, the default: as [`OpenOptions::lock`] says. For a data file
    /// that lies on a store without locks, or that somebody else keeps others from.
    pub fn lock_data_file(mut self, lock: Option<bool>) -> Self {
        self.lock_data = lock;
        self
    }

    /// When an allocating write completes; default [`Policy::Writeback`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What an allocating write waits for; default [`AllocationGate::Cluster`].
    pub fn allocation_gate(mut self, gate: AllocationGate) -> Self {
        self.allocation_gate = gate;
        self
    }

    /// Bytes of table cache, per layer; default 32 MiB, in slices of 4 KiB, 64 GiB at most, and never less
    /// than a machine needs to go on. Memory is taken as slices are read, and kept. With clusters of 64 KiB
    /// a MiB has the tables of 8 GiB of the disk.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// The file grows ahead of the data in steps of half of what it has, 8 MiB at least and this many bytes
    /// at most (if that is less than 8 MiB: of this many); default 64 MiB. What is left of a step is given
    /// back when the disk is closed, or when nothing was allocated for `need_check_ms`.
    pub fn grow_step(mut self, bytes: u64) -> Self {
        self.grow_step = bytes;
        self
    }

    /// Growing allocates host blocks (fallocate) instead of leaving a hole; default on. A file system that
    /// cannot gets the hole.
    pub fn allocate_ahead(mut self, allocate: bool) -> Self {
        self.allocate_ahead = allocate;
        self
    }

    /// Dirty mappings are committed this many milliseconds after the first change, if no flush comes before;
    /// default 1000. A timer of [`Driver::next_timeout`](crate::Driver::next_timeout).
    pub fn commit_ms(mut self, ms: u32) -> Self {
        self.commit_ms = ms;
        self
    }

    /// QED's need-check bit is cleared after this many milliseconds without allocation; default 5000.
    pub fn need_check_ms(mut self, ms: u32) -> Self {
        self.need_check_ms = ms;
        self
    }

    /// Control blocks: extents in progress at once, per layer; default 256, at least 1. A request that needs
    /// more goes on as they become free.
    pub fn acbs(mut self, acbs: u32) -> Self {
        self.acbs = acbs.max(1);
        self
    }

    /// The external data file of the image (qcow2), instead of the one that it names; the gate is not asked.
    /// Means nothing for an image that has none.
    pub fn data_file(mut self, path: impl AsRef<Path>) -> Self {
        self.data_file = Some(path.as_ref().to_path_buf());
        self
    }

    /// Which files may be opened as a backing or data file; none by default ([`DenyBacking`]). It is asked
    /// inside [`Driver::turn`](crate::Driver::turn), once a name, from the image down, and must not block.
    /// Options that are cloned share the gate.
    pub fn open_gate(mut self, gate: impl OpenGate + Send + 'static) -> Self {
        self.open_gate = Arc::new(Mutex::new(gate));
        self
    }

    /// As [`OpenOptions::open_gate`], with a closure: the image and the name as it stands there in, the file
    /// to open out.
    pub fn open_gate_fn(self, gate: impl FnMut(&Named<'_>) -> Option<PathBuf> + Send + 'static) -> Self {
        self.open_gate(gate)
    }

    /// Do not open the backing file at all: what the image does not hold reads as zeros. For tools; default
    /// off.
    pub fn no_backing(mut self, no_backing: bool) -> Self {
        self.follow_backing = !no_backing;
        self
    }

    /// The disk as it was when this snapshot in the image was taken (qcow2), of the size that it had then, to
    /// be read: options that are to write as well are refused. Its backing file is the image's, as it is now.
    /// None, the default: the disk as it is.
    pub fn snapshot(mut self, snapshot: Option<SnapshotSelector>) -> Self {
        self.snapshot = snapshot;
        self
    }

    /// Layers a disk may have, the image itself included; default 32, at least 1. An image of a longer chain
    /// is [`ErrorKind::TooDeep`](crate::ErrorKind::TooDeep).
    pub fn max_depth(mut self, depth: u32) -> Self {
        self.max_depth = depth.max(1);
        self
    }

    /// Compressed writes with deflate refer back over 4 KiB at most, as QEMU's do, and not over the 32 KiB
    /// that deflate allows; default off. For readers that know no more: QEMU, 7-Zip and libqcow do,
    /// dissect.hypervisor does not. It takes more time, and makes longer clusters.
    pub fn near_window(mut self, near: bool) -> Self {
        self.near_window = near;
        self
    }

    /// Transfers keep to blocks of so many bytes at least, with all files of the disk, as they do with
    /// O_DIRECT on a device of such blocks; default 1: to what each file asks for. For stores that do less
    /// well than they say. A power of two, 64 KiB at most; others count as the next that is.
    pub fn align(mut self, bytes: u32) -> Self {
        self.align = bytes.clamp(1, 64 << 10).next_power_of_two();
        self
    }

    /// Removes rules: a set of `quod_states::Rule` bits. For the proof that their absence is noticed.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(mut self, rules: u128) -> Self {
        self.sabotage = rules;
        self
    }

    /// Asks the gate.
    pub(crate) fn ask_gate(&self, named: &Named<'_>) -> Option<Allowed> {
        self.open_gate.lock().unwrap_or_else(PoisonError::into_inner).give(named)
    }

    /// The machine's settings for the layer at `depth` (0: the image) in this file, with this alignment.
    pub(crate) fn core(&self, config: &Config, depth: usize, stat: &Stat, align: u32) -> Options {
        // a deeper layer serves the extents of the layer above it: each acb reads at most data, head fill and
        // tail fill
        let requests = if depth == 0 { config.requests } else { self.acbs.saturating_mul(3) };
        let options = Options::default()
            .requests(requests)
            .acbs(self.acbs)
            .cache_bytes(self.cache_bytes)
            .align(align)
            .policy(self.policy)
            .allocation_gate(self.allocation_gate)
            .read_only(depth > 0 || !self.write)
            .commit_ms(self.commit_ms)
            .need_check_ms(self.need_check_ms)
            .grow_step(self.grow_step)
            .fixed_len(stat.block_device)
            .trace(config.trace);
        #[cfg(feature = "sabotage")]
        let options = options.sabotage(self.sabotage);
        options
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("write", &self.write)
            .field("direct", &self.direct)
            .field("format", &self.format)
            .field("lock", &self.lock)
            .field("policy", &self.policy)
            .field("allocation_gate", &self.allocation_gate)
            .finish_non_exhaustive()
    }
}
