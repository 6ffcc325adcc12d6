//! The pool of those who make blocking system calls: all of `threads`, and the few things that a ring cannot
//! do.
//!
//! Knows: tasks by number. Must never know: tokens, capacity, threads (those are [`crate::pool`]'s).

use super::{Outcome, Task, perform};
use crate::op::Errno;
use crate::pool::Worker;

/// A task and the number that comes back with its result.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) task: Task,
}

/// A job's result.
pub(crate) struct Finished {
    pub(crate) id: u64,
    pub(crate) result: Result<Outcome, Errno>,
}

/// Makes system calls.
#[derive(Default)]
pub(crate) struct Caller;

impl Worker for Caller {
    type Task = Job;
    type Answer = Finished;
    const NAME: &'static str = "quod-io";
    const STACK: usize = 256 << 10;

    fn perform(&mut self, Job { id, task }: Job) -> Finished {
        Finished { id, result: perform(task) }
    }
}

pub(crate) type Pool = crate::pool::Pool<Caller>;
