//! One file, blocking: operations of a worker thread, one at a time.
//!
//! Knows: the backend's blocking face, what a machine without guest bytes can name. Must never know: what is
//! in the file.

use quod::{BackendOp, DeviceOp, Error, ErrorKind, FileOp, FileRole, LOCK_PATIENCE, LOCK_RETRY, Lack, Lock};
use quod_backend::blocking::{Answer, BlockingFile};
use quod_backend::{Errno, LockMode, OpenFlags};
use quod_states::{Format, Io, IoOp, Machine, Outcome, probe};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of a device that are zeroed between two looks at whether to go on.
const ZERO_AT_ONCE: u64 = 256 << 20;

/// An open file. Closed, and its locks given back, when dropped.
pub(crate) struct Host {
    file: BlockingFile,
    path: PathBuf,
    role: FileRole,
    len: u64,
    is_device: bool,
    /// Memory of the tables that a machine reads.
    table: Vec<u8>,
    /// Asked between operations of long works; true ends them with [`Error::Cancelled`].
    pub(crate) stop: fn() -> bool,
}

/// What the backend answered, or that it failed itself.
fn answered<T>(answer: Answer<T>) -> Result<Result<T, Errno>, Error> {
    answer.map_err(|error| Error::backend(BackendOp::Wait, &error))
}

impl Host {
    /// Opens a file that exists. Buffered: a tool has no use for alignment.
    pub(crate) fn open(path: &Path, write: bool, lock: bool) -> Result<Host, Error> {
        Host::open_as(FileRole::Image, path, write, lock)
    }

    /// The same of a file that is not the image itself.
    pub(crate) fn open_as(role: FileRole, path: &Path, write: bool, lock: bool) -> Result<Host, Error> {
        let failed = |errno| Error::io(path, role, FileOp::opening(errno), errno);
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(libc::EINVAL))?;
        let file = BlockingFile::open(name, OpenFlags { write, direct: false, claim: write && lock })
            .map_err(|error| Error::backend(BackendOp::SetUp, &error))?
            .map_err(|errno| failed(errno.0))?;
        let mut host = Host {
            file,
            path: path.to_path_buf(),
            role,
            len: 0,
            is_device: false,
            table: Vec::new(),
            stop: || false,
        };
        if lock {
            host.lock(if write { LockMode::Write } else { LockMode::Read })?;
        }
        host.examine()?;
        Ok(host)
    }

    /// Opens a file for reading, as QEMU's tools do: whoever writes to it is refused, unless it is raw.
    pub(crate) fn open_shared(path: &Path, format: Option<Format>) -> Result<Host, Error> {
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

    /// Asks for the file's length.
    fn examine(&mut self) -> Result<(), Error> {
        let stat = answered(self.file.stat())?;
        let stat = stat.map_err(|errno| self.io(FileOp::Examine, errno))?;
        (self.len, self.is_device) = (stat.len, stat.block_device);
        Ok(())
    }

    /// Takes a lock; waits a little if somebody else has it.
    fn lock(&mut self, mode: LockMode) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            match answered(self.file.lock(mode))? {
                Ok(()) => return Ok(()),
                Err(Errno(libc::EAGAIN | libc::EACCES)) if began.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(Errno(libc::EAGAIN | libc::EACCES)) => {
                    let lock = if mode == LockMode::Write { Lock::Write } else { Lock::Read };
                    return Err(self.fault(ErrorKind::Locked(lock)));
                }
                Err(errno) => return Err(self.io(FileOp::locking(errno.0), errno)),
            }
        }
    }

    /// Bytes of the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Has the file system allocate so many bytes at once, where it does that.
    pub(crate) fn hint_extents(&mut self, bytes: u32) -> Result<(), Error> {
        // elsewhere the file is as good
        answered(self.file.hint_extents(bytes)).map(drop)
    }

    /// It is a block device: it has the length that it has.
    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Makes a range of a device read as zeros; `unmap`: a device that can may give the space back.
    pub(crate) fn zero(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        let end = offset + len;
        for at in (offset..end).step_by(ZERO_AT_ONCE as usize) {
            self.go_on()?;
            let zeroed = answered(self.file.zero_range(at, (end - at).min(ZERO_AT_ONCE), unmap))?;
            zeroed.map_err(|errno| self.device(DeviceOp::Write, at, errno))?;
        }
        Ok(())
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Up to `len` bytes, fewer at the end of the file.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        let read = answered(self.file.read(offset, &mut bytes))?;
        bytes.truncate(read.map_err(|errno| self.device(DeviceOp::Read, offset, errno))?);
        Ok(bytes)
    }

    /// The first `len` bytes; zeros past the end of a shorter file.
    pub(crate) fn head(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = self.read(0, len)?;
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// The format that the file's bytes tell; one that quod does not read is an error.
    pub(crate) fn probe(&mut self) -> Result<Format, Error> {
        let mut found = probe::head(&self.read(0, probe::HEAD)?);
        let tail = self.len().saturating_sub(probe::TAIL as u64);
        if found == Ok(Format::Raw)
            && tail > 0
            && let Some(foreign) = probe::tail(&self.read(tail, probe::TAIL)?)
        {
            found = Err(foreign);
        }
        found.map_err(|format| self.fault(ErrorKind::Foreign(format)))
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        answered(self.file.write(offset, bytes))?.map_err(|errno| self.device(DeviceOp::Write, offset, errno))
    }

    /// Writes zeros that take their space.
    pub(crate) fn write_zeros(&mut self, offset: u64, len: u64) -> Result<(), Error> {
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
    pub(crate) fn go_on(&self) -> Result<(), Error> {
        if (self.stop)() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reserves the space of a range that the file does not have yet, if the file system can.
    pub(crate) fn reserve(&mut self, from: u64, to: u64) -> Result<(), Error> {
        answered(self.file.grow(from, to, true))?.map_err(|errno| self.device(DeviceOp::Reserve, from, errno))
    }

    /// Makes the writes durable.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        answered(self.file.sync())?.map_err(|errno| self.device(DeviceOp::Sync, 0, errno))
    }

    /// Sets the file's length.
    pub(crate) fn set_len(&mut self, len: u64) -> Result<(), Error> {
        answered(self.file.set_len(len))?.map_err(|errno| self.device(DeviceOp::SetLen, len, errno))
    }

    fn device(&self, op: DeviceOp, offset: u64, errno: Errno) -> Error {
        self.fault(match errno.0 {
            libc::ENOSPC | libc::EDQUOT => ErrorKind::NoSpace,
            errno => ErrorKind::Device { op, offset, errno },
        })
    }

    fn io(&self, op: FileOp, errno: Errno) -> Error {
        Error::io(&self.path, self.role, op, errno.0)
    }

    /// What is the matter with the file.
    pub(crate) fn fault(&self, kind: ErrorKind) -> Error {
        Error::of(&self.path, self.role, kind)
    }

    /// What a machine or a codec said of it.
    pub(crate) fn error(&self, error: &quod_states::Error) -> Error {
        Error::from_core(&self.path, self.role, error)
    }

    /// Does all that a machine without guest bytes wants, until `ended` answers.
    pub(crate) fn pump<M: Machine, T>(
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
            while let Some((offset, len)) = machine.poll_ahead() {
                self.file.will_read(offset, len);
            }
            self.serve(machine, &io)?;
        }
    }

    /// Does what the machine named, and tells it.
    fn serve<M: Machine>(&mut self, machine: &mut M, io: &Io) -> Result<(), Error> {
        let answer = match io.op {
            IoOp::ReadTable { offset, len } => {
                self.table.resize(len as usize, 0);
                match answered(self.file.read(offset, &mut self.table))? {
                    Ok(read) => {
                        // zeros behind the end of the file
                        self.table[read..].fill(0);
                        machine.handle_completion(io.id, Outcome::Table(&self.table));
                    }
                    Err(errno) => machine.handle_completion(io.id, Outcome::Failed(errno.0)),
                }
                return Ok(());
            }
            IoOp::WriteTable { offset, len } => {
                let mut bytes = vec![0; len as usize];
                machine.encode(io.id, &mut bytes);
                self.file.write(offset, &bytes)
            }
            IoOp::ZeroRange { host, len, unmap } => self.file.zero_range(host, len, unmap),
            IoOp::PunchHole { host, len } => self.file.punch_hole(host, len),
            IoOp::Clear { host, len } => self.file.zero_range(host, len, false),
            IoOp::Grow { from, to } => self.file.grow(from, to, false),
            IoOp::SetLen { len } => self.file.set_len(len),
            IoOp::Length => return Err(Error::Misuse("a machine without guest bytes asks for no length")),
            IoOp::Sync => self.file.sync(),
            IoOp::ReadData { .. }
            | IoOp::Discard { .. }
            | IoOp::ReadBacking { .. }
            | IoOp::ReadCompressed { .. }
            | IoOp::ForgetCompressed { .. }
            | IoOp::Yield
            | IoOp::ZeroBuffer { .. }
            | IoOp::ReadFill { .. }
            | IoOp::Compress { .. }
            | IoOp::WriteCompressed { .. }
            | IoOp::WriteData { .. } => return Err(Error::Misuse("the machine wants guest bytes")),
        };
        let outcome = match answered(answer)? {
            Ok(()) => Outcome::Done,
            Err(errno) => Outcome::Failed(errno.0),
        };
        machine.handle_completion(io.id, outcome);
        Ok(())
    }
}

pub(crate) fn unsupported(path: &Path, lack: Lack) -> Error {
    Error::of(path, FileRole::Image, ErrorKind::Unsupported(lack))
}
