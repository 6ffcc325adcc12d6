//! Fill buffers: the bytes around a guest's bytes that a write must carry along (QEMU: prefill and postfill).
//!
//! Knows: which control block's, head or tail. Must never know: where the bytes come from.
//! Invariants: a fill starts out as zeros, unless its first read fills all of it; it is given back when its
//! write has ended; a fill that a read is still filling is never given back, even if its control block died
//! meanwhile.

use crate::memory::arena::{Arena, Loan};
use quod_backend::{Segment, Segments};
use quod_states::Part;

/// One fill buffer: of one acb, in front of the guest's bytes or behind them.
#[derive(Debug, Default)]
pub(crate) struct Fill {
    loan: Option<Loan>,
    len: u32,
    generation: u32,
    /// Reads that are filling it.
    busy: u32,
}

/// Index into an acb's pair of fills.
pub(crate) fn side(part: Part) -> usize {
    match part {
        Part::Head => 0,
        Part::Tail => 1,
    }
}

impl Fill {
    /// A read of `len` bytes to `at` begins; makes the buffer, zeroed, if this is the first of this
    /// generation.
    pub(crate) fn begin(
        &mut self,
        arena: &mut Arena,
        generation: u32,
        size: u32,
        at: u32,
        len: u32,
    ) -> Segment {
        if self.loan.is_none() || self.generation != generation || self.len != size {
            self.drop_loan(arena);
            // a read that fills all of it leaves nothing to see of what was there before
            let whole = at == 0 && len == size;
            let loan = if whole { arena.take(size as usize) } else { arena.take_zeroed(size as usize) };
            *self = Fill { loan: Some(loan), len: size, generation, busy: 0 };
        }
        self.busy += 1;
        match &self.loan {
            Some(loan) => arena.segment(loan, at as usize, len as usize),
            None => unreachable!("made above"),
        }
    }

    /// A read has ended. False: its generation is gone.
    pub(crate) fn end(&mut self, generation: u32) -> bool {
        let mine = self.loan.is_some() && self.generation == generation;
        if mine {
            self.busy = self.busy.saturating_sub(1);
        }
        mine
    }

    /// `len` bytes from `at` on, if the buffer is of this generation.
    pub(crate) fn part(&self, arena: &Arena, generation: u32, at: u32, len: u64) -> Option<Segment> {
        let loan = self.loan.as_ref().filter(|_| self.generation == generation)?;
        Some(arena.segment(loan, at as usize, len as usize))
    }

    /// Appends the `len` bytes of this side of a write: what was read, or zeros.
    pub(crate) fn append(&self, arena: &mut Arena, generation: u32, len: u32, out: &mut Segments) {
        match &self.loan {
            _ if len == 0 => {}
            Some(loan) if self.generation == generation && self.len == len => {
                out.push(arena.segment(loan, 0, len as usize));
            }
            _ => arena.append_zeros(out, u64::from(len)),
        }
    }

    /// Its write has ended.
    pub(crate) fn release(&mut self, arena: &mut Arena, generation: u32) {
        if self.generation == generation {
            self.drop_loan(arena);
        }
    }

    fn drop_loan(&mut self, arena: &mut Arena) {
        if let Some(loan) = self.loan.take() {
            debug_assert_eq!(self.busy, 0, "a control block died while its fill was being read");
            // a buffer that something is still written to is lost rather than lent again
            if self.busy == 0 {
                arena.give_back(loan);
            }
        }
        self.busy = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::buffers;

    #[test]
    fn fills_start_as_zeros_and_restart_with_the_generation() {
        let mut arena = Arena::new(false);
        let mut fill = Fill::default();
        let part = fill.begin(&mut arena, 1, 1024, 512, 100);
        buffers::scatter(&[5; 100], &[part]);
        assert!(fill.end(1));
        let mut bytes = [9u8; 1024];
        let mut list = Segments::new();
        fill.append(&mut arena, 1, 1024, &mut list);
        assert_eq!(buffers::gather(&list, &mut bytes), 1024);
        assert!(bytes[..512].iter().all(|&byte| byte == 0) && bytes[512..612].iter().all(|&byte| byte == 5));
        // the control block is used again: old bytes must not show
        let part = fill.begin(&mut arena, 2, 1024, 0, 1);
        assert!(fill.end(2) && !fill.end(1));
        list.clear();
        fill.append(&mut arena, 2, 1024, &mut list);
        buffers::gather(&list, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
        let _ = part;
        fill.release(&mut arena, 1);
        assert_eq!(arena.lent(), 1);
        fill.release(&mut arena, 2);
        assert_eq!(arena.lent(), 0);
    }

    #[test]
    fn an_unread_side_is_zeros() {
        let mut arena = Arena::new(false);
        let mut list = Segments::new();
        Fill::default().append(&mut arena, 0, 700, &mut list);
        assert_eq!(buffers::total(&list), 700);
        Fill::default().append(&mut arena, 0, 0, &mut list);
        assert_eq!(list.len(), 1);
    }
}
