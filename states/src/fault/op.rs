//! What the machine asked a device for, as an error tells it.
//!
//! Knows: the names of operations. Must never know: their offsets, why they are wanted.
//! Invariant: a byte; each has a text of its own.

use core::fmt;

/// What was tried when a device failed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Guest data.
    ReadData,
    /// Guest data of the backing layer.
    ReadBacking,
    /// Compressed guest data.
    ReadCompressed,
    /// The surroundings of a write into new space.
    ReadForCopy,
    /// The surroundings of a write in place.
    ReadForModification,
    /// Guest data.
    WriteData,
    /// Guest data that becomes zeros.
    ZeroRange,
    /// Nothing of its own: an acb that waits.
    Wait,
    /// A slice of the L1 table.
    ReadL1,
    /// A slice of an L2 table.
    ReadL2,
    /// A slice of a refcount block.
    ReadRefcounts,
    /// A slice of a table, or a copy of one.
    WriteTable,
    /// The L1 table on its way to another place.
    WriteL1,
    /// A piece of the refcount table.
    WriteReftable,
    /// The header.
    WriteHeader,
    /// The header without the dirty bit.
    ClearDirty,
    /// Everything written so far.
    Sync,
    /// Space ahead.
    Grow,
    /// Space that must read as zeros.
    Clear,
    /// Space that is given back.
    PunchHole,
    /// The file's end.
    SetLen,
    /// The length of a device.
    Length,
    /// A turn of the embedder.
    CountDown,
    /// All that making, applying or deleting a snapshot takes.
    Snapshot,
    /// All that opening an image takes.
    Open,
    /// All that a check takes,
    Check,
    /// but an L2 table that it reads.
    CheckL2,
}

impl Op {
    /// Surely about guest data: of an image with a data file, about that file.
    pub const fn is_guest_data(self) -> bool {
        matches!(self, Op::ReadData | Op::WriteData | Op::ZeroRange)
    }

    /// The operation in words.
    pub const fn name(self) -> &'static str {
        match self {
            Op::ReadData => "read data",
            Op::ReadBacking => "read backing",
            Op::ReadCompressed => "read compressed",
            Op::ReadForCopy => "read for copy-on-write",
            Op::ReadForModification => "read for modification",
            Op::WriteData => "write data",
            Op::ZeroRange => "zero range",
            Op::Wait => "wait",
            Op::ReadL1 => "L1 table",
            Op::ReadL2 => "L2 table",
            Op::ReadRefcounts => "refcount block",
            Op::WriteTable => "write table",
            Op::WriteL1 => "write L1 table",
            Op::WriteReftable => "write refcount table",
            Op::WriteHeader => "write header",
            Op::ClearDirty => "clear dirty bit",
            Op::Sync => "sync",
            Op::Grow => "grow file",
            Op::Clear => "clear space",
            Op::PunchHole => "punch hole",
            Op::SetLen => "set length",
            Op::Length => "ask for the length",
            Op::CountDown => "count down",
            Op::Snapshot => "snapshot",
            Op::Open => "open image",
            Op::Check => "check",
            Op::CheckL2 => "read L2 table",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
