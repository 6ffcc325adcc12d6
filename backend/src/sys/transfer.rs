//! One read or write on its way: what is left, and what a system call's result means.
//!
//! Knows: short transfers, EINTR, EAGAIN, the end of the file, O_DIRECT's alignment. Must never know: how the
//! system call is made; so the rules are tested without one. Invariant: bytes are counted once; a transfer
//! ends complete, at the end of the file (reads), or with an error.

use super::call::{last_errno, signed};
use super::file::OpenFile;
use crate::buffer::{Segment, Segments};
use crate::op::Errno;

/// The kernel's limit for one scatter list.
const IOV_MAX: usize = 1024;
/// No device has smaller sectors.
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    direct: bool,
    /// Of what is left.
    offset: u64,
    done: u64,
    left: u64,
    /// The first `first` are used up; the one at `first` holds what is left of it.
    segments: Segments,
    first: usize,
    /// Bytes of one system call.
    most: u64,
}

/// What to do after a system call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Issue the rest.
    Again,
    /// Final.
    Ended(Result<u64, Errno>),
}

impl Transfer {
    #[inline]
    pub(crate) fn new(write: bool, direct: bool, offset: u64, segments: Segments) -> Transfer {
        let left = match segments[..] {
            [only] => only.len() as u64,
            ref list => list.iter().map(|s| s.len() as u64).sum(),
        };
        let mut transfer =
            Transfer { write, direct, offset, done: 0, left, segments, first: 0, most: u64::MAX };
        transfer.skip_empty();
        transfer
    }

    /// To or from this file.
    pub(crate) fn of(file: &OpenFile, write: bool, offset: u64, segments: Segments) -> Transfer {
        Transfer::new(write, file.direct(), offset, segments).in_calls_of(file.bytes_at_once())
    }

    /// In system calls of at most `most` bytes, one after the other.
    pub(crate) fn in_calls_of(mut self, most: u64) -> Transfer {
        debug_assert!(most > 0 && self.done == 0);
        self.most = most;
        if self.left > most {
            self.segments = cut(&self.segments, most);
            self.first = 0;
            self.skip_empty();
        }
        self
    }

    /// Nothing to move.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Scatter list of what is left: never empty while something is left.
    pub(crate) fn rest(&self) -> &[Segment] {
        let rest = self.segments.get(self.first..).unwrap_or_default();
        let rest = &rest[..rest.len().min(IOV_MAX)];
        if self.left <= self.most {
            return rest;
        }
        let mut sum = 0;
        let count = rest.iter().take_while(|segment| {
            sum += segment.len() as u64;
            sum <= self.most
        });
        &rest[..count.count()]
    }

    /// Bytes of the next call, about: a list may be longer than the kernel takes at once.
    pub(crate) fn next_len(&self) -> u64 {
        self.left.min(self.most)
    }

    #[inline]
    fn skip_empty(&mut self) {
        while self.segments.get(self.first).is_some_and(|s| s.len() == 0) {
            self.first += 1;
        }
    }

    fn advance(&mut self, by: u64) {
        assert!(by <= self.left, "the kernel moved more than was asked");
        self.done += by;
        self.left -= by;
        self.offset += by;
        let mut by = by as usize;
        while by > 0 {
            let segment = &mut self.segments[self.first];
            let step = by.min(segment.len());
            *segment = segment.skip(step);
            by -= step;
            if segment.len() == 0 {
                self.first += 1;
            }
        }
        self.skip_empty();
    }

    /// Under O_DIRECT, the part of a short write after which the next can start aligned.
    fn aligned_part(&self, moved: u64) -> u64 {
        if !self.write || !self.direct || moved == self.left {
            return moved;
        }
        let end = self.offset + moved;
        let page = end / PAGE * PAGE;
        if page > self.offset {
            page - self.offset
        } else {
            (end / SECTOR * SECTOR).saturating_sub(self.offset)
        }
    }

    /// Accounts for one system call.
    pub(crate) fn after(&mut self, result: Result<u64, Errno>) -> Progress {
        match result {
            Err(Errno(libc::EINTR | libc::EAGAIN)) => Progress::Again,
            // a device whose sectors are larger than the file's odd end
            Err(Errno(libc::EINVAL)) if self.direct && !self.write && self.done > 0 => {
                Progress::Ended(Ok(self.done))
            }
            Err(errno) => Progress::Ended(Err(errno)),
            Ok(0) if !self.write => Progress::Ended(Ok(self.done)),
            Ok(moved) => {
                let counted = self.aligned_part(moved);
                if counted == 0 {
                    return Progress::Ended(Err(Errno(libc::EIO)));
                }
                self.advance(counted);
                // only the end of a file makes an O_DIRECT read end inside a sector; going on there is EINVAL
                if self.left == 0 || (self.direct && !self.offset.is_multiple_of(SECTOR)) {
                    return Progress::Ended(Ok(self.done));
                }
                Progress::Again
            }
        }
    }
}

/// The same bytes in segments none of which lies across a multiple of `most`, counted from the first byte.
fn cut(segments: &Segments, most: u64) -> Segments {
    let mut cut = Segments::new();
    let mut room = most;
    for segment in segments {
        let mut rest = *segment;
        while rest.len() as u64 > room {
            let (piece, behind) = rest.split(room as usize);
            cut.push(piece);
            (rest, room) = (behind, most);
        }
        room -= rest.len() as u64;
        cut.push(rest);
        if room == 0 {
            room = most;
        }
    }
    cut
}

/// The whole transfer, blocking.
pub(crate) fn run(file: &OpenFile, mut transfer: Transfer) -> Result<u64, Errno> {
    if transfer.is_empty() {
        return Ok(0);
    }
    loop {
        let offset = signed(transfer.offset())?;
        let rest = transfer.rest();
        let (list, count) = (rest.as_ptr().cast::<libc::iovec>(), rest.len() as libc::c_int);
        // SAFETY: a segment is an iovec in memory; their maker promised that they are valid until completion.
        let result = unsafe {
            match transfer.write {
                true => libc::pwritev(file.fd(), list, count, offset),
                false => libc::preadv(file.fd(), list, count, offset),
            }
        };
        let result = if result < 0 { Err(last_errno()) } else { Ok(result as u64) };
        if let Progress::Ended(result) = transfer.after(result) {
            return result;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses are never dereferenced here.
    fn segments(lens: &[usize]) -> Segments {
        let mut at = 0x10000;
        lens.iter()
            .map(|&len| {
                // SAFETY: nothing uses it.
                let segment = unsafe { Segment::new(std::ptr::without_provenance_mut(at), len) };
                at += 0x10000;
                segment
            })
            .collect()
    }

    /// Of the next call.
    fn lens(transfer: &Transfer) -> Vec<usize> {
        transfer.rest().iter().map(|s| s.len()).collect()
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let mut t = Transfer::new(false, false, 100, segments(&[0, 10, 0, 20, 30, 0]));
        assert_eq!(t.after(Ok(10)), Progress::Again);
        assert_eq!((t.offset(), lens(&t)), (110, vec![20, 30, 0]));
        assert_eq!(t.after(Ok(25)), Progress::Again);
        assert_eq!((t.offset(), lens(&t)), (135, vec![25, 0]));
        assert_eq!(t.rest()[0].address().addr(), 0x50000 + 5);
        assert_eq!(t.after(Err(Errno(libc::EINTR))), Progress::Again);
        assert_eq!(t.after(Err(Errno(libc::EAGAIN))), Progress::Again);
        assert_eq!(t.after(Ok(25)), Progress::Ended(Ok(60)));
    }

    #[test]
    fn a_read_ends_at_the_end_of_the_file() {
        let mut t = Transfer::new(false, false, 0, segments(&[100]));
        assert_eq!(t.after(Ok(30)), Progress::Again);
        assert_eq!(t.after(Ok(0)), Progress::Ended(Ok(30)));
    }

    #[test]
    fn a_write_that_moves_nothing_is_an_error() {
        let mut t = Transfer::new(true, false, 0, segments(&[100]));
        assert_eq!(t.after(Ok(0)), Progress::Ended(Err(Errno(libc::EIO))));
        assert_eq!(t.after(Err(Errno(libc::ENOSPC))), Progress::Ended(Err(Errno(libc::ENOSPC))));
    }

    #[test]
    fn a_direct_read_ends_inside_a_sector() {
        let mut t = Transfer::new(false, true, 4096, segments(&[8192]));
        assert_eq!(t.after(Ok(4096 + 100)), Progress::Ended(Ok(4196)));
        let mut t = Transfer::new(false, true, 4096, segments(&[8192]));
        assert_eq!(t.after(Ok(512)), Progress::Again);
        assert_eq!(t.after(Err(Errno(libc::EINVAL))), Progress::Ended(Ok(512)));
        let mut t = Transfer::new(false, true, 1, segments(&[8192]));
        assert_eq!(t.after(Err(Errno(libc::EINVAL))), Progress::Ended(Err(Errno(libc::EINVAL))));
    }

    #[test]
    fn a_direct_write_goes_on_aligned() {
        let mut t = Transfer::new(true, true, 4096, segments(&[4096, 8192]));
        assert_eq!(t.after(Ok(5000)), Progress::Again);
        assert_eq!((t.offset(), lens(&t)), (8192, vec![8192]));
        assert_eq!(t.after(Ok(1000)), Progress::Again);
        assert_eq!(t.offset(), 8704);
        assert_eq!(t.after(Ok(100)), Progress::Ended(Err(Errno(libc::EIO))));
    }

    #[test]
    fn a_call_moves_no_more_than_the_device_takes() {
        let mut t = Transfer::new(true, true, 0, segments(&[3 * 4096, 0, 5 * 4096])).in_calls_of(8192);
        assert_eq!((t.rest().len(), lens(&t)), (1, vec![8192]));
        assert_eq!(t.after(Ok(8192)), Progress::Again);
        assert_eq!(lens(&t), vec![4096, 0, 4096], "the next call's bytes, of both segments");
        assert_eq!(t.after(Ok(4096)), Progress::Again);
        assert_eq!((t.offset(), lens(&t)), (12288, vec![4096]), "a short one goes on within the limit");
        assert_eq!(t.after(Ok(4096)), Progress::Again);
        assert_eq!(t.after(Ok(8192)), Progress::Again);
        assert_eq!(lens(&t), vec![8192]);
        assert_eq!(t.after(Ok(8192)), Progress::Ended(Ok(8 * 4096)));
        let whole = Transfer::new(false, true, 0, segments(&[4096, 4096])).in_calls_of(8192);
        assert_eq!(lens(&whole), vec![4096, 4096], "nothing is cut that fits");
    }

    #[test]
    fn long_lists_are_cut_to_what_the_kernel_takes() {
        let mut t = Transfer::new(true, false, 0, segments(&vec![8; 1500]));
        assert_eq!(t.rest().len(), 1024);
        assert_eq!(t.after(Ok(1024 * 8)), Progress::Again);
        assert_eq!(t.rest().len(), 476);
        assert_eq!(t.after(Ok(476 * 8)), Progress::Ended(Ok(12000)));
    }
}
