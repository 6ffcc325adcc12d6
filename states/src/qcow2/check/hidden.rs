//! The part of the check that finds what `qemu-img check` does not look for, and what an image that is in use
//! is refused for: entries that contradict the format, and metadata that is something else as well, though
//! all of it is counted.
//!
//! Knows: how often a cluster is referred to, and how often as metadata. Must never know: the stored
//! refcounts.
//!
//! Invariant: it is told of images alone that are sound otherwise: what else is wrong explains it mostly, and
//! has QEMU's numbers.

use super::finding::Finding;
use super::state::Check;
use super::suspects::Hidden;
use crate::error::Error;
use crate::fault::{ClusterFault, Fault, WalkFault};
use crate::qcow2::entry::{COMPRESSED, COPIED, OFFSET, ZERO};

impl Check {
    /// An entry that only the machine refuses.
    pub(super) fn hide(&mut self, index: u64, entry: u64, why: WalkFault) {
        self.hidden.problem(Fault::L2Walk { index, entry, why });
    }

    /// One more reference to metadata that nothing else may refer to.
    pub(super) fn mark_alone(&mut self, offset: u64, len: u64) {
        self.hidden.alone.push((offset, len));
        self.mark(offset, len);
    }

    /// One more reference to an L2 table, which several entries may lead to.
    pub(super) fn count_table(&mut self, offset: u64) {
        if offset == 0 {
            self.hidden.only_flags += 1;
            return;
        }
        let cluster = offset >> self.shape.cluster_bits;
        let count = self.hidden.tables.entry(cluster).or_insert(0);
        *count = (*count + 1).min(self.layout.max());
        debug_assert!(*count > 0 && *count <= self.layout.max(), "no count is higher");
    }

    /// An entry of an L2 table of the L1 table at hand: what the machine would say of it.
    pub(super) fn check_hidden(&mut self, index: u64, entry: u64) {
        let shape = self.shape;
        let (compressed, offset) = (entry & COMPRESSED != 0, entry & OFFSET);
        debug_assert!(entry != 0 || shape.extended, "an entry that says nothing is left out");
        if compressed {
            let host = shape.compressed_range(entry).0;
            if !shape.data_file && host >= self.len.next_multiple_of(shape.cluster_size()) {
                self.hide(index, host, WalkFault::CompressedBeyond);
            }
            return;
        }
        if entry & ZERO != 0 && (shape.version < 3 || shape.extended) {
            let why = match shape.extended {
                true => WalkFault::ZeroInExtended,
                false => WalkFault::ZeroInVersion2,
            };
            self.hide(index, entry, why);
        }
        if shape.data_file && (offset != 0 || entry & COPIED != 0) && self.which == 0 {
            debug_assert!(self.l1_next > 0, "an entry led here");
            let table = self.l1_next as u64 - 1;
            let guest = ((table << shape.l2_bits()) + index) << shape.cluster_bits;
            if offset != guest {
                self.hide(index, entry, WalkFault::NotTheGuests);
            }
        }
    }

    /// Nothing else is wrong: is it this? `last`: no other run follows, which would say it again.
    pub(super) fn tell_hidden(&mut self, last: bool) {
        self.find_shared();
        debug_assert!(self.report.is_sound(), "nothing else is wrong");
        let Hidden { problems, count, .. } = core::mem::replace(&mut self.hidden, Hidden::new());
        self.report.corruptions += count;
        for fault in problems {
            if last {
                self.say(Finding::Fault(fault));
            }
            self.report.problem(Error::Corrupt(fault));
        }
    }

    /// Metadata that something else refers to as well.
    fn find_shared(&mut self) {
        let bits = self.shape.cluster_bits;
        let why = ClusterFault::Metadata;
        let ranges = core::mem::take(&mut self.hidden.alone);
        let ranges = ranges.into_iter().filter(|(_, len)| *len > 0);
        for index in ranges.flat_map(|(offset, len)| offset >> bits..=(offset + len - 1) >> bits) {
            let own = 1 + if index == 0 { self.hidden.only_flags } else { 0 };
            let value = self.computed.get(index);
            if value > own {
                self.hidden.problem(Fault::Cluster { index, value, why });
            }
        }
        for (index, own) in core::mem::take(&mut self.hidden.tables) {
            let value = self.computed.get(index);
            if value > own {
                self.hidden.problem(Fault::Cluster { index, value, why });
            }
        }
    }
}
