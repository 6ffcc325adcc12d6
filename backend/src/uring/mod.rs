//! io_uring: one ring, one thread, one system call a turn.
//!
//! Knows: the ring, operations in flight by slot. Must never know: image formats, guests.
//!
//! Invariants:
//! * a slot has at most one SQE or worker job in flight, and there are as many slots as the smaller of both
//!   queues has entries: neither queue can overflow, and a published SQE always fits;
//! * the ring is entered by the thread that submits first, and by no other; that thread also drops it;
//! * an SQE that was published stays published until the kernel took it, whatever the system call says; what
//!   a turn's portion does not reach goes with the next turn, and the descriptor says so;
//! * notifications go through an eventfd: with deferred task work the ring's own descriptor loses wake-ups;
//! * drop returns only when the kernel uses no memory of any operation any more.

mod budget;
mod discard;
mod enter;
mod memory;
mod setup;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod thread;
mod work;

pub use thread::is_wrong_thread;

use crate::buffer::{Segment, Segments};
use crate::op::{Completion, Errno, FileId, MemoryId, Op, Output, Token};
use crate::pool::Crew;
use crate::sys::event::EventFd;
use crate::sys::pool::{Finished, SysJob, SysPool};
use crate::{Backend, CpuSet, Full};
use budget::Budget;
use io_uring::{IoUring, squeue};
use memory::Memory;
use slab::Slab;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::Files;
use work::{Context, Next, One, Work};

struct OpSlot {
    token: Token,
    work: Work,
}

/// Operations that are one entry are apart: they are short.
struct OneSlot {
    token: Token,
    one: One,
}

/// What the ring calls an operation.
#[derive(Clone, Copy)]
enum Key {
    Slot(usize),
    One(usize),
}

impl Key {
    #[inline]
    fn to_user_data(self) -> u64 {
        match self {
            Key::Slot(index) => (index as u64) << 1,
            Key::One(index) => (index as u64) << 1 | 1,
        }
    }

    #[inline]
    fn from_user_data(data: u64) -> Key {
        let index = (data >> 1) as usize;
        if data & 1 == 1 { Key::One(index) } else { Key::Slot(index) }
    }
}

/// What happens to operations between the ring, the worker and the caller.
struct Core {
    context: Context,
    /// Never reallocates: pointers into slots are with the kernel.
    slots: Slab<OpSlot>,
    ones: Slab<OneSlot>,
    /// Answers not yet reaped.
    done: Vec<Completion>,
    /// For the worker, at the next submit.
    jobs: Vec<SysJob>,
}

/// The ring. Must be submitted to and dropped by one and the same thread; which one, the first submit
/// decides.
pub struct Uring {
    ring: IoUring,
    core: Core,
    /// Started when first needed.
    helper: Option<SysPool>,
    finished: Vec<Finished>,
    /// Jobs that the worker has.
    helped: usize,
    event: Arc<EventFd>,
    /// Entries that the kernel took and has not answered.
    in_kernel: usize,
    /// No call was made yet.
    unused: bool,
    /// Built disabled, and not enabled yet.
    disabled: bool,
    worker_cpus: Option<CpuSet>,
    /// See [`Uring::restricted`].
    restricted: bool,
    tells_taskrun: bool,
    /// An answer was found without a system call, or a continuation waits: nobody else will wake the caller.
    unannounced: bool,
    /// `clear_notify` took a notification that only a submit can honour.
    cleared: bool,
    capacity: usize,
    /// What the present turn may hand over.
    budget: Budget,
    /// Entries were left for the next turn.
    backlog: bool,
    /// System calls that `submit` made.
    enters: u64,
    /// System calls are timed.
    timed: bool,
    syscall: Duration,
    epoch: Instant,
}

impl Uring {
    /// A ring for `queue_depth` operations in flight.
    ///
    /// # Errors
    /// The kernel's reason where io_uring is refused, [`io::ErrorKind::Unsupported`] where it lacks an
    /// operation.
    pub fn new(queue_depth: u32) -> io::Result<Uring> {
        Uring::with_ring(setup::build(queue_depth)?, queue_depth)
    }

    /// A ring that does nothing but move bytes of files, whatever is asked of it: a worker opens them. For
    /// processes that give up what they do not need; what a ring does is not seen by seccomp.
    ///
    /// # Errors
    /// As of [`Uring::new`]; [`io::ErrorKind::Unsupported`] where rings cannot be restricted (before Linux
    /// 5.10), or are not built so that they can be (before 6.1).
    pub fn restricted(queue_depth: u32) -> io::Result<Uring> {
        let mut ring = setup::build(queue_depth)?;
        if !ring.disabled {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's rings start unrestricted"));
        }
        ring.supported = ring.supported.restricted();
        let mut uring = Uring::with_ring(ring, queue_depth)?;
        setup::restrict(&uring.ring.submitter())?;
        uring.restricted = true;
        Ok(uring)
    }

    fn with_ring(ring: setup::Ring, queue_depth: u32) -> io::Result<Uring> {
        let setup::Ring { ring, supported, disabled, tells_taskrun } = ring;
        let event = Arc::new(EventFd::new()?);
        ring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
        let params = ring.params();
        let capacity = queue_depth.max(1).min(params.sq_entries()).min(params.cq_entries()) as usize;
        let files = Files::new(&ring.submitter(), supported.files_update);
        let context = Context { files, memory: Memory::default(), supported };
        let (slots, ones) = (Slab::with_capacity(capacity), Slab::with_capacity(capacity));
        let core = Core { context, slots, ones, done: Vec::with_capacity(capacity), jobs: Vec::new() };
        Ok(Uring {
            ring,
            core,
            helper: None,
            finished: Vec::new(),
            helped: 0,
            event,
            in_kernel: 0,
            unused: true,
            disabled,
            worker_cpus: None,
            restricted: false,
            tells_taskrun,
            unannounced: false,
            cleared: false,
            capacity,
            budget: Budget::new(),
            backlog: false,
            enters: 0,
            timed: false,
            syscall: Duration::ZERO,
            epoch: Instant::now(),
        })
    }

    #[inline]
    fn publish(&mut self, key: Key, entry: squeue::Entry) {
        let entry = entry.user_data(key.to_user_data());
        // SAFETY: its pointers are the operation's segments (their maker's promise), static, or in
        // the slot, which stays where it is until the entry is answered.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // one entry a slot, and no more slots than entries
        assert!(pushed.is_ok(), "the submission queue holds one entry a slot");
    }

    #[inline(never)]
    fn push_other(&mut self, token: Token, op: Op) -> Result<(), Full> {
        match self.core.context.begin(op) {
            Ok(work) => {
                // fewer than its capacity: does not reallocate
                let key = self.core.slots.insert(OpSlot { token, work });
                let next = self.core.context.issue(&mut self.core.slots[key].work);
                self.go(key, next);
            }
            Err(errno) => {
                self.core.done.push(Completion { token, result: Err(errno) });
                self.unannounced = true;
            }
        }
        Ok(())
    }

    /// An operation of one entry goes on as any other: it was not answered in full.
    #[cold]
    fn one_goes_on(&mut self, key: usize, result: i32) {
        let OneSlot { token, one } = self.core.ones.remove(key);
        let One { file, write, offset, segment } = one;
        match self.core.context.transfer(write, FileId(file), offset, Segments::from_buf([segment])) {
            Ok(work) => {
                // fewer than its capacity: does not reallocate
                let key = self.core.slots.insert(OpSlot { token, work });
                self.answered(key, result);
            }
            Err(errno) => self.core.done.push(Completion { token, result: Err(errno) }),
        }
    }

    /// The kernel answered, which it announced: unlike `go`.
    fn answered(&mut self, key: usize, result: i32) {
        match self.core.context.after(&mut self.core.slots[key].work, result) {
            Next::Done(result) => self.core.answer(key, result),
            next => self.go(key, next),
        }
    }

    /// Sees to what an entry costs inside the system call: what is dear is a worker's.
    fn weigh(&mut self, key: usize, entry: squeue::Entry) -> squeue::Entry {
        let Some((file, write, len)) = self.core.slots[key].work.moves() else { return entry };
        if len <= budget::SMALL {
            return entry;
        }
        match self.core.context.files.price(file, write, len) {
            Some((price, byte)) => {
                self.budget.weigh(self.ring.submission().len(), (file, write), price, byte);
                entry
            }
            None => entry.flags(squeue::Flags::ASYNC),
        }
    }

    /// Publishes, hands over or answers.
    fn go(&mut self, key: usize, next: Next) {
        match next {
            Next::Entry(entry) => {
                let entry = self.weigh(key, entry);
                self.publish(Key::Slot(key), entry);
            }
            Next::Job(task) => self.core.jobs.push(SysJob { id: key as u64, task }),
            Next::Done(result) => {
                self.core.answer(key, result);
                self.unannounced = true;
            }
        }
    }

    /// Takes what the worker finished, gives it what is queued.
    fn turn_helper(&mut self) -> io::Result<()> {
        if let Some(helper) = &mut self.helper
            && self.helped > 0
        {
            helper.collect(&mut self.finished);
            let mut finished = std::mem::take(&mut self.finished);
            for Finished { id, result } in finished.drain(..) {
                self.helped -= 1;
                let key = id as usize;
                let next = self.core.context.helped(&mut self.core.slots[key].work, result);
                self.go(key, next);
            }
            // its memory serves again
            self.finished = finished;
        }
        if self.core.jobs.is_empty() {
            return Ok(());
        }
        if self.helper.is_none() {
            self.helper = Some(SysPool::with_event(
                Arc::clone(&self.event),
                Crew { first: 1, most: 1, cpus: self.worker_cpus },
            )?);
        }
        self.helped += self.core.jobs.len();
        if let Some(helper) = &mut self.helper {
            helper.submit(&mut self.core.jobs);
        }
        Ok(())
    }
}

impl Core {
    fn answer(&mut self, key: usize, result: Result<Output, Errno>) {
        let slot = self.slots.remove(key);
        self.done.push(Completion { token: slot.token, result });
    }

    /// An operation of one entry was answered in full.
    #[inline]
    fn whole_one(&mut self, key: usize, result: i32) -> bool {
        let moved = self.ones[key].one.segment.len();
        if i32::try_from(moved) != Ok(result) {
            return false;
        }
        let token = self.ones.remove(key).token;
        self.done.push(Completion { token, result: Ok(Output::Bytes(moved as u64)) });
        true
    }
}

impl Backend for Uring {
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        if self.in_flight() >= self.capacity {
            return Err(Full(op));
        }
        let (write, file, offset, segments) = match &op {
            Op::Read { file, offset, segments } => (false, file.0, *offset, segments),
            Op::Write { file, offset, segments } => (true, file.0, *offset, segments),
            _ => return self.push_other(token, op),
        };
        let [segment] = segments[..] else { return self.push_other(token, op) };
        let one = One { file, write, offset, segment };
        match self.core.context.one_entry(&one) {
            // fewer than its capacity: does not reallocate
            Some(entry) => {
                let key = self.core.ones.insert(OneSlot { token, one });
                self.publish(Key::One(key), entry);
                Ok(())
            }
            None => self.push_other(token, op),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.budget.refill();
        self.turn()
    }

    fn submit_more(&mut self) -> io::Result<()> {
        self.turn()
    }

    fn has_backlog(&self) -> bool {
        self.backlog
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> usize {
        let count = self.core.done.len();
        if out.is_empty() {
            std::mem::swap(out, &mut self.core.done);
        } else {
            out.append(&mut self.core.done);
        }
        if self.cleared {
            // cleared without a submit since: what was announced is still to come, or to be handed over
            self.cleared = false;
            self.event.signal();
        }
        count
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.sleep(timeout)
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn clear_notify(&mut self) {
        self.event.clear();
        // what was announced before the clear shows now; what comes after it is announced again
        self.cleared = self.backlog || self.something_to_collect();
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn in_flight(&self) -> usize {
        self.core.slots.len() + self.core.ones.len() + self.core.done.len()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn is_restricted(&self) -> bool {
        self.restricted
    }

    fn renew_workers(&mut self) -> io::Result<()> {
        if self.helped > 0 || !self.core.jobs.is_empty() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        // the next job starts one
        self.helper = None;
        Ok(())
    }

    fn time_calls(&mut self, on: bool) {
        self.timed = on;
    }

    fn take_syscall_nanos(&mut self) -> u64 {
        u64::try_from(std::mem::take(&mut self.syscall).as_nanos()).unwrap_or(u64::MAX)
    }

    fn set_worker_cpus(&mut self, cpus: CpuSet) {
        self.worker_cpus = Some(cpus);
    }

    fn register_memory(&mut self, region: Segment) -> io::Result<MemoryId> {
        self.core.context.memory.register(&self.ring.submitter(), region).map_err(thread::wrong_thread)
    }

    fn register_memory_of(&mut self, other: &Uring, id: MemoryId) -> io::Result<MemoryId> {
        let from = (&other.core.context.memory, other.ring.as_raw_fd(), id);
        let memory = &mut self.core.context.memory;
        memory.register_of(&self.ring.submitter(), from).map_err(thread::wrong_thread)
    }

    fn unregister_memory(&mut self, id: MemoryId) -> bool {
        self.core.context.memory.unregister(&self.ring.submitter(), id)
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight())
            .field("in_kernel", &self.in_kernel)
            .field("enters", &self.enters)
            .field("registered_and_shared", &self.core.context.memory.count())
            .field("features", &self.core.context.supported)
            .finish()
    }
}
