//! One disk, blocking: a call waits for its completion; what was submitted besides may end meanwhile.
//!
//! Knows: the driver. Must never know: formats, but for raw that was guessed: its first sector is guarded.
//! Invariant: every completion that the session took is answered, or in `ended`, once.

use crate::first_sector::FirstSector;
use quod::{Completion, Config, DiskId, DiskInfo, Driver, Error, OpenOptions};
use quod::{Refusal, Rejected, Request, Stats};
use quod_backend::Buffer;
use quod_states::{Extent, Format};
use std::path::Path;

/// A blocking convenience over [`Driver`] for one disk, with a driver of its own. A call that waits takes as
/// long as the request; the driver's timers run only inside calls. Dropping it without [`Session::close`] is
/// like a power cut for the disk.
///
/// ```
/// use quod::{Buffer, Format, OpenOptions, Request};
/// use quod_tools::Session;
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qed");
/// # create(&path, &CreateOptions::new(Format::Qed, 1 << 30))?;
/// let mut session = Session::open(&path, OpenOptions::new().write(true))?;
/// session.write(1000, b"written")?;
/// session.flush()?;
/// let mut bytes = [0; 7];
/// session.read(1000, &mut bytes)?;
/// assert_eq!(&bytes, b"written");
/// // several at once: each has a `user` of its own
/// for user in 1..=3 {
///     session.submit(Request::read(user << 20, Buffer::zeroed(4096), user))?;
/// }
/// for user in 1..=2 {
///     assert!(session.wait_for(user)?.kind.buffers().is_some());
/// }
/// session.close()?; // the third ends before it does
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Session {
    driver: Driver,
    disk: DiskId,
    /// Of a disk that may be written and was guessed to be raw.
    first: Option<FirstSector>,
    /// What ended while something else was waited for.
    ended: Vec<Completion>,
}

impl Session {
    /// Opens an image, with a driver of the default configuration.
    ///
    /// # Errors
    /// Those of [`Driver::new`], and the result of [`Driver::open`].
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Session, Error> {
        Session::with_config(path, options, Config::default())
    }

    /// Opens an image with a driver of this configuration.
    ///
    /// # Errors
    /// As of [`Session::open`].
    pub fn with_config(
        path: impl AsRef<Path>,
        options: OpenOptions,
        config: Config,
    ) -> Result<Session, Error> {
        let guess = options.probes_for_writing();
        let mut driver = Driver::new(config)?;
        let disk = driver.open(path.as_ref(), options)?;
        let mut session = Session { driver, disk, first: None, ended: Vec::new() };
        session.next()?.result?;
        if let Some(info) = session.info().filter(|info| guess && info.format() == Format::Raw) {
            let mut bytes = vec![0; info.virtual_size().min(512) as usize];
            session.read(0, &mut bytes)?;
            session.first = Some(FirstSector::new(path.as_ref(), &bytes));
        }
        Ok(session)
    }

    /// The next thing that ends.
    fn next(&mut self) -> Result<Completion, Error> {
        loop {
            if let Some(done) = self.driver.next_completion() {
                return Ok(done);
            }
            if self.driver.idle() {
                return Err(Error::Closed);
            }
            self.driver.wait(None)?;
        }
    }

    /// Runs one request to its end. Of what was submitted besides, nothing may have its `user` value. The
    /// methods below that read, write and so on do this, with a `user` of 0.
    ///
    /// # Errors
    /// Why it was refused, or how it ended; its buffers are dropped then.
    pub fn run(&mut self, request: Request) -> Result<Completion, Error> {
        let user = request.user;
        self.submit(request)?;
        self.wait_for(user)
    }

    /// Waits for the end of a request that was submitted with this `user` value. What ends meanwhile is in
    /// [`Session::take_ended`].
    ///
    /// # Errors
    /// How it ended; [`Error::Closed`] if nothing is left that could end.
    pub fn wait_for(&mut self, user: u64) -> Result<Completion, Error> {
        loop {
            let done = self.next()?;
            if done.user != user {
                self.ended.push(done);
                continue;
            }
            return match &done.result {
                Ok(()) => Ok(done),
                Err(error) => Err(error.clone()),
            };
        }
    }

    /// Looks whether something has ended, without waiting.
    ///
    /// # Errors
    /// As of [`Driver::turn`].
    pub fn turn(&mut self) -> Result<(), Error> {
        self.driver.turn()?;
        self.collect();
        Ok(())
    }

    /// Waits until something has happened.
    ///
    /// # Errors
    /// As of [`Driver::turn`].
    pub fn wait(&mut self) -> Result<(), Error> {
        self.driver.wait(None)?;
        self.collect();
        Ok(())
    }

    fn collect(&mut self) {
        while let Some(done) = self.driver.next_completion() {
            self.ended.push(done);
        }
    }

    /// What ended while something else was waited for, in the order in which it ended.
    pub fn take_ended(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.ended)
    }

    /// Submits a request whose completion is taken from the driver, or waited for. On a disk that was guessed
    /// to be raw, a write that would make another format of it is refused with EPERM; a request that goes to
    /// [`Session::driver`] directly is not looked at.
    ///
    /// # Errors
    /// As of [`Driver::submit`].
    #[allow(clippy::result_large_err, reason = "a rejected request gives its buffers back")]
    pub fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if let Some(Err(error)) = self.first.as_mut().map(|first| first.admit(&request)) {
            return Err(Rejected { reason: Refusal::Error(error), request });
        }
        self.driver.submit(self.disk, request)
    }

    /// Of a disk that may be written, whose format was not given and was taken for raw: what is to be asked
    /// about requests that go to the driver without [`Session::submit`].
    pub fn first_sector(&self) -> Option<&FirstSector> {
        self.first.as_ref()
    }

    /// Reads into `bytes` from `offset` on.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let done = self.run(Request::read(offset, Buffer::zeroed(bytes.len()), 0))?;
        if let Some(buffers) = done.kind.buffers() {
            buffers.copy_to(bytes);
        }
        Ok(())
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.run(Request::write(offset, Buffer::from(bytes), 0)).map(drop)
    }

    /// The range reads as zeros afterwards.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Error> {
        let request = Request::write_zeroes(offset, len, 0);
        self.run(if may_unmap { request.may_unmap() } else { request }).map(drop)
    }

    /// The range is not needed any more.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        self.run(Request::discard(offset, len, 0)).map(drop)
    }

    /// Everything written so far becomes durable.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run(Request::flush(0)).map(drop)
    }

    /// The first run of the range in this layer.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn map(&mut self, layer: usize, offset: u64, len: u64) -> Result<Extent, Error> {
        let done = self.run(Request::map(layer, offset, len, 0))?;
        done.kind.extent().ok_or(Error::Misuse("map gave no extent"))
    }

    /// Sets the size of the guest disk.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn resize(&mut self, len: u64) -> Result<(), Error> {
        self.run(Request::resize(len, 0)).map(drop)
    }

    /// The file becomes self-consistent.
    ///
    /// # Errors
    /// As of [`Session::run`].
    pub fn quiesce(&mut self) -> Result<(), Error> {
        self.run(Request::quiesce(0)).map(drop)
    }

    /// Finishes everything and closes the files. What else ended is dropped.
    ///
    /// # Errors
    /// As of [`Session::run`]; the files are closed all the same.
    pub fn close(mut self) -> Result<(), Error> {
        self.run(Request::close(0)).map(drop)
    }

    /// Facts about the disk.
    pub fn info(&self) -> Option<&DiskInfo> {
        self.driver.disk_info(self.disk)
    }

    /// What the disk has done.
    pub fn stats(&self) -> Option<Stats> {
        self.driver.stats(self.disk)
    }

    /// The disk's name.
    pub fn disk(&self) -> DiskId {
        self.disk
    }

    /// The driver beneath, to be waited for beside other things.
    pub fn as_driver(&self) -> &Driver {
        &self.driver
    }

    /// The driver beneath.
    pub fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }
}
