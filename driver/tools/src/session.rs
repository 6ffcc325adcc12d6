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

/// A blocking convenience over [`Driver`] for one disk.
pub struct Session {
    driver: Driver,
    disk: DiskId,
    /// Of a disk that may be written and was guessed to be raw.
    first: Option<FirstSector>,
    /// What ended while something else was waited for.
    ended: Vec<Completion>,
}

impl Session {
    /// Opens an image.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Session, Error> {
        Session::with_config(path, options, Config::default())
    }

    /// Opens an image with a driver of this configuration.
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

    /// Runs one request to its end. Of what was submitted besides, nothing may have its `user` value.
    pub fn run(&mut self, request: Request) -> Result<Completion, Error> {
        let user = request.user;
        self.submit(request)?;
        self.wait_for(user)
    }

    /// Waits for the end of a request that was submitted with this `user` value. What ends meanwhile is in
    /// [`Session::take_ended`].
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
    pub fn turn(&mut self) -> Result<(), Error> {
        self.driver.turn()?;
        self.collect();
        Ok(())
    }

    /// Waits until something has happened.
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
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let done = self.run(Request::read(offset, Buffer::zeroed(bytes.len()), 0))?;
        if let Some(buffers) = done.kind.buffers() {
            buffers.copy_to(bytes);
        }
        Ok(())
    }

    /// Writes `bytes` from `offset` on.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.run(Request::write(offset, Buffer::from(bytes), 0)).map(drop)
    }

    /// The range reads as zeros afterwards.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Error> {
        let request = Request::write_zeroes(offset, len, 0);
        self.run(if may_unmap { request.may_unmap() } else { request }).map(drop)
    }

    /// The range is not needed any more.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        self.run(Request::discard(offset, len, 0)).map(drop)
    }

    /// Everything written so far becomes durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run(Request::flush(0)).map(drop)
    }

    /// The first run of the range in this layer.
    pub fn map(&mut self, layer: usize, offset: u64, len: u64) -> Result<Extent, Error> {
        let done = self.run(Request::map(layer, offset, len, 0))?;
        done.kind.extent().ok_or(Error::Misuse("map gave no extent"))
    }

    /// Sets the size of the guest disk.
    pub fn resize(&mut self, len: u64) -> Result<(), Error> {
        self.run(Request::resize(len, 0)).map(drop)
    }

    /// The file becomes self-consistent.
    pub fn quiesce(&mut self) -> Result<(), Error> {
        self.run(Request::quiesce(0)).map(drop)
    }

    /// Finishes everything and closes the files.
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
