//! The pool of threads that make blocking system calls: all of `threads`, and the few things that a ring
//! cannot do.
//!
//! Knows: tasks by number. Must never know: tokens, capacity, threads (those are [`crate::pool`]'s).

use super::{SysOutcome, SysTask, perform};
use crate::op::Errno;
use crate::pool::Worker;

/// A task and the number that comes back with its result.
pub(crate) struct SysJob {
    pub(crate) id: u64,
    pub(crate) task: SysTask,
}

/// A job's result.
pub(crate) struct Finished {
    pub(crate) id: u64,
    pub(crate) result: Result<SysOutcome, Errno>,
}

/// Makes system calls.
#[derive(Default)]
pub(crate) struct Caller;

impl Worker for Caller {
    type Task = SysJob;
    type Answer = Finished;
    const NAME: &'static str = "quod-io";
    const STACK: usize = 256 << 10;

    fn perform(&mut self, SysJob { id, task }: SysJob) -> Finished {
        Finished { id, result: perform(task) }
    }
}

pub(crate) type SysPool = crate::pool::Pool<Caller>;
