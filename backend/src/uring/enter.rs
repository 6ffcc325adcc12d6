//! The system call: submitting, collecting, sleeping, and letting go.
//!
//! Knows: io_uring_enter's errors, which thread may call it. Must never know: what operations mean.

use super::budget::Share;
use super::thread::wrong_thread;
use super::{Key, Uring};
use crate::Backend;
use io_uring::{EnterFlags, types};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Continuations of short transfers go out at once; a chain that is longer than this many system calls goes
/// on next turn.
const ROUNDS: usize = 4;
/// How long a drop on the wrong thread waits for the kernel to finish by itself.
const PATIENCE: Duration = Duration::from_secs(30);

impl Uring {
    /// What the first call of the thread that submits finds to do.
    #[cold]
    fn begin(&mut self) -> io::Result<()> {
        if self.disabled {
            self.ring.submitter().register_enable_rings()?;
            self.disabled = false;
        }
        if let Some(cpus) = self.worker_cpus {
            // where the kernel cannot do that (before 5.14), its workers run anywhere
            let _ = self.ring.submitter().register_iowq_aff(&cpus.to_kernel());
        }
        self.unused = false;
        Ok(())
    }

    /// Gives `to_submit` entries to the kernel and waits for `want` answers. How many it took. Interruption
    /// is not an error.
    fn enter(&mut self, to_submit: usize, want: usize, timeout: Option<Duration>) -> io::Result<usize> {
        if self.unused {
            self.begin()?;
        }
        let flags = EnterFlags::GETEVENTS.bits();
        let spec = timeout.map(types::Timespec::from);
        let submitter = self.ring.submitter();
        let (to_submit, want) = (to_submit as u32, want as u32);
        let result = match &spec {
            // SAFETY: no argument; the published entries' pointers are valid, see `go`.
            None => unsafe { submitter.enter::<libc::sigset_t>(to_submit, want, flags, None) },
            Some(spec) => {
                let args = types::SubmitArgs::new().timespec(spec);
                // SAFETY: with EXT_ARG the argument is what `SubmitArgs` is laid out as; and as above.
                unsafe { submitter.enter(to_submit, want, flags | EnterFlags::EXT_ARG.bits(), Some(&args)) }
            }
        };
        match result {
            Ok(submitted) => {
                // without entries to submit the kernel answers 0
                let submitted = submitted.min(to_submit as usize);
                self.in_kernel += submitted;
                Ok(submitted)
            }
            Err(error) => match error.raw_os_error() {
                // nothing was taken: entries stay published, and go with the next enter
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(0),
                _ => Err(wrong_thread(error)),
            },
        }
    }

    /// An enter without entries would find something, or answers lie there already.
    pub(super) fn something_to_collect(&mut self) -> bool {
        let queue = self.ring.submission();
        let flagged = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        flagged || !self.ring.completion().is_empty() || self.helper.as_ref().is_some_and(|h| h.has_answers())
    }

    #[inline]
    fn next_answer(&mut self) -> Option<(Key, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_kernel -= 1;
        Some((Key::from_user_data(entry.user_data()), entry.result()))
    }

    /// Takes answers out of the completion queue.
    fn harvest(&mut self) {
        // answered one by one: a continuation may be published in between
        while let Some((key, result)) = self.next_answer() {
            match key {
                Key::One(key) if self.core.whole_one(key, result) => {}
                Key::One(key) => self.one_goes_on(key, result),
                Key::Slot(key) => self.answered(key, result),
            }
        }
    }

    /// One turn: one system call, unless there is nothing to do (none) or a continuation to send after it. It
    /// hands over what is left of the present portion.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.cleared = false;
        self.turn_helper()?;
        for round in 0..ROUNDS {
            let waiting = self.ring.submission().len();
            let share = self.budget.share(waiting);
            // what finishes from here on announces itself: only continuations are worth another call
            let look =
                round == 0 && self.in_kernel > 0 && (!self.tells_taskrun || self.something_to_collect());
            if share.entries == 0 && !look {
                break;
            }
            self.enter_with(share)?;
            self.harvest();
        }
        self.turn_helper()?;
        self.announce();
        Ok(())
    }

    /// Tells the descriptor what nobody else does: answers without a system call, entries that are left.
    fn announce(&mut self) {
        self.backlog = !self.ring.submission().is_empty();
        if self.unannounced || self.backlog {
            self.unannounced = false;
            self.event.signal();
        }
    }

    /// Hands over a share, and looks at what it cost.
    fn enter_with(&mut self, share: Share) -> io::Result<()> {
        let start = (self.timed || share.measured).then(Instant::now);
        let result = self.enter(share.entries, 0, None);
        let took = start.map(|start| start.elapsed());
        if let (Some(took), true) = (took, self.timed) {
            self.syscall += took;
        }
        self.enters += 1;
        let entries = *result.as_ref().unwrap_or(&0);
        let files = &mut self.core.context.files;
        let took = took.filter(|_| share.measured);
        self.budget.took(share, entries, took, |file, write, byte, times| {
            files.learn(file, write, byte, times);
        });
        result.map(|_| ())
    }

    /// Turns until something finished or time ran out.
    pub(super) fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let until = timeout.map(|timeout| (Instant::now(), timeout));
        let mut left = timeout;
        loop {
            self.budget.refill();
            let slept = self.hand_over_and_sleep(left)?;
            if !slept {
                self.turn()?;
            }
            left = until.map(|(start, timeout)| timeout.saturating_sub(start.elapsed()));
            if !self.core.done.is_empty() || left == Some(Duration::ZERO) {
                return Ok(());
            }
            if self.in_flight() == 0 && left.is_none() {
                return Ok(());
            }
            if slept || self.backlog || self.sleeps_in_call(0, left) {
                continue;
            }
            // in this order: what is announced after the clear wakes the sleep
            self.event.clear();
            if !self.something_to_collect() {
                self.event.sleep(left)?;
            }
            if self.timed {
                return Ok(());
            }
        }
    }

    /// Only the ring is waited for, `more` entries included, and by a call that can. Where calls are timed,
    /// what is collected after the sleep is no part of the sleep.
    fn sleeps_in_call(&self, more: usize, left: Option<Duration>) -> bool {
        let only_ring = !self.timed && self.helped == 0 && self.core.jobs.is_empty();
        let limits = left.is_none() || self.ring.params().is_feature_ext_arg();
        only_ring && self.in_kernel + more > 0 && limits
    }

    /// One call that hands over everything and waits for the first answer. False, and nothing was done: that
    /// is not all there is to do, or what it takes is worth knowing.
    fn hand_over_and_sleep(&mut self, left: Option<Duration>) -> io::Result<bool> {
        let waiting = self.ring.submission().len();
        let share = self.budget.share(waiting);
        let answered = self.unannounced || !self.core.done.is_empty() || left == Some(Duration::ZERO);
        let whole = share.entries == waiting && !share.measured;
        if answered || !whole || !self.sleeps_in_call(waiting, left) {
            return Ok(false);
        }
        self.cleared = false;
        let taken = self.enter(waiting, 1, left)?;
        self.enters += 1;
        self.budget.took(share, taken, None, |_, _, _, _| {});
        self.harvest();
        self.announce();
        Ok(true)
    }

    /// Waits for the kernel; what it answers goes no further.
    fn quiesce(&mut self) {
        let start = Instant::now();
        while self.in_kernel > 0 {
            let entered = self.enter(0, self.in_kernel, None);
            while let Some((key, result)) = self.next_answer() {
                // descriptors change hands here; a continuation is not published
                if let Key::Slot(key) = key {
                    let _ = self.core.context.after(&mut self.core.slots[key].work, result);
                }
            }
            if entered.is_err() {
                // another thread owns the ring; when it ends, the kernel finishes without it
                if start.elapsed() > PATIENCE {
                    // a closed stderr is no reason to go on
                    let text = "quod-backend: a ring was dropped by a thread that does not own it\n";
                    let _ = std::io::stderr().write_all(text.as_bytes());
                    // its memory would be freed while the kernel writes to it
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // entries that were never submitted are never seen by the kernel; the worker's job must end too
        self.helper = None;
        self.quiesce();
        self.core.context.files.unlock_all();
        let _ = self.ring.submitter().unregister_files();
    }
}
