//! Jobs on the whole image: which one runs, how far it is, and what it admits beside it.
//!
//! Knows: steps, the L1 table on its way. Must never know: what a step does (`image/job/`).
//!
//! Invariants:
//! * one change of size at a time, or of all that the image holds; a close may come while a disk grows, and
//!   waits for it;
//! * nothing is accepted beside a job that has to be alone, and nothing at all once a close was.

use super::request::{Refused, RequestKind};
use crate::base::queue::Queue;
use crate::base::span::Span;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What a job is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    /// Nothing new is accepted, and the file is left in order.
    Close,
    /// The guest disk gets another size, bytes.
    Resize { size: u64 },
    /// A snapshot is made, applied or deleted.
    Snapshot,
    /// The image holds nothing of the disk any more.
    Empty,
}

impl Job {
    /// The job that a request of this kind asks for.
    pub(crate) const fn of(kind: RequestKind) -> Option<Job> {
        let job = match kind {
            RequestKind::Close => Some(Job::Close),
            RequestKind::Resize { size } => Some(Job::Resize { size }),
            RequestKind::Snapshot => Some(Job::Snapshot),
            RequestKind::Empty => Some(Job::Empty),
            RequestKind::Read | RequestKind::Write | RequestKind::WriteCompressed => None,
            RequestKind::WriteZeroes | RequestKind::Discard => None,
            RequestKind::Flush | RequestKind::Map | RequestKind::Quiesce => None,
        };
        debug_assert!(job.is_some() == kind.is_job(), "the two say the same");
        job
    }
}

/// How far a change of size has got (qcow2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Resizing {
    /// All that was written is made durable; then the L1 table moves.
    Settle,
    /// Space for the new L1 table.
    Place,
    Copy(Copying),
    /// The new table is made durable: this one.
    CopySync(Span),
    /// The header leads to it: the old one.
    Switch(Span),
    /// What lies behind the disk, where it grows to, is given up: a VM state is no disk.
    Behind,
    /// What comes to light or goes.
    Range,
    /// That is made durable.
    RangeSync,
    /// The header with the new size.
    Size,
}

impl Resizing {
    /// The L1 table moves.
    const fn moves_table(&self) -> bool {
        match self {
            Resizing::Settle | Resizing::Place | Resizing::Copy(_) => true,
            Resizing::CopySync(_) | Resizing::Switch(_) => true,
            Resizing::Behind | Resizing::Range | Resizing::RangeSync | Resizing::Size => false,
        }
    }
}

/// How far an image is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Emptying {
    /// Clusters are given up (qcow2, which counts them).
    Entries,
    /// Tables are given up, from that of this L1 entry on.
    Tables(u64),
    /// That is made durable.
    Sync,
    /// What the cache knows of them is forgotten.
    Forget,
}

/// The L1 table on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Copying {
    pub(crate) to: u64,
    pub(crate) bytes: u64,
    pub(crate) done: u64,
    pub(crate) chunk: Vec<u8>,
    pub(crate) waiter: Queue,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Jobs {
    closing: bool,
    resizing: Option<Resizing>,
    /// A snapshot is made, applied or deleted.
    editing: bool,
    emptying: Option<Emptying>,
    /// Nothing is accepted until it is done.
    exclusive: bool,
    /// What a device said when its length was last asked for.
    told: u64,
}

impl Jobs {
    /// A job refuses something: the common case at one glance.
    #[inline]
    pub(crate) const fn refuse(&self) -> bool {
        debug_assert!(!self.exclusive || self.runs(), "what is alone runs");
        self.closing || self.exclusive
    }

    const fn runs(&self) -> bool {
        debug_assert!(!self.editing || self.exclusive, "a snapshot is made alone");
        debug_assert!(self.resizing.is_none() || self.emptying.is_none(), "one at a time was admitted");
        self.resizing.is_some() || self.editing || self.emptying.is_some()
    }

    /// Work on a snapshot begins, beside nothing else.
    pub(crate) const fn edit(&mut self) {
        debug_assert!(!self.exclusive && !self.closing, "nothing that is alone runs");
        (self.editing, self.exclusive) = (true, true);
    }

    /// It has ended, well or not.
    pub(crate) const fn end_edit(&mut self) {
        debug_assert!(self.editing, "it has begun");
        (self.editing, self.exclusive) = (false, false);
    }

    /// Is a request of this kind taken beside what runs? `alone`: the rule that a job may be alone holds.
    pub(crate) fn admits(&self, kind: RequestKind, alone: bool) -> Result<(), Refused> {
        debug_assert!(!self.closing, "nothing is accepted any more");
        match kind {
            _ if self.exclusive && alone => Err(Refused::Busy),
            // with the tables that it moves, or takes from
            RequestKind::Resize { .. } | RequestKind::Empty | RequestKind::Snapshot if self.runs() => {
                Err(Refused::Busy)
            }
            _ => Ok(()),
        }
    }

    /// Nothing new is accepted from now on.
    pub(crate) fn close(&mut self) {
        debug_assert!(!self.closing, "one close was admitted");
        self.closing = true;
    }

    pub(crate) const fn is_closing(&self) -> bool {
        self.closing
    }

    /// The device has told its length.
    pub(crate) fn tell_length(&mut self, len: u64) {
        self.told = len;
    }

    pub(crate) const fn told_length(&self) -> u64 {
        self.told
    }

    /// A change of size begins; `alone`: beside nothing else.
    pub(crate) fn resize(&mut self, first: Resizing, alone: bool) {
        debug_assert!(!self.exclusive);
        debug_assert!(!self.runs(), "one at a time was admitted");
        (self.resizing, self.exclusive) = (Some(first), alone);
        debug_assert!(!self.closing, "nothing begins once a close was accepted");
    }

    /// The image is emptied, beside nothing else.
    pub(crate) fn empty(&mut self, first: Emptying) {
        debug_assert!(!self.runs() && !self.exclusive, "one at a time was admitted");
        (self.emptying, self.exclusive) = (Some(first), true);
        debug_assert!(!self.closing, "nothing begins once a close was accepted");
    }

    pub(crate) const fn emptying(&self) -> Option<Emptying> {
        debug_assert!(self.emptying.is_none() || self.exclusive, "it runs alone");
        self.emptying
    }

    /// The next step of that.
    pub(crate) fn next_emptying(&mut self, step: Emptying) {
        debug_assert!(self.emptying.is_some() && step != Emptying::Entries, "that is the first step");
        self.emptying = Some(step);
    }

    /// It has ended, well or not.
    pub(crate) fn end_emptying(&mut self) {
        debug_assert!(self.resizing.is_none(), "it ran alone");
        (self.emptying, self.exclusive) = (None, false);
    }

    pub(crate) const fn is_alone(&self) -> bool {
        debug_assert!(!self.exclusive || self.runs(), "what is alone runs");
        self.exclusive
    }

    pub(crate) const fn resizing(&self) -> Option<&Resizing> {
        self.resizing.as_ref()
    }

    /// The next step of the change of size.
    pub(crate) fn next(&mut self, step: Resizing) {
        debug_assert!(!matches!(step, Resizing::Settle), "that is the first step");
        debug_assert!(self.exclusive || !step.moves_table(), "a table moves alone");
        self.resizing = Some(step);
    }

    /// The step that has been done.
    pub(crate) const fn take(&mut self) -> Option<Resizing> {
        self.resizing.take()
    }

    /// The L1 table on its way, if it is.
    pub(crate) const fn copying(&mut self) -> Option<&mut Copying> {
        match &mut self.resizing {
            Some(Resizing::Copy(copying)) => Some(copying),
            _ => None,
        }
    }

    pub(crate) const fn copying_ref(&self) -> Option<&Copying> {
        match &self.resizing {
            Some(Resizing::Copy(copying)) => {
                debug_assert!(copying.done <= copying.bytes, "no more than the new table is written");
                Some(copying)
            }
            _ => None,
        }
    }

    /// The acb that waits for it.
    pub(crate) fn waiters(&self) -> Option<&Queue> {
        self.copying_ref().map(|copying| &copying.waiter)
    }

    /// The change of size has ended, well or not.
    pub(crate) fn end_resize(&mut self) {
        debug_assert!(
            self.copying_ref().is_none_or(|copying| copying.waiter.is_empty()),
            "it has its answer"
        );
        // a growing QED disk is none of these, and may end while the image is emptied
        (self.resizing, self.exclusive) = (None, self.emptying.is_some() || self.editing);
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.resizing {
            Some(Resizing::Copy(copying)) if copying.done > copying.bytes => {
                Err(format!("{} bytes of an L1 table of {} are copied", copying.done, copying.bytes))
            }
            Some(step) if step.moves_table() && !self.exclusive => {
                Err(format!("a table moves, and others are accepted: {step:?}"))
            }
            None if self.exclusive && !self.editing && self.emptying.is_none() => {
                Err(String::from("nothing runs, and is alone"))
            }
            _ if self.emptying.is_some() && !self.exclusive => {
                Err(String::from("the image is emptied, and others are accepted"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_admits_what_may_run_beside_it() {
        let mut jobs = Jobs::default();
        assert!(!jobs.refuse() && jobs.admits(RequestKind::Resize { size: 512 }, true).is_ok());
        jobs.resize(Resizing::Range, false);
        assert_eq!(jobs.admits(RequestKind::Write, true), Ok(()));
        assert_eq!(jobs.admits(RequestKind::Resize { size: 512 }, true), Err(Refused::Busy));
        jobs.end_resize();
        jobs.resize(Resizing::Settle, true);
        assert_eq!(jobs.admits(RequestKind::Read, true), Err(Refused::Busy));
        assert_eq!(jobs.admits(RequestKind::Read, false), Ok(()), "where the rule is removed");
        jobs.end_resize();
        jobs.empty(Emptying::Entries);
        assert_eq!(jobs.admits(RequestKind::Flush, true), Err(Refused::Busy));
        assert_eq!(jobs.admits(RequestKind::Empty, false), Err(Refused::Busy));
        // a QED disk that grew beside it has its size
        jobs.end_resize();
        assert!(jobs.is_alone());
        jobs.exclusive = false;
        assert_eq!(jobs.check(), Err(String::from("the image is emptied, and others are accepted")));
        jobs.end_emptying();
        assert_eq!(jobs.check(), Ok(()));
        jobs.close();
        assert!(jobs.refuse() && jobs.is_closing());
    }

    #[test]
    fn the_check_sees_more_copied_than_there_is() {
        let mut jobs = Jobs::default();
        let copying = Copying { to: 0, bytes: 512, done: 512, chunk: Vec::new(), waiter: Queue::new() };
        jobs.resize(Resizing::Copy(copying), true);
        assert_eq!(jobs.check(), Ok(()));
        jobs.copying().unwrap().done = 1024;
        assert_eq!(jobs.check(), Err(String::from("1024 bytes of an L1 table of 512 are copied")));
    }

    #[test]
    fn the_check_sees_a_table_that_does_not_move_alone() {
        let mut jobs = Jobs::default();
        jobs.resize(Resizing::Settle, false);
        assert!(jobs.check().is_err_and(|said| said.starts_with("a table moves, and others are accepted")));
        jobs.resizing = Some(Resizing::Range);
        assert_eq!(jobs.check(), Ok(()));
        (jobs.resizing, jobs.exclusive) = (None, true);
        assert_eq!(jobs.check(), Err(String::from("nothing runs, and is alone")));
    }
}
