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

/// The descriptor that an event loop waits for, until it is readable. It is an eventfd of the driver's, the
/// same one for as long as it lives; [`Driver::turn`] empties it. Edge-triggered or level-triggered is the
/// same.
///
/// ```
/// use quod::{Config, Driver, OpenOptions};
/// use std::os::fd::AsFd;
/// use tokio::io::unix::AsyncFd;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// // on a runtime of one thread, or in a `LocalSet`: the driver stays on its thread
/// let mut driver = Driver::new(Config::default())?;
/// // SAFETY: an owned descriptor is open, and the same one, until it is dropped.
/// let ready = unsafe { AsyncFd::register(driver.as_fd().try_clone_to_owned()?) }?;
/// let disk = driver.open(&path, OpenOptions::new())?;
/// let opened = loop {
///     driver.turn()?;
///     if let Some(done) = driver.next_completion() {
///         break done;
///     }
///     let timeout = driver.next_timeout();
///     tokio::select! {
///         guard = ready.readable() => guard?.clear_ready(), // `turn` empties the eventfd
///         () = tokio::time::sleep(timeout.unwrap_or_default()), if timeout.is_some() => {}
///     }
/// };
/// assert_eq!(opened.disk, disk);
/// # opened.result?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

    /// As [`AsFd`](std::os::fd::AsFd) of the driver; `Interest::READABLE` is what to ask for.
    ///
    /// ```
    /// use mio::{Events, Interest, Poll, Token};
    /// use quod::{Config, Driver, OpenOptions};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("disk.qcow2");
    /// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20))?;
    /// let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(16));
    /// let mut driver = Driver::new(Config::default())?;
    /// poll.registry().register(&mut driver, Token(0), Interest::READABLE)?;
    /// driver.open(&path, OpenOptions::new())?;
    /// let opened = loop {
    ///     driver.turn()?;
    ///     if let Some(done) = driver.next_completion() {
    ///         break done;
    ///     }
    ///     match poll.poll(&mut events, driver.next_timeout()) {
    ///         // a ring that another driver of this thread had may end a wait, without any signal
    ///         Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
    ///         polled => polled?,
    ///     }
    /// };
    /// # opened.result?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What registering with epoll(7) gives: EEXIST twice, ENOENT without.
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
