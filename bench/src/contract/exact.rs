//! What a disk owes its guest: for every sector the values that a read, or a read after a power cut, may
//! find.
//!
//! The contract (formats.md 8.1): a completed flush covers what had completed when it was submitted, FUA
//! covers its own write; after a power cut a sector holds the last covered value or that of any write that is
//! not older; a sector that nobody wrote holds what it held. A write that failed, and a discard, may have
//! happened or not. Two writes are ordered only if one completed before the other was submitted. Where all
//! writes of a sector covered it whole and none failed, it holds one of them whole; otherwise each of its
//! bytes does.
//!
//! Knows: requests, their order, their payload. Must never know: image formats, the driver.
//! Invariant: `writes` and `sectors` hold what happened since the last `settle`; before it lies `base`.

use super::hash::hash_words;
use super::payload::{self, SECTOR};
use super::verdict::{Checked, fail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a write leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fill {
    /// The payload of this id.
    Data(u64),
    /// Zeros.
    Zero,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Flying,
    Done,
    /// It failed, or need not have any effect.
    Maybe,
}

#[derive(Clone, Debug)]
struct Write {
    start: u64,
    end: u64,
    fill: Fill,
    submitted: u64,
    ended: Option<u64>,
    fate: Fate,
    optional: bool,
    durable: bool,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// A read that was submitted at this time.
    Live(u64),
    /// Somebody after a power cut.
    Crash,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Model {
    clock: u64,
    base: Arc<Vec<u8>>,
    writes: Vec<Write>,
    sectors: BTreeMap<u64, Vec<u32>>,
}

impl Model {
    /// A disk with this content, durable.
    pub fn new(base: impl Into<Arc<Vec<u8>>>) -> Model {
        Model { clock: 1, base: base.into(), writes: Vec::new(), sectors: BTreeMap::new() }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.base.len() as u64
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.base.is_empty()
    }

    /// Something happens: its time.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The disk has another size, a multiple of a sector: what appears holds zeros.
    pub fn resize(&mut self, len: u64) {
        debug_assert!(len.is_multiple_of(SECTOR) || len >= self.len());
        Arc::make_mut(&mut self.base).resize(len as usize, 0);
        self.sectors.split_off(&len.div_ceil(SECTOR));
    }

    /// A write is submitted. `optional`: it may have no effect though it succeeds (discard).
    pub fn submit(&mut self, start: u64, end: u64, fill: Fill, optional: bool) -> u32 {
        let (index, submitted) = (self.writes.len() as u32, self.tick());
        let write =
            Write { start, end, fill, submitted, ended: None, fate: Fate::Flying, optional, durable: false };
        self.writes.push(write);
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            self.sectors.entry(sector).or_default().push(index);
        }
        index
    }

    /// It ended. `durable`: it had FUA.
    pub fn end(&mut self, index: u32, ok: bool, durable: bool) {
        let now = self.tick();
        let write = &mut self.writes[index as usize];
        write.ended = Some(now);
        write.fate = if ok && !write.optional { Fate::Done } else { Fate::Maybe };
        write.durable = durable && write.fate == Fate::Done;
    }

    /// A flush that was submitted at this time succeeded.
    pub fn flushed(&mut self, submitted: u64) {
        for write in &mut self.writes {
            write.durable |= write.fate == Fate::Done && write.ended.is_some_and(|ended| ended < submitted);
        }
    }

    /// The disk was read whole and found right, nothing is in flight, everything is durable: a new beginning.
    pub fn settle(&mut self, content: &[u8]) {
        debug_assert!(self.writes.iter().all(|write| write.fate != Fate::Flying));
        self.base = Arc::new(content.to_vec());
        self.writes.clear();
        self.sectors.clear();
    }

    /// After this write, for sure, an older one cannot be seen any more.
    fn sure(&self, write: &Write, view: View) -> bool {
        match view {
            View::Live(since) => write.fate == Fate::Done && write.ended.is_some_and(|ended| ended < since),
            View::Crash => write.durable,
        }
    }

    /// The writes of `list` that may be seen, in places that `covers` says they cover; and whether the base
    /// may be.
    fn alive(&self, list: &[u32], view: View, covers: &dyn Fn(&Write) -> bool) -> (Vec<Fill>, bool) {
        let on: Vec<&Write> =
            list.iter().map(|index| &self.writes[*index as usize]).filter(|write| covers(write)).collect();
        let sure: Vec<&Write> = on.iter().copied().filter(|write| self.sure(write, view)).collect();
        let seen = |write: &&&Write| {
            write.ended.is_none_or(|ended| sure.iter().all(|newer| newer.submitted < ended))
        };
        (on.iter().filter(seen).map(|write| write.fill).collect(), sure.is_empty())
    }

    /// May this sector hold these bytes?
    pub fn check_sector(&self, sector: u64, bytes: &[u8], view: View) -> Checked {
        let start = sector * SECTOR;
        let base = &self.base[start as usize..start as usize + bytes.len()];
        let Some(list) = self.sectors.get(&sector) else {
            return if bytes == base { Ok(()) } else { self.wrong(sector, bytes, view, "was never written") };
        };
        let end = start + bytes.len() as u64;
        // a write that failed may have stopped anywhere
        let whole = |write: &Write| {
            write.start <= start && end <= write.end && (write.fate != Fate::Maybe || write.optional)
        };
        if list.iter().all(|index| whole(&self.writes[*index as usize])) {
            let (fills, old) = self.alive(list, view, &|_| true);
            let mut buffer = [0; SECTOR as usize];
            let buffer = &mut buffer[..bytes.len()];
            let right = |fill: &Fill| {
                match fill {
                    Fill::Data(id) => payload::fill(*id, start, buffer),
                    Fill::Zero => buffer.fill(0),
                }
                *buffer == *bytes
            };
            if old && bytes == base || fills.iter().any(right) {
                return Ok(());
            }
            return self.wrong(sector, bytes, view, "holds none of the values that it may hold");
        }
        self.check_part(start, bytes, view)
    }

    /// May the disk hold these bytes at `offset`, a multiple of the sector size?
    pub fn check_range(&self, offset: u64, bytes: &[u8], view: View) -> Checked {
        debug_assert!(offset.is_multiple_of(SECTOR));
        let end = offset + bytes.len() as u64;
        // what nobody wrote is compared at once
        let mut at = offset;
        for (&sector, _) in self.sectors.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let (start, stop) = (sector * SECTOR, (sector * SECTOR + SECTOR).min(end));
            self.unwritten(at, &bytes[(at - offset) as usize..(start - offset) as usize], view)?;
            self.check_sector(sector, &bytes[(start - offset) as usize..(stop - offset) as usize], view)?;
            at = stop;
        }
        self.unwritten(at, &bytes[(at - offset) as usize..], view)
    }

    fn unwritten(&self, offset: u64, bytes: &[u8], view: View) -> Checked {
        let base = &self.base[offset as usize..offset as usize + bytes.len()];
        // the usual answer, at the speed of memory
        if base == bytes {
            return Ok(());
        }
        let at = base.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(0);
        let first = (offset + at as u64) / SECTOR * SECTOR;
        let stop = (first + SECTOR).min(offset + bytes.len() as u64);
        let part = &bytes[(first - offset) as usize..(stop - offset) as usize];
        self.wrong(first / SECTOR, part, view, "was never written")
    }

    /// As `check_range` for a range of any bytes; what surrounds it is not looked at.
    pub fn check_bytes(&self, offset: u64, bytes: &[u8], view: View) -> Checked {
        let end = offset + bytes.len() as u64;
        let (first, last) = (offset.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
        let part = |from: u64, to: u64| &bytes[(from - offset) as usize..(to - offset) as usize];
        if first > last {
            return self.check_part(offset, bytes, view);
        }
        self.check_part(offset, part(offset, first), view)?;
        self.check_range(first, part(first, last), view)?;
        self.check_part(last, part(last, end), view)
    }

    /// Part of one sector, byte by byte; between two ends of writes all bytes have the same writes.
    fn check_part(&self, offset: u64, bytes: &[u8], view: View) -> Checked {
        let end = offset + bytes.len() as u64;
        let list = self.sectors.get(&(offset / SECTOR)).map(Vec::as_slice).unwrap_or_default();
        let mut cuts = vec![offset, end];
        for index in list {
            let write = &self.writes[*index as usize];
            cuts.extend([write.start, write.end].into_iter().filter(|cut| offset < *cut && *cut < end));
        }
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let (fills, old) = self.alive(list, view, &|write| write.start <= from && to <= write.end);
            for at in from..to {
                let byte = bytes[(at - offset) as usize];
                let value = |fill: &Fill| match fill {
                    Fill::Data(id) => payload::byte(*id, at),
                    Fill::Zero => 0,
                };
                if !(old && byte == self.base[at as usize] || fills.iter().any(|fill| value(fill) == byte)) {
                    return self.wrong(offset / SECTOR, bytes, view, &format!("has a wrong byte at {at:#x}"));
                }
            }
        }
        Ok(())
    }

    fn wrong(&self, sector: u64, bytes: &[u8], view: View, what: &str) -> Checked {
        let list = self.sectors.get(&sector).map(Vec::as_slice).unwrap_or_default();
        let mut text = format!("sector {sector} ({:#x}) {what} ({view:?})", sector * SECTOR);
        let is_zero = bytes.iter().all(|&byte| byte == 0);
        let found = (1..4096).find(|id| {
            bytes.first() == Some(&payload::byte(*id, sector * SECTOR))
                && payload::bytes(*id, sector * SECTOR, sector * SECTOR + bytes.len() as u64) == bytes
        });
        text += &match found {
            Some(id) => format!("; found the data of write {id}"),
            None if is_zero => String::from("; found zeros"),
            None => format!("; found {:02x?}...", &bytes[..bytes.len().min(8)]),
        };
        let base = &self.base[(sector * SECTOR) as usize..][..1];
        text += if base == [0] { "; before: zeros" } else { "; before: data" };
        for index in list {
            let Write { start, end, fill, submitted, ended, fate, durable, .. } =
                &self.writes[*index as usize];
            text += &format!(
                "; {fill:?} {start:#x}..{end:#x} at {submitted}..{ended:?} {fate:?} durable {durable}"
            );
        }
        fail(text)
    }

    /// Everything that decides what will be allowed: the order of writes, not the times.
    pub fn digest(&self) -> u128 {
        let mut words = vec![self.base.len() as u64];
        for write in &self.writes {
            let (kind, id) = match write.fill {
                Fill::Data(id) => (0, id),
                Fill::Zero => (1, 0),
            };
            words.extend([write.start, write.end, kind, id, write.fate as u64, u64::from(write.durable)]);
            words.extend(
                self.writes.iter().map(|other| u64::from(other.ended.is_some_and(|e| e < write.submitted))),
            );
        }
        hash_words(3, words)
    }

    /// For digests: which writes had ended at this time.
    pub fn ended_before(&self, time: u64) -> impl Iterator<Item = u64> + '_ {
        self.writes.iter().map(move |write| u64::from(write.ended.is_some_and(|ended| ended < time)))
    }
}

#[cfg(test)]
mod tests;
