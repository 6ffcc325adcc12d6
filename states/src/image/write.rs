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
//! * a failed write links nothing: its clusters are a leak.

use super::find::{EXTENT_MAX, Mapping};
use super::{Image, Layout, YOUNG_MAX};
use crate::error::Error;
use crate::geometry::{align_down, align_up};
use crate::io::{FillSource, IoOp, Part};
use crate::request::{Kind, Path};
use crate::state::State;

/// Fill buffers are at most this large.
const COPY_MAX: u64 = 1 << 20;

/// One piece of an extent: guest range `[start, end)`, of which `[head_end, tail_start)` are the guest's
/// bytes.
struct Piece {
    start: u64,
    head_end: u64,
    tail_start: u64,
    end: u64,
}

impl Image {
    /// A run of a write. True: look on; false: the acb waits or has ended.
    pub(super) fn write_run(&mut self, a: u32, mapping: Mapping, len: u64, slot: Option<u32>) -> bool {
        match mapping {
            Mapping::Data(host) => self.write_in_place(a, host, len),
            Mapping::NoTable | Mapping::Unallocated | Mapping::Zero => self.write_new(a, mapping, len, slot),
            Mapping::ZeroAllocated(_) | Mapping::Compressed { .. } => self.refuse_write(a),
        }
    }

    /// Kinds of cluster that only formats have which are open for reading only; a write was refused before.
    pub(super) fn refuse_write(&mut self, a: u32) -> bool {
        debug_assert!(false, "writes are refused when they are submitted");
        self.finish(a, Err(Error::Misuse("the image is open for reading only")));
        false
    }

    pub(super) fn write_in_place(&mut self, a: u32, host: u64, len: u64) -> bool {
        let align = self.align();
        // an extent that is cut short ends with a block
        let len = if len > EXTENT_MAX { align_down(host + EXTENT_MAX, align) - host } else { len };
        let (start, end) = (align_down(host, align), align_up(host + len, align));
        let modifies = start != host || end != host + len;
        if !self.pass_sectors(a, start, end, modifies) {
            return false;
        }
        self.take_run(a, len, host, if modifies { Path::HIT | Path::MODIFY } else { Path::HIT });
        let Some(acb) = self.acbs.get_mut(a) else { return false };
        acb.fill_start = acb.pos - (host - start);
        acb.fill_end = acb.run_end + (end - (host + len));
        acb.fill_at = acb.fill_start;
        acb.modifies = modifies;
        self.modifying += u32::from(modifies);
        self.next_piece(a);
        false
    }

    /// New clusters for an unallocated or zero run: gate, table, space, claim; each may make the acb wait and
    /// look again.
    fn write_new(&mut self, a: u32, mapping: Mapping, len: u64, slot: Option<u32>) -> bool {
        let (Some(geometry), Some(acb)) = (self.geometry().copied(), self.acbs.get(a)) else { return false };
        let pos = acb.pos;
        // an extent that is cut short ends with a cluster, so that no cluster is allocated by two extents
        let cut = geometry.cluster_end(pos + len.min(EXTENT_MAX)).min(pos + len);
        let (first, last) = (geometry.cluster_start(pos), geometry.cluster_end(cut));
        if self.tables.young >= YOUNG_MAX {
            self.wait_for_slot(a);
            return false;
        }
        if !self.pass_gate(a, first, last, slot.is_none()) {
            return false;
        }
        let Some(slot) = slot else { return self.new_table(a, pos) };
        let Some(base) = self.allocate(a, last - first, State::GrowFile) else { return false };
        self.counters.allocations += (last - first) >> geometry.cluster_bits;
        let made_table = self.acbs.get(a).is_some_and(|acb| acb.path.contains(Path::NEW_TABLE));
        self.claim(a, first, last, made_table);
        self.tables.slot_mut(slot).pins += 1;
        self.take_run(a, cut - pos, base + (pos - first), Path::ALLOCATE);
        // what shows through from the backing layer, and where it ends
        let shows = if mapping == Mapping::Zero { 0 } else { self.backing_len.unwrap_or(0) };
        let align = self.align();
        let Some(acb) = self.acbs.get_mut(a) else { return false };
        acb.pinned = Some(slot);
        acb.fill_start = if shows > first { first } else { align_down(pos, align) };
        acb.fill_end = align_up(cut, align).max(align_up(shows.min(last), align));
        acb.fill_at = acb.fill_start;
        acb.modifies = false;
        self.next_piece(a);
        false
    }

    /// There is no L2 table yet: make one, of space that reads as zeros. Its entry in the L1 table is young
    /// like any other, so it is written after a sync that made the file's new length durable (QE2, QE4).
    pub(super) fn new_table(&mut self, a: u32, pos: u64) -> bool {
        let Some(geometry) = self.geometry().copied() else { return false };
        let l1_index = geometry.l1_index(pos);
        let (l1_number, l1_entry) = geometry.l1_slice(l1_index);
        // the lookup just read the entry from it
        let Some(l1_slot) = self.tables.find(l1_number) else { return true };
        let Some(table) = self.allocate(a, geometry.table_bytes, State::AllocL2) else { return false };
        debug_assert_eq!(self.tables.slot(l1_slot).entries.get(l1_entry), Some(&0));
        self.set_entries(l1_slot, l1_entry, 1, table, 0);
        self.counters.new_tables += 1;
        self.note(a, Path::NEW_TABLE);
        // known to be zeros: the slice that is needed next need not be read
        let (number, _) = geometry.l2_slice(pos);
        let host = geometry.l2_slice_host(table, pos);
        if self.tables.find(number).is_none()
            && let Some(slot) = self.tables.claim(number, host, geometry.slice_words())
        {
            self.tables.slot_mut(slot).state = crate::table::SliceState::Present;
        }
        true
    }

    /// The next piece of the extent: its fills are read, or it is written at once.
    fn next_piece(&mut self, a: u32) {
        let Some(piece) = self.piece(a) else { return self.extent_written(a) };
        if piece.start == piece.head_end && piece.tail_start == piece.end {
            return self.name_write(a, piece);
        }
        let Some(acb) = self.acbs.get(a) else { return };
        let (modifies, copies, host, pos) = (acb.modifies, acb.claims, acb.host, acb.pos);
        let shows = self.backing_len.unwrap_or(0);
        let generation = self.acbs.generation(a);
        let acb_id = crate::acb::AcbId { index: a, generation };
        let head = (Part::Head, piece.start, piece.head_end);
        let tail = (Part::Tail, piece.tail_start, piece.end);
        let mut reads: [Option<IoOp>; 2] = [None, None];
        for (read, (part, start, end)) in reads.iter_mut().zip([head, tail]) {
            let part_len = (end - start) as u32;
            let op = |len: u64, source| IoOp::ReadFill {
                acb: acb_id,
                part,
                part_len,
                at: 0,
                len: len as u32,
                source,
            };
            if modifies && start < end {
                // fill_start and fill_end lie within a block of the guest's bytes: no underflow
                let from = host + start - pos;
                *read = Some(op(end - start, FillSource::Host(from)));
            } else if copies && start < end.min(shows) && self.copies_backing(a) {
                *read = Some(op(end.min(shows) - start, FillSource::Backing(start)));
            }
        }
        if reads.iter().all(Option::is_none) {
            if piece.head_end < piece.tail_start {
                return self.write_piece(a);
            }
            // nothing shows through here: new space is zeros already
            if let Some(acb) = self.acbs.get_mut(a) {
                acb.fill_at = piece.end;
            }
            return self.next_piece(a);
        }
        self.set_state(a, if modifies { State::ReadModify } else { State::CopyOnWrite });
        if !modifies {
            self.note(a, Path::BACKING);
        }
        for (part, op) in [Part::Head, Part::Tail].into_iter().zip(reads) {
            if let Some(op) = op {
                self.name_own(a, part, op);
            }
        }
    }

    /// Does what surrounds the guest's bytes come from the backing layer? (Not over a zero cluster: then the
    /// fill range is only the sectors' padding.)
    fn copies_backing(&self, a: u32) -> bool {
        let (Some(acb), Some(geometry)) = (self.acbs.get(a), self.geometry()) else { return false };
        let Some(slot) = acb.pinned else { return false };
        let (_, entry) = geometry.l2_slice(acb.pos);
        self.tables.slot(slot).entries.get(entry) == Some(&0)
    }

    /// The piece at `fill_at`; None when all is written.
    fn piece(&self, a: u32) -> Option<Piece> {
        let acb = self.acbs.get(a)?;
        let (at, pos, run_end, fill_end) = (acb.fill_at, acb.pos, acb.run_end, acb.fill_end);
        if at >= fill_end {
            return None;
        }
        if at < pos && pos - at > COPY_MAX {
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
        let end = if fill_end - run_end > COPY_MAX {
            align_down(run_end + COPY_MAX, self.align())
        } else {
            fill_end
        };
        Some(Piece { start: at, head_end: pos, tail_start: run_end, end })
    }

    /// Names the write of the piece, its fills being ready.
    pub(super) fn write_piece(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        let Some(piece) = self.piece(a) else { return self.extent_written(a) };
        self.name_write(a, piece);
    }

    fn name_write(&mut self, a: u32, piece: Piece) {
        let generation = self.acbs.generation(a);
        let Some(acb) = self.acbs.get_mut(a) else { return };
        acb.fill_at = piece.end;
        let len = piece.tail_start - piece.head_end;
        let host = acb.host + piece.head_end - acb.pos;
        let op = IoOp::WriteData {
            acb: crate::acb::AcbId { index: a, generation },
            request: acb.request,
            buffer_offset: if len == 0 { 0 } else { acb.pos - acb.origin },
            len,
            host,
            head: (piece.head_end - piece.start) as u32,
            tail: (piece.end - piece.tail_start) as u32,
            zero: acb.kind != Kind::Write,
        };
        self.set_state(a, State::WriteData);
        self.name_own(a, Part::Head, op);
    }

    /// `WriteData`: a piece is written.
    pub(super) fn piece_written(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        self.next_piece(a);
    }

    /// All pieces are written: link new clusters, let the waiters go, look for the next run.
    fn extent_written(&mut self, a: u32) {
        let allocated = self.acbs.get(a).is_some_and(|acb| acb.claims);
        if allocated {
            if self.poison.is_some() {
                return self.finish(a, Err(Error::Poisoned));
            }
            self.link(a);
        }
        if let Some(acb) = self.acbs.get_mut(a) {
            acb.pos = acb.run_end;
        }
        self.let_go(a);
        self.note_written(a, allocated);
        self.next_run(a);
    }

    /// Makes the new clusters visible.
    fn link(&mut self, a: u32) {
        let (Some(geometry), Some(acb)) = (self.geometry().copied(), self.acbs.get(a)) else { return };
        let first = geometry.cluster_start(acb.pos);
        let count = ((geometry.cluster_end(acb.run_end) - first) >> geometry.cluster_bits) as usize;
        let host = acb.host - (acb.pos - first);
        let Some(slot) = acb.pinned else { return };
        let (number, entry) = geometry.l2_slice(first);
        debug_assert_eq!(self.tables.slot(slot).number, number.0, "pinned");
        debug_assert!(matches!(self.layout, Layout::Qed(..)));
        // the sync that makes the data durable comes first: `set_entries` keeps the change out of table
        // writes until then
        self.commit.unsynced = true;
        self.set_entries(slot, entry, count, host, geometry.cluster_size());
    }

    /// The extent is done; what is left of the acb's range?
    pub(super) fn next_run(&mut self, a: u32) {
        let Some(acb) = self.acbs.get(a) else { return };
        if acb.pos == acb.end {
            return self.range_done(a);
        }
        self.look(a);
    }
}
