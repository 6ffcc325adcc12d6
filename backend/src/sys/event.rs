//! An eventfd: how workers and the ring wake the embedder's event loop.
//!
//! Invariant: no call blocks except [`EventFd::sleep`], which only `Backend::wait` and `Pool::sleep` use.

use super::call::last_errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Makes it readable. A counter that is full already is readable, so failure does not matter.
    pub(crate) fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes.
        let _ = unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it unreadable.
    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight writable bytes.
        let _ = unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    /// Blocks until it is readable, `timeout` ran out, or a signal came.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let spec = timeout.map(|t| libc::timespec {
            tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: one pollfd, a timespec or null, no signal mask.
        let result = unsafe { libc::ppoll(&raw mut poll, 1, spec, std::ptr::null()) };
        match result {
            0.. => Ok(()),
            _ if last_errno().0 == libc::EINTR => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl From<OwnedFd> for EventFd {
    /// `fd` must be an eventfd that does not block.
    fn from(fd: OwnedFd) -> EventFd {
        EventFd { fd }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
