//! What a check says while it runs, finding by finding.
//!
//! Knows: the numbers of a finding. Must never know: how it is told to people.
//! Invariant: bounded: whoever does not listen loses the later ones, and how many they were is the last
//! finding.

use crate::fault::Fault;
use alloc::collections::VecDeque;

/// Findings that wait to be asked for, at most.
const WAITING_MAX: usize = 1 << 16;

/// One finding. `repaired`: it is put right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// An entry of a table contradicts the format. Its value is what is wrong in it: the offset, if that is.
    Fault(Fault),
    /// Something refers to a range beyond the end of the file.
    Beyond {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// So many entries that refer to ranges beyond the end of the file are dropped.
    Dropped {
        /// As often as they were told.
        entries: u64,
    },
    /// A cluster has more references than a refcount can say.
    Overflow {
        /// The cluster's first byte.
        offset: u64,
    },
    /// A refcount is not the number of references.
    Refcount {
        /// Which cluster of the file.
        cluster: u64,
        /// The refcount.
        stored: u64,
        /// The references.
        computed: u64,
        /// See above.
        repaired: bool,
    },
    /// The copied flag of an entry contradicts the refcount.
    Copied {
        /// The entry of the L1 table; None: it is an L2 entry.
        l1_index: Option<u64>,
        /// The entry.
        entry: u64,
        /// The refcount.
        refcount: u64,
        /// See above.
        repaired: bool,
    },
    /// A cluster of a guest does not begin at a cluster.
    Unaligned {
        /// Its offset.
        offset: u64,
        /// It has data. Without, it may be repaired.
        data: bool,
        /// See above.
        repaired: bool,
    },
    /// A refcount block lies beyond the end of the file.
    BlockBeyond {
        /// Its entry in the refcount table.
        index: u64,
        /// See above.
        repaired: bool,
    },
    /// A refcount block is referred to more than once.
    BlockShared {
        /// Its entry in the refcount table.
        index: u64,
        /// How often.
        references: u64,
    },
    /// An entry of the snapshot table has too little extra data, or too much: 1024 bytes are kept.
    Snapshot {
        /// Which entry.
        index: u64,
        /// Bytes of its extra data.
        extra: u32,
        /// See above.
        repaired: bool,
    },
    /// The refcount structures have to be rebuilt, and are (`repaired`) or may not be.
    Rebuild {
        /// See above.
        repaired: bool,
    },
    /// So many more.
    More(u64),
}

/// Findings that nobody has asked for yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    waiting: VecDeque<Finding>,
    lost: u64,
}

impl Findings {
    pub(super) fn next(&mut self) -> Option<Finding> {
        let lost = core::mem::take(&mut self.lost);
        self.waiting.pop_front().inspect(|_| self.lost = lost).or((lost > 0).then_some(Finding::More(lost)))
    }

    pub(super) fn push(&mut self, finding: Finding) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(finding);
        } else {
            self.lost += 1;
        }
        debug_assert!(self.waiting.len() <= WAITING_MAX, "so many wait at most");
    }
}
