//! A bounded worker pool: the backend for hosts where io_uring is switched off.
//!
//! Knows: which file number is which open file, tokens, how many operations are in flight. Must never know:
//! image formats; how a system call is made (that is `sys`). Invariants: the caller's thread makes no
//! blocking call but in `wait` and drop; capacity bounds the queues.

use crate::buffer::Segment;
use crate::op::{Completion, Errno, FileId, Op, Output, Token};
use crate::pool::Crew;
use crate::sys::event::EventFd;
use crate::sys::file::OpenFile;
use crate::sys::pool::{Finished, SysJob, SysPool};
use crate::sys::{SysOutcome, SysTask};
use crate::{Backend, CpuSet, Full};
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Workers unless told otherwise: enough to keep a fast disk busy, few enough to start at once.
const WORKERS: usize = 8;

/// The worker pool. Memory of operations in flight is free again when it is dropped: drop waits for what
/// runs.
pub struct Threads {
    pool: SysPool,
    crew: Crew,
    event: Arc<EventFd>,
    files: Slab<Arc<OpenFile>>,
    queued: Vec<SysJob>,
    /// Answers that needed no worker, given at the next reap.
    early: Vec<Completion>,
    finished: Vec<Finished>,
    in_flight: usize,
    capacity: usize,
    syscall: Duration,
    epoch: Instant,
    /// System calls are timed.
    timed: bool,
}

impl Threads {
    /// A pool of the default size for `queue_depth` operations in flight.
    ///
    /// # Errors
    /// An eventfd cannot be made, or a thread cannot be started.
    pub fn new(queue_depth: u32) -> io::Result<Threads> {
        Threads::with_workers(queue_depth, WORKERS.min(queue_depth.max(1) as usize))
    }

    /// A pool of `workers` threads for `queue_depth` operations in flight.
    ///
    /// # Errors
    /// As of [`Threads::new`].
    pub fn with_workers(queue_depth: u32, workers: usize) -> io::Result<Threads> {
        let event = Arc::new(EventFd::new()?);
        let capacity = queue_depth.max(1) as usize;
        let crew = Crew { first: workers, most: workers, cpus: None };
        Ok(Threads {
            pool: SysPool::with_event(Arc::clone(&event), crew)?,
            crew,
            event,
            files: Slab::new(),
            queued: Vec::with_capacity(capacity),
            early: Vec::new(),
            finished: Vec::with_capacity(capacity),
            in_flight: 0,
            capacity,
            syscall: Duration::ZERO,
            epoch: Instant::now(),
            timed: false,
        })
    }

    fn task(&mut self, op: Op) -> Result<SysTask, Errno> {
        let id = match &op {
            Op::Open { .. } | Op::Adopt { .. } => None,
            Op::Stat { file }
            | Op::Lock { file, .. }
            | Op::Close { file }
            | Op::Read { file, .. }
            | Op::Write { file, .. }
            | Op::Sync { file }
            | Op::ZeroRange { file, .. }
            | Op::Discard { file, .. }
            | Op::PunchHole { file, .. }
            | Op::Grow { file, .. }
            | Op::SetLen { file, .. }
            | Op::Prove { file, .. } => Some(file.0 as usize),
        };
        match (op, id) {
            (Op::Adopt { fd, flags }, _) => Ok(SysTask::Receive { fd, flags }),
            (Op::Open { path, flags }, _) => Ok(SysTask::Open { path, flags }),
            (Op::Close { .. }, Some(id)) => {
                let file = self.files.try_remove(id).ok_or(Errno(libc::EBADF))?;
                Ok(SysTask::Close { file })
            }
            (op, id) => {
                let file = id.and_then(|id| self.files.get(id)).ok_or(Errno(libc::EBADF))?;
                Ok(SysTask::On { file: Arc::clone(file), op })
            }
        }
    }

    fn has_answers(&self) -> bool {
        !self.early.is_empty() || self.pool.has_answers()
    }
}

impl Backend for Threads {
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        if self.in_flight == self.capacity {
            return Err(Full(op));
        }
        self.in_flight += 1;
        match self.task(op) {
            Ok(task) => self.queued.push(SysJob { id: token.0, task }),
            Err(errno) => self.early.push(Completion { token, result: Err(errno) }),
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        if !self.early.is_empty() {
            self.event.signal();
        }
        if !self.queued.is_empty() {
            let start = self.timed.then(Instant::now);
            self.pool.submit(&mut self.queued);
            if let Some(start) = start {
                self.syscall += start.elapsed();
            }
        }
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let before = out.len();
        out.append(&mut self.early);
        self.pool.collect(&mut self.finished);
        for Finished { id, result } in self.finished.drain(..) {
            let result = result.map(|outcome| match outcome {
                SysOutcome::Opened(file) => Output::Opened(FileId(self.files.insert(Arc::new(file)) as u32)),
                SysOutcome::Done(output) => output,
            });
            out.push(Completion { token: Token(id), result });
        }
        let reaped = out.len() - before;
        self.in_flight -= reaped;
        reaped
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.submit()?;
        if self.in_flight == 0 && timeout.is_none() {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            // in this order: what finishes after the clear is seen by the look, or wakes the sleep
            self.event.clear();
            let left = timeout.map(|t| t.saturating_sub(start.elapsed()));
            if self.has_answers() {
                // whoever polls the descriptor must still see it
                self.event.signal();
                return Ok(());
            }
            if left == Some(Duration::ZERO) {
                return Ok(());
            }
            self.event.sleep(left)?;
        }
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn clear_notify(&mut self) {
        self.event.clear();
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn renew_workers(&mut self) -> io::Result<()> {
        if self.in_flight > 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.pool = SysPool::with_event(Arc::clone(&self.event), self.crew)?;
        Ok(())
    }

    fn name(&self) -> &'static str {
        "threads"
    }

    fn time_calls(&mut self, on: bool) {
        self.timed = on;
    }

    fn take_syscall_nanos(&mut self) -> u64 {
        u64::try_from(std::mem::take(&mut self.syscall).as_nanos()).unwrap_or(u64::MAX)
    }

    fn set_worker_cpus(&mut self, cpus: CpuSet) {
        self.crew.cpus = Some(cpus);
        // those there are have nothing to do yet; where no others can be started, they stay
        let _ = self.renew_workers();
    }

    fn register_memory(&mut self, _: Segment) -> std::io::Result<crate::MemoryId> {
        Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn unregister_memory(&mut self, _: crate::MemoryId) -> bool {
        false
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.pool.stop();
        // closing alone would leave them to a process that was forked meanwhile, until it calls exec
        self.files.iter().for_each(|(_, file)| file.unlock());
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads")
            .field("in_flight", &self.in_flight)
            .field("files", &self.files.len())
            .finish()
    }
}
