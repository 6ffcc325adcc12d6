//! Glue for event loops: mio's `event::Source`, and `AsFd` for epoll, poll, or anything else.
//!
//! Knows: the backend's notification descriptor. Must never know: what it tells about.
//!
//! The loop: wait until the descriptor is readable or [`Driver::next_timeout`] has passed; call
//! [`Driver::turn`]; take everything from [`Driver::next_completion`]; submit; call `turn` again if something
//! was submitted. A wake is a hint: it may come early or without cause, and `turn` clears it before it reaps
//! to empty, so none is lost, edge-triggered (mio) or level-triggered.

use crate::driver::Driver;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use quod_backend::Backend;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

impl<B: Backend> Driver<B> {
    fn notify(&self) -> io::Result<RawFd> {
        match self.backend().notify_fd() {
            Some(fd) => Ok(fd.as_raw_fd()),
            None => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this backend has no descriptor to wait for"))
            }
        }
    }
}

impl<B: Backend> Source for Driver<B> {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.notify()?).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.notify()?).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.notify()?).deregister(registry)
    }
}

impl<B: Backend> AsFd for Driver<B> {
    /// # Panics
    /// If the backend has no descriptor: only the simulated disk, which no event loop waits for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.backend().notify_fd() {
            Some(fd) => fd,
            None => panic!("the {} backend has no descriptor to wait for", self.backend().name()),
        }
    }
}
