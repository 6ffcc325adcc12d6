//! System calls that both real backends share: one function an operation, blocking, EINTR-proof.
//!
//! Knows: file descriptors and Linux. Must never know: rings, tokens, queues' depths, image formats.
//! Invariant: nothing here runs on the caller's thread except [`event`] (never blocks) and what `Drop` must
//! wait for.

pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod lock;
pub(crate) mod pool;
pub(crate) mod space;
pub(crate) mod transfer;

use crate::op::{Errno, Op, OpenFlags, Output};
use file::OpenFile;
use std::ffi::CString;
use std::sync::Arc;

/// Blocking work that a worker does.
pub(crate) enum Task {
    Open {
        path: CString,
        flags: OpenFlags,
    },
    /// Any operation but Open and Close.
    On {
        file: Arc<OpenFile>,
        op: Op,
    },
    /// Gives the locks back and drops this reference; the last one closes.
    Close {
        file: Arc<OpenFile>,
    },
}

/// What came out of a task.
pub(crate) enum Outcome {
    Opened(OpenFile),
    Done(Output),
}

pub(crate) fn perform(task: Task) -> Result<Outcome, Errno> {
    match task {
        Task::Open { path, flags } => OpenFile::open(&path, flags).map(Outcome::Opened),
        Task::Close { file } => {
            file.unlock();
            Ok(Outcome::Done(Output::Done))
        }
        Task::On { file, op } => perform_on(&file, op).map(Outcome::Done),
    }
}

fn perform_on(file: &OpenFile, op: Op) -> Result<Output, Errno> {
    match op {
        Op::Open { .. } | Op::Close { .. } => unreachable!("not an operation on an open file"),
        Op::Stat { .. } => file.stat().map(Output::Stat),
        Op::Lock { mode, .. } => file.lock(mode).map(|()| Output::Done),
        Op::Read { offset, segments, .. } => {
            transfer::run(file, transfer::Transfer::new(false, file.direct(), offset, segments))
                .map(Output::Bytes)
        }
        Op::Write { offset, segments, .. } => {
            transfer::run(file, transfer::Transfer::new(true, file.direct(), offset, segments))
                .map(Output::Bytes)
        }
        Op::Sync { .. } => space::sync(file.fd()).map(|()| Output::Done),
        Op::ZeroRange { offset, len, unmap, .. } => {
            space::zero_range(file, offset, len, unmap).map(|()| Output::Done)
        }
        Op::PunchHole { offset, len, .. } => space::punch_hole(file, offset, len).map(|()| Output::Done),
        Op::Grow { from, to, allocate, .. } => space::grow(file, from, to, allocate).map(|()| Output::Done),
        Op::SetLen { len, .. } => space::set_len(file.fd(), len).map(|()| Output::Done),
    }
}

/// Signals are for the embedder's threads. And a worker's write beyond the process's limit of a file's length
/// is an error (EFBIG), and not the process's end by SIGXFSZ.
pub(crate) fn block_signals() {
    // SAFETY: all zero bytes are a valid set, which is filled and only read; without it signals come as
    // before.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// The calling thread's errno.
pub(crate) fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Runs a system call until it is not interrupted.
pub(crate) fn retry<R: Into<i64>>(mut call: impl FnMut() -> R) -> Result<i64, Errno> {
    loop {
        let result = call().into();
        if result >= 0 {
            return Ok(result);
        }
        let errno = last_errno();
        if errno.0 != libc::EINTR {
            return Err(errno);
        }
    }
}

/// A file offset as system calls want it; beyond i64 is EFBIG.
pub(crate) fn signed(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno(libc::EFBIG))
}
