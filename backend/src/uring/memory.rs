//! Memory that is registered with the ring: found by address.
//!
//! Knows: regions, and which slots of the ring's table they have. Must never know: operations.
//! Invariants: a slot is one region's; what was taken back is found no more; a region that the kernel took
//! only in part is not registered at all.

use crate::buffer::Segment;
use crate::op::MemoryId;
use io_uring::Submitter;
use io_uring::types::CloneBuffersFlags;
use std::io;
use std::os::fd::RawFd;

/// Slots of the table: each is a region of at most [`SLOT_MAX`].
const SLOTS: u32 = 1024;
/// The kernel's limit for one registered buffer.
const SLOT_MAX: usize = 1 << 30;

/// What lies behind one slot.
#[derive(Clone, Copy)]
struct Range {
    from: usize,
    to: usize,
    slot: u16,
    owner: MemoryId,
    /// Its pages were pinned for another ring, and are shared with it.
    shared: bool,
}

/// What is to be in a slot: addresses, and which ring's slot has it already.
#[derive(Clone, Copy)]
struct Piece {
    from: usize,
    to: usize,
    shared: Option<(RawFd, u16)>,
}

/// See the module's header.
#[derive(Default)]
pub(super) struct Memory {
    /// None: not tried yet; Some(false): this kernel has no sparse table.
    table: Option<bool>,
    /// By address.
    ranges: Vec<Range>,
    free: Vec<u16>,
    used: u32,
    made: u32,
}

impl Memory {
    /// Transfers inside the region skip the pinning of its pages from now on.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>, region: Segment) -> io::Result<MemoryId> {
        if region.len() == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut pieces = Vec::new();
        let mut rest = region;
        while rest.len() > 0 {
            let (piece, behind) = rest.split(SLOT_MAX.min(rest.len()));
            let from = piece.address().addr();
            pieces.push(Piece { from, to: from + piece.len(), shared: None });
            rest = behind;
        }
        self.take_all(submitter, &pieces)
    }

    /// As `register`, of what another ring of this process has under a name.
    pub(super) fn register_of(
        &mut self,
        submitter: &Submitter<'_>,
        (other, ring, id): (&Memory, RawFd, MemoryId),
    ) -> io::Result<MemoryId> {
        let theirs = other.ranges.iter().filter(|range| range.owner == id);
        let piece =
            |range: &Range| Piece { from: range.from, to: range.to, shared: Some((ring, range.slot)) };
        let pieces: Vec<Piece> = theirs.map(piece).collect();
        if pieces.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        self.take_all(submitter, &pieces)
    }

    /// All of them under one name, or none.
    fn take_all(&mut self, submitter: &Submitter<'_>, pieces: &[Piece]) -> io::Result<MemoryId> {
        let table = *self.table.get_or_insert_with(|| submitter.register_buffers_sparse(SLOTS).is_ok());
        if !table {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let owner = MemoryId(self.made);
        self.made += 1;
        for piece in pieces {
            if let Err(error) = self.take(submitter, *piece, owner) {
                self.unregister(submitter, owner);
                return Err(error);
            }
        }
        Ok(owner)
    }

    fn take(&mut self, submitter: &Submitter<'_>, piece: Piece, owner: MemoryId) -> io::Result<()> {
        let Piece { from, to, shared } = piece;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.used < SLOTS => {
                self.used += 1;
                self.used as u16 - 1
            }
            None => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        };
        let cloned = shared.is_some_and(|(ring, theirs)| {
            let (theirs, slot) = (u32::from(theirs), u32::from(slot));
            let flags = CloneBuffersFlags::DST_REPLACE;
            submitter.register_buffers_clone_offset(ring, theirs, slot, 1, flags).is_ok()
        });
        // an older kernel, another thread's ring: the pages are pinned once more
        if !cloned {
            let iovec = libc::iovec { iov_base: std::ptr::without_provenance_mut(from), iov_len: to - from };
            // SAFETY: the caller of `Backend::register_memory` keeps the memory valid until it takes it back,
            // or the backend is dropped.
            let pinned = unsafe { submitter.register_buffers_update(u32::from(slot), &[iovec], None) };
            if let Err(error) = pinned {
                self.free.push(slot);
                return Err(error);
            }
        }
        let range = Range { from, to, slot, owner, shared: cloned };
        let at = self.ranges.partition_point(|other| other.from <= from);
        self.ranges.insert(at, range);
        Ok(())
    }

    /// Regions of at most 1 GiB that are here, and those of them whose pages were pinned for another ring.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.ranges.len(), self.ranges.iter().filter(|range| range.shared).count())
    }

    /// Takes a region back: no operation in flight uses it. False: there is none of this name.
    pub(super) fn unregister(&mut self, submitter: &Submitter<'_>, owner: MemoryId) -> bool {
        let before = self.ranges.len();
        let free = &mut self.free;
        self.ranges.retain(|range| {
            if range.owner != owner {
                return true;
            }
            let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: nothing is nowhere. A slot that the kernel does not clear keeps its pages until the
            // ring ends, and is not used again.
            if unsafe { submitter.register_buffers_update(u32::from(range.slot), &[nothing], None) }.is_ok() {
                free.push(range.slot);
            }
            false
        });
        self.ranges.len() < before
    }

    /// The slot that a segment lies in.
    #[inline]
    pub(super) fn find(&self, segment: Segment) -> Option<u16> {
        let start = segment.address().addr();
        let at = match self.ranges.len() {
            0 => return None,
            1 => 1,
            _ => self.ranges.partition_point(|range| range.from <= start),
        };
        let range = self.ranges.get(at.checked_sub(1)?)?;
        (range.from <= start && segment.len() <= range.to.saturating_sub(start)).then_some(range.slot)
    }

    /// The slot that all of a list lie in.
    pub(super) fn find_all(&self, segments: &[Segment]) -> Option<u16> {
        let slot = self.find(*segments.first()?)?;
        segments.iter().all(|segment| self.find(*segment) == Some(slot)).then_some(slot)
    }
}
