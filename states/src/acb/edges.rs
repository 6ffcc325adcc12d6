//! Which state may follow which: the rows that all formats share, and what each adds.
//!
//! Knows: the edge tables, one a format; how often each edge was taken. Must never know: why an acb takes
//! one.
//!
//! Invariants: an edge stands in one of the lists; a table has at most 32 states, so that a set of them fits
//! a word.

use super::block::AcbId;
use super::request::RequestId;
use super::state::State;
use super::state::State::*;

/// The edges of one format: `(from, to)`.
pub type Edges = &'static [(State, State)];

/// Of every format: data, sectors and syncs.
const COMMON: Edges = &[
    (Free, FindCluster),
    (Free, SyncData),
    (Free, WaitRequests),
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
    (Done, Free),
];

/// Of a raw image alone: its length is its size.
const RAW_ALONE: Edges = &[(Free, Resize), (Resize, Done)];

/// Of formats with tables.
const TABLES: Edges = &[
    (Free, ClearAutoclear),
    (FindCluster, ReadL2),
    (FindCluster, WaitCluster),
    (FindCluster, WaitSlot),
    (FindCluster, ReadBacking),
    (FindCluster, CopyOnWrite),
    (FindCluster, GrowFile),
    (FindCluster, AllocL2),
    (FindCluster, ClearAutoclear),
    (FindCluster, SyncData),
    (ReadL2, FindCluster),
    (ReadL2, Done),
    (WaitCluster, FindCluster),
    (WaitSlot, FindCluster),
    (GrowFile, FindCluster),
    (GrowFile, Done),
    (AllocL2, FindCluster),
    (AllocL2, Done),
    (ReadBacking, FindCluster),
    (ReadBacking, Done),
    (CopyOnWrite, WriteData),
    (CopyOnWrite, Done),
    (WriteData, CopyOnWrite),
    (WriteData, WriteData),
    (ClearAutoclear, FindCluster),
    (ClearAutoclear, WaitRequests),
    (ClearAutoclear, Done),
    (MarkDirty, SyncData),
    (MarkDirty, Done),
    (SyncData, FindCluster),
    (SyncData, MarkDirty),
    (SyncData, UpdateL2),
    (SyncData, SyncTables),
    (UpdateL2, SyncTables),
    (UpdateL2, Done),
    (SyncTables, FindCluster),
    (SyncTables, Done),
    (WaitRequests, FindCluster),
];

/// Of QED alone.
const QED_ALONE: Edges = &[(ClearAutoclear, SyncData)];

/// Of qcow2 alone: clusters are counted, compressed and copied, the disk's size changes.
const QCOW2_ALONE: Edges = &[
    (FindCluster, ReadCompressed),
    (FindCluster, Compress),
    (FindCluster, WaitTurn),
    (FindCluster, AllocRefcount),
    (AllocRefcount, FindCluster),
    (AllocRefcount, Done),
    (ReadCompressed, FindCluster),
    (ReadCompressed, Done),
    (Compress, FindCluster),
    (WaitTurn, FindCluster),
    (ReadModify, CopyOnWrite),
    (SyncData, Resize),
    (SyncData, Snapshot),
    (UpdateL2, SyncData),
    (SyncTables, SyncData),
    (SyncTables, Resize),
    (SyncTables, Snapshot),
    (Resize, Done),
    (Snapshot, Resize),
    (Snapshot, Done),
];

/// Raw.
pub const RAW_EDGES: Edges = &joined::<{ COMMON.len() + RAW_ALONE.len() }>(&[COMMON, RAW_ALONE]);

/// QED.
pub const QED_EDGES: Edges =
    &joined::<{ COMMON.len() + TABLES.len() + QED_ALONE.len() }>(&[COMMON, TABLES, QED_ALONE]);

/// qcow2.
pub const QCOW2_EDGES: Edges =
    &joined::<{ COMMON.len() + TABLES.len() + QCOW2_ALONE.len() }>(&[COMMON, TABLES, QCOW2_ALONE]);

/// The rows of several lists, `N` in all, ordered by the state that they leave.
const fn joined<const N: usize>(lists: &[Edges]) -> [(State, State); N] {
    let mut rows = [(Free, Free); N];
    let (mut state, mut at) = (0, 0);
    while state < State::COUNT {
        let mut list = 0;
        while list < lists.len() {
            let mut row = 0;
            while row < lists[list].len() {
                if lists[list][row].0 as usize == state {
                    rows[at] = lists[list][row];
                    at += 1;
                }
                row += 1;
            }
            list += 1;
        }
        state += 1;
    }
    assert!(at == N, "every row has a place");
    rows
}

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
        let (mut state, mut entered) = (0, 0);
        while state < State::COUNT {
            entered |= table[state];
            let frees = table[state] & (1 << Free as u32) != 0;
            assert!(!frees || state == Done as usize, "a slot comes free when its acb is done");
            state += 1;
        }
        while state > 0 {
            state -= 1;
            let way_in = entered & (1 << state as u32) != 0;
            assert!(way_in == (table[state] != 0), "what is entered is left, and the other way round");
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
#[non_exhaustive]
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
