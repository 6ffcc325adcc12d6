//! What a check says while it runs, finding by finding.
//!
//! Knows: the numbers of a finding. Must never know: how it is told to people.
//! Invariant: bounded: who does not listen loses the later ones, and how many they were is the last finding.

use super::Check;
use crate::error::Error;
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

impl Check {
    /// The next finding, in the order in which qemu-img tells them. After a repair those of the second run
    /// follow.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        let findings = &mut self.findings;
        let lost = core::mem::take(&mut findings.lost);
        findings
            .waiting
            .pop_front()
            .inspect(|_| findings.lost = lost)
            .or((lost > 0).then_some(Finding::More(lost)))
    }

    pub(super) fn say(&mut self, finding: Finding) {
        if self.findings.waiting.len() < WAITING_MAX {
            self.findings.waiting.push_back(finding);
        } else {
            self.findings.lost += 1;
        }
    }

    /// Counts a corruption whose finding has a form of its own.
    pub(super) fn wrong(&mut self, finding: Finding, fault: Fault) {
        self.say(finding);
        self.report.corruptions += 1;
        self.report.problem(Error::Corrupt(fault));
    }
}
