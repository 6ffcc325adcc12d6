//! One file whose operations are waited for: for tools and tests, never for event loops.
//!
//! Knows: system calls, a worker, one file, memory of its own. Must never know: image formats, who asks.
//! Invariants: one operation at a time; memory that a worker may still use is kept until the worker is gone,
//! also when a wait fails.
//!
//! What changes the file is done by a worker: its write beyond the process's limit of a file's length is an
//! error, and not the process's end. All else the caller's thread does itself, as it would sleep until then
//! anyway, and to wake two threads takes longer than most reads. No ring does it: when a ring is gone, the
//! kernel interrupts the thread that had it some milliseconds later (EINTR), and that thread may be one that
//! waits in an event loop by then.

use crate::buffer::{Buffer, Segment, Segments};
use crate::op::{Errno, FileId, LockMode, Op, OpenFlags, Stat};
use crate::pool::Crew;
use crate::sys::event::EventFd;
use crate::sys::file::OpenFile;
use crate::sys::pool::{Finished, SysJob, SysPool};
use crate::sys::transfer::{self, Transfer};
use crate::sys::{SysTask, extents, space};
use std::ffi::CString;
use std::io;
use std::sync::Arc;

/// Memory of this size is kept between two operations.
const KEPT: usize = 1 << 20;
/// An operation names its file by a number; there is one.
const FILE: FileId = FileId(0);

/// What an operation answered; the outer error is the backend's own.
pub type Answer<T> = io::Result<Result<T, Errno>>;

/// An open file. Closed, and its locks given back, when dropped.
pub struct BlockingFile {
    file: Arc<OpenFile>,
    /// Started for the first change.
    worker: Option<(SysPool, Arc<EventFd>)>,
    /// A wait for the worker failed: nobody knows what it still does.
    failed: bool,
    /// The memory of the operation in flight, and of those that nobody could wait for.
    lent: Vec<Buffer>,
    spare: Option<Buffer>,
}

impl BlockingFile {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// The inner one: the system's errno; EISDIR, EINVAL: neither a regular file nor a block device.
    pub fn open(path: CString, flags: OpenFlags) -> Answer<BlockingFile> {
        Ok(OpenFile::open(&path, flags).map(|file| BlockingFile {
            file: Arc::new(file),
            worker: None,
            failed: false,
            lent: Vec::new(),
            spare: None,
        }))
    }

    /// Length, kind and alignment.
    ///
    /// # Errors
    /// The inner one: the system's errno.
    pub fn stat(&mut self) -> Answer<Stat> {
        Ok(self.file.stat())
    }

    /// The file, in which nothing is yet, is to be allocated in pieces of so many bytes.
    ///
    /// # Errors
    /// The inner one: the system's errno, ENOTTY or EOPNOTSUPP where a file system has no such thing (most
    /// but XFS), EINVAL where it does not like the number: nothing has changed.
    pub fn hint_extents(&mut self, bytes: u32) -> Answer<()> {
        Ok(extents::hint(self.file.fd(), bytes))
    }

    /// Takes, changes or drops locks; EAGAIN if somebody else holds a conflicting one.
    ///
    /// # Errors
    /// The inner one: EAGAIN as said, ENOLCK, ENOSYS or EOPNOTSUPP where there are no locks.
    pub fn lock(&mut self, mode: LockMode) -> Answer<()> {
        Ok(self.file.lock(mode))
    }

    /// Fills `bytes` from `offset` on; how many there were, fewer at the end of the file. A file that was
    /// opened with `direct` reads whole blocks into memory that is aligned to them.
    ///
    /// # Errors
    /// The inner one: the system's errno; nothing is known of `bytes` then.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Answer<usize> {
        // SAFETY: the bytes are borrowed until this call returns, and so does the transfer.
        let segment = unsafe { Segment::new(bytes.as_mut_ptr(), bytes.len()) };
        let transfer = Transfer::of(&self.file, false, offset, Segments::from_iter([segment]));
        Ok(transfer::run(&self.file, transfer).map(|read| read as usize))
    }

    /// The range will be read soon: a device that has the time may begin to. Without effect on a file that
    /// was opened with `direct`.
    pub fn will_read(&mut self, offset: u64, len: u64) {
        space::will_read(&self.file, offset, len);
    }

    /// Writes all of these bytes.
    ///
    /// # Errors
    /// The inner one: the system's errno; any part may have been written. The outer one: a worker could not
    /// be started or waited for.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<()> {
        let segments = self.lend(bytes);
        let answer = self.change(Op::Write { file: FILE, offset, segments })?;
        let buffer = self.lent.pop();
        self.spare = buffer.filter(|buffer| buffer.as_slice().len() <= KEPT);
        Ok(answer)
    }

    /// The range reads as zeros afterwards; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As of [`BlockingFile::write`].
    pub fn zero_range(&mut self, offset: u64, len: u64, unmap: bool) -> Answer<()> {
        self.change(Op::ZeroRange { file: FILE, offset, len, unmap })
    }

    /// Punches a hole.
    ///
    /// # Errors
    /// As of [`BlockingFile::write`]; EOPNOTSUPP: the file system cannot, or is not believed.
    pub fn punch_hole(&mut self, offset: u64, len: u64) -> Answer<()> {
        self.change(Op::PunchHole { file: FILE, offset, len })
    }

    /// Grows the file; `allocate`: with space of its own, if the file system can.
    ///
    /// # Errors
    /// As of [`BlockingFile::write`]; ENOSPC, of a block device too that is shorter than `to`.
    pub fn grow(&mut self, from: u64, to: u64, allocate: bool) -> Answer<()> {
        self.change(Op::Grow { file: FILE, from, to, allocate })
    }

    /// Sets the file's length.
    ///
    /// # Errors
    /// As of [`BlockingFile::write`]; ENOSPC of a block device that is shorter.
    pub fn set_len(&mut self, len: u64) -> Answer<()> {
        self.change(Op::SetLen { file: FILE, len })
    }

    /// Makes the writes durable.
    ///
    /// # Errors
    /// The inner one: the system's errno; what was written before may be lost.
    pub fn sync(&mut self) -> Answer<()> {
        Ok(space::sync(self.file.fd()))
    }

    /// Memory with these bytes for the next operation.
    fn lend(&mut self, bytes: &[u8]) -> Segments {
        let spare = self.spare.take().filter(|spare| spare.as_slice().len() >= bytes.len());
        let mut buffer = spare.unwrap_or_else(|| Buffer::zeroed(bytes.len()));
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the buffer stays in `lent`, untouched, until the operation has ended; if nobody can wait
        // for that, until the worker is gone. Moving a `Buffer` does not move its bytes.
        let segment = unsafe { buffer.segment(0, bytes.len()) };
        self.lent.push(buffer);
        Segments::from_iter([segment])
    }

    /// Has the worker do one operation, to its end.
    fn change(&mut self, op: Op) -> Answer<()> {
        if self.failed {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if self.worker.is_none() {
            let event = Arc::new(EventFd::new()?);
            let crew = Crew { first: 1, most: 1, cpus: None };
            self.worker = Some((SysPool::with_event(Arc::clone(&event), crew)?, event));
        }
        let Some((worker, event)) = &mut self.worker else { return Err(io::Error::other("no worker")) };
        worker.submit(&mut vec![SysJob { id: 0, task: SysTask::On { file: Arc::clone(&self.file), op } }]);
        self.failed = true;
        let mut done = Vec::new();
        loop {
            event.sleep(None)?;
            event.clear();
            worker.collect(&mut done);
            if let Some(Finished { result, .. }) = done.pop() {
                self.failed = false;
                return Ok(result.map(drop));
            }
        }
    }
}

impl Drop for BlockingFile {
    fn drop(&mut self) {
        // first: it waits for what a failed wait left in flight
        self.worker = None;
        // closing alone would leave them to a process that was forked meanwhile, until it calls exec
        self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn read(file: &mut BlockingFile, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![1; len];
        let read = file.read(offset, &mut bytes).unwrap().unwrap();
        bytes.truncate(read);
        bytes
    }

    #[test]
    fn bytes_come_back_and_the_end_of_the_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 10]).unwrap();
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        let flags = OpenFlags { write: true, direct: false, claim: false };
        let mut file = BlockingFile::open(name, flags).unwrap().unwrap();
        assert_eq!(file.stat().unwrap().unwrap().len, 10);
        file.lock(LockMode::Write).unwrap().unwrap();
        assert!(file.worker.is_none(), "to look needs no worker");
        // long, short and long again: memory that is used again holds nothing of what it held
        file.write(4, &[9; 5000]).unwrap().unwrap();
        file.write(4, &[9]).unwrap().unwrap();
        assert_eq!(read(&mut file, 0, 6), [7, 7, 7, 7, 9, 9]);
        file.will_read(0, 1 << 20);
        assert_eq!(read(&mut file, 5000, 100), [9; 4]);
        assert_eq!(read(&mut file, 9000, 100), [0; 0]);
        file.zero_range(0, 5, false).unwrap().unwrap();
        file.set_len(6).unwrap().unwrap();
        file.grow(6, 8, false).unwrap().unwrap();
        file.sync().unwrap().unwrap();
        assert_eq!(read(&mut file, 0, 100), [0, 0, 0, 0, 0, 9, 0, 0]);
        assert!(file.lent.is_empty());
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), [0, 0, 0, 0, 0, 9, 0, 0]);
    }

    #[test]
    fn a_file_that_is_not_there_is_an_answer() {
        let answer = BlockingFile::open(c"/nowhere/file".into(), OpenFlags::default()).unwrap();
        assert_eq!(answer.map(drop), Err(Errno(libc::ENOENT)));
    }
}
