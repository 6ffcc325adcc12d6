//! Aligned buffers on loan: for tables, for transfers that do not fit the device's alignment, for fills.
//!
//! Knows: sizes. Must never know: what the bytes mean. Buffers are kept by size class and reused, so that the
//! hot path does not allocate once warm; what is idle is bounded by [`IDLE`] per class.
//! Invariant: a loan is given back once, and only when no operation uses its bytes.

use crate::memory::buffers;
use quod_backend::{Buffer, Segment, Segments};

/// Size classes; a longer loan gets its own buffer, which is freed when it comes back. The last is for the
/// largest compressed cluster, rounded out to blocks: giving memory back to the host takes long.
const CLASSES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, (2 << 20) + (8 << 10)];
/// Idle buffers kept per class.
const IDLE: [usize; 6] = [256, 64, 64, 32, 8, 4];
/// Buffers of the smallest class made at the start, in one piece that is registered with the backend.
const FIRST: usize = 128;
/// Zeros to write, in pieces of this many bytes. Nobody writes to them, so the host backs them with its one
/// zero page.
const ZEROS: usize = 1 << 20;

/// A buffer on loan.
#[derive(Debug)]
pub(crate) struct Loan(u32);

#[derive(Debug)]
struct LoanSlot {
    class: usize,
    memory: Segment,
    /// None: the memory is part of the first piece, or gone.
    owner: Option<Buffer>,
}

/// The lender.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Nothing where the backend is a model.
    first: Buffer,
    /// None: nobody has asked yet.
    zeros: Option<Buffer>,
    slots: Vec<LoanSlot>,
    /// Free slots per class.
    idle: [Vec<u32>; CLASSES.len()],
    /// Slots without memory.
    gone: Vec<u32>,
    lent: usize,
}

impl Arena {
    /// `ahead`: with a first piece, which is registered.
    pub(crate) fn new(ahead: bool) -> Arena {
        let count = if ahead { FIRST } else { 0 };
        let mut first = Buffer::zeroed(count * CLASSES[0]);
        let mut slots = Vec::with_capacity(4 * FIRST);
        for index in 0..count {
            let memory = buffers::part(&mut first, index * CLASSES[0], CLASSES[0]);
            slots.push(LoanSlot { class: 0, memory, owner: None });
        }
        let mut idle = IDLE.map(Vec::with_capacity);
        idle[0].extend((0..count as u32).rev());
        Arena { first, zeros: None, slots, idle, gone: Vec::with_capacity(4 * FIRST), lent: 0 }
    }

    /// The piece to register with the backend.
    pub(crate) fn first_piece(&mut self) -> Segment {
        buffers::whole(&mut self.first)
    }

    /// At least `len` bytes, page-aligned, of unspecified contents.
    pub(crate) fn take(&mut self, len: usize) -> Loan {
        self.lent += 1;
        let class = CLASSES.iter().position(|&size| len <= size);
        if let Some(index) = class.and_then(|class| self.idle[class].pop()) {
            return Loan(index);
        }
        let mut owner = Buffer::zeroed(class.map_or(len, |class| CLASSES[class]));
        let memory = buffers::whole(&mut owner);
        let slot = LoanSlot { class: class.unwrap_or(CLASSES.len()), memory, owner: Some(owner) };
        match self.gone.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                Loan(index)
            }
            None => {
                self.slots.push(slot);
                Loan(self.slots.len() as u32 - 1)
            }
        }
    }

    /// As `take`, zeroed.
    pub(crate) fn take_zeroed(&mut self, len: usize) -> Loan {
        let loan = self.take(len);
        self.bytes_mut(&loan, len).fill(0);
        loan
    }

    /// Takes a loan back.
    pub(crate) fn give_back(&mut self, loan: Loan) {
        self.lent -= 1;
        let slot = &mut self.slots[loan.0 as usize];
        let room = IDLE.get(slot.class).is_some_and(|&most| self.idle[slot.class].len() < most);
        if room || slot.owner.is_none() {
            self.idle[slot.class].push(loan.0);
        } else {
            slot.owner = None;
            self.gone.push(loan.0);
        }
    }

    /// The first `len` bytes of a loan that no operation uses.
    pub(crate) fn bytes(&self, loan: &Loan, len: usize) -> &[u8] {
        buffers::view(self, self.slots[loan.0 as usize].memory, len)
    }

    /// As `bytes`, to change.
    pub(crate) fn bytes_mut(&mut self, loan: &Loan, len: usize) -> &mut [u8] {
        let memory = self.slots[loan.0 as usize].memory;
        buffers::view_mut(self, memory, len)
    }

    /// `len` bytes of a loan from `offset` on, for an operation.
    pub(crate) fn segment(&self, loan: &Loan, offset: usize, len: usize) -> Segment {
        let memory = self.slots[loan.0 as usize].memory;
        buffers::within(memory, offset, len)
    }

    /// Appends `len` zeros to a list of bytes to write.
    pub(crate) fn append_zeros(&mut self, segments: &mut Segments, len: u64) {
        let mut left = len;
        while left > 0 {
            let piece = left.min(ZEROS as u64) as usize;
            let zeros = self.zeros.get_or_insert_with(|| Buffer::zeroed(ZEROS));
            segments.push(buffers::part(zeros, 0, piece));
            left -= piece as u64;
        }
    }

    /// Loans that are out.
    #[cfg(test)]
    pub(crate) fn lent(&self) -> usize {
        self.lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loans_are_reused_by_class() {
        let mut arena = Arena::new(true);
        let small = arena.take(4096);
        let large = arena.take(100_000);
        let huge = arena.take(5 << 20);
        assert_eq!(arena.bytes(&huge, 5 << 20).len(), 5 << 20);
        assert_eq!(arena.segment(&small, 512, 512).address() as usize % 512, 0);
        let (small_slot, large_slot, huge_slot) = (small.0, large.0, huge.0);
        arena.give_back(small);
        arena.give_back(large);
        arena.give_back(huge);
        assert_eq!(arena.take(1).0, small_slot);
        assert_eq!(arena.take(200_000).0, large_slot);
        assert_eq!(arena.take(2 << 20).0, huge_slot, "its slot, with new memory");
        assert_eq!(arena.lent(), 3);
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let mut arena = Arena::new(true);
        let loans: Vec<Loan> = (0..100).map(|_| arena.take(1 << 20)).collect();
        for loan in loans {
            arena.give_back(loan);
        }
        assert_eq!(arena.idle[4].len(), IDLE[4]);
        assert_eq!(arena.lent(), 0);
    }

    #[test]
    fn zeroed_loans_are_zero_and_zeros_come_in_pieces() {
        let mut arena = Arena::new(true);
        let loan = arena.take(4096);
        arena.bytes_mut(&loan, 4096).fill(9);
        arena.give_back(loan);
        let loan = arena.take_zeroed(4096);
        assert!(arena.bytes(&loan, 4096).iter().all(|&byte| byte == 0));
        let mut segments = Segments::new();
        arena.append_zeros(&mut segments, (2 << 20) + 512);
        assert_eq!(segments.iter().map(|segment| segment.len()).collect::<Vec<_>>(), [1 << 20, 1 << 20, 512]);
    }
}
