//! What every 512-byte block of a disk must hold, given what was asked of the disk so far.
//!
//! A block holds one version, or one of a few when changes of the same block were in flight together, or
//! zeros besides after a discard (which a disk may ignore). A read may see what stood there when it was
//! submitted, or what any change that was in flight at any moment of it makes.
//!
//! Knows: blocks, versions, what is in flight. Must never know: images, drivers, time.
//!
//! Invariant: memory is bounded by what was touched: four bytes a block, in pages that cover 4 MiB of disk.

use super::cells::{Cells, MAYBE_ZERO, UNKNOWN, UNSURE, VERSION_MAX};
use super::payload::{self, BLOCK};
use super::verdict::{Expected, Verdict};
use std::collections::HashMap;
use std::ops::Range;

/// Largest disk, bytes.
pub const DISK_MAX: u64 = 64 << 40;
/// What a disk holds at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Initial {
    /// Zeros: a fresh image.
    Zeros,
    /// Anything: a block is checked only once it was written.
    Unknown,
}

/// What a change leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Payload of a new version.
    Write,
    /// Zeros.
    Zero,
    /// Zeros, or what was there.
    Discard,
}

/// Names an operation in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(usize);

#[derive(Clone, Debug)]
struct Rival {
    blocks: Range<u64>,
    change: Change,
    version: u32,
}

#[derive(Debug)]
struct InFlight {
    blocks: Range<u64>,
    /// None: a read.
    change: Option<(Change, u32)>,
    /// Changes of overlapping ranges that were in flight at any moment of this operation.
    rivals: Vec<Rival>,
    /// Of a read with rivals: what stood there when it was submitted.
    snapshot: Option<Vec<Expected>>,
}

/// The model of one disk.
#[derive(Debug)]
pub struct Model {
    seed: u64,
    cells: Cells,
    unsure: HashMap<u64, Vec<u32>>,
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    version: u32,
}

impl Model {
    /// A disk of `bytes` bytes (at most [`DISK_MAX`]; a last partial block is left alone).
    pub fn new(bytes: u64, seed: u64, initial: Initial) -> Model {
        assert!(bytes <= DISK_MAX, "disk larger than the model covers");
        let cell = if initial == Initial::Zeros { 0 } else { UNKNOWN };
        let cells = Cells::new(bytes / BLOCK as u64, cell);
        Model { seed, cells, unsure: HashMap::new(), in_flight: Vec::new(), free: Vec::new(), version: 0 }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.cells.blocks()
    }

    /// Would this range meet one in flight, at least one of the two changing it?
    pub fn conflicts(&self, blocks: &Range<u64>, changes: bool) -> bool {
        let meets = |other: &InFlight| (changes || other.change.is_some()) && overlap(&other.blocks, blocks);
        self.in_flight.iter().flatten().any(meets)
    }

    /// A read is about to be submitted.
    pub fn begin_read(&mut self, blocks: Range<u64>) -> Ticket {
        let rivals = self.rivals_of(&blocks);
        let snapshot = (!rivals.is_empty()).then(|| self.snapshot(&blocks));
        self.begin(InFlight { blocks, change: None, rivals, snapshot })
    }

    /// A change is about to be submitted. With [`Change::Write`] its payload has the version given back.
    pub fn begin_change(&mut self, blocks: Range<u64>, change: Change) -> (Ticket, u32) {
        assert!(self.version < VERSION_MAX, "a model counts to 2^31 changes");
        self.version += 1;
        let version = self.version;
        let rivals = self.rivals_of(&blocks);
        for index in 0..self.in_flight.len() {
            let Some(other) = &self.in_flight[index] else { continue };
            if !overlap(&other.blocks, &blocks) {
                continue;
            }
            let missing = other.change.is_none() && other.snapshot.is_none();
            let snapshot = missing.then(|| self.snapshot(&other.blocks.clone()));
            if let Some(other) = &mut self.in_flight[index] {
                other.rivals.push(Rival { blocks: blocks.clone(), change, version });
                other.snapshot = snapshot.or(other.snapshot.take());
            }
        }
        let operation = InFlight { blocks, change: Some((change, version)), rivals, snapshot: None };
        (self.begin(operation), version)
    }

    fn begin(&mut self, operation: InFlight) -> Ticket {
        match self.free.pop() {
            Some(index) => {
                self.in_flight[index] = Some(operation);
                Ticket(index)
            }
            None => {
                self.in_flight.push(Some(operation));
                Ticket(self.in_flight.len() - 1)
            }
        }
    }

    fn end(&mut self, ticket: Ticket) -> Option<InFlight> {
        let operation = self.in_flight.get_mut(ticket.0)?.take()?;
        self.free.push(ticket.0);
        Some(operation)
    }

    /// The operation was never submitted, or a read failed: forget it.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.end(ticket);
    }

    /// A change ended. One that failed may or may not have happened.
    pub fn finish_change(&mut self, ticket: Ticket, succeeded: bool) {
        let Some(InFlight { blocks, change: Some((change, version)), rivals, .. }) = self.end(ticket) else {
            return;
        };
        let simple = succeeded && rivals.is_empty() && self.unsure.is_empty();
        match change {
            Change::Write if simple => self.cells.set(blocks, version),
            Change::Zero if simple => self.cells.set(blocks, 0),
            Change::Discard if rivals.is_empty() && self.unsure.is_empty() => self.cells.maybe_zero(blocks),
            _ => blocks.for_each(|block| self.settle(block, change, version, &rivals, succeeded)),
        }
    }

    /// One block after a change that was not alone.
    fn settle(&mut self, block: u64, change: Change, version: u32, rivals: &[Rival], succeeded: bool) {
        let mut now = self.expected(block);
        if succeeded && change != Change::Discard {
            let here = || rivals.iter().filter(|rival| rival.blocks.contains(&block));
            now.versions.retain(|old| here().any(|rival| rival.version == *old));
            // zeros that a third change has replaced meanwhile do not come back
            now.zeros &= here().any(|rival| rival.change != Change::Write);
            now.unknown = false;
        }
        match change {
            Change::Write => now.versions.push(version),
            Change::Zero | Change::Discard => now.zeros = true,
        }
        self.unsure.remove(&block);
        let zero_flag = if now.zeros { MAYBE_ZERO } else { 0 };
        let cell = match now.versions.as_slice() {
            _ if now.unknown => UNKNOWN,
            [] => 0,
            [one] => one | zero_flag,
            _ => {
                self.unsure.insert(block, now.versions);
                UNSURE | zero_flag
            }
        };
        self.cells.set(block..block + 1, cell);
    }

    /// What a block may hold, nothing in flight.
    pub fn expected(&self, block: u64) -> Expected {
        let cell = self.cells.get(block);
        let mut zeros = cell & MAYBE_ZERO != 0;
        let mut unknown = false;
        let versions = match cell & !MAYBE_ZERO {
            UNKNOWN => {
                unknown = true;
                Vec::new()
            }
            UNSURE => self.unsure.get(&block).cloned().unwrap_or_default(),
            0 => {
                zeros = true;
                Vec::new()
            }
            version => vec![version],
        };
        Expected { unknown, zeros, versions }
    }

    fn snapshot(&self, blocks: &Range<u64>) -> Vec<Expected> {
        blocks.clone().map(|block| self.expected(block)).collect()
    }

    fn rivals_of(&self, blocks: &Range<u64>) -> Vec<Rival> {
        let mut rivals = Vec::new();
        for other in self.in_flight.iter().flatten() {
            if let Some((change, version)) = other.change
                && overlap(&other.blocks, blocks)
            {
                rivals.push(Rival { blocks: other.blocks.clone(), change, version });
            }
        }
        rivals
    }

    /// A read ended well with these bytes.
    pub fn finish_read(&mut self, ticket: Ticket, bytes: &[u8]) -> Verdict {
        let mut verdict = Verdict::default();
        let Some(InFlight { blocks, rivals, snapshot, .. }) = self.end(ticket) else { return verdict };
        let Some(snapshot) = snapshot else {
            self.verify(blocks.start, bytes, &mut verdict);
            return verdict;
        };
        for ((block, mut expected), bytes) in blocks.zip(snapshot).zip(bytes.as_chunks::<BLOCK>().0) {
            for rival in rivals.iter().filter(|rival| rival.blocks.contains(&block)) {
                match rival.change {
                    Change::Write => expected.versions.push(rival.version),
                    Change::Zero | Change::Discard => expected.zeros = true,
                }
            }
            self.judge(block, expected, bytes, &mut verdict);
        }
        verdict
    }

    /// Compares blocks from `first` on, nothing that changes them being in flight.
    pub fn verify(&self, first: u64, bytes: &[u8], verdict: &mut Verdict) {
        for (block, bytes) in (first..).zip(bytes.as_chunks::<BLOCK>().0) {
            let cell = self.cells.get(block);
            let right = match cell {
                0 => payload::is_zero(bytes),
                1..=VERSION_MAX => payload::matches(bytes, self.seed, block, cell),
                _ => {
                    self.judge(block, self.expected(block), bytes, verdict);
                    continue;
                }
            };
            verdict.verified += 1;
            if !right {
                verdict.wrong(block, self.expected(block), bytes);
            }
        }
    }

    fn judge(&self, block: u64, expected: Expected, bytes: &[u8; BLOCK], verdict: &mut Verdict) {
        if expected.unknown {
            verdict.unknown += 1;
            return;
        }
        verdict.verified += 1;
        let zeros = expected.zeros && payload::is_zero(bytes);
        let matches = |&version: &u32| payload::matches(bytes, self.seed, block, version);
        if !zeros && !expected.versions.iter().any(matches) {
            verdict.wrong(block, expected, bytes);
        }
    }

    /// The next run of touched blocks at or after `from`, at most `max` long.
    pub fn next_touched(&self, from: u64, max: u64) -> Option<Range<u64>> {
        self.cells.next_touched(from, max)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests;
