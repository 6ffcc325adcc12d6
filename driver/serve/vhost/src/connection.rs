//! The socket of a front end: whole messages, one at a time, when nothing stands in their way.
//!
//! Knows: where a message ends, what must be quiet before it is handled. Must never know: what it changes.
//!
//! Invariants: nothing here blocks: a message is handled when all of it has come, and when its answer has
//! room in the socket (`vhost` waits for neither, or waits for ever); one that changes a ring waits until
//! nothing of that ring is under way.

use crate::blk::Facts;
use crate::channel::{Channel, SET_BACKEND_REQ_FD};
use crate::front::Front;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error, message::MAX_MSG_SIZE};

/// Bytes of a message's head, and of what is looked at behind it.
const HEAD: usize = 12;
const LOOKED_AT: usize = HEAD + 8;

/// What has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Not all of a message.
    Nothing,
    /// The front end has gone, or says what is no message.
    Gone,
    /// A message.
    Message {
        /// Which.
        code: u32,
        /// This is not to be under way before.
        quiet: Quiet,
        /// The front end is told if it is refused.
        told: bool,
    },
}

/// What must not be under way when a message is handled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quiet {
    Nothing,
    Ring(usize),
    All,
}

// numbers of messages, by the specification
const GET_FEATURES: u32 = 1;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const GET_INFLIGHT_FD: u32 = 31;
const GET_MAX_MEM_SLOTS: u32 = 36;

/// What a message needs, by its number and the first bytes of its body.
fn quiet(code: u32, body: &[u8]) -> Quiet {
    match code {
        GET_FEATURES
        | GET_PROTOCOL_FEATURES
        | SET_PROTOCOL_FEATURES
        | GET_QUEUE_NUM
        | SET_BACKEND_REQ_FD
        | GET_CONFIG
        | SET_CONFIG
        | GET_INFLIGHT_FD
        | GET_MAX_MEM_SLOTS
        | SET_VRING_CALL
        | SET_VRING_ERR => Quiet::Nothing,
        SET_VRING_NUM | SET_VRING_ADDR | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE => {
            match body.first_chunk() {
                Some(index) => Quiet::Ring(u32::from_le_bytes(*index) as usize),
                None => Quiet::All,
            }
        }
        SET_VRING_KICK => body.first().map_or(Quiet::All, |&index| Quiet::Ring(index.into())),
        _ => Quiet::All,
    }
}

/// Messages whose answers are no words about success.
const ASKING: [u32; 7] = [
    GET_FEATURES,
    GET_VRING_BASE,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_CONFIG,
    GET_INFLIGHT_FD,
    GET_MAX_MEM_SLOTS,
];
/// The flag of messages whose success is to be told.
const NEED_REPLY: u32 = 8;

/// See the module's header.
pub struct Connection {
    socket: UnixStream,
    handler: BackendReqHandler<Mutex<Front>>,
    front: Arc<Mutex<Front>>,
    channel: Option<Channel>,
}

impl Connection {
    pub fn new(socket: UnixStream, facts: Facts) -> io::Result<Connection> {
        socket.set_nonblocking(true)?;
        let front = Arc::new(Mutex::new(Front::new(facts)));
        let handler = BackendReqHandler::from_stream(socket.try_clone()?, Arc::clone(&front));
        Ok(Connection { socket, handler, front, channel: None })
    }

    /// What was said so far.
    pub fn front(&self) -> MutexGuard<'_, Front> {
        // a handler that panics has ended the process's only thread that serves
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        SourceFd(&self.socket.as_raw_fd()).register(registry, token, interests)
    }

    pub fn deregister(&mut self, registry: &Registry) {
        let _ = SourceFd(&self.socket.as_raw_fd()).deregister(registry);
    }

    /// Looks at what has come, and leaves it there.
    pub fn hear(&self) -> Heard {
        let mut bytes = [0; LOOKED_AT];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let got = match rustix::net::recv(&self.socket, &mut bytes, flags) {
            Ok((0, _)) => return Heard::Gone,
            Ok((got, _)) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        };
        let here = rustix::io::ioctl_fionread(&self.socket).unwrap_or(0);
        if got < HEAD {
            // a head in pieces: nobody sends it so
            return if here >= HEAD as u64 || self.is_over() { Heard::Gone } else { Heard::Nothing };
        }
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let len = word(8) as usize;
        if len > MAX_MSG_SIZE {
            return Heard::Gone;
        }
        if here < (HEAD + len) as u64 {
            return if self.is_over() { Heard::Gone } else { Heard::Nothing };
        }
        if !self.has_room() {
            return Heard::Nothing;
        }
        let code = word(0);
        let told = word(4) & NEED_REPLY != 0 && !ASKING.contains(&code);
        Heard::Message { code, quiet: quiet(code, &bytes[HEAD..got.min(HEAD + len)]), told }
    }

    fn is_ready(&self, flags: PollFlags) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut polled = [PollFd::new(&self.socket, flags)];
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The front end says no more.
    fn is_over(&self) -> bool {
        self.is_ready(PollFlags::RDHUP)
    }

    /// An answer would be taken at once: it is small, and this is told when three quarters are free.
    fn has_room(&self) -> bool {
        self.is_ready(PollFlags::OUT)
    }

    /// Handles the message that was heard.
    pub fn handle(&mut self, code: u32, told: bool) -> Result<(), Error> {
        if code == SET_BACKEND_REQ_FD {
            self.channel = Some(Channel::take(&self.socket, told).map_err(Error::ReqHandlerError)?);
            return Ok(());
        }
        self.handler.handle_request()
    }

    /// The disk has another size.
    pub fn resized(&mut self, sectors: u64) {
        self.front().resized(sectors);
        if let Some(channel) = &mut self.channel {
            channel.tell_of_change();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::ID;
    use std::io::Write;

    fn pair() -> (UnixStream, Connection) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let facts = Facts { sectors: 8, read_only: false, cluster: 512, queues: 2, id: [0; ID] };
        (theirs, Connection::new(ours, facts).unwrap())
    }

    fn head(code: u32, len: u32) -> Vec<u8> {
        [code, 1, len].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn half_a_message_is_waited_for() {
        let (mut theirs, ours) = pair();
        let mut message = head(GET_VRING_BASE, 8);
        message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        for (n, byte) in message.iter().enumerate() {
            assert_eq!(ours.hear(), Heard::Nothing, "{n} bytes");
            theirs.write_all(&[*byte]).unwrap();
        }
        let heard = ours.hear();
        assert!(matches!(heard, Heard::Message { quiet: Quiet::Ring(1), told: false, .. }), "{heard:?}");
    }

    #[test]
    fn messages_that_are_too_long_and_ends_are_the_end() {
        let (mut theirs, ours) = pair();
        theirs.write_all(&head(1, MAX_MSG_SIZE as u32 + 1)).unwrap();
        assert_eq!(ours.hear(), Heard::Gone);
        let (theirs, ours) = pair();
        assert_eq!(ours.hear(), Heard::Nothing);
        drop(theirs);
        assert_eq!(ours.hear(), Heard::Gone);
        for half in [1, HEAD, HEAD + 7] {
            let (mut theirs, ours) = pair();
            let mut message = head(GET_VRING_BASE, 8);
            message.resize(half, 0);
            message.truncate(half);
            theirs.write_all(&message).unwrap();
            assert_eq!(ours.hear(), Heard::Nothing);
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(ours.hear(), Heard::Gone, "{half} bytes, and no more");
        }
    }

    #[test]
    fn answers_that_nobody_reads_do_not_block() {
        let (mut theirs, mut ours) = pair();
        theirs.set_nonblocking(true).unwrap();
        let mut handled = 0;
        while handled < 100_000 {
            if theirs.write_all(&head(GET_FEATURES, 0)).is_err() {
                break;
            }
            match ours.hear() {
                Heard::Message { code, told, .. } => ours.handle(code, told).unwrap(),
                _ => break,
            }
            handled += 1;
        }
        assert!((10..100_000).contains(&handled), "{handled}");
        assert_eq!(ours.hear(), Heard::Nothing, "until somebody reads");
    }

    #[test]
    fn what_changes_a_ring_waits_for_that_ring() {
        let index = 5u64.to_ne_bytes();
        assert_eq!(quiet(GET_VRING_BASE, &index), Quiet::Ring(5));
        assert_eq!(quiet(SET_VRING_KICK, &[5, 1, 0, 0, 0, 0, 0, 0]), Quiet::Ring(5));
        assert_eq!(quiet(SET_VRING_CALL, &index), Quiet::Nothing);
        assert_eq!(quiet(GET_VRING_BASE, &[]), Quiet::All);
        assert_eq!(quiet(SET_BACKEND_REQ_FD, &[]), Quiet::Nothing);
        for code in [2, 3, 4, 5, 32, 34, 37, 38, 999] {
            assert_eq!(quiet(code, &index), Quiet::All, "{code}");
        }
    }
}
