//! A new size of the disk.
//!
//! A larger qcow2 disk: what comes to light reads as zeros, whatever lies there or shows through; a VM state
//! that lies there is given up. If its L1 table has no room for it, the table moves first. A smaller one: all
//! clusters behind the new end are given up, and that is durable before the header says so (QC17). Room for
//! a VM state: the table moves, and nothing else.
//!
//! Knows: sizes, the L1 table on its way. Must never know: how entries change (`unmap.rs`).
//!
//! Invariants:
//! * a disk shows its new size only when the header with it is durable;
//! * one change of size at a time; one that moves the L1 table, or takes something away, runs alone: it waits
//!   for all that is in flight, and nothing is accepted meanwhile;
//! * a new L1 table is complete and durable before the header leads to it; the old one's clusters are freed
//!   when that is durable (QC11).

use crate::acb::job::{Copying, Resizing};
use crate::acb::request::{Flags, Met};
use crate::acb::{AcbIndex, State, Want};
use crate::base::geometry::{SliceNumber, align_up};
use crate::base::queue::Queue;
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::Lack;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::rule::Rule;
use crate::space::kind::ClusterRun;
use crate::tables::mapping::Run;
use alloc::vec::Vec;

impl Image {
    pub(super) fn start_resize(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(!self.options.read_only);
        debug_assert!(self.jobs.resizing().is_none(), "one at a time was admitted");
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        if self.is_for_state(a) && size <= self.mapped() {
            return Next::Done;
        }
        // others must know of it before it waits for anything
        self.announce_resize(size);
        let held = if self.health.is_held() { self.may_change(a) } else { None };
        held.unwrap_or_else(|| self.resize(a, size))
    }

    /// The disk stays as it is: the L1 table gets room for the VM state behind it.
    fn is_for_state(&self, a: AcbIndex) -> bool {
        let acb = self.requests.acb(a);
        debug_assert!(acb.kind.is_job(), "it asks for a resize");
        acb.flags.contains(Flags::STATE)
    }

    /// It may change the image now.
    pub(super) fn resize(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(!self.options.read_only);
        debug_assert!(!self.health.is_halted(), "nothing changes any more");
        if self.layout.is_raw() {
            self.commit.wrote();
            self.requests.set_state(a, State::Resize);
            // a device has the size that it was given elsewhere
            let op = if self.space.is_device() { IoOp::Length } else { IoOp::SetLen { len: size } };
            self.outbox.emit_own(&mut self.requests, a, Part::Head, op);
            return Next::Wait;
        }
        let Some(header) = self.layout.qed_header_mut() else { return self.resize_counted(a, size) };
        // admitted before, but a resize in flight may have been larger
        header.image_size = header.image_size.max(size);
        self.commit.header_changed(&mut self.outbox);
        Next::Join(Want::Durable)
    }

    /// A qcow2 image gets another size: no other one until that is done, and nothing at all if it has to be
    /// alone.
    fn announce_resize(&mut self, size: u64) {
        let (Some(shape), Some(counted)) = (self.layout.shape(), self.refcounted.as_deref()) else { return };
        let moves = shape.l1_entries(size) > u64::from(counted.header.l1_entries);
        let first = match self.behind(size, self.mapped()) {
            _ if moves => Resizing::Settle,
            Some(_) => Resizing::Behind,
            None => Resizing::Range,
        };
        debug_assert!(!self.jobs.is_alone(), "nothing that has to be alone runs");
        // where the state lies depends on the disk's size: those that are about it end first
        let of_state = self.requests.iter().any(|(_, acb)| acb.flags.contains(Flags::STATE));
        let alone = moves || size < self.size || of_state;
        self.jobs.resize(first, alone);
    }

    /// What an L1 table that maps so much of them maps behind the disk, and a disk of this size would show.
    fn behind(&self, size: u64, mapped: u64) -> Option<Span> {
        let begin = self.layout.state_begin(self.size, None).ok()?;
        let end = size.min(mapped);
        debug_assert!(begin >= self.size, "the disk ends there");
        (begin < end).then(|| Span::new(begin, end))
    }

    /// The step that changes entries becomes the acb's range. An L1 table that moved had `mapped` before.
    fn begin_range(&mut self, a: AcbIndex, size: u64, mapped: u64) {
        debug_assert!(self.requests.acb(a).kind.is_job(), "the size changes");
        let Some(span) = self.behind(size, mapped) else {
            self.jobs.next(Resizing::Range);
            return self.set_resize_range(a, size);
        };
        self.jobs.next(Resizing::Behind);
        let acb = self.requests.acb_mut(a);
        (acb.pos, acb.extent.end, acb.end) = (span.start, span.start, span.end);
    }

    /// Alone, if it has to be; else at once.
    fn resize_counted(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(self.refcounted.is_some() && self.jobs.resizing().is_some());
        let Some(geometry) = self.layout.geometry().copied() else { return Next::Look };
        self.tables.reserve(geometry.slice_count(size.max(self.size)));
        if self.jobs.resizing() != Some(&Resizing::Settle) {
            self.begin_range(a, size, self.mapped());
        }
        if !self.jobs.is_alone() {
            return Next::Look;
        }
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return Next::Look;
        }
        self.requests.wait_for_others(a);
        Next::Wait
    }

    /// The part that comes or goes becomes the acb's range.
    fn set_resize_range(&mut self, a: AcbIndex, size: u64) {
        let Some(geometry) = self.layout.geometry().copied() else { return };
        let (start, end) = if size < self.size {
            (geometry.cluster_end(size), self.size.max(geometry.cluster_end(size)))
        } else {
            // the rest of the last cluster may hold anything, and a longer backing layer would come to light
            let shows = self.backing_len.unwrap_or(0).min(size);
            (self.size, geometry.cluster_end(self.size).min(size).max(shows).max(self.size))
        };
        debug_assert!(self.jobs.resizing() == Some(&Resizing::Range));
        debug_assert!(start <= end);
        let acb = self.requests.acb_mut(a);
        (acb.pos, acb.extent.end, acb.end) = (start, start, end);
    }

    /// The next run of it: what comes to light reads as zeros, what goes is given up.
    pub(super) fn resize_run(&mut self, a: AcbIndex, size: u64, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(run.len > 0);
        if size >= self.size && self.jobs.resizing() == Some(&Resizing::Range) {
            return self.zero_counted(a, run, slot);
        }
        self.drop_run(a, run, slot)
    }

    /// `FindCluster`, with nothing (more) to look up: the next step that waits for no answer.
    pub(super) fn range_resized(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(self.requests.acb(a).kind.is_job(), "a job's range");
        match self.jobs.resizing() {
            _ if self.health.is_halted() => Next::fail(Error::Poisoned),
            Some(Resizing::Place) => self.place_l1(a, size),
            Some(Resizing::Copy(_)) => self.l1_copied(a),
            Some(Resizing::Behind) => {
                self.jobs.next(Resizing::Range);
                self.set_resize_range(a, size);
                Next::On
            }
            Some(Resizing::Range)
                if self.requests.acb(a).commit.window != 0
                    && !self.options.sabotaged(Rule::RangeBeforeSize) =>
            {
                // durable first, then the header (QC17)
                self.jobs.next(Resizing::RangeSync);
                Next::Join(Want::Durable)
            }
            Some(Resizing::Range) => self.write_size(a, size),
            _ => Next::Join(Want::Durable),
        }
    }

    fn write_size(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(self.refcounted.is_some());
        self.requests.acb_mut(a).commit.window = 0;
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.header.size = size;
            debug_assert_eq!(counted.header.guest_size(), size, "another one was refused");
        }
        self.jobs.next(Resizing::Size);
        self.commit.header_changed(&mut self.outbox);
        if self.options.sabotaged(Rule::WaitResize) {
            return self.size_durable(a, size);
        }
        Next::Join(Want::Durable)
    }

    /// The pipeline answers: what the step wrote is durable.
    pub(super) fn size_durable(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(!self.options.read_only, "nothing was written");
        match self.jobs.take() {
            // a header that leads to the new table, or has the new size, is in the file: it is so
            Some(Resizing::Settle | Resizing::CopySync(..) | Resizing::RangeSync)
                if self.health.is_halted() =>
            {
                Next::fail(Error::Poisoned)
            }
            Some(Resizing::Settle) => {
                self.jobs.next(Resizing::Place);
                self.look_again(a)
            }
            Some(Resizing::CopySync(new)) => self.switch_l1(a, new),
            Some(Resizing::Switch(old)) => {
                self.l1_moved(old);
                if self.is_for_state(a) {
                    self.jobs.next(Resizing::Size);
                    return Next::Done;
                }
                let reach = self.layout.mapped((old.len() / 8) as u32);
                self.begin_range(a, size, reach);
                self.look_again(a)
            }
            Some(Resizing::RangeSync) => self.write_size(a, size),
            _ => {
                self.size = if self.refcounted.is_some() { size } else { self.size.max(size) };
                if let Some(geometry) = self.layout.geometry().copied() {
                    self.tables.reserve(geometry.slice_count(self.size));
                }
                Next::Done
            }
        }
    }

    /// From the pipeline back to work.
    pub(super) fn look_again(&mut self, a: AcbIndex) -> Next {
        self.leave_pipeline(a);
        Next::Look
    }

    /// The acb leaves the pipeline.
    pub(super) fn leave_pipeline(&mut self, a: AcbIndex) {
        let acb = self.requests.acb_mut(a);
        debug_assert!(acb.kind.is_job());
        acb.commit.window = 0;
        // the last phases of a round with nothing to write pass without being shown
        match acb.state {
            State::UpdateL2 => self.requests.set_state(a, State::SyncTables),
            State::MarkDirty => self.requests.set_state(a, State::SyncData),
            _ => {}
        }
    }

    /// Space for a table that maps the new size.
    fn place_l1(&mut self, a: AcbIndex, size: u64) -> Next {
        let (Some(geometry), Some(shape)) = (self.layout.geometry(), self.layout.shape()) else {
            return Next::Done;
        };
        let cluster = geometry.cluster_size();
        let bytes = align_up(shape.l1_entries(size) * 8, cluster);
        debug_assert!(bytes > 0, "it moves because it grows");
        let to = match self.allocate(a, bytes, State::AllocL2) {
            Ok(to) => to,
            Err(next) => return next,
        };
        debug_assert!(to > 0 && to.is_multiple_of(cluster), "a table begins with a cluster");
        self.requests.set_state(a, State::AllocL2);
        let mut waiter = Queue::new();
        self.requests.wait_in(&mut waiter, a);
        self.jobs.next(Resizing::Copy(Copying { to, bytes, done: 0, chunk: Vec::new(), waiter }));
        self.read_l1();
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::WaitAllocL2) {
            return self.leave_l1_copy(a);
        }
        Next::Wait
    }

    pub(super) fn l1_copied(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.jobs.copying_ref().is_some());
        if let Some(copying) = self.jobs.copying() {
            let new = Span::at(copying.to, copying.bytes);
            self.jobs.next(Resizing::CopySync(new));
            if self.options.sabotaged(Rule::L1BeforeHeader) {
                return self.switch_l1(a, new);
            }
        }
        Next::Join(Want::Durable)
    }

    /// The new table is durable: the header may lead to it.
    fn switch_l1(&mut self, a: AcbIndex, new: Span) -> Next {
        let Some(counted) = self.refcounted.as_deref_mut() else { return Next::Done };
        let old = Span::at(counted.header.l1_offset, u64::from(counted.header.l1_entries) * 8);
        counted.header.l1_offset = new.start;
        counted.header.l1_entries = (new.len() / 8) as u32;
        debug_assert!(counted.header.l1_entries > 0, "it moves because it grows");
        debug_assert!(new.len() > old.len(), "it has room for all of the old one");
        self.jobs.next(Resizing::Switch(old));
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::SwitchBeforeFree) {
            self.free_l1_early(old);
        }
        self.commit.header_changed(&mut self.outbox);
        self.requests.acb_mut(a).commit.window = 0;
        Next::Join(Want::Durable)
    }

    /// The header leads to the new table, durably: so do the cached slices.
    fn l1_moved(&mut self, old: Span) {
        debug_assert!(self.refcounted.is_some());
        let Some(to) = self.refcounted.as_deref().map(|counted| counted.header.l1_offset) else { return };
        let Some(geometry) = self.layout.geometry_mut() else { return };
        geometry.l1_offset = to;
        let geometry = *geometry;
        let slices = old.len().div_ceil(u64::from(geometry.l1_slice_bytes()));
        debug_assert!(to.is_multiple_of(geometry.cluster_size()), "a table begins with a cluster");
        for number in (0..slices).map(SliceNumber) {
            if let Some(slot) = self.tables.find(number) {
                self.tables.slot_mut(slot).host = geometry.l1_slice_host(number);
            }
        }
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.map.remove_fixed(old);
            counted.map.add_fixed(Span::at(to, u64::from(counted.header.l1_entries) * 8));
        }
        let clusters = old.len().div_ceil(geometry.cluster_size());
        if clusters > 0 {
            self.free_clusters(ClusterRun::new(old.start >> geometry.cluster_bits, clusters), 0);
        }
    }

    /// The request has ended, well or not.
    pub(super) fn resize_ended(&mut self) {
        debug_assert!(!self.options.read_only, "no size changes in what is read alone");
        self.jobs.end_resize();
        let size = self.size;
        // a size that never became durable is not written by accident later
        if let Some(counted) = self.refcounted.as_deref_mut()
            && counted.header.guest_size() != size
        {
            counted.header.size = size;
        }
    }

    /// `Resize`: the file has its new length.
    pub(super) fn resized(&mut self, a: AcbIndex, size: u64) -> Next {
        debug_assert!(self.layout.is_raw(), "of the others only a close sets the file's length");
        self.requests.note(a, Met::FLUSH);
        let told = self.jobs.told_length();
        debug_assert!(size <= 1 << 62, "a size that no file can hold was refused");
        if self.space.is_device() && told != size {
            return Next::fail(Error::Unsupported(Lack::ResizeDevice(told)));
        }
        self.size = size.next_multiple_of(512);
        Next::Done
    }
}
