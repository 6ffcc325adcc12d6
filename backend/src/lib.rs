//! Byte movers behind one trait: `uring` (io_uring), `threads` (a worker pool), `sim` (a deterministic,
//! faulty disk).
//!
//! Knows: files, offsets, memory segments, the operating system. Must never know: image formats, guests,
//! requests.
//!
//! Invariants:
//! * no call but [`Backend::wait`] ever blocks, and those of [`blocking`], which is for tools;
//! * every accepted operation completes exactly once, in any order;
//! * short transfers, EINTR, EAGAIN and partial submission end here: a completion is final;
//! * the number of operations in flight is bounded by [`Backend::capacity`].

#![warn(clippy::missing_errors_doc)]

pub mod any;
pub mod blocking;
pub mod buffer;
mod cpus;
pub mod op;
pub mod pool;
pub mod sim;
mod sys;
pub mod threads;
pub mod uring;

pub use any::{AnyBackend, BackendKind};
pub use buffer::{Buffer, Segment, Segments};
pub use cpus::CpuSet;
pub use op::{
    Completion, Errno, FileId, LockMode, MemoryId, Op, OpenFlags, Output, Proven, Stat, Store, Token,
};

pub use threads::Threads;
pub use uring::Uring;

use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The operation was not accepted because [`Backend::capacity`] operations are in flight; here it is back.
#[derive(Debug)]
pub struct Full(pub Op);

/// Moves bytes. See the crate's header for the invariants.
pub trait Backend {
    /// Queues an operation. Nothing happens before [`Backend::submit`].
    ///
    /// # Errors
    /// `capacity` operations are in flight: the operation comes back.
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full>;

    /// Hands queued operations to the kernel (or the workers), as far as a turn's portion goes, and collects
    /// what finished: one system call, none if there is nothing to do, and one more only for what a short
    /// transfer left over.
    ///
    /// # Errors
    /// The backend itself fails, no operation of it; [`uring::is_wrong_thread`] tells that of a strange
    /// thread.
    fn submit(&mut self) -> std::io::Result<()>;

    /// As `submit`, once more in the same turn of a loop, out of the same portion: a backend whose operations
    /// take their time while they are handed over limits what one turn hands over, and `submit` begins anew.
    ///
    /// # Errors
    /// As of [`Backend::submit`].
    fn submit_more(&mut self) -> std::io::Result<()> {
        self.submit()
    }

    /// Operations were left for the next `submit`, because what one turn may hand over is used up. The
    /// descriptor is readable until then.
    fn has_backlog(&self) -> bool {
        false
    }

    /// Takes finished operations: appends to `out`, returns how many. Does no system call.
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize;

    /// As `submit`, but sleeps until something finished or `timeout` ran out. For tools and tests, never for
    /// event loops.
    ///
    /// # Errors
    /// As of [`Backend::submit`].
    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()>;

    /// Becomes readable when something finished. An eventfd; never the ring itself (lost wake-ups with
    /// DEFER_TASKRUN).
    fn notify_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Makes `notify_fd` unreadable again; called before reaping to empty. The best order in an event loop is
    /// submit, clear, reap: submitting itself announces what it collected, and clearing afterwards saves that
    /// second wake-up. Every other order that clears before it reaps is safe too: nothing is ever lost.
    fn clear_notify(&mut self);

    /// How many operations may be in flight.
    fn capacity(&self) -> usize;

    /// How many are in flight.
    fn in_flight(&self) -> usize;

    /// Time since some fixed moment. Simulated disks simulate it.
    fn now(&self) -> Duration;

    /// Short name for reports: "io_uring", "threads", "sim".
    fn name(&self) -> &'static str;

    /// The kernel does nothing for it but what moves bytes of files that are open already.
    fn is_restricted(&self) -> bool {
        false
    }

    /// Its threads end, and others take their place when they are needed: these have whatever confines the
    /// calling thread by then, where it holds for one thread alone (Landlock).
    ///
    /// # Errors
    /// [`std::io::ErrorKind::ResourceBusy`] while a thread works; that one cannot be started.
    fn renew_workers(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    /// Measure the system calls of `submit` from now on; off at first.
    fn time_calls(&mut self, on: bool);

    /// Nanoseconds spent inside system calls of `submit` since the last call of this method: reported apart
    /// from our own time.
    fn take_syscall_nanos(&mut self) -> u64;

    /// Where threads that work for this backend run, the kernel's own included, as far as the host allows:
    /// said before the first submission. Those that were started before stay where they are.
    fn set_worker_cpus(&mut self, cpus: CpuSet) {
        let _ = cpus;
    }

    /// Registers long-lived memory, so that transfers inside it skip the pinning of its pages, where the
    /// backend and its host can do that; transfers work without, too. It must stay valid until it was taken
    /// back, or the backend was dropped.
    ///
    /// # Errors
    /// None changes anything: EOPNOTSUPP (this backend or host cannot), ENOMEM (more than
    /// the limit of locked memory, RLIMIT_MEMLOCK, allows), ENOSPC (over 1,024 regions, each GiB of a larger
    /// one being one), EFAULT and EINVAL (no memory), [`uring::is_wrong_thread`].
    fn register_memory(&mut self, region: Segment) -> std::io::Result<MemoryId>;

    /// Buffers that are made and registered before they are needed spare time later; not of a model of a
    /// disk, which lives for microseconds.
    fn is_model(&self) -> bool {
        false
    }

    /// As `register_memory`, of what `other`, a backend of the same process, has registered under `id`: the
    /// pages are not pinned, and not counted, once more, where the kernel can do that (Linux 6.13, and both
    /// are the same thread's). Each is taken back by itself.
    ///
    /// # Errors
    /// As of [`Backend::register_memory`]; ENOENT: `other` has nothing of this name.
    fn register_memory_of(&mut self, other: &Self, id: MemoryId) -> std::io::Result<MemoryId>
    where
        Self: Sized,
    {
        let _ = (other, id);
        Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    /// Takes it back: no operation in flight uses it. False: nothing of this name is registered.
    fn unregister_memory(&mut self, id: MemoryId) -> bool;
}
