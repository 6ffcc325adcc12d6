//! A walk over an L1 table and all that it leads to: each cluster gets one reference more or less, or each
//! entry comes to say what the counts say.
//!
//! Knows: entries of tables. Must never know: why the references change.
//!
//! Invariants:
//! * what was done is not done again: a walk that is stopped goes on where it was;
//! * no byte of a table that is there is written: one whose entries change gets another place;
//! * an entry that contradicts the format, or leads to metadata or beyond the end of the file, ends the walk.

use super::counts::Counts;
use super::place::Places;
use super::stop::Stop;
use crate::error::Error;
use crate::fault::{By, Fault, ReferenceFault};
use crate::qcow2::entry::COPIED;
use crate::qcow2::{L1, L2, Shape};
use crate::space::counts::Refcounted;
use alloc::vec::Vec;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Walk {
    /// The words of the L1 table.
    pub(super) l1: Vec<u64>,
    /// Which of them is looked at,
    index: usize,
    /// the table that it leads to, and where that lies,
    table: Option<(u64, Vec<u8>)>,
    /// which entry of the table, and which cluster of the entry's.
    entry: u64,
    part: u64,
    /// The table has changed in memory.
    changed: bool,
    /// Where it will lie.
    copy: Copy,
    /// An entry of the L1 table has changed.
    differs: bool,
}

/// How far the new place of a table is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Copy {
    #[default]
    None,
    /// The table has this place,
    Placed(u64),
    /// the old one has a reference less,
    Released(u64),
    /// and it is written there.
    Written(u64),
}

/// What a walk works with.
pub(super) struct Ground<'a> {
    pub(super) shape: Shape,
    pub(super) counts: &'a mut Counts,
    pub(super) places: &'a mut Places,
    pub(super) counted: &'a Refcounted,
    /// Nothing of the image lies from here on.
    pub(super) end: u64,
}

impl Walk {
    /// From the first entry on.
    pub(super) fn restart(&mut self, l1: Vec<u64>) {
        debug_assert!(self.table.is_none(), "the walk before has ended");
        *self = Walk { l1, ..Walk::default() };
    }

    /// The table that was asked for.
    pub(super) fn loaded(&mut self, host: u64, bytes: &[u8]) {
        debug_assert!(host > 0, "offset 0 is no table");
        self.table = Some((host, bytes.to_vec()));
    }

    /// The changed table is in its new place.
    pub(super) fn wrote(&mut self) {
        debug_assert!(matches!(self.copy, Copy::Released(_)), "it was on its way");
        if let Copy::Released(cluster) = self.copy {
            self.copy = Copy::Written(cluster);
        }
    }

    /// An entry of the L1 table says something else than before.
    pub(super) const fn differs(&self) -> bool {
        debug_assert!(self.table.is_none(), "the walk has ended");
        self.differs
    }

    /// The changed table.
    pub(super) fn encode(&self, buf: &mut [u8]) {
        debug_assert!(self.changed, "only what has changed is written");
        if let Some((_, bytes)) = self.table.as_ref().filter(|(_, bytes)| bytes.len() == buf.len()) {
            buf.copy_from_slice(bytes);
        }
    }

    /// Where the table of the next entry lies that leads to one; None: there is none.
    fn next_table(&mut self, on: &Ground<'_>) -> Result<Option<u64>, Stop> {
        while let Some(word) = self.l1.get(self.index) {
            match on.shape.decode_l1(self.index as u64, *word).map_err(Stop::Bad)? {
                L1::Unallocated => self.index += 1,
                L1::Table { host, .. } => {
                    if self.table.as_ref().is_some_and(|(held, _)| *held == host) {
                        return Ok(Some(host));
                    }
                    check_table(self.index as u64, host, on)?;
                    return Err(Stop::ReadTable(host));
                }
            }
        }
        Ok(None)
    }

    fn leave_table(&mut self) {
        debug_assert!(self.index < self.l1.len(), "an entry led there");
        self.index += 1;
        (self.table, self.entry, self.part) = (None, 0, 0);
        (self.changed, self.copy) = (false, Copy::None);
    }

    /// Each cluster that is led to gets one reference more, or less.
    pub(super) fn count(&mut self, more: bool, on: &mut Ground<'_>) -> Result<(), Stop> {
        let change = |counts: &mut Counts, cluster| match more {
            true => counts.add(cluster),
            false => counts.remove(cluster),
        };
        let bits = on.shape.cluster_bits;
        while let Some(host) = self.next_table(on)? {
            while self.entry < on.shape.l2_entries() {
                let (start, found) = self.decode(on)?;
                debug_assert!(start.is_multiple_of(1 << bits), "an entry maps a cluster");
                let (first, count) = clusters(found, bits);
                if count > 0 && self.part == 0 {
                    check_entry(start, found, first + count, on)?;
                }
                while self.part < count {
                    change(on.counts, first + self.part)?;
                    self.part += 1;
                }
                (self.entry, self.part) = (self.entry + 1, 0);
            }
            change(on.counts, host >> bits)?;
            self.leave_table();
        }
        Ok(())
    }

    /// Each entry comes to say whether what it leads to is counted once. A table in which one has to say
    /// something else gets another place.
    pub(super) fn flag(&mut self, on: &mut Ground<'_>) -> Result<(), Stop> {
        let bits = on.shape.cluster_bits;
        while let Some(host) = self.next_table(on)? {
            while self.entry < on.shape.l2_entries() {
                let (_, found) = self.decode(on)?;
                if !matches!(found, L2::Compressed { .. }) && clusters(found, bits).1 > 0 {
                    let once = on.counts.get(clusters(found, bits).0)? == 1;
                    self.say(on.shape, once);
                }
                self.entry += 1;
            }
            let word = match self.changed {
                true => self.move_table(host, on)? | COPIED,
                false if on.counts.get(host >> bits)? == 1 => host | COPIED,
                false => host,
            };
            debug_assert!(word & !COPIED > 0, "it leads to a table");
            self.differs |= self.l1[self.index] != word;
            self.l1[self.index] = word;
            self.leave_table();
        }
        Ok(())
    }

    /// The table's new place, when it is there.
    fn move_table(&mut self, host: u64, on: &mut Ground<'_>) -> Result<u64, Stop> {
        let bits = on.shape.cluster_bits;
        loop {
            match self.copy {
                Copy::None => self.copy = Copy::Placed(on.places.take(1, on.counts, on.counted)?),
                Copy::Placed(cluster) => {
                    on.counts.remove(host >> bits)?;
                    self.copy = Copy::Released(cluster);
                }
                Copy::Released(cluster) => return Err(Stop::WriteTable(cluster << bits)),
                Copy::Written(cluster) => return Ok(cluster << bits),
            }
        }
    }

    /// The entry at hand: the guest offset of its cluster, and what it says.
    fn decode(&self, on: &Ground<'_>) -> Result<(u64, L2), Stop> {
        let words = if on.shape.extended { 2 } else { 1 };
        let at = (self.entry * words * 8) as usize;
        let bytes = self.table.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        debug_assert!(at + words as usize * 8 <= bytes.len(), "an entry of the table");
        let word_at = |at: usize| {
            bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_be_bytes(*word))
        };
        let bitmap = if on.shape.extended { word_at(at + 8) } else { 0 };
        let start = (self.index as u64 * on.shape.l2_entries() + self.entry) << on.shape.cluster_bits;
        Ok((start, on.shape.decode_l2(start, word_at(at), bitmap).map_err(Stop::Bad)?))
    }

    /// The entry at hand says that its cluster is counted once, or does not.
    fn say(&mut self, shape: Shape, once: bool) {
        let at = (self.entry * if shape.extended { 16 } else { 8 }) as usize;
        let Some((_, bytes)) = &mut self.table else { return };
        debug_assert!(at < bytes.len(), "an entry of the table");
        // COPIED is the first bit of the word, which is big endian
        if let Some(byte) = bytes.get_mut(at)
            && (*byte & 0x80 != 0) != once
        {
            *byte ^= 0x80;
            self.changed = true;
        }
    }
}

/// The clusters that an entry leads to: the first, and how many.
fn clusters(entry: L2, bits: u32) -> (u64, u64) {
    debug_assert!((9..=21).contains(&bits), "limits of the format");
    match entry {
        L2::Normal { host, .. } | L2::ZeroAllocated { host, .. } | L2::Split { host: Some(host), .. } => {
            (host >> bits, 1)
        }
        L2::Compressed { host, len } => {
            let (first, last) = (host >> bits, (host + u64::from(len).max(1) - 1) >> bits);
            (first, last - first + 1)
        }
        L2::Unallocated | L2::ZeroPlain | L2::Split { host: None, .. } => (0, 0),
    }
}

/// A table lies in what is in use, and on no metadata but tables.
fn check_table(index: u64, host: u64, on: &Ground<'_>) -> Result<(), Stop> {
    if host >= on.end {
        return Err(beyond(host >> on.shape.cluster_bits, on.shape.cluster_bits));
    }
    debug_assert!(host > 0, "offset 0 is no table");
    match on.counted.overlaps_but_tables(host) {
        None => Ok(()),
        Some(with) => {
            Err(Stop::Bad(Error::Corrupt(Fault::Overlap { by: By::L2Table, index, at: host, with })))
        }
    }
}

/// So does data, and on no table either.
fn check_entry(start: u64, entry: L2, behind: u64, on: &Ground<'_>) -> Result<(), Stop> {
    let bits = on.shape.cluster_bits;
    debug_assert!(behind > 0, "it leads to something");
    if behind > on.end >> bits {
        return Err(beyond(behind - 1, bits));
    }
    on.counted.check_entry_place(start, entry).map_err(Stop::Bad)
}

fn beyond(cluster: u64, bits: u32) -> Stop {
    let fault = Fault::Reference { cluster, offset: cluster << bits, why: ReferenceFault::Beyond };
    debug_assert!(cluster > 0, "the header is there");
    Stop::Bad(Error::Corrupt(fault))
}
