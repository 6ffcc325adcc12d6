//! Metadata that lies on metadata, or beyond the end of the file, when an image is opened (formats.md 4.8).
//!
//! Knows: where metadata lies. Must never know: what it says, what becomes of the image.
//!
//! Invariant: the pieces are sorted once, and each is compared with the one before it.

use super::owners::Owners;
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::{By, Fault, HeaderFault, L1Fault, Metadata, ReftableFault};
use crate::qcow2::Header;
use alloc::vec::Vec;

/// An L1 entry leads to a table that another one says is its own, or says so itself.
pub(crate) fn two_entries((index, entry): (u64, u64)) -> Error {
    Error::Corrupt(Fault::L1Entry { index, entry, why: L1Fault::Shared })
}

/// What counts clusters lies beyond the end of the file: what it counted cannot be told from free space.
pub(crate) fn beyond_the_end(header: &Header, reftable: &[u64], end: u64) -> Option<Error> {
    let cluster = header.cluster_size();
    let value = header.reftable_offset;
    debug_assert!(end.is_multiple_of(cluster), "the file ends with a cluster, as far as it is used");
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
pub(crate) fn overlapping(header: &Header, reftable: &[u64], fixed: &[Span], l2: &Owners) -> Option<Error> {
    debug_assert!(fixed.len() >= 2, "the header and the L1 table come first");
    let (cluster, shape) = (header.cluster_size(), header.shape());
    let mut pieces: Vec<(Span, Metadata, u64)> = Vec::new();
    for (n, span) in fixed.iter().enumerate() {
        let kind = [Metadata::Header, Metadata::L1Table].get(n).copied().unwrap_or(Metadata::Snapshot);
        pieces.push((*span, kind, (n as u64).saturating_sub(2)));
    }
    let bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
    pieces.push((Span::at(header.reftable_offset, bytes), Metadata::RefcountTable, 0));
    for (index, entry) in (0..).zip(reftable) {
        // what is wrong with the entry itself is told when it is used
        if let Ok(Some(block)) = shape.decode_reftable(index, *entry) {
            pieces.push((Span::at(block, cluster), Metadata::RefcountBlock, index));
        }
    }
    pieces.extend(l2.tables().map(|(table, index)| (Span::at(table, cluster), Metadata::L2Table, index)));
    pieces.retain(|(span, ..)| !span.is_empty());
    pieces.sort_unstable();
    debug_assert!(pieces.iter().all(|(span, ..)| span.start < span.end), "pieces have bytes");
    let mut last: Option<(u64, Metadata)> = None;
    for (Span { start: at, end }, kind, index) in pieces {
        if let Some((until, with)) = last
            && at < until
        {
            return Some(Error::Corrupt(Fault::Overlap { by: By::Metadata(kind), index, at, with }));
        }
        last = Some((end, kind));
    }
    None
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
        let at = |cluster: u64| Span::at(cluster * CLUSTER, CLUSTER);
        let fixed = [at(0), at(1), Span::at(20 * CLUSTER, 0), at(snapshot)];
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
