//! QEMU's image locks: OFD byte-range locks on the bytes 100+n ("I use permission n") and 200+n ("I do not
//! share permission n"), always shared ones; a conflict shows when asking whether somebody else holds the
//! opposite byte.
//!
//! Knows: which bytes. Must never know: why.
//! Invariant: after a failed change exactly the old bytes are held.

use super::call::retry;
use crate::op::{Errno, LockMode};
use std::os::fd::RawFd;

const CONSISTENT_READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
const RESIZE: u8 = 1 << 3;
/// consistent read, write, write unchanged, resize
const PERMISSIONS: i64 = 4;

const USES: i64 = 100;
const DENIES: i64 = 200;

/// (permissions used, permissions not shared)
fn wants(mode: LockMode) -> (u8, u8) {
    match mode {
        LockMode::Share => (CONSISTENT_READ, 0),
        LockMode::Read => (CONSISTENT_READ, WRITE | RESIZE),
        LockMode::Write => (CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE),
        LockMode::None => (0, 0),
    }
}

fn has(set: u8, n: i64) -> bool {
    set & (1 << n) != 0
}

fn byte(kind: libc::c_int, at: i64) -> libc::flock {
    // SAFETY: all zero bytes are a valid flock; OFD locks want l_pid zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = at as libc::off_t;
    lock.l_len = 1;
    lock
}

fn set(fd: RawFd, kind: libc::c_int, at: i64) -> Result<(), Errno> {
    let lock = byte(kind, at);
    // SAFETY: a valid flock; SETLK, unlike SETLKW, does not wait.
    let result = retry(|| unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) });
    match result {
        Ok(_) => Ok(()),
        Err(Errno(libc::EACCES)) => Err(Errno(libc::EAGAIN)),
        Err(errno) => Err(errno),
    }
}

/// Does anybody else hold this byte? (Would we get an exclusive lock?)
fn foreign(fd: RawFd, at: i64) -> Result<bool, Errno> {
    let mut lock = byte(libc::F_WRLCK, at);
    let pointer = &raw mut lock;
    // SAFETY: a valid flock of ours that the call overwrites.
    retry(|| unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, pointer) })?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn acquire(fd: RawFd, (uses, denies): (u8, u8)) -> Result<(), Errno> {
    // take first, look afterwards: of two that start at once at least one sees the other
    for n in 0..PERMISSIONS {
        if has(uses, n) {
            set(fd, libc::F_RDLCK, USES + n)?;
        }
        if has(denies, n) {
            set(fd, libc::F_RDLCK, DENIES + n)?;
        }
    }
    for n in 0..PERMISSIONS {
        if (has(uses, n) && foreign(fd, DENIES + n)?) || (has(denies, n) && foreign(fd, USES + n)?) {
            return Err(Errno(libc::EAGAIN));
        }
    }
    Ok(())
}

/// Gives back what is in `old` and not in `keep`.
fn release(fd: RawFd, old: (u8, u8), keep: (u8, u8)) -> Result<(), Errno> {
    let mut result = Ok(());
    for n in 0..PERMISSIONS {
        if has(old.0, n) && !has(keep.0, n) {
            result = result.and(set(fd, libc::F_UNLCK, USES + n));
        }
        if has(old.1, n) && !has(keep.1, n) {
            result = result.and(set(fd, libc::F_UNLCK, DENIES + n));
        }
    }
    result
}

/// From what `from` holds to what `to` holds.
pub(crate) fn change(fd: RawFd, from: LockMode, to: LockMode) -> Result<(), Errno> {
    let (old, new) = (wants(from), wants(to));
    match acquire(fd, new) {
        Ok(()) => release(fd, old, new),
        Err(errno) => {
            let _ = release(fd, new, old);
            Err(errno)
        }
    }
}
