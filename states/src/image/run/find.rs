//! Find-cluster: what is the acb's next byte mapped to, and what follows from it; and the loading of tables.
//!
//! Knows: entries, the cache. Must never know: how new clusters come to be (`write.rs`, `space.rs`).
//!
//! Invariants:
//! * an entry is checked before it is used, each cluster of a run (trap Q6), and a bad one ends the request
//!   with its place;
//! * concurrent misses of one slice share one load;
//! * a slice that was just loaded is used by its waiters before anything can evict it: they go to the head of
//!   the ready queue.

use crate::acb::Source;
use crate::acb::State;
use crate::acb::request::{Extent, Kind, Met, RequestId, Status};
use crate::base::geometry::{Geometry, HostOffset, SliceNumber};
use crate::error::Error;
use crate::image::{Image, Purpose};
use crate::io::{Io, IoId, IoOp, Outcome, Part};
use crate::rule::Rule;
use crate::tables::slice::SliceState;
use crate::tables::slice::Young;
use alloc::boxed::Box;

/// An L2 entry of QED that is not a cluster: it reads as zeros and hides the backing layer.
pub(crate) const ZERO_ENTRY: u64 = 1;

/// Data moves in extents of at most this many bytes (an allocating extent: to the next cluster end).
pub(crate) const EXTENT_MAX: u64 = 8 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mapping {
    /// No L2 table: all that it would map is unallocated.
    NoTable,
    Unallocated,
    Zero,
    /// The host offset of the run's first byte.
    Data(u64),
    /// Zero, with space kept at this host offset (qcow2).
    ZeroAllocated(u64),
    /// Unallocated subclusters of a cluster that has space: where theirs lies (qcow2).
    Reserved(u64),
    /// One compressed cluster: where its bytes lie and how many there are at most.
    Compressed {
        host: u64,
        len: u32,
    },
}

/// The same mapping for `len` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) mapping: Mapping,
    pub(crate) len: u64,
    /// Nobody else refers to the clusters, nor to the table: they may be changed in place.
    pub(crate) private: bool,
}

pub(crate) enum Lookup {
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
    /// `FindCluster`: goes on until the acb waits for something or has ended.
    pub(crate) fn find_cluster(&mut self, a: u32) {
        loop {
            let acb = self.requests.acb(a);
            debug_assert_eq!(acb.state, State::FindCluster);
            let (pos, end, kind) = (acb.pos, acb.end, acb.kind);
            if pos == end {
                return self.range_done(a);
            }
            if kind.changes() && self.health.is_held() && !self.may_change(a) {
                return;
            }
            let (run, slot) = match self.lookup(pos, end) {
                Lookup::Found(run, slot) => (run, slot),
                Lookup::Loading(slot) => return self.wait_for_slice(a, slot),
                Lookup::NoSlot => return self.wait_for_slot(a),
                Lookup::Failed(error) => return self.fail_lookup(a, error),
            };
            let Run { mapping, len, .. } = run;
            debug_assert!(len > 0 && len <= end - pos);
            if let Some(slot) = slot {
                self.tables.touch(slot);
                self.observed.counters.hits += 1;
            }
            #[cfg(feature = "sabotage")]
            let run = if self.options.sabotaged(Rule::LookAgain) { self.as_it_was(a, run) } else { run };
            let go_on = match kind {
                Kind::Read => self.read_run(a, mapping, len),
                Kind::Write => self.write_run(a, run, slot),
                Kind::WriteZeroes => self.zero_run(a, run, slot),
                Kind::Discard => self.discard_run(a, run, slot),
                Kind::Resize => self.resize_run(a, run, slot),
                _ => self.map_run(a, mapping, len),
            };
            if !go_on {
                return;
            }
        }
    }

    fn read_run(&mut self, a: u32, mapping: Mapping, len: u64) -> bool {
        let acb = self.requests.acb(a);
        let (pos, id) = (acb.pos, acb.request);
        let buffer_offset = pos - acb.origin;
        match mapping {
            Mapping::Data(host) => {
                let len = self.requests.take_run(a, len.min(EXTENT_MAX), host, Met::HIT);
                self.requests.set_state(a, State::ReadData);
                self.outbox.emit_own(
                    &mut self.requests,
                    a,
                    Part::Head,
                    IoOp::ReadData { request: id, buffer_offset, len, host },
                );
                false
            }
            Mapping::NoTable | Mapping::Unallocated | Mapping::Reserved(_)
                if self.backing_len.is_some_and(|backing| backing > pos) =>
            {
                let backing = self.backing_len.unwrap_or(0);
                let len =
                    self.requests.take_run(a, len.min(EXTENT_MAX).min(backing - pos), pos, Met::BACKING);
                self.requests.set_state(a, State::ReadBacking);
                let op = IoOp::ReadBacking { request: id, buffer_offset, len, guest: pos };
                self.outbox.emit_own(&mut self.requests, a, Part::Head, op);
                false
            }
            Mapping::Compressed { host, len: bytes } => {
                let len = self.requests.take_run(a, len, host, Met::COMPRESSED);
                let within = pos - self.layout.geometry().map_or(0, |geometry| geometry.cluster_start(pos));
                self.requests.acb_mut(a).source = Source::Compressed(host, bytes);
                self.requests.set_state(a, State::ReadCompressed);
                let within = within as u32;
                let op = IoOp::ReadCompressed { request: id, buffer_offset, len, host, bytes, within };
                self.outbox.emit_own(&mut self.requests, a, Part::Head, op);
                false
            }
            _ => {
                self.requests.note(a, Met::ZERO);
                let op = IoOp::ZeroBuffer { request: id, buffer_offset, len };
                self.outbox.io.push_back(Io { id: IoId { index: u32::MAX, generation: 0 }, op });
                self.requests.skip(a, len)
            }
        }
    }

    /// Where `pos` lies, if `[pos, end)` is in one data cluster whose slice is cached. Says no when in doubt.
    #[inline]
    pub(crate) fn hit(&mut self, pos: u64, end: u64) -> Option<u64> {
        let geometry = self.layout.plain_geometry()?;
        let within = pos & (geometry.cluster_size() - 1);
        if end == pos || within + (end - pos) > geometry.cluster_size() {
            return None;
        }
        let (number, entry) = geometry.l2_slice(pos);
        let slot = self.tables.find(number)?;
        let slice = self.tables.slot_mut(slot);
        let &word = slice.entries.get(entry)?;
        if !slice.dangling.is_empty() {
            return None;
        }
        let cluster = self.layout.plain_cluster(word);
        // a slice that is being loaded is all zeros: no cluster
        let torn = self.space.is_torn(cluster);
        if cluster <= ZERO_ENTRY || torn || geometry.check_data(pos, cluster, self.space.end()).is_err() {
            return None;
        }
        slice.touch();
        self.observed.counters.hits += 1;
        Some(cluster + within)
    }

    /// A whole new request is this one read.
    #[inline]
    pub(crate) fn read_hit(&mut self, a: u32, request: RequestId, len: u64, host: u64) {
        let acb = self.requests.acb_mut(a);
        debug_assert_eq!(acb.end, acb.pos + len);
        acb.met = Met::HIT;
        acb.run_end = acb.end;
        acb.host = host;
        let op = IoOp::ReadData { request, buffer_offset: 0, len, host };
        self.outbox.emit_first(acb, a, op);
        self.requests.set_state_through(a, State::FindCluster, State::ReadData);
    }

    fn map_run(&mut self, a: u32, mapping: Mapping, len: u64) -> bool {
        let acb = self.requests.acb(a);
        let offset = acb.pos;
        let (status, host) = match mapping {
            Mapping::Data(host) => (Status::Data, Some(host)),
            Mapping::Zero => (Status::Zero, None),
            Mapping::ZeroAllocated(host) => (Status::Zero, Some(host)),
            Mapping::Compressed { .. } => (Status::Compressed, None),
            Mapping::Reserved(host) => (Status::Unallocated, Some(host)),
            Mapping::NoTable | Mapping::Unallocated => (Status::Unallocated, None),
        };
        self.requests.answer_map(a, Extent { offset, len, status, host });
        self.finish(a, Ok(()));
        false
    }

    /// `ReadData`, `ReadBacking`: the bytes are there.
    pub(crate) fn extent_read(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.pos = acb.run_end;
        if acb.pos == acb.end {
            return self.finish(a, Ok(()));
        }
        self.look(a);
    }

    /// What is `pos` mapped to, and for how long?
    pub(crate) fn lookup(&mut self, pos: u64, end: u64) -> Lookup {
        let Some(geometry) = self.layout.geometry() else {
            let run = Run { mapping: Mapping::Data(pos), len: end - pos, private: true };
            return Lookup::Found(run, None);
        };
        let (number, entry) = geometry.l2_slice(pos);
        if let Some(slot) = self.tables.find(number) {
            let slice = self.tables.slot(slot);
            if slice.state == SliceState::Loading && !self.options.sabotaged(Rule::WaitReadL2) {
                return Lookup::Loading(slot);
            }
            // beside pointers that must not be followed, runs are one cluster long
            let mut end = end;
            if !slice.dangling.is_empty() {
                if let Err(error) = self.check_dangling(slot, entry) {
                    return Lookup::Failed(Box::new(error));
                }
                end = end.min(geometry.cluster_start(pos) + geometry.cluster_size());
            }
            let decoded = self.layout.decode(&slice.entries, &self.space, entry, pos, end);
            let private = !slice.shared;
            return match decoded {
                Ok(run) => {
                    let (len, private) = (run.len.min(end - pos), run.private && private);
                    Lookup::Found(Run { len, private, ..run }, Some(slot))
                }
                Err(error) => Lookup::Failed(error),
            };
        }
        let geometry = *geometry;
        self.lookup_l1(geometry, pos, end)
    }

    /// The slice is not cached: where is it?
    fn lookup_l1(&mut self, geometry: Geometry, pos: u64, end: u64) -> Lookup {
        let (number, _) = geometry.l2_slice(pos);
        let l1_index = geometry.l1_index(pos);
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        let Some(l1_slot) = self.tables.find(l1_number) else {
            return self.load(l1_number, geometry.l1_slice_host(l1_number), &geometry);
        };
        if self.tables.slot(l1_slot).state == SliceState::Loading && !self.options.sabotaged(Rule::WaitReadL2)
        {
            return Lookup::Loading(l1_slot);
        }
        self.tables.touch(l1_slot);
        if let Err(error) = self.check_dangling(l1_slot, l1_entry) {
            return Lookup::Failed(Box::new(error));
        }
        let table = self.tables.slot(l1_slot).entries.get(l1_entry).copied().unwrap_or(0);
        let (table, shared) = match self.layout.decode_l1(l1_index, table) {
            Ok(found) => found,
            Err(error) => return Lookup::Failed(Box::new(error)),
        };
        if table == 0 {
            let left = geometry.table_span() - pos % geometry.table_span();
            let run = Run { mapping: Mapping::NoTable, len: left.min(end - pos), private: true };
            return Lookup::Found(run, None);
        }
        let file_end = self.space.end_for(table, geometry.table_bytes);
        let checked = geometry.check_table(l1_index, table, file_end);
        if let Err(error) = checked.and_then(|()| self.check_l2_place(l1_index, table, !shared)) {
            return Lookup::Failed(Box::new(error));
        }
        let lookup = self.load(number, geometry.l2_slice_host(table, pos), &geometry);
        if let Lookup::Loading(slot) = lookup {
            self.tables.slot_mut(slot).shared = shared;
        }
        lookup
    }

    /// Starts to load a slice.
    pub(crate) fn load(&mut self, number: SliceNumber, host: HostOffset, geometry: &Geometry) -> Lookup {
        let l1 = geometry.is_l1(number);
        let words = match l1 {
            true => 1 << geometry.l1_slice_bits,
            false => geometry.slice_bytes() as usize / 8,
        };
        let Some(slot) = self.tables.claim(number, host, words) else {
            return Lookup::NoSlot;
        };
        self.observed.counters.table_reads += 1;
        let len = if l1 { geometry.l1_slice_bytes() } else { geometry.slice_bytes() };
        let op = IoOp::ReadTable { offset: host.0, len };
        self.outbox.emit(Purpose::Load(slot), crate::image::slice_read(geometry, number), host.0, op);
        Lookup::Loading(slot)
    }

    /// A load ended.
    pub(crate) fn loaded(&mut self, slot: u32, outcome: Outcome<'_>, result: Result<(), Error>) {
        let result = match (result, outcome) {
            (Ok(()), Outcome::Table(bytes)) => {
                let decode = self.layout.decoding();
                let slice = self.tables.slot_mut(slot);
                debug_assert_eq!(slice.state, SliceState::Loading);
                for (entry, bytes) in slice.entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *entry = decode(*bytes);
                }
                slice.state = SliceState::Present;
                self.cut_l1(slot);
                self.find_dangling(slot)
            }
            (Ok(()), _) => Err(Error::Misuse("a table read was completed without its bytes")),
            (Err(error), _) => Err(error),
        };
        let slice = self.tables.slot_mut(slot);
        if let Err(error) = &result {
            self.requests.fail_all(&slice.waiters, error);
        }
        self.requests.wake_first(&mut slice.waiters);
        if result.is_err() {
            let number = SliceNumber(slice.number);
            self.tables.drop_slot(slot);
            if self.layout.geometry().is_some_and(|geometry| geometry.is_refcount(number)) {
                self.give_up_counting();
            }
        }
        self.wake_slot_waiters();
        if self.has_dead() {
            self.punch_dead();
        }
        self.look_on();
        self.kick();
    }

    /// The last slice of an L1 table may be read from beyond its end.
    fn cut_l1(&mut self, slot: u32) {
        let (Some(geometry), Some(counted)) = (self.layout.geometry().copied(), self.refcounted.as_deref())
        else {
            return;
        };
        let entries = u64::from(counted.header.l1_entries);
        let slice = self.tables.slot_mut(slot);
        if geometry.is_l1(SliceNumber(slice.number)) {
            let first = slice.number << geometry.l1_slice_bits;
            let keep = entries.saturating_sub(first).min(slice.entries.len() as u64) as usize;
            slice.entries.iter_mut().skip(keep).for_each(|entry| *entry = 0);
        }
    }

    pub(crate) fn wait_for_slice(&mut self, a: u32, slot: u32) {
        self.requests.note(a, Met::MISS);
        self.observed.counters.misses += 1;
        self.requests.set_state(a, State::ReadL2);
        self.requests.wait_in(&mut self.tables.slot_mut(slot).waiters, a);
    }

    /// Changes entries `[first, first + count)` of a slice, all equal so far, to `value`, `value + step`, ...
    /// The change is young: it is written only after a sync that was submitted from now on (QE3).
    pub(crate) fn set_entries(&mut self, slot: u32, first: usize, count: usize, value: u64, step: u64) {
        let window = self.commit.window;
        let was_dirty = self.tables.slot(slot).is_dirty();
        let slice = self.tables.slot_mut(slot);
        let Some(range) = slice.entries.get_mut(first..first + count) else { return };
        let Some(&old) = range.first() else { return };
        debug_assert!(range.iter().all(|entry| *entry == old), "a run is of one kind");
        let mut next = value;
        for entry in range {
            *entry = next;
            next += step;
        }
        debug_assert!(first + count <= usize::from(u16::MAX));
        slice.young.push(Young { first: first as u16, count: count as u16, old, window });
        self.tables.young += 1;
        if !was_dirty {
            self.dangling.note_linked(self.tables.slot(slot).number);
            self.tables.dirty += 1;
            self.commit.note_dirty(slot, self.options.commit_ms, &mut self.outbox.alarms);
        }
        if self.tables.young > crate::image::YOUNG_MAX / 2 || self.tables.dirty > self.tables.capacity() / 2 {
            self.commit_soon();
        }
    }
}
