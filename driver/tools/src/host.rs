//! One file, blocking: operations of a worker thread, one at a time.
//!
//! Knows: the backend, the common half of the translation. Must never know: what is in it.

use crate::engine::open::{LOCK_PATIENCE, LOCK_RETRY};
use crate::engine::translate::{land_plain, plain};
use crate::error::Error;
use crate::layer::disk::LayerFile;
use crate::memory::arena::Arena;
use quod_backend::{Backend, Errno, FileId, LockMode, Op, OpenFlags, Output, Segments, Stat, Threads, Token};
use quod_states::{Format, Machine, probe};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// An open file. Closed, and its locks given back, when dropped.
pub(super) struct Host {
    // dropped first: nothing is in flight between calls, and after a failed wait it waits for what is
    backend: Threads,
    arena: Arena,
    file: LayerFile,
    /// Asked between operations of long works; true ends them with [`Error::Cancelled`].
    pub(super) stop: fn() -> bool,
}

impl Host {
    /// Opens a file that exists. Buffered: a tool has no use for alignment.
    pub(super) fn open(path: &Path, write: bool, lock: bool) -> Result<Host, Error> {
        // not a ring: when one is gone, the kernel interrupts the thread that had it some milliseconds later
        // (EINTR), and that thread may be one that waits in an event loop by then
        let backend =
            Threads::with_workers(1, 1).map_err(|error| Error::backend("setting up the backend", &error))?;
        let stat = Stat { len: 0, identity: (0, 0), offset_align: 1, memory_align: 1, block_device: false };
        let file = LayerFile { id: FileId(0), stat, path: path.to_path_buf() };
        let mut host = Host { backend, arena: Arena::new(), file, stop: || false };
        let name =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::io(path, "open", libc::EINVAL))?;
        let op = Op::Open { path: name, flags: OpenFlags { write, direct: false } };
        match host.run(op)? {
            Ok(Output::Opened(id)) => host.file.id = id,
            Ok(_) => return Err(Error::io(path, "open", libc::EIO)),
            Err(errno) => return Err(Error::io(path, "open", errno.0)),
        }
        if lock {
            host.lock(if write { LockMode::Write } else { LockMode::Read })?;
        }
        host.examine()?;
        Ok(host)
    }

    /// Opens a file for reading, as QEMU's tools do: who writes to it is refused, unless it is raw.
    pub(super) fn open_shared(path: &Path, format: Option<Format>) -> Result<Host, Error> {
        let mut host = Host::open(path, false, false)?;
        host.lock(LockMode::Share)?;
        let raw = match format {
            Some(format) => format == Format::Raw,
            None => host.probe()? == Format::Raw,
        };
        if !raw {
            host.lock(LockMode::Read)?;
            host.examine()?;
        }
        Ok(host)
    }

    /// Asks for the file's length and alignment.
    fn examine(&mut self) -> Result<(), Error> {
        let path = &self.file.path.clone();
        match self.run(Op::Stat { file: self.file.id })? {
            Ok(Output::Stat(stat)) => self.file.stat = stat,
            Ok(_) => return Err(Error::io(path, "examine", libc::EIO)),
            Err(errno) => return Err(Error::io(path, "examine", errno.0)),
        }
        Ok(())
    }

    /// Takes a lock; waits a little if somebody else has it.
    fn lock(&mut self, mode: LockMode) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            match self.run(Op::Lock { file: self.file.id, mode })? {
                Ok(_) => return Ok(()),
                Err(Errno(libc::EAGAIN | libc::EACCES)) if began.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(Errno(libc::EAGAIN | libc::EACCES)) => {
                    let lock = if mode == LockMode::Write { "write" } else { "read" };
                    return Err(Error::Locked { path: self.file.path.clone(), lock });
                }
                Err(errno) => return Err(Error::io(&self.file.path, "lock", errno.0)),
            }
        }
    }

    /// Runs one operation to its end.
    fn run(&mut self, op: Op) -> Result<Result<Output, Errno>, Error> {
        if self.backend.push(Token(0), op).is_err() {
            return Err(Error::Busy);
        }
        let mut done = Vec::new();
        loop {
            self.backend.wait(None).map_err(|error| Error::backend("waiting", &error))?;
            self.backend.clear_notify();
            self.backend.reap(&mut done);
            if let Some(done) = done.pop() {
                return Ok(done.result);
            }
        }
    }

    /// Bytes of the file when it was opened.
    pub(super) fn len(&self) -> u64 {
        self.file.stat.len
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// Up to `len` bytes, fewer at the end of the file.
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let loan = self.arena.take(len);
        let segments = Segments::from_iter([self.arena.segment(&loan, 0, len)]);
        let result = self.run(Op::Read { file: self.file.id, offset, segments })?;
        let bytes = match result {
            Ok(Output::Bytes(bytes)) => self.arena.bytes(&loan, len.min(bytes as usize)).to_vec(),
            Ok(_) => Vec::new(),
            Err(errno) => return Err(self.device("read", offset, errno)),
        };
        self.arena.give_back(loan);
        Ok(bytes)
    }

    /// The first `len` bytes; zeros past the end of a shorter file.
    pub(super) fn head(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = self.read(0, len)?;
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// The format that the file's bytes tell; one that quod does not read is an error.
    pub(super) fn probe(&mut self) -> Result<Format, Error> {
        let mut found = probe::head(&self.read(0, probe::HEAD)?);
        let tail = self.len().saturating_sub(probe::TAIL as u64);
        if found == Ok(Format::Raw)
            && tail > 0
            && let Some(foreign) = probe::tail(&self.read(tail, probe::TAIL)?)
        {
            found = Err(foreign);
        }
        found.map_err(|format| Error::Foreign { path: self.file.path.clone(), format })
    }

    /// Writes bytes.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let loan = self.arena.take(bytes.len());
        self.arena.bytes_mut(&loan, bytes.len()).copy_from_slice(bytes);
        let segments = Segments::from_iter([self.arena.segment(&loan, 0, bytes.len())]);
        let result = self.run(Op::Write { file: self.file.id, offset, segments })?;
        self.arena.give_back(loan);
        result.map(drop).map_err(|errno| self.device("write", offset, errno))
    }

    /// Writes zeros that take their space.
    pub(super) fn write_zeros(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            self.go_on()?;
            let now = (len - done).min(zeros.len() as u64);
            self.write(offset + done, &zeros[..now as usize])?;
            done += now;
        }
        Ok(())
    }

    /// Nobody has asked for an end.
    pub(super) fn go_on(&self) -> Result<(), Error> {
        if (self.stop)() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reserves the space of a range that the file does not have yet, if the file system can.
    pub(super) fn reserve(&mut self, from: u64, to: u64) -> Result<(), Error> {
        let result = self.run(Op::Grow { file: self.file.id, from, to, allocate: true })?;
        result.map(drop).map_err(|errno| self.device("reserve space", from, errno))
    }

    /// Makes the writes durable.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        let result = self.run(Op::Sync { file: self.file.id })?;
        result.map(drop).map_err(|errno| self.device("sync", 0, errno))
    }

    /// Sets the file's length.
    pub(super) fn set_len(&mut self, len: u64) -> Result<(), Error> {
        let result = self.run(Op::SetLen { file: self.file.id, len })?;
        result.map(drop).map_err(|errno| self.device("set length", len, errno))
    }

    fn device(&self, op: &'static str, offset: u64, errno: Errno) -> Error {
        let path: PathBuf = self.file.path.clone();
        match errno.0 {
            libc::ENOSPC | libc::EDQUOT => Error::NoSpace { path },
            errno => Error::Device { path, op, offset, errno },
        }
    }

    /// Does all that a machine without guest bytes wants, until `ended` answers.
    pub(super) fn pump<M: Machine, T>(
        &mut self,
        machine: &mut M,
        mut ended: impl FnMut(&mut M) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            if let Some(result) = ended(machine) {
                return Ok(result);
            }
            self.go_on()?;
            let Some(io) = machine.poll_io() else {
                return Err(Error::Misuse("the machine wants nothing and has not ended"));
            };
            match plain(machine, &mut self.arena, &self.file, false, &io) {
                Some((task, op)) => {
                    let result = self.run(op)?;
                    land_plain(machine, &mut self.arena, io.id, task, result);
                }
                None => return Err(Error::Misuse("the machine wants guest bytes")),
            }
        }
    }
}
