//! One `u32` for every block of a disk, in pages that exist only where something was set.
//!
//! Knows: cells and ranges. Must never know: what is in flight.

use std::ops::Range;

/// Flag of a cell: zeros are right too.
pub const MAYBE_ZERO: u32 = 1 << 31;
/// A block of unknown content.
pub const UNKNOWN: u32 = MAYBE_ZERO - 1;
/// A block that may hold one of several versions, listed elsewhere.
pub const UNSURE: u32 = MAYBE_ZERO - 2;
/// Highest version; 0 stands for zeros.
pub const VERSION_MAX: u32 = MAYBE_ZERO - 3;

const PAGE: usize = 8192;

type Page = Box<[u32; PAGE]>;

/// The cells.
#[derive(Debug)]
pub struct Cells {
    pages: Vec<Option<Page>>,
    blocks: u64,
    initial: u32,
}

impl Cells {
    /// All `initial`.
    pub fn new(blocks: u64, initial: u32) -> Cells {
        let count = usize::try_from(blocks.div_ceil(PAGE as u64)).unwrap_or(usize::MAX);
        let mut pages = Vec::new();
        pages.resize_with(count, || None);
        Cells { pages, blocks, initial }
    }

    /// How many.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    fn place(block: u64) -> (usize, usize) {
        ((block / PAGE as u64) as usize, (block % PAGE as u64) as usize)
    }

    /// One cell. Blocks beyond the end read as initial.
    pub fn get(&self, block: u64) -> u32 {
        let (page, at) = Self::place(block);
        match self.pages.get(page) {
            Some(Some(page)) => page[at],
            _ => self.initial,
        }
    }

    /// Sets a range.
    pub fn set(&mut self, blocks: Range<u64>, cell: u32) {
        self.for_pieces(blocks, cell != self.initial, |piece| piece.fill(cell));
    }

    /// Zeros become right for a range, besides what already is.
    pub fn maybe_zero(&mut self, blocks: Range<u64>) {
        // untouched pages hold zeros already, or nobody knows what
        self.for_pieces(blocks, false, |piece| {
            for cell in piece.iter_mut().filter(|cell| !matches!(**cell, 0 | UNKNOWN)) {
                *cell |= MAYBE_ZERO;
            }
        });
    }

    /// Walks a range page by page; pages that do not exist are made, or left out.
    fn for_pieces(&mut self, blocks: Range<u64>, make: bool, mut change: impl FnMut(&mut [u32])) {
        let end = blocks.end.min(self.blocks);
        let mut start = blocks.start;
        while start < end {
            let (page, at) = Self::place(start);
            let count = ((PAGE - at) as u64).min(end - start);
            let slot = &mut self.pages[page];
            if slot.is_none() && make {
                *slot = Some(Box::new([self.initial; PAGE]));
            }
            if let Some(page) = slot {
                change(&mut page[at..at + count as usize]);
            }
            start += count;
        }
    }

    /// The next run of cells that are not initial, at or after `from`, at most `max` long.
    pub fn next_touched(&self, from: u64, max: u64) -> Option<Range<u64>> {
        let start = self.first_touched(from)?;
        let mut end = start + 1;
        while end < self.blocks && end - start < max && self.get(end) != self.initial {
            end += 1;
        }
        Some(start..end)
    }

    fn first_touched(&self, from: u64) -> Option<u64> {
        let (first, mut at) = Self::place(from);
        for (index, page) in self.pages.iter().enumerate().skip(first) {
            if let Some(page) = page
                && let Some(found) = page[at..].iter().position(|cell| *cell != self.initial)
            {
                return Some((index * PAGE + at + found) as u64);
            }
            at = 0;
        }
        None
    }
}
