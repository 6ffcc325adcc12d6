//! An open image file: opening, kind, length, alignment.
//!
//! Knows: open(2), statx(2). Must never know: who asks.
//! Invariants: only regular files and block devices become an [`OpenFile`] (a FIFO or a terminal named by an
//! untrusted image would block for ever); locks are given back before the descriptor is closed.

use super::call::retry;
use super::lock;
use crate::op::{Errno, LockMode, OpenFlags, Stat};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// Not in every libc that we build for.
const STATX_DIOALIGN: u32 = 0x2000;
/// `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: u64 = 0x8008_1272;
/// What O_DIRECT needs where the kernel does not say: a page satisfies every device.
const DIRECT_ALIGN: u32 = 4096;

#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: OwnedFd,
    direct: bool,
    held: Mutex<LockMode>,
}

impl OpenFile {
    pub(crate) fn open(path: &CStr, flags: OpenFlags) -> Result<OpenFile, Errno> {
        // SAFETY: a NUL terminated path.
        let fd = retry(|| unsafe { libc::open(path.as_ptr(), open_flags(flags)) })?;
        // SAFETY: just opened, owned by nobody else; a descriptor fits an i32.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let statx = statx(fd.as_raw_fd())?;
        OpenFile::adopt(fd, flags, &statx)
    }

    /// Takes over a descriptor that was opened with [`open_flags`]. Does one quick fcntl.
    pub(crate) fn adopt(fd: OwnedFd, flags: OpenFlags, statx: &libc::statx) -> Result<OpenFile, Errno> {
        match u32::from(statx.stx_mode) & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFBLK => {}
            libc::S_IFDIR => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::EINVAL)),
        }
        // O_NONBLOCK kept the open from blocking; io_uring would turn it into EAGAIN on reads
        let status = if flags.direct { libc::O_DIRECT } else { 0 };
        // SAFETY: no pointers.
        retry(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status) })?;
        Ok(OpenFile { fd, direct: flags.direct, held: Mutex::new(LockMode::None) })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(crate) fn direct(&self) -> bool {
        self.direct
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        let mut stat = to_stat(&statx(self.fd())?, self.direct);
        if stat.block_device {
            stat.len = device_len(self.fd())?;
        }
        Ok(stat)
    }

    /// Takes, changes or gives back locks; on failure what was held before is held still.
    pub(crate) fn lock(&self, mode: LockMode) -> Result<(), Errno> {
        // a panic cannot happen while it is held: poisoning is ignored
        let mut held = self.held.lock().unwrap_or_else(|e| e.into_inner());
        lock::change(self.fd(), *held, mode)?;
        *held = mode;
        Ok(())
    }

    pub(crate) fn locked(&self) -> bool {
        *self.held.lock().unwrap_or_else(|e| e.into_inner()) != LockMode::None
    }

    /// Gives the locks back. Closing alone does not: the ring's file table, or a process that was forked and
    /// has not called exec yet, may hold the description a little longer.
    pub(crate) fn unlock(&self) {
        if self.locked() {
            // a failing unlock leaves it to close
            let _ = self.lock(LockMode::None);
        }
    }
}

/// Flags for open(2). O_NONBLOCK: opening a FIFO must not wait for its other end.
pub(crate) fn open_flags(flags: OpenFlags) -> i32 {
    let access = if flags.write { libc::O_RDWR } else { libc::O_RDONLY };
    let direct = if flags.direct { libc::O_DIRECT } else { 0 };
    access | direct | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY
}

/// The fields that [`to_stat`] needs.
pub(crate) const STATX_MASK: u32 = libc::STATX_BASIC_STATS | STATX_DIOALIGN;

/// To be filled.
pub(crate) fn blank_statx() -> libc::statx {
    // SAFETY: all zero bytes are a valid statx.
    unsafe { std::mem::zeroed() }
}

fn statx(fd: RawFd) -> Result<libc::statx, Errno> {
    let mut buffer = blank_statx();
    let pointer = &raw mut buffer;
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor itself; the buffer is ours.
    retry(|| unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, STATX_MASK, pointer) })?;
    Ok(buffer)
}

/// Everything but a block device's length, which takes [`device_len`].
pub(crate) fn to_stat(statx: &libc::statx, direct: bool) -> Stat {
    let (memory_align, offset_align) = match direct {
        false => (1, 1),
        true if statx.stx_mask & STATX_DIOALIGN != 0 && statx.stx_dio_offset_align != 0 => {
            (statx.stx_dio_mem_align.max(1), statx.stx_dio_offset_align)
        }
        true => (DIRECT_ALIGN, DIRECT_ALIGN),
    };
    let block_device = u32::from(statx.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
    // a block device is what its device number says, whichever node names it
    let identity = if block_device {
        (u64::from(libc::S_IFBLK), libc::makedev(statx.stx_rdev_major, statx.stx_rdev_minor))
    } else {
        (libc::makedev(statx.stx_dev_major, statx.stx_dev_minor), statx.stx_ino)
    };
    Stat { len: statx.stx_size, identity, offset_align, memory_align, block_device }
}

fn device_len(fd: RawFd) -> Result<u64, Errno> {
    let mut len = 0u64;
    let pointer = &raw mut len;
    // SAFETY: BLKGETSIZE64 writes one u64.
    retry(|| unsafe { libc::ioctl(fd, BLKGETSIZE64 as _, pointer) })?;
    Ok(len)
}
