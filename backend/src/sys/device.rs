//! Block devices: how long they are, how much they take at once, and claiming one.
//!
//! Knows: ioctls and sysfs of the block layer. Must never know: who asks, what lies on the device.
//! Invariant: nothing here changes a device but [`discard`].

use super::call::retry;
use crate::op::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: u64 = 0x8008_1272;
/// Scattered pieces of memory a request may have where sysfs does not say: the kernel's own default.
const SEGMENTS: u64 = 128;
/// Memory of a guest is scattered in pages.
const PAGE: u64 = 4096;

/// `_IO(0x12, 119)`.
const BLKDISCARD: u64 = 0x1277;

/// What is known of a device that is open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// A request of more is split by the kernel, which it does not do without waiting: io_uring hands all of
    /// it to a worker, every time (a loop device on Linux 6.18, 516 KiB and up).
    pub(crate) bytes_at_once: u64,
}

impl Device {
    /// The device with this number.
    pub(crate) fn of(major: u32, minor: u32) -> Device {
        let folder = format!("/sys/dev/block/{major}:{minor}");
        // a partition has the queue of its disk
        let queues = [format!("{folder}/queue/max_segments"), format!("{folder}/../queue/max_segments")];
        let told = queues.iter().find_map(|path| std::fs::read_to_string(path).ok());
        Device { bytes_at_once: bytes_at_once(told.as_deref()) }
    }
}

fn bytes_at_once(max_segments: Option<&str>) -> u64 {
    let told = max_segments.and_then(|text| text.trim().parse().ok()).unwrap_or(SEGMENTS);
    told.clamp(1, 1 << 20) * PAGE
}

/// Bytes of a device, as of now: it may have grown since it was opened.
pub(crate) fn len(fd: RawFd) -> Result<u64, Errno> {
    let mut len = 0u64;
    let pointer = &raw mut len;
    // SAFETY: BLKGETSIZE64 writes one u64.
    retry(|| unsafe { libc::ioctl(fd, BLKGETSIZE64 as _, pointer) })?;
    Ok(len)
}

/// Tells the device that nobody needs the range, whole sectors. EOPNOTSUPP: it does not want to know.
pub(crate) fn discard(fd: RawFd, offset: u64, len: u64) -> Result<(), Errno> {
    let range = [offset, len];
    let pointer = range.as_ptr();
    // SAFETY: BLKDISCARD reads two u64.
    retry(|| unsafe { libc::ioctl(fd, BLKDISCARD as _, pointer) }).map(drop)
}

/// Claims a device, as mount, mkfs and LVM do: who claims it as well is refused (EBUSY), by whichever node.
/// Others who just open it are not; a lock keeps QEMU away.
///
/// The descriptor is exchanged for one that has the claim: with the claim on another one, the kernel takes
/// us for a stranger to it, and refuses to zero what the page cache has changed.
pub(crate) fn claim(fd: OwnedFd, flags: i32) -> Result<OwnedFd, Errno> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let path = path.map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: a NUL terminated path.
    let claimed = match retry(|| unsafe { libc::open(path.as_ptr(), flags | libc::O_EXCL) }) {
        Ok(claimed) => claimed,
        // a sandbox without /proc
        Err(Errno(libc::ENOENT)) => return Ok(fd),
        Err(errno) => return Err(errno),
    };
    // SAFETY: just opened, owned by nobody else; a descriptor fits an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(claimed as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_takes_at_once_follows_from_its_segments() {
        for (told, bytes) in [
            (Some("128\n"), 512 << 10),
            (Some("33"), 33 * 4096),
            (Some("1"), 4096),
            (Some("65535"), 65535 * 4096),
            (None, 512 << 10),
            (Some("many"), 512 << 10),
            (Some("0"), 4096),
        ] {
            assert_eq!(bytes_at_once(told), bytes, "{told:?}");
        }
        assert_eq!(Device::of(0, 0), Device { bytes_at_once: 512 << 10 }, "no such device");
    }
}
