//! The control socket and the metrics: their listeners and clients, in a loop that is somebody else's.
//!
//! Knows: who is ready, what was asked. Must never know: what is served, how long operations take.
//!
//! Invariants: no call blocks; in a turn of the loop one request is answered, of whichever client is next;
//! clients are [`CLIENTS_MAX`] at most, and what is kept for each is one request and one reply.

use crate::client::{Client, Heard, Speech};
use crate::door::Door;
use crate::facts::Facts;
use crate::http;
use crate::listen::{Address, Listener};
use crate::metrics;
use crate::operation::{Asker, Operations, is_own};
use crate::request::{Class, Command, Refused, Request, reply};
use crate::socket::Socket;
use mio::event::{Event, Source};
use mio::{Interest, Registry, Token};
use quod::{DiskId, Error};
use serde_json::{Value, json};
use slab::Slab;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections at once. One more takes the place of the one that was silent for the longest time.
const CLIENTS_MAX: usize = 16;
/// Tokens below are those of listeners.
const LISTENERS_MAX: usize = 16;
/// Whoever fetches metrics has so long for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections are taken again so long after one could not be.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// See the crate's documentation. Belongs to the thread of its loop.
pub struct Control {
    registry: Option<(Registry, usize)>,
    listeners: Vec<(Listener, Speech)>,
    clients: Slab<Client>,
    /// Connections so far.
    serials: u64,
    /// Which client is asked first in the next turn.
    next: usize,
    operations: Operations,
    /// Those that wait for the end.
    stoppers: Vec<Asker>,
    /// Somebody may want to connect.
    accepts: bool,
    accept_again: Option<Instant>,
    /// Something may have to be done.
    awake: bool,
    since: Instant,
}

impl Default for Control {
    fn default() -> Control {
        Control::new()
    }
}

impl Control {
    /// One that nobody can connect to.
    pub fn new() -> Control {
        Control {
            registry: None,
            listeners: Vec::new(),
            clients: Slab::new(),
            serials: 0,
            next: 0,
            operations: Operations::default(),
            stoppers: Vec::new(),
            accepts: true,
            accept_again: None,
            awake: true,
            since: Instant::now(),
        }
    }

    /// Takes requests at a UNIX socket of this path, whose owner alone may connect (0600).
    ///
    /// # Errors
    /// The host's: [`io::ErrorKind::AddrInUse`] if another server listens there.
    pub fn listen(&mut self, path: &Path) -> io::Result<()> {
        let listener = Listener::private(path)?;
        self.add(listener, Speech::Lines)
    }

    /// Gives metrics at an address: of a UNIX socket to its owner, of TCP to whoever connects.
    ///
    /// # Errors
    /// As of [`Control::listen`].
    pub fn listen_metrics(&mut self, address: &Address) -> io::Result<()> {
        let listeners = match address {
            Address::Unix(path) => vec![Listener::private(path)?],
            other => Listener::at(other)?,
        };
        for listener in listeners {
            tracing::info!("metrics are at {}", listener.address());
            self.add(listener, Speech::Http)?;
        }
        Ok(())
    }

    fn add(&mut self, listener: Listener, speech: Speech) -> io::Result<()> {
        if self.listeners.len() >= LISTENERS_MAX {
            return Err(io::ErrorKind::TooManyLinks.into());
        }
        self.listeners.push((listener, speech));
        match &self.registry {
            Some(_) => self.register_listener(self.listeners.len() - 1),
            None => Ok(()),
        }
    }

    /// Is waited for by this loop, by tokens from `first` on.
    ///
    /// # Errors
    /// The host's.
    pub fn register(&mut self, registry: &Registry, first: Token) -> io::Result<()> {
        self.registry = Some((registry.try_clone()?, first.0));
        (0..self.listeners.len()).try_for_each(|index| self.register_listener(index))
    }

    fn register_listener(&mut self, index: usize) -> io::Result<()> {
        let Some((registry, first)) = &self.registry else { return Ok(()) };
        self.listeners[index].0.register(registry, Token(first + index))
    }

    /// An event with such a token is for [`Control::ready`].
    pub fn owns(&self, token: Token) -> bool {
        self.registry.as_ref().is_some_and(|(_, first)| token.0 >= *first)
    }

    /// Something has happened.
    pub fn ready(&mut self, event: &Event) {
        let Some((_, first)) = &self.registry else { return };
        self.awake = true;
        let Some(index) = event.token().0.checked_sub(first + LISTENERS_MAX) else {
            self.accepts = true;
            return;
        };
        if let Some(client) = self.clients.get_mut(index) {
            let over = event.is_error() || event.is_read_closed();
            client.wake(event.is_readable() || over, event.is_writable() || event.is_error());
        }
    }

    /// A completion with such a `user` value is for [`Control::ended`]: its highest bit is set.
    pub fn is_own(user: u64) -> bool {
        is_own(user)
    }

    /// A request of its own has ended in the driver.
    pub fn ended(&mut self, user: u64, result: Result<(), Error>, door: &mut dyn Door) {
        self.awake = true;
        self.operations.ended(user, result, door);
    }

    /// The image is quiesced.
    pub fn is_quiesced(&self, disk: DiskId) -> bool {
        self.operations.is_quiet(disk)
    }

    /// [`Control::turn`] must be called after so long; None: after an event or a completion.
    pub fn timeout(&self) -> Option<Duration> {
        if self.awake {
            return Some(Duration::ZERO);
        }
        let fetching = self.clients.iter().filter(|(_, client)| client.speech == Speech::Http);
        let fetching = fetching.map(|(_, client)| client.last + PATIENCE);
        let times = fetching.chain(self.operations.deadline()).chain(self.accept_again);
        times.min().map(|time| time.saturating_duration_since(Instant::now()))
    }

    /// Does what there is to do: to be called at the end of each turn of the loop, after completions were
    /// taken. True: somebody has asked for the server's end.
    #[must_use = "an end may be asked for"]
    pub fn turn(&mut self, door: &mut dyn Door) -> bool {
        let due = self.timeout().is_some_and(|timeout| timeout.is_zero());
        if !due && self.operations.is_empty() {
            return false;
        }
        if self.accepts || self.accept_again.is_some_and(|again| again <= Instant::now()) {
            self.accept();
        }
        for (_, client) in &mut self.clients {
            client.read();
        }
        let stop = self.answer_one(door);
        self.operations.advance(door);
        for (asker, answer) in std::mem::take(&mut self.operations.answers) {
            self.deliver(asker, answer);
        }
        self.send(door);
        self.awake = self.clients.iter().any(|(_, client)| client.is_awake());
        stop
    }

    fn accept(&mut self) {
        (self.accepts, self.accept_again) = (false, None);
        for n in 0..self.listeners.len() {
            loop {
                let (listener, speech) = &self.listeners[n];
                match listener.accept() {
                    Ok(Some(socket)) => self.welcome(socket, *speech),
                    Ok(None) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        tracing::warn!("a control connection could not be taken: {error}");
                        self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
                        break;
                    }
                }
            }
        }
    }

    fn welcome(&mut self, socket: Socket, speech: Speech) {
        let alike = self.clients.iter().filter(|(_, client)| client.speech == speech);
        if alike.clone().count() >= CLIENTS_MAX {
            let silent = alike.filter(|(_, client)| !client.waits).min_by_key(|(_, client)| client.last);
            let Some((index, _)) = silent else {
                tracing::warn!("a control connection was turned away: {CLIENTS_MAX} wait already");
                return;
            };
            tracing::info!("a control connection ended for another one: it was silent");
            self.clients[index].leave();
        }
        let Some((registry, first)) = &self.registry else { return };
        self.serials += 1;
        let entry = self.clients.vacant_entry();
        let token = Token(first + LISTENERS_MAX + entry.key());
        let client = entry.insert(Client::new(socket, speech, self.serials));
        let interests = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = client.socket.register(registry, token, interests) {
            tracing::warn!("a control connection cannot be waited for: {error}");
            client.leave();
        }
    }

    /// The request of whichever client is next. True: the server is asked to end.
    fn answer_one(&mut self, door: &mut dyn Door) -> bool {
        let keys: Vec<usize> = self.clients.iter().map(|(index, _)| index).collect();
        let first = keys.partition_point(|index| *index < self.next);
        let order = keys[first..].iter().chain(&keys[..first]);
        let heard = order.copied().find_map(|index| Some((index, self.clients[index].hear()?)));
        let Some((index, heard)) = heard else { return false };
        self.next = index + 1;
        let serial = self.clients[index].serial;
        self.clients[index].waits = true;
        match heard {
            Heard::Http(wanted) => {
                let operations = &self.operations;
                let since = self.since;
                let text =
                    || metrics::text(&Facts::of(door, since, &|disk: DiskId| operations.is_quiet(disk)));
                let response = http::respond(wanted, text);
                self.clients[index].answer(response);
                false
            }
            Heard::TooLong => {
                let Request { id, command } = Request::too_long();
                self.deliver(Asker { client: index, serial, id }, command.map(|_| Value::Null));
                false
            }
            Heard::Line(line) => {
                let Request { id, command } = Request::read(&line);
                self.execute(command, Asker { client: index, serial, id }, door)
            }
        }
    }

    fn execute(&mut self, command: Result<Command, Refused>, asker: Asker, door: &mut dyn Door) -> bool {
        match command {
            Err(refused) => self.deliver(asker, Err(refused)),
            Ok(Command::Stats) => {
                let operations = &self.operations;
                let facts = Facts::of(door, self.since, &|disk: DiskId| operations.is_quiet(disk));
                self.deliver(asker, Ok(facts.to_json()));
            }
            Ok(Command::Stop) => {
                tracing::info!("the control socket asks for the server's end");
                self.stoppers.push(asker);
                return true;
            }
            Ok(command) => self.operations.begin(command, asker, door),
        }
        false
    }

    fn deliver(&mut self, asker: Asker, answer: Result<Value, Refused>) {
        let client = self.clients.get_mut(asker.client);
        if let Some(client) = client.filter(|client| client.serial == asker.serial) {
            client.answer(reply(asker.id, answer));
        }
    }

    /// Sends what there is, and parts from those that have ended.
    fn send(&mut self, door: &mut dyn Door) {
        let mut over = Vec::new();
        for (index, client) in &mut self.clients {
            client.send();
            let late = client.speech == Speech::Http && client.last.elapsed() >= PATIENCE;
            if client.is_over() || late {
                over.push((index, client.serial));
            }
        }
        for (index, serial) in over {
            self.clients.remove(index);
            self.operations.connection_ended(serial, door);
        }
    }

    /// The server is ending: what is quiesced goes on, and nothing else begins. Questions are still answered.
    pub fn end(&mut self, door: &mut dyn Door) {
        self.awake = true;
        self.operations.end(door);
    }

    /// The images are closed, or not in order for the reason that is told: whoever asked for the end hears
    /// of it.
    pub fn finish(mut self, result: Result<(), String>) {
        for asker in std::mem::take(&mut self.stoppers) {
            let answer = match &result {
                Ok(()) => Ok(json!({})),
                Err(text) => Err(Refused::new(Class::Failed, text.clone())),
            };
            self.deliver(asker, answer);
        }
        for (_, client) in &mut self.clients {
            client.send();
        }
    }
}
