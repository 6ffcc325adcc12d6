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
use crate::qcow2::{Header, L2};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// An L1 entry leads to a table that another one says is its own, or says so itself.
pub(super) fn two_entries((index, value): (u64, u64)) -> Error {
    Error::Corrupt { place: "L1 table", index, value, what: "two L1 entries lead to this L2 table" }
}

/// What counts clusters lies beyond the end of the file: what it counted cannot be told from free space.
pub(super) fn beyond_the_end(header: &Header, reftable: &[u64], end: u64) -> Option<Error> {
    let cluster = header.cluster_size();
    let value = header.reftable_offset;
    if value.saturating_add(u64::from(header.reftable_clusters) * cluster) > end {
        let (place, index) = ("qcow2 header field refcount_table_offset", 0);
        let what = "the refcount table lies beyond the end of the file";
        return Some(Error::Corrupt { place, index, value, what });
    }
    (0..).zip(reftable).find_map(|(index, entry)| {
        let block = header.shape().decode_reftable(index, *entry).ok()??;
        let (place, what) = ("refcount table", "the refcount block lies beyond the end of the file");
        (block.saturating_add(cluster) > end).then_some(Error::Corrupt { place, index, value: *entry, what })
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
    let mut pieces: Vec<(u64, u64, &'static str, u64)> = Vec::new();
    for (n, (start, end)) in fixed.iter().enumerate() {
        let kind = ["header", "L1 table"].get(n).copied().unwrap_or("snapshot table");
        pieces.push((*start, *end, kind, (n as u64).saturating_sub(2)));
    }
    let end = header.reftable_offset + (u64::from(header.reftable_clusters) << header.cluster_bits);
    pieces.push((header.reftable_offset, end, "refcount table", 0));
    for (index, entry) in (0..).zip(reftable) {
        // what is wrong with the entry itself is told when it is used
        if let Ok(Some(block)) = shape.decode_reftable(index, *entry) {
            pieces.push((block, block.saturating_add(cluster), "refcount block", index));
        }
    }
    pieces.extend(l2.tables().map(|(table, index)| (table, table + cluster, "L2 table", index)));
    pieces.retain(|(start, end, ..)| start < end);
    pieces.sort_unstable();
    let mut last: Option<(u64, u64, &'static str, u64)> = None;
    for piece in pieces {
        let (start, end, place, index) = piece;
        if let Some((_, until, other, _)) = last
            && start < until
        {
            let what = match other {
                "header" => "overlaps the header",
                "L1 table" => "overlaps the L1 table",
                "refcount table" => "overlaps the refcount table",
                "refcount block" => "overlaps a refcount block",
                "L2 table" => "overlaps an L2 table",
                _ => "overlaps a snapshot's metadata",
            };
            return Some(Error::Corrupt { place, index, value: start, what });
        }
        last = Some((start, end, place, index));
    }
    None
}

impl Refcounted {
    /// Which metadata but L2 tables `[start, start + len)` overlaps, in words.
    fn overlap(&self, start: u64, len: u64) -> Option<&'static str> {
        let end = start.saturating_add(len);
        let hits = |low: u64, high: u64| low < high && low < end && start < high;
        let table = self.header.reftable_offset;
        if hits(table, table + self.file_entries() as u64 * 8) {
            return Some("overlaps the refcount table");
        }
        if self.fixed.iter().any(|(low, high)| hits(*low, *high)) {
            return Some("overlaps the header, the L1 table or a snapshot's");
        }
        self.blocks.range(start..end).next().map(|_| "overlaps a refcount block")
    }

    /// Which metadata `[start, start + len)` overlaps, from a cluster's start on.
    fn any_overlap(&self, start: u64, len: u64) -> Option<&'static str> {
        debug_assert!(start.is_multiple_of(self.header.cluster_size()));
        self.overlap(start, len).or_else(|| {
            let table = self.l2_tables.any(start, start.saturating_add(len));
            table.then_some("overlaps an L2 table")
        })
    }

    /// Clusters that are not counted may not hold metadata: they would be handed out, or a hole punched.
    pub(super) fn check_uncounted(&self, first: u64, count: u64) -> Result<(), Error> {
        let bits = self.header.cluster_bits;
        let what = match self.any_overlap(first << bits, count << bits) {
            None => return Ok(()),
            Some("overlaps an L2 table") => "not counted, from here on, though an L2 table is there",
            Some("overlaps a refcount block") => {
                "not counted, from here on, though a refcount block is there"
            }
            Some("overlaps the refcount table") => {
                "not counted, from here on, though the refcount table is there"
            }
            Some(_) => "not counted, from here on, though the header, the L1 table or a snapshot's is there",
        };
        Err(Error::Corrupt { place: "refcount of the host cluster", index: first, value: 0, what })
    }
}

impl Image {
    /// An L2 table at `table` may not lie on other metadata, nor be that of another L1 entry if one of them
    /// would write it in place: that would destroy those.
    pub(super) fn check_l2_place(&mut self, l1_index: u64, table: u64, copied: bool) -> Result<(), Error> {
        let Some(bytes) = self.geometry().map(|geometry| geometry.table_bytes) else { return Ok(()) };
        let Some(counted) = self.counted_mut() else { return Ok(()) };
        let what = counted.overlap(table, bytes).or_else(|| {
            let alone = counted.l2_tables.add(table, l1_index, copied);
            (!alone).then_some("two L1 entries lead to this L2 table")
        });
        match what {
            None => Ok(()),
            Some(what) => Err(Error::Corrupt { place: "L1 table", index: l1_index, value: table, what }),
        }
    }

    /// Data at `[host, host + len)` may not lie on metadata.
    pub(super) fn check_data_place(&self, pos: u64, host: u64, len: u64) -> Result<(), Box<Error>> {
        let Some(counted) = self.counted() else { return Ok(()) };
        if counted.header.has_data_file() {
            return Ok(());
        }
        let start = align_down(host, counted.header.cluster_size());
        let what = match counted.any_overlap(start, host.saturating_add(len) - start) {
            None => return Ok(()),
            Some("overlaps an L2 table") => "the data overlaps an L2 table",
            Some(what) => what,
        };
        let index = pos >> counted.header.cluster_bits;
        Err(Box::new(Error::Corrupt { place: "L2 table, guest cluster", index, value: host, what }))
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
        let Some(cluster) = self.geometry().map(Geometry::cluster_size) else { return Ok(()) };
        if let Some(error) = self.counted().and_then(|counted| counted.broken.clone()) {
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
    fn said(snapshot: u64, block: u64, table: u64) -> Option<(&'static str, u64, u64, &'static str)> {
        let mut header = Header::new(3, 9, 4, [0; 3], None).unwrap();
        (header.reftable_offset, header.reftable_clusters) = (2 * CLUSTER, 2);
        let at = |cluster: u64| (cluster * CLUSTER, (cluster + 1) * CLUSTER);
        let fixed = [at(0), at(1), (20 * CLUSTER, 20 * CLUSTER), at(snapshot)];
        let mut l2 = Owners::default();
        l2.add(table * CLUSTER, 7, false);
        l2.add(table * CLUSTER, 8, false);
        let error = overlapping(&header, &[10 * CLUSTER, 0, block * CLUSTER, 77], &fixed, &l2)?;
        let Error::Corrupt { place, index, value, what } = error else { panic!("{error}") };
        Some((place, index, value / CLUSTER, what))
    }

    #[test]
    fn metadata_on_metadata_is_named() {
        assert_eq!(said(4, 5, 6), None);
        assert_eq!(said(20, 5, 6), None, "a table of no bytes lies nowhere");
        assert_eq!(said(5, 4, 1), Some(("L2 table", 7, 1, "overlaps the L1 table")));
        assert_eq!(said(5, 2, 6), Some(("refcount table", 0, 2, "overlaps a refcount block")));
        assert_eq!(said(5, 3, 6), Some(("refcount block", 2, 3, "overlaps the refcount table")));
        assert_eq!(said(3, 5, 6), Some(("snapshot table", 1, 3, "overlaps the refcount table")));
        assert_eq!(said(4, 10, 6), Some(("refcount block", 2, 10, "overlaps a refcount block")));
        assert_eq!(said(4, 5, 5), Some(("refcount block", 2, 5, "overlaps an L2 table")));
        assert_eq!(said(4, 5, 4), Some(("snapshot table", 1, 4, "overlaps an L2 table")));
        assert_eq!(said(0, 5, 6), Some(("snapshot table", 1, 0, "overlaps the header")));
        assert_eq!(said(4, 4, 6), Some(("snapshot table", 1, 4, "overlaps a refcount block")));
    }
}
