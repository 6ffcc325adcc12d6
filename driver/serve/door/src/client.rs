//! A client of the control socket or of the metrics: its socket, what came, what goes to it.
//!
//! Knows: bytes of one connection. Must never know: what they mean, other clients.
//! Invariants: what is kept of it is bounded by one request and one reply; nothing is read before the reply
//! to the request before has gone.

use crate::http;
use crate::request::LINE_MAX;
use crate::socket::Socket;
use std::io::{self, Read, Write};
use std::time::Instant;

/// How it speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speech {
    Lines,
    Http,
}

/// What a client has asked.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    Line(Vec<u8>),
    /// More than a line may have.
    TooLong,
    Http(http::Wanted),
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Client {
    pub socket: Socket,
    pub speech: Speech,
    /// No other client has had it.
    pub serial: u64,
    /// When it was heard of last.
    pub last: Instant,
    /// Its request is under way.
    pub waits: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    readable: bool,
    writable: bool,
    /// It sends nothing more.
    closed: bool,
    /// Nothing more is taken from it: what is to be sent is the last.
    ends: bool,
    /// It has gone.
    gone: bool,
}

impl Client {
    pub fn new(socket: Socket, speech: Speech, serial: u64) -> Client {
        Client {
            socket,
            speech,
            serial,
            last: Instant::now(),
            waits: false,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            readable: true,
            writable: true,
            closed: false,
            ends: false,
            gone: false,
        }
    }

    /// The socket has something to tell.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    fn room(&self) -> usize {
        let most = if self.speech == Speech::Lines { LINE_MAX } else { http::HEAD_MAX };
        most - self.input.len()
    }

    /// It may be read, or has been heard: there is something to do.
    pub fn is_awake(&self) -> bool {
        self.is_listened_to() && (self.readable || self.has_heard())
    }

    fn is_listened_to(&self) -> bool {
        !self.waits && self.output.is_empty() && !self.ends && !self.gone
    }

    fn has_heard(&self) -> bool {
        match self.speech {
            Speech::Lines => {
                self.input.contains(&b'\n') || self.room() == 0 || self.closed && !self.input.is_empty()
            }
            Speech::Http => http::read(&self.input).is_some(),
        }
    }

    /// Takes what has come, as much as there is room for.
    pub fn read(&mut self) {
        if !self.is_listened_to() || !self.readable || self.room() == 0 {
            return;
        }
        let mut bytes = [0; LINE_MAX];
        let most = self.room().min(bytes.len());
        match self.socket.read(&mut bytes[..most]) {
            Ok(0) => (self.closed, self.readable) = (true, false),
            Ok(len) => {
                self.last = Instant::now();
                self.input.extend_from_slice(&bytes[..len]);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.readable = false,
            io::ErrorKind::Interrupted => {}
            _ => self.gone = true,
        }
    }

    /// The next request.
    pub fn hear(&mut self) -> Option<Heard> {
        if !self.is_listened_to() || !self.has_heard() {
            return None;
        }
        self.last = Instant::now();
        if self.speech == Speech::Http {
            self.ends = true;
            return http::read(&std::mem::take(&mut self.input)).map(Heard::Http);
        }
        let Some(end) = self.input.iter().position(|byte| *byte == b'\n') else {
            let rest = std::mem::take(&mut self.input);
            if rest.len() < LINE_MAX {
                // the last line, without an end
                return Some(Heard::Line(rest));
            }
            self.ends = true;
            return Some(Heard::TooLong);
        };
        let mut line: Vec<u8> = self.input.drain(..=end).collect();
        line.pop();
        Some(Heard::Line(line))
    }

    /// The reply to what it has asked.
    pub fn answer(&mut self, reply: Vec<u8>) {
        debug_assert!(self.output.is_empty(), "one reply at a time");
        self.waits = false;
        (self.output, self.sent) = (reply, 0);
    }

    /// Sends what there is, as far as it goes.
    pub fn send(&mut self) {
        while self.writable && !self.gone && self.sent < self.output.len() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        if self.sent == self.output.len() {
            // what was long is not kept
            (self.output, self.sent) = (Vec::new(), 0);
        }
    }

    /// Nothing is taken from it or sent any more.
    pub fn leave(&mut self) {
        self.gone = true;
    }

    /// Nothing is left of it.
    pub fn is_over(&self) -> bool {
        let done = self.output.is_empty() && !self.waits;
        let silent = self.ends || self.closed && !self.has_heard();
        self.gone || done && silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::net::UnixStream;
    use std::os::unix::net;

    fn client(speech: Speech) -> (Client, net::UnixStream) {
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Client::new(Socket::Unix(UnixStream::from_std(ours)), speech, 1), theirs)
    }

    #[test]
    fn lines_come_one_by_one_and_the_reply_before_the_next() {
        let (mut client, mut other) = client(Speech::Lines);
        other.write_all(b"a\nb\nlast").unwrap();
        client.read();
        assert_eq!(client.hear(), Some(Heard::Line(b"a".to_vec())));
        client.answer(b"1\n".to_vec());
        assert_eq!(client.hear(), None, "the reply has not gone");
        client.send();
        assert_eq!(client.hear(), Some(Heard::Line(b"b".to_vec())));
        assert_eq!(client.hear(), None);
        other.shutdown(std::net::Shutdown::Write).unwrap();
        client.read();
        assert!(!client.is_over());
        assert_eq!(client.hear(), Some(Heard::Line(b"last".to_vec())));
        assert!(client.is_over());
    }

    #[test]
    fn a_line_without_an_end_is_not_kept() {
        let (mut client, mut other) = client(Speech::Lines);
        other.write_all(&[b'x'; 3 * LINE_MAX]).unwrap();
        for _ in 0..5 {
            client.read();
        }
        assert_eq!(client.input.len(), LINE_MAX);
        assert_eq!(client.hear(), Some(Heard::TooLong));
        client.answer(b"no\n".to_vec());
        client.send();
        assert!(client.is_over());
    }

    #[test]
    fn a_client_that_reads_nothing_is_sent_one_reply_and_no_more() {
        let (mut client, mut other) = client(Speech::Lines);
        other.write_all(b"a\nb\n").unwrap();
        client.read();
        assert!(client.hear().is_some());
        client.answer(vec![b'x'; 8 << 20]);
        client.send();
        assert!(!client.writable && client.sent > 0);
        assert_eq!((client.hear(), client.is_awake(), client.is_over()), (None, false, false));
        drop(other);
        client.wake(true, true);
        client.send();
        assert!(client.is_over());
    }

    #[test]
    fn one_http_request_a_connection() {
        let (mut client, mut other) = client(Speech::Http);
        other.write_all(b"GET / HTTP/1.0\r\n").unwrap();
        client.read();
        assert_eq!(client.hear(), None);
        other.write_all(b"\r\nGET / HTTP/1.0\r\n\r\n").unwrap();
        client.read();
        assert_eq!(client.hear(), Some(Heard::Http(http::Wanted::Metrics { body: true })));
        client.answer(b"x".to_vec());
        client.send();
        assert!(client.is_over());
    }
}
