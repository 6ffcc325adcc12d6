//! What the guest may have changed since the bitmaps of an image were stored: a bit for each piece of the
//! disk, until the bitmaps that are kept up have it.
//!
//! A bitmap that is kept up is in use, in the file, from before the first change of the guest's data on, so
//! whoever finds the file after a power cut knows that its bits say too little (QC15). It is stored, with
//! what was noted here, when the image is closed or made quiet.
//!
//! Knows: the directory of bitmaps, ranges of the disk. Must never know: requests, where bits lie.
//!
//! Invariants:
//! * bounded: a directory of 64 KiB, notes of `BITS_MAX`; an image with more is not tracked;
//! * what is noted is a superset of what has changed.

use crate::qcow2::Header;
use crate::qcow2::bitmap;
use crate::snapshots::{BITS_MAX, BitmapBits};
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of a directory of bitmaps that are kept up.
pub(crate) const DIRECTORY_MAX: u64 = 64 << 10;

/// What the file says of the bitmaps that are kept up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Mark {
    /// They are right.
    Right,
    /// That they are in use is being written.
    Written,
    /// They are in use.
    InUse,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Tracking {
    /// The directory, in whole blocks, as it shall be written,
    directory: Vec<u8>,
    /// and where it lies.
    offset: u64,
    /// Bitmaps that are kept up.
    names: Vec<Vec<u8>>,
    /// A bit stands for this power of two of bytes of the disk.
    granularity_bits: u8,
    size: u64,
    notes: Vec<u8>,
    mark: Mark,
    /// They are kept up no more: all bitmaps are to become invalid.
    given_up: bool,
}

impl Tracking {
    /// Of an image with this header and this directory, of whole blocks of `block` bytes; None: its bitmaps
    /// are not kept up.
    pub(crate) fn new(header: &Header, directory: &[u8], block: u64) -> Option<Tracking> {
        let list = header.bitmaps()?;
        let len = list.directory_size.next_multiple_of(block);
        debug_assert!(block.is_power_of_two(), "blocks of a device");
        let entries = usize::try_from(list.directory_size).ok().and_then(|len| directory.get(..len))?;
        if len > DIRECTORY_MAX || header.cluster_size() < block {
            return None;
        }
        let mut directory = entries.to_vec();
        directory.resize(len as usize, 0);
        let size = header.guest_size();
        let mut bitmaps = bitmap::parse_directory(entries, list.count, header.shape(), size).ok()?;
        bitmaps.retain(|bitmap| bitmap.auto() && !bitmap.in_use());
        let granularity_bits = bitmaps.iter().map(|bitmap| bitmap.granularity_bits).min().unwrap_or(31);
        let bytes = bitmap::bytes_of(size, granularity_bits);
        if bytes > BITS_MAX {
            return None;
        }
        for bitmap in &bitmaps {
            bitmap.mark_in_use(&mut directory);
        }
        Some(Tracking {
            directory,
            offset: list.directory_offset,
            names: bitmaps.into_iter().map(|bitmap| bitmap.name).collect(),
            granularity_bits,
            size,
            notes: vec![0; bytes as usize],
            mark: Mark::Right,
            given_up: false,
        })
    }

    /// The guest may change this range.
    #[inline]
    pub(crate) fn note(&mut self, start: u64, end: u64) {
        debug_assert!(start <= end && end <= self.size, "a range of the disk");
        if start < end && !self.names.is_empty() {
            bitmap::set_bits(
                &mut self.notes,
                start >> self.granularity_bits,
                ((end - 1) >> self.granularity_bits) + 1,
            );
        }
    }

    /// They are kept up no more. (What is on its way may still be written.)
    pub(crate) fn give_up(&mut self) {
        self.names.clear();
        self.given_up = true;
    }

    pub(crate) const fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Before the guest changes anything the file has to say that they are in use.
    pub(crate) fn must_mark(&self) -> bool {
        !self.names.is_empty() && self.mark != Mark::InUse
    }

    /// That is to be written now: where, and so many bytes. None: it is on its way, or done.
    pub(crate) fn begin_mark(&mut self) -> Option<(u64, u32)> {
        if self.names.is_empty() || self.mark != Mark::Right {
            return None;
        }
        self.mark = Mark::Written;
        debug_assert!(!self.directory.is_empty(), "bitmaps have a directory");
        Some((self.offset, self.directory.len() as u32))
    }

    pub(crate) fn encode(&self, buf: &mut [u8]) {
        debug_assert_eq!(buf.len(), self.directory.len(), "all of it");
        let len = buf.len().min(self.directory.len());
        buf[..len].copy_from_slice(&self.directory[..len]);
    }

    /// It was.
    pub(crate) fn marked(&mut self) {
        debug_assert!(self.mark == Mark::Written, "it was on its way");
        debug_assert!(self.given_up || !self.names.is_empty(), "somebody had to be marked");
        self.mark = Mark::InUse;
    }

    /// It is on its way: whoever waits for it waits on.
    pub(crate) fn is_marking(&self) -> bool {
        self.mark == Mark::Written
    }

    /// The bitmaps that have to be stored before the image rests: they are in use.
    pub(crate) fn to_store(&self) -> &[Vec<u8>] {
        match self.mark {
            Mark::InUse => &self.names,
            Mark::Right | Mark::Written => &[],
        }
    }

    /// What was noted.
    pub(crate) fn bits(&self) -> BitmapBits {
        debug_assert!(self.notes.len() as u64 <= BITS_MAX, "bounded");
        BitmapBits { granularity_bits: self.granularity_bits, size: self.size, bits: self.notes.clone() }
    }
}
