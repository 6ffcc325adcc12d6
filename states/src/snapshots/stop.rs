//! What the work on a snapshot waits for.
//!
//! Knows: places in the file. Must never know: what is read or written there, or why.

use crate::error::Error;

/// Why the work cannot go on at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stop {
    /// An old refcount block is wanted beside the new ones.
    ReadOld {
        index: u64,
        host: u64,
    },
    /// A block is wanted that the counts change in.
    ReadBlock {
        index: u64,
        host: u64,
    },
    /// A block has to leave memory.
    WriteBlock(u64),
    /// An L2 table is wanted,
    ReadTable(u64),
    /// or has changed, and goes there.
    WriteTable(u64),
    /// A piece of something that is read, or written, whole.
    ReadPiece {
        offset: u64,
        len: u64,
    },
    WritePiece {
        offset: u64,
        len: u64,
    },
    /// The file was so long, and has to be longer.
    Grow {
        from: u64,
    },
    Sync,
    Header,
    /// It never can.
    Bad(Error),
}
