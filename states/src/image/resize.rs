//! A new size of the disk.
//!
//! A larger qcow2 disk: what comes to light reads as zeros, whatever lies there or shows through; if its L1
//! table has no room for it, it moves first, and until then nobody changes it. A smaller one: once no other
//! request is in flight, all clusters behind the new end are given up, and that is durable before the
//! header says so (QC17).
//!
//! Knows: sizes, the L1 table on its way. Must never know: how entries change (`unmap.rs`).
//!
//! Invariants:
//! * a disk shows its new size only when the header with it is durable; a smaller one takes no request
//!   behind its new end from the moment it is asked for;
//! * one change of size at a time;
//! * a new L1 table is complete and durable before the header leads to it; the old one's clusters are freed
//!   after that is durable (QC11).

use super::{Image, Layout};
use crate::acb::Want;
use crate::error::Error;
use crate::io::{IoOp, Part};
use crate::request::{Path, Refused};
use crate::state::State;

impl Image {
    pub(super) fn admit_resize(&self, size: u64) -> Result<(), Refused> {
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        let unsupported = |what: &str| Err(Refused::Invalid(Error::Unsupported(what.into())));
        match &self.layout {
            Layout::Raw if size > 1 << 62 => misuse("the size is beyond what a file can hold"),
            Layout::Raw => Ok(()),
            Layout::Qed(..) | Layout::Qcow2(..) if !size.is_multiple_of(512) => {
                misuse("the size of an image with tables is a multiple of 512")
            }
            Layout::Qed(..) if size < self.size => unsupported("shrinking a QED image"),
            Layout::Qed(_, header) if size > header.size_max() => {
                misuse("the size is beyond what tables of this geometry map")
            }
            // the new part would show what the backing file holds behind the old end; QEMU refuses it too
            Layout::Qed(..) if size > self.size && self.backing_len.is_some_and(|len| len > self.size) => {
                unsupported("growing a QED image whose backing file is longer than it")
            }
            Layout::Qed(..) => Ok(()),
            Layout::Qcow2(_, shape) => {
                let Some(counted) = self.counted() else {
                    return misuse("the image is open for reading only");
                };
                if size != self.size && counted.header.snapshots > 0 && shape.version < 3 {
                    return unsupported("resizing a qcow2 image of version 2 that has snapshots");
                }
                if shape.data_file && size != self.size {
                    return unsupported("resizing a qcow2 image with a data file");
                }
                if shape.l1_entries(size) > u64::from(counted.header.l1_entries) {
                    return unsupported("growing a qcow2 image beyond what its L1 table maps");
                }
                Ok(())
            }
        }
    }

    pub(super) fn start_resize(&mut self, a: u32) {
        // a resize has no range: its offset is the size
        let Some(size) = self.acbs.get(a).map(|acb| acb.origin) else { return };
        if self.poison.is_some() {
            return self.finish(a, Err(Error::Poisoned));
        }
        match &mut self.layout {
            Layout::Raw => {
                self.commit.unsynced = true;
                self.set_state(a, State::Resize);
                self.name_own(a, Part::Head, IoOp::SetLen { len: size });
            }
            Layout::Qed(_, header) => {
                // admitted before, but a resize in flight may have been larger
                header.image_size = header.image_size.max(size);
                self.commit.header_dirty = true;
                self.join_commit(a, Want::Durable);
            }
            Layout::Qcow2(..) => self.resize_counted(a, size),
        }
    }

    /// First the part that comes or goes.
    fn resize_counted(&mut self, a: u32, size: u64) {
        let Some(geometry) = self.geometry().copied() else { return };
        if self.resizing {
            return self.finish(a, Err(Error::Misuse("the size is being changed already")));
        }
        self.resizing = true;
        self.tables.reserve(geometry.slice_count(size.max(self.size)));
        let (start, end) = if size < self.size {
            (geometry.cluster_end(size), self.size.max(geometry.cluster_end(size)))
        } else {
            // the rest of the last cluster may hold anything, and a longer backing layer would come to light
            let shows = self.backing_len.unwrap_or(0).min(size);
            (self.size, geometry.cluster_end(self.size).min(size).max(shows).max(self.size))
        };
        let Some(acb) = self.acbs.get_mut(a) else { return };
        (acb.pos, acb.run_end, acb.end) = (start, start, end);
        if size >= self.size {
            return self.look(a);
        }
        // nothing new is accepted until it is done; what is in flight may lie behind the new end
        self.shrinking = true;
        self.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 {
            return self.look(a);
        }
        debug_assert!(self.closer.is_none());
        self.closer = Some(a);
    }

    /// The part that comes or goes is in order: durable first, then the header (QC17).
    pub(super) fn range_resized(&mut self, a: u32) {
        if self.acbs.get(a).is_some_and(|acb| acb.window != 0) {
            return self.join_commit(a, Want::Durable);
        }
        self.write_size(a);
        self.join_commit(a, Want::Durable);
    }

    fn write_size(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        acb.window = 0;
        let size = acb.origin;
        if let Some(counted) = self.counted_mut() {
            counted.header.size = size;
        }
        self.commit.header_dirty = true;
    }

    /// The pipeline answers: the part is in order, durably; or the header with the new size is.
    pub(super) fn size_durable(&mut self, a: u32) {
        let Some(size) = self.acbs.get(a).map(|acb| acb.origin) else { return };
        if self.counted().is_some_and(|counted| counted.header.guest_size() != size) {
            self.write_size(a);
            return self.join_commit(a, Want::Durable);
        }
        self.size = if self.refcounted.is_some() { size } else { self.size.max(size) };
        if let Some(geometry) = self.geometry().copied() {
            self.tables.reserve(geometry.slice_count(self.size));
        }
        self.finish(a, Ok(()));
    }

    /// The request has ended, well or not.
    pub(super) fn resize_ended(&mut self) {
        self.resizing = false;
        self.shrinking = false;
        let size = self.size;
        // a size that never became durable is not written by accident later
        if let Some(counted) = self.counted_mut()
            && counted.header.guest_size() != size
        {
            counted.header.size = size;
        }
    }

    /// `Resize`: the file has its new length.
    pub(super) fn resized(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.path |= Path::FLUSH;
        if matches!(self.layout, Layout::Raw) && acb.kind == crate::request::Kind::Resize {
            self.size = acb.origin;
        }
        self.finish(a, Ok(()));
    }
}
