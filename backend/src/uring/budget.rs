//! What one turn may hand over: a portion of nanoseconds, by what transfers have cost inside the system call.
//!
//! Knows: numbers of entries, their order, bytes, durations (callers pass times in). Must never know: a
//! clock, the ring, what an operation is.
//!
//! Invariants: entries are taken in the order in which they were published; a fresh portion lets at least one
//! go; what a transfer is believed to cost follows what was measured, by a factor of [`STEP`] a time at most,
//! so that a thread that lost its processor for a while is no reason for more than that.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

/// Transfers of at most so many bytes are counted and not weighed: nothing is known of each of them.
pub(super) const SMALL: u64 = 16 << 10;
/// Transfers of more bytes are always a worker's: the copy alone, or what the device does inside the call,
/// takes longer than handing over.
pub(super) const LARGE: u64 = 64 << 10;
/// Nanoseconds of one turn. A third of what a loop should be held at most: what was measured says only about
/// what the next ones will cost.
const PORTION: u64 = 300_000;
/// Nanoseconds from which on a transfer is a worker's.
const DEAR: u64 = 150_000;
/// One in so many transfers that are believed to be dear is tried inside the call all the same.
const PROBE: u8 = 16;
/// System calls with at most so many entries, all of them small, are not measured.
const FEW: usize = 8;
/// What is measured counts as no more than so many times what was believed, and no less than its part.
const STEP: u64 = 4;
/// A new measurement's weight is one of so many.
const WEIGHT: u64 = 8;
/// What a transfer costs without its bytes, nanoseconds.
const BASE: u64 = 1_000;
/// Bounds of what a byte may cost, picoseconds, and what it does before anything was measured.
const BYTE: (u64, u64, u64) = (10, 100_000, 1_000);
/// The same for a small entry, nanoseconds.
const ENTRY: (u64, u64, u64) = (100, 100_000, 2_000);

/// What transfers of one file in one direction cost inside the system call.
pub(super) struct Pace {
    /// Picoseconds a byte.
    byte: u64,
    /// Dear transfers so far, of those that may be tried.
    dear: Cell<u8>,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace { byte: BYTE.2, dear: Cell::new(0) }
    }

    /// Nanoseconds that a transfer of `len` bytes is believed to take. None: it is for a worker.
    pub(super) fn price(&self, len: u64) -> Option<u64> {
        if len > LARGE {
            return None;
        }
        let price = BASE + len * self.byte / 1000;
        if price <= DEAR {
            return Some(price);
        }
        let count = self.dear.get().wrapping_add(1);
        self.dear.set(count);
        count.is_multiple_of(PROBE).then_some(price)
    }

    /// What a byte is believed to take, picoseconds.
    pub(super) fn byte(&self) -> u64 {
        self.byte
    }

    /// Transfers took so many times what they were believed to when a byte was believed to take `byte`.
    pub(super) fn learn(&mut self, byte: u64, times: Times) {
        self.byte = follow(self.byte, byte, times).clamp(BYTE.0, BYTE.1);
    }
}

/// What something took, and what it was believed to take: nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) took: u64,
    pub(super) believed: u64,
}

/// `old`, nearer to what would have made of `then` what was seen.
fn follow(old: u64, then: u64, times: Times) -> u64 {
    let seen = then.saturating_mul(times.took) / times.believed.max(1);
    let seen = seen.clamp(old / STEP, old.saturating_mul(STEP));
    // rounded away from `old`: small numbers move too
    match seen > old {
        true => old + (seen - old).div_ceil(WEIGHT),
        false => old - (old - seen).div_ceil(WEIGHT),
    }
}

/// A transfer that is weighed, among the entries.
#[derive(Clone, Copy)]
struct Weighed {
    /// Its number among all entries that were ever published.
    at: u64,
    file: u32,
    write: bool,
    price: u64,
    /// What a byte was believed to take when it was published.
    byte: u64,
}

/// What a system call is to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Share {
    pub(super) entries: usize,
    /// Nanoseconds that it should take.
    pub(super) price: u64,
    /// Its length is worth knowing.
    pub(super) measured: bool,
}

/// See the module's header.
pub(super) struct Budget {
    /// Weighed entries that are published and not taken.
    weighed: VecDeque<Weighed>,
    /// Entries that were ever taken.
    taken: u64,
    /// Nanoseconds a small entry.
    entry: u64,
    /// Of the present portion.
    left: u64,
    /// Nothing of the portion was used yet.
    fresh: bool,
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget { weighed: VecDeque::new(), taken: 0, entry: ENTRY.2, left: PORTION, fresh: true }
    }

    /// A new portion.
    pub(super) fn refill(&mut self) {
        self.left = PORTION;
        self.fresh = true;
    }

    /// The entry that is published next, behind `waiting` others, is a transfer at this price.
    pub(super) fn weigh(&mut self, waiting: usize, (file, write): (u32, bool), price: u64, byte: u64) {
        let at = self.taken + waiting as u64;
        debug_assert!(self.weighed.back().is_none_or(|last| last.at < at), "entries have an order");
        self.weighed.push_back(Weighed { at, file, write, price, byte });
    }

    /// How many of `waiting` entries go now.
    pub(super) fn share(&self, waiting: usize) -> Share {
        let small = waiting as u64 * self.entry;
        if self.weighed.is_empty() && small <= self.left {
            return Share { entries: waiting, price: small, measured: waiting > FEW };
        }
        let (mut entries, mut price) = (0, 0);
        let mut measured = false;
        for next in &self.weighed {
            let before = (next.at - self.taken) as usize - entries;
            let fit = before.min(((self.left - price) / self.entry) as usize);
            (entries, price) = (entries + fit, price + fit as u64 * self.entry);
            if fit < before || price + next.price > self.left {
                return self.at_least_one(Share { entries, price, measured }, waiting);
            }
            (entries, price, measured) = (entries + 1, price + next.price, true);
        }
        let fit = (waiting - entries).min(((self.left - price) / self.entry) as usize);
        let share = Share { entries: entries + fit, price: price + fit as u64 * self.entry, measured };
        self.at_least_one(share, waiting)
    }

    fn at_least_one(&self, share: Share, waiting: usize) -> Share {
        if share.entries == 0 && self.fresh && waiting > 0 {
            return Share { entries: 1, price: self.left, measured: true };
        }
        Share { measured: share.measured || share.entries > FEW, ..share }
    }

    /// The system call took `entries` of a share; `took`: how long, if it was measured. What is seen of
    /// weighed ones goes to `learn`, once for neighbours that are alike: file, direction, what a byte was
    /// believed to take, and what became of that.
    pub(super) fn took(
        &mut self,
        share: Share,
        entries: usize,
        took: Option<Duration>,
        mut learn: impl FnMut(u32, bool, u64, Times),
    ) {
        self.fresh &= entries == 0;
        let took = took.map(|took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.left = self.left.saturating_sub(took.map_or(share.price, |took| took.max(share.price)));
        let all = self.taken + entries as u64;
        let (mut believed, mut count, mut last) = (0, 0, None);
        for next in self.weighed.iter().take_while(|next| next.at < all) {
            (believed, count) = (believed + next.price, count + 1);
        }
        believed += (entries - count) as u64 * self.entry;
        for next in self.weighed.drain(..count) {
            let alike = (next.file, next.write, next.byte);
            if let Some(took) = took.filter(|_| last != Some(alike)) {
                learn(next.file, next.write, next.byte, Times { took, believed });
            }
            last = Some(alike);
        }
        if let Some(took) = took.filter(|_| count == 0 && entries > FEW) {
            let times = Times { took, believed };
            self.entry = follow(self.entry, self.entry, times).clamp(ENTRY.0, ENTRY.1);
        }
        self.taken = all;
    }
}

#[cfg(test)]
mod tests;
