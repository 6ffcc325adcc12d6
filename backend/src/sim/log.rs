//! What is told of operations: those that are pending, those that have ended, how many there were.
//!
//! Knows: operations and their answers. Must never know: the disk.

use super::fault::OpKind;
use crate::op::{Errno, FileId, Op, Output, Token};
use std::time::Duration;

/// An operation that was pushed and has not completed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PendingOp {
    /// Its token.
    pub token: Token,
    /// What it does.
    pub kind: OpKind,
    /// To which file; none for Open.
    pub file: Option<FileId>,
    /// From where on; 0 if it has no offset. Of Grow: the old length.
    pub offset: u64,
    /// How many bytes; of SetLen the new length; 0 if it has no length.
    pub len: u64,
}

impl PendingOp {
    pub(super) fn of(token: Token, op: &Op) -> PendingOp {
        let (file, offset, len) = match op {
            Op::Open { .. } | Op::Adopt { .. } => (None, 0, 0),
            Op::Stat { file }
            | Op::Lock { file, .. }
            | Op::Close { file }
            | Op::Sync { file }
            | Op::Prove { file, .. } => (Some(*file), 0, 0),
            Op::Read { file, offset, segments } | Op::Write { file, offset, segments } => {
                (Some(*file), *offset, segments.iter().map(|s| s.len() as u64).sum())
            }
            Op::ZeroRange { file, offset, len, .. }
            | Op::Discard { file, offset, len }
            | Op::PunchHole { file, offset, len } => (Some(*file), *offset, *len),
            Op::Grow { file, from, to, .. } => (Some(*file), *from, to.saturating_sub(*from)),
            Op::SetLen { file, len } => (Some(*file), 0, *len),
        };
        PendingOp { token, kind: OpKind::of(op), file, offset, len }
    }
}

/// A completed operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Logged {
    /// What it was.
    pub op: PendingOp,
    /// How it ended.
    pub result: Result<Output, Errno>,
    /// Virtual time.
    pub at: Duration,
}

/// How much was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpCounts {
    completed: [u64; OpKind::COUNT],
    failed: [u64; OpKind::COUNT],
    /// Bytes that reads moved.
    pub bytes_read: u64,
    /// Bytes that writes moved.
    pub bytes_written: u64,
}

impl OpCounts {
    pub(super) fn count(&mut self, kind: OpKind, result: &Result<Output, Errno>) {
        self.completed[kind as usize] += 1;
        match result {
            Err(_) => self.failed[kind as usize] += 1,
            Ok(Output::Bytes(bytes)) if kind == OpKind::Read => self.bytes_read += bytes,
            Ok(Output::Bytes(bytes)) => self.bytes_written += bytes,
            Ok(_) => {}
        }
    }

    /// Completed operations of a kind, failed ones included.
    pub fn completed(&self, kind: OpKind) -> u64 {
        self.completed[kind as usize]
    }

    /// Those that failed.
    pub fn failed(&self, kind: OpKind) -> u64 {
        self.failed[kind as usize]
    }
}
