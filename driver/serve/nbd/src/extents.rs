//! Block status: one chunk of descriptors, a context's.
//!
//! Knows: "`NBD_REPLY_TYPE_BLOCK_STATUS`", "`NBD_REPLY_TYPE_BLOCK_STATUS_EXT`". Must never know: where a
//! status comes from.
//! Invariants: neighbours of one status are one descriptor; none is empty; a chunk has at least one, and at
//! most as many as the sink has room for and as the protocol wants (2^20).

use crate::bytes::Sink;
use crate::context::Context;
use crate::reply::Style;
use crate::wire::chunk;

/// "A server SHOULD NOT send more than 2^20 status descriptors in a single chunk".
const DESCRIPTORS_MAX: u32 = 1 << 20;

/// A chunk that is being written. What is dropped without [`Descriptors::end`] is taken back.
#[derive(Debug)]
pub struct Descriptors<'a, 'b> {
    sink: &'a mut Sink<'b>,
    style: Style,
    tag: (u64, u64),
    context: Context,
    last: bool,
    start: usize,
    count: u32,
    /// The descriptor that may still grow: bytes, status.
    open: Option<(u64, u32)>,
}

impl<'a, 'b> Descriptors<'a, 'b> {
    /// A chunk of this context, for the request of this cookie and offset; `last`: the last of its reply.
    /// None: there is no room for it.
    ///
    /// # Panics
    /// If the style is [`Style::Simple`], which has no chunks.
    pub fn begin(
        sink: &'a mut Sink<'b>,
        style: Style,
        tag: (u64, u64),
        context: Context,
        last: bool,
    ) -> Option<Descriptors<'a, 'b>> {
        assert!(!matches!(style, Style::Simple), "a simple reply has no block status");
        let start = sink.len();
        let whole = style.chunk(sink, tag, 0, 0, 0)
            && sink.put(&context.id().to_be_bytes())
            && (matches!(style, Style::Structured) || sink.put(&[0; 4]));
        if !whole {
            sink.cut(start);
            return None;
        }
        Some(Descriptors { sink, style, tag, context, last, start, count: 0, open: None })
    }

    const fn size(&self) -> usize {
        if matches!(self.style, Style::Extended) { 16 } else { 8 }
    }

    /// The next `len` bytes have this status. False: it does not fit any more, and the chunk ends before it.
    ///
    /// # Panics
    /// If there are no bytes.
    pub fn push(&mut self, len: u64, status: u32) -> bool {
        assert!(len > 0, "a descriptor has a length");
        let longest = if matches!(self.style, Style::Extended) { u64::MAX } else { u64::from(u32::MAX) };
        if let Some((open, same)) = &mut self.open
            && *same == status
            && open.checked_add(len).is_some_and(|sum| sum <= longest)
        {
            *open += len;
            return true;
        }
        // room for the one that is open, and for this one
        let wanted = self.size() * (1 + usize::from(self.open.is_some()));
        if len > longest || self.sink.free() < wanted || self.count + 1 >= DESCRIPTORS_MAX {
            return false;
        }
        self.close();
        self.open = Some((len, status));
        true
    }

    fn close(&mut self) {
        let Some((len, status)) = self.open.take() else { return };
        let whole = if matches!(self.style, Style::Extended) {
            self.sink.put(&len.to_be_bytes()) && self.sink.put(&u64::from(status).to_be_bytes())
        } else {
            self.sink.put(&(len as u32).to_be_bytes()) && self.sink.put(&status.to_be_bytes())
        };
        debug_assert!(whole, "a descriptor is opened where there is room for it");
        self.count += 1;
    }

    /// Ends the chunk; false: it has no descriptor, and is taken back.
    pub fn end(mut self) -> bool {
        self.close();
        if self.count == 0 {
            return false;
        }
        let mut head = [0; 32];
        let mut whole = Sink::new(&mut head);
        let flags = if self.last { chunk::DONE } else { 0 };
        let (kind, before) = match self.style {
            Style::Extended => (chunk::BLOCK_STATUS_EXT, 8),
            Style::Simple | Style::Structured => (chunk::BLOCK_STATUS, 4),
        };
        let len = before + u64::from(self.count) * self.size() as u64;
        let fits = self.style.chunk(&mut whole, self.tag, flags, kind, len);
        debug_assert!(fits, "a head of at most 32 bytes");
        let behind = self.start + whole.len();
        self.sink.patch(self.start, whole.as_slice());
        self.sink.patch(behind, &self.context.id().to_be_bytes());
        if matches!(self.style, Style::Extended) {
            self.sink.patch(behind + 4, &self.count.to_be_bytes());
        }
        // it stays
        self.start = self.sink.len();
        true
    }
}

impl Drop for Descriptors<'_, '_> {
    fn drop(&mut self) {
        self.sink.cut(self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(style: Style, room: &mut [u8], runs: &[(u64, u32)]) -> (usize, usize) {
        let mut sink = Sink::new(room);
        let Some(mut chunk) = Descriptors::begin(&mut sink, style, (7, 9), Context::Depth, true) else {
            return (0, sink.len());
        };
        let taken = runs.iter().take_while(|(len, status)| chunk.push(*len, *status)).count();
        assert_eq!(chunk.end(), taken > 0);
        (taken, sink.len())
    }

    /// "The server SHOULD use different status values between consecutive descriptors".
    #[test]
    fn neighbours_of_one_status_are_one() {
        let mut room = [0; 100];
        assert_eq!(chunk(Style::Structured, &mut room, &[(512, 1), (512, 1), (100, 0)]), (3, 20 + 4 + 16));
        assert_eq!(room[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5]);
        assert_eq!(room[16..24], [0, 0, 0, 20, 0, 0, 0, 2]);
        assert_eq!(room[24..40], [0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0, 0]);
    }

    /// "`NBD_REPLY_TYPE_BLOCK_STATUS_EXT`": lengths of 64 bits, and a count.
    #[test]
    fn extended_descriptors_are_counted_and_long() {
        let mut room = [0; 100];
        assert_eq!(chunk(Style::Extended, &mut room, &[(1 << 40, 3), (1 << 40, 3)]), (2, 32 + 8 + 16));
        assert_eq!(room[16..40], [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(room[40..56], [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn compact_descriptors_end_at_32_bits() {
        let mut room = [0; 100];
        let most = u64::from(u32::MAX);
        assert_eq!(chunk(Style::Structured, &mut room, &[(most, 1), (1, 1)]), (2, 24 + 16));
        assert_eq!(chunk(Style::Structured, &mut room, &[(most + 1, 1)]), (0, 0));
    }

    #[test]
    fn a_full_sink_ends_a_chunk_and_leaves_no_half_of_one() {
        let runs: [(u64, u32); 9] = core::array::from_fn(|n| (1, n as u32));
        for room in 0..100 {
            let (taken, len) = chunk(Style::Structured, &mut [0; 100][..room], &runs);
            let expected = room.saturating_sub(24) / 8;
            assert_eq!(
                (taken, len),
                (expected.min(9), if expected > 0 { 24 + 8 * expected.min(9) } else { 0 })
            );
        }
    }
}
