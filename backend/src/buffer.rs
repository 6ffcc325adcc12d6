//! Memory that operations move bytes to and from.
//!
//! [`Segment`] is an address range whose validity somebody promised; [`Buffer`] is aligned memory that we
//! own. Invariant: every dereference of a segment happens between the push of its operation and the reaping
//! of its completion.

use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// An address range: 16 bytes, as the kernel's `struct iovec`. Its maker promised that it stays valid, and is
/// not used otherwise, while an operation uses it. Dropping or copying one does nothing to the memory.
// laid out as the kernel's `struct iovec`, so that a scatter list is handed over without copying it
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Segment {
    address: *mut u8,
    len: usize,
}

const _: () = {
    assert!(size_of::<Segment>() == size_of::<libc::iovec>());
    assert!(std::mem::offset_of!(Segment, address) == std::mem::offset_of!(libc::iovec, iov_base));
    assert!(std::mem::offset_of!(Segment, len) == std::mem::offset_of!(libc::iovec, iov_len));
};

// SAFETY: a segment is an address and a length; the promise made to `Segment::new` holds whichever thread
// uses it.
unsafe impl Send for Segment {}

impl Segment {
    /// # Safety
    /// From the push of an operation that holds this segment until its completion was reaped (or the backend
    /// dropped),
    /// `address..address + len` is valid for reads and writes (a segment used only by writes to files: for
    /// reads), and nobody writes to it (a segment that a read fills: nobody reads or writes it) but the
    /// backend. Guest memory, which the guest may change at any time, is allowed: the backend never relies on
    /// the bytes' values.
    pub const unsafe fn new(address: *mut u8, len: usize) -> Segment {
        Segment { address, len }
    }

    /// First byte.
    pub const fn address(self) -> *mut u8 {
        self.address
    }

    /// Bytes.
    // a segment of length zero is legal, and nothing asks for it
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(self) -> usize {
        self.len
    }

    /// The first `by` bytes, and the others.
    pub(crate) fn split(self, by: usize) -> (Segment, Segment) {
        (Segment { len: by.min(self.len), ..self }, self.skip(by))
    }

    /// What is left after the first `by` bytes.
    pub(crate) fn skip(self, by: usize) -> Segment {
        assert!(by <= self.len, "skipping past the end of a segment");
        Segment { address: self.address.wrapping_add(by), len: self.len - by }
    }
}

/// A scatter list. One segment stays inline, as most lists have no more and each operation carries its own;
/// longer lists allocate.
pub type Segments = SmallVec<[Segment; 1]>;

/// Memory of its own, made of zeros, aligned to [`Buffer::ALIGN`], so that a transfer past the page cache
/// needs no copy if offset and length are multiples of the device's blocks. Making one is an allocation, of
/// the host's pages from 32 KiB on: keep those that come back for the next requests. Memory that cannot be
/// had ends the process, as of a `Vec`.
///
/// ```
/// use quod_backend::Buffer;
/// let mut buffer = Buffer::zeroed(8192);
/// buffer.as_mut_slice()[..5].copy_from_slice(b"bytes");
/// assert!(buffer.as_slice().as_ptr().addr().is_multiple_of(Buffer::ALIGN));
/// assert_eq!(Buffer::from(&b"bytes"[..]).as_slice(), &buffer.as_slice()[..5]);
/// ```
#[derive(Debug)]
pub struct Buffer {
    address: NonNull<u8>,
    len: usize,
    /// Bytes of the allocation in front of `address`.
    skipped: usize,
}

// SAFETY: the buffer owns its memory exclusively.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Page alignment: enough for every O_DIRECT device that Linux knows.
    pub const ALIGN: usize = 4096;

    /// From this length on alignment is made by hand: an allocator that is asked for aligned zeros writes
    /// them, which for a megabyte takes a good part of a millisecond; unaligned ones come from the host as
    /// zeros.
    const LARGE: usize = 32 << 10;

    fn layout(len: usize) -> Layout {
        let (size, align) =
            if len < Self::LARGE { (len.max(1), Self::ALIGN) } else { (len.saturating_add(Self::ALIGN), 1) };
        // the length is at most isize::MAX - 2 ALIGN for every buffer that can exist; an absurd one fails
        // like any allocation
        match Layout::from_size_align(size, align) {
            Ok(layout) => layout,
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Buffer {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is at least one.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let skipped = start.as_ptr().addr().wrapping_neg() % Self::ALIGN;
        // SAFETY: a small buffer is aligned, so nothing is skipped; a large one has ALIGN bytes to spare.
        let address = unsafe { start.add(skipped) };
        Buffer { address, len, skipped }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: address and len describe our own initialised memory.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }

    /// The bytes, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` excludes other references.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }

    /// `len` bytes from `offset` on as a segment.
    ///
    /// # Safety
    /// As [`Segment::new`]: the buffer is neither dropped nor touched while an operation uses the segment.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    pub unsafe fn segment(&mut self, offset: usize, len: usize) -> Segment {
        assert!(offset <= self.len && len <= self.len - offset, "segment outside its buffer");
        // SAFETY: the range is inside our memory; the rest is the caller's promise.
        unsafe { Segment::new(self.address.as_ptr().add(offset), len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, that many bytes in front of the address.
        unsafe { dealloc(self.address.as_ptr().sub(self.skipped), Self::layout(self.len)) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::zeroed(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer
    }
}
