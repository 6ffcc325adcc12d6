//! How much a file system allocates for a file at once.
//!
//! Knows: one attribute of files, which XFS has. Must never know: why.

use crate::op::Errno;
use std::os::fd::RawFd;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR, where numbers of calls have the common form (not on MIPS, PowerPC
/// and SPARC, which answer ENOTTY).
const GET: u32 = 0x801c_581f;
const SET: u32 = 0x401c_5820;
/// FS_XFLAG_EXTSIZE: `extent_size` counts.
const HAS_EXTENT_SIZE: u32 = 0x800;

fn done(result: libc::c_int) -> Result<(), Errno> {
    match result {
        0 => Ok(()),
        _ => Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// Space for a file with nothing in it is allocated in pieces of so many bytes from now on.
pub(crate) fn hint(file: RawFd, bytes: u32) -> Result<(), Errno> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel fills a struct of this layout, which lives as long as the call.
    done(unsafe { libc::ioctl(file, GET as _, &raw mut attributes) })?;
    attributes.flags |= HAS_EXTENT_SIZE;
    attributes.extent_size = bytes;
    // SAFETY: the same struct, only read.
    done(unsafe { libc::ioctl(file, SET as _, &raw const attributes) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_number_of_a_call_has_the_length_of_what_it_is_given() {
        assert_eq!([GET, SET].map(|number| (number >> 16 & 0x3fff) as usize), [size_of::<Attributes>(); 2]);
    }

    #[test]
    fn a_file_has_the_hint_or_its_file_system_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fd = file.as_file().as_raw_fd();
        match hint(fd, 1 << 20) {
            Ok(()) => {
                let mut attributes = Attributes::default();
                // SAFETY: as above.
                done(unsafe { libc::ioctl(fd, GET as _, &raw mut attributes) }).unwrap();
                let told = (attributes.flags & HAS_EXTENT_SIZE, attributes.extent_size);
                // XFS, or a file system that takes it and forgets it (ext4)
                assert!([(0x800, 1 << 20), (0, 0)].contains(&told), "{told:?}");
            }
            Err(Errno(errno)) => assert!(matches!(errno, libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL)),
        }
    }
}
