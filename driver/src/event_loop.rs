//! Glue for event loops: mio's `event::Source`, and `AsFd` for epoll, poll, or anything else.
//!
//! Knows: the backend's notification descriptor. Must never know: what it tells about.
//!
//! The loop: wait until the descriptor is readable or [`Driver::next_timeout`] has passed; call
//! [`Driver::turn`]; take everything from [`Driver::next_completion`]; submit; call `turn` again if something
//! was submitted. A wake is a hint: it may come early or without cause, and `turn` clears it before it reaps
//! to empty, so none is lost, edge-triggered (mio) or level-triggered.

use crate::driver::Driver;
use quod_backend::Backend;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

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

impl<B: Backend> AsRawFd for Driver<B> {
    /// The descriptor of [`AsFd`], as a number; the driver keeps it.
    ///
    /// # Panics
    /// As [`AsFd::as_fd`] of the driver.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(feature = "mio")]
mod source {
    use crate::driver::Driver;
    use mio::event::Source;
    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use quod_backend::Backend;
    use std::io;
    use std::os::fd::{AsRawFd, RawFd};

    fn notify<B: Backend>(driver: &Driver<B>) -> io::Result<RawFd> {
        match driver.backend().notify_fd() {
            Some(fd) => Ok(fd.as_raw_fd()),
            None => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this backend has no descriptor to wait for"))
            }
        }
    }

    impl<B: Backend> Source for Driver<B> {
        fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
            SourceFd(&notify(self)?).register(registry, token, interests)
        }

        fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
            SourceFd(&notify(self)?).reregister(registry, token, interests)
        }

        fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
            SourceFd(&notify(self)?).deregister(registry)
        }
    }
}
