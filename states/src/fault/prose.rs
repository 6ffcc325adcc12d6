//! Faults in words: where, which, with which value, and what is wrong.
//!
//! Knows: prose. Must never know: who reads it.
//! Invariant: the only place of `states` where a fault has words; two faults have the same words only if
//! index and value tell them apart.

use super::why::*;
use super::{By, Fault, Metadata};
use alloc::vec::Vec;
use core::fmt;

impl Metadata {
    const KINDS: [Metadata; 7] = [
        Metadata::L1Table,
        Metadata::L2Table,
        Metadata::Header,
        Metadata::RefcountBlock,
        Metadata::RefcountTable,
        Metadata::Snapshot,
        Metadata::Fixed,
    ];

    const fn place(self) -> &'static str {
        match self {
            Metadata::L1Table => "L1 table",
            Metadata::L2Table => "L2 table",
            Metadata::Header => "header",
            Metadata::RefcountBlock => "refcount block",
            Metadata::RefcountTable => "refcount table",
            Metadata::Snapshot | Metadata::Fixed => "snapshot table",
        }
    }

    const fn overlapped(self) -> &'static str {
        match self {
            Metadata::L1Table => "overlaps the L1 table",
            Metadata::L2Table => "overlaps an L2 table",
            Metadata::Header => "overlaps the header",
            Metadata::RefcountBlock => "overlaps a refcount block",
            Metadata::RefcountTable => "overlaps the refcount table",
            Metadata::Snapshot => "overlaps a snapshot's metadata",
            Metadata::Fixed => "overlaps the header, the L1 table or a snapshot's",
        }
    }

    const fn not_counted(self) -> &'static str {
        match self {
            Metadata::L2Table => "not counted, from here on, though an L2 table is there",
            Metadata::RefcountBlock => "not counted, from here on, though a refcount block is there",
            Metadata::RefcountTable => "not counted, from here on, though the refcount table is there",
            Metadata::L1Table | Metadata::Header | Metadata::Snapshot | Metadata::Fixed => {
                "not counted, from here on, though the header, the L1 table or a snapshot's is there"
            }
        }
    }
}

impl By {
    const fn prose(self, with: Metadata) -> (&'static str, &'static str) {
        match (self, with) {
            (By::Metadata(own), with) => (own.place(), with.overlapped()),
            (By::L2Table, with) => ("L1 table", with.overlapped()),
            (By::Data, Metadata::L2Table) => ("L2 table, guest cluster", "the data overlaps an L2 table"),
            (By::Data, with) => ("L2 table, guest cluster", with.overlapped()),
            (By::Bitmap, with) => ("bitmap table, host cluster", with.overlapped()),
            (By::Free, with) => ("refcount of the host cluster", with.not_counted()),
        }
    }
}

impl Fault {
    /// Where, and what is wrong there, in words.
    pub const fn prose(&self) -> (&'static str, &'static str) {
        match self {
            Fault::QedHeader { why, .. } => why.prose(),
            Fault::Header { why, .. } => why.prose(),
            Fault::Extension { why, .. } => why.prose(),
            Fault::New { why, .. } => why.prose(),
            Fault::L1Entry { why, .. } => why.prose(),
            Fault::L2Entry { why, .. } => why.prose(),
            Fault::Pointer { why, .. } => why.prose(),
            Fault::L2Walk { why, .. } => why.prose(),
            Fault::Reftable { why, .. } => why.prose(),
            Fault::Refcount { .. } => ("refcount of cluster", "is lower than the number of references"),
            Fault::Snapshot { why, .. } => why.prose(),
            Fault::Bitmap { why, .. } => why.prose(),
            Fault::BitmapTable { why, .. } => why.prose(),
            Fault::Cluster { why, .. } => why.prose(),
            Fault::Reference { why, .. } => why.prose(),
            Fault::Overlap { by, with, .. } => by.prose(*with),
            Fault::TooManyDangling { .. } => {
                ("table slice", "too many pointers beyond the end of the file: check the image")
            }
            Fault::Dangling { why, .. } => why.prose(),
            Fault::Compressed { .. } => {
                ("compressed data, bytes and host offset", "it does not decompress to one cluster")
            }
            Fault::Luks { .. } => ("LUKS header", "there is no header of LUKS version 1"),
        }
    }

    /// Which of the place's entries, 0 for a header's; and the value that is wrong.
    pub const fn numbers(&self) -> (u64, u64) {
        match *self {
            Fault::QedHeader { value, .. }
            | Fault::Header { value, .. }
            | Fault::Extension { value, .. }
            | Fault::New { value, .. }
            | Fault::Luks { offset: value } => (0, value),
            Fault::L1Entry { index, entry, .. }
            | Fault::L2Walk { index, entry, .. }
            | Fault::Reftable { index, entry, .. }
            | Fault::BitmapTable { index, entry, .. }
            | Fault::Dangling { index, entry, .. } => (index, entry),
            Fault::Snapshot { index, value, .. }
            | Fault::Bitmap { index, value, .. }
            | Fault::Cluster { index, value, .. } => (index, value),
            Fault::L2Entry { guest, entry, .. } => (guest, entry),
            Fault::Pointer { cluster, host, .. } => (cluster, host),
            Fault::Refcount { cluster, stored } => (cluster, stored),
            Fault::Reference { cluster, offset, .. } => (cluster, offset),
            Fault::Overlap { index, at, .. } => (index, at),
            Fault::TooManyDangling { slice, end } => (slice, end),
            Fault::Compressed { bytes, host } => (bytes, host),
        }
    }
}

impl Fault {
    /// One of each kind, all with this index and this value, so that a test leaves none out.
    pub fn every(index: u64, value: u64) -> Vec<Fault> {
        let mut all = Vec::from([
            Fault::Refcount { cluster: index, stored: value },
            Fault::TooManyDangling { slice: index, end: value },
            Fault::Compressed { bytes: index, host: value },
            Fault::Luks { offset: value },
        ]);
        all.extend(QedFault::ALL.iter().map(|&why| Fault::QedHeader { value, why }));
        all.extend(HeaderFault::ALL.iter().map(|&why| Fault::Header { value, why }));
        all.extend(ExtensionFault::ALL.iter().map(|&why| Fault::Extension { value, why }));
        all.extend(NewFault::ALL.iter().map(|&why| Fault::New { value, why }));
        all.extend(L1Fault::ALL.iter().map(|&why| Fault::L1Entry { index, entry: value, why }));
        all.extend(L2Fault::ALL.iter().map(|&why| Fault::L2Entry { guest: index, entry: value, why }));
        all.extend(PointerFault::ALL.iter().map(|&why| Fault::Pointer { cluster: index, host: value, why }));
        all.extend(WalkFault::ALL.iter().map(|&why| Fault::L2Walk { index, entry: value, why }));
        all.extend(ReftableFault::ALL.iter().map(|&why| Fault::Reftable { index, entry: value, why }));
        all.extend(SnapshotFault::ALL.iter().map(|&why| Fault::Snapshot { index, value, why }));
        all.extend(BitmapFault::ALL.iter().map(|&why| Fault::Bitmap { index, value, why }));
        all.extend(BitsFault::ALL.iter().map(|&why| Fault::BitmapTable { index, entry: value, why }));
        all.extend(ClusterFault::ALL.iter().map(|&why| Fault::Cluster { index, value, why }));
        all.extend(ReferenceFault::ALL.iter().map(|&why| Fault::Reference {
            cluster: index,
            offset: value,
            why,
        }));
        all.extend(DanglingFault::ALL.iter().map(|&why| Fault::Dangling { index, entry: value, why }));
        let kinds = [By::L2Table, By::Data, By::Free, By::Bitmap]
            .into_iter()
            .chain(Metadata::KINDS.map(By::Metadata));
        for by in kinds {
            all.extend(Metadata::KINDS.map(|with| Fault::Overlap { by, index, at: value, with }));
        }
        all
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((place, what), (index, value)) = (self.prose(), self.numbers());
        write!(f, "{place}[{index}] = {value:#x}: {what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_fault_has_its_words_for_itself() {
        let all = Fault::every(3, 0x70);
        let own = |fault: &Fault| fault.prose().0.len() > 3 && fault.prose().1.len() > 8;
        assert!(all.len() > 150 && all.iter().all(own), "{}", all.len());
        // what lies on metadata is told apart by what it is, not by how it was found
        let mut texts: Vec<(&str, &str)> =
            all.iter().filter(|fault| !matches!(fault, Fault::Overlap { .. })).map(Fault::prose).collect();
        let count = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }

    #[test]
    fn place_index_value_and_why_are_told() {
        let fault = Fault::L2Entry { guest: 3, entry: 0x70, why: L2Fault::Reserved };
        assert_eq!(fault.to_string(), "L2 entry of the guest offset[3] = 0x70: reserved bits are set");
        let fault = Fault::Overlap { by: By::Data, index: 3, at: 0x70, with: Metadata::L2Table };
        assert_eq!(fault.to_string(), "L2 table, guest cluster[3] = 0x70: the data overlaps an L2 table");
        let fault = Fault::Header { value: 0x70, why: HeaderFault::ClusterBits };
        assert_eq!(fault.to_string(), "qcow2 header field cluster_bits[0] = 0x70: must be 9 to 21");
    }
}
