//! One file whose operations are waited for: for tools and tests, never for event loops.
//!
//! Knows: the worker pool, one file, memory of its own. Must never know: image formats, who asks.
//! Invariants: one operation at a time; memory that an operation may still use is kept until the backend is
//! gone, also when a wait fails.
//!
//! A worker does the work, and no ring: when a ring is gone, the kernel interrupts the thread that had it
//! some milliseconds later (EINTR), and that thread may be one that waits in an event loop by then. And a
//! worker's write beyond the process's limit of a file's length is an error, and not the process's end.

use crate::buffer::{Buffer, Segments};
use crate::op::{Errno, FileId, LockMode, Op, OpenFlags, Output, Stat, Token};
use crate::{Backend, Threads};
use std::ffi::CString;
use std::io;

/// Memory of this size is kept between two operations.
const KEPT: usize = 1 << 20;

/// What an operation answered; the outer error is the backend's own.
pub type Answer<T> = io::Result<Result<T, Errno>>;

/// An open file. Closed, and its locks given back, when dropped.
pub struct BlockingFile {
    // dropped first: it waits for what a failed wait left in flight
    backend: Threads,
    /// The memory of the operation in flight, and of those that nobody could wait for.
    lent: Vec<Buffer>,
    spare: Option<Buffer>,
    file: FileId,
}

impl BlockingFile {
    /// Opens a file that exists.
    pub fn open(path: CString, flags: OpenFlags) -> Answer<BlockingFile> {
        let backend = Threads::with_workers(1, 1)?;
        let mut file = BlockingFile { backend, lent: Vec::new(), spare: None, file: FileId(0) };
        match file.run(Op::Open { path, flags })? {
            Ok(Output::Opened(id)) => file.file = id,
            Ok(_) => return Ok(Err(Errno(libc::EIO))),
            Err(errno) => return Ok(Err(errno)),
        }
        Ok(Ok(file))
    }

    /// Length, kind and alignment.
    pub fn stat(&mut self) -> Answer<Stat> {
        let answer = self.run(Op::Stat { file: self.file })?;
        Ok(answer.and_then(|output| match output {
            Output::Stat(stat) => Ok(stat),
            _ => Err(Errno(libc::EIO)),
        }))
    }

    /// Takes, changes or drops locks; EAGAIN if somebody else holds a conflicting one.
    pub fn lock(&mut self, mode: LockMode) -> Answer<()> {
        self.done(Op::Lock { file: self.file, mode })
    }

    /// Up to `len` bytes, fewer at the end of the file.
    pub fn read(&mut self, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let segments = self.lend(len, |_| {});
        let answer = self.run(Op::Read { file: self.file, offset, segments })?;
        let buffer = self.take_back();
        let bytes = answer.map(|output| match output {
            Output::Bytes(bytes) => buffer.as_slice()[..len.min(bytes as usize)].to_vec(),
            _ => Vec::new(),
        });
        self.keep(buffer);
        Ok(bytes)
    }

    /// Writes all of these bytes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<()> {
        let segments = self.lend(bytes.len(), |memory| memory.copy_from_slice(bytes));
        let answer = self.done(Op::Write { file: self.file, offset, segments })?;
        let buffer = self.take_back();
        self.keep(buffer);
        Ok(answer)
    }

    /// The range reads as zeros afterwards; with `unmap` its space may be given back.
    pub fn zero_range(&mut self, offset: u64, len: u64, unmap: bool) -> Answer<()> {
        self.done(Op::ZeroRange { file: self.file, offset, len, unmap })
    }

    /// Punches a hole.
    pub fn punch_hole(&mut self, offset: u64, len: u64) -> Answer<()> {
        self.done(Op::PunchHole { file: self.file, offset, len })
    }

    /// Grows the file; `allocate`: with space of its own, if the file system can.
    pub fn grow(&mut self, from: u64, to: u64, allocate: bool) -> Answer<()> {
        self.done(Op::Grow { file: self.file, from, to, allocate })
    }

    /// Sets the file's length.
    pub fn set_len(&mut self, len: u64) -> Answer<()> {
        self.done(Op::SetLen { file: self.file, len })
    }

    /// Makes the writes durable.
    pub fn sync(&mut self) -> Answer<()> {
        self.done(Op::Sync { file: self.file })
    }

    fn done(&mut self, op: Op) -> Answer<()> {
        Ok(self.run(op)?.map(drop))
    }

    /// Memory for the next operation.
    fn lend(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Segments {
        let spare = self.spare.take().filter(|spare| spare.as_slice().len() >= len);
        let mut buffer = spare.unwrap_or_else(|| Buffer::zeroed(len));
        fill(&mut buffer.as_mut_slice()[..len]);
        // SAFETY: the buffer stays in `lent`, untouched, until the operation was reaped; if that fails, until
        // the backend is gone, which waits for what runs. Moving a `Buffer` does not move its bytes.
        let segment = unsafe { buffer.segment(0, len) };
        self.lent.push(buffer);
        Segments::from_iter([segment])
    }

    /// The memory of the operation that has ended.
    fn take_back(&mut self) -> Buffer {
        self.lent.pop().unwrap_or_else(|| Buffer::zeroed(0))
    }

    fn keep(&mut self, buffer: Buffer) {
        let larger = self.spare.as_ref().is_none_or(|spare| spare.as_slice().len() < buffer.as_slice().len());
        if larger && buffer.as_slice().len() <= KEPT {
            self.spare = Some(buffer);
        }
    }

    /// Runs one operation to its end.
    fn run(&mut self, op: Op) -> Answer<Output> {
        if self.backend.push(Token(0), op).is_err() {
            // only after a wait that failed
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let mut done = Vec::new();
        loop {
            self.backend.wait(None)?;
            self.backend.clear_notify();
            self.backend.reap(&mut done);
            if let Some(done) = done.pop() {
                return Ok(done.result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

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
        // long, short and long again: memory that is used again holds nothing of what it held
        file.write(4, &[9; 5000]).unwrap().unwrap();
        assert_eq!(file.read(0, 6).unwrap().unwrap(), [7, 7, 7, 7, 9, 9]);
        assert_eq!(file.read(5000, 100).unwrap().unwrap(), [9; 4]);
        assert_eq!(file.read(9000, 100).unwrap().unwrap(), [0; 0]);
        file.zero_range(0, 5, false).unwrap().unwrap();
        file.set_len(6).unwrap().unwrap();
        file.grow(6, 8, false).unwrap().unwrap();
        file.sync().unwrap().unwrap();
        assert_eq!(file.read(0, 100).unwrap().unwrap(), [0, 0, 0, 0, 0, 9, 0, 0]);
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
