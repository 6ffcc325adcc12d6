//! The pool of threads that decompress, where there is a descriptor that can wake the event loop.
//!
//! Knows: streams and the memory they move between, the backend's notification descriptor. Must never know:
//! disks, wants, threads (those are [`quod_backend::pool`]'s).
//!
//! Invariant: every task that was sent is taken once, finished, whatever its bytes do to the decoder, or is
//! dropped unstarted with the pool.

use super::inflate::{Decoders, Progress, Stream};
use super::work::Work;
use crate::memory::buffers;
use quod_backend::Segment;
use quod_backend::pool::{Crew, Pool, Worker};
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

/// Decompresses whole clusters.
#[derive(Default)]
struct Inflater {
    decoders: Decoders,
}

impl Worker for Inflater {
    type Task = StreamTask;
    type Answer = StreamTask;
    const NAME: &'static str = "quod-unzip";
    const STACK: usize = 512 << 10;
    // they keep processors busy while there are clusters: the loop, which has hits to answer, goes first
    const NICE: i32 = 10;

    fn perform(&mut self, mut task: StreamTask) -> StreamTask {
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
    pool: Pool<Inflater>,
    /// Empty: its memory serves again.
    sending: Vec<StreamTask>,
    /// What was collected, until it is taken; the first to finish is the last.
    collected: Vec<StreamTask>,
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

    pub(super) fn send(&mut self, task: StreamTask) {
        self.sending.push(task);
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
    pub(super) fn next(&mut self) -> Option<StreamTask> {
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
