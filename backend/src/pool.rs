//! Worker threads for what would hold the caller's thread too long: blocking system calls, calculations. One
//! shape for all of them, the backends' and the driver's.
//!
//! Knows: tasks and answers as they are, an eventfd. Must never know: what a task does, how many there may be
//! (its owner bounds what is queued).
//!
//! Invariants:
//! * every submitted task is collected once, done, or is dropped unstarted with the pool;
//! * an answer is announced through the descriptor, unless one that nobody has collected was announced before
//!   it;
//! * there are never more threads than the pool was made for; no signal is delivered to them; they have ended
//!   when the pool was dropped, and touch no memory of any task afterwards.

use crate::cpus::CpuSet;
use crate::sys::event::EventFd;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What one thread of a pool has and does.
pub trait Worker: Default + 'static {
    /// What it is given.
    type Task: Send + 'static;
    /// What it makes of it.
    type Answer: Send + 'static;
    /// What its thread is called, before its number.
    const NAME: &'static str;
    /// Bytes of its thread's stack.
    const STACK: usize;
    /// How much nicer than the thread that starts it, as of nice(2): 0 is as important, 19 leaves all others
    /// in front.
    const NICE: i32 = 0;

    /// Does one task. A panic ends the thread, and the task has no answer.
    fn perform(&mut self, task: Self::Task) -> Self::Answer;
}

/// How many threads a pool has, and where they run.
#[derive(Clone, Copy, Debug)]
pub struct Crew {
    /// At once; at least one.
    pub first: usize,
    /// At last, by [`Pool::reinforce`].
    pub most: usize,
    /// None: anywhere. Processors that the host has not, or does not give to us, are no error: anywhere, too.
    pub cpus: Option<CpuSet>,
}

struct Queue<T> {
    tasks: VecDeque<T>,
    /// Workers that sleep.
    idle: usize,
    stop: bool,
}

struct Shared<W: Worker> {
    queue: Mutex<Queue<W::Task>>,
    ready: Condvar,
    answers: Mutex<Vec<W::Answer>>,
    /// `answers` is not empty: lets the owner look without taking the lock.
    any: AtomicBool,
    event: Arc<EventFd>,
}

/// A panic while a lock is held cannot leave these queues half changed: poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool.
pub struct Pool<W: Worker> {
    shared: Arc<Shared<W>>,
    workers: Vec<JoinHandle<()>>,
    most: usize,
    cpus: Option<CpuSet>,
    /// Tasks were submitted while every worker was busy.
    short: bool,
    /// Submitted and not collected.
    out: usize,
}

impl<W: Worker> Pool<W> {
    /// `notify` is an eventfd: it becomes readable when there is an answer.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated, or a thread cannot be started.
    pub fn new(notify: BorrowedFd<'_>, crew: Crew) -> io::Result<Pool<W>> {
        Pool::with_event(Arc::new(EventFd::from(notify.try_clone_to_owned()?)), crew)
    }

    pub(crate) fn with_event(event: Arc<EventFd>, crew: Crew) -> io::Result<Pool<W>> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { tasks: VecDeque::new(), idle: 0, stop: false }),
            ready: Condvar::new(),
            answers: Mutex::default(),
            any: AtomicBool::new(false),
            event,
        });
        let Crew { first, most, cpus } = crew;
        let (most, workers) = (most.max(1), Vec::with_capacity(most.max(1)));
        let mut pool = Pool { shared, workers, most, cpus, short: false, out: 0 };
        for _ in 0..first.clamp(1, most) {
            pool.start()?;
        }
        Ok(pool)
    }

    fn start(&mut self) -> io::Result<()> {
        debug_assert!(self.workers.len() < self.most);
        let (shared, cpus) = (Arc::clone(&self.shared), self.cpus);
        let builder = std::thread::Builder::new().name(format!("{}-{}", W::NAME, self.workers.len()));
        let builder = builder.stack_size(W::STACK);
        self.workers.push(without_signals(|| builder.spawn(move || work(&shared, cpus)))?);
        Ok(())
    }

    /// Queues tasks; leaves `tasks` empty.
    pub fn submit(&mut self, tasks: &mut Vec<W::Task>) {
        let count = tasks.len();
        self.out += count;
        let mut queue = lock(&self.shared.queue);
        queue.tasks.extend(tasks.drain(..));
        self.short |= queue.idle < count;
        drop(queue);
        match count {
            0 => {}
            1 => self.shared.ready.notify_one(),
            _ => self.shared.ready.notify_all(),
        }
    }

    /// One more worker, if there were too few. Starting one takes long: not more than one a turn.
    pub fn reinforce(&mut self) {
        let short = std::mem::take(&mut self.short);
        if short && self.workers.len() < self.most && self.start().is_err() {
            // those there are will do
            self.most = self.workers.len();
        }
    }

    /// Something that was submitted was not collected.
    pub fn is_busy(&self) -> bool {
        self.out > 0
    }

    /// Something can be collected.
    pub fn has_answers(&self) -> bool {
        self.shared.any.load(Ordering::Acquire)
    }

    /// Takes what is done, the first to be done first; `out` must be empty, and swaps its memory in.
    pub fn collect(&mut self, out: &mut Vec<W::Answer>) {
        debug_assert!(out.is_empty());
        if self.has_answers() {
            let mut answers = lock(&self.shared.answers);
            self.shared.any.store(false, Ordering::Release);
            std::mem::swap(&mut *answers, out);
            drop(answers);
            self.out -= out.len();
        }
    }

    /// Sleeps until the descriptor is readable, `timeout` ran out, or a signal came.
    ///
    /// # Errors
    /// poll(2)'s; being interrupted is none.
    pub fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.event.sleep(timeout)
    }

    /// Drops what was not started, waits for what was.
    pub(crate) fn stop(&mut self) {
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

impl<W: Worker> Drop for Pool<W> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn next_task<W: Worker>(shared: &Shared<W>) -> Option<W::Task> {
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

fn work<W: Worker>(shared: &Shared<W>, cpus: Option<CpuSet>) {
    // where that is refused it runs anywhere
    let _ = cpus.map(CpuSet::confine);
    if W::NICE != 0 {
        // SAFETY: it takes a number. Linux has a niceness for each thread, and a refusal leaves it as it was.
        unsafe { libc::nice(W::NICE) };
    }
    let mut worker = W::default();
    while let Some(task) = next_task(shared) {
        let answer = worker.perform(task);
        let mut answers = lock(&shared.answers);
        let first = answers.is_empty();
        answers.push(answer);
        shared.any.store(true, Ordering::Release);
        drop(answers);
        // those that follow before the owner looks are announced by the first
        if first {
            shared.event.signal();
        }
    }
}

/// Starts a thread to which no signal is delivered: it inherits the mask, so there is no moment in which one
/// could be. Signals are for the embedder's threads. And a worker's write beyond the process's limit of a
/// file's length is an error (EFBIG), and not the process's end by SIGXFSZ.
fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: all zero bytes are a valid set. The first is filled and only read, the second is written by the
    // system; without it signals come as before.
    let before = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        (libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before) == 0).then_some(before)
    };
    let started = start();
    if let Some(before) = before {
        // SAFETY: the set that was in force.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        }
    }
    started
}

#[cfg(test)]
mod tests;
