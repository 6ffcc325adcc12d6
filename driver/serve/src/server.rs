//! The loop: listeners, clients and the driver on one thread.
//!
//! Knows: who is ready. Must never know: what a client wants, what a disk does.
//!
//! Invariants: no call blocks but the loop's own wait, and the opening and closing of disks before and after
//! it; whoever is in the queue comes to its turn before anybody comes a second time; the memory of all
//! clients together is bounded ([`ServerOptions`]).

use crate::disks::Disks;
use crate::error::ServeError;
use crate::export::{Export, ExportOptions};
use crate::nbd::{Client, Served, Ticket};
use crate::tls::{Stream, TlsOptions};
use crate::view::{Numbers, View};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use quod::{CompletionKind, Config, DiskInfo, Driver, Format, Request};
use quod_door::{Address, Control, Listener, Socket};
use quod_nbd::NAME_MAX;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DRIVER: Token = Token(0);
const STOP: Token = Token(1);
/// The first listener's; those of clients begin at `CLIENTS`.
const LISTENERS: usize = 2;
const CLIENTS: usize = 1 << 20;
/// The first of the control's.
const CONTROL: Token = Token(1 << 40);
/// Connections are taken again so long after one could not be: for want of descriptors, mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Least memory of a client's buffers, bytes: two pieces of a long request.
const BUDGET_MIN: usize = 2 << 20;
/// And most.
const BUDGET_MAX: usize = 8 << 20;

/// The limits of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Of its driver; default 512 requests a disk, and as deep a queue.
    pub config: Config,
    /// Clients at once; default 256. One more takes the place of one that has not chosen an export yet, or is
    /// turned away.
    pub clients: usize,
    /// Bytes of buffers of all clients together; default 256 MiB. Each may have its share of it, 8 MiB at
    /// most, and 2 MiB in any case.
    pub memory: usize,
    /// Time to choose an export; default 10 s.
    pub negotiation: Duration,
    /// When the server ends, clients that do not take their replies are waited for so long; default 5 s.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            config: Config::default().requests(512).queue_depth(512),
            clients: 256,
            memory: 256 << 20,
            negotiation: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

impl ServerOptions {
    /// See [`ServerOptions::config`](field@ServerOptions::config).
    pub fn config(self, config: Config) -> ServerOptions {
        ServerOptions { config, ..self }
    }

    /// See [`ServerOptions::clients`](field@ServerOptions::clients).
    pub fn clients(self, clients: usize) -> ServerOptions {
        ServerOptions { clients, ..self }
    }

    /// See [`ServerOptions::memory`](field@ServerOptions::memory).
    pub fn memory(self, memory: usize) -> ServerOptions {
        ServerOptions { memory, ..self }
    }

    /// See [`ServerOptions::negotiation`](field@ServerOptions::negotiation).
    pub fn negotiation(self, negotiation: Duration) -> ServerOptions {
        ServerOptions { negotiation, ..self }
    }

    /// See [`ServerOptions::drain`](field@ServerOptions::drain).
    pub fn drain(self, drain: Duration) -> ServerOptions {
        ServerOptions { drain, ..self }
    }
}

/// A server: it listens, has exports, and runs. Belongs to one thread.
pub struct Server {
    poll: Poll,
    disks: Disks,
    options: ServerOptions,
    listeners: Vec<Listener>,
    clients: Slab<Client>,
    /// Clients that have something to do.
    queue: VecDeque<usize>,
    /// Clients that something happened to in this turn.
    touched: Vec<usize>,
    /// Clients that the disks had no room for.
    starved: Vec<usize>,
    /// Clients that have not chosen an export.
    negotiating: usize,
    stop: Option<OwnedFd>,
    control: Option<Control>,
    numbers: Numbers,
    tls: Option<TlsOptions>,
    /// When the server ends at the latest; None: it is not ending.
    ending: Option<Instant>,
    accept_again: Option<Instant>,
}

impl Server {
    /// A server that has nothing and listens nowhere.
    ///
    /// # Errors
    /// [`ServeError::Driver`] as of [`Driver::new`], [`ServeError::Wait`] if there is no epoll.
    pub fn new(options: ServerOptions) -> Result<Server, ServeError> {
        let poll = Poll::new().map_err(ServeError::Wait)?;
        let mut driver = Driver::new(options.config)?;
        poll.registry().register(&mut driver, DRIVER, Interest::READABLE).map_err(ServeError::Wait)?;
        Ok(Server {
            poll,
            disks: Disks::new(driver),
            options,
            listeners: Vec::new(),
            clients: Slab::new(),
            queue: VecDeque::new(),
            touched: Vec::new(),
            starved: Vec::new(),
            negotiating: 0,
            stop: None,
            control: None,
            numbers: Numbers::default(),
            tls: None,
            ending: None,
            accept_again: None,
        })
    }

    /// Listens there from now on; whoever connects is served as soon as the server runs. A UNIX socket whose
    /// server is dead is replaced, and goes when the server is dropped.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn listen(&mut self, address: &Address) -> Result<(), ServeError> {
        let failed = |error| ServeError::Listen { address: address.clone(), error };
        Listener::at(address).map_err(failed)?.into_iter().try_for_each(|listener| self.add(listener))
    }

    /// The same at a socket that listens already.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn listen_unix(&mut self, listener: UnixListener) -> Result<(), ServeError> {
        self.add(Listener::given_unix(listener).map_err(given)?)
    }

    /// The same of the other family.
    ///
    /// # Errors
    /// [`ServeError::Listen`].
    pub fn listen_tcp(&mut self, listener: TcpListener) -> Result<(), ServeError> {
        self.add(Listener::given_tcp(listener).map_err(given)?)
    }

    fn add(&mut self, mut listener: Listener) -> Result<(), ServeError> {
        let token = Token(LISTENERS + self.listeners.len());
        listener.register(self.poll.registry(), token).map_err(ServeError::Wait)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Clients use TLS.
    pub fn use_tls(&mut self, tls: TlsOptions) {
        self.tls = Some(tls);
    }

    /// The server can be looked at, quiesced, resized and ended from there.
    ///
    /// # Errors
    /// [`ServeError::Wait`].
    pub fn use_control(&mut self, mut control: Control) -> Result<(), ServeError> {
        control.register(self.poll.registry(), CONTROL).map_err(ServeError::Wait)?;
        self.control = Some(control);
        Ok(())
    }

    /// Where the server listens.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.listeners.iter().map(Listener::address)
    }

    /// Opens an image and offers it. Blocks until it is open: a dirty one is repaired before.
    ///
    /// # Errors
    /// [`ServeError::Open`], [`ServeError::Guessed`], and those of the name.
    pub fn open(&mut self, options: ExportOptions) -> Result<(), ServeError> {
        let name = &options.name;
        if name.len() > NAME_MAX || name.contains('\0') {
            return Err(ServeError::BadName(name.clone()));
        }
        if self.disks.exports.iter().any(|export| export.name == *name) {
            return Err(ServeError::SameName(name.clone()));
        }
        let failed = |error| ServeError::Open { path: options.path.clone(), error: Box::new(error) };
        let guesses = options.open.probes_for_writing();
        let driver = &mut self.disks.driver;
        let disk = driver.open(&options.path, options.open.clone()).map_err(failed)?;
        let done = loop {
            if let Some(done) = driver.next_completion() {
                break done;
            }
            driver.wait(None)?;
        };
        done.result.map_err(failed)?;
        let Some(info) = driver.disk_info(disk) else { return Err(failed(quod::Error::Closed)) };
        if guesses && info.format() == Format::Raw {
            return Err(ServeError::Guessed(options.path.clone()));
        }
        let export = Export::new(&options, options.open.writes(), disk, info);
        self.disks.exports.push(export);
        Ok(())
    }

    /// The process has confined the calling thread: what the server starts from now on is confined, too, and
    /// threads that were not are replaced. To be called when all images are open.
    ///
    /// # Errors
    /// [`ServeError::Driver`] as of [`Driver::renew_workers`].
    pub fn is_confined(&mut self) -> Result<(), ServeError> {
        Ok(self.disks.driver.renew_workers()?)
    }

    /// The kernel does for the driver's ring what moves bytes, and nothing else; see
    /// [`Driver::is_restricted`].
    pub fn has_restricted_ring(&self) -> bool {
        self.disks.driver.is_restricted() || self.disks.driver.backend_name() != "io_uring"
    }

    /// What the image says of itself that was opened last.
    pub fn last_opened(&self) -> Option<&DiskInfo> {
        self.disks.driver.disk_info(self.disks.exports.last()?.disk)
    }

    /// The server ends, in order, when this descriptor is readable: the end of a pipe that a signal writes
    /// to, for instance.
    ///
    /// # Errors
    /// [`ServeError::Wait`] if it cannot be waited for.
    pub fn stop_when_readable(&mut self, fd: impl Into<OwnedFd>) -> Result<(), ServeError> {
        let fd = fd.into();
        let mut source = SourceFd(&fd.as_raw_fd());
        self.poll.registry().register(&mut source, STOP, Interest::READABLE).map_err(ServeError::Wait)?;
        self.stop = Some(fd);
        Ok(())
    }

    /// Serves until it is asked to end. Then nobody new is served, what is under way is answered, and the
    /// images are committed and closed.
    ///
    /// # Errors
    /// [`ServeError::Driver`], [`ServeError::Wait`]: the images are as after a power cut.
    /// [`ServeError::Close`] if one could not be closed in order; the others are closed.
    pub fn run(mut self) -> Result<(), ServeError> {
        let mut events = Events::with_capacity(256);
        loop {
            self.turn(&mut events)?;
            if self.ending.is_some() && self.clients.is_empty() {
                let control = self.control.take();
                let closed = self.close();
                if let Some(control) = control {
                    control.finish(closed.as_ref().copied().map_err(ToString::to_string));
                }
                return closed;
            }
        }
    }

    /// One turn of the loop.
    fn turn(&mut self, events: &mut Events) -> Result<(), ServeError> {
        match self.poll.poll(events, self.timeout()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
            polled => polled.map_err(ServeError::Wait)?,
        }
        let mut accept = false;
        for event in events.iter() {
            match event.token() {
                DRIVER => {}
                STOP => self.end(),
                token if token >= CONTROL => {
                    if let Some(control) = &mut self.control {
                        control.ready(event);
                    }
                }
                Token(token) if token < CLIENTS => accept = true,
                Token(token) => {
                    let index = token - CLIENTS;
                    if let Some(client) = self.clients.get_mut(index) {
                        let closed = event.is_read_closed() || event.is_error();
                        client.wake(event.is_readable(), event.is_writable() || event.is_error(), closed);
                        self.enqueue(index);
                    }
                }
            }
        }
        if accept || self.accept_again.is_some() {
            self.accept();
        }
        self.serve();
        self.disks.turn()?;
        self.take_done();
        self.send();
        self.look_at_the_clock();
        let stop = self.with_control(|control, view| control.turn(view));
        if stop == Some(true) {
            self.end();
        }
        Ok(())
    }

    /// What the control does, and what follows for the clients.
    fn with_control<T>(&mut self, ask: impl FnOnce(&mut Control, &mut View<'_>) -> T) -> Option<T> {
        let control = self.control.as_mut()?;
        let numbers = Numbers { clients: self.clients.len() as u64, ..self.numbers };
        let mut view = View { disks: &mut self.disks, numbers, freed: false };
        let answer = ask(control, &mut view);
        if view.freed {
            let held: Vec<usize> = self.clients.iter().map(|(index, _)| index).collect();
            held.into_iter().for_each(|index| self.enqueue(index));
        }
        Some(answer)
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.queue.is_empty() || self.disks.is_pending() {
            return Some(Duration::ZERO);
        }
        let timeouts = [self.disks.driver.next_timeout(), self.control.as_ref().and_then(Control::timeout)];
        let mut timeout = timeouts.into_iter().flatten().min();
        let timers = self.ending.into_iter().chain(self.accept_again);
        let deadlines = self.clients.iter().filter_map(|(_, client)| client.deadline);
        let deadlines = (self.negotiating > 0).then_some(deadlines).into_iter().flatten();
        if let Some(first) = timers.chain(deadlines).min() {
            let left = first.saturating_duration_since(Instant::now());
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        timeout
    }

    fn enqueue(&mut self, index: usize) {
        if let Some(client) = self.clients.get_mut(index)
            && !std::mem::replace(&mut client.queued, true)
        {
            self.queue.push_back(index);
        }
    }

    /// Whoever is in the queue now comes once.
    fn serve(&mut self) {
        let share = self.options.memory / self.clients.len().max(1);
        let budget = share.clamp(BUDGET_MIN, BUDGET_MAX);
        for _ in 0..self.queue.len() {
            let Some(index) = self.queue.pop_front() else { break };
            let Some(client) = self.clients.get_mut(index) else { continue };
            client.queued = false;
            let negotiated = client.deadline.is_some();
            let served = client.serve(&mut self.disks, budget);
            if negotiated && client.deadline.is_none() {
                self.negotiating -= 1;
            }
            self.touched.push(index);
            match served {
                // all are asked again when a disk is let go
                Served::Waits | Served::Held => {}
                Served::More => self.enqueue(index),
                Served::Starved => self.starved.push(index),
            }
        }
    }

    fn take_done(&mut self) {
        while let Some(done) = self.disks.next_done() {
            if Control::is_own(done.user) {
                self.with_control(|control, view| control.ended(done.user, done.result, view));
                continue;
            }
            let ticket = Ticket::of_user(done.user);
            let index = ticket.client as usize;
            let Some(client) = self.clients.get_mut(index) else {
                debug_assert!(false, "a client stays until all of it has ended");
                continue;
            };
            client.done(ticket, done, &mut self.disks);
            self.touched.push(index);
            if client.blocked {
                self.enqueue(index);
            }
        }
        if !self.disks.is_full() {
            for index in std::mem::take(&mut self.starved) {
                self.enqueue(index);
            }
        }
    }

    fn send(&mut self) {
        let stopping = self.ending.is_some();
        while let Some(index) = self.touched.pop() {
            let Some(client) = self.clients.get_mut(index) else { continue };
            let negotiated = client.deadline.is_some();
            let sent = client.send(&mut self.disks, stopping);
            let requeue = sent && client.blocked;
            if negotiated && client.deadline.is_none() {
                self.negotiating -= 1;
            }
            if client.is_over() {
                self.clients.remove(index);
            } else if requeue {
                self.enqueue(index);
            }
        }
    }

    fn accept(&mut self) {
        self.accept_again = None;
        if self.ending.is_some() {
            return;
        }
        for n in 0..self.listeners.len() {
            loop {
                match self.listeners[n].accept() {
                    Ok(Some(socket)) => self.welcome(socket),
                    Ok(None) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        tracing::warn!("a connection could not be taken: {error}");
                        self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
                        break;
                    }
                }
            }
        }
    }

    fn welcome(&mut self, socket: Socket) {
        if self.clients.len() >= self.options.clients {
            let waiting = self.clients.iter().filter_map(|(index, client)| Some((client.deadline?, index)));
            let Some((_, index)) = waiting.min() else {
                tracing::warn!("a connection was turned away: there are {} already", self.clients.len());
                self.numbers.turned_away += 1;
                return;
            };
            tracing::info!(client = index, "connection ended for another one: it chose no export");
            self.drop_client(index);
        }
        let deadline = Instant::now() + self.options.negotiation;
        let entry = self.clients.vacant_entry();
        let index = entry.key();
        let client = entry.insert(Client::new(index as u32, Stream::new(socket), deadline, self.tls.clone()));
        self.negotiating += 1;
        self.numbers.taken += 1;
        let interests = Interest::READABLE | Interest::WRITABLE;
        let registered = match client.socket() {
            Some(socket) => self.poll.registry().register(socket, Token(CLIENTS + index), interests),
            None => Ok(()),
        };
        match registered {
            Ok(()) => self.enqueue(index),
            Err(error) => {
                tracing::warn!("a connection cannot be waited for: {error}");
                self.drop_client(index);
            }
        }
    }

    /// A client that is not welcome any more. It goes when nothing of it is under way.
    fn drop_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if client.deadline.is_some() {
            self.negotiating -= 1;
        }
        client.drop_socket(&mut self.disks);
        if client.is_over() {
            self.clients.remove(index);
        }
    }

    /// Begins to end.
    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        tracing::info!("the server is ending");
        self.ending = Some(Instant::now() + self.options.drain);
        self.with_control(|control, view| control.end(view));
        self.listeners.clear();
        for (index, client) in &mut self.clients {
            client.stop();
            self.touched.push(index);
        }
    }

    fn look_at_the_clock(&mut self) {
        if self.negotiating == 0 && self.ending.is_none() {
            return;
        }
        let now = Instant::now();
        let over = self.ending.is_some_and(|end| end <= now);
        let late = |client: &Client| over || client.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<usize> =
            self.clients.iter().filter(|(_, client)| late(client)).map(|(index, _)| index).collect();
        for index in late {
            tracing::info!(client = index, "connection ended: it took too long");
            self.drop_client(index);
        }
        if over {
            // what is left waits for the disks alone
            self.ending = Some(now + self.options.drain);
        }
    }

    /// Closes the disks.
    fn close(mut self) -> Result<(), ServeError> {
        let mut open = 0;
        let mut failed = None;
        let paths: Vec<PathBuf> = self.disks.exports.iter().map(|export| export.path.clone()).collect();
        let driver = &mut self.disks.driver;
        let mut keep = |n: usize, error| {
            failed.get_or_insert(ServeError::Close { path: paths[n].clone(), error: Box::new(error) });
        };
        for (n, export) in self.disks.exports.iter().enumerate() {
            match driver.submit(export.disk, Request::close(n as u64)) {
                Ok(()) => open += 1,
                Err(rejected) => keep(n, rejected.into()),
            }
        }
        while open > 0 {
            driver.wait(None)?;
            while let Some(done) = driver.next_completion() {
                if !matches!(done.kind, CompletionKind::Close) {
                    continue;
                }
                open -= 1;
                if let Err(error) = done.result {
                    keep(done.user as usize, error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn given(error: io::Error) -> ServeError {
    ServeError::Listen { address: Address::Given, error }
}
