//! The states of a control block, and which may follow which.
//!
//! A state answers one question: what is this acb waiting for? Knows: the edge tables, one a format. Must
//! never know: how a state is left (that is `Image::advance`).
//!
//! Invariants:
//! * `Image::set_state` and `set_state_through` (two steps at once, for the hot path) are the only
//!   assignments of a state, and every assignment is an edge of the format's table;
//! * a waiting state names exactly one thing that is waited for;
//! * a request that is woken before it wrote anything goes back to `FindCluster` and looks again.

use crate::acb::AcbId;
use crate::fault::Op;
use crate::request::RequestId;

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
    /// waits for nothing: its range is finished or failed, the answer is on its way
    Done,
}

impl State {
    /// What its own I/O does, for errors.
    pub(crate) const fn operation(self) -> Op {
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

/// The edges of one format: `(from, to)`.
pub type Edges = &'static [(State, State)];

use State::*;

/// Raw: no tables; only data, sectors and syncs.
pub const RAW_EDGES: Edges = &[
    (Free, FindCluster),
    (Free, SyncData),
    (Free, WaitRequests),
    (Free, Resize),
    (Free, Done),
    (FindCluster, WaitSector),
    (FindCluster, ReadData),
    (FindCluster, ReadModify),
    (FindCluster, WriteData),
    (FindCluster, ZeroData),
    (FindCluster, Done),
    (WaitSector, FindCluster),
    (ReadData, FindCluster),
    (ReadData, Done),
    (ReadModify, WriteData),
    (ReadModify, Done),
    (WriteData, FindCluster),
    (WriteData, SyncData),
    (WriteData, Done),
    (ZeroData, FindCluster),
    (ZeroData, SyncData),
    (ZeroData, Done),
    (SyncData, Done),
    (WaitRequests, SyncData),
    (WaitRequests, Done),
    (Resize, Done),
    (Done, Free),
];

/// QED.
pub const QED_EDGES: Edges = &[
    (Free, FindCluster),
    (Free, SyncData),
    (Free, WaitRequests),
    (Free, ClearAutoclear),
    (Free, Done),
    (FindCluster, ReadL2),
    (FindCluster, WaitCluster),
    (FindCluster, WaitSector),
    (FindCluster, WaitSlot),
    (FindCluster, ReadData),
    (FindCluster, ReadBacking),
    (FindCluster, CopyOnWrite),
    (FindCluster, ReadModify),
    (FindCluster, WriteData),
    (FindCluster, ZeroData),
    (FindCluster, GrowFile),
    (FindCluster, AllocL2),
    (FindCluster, ClearAutoclear),
    (FindCluster, SyncData),
    (FindCluster, Done),
    (ReadL2, FindCluster),
    (ReadL2, Done),
    (WaitCluster, FindCluster),
    (WaitSector, FindCluster),
    (WaitSlot, FindCluster),
    (GrowFile, FindCluster),
    (GrowFile, Done),
    (AllocL2, FindCluster),
    (AllocL2, Done),
    (ReadData, FindCluster),
    (ReadData, Done),
    (ReadBacking, FindCluster),
    (ReadBacking, Done),
    (CopyOnWrite, WriteData),
    (CopyOnWrite, Done),
    (ReadModify, WriteData),
    (ReadModify, Done),
    (WriteData, CopyOnWrite),
    (WriteData, WriteData),
    (WriteData, FindCluster),
    (WriteData, SyncData),
    (WriteData, Done),
    (ZeroData, FindCluster),
    (ZeroData, SyncData),
    (ZeroData, Done),
    (ClearAutoclear, FindCluster),
    (ClearAutoclear, SyncData),
    (ClearAutoclear, Done),
    (MarkDirty, SyncData),
    (MarkDirty, Done),
    (SyncData, MarkDirty),
    (SyncData, UpdateL2),
    (SyncData, Done),
    (UpdateL2, SyncTables),
    (UpdateL2, Done),
    (SyncTables, Done),
    (SyncData, SyncTables),
    (WaitRequests, SyncData),
    (WaitRequests, Done),
    (Done, Free),
];

/// qcow2.
pub const QCOW2_EDGES: Edges = &[
    (Free, FindCluster),
    (Free, SyncData),
    (Free, WaitRequests),
    (Free, ClearAutoclear),
    (Free, Done),
    (FindCluster, ReadL2),
    (FindCluster, WaitCluster),
    (FindCluster, WaitSector),
    (FindCluster, WaitSlot),
    (FindCluster, ReadData),
    (FindCluster, ReadBacking),
    (FindCluster, ReadCompressed),
    (FindCluster, CopyOnWrite),
    (FindCluster, ReadModify),
    (FindCluster, WriteData),
    (FindCluster, ZeroData),
    (FindCluster, GrowFile),
    (FindCluster, AllocL2),
    (FindCluster, AllocRefcount),
    (FindCluster, ClearAutoclear),
    (FindCluster, SyncData),
    (FindCluster, Done),
    (ReadL2, FindCluster),
    (ReadL2, Done),
    (WaitCluster, FindCluster),
    (WaitSector, FindCluster),
    (WaitSlot, FindCluster),
    (GrowFile, FindCluster),
    (GrowFile, Done),
    (AllocL2, FindCluster),
    (AllocL2, Done),
    (AllocRefcount, FindCluster),
    (AllocRefcount, Done),
    (ReadData, FindCluster),
    (ReadData, Done),
    (ReadBacking, FindCluster),
    (ReadBacking, Done),
    (ReadCompressed, FindCluster),
    (ReadCompressed, Done),
    (CopyOnWrite, WriteData),
    (CopyOnWrite, Done),
    (ReadModify, CopyOnWrite),
    (ReadModify, WriteData),
    (ReadModify, Done),
    (WriteData, CopyOnWrite),
    (WriteData, WriteData),
    (WriteData, FindCluster),
    (WriteData, SyncData),
    (WriteData, Done),
    (ZeroData, FindCluster),
    (ZeroData, SyncData),
    (ZeroData, Done),
    (ClearAutoclear, FindCluster),
    (ClearAutoclear, WaitRequests),
    (ClearAutoclear, Done),
    (MarkDirty, SyncData),
    (MarkDirty, Done),
    (SyncData, MarkDirty),
    (SyncData, UpdateL2),
    (SyncData, SyncTables),
    (SyncData, Resize),
    (SyncData, FindCluster),
    (SyncData, Done),
    (UpdateL2, SyncData),
    (UpdateL2, SyncTables),
    (UpdateL2, Done),
    (SyncTables, SyncData),
    (SyncTables, FindCluster),
    (SyncTables, Resize),
    (SyncTables, Done),
    (WaitRequests, SyncData),
    (WaitRequests, FindCluster),
    (WaitRequests, Done),
    (Resize, Done),
    (Done, Free),
];

/// For each state the set of its successors, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct EdgeTable([u32; State::COUNT]);

impl EdgeTable {
    pub(crate) const RAW: EdgeTable = EdgeTable::new(RAW_EDGES);
    pub(crate) const QED: EdgeTable = EdgeTable::new(QED_EDGES);
    pub(crate) const QCOW2: EdgeTable = EdgeTable::new(QCOW2_EDGES);

    const fn new(edges: Edges) -> EdgeTable {
        const { assert!(State::COUNT <= 32, "a set of states fits a word") };
        let mut table = [0u32; State::COUNT];
        let mut i = 0;
        while i < edges.len() {
            let (from, to) = edges[i];
            assert!(table[from as usize] & (1 << to as u32) == 0, "an edge stands twice");
            table[from as usize] |= 1 << to as u32;
            i += 1;
        }
        EdgeTable(table)
    }

    #[inline]
    pub(crate) fn allows(&self, from: State, to: State) -> bool {
        self.0[from as usize] & (1 << to as u32) != 0
    }
}

/// How often each edge was taken.
#[derive(Clone, Debug)]
pub struct EdgeCounts([[u64; State::COUNT]; State::COUNT]);

impl EdgeCounts {
    pub(crate) const fn new() -> EdgeCounts {
        EdgeCounts([[0; State::COUNT]; State::COUNT])
    }

    #[inline]
    pub(crate) fn count(&mut self, from: State, to: State) {
        self.0[from as usize][to as usize] += 1;
    }

    /// How often an acb went from `from` to `to`.
    pub fn get(&self, from: State, to: State) -> u64 {
        self.0[from as usize][to as usize]
    }
}

/// One step of one acb.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transition {
    /// Whose.
    pub acb: AcbId,
    /// Of which request.
    pub request: RequestId,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_allows_the_edges_of_its_list_and_counts_are_by_edge() {
        for (table, edges) in
            [(EdgeTable::RAW, RAW_EDGES), (EdgeTable::QED, QED_EDGES), (EdgeTable::QCOW2, QCOW2_EDGES)]
        {
            for (&from, &to) in State::ALL.iter().flat_map(|from| State::ALL.iter().map(move |to| (from, to)))
            {
                assert_eq!(table.allows(from, to), edges.contains(&(from, to)), "{from:?} -> {to:?}");
            }
        }
        let mut counts = EdgeCounts::new();
        (0..3).for_each(|_| counts.count(Free, Done));
        assert_eq!((counts.get(Free, Done), counts.get(Done, Free)), (3, 0));
    }
}
