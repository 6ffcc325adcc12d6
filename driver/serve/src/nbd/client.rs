//! A client: its socket, what came from it, what is under way for it, what goes to it.
//!
//! Knows: everything of one client. Must never know: other clients, when it is called.
//!
//! Invariants:
//! * its requests, the bytes of its buffers and its replies that were not sent are bounded; at a bound
//!   nothing more is read from its socket;
//! * each request is answered once, or the socket is gone;
//! * a client that is gone stays until what it had in the driver has ended.

use super::jobs::{Job, PIECE, Work};
use super::outbox::Outbox;
use super::status::Status;
use super::ticket::Ticket;
use super::window::Window;
use crate::disks::{Disks, Done};
use crate::pool::length_for;
use crate::tls::{Stream, TlsOptions};
use quod::{Buffer, Buffers, DiskId, Error, ErrorKind, Met, Request};
use quod_nbd::{
    Command, Connection, End, Errno, Next, REPLY_HEAD_MAX, Received, Refused, SINK_MIN, State, Style, Tls,
    What,
};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// Requests under way.
const JOBS_MAX: usize = 128;
/// Bytes of heads of replies that were not sent, from which on no request is taken.
const HEADS_MAX: usize = 32 << 10;
/// Steps before it is another client's turn.
const QUOTA: u32 = 256;
/// A hint to read ahead is followed so far.
const CACHE_MAX: u64 = 64 << 20;

/// How a turn of [`Client::serve`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Served {
    /// It waits: for its socket, or for something of its own to end.
    Waits,
    /// It has more to do; others come first.
    More,
    /// The disks take nothing more for now.
    Starved,
    /// Its disk is held.
    Held,
}

enum Step {
    On,
    /// Bytes are needed.
    Bytes,
    Blocked(Served),
}

/// The payload of a write, as far as it came.
#[derive(Debug)]
struct Incoming {
    job: usize,
    buffer: Buffer,
    have: usize,
    want: usize,
}

/// See the module's header.
pub(crate) struct Client {
    number: u32,
    socket: Option<Stream>,
    tls: Option<TlsOptions>,
    connection: Connection,
    window: Window,
    outbox: Outbox,
    jobs: Slab<Job>,
    export: usize,
    disk: Option<DiskId>,
    incoming: Option<Incoming>,
    /// Long reads, with more to hand over.
    hungry: VecDeque<usize>,
    /// The long read whose simple reply is being sent: nothing else may be sent between its bytes.
    exclusive: Option<usize>,
    /// What ended meanwhile.
    held: VecDeque<(Ticket, Done)>,
    /// Bytes of buffers in the driver, or being filled.
    used: usize,
    readable: bool,
    writable: bool,
    /// The other side sends nothing more.
    closed: bool,
    /// Nothing more is taken from it.
    ended: bool,
    /// When it must have chosen an export.
    pub deadline: Option<Instant>,
    /// It is in the loop's queue.
    pub queued: bool,
    /// It waits for something of its own.
    pub blocked: bool,
}

impl Client {
    pub fn new(number: u32, stream: Stream, deadline: Instant, tls: Option<TlsOptions>) -> Client {
        let mode = match &tls {
            None => Tls::Off,
            Some(TlsOptions { required: false, .. }) => Tls::Offered,
            Some(TlsOptions { required: true, .. }) => Tls::Required,
        };
        Client {
            number,
            socket: Some(stream),
            tls,
            connection: Connection::new(mode),
            window: Window::new(),
            outbox: Outbox::default(),
            jobs: Slab::new(),
            export: 0,
            disk: None,
            incoming: None,
            hungry: VecDeque::new(),
            exclusive: None,
            held: VecDeque::new(),
            used: 0,
            readable: true,
            writable: true,
            closed: false,
            ended: false,
            deadline: Some(deadline),
            queued: false,
            blocked: false,
        }
    }

    pub fn socket(&mut self) -> Option<&mut Stream> {
        self.socket.as_mut()
    }

    /// The socket has something to tell.
    pub fn wake(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable || closed;
        self.writable |= writable;
        self.closed |= closed;
    }

    /// Nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.socket.is_none() && self.jobs.is_empty()
    }

    /// Nothing is under way for it.
    fn is_idle(&self) -> bool {
        let pending = self.socket.as_ref().is_some_and(Stream::is_pending);
        self.jobs.is_empty() && self.outbox.is_empty() && !pending
    }

    /// The server is ending: what is under way is answered, what comes is refused.
    pub fn stop(&mut self) {
        self.connection.stop();
    }

    /// The socket goes, with all that was to be sent.
    pub fn drop_socket(&mut self, disks: &mut Disks) {
        self.socket = None;
        self.connection.hang_up();
        self.deadline = None;
        self.outbox.clear(&mut disks.pool);
        if let Some(incoming) = self.incoming.take() {
            self.give(incoming.buffer, disks);
        }
        self.hungry.clear();
        self.exclusive = None;
        for (_, job) in self.jobs.iter_mut() {
            job.more = false;
        }
        self.jobs.retain(|_, job| !job.is_over());
        while let Some((ticket, done)) = self.held.pop_front() {
            self.one_done(ticket, done, disks);
        }
    }

    fn give(&mut self, buffer: Buffer, disks: &mut Disks) {
        self.used -= buffer.as_slice().len();
        disks.pool.give(buffer);
    }

    fn take(&mut self, len: usize, disks: &mut Disks) -> Buffer {
        self.used += length_for(len);
        disks.pool.take(len)
    }

    /// May it have one more piece? `budget`: bytes of buffers that it may have.
    fn admits(&self, budget: usize) -> bool {
        let used = self.used + self.outbox.held();
        used == 0 || used + PIECE as usize <= budget
    }

    /// Takes what came, and begins what is asked.
    pub fn serve(&mut self, disks: &mut Disks, budget: usize) -> Served {
        self.blocked = false;
        for _ in 0..QUOTA {
            if self.socket.is_none() || self.ended {
                return Served::Waits;
            }
            match self.step(disks, budget) {
                Step::On => {}
                Step::Bytes if self.readable => self.read(disks),
                Step::Bytes => return Served::Waits,
                Step::Blocked(served) => {
                    self.blocked = true;
                    return served;
                }
            }
        }
        Served::More
    }

    fn step(&mut self, disks: &mut Disks, budget: usize) -> Step {
        if let Some(&job) = self.hungry.front() {
            return self.feed(job, disks, budget);
        }
        if let Some(incoming) = &mut self.incoming {
            let room = &mut incoming.buffer.as_mut_slice()[incoming.have..incoming.want];
            incoming.have += self.window.move_to(room);
            if incoming.have < incoming.want {
                return Step::Bytes;
            }
            self.came(disks);
            return Step::On;
        }
        match self.connection.state() {
            State::Request | State::SkipPayload => self.request(disks, budget),
            State::Payload => {
                // the next piece of a long write
                if !self.admits(budget) {
                    return Step::Blocked(Served::Waits);
                }
                if let Some(job) = self.jobs.iter().find(|(_, job)| job.more).map(|(job, _)| job) {
                    self.await_piece(job, disks);
                }
                Step::On
            }
            State::Ended => {
                self.ended = true;
                Step::On
            }
            State::Handshake => self.shake_hands(disks),
            _ => self.negotiate(disks),
        }
    }

    /// TLS: it begins when what is sent in the clear has gone.
    fn shake_hands(&mut self, disks: &mut Disks) -> Step {
        let (Some(stream), Some(tls)) = (&mut self.socket, &self.tls) else { return Step::On };
        if !self.outbox.is_empty() {
            return Step::Blocked(Served::Waits);
        }
        let begun = match stream.is_secure() {
            true => Ok(()),
            false => stream.secure(&tls.config, self.window.as_slice()),
        };
        let shaken = begun.and_then(|()| stream.shake_hands());
        self.window.take(self.window.len());
        match shaken {
            Ok(true) => {
                self.connection.secured();
                self.readable = true;
                Step::On
            }
            Ok(false) => Step::Blocked(Served::Waits),
            Err(error) => {
                tracing::info!(client = self.number, "connection ended in its TLS handshake: {error}");
                self.drop_socket(disks);
                Step::On
            }
        }
    }

    fn negotiate(&mut self, disks: &mut Disks) -> Step {
        if self.outbox.heads() > HEADS_MAX {
            return Step::Blocked(Served::Waits);
        }
        let (connection, window) = (&mut self.connection, self.window.as_slice());
        let told = disks.told();
        let negotiated = self.outbox.head(SINK_MIN, |sink| connection.negotiate(window, sink, &told));
        self.window.take(negotiated.taken);
        match negotiated.next {
            Next::More(_) => return Step::Bytes,
            Next::Again | Next::Full | Next::Handshake => {}
            Next::Transmission(export) => {
                self.export = export;
                self.disk = Some(disks.exports[export].disk);
                self.deadline = None;
            }
            Next::End(end) => self.end(end),
        }
        Step::On
    }

    fn end(&mut self, end: End) {
        if let End::Broken(violation) = end {
            tracing::info!(client = self.number, "connection ended: {violation}");
        }
        self.ended = true;
    }

    fn request(&mut self, disks: &mut Disks, budget: usize) -> Step {
        let full = self.jobs.len() >= JOBS_MAX || self.outbox.heads() > HEADS_MAX;
        if full || self.exclusive.is_some() || !self.admits(budget) {
            return Step::Blocked(Served::Waits);
        }
        if self.is_held(disks) {
            return Step::Blocked(Served::Held);
        }
        if disks.is_full() {
            return Step::Blocked(Served::Starved);
        }
        let export = disks.exports[self.export].told(&disks.driver);
        let Received { taken, what } = self.connection.receive(self.window.as_slice(), &export);
        self.window.take(taken);
        match what {
            What::More(_) => return Step::Bytes,
            What::Skipped => {}
            What::Request(request) => self.begin(request, disks),
            What::Refused(Refused { cookie, offset, errno, text }) => {
                self.refuse((cookie, offset), errno, text);
            }
            What::End(end) => self.end(end),
        }
        Step::On
    }

    fn is_held(&self, disks: &Disks) -> bool {
        self.disk.is_some_and(|disk| disks.is_held(disk))
    }

    fn style(&self) -> Style {
        self.connection.style()
    }

    fn refuse(&mut self, tag: (u64, u64), errno: Errno, text: &str) {
        let style = self.style();
        let whole = self.outbox.head(REPLY_HEAD_MAX, |sink| style.error(sink, tag, errno, text));
        debug_assert!(whole, "an error's head fits");
    }

    /// Reads once, past the window where a payload is awaited.
    fn read(&mut self, disks: &mut Disks) {
        let Some(socket) = &mut self.socket else { return };
        let direct = match &mut self.incoming {
            Some(Incoming { buffer, have, want, .. }) => &mut buffer.as_mut_slice()[*have..*want],
            None => &mut [],
        };
        match self.window.fill(socket, direct) {
            Ok(Some((came, all))) => {
                // less than there was room for: nothing is left, unless it is the end
                self.readable = all || self.closed || socket.is_secure();
                if let Some(incoming) = &mut self.incoming {
                    incoming.have += came;
                }
            }
            Ok(None) => self.drop_socket(disks),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.drop_socket(disks),
        }
    }

    fn ticket(&self, job: usize, piece: u16) -> u64 {
        Ticket { client: self.number, job: job as u16, piece }.to_user()
    }

    /// Begins a request.
    fn begin(&mut self, request: quod_nbd::Request, disks: &mut Disks) {
        let Some(disk) = self.disk else { return };
        let (offset, len) = (request.offset, request.len);
        let single = |flush| Job::new(request, Work::Single { flush });
        let (job, driver_request) = match request.command {
            Command::Read { .. } | Command::Cache => return self.begin_read(request, disks),
            Command::Write { fua } => {
                let mut job = Job::new(request, Work::Write { flush: false });
                job.work = Work::Write { flush: fua && job.is_long() };
                job.more = true;
                let job = self.jobs.insert(job);
                return self.await_piece(job, disks);
            }
            Command::Flush => (single(false), Request::flush(0)),
            Command::Trim { fua } => (single(fua), Request::discard(offset, len, 0)),
            Command::WriteZeroes { fua, no_hole, fast } => {
                let export = &disks.exports[self.export];
                let size = export.told(&disks.driver).size;
                if fast && !export.zeroes_fast(size, offset, len) {
                    let text = "zeroing this range would be no faster than writing it";
                    return self.refuse((request.cookie, offset), Errno::NotSupported, text);
                }
                let zeroes = Request::write_zeroes(offset, len, 0);
                let zeroes = if no_hole { zeroes } else { zeroes.may_unmap() };
                (single(false), if fua { zeroes.fua() } else { zeroes })
            }
            Command::BlockStatus { one, contexts } => {
                let status = Status::new(offset, len, contexts, one);
                (Job::new(request, Work::Status(Box::new(status))), Request::map(0, offset, len, 0))
            }
        };
        let job = self.jobs.insert(Job { out: 1, ..job });
        disks.submit(disk, Request { user: self.ticket(job, 0), ..driver_request });
    }

    fn begin_read(&mut self, request: quod_nbd::Request, disks: &mut Disks) {
        let mut job = match request.command {
            Command::Cache => {
                let len = request.len.min(CACHE_MAX);
                Job::new(quod_nbd::Request { len, ..request }, Work::Cache)
            }
            _ => Job::new(request, Work::Read),
        };
        if job.is_long() {
            job.more = true;
            let job = self.jobs.insert(job);
            return self.hungry.push_back(job);
        }
        let job = self.jobs.insert(job);
        self.read_piece(job, disks);
    }

    /// Hands over the next piece of a read.
    fn read_piece(&mut self, job: usize, disks: &mut Disks) {
        let Some(disk) = self.disk else { return };
        let (piece, offset, len) = self.jobs[job].next_piece();
        let buffer = self.take(len, disks);
        self.jobs[job].hand_over(len);
        let user = self.ticket(job, piece);
        disks.submit(disk, Request::read(offset, Buffers::Front(buffer, len), user));
    }

    /// Goes on with a long read.
    fn feed(&mut self, job: usize, disks: &mut Disks, budget: usize) -> Step {
        let state = &self.jobs[job];
        // the bytes of a simple reply have an order, so that there is one piece at a time
        let waits = state.out > 0 && matches!(self.style(), Style::Simple);
        // what is held back until it has gone counts, too, and must not stop it when the budget has shrunk
        let admitted = self.exclusive == Some(job) || self.admits(budget);
        if waits || !admitted {
            return Step::Blocked(Served::Waits);
        }
        if self.is_held(disks) {
            return Step::Blocked(Served::Held);
        }
        if disks.is_full() {
            return Step::Blocked(Served::Starved);
        }
        self.read_piece(job, disks);
        let state = &mut self.jobs[job];
        if state.handed == state.request.len {
            state.more = false;
            self.hungry.pop_front();
        }
        Step::On
    }

    /// Makes room for the next piece of a write, which comes now.
    fn await_piece(&mut self, job: usize, disks: &mut Disks) {
        let (_, _, want) = self.jobs[job].next_piece();
        let buffer = self.take(want, disks);
        self.incoming = Some(Incoming { job, buffer, have: 0, want });
    }

    /// A piece of a write has come.
    fn came(&mut self, disks: &mut Disks) {
        let (Some(incoming), Some(disk)) = (self.incoming.take(), self.disk) else { return };
        let Incoming { job, buffer, want, .. } = incoming;
        self.connection.took(want as u64);
        let user_job = self.ticket(job, 0);
        let state = &mut self.jobs[job];
        let (piece, offset, len) = state.next_piece();
        debug_assert_eq!(len, want, "the piece that was expected");
        state.hand_over(len);
        state.more = state.handed < state.request.len;
        let write = Request::write(offset, Buffers::Front(buffer, len), user_job | u64::from(piece));
        let durable = matches!(state.request.command, Command::Write { fua: true }) && !state.is_long();
        disks.submit(disk, if durable { write.fua() } else { write });
    }

    /// Something of it has ended in the driver.
    pub fn done(&mut self, ticket: Ticket, done: Done, disks: &mut Disks) {
        if self.exclusive.is_some_and(|job| job != usize::from(ticket.job)) {
            return self.held.push_back((ticket, done));
        }
        self.one_done(ticket, done, disks);
        while self.exclusive.is_none()
            && let Some((ticket, done)) = self.held.pop_front()
        {
            self.one_done(ticket, done, disks);
        }
    }

    fn one_done(&mut self, ticket: Ticket, done: Done, disks: &mut Disks) {
        let index = usize::from(ticket.job);
        let Some(job) = self.jobs.get_mut(index) else {
            debug_assert!(false, "a job stays until all of it has ended");
            return;
        };
        job.out -= 1;
        if let Err(error) = &done.result {
            tracing::warn!(client = self.number, command = ?job.request.command, "{error}");
            let (errno, text) = explain(error);
            job.fail(errno, text);
        }
        match job.work {
            Work::Read => self.read_done(index, ticket.piece, done, disks),
            Work::Cache | Work::Write { .. } => {
                if let Some(buffer) = done.buffer {
                    self.give(buffer, disks);
                }
            }
            Work::Single { .. } => {}
            Work::Status(_) => self.mapped(index, done, disks),
        }
        let Some(job) = self.jobs.get_mut(index) else { return };
        if job.failed.is_some() && job.more {
            self.give_up(index, disks);
        }
        self.finish(index, disks);
    }

    /// A job has failed before all of it was handed over.
    fn give_up(&mut self, index: usize, disks: &mut Disks) {
        self.jobs[index].more = false;
        self.hungry.retain(|job| *job != index);
        if matches!(self.jobs[index].work, Work::Write { .. }) {
            if let Some(incoming) = self.incoming.take_if(|incoming| incoming.job == index) {
                self.connection.took(incoming.have as u64);
                self.give(incoming.buffer, disks);
            }
            self.connection.skip_payload();
        }
    }

    /// Answers a job that is over.
    fn finish(&mut self, index: usize, disks: &mut Disks) {
        let Some(job) = self.jobs.get_mut(index).filter(|job| job.is_over()) else { return };
        let flush = match &mut job.work {
            Work::Write { flush } | Work::Single { flush } => std::mem::take(flush),
            Work::Read | Work::Cache | Work::Status(_) => false,
        };
        if flush && job.failed.is_none() && self.socket.is_some() {
            job.out = 1;
            let user = self.ticket(index, 0);
            if let Some(disk) = self.disk {
                disks.submit(disk, Request::flush(user));
            }
            return;
        }
        let job = self.jobs.remove(index);
        if self.socket.is_none() {
            return;
        }
        let (style, tag) = (self.style(), job.tag());
        let whole = match (job.failed, job.work) {
            (Some(_), Work::Read) if self.exclusive == Some(index) => {
                // "the server MUST immediately initiate a hard disconnect"
                return self.drop_socket(disks);
            }
            (Some((errno, text)), _) => {
                self.outbox.head(REPLY_HEAD_MAX, |sink| style.error(sink, tag, errno, text))
            }
            (None, Work::Read) if matches!(style, Style::Simple) || job.request.len <= PIECE => {
                self.exclusive = None;
                true
            }
            (None, Work::Read) => self.outbox.head(REPLY_HEAD_MAX, |sink| style.end(sink, tag)),
            (None, Work::Status(status)) => {
                self.outbox.bytes(status.reply(style, tag));
                true
            }
            (None, _) => self.outbox.head(REPLY_HEAD_MAX, |sink| style.success(sink, tag)),
        };
        debug_assert!(whole, "a head fits");
    }

    /// Bytes were read: they are sent, or told to be zeros.
    fn read_done(&mut self, index: usize, piece: u16, done: Done, disks: &mut Disks) {
        let Some(buffer) = done.buffer else { return };
        let job = &self.jobs[index];
        if self.socket.is_none() || job.failed.is_some() {
            return self.give(buffer, disks);
        }
        let (style, tag, long) = (self.style(), job.tag(), job.is_long());
        let (at, len) = job.piece(piece);
        let zeros = !matches!(style, Style::Simple)
            && done.met.contains(Met::ZERO)
            && !done.met.intersects(Met::HIT | Met::BACKING | Met::COMPRESSED);
        if zeros {
            self.give(buffer, disks);
            let whole = self.outbox.head(REPLY_HEAD_MAX, |sink| style.hole(sink, tag, at, len as u32, !long));
            debug_assert!(whole, "a hole's head fits");
            return;
        }
        if self.exclusive != Some(index) {
            let whole = self.outbox.head(REPLY_HEAD_MAX, |sink| style.data(sink, tag, at, len as u32, !long));
            debug_assert!(whole, "a head of data fits");
        }
        if long && matches!(style, Style::Simple) {
            self.exclusive = Some(index);
        }
        self.used -= buffer.as_slice().len();
        self.outbox.buffer(buffer, len);
    }

    /// A layer has told what it has.
    fn mapped(&mut self, index: usize, done: Done, disks: &mut Disks) {
        let Some(disk) = self.disk else { return };
        let job = &mut self.jobs[index];
        let Work::Status(status) = &mut job.work else { return };
        let Some(extent) = done.extent.filter(|_| done.result.is_ok()) else {
            if status.has_runs() {
                // what is known is told; the client asks on, and gets the error then
                job.failed = None;
            }
            return;
        };
        let layer = status.question().layer + 1;
        let below = disks.driver.disk_info(disk).and_then(|info| info.layers().get(layer));
        let below = below.map(|layer| layer.info.virtual_size);
        if status.found(extent, below) && self.socket.is_some() {
            let (next, rests) = (status.question(), status.should_rest());
            job.out = 1;
            let map = Request::map(next.layer, next.offset, next.len, self.ticket(index, 0));
            if rests { disks.submit_later(disk, map) } else { disks.submit(disk, map) }
        }
    }

    /// Sends what there is. True: something was sent.
    pub fn send(&mut self, disks: &mut Disks, stopping: bool) -> bool {
        let mut sent = false;
        if let Some(socket) = self.socket.as_mut().filter(|_| self.writable)
            && (!self.outbox.is_empty() || socket.is_pending())
        {
            let pushed = if self.outbox.is_empty() {
                socket.push()
            } else {
                self.outbox.send(socket, &mut disks.pool)
            };
            match pushed {
                Ok(all) => {
                    self.writable = all && !socket.is_pending();
                    sent = true;
                }
                Err(_) => self.drop_socket(disks),
            }
        }
        if (self.ended || stopping) && self.is_idle() {
            self.drop_socket(disks);
        }
        sent
    }
}

/// An error for a client: in the protocol's numbers, and in words that tell nothing of the host.
fn explain(error: &Error) -> (Errno, &'static str) {
    let Error::File { kind, .. } = error else {
        return (Errno::of_host(error.errno()), "the server cannot do this");
    };
    let text = match kind {
        ErrorKind::NoSpace | ErrorKind::DeviceTooSmall { .. } => "no space is left for the image",
        ErrorKind::Corrupt(_) => "the image contradicts its format there",
        ErrorKind::Poisoned | ErrorKind::Gone { .. } => "the image only reads until it is opened again",
        ErrorKind::Unsupported(_) => "the image needs something that the server does not have",
        _ => "input or output of the host failed",
    };
    (Errno::of_host(error.errno()), text)
}
