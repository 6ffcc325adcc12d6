//! The pool of threads that compress and decompress, where there is a descriptor that can wake the event
//! loop.
//!
//! Knows: streams, encoders and the memory they move between, the backend's notification descriptor. Must
//! never know: disks, wants, threads (those are [`quod_backend::pool`]'s).
//!
//! Invariant: every task that was sent is taken once, finished, whatever its bytes do to the codec, or is
//! dropped unstarted with the pool.

use super::inflate::{Decoders, Progress, Stream};
use super::pack::Encoders;
use super::work::{PackWork, Work};
use crate::layer::packs::Method;
use crate::memory::buffers;
use quod_backend::pool::{Crew, Pool, Worker};
use quod_backend::{Segment, Segments};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// One cluster to decompress.
#[derive(Debug)]
pub(super) struct StreamTask {
    pub(super) stream: Stream,
    /// Memory that nobody writes to and that stays valid until the task is taken or the pool dropped.
    pub(super) input: Segment,
    /// Reused memory, of any length; `size` bytes when finished.
    pub(super) contents: Vec<u8>,
    pub(super) size: usize,
    pub(super) progress: Progress,
    /// Comes back as it is; holds what keeps the input.
    pub(super) work: Work,
}

/// One cluster to compress.
#[derive(Debug)]
pub(super) struct PackTask {
    pub(super) method: Method,
    /// A guest's memory, which stays valid until the task is taken or the pool dropped, and which a guest may
    /// write to: each byte of it is looked at once. Zeros follow, to `size` bytes.
    pub(super) input: Segments,
    pub(super) size: usize,
    /// Room for the cluster, with nobody else in it.
    pub(super) output: Segment,
    /// So many bytes of it were made; None: they would not be fewer.
    pub(super) made: Option<u32>,
    /// Comes back as it is; holds what keeps the output.
    pub(super) work: PackWork,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Task {
    Inflate(StreamTask),
    Pack(PackTask),
}

impl From<StreamTask> for Task {
    fn from(task: StreamTask) -> Task {
        Task::Inflate(task)
    }
}

impl From<PackTask> for Task {
    fn from(task: PackTask) -> Task {
        Task::Pack(task)
    }
}

/// Compresses and decompresses whole clusters.
#[derive(Default)]
struct Codec {
    decoders: Decoders,
    encoders: Encoders,
    /// A cluster as the guest has it, and what it becomes.
    scratch: [Vec<u8>; 2],
}

impl Worker for Codec {
    type Task = Task;
    type Answer = Task;
    const NAME: &'static str = "quod-unzip";
    const STACK: usize = 512 << 10;
    // they keep processors busy while there are clusters: the loop, which has hits to answer, goes first
    const NICE: i32 = 10;

    fn perform(&mut self, task: Task) -> Task {
        match task {
            Task::Inflate(task) => self.inflate(task).into(),
            Task::Pack(task) => self.pack(task).into(),
        }
    }
}

impl Codec {
    fn pack(&mut self, mut task: PackTask) -> PackTask {
        let Codec { encoders, scratch: [from, to], .. } = self;
        let run = || {
            from.resize(task.size, 0);
            let len = buffers::gather(&task.input, from);
            from[len..].fill(0);
            // a byte less than a cluster, or it is not shorter
            to.resize(task.size - 1, 0);
            let made = encoders.whole(task.method, from, to)?;
            buffers::scatter(to.get(..made)?, &[task.output]);
            u32::try_from(made).ok()
        };
        // a bug of an encoder must not leave a guest's write without an answer
        task.made = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            self.encoders = Encoders::default();
            None
        });
        task
    }

    fn inflate(&mut self, mut task: StreamTask) -> StreamTask {
        let decoders = &mut self.decoders;
        let run = || {
            let StreamTask { stream, input, contents, size, work, .. } = &mut task;
            contents.resize(*size, 0);
            let input = buffers::view(work, *input, stream.end());
            stream.run(decoders, input, contents)
        };
        // a bug of a decoder must not leave a guest's read without an answer
        task.progress = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            self.decoders = Decoders::default();
            Progress::Broken
        });
        task
    }
}

/// See the module's header.
pub(super) struct Workers {
    pool: Pool<Codec>,
    /// Empty: its memory serves again.
    sending: Vec<Task>,
    /// What was collected, until it is taken; the first to finish is the last.
    collected: Vec<Task>,
}

impl Workers {
    /// One now, and more while those there are busy: as many as the host has processors, at most `most`.
    pub(super) fn new(notify: BorrowedFd<'_>, crew: Crew) -> io::Result<Workers> {
        let most = std::thread::available_parallelism().map_or(1, usize::from).min(crew.most);
        Ok(Workers {
            pool: Pool::new(notify, Crew { most, ..crew })?,
            sending: Vec::new(),
            collected: Vec::new(),
        })
    }

    pub(super) fn send(&mut self, task: impl Into<Task>) {
        self.sending.push(task.into());
        self.pool.submit(&mut self.sending);
    }

    /// One more, if there were too few.
    pub(super) fn reinforce(&mut self) {
        self.pool.reinforce();
    }

    /// Something that was sent was not taken.
    pub(super) fn is_busy(&self) -> bool {
        self.pool.is_busy() || !self.collected.is_empty()
    }

    /// The next finished task.
    pub(super) fn next(&mut self) -> Option<Task> {
        if self.collected.is_empty() {
            self.pool.collect(&mut self.collected);
            self.collected.reverse();
        }
        self.collected.pop()
    }

    /// Sleeps until the descriptor was written to: something finished, here or in the backend.
    pub(super) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.pool.sleep(timeout)
    }
}

#[cfg(test)]
mod tests;
