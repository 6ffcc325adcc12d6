//! Bytes in and out, with their bounds: a reader of what came, a writer of what goes.
//!
//! Knows: lengths, big-endian integers. Must never know: what they mean.
//! Invariants: nothing is read behind the end; nothing is written beyond the room, and what does not fit as a
//! whole leaves no trace.

/// Bytes that came, taken from the front. `None`: they end before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { left: bytes }
    }

    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.left.split_at_checked(len)?;
        self.left = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.left.split_first_chunk()?;
        self.left = rest;
        Some(*front)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    pub fn len(&self) -> usize {
        self.left.len()
    }
}

/// The front of a text, at most `len` bytes, that ends with a whole character.
pub(crate) fn front(text: &str, len: usize) -> &str {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=len.min(text.len())).rev().find(fits).unwrap_or(0);
    &text[..end]
}

/// Room for what is to be sent, filled from the front.
#[derive(Debug)]
pub struct Sink<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl<'a> Sink<'a> {
    /// An empty one over this memory.
    pub fn new(room: &'a mut [u8]) -> Sink<'a> {
        Sink { room, len: 0 }
    }

    /// Bytes that were written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was written.
    pub fn as_slice(&self) -> &[u8] {
        &self.room[..self.len]
    }

    /// Bytes that still fit.
    pub fn free(&self) -> usize {
        self.room.len() - self.len
    }

    /// Writes the bytes, or nothing if they do not fit: false.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.room.get_mut(self.len..).and_then(|rest| rest.get_mut(..bytes.len())) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// Overwrites what was written at `at`.
    ///
    /// # Panics
    /// If nothing was written there: a mistake of the codec's own.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "only what was written is changed");
        self.room[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Forgets what was written from `len` on.
    pub(crate) fn cut(&mut self, len: usize) {
        debug_assert!(len <= self.len, "a cut makes nothing longer");
        self.len = self.len.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_ends_where_the_bytes_end() {
        let mut reader = Reader::new(&[0, 1, 0, 0, 0, 2, 9]);
        assert_eq!((reader.u16(), reader.u32(), reader.u16()), (Some(1), Some(2), None));
        assert_eq!((reader.len(), reader.bytes(2), reader.bytes(1)), (1, None, Some(&[9][..])));
        assert!(reader.is_empty() && reader.u64().is_none());
    }

    #[test]
    fn a_front_ends_with_a_character() {
        assert_eq!([front("a\u{e4}b", 2), front("a\u{e4}b", 3), front("", 5)], ["a", "a\u{e4}", ""]);
    }

    #[test]
    fn a_sink_takes_all_or_nothing() {
        let mut room = [0; 5];
        let mut sink = Sink::new(&mut room);
        assert!(sink.put(&[1, 2, 3]) && !sink.put(&[4, 5, 6]) && sink.put(&[7]));
        sink.patch(0, &[9]);
        assert_eq!((sink.as_slice(), sink.free(), sink.len()), (&[9, 2, 3, 7][..], 1, 4));
        sink.cut(1);
        assert_eq!((sink.as_slice(), sink.is_empty()), (&[9][..], false));
    }
}
