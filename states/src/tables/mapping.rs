//! What a part of the guest disk is mapped to.
//!
//! Knows: the kinds of mappings that the formats have. Must never know: how an entry says so (`decode.rs`).

/// An L2 entry of QED that is not a cluster: it reads as zeros and hides the backing layer.
pub(crate) const ZERO_ENTRY: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mapping {
    /// No L2 table: all that it would map is unallocated.
    NoTable,
    Unallocated,
    Zero,
    /// The host offset of the run's first byte.
    Data(u64),
    /// Zero, with space kept at this host offset (qcow2).
    ZeroAllocated(u64),
    /// Unallocated subclusters of a cluster that has space: where theirs lies (qcow2).
    Reserved(u64),
    /// One compressed cluster: where its bytes lie and how many there are at most.
    Compressed {
        host: u64,
        len: u32,
    },
}

/// The same mapping for `len` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) mapping: Mapping,
    pub(crate) len: u64,
    /// Nobody else refers to the clusters, nor to the table: they may be changed in place.
    pub(crate) private: bool,
}
