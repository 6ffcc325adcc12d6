//! Bitmaps that are kept up are stored: when the image is closed, made quiet, or its bitmaps are changed.
//!
//! Each of them is merged with what was noted, and is in use no more, by one change of the image as
//! `snapshot.rs` makes them: what a power cut finds is the old directory, in which it is in use, or the new
//! one, with all bits.
//!
//! Knows: when that may begin, and what is noted from then on. Must never know: how a bitmap is changed.
//!
//! Invariants:
//! * nothing is accepted meanwhile, and all that memory knows is in the file;
//! * one that cannot be stored stays in use: nobody trusts it, and the close or quiesce goes on.

use crate::acb::request::RequestKind;
use crate::acb::{AcbIndex, Want};
use crate::image::next::Next;
use crate::image::value::Image;
use crate::snapshots::{BitmapAsk, BitmapChange, Editing, Task};
use crate::space::tracking::Tracking;
use alloc::boxed::Box;
use alloc::vec::Vec;

impl Image {
    /// What is to be stored.
    pub(super) fn stores(&self) -> Vec<Task> {
        let tracking = self.refcounted.as_deref().and_then(|counted| counted.tracking.as_ref());
        let Some(tracking) = tracking.filter(|_| !self.health.is_halted()) else { return Vec::new() };
        debug_assert!(!self.options.read_only, "what is read alone is not counted");
        let store = |name: &Vec<u8>| {
            let change = BitmapChange::Merge(tracking.bits());
            Task::Store(BitmapAsk { name: name.clone(), change })
        };
        tracking.to_store().iter().map(store).collect()
    }

    fn must_store(&self) -> bool {
        let tracking = self.refcounted.as_deref().and_then(|counted| counted.tracking.as_ref());
        !self.health.is_halted() && tracking.is_some_and(|tracking| !tracking.to_store().is_empty())
    }

    /// All is in order, durably: a close stores bitmaps, if there are any, and cuts the file.
    pub(super) fn store_or_trim(&mut self, a: AcbIndex) -> Next {
        if self.must_store() { self.store(a) } else { self.trim(a) }
    }

    /// The same of a quiesce; beside other requests bitmaps stay in use, as they have to.
    pub(in crate::image) fn quiet(&mut self, a: AcbIndex) -> Next {
        let begun = self.is_storing();
        debug_assert!(!begun || self.jobs.is_alone(), "nothing is accepted meanwhile");
        if !begun && (self.requests.len() > 1 || self.jobs.is_alone() || !self.must_store()) {
            return Next::Done;
        }
        if !begun {
            self.jobs.edit();
        }
        if self.tables.dirty == 0 && self.tables.young == 0 && self.refcounts_settled() {
            return self.store(a);
        }
        // what came since it was asked for
        self.plan_store();
        self.leave_pipeline(a);
        Next::Join(Want::Clean)
    }

    pub(super) fn is_storing(&self) -> bool {
        self.edit.as_deref().is_some_and(|edit| edit.has_begun() && edit.ask().is_none())
    }

    fn plan_store(&mut self) {
        if !self.is_storing() {
            let mut edit = Box::new(Editing::new(None));
            edit.accept();
            self.edit = Some(edit);
        }
        debug_assert!(self.is_storing(), "nothing is asked but that");
    }

    fn store(&mut self, a: AcbIndex) -> Next {
        self.plan_store();
        let stores = self.stores();
        debug_assert!(!stores.is_empty(), "there is something to store");
        if let Some(edit) = self.edit.as_deref_mut() {
            edit.first(stores.into_iter());
        }
        self.snapshot_rests(a)
    }

    /// The work that an acb waited for is done.
    pub(in crate::image) fn edited(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            RequestKind::Close => {
                debug_assert!(self.is_storing(), "it stored bitmaps");
                self.edit = None;
                self.trim(a)
            }
            kind => {
                debug_assert!(matches!(kind, RequestKind::Snapshot | RequestKind::Quiesce), "{kind:?}");
                Next::Done
            }
        }
    }

    /// A quiesce has ended, well or not.
    pub(in crate::image) fn quiesce_ended(&mut self) {
        if self.is_storing() && !self.jobs.is_closing() {
            self.edit = None;
            self.jobs.end_edit();
        }
    }

    /// The directory is another one: what is kept up from now on, and was not changed since.
    pub(super) fn track_again(&mut self) {
        let directory = self.edit.as_deref_mut().and_then(|edit| edit.directory.take());
        let (Some(directory), Some(counted)) = (directory, self.refcounted.as_deref_mut()) else { return };
        let block = u64::from(self.options.align.max(512));
        debug_assert!(block.is_power_of_two(), "blocks of a device");
        counted.tracking = Tracking::new(&counted.header, &directory, block);
        if !self.health.is_halted() {
            self.health.renew(counted.is_stale());
        }
    }
}
