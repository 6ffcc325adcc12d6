//! What is asked of the snapshots in an image.
//!
//! Knows: names, selectors. Must never know: how it is done.

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
