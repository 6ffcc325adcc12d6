//! Operations as small state machines: each is at one step, and has at most one SQE or one worker job in
//! flight.
//!
//! Knows: which step follows which result. Must never know: the ring itself, tokens.
//! Invariants: pointers in an SQE point into the slot's boxes, the operation's segments or static memory,
//! none of which moves while the SQE is in flight; every step ends in another step or in the answer.

use super::discard;
use super::memory::Memory;
use super::setup::Supported;
use super::table::{Files, Target};
use crate::buffer::Segment;
use crate::op::{Errno, FileId, Op, OpenFlags, Output, Proven};
use crate::sys::call::signed;
use crate::sys::file;
use crate::sys::transfer::Transfer;
use crate::sys::{SysTask, space};
use io_uring::{opcode, squeue, types};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Where an operation is.
pub(super) enum Work {
    Move {
        file: u32,
        transfer: Transfer,
    },
    Sync {
        file: u32,
    },
    SetLen {
        file: u32,
        len: u64,
    },
    Punch {
        file: u32,
        offset: u64,
        len: u64,
    },
    Zero {
        file: u32,
        offset: u64,
        end: u64,
        way: Way,
    },
    /// A device's own, whole blocks.
    Discard {
        file: u32,
        offset: u64,
        len: u64,
    },
    Allocate {
        file: u32,
        from: u64,
        to: u64,
    },
    Stat {
        file: u32,
        statx: Box<libc::statx>,
    },
    Open {
        path: CString,
        flags: OpenFlags,
    },
    Examine {
        fd: OwnedFd,
        flags: OpenFlags,
        statx: Box<libc::statx>,
    },
    Register {
        index: u32,
        fd: Box<i32>,
    },
    Unregister {
        index: u32,
        none: Box<i32>,
    },
    /// The ring closes it.
    Close {
        fd: OwnedFd,
    },
    /// A worker does it; the task is taken when handed over.
    Help {
        task: Option<SysTask>,
    },
}

/// Bytes of a transfer of one entry: more is a short transfer, which goes on.
const ONE_MAX: u64 = 1 << 30;

/// A transfer of one segment in one system call, which nearly all operations are; if that does not end it, it
/// goes on as [`Work::Move`].
#[derive(Clone, Copy)]
pub(super) struct One {
    pub(super) file: u32,
    pub(super) write: bool,
    pub(super) offset: u64,
    pub(super) segment: Segment,
}

/// How to make zeros: tried in this order.
pub(super) enum Way {
    Punch,
    Zero,
    Write(Transfer),
}

/// What to do for an operation now.
pub(super) enum Next {
    Entry(squeue::Entry),
    Job(SysTask),
    Done(Result<Output, Errno>),
}

/// What the steps need to look at.
pub(super) struct Context {
    pub(super) files: Files,
    pub(super) memory: Memory,
    pub(super) supported: Supported,
}

macro_rules! on {
    ($target:expr, |$fd:ident| $entry:expr) => {
        match $target {
            Target::Fixed($fd) => $entry,
            Target::Plain($fd) => $entry,
        }
    };
}

impl Context {
    /// The entry of a transfer of one segment in one system call. None: it is not so easy.
    #[inline]
    pub(super) fn one_entry(&self, one: &One) -> Option<squeue::Entry> {
        let One { file, write, offset, segment } = *one;
        let way = self.files.way(file).ok()?;
        let len = segment.len() as u64;
        // an offset of -1 would mean the file's position
        if len == 0 || len > way.at_once || len > ONE_MAX || signed(offset).is_err() || way.slow {
            return None;
        }
        Some(self.single_entry(way.target, write, offset, segment))
    }

    pub(super) fn transfer(
        &self,
        write: bool,
        file: FileId,
        offset: u64,
        segments: crate::Segments,
    ) -> Result<Work, Errno> {
        let open = self.files.get(file)?;
        // an offset of -1 would mean the file's position
        signed(offset)?;
        Ok(Work::Move { file: file.0, transfer: Transfer::of(open, write, offset, segments) })
    }

    /// An operation's first step.
    pub(super) fn begin(&mut self, op: Op) -> Result<Work, Errno> {
        let supported = self.supported;
        let checked = |offset: u64, len: u64| {
            let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
            signed(end).map(|_| end)
        };
        Ok(match op {
            Op::Read { file, offset, segments } => self.transfer(false, file, offset, segments)?,
            Op::Write { file, offset, segments } => self.transfer(true, file, offset, segments)?,
            Op::Sync { file: FileId(file) } => Work::Sync { file },
            Op::Open { path, flags } if supported.open && supported.statx => Work::Open { path, flags },
            Op::Adopt { fd, flags } => Work::help(SysTask::Receive { fd, flags }),
            Op::Open { path, flags } => Work::help(SysTask::Open { path, flags }),
            Op::Stat { file: FileId(file) } if supported.statx => {
                Work::Stat { file, statx: Box::new(file::blank_statx()) }
            }
            Op::SetLen { file: FileId(file), len } if supported.ftruncate && !self.is_device(file) => {
                checked(len, 0)?;
                Work::SetLen { file, len }
            }
            Op::PunchHole { file: FileId(file), offset, len } if self.fallocates(file, offset, len) => {
                checked(offset, len)?;
                if !self.believed(file).punch_hole {
                    return Err(Errno(libc::EOPNOTSUPP));
                }
                Work::Punch { file, offset, len }
            }
            Op::ZeroRange { file: FileId(file), offset, len, unmap }
                if self.fallocates(file, offset, len) =>
            {
                let end = checked(offset, len)?;
                let way = self.first_way(file, offset, end, unmap)?;
                Work::Zero { file, offset, end, way }
            }
            Op::Discard { file: FileId(file), offset, len }
                if supported.commands && self.files.discards(file) =>
            {
                let (offset, end) = space::inner_blocks(offset, checked(offset, len)?);
                Work::Discard { file, offset, len: end - offset }
            }
            Op::Grow { file: FileId(file), from, to, allocate: true }
                if supported.fallocate
                    && from < to
                    && self.believed(file).allocate
                    && !self.is_device(file) =>
            {
                checked(to, 0)?;
                Work::Allocate { file, from, to }
            }
            Op::Close { file } => self.close(file)?,
            // sparse growth looks before it truncates: two system calls, so a worker does both at once
            Op::Lock { file, .. }
            | Op::Stat { file }
            | Op::SetLen { file, .. }
            | Op::Discard { file, .. }
            | Op::PunchHole { file, .. }
            | Op::ZeroRange { file, .. }
            | Op::Grow { file, .. }
            | Op::Prove { file, .. } => {
                Work::help(SysTask::On { file: Arc::clone(self.files.get(file)?), op })
            }
        })
    }

    /// Zeros in this range are the ring's to make: parts of blocks of a direct file, or of a device, are
    /// written by a worker.
    fn fallocates(&self, file: u32, offset: u64, len: u64) -> bool {
        let whole = space::whole_blocks(offset, len);
        let fits = whole || self.files.get(FileId(file)).is_ok_and(|file| space::takes_any_range(file));
        self.supported.fallocate && len > 0 && fits
    }

    /// Its length is not ours to change: a worker asks for it.
    fn is_device(&self, file: u32) -> bool {
        self.files.get(FileId(file)).is_ok_and(|file| file.is_device())
    }

    fn believed(&self, file: u32) -> Proven {
        self.files.get(FileId(file)).map_or(Proven::NONE, |file| file.believed())
    }

    fn first_way(&self, file: u32, offset: u64, end: u64, unmap: bool) -> Result<Way, Errno> {
        let believed = self.believed(file);
        match unmap && believed.punch_hole {
            true => Ok(Way::Punch),
            false => self.other_way(file, offset, end, believed.zero_range),
        }
    }

    /// Where no hole can be punched.
    pub(super) fn other_way(&self, file: u32, offset: u64, end: u64, zero_range: bool) -> Result<Way, Errno> {
        let direct = self.files.get(FileId(file))?.direct();
        Ok(match zero_range {
            true => Way::Zero,
            false => Way::Write(space::zeros(direct, offset, end - offset)),
        })
    }

    fn close(&mut self, file: FileId) -> Result<Work, Errno> {
        self.files.start_closing(file)?;
        match self.files.is_fixed(file.0) {
            true => Ok(Work::Unregister { index: file.0, none: Box::new(-1) }),
            false => self.let_go(file.0),
        }
    }

    /// The ring's table does not hold the file any more.
    pub(super) fn let_go(&mut self, index: u32) -> Result<Work, Errno> {
        let file = self.files.remove(index).ok_or(Errno(libc::EBADF))?;
        if file.locked() || !self.supported.close {
            return Ok(Work::help(SysTask::Close { file }));
        }
        match Arc::try_unwrap(file) {
            Ok(file) => Ok(Work::Close { fd: file.into_fd() }),
            // a worker is still using it, and the last user closes
            Err(file) => Ok(Work::help(SysTask::Close { file })),
        }
    }

    /// What a step asks for.
    pub(super) fn issue(&self, work: &mut Work) -> Next {
        match self.entry(work) {
            Ok(Some(entry)) => Next::Entry(entry),
            Ok(None) if matches!(work, Work::Move { .. }) => Next::Done(Ok(Output::Bytes(0))),
            Ok(None) => Next::Done(Ok(Output::Done)),
            Err(Some(task)) => Next::Job(task),
            Err(None) => Next::Done(Err(Errno(libc::EBADF))),
        }
    }

    /// `Ok(None)`: nothing to do; `Err(task)`: not for the ring; `Err(None)`: no such file.
    fn entry(&self, work: &mut Work) -> Result<Option<squeue::Entry>, Option<SysTask>> {
        let target = |file: u32| self.files.target(file).map_err(|_| None);
        let fallocate = |file, mode, offset, len| {
            let entry =
                on!(target(file)?, |fd| opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build());
            Ok(Some(entry))
        };
        match work {
            Work::Move { transfer, .. } if transfer.is_empty() => Ok(None),
            Work::Move { file, transfer } => Ok(Some(self.move_entry(*file, transfer)?)),
            Work::Sync { file } => {
                let flags = types::FsyncFlags::DATASYNC;
                Ok(Some(on!(target(*file)?, |fd| opcode::Fsync::new(fd).flags(flags).build())))
            }
            Work::SetLen { file, len } => {
                Ok(Some(on!(target(*file)?, |fd| opcode::Ftruncate::new(fd, *len).build())))
            }
            Work::Punch { file, offset, len } => fallocate(*file, space::PUNCH_MODE, *offset, *len),
            Work::Zero { file, offset, end, way } => match way {
                Way::Punch => fallocate(*file, space::PUNCH_MODE, *offset, *end - *offset),
                Way::Zero => fallocate(*file, space::ZERO_MODE, *offset, *end - *offset),
                Way::Write(transfer) => Ok(Some(self.move_entry(*file, transfer)?)),
            },
            Work::Discard { len: 0, .. } => Ok(None),
            Work::Discard { file, offset, len } => {
                // a device is not in the ring's table
                let file = self.files.get(FileId(*file)).map_err(|_| None)?;
                Ok(Some(discard::entry(types::Fd(file.fd()), *offset, *len)))
            }
            Work::Allocate { file, from, to } => fallocate(*file, 0, *from, *to - *from),
            Work::Stat { file, statx } => {
                let file = self.files.get(FileId(*file)).map_err(|_| None)?;
                Ok(Some(statx_entry(file.fd(), statx)))
            }
            Work::Open { path, flags } => {
                let at = types::Fd(libc::AT_FDCWD);
                Ok(Some(opcode::OpenAt::new(at, path.as_ptr()).flags(file::open_flags(*flags)).build()))
            }
            Work::Examine { fd, statx, .. } => Ok(Some(statx_entry(fd.as_raw_fd(), statx))),
            Work::Register { index, fd } | Work::Unregister { index, none: fd } => {
                Ok(Some(opcode::FilesUpdate::new(&raw const **fd, 1).offset(*index as i32).build()))
            }
            Work::Close { fd } => Ok(Some(opcode::Close::new(types::Fd(fd.as_raw_fd())).build())),
            Work::Help { task } => Err(task.take()),
        }
    }

    fn move_entry(&self, file: u32, transfer: &Transfer) -> Result<squeue::Entry, Option<SysTask>> {
        let way = self.files.way(file).map_err(|_| None)?;
        let entry = self.plain_entry(way.target, transfer);
        Ok(if way.slow { entry.flags(squeue::Flags::ASYNC) } else { entry })
    }

    fn plain_entry(&self, target: Target, transfer: &Transfer) -> squeue::Entry {
        let (offset, rest) = (transfer.offset(), transfer.rest());
        if let [segment] = rest {
            return self.single_entry(target, transfer.write, offset, *segment);
        }
        // a segment is an iovec in memory; the list lives in the slot, which does not move
        let (list, count) = (rest.as_ptr().cast::<libc::iovec>(), rest.len() as u32);
        let slot = self.memory.find_all(rest).filter(|_| self.supported.vectored_fixed);
        match (transfer.write, slot) {
            (true, None) => on!(target, |fd| opcode::Writev::new(fd, list, count).offset(offset).build()),
            (false, None) => on!(target, |fd| opcode::Readv::new(fd, list, count).offset(offset).build()),
            (true, Some(slot)) => {
                on!(target, |fd| opcode::WritevFixed::new(fd, list, count, slot).offset(offset).build())
            }
            (false, Some(slot)) => {
                on!(target, |fd| opcode::ReadvFixed::new(fd, list, count, slot).offset(offset).build())
            }
        }
    }

    #[inline]
    fn single_entry(&self, target: Target, write: bool, offset: u64, segment: Segment) -> squeue::Entry {
        let len = segment.len().min(ONE_MAX as usize) as u32;
        let address = segment.address();
        match (write, self.memory.find(segment)) {
            (true, None) => on!(target, |fd| opcode::Write::new(fd, address, len).offset(offset).build()),
            (false, None) => on!(target, |fd| opcode::Read::new(fd, address, len).offset(offset).build()),
            (true, Some(index)) => {
                on!(target, |fd| opcode::WriteFixed::new(fd, address, len, index).offset(offset).build())
            }
            (false, Some(index)) => {
                on!(target, |fd| opcode::ReadFixed::new(fd, address, len, index).offset(offset).build())
            }
        }
    }
}

fn statx_entry(fd: i32, statx: &mut libc::statx) -> squeue::Entry {
    let buffer = std::ptr::from_mut(statx).cast::<types::statx>();
    let entry = opcode::Statx::new(types::Fd(fd), c"".as_ptr(), buffer);
    entry.flags(libc::AT_EMPTY_PATH).mask(file::STATX_MASK).build()
}

impl Work {
    /// The file, the direction and the bytes of its next transfer, if that is what is next.
    pub(super) fn moves(&self) -> Option<(u32, bool, u64)> {
        match self {
            Work::Move { file, transfer } | Work::Zero { file, way: Way::Write(transfer), .. } => {
                Some((*file, transfer.write, transfer.next_len()))
            }
            _ => None,
        }
    }

    pub(super) fn help(task: SysTask) -> Work {
        Work::Help { task: Some(task) }
    }
}
