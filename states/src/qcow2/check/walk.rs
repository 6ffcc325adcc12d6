//! The part of the check that counts references: L1 and L2 tables, bitmaps, refcount blocks.
//!
//! Knows: what each table's entries refer to. Must never know: the stored refcounts.

use super::counts::Counts;
use super::finding::Finding;
use super::state::{CLUSTERS_MAX, Check, CheckStep, decode};
use super::suspects::Hidden;
use crate::check::Repair;
use crate::error::Error;
use crate::fault::{BitmapFault, ClusterFault, Fault, L1Fault, ReftableFault, SnapshotFault, WalkFault};
use crate::io::IoOp;
use crate::qcow2::bitmap::Piece;
use crate::qcow2::entry::{
    COMPRESSED, COPIED, L1_RESERVED, L2_RESERVED, OFFSET, REFTABLE_RESERVED, Shape, Subclusters, ZERO,
};
use crate::qcow2::{be, bitmap};
use alloc::vec::Vec;

/// What an L2 entry is, told by its bits alone, right or wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// It has no space.
    Unallocated,
    /// It has a cluster, of data or of zeros.
    Allocated,
    Compressed,
}

pub(super) fn kind(shape: Shape, entry: u64) -> EntryKind {
    match entry & OFFSET {
        _ if entry & COMPRESSED != 0 => EntryKind::Compressed,
        0 if entry & ZERO != 0 && !shape.extended => EntryKind::Unallocated,
        0 if shape.data_file && entry & COPIED != 0 => EntryKind::Allocated,
        0 => EntryKind::Unallocated,
        _ => EntryKind::Allocated,
    }
}

/// Do two ranges (first byte, bytes) overlap?
pub(super) fn overlap(one: (u64, u64), other: (u64, u64)) -> bool {
    debug_assert!(one.1 > 0);
    other.1 > 0 && one.0 < other.0.saturating_add(other.1) && other.0 < one.0 + one.1
}

/// How many entries from the first on have no flag but that they are copied, all the same, and lead to whole
/// clusters one behind the other. 0: not even the first.
fn plain_run(shape: Shape, entries: &[[u8; 8]]) -> usize {
    let Some((first, others)) = entries.split_first() else { return 0 };
    let (first, cluster) = (u64::from_be_bytes(*first), shape.cluster_size());
    let plain = first & !(COPIED | OFFSET) == 0 && first & OFFSET != 0 && first.is_multiple_of(cluster);
    if !plain || shape.data_file {
        return 0;
    }
    // what goes over into the bits above an offset is beyond the end of every file
    let follows = |(entry, n): &(&[u8; 8], u64)| u64::from_be_bytes(**entry) == first + n * cluster;
    let run = 1 + others.iter().zip(1..).take_while(follows).count();
    debug_assert!(run <= entries.len(), "a run of the table");
    run
}

impl Check {
    /// Starts counting.
    pub(super) fn walk(&mut self) {
        self.computed = Counts::new(self.layout);
        self.beyond.forget();
        if self.rebuilt.is_none() {
            self.stored = Counts::new(self.layout);
        }
        self.hidden = Hidden::new();
        self.all_copied = true;
        self.bad_blocks.clear();
        debug_assert!(self.beyond.told == 0, "references are counted anew");
        let report = &mut self.report;
        (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters) = (0, 0, 0);
        self.which = 0;
        self.mark_alone(0, self.shape.cluster_size());
        let (offset, entries) = (self.header.l1_offset, self.header.l1_entries);
        self.walk_l1(offset, entries);
    }

    /// One more reference to each cluster of a range.
    pub(super) fn mark(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        if self.is_beyond(offset, len) {
            return self.lies_beyond(offset, len);
        }
        let bits = self.shape.cluster_bits;
        let (mut at, end) = (offset >> bits, ((offset + len - 1) >> bits) + 1);
        debug_assert!(end <= (self.len >> bits) + 2, "the last cluster may be there in part");
        self.clusters = self.clusters.max(end);
        while at < end {
            at = self.computed.raise(at, end);
            if at < end {
                let value = self.layout.max();
                let fault = Fault::Cluster { index: at, value, why: ClusterFault::Overflow };
                self.wrong(Finding::Overflow { offset: at << bits }, fault);
                self.beyond.overflow = true;
                at += 1;
            }
        }
    }

    /// Does a write at an L2 table overlap other metadata than L2 tables?
    pub(super) fn overlaps(&self, offset: u64) -> bool {
        let cluster = self.shape.cluster_size();
        debug_assert!(offset >> 63 == 0, "entries hold offsets below that");
        let l1 = |at: u64, entries: u32| overlap((offset, cluster), (at, u64::from(entries) * 8));
        !offset.is_multiple_of(cluster)
            || l1(self.header.l1_offset, self.header.l1_entries)
            || self.snapshots.iter().any(|s| l1(s.l1_offset, s.l1_entries))
            || self.overlaps_others((offset, cluster))
    }

    /// Does a range overlap other metadata than L1 and L2 tables? Tables of bitmaps are known when the
    /// references are counted.
    pub(super) fn overlaps_others(&self, range: (u64, u64)) -> bool {
        debug_assert!(range.1 > 0, "a range has bytes");
        let (header, cluster) = (&self.header, self.shape.cluster_size());
        let hit = |from: u64, len: u64| overlap(range, (from, len));
        hit(0, cluster)
            || hit(header.reftable_offset, u64::from(header.reftable_clusters) * cluster)
            || hit(header.snapshots_offset, self.snapshots_len)
            || header.bitmaps().is_some_and(|all| hit(all.directory_offset, all.directory_size))
            || self.bitmaps.iter().any(|bitmap| hit(bitmap.table_offset, bitmap.table_bytes()))
            || self.reftable.iter().any(|block| *block != 0 && hit(block & !511, cluster))
    }

    fn walk_l1(&mut self, offset: u64, entries: u32) {
        debug_assert!(u64::from(entries) * 8 <= 32 << 20, "a longer table was refused");
        if entries == 0 {
            return self.next_l1();
        }
        if !self.reaches_l1() {
            self.read_l1(offset, entries);
        }
    }

    pub(super) fn read_l1(&mut self, offset: u64, entries: u32) {
        debug_assert!(entries > 0);
        self.mark_alone(offset, u64::from(entries) * 8);
        self.load(CheckStep::L1, offset, entries as usize * 8);
    }

    fn next_l1(&mut self) {
        if self.which == 0 && self.shape.data_file && !self.snapshots.is_empty() {
            let (value, why) = (self.snapshots.len() as u64, SnapshotFault::DataFile);
            self.corrupt(Fault::Snapshot { index: 0, value, why });
        }
        while let Some(snapshot) = self.snapshots.get(self.which) {
            let (index, offset, entries) = (self.which as u64, snapshot.l1_offset, snapshot.l1_entries);
            self.which += 1;
            if !offset.is_multiple_of(self.shape.cluster_size()) {
                let why = SnapshotFault::L1Unaligned;
                self.corrupt(Fault::Snapshot { index, value: offset, why });
            } else if entries > (32 << 20) / 8 {
                let why = SnapshotFault::L1TooLarge;
                self.corrupt(Fault::Snapshot { index, value: entries.into(), why });
            } else if entries > 0 && offset > i64::MAX as u64 - (32 << 20) {
                let why = SnapshotFault::L1Beyond;
                return self.fail(Error::Corrupt(Fault::Snapshot { index, value: offset, why }));
            } else if entries > 0 {
                return self.walk_l1(offset, entries);
            }
        }
        self.mark_alone(self.header.snapshots_offset, self.snapshots_len);
        let bytes = u64::from(self.header.reftable_clusters) << self.shape.cluster_bits;
        self.mark_alone(self.header.reftable_offset, bytes);
        let Some(bitmaps) = self.header.bitmaps() else { return self.walk_blocks() };
        if bitmaps.directory_offset > i64::MAX as u64 || bitmaps.directory_size == 0 {
            let (value, why) = (bitmaps.directory_offset, BitmapFault::Missing);
            return self.fail(Error::Corrupt(Fault::Bitmap { index: 0, value, why }));
        }
        self.mark_alone(bitmaps.directory_offset, bitmaps.directory_size);
        self.load(CheckStep::Directory, bitmaps.directory_offset, bitmaps.directory_size as usize);
    }

    pub(super) fn l1_loaded(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() as u64 <= 32 << 20, "a longer table was refused");
        self.l1 = decode(bytes);
        (self.l1_next, self.ahead) = (0, 0);
        self.next_l2();
    }

    pub(super) fn next_l2(&mut self) {
        while let Some(&entry) = self.l1.get(self.l1_next) {
            let index = self.l1_next as u64;
            self.l1_next += 1;
            if entry == 0 {
                continue;
            }
            if entry & L1_RESERVED != 0 {
                self.corrupt(Fault::L1Entry { index, entry, why: L1Fault::Reserved });
            }
            let (offset, cluster) = (entry & OFFSET, self.shape.cluster_size());
            self.all_copied &= self.which > 0 || offset == 0 || entry & COPIED != 0;
            self.mark_table(offset);
            if !offset.is_multiple_of(cluster) {
                let fault = |entry| Fault::L1Entry { index, entry, why: L1Fault::Unaligned };
                self.wrong(Finding::Fault(fault(offset)), fault(entry));
            }
            self.l2_offset = offset;
            return self.load(CheckStep::L2, offset, cluster as usize);
        }
        self.next_l1();
    }

    pub(super) fn l2_loaded(&mut self, bytes: &[u8]) {
        let step = self.shape.l2_entry_bytes() as usize;
        let (mut expected, mut fixed, mut at) = (0, Vec::new(), 0);
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let run = if step == 8 { plain_run(self.shape, rest.as_chunks::<8>().0) } else { 0 };
            let end = at + step * run.max(1);
            if run == 0 || !self.count_run(be::u64_at(bytes, at), run as u64, &mut expected) {
                self.count_entries(bytes, at, end, &mut expected, &mut fixed);
            }
            at = end;
        }
        if !fixed.is_empty() {
            debug_assert!(self.fix == Some(Repair::All), "nothing less changes entries");
            return self.store(CheckStep::FixL2, self.l2_offset, fixed);
        }
        self.next_l2();
    }

    /// Counts what a run of plain entries refers to. False: it has to be looked at one by one.
    fn count_run(&mut self, entry: u64, count: u64, expected: &mut u64) -> bool {
        debug_assert!(count > 0 && !self.shape.extended && !self.shape.data_file);
        let (offset, len) = (entry & OFFSET, count * self.shape.cluster_size());
        if self.goes_beyond(self.beyond.end, offset, len) {
            return false;
        }
        if self.which == 0 {
            self.report.allocated_clusters += count;
            self.report.fragmented_clusters += u64::from(*expected != 0 && offset != *expected);
            *expected = offset + len;
            self.all_copied &= entry & COPIED != 0;
        }
        self.mark(offset, len);
        true
    }

    /// Counts what the entries in a range of a table's bytes refer to; `fixed` is the table as it shall be,
    /// if that is another one.
    fn count_entries(
        &mut self,
        bytes: &[u8],
        from: usize,
        to: usize,
        expected: &mut u64,
        fixed: &mut Vec<u8>,
    ) {
        let step = self.shape.l2_entry_bytes() as usize;
        debug_assert!(from < to && to <= bytes.len());
        for at in (from..to).step_by(step) {
            let entry = be::u64_at(bytes, at);
            let bitmap = if self.shape.extended { be::u64_at(bytes, at + 8) } else { 0 };
            if entry == 0 && bitmap == 0 {
                continue;
            }
            let zeroed = self.count_entry((at / step) as u64, entry, bitmap, expected);
            if let Some((entry, bitmap)) = zeroed {
                if fixed.is_empty() {
                    fixed.extend(bytes);
                }
                be::put_u64(fixed, at, entry);
                if self.shape.extended {
                    be::put_u64(fixed, at + 8, bitmap);
                }
            }
        }
    }

    /// Counts what an entry refers to; what it shall be when it is to be repaired.
    fn count_entry(&mut self, index: u64, entry: u64, bitmap: u64, expected: &mut u64) -> Option<(u64, u64)> {
        let kind = kind(self.shape, entry);
        debug_assert!(bitmap == 0 || self.shape.extended, "one word has no subclusters");
        if kind != EntryKind::Compressed && entry & L2_RESERVED != 0 {
            self.corrupt(Fault::L2Walk { index, entry, why: WalkFault::Reserved });
        }
        self.check_hidden(index, entry);
        match kind {
            EntryKind::Compressed => self.count_compressed(index, entry, bitmap),
            EntryKind::Allocated => return self.count_cluster(index, entry, bitmap, expected),
            EntryKind::Unallocated if Subclusters(bitmap).allocated() != 0 => {
                self.corrupt(Fault::L2Walk { index, entry: bitmap, why: WalkFault::NoCluster });
            }
            EntryKind::Unallocated => {}
        }
        None
    }

    fn count_compressed(&mut self, index: u64, entry: u64, bitmap: u64) {
        debug_assert!(entry & COMPRESSED != 0);
        if entry & COPIED != 0 {
            let fault = |entry| Fault::L2Walk { index, entry, why: WalkFault::CompressedCopied };
            self.wrong(Finding::Fault(fault(self.shape.compressed_range(entry).0)), fault(entry));
        }
        if self.shape.data_file {
            return self.corrupt(Fault::L2Walk { index, entry, why: WalkFault::CompressedInDataFile });
        }
        if bitmap != 0 {
            return self.corrupt(Fault::L2Walk { index, entry, why: WalkFault::CompressedSubclusters });
        }
        let (offset, len) = self.shape.compressed_range(entry);
        self.mark_entry(offset, len.into());
        if self.which == 0 {
            self.report.allocated_clusters += 1;
            self.report.compressed_clusters += 1;
            self.report.fragmented_clusters += 1;
        }
    }

    fn count_cluster(
        &mut self,
        index: u64,
        entry: u64,
        bitmap: u64,
        expected: &mut u64,
    ) -> Option<(u64, u64)> {
        debug_assert!(entry & COMPRESSED == 0);
        let (offset, cluster) = (entry & OFFSET, self.shape.cluster_size());
        if !Subclusters(bitmap).is_valid() {
            let fault = |entry| Fault::L2Walk { index, entry, why: WalkFault::BothKinds };
            self.wrong(Finding::Fault(fault(offset)), fault(bitmap));
        }
        if !offset.is_multiple_of(cluster) {
            let extended = self.shape.extended;
            let data = if extended { Subclusters(bitmap).allocated() != 0 } else { entry & ZERO == 0 };
            let repaired = !data
                && self.fix == Some(Repair::All)
                && self.rebuilt.is_none()
                && !self.overlaps(self.l2_offset);
            let fault = Fault::L2Walk { index, entry, why: WalkFault::Unaligned };
            self.wrong(Finding::Unaligned { offset, data, repaired }, fault);
            if repaired {
                self.repaired();
                return Some(if extended { (0, bitmap & Subclusters::ALL_ZERO.0) } else { (ZERO, 0) });
            }
        }
        if self.which == 0 {
            self.report.allocated_clusters += 1;
            self.report.fragmented_clusters += u64::from(*expected != 0 && offset != *expected);
            *expected = offset + cluster;
            self.all_copied &= entry & COPIED != 0;
        }
        if !self.shape.data_file {
            self.mark_entry(offset, cluster);
        }
        None
    }

    pub(super) fn directory_loaded(&mut self, bytes: &[u8]) {
        let count = self.header.bitmaps().map_or(0, |bitmaps| bitmaps.count);
        match bitmap::parse_directory(bytes, count, self.shape, self.header.guest_size()) {
            Ok(bitmaps) => self.bitmaps = bitmaps,
            Err(error) => return self.fail(error),
        }
        debug_assert!(self.bitmaps.len() == count as usize, "so many as the header says");
        self.next = 0;
        self.next_bitmap();
    }

    fn next_bitmap(&mut self) {
        let Some(bitmap) = self.bitmaps.get(self.next) else { return self.walk_blocks() };
        let (offset, len) = (bitmap.table_offset, bitmap.table_bytes());
        self.next += 1;
        debug_assert!(len > 0, "a table is not empty");
        if offset > i64::MAX as u64 - len {
            let (index, why) = (self.next as u64 - 1, BitmapFault::TableBeyond);
            return self.fail(Error::Corrupt(Fault::Bitmap { index, value: offset, why }));
        }
        self.mark_alone(offset, len);
        self.load(CheckStep::BitmapTable, offset, len as usize);
    }

    pub(super) fn bitmap_loaded(&mut self, bytes: &[u8]) {
        debug_assert!(self.next > 0, "a bitmap led here");
        for (index, entry) in decode(bytes).into_iter().enumerate() {
            match bitmap::decode_piece(index as u64, entry, self.shape) {
                Ok(Piece::Stored(host)) => self.mark(host, self.shape.cluster_size()),
                Ok(Piece::All(_)) => {}
                Err(Error::Corrupt(fault)) => self.corrupt(fault),
                Err(error) => return self.fail(error),
            }
        }
        self.next_bitmap();
    }

    fn walk_blocks(&mut self) {
        self.next = 0;
        self.next_block();
    }

    /// Goes on with the next entry of the refcount table.
    fn next_block(&mut self) {
        let (cluster, bits) = (self.shape.cluster_size(), self.shape.cluster_bits);
        while let Some(&entry) = self.reftable.get(self.next) {
            let (index, offset) = (self.next as u64, entry & !REFTABLE_RESERVED);
            self.next += 1;
            let wrong = |why| Fault::Reftable { index, entry, why };
            if entry & REFTABLE_RESERVED != 0 {
                self.corrupt(wrong(ReftableFault::Reserved));
                self.rebuild = true;
                if !offset.is_multiple_of(cluster) {
                    self.bad_blocks.insert(index);
                }
            } else if !offset.is_multiple_of(cluster) {
                self.corrupt(wrong(ReftableFault::Unaligned));
                self.rebuild = true;
                self.bad_blocks.insert(index);
            } else if offset >> bits >= self.clusters {
                let repaired = self.fix == Some(Repair::All) && self.rebuilt.is_none();
                self.wrong(Finding::BlockBeyond { index, repaired }, wrong(ReftableFault::WalkBeyond));
                if offset > i64::MAX as u64 {
                    self.bad_blocks.insert(index);
                }
                if repaired {
                    if (offset >> bits) < CLUSTERS_MAX {
                        self.wrote = true;
                        return self.emit(CheckStep::Extend, IoOp::SetLen { len: offset + cluster });
                    }
                    self.rebuild = true;
                }
            } else if offset != 0 {
                self.mark(offset, cluster);
                let references = self.computed.get(offset >> bits);
                if references != 1 {
                    self.wrong(Finding::BlockShared { index, references }, wrong(ReftableFault::Shared));
                    self.rebuild = true;
                }
            }
        }
        self.load_blocks();
    }

    /// The file is now long enough for the block.
    pub(super) fn extended(&mut self) {
        debug_assert!(self.next > 0);
        let entry = self.reftable.get(self.next - 1).copied().unwrap_or(0);
        self.len = entry + self.shape.cluster_size();
        debug_assert!(self.len > entry, "the file has the block now");
        self.clusters = self.clusters.max(self.len >> self.shape.cluster_bits);
        self.repaired();
        self.mark(entry, self.shape.cluster_size());
        self.next_block();
    }

    pub(super) fn not_extended(&mut self) {
        debug_assert!(self.fix == Some(Repair::All), "nothing else makes the file longer");
        self.rebuild = true;
        self.next_block();
    }
}
