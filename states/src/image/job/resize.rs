//! A new size of the disk.
//!
//! A larger qcow2 disk: what comes to light reads as zeros, whatever lies there or shows through. If its L1
//! table has no room for it, the table moves first. A smaller one: all clusters behind the new end are given
//! up, and that is durable before the header says so (QC17).
//!
//! Knows: sizes, the L1 table on its way. Must never know: how entries change (`unmap.rs`).
//!
//! Invariants:
//! * a disk shows its new size only when the header with it is durable;
//! * one change of size at a time; one that moves the L1 table, or takes something away, runs alone: it waits
//!   for all that is in flight, and nothing is accepted meanwhile;
//! * a new L1 table is complete and durable before the header leads to it; the old one's clusters are freed
//!   when that is durable (QC11).

use crate::acb::State;
use crate::acb::Want;
use crate::acb::request::Met;
use crate::base::geometry::{HostOffset, SliceNumber, align_up};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::image::{Image, Purpose};
use crate::io::{IoOp, Outcome, Part};
use crate::rule::Rule;
use alloc::vec::Vec;

/// Bytes of the L1 table that are copied at once.
const CHUNK: u64 = 64 << 10;

/// How far a change of size has got (qcow2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Resizing {
    /// All that was written is made durable; then the L1 table moves.
    Settle,
    /// Space for the new L1 table.
    Place,
    Copy(Copying),
    /// The new table is made durable: place, and bytes.
    CopySync(u64, u64),
    /// The header leads to it: place and bytes of the old one.
    Switch(u64, u64),
    /// What comes to light or goes.
    Range,
    /// That is made durable.
    RangeSync,
    /// The header with the new size.
    Size,
}

/// The L1 table on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Copying {
    to: u64,
    bytes: u64,
    done: u64,
    chunk: Vec<u8>,
    pub(crate) waiter: Queue,
}

impl Image {
    pub(crate) fn start_resize(&mut self, a: u32) {
        // a resize has no range: its offset is the size
        let size = self.requests.acb(a).origin;
        if self.health.is_halted() {
            return self.finish(a, Err(Error::Poisoned));
        }
        // others must know of it before it waits for anything
        self.announce_resize(size);
        if !self.health.is_held() || self.may_change(a) {
            self.resize(a, size);
        }
    }

    /// It may change the image now.
    pub(crate) fn resize(&mut self, a: u32, size: u64) {
        if self.layout.is_raw() {
            self.commit.unsynced = true;
            self.requests.set_state(a, State::Resize);
            return self.outbox.emit_own(&mut self.requests, a, Part::Head, IoOp::SetLen { len: size });
        }
        let Some(header) = self.layout.qed_header_mut() else { return self.resize_counted(a, size) };
        // admitted before, but a resize in flight may have been larger
        header.image_size = header.image_size.max(size);
        self.commit.header_dirty = true;
        self.join_commit(a, Want::Durable);
    }

    /// A qcow2 image gets another size: no other one until that is done, and nothing at all if it has to be
    /// alone.
    fn announce_resize(&mut self, size: u64) {
        let (Some(shape), Some(counted)) = (self.layout.shape(), self.refcounted.as_deref()) else { return };
        debug_assert!(self.resizing.is_none(), "one at a time was admitted");
        let moves = shape.l1_entries(size) > u64::from(counted.header.l1_entries);
        self.resizing = Some(if moves { Resizing::Settle } else { Resizing::Range });
        self.exclusive = moves || size < self.size;
    }

    /// Alone, if it has to be; else at once.
    fn resize_counted(&mut self, a: u32, size: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        self.tables.reserve(geometry.slice_count(size.max(self.size)));
        if self.resizing == Some(Resizing::Range) {
            self.set_resize_range(a, size);
        }
        if !self.exclusive {
            return self.look(a);
        }
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return self.look(a);
        }
        self.requests.wait_for_others(a);
    }

    /// The part that comes or goes becomes the acb's range.
    fn set_resize_range(&mut self, a: u32, size: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let (start, end) = if size < self.size {
            (geometry.cluster_end(size), self.size.max(geometry.cluster_end(size)))
        } else {
            // the rest of the last cluster may hold anything, and a longer backing layer would come to light
            let shows = self.backing_len.unwrap_or(0).min(size);
            (self.size, geometry.cluster_end(self.size).min(size).max(shows).max(self.size))
        };
        let acb = self.requests.acb_mut(a);
        (acb.pos, acb.run_end, acb.end) = (start, start, end);
    }

    /// `FindCluster`, with nothing (more) to look up: the next step that waits for no answer.
    pub(crate) fn range_resized(&mut self, a: u32) {
        match self.resizing {
            _ if self.health.is_halted() => self.finish(a, Err(Error::Poisoned)),
            Some(Resizing::Place) => self.place_l1(a),
            Some(Resizing::Copy(_)) => self.l1_copied(a),
            Some(Resizing::Range)
                if self.requests.acb(a).window != 0 && !self.options.sabotaged(Rule::RangeBeforeSize) =>
            {
                // durable first, then the header (QC17)
                self.resizing = Some(Resizing::RangeSync);
                self.join_commit(a, Want::Durable);
            }
            Some(Resizing::Range) => self.write_size(a),
            _ => self.join_commit(a, Want::Durable),
        }
    }

    fn write_size(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        acb.window = 0;
        let size = acb.origin;
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.header.size = size;
        }
        self.resizing = Some(Resizing::Size);
        self.commit.header_dirty = true;
        if self.options.sabotaged(Rule::WaitResize) {
            return self.size_durable(a);
        }
        self.join_commit(a, Want::Durable);
    }

    /// The pipeline answers: what the step wrote is durable.
    pub(crate) fn size_durable(&mut self, a: u32) {
        let size = self.requests.acb(a).origin;
        match self.resizing.take() {
            // a header that leads to the new table, or has the new size, is in the file: it is so
            Some(Resizing::Settle | Resizing::CopySync(..) | Resizing::RangeSync)
                if self.health.is_halted() =>
            {
                self.finish(a, Err(Error::Poisoned));
            }
            Some(Resizing::Settle) => {
                self.resizing = Some(Resizing::Place);
                self.look_again(a);
            }
            Some(Resizing::CopySync(to, bytes)) => self.switch_l1(a, to, bytes),
            Some(Resizing::Switch(from, bytes)) => {
                self.l1_moved(from, bytes);
                self.resizing = Some(Resizing::Range);
                self.set_resize_range(a, size);
                self.look_again(a);
            }
            Some(Resizing::RangeSync) => self.write_size(a),
            _ => {
                self.size = if self.refcounted.is_some() { size } else { self.size.max(size) };
                if let Some(geometry) = self.layout.geometry().copied() {
                    self.tables.reserve(geometry.slice_count(self.size));
                }
                self.finish(a, Ok(()));
            }
        }
    }

    /// From the pipeline back to work.
    fn look_again(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        acb.window = 0;
        // the last phases of a round with nothing to write pass without being shown
        match acb.state {
            State::UpdateL2 => self.requests.set_state(a, State::SyncTables),
            State::MarkDirty => self.requests.set_state(a, State::SyncData),
            _ => {}
        }
        self.look(a);
    }

    /// Space for a table that maps the new size.
    fn place_l1(&mut self, a: u32) {
        let (Some(geometry), Some(shape)) = (self.layout.geometry(), self.layout.shape()) else { return };
        let acb = self.requests.acb(a);
        let bytes = align_up(shape.l1_entries(acb.origin) * 8, geometry.cluster_size());
        let Some(to) = self.allocate_counted(a, bytes, State::AllocL2) else { return };
        self.requests.set_state(a, State::AllocL2);
        let mut waiter = Queue::new();
        self.requests.wait_in(&mut waiter, a);
        self.resizing = Some(Resizing::Copy(Copying { to, bytes, done: 0, chunk: Vec::new(), waiter }));
        self.read_l1();
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::WaitAllocL2) {
            self.leave_l1_copy(a);
        }
    }

    /// Bytes of the old table, and how much of the file they take.
    fn old_l1(&self) -> (u64, u64) {
        let bytes = self.refcounted.as_deref().map_or(0, |counted| u64::from(counted.header.l1_entries) * 8);
        (bytes, align_up(bytes, u64::from(self.options.align.max(512))))
    }

    fn read_l1(&mut self) {
        let Some(from) = self.layout.geometry().map(|geometry| geometry.l1_offset.0) else { return };
        let (_, whole) = self.old_l1();
        let Some(Resizing::Copy(copying)) = &mut self.resizing else { return };
        if copying.done >= whole {
            // all of it is there
            let mut waiter = core::mem::replace(&mut copying.waiter, Queue::new());
            return self.requests.wake(&mut waiter);
        }
        let (offset, len) = (from + copying.done, (whole - copying.done).min(CHUNK) as u32);
        self.outbox.emit(Purpose::L1Read, Op::ReadL1, offset, IoOp::ReadTable { offset, len });
    }

    /// A chunk of the old L1 table was read.
    pub(crate) fn l1_read(&mut self, outcome: Outcome<'_>, result: Result<(), Error>) {
        let (bytes, _) = self.old_l1();
        let poisoned = self.health.is_halted();
        let Some(Resizing::Copy(copying)) = &mut self.resizing else { return };
        let Outcome::Table(read) = outcome else {
            let error = result.err().unwrap_or(Error::Misuse("a table read was completed without its bytes"));
            return self.l1_failed(&error);
        };
        if poisoned {
            return self.l1_failed(&Error::Poisoned);
        }
        copying.chunk.clear();
        copying.chunk.extend_from_slice(read);
        // what lies behind the table in its last block is none of it
        let keep = bytes.saturating_sub(copying.done).min(read.len() as u64) as usize;
        copying.chunk.iter_mut().skip(keep).for_each(|byte| *byte = 0);
        let (offset, len) = (copying.to + copying.done, copying.chunk.len() as u32);
        self.outbox.emit(Purpose::L1Write, Op::WriteL1, offset, IoOp::WriteTable { offset, len });
    }

    pub(crate) fn encode_l1(&self, buf: &mut [u8]) {
        let Some(Resizing::Copy(copying)) = &self.resizing else { return };
        if let Some(bytes) = copying.chunk.get(..buf.len()) {
            buf.copy_from_slice(bytes);
        }
    }

    /// A chunk of the new L1 table was written.
    pub(crate) fn l1_written(&mut self, result: Result<(), Error>) {
        self.commit.unsynced = true;
        if let Err(error) = result {
            return self.l1_failed(&error);
        }
        if let Some(Resizing::Copy(copying)) = &mut self.resizing {
            copying.done += copying.chunk.len() as u64;
        }
        self.read_l1();
    }

    fn l1_failed(&mut self, error: &Error) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let Some(Resizing::Copy(mut copying)) = self.resizing.take() else { return };
        self.requests.fail_all(&copying.waiter, error);
        self.requests.wake(&mut copying.waiter);
        self.free_clusters(copying.to >> bits, copying.bytes >> bits, 0);
    }

    pub(crate) fn l1_copied(&mut self, a: u32) {
        if let Some(Resizing::Copy(copying)) = &self.resizing {
            let (to, bytes) = (copying.to, copying.bytes);
            self.resizing = Some(Resizing::CopySync(to, bytes));
            if self.options.sabotaged(Rule::L1BeforeHeader) {
                return self.switch_l1(a, to, bytes);
            }
        }
        self.join_commit(a, Want::Durable);
    }

    /// The new table is durable: the header may lead to it.
    fn switch_l1(&mut self, a: u32, to: u64, bytes: u64) {
        let Some(counted) = self.refcounted.as_deref_mut() else { return };
        let old = (counted.header.l1_offset, u64::from(counted.header.l1_entries) * 8);
        counted.header.l1_offset = to;
        counted.header.l1_entries = (bytes / 8) as u32;
        self.resizing = Some(Resizing::Switch(old.0, old.1));
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::SwitchBeforeFree) {
            self.free_l1_early(old.0, old.1);
        }
        self.commit.header_dirty = true;
        self.requests.acb_mut(a).window = 0;
        self.join_commit(a, Want::Durable);
    }

    /// The header leads to the new table, durably: so do the cached slices.
    fn l1_moved(&mut self, from: u64, bytes: u64) {
        let Some(to) = self.refcounted.as_deref().map(|counted| counted.header.l1_offset) else { return };
        let Some(geometry) = self.layout.geometry_mut() else { return };
        geometry.l1_offset = HostOffset(to);
        let geometry = *geometry;
        let slices = bytes.div_ceil(u64::from(geometry.l1_slice_bytes()));
        for number in (0..slices).map(SliceNumber) {
            if let Some(slot) = self.tables.find(number) {
                self.tables.slot_mut(slot).host = geometry.l1_slice_host(number).0;
            }
        }
        if let Some(counted) = self.refcounted.as_deref_mut() {
            let end = to + u64::from(counted.header.l1_entries) * 8;
            counted.fixed.retain(|range| range.0 != from);
            counted.fixed.push((to, end));
        }
        let clusters = bytes.div_ceil(geometry.cluster_size());
        if clusters > 0 {
            self.free_clusters(from >> geometry.cluster_bits, clusters, 0);
        }
    }

    /// The request has ended, well or not.
    pub(crate) fn resize_ended(&mut self) {
        self.resizing = None;
        self.exclusive = false;
        let size = self.size;
        // a size that never became durable is not written by accident later
        if let Some(counted) = self.refcounted.as_deref_mut()
            && counted.header.guest_size() != size
        {
            counted.header.size = size;
        }
    }

    /// `Resize`: the file has its new length.
    pub(crate) fn resized(&mut self, a: u32) {
        let acb = self.requests.acb_mut(a);
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.met |= Met::FLUSH;
        // of the others only a close sets the file's length
        if self.layout.is_raw() {
            self.size = acb.origin.next_multiple_of(512);
        }
        self.finish(a, Ok(()));
    }
}
