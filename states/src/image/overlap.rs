//! Overlaps: what may not lie on metadata, because writing it, or giving it up, would destroy that
//! (formats.md 4.8).
//!
//! Knows: where metadata lies that is known. Must never know: what it says.
//!
//! Invariants:
//! * a search costs a few steps in ordered sets, whatever the size of the image;
//! * known are the header, the active L1 table, the refcount table and its blocks, snapshots' L1 tables and
//!   their table; L2 tables of an L1 table that was read when the image was opened, and those that were met.

use super::refcounts::Refcounted;
use super::run::find::{Mapping, Run};
use super::{Image, Owners};
use crate::base::geometry::{Geometry, align_down};
use crate::error::Error;
use crate::fault::{By, Fault, HeaderFault, L1Fault, Metadata, ReftableFault};
use crate::qcow2::{Header, L2};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// An L1 entry leads to a table that another one says is its own, or says so itself.
pub(super) fn two_entries((index, entry): (u64, u64)) -> Error {
    Error::Corrupt(Fault::L1Entry { index, entry, why: L1Fault::Shared })
}

/// What counts clusters lies beyond the end of the file: what it counted cannot be told from free space.
pub(super) fn beyond_the_end(header: &Header, reftable: &[u64], end: u64) -> Option<Error> {
    let cluster = header.cluster_size();
    let value = header.reftable_offset;
    if value.saturating_add(u64::from(header.reftable_clusters) * cluster) > end {
        return Some(Error::Corrupt(Fault::Header { value, why: HeaderFault::ReftableBeyond }));
    }
    (0..).zip(reftable).find_map(|(index, entry)| {
        let block = header.shape().decode_reftable(index, *entry).ok()??;
        let fault = Fault::Reftable { index, entry: *entry, why: ReftableFault::Beyond };
        (block.saturating_add(cluster) > end).then_some(Error::Corrupt(fault))
    })
}

/// Pieces of metadata that lie on each other, when the image is opened: `fixed` begins with the header and
/// the L1 table.
pub(super) fn overlapping(
    header: &Header,
    reftable: &[u64],
    fixed: &[(u64, u64)],
    l2: &Owners,
) -> Option<Error> {
    let (cluster, shape) = (header.cluster_size(), header.shape());
    let mut pieces: Vec<(u64, u64, Metadata, u64)> = Vec::new();
    for (n, (start, end)) in fixed.iter().enumerate() {
        let kind = [Metadata::Header, Metadata::L1Table].get(n).copied().unwrap_or(Metadata::Snapshot);
        pieces.push((*start, *end, kind, (n as u64).saturating_sub(2)));
    }
    let end = header.reftable_offset + (u64::from(header.reftable_clusters) << header.cluster_bits);
    pieces.push((header.reftable_offset, end, Metadata::RefcountTable, 0));
    for (index, entry) in (0..).zip(reftable) {
        // what is wrong with the entry itself is told when it is used
        if let Ok(Some(block)) = shape.decode_reftable(index, *entry) {
            pieces.push((block, block.saturating_add(cluster), Metadata::RefcountBlock, index));
        }
    }
    pieces.extend(l2.tables().map(|(table, index)| (table, table + cluster, Metadata::L2Table, index)));
    pieces.retain(|(start, end, ..)| start < end);
    pieces.sort_unstable();
    let mut last: Option<(u64, Metadata)> = None;
    for piece in pieces {
        let (at, end, kind, index) = piece;
        if let Some((until, with)) = last
            && at < until
        {
            return Some(Error::Corrupt(Fault::Overlap { by: By::Metadata(kind), index, at, with }));
        }
        last = Some((end, kind));
    }
    None
}

impl Refcounted {
    /// Which metadata but L2 tables `[start, start + len)` overlaps.
    fn overlap(&self, start: u64, len: u64) -> Option<Metadata> {
        let end = start.saturating_add(len);
        let hits = |low: u64, high: u64| low < high && low < end && start < high;
        let table = self.header.reftable_offset;
        if hits(table, table + self.file_entries() as u64 * 8) {
            return Some(Metadata::RefcountTable);
        }
        if self.fixed.iter().any(|(low, high)| hits(*low, *high)) {
            return Some(Metadata::Fixed);
        }
        self.blocks.range(start..end).next().map(|_| Metadata::RefcountBlock)
    }

    /// Which metadata `[start, start + len)` overlaps, from a cluster's start on.
    fn any_overlap(&self, start: u64, len: u64) -> Option<Metadata> {
        debug_assert!(start.is_multiple_of(self.header.cluster_size()));
        self.overlap(start, len).or_else(|| {
            let table = self.l2_tables.any(start, start.saturating_add(len));
            table.then_some(Metadata::L2Table)
        })
    }

    /// Clusters that are not counted may not hold metadata: they would be handed out, or a hole punched.
    pub(super) fn check_uncounted(&self, first: u64, count: u64) -> Result<(), Error> {
        let bits = self.header.cluster_bits;
        match self.any_overlap(first << bits, count << bits) {
            None => Ok(()),
            Some(with) => Err(Error::Corrupt(Fault::Overlap { by: By::Free, index: first, at: 0, with })),
        }
    }
}

impl Image {
    /// An L2 table at `table` may not lie on other metadata, nor be that of another L1 entry if one of them
    /// would write it in place: that would destroy those.
    pub(super) fn check_l2_place(&mut self, l1_index: u64, table: u64, copied: bool) -> Result<(), Error> {
        let Some(bytes) = self.layout.geometry().map(|geometry| geometry.table_bytes) else { return Ok(()) };
        let Some(counted) = self.refcounted.as_deref_mut() else { return Ok(()) };
        if let Some(with) = counted.overlap(table, bytes) {
            let fault = Fault::Overlap { by: By::L2Table, index: l1_index, at: table, with };
            return Err(Error::Corrupt(fault));
        }
        if !counted.l2_tables.add(table, l1_index, copied) {
            return Err(two_entries((l1_index, table)));
        }
        Ok(())
    }

    /// Data at `[host, host + len)` may not lie on metadata.
    pub(super) fn check_data_place(&self, pos: u64, host: u64, len: u64) -> Result<(), Box<Error>> {
        let Some(counted) = self.refcounted.as_deref() else { return Ok(()) };
        if counted.header.has_data_file() {
            return Ok(());
        }
        let start = align_down(host, counted.header.cluster_size());
        let Some(with) = counted.any_overlap(start, host.saturating_add(len) - start) else {
            return Ok(());
        };
        let index = pos >> counted.header.cluster_bits;
        Err(Box::new(Error::Corrupt(Fault::Overlap { by: By::Data, index, at: host, with })))
    }

    /// The same for what a run points to.
    pub(super) fn check_run_place(&self, pos: u64, run: Run) -> Result<(), Box<Error>> {
        match run.mapping {
            Mapping::Data(host) | Mapping::ZeroAllocated(host) | Mapping::Reserved(host) => {
                self.check_data_place(pos, host, run.len)
            }
            Mapping::Compressed { host, len } => self.check_data_place(pos, host, len.into()),
            Mapping::NoTable | Mapping::Unallocated | Mapping::Zero => Ok(()),
        }
    }

    /// The same for what an entry points to that is to be given up; its count must be there to go down.
    pub(super) fn check_entry_place(&self, start: u64, entry: L2) -> Result<(), Error> {
        let Some(cluster) = self.layout.geometry().map(Geometry::cluster_size) else { return Ok(()) };
        if let Some(error) = self.refcounted.as_deref().and_then(|counted| counted.broken.clone()) {
            return Err(error);
        }
        let result = match entry {
            L2::Normal { host, .. } | L2::ZeroAllocated { host, .. } | L2::Split { host: Some(host), .. } => {
                self.check_data_place(start, host, cluster)
            }
            L2::Compressed { host, len } => self.check_data_place(start, host, len.into()),
            L2::Unallocated | L2::ZeroPlain | L2::Split { host: None, .. } => Ok(()),
        };
        result.map_err(|error| *error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 512;

    /// What is said of metadata at these clusters: snapshot, refcount block, L2 table. The header is at 0,
    /// the L1 table at 1, the refcount table at 2 and 3.
    fn said(snapshot: u64, block: u64, table: u64) -> Option<(Metadata, u64, u64, Metadata)> {
        let mut header = Header::new(3, 9, 4, [0; 3], None).unwrap();
        (header.reftable_offset, header.reftable_clusters) = (2 * CLUSTER, 2);
        let at = |cluster: u64| (cluster * CLUSTER, (cluster + 1) * CLUSTER);
        let fixed = [at(0), at(1), (20 * CLUSTER, 20 * CLUSTER), at(snapshot)];
        let mut l2 = Owners::default();
        l2.add(table * CLUSTER, 7, false);
        l2.add(table * CLUSTER, 8, false);
        let error = overlapping(&header, &[10 * CLUSTER, 0, block * CLUSTER, 77], &fixed, &l2)?;
        let Error::Corrupt(Fault::Overlap { by: By::Metadata(kind), index, at, with }) = error else {
            panic!("{error}")
        };
        Some((kind, index, at / CLUSTER, with))
    }

    #[test]
    fn metadata_on_metadata_is_named() {
        assert_eq!(said(4, 5, 6), None);
        assert_eq!(said(20, 5, 6), None, "a table of no bytes lies nowhere");
        assert_eq!(said(5, 4, 1), Some((Metadata::L2Table, 7, 1, Metadata::L1Table)));
        assert_eq!(said(5, 2, 6), Some((Metadata::RefcountTable, 0, 2, Metadata::RefcountBlock)));
        assert_eq!(said(5, 3, 6), Some((Metadata::RefcountBlock, 2, 3, Metadata::RefcountTable)));
        assert_eq!(said(3, 5, 6), Some((Metadata::Snapshot, 1, 3, Metadata::RefcountTable)));
        assert_eq!(said(4, 10, 6), Some((Metadata::RefcountBlock, 2, 10, Metadata::RefcountBlock)));
        assert_eq!(said(4, 5, 5), Some((Metadata::RefcountBlock, 2, 5, Metadata::L2Table)));
        assert_eq!(said(4, 5, 4), Some((Metadata::Snapshot, 1, 4, Metadata::L2Table)));
        assert_eq!(said(0, 5, 6), Some((Metadata::Snapshot, 1, 0, Metadata::Header)));
        assert_eq!(said(4, 4, 6), Some((Metadata::Snapshot, 1, 4, Metadata::RefcountBlock)));
    }
}
