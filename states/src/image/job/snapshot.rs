//! A snapshot is made, applied or deleted, or a persistent bitmap changed, while the image rests.
//!
//! All else has ended before, all that memory knows is in the file, and no I/O is in flight; then
//! `snapshots/` reads and writes the file alone, and what it leaves is taken over as an opening would find
//! it.
//!
//! Knows: when that may begin, what of the image is another afterwards. Must never know: how a snapshot is
//! made, or a bitmap changed.
//!
//! Invariants:
//! * nothing is accepted from the begin to the end;
//! * a failure before the header was written leaves the image as it was, but that free space may hold
//!   anything; one of the header, or of its sync, poisons it: either may be in the file.

use crate::acb::{AcbIndex, State, Want};
use crate::error::Error;
use crate::fault::{BitmapLack, Lack, Op};
use crate::image::format::Layout;
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Outcome};
use crate::outbox::{Due, Purpose};
use crate::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use crate::rule::Rule;
use crate::snapshots::{Ask, Before, BitmapAsk, Edit, Edited, Editing, Task, Turn, admit_bitmap};
use crate::space::counts::Refcounted;
use crate::space::kind::Uncounted;
use crate::space::quarantine::Quarantine;
use crate::tables::cache::TableCache;
use crate::tables::dangling::Dangling;
use alloc::boxed::Box;
use alloc::vec::Vec;

impl Image {
    /// What the [`RequestKind::Snapshot`](crate::RequestKind::Snapshot) that is submitted next asks for.
    pub fn plan_snapshot(&mut self, ask: Ask) {
        self.plan(Task::Snapshot(ask));
    }

    /// The same of a persistent bitmap.
    pub fn plan_bitmap(&mut self, ask: BitmapAsk) {
        self.plan(Task::Bitmap(ask));
    }

    fn plan(&mut self, task: Task) {
        debug_assert!(self.outbox.due.is_empty(), "the mutator before has settled");
        if self.edit.as_deref().is_none_or(|edit| !edit.has_begun()) {
            self.edit = Some(Box::new(Editing::new(Some(task))));
        }
    }

    /// May what was planned be done to this image?
    pub(crate) fn admit_snapshot(&self) -> Result<(), Error> {
        debug_assert!(!self.options.read_only, "what is read alone was refused");
        let task = self.edit.as_deref().and_then(Editing::ask);
        let Some(counted) = self.refcounted.as_deref() else {
            let name = self.layout.name();
            return Err(Error::Unsupported(match task {
                Some(Task::Bitmap(_)) => Lack::Bitmap(BitmapLack::Format(name)),
                Some(Task::Snapshot(_) | Task::Store(_)) | None => Lack::Snapshots(name),
            }));
        };
        let ask = match task {
            Some(Task::Bitmap(ask)) => return admit_bitmap(ask, &counted.header),
            Some(Task::Snapshot(ask)) => Some(ask),
            Some(Task::Store(_)) | None => None,
        };
        match ask {
            _ if counted.header.has_data_file() => Err(Error::Unsupported(Lack::SnapshotDataFile)),
            // refused as busy
            None if self.is_storing() => Ok(()),
            None => Err(Error::Misuse("a snapshot's request without what it asks for")),
            Some(Ask::Create { name, .. }) if name.len() > usize::from(u16::MAX) => {
                Err(Error::Misuse("the name of a snapshot has 65535 bytes at most"))
            }
            Some(Ask::Apply(_)) if counted.header.bitmaps().is_some() => {
                Err(Error::Unsupported(Lack::SnapshotBitmaps))
            }
            Some(Ask::Create { .. } | Ask::Apply(_) | Ask::Delete(_)) => Ok(()),
        }
    }

    pub(super) fn start_snapshot(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.edit.as_deref().is_some_and(|edit| !edit.has_begun()), "it was planned");
        // nothing else is accepted, whatever it waits for
        self.jobs.edit();
        if let Some(edit) = self.edit.as_deref_mut() {
            edit.accept();
        }
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        if let Some(error) = self.refcounted.as_deref().and_then(|counted| counted.broken.clone()) {
            return Next::fail(error);
        }
        let held = self.health.is_held() && !self.keeps_what_is_stale();
        let waits = if held { self.may_change(a) } else { None };
        waits.unwrap_or_else(|| self.rest_for_snapshot(a))
    }

    /// Of the autoclear bits only that of bitmaps is to go before a change, and what the guest reads stays.
    fn keeps_what_is_stale(&self) -> bool {
        debug_assert!(self.edit.is_some(), "a snapshot was planned");
        let kept = |counted: &Refcounted| counted.header.stale_autoclear(RAW_DATA_FILE | BITMAPS) == 0;
        match self.edit.as_deref().and_then(Editing::ask) {
            // others go with the header that has the new directory: until then nothing else changes
            Some(Task::Bitmap(_) | Task::Store(_)) => self.health.is_stale(),
            Some(Task::Snapshot(Ask::Apply(_))) | None => false,
            Some(Task::Snapshot(Ask::Create { .. } | Ask::Delete(_))) => {
                self.health.is_stale() && self.refcounted.as_deref().is_some_and(kept)
            }
        }
    }

    /// All others have to end.
    pub(super) fn rest_for_snapshot(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.jobs.is_alone(), "nothing is accepted meanwhile");
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return Next::Join(Want::Clean);
        }
        self.requests.wait_for_others(a);
        Next::Wait
    }

    /// All that memory knows is in the file.
    pub(super) fn snapshot_rests(&mut self, a: AcbIndex) -> Next {
        if self.health.is_halted() {
            return Next::fail(Error::Poisoned);
        }
        self.leave_pipeline(a);
        // what is kept up is stored before it changes
        let stores = match self.edit.as_deref().and_then(Editing::ask) {
            Some(Task::Bitmap(_)) => self.stores(),
            _ => Vec::new(),
        };
        self.requests.set_state(a, State::Snapshot);
        let Some(edit) = self.edit.as_deref_mut() else {
            debug_assert!(false, "it was planned");
            return Next::Done;
        };
        edit.first(stores.into_iter());
        self.requests.wait_in(edit.waiter_mut(), a);
        self.outbox.due |= Due::JOB;
        Next::Wait
    }

    /// It begins when no I/O is in flight.
    pub(crate) fn snapshot_due(&mut self) {
        let Some(edit) = self.edit.as_deref() else { return };
        if edit.waiter().is_empty() || edit.is_working() {
            return;
        }
        if self.health.is_halted() {
            return self.end_snapshot(Err(Error::Poisoned));
        }
        debug_assert!(self.refcounts_settled(), "all of it is in the file");
        let dead = self.refcounted.as_deref().is_none_or(|counted| counted.quarantine.has_dead());
        if self.outbox.in_flight().next().is_some() || self.space.is_growing() {
            return;
        }
        if dead {
            // holes that are left to be punched, now that nobody is there
            self.outbox.due |= Due::PUNCH;
            return;
        }
        let (options, device) = (self.options, self.space.is_device());
        let (end, file_len) = (self.space.next(), self.space.file_len());
        let (Some(edit), Some(counted)) = (self.edit.as_deref_mut(), self.refcounted.as_deref()) else {
            return;
        };
        let before = Before { header: &counted.header, table: &counted.table, end, file_len, device };
        match edit.work(|task| Edit::new(task, &before, |rule| options.sabotaged(rule))) {
            true => self.edit_on(),
            false => self.end_snapshot(Ok(())),
        }
    }

    /// The next I/O of it, or its end.
    fn edit_on(&mut self) {
        let work = self.edit.as_deref_mut().and_then(Editing::edit_mut);
        debug_assert!(work.is_some(), "it works");
        let (Some(edit), Some(counted)) = (work, self.refcounted.as_deref()) else { return };
        match edit.turn(counted) {
            Turn::Io(op) => {
                let offset = match op {
                    IoOp::ReadTable { offset, .. } | IoOp::WriteTable { offset, .. } => offset,
                    _ => 0,
                };
                self.outbox.emit(Purpose::Snapshot, Op::Snapshot, offset, op);
            }
            Turn::Done(Ok(edited)) => {
                self.take_over(*edited);
                self.edit_more(Ok(()));
            }
            Turn::Done(Err(error)) => {
                self.abandon_snapshot();
                self.edit_more(Err(error));
            }
        }
    }

    /// An I/O of it ended.
    pub(crate) fn snapshot_answered(&mut self, outcome: Outcome<'_>, result: Result<(), Error>) {
        let halted = self.health.is_halted();
        let Some(edit) = self.edit.as_deref_mut().and_then(Editing::edit_mut) else {
            debug_assert!(false, "it works");
            return;
        };
        let error = match (result, outcome) {
            (Ok(()), Outcome::Table(bytes)) if !halted => {
                edit.answered(bytes);
                return self.edit_on();
            }
            (Ok(()), _) if !halted => {
                edit.answered(&[]);
                return self.edit_on();
            }
            (Ok(()), _) => Error::Poisoned,
            (Err(error), _) => error,
        };
        edit.failed();
        if edit.is_switching() && !halted {
            // the file has the old header or the new one
            self.poison_with(error.clone());
            return self.end_snapshot(Err(error));
        }
        if !halted {
            self.abandon_snapshot();
        }
        self.edit_more(Err(error));
    }

    /// A part of it ended. A bitmap that cannot be stored stays in use, and the others are stored.
    fn edit_more(&mut self, result: Result<(), Error>) {
        let Some(edit) = self.edit.as_deref_mut() else { return };
        edit.rest();
        match result {
            Err(error) if edit.ask().is_some() || self.health.is_halted() => self.end_snapshot(Err(error)),
            Ok(()) | Err(_) => self.outbox.due |= Due::JOB,
        }
    }

    pub(crate) fn encode_snapshot(&self, buf: &mut [u8]) {
        debug_assert!(self.edit.as_deref().is_some_and(Editing::is_working), "it works");
        if let Some(edit) = self.edit.as_deref().and_then(Editing::edit) {
            edit.encode(buf);
        }
    }

    /// What the file holds now becomes what memory knows.
    fn take_over(&mut self, edited: Edited) {
        let Edited { header, mut metadata, end, file_len, freed, directory } = edited;
        debug_assert!(self.tables.dirty == 0 && self.tables.young == 0, "all of it was in the file");
        self.layout = Layout::qcow2(&header);
        // until all of it is done it is what it was
        metadata.tracking = self.refcounted.as_deref_mut().and_then(|counted| counted.tracking.take());
        if let (Some(directory), Some(edit)) = (directory, self.edit.as_deref_mut()) {
            edit.directory = Some(directory);
        }
        self.size = header.guest_size();
        let start = self.layout.start(self.size, file_len, &self.options);
        self.space = start.space;
        self.tables = TableCache::new(self.tables.capacity(), start.slices).without(&self.options);
        let mut counted = Refcounted::new(header, metadata, self.space.end());
        if counted.metadata_end() <= end {
            self.space.begin_at(end);
        }
        self.dangling = Dangling::new(self.space.end());
        counted.unseen.end = self.space.used_end() >> counted.header.cluster_bits;
        for run in freed {
            counted.quarantine.bury(Uncounted::found(run));
        }
        self.health.renew(counted.is_stale());
        self.refcounted = Some(Box::new(counted));
        self.outbox.due |= Due::PUNCH | Due::SLOTS;
    }

    /// The image is what it was; but what is free may hold what was about to be.
    fn abandon_snapshot(&mut self) {
        let Some((file_len, _)) =
            self.edit.as_deref().and_then(Editing::edit).map(crate::snapshots::Edit::reached)
        else {
            return;
        };
        let end = self.space.next();
        self.space = self.layout.start(self.size, file_len, &self.options).space;
        self.space.begin_at(end);
        debug_assert!(self.space.next() == end || file_len <= end, "what is in use is as before");
        let used = self.space.used_end();
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.quarantine = Quarantine::default();
            (counted.unseen.next, counted.unseen.end) = (0, used >> counted.header.cluster_bits);
            let l1 = counted.header.l1_offset + u64::from(counted.header.l1_entries) * 8;
            if counted.header.l1_entries > 0 {
                self.space.reach(l1);
            }
        }
    }

    fn end_snapshot(&mut self, result: Result<(), Error>) {
        let Some(mut waiter) = self.edit.as_deref_mut().map(Editing::end) else { return };
        debug_assert!(!waiter.is_empty(), "its acb waits for it");
        self.track_again();
        if let Err(error) = result {
            // what contradicts the format ends all changes, whoever has met it; bitmaps no guest sees
            let edit = self.edit.as_deref();
            let bitmap = edit.is_some_and(|edit| !matches!(edit.ask(), Some(Task::Snapshot(_))));
            let told = match bitmap {
                true => error,
                false => match self.fail_lookup(Box::new(error)) {
                    Next::Fail(error) => *error,
                    _ => Error::Poisoned,
                },
            };
            self.requests.fail_all(&waiter, &told);
        }
        self.requests.wake(&mut waiter);
    }

    /// The request has ended, well or not.
    pub(super) fn snapshot_ended(&mut self) {
        debug_assert!(self.edit.is_some(), "it was planned");
        self.edit = None;
        self.jobs.end_edit();
    }
}
