//! An open image file: opening, kind, length, alignment, which of its answers are believed.
//!
//! Knows: open(2), statx(2), statfs(2). Must never know: who asks.
//! Invariants: only regular files and block devices become an [`OpenFile`] (a FIFO or a terminal named by an
//! untrusted image would block for ever); locks are given back before the descriptor is closed.

use super::call::{errno_of, retry};
use super::device::{self, Device};
use super::lock;
use crate::op::{Errno, LockMode, OpenFlags, Proven, Stat, Store};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

/// Not in every libc that we build for.
const STATX_DIOALIGN: u32 = 0x2000;
/// What O_DIRECT needs where the kernel does not say: a page satisfies every device.
const DIRECT_ALIGN: u32 = 4096;

/// File systems whose fallocate does what it answers; libc has most of the numbers. A stacked one (overlayfs)
/// is only as good as what lies below, so none is here.
const KNOWN: [i64; 6] = [
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    0xca45_1a4e, // bcachefs
];
const FUSE: i64 = libc::FUSE_SUPER_MAGIC;

fn store_of(magic: i64) -> Store {
    match magic & 0xffff_ffff {
        FUSE => Store::Fuse,
        magic if KNOWN.contains(&magic) => Store::Known,
        _ => Store::Unknown,
    }
}

#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: OwnedFd,
    direct: bool,
    store: Store,
    /// It is a block device.
    device: Option<Device>,
    /// What fallocate answers is believed: bits.
    believed: AtomicU8,
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

    /// Takes over a descriptor of somebody else's making.
    pub(crate) fn receive(fd: Arc<OwnedFd>, flags: OpenFlags) -> Result<OpenFile, Errno> {
        let fd = match Arc::try_unwrap(fd) {
            Ok(fd) => fd,
            Err(shared) => shared.try_clone().map_err(|error| errno_of(&error))?,
        };
        // SAFETY: no pointers.
        let status = retry(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })? as i32;
        match status & libc::O_ACCMODE {
            _ if status & libc::O_PATH != 0 => return Err(Errno(libc::EBADF)),
            libc::O_RDWR => {}
            libc::O_RDONLY if !flags.write => {}
            _ => return Err(Errno(libc::EACCES)),
        }
        // Linux would write at the end, whatever the offset
        if status & libc::O_APPEND != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let statx = statx(fd.as_raw_fd())?;
        let direct = flags.direct || status & libc::O_DIRECT != 0;
        OpenFile::adopt(fd, OpenFlags { direct, claim: false, ..flags }, &statx)
    }

    /// Takes over a descriptor that was opened with [`open_flags`]. Asks the file system which it is, and
    /// that may take as long as any other question.
    pub(crate) fn adopt(fd: OwnedFd, flags: OpenFlags, statx: &libc::statx) -> Result<OpenFile, Errno> {
        let is_device = match u32::from(statx.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => false,
            libc::S_IFBLK => true,
            libc::S_IFDIR => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno(libc::EINVAL)),
        };
        let fd = if is_device && flags.claim { device::claim(fd, open_flags(flags))? } else { fd };
        // O_NONBLOCK kept the open from blocking; io_uring would turn it into EAGAIN on reads
        let status = if flags.direct { libc::O_DIRECT } else { 0 };
        // SAFETY: no pointers.
        retry(|| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, status) })?;
        let device = is_device.then(|| Device::of(statx.stx_rdev_major, statx.stx_rdev_minor));
        let store = match is_device {
            // statfs would answer for the file system of its node
            true => Store::Known,
            false => store_of(magic(fd.as_raw_fd())?),
        };
        let believed = if store == Store::Known { Proven::ALL } else { Proven::NONE };
        Ok(OpenFile {
            fd,
            direct: flags.direct,
            store,
            device,
            believed: AtomicU8::new(believed.bits()),
            held: Mutex::default(),
        })
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

    pub(crate) fn store(&self) -> Store {
        self.store
    }

    /// It is a block device: as long as it is, whoever asks.
    pub(crate) fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// A device takes no more bytes than that in one request.
    pub(crate) fn bytes_at_once(&self) -> u64 {
        self.device.as_ref().map_or(u64::MAX, |device| device.bytes_at_once)
    }

    /// FUSE answers a direct transfer inside the system call: it must not be made where nobody may wait.
    pub(crate) fn holds_the_caller(&self) -> bool {
        self.direct && self.store == Store::Fuse
    }

    pub(crate) fn believed(&self) -> Proven {
        Proven::from_bits(self.believed.load(Ordering::Relaxed))
    }

    pub(crate) fn believe(&self, proven: Proven) {
        self.believed.store(proven.bits(), Ordering::Relaxed);
    }

    pub(crate) fn stat(&self) -> Result<Stat, Errno> {
        let mut stat = to_stat(&statx(self.fd())?, self.direct, self.store);
        if stat.block_device {
            stat.len = device::len(self.fd())?;
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
    ask(fd, libc::AT_EMPTY_PATH)
}

fn ask(fd: RawFd, flags: i32) -> Result<libc::statx, Errno> {
    let mut buffer = blank_statx();
    let pointer = &raw mut buffer;
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor itself; the buffer is ours.
    retry(|| unsafe { libc::statx(fd, c"".as_ptr(), flags, STATX_MASK, pointer) })?;
    Ok(buffer)
}

/// Everything but a block device's length, which takes [`device_len`].
pub(crate) fn to_stat(statx: &libc::statx, direct: bool, store: Store) -> Stat {
    let (memory_align, offset_align) = match direct {
        false => (1, 1),
        true if statx.stx_mask & STATX_DIOALIGN != 0 && statx.stx_dio_offset_align != 0 => {
            // powers of two they are
            let whole = u32::next_power_of_two;
            (whole(statx.stx_dio_mem_align), whole(statx.stx_dio_offset_align))
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
    Stat { len: statx.stx_size, identity, offset_align, memory_align, block_device, store }
}

/// The length that the file system gives when it is asked anew.
pub(crate) fn true_len(fd: RawFd) -> Result<u64, Errno> {
    Ok(ask(fd, libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC)?.stx_size)
}

/// Number of the device that a file is on.
pub(crate) fn device_of(fd: RawFd) -> Result<u64, Errno> {
    let statx = statx(fd)?;
    Ok(libc::makedev(statx.stx_dev_major, statx.stx_dev_minor))
}

/// What was read or written is to be read from the file system again: best effort.
pub(crate) fn forget_pages(fd: RawFd) {
    // SAFETY: no pointers.
    unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Which file system a file is on.
fn magic(fd: RawFd) -> Result<i64, Errno> {
    // SAFETY: all zero bytes are a valid statfs, which the call overwrites.
    let mut buffer: libc::statfs = unsafe { std::mem::zeroed() };
    let pointer = &raw mut buffer;
    // SAFETY: the buffer is ours.
    retry(|| unsafe { libc::fstatfs(fd, pointer) })?;
    Ok(buffer.f_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_file_system_is_decides_what_it_is_believed() {
        assert_eq!(store_of(0x6573_5546), Store::Fuse);
        assert_eq!(store_of(0xef53), Store::Known);
        for magic in [0x6969, 0x00c3_6400, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(store_of(magic), Store::Unknown, "NFS, Ceph, overlayfs, ZFS: {magic:#x}");
        }
        for proven in [Proven::ALL, Proven::NONE, Proven { zero_range: false, ..Proven::ALL }] {
            let file = std::fs::File::open("/dev/null").unwrap();
            let (direct, device, held) = (false, None, Mutex::default());
            let believed = AtomicU8::new(0);
            let file = OpenFile { fd: file.into(), direct, store: Store::Fuse, device, believed, held };
            file.believe(proven);
            assert_eq!(file.believed(), proven);
        }
    }
}
