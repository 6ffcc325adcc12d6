//! What a result means for the operation that waited for it: the transitions between the steps of
//! [`super::work`].
//!
//! Invariant: EINTR and EAGAIN repeat the step (but close: its descriptor is gone whatever it answers).

use super::work::{Context, Next, Way, Work};
use crate::op::{Errno, FileId, Op, Output};
use crate::sys::file::{self, OpenFile};
use crate::sys::transfer::Progress;
use crate::sys::{SysOutcome, SysTask, space};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

impl Context {
    /// The ring answered.
    pub(super) fn after(&mut self, work: &mut Work, result: i32) -> Next {
        let result = u32::try_from(result).map_err(|_| Errno(result.wrapping_neg()));
        if let Work::Move { transfer, .. } = work {
            return match transfer.after(result.map(u64::from)) {
                Progress::Again => self.issue(work),
                Progress::Ended(result) => Next::Done(result.map(Output::Bytes)),
            };
        }
        let closing = matches!(work, Work::Close { .. });
        if let (Err(Errno(libc::EINTR | libc::EAGAIN)), false) = (result, closing) {
            return self.issue(work);
        }
        match self.transition(work, result) {
            Ok(Some(next)) => {
                *work = next;
                self.issue(work)
            }
            Ok(None) => Next::Done(Ok(Output::Done)),
            Err(end) => Next::Done(end),
        }
    }

    /// `Ok(Some)`: the next step; `Ok(None)`: done; `Err`: done with this answer.
    fn transition(
        &mut self,
        work: &mut Work,
        result: Result<u32, Errno>,
    ) -> Result<Option<Work>, Result<Output, Errno>> {
        // every branch puts the next step in its place
        match std::mem::replace(work, Work::Help { task: None }) {
            Work::Move { .. } | Work::Help { .. } => unreachable!("handled before"),
            Work::Sync { .. } | Work::SetLen { .. } => result.map(|_| None).map_err(Err),
            Work::Punch { .. } => match result {
                Err(Errno(libc::ENOSYS)) => Err(Err(Errno(libc::EOPNOTSUPP))),
                other => other.map(|_| None).map_err(Err),
            },
            Work::Zero { file, offset, end, way } => self.zero(file, offset, end, way, result).map_err(Err),
            Work::Discard { file, offset, len } => match result {
                Ok(_) => Ok(None),
                // a worker has other ways, and its answer counts
                Err(errno) => {
                    if errno == Errno(libc::EOPNOTSUPP) {
                        self.files.no_discards(file);
                    }
                    let op = Op::Discard { file: FileId(file), offset, len };
                    self.on_worker(FileId(file), op).map_err(Err)
                }
            },
            Work::Allocate { file, from, to } => match result {
                Err(errno) if space::unsupported(errno) => {
                    let op = Op::Grow { file: FileId(file), from, to, allocate: false };
                    self.on_worker(FileId(file), op).map_err(Err)
                }
                other => other.map(|_| None).map_err(Err),
            },
            Work::Stat { file, statx } => {
                let open = result.and_then(|_| self.files.get(FileId(file))).map_err(Err)?;
                match file::to_stat(&statx, open.direct(), open.store()) {
                    // its length takes an ioctl
                    stat if stat.block_device => {
                        self.on_worker(FileId(file), Op::Stat { file: FileId(file) }).map_err(Err)
                    }
                    stat => Err(Ok(Output::Stat(stat))),
                }
            }
            Work::Open { flags, .. } => {
                let fd = result.map_err(Err)? as i32;
                // SAFETY: the ring just opened it for us.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                Ok(Some(Work::Examine { fd, flags, statx: Box::new(file::blank_statx()) }))
            }
            Work::Examine { fd, flags, statx } => {
                result.map_err(Err)?;
                // the file system is asked which it is: no operation of the ring does that
                Ok(Some(Work::help(SysTask::Adopt { fd, flags, statx })))
            }
            Work::Register { index, .. } => {
                // refused: its plain descriptor does too
                self.files.set_fixed(index, result == Ok(1));
                Err(Ok(Output::Opened(FileId(index))))
            }
            Work::Unregister { index, .. } => {
                self.files.set_fixed(index, false);
                self.let_go(index).map(Some).map_err(Err)
            }
            Work::Close { fd } => {
                // closed, even if a late write error is reported
                let _ = fd.into_raw_fd();
                result.map(|_| None).map_err(Err)
            }
        }
    }

    fn zero(
        &mut self,
        file: u32,
        offset: u64,
        end: u64,
        way: Way,
        result: Result<u32, Errno>,
    ) -> Result<Option<Work>, Errno> {
        let open = self.files.get(FileId(file))?;
        let (direct, believed) = (open.direct(), open.believed());
        let (offset, way) = match (way, result) {
            (Way::Write(mut transfer), result) => match transfer.after(result.map(u64::from)) {
                Progress::Again => (offset, Way::Write(transfer)),
                Progress::Ended(Ok(moved)) if offset + moved == end => return Ok(None),
                Progress::Ended(Ok(moved)) => {
                    let offset = offset + moved;
                    (offset, Way::Write(space::zeros(direct, offset, end - offset)))
                }
                Progress::Ended(Err(errno)) => return Err(errno),
            },
            (Way::Punch, Err(errno)) if space::unsupported(errno) => {
                (offset, self.other_way(file, offset, end, believed.zero_range)?)
            }
            (Way::Zero, Err(errno)) if space::unsupported(errno) => {
                (offset, self.other_way(file, offset, end, false)?)
            }
            (_, other) => return other.map(|_| None),
        };
        Ok(Some(Work::Zero { file, offset, end, way }))
    }

    fn on_worker(&self, file: FileId, op: Op) -> Result<Option<Work>, Errno> {
        let file = Arc::clone(self.files.get(file)?);
        Ok(Some(Work::help(SysTask::On { file, op })))
    }

    fn opened(&mut self, file: OpenFile) -> Result<Option<Work>, Result<Output, Errno>> {
        let fd = file.fd();
        let index = self.files.insert(file);
        match self.files.can_fix(index) {
            true => Ok(Some(Work::Register { index, fd: Box::new(fd) })),
            false => Err(Ok(Output::Opened(FileId(index)))),
        }
    }

    /// A worker answered.
    pub(super) fn helped(&mut self, work: &mut Work, result: Result<SysOutcome, Errno>) -> Next {
        match result {
            Err(errno) => Next::Done(Err(errno)),
            Ok(SysOutcome::Done(output)) => Next::Done(Ok(output)),
            Ok(SysOutcome::Opened(file)) => match self.opened(file) {
                Ok(Some(next)) => {
                    *work = next;
                    self.issue(work)
                }
                Ok(None) => Next::Done(Ok(Output::Done)),
                Err(end) => Next::Done(end),
            },
        }
    }
}
