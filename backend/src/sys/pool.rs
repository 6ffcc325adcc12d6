//! Worker threads that do blocking tasks: all of `threads`, and the few things that a ring cannot do.
//!
//! Knows: tasks by number, an eventfd. Must never know: tokens, capacity (its owner bounds what is queued).
//! Invariants: every queued task finishes exactly once, or is dropped unstarted when the pool is dropped;
//! after the drop no worker touches memory of any task.

use super::call::block_signals;
use super::event::EventFd;
use super::{Outcome, Task, perform};
use crate::op::Errno;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

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

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    finished: Mutex<Vec<Finished>>,
    /// `finished` is not empty: lets the owner look without taking the lock.
    any: AtomicBool,
    event: Arc<EventFd>,
}

/// A panic while a lock is held cannot leave these queues half changed: poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn new(event: Arc<EventFd>, workers: usize) -> io::Result<Pool> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            finished: Mutex::default(),
            any: AtomicBool::new(false),
            event,
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(workers) };
        for n in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let name = format!("quod-io-{n}");
            let builder = std::thread::Builder::new().name(name).stack_size(256 << 10);
            pool.workers.push(builder.spawn(move || work(&shared))?);
        }
        Ok(pool)
    }

    /// Queues jobs; leaves `jobs` empty.
    pub(crate) fn submit(&self, jobs: &mut Vec<Job>) {
        let count = jobs.len();
        lock(&self.shared.queue).jobs.extend(jobs.drain(..));
        match count {
            0 => {}
            1 => self.shared.ready.notify_one(),
            _ => self.shared.ready.notify_all(),
        }
    }

    /// Something can be collected.
    pub(crate) fn has_finished(&self) -> bool {
        self.shared.any.load(Ordering::Acquire)
    }

    /// Takes what finished; `out` must be empty, and swaps its memory in.
    pub(crate) fn collect(&self, out: &mut Vec<Finished>) {
        debug_assert!(out.is_empty());
        if self.has_finished() {
            let mut finished = lock(&self.shared.finished);
            self.shared.any.store(false, Ordering::Release);
            std::mem::swap(&mut *finished, out);
        }
    }
}

impl Pool {
    /// Drops what was not started, waits for what was.
    pub(crate) fn stop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        queue.jobs.clear();
        drop(queue);
        self.shared.ready.notify_all();
        for worker in self.workers.drain(..) {
            // a worker that panicked touches nothing any more
            let _ = worker.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.stop {
            return None;
        }
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        queue = shared.ready.wait(queue).unwrap_or_else(|e| e.into_inner());
    }
}

fn work(shared: &Shared) {
    block_signals();
    while let Some(Job { id, task }) = next_job(shared) {
        let result = perform(task);
        let mut finished = lock(&shared.finished);
        let first = finished.is_empty();
        finished.push(Finished { id, result });
        shared.any.store(true, Ordering::Release);
        drop(finished);
        // those that follow before the owner looks are announced by the first
        if first {
            shared.event.signal();
        }
    }
}
