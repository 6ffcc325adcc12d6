//! Writes: in place, read-modify-write of partly covered sectors, and allocating writes with copy-on-write.
//!
//! An extent is written in pieces: one vectored write of head, guest bytes and tail; only where a large
//! cluster must be copied do pieces without guest bytes come before and after, so that no fill buffer exceeds
//! `COPY_MAX`.
//!
//! Invariants:
//! * the mapping of new clusters becomes visible only when all their pieces are written (nobody reads stale
//!   host bytes);
//! * new clusters are linked into a slice that stayed pinned since their allocation, so linking never waits;
//! * a failed write links nothing: its clusters are given back, or a leak where nobody counts them (QED).

use crate::acb::request::{Met, RequestKind};
use crate::acb::{AcbIndex, Source, State, Transfer};
use crate::base::geometry::{Geometry, align_down, align_up};
use crate::base::span::Span;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::run::read::EXTENT_MAX;
use crate::image::run::wait::Place;
use crate::image::value::Image;
use crate::io::{FillSource, IoOp, Part};
use crate::options::Policy;
use crate::qcow2::Subclusters;
use crate::qcow2::entry::COPIED;
use crate::rule::Rule;
use crate::space::kind::Need;
use crate::tables::mapping::{Mapping, Run};
use alloc::boxed::Box;

/// Fill buffers are at most this large.
const COPY_MAX: u64 = 1 << 20;

/// New clusters of an extent.
struct Plan {
    /// Where the guest's bytes end,
    cut: u64,
    /// and the clusters that hold them.
    clusters: Span,
    /// Clusters, or subclusters, that come to hold data.
    unit: Span,
    /// What is written.
    fill: Span,
    source: Source,
    /// They have space already, which may hold anything: where the first one lies.
    reuse: Option<u64>,
    /// What new space for them has to be like.
    need: Need,
}

impl Plan {
    /// Its first or last block also holds what is not its own.
    fn modifies(&self) -> bool {
        let holds = self.fill.start <= self.unit.start && self.unit.end <= self.fill.end;
        debug_assert!(self.reuse.is_none() || holds, "blocks hold the units");
        self.reuse.is_some() && self.fill != self.unit
    }
}

/// One piece of an extent: guest range `[start, end)`, of which `[head_end, tail_start)` are the guest's
/// bytes.
struct Piece {
    start: u64,
    head_end: u64,
    tail_start: u64,
    end: u64,
}

impl Image {
    /// A run of a write.
    pub(crate) fn write_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(run.len > 0);
        let pos = self.requests.acb(a).pos;
        debug_assert!(!self.options.read_only, "a write was refused");
        if let Some(counted) = self.refcounted.as_deref()
            && let Err(error) = counted.check_run_place(pos, run)
        {
            return self.fail_lookup(Box::new(error));
        }
        if let Mapping::Data(host) = run.mapping
            && (run.private || self.options.sabotaged(Rule::CopiedOnly))
        {
            return self.write_in_place(a, host, run.len);
        }
        if slot.is_some_and(|slot| self.must_copy(slot, pos)) {
            return self.copy_table(a, pos);
        }
        self.write_new(a, run, slot)
    }

    pub(crate) fn write_in_place(&mut self, a: AcbIndex, host: u64, len: u64) -> Next {
        debug_assert!(len > 0);
        let align = u64::from(self.options.align);
        // an extent that is cut short ends with a block
        let len = if len > EXTENT_MAX { align_down(host + EXTENT_MAX, align) - host } else { len };
        let blocks = Span::new(align_down(host, align), align_up(host + len, align));
        debug_assert!(blocks.start <= host && host + len <= blocks.end, "blocks hold the guest's bytes");
        let modifies = blocks.start != host || blocks.end != host + len;
        if !self.pass_sectors(a, blocks, modifies) {
            return Next::Wait;
        }
        // somebody has given a place to what did not become shorter
        self.waits.turn_over(&mut self.requests, a);
        self.requests.take_run(a, len, host, if modifies { Met::HIT | Met::MODIFY } else { Met::HIT });
        let acb = self.requests.acb_mut(a);
        acb.write.fill.start = acb.pos - (host - blocks.start);
        acb.write.fill.end = acb.extent.end + (blocks.end - (host + len));
        acb.write.at = acb.write.fill.start;
        acb.write.unit = Span::new(acb.pos, acb.extent.end);
        (acb.extent.source, acb.write.stale) = (Source::Zeros, false);
        if !modifies {
            // all of it is the guest's: one piece
            let (start, end) = (acb.pos, acb.extent.end);
            return self.emit_write(a, &Piece { start, head_end: start, tail_start: end, end });
        }
        self.waits.modify(&mut self.requests, a);
        self.next_piece(a)
    }

    /// New clusters, or new contents of clusters that hold nothing: gate, table, space, claim; each may
    /// make the acb wait and look again.
    fn write_new(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
        let pos = self.requests.acb(a).pos;
        let plan = self.plan_new(&geometry, pos, run);
        debug_assert!(plan.clusters.start <= pos && pos <= plan.cut && plan.cut <= plan.clusters.end);
        if self.tables.is_overfull() {
            return self.wait_for_slot(a);
        }
        if !self.pass_gate(a, plan.clusters, slot.is_none()) {
            return Next::Wait;
        }
        let Some(slot) = slot else { return self.new_table(a, pos) };
        let Place { host: base, stale } = match self.place_new(a, slot, &plan) {
            Ok(place) => place,
            Err(next) => return next,
        };
        debug_assert!(base.is_multiple_of(geometry.cluster_size()), "space is whole clusters");
        let made_table = self.requests.acb(a).met.contains(Met::NEW_TABLE);
        self.waits.claim(&mut self.requests, a, plan.clusters, made_table);
        self.waits.turn_over(&mut self.requests, a);
        self.tables.pin(slot, Rule::PinLink);
        self.requests.take_run(a, plan.cut - pos, base + (pos - plan.clusters.start), Met::ALLOCATE);
        let acb = self.requests.acb_mut(a);
        acb.held.pinned = Some(slot);
        acb.extent.source = plan.source;
        let (fill, unit) = (plan.fill, plan.unit);
        acb.write = Transfer { fill, at: fill.start, unit, stale };
        if plan.modifies() {
            self.waits.modify(&mut self.requests, a);
        }
        if self.options.sabotaged(Rule::LinkLast) {
            self.link(a);
        }
        self.next_piece(a)
    }

    /// Host space for what is planned; or what becomes of the acb.
    fn place_new(&mut self, a: AcbIndex, slot: u32, plan: &Plan) -> Result<Place, Next> {
        debug_assert!(!plan.clusters.is_empty());
        if let Some(base) = plan.reuse {
            let host = Span::at(base + plan.fill.start - plan.clusters.start, plan.fill.len());
            return match self.pass_sectors(a, host, plan.modifies()) {
                true => Ok(Place { host: base, stale: true }),
                false => Err(Next::Wait),
            };
        }
        // what is allocated for may not leave the cache when counts are loaded
        self.tables.pin(slot, Rule::PinCount);
        let base = self.allocate_for(a, plan.clusters.len(), plan.need, State::GrowFile);
        self.tables.unpin_quietly(slot, Rule::PinCount);
        if base.is_ok() {
            let bits = self.layout.geometry().map_or(0, |geometry| geometry.cluster_bits);
            self.outbox.counters.allocations += plan.clusters.len() >> bits;
        }
        base
    }

    /// What a write of this run writes, and where what it does not cover comes from.
    fn plan_new(&self, geometry: &Geometry, pos: u64, run: Run) -> Plan {
        debug_assert!(run.len > 0);
        let (extended, data_file) =
            self.layout.shape().map_or((false, false), |shape| (shape.extended, shape.data_file));
        let first = geometry.cluster_start(pos);
        let host_of_first = |host: u64| host - (pos - first);
        let spread = matches!(run.mapping, Mapping::NoTable | Mapping::Unallocated | Mapping::Zero);
        let compressed = matches!(run.mapping, Mapping::Compressed { .. });
        // where the file cannot grow, free clusters may be single ones
        let alone = compressed || extended && !spread || self.space.is_full();
        let len = if alone { run.len.min(first + geometry.cluster_size() - pos) } else { run.len };
        // an extent that is cut short ends with a cluster, so that no cluster is allocated by two extents
        let mut cut = geometry.cluster_end(pos + len.min(EXTENT_MAX)).min(pos + len);
        let clusters = Span::new(first, geometry.cluster_end(cut));
        let unit = if extended && !compressed {
            geometry.cluster_size() / u64::from(Subclusters::COUNT)
        } else {
            geometry.cluster_size()
        };
        let mut units = Span::new(align_down(pos, unit), align_up(cut, unit));
        debug_assert!(units.start <= pos && units.end >= cut, "units hold the guest's bytes");
        let shows = self.backing_len.unwrap_or(0);
        let backing = if shows > units.start { Source::Backing } else { Source::Zeros };
        let (source, reuse) = match run.mapping {
            Mapping::Reserved(host) if run.private => (backing, Some(host_of_first(host))),
            Mapping::ZeroAllocated(host) if run.private => (Source::Zeros, Some(host_of_first(host))),
            Mapping::NoTable | Mapping::Unallocated => (backing, data_file.then_some(first)),
            Mapping::Zero => (Source::Zeros, data_file.then_some(first)),
            Mapping::Compressed { host, len } => (Source::Compressed(host, len), None),
            Mapping::ZeroAllocated(_) if !extended => (Source::Zeros, None),
            Mapping::Data(host) | Mapping::ZeroAllocated(host) | Mapping::Reserved(host) => {
                if extended {
                    // the cluster moves as it is; what is written to it is looked at again then
                    cut = pos;
                }
                (Source::Host(host_of_first(host)), None)
            }
        };
        let align = u64::from(self.options.align);
        let fill = match source {
            Source::Host(_) | Source::Compressed(..) => {
                units = clusters;
                units
            }
            _ if reuse.is_some() => Span::new(align_down(units.start, align), align_up(units.end, align)),
            Source::Backing => {
                let shown = align_up(shows.min(units.end), align);
                Span::new(align_down(units.start, align), align_up(cut, align).max(shown))
            }
            Source::Zeros | Source::Packed(_) => Span::new(align_down(pos, align), align_up(cut, align)),
        };
        let (need, fill) = self.need_for(clusters, extended, units, fill);
        debug_assert!(clusters.start <= fill.start && fill.end <= clusters.end, "it fills its own clusters");
        Plan { cut, clusters, unit: units, fill, source, reuse, need }
    }

    /// What new space has to be like for this to be written to it, and what is written then. Where bytes that
    /// nobody wrote do not show (a subcluster's, of the others of its cluster) or none are left, anything.
    fn need_for(&self, clusters: Span, extended: bool, unit: Span, fill: Span) -> (Need, Span) {
        debug_assert!(unit.start <= unit.end && clusters.start <= unit.start, "units lie in the clusters");
        if !self.space.is_device() {
            return (Need::Zeros, fill);
        }
        let align = u64::from(self.options.align);
        match extended {
            true => {
                let (start, end) = (fill.start.min(unit.start), fill.end.max(unit.end));
                (Need::Any, Span::new(align_down(start, align), align_up(end, align)))
            }
            false if fill == clusters || self.options.sabotaged(Rule::CoverStale) => (Need::Any, fill),
            false => (Need::Zeros, fill),
        }
    }

    /// There is no L2 table yet: make one, of space that reads as zeros. Its entry in the L1 table is young
    /// like any other, so it is written after a sync that made the file's new length durable (QE2, QE4).
    pub(crate) fn new_table(&mut self, a: AcbIndex, pos: u64) -> Next {
        let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
        let l1_index = geometry.l1_index(pos);
        debug_assert!(!self.options.read_only, "a table is made for a change");
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        // the lookup just read the entry from it
        let Some(l1_slot) = self.tables.find(l1_number) else { return Next::On };
        self.tables.pin(l1_slot, Rule::PinL1);
        let table = self.allocate(a, geometry.table_bytes, State::AllocL2);
        self.tables.unpin_quietly(l1_slot, Rule::PinL1);
        let table = match table {
            Ok(table) => table,
            Err(next) => return next,
        };
        // a copied flag alone leads nowhere
        debug_assert_eq!(self.tables.slot(l1_slot).entries.get(l1_entry).map(|old| old & !COPIED), Some(0));
        let copied = if self.refcounted.is_some() { COPIED } else { 0 };
        self.set_entries(l1_slot, (l1_entry, 1), (table | copied, 0));
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::NewTableBeforeL1) {
            self.make_old(l1_slot);
        }
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.map.add_l2_table(table, l1_index, true);
        }
        self.outbox.counters.new_tables += 1;
        self.requests.note(a, Met::NEW_TABLE);
        // known to be zeros: the slice that is needed next need not be read
        let (number, _) = geometry.l2_slice(pos);
        let host = geometry.l2_slice_host(table, pos);
        if self.tables.find(number).is_none() {
            self.tables.claim_zeros(number, host, geometry.slice_words());
        }
        Next::On
    }

    /// The next piece of the extent (`WriteData`: one is written): its fills are read, or it is written at
    /// once.
    pub(crate) fn next_piece(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb(a);
        debug_assert_eq!(acb.io.pending, 0, "the piece before is done");
        if acb.write.at >= acb.write.fill.end {
            return self.extent_written(a);
        }
        while let Some(piece) = self.piece(a) {
            if piece.start == piece.head_end && piece.tail_start == piece.end {
                return self.emit_write(a, &piece);
            }
            if self.read_neighbours(a, &piece) || self.read_sources(a, &piece) {
                return Next::Wait;
            }
            let acb = self.requests.acb_mut(a);
            if acb.write.stale || piece.head_end < piece.tail_start {
                return self.write_piece(a);
            }
            // nothing shows through here: new space is zeros already
            acb.write.at = piece.end;
        }
        self.extent_written(a)
    }

    /// Reads what the write's first and last block hold that is not its own.
    fn read_neighbours(&mut self, a: AcbIndex, piece: &Piece) -> bool {
        let acb = self.requests.acb(a);
        if !acb.held.modifies {
            return false;
        }
        let (host, pos, own) = (acb.extent.host, acb.pos, acb.write.unit);
        debug_assert!(own.start <= own.end && piece.start < piece.end, "there is something to write");
        // they lie within a block of the guest's bytes: no underflow
        let read =
            |low: u64, high: u64| (low < high).then(|| (low, high, FillSource::Host(host + low - pos)));
        let head = read(piece.start, piece.head_end.min(own.start));
        let tail = read(piece.tail_start.max(own.end), piece.end);
        self.read_fills(a, piece, State::ReadModify, [head, tail])
    }

    /// Reads what surrounds the guest's bytes in new clusters.
    fn read_sources(&mut self, a: AcbIndex, piece: &Piece) -> bool {
        let Some(geometry) = self.layout.geometry() else { return false };
        let acb = self.requests.acb(a);
        let (source, own) = (acb.extent.source, acb.write.unit);
        let first = geometry.cluster_start(acb.pos);
        debug_assert!(own.start >= first, "units begin with the cluster, or behind");
        let shows = self.backing_len.unwrap_or(0);
        let read = |low: u64, high: u64| {
            let (high, from) = match source {
                Source::Zeros | Source::Packed(_) => (low, FillSource::Backing(low)),
                Source::Backing => (high.min(shows), FillSource::Backing(low)),
                Source::Host(old) => (high, FillSource::Host(old + low - first)),
                Source::Compressed(host, bytes) => {
                    (high, FillSource::Compressed { host, bytes, within: (low - first) as u32 })
                }
            };
            (low < high).then_some((low, high, from))
        };
        let head = read(piece.start.max(own.start).min(piece.head_end), piece.head_end);
        let tail = read(piece.tail_start, piece.end.min(own.end).max(piece.tail_start));
        self.read_fills(a, piece, State::CopyOnWrite, [head, tail])
    }

    /// Names reads of head and tail, if there are any: first and last guest byte, and where they come from.
    fn read_fills(
        &mut self,
        a: AcbIndex,
        piece: &Piece,
        state: State,
        reads: [Option<(u64, u64, FillSource)>; 2],
    ) -> bool {
        if reads.iter().all(Option::is_none) {
            return false;
        }
        self.requests.set_state(a, state);
        debug_assert!(matches!(state, State::ReadModify | State::CopyOnWrite), "states that read fills");
        if state == State::CopyOnWrite {
            self.requests.note(a, Met::BACKING);
        }
        let acb = self.requests.id(a);
        let parts = [(Part::Head, piece.start, piece.head_end), (Part::Tail, piece.tail_start, piece.end)];
        for ((part, start, end), read) in parts.into_iter().zip(reads) {
            if let Some((low, high, source)) = read {
                debug_assert!(start <= low && low < high && high <= end, "it lies in the part");
                let (at, len, part_len) = ((low - start) as u32, (high - low) as u32, (end - start) as u32);
                self.outbox.emit_own(
                    &mut self.requests,
                    a,
                    part,
                    IoOp::ReadFill { acb, part, part_len, at, len, source },
                );
            }
        }
        true
    }

    /// `ReadModify`: the neighbours are there; what else is needed?
    pub(crate) fn neighbours_read(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.requests.acb(a).held.modifies, "others' bytes were read");
        if let Some(piece) = self.piece(a)
            && self.read_sources(a, &piece)
        {
            return Next::Wait;
        }
        self.write_piece(a)
    }

    /// The piece at `write.at`; None when all is written.
    fn piece(&self, a: AcbIndex) -> Option<Piece> {
        let acb = self.requests.acb(a);
        debug_assert!(acb.write.at >= acb.write.fill.start, "pieces begin with the fill");
        let (at, pos, run_end, fill_end) = (acb.write.at, acb.pos, acb.extent.end, acb.write.fill.end);
        if at >= fill_end {
            return None;
        }
        if pos.saturating_sub(at) > COPY_MAX {
            return Some(Piece {
                start: at,
                head_end: at + COPY_MAX,
                tail_start: at + COPY_MAX,
                end: at + COPY_MAX,
            });
        }
        if at > pos || at == run_end {
            let end = fill_end.min(at + COPY_MAX);
            return Some(Piece { start: at, head_end: at, tail_start: at, end });
        }
        // it ends with a block, as all that is filled does
        let end = fill_end.min(align_down(run_end + COPY_MAX, u64::from(self.options.align)));
        Some(Piece { start: at, head_end: pos, tail_start: run_end, end })
    }

    /// Names the write of the piece, its fills being ready.
    pub(crate) fn write_piece(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.acb(a).io.pending, 0, "its fills are there");
        match self.piece(a) {
            Some(piece) => self.emit_write(a, &piece),
            None => self.extent_written(a),
        }
    }

    fn emit_write(&mut self, a: AcbIndex, piece: &Piece) -> Next {
        debug_assert!(piece.start <= piece.head_end && piece.head_end <= piece.tail_start);
        debug_assert!(piece.tail_start <= piece.end && piece.start < piece.end);
        let id = self.requests.id(a);
        let acb = self.requests.acb_mut(a);
        acb.write.at = piece.end;
        let len = piece.tail_start - piece.head_end;
        let host = acb.extent.host + piece.head_end - acb.pos;
        let blocks = |at: u64| at & u64::from(self.options.align - 1) == 0;
        debug_assert!(blocks(piece.end - piece.start), "whole blocks are written");
        debug_assert!(blocks(host - (piece.head_end - piece.start)), "from the start of one on");
        // only writes have a buffer
        let zero = acb.kind != RequestKind::Write;
        let op = IoOp::WriteData {
            acb: id,
            request: acb.request,
            buffer_offset: if len == 0 || zero { 0 } else { acb.pos - acb.origin },
            len,
            host,
            head: (piece.head_end - piece.start) as u32,
            tail: (piece.end - piece.tail_start) as u32,
            zero,
        };
        self.outbox.emit_first(acb, a, op);
        self.requests.set_state(a, State::WriteData);
        Next::Wait
    }

    /// All pieces are written: link new clusters, let those that wait go.
    fn extent_written(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb(a);
        debug_assert!(acb.write.at >= acb.write.fill.end, "all pieces are written");
        let allocated = acb.held.claims;
        if allocated {
            if self.health.is_halted() {
                return Next::fail(Error::Poisoned);
            }
            if !self.options.sabotaged(Rule::LinkLast) {
                self.link(a);
            }
        }
        let acb = self.requests.acb_mut(a);
        acb.pos = acb.extent.end;
        self.let_go(a);
        self.note_written(a, allocated);
        Next::Extent
    }

    /// After a write: does its completion have to wait for the pipeline?
    pub(crate) fn note_written(&mut self, a: AcbIndex, allocated: bool) {
        debug_assert!(!self.options.read_only);
        self.commit.wrote();
        let acb = self.requests.acb_mut(a);
        acb.commit.window = self.commit.windows.open();
        acb.commit.uncommitted |= allocated && self.options.policy == Policy::Writethrough;
    }
}
