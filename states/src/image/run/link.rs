//! Linking: entries of L2 tables that come to point to clusters that were just written.
//!
//! Knows: what an entry was, and what it becomes. Must never know: how the clusters were written.
//!
//! Invariants:
//! * entries change only in a slice that stayed pinned since the clusters were claimed, and whose table is
//!   not shared;
//! * the change is young: it is written after the sync that makes the clusters durable (QE3, QC3);
//! * what the entry pointed to before goes into quarantine with the change's window (QC4).

use crate::acb::{AcbIndex, Source};
use crate::base::geometry::Geometry;
use crate::base::span::Span;
use crate::image::value::Image;
use crate::qcow2::entry::COPIED;
use crate::qcow2::{L2, Shape, Sub, Subclusters};
#[cfg(feature = "sabotage")]
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use crate::space::packed::border_behind;
use crate::tables::slice::SliceState;

impl Image {
    /// Changes entries `[first, first + count)` of a slice, all equal so far, to `value`, `value + step`, ...
    /// The change is young.
    pub(crate) fn set_entries(&mut self, slot: u32, range: (usize, usize), values: (u64, u64)) {
        debug_assert!(!self.options.read_only);
        let window = self.commit.windows.open();
        if self.tables.set_entries(slot, range, values, window, &mut self.outbox) {
            self.dangling.note_linked(self.tables.slot(slot).number);
            self.commit.note_dirty(slot, self.options.commit_ms, &mut self.outbox);
        }
    }

    /// Makes the new clusters of an extent visible.
    pub(crate) fn link(&mut self, a: AcbIndex) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let acb = self.requests.acb(a);
        if let Source::Packed(len) = acb.extent.source {
            return self.link_packed(a, len);
        }
        let first = geometry.cluster_start(acb.pos);
        // a cluster that was only moved has no guest bytes in the extent
        let end = geometry.cluster_end(acb.extent.end).max(first + geometry.cluster_size());
        let count = ((end - first) >> geometry.cluster_bits) as usize;
        let host = acb.extent.host - (acb.pos - first);
        let guest = Span::new(acb.pos, acb.extent.end);
        let Some(slot) = acb.held.pinned else { return };
        debug_assert!(count > 0 && host.is_multiple_of(geometry.cluster_size()));
        debug_assert_eq!(acb.io.pending, 0, "all of the extent is written");
        let (number, entry) = geometry.l2_slice(first);
        debug_assert_eq!(self.tables.slot(slot).number, number.0, "pinned");
        // the sync that makes the data durable comes first: `set_entries` keeps the change out of table
        // writes until then
        self.commit.wrote();
        let Some(shape) = self.layout.shape() else {
            return self.set_entries(slot, (entry, count), (host, geometry.cluster_size()));
        };
        let words = self.tables.slot(slot).entries.get(entry..entry + count).unwrap_or_default();
        let fresh = !shape.extended && words.iter().all(|word| *word == 0);
        if fresh {
            return self.set_entries(slot, (entry, count), (host | COPIED, geometry.cluster_size()));
        }
        for n in 0..count as u64 {
            let start = first + (n << geometry.cluster_bits);
            let mask = units(&geometry, start, guest);
            let host = host + (n << geometry.cluster_bits);
            self.link_one(slot, shape, start, host, mask);
        }
    }

    /// The acb failed before its new clusters were linked: nothing ever pointed to them. (Those of QED are a
    /// leak: nobody counts them.)
    #[cold]
    pub(crate) fn give_back(&mut self, a: AcbIndex) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let acb = self.requests.acb(a);
        // what had its space before keeps it
        if !acb.held.claims || acb.write.stale || self.refcounted.is_none() || self.health.is_halted() {
            return;
        }
        debug_assert_eq!(acb.io.pending, 0);
        if let Source::Packed(len) = acb.extent.source {
            return self.give_back_packed(acb.extent.host, len);
        }
        let first = geometry.cluster_start(acb.pos);
        let end = geometry.cluster_end(acb.extent.end).max(first + geometry.cluster_size());
        let host = acb.extent.host - (acb.pos - first);
        let (first_host, count) = (host >> geometry.cluster_bits, (end - first) >> geometry.cluster_bits);
        debug_assert!(first_host > 0 && count > 0, "it got clusters behind the header");
        self.free_clusters(ClusterRun::new(first_host, count), 0);
    }

    /// Makes the cluster visible: its bytes are written.
    fn link_packed(&mut self, a: AcbIndex, len: u32) {
        let acb = self.requests.acb(a);
        let (pos, host) = (acb.pos, acb.extent.host);
        let (Some(slot), Some(shape)) = (acb.held.pinned, self.layout.shape()) else { return };
        debug_assert_eq!(acb.io.pending, 0, "all of it is written");
        let Some(entry) = shape.encode_compressed(host, len) else {
            debug_assert!(false, "that was tried before");
            return;
        };
        self.commit.wrote();
        self.change_entry(slot, pos, entry, 0);
    }

    /// Nothing ever pointed to these bytes.
    pub(crate) fn give_back_packed(&mut self, host: u64, len: u32) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        debug_assert!(len > 0 && host >> bits > 0, "they lie behind the header");
        let (first, last) = (host >> bits, (host + u64::from(len) - 1) >> bits);
        self.free_clusters(ClusterRun::new(first, last - first + 1), 0);
    }

    /// The entry of the cluster at `start` leads to `host`, where the subclusters of `mask` have data.
    fn link_one(&mut self, slot: u32, shape: Shape, start: u64, host: u64, mask: u32) {
        let Some((word, bitmap)) = self.entry_words(slot, start) else { return };
        let old = shape.decode_l2(start, word, bitmap).unwrap_or(L2::Unallocated);
        debug_assert!(host.is_multiple_of(1 << shape.cluster_bits), "an entry leads to a cluster");
        let bitmap = match old {
            _ if !shape.extended => 0,
            L2::Compressed { .. } => Subclusters::ALL_ALLOCATED.0,
            _ => Subclusters(bitmap).with(mask, Sub::Allocated).0,
        };
        self.change_entry(slot, start, host | COPIED, bitmap);
        self.release_old(shape, old, Some(host));
    }

    /// The words of the entry of the cluster at `start`; the second one is 0 where there is none.
    pub(crate) fn entry_words(&self, slot: u32, start: u64) -> Option<(u64, u64)> {
        let geometry = self.layout.geometry()?;
        let (_, at) = geometry.l2_slice(start);
        debug_assert_eq!(self.tables.slot(slot).number, geometry.l2_slice(start).0.0, "it maps that");
        let entries = &self.tables.slot(slot).entries;
        debug_assert!(entries.len() == geometry.slice_words(), "it is an L2 slice");
        let bitmap = if geometry.entry_word_bits == 0 { 0 } else { entries.get(at + 1).copied()? };
        Some((entries.get(at).copied()?, bitmap))
    }

    /// Changes an entry, young.
    pub(crate) fn change_entry(&mut self, slot: u32, start: u64, word: u64, bitmap: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        debug_assert!(!self.must_copy(slot, start));
        let (_, at) = geometry.l2_slice(start);
        debug_assert!(bitmap == 0 || geometry.entry_word_bits == 1, "one word has no subclusters");
        let Some((old_word, old_bitmap)) = self.entry_words(slot, start) else { return };
        if old_word != word {
            self.set_entries(slot, (at, 1), (word, 0));
        }
        if old_bitmap != bitmap {
            self.set_entries(slot, (at + 1, 1), (bitmap, 0));
        }
        debug_assert_eq!(self.entry_words(slot, start), Some((word, bitmap)), "that is what it says now");
    }

    /// Has the table to be copied before the entry at guest offset `pos` changes? (`pos` matters only where a
    /// rule is removed.)
    #[inline]
    pub(crate) fn must_copy(&self, slot: u32, pos: u64) -> bool {
        debug_assert_ne!(self.tables.slot(slot).state, SliceState::Empty, "the lookup has found it");
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::SharedTable)
            || self.options.sabotaged(Rule::WaitAllocL2) && self.is_copying(pos)
        {
            return false;
        }
        let _ = pos;
        self.tables.slot(slot).shared
    }

    /// What an entry pointed to until now is one reference poorer, unless it is `kept`.
    pub(crate) fn release_old(&mut self, shape: Shape, old: L2, kept: Option<u64>) {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone gives clusters back");
        if shape.data_file {
            return;
        }
        let (window, bits) = (self.commit.windows.open(), shape.cluster_bits);
        debug_assert!(window > 0, "a removal belongs to a window");
        match old {
            L2::Normal { host, copied }
            | L2::ZeroAllocated { host, copied }
            | L2::Split { host: Some(host), copied, .. } => {
                let alone =
                    copied || self.refcounted.as_deref().is_some_and(|counted| counted.header.snapshots > 0);
                match kept == Some(host) {
                    true => {}
                    false if alone => self.free_clusters(ClusterRun::new(host >> bits, 1), window),
                    false => self.free_shared(host >> bits, window),
                }
            }
            L2::Compressed { host, len } => {
                // what it counts as its own behind the end that the file had may be somebody else's by now:
                // rather a leak
                let end = (host + u64::from(len)).min(border_behind(self.old_borders(), host));
                let first = host >> bits;
                let last = ((end - 1) >> bits).max(first);
                self.free_clusters(ClusterRun::new(first, last - first + 1), window);
            }
            L2::Unallocated | L2::ZeroPlain | L2::Split { host: None, .. } => {}
        }
    }
}

/// Which subclusters of the cluster at `start` lie, in part at least, in this guest range.
pub(crate) fn units(geometry: &Geometry, start: u64, guest: Span) -> u32 {
    debug_assert!(guest.start <= guest.end);
    let size = geometry.cluster_size() / u64::from(Subclusters::COUNT);
    let (low, high) = (guest.start.max(start), guest.end.min(start + geometry.cluster_size()));
    if low >= high || size == 0 {
        return 0;
    }
    let (first, last) = ((low - start) / size, (high - 1 - start) / size);
    debug_assert!(first <= last && last < u64::from(Subclusters::COUNT), "subclusters of the cluster");
    (u32::MAX >> (31 - (last - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_what_is_touched() {
        let geometry = Geometry::qcow2(16, true, 0);
        let cluster = 1 << 20;
        assert_eq!(units(&geometry, cluster, Span::new(cluster, cluster + 65536)), u32::MAX);
        assert_eq!(units(&geometry, cluster, Span::new(cluster + 2048, cluster + 2049)), 2);
        assert_eq!(units(&geometry, cluster, Span::new(cluster + 2047, cluster + 2049)), 3);
        assert_eq!(units(&geometry, cluster, Span::new(cluster + 63488, cluster + 80000)), 1 << 31);
        assert_eq!(units(&geometry, cluster, Span::new(cluster + 70000, cluster + 80000)), 0);
        assert_eq!(units(&geometry, cluster, Span::new(cluster + 5, cluster + 5)), 0);
    }
}
