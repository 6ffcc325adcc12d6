//! Worker threads that decompress, where there is a descriptor that can wake the event loop.
//!
//! Knows: streams and the memory they move between, the backend's notification descriptor. Must never know:
//! disks, wants.
//!
//! Invariants:
//! * every task that was sent is collected once, finished, whatever its bytes do to the decoder;
//! * a finished task is announced through the descriptor, unless one that nobody collected was announced
//!   before it;
//! * after the drop no worker touches any memory: tasks not started are dropped, those running are waited
//!   for.

use super::inflate::{Decoders, Progress, Stream};
use crate::memory::buffers;
use mio::unix::SourceFd;
use quod_backend::Segment;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// One cluster to decompress. The tag comes back as it is, and holds what keeps the input.
#[derive(Debug)]
pub(super) struct Task<T> {
    pub(super) stream: Stream,
    /// Memory that nobody writes to and that stays valid until the task is collected or the pool dropped.
    pub(super) input: Segment,
    /// Reused memory, of any length; `size` bytes when finished.
    pub(super) contents: Vec<u8>,
    pub(super) size: usize,
    pub(super) progress: Progress,
    pub(super) tag: T,
}

struct Queue<T> {
    tasks: VecDeque<Task<T>>,
    /// Workers that sleep.
    idle: usize,
    stop: bool,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    ready: Condvar,
    finished: Mutex<Vec<Task<T>>>,
    /// `finished` is not empty: lets the owner look without taking the lock.
    any: AtomicBool,
    notify: File,
}

/// A panic while a lock is held cannot leave these queues half changed: poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Pool<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
    most: usize,
    /// A task was sent while every worker was busy.
    short: bool,
    /// Sent and not collected.
    out: usize,
    /// What was collected, until it is taken.
    collected: Vec<Task<T>>,
    /// For those who sleep in the driver; made when first used.
    poll: Option<(mio::Poll, mio::Events)>,
}

impl<T: Send + 'static> Pool<T> {
    /// One worker now, and more while those there are busy: as many as the host has processors, at most
    /// `most`. `notify` is an eventfd.
    pub(super) fn new(notify: BorrowedFd<'_>, most: usize) -> io::Result<Pool<T>> {
        let most = std::thread::available_parallelism().map_or(1, usize::from).min(most);
        let queue = Queue { tasks: VecDeque::new(), idle: 0, stop: false };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            ready: Condvar::new(),
            finished: Mutex::default(),
            any: AtomicBool::new(false),
            notify: File::from(notify.try_clone_to_owned()?),
        });
        let workers = Vec::with_capacity(most);
        let mut pool =
            Pool { shared, workers, most, short: false, out: 0, collected: Vec::new(), poll: None };
        pool.start()?;
        Ok(pool)
    }

    fn start(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name(format!("quod-unzip-{}", self.workers.len()));
        let builder = builder.stack_size(512 << 10);
        self.workers.push(builder.spawn(move || work(&shared))?);
        Ok(())
    }

    pub(super) fn send(&mut self, task: Task<T>) {
        self.out += 1;
        let mut queue = lock(&self.shared.queue);
        queue.tasks.push_back(task);
        let wake = queue.idle > 0;
        drop(queue);
        if wake {
            self.shared.ready.notify_one();
        } else {
            self.short = true;
        }
    }

    /// One more worker, if there were too few. Starting one takes long: not more than one a turn.
    pub(super) fn reinforce(&mut self) {
        let short = std::mem::take(&mut self.short);
        if short && self.workers.len() < self.most && self.start().is_err() {
            // those there are will do
            self.most = self.workers.len();
        }
    }

    /// Something that was sent was not collected.
    pub(super) fn is_busy(&self) -> bool {
        self.out > 0
    }

    /// The next finished task.
    pub(super) fn next(&mut self) -> Option<Task<T>> {
        if self.collected.is_empty() && self.shared.any.load(Ordering::Acquire) {
            let mut finished = lock(&self.shared.finished);
            self.shared.any.store(false, Ordering::Release);
            std::mem::swap(&mut *finished, &mut self.collected);
            drop(finished);
            // the first to finish is taken first
            self.collected.reverse();
        }
        let task = self.collected.pop()?;
        self.out -= 1;
        Some(task)
    }

    /// Sleeps until the descriptor was written to: something finished, here or in the backend.
    pub(super) fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let (poll, events) = match &mut self.poll {
            Some(poll) => poll,
            none => {
                let poll = mio::Poll::new()?;
                let notify = self.shared.notify.as_raw_fd();
                poll.registry().register(&mut SourceFd(&notify), mio::Token(0), mio::Interest::READABLE)?;
                none.insert((poll, mio::Events::with_capacity(1)))
            }
        };
        match poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        queue.tasks.clear();
        drop(queue);
        self.shared.ready.notify_all();
        for worker in self.workers.drain(..) {
            // a worker that panicked touches nothing any more
            let _ = worker.join();
        }
    }
}

fn next_task<T>(shared: &Shared<T>) -> Option<Task<T>> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.stop {
            return None;
        }
        if let Some(task) = queue.tasks.pop_front() {
            return Some(task);
        }
        queue.idle += 1;
        queue = shared.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
    }
}

fn work<T>(shared: &Shared<T>) {
    let mut decoders = Decoders::default();
    while let Some(mut task) = next_task(shared) {
        let run = || {
            let Task { stream, input, contents, size, tag, .. } = &mut task;
            contents.resize(*size, 0);
            let input = buffers::view(tag, *input, stream.end());
            stream.run(&mut decoders, input, contents)
        };
        // a bug of a decoder must not leave a guest's read without an answer
        task.progress = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            decoders = Decoders::default();
            Progress::Broken
        });
        let mut finished = lock(&shared.finished);
        let first = finished.is_empty();
        finished.push(task);
        shared.any.store(true, Ordering::Release);
        drop(finished);
        // those that follow before the owner looks are announced by the first
        if first {
            // a counter that is full already is readable, so failure does not matter
            let _ = (&shared.notify).write(&1u64.to_ne_bytes());
        }
    }
}
