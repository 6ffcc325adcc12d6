//! Length and allocation: fdatasync, ftruncate, fallocate, and what to do where the file system cannot, or
//! says that it has and is not believed.
//!
//! Knows: which errors mean "cannot". Must never know: who asks, who is believed.

use super::call::{retry, signed};
use super::device;
use super::file::OpenFile;
use super::transfer::{self, Transfer};
use crate::buffer::{Segment, Segments};
use crate::op::Errno;
use std::os::fd::RawFd;

/// Zeros to write where a file system has no way to make zeros.
const ZEROS_LEN: usize = 256 << 10;

#[repr(C, align(4096))]
struct Zeros([u8; ZEROS_LEN]);

static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);

/// Blocks of file systems: fallocate makes zeros in part of one through the page cache. The pages then
/// collide with direct transfers of the rest of the block, and the next sync fails (seen with ext4 on Linux
/// 6.18).
const BLOCK: u64 = 4096;

/// fallocate makes zeros in any part of this file, not in whole blocks alone.
pub(crate) fn takes_any_range(file: &OpenFile) -> bool {
    !file.direct() && !file.is_device()
}

/// Can fallocate make zeros in this range without the page cache?
pub(crate) fn whole_blocks(offset: u64, len: u64) -> bool {
    offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK)
}

/// The whole blocks of a range, and what lies around them.
fn parts(offset: u64, end: u64) -> [(u64, u64, bool); 3] {
    let first = offset.next_multiple_of(BLOCK).min(end);
    let last = (end - end % BLOCK).max(first);
    [(offset, first, false), (first, last, true), (last, end, false)]
}

/// The first and the end of the whole blocks of a range; there may be none.
pub(crate) fn inner_blocks(offset: u64, end: u64) -> (u64, u64) {
    let [_, (first, last, _), _] = parts(offset, end);
    (first, last)
}

/// fallocate mode that makes zeros.
pub(crate) const ZERO_MODE: i32 = libc::FALLOC_FL_ZERO_RANGE;
/// fallocate mode that gives space back.
pub(crate) const PUNCH_MODE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// A write of at most `len` zero bytes at `offset`, from static memory.
pub(crate) fn zeros(direct: bool, offset: u64, len: u64) -> Transfer {
    let len = len.min(ZEROS_LEN as u64) as usize;
    // SAFETY: static memory is valid for ever, and a write to a file only reads it.
    let segment = unsafe { Segment::new(ZEROS.0.as_ptr().cast_mut(), len) };
    Transfer::new(true, direct, offset, Segments::from_slice(&[segment]))
}

/// The file system (or device) cannot do this kind of fallocate.
pub(crate) fn unsupported(errno: Errno) -> bool {
    matches!(errno.0, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV | libc::ENOTTY)
}

pub(crate) fn sync(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers.
    retry(|| unsafe { libc::fdatasync(fd) }).map(drop)
}

/// The range will be read soon, through the page cache. An advice: what cannot take it does nothing.
pub(crate) fn will_read(file: &OpenFile, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (signed(offset), signed(len)) {
        // SAFETY: no pointers.
        let _ = unsafe { libc::posix_fadvise(file.fd(), offset, len, libc::POSIX_FADV_WILLNEED) };
    }
}

pub(crate) fn set_len(file: &OpenFile, len: u64) -> Result<(), Errno> {
    if file.is_device() {
        return reaches(file, len);
    }
    let len = signed(len)?;
    // SAFETY: no pointers.
    retry(|| unsafe { libc::ftruncate(file.fd(), len) }).map(drop)
}

/// A device is as long as it is.
fn reaches(file: &OpenFile, len: u64) -> Result<(), Errno> {
    match file.stat()?.len >= len {
        true => Ok(()),
        false => Err(Errno(libc::ENOSPC)),
    }
}

pub(crate) fn fallocate(fd: RawFd, mode: i32, offset: u64, len: u64) -> Result<(), Errno> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: no pointers.
    retry(|| unsafe { libc::fallocate(fd, mode, offset, len) }).map(drop)
}

pub(crate) fn punch_hole(file: &OpenFile, offset: u64, len: u64) -> Result<(), Errno> {
    let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
    if !file.believed().punch_hole {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    if len == 0 {
        return Ok(());
    }
    if takes_any_range(file) || whole_blocks(offset, len) {
        return punch(file.fd(), offset, len);
    }
    for (start, end, whole) in parts(offset, end) {
        match whole {
            _ if start == end => {}
            true => punch(file.fd(), start, end - start)?,
            false => write_zeros(file, start, end)?,
        }
    }
    Ok(())
}

pub(crate) fn discard(file: &OpenFile, offset: u64, len: u64) -> Result<(), Errno> {
    let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
    let (first, last) = inner_blocks(offset, end);
    if first == last {
        return Ok(());
    }
    if file.is_device() {
        match device::discard(file.fd(), first, last - first) {
            Err(errno) if unsupported(errno) => {}
            other => return other,
        }
    }
    match punch_hole(file, first, last - first) {
        Err(errno) if unsupported(errno) => Ok(()),
        other => other,
    }
}

fn punch(fd: RawFd, offset: u64, len: u64) -> Result<(), Errno> {
    match fallocate(fd, PUNCH_MODE, offset, len) {
        Err(Errno(libc::ENOSYS)) => Err(Errno(libc::EOPNOTSUPP)),
        other => other,
    }
}

fn write_zeros(file: &OpenFile, offset: u64, end: u64) -> Result<(), Errno> {
    let mut at = offset;
    while at < end {
        at += transfer::run(file, zeros(file.direct(), at, end - at))?;
    }
    Ok(())
}

pub(crate) fn zero_range(file: &OpenFile, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
    let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
    if takes_any_range(file) || whole_blocks(offset, len) {
        return zero(file, offset, len, unmap);
    }
    for (start, end, whole) in parts(offset, end) {
        match whole {
            _ if start == end => {}
            true => zero(file, start, end - start, unmap)?,
            false => write_zeros(file, start, end)?,
        }
    }
    Ok(())
}

fn zero(file: &OpenFile, offset: u64, len: u64, unmap: bool) -> Result<(), Errno> {
    if len == 0 {
        return Ok(());
    }
    let believed = file.believed();
    let ways = [(PUNCH_MODE, unmap && believed.punch_hole), (ZERO_MODE, believed.zero_range)];
    for (mode, _) in ways.into_iter().filter(|way| way.1) {
        match fallocate(file.fd(), mode, offset, len) {
            Err(errno) if unsupported(errno) => {}
            other => return other,
        }
    }
    write_zeros(file, offset, offset + len)
}

pub(crate) fn grow(file: &OpenFile, from: u64, to: u64, allocate: bool) -> Result<(), Errno> {
    if to <= from {
        return Ok(());
    }
    if file.is_device() {
        return reaches(file, to);
    }
    if allocate && file.believed().allocate {
        match fallocate(file.fd(), 0, from, to - from) {
            Err(errno) if unsupported(errno) => {}
            other => return other,
        }
    }
    // ftruncate could shrink a file that is longer than the caller believes
    if file.stat()?.len >= to {
        return Ok(());
    }
    set_len(file, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_range_meet_at_blocks() {
        assert_eq!(parts(512, 1024), [(512, 1024, false), (1024, 1024, true), (1024, 1024, false)]);
        assert_eq!(parts(512, 5000), [(512, 4096, false), (4096, 4096, true), (4096, 5000, false)]);
        assert_eq!(parts(512, 9000), [(512, 4096, false), (4096, 8192, true), (8192, 9000, false)]);
        assert_eq!(parts(4096, 8192), [(4096, 4096, false), (4096, 8192, true), (8192, 8192, false)]);
        assert!(whole_blocks(8192, 4096) && !whole_blocks(8192, 512) && !whole_blocks(512, 4096));
    }
}
