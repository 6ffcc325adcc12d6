//! What goes to a client: heads of replies, and the buffers behind them, in order.
//!
//! Knows: bytes, buffers. Must never know: what a reply says.
//! Invariants: what is pushed is sent once, in order, whole; a buffer goes back to the pool when its last
//! byte was sent.

use crate::pool::Pool;
use quod::Buffer;
use quod_nbd::Sink;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

/// Pieces that go with one call.
const PIECES_MAX: usize = 64;
/// Heads that were sent are forgotten at the latest when they are so many bytes.
const SENT_MAX: usize = 32 << 10;

#[derive(Debug)]
enum Piece {
    /// So many bytes of the heads.
    Heads(usize),
    /// The first bytes of a buffer.
    Buffer(Buffer, usize),
    Bytes(Vec<u8>),
}

/// See the module's header.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Piece>,
    heads: Vec<u8>,
    /// Bytes of the heads that were sent.
    sent: usize,
    /// Bytes of the first piece that were sent.
    within: usize,
    /// Of the buffers.
    held: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of heads that were not sent.
    pub fn heads(&self) -> usize {
        self.heads.len() - self.sent
    }

    /// Writes a head of at most `room` bytes.
    pub fn head<T>(&mut self, room: usize, write: impl FnOnce(&mut Sink) -> T) -> T {
        let before = self.heads.len();
        self.heads.resize(before + room, 0);
        let mut sink = Sink::new(&mut self.heads[before..]);
        let written = write(&mut sink);
        let len = sink.len();
        self.heads.truncate(before + len);
        match self.pieces.back_mut() {
            Some(Piece::Heads(last)) => *last += len,
            _ if len > 0 => self.pieces.push_back(Piece::Heads(len)),
            _ => {}
        }
        written
    }

    /// The first `len` bytes of a buffer.
    pub fn buffer(&mut self, buffer: Buffer, len: usize) {
        debug_assert!(len > 0 && len <= buffer.as_slice().len());
        self.held += buffer.as_slice().len();
        self.pieces.push_back(Piece::Buffer(buffer, len));
    }

    pub fn bytes(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.pieces.push_back(Piece::Bytes(bytes));
        }
    }

    /// Bytes of the buffers that are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Sends as much as the socket takes. False: it takes no more for now.
    pub fn send(&mut self, to: &mut impl Write, pool: &mut Pool) -> io::Result<bool> {
        while !self.pieces.is_empty() {
            let len = {
                let mut lists = [IoSlice::new(&[]); PIECES_MAX];
                let count = self.gather(&mut lists);
                match to.write_vectored(&lists[..count]) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            };
            self.advance(len, pool);
        }
        Ok(true)
    }

    fn gather<'a>(&'a self, lists: &mut [IoSlice<'a>; PIECES_MAX]) -> usize {
        let (mut head, mut within) = (self.sent, self.within);
        let mut count = 0;
        for (piece, list) in self.pieces.iter().zip(lists.iter_mut()) {
            let bytes = match piece {
                Piece::Heads(len) => {
                    let bytes = &self.heads[head..head + len - within];
                    head += len - within;
                    bytes
                }
                Piece::Buffer(buffer, len) => &buffer.as_slice()[within..*len],
                Piece::Bytes(bytes) => &bytes[within..],
            };
            *list = IoSlice::new(bytes);
            within = 0;
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut len: usize, pool: &mut Pool) {
        while len > 0 {
            let Some(first) = self.pieces.front() else {
                debug_assert!(false, "no more is sent than there was");
                break;
            };
            let heads = matches!(first, Piece::Heads(_));
            let whole = match first {
                Piece::Heads(len) | Piece::Buffer(_, len) => *len,
                Piece::Bytes(bytes) => bytes.len(),
            };
            let now = len.min(whole - self.within);
            len -= now;
            self.within += now;
            self.sent += if heads { now } else { 0 };
            if self.within == whole {
                self.within = 0;
                if let Some(Piece::Buffer(buffer, _)) = self.pieces.pop_front() {
                    self.held -= buffer.as_slice().len();
                    pool.give(buffer);
                }
            }
        }
        if self.sent == self.heads.len() {
            self.heads.clear();
            self.sent = 0;
        } else if self.sent > SENT_MAX {
            self.heads.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Nothing more is sent.
    pub fn clear(&mut self, pool: &mut Pool) {
        for piece in self.pieces.drain(..) {
            if let Piece::Buffer(buffer, _) = piece {
                pool.give(buffer);
            }
        }
        self.heads.clear();
        (self.sent, self.within, self.held) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quod_nbd::Style;

    /// Takes a few bytes a call, and sometimes none.
    struct Slow {
        got: Vec<u8>,
        calls: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, lists: &[IoSlice<'_>]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(3) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = lists.iter().flat_map(|list| list.to_vec()).collect();
            let len = all.len().min(1 + self.calls * 37 % 5000);
            self.got.extend(&all[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_is_sent_once_and_in_order_however_slowly() {
        let (mut pool, mut outbox) = (Pool::default(), Outbox::default());
        let (mut slow, mut expected) = (Slow { got: Vec::new(), calls: 0 }, Vec::new());
        for n in 0..400u64 {
            let mut head = [0; 16];
            let mut sink = Sink::new(&mut head);
            assert!(Style::Simple.success(&mut sink, (n, 0)));
            expected.extend(head);
            assert!(outbox.head(100, |sink| Style::Simple.success(sink, (n, 0))));
            if n % 2 == 0 {
                let mut buffer = pool.take(5000);
                let len = 1 + n as usize * 13 % 5000;
                buffer.as_mut_slice()[..len].fill(n as u8);
                expected.extend(&buffer.as_slice()[..len]);
                outbox.buffer(buffer, len);
            }
            if n % 7 == 0 {
                outbox.bytes(vec![0xee; n as usize]);
                expected.extend(vec![0xee; n as usize]);
            }
            if n % 5 == 0 {
                outbox.send(&mut slow, &mut pool).unwrap();
            }
        }
        while !outbox.send(&mut slow, &mut pool).unwrap() {}
        assert!(slow.got == expected, "{} of {} bytes", slow.got.len(), expected.len());
        assert_eq!((outbox.held(), outbox.heads(), outbox.is_empty()), (0, 0, true));
    }
}
