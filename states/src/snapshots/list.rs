//! The list of snapshots: read whole, one more or one less, written whole to another place.
//!
//! Knows: entries. Must never know: tables, counts.
//!
//! Invariant: bounded by the limits of the format, 64 MiB of table and 65,536 entries.

use super::ask::Ask;
use crate::error::Error;
use crate::fault::{Fault, Lack, SnapshotFault};
use crate::qcow2::Header;
use crate::qcow2::snapshot::{Parsed, SNAPSHOTS_MAX, Selector, Snapshot, TABLE_MAX};
use alloc::string::ToString;
use alloc::vec::Vec;

/// Bytes that are read at once.
const CHUNK: u64 = 64 << 10;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct List {
    pub(super) entries: Vec<Snapshot>,
    /// What was read of the table, and how much of that is understood.
    bytes: Vec<u8>,
    parsed: usize,
}

/// What becomes of the image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Plan {
    /// The disk goes on as it is, and this entry keeps what it is now.
    Create,
    /// The disk becomes what this entry keeps.
    Apply(Snapshot),
    /// This entry goes.
    Delete(Snapshot),
}

impl List {
    /// The piece of the table that has to be read next; None: all entries are there.
    pub(super) fn next(&mut self, header: &Header) -> Result<Option<(u64, u64)>, Error> {
        while self.entries.len() < header.snapshots as usize {
            let rest = self.bytes.get(self.parsed..).unwrap_or_default();
            debug_assert!(self.parsed <= self.bytes.len(), "what is understood was read");
            match Snapshot::parse(rest, self.entries.len() as u64, false)? {
                Parsed::Entry(entry, len) => {
                    entry.check_l1(self.entries.len() as u64, header.cluster_size())?;
                    self.entries.push(entry);
                    self.parsed += len;
                }
                Parsed::Needs(_) => {
                    let done = self.bytes.len() as u64;
                    if done >= TABLE_MAX + CHUNK {
                        let (index, why) = (self.entries.len() as u64, SnapshotFault::TooLong);
                        return Err(Error::Corrupt(Fault::Snapshot { index, value: done, why }));
                    }
                    return Ok(Some((header.snapshots_offset + done, CHUNK)));
                }
            }
            // the padding of the last entry may be cut off
            if self.parsed > self.bytes.len() {
                self.bytes.resize(self.parsed, 0);
            }
        }
        self.bytes.truncate(self.parsed);
        Ok(None)
    }

    /// That piece.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        debug_assert!(!bytes.is_empty(), "a piece has bytes");
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes of the table as it was read.
    pub(super) const fn len(&self) -> u64 {
        debug_assert!(self.parsed <= self.bytes.len(), "what is understood was read");
        self.parsed as u64
    }

    /// Changes the list as it was asked.
    pub(super) fn change(&mut self, ask: &Ask, header: &Header) -> Result<Plan, Error> {
        debug_assert!(self.entries.len() == header.snapshots as usize, "all of them are there");
        let find = |selector: &Selector| selector.find(&self.entries).ok_or(Error::NoSnapshot);
        match ask {
            Ask::Create { name, date_sec, date_nsec } => {
                if self.entries.len() >= SNAPSHOTS_MAX as usize {
                    return Err(Error::Unsupported(Lack::TooManySnapshots));
                }
                let entry = Snapshot {
                    l1_offset: header.l1_offset,
                    l1_entries: header.l1_entries,
                    date_sec: *date_sec,
                    date_nsec: *date_nsec,
                    vm_clock_nsec: 0,
                    vm_state_size_field: 0,
                    extra: [0, header.guest_size(), 0].map(u64::to_be_bytes).concat(),
                    id: self.next_id().to_string().into_bytes(),
                    name: name.clone(),
                };
                self.entries.push(entry);
                self.complete(header)?;
                Ok(Plan::Create)
            }
            Ask::Apply(selector) => {
                let index = find(selector)?;
                let entry = self.entries[index].clone();
                let size = entry.disk_size().unwrap_or(header.size);
                if u64::from(entry.l1_entries) < header.shape().l1_entries(size) {
                    let (value, why) = (entry.l1_entries.into(), SnapshotFault::L1TooSmall);
                    return Err(Error::Corrupt(Fault::Snapshot { index: index as u64, value, why }));
                }
                if size & !511 != header.guest_size() && header.version < 3 {
                    return Err(Error::Unsupported(Lack::ResizeVersion2));
                }
                Ok(Plan::Apply(entry))
            }
            Ask::Delete(selector) => {
                let index = find(selector)?;
                let entry = self.entries.remove(index);
                self.complete(header)?;
                Ok(Plan::Delete(entry))
            }
        }
    }

    /// What is written again says all that its version asks for, and is no longer than a table may be.
    fn complete(&mut self, header: &Header) -> Result<(), Error> {
        debug_assert!(self.entries.len() <= SNAPSHOTS_MAX as usize, "limits of the format");
        if header.version >= 3 {
            let old = self.entries.iter_mut().filter(|entry| !entry.is_complete());
            old.for_each(|entry| entry.complete(header.guest_size()));
        }
        match self.encode().len() as u64 > TABLE_MAX {
            true => Err(Error::Unsupported(Lack::TooManySnapshots)),
            false => Ok(()),
        }
    }

    /// One more than the highest number that there is, as QEMU counts.
    fn next_id(&self) -> u64 {
        let number = |id: &[u8]| {
            let digits = id.iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0u64, |sum, byte| sum.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
        };
        let last = self.entries.iter().map(|entry| number(&entry.id)).max().unwrap_or(0);
        debug_assert!(self.entries.len() <= SNAPSHOTS_MAX as usize, "limits of the format");
        last.saturating_add(1)
    }

    /// The table.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut table = Vec::new();
        self.entries.iter().for_each(|entry| entry.encode(&mut table));
        debug_assert!(table.len().is_multiple_of(8), "entries are padded");
        table
    }
}
