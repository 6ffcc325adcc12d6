//! What may not lie on metadata, because writing it, or giving it up, would destroy that (formats.md 4.8).
//!
//! Knows: what is about to be written, given up or handed out. Must never know: what it holds.
//!
//! Invariant: whatever is written in place, changed or freed was looked at here before.

use super::counts::Refcounted;
use super::overlaps::two_entries;
use crate::base::geometry::align_down;
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::{By, Fault, Metadata};
use crate::qcow2::L2;
use crate::tables::mapping::{Mapping, Run};

impl Refcounted {
    /// The refcount table in the file overlaps it.
    #[inline]
    fn hits_reftable(&self, span: Span) -> bool {
        let table = Span::at(self.header.reftable_offset, self.file_entries() as u64 * 8);
        debug_assert!(
            table.start.is_multiple_of(self.header.cluster_size()),
            "the table begins with a cluster"
        );
        !table.is_empty() && table.overlaps(span)
    }

    /// Which metadata but L2 tables it overlaps.
    fn overlap(&self, span: Span) -> Option<Metadata> {
        debug_assert!(!span.is_empty());
        if self.hits_reftable(span) {
            return Some(Metadata::RefcountTable);
        }
        self.map.overlap(span)
    }

    /// Which metadata it overlaps, from a cluster's start on.
    #[inline]
    fn any_overlap(&self, span: Span) -> Option<Metadata> {
        debug_assert!(span.start.is_multiple_of(self.header.cluster_size()));
        debug_assert!(span.start <= span.end, "it does not run backwards");
        if self.hits_reftable(span) {
            return Some(Metadata::RefcountTable);
        }
        self.map.any_overlap(span)
    }

    /// Which metadata but L2 tables a table at `host` overlaps.
    pub(crate) fn overlaps_but_tables(&self, host: u64) -> Option<Metadata> {
        debug_assert!(host.is_multiple_of(self.header.cluster_size()), "a table begins with a cluster");
        self.overlap(Span::at(host, self.header.cluster_size()))
    }

    /// Which metadata clusters from `host` on overlap.
    pub(crate) fn overlaps_any(&self, host: u64, bytes: u64) -> Option<Metadata> {
        debug_assert!(bytes > 0, "nothing overlaps nothing");
        self.any_overlap(Span::at(host, bytes))
    }

    /// Clusters that are not counted may not hold metadata: they would be handed out, or a hole punched.
    pub(crate) fn check_uncounted(&self, first: u64, count: u64) -> Result<(), Error> {
        debug_assert!(count > 0);
        let bits = self.header.cluster_bits;
        debug_assert!(
            first.checked_add(count).is_some_and(|end| end <= u64::MAX >> bits),
            "no file is longer"
        );
        match self.any_overlap(Span::at(first << bits, count << bits)) {
            None => Ok(()),
            Some(with) => Err(Error::Corrupt(Fault::Overlap { by: By::Free, index: first, at: 0, with })),
        }
    }

    /// An L2 table at `table` may not lie on other metadata, nor be that of another L1 entry if one of them
    /// would write it in place: that would destroy those.
    pub(crate) fn check_l2_place(
        &mut self,
        l1_index: u64,
        table: u64,
        bytes: u64,
        copied: bool,
    ) -> Result<(), Error> {
        debug_assert!(bytes > 0);
        debug_assert!(table > 0, "offset 0 is no table");
        if let Some(with) = self.overlap(Span::at(table, bytes)) {
            let fault = Fault::Overlap { by: By::L2Table, index: l1_index, at: table, with };
            return Err(Error::Corrupt(fault));
        }
        if !self.map.add_l2_table(table, l1_index, copied) {
            return Err(two_entries((l1_index, table)));
        }
        Ok(())
    }

    /// Data at `[host, host + len)` may not lie on metadata.
    pub(crate) fn check_data_place(&self, pos: u64, host: u64, len: u64) -> Result<(), Error> {
        debug_assert!(len > 0);
        if self.header.has_data_file() {
            return Ok(());
        }
        let start = align_down(host, self.header.cluster_size());
        let Some(with) = self.any_overlap(Span::new(start, host.saturating_add(len))) else {
            return Ok(());
        };
        let index = pos >> self.header.cluster_bits;
        Err(Error::Corrupt(Fault::Overlap { by: By::Data, index, at: host, with }))
    }

    /// The same for what a run points to.
    pub(crate) fn check_run_place(&self, pos: u64, run: Run) -> Result<(), Error> {
        debug_assert!(run.len > 0);
        debug_assert!(pos < 1 << 63, "guest offsets are below that");
        match run.mapping {
            Mapping::Data(host) | Mapping::ZeroAllocated(host) | Mapping::Reserved(host) => {
                self.check_data_place(pos, host, run.len)
            }
            Mapping::Compressed { host, len } => self.check_data_place(pos, host, len.into()),
            Mapping::NoTable | Mapping::Unallocated | Mapping::Zero => Ok(()),
        }
    }

    /// The same for what an entry points to that is to be given up; its count must be there to go down.
    pub(crate) fn check_entry_place(&self, start: u64, entry: L2) -> Result<(), Error> {
        debug_assert!(start.is_multiple_of(self.header.cluster_size()), "an entry maps a cluster");
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        match entry {
            L2::Normal { host, .. } | L2::ZeroAllocated { host, .. } | L2::Split { host: Some(host), .. } => {
                self.check_data_place(start, host, self.header.cluster_size())
            }
            L2::Compressed { host, len } => self.check_data_place(start, host, len.into()),
            L2::Unallocated | L2::ZeroPlain | L2::Split { host: None, .. } => Ok(()),
        }
    }
}
