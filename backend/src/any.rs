//! The real backend that this host allows, without dynamic dispatch.
//!
//! Knows: which refusals mean "io_uring is not for you here". Must never know: how either works.

use crate::buffer::Segment;
use crate::op::{Completion, MemoryId, Op, Token};
use crate::{Backend, CpuSet, Full, Threads, Uring};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Which real backend to use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendKind {
    /// io_uring, or worker threads where the host refuses it.
    #[default]
    Auto,
    /// io_uring or an error (Linux 5.6 at least; the best mode of the ring is taken, which 6.1 has).
    Uring,
    /// Worker threads: 8 at most, which block all signals; each runs one operation at a time.
    Threads,
}

/// A real backend.
// there is one of it, and it does not move
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum AnyBackend {
    /// A ring.
    Uring(Uring),
    /// Workers.
    Threads(Threads),
}

/// A missing system call, a seccomp filter, `kernel.io_uring_disabled`, or a kernel too old for what we need.
fn refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

impl AnyBackend {
    /// A backend of this kind for `queue_depth` operations in flight.
    ///
    /// # Errors
    /// Of `Uring` what [`Uring::new`] says, of `Threads` what [`Threads::new`] says; of `Auto` io_uring's,
    /// unless the host refuses it.
    pub fn new(kind: BackendKind, queue_depth: u32) -> io::Result<AnyBackend> {
        AnyBackend::choose(kind, queue_depth, Uring::new)
    }

    /// The same, with a ring that does nothing but move bytes of open files, where the kernel can make one
    /// ([`Backend::is_restricted`] tells); otherwise with any.
    ///
    /// # Errors
    /// As of [`AnyBackend::new`].
    pub fn restricted(kind: BackendKind, queue_depth: u32) -> io::Result<AnyBackend> {
        AnyBackend::choose(kind, queue_depth, |depth| Uring::restricted(depth).or_else(|_| Uring::new(depth)))
    }

    fn choose(
        kind: BackendKind,
        depth: u32,
        uring: impl FnOnce(u32) -> io::Result<Uring>,
    ) -> io::Result<AnyBackend> {
        if kind == BackendKind::Threads {
            return Threads::new(depth).map(AnyBackend::Threads);
        }
        match uring(depth) {
            Ok(uring) => Ok(AnyBackend::Uring(uring)),
            Err(error) if kind == BackendKind::Auto && refused(&error) => {
                Threads::new(depth).map(AnyBackend::Threads)
            }
            Err(error) => Err(error),
        }
    }
}

macro_rules! either {
    ($self:ident, $backend:ident => $call:expr) => {
        match $self {
            AnyBackend::Uring($backend) => $call,
            AnyBackend::Threads($backend) => $call,
        }
    };
}

impl Backend for AnyBackend {
    #[inline]
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        either!(self, b => b.push(token, op))
    }

    #[inline]
    fn submit(&mut self) -> io::Result<()> {
        either!(self, b => b.submit())
    }

    #[inline]
    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        either!(self, b => b.reap(out))
    }

    fn submit_more(&mut self) -> io::Result<()> {
        either!(self, b => b.submit_more())
    }

    fn has_backlog(&self) -> bool {
        either!(self, b => b.has_backlog())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        either!(self, b => b.wait(timeout))
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        either!(self, b => b.notify_fd())
    }

    fn clear_notify(&mut self) {
        either!(self, b => b.clear_notify())
    }

    fn capacity(&self) -> usize {
        either!(self, b => b.capacity())
    }

    fn in_flight(&self) -> usize {
        either!(self, b => b.in_flight())
    }

    fn now(&self) -> Duration {
        either!(self, b => b.now())
    }

    fn name(&self) -> &'static str {
        either!(self, b => b.name())
    }

    fn is_restricted(&self) -> bool {
        either!(self, b => b.is_restricted())
    }

    fn renew_workers(&mut self) -> io::Result<()> {
        either!(self, b => b.renew_workers())
    }

    fn time_calls(&mut self, on: bool) {
        either!(self, b => b.time_calls(on))
    }

    fn take_syscall_nanos(&mut self) -> u64 {
        either!(self, b => b.take_syscall_nanos())
    }

    fn set_worker_cpus(&mut self, cpus: CpuSet) {
        either!(self, b => b.set_worker_cpus(cpus));
    }

    fn register_memory(&mut self, region: Segment) -> io::Result<MemoryId> {
        either!(self, b => b.register_memory(region))
    }

    fn register_memory_of(&mut self, other: &AnyBackend, id: MemoryId) -> io::Result<MemoryId> {
        match (self, other) {
            (AnyBackend::Uring(this), AnyBackend::Uring(other)) => this.register_memory_of(other, id),
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }

    fn unregister_memory(&mut self, id: MemoryId) -> bool {
        either!(self, b => b.unregister_memory(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusing(errno: i32) -> impl FnOnce(u32) -> io::Result<Uring> {
        move |_| Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn auto_takes_the_ring_where_there_is_one() {
        assert_eq!(AnyBackend::new(BackendKind::Auto, 8).unwrap().name(), "io_uring");
        assert_eq!(AnyBackend::new(BackendKind::Uring, 8).unwrap().name(), "io_uring");
        assert_eq!(AnyBackend::new(BackendKind::Threads, 8).unwrap().name(), "threads");
    }

    #[test]
    fn auto_falls_back_where_the_ring_is_refused_and_only_there() {
        for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES] {
            assert_eq!(AnyBackend::choose(BackendKind::Auto, 8, refusing(errno)).unwrap().name(), "threads");
            assert!(AnyBackend::choose(BackendKind::Uring, 8, refusing(errno)).is_err());
        }
        let old = |_| Err(io::Error::new(io::ErrorKind::Unsupported, "no such opcode"));
        assert_eq!(AnyBackend::choose(BackendKind::Auto, 8, old).unwrap().name(), "threads");
        // out of memory or descriptors is not a refusal
        for errno in [libc::ENOMEM, libc::EMFILE] {
            assert!(AnyBackend::choose(BackendKind::Auto, 8, refusing(errno)).is_err());
        }
    }
}
