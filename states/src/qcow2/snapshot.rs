//! The snapshot table: entries of various lengths, read one by one, kept with all that they say.
//!
//! Knows: an entry's fields. Must never know: the snapshot's tables.
//!
//! Invariants:
//! * an entry takes memory for what its lengths say, and they are bounded: at most 1024 bytes of extra data
//!   and twice 65535 of names;
//! * `encode` gives the entry as it was read, its padding zeros.

use super::be;
use crate::base::geometry::L1_BYTES_MAX;
use crate::error::Error;
use crate::fault::{Fault, SnapshotFault};
use alloc::vec::Vec;

/// QEMU's limits.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Bytes of the whole table.
pub const TABLE_MAX: u64 = 64 << 20;
/// Bytes of an entry's extra data.
pub const EXTRA_MAX: u32 = 1024;
/// Bytes of an entry's fixed part.
pub const FIXED: usize = 40;
/// Version 3 asks for this many bytes of extra data: the size of the VM state and that of the disk.
const EXTRA_V3: usize = 16;

/// An internal snapshot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snapshot {
    /// Where its L1 table lies.
    pub l1_offset: u64,
    /// Entries of its L1 table.
    pub l1_entries: u32,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds of that second.
    pub date_nsec: u32,
    /// Nanoseconds that the guest had run.
    pub vm_clock_nsec: u64,
    /// The 32-bit field; see [`Snapshot::vm_state_size`].
    pub vm_state_size_field: u32,
    /// All extra data, known or not.
    pub extra: Vec<u8>,
    /// Unique identifier, mostly a number.
    pub id: Vec<u8>,
    /// What the user called it.
    pub name: Vec<u8>,
}

/// Which snapshot is meant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Selector {
    /// The one with this identifier.
    Id(Vec<u8>),
    /// The first one of this name.
    Name(Vec<u8>),
    /// The one with this identifier, if this is its name.
    IdAndName(Vec<u8>, Vec<u8>),
    /// The one with this identifier; if there is none, the first one of this name.
    IdOrName(Vec<u8>),
}

impl Selector {
    /// How well the snapshot fits: 0 not at all, 2 as well as any can.
    pub fn fit(&self, snapshot: &Snapshot) -> u8 {
        debug_assert!(snapshot.id.len() <= usize::from(u16::MAX), "limits of the format");
        match self {
            Selector::Id(id) => 2 * u8::from(snapshot.id == *id),
            Selector::Name(name) => 2 * u8::from(snapshot.name == *name),
            Selector::IdAndName(id, name) => 2 * u8::from(snapshot.id == *id && snapshot.name == *name),
            Selector::IdOrName(word) if snapshot.id == *word => 2,
            Selector::IdOrName(word) => u8::from(snapshot.name == *word),
        }
    }

    /// Of these the one that is meant: the first that no other fits better.
    pub fn find<'a>(&self, snapshots: impl IntoIterator<Item = &'a Snapshot>) -> Option<usize> {
        let mut best = (0, None);
        for (index, snapshot) in snapshots.into_iter().enumerate() {
            let fit = self.fit(snapshot);
            debug_assert!(fit <= 2, "no fit is better");
            if fit > best.0 {
                best = (fit, Some(index));
            }
        }
        best.1
    }
}

/// What came of reading an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// An entry that takes this many bytes of the table, padding included.
    Entry(Snapshot, usize),
    /// The entry needs this many bytes from its start.
    Needs(usize),
}

impl Snapshot {
    /// Reads the entry at the start of `bytes`. With `trim`, extra data that is too long is cut off, as a
    /// repair does; otherwise it is an error. `index` is only for the error.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the entry, and what is wrong with it.
    pub fn parse(bytes: &[u8], index: u64, trim: bool) -> Result<Parsed, Error> {
        if bytes.len() < FIXED {
            return Ok(Parsed::Needs(FIXED));
        }
        let (id_len, name_len) = (usize::from(be::u16_at(bytes, 12)), usize::from(be::u16_at(bytes, 14)));
        let extra_len = be::u32_at(bytes, 36);
        if extra_len > EXTRA_MAX && !trim {
            let (value, why) = (extra_len.into(), SnapshotFault::ExtraTooLong);
            return Err(Error::Corrupt(Fault::Snapshot { index, value, why }));
        }
        let extra_len = usize::try_from(extra_len).unwrap_or(usize::MAX);
        let end = FIXED.saturating_add(extra_len).saturating_add(id_len + name_len);
        if end as u64 > TABLE_MAX {
            let (value, why) = (end as u64, SnapshotFault::TooLong);
            return Err(Error::Corrupt(Fault::Snapshot { index, value, why }));
        }
        let id_at = FIXED + extra_len;
        let (Some(extra), Some(id), Some(name)) = (
            bytes.get(FIXED..FIXED + extra_len.min(EXTRA_MAX as usize)),
            bytes.get(id_at..id_at + id_len),
            bytes.get(id_at + id_len..end),
        ) else {
            return Ok(Parsed::Needs(end));
        };
        let snapshot = Snapshot {
            l1_offset: be::u64_at(bytes, 0),
            l1_entries: be::u32_at(bytes, 8),
            date_sec: be::u32_at(bytes, 16),
            date_nsec: be::u32_at(bytes, 20),
            vm_clock_nsec: be::u64_at(bytes, 24),
            vm_state_size_field: be::u32_at(bytes, 32),
            extra: extra.to_vec(),
            id: id.to_vec(),
            name: name.to_vec(),
        };
        debug_assert!(extra.len() < extra_len || snapshot.is_encoded_as(&bytes[..end]), "as it was read");
        Ok(Parsed::Entry(snapshot, end.next_multiple_of(8)))
    }

    /// Bytes of VM state.
    pub fn vm_state_size(&self) -> u64 {
        if self.extra.len() >= 8 { be::u64_at(&self.extra, 0) } else { self.vm_state_size_field.into() }
    }

    /// Bytes of the guest disk when the snapshot was taken; old entries do not say it.
    pub fn disk_size(&self) -> Option<u64> {
        (self.extra.len() >= 16).then(|| be::u64_at(&self.extra, 8))
    }

    /// Instructions that the guest had executed, if it was recorded.
    pub fn icount(&self) -> Option<u64> {
        (self.extra.len() >= 24).then(|| be::u64_at(&self.extra, 16)).filter(|count| *count != u64::MAX)
    }

    /// Where its L1 table lies can be one, in clusters of this size; `index` is only for the error.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the entry, and what is wrong with it.
    pub fn check_l1(&self, index: u64, cluster: u64) -> Result<(), Error> {
        let bytes = u64::from(self.l1_entries) * 8;
        let why = match self.l1_offset {
            _ if bytes > L1_BYTES_MAX => SnapshotFault::L1TooLarge,
            offset if !offset.is_multiple_of(cluster) => SnapshotFault::L1Unaligned,
            offset if offset > i64::MAX as u64 - bytes => SnapshotFault::L1Beyond,
            _ => return Ok(()),
        };
        debug_assert!(cluster.is_power_of_two(), "limits of the format");
        Err(Error::Corrupt(Fault::Snapshot { index, value: self.l1_offset, why }))
    }

    /// It says all that version 3 asks for.
    pub fn is_complete(&self) -> bool {
        self.extra.len() >= EXTRA_V3
    }

    /// Adds what version 3 asks for: `disk_size` where the entry does not say one.
    pub fn complete(&mut self, disk_size: u64) {
        let (state, size) = (self.vm_state_size(), self.disk_size().unwrap_or(disk_size));
        let len = self.extra.len().max(EXTRA_V3);
        self.extra.resize(len, 0);
        be::put_u64(&mut self.extra, 0, state);
        be::put_u64(&mut self.extra, 8, size);
        debug_assert!(self.is_complete());
    }

    /// Its entry, but for the padding, is these bytes.
    fn is_encoded_as(&self, bytes: &[u8]) -> bool {
        let mut table = Vec::new();
        self.encode(&mut table);
        debug_assert!(table.len() >= FIXED, "an entry has its fixed part");
        table.starts_with(bytes) && table.len() == bytes.len().next_multiple_of(8)
    }

    /// Appends the entry with its padding.
    pub fn encode(&self, table: &mut Vec<u8>) {
        debug_assert!(self.id.len() <= usize::from(u16::MAX) && self.name.len() <= usize::from(u16::MAX));
        debug_assert!(table.len().is_multiple_of(8));
        let half = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        table.extend(self.l1_offset.to_be_bytes());
        table.extend(self.l1_entries.to_be_bytes());
        table.extend(half(self.id.len()).to_be_bytes());
        table.extend(half(self.name.len()).to_be_bytes());
        table.extend(self.date_sec.to_be_bytes());
        table.extend(self.date_nsec.to_be_bytes());
        table.extend(self.vm_clock_nsec.to_be_bytes());
        table.extend(self.vm_state_size_field.to_be_bytes());
        table.extend(u32::try_from(self.extra.len()).unwrap_or(u32::MAX).to_be_bytes());
        table.extend(&self.extra);
        table.extend(&self.id);
        table.extend(&self.name);
        table.resize(table.len().next_multiple_of(8), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
        (any::<[u64; 3]>(), any::<[u32; 3]>(), bytes(40), bytes(9), bytes(20)).prop_map(
            |([l1_offset, vm_clock_nsec, _], [l1_entries, date_sec, state], extra, id, name)| Snapshot {
                l1_offset,
                l1_entries,
                date_sec,
                date_nsec: 7,
                vm_clock_nsec,
                vm_state_size_field: state,
                extra,
                id,
                name,
            },
        )
    }

    #[test]
    fn extra_data_that_is_too_long() {
        let mut table = Vec::new();
        let long = Snapshot {
            l1_offset: 0,
            l1_entries: 0,
            date_sec: 0,
            date_nsec: 0,
            vm_clock_nsec: 0,
            vm_state_size_field: 5,
            extra: vec![1; 2000],
            id: vec![b'1'],
            name: vec![b'x'; 3],
        };
        long.encode(&mut table);
        assert!(Snapshot::parse(&table, 0, false).is_err());
        let Ok(Parsed::Entry(cut, len)) = Snapshot::parse(&table, 0, true) else { panic!("refused") };
        assert_eq!((cut.extra.len(), cut.name, len), (1024, long.name, table.len()));
        be::put_u32(&mut table, 36, u32::MAX);
        assert!(Snapshot::parse(&table, 0, true).is_err());
    }

    #[test]
    fn limits() {
        let mut entry = vec![0; FIXED];
        let error = |value, why| Err(Error::Corrupt(Fault::Snapshot { index: 3, value, why }));
        be::put_u32(&mut entry, 36, EXTRA_MAX);
        assert_eq!(Snapshot::parse(&entry, 3, false), Ok(Parsed::Needs(FIXED + 1024)));
        be::put_u32(&mut entry, 36, EXTRA_MAX + 1);
        assert_eq!(Snapshot::parse(&entry, 3, false), error(1025, SnapshotFault::ExtraTooLong));
        let most = TABLE_MAX as usize - FIXED;
        be::put_u32(&mut entry, 36, most as u32);
        assert_eq!(Snapshot::parse(&entry, 3, true), Ok(Parsed::Needs(TABLE_MAX as usize)));
        be::put_u32(&mut entry, 36, most as u32 + 1);
        assert_eq!(Snapshot::parse(&entry, 3, true), error(TABLE_MAX + 1, SnapshotFault::TooLong));
    }

    #[test]
    fn the_count_of_instructions_is_there_or_not() {
        for (extra, expected) in [
            (vec![], None),
            (vec![1; 23], None),
            ([&[0; 16][..], &7u64.to_be_bytes()].concat(), Some(7)),
            (vec![0xff; 24], None),
        ] {
            let mut entry = vec![0; FIXED];
            be::put_u32(&mut entry, 36, extra.len() as u32);
            entry.extend(extra);
            let Ok(Parsed::Entry(snapshot, _)) = Snapshot::parse(&entry, 0, false) else { panic!("refused") };
            assert_eq!(snapshot.icount(), expected);
        }
    }

    #[test]
    fn an_identifier_fits_better_than_a_name() {
        let named = |id: &str, name: &str| Snapshot {
            l1_offset: 0,
            l1_entries: 0,
            date_sec: 0,
            date_nsec: 0,
            vm_clock_nsec: 0,
            vm_state_size_field: 0,
            extra: vec![],
            id: id.into(),
            name: name.into(),
        };
        let all = [named("1", "2"), named("2", "b"), named("3", "b")];
        let find = |selector: Selector| selector.find(&all);
        assert_eq!(find(Selector::IdOrName("2".into())), Some(1));
        assert_eq!(find(Selector::Name("2".into())), Some(0));
        assert_eq!(find(Selector::IdOrName("b".into())), Some(1));
        assert_eq!(find(Selector::IdAndName("3".into(), "b".into())), Some(2));
        assert_eq!(find(Selector::IdAndName("1".into(), "b".into())), None);
        assert_eq!(find(Selector::Id("b".into())), None);
    }

    #[test]
    fn an_old_entry_is_completed() {
        let mut table = vec![0; 40];
        be::put_u32(&mut table, 32, 77);
        let Ok(Parsed::Entry(mut old, 40)) = Snapshot::parse(&table, 0, false) else { panic!("refused") };
        assert_eq!((old.vm_state_size(), old.disk_size(), old.is_complete()), (77, None, false));
        old.complete(1 << 30);
        assert_eq!((old.vm_state_size(), old.disk_size(), old.is_complete()), (77, Some(1 << 30), true));
        assert_eq!(old.icount(), None);
    }

    proptest! {
        #[test]
        fn encode_then_parse(entry in snapshot(), cut in 0..100usize) {
            let mut table = Vec::new();
            entry.encode(&mut table);
            let padded = table.len();
            prop_assert_eq!(Snapshot::parse(&table, 0, false), Ok(Parsed::Entry(entry, padded)));
            let short = table.get(..cut).unwrap_or(&table);
            match Snapshot::parse(short, 0, false) {
                Ok(Parsed::Needs(more)) => prop_assert!(more > short.len() && more <= padded),
                Ok(Parsed::Entry(_, len)) => prop_assert_eq!(len, padded),
                Err(error) => return Err(TestCaseError::fail(alloc::format!("{error}"))),
            }
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), trim: bool) {
            if let Ok(Parsed::Entry(_, len)) = Snapshot::parse(&bytes, 0, trim) {
                prop_assert!(len < bytes.len() + 8);
            }
        }
    }
}
