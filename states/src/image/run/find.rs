//! Find-cluster: what is the acb's next byte mapped to, and what follows from it.
//!
//! Knows: entries, the cache. Must never know: how new clusters come to be (`write.rs`, `space/`).
//!
//! Invariants:
//! * an entry is checked before it is used, each cluster of a run (trap Q6), and a bad one ends the request
//!   with its place;
//! * concurrent misses of one slice share one load.

use crate::acb::request::RequestKind;
use crate::acb::{AcbIndex, State, block::Acb};
use crate::base::geometry::Geometry;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::run::read::EXTENT_MAX;
use crate::image::value::Image;
use crate::rule::Rule;
use crate::tables::dangling::check_dangling;
use crate::tables::mapping::{Mapping, Run, ZERO_ENTRY};
use crate::tables::slice::SliceState;
use alloc::boxed::Box;

/// What a byte is mapped to, or what is in the way of knowing it.
enum Lookup {
    /// Found in this cache slot (none for `NoTable` and raw).
    Found(Run, Option<u32>),
    /// A slice of the way is being loaded into this slot.
    Loading(u32),
    /// No slot is free for a slice of the way.
    NoSlot,
    /// A bad entry.
    Failed(Box<Error>),
}

impl Image {
    /// `FindCluster`: goes on until the acb waits for something or is done.
    #[inline(never)]
    pub(crate) fn find_cluster(&mut self, a: AcbIndex) -> Next {
        loop {
            let acb = self.requests.acb(a);
            debug_assert_eq!(acb.state, State::FindCluster);
            let &Acb { pos, end, .. } = acb;
            if pos == end {
                return Next::Range;
            }
            if acb.kind.changes()
                && self.health.is_held()
                && let Some(next) = self.may_change(a)
            {
                return next;
            }
            let (run, slot) = match self.lookup(pos, end) {
                Lookup::Found(run, slot) => (run, slot),
                Lookup::Loading(slot) => return self.wait_for_slice(a, slot),
                Lookup::NoSlot => return self.wait_for_slot(a),
                Lookup::Failed(error) => return self.fail_lookup(error),
            };
            debug_assert!(run.len > 0 && run.len <= end - pos);
            if let Some(slot) = slot {
                self.tables.touch(slot);
                self.outbox.counters.hits += 1;
            }
            match self.use_run(a, run, slot) {
                Next::On => {}
                next => return next,
            }
        }
    }

    /// What a request of this kind does with a run.
    fn use_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        let no_table = || run.mapping == Mapping::NoTable || self.layout.is_raw();
        debug_assert!(slot.is_none() == no_table(), "an entry comes with its slice");
        #[cfg(feature = "sabotage")]
        let run = if self.options.sabotaged(Rule::LookAgain) { self.as_it_was(a, run) } else { run };
        let counted = self.refcounted.is_some();
        match self.requests.acb(a).kind {
            RequestKind::Read => self.read_run(a, run),
            RequestKind::Write => self.write_run(a, run, slot),
            RequestKind::WriteCompressed => self.compress_run(a, run, slot),
            RequestKind::WriteZeroes if counted => self.zero_counted(a, run, slot),
            RequestKind::WriteZeroes => self.zero_run(a, run, slot),
            RequestKind::Discard if counted => self.discard_counted(a, run, slot),
            RequestKind::Discard => self.discard_run(a, run),
            RequestKind::Map => self.map_run(a, run),
            RequestKind::Flush
            | RequestKind::Quiesce
            | RequestKind::Close
            | RequestKind::Resize { .. }
            | RequestKind::Snapshot
            | RequestKind::Empty => self.job_run(a, run, slot),
        }
    }

    /// Where `pos` lies, if `[pos, end)` is in one data cluster whose slice is cached; to be written, if it
    /// may be, in place and as it is. Says no when in doubt.
    #[inline(always)]
    pub(crate) fn hit<const WRITES: bool>(&mut self, pos: u64, end: u64) -> Option<u64> {
        let Some(geometry) = self.layout.plain_geometry() else {
            // a raw image's bytes are where they are
            let is_one = self.layout.is_raw() && pos < end && end - pos <= EXTENT_MAX;
            return (is_one && (!WRITES || self.is_whole_blocks(pos, end - pos))).then_some(pos);
        };
        let within = pos & (geometry.cluster_size() - 1);
        if end == pos || within + (end - pos) > geometry.cluster_size() {
            return None;
        }
        let (number, entry) = geometry.l2_slice(pos);
        let slot = self.tables.find(number)?;
        let slice = self.tables.slot_mut(slot);
        let &word = slice.entries.get(entry)?;
        if !slice.dangling.is_empty() || WRITES && (slice.shared || self.layout.is_shared(word)) {
            return None;
        }
        let cluster = self.layout.plain_cluster(word);
        // a slice that is being loaded is all zeros: no cluster
        let torn = self.space.is_torn(cluster);
        if cluster <= ZERO_ENTRY || torn || geometry.check_data(pos, cluster, self.space.end()).is_err() {
            return None;
        }
        debug_assert!(!matches!(slice.state, SliceState::Empty | SliceState::Loading), "it is in memory");
        let (host, len) = (cluster + within, end - pos);
        if WRITES {
            if !self.is_whole_blocks(host, len) || !self.is_no_metadata(pos, host, len) {
                return None;
            }
            self.tables.touch(slot);
        } else {
            slice.touch();
        }
        self.outbox.counters.hits += 1;
        Some(host)
    }

    /// Nothing has to be read to write it, and one write does.
    #[inline]
    fn is_whole_blocks(&self, host: u64, len: u64) -> bool {
        debug_assert!(self.options.align.is_power_of_two());
        (host | len) & (u64::from(self.options.align) - 1) == 0 && len <= EXTENT_MAX
    }

    /// A write there changes none of the image's own structures.
    #[inline]
    fn is_no_metadata(&self, pos: u64, host: u64, len: u64) -> bool {
        self.refcounted.as_deref().is_none_or(|counted| counted.check_data_place(pos, host, len).is_ok())
    }

    /// What is `pos` mapped to, and for how long?
    fn lookup(&mut self, pos: u64, end: u64) -> Lookup {
        debug_assert!(pos < end, "there is a byte to look up");
        let Some(geometry) = self.layout.geometry() else {
            let run = Run { mapping: Mapping::Data(pos), len: end - pos, private: true };
            return Lookup::Found(run, None);
        };
        let (number, entry) = geometry.l2_slice(pos);
        let Some(slot) = self.tables.find(number) else {
            let geometry = *geometry;
            return self.lookup_l1(&geometry, pos, end);
        };
        let slice = self.tables.slot(slot);
        if slice.state == SliceState::Loading && !self.options.sabotaged(Rule::WaitReadL2) {
            return Lookup::Loading(slot);
        }
        // beside pointers that must not be followed, runs are one cluster long
        let mut end = end;
        if !slice.dangling.is_empty() {
            if let Err(error) = check_dangling(slice, entry, self.space.found_used()) {
                return Lookup::Failed(Box::new(error));
            }
            end = end.min(geometry.cluster_start(pos) + geometry.cluster_size());
        }
        match self.layout.decode(&slice.entries, &self.space, entry, pos, end) {
            Ok(run) => {
                let (len, private) = (run.len.min(end - pos), run.private && !slice.shared);
                debug_assert!(len > 0, "an entry says something of each byte");
                Lookup::Found(Run { len, private, ..run }, Some(slot))
            }
            Err(error) => Lookup::Failed(error),
        }
    }

    /// The slice is not cached: where is it?
    fn lookup_l1(&mut self, geometry: &Geometry, pos: u64, end: u64) -> Lookup {
        let (number, _) = geometry.l2_slice(pos);
        debug_assert!(self.tables.find(number).is_none(), "it would say all");
        let l1_index = geometry.l1_index(pos);
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        let Some(l1_slot) = self.tables.find(l1_number) else {
            let host = geometry.l1_slice_host(l1_number);
            let slot = self.tables.load(l1_number, host, geometry, &mut self.outbox);
            return slot.map_or(Lookup::NoSlot, Lookup::Loading);
        };
        let slice = self.tables.slot(l1_slot);
        if slice.state == SliceState::Loading && !self.options.sabotaged(Rule::WaitReadL2) {
            return Lookup::Loading(l1_slot);
        }
        let table = match self.l2_table(geometry, l1_slot, l1_index, l1_entry) {
            Ok(table) => table,
            Err(error) => return Lookup::Failed(Box::new(error)),
        };
        self.tables.touch(l1_slot);
        let Some((table, shared)) = table else {
            let left = geometry.table_span() - pos % geometry.table_span();
            let run = Run { mapping: Mapping::NoTable, len: left.min(end - pos), private: true };
            return Lookup::Found(run, None);
        };
        let host = geometry.l2_slice_host(table, pos);
        let Some(slot) = self.tables.load(number, host, geometry, &mut self.outbox) else {
            return Lookup::NoSlot;
        };
        self.tables.slot_mut(slot).shared = shared;
        Lookup::Loading(slot)
    }
}
