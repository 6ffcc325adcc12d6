//! What is asked of the snapshots in an image, or of its persistent bitmaps.
//!
//! Knows: names, selectors, bits. Must never know: how it is done.

use crate::qcow2::snapshot::Selector;
use alloc::vec::Vec;

/// What is asked of the snapshots in an image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// The disk as it is now is kept under this name. Several may have the same.
    Create {
        /// Bytes, 65,535 at most; QEMU shows 255 of them.
        name: Vec<u8>,
        /// Seconds since 1970,
        date_sec: u32,
        /// and nanoseconds of that second.
        date_nsec: u32,
    },
    /// The disk becomes what this one keeps, its size included.
    Apply(Selector),
    /// This one goes.
    Delete(Selector),
}

/// What is asked of a persistent bitmap in an image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BitmapAsk {
    /// Its name: 1 to 1023 bytes.
    pub name: Vec<u8>,
    /// What becomes of it.
    pub change: BitmapChange,
}

/// What becomes of a persistent bitmap.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum BitmapChange {
    /// There is one of that name from now on, without a bit that is set.
    Add {
        /// A bit stands for this power of two of bytes, 9 to 31; None: for a cluster, 4 to 64 KiB.
        granularity_bits: Option<u8>,
        /// Whoever writes the image shall keep it up.
        enabled: bool,
    },
    /// It goes. Of one that is in use, and can be trusted by nobody, nothing else can be asked.
    Remove,
    /// None of its bits is set.
    Clear,
    /// Whoever writes the image shall keep it up,
    Enable,
    /// or shall leave it as it is.
    Disable,
    /// Bits for all bytes that these stand for are set as well.
    Merge(BitmapBits),
}

/// The bits of a bitmap.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BitmapBits {
    /// A bit stands for this power of two of bytes.
    pub granularity_bits: u8,
    /// Bytes of the disk.
    pub size: u64,
    /// The first is the least significant one of the first byte.
    pub bits: Vec<u8>,
}

/// What a machine of this room is made for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Task {
    Snapshot(Ask),
    Bitmap(BitmapAsk),
    /// A bitmap that was kept up gets the bits that were noted, and is in use no more.
    Store(BitmapAsk),
}
