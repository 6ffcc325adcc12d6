//! The driver: one backend, many disks.
//!
//! Knows: disks, completions, time. Must never know: image formats, system calls.

use crate::any::AnyBackend;
use crate::config::{Config, OpenOptions};
use crate::error::Error;
use crate::hold::Hold;
use crate::request::{Completion, DiskId, DiskInfo, Refusal, Rejected, Request};
use crate::stats::Stats;
use quod_backend::Backend;
use quod_states::Transition;
use std::path::Path;
use std::time::Duration;

/// One step of one control block, with when and where.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TimedTransition {
    /// Whose.
    pub disk: DiskId,
    /// Which file of it: 0 is the image.
    pub layer: usize,
    /// On the backend's clock.
    pub at: Duration,
    /// What.
    pub transition: Transition,
}

/// See the crate's documentation.
pub struct Driver<B: Backend = AnyBackend> {
    backend: B,
    hold: Hold,
    config: Config,
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
        Driver { backend, hold: Hold::new(), config }
    }

    /// Starts to open an image and its backing files; ends as a completion of kind `Opened`.
    pub fn open(&mut self, path: impl AsRef<Path>, options: OpenOptions) -> Result<DiskId, Error> {
        let _ = (path.as_ref(), options, self.config);
        Err(Error::Busy)
    }

    /// Takes a request, or gives it back. Never blocks.
    pub fn submit(&mut self, disk: DiskId, request: Request) -> Result<(), Rejected> {
        let _ = disk;
        Err(Rejected { reason: Refusal::Busy, request })
    }

    /// Hands operations to the backend, takes what finished, fires timers. Never blocks.
    pub fn turn(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// As `turn`, but sleeps until something finished or `timeout` ran out. For tools and tests.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let _ = timeout;
        Ok(())
    }

    /// The next thing that ended.
    pub fn next_completion(&mut self) -> Option<Completion> {
        None
    }

    /// Call `turn` when this much time has passed, if not before.
    pub fn next_timeout(&self) -> Option<Duration> {
        None
    }

    /// Facts about a disk, once it is open.
    pub fn disk_info(&self, disk: DiskId) -> Option<&DiskInfo> {
        let _ = disk;
        None
    }

    /// How many files make up the disk; 0 if it is not open.
    pub fn layers(&self, disk: DiskId) -> usize {
        self.disk_info(disk).map_or(0, |info| info.layers.len())
    }

    /// What the disk has done.
    pub fn stats(&self, disk: DiskId) -> Option<Stats> {
        let _ = disk;
        None
    }

    /// How long calls into the driver held the thread.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Forgets the times measured so far.
    pub fn reset_hold(&mut self) {
        self.hold.reset();
    }

    /// Takes the recorded transitions (see [`Config::trace`]).
    pub fn drain_transitions(&mut self, sink: &mut dyn FnMut(TimedTransition)) {
        let _ = sink;
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, to change.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Nothing is in flight, nothing waits to be taken.
    pub fn idle(&self) -> bool {
        true
    }
}
