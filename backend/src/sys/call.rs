//! What every system call needs: retries, errno, offsets, signals of a worker.
//!
//! Knows: Linux. Must never know: which call it is.

use crate::op::Errno;

/// The error number of an error of the standard library.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The calling thread's errno.
pub(crate) fn last_errno() -> Errno {
    errno_of(&std::io::Error::last_os_error())
}

/// Runs a system call until it is not interrupted.
pub(crate) fn retry<R: Into<i64>>(mut call: impl FnMut() -> R) -> Result<i64, Errno> {
    loop {
        let result = call().into();
        if result >= 0 {
            return Ok(result);
        }
        let errno = last_errno();
        if errno.0 != libc::EINTR {
            return Err(errno);
        }
    }
}

/// A file offset as system calls want it; beyond i64 is EFBIG.
pub(crate) fn signed(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno(libc::EFBIG))
}
