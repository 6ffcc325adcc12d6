//! Jobs on the whole image: what the general paths ask of them, answered by the one that runs.
//!
//! Knows: which jobs there are. Must never know: the steps of one (`close.rs`, `resize.rs`, `snapshot.rs`,
//! `empty.rs`).

mod close;
mod empty;
mod move_l1;
mod resize;
mod snapshot;
mod store;

use super::next::Next;
use super::value::Image;
use crate::acb::job::{Emptying, Job, Resizing};
use crate::acb::{AcbIndex, Want};
use crate::tables::mapping::Run;

impl Image {
    /// Whose steps the acb takes.
    fn job(&self, a: AcbIndex) -> Job {
        // cannot fail: the general paths send nothing else here
        Job::of(self.requests.acb(a).kind).expect("a job")
    }

    /// The new size, where a close never comes.
    fn new_size(&self, a: AcbIndex) -> u64 {
        match self.job(a) {
            Job::Resize { size } => size,
            Job::Close | Job::Snapshot | Job::Empty => {
                unreachable!("the disk keeps its size, or gets a snapshot's")
            }
        }
    }

    /// Its first step.
    pub(super) fn start_job(&mut self, a: AcbIndex) -> Next {
        debug_assert!(!self.jobs.is_closing(), "nothing begins once a close was accepted");
        match self.job(a) {
            Job::Close => self.start_close(a),
            Job::Resize { size } => self.start_resize(a, size),
            Job::Snapshot => self.start_snapshot(a),
            Job::Empty => self.start_empty(a),
        }
    }

    /// It may change the image now.
    pub(super) fn job_may_change(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.health.is_clear(), "the autoclear bits are gone");
        match self.job(a) {
            Job::Snapshot => self.rest_for_snapshot(a),
            Job::Empty => self.empty(a),
            Job::Close | Job::Resize { .. } => self.resize(a, self.new_size(a)),
        }
    }

    /// It is the only request.
    pub(super) fn job_alone(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.len(), 1, "the others have ended");
        match self.job(a) {
            Job::Close => self.close_alone(),
            Job::Resize { .. } => Next::Look,
            Job::Snapshot => Next::Join(Want::Clean),
            Job::Empty => self.empty_alone(a),
        }
    }

    /// A run of its range.
    pub(super) fn job_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        if self.jobs.emptying() == Some(Emptying::Entries) {
            return self.drop_run(a, run, slot);
        }
        debug_assert!(self.jobs.resizing() == Some(&Resizing::Range), "no other step has a range");
        self.resize_run(a, self.new_size(a), run, slot)
    }

    /// Its range is done.
    pub(super) fn job_range_done(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.acb(a).pos, self.requests.acb(a).end, "nothing of it is left");
        match self.job(a) {
            Job::Empty => self.range_emptied(a),
            Job::Close | Job::Snapshot | Job::Resize { .. } => self.range_resized(a, self.new_size(a)),
        }
    }

    /// What it wrote is durable, or all is in order.
    pub(super) fn job_committed(&mut self, a: AcbIndex) -> Next {
        let durable = |window| window <= self.commit.windows.tables_durable();
        debug_assert!(durable(self.requests.acb(a).commit.window), "it was told so");
        match self.job(a) {
            Job::Close => self.store_or_trim(a),
            Job::Resize { size } => self.size_durable(a, size),
            Job::Snapshot => self.snapshot_rests(a),
            Job::Empty => self.emptied_durably(a),
        }
    }

    /// `Resize`: the file has its new length.
    pub(super) fn length_set(&mut self, a: AcbIndex) -> Next {
        match self.job(a) {
            Job::Close => self.closed(a),
            Job::Resize { size } => self.resized(a, size),
            Job::Snapshot => unreachable!("no length is set for one"),
            Job::Empty => unreachable!("it sets no length by itself"),
        }
    }

    /// It has ended, well or not.
    pub(super) fn job_ended(&mut self, job: Job) {
        match job {
            Job::Resize { .. } => self.resize_ended(),
            Job::Snapshot => self.snapshot_ended(),
            Job::Empty => self.jobs.end_emptying(),
            Job::Close => debug_assert!(self.jobs.is_closing(), "it was accepted"),
        }
    }
}
