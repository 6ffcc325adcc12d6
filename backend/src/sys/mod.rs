//! System calls that both real backends share: one function an operation, blocking, EINTR-proof.
//!
//! Knows: file descriptors and Linux. Must never know: rings, tokens, queues' depths, image formats.
//! Invariant: nothing here runs on the caller's thread except [`event`] (never blocks), what `Drop` must wait
//! for, and what [`crate::blocking`] asks for, whose caller waits.

pub(crate) mod call;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod extents;
pub(crate) mod file;
pub(crate) mod lock;
pub(crate) mod pool;
pub(crate) mod proof;
pub(crate) mod space;
pub(crate) mod transfer;

use crate::op::{Errno, Op, OpenFlags, Output};
use file::OpenFile;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use transfer::Transfer;

/// Blocking work that a worker does.
pub(crate) enum SysTask {
    Open {
        path: CString,
        flags: OpenFlags,
    },
    /// A descriptor that the ring has opened.
    Adopt {
        fd: OwnedFd,
        flags: OpenFlags,
        statx: Box<libc::statx>,
    },
    /// A descriptor of somebody else's making.
    Receive {
        fd: Arc<OwnedFd>,
        flags: OpenFlags,
    },
    /// Any operation on a file that is open, but Close.
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
pub(crate) enum SysOutcome {
    Opened(OpenFile),
    Done(Output),
}

pub(crate) fn perform(task: SysTask) -> Result<SysOutcome, Errno> {
    match task {
        SysTask::Open { path, flags } => OpenFile::open(&path, flags).map(SysOutcome::Opened),
        SysTask::Receive { fd, flags } => OpenFile::receive(fd, flags).map(SysOutcome::Opened),
        SysTask::Adopt { fd, flags, statx } => OpenFile::adopt(fd, flags, &statx).map(SysOutcome::Opened),
        SysTask::Close { file } => {
            file.unlock();
            Ok(SysOutcome::Done(Output::Done))
        }
        SysTask::On { file, op } => perform_on(&file, op).map(SysOutcome::Done),
    }
}

fn perform_on(file: &OpenFile, op: Op) -> Result<Output, Errno> {
    match op {
        Op::Open { .. } | Op::Adopt { .. } | Op::Close { .. } => {
            unreachable!("not an operation on an open file")
        }
        Op::Stat { .. } => file.stat().map(Output::Stat),
        Op::Lock { mode, .. } => file.lock(mode).map(|()| Output::Done),
        Op::Read { offset, segments, .. } => {
            transfer::run(file, Transfer::of(file, false, offset, segments)).map(Output::Bytes)
        }
        Op::Write { offset, segments, .. } => {
            transfer::run(file, Transfer::of(file, true, offset, segments)).map(Output::Bytes)
        }
        Op::Sync { .. } => space::sync(file.fd()).map(|()| Output::Done),
        Op::ZeroRange { offset, len, unmap, .. } => {
            space::zero_range(file, offset, len, unmap).map(|()| Output::Done)
        }
        Op::Discard { offset, len, .. } => space::discard(file, offset, len).map(|()| Output::Done),
        Op::PunchHole { offset, len, .. } => space::punch_hole(file, offset, len).map(|()| Output::Done),
        Op::Grow { from, to, allocate, .. } => space::grow(file, from, to, allocate).map(|()| Output::Done),
        Op::SetLen { len, .. } => space::set_len(file, len).map(|()| Output::Done),
        Op::Prove { shown, .. } => {
            let proven = shown.map_or_else(|| proof::prove(file), Ok)?;
            file.believe(proven);
            Ok(Output::Proven(proven))
        }
    }
}
