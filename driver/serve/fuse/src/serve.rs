//! The loop: the descriptors of the driver, of the mount, and of whoever asks for the end, on one thread.
//!
//! Knows: descriptors, readiness, the order of an end. Must never know: layouts of messages, images.
//! Invariants: nothing blocks but the loop's own wait; requests that were taken are answered before the disk
//! is closed, and those that were not are left to the kernel, which ends them; an end is reached however busy
//! the clients are.

use crate::error::MountError;
use crate::file::{Answered, Ended, File};
use crate::limits::TRANSFER;
use crate::message::{HEAD, Message, Op, attributes_have_changed};
use crate::mounted::Mounted;
use crate::pool::Pool;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use quod::{Buffer, Buffers, Driver, Error};
use quod_door::Control;
use rustix::io::Errno;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of a write that are left where they came: fewer are copied, so that they do not hold the memory of a
/// whole transfer.
const AS_THEY_CAME: usize = 64 << 10;
/// Requests that are taken before what has ended is answered.
const BATCH: usize = 32;
/// How long clients that go on asking are answered after an end was asked for.
const PATIENCE: Duration = Duration::from_secs(5);

const DRIVER: Token = Token(0);
const KERNEL: Token = Token(1);
const STOP: Token = Token(2);
/// The first of the control's.
const CONTROL: Token = Token(16);

/// The kernel's side of the mount.
struct Kernel {
    fd: OwnedFd,
    head: [u8; HEAD],
    /// What is behind the head: the bytes of a write.
    body: Buffer,
    /// It may have more.
    readable: bool,
    /// It is unmounted: nothing comes any more.
    gone: bool,
    /// It may be: a read tells.
    failing: bool,
}

/// What the kernel had.
enum Received {
    Request(usize),
    Nothing,
}

impl Kernel {
    fn new(fd: OwnedFd) -> Kernel {
        let body = Buffer::zeroed(TRANSFER);
        Kernel { fd, head: [0; HEAD], body, readable: true, gone: false, failing: false }
    }

    fn receive(&mut self) -> Result<Received, MountError> {
        loop {
            let parts = &mut [IoSliceMut::new(&mut self.head), IoSliceMut::new(self.body.as_mut_slice())];
            match rustix::io::readv(&self.fd, parts) {
                Ok(len) => return Ok(Received::Request(len)),
                // one that was taken back while it was on its way
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::NODEV) => (self.readable, self.gone) = (false, true),
                Err(error) => return Err(MountError::Wait(error.into())),
            }
            if !self.readable {
                return Ok(Received::Nothing);
            }
        }
    }

    /// The bytes of a write, which are behind the head: so many.
    fn payload(body: &mut Buffer, got: usize, pool: &mut Pool, len: usize) -> Option<Buffers> {
        let whole = got.checked_sub(HEAD).is_some_and(|bytes| len <= bytes && len <= TRANSFER);
        if !whole {
            return None;
        }
        if len >= AS_THEY_CAME {
            let came = std::mem::replace(body, pool.take(TRANSFER));
            return Some(Buffers::Front(came, len));
        }
        let mut buffer = pool.take(len);
        buffer.as_mut_slice().copy_from_slice(&body.as_slice()[..len]);
        Some(buffer.into())
    }

    /// The file's attributes are not what the kernel knows.
    fn tell_of_change(&self) {
        let (bytes, len) = attributes_have_changed();
        // a kernel that has forgotten the file asks anyway
        if let Err(error) = rustix::io::write(&self.fd, &bytes[..len])
            && error != Errno::NOENT
        {
            tracing::warn!("the kernel was not told of the new size: {error}");
        }
    }

    fn send(&self, answer: &Answered) -> Result<(), MountError> {
        let (bytes, len) = answer.reply.write(answer.unique);
        let data = answer.data.as_ref().map_or(&[][..], Buffer::as_slice);
        match rustix::io::writev(&self.fd, &[IoSlice::new(&bytes[..len]), IoSlice::new(data)]) {
            // nobody waits for it any more
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(error) => Err(MountError::Wait(error.into())),
        }
    }
}

/// A mounted disk that is served.
pub struct Serving {
    file: File,
    mounted: Mounted,
    kernel: Kernel,
    poll: Poll,
    events: Events,
    stop: Option<OwnedFd>,
    control: Option<Control>,
    /// Until when clients are answered that go on asking.
    until: Option<Instant>,
}

impl Serving {
    pub fn new(mut file: File, mounted: Mounted, fd: OwnedFd) -> Result<Serving, MountError> {
        let poll = Poll::new().map_err(MountError::Wait)?;
        let mut register = |poll: &Poll| {
            poll.registry().register(&mut file.driver, DRIVER, Interest::READABLE)?;
            poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), KERNEL, Interest::READABLE)
        };
        register(&poll).map_err(MountError::Wait)?;
        let kernel = Kernel::new(fd);
        let (events, stop, control, until) = (Events::with_capacity(64), None, None, None);
        Ok(Serving { file, mounted, kernel, poll, events, stop, control, until })
    }

    /// An end is asked for when this is readable.
    pub fn stop_when_readable(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), STOP, Interest::READABLE)?;
        self.stop = Some(fd);
        Ok(())
    }

    /// See [`Mount::use_control`](crate::Mount::use_control).
    pub fn use_control(&mut self, mut control: Control) -> io::Result<()> {
        control.register(self.poll.registry(), CONTROL)?;
        self.control = Some(control);
        Ok(())
    }

    pub fn mounted(&mut self) -> &mut Mounted {
        &mut self.mounted
    }

    pub fn driver(&mut self) -> &mut Driver {
        &mut self.file.driver
    }

    /// Serves until the mount has gone, or an end was asked for; then closes the disk.
    pub fn run(mut self, report: &mut dyn FnMut(&Error)) -> Result<(), MountError> {
        let served = self.serve(report);
        if served.is_err() {
            self.give_up();
        }
        if let Some(control) = &mut self.control {
            control.end(&mut self.file);
        }
        let closed = self.close(report).map_err(|error| match error {
            MountError::Driver(error) => MountError::Close(error),
            other => other,
        });
        let ended = served.and(closed);
        if let Some(control) = self.control.take() {
            control.finish(ended.as_ref().copied().map_err(ToString::to_string));
        }
        // the last descriptors of the mount go here: the kernel ends what it still has
        ended
    }

    /// Nothing can be done any more: whoever asks is told so, until nobody finds the file. The unmount itself
    /// may ask, so that it would never end without answers.
    fn give_up(&mut self) {
        self.mounted.begin_to_leave();
        for answer in self.file.abandon() {
            let _ = self.kernel.send(&answer);
        }
        while !self.mounted.has_left() && !self.kernel.gone {
            self.kernel.readable = true;
            match self.kernel.receive() {
                Ok(Received::Request(got)) => {
                    let message = Message::read(&self.kernel.head[..got.min(HEAD)]);
                    if let Some(answer) = message.and_then(File::refuse) {
                        let _ = self.kernel.send(&answer);
                    }
                }
                Ok(Received::Nothing) => std::thread::sleep(Duration::from_millis(1)),
                Err(_) => return,
            }
        }
    }

    /// Answers what is under way, commits and closes.
    fn close(&mut self, report: &mut dyn FnMut(&Error)) -> Result<(), MountError> {
        let mut asked = false;
        loop {
            if self.file.is_idle() && !asked {
                self.file.close()?;
                asked = true;
            }
            self.file.driver.wait(None)?;
            while let Some(done) = self.file.driver.next_completion() {
                match self.file.ended(done, report) {
                    Ended::Closed(result) => return Ok(result?),
                    Ended::Answer(answer) => self.kernel.send(&answer)?,
                    Ended::Nothing => {}
                }
            }
        }
    }

    fn serve(&mut self, report: &mut dyn FnMut(&Error)) -> Result<(), MountError> {
        loop {
            // in this order a request that is taken is handed over by the turn that was due anyway
            self.take()?;
            self.file.driver.turn()?;
            self.answer(report)?;
            self.turn_control();
            if self.has_ended() {
                return Ok(());
            }
            self.rest()?;
        }
    }

    fn turn_control(&mut self) {
        let Some(control) = &mut self.control else { return };
        let stop = control.turn(&mut self.file);
        if stop {
            self.begin_to_end();
        }
    }

    /// An end was asked for.
    fn begin_to_end(&mut self) {
        if self.until.is_some() {
            return;
        }
        tracing::info!("the mount is ending");
        if let Some(control) = &mut self.control {
            control.end(&mut self.file);
        }
        self.until = Some(Instant::now() + PATIENCE);
        self.mounted.begin_to_leave();
    }

    /// Sends what has ended.
    fn answer(&mut self, report: &mut dyn FnMut(&Error)) -> Result<(), MountError> {
        while let Some(done) = self.file.driver.next_completion() {
            if let Some(control) = self.control.as_mut().filter(|_| Control::is_own(done.user)) {
                control.ended(done.user, done.result, &mut self.file);
                // before whoever has asked for it hears of it
                if self.file.take_change() {
                    self.kernel.tell_of_change();
                }
                continue;
            }
            if let Ended::Answer(answer) = self.file.ended(done, report) {
                self.kernel.send(&answer)?;
                answer.data.into_iter().for_each(|buffer| self.file.pool.give(buffer));
            }
        }
        Ok(())
    }

    /// Takes requests, as many as there is room for.
    fn take(&mut self) -> Result<(), MountError> {
        for _ in 0..BATCH {
            let held = self.file.is_held() && !self.kernel.failing;
            if !self.kernel.readable || self.file.is_full() || held {
                break;
            }
            let Received::Request(got) = self.kernel.receive()? else { break };
            let head = &self.kernel.head[..got.min(HEAD)];
            // the kernel speaks no nonsense; what is none of its requests cannot be answered
            let Some(message) = Message::read(head) else { continue };
            let body = &mut self.kernel.body;
            let mut payload = |pool: &mut Pool, len| Kernel::payload(body, got, pool, len);
            if let Some(answer) = self.file.take(message, &mut payload) {
                self.kernel.send(&answer)?;
            }
            if message.op == Op::Destroy {
                (self.kernel.readable, self.kernel.gone) = (false, true);
            }
        }
        Ok(())
    }

    /// Nobody is left to answer, or those that are have had their time.
    fn has_ended(&self) -> bool {
        let quiet = || !self.kernel.readable && self.file.is_idle();
        let late = || self.until.is_some_and(|until| until <= Instant::now());
        self.kernel.gone || self.mounted.has_left() && (quiet() || late())
    }

    /// Waits for something to happen.
    fn rest(&mut self) -> Result<(), MountError> {
        let held = self.file.is_held() && !self.kernel.failing;
        let more = self.kernel.readable && !self.file.is_full() && !held;
        // while an unmount is under way nothing announces its end
        let most = self.until.map(|_| Duration::from_millis(5));
        let control = self.control.as_ref().and_then(Control::timeout);
        let timeout = match more {
            true => Some(Duration::ZERO),
            false => [self.file.driver.next_timeout(), control, most].into_iter().flatten().min(),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(MountError::Wait(error)),
            _ => {}
        }
        let mut stop = false;
        for event in &self.events {
            match event.token() {
                KERNEL => {
                    self.kernel.readable = !self.kernel.gone;
                    self.kernel.failing |= event.is_error();
                }
                STOP => stop = true,
                token if token >= CONTROL => {
                    if let Some(control) = &mut self.control {
                        control.ready(event);
                    }
                }
                _ => {}
            }
        }
        if stop {
            self.begin_to_end();
        }
        Ok(())
    }
}
