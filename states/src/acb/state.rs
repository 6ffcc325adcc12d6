//! The states of a control block.
//!
//! A state answers one question: what is this acb waiting for? Which may follow which is in `edges.rs`.
//!
//! Knows: names. Must never know: how a state is left (that is `Image::advance`).
//!
//! Invariants:
//! * `Requests::set_state` and `set_state_through` (two steps at once, for the hot path) are the only
//!   assignments of a state, and every assignment is an edge of the format's table;
//! * a waiting state names exactly one thing that is waited for;
//! * a request that is woken before it wrote anything goes back to `FindCluster` and looks again.

use crate::fault::Op;

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a control block is doing. The doc of each says what it waits for.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum State { $($(#[doc = $doc])+ $name,)+ }

        impl State {
            /// All states, in order of their index.
            pub const ALL: &'static [State] = &[$(State::$name,)+];
            /// How many there are; `state as usize` is below it.
            pub const COUNT: usize = State::ALL.len();

            /// Its name as traces and reports print it.
            pub const fn name(self) -> &'static str {
                match self { $(State::$name => stringify!($name),)+ }
            }

            /// What an acb in this state waits for, from its documentation.
            pub const fn waits_for(self) -> &'static str {
                match self { $(State::$name => concat!($($doc,)+),)+ }
            }
        }
    };
}

states! {
    /// waits for nothing: the slot is not in use
    Free,
    /// waits for nothing: looks up what its next byte is mapped to, then moves on
    FindCluster,
    /// waits for a table slice (L1 or L2) that is being loaded, by whomever asked first
    ReadL2,
    /// waits for an allocating write that holds the cluster, or closes the gate
    WaitCluster,
    /// waits for a read-modify-write of a sector that it also touches, or for writes to the sector it wants
    /// to modify
    WaitSector,
    /// waits for room in the table cache or in the list of uncommitted mappings
    WaitSlot,
    /// waits for all other requests to end (close)
    WaitRequests,
    /// waits for its own read of the image file
    ReadData,
    /// waits for its own read of the backing layer
    ReadBacking,
    /// waits for its own read of a compressed cluster, and for its decompression
    ReadCompressed,
    /// waits for its own cluster to be compressed by the embedder
    Compress,
    /// waits for the compressed writes that were asked for before it to have their places
    WaitTurn,
    /// waits for its own reads of what surrounds the guest's bytes in a new cluster
    CopyOnWrite,
    /// waits for its own reads of the sectors that the guest's bytes only partly cover
    ReadModify,
    /// waits for its own write of data
    WriteData,
    /// waits for its own zeroing of a host range
    ZeroData,
    /// waits for the file to grow, so that there is space for data
    GrowFile,
    /// waits for space for a new L2 table, or for the copy of one that is shared with a snapshot
    AllocL2,
    /// waits for a refcount slice that is being loaded, so that clusters can be counted
    AllocRefcount,
    /// waits for the commit pipeline: the header's autoclear bits are being cleared, durably, before the
    /// image is changed for the first time
    ClearAutoclear,
    /// waits for the commit pipeline: the header's dirty bit (and other metadata that precedes pointers) is
    /// being written
    MarkDirty,
    /// waits for the commit pipeline: data is being made durable, or will be in the next round
    SyncData,
    /// waits for the commit pipeline: tables that point to durable data are being written
    UpdateL2,
    /// waits for the commit pipeline: written tables are being made durable
    SyncTables,
    /// waits for the length of the file, or the size of the guest disk, to be set
    Resize,
    /// waits for a snapshot to be made, applied or deleted, or for a persistent bitmap to be changed
    Snapshot,
    /// waits for nothing: its range is finished or failed, the answer is on its way
    Done,
}

impl State {
    /// What its own I/O does, for errors.
    pub(crate) const fn operation(self) -> Op {
        debug_assert!(!matches!(self, State::Free | State::Done), "it has no I/O");
        match self {
            State::ReadData => Op::ReadData,
            State::ReadBacking => Op::ReadBacking,
            State::ReadCompressed => Op::ReadCompressed,
            State::CopyOnWrite => Op::ReadForCopy,
            State::ReadModify => Op::ReadForModification,
            State::WriteData => Op::WriteData,
            State::ZeroData => Op::ZeroRange,
            State::Resize => Op::SetLen,
            _ => Op::Wait,
        }
    }
}
