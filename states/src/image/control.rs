//! Flush, quiesce, close, resize: requests about the whole image.
//!
//! Knows: which of them needs what of the commit pipeline. Must never know: how a round goes.

use super::{Image, Layout};
use crate::acb::Want;
use crate::error::Error;
use crate::io::{IoOp, Part};
use crate::request::{Kind, Path, Refused};
use crate::state::State;

impl Image {
    pub(super) fn start_flush(&mut self, a: u32, kind: Kind) {
        if self.options.read_only {
            return self.finish(a, Ok(()));
        }
        self.join_commit(a, if kind == Kind::Flush { Want::Durable } else { Want::Clean });
    }

    /// Nothing new is accepted; when all else has ended: commit, clear the dirty bit, give back the space
    /// ahead of the data.
    pub(super) fn start_close(&mut self, a: u32) {
        self.closing = true;
        self.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 {
            return self.all_requests_ended(a);
        }
        self.closer = Some(a);
    }

    pub(super) fn all_requests_ended(&mut self, a: u32) {
        debug_assert_eq!(self.requests.len(), 1);
        if self.options.read_only {
            return self.finish(a, Ok(()));
        }
        self.join_commit(a, Want::Clean);
    }

    /// Close, committed: the file ends where the data ends.
    pub(super) fn trim(&mut self, a: u32) {
        let len = self.space.end();
        if matches!(self.layout, Layout::Raw) || self.space.file_len() <= len {
            return self.finish(a, Ok(()));
        }
        self.set_state(a, State::Resize);
        self.name_own(a, Part::Head, IoOp::SetLen { len });
    }

    pub(super) fn admit_resize(&self, size: u64) -> Result<(), Refused> {
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        match &self.layout {
            Layout::Raw if size > 1 << 62 => misuse("the size is beyond what a file can hold"),
            Layout::Raw => Ok(()),
            Layout::Qcow2(..) => misuse("the image is open for reading only"),
            Layout::Qed(..) if size < self.size => {
                Err(Refused::Invalid(Error::Unsupported("shrinking a QED image".into())))
            }
            Layout::Qed(_, header) if size > header.size_max() => {
                misuse("the size is beyond what tables of this geometry map")
            }
            Layout::Qed(..) if !size.is_multiple_of(512) => {
                misuse("the size of a QED image is a multiple of 512")
            }
            // the new part would show what the backing file holds behind the old end; QEMU refuses it too
            Layout::Qed(..) if size > self.size && self.backing_len.is_some_and(|len| len > self.size) => {
                let what = "growing a QED image whose backing file is longer than it";
                Err(Refused::Invalid(Error::Unsupported(what.into())))
            }
            Layout::Qed(..) => Ok(()),
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
            Layout::Qcow2(..) => self.finish(a, Err(Error::Misuse("the image is open for reading only"))),
        }
    }

    /// QED: the header with the new size is durable.
    pub(super) fn apply_size(&mut self, a: u32) {
        if let Some(acb) = self.acbs.get(a) {
            self.size = self.size.max(acb.origin);
            if let Some(geometry) = self.geometry().copied() {
                self.tables.reserve(geometry.slice_count(self.size));
            }
        }
        self.finish(a, Ok(()));
    }

    /// `Resize`: the file has its new length.
    pub(super) fn resized(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.path |= Path::FLUSH;
        if matches!(self.layout, Layout::Raw) && acb.kind == Kind::Resize {
            self.size = acb.origin;
        }
        self.finish(a, Ok(()));
    }
}
