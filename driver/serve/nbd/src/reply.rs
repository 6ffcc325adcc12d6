//! Replies of the transmission phase: what stands in front of their bytes.
//!
//! Knows: "Simple reply message", "Structured reply chunk message", "Extended reply chunk message". Must
//! never know: where the bytes come from.
//! Invariants: a head is written as a whole; [`REPLY_HEAD_MAX`] bytes of room are enough for each.

use crate::bytes::{Sink, front};
use crate::wire::{EXTENDED_REPLY, Errno, SIMPLE_REPLY, STRUCTURED_REPLY, chunk};

/// How long a head gets, bytes, the text of an error included.
pub const REPLY_HEAD_MAX: usize = 128;
/// How much of a text fits it.
const TEXT_MAX: usize = REPLY_HEAD_MAX - 32 - 6;

/// Which replies a client has negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// A head of 16 bytes; the bytes that were read follow it.
    Simple,
    /// Chunks with heads of 20 bytes where there are bytes or errors, otherwise simple.
    Structured,
    /// Chunks with heads of 32 bytes.
    Extended,
}

impl Style {
    fn simple(sink: &mut Sink, cookie: u64, errno: u32) -> bool {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
        head[4..8].copy_from_slice(&errno.to_be_bytes());
        head[8..].copy_from_slice(&cookie.to_be_bytes());
        sink.put(&head)
    }

    /// A chunk's head, and what of it stands in front of its bytes; `len` is that of all that follows the
    /// head.
    pub(crate) fn chunk(self, sink: &mut Sink, tag: (u64, u64), flags: u16, kind: u16, len: u64) -> bool {
        let (cookie, offset) = tag;
        let mut head = [0; 32];
        let magic = if matches!(self, Style::Extended) { EXTENDED_REPLY } else { STRUCTURED_REPLY };
        head[..4].copy_from_slice(&magic.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        if matches!(self, Style::Extended) {
            head[16..24].copy_from_slice(&offset.to_be_bytes());
            head[24..32].copy_from_slice(&len.to_be_bytes());
            return sink.put(&head);
        }
        debug_assert!(u32::try_from(len).is_ok(), "a chunk of less than 2^32 bytes");
        head[16..20].copy_from_slice(&(len as u32).to_be_bytes());
        sink.put(&head[..20])
    }

    /// It was done, and there are no bytes. `tag`: cookie and offset of the request.
    #[must_use = "false: there was no room"]
    pub fn success(self, sink: &mut Sink, tag: (u64, u64)) -> bool {
        match self {
            Style::Simple | Style::Structured => Style::simple(sink, tag.0, 0),
            Style::Extended => self.chunk(sink, tag, chunk::DONE, chunk::NONE, 0),
        }
    }

    /// All chunks of a read were sent before. Not of simple replies, which have no chunks.
    ///
    /// # Panics
    /// If the style is [`Style::Simple`].
    #[must_use = "false: there was no room"]
    pub fn end(self, sink: &mut Sink, tag: (u64, u64)) -> bool {
        assert!(!matches!(self, Style::Simple), "a simple reply ends with its bytes");
        self.chunk(sink, tag, chunk::DONE, chunk::NONE, 0)
    }

    /// It was not done. Of the text as much is told as fits.
    #[must_use = "false: there was no room"]
    pub fn error(self, sink: &mut Sink, tag: (u64, u64), errno: Errno, text: &str) -> bool {
        if matches!(self, Style::Simple) {
            return Style::simple(sink, tag.0, errno as u32);
        }
        let text = front(text, TEXT_MAX);
        let before = sink.len();
        let whole = self.chunk(sink, tag, chunk::DONE, chunk::ERROR, 6 + text.len() as u64)
            && sink.put(&(errno as u32).to_be_bytes())
            && sink.put(&(text.len() as u16).to_be_bytes())
            && sink.put(text.as_bytes());
        if !whole {
            sink.cut(before);
        }
        whole
    }

    /// In front of `len` bytes that were read at `at`. Not `last`: more of the same reply follows. A simple
    /// reply has one head, with that of its first bytes, and no error behind it.
    #[must_use = "false: there was no room"]
    pub fn data(self, sink: &mut Sink, tag: (u64, u64), at: u64, len: u32, last: bool) -> bool {
        if matches!(self, Style::Simple) {
            return Style::simple(sink, tag.0, 0);
        }
        let before = sink.len();
        let flags = if last { chunk::DONE } else { 0 };
        let whole = self.chunk(sink, tag, flags, chunk::OFFSET_DATA, 8 + u64::from(len))
            && sink.put(&at.to_be_bytes());
        if !whole {
            sink.cut(before);
        }
        whole
    }

    /// `len` bytes at `at` read as zeros. Not of simple replies, which have no word for it.
    ///
    /// # Panics
    /// If the style is [`Style::Simple`], or there are no bytes.
    #[must_use = "false: there was no room"]
    pub fn hole(self, sink: &mut Sink, tag: (u64, u64), at: u64, len: u32, last: bool) -> bool {
        assert!(!matches!(self, Style::Simple) && len > 0, "a hole has a length, and a chunk");
        let before = sink.len();
        let flags = if last { chunk::DONE } else { 0 };
        let whole = self.chunk(sink, tag, flags, chunk::OFFSET_HOLE, 12)
            && sink.put(&at.to_be_bytes())
            && sink.put(&len.to_be_bytes());
        if !whole {
            sink.cut(before);
        }
        whole
    }
}
