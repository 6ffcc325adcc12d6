//! The loop: the listener, the front end's socket, kicks of rings and the driver, on one thread.
//!
//! Knows: who is ready, in which order things are done. Must never know: what a request means, layouts.
//!
//! Invariants: nothing blocks but the loop's own wait, and the opening and closing of the image before and
//! after it; a ring is taken down, and memory changed, only when nothing of it is under way; one front end
//! is served at a time, the next one when all that the last one asked for has ended.

use crate::blk::{Facts, ID, SECTOR};
use crate::connection::{Connection, Heard, Quiet};
use crate::disk::{Disk, Name};
use crate::error::VhostError;
use crate::memory::{Memory, Registered};
use crate::ring::{Fault, Ring};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use quod::{CompletionKind, Config, DiskId, DiskInfo, Driver, Error, Format, OpenOptions, Policy, Request};
use quod_door::{Control, Listener, Socket};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net;
use std::path::Path;
use std::time::Duration;

const DRIVER: Token = Token(0);
const STOP: Token = Token(1);
const LISTENER: Token = Token(2);
const FRONT: Token = Token(3);
/// The first ring's.
const RINGS: usize = 16;
/// The first of the control's, behind those of the rings.
const CONTROL: Token = Token(1024);
/// Rings, at most: a message has one byte for the number of one.
const RINGS_MAX: u16 = 256;
/// Requests that are taken from a ring before the next one comes to its turn.
const BATCH: usize = 128;
/// Messages that are handled in a turn.
const MESSAGES: usize = 64;
/// A front end is let in so long after one could not be.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How an image is served.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    open: OpenOptions,
    config: Config,
    queues: u16,
    register: bool,
}

impl DeviceOptions {
    /// `open` says how the image is opened: guests may write if the image can be written.
    pub fn new(open: OpenOptions) -> DeviceOptions {
        let config = Config::default().requests(512).queue_depth(512);
        DeviceOptions { open, config, queues: 64, register: false }
    }

    /// Of the driver; default 512 requests, and as deep a queue.
    pub fn config(self, config: Config) -> DeviceOptions {
        DeviceOptions { config, ..self }
    }

    /// Rings that a front end may use, 1 to 256; default 64. QEMU wants as many as its guest has processors,
    /// if it is not told otherwise. They are all served by one thread.
    pub fn queues(self, queues: u16) -> DeviceOptions {
        DeviceOptions { queues: queues.clamp(1, RINGS_MAX), ..self }
    }

    /// The guest's memory is registered with the driver's ring ([`Driver::register_memory`]): transfers skip
    /// the pinning of its pages. All of the memory is locked then, for as long as the front end is connected.
    /// Off by default, because of a promise that only whoever starts the guest can keep: no page of the
    /// memory is given up meanwhile. A balloon, free page reporting or virtio-mem would do that, and the
    /// guest would lose data.
    pub fn register_memory(self, register: bool) -> DeviceOptions {
        DeviceOptions { register, ..self }
    }
}

/// An image that is served. Dropped, it is as by a power cut: see [`Device::run`].
pub struct Device {
    poll: Poll,
    // the driver is in it, and goes before the memory does
    disk: Disk,
    rings: Vec<Option<Ring>>,
    /// Rings that may have something.
    woken: Vec<bool>,
    heads: Vec<u16>,
    connection: Option<Connection>,
    /// Messages may have come.
    hears: bool,
    /// What a message waits for: nothing more of it is begun.
    waiting: Quiet,
    /// The connection has ended: what is under way is waited for.
    leaving: bool,
    registered: Registered,
    memory: Memory,
    register: bool,
    listener: Listener,
    control: Option<Control>,
    /// Somebody may wait to be served.
    calls: bool,
    stop: Option<OwnedFd>,
    ending: bool,
    info: DiskInfo,
}

/// What names the disk to a guest, as long as it is served: where its file is.
fn id_of(path: &Path) -> [u8; ID] {
    let (device, inode) = std::fs::metadata(path).map_or((0, 0), |file| (file.dev(), file.ino()));
    let text = format!("quod-{:07x}{:08x}", device & 0xfff_ffff, inode & 0xffff_ffff);
    let mut id = [0; ID];
    id.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    id
}

fn open(driver: &mut Driver, path: &Path, options: OpenOptions) -> Result<(DiskId, DiskInfo), VhostError> {
    let guesses = options.probes_for_writing();
    // a guest does not see that its server is killed: what was answered is in the file then, its place in the
    // image's tables too
    let options = options.policy(Policy::Writethrough);
    let disk = driver.open(path, options).map_err(VhostError::Open)?;
    let done = loop {
        if let Some(done) = driver.next_completion() {
            break done;
        }
        driver.wait(None)?;
    };
    done.result.map_err(VhostError::Open)?;
    let info = driver.disk_info(disk).cloned().ok_or(Error::Closed)?;
    if guesses && info.format() == Format::Raw {
        return Err(VhostError::Guessed);
    }
    Ok((disk, info))
}

impl Device {
    /// Opens an image, to be served to whoever connects to a UNIX socket that listens. Blocks until it is
    /// open: a dirty one is repaired before.
    ///
    /// # Errors
    /// [`VhostError::Open`], [`VhostError::Guessed`]; [`VhostError::Wait`] if there is no epoll.
    pub fn new(
        mut listener: Listener,
        path: impl AsRef<Path>,
        options: DeviceOptions,
    ) -> Result<Device, VhostError> {
        let path = path.as_ref();
        let mut driver = Driver::new(options.config)?;
        let writable = options.open.writes();
        let (id, info) = open(&mut driver, path, options.open)?;
        let image = &info.image().info;
        let cluster = if image.cluster_size == 0 { 4096 } else { image.cluster_size };
        let facts = Facts {
            sectors: info.virtual_size() / SECTOR,
            read_only: !writable,
            cluster,
            queues: options.queues,
            id: id_of(path),
        };
        let poll = Poll::new().map_err(VhostError::Wait)?;
        let mut register = || {
            poll.registry().register(&mut driver, DRIVER, Interest::READABLE)?;
            listener.register(poll.registry(), LISTENER)
        };
        register().map_err(VhostError::Wait)?;
        Ok(Device {
            poll,
            disk: Disk::new(driver, id, path.to_path_buf(), facts),
            rings: (0..options.queues).map(|_| None).collect(),
            woken: vec![false; options.queues.into()],
            heads: Vec::with_capacity(BATCH),
            connection: None,
            hears: false,
            waiting: Quiet::Nothing,
            leaving: false,
            registered: Registered::default(),
            memory: Memory::default(),
            register: options.register,
            listener,
            control: None,
            calls: true,
            stop: None,
            ending: false,
            info,
        })
    }

    /// Facts about the disk.
    pub fn info(&self) -> &DiskInfo {
        &self.info
    }

    /// The process has confined the calling thread: what the server starts from now on is confined, too, and
    /// threads that were not are replaced.
    ///
    /// # Errors
    /// [`VhostError::Driver`] as of [`Driver::renew_workers`].
    pub fn is_confined(&mut self) -> Result<(), VhostError> {
        Ok(self.disk.driver.renew_workers()?)
    }

    /// The kernel does for the driver's ring what moves bytes, and nothing else; see
    /// [`Driver::is_restricted`].
    pub fn has_restricted_ring(&self) -> bool {
        self.disk.driver.is_restricted() || self.disk.driver.backend_name() != "io_uring"
    }

    /// The server ends, in order, when this descriptor is readable: the end of a pipe that a signal writes
    /// to, for instance.
    ///
    /// # Errors
    /// [`VhostError::Wait`] if it cannot be waited for.
    pub fn stop_when_readable(&mut self, fd: impl Into<OwnedFd>) -> Result<(), VhostError> {
        let fd = fd.into();
        let mut source = SourceFd(&fd.as_raw_fd());
        self.poll.registry().register(&mut source, STOP, Interest::READABLE).map_err(VhostError::Wait)?;
        self.stop = Some(fd);
        Ok(())
    }

    /// The device can be looked at, quiesced, resized and ended from there. While it is quiesced requests
    /// wait in the guest's rings; a new size is told to the front end, and to whoever asks for it.
    ///
    /// # Errors
    /// [`VhostError::Wait`].
    pub fn use_control(&mut self, mut control: Control) -> Result<(), VhostError> {
        control.register(self.poll.registry(), CONTROL).map_err(VhostError::Wait)?;
        self.control = Some(control);
        Ok(())
    }

    /// Serves until it is asked to end. Then nothing new is taken from the rings, what is under way is
    /// answered, and the image is committed and closed. Requests that were not taken are those of the next
    /// server, if the front end connects again.
    ///
    /// # Errors
    /// [`VhostError::Driver`], [`VhostError::Wait`]: the image is as after a power cut.
    /// [`VhostError::Close`]: it could not be closed in order.
    pub fn run(mut self) -> Result<(), VhostError> {
        let mut events = Events::with_capacity(256);
        loop {
            self.turn(&mut events)?;
            if self.ending && self.connection.is_none() {
                let control = self.control.take();
                let closed = self.close();
                if let Some(control) = control {
                    control.finish(closed.as_ref().copied().map_err(ToString::to_string));
                }
                return closed;
            }
        }
    }

    fn turn(&mut self, events: &mut Events) -> Result<(), VhostError> {
        match self.poll.poll(events, self.timeout()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
            polled => polled.map_err(VhostError::Wait)?,
        }
        let mut stop = false;
        for event in events.iter() {
            match event.token() {
                DRIVER => {}
                STOP => stop = true,
                LISTENER => self.calls = true,
                FRONT => self.hears = true,
                token if token >= CONTROL => {
                    if let Some(control) = &mut self.control {
                        control.ready(event);
                    }
                }
                Token(token) => {
                    if let Some(woken) = self.woken.get_mut(token - RINGS) {
                        *woken = true;
                    }
                }
            }
        }
        if stop {
            self.end();
        }
        self.accept();
        self.listen();
        self.take();
        self.disk.turn()?;
        self.answer();
        // something may have waited for the answers
        self.listen();
        self.leave();
        self.turn_control();
        Ok(())
    }

    /// Begins to end.
    fn end(&mut self) {
        (self.ending, self.leaving) = (true, true);
        if let Some(control) = &mut self.control {
            control.end(&mut self.disk);
        }
    }

    fn turn_control(&mut self) {
        let Some(control) = &mut self.control else { return };
        let stop = control.turn(&mut self.disk);
        if self.disk.take_change()
            && let Some(connection) = &mut self.connection
        {
            connection.resized(self.disk.facts.sectors);
        }
        if stop {
            self.end();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let takes = (0..self.rings.len()).any(|index| self.may_take(index));
        let hears = self.hears && !self.leaving && self.waiting == Quiet::Nothing;
        if takes || hears || self.disk.is_pending() {
            return Some(Duration::ZERO);
        }
        let again = self.calls && self.connection.is_none() && !self.ending;
        let control = self.control.as_ref().and_then(Control::timeout);
        [self.disk.driver.next_timeout(), control, again.then_some(ACCEPT_AGAIN)].into_iter().flatten().min()
    }

    fn accept(&mut self) {
        if !self.calls || self.ending || self.connection.is_some() {
            return;
        }
        match self.listener.accept() {
            Ok(Some(socket)) => match self.welcome(socket) {
                Ok(connection) => {
                    tracing::info!("a front end is here");
                    self.disk.connections += 1;
                    (self.connection, self.hears, self.leaving) = (Some(connection), true, false);
                }
                Err(error) => tracing::warn!("a front end cannot be waited for: {error}"),
            },
            Ok(None) => self.calls = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // for want of descriptors, mostly
            Err(error) => tracing::warn!("a front end could not be let in: {error}"),
        }
    }

    fn welcome(&self, socket: Socket) -> io::Result<Connection> {
        // memory and rings come as descriptors
        let Socket::Unix(socket) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        let socket = net::UnixStream::from(OwnedFd::from(socket));
        let mut connection = Connection::new(socket, self.disk.facts)?;
        connection.register(self.poll.registry(), FRONT)?;
        Ok(connection)
    }

    fn is_quiet(&self, quiet: Quiet) -> bool {
        let idle = |ring: &Option<Ring>| ring.as_ref().is_none_or(|ring| ring.in_flight == 0);
        match quiet {
            Quiet::Nothing => true,
            Quiet::Ring(index) => self.rings.get(index).is_none_or(idle),
            Quiet::All => self.rings.iter().all(idle),
        }
    }

    /// Handles messages, as far as nothing stands in their way.
    fn listen(&mut self) {
        for _ in 0..MESSAGES {
            if !self.hears || self.leaving {
                return;
            }
            let Some(connection) = &self.connection else { return };
            let (code, quiet, told) = match connection.hear() {
                Heard::Nothing => {
                    self.hears = false;
                    return;
                }
                Heard::Gone => {
                    self.leaving = true;
                    return;
                }
                Heard::Message { code, quiet, told } => (code, quiet, told),
            };
            if !self.is_quiet(quiet) {
                self.waiting = quiet;
                return;
            }
            self.waiting = Quiet::Nothing;
            self.take_down(quiet);
            let Some(connection) = &mut self.connection else { return };
            if let Err(error) = connection.handle(code, told) {
                tracing::warn!("a message of the front end's is refused: {error}");
                if !told {
                    // it would go on as if it were not
                    self.leaving = true;
                    return;
                }
            }
            self.follow();
        }
    }

    /// Something may be taken from this ring now.
    fn may_take(&self, index: usize) -> bool {
        let waited_for = match self.waiting {
            Quiet::Nothing => false,
            Quiet::Ring(ring) => ring == index,
            Quiet::All => true,
        };
        self.woken[index] && !waited_for && !self.leaving && !self.disk.is_full()
    }

    /// Takes rings down; nothing of them is under way.
    fn take_down(&mut self, quiet: Quiet) {
        let rings = match quiet {
            Quiet::Nothing => 0..0,
            Quiet::Ring(index) if index < self.rings.len() => index..index + 1,
            Quiet::Ring(_) => 0..0,
            Quiet::All => 0..self.rings.len(),
        };
        for index in rings {
            let Some(ring) = self.rings[index].take() else { continue };
            debug_assert_eq!(ring.in_flight, 0);
            let _ = self.poll.registry().deregister(&mut SourceFd(&ring.kick_fd()));
            if let Some(connection) = &self.connection {
                connection.front().stopped(index, ring.base());
            }
            self.woken[index] = false;
        }
    }

    /// Does what the front end has said by now.
    fn follow(&mut self) {
        let Some(connection) = &self.connection else { return };
        let front = connection.front();
        self.memory = front.memory.clone();
        if self.register
            && let Err(error) = self.registered.set(&mut self.disk.driver, &self.memory)
        {
            tracing::error!("the guest's memory is not registered, everything goes on without: {error}");
            self.register = false;
        }
        for index in 0..self.rings.len() {
            if let Some(ring) = &mut self.rings[index] {
                ring.call = front.call(index);
                continue;
            }
            let Some(start) = front.start(index) else { continue };
            let ring = match start.map(|start| Ring::new(self.memory.guest(), start)) {
                Ok(Ok(ring)) => ring,
                Ok(Err(fault)) => {
                    tracing::warn!(ring = index, "a ring cannot begin: {fault:?}");
                    continue;
                }
                Err(why) => {
                    tracing::warn!(ring = index, "a ring cannot begin: {why}");
                    continue;
                }
            };
            let token = Token(RINGS + index);
            let mut kick = SourceFd(&ring.kick_fd());
            if let Err(error) = self.poll.registry().register(&mut kick, token, Interest::READABLE) {
                tracing::warn!(ring = index, "a ring's kicks cannot be waited for: {error}");
                continue;
            }
            self.disk.make_room(index, ring.table().1);
            // a kick may have come before
            self.woken[index] = true;
            self.rings[index].insert(ring).call = front.call(index);
        }
    }

    /// Takes requests from rings that have some.
    fn take(&mut self) {
        let mut through = None;
        for index in 0..self.rings.len() {
            if !self.may_take(index) {
                continue;
            }
            let Some(connection) = &self.connection else { return };
            let Some(ring) = self.rings[index].as_mut().filter(|ring| ring.fault.is_none()) else {
                self.woken[index] = false;
                continue;
            };
            let through = *through.get_or_insert_with(|| connection.front().writes_through());
            self.heads.clear();
            let taken = ring.take(self.memory.guest(), BATCH, &mut self.heads);
            self.woken[index] = matches!(taken, Ok(true));
            let table = ring.table();
            for &head in &self.heads {
                let name = Name { ring: index as u16, head };
                self.disk.begin(&self.memory, table, name, through);
            }
            if let Err(fault) = taken {
                self.break_ring(index, fault);
            }
        }
    }

    fn break_ring(&mut self, index: usize, fault: Fault) {
        tracing::warn!(ring = index, "a ring is broken, and not served any more: {fault:?}");
        if let Some(ring) = &mut self.rings[index] {
            ring.fault = Some(fault);
        }
        let err = self.connection.as_ref().and_then(|connection| connection.front().err(index));
        if let Some(err) = err {
            let _ = (&*err).write(&1u64.to_ne_bytes());
        }
    }

    fn answer(&mut self) {
        let mut answered = false;
        while let Some(answer) = self.disk.next_answer(&mut self.control) {
            let Some(ring) = &mut self.rings[usize::from(answer.name.ring)] else {
                debug_assert!(false, "a ring stays until all of it has ended");
                continue;
            };
            let len = answer.write(&self.memory);
            ring.answer(self.memory.guest(), answer.name.head, len);
            answered = true;
        }
        if answered {
            self.rings.iter_mut().flatten().for_each(|ring| ring.signal(self.memory.guest()));
        }
    }

    /// The connection goes when nothing of it is under way.
    fn leave(&mut self) {
        if !self.leaving || !self.is_quiet(Quiet::All) || self.disk.is_pending() {
            return;
        }
        self.take_down(Quiet::All);
        if let Some(mut connection) = self.connection.take() {
            connection.deregister(self.poll.registry());
            tracing::info!("the front end is gone");
        }
        let nothing = Memory::default();
        if let Err(error) = self.registered.set(&mut self.disk.driver, &nothing) {
            debug_assert!(false, "what was registered is taken back: {error}");
        }
        self.memory = nothing;
        (self.leaving, self.hears, self.waiting, self.calls) = (false, false, Quiet::Nothing, true);
    }

    fn close(mut self) -> Result<(), VhostError> {
        let driver = &mut self.disk.driver;
        driver
            .submit(self.disk.id, Request::close(0))
            .map_err(|rejected| VhostError::Close(rejected.into()))?;
        loop {
            driver.wait(None)?;
            while let Some(done) = driver.next_completion() {
                if matches!(done.kind, CompletionKind::Close) {
                    return done.result.map_err(VhostError::Close);
                }
            }
        }
    }
}
