//! The rules of docs/ordering.md that a test can remove, to see that their absence is noticed.
//!
//! Knows: one bit a rule. Must never know: what follows from its absence. In a normal build (without the
//! feature `sabotage`) no rule can be removed, nothing of this is public, and asking costs nothing: what is
//! left are names that a guard asks for in vain. Rules whose removal takes code of its own have none.

/// See the module's header. What stands here is what must hold; the switch makes that it does not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u128)]
pub enum Rule {
    /// QE1: the need-check bit is durable before the first pointer.
    MarkDirty = 1,
    /// QE3: data is durable before the pointer to it.
    DataBeforePointer = 1 << 1,
    /// QE8: a flush ends only when the pointers are durable.
    SyncTables = 1 << 2,
    /// QE5: the bit is cleared only when all pointers are durable.
    ClearAfterSync = 1 << 3,
    /// One allocating write of a cluster at a time.
    ClusterClaim = 1 << 4,
    /// Modifying a sector excludes other writes to it.
    SectorWait = 1 << 5,
    /// QC1: the count of a cluster is durable before the pointer to it.
    RefcountBeforePointer = 1 << 6,
    /// QC4: a count goes down only when the removal of the pointer is durable.
    FreeAfterRemoval = 1 << 7,
    /// QC5: a cluster is not used again while a request that found it before is in flight.
    ReuseAfterReaders = 1 << 8,
    /// QC9: a refcount block is durable before the entry that leads to it.
    #[cfg(feature = "sabotage")]
    BlockBeforeReftable = 1 << 9,
    /// QC10: a new refcount table is durable before the header leads to it.
    ReftableBeforeHeader = 1 << 10,
    /// QC18: only what the copied flag says is nobody else's is written in place.
    CopiedOnly = 1 << 11,
    /// QC2: the copy of a shared table is durable before the L1 entry leads to it.
    #[cfg(feature = "sabotage")]
    TableBeforeL1 = 1 << 12,
    /// QE2: a new table is durable before the L1 entry leads to it.
    #[cfg(feature = "sabotage")]
    NewTableBeforeL1 = 1 << 13,
    /// QE4: the file's length is durable before a pointer into what it added.
    LengthBeforePointer = 1 << 14,
    /// QE5: the cleared bit is durable before a close or quiesce ends.
    ClearedBeforeClosed = 1 << 15,
    /// QE6: a dirty image is checked before it takes requests.
    CheckBeforeUse = 1 << 16,
    /// QE7: a partial cluster at the end of the file is not used.
    WholeClusters = 1 << 17,
    /// QE7: a pointer beyond the end of the file stays invalid when the file grows.
    DanglingStaysDead = 1 << 18,
    /// QE9: a table is written from memory, neighbours of what changed included.
    #[cfg(feature = "sabotage")]
    Neighbours = 1 << 19,
    /// QE10: an entry that points to a cluster does not become a zero entry.
    #[cfg(feature = "sabotage")]
    KeptClusters = 1 << 20,
    /// QE11: bytes of the header's block that are not its fields stay.
    #[cfg(feature = "sabotage")]
    HeaderBytes = 1 << 21,
    /// QC6: a hole is punched when the removal is durable.
    #[cfg(feature = "sabotage")]
    PunchAfterRemoval = 1 << 22,
    /// QC10, QC11: an old table is free when the header durably leads to the new one.
    SwitchBeforeFree = 1 << 23,
    /// QC11: a new L1 table is durable before the header leads to it.
    L1BeforeHeader = 1 << 24,
    /// QC14, QC15: autoclear bits are cleared durably before anything else is written.
    AutoclearFirst = 1 << 25,
    /// QC17: what comes or goes is durable before the header has the new size.
    RangeBeforeSize = 1 << 26,
    /// A new cluster becomes visible only when all of it is written.
    LinkLast = 1 << 27,
    /// An acb that was woken looks its cluster up again.
    #[cfg(feature = "sabotage")]
    LookAgain = 1 << 28,
    /// After a failed write of metadata or sync nothing more is written.
    #[cfg(feature = "sabotage")]
    Poison = 1 << 29,
    /// `ReadL2`: a slice is used when it is loaded.
    WaitReadL2 = 1 << 30,
    /// `WaitSlot`: a slot that is dirty is not taken.
    #[cfg(feature = "sabotage")]
    WaitSlot = 1 << 31,
    /// `WaitRequests`: a close waits for all other requests.
    WaitRequests = 1 << 32,
    /// `GrowFile`: space is used when the file has grown.
    WaitGrowFile = 1 << 33,
    /// `AllocL2`: a table that is being copied is changed, or used, when the copy is there.
    WaitAllocL2 = 1 << 34,
    /// `AllocRefcount`: counts are used when they are loaded.
    WaitAllocRefcount = 1 << 35,
    /// `MarkDirty`: the pipeline goes on when the header, and refcounts, are written.
    WaitMarkDirty = 1 << 36,
    /// `SyncData`: the pipeline goes on when the sync has ended.
    #[cfg(feature = "sabotage")]
    WaitSyncData = 1 << 37,
    /// `UpdateL2`: the pipeline goes on when the tables are written.
    WaitUpdateL2 = 1 << 38,
    /// `Resize`: the answer comes when length and size are set.
    WaitResize = 1 << 39,
    /// An acb goes on with the last of its own I/Os, not with the first.
    WaitAllParts = 1 << 40,
    /// The slice that new clusters will be linked into stays in the cache.
    PinLink = 1 << 41,
    /// The slice that clusters are allocated for stays there while counts are loaded.
    PinCount = 1 << 42,
    /// So does the L1 slice that a new table, or the copy of one, is allocated for.
    PinL1 = 1 << 43,
    /// The L1 slice of a table that is being copied stays in the cache.
    PinCopy = 1 << 44,
    /// A slot that is being loaded is not taken.
    #[cfg(feature = "sabotage")]
    LoadingSlot = 1 << 45,
    /// A slot that is being written is not taken.
    #[cfg(feature = "sabotage")]
    WritingSlot = 1 << 46,
    /// What is written of a table leaves young changes out.
    #[cfg(feature = "sabotage")]
    YoungChanges = 1 << 47,
    /// A table that a snapshot shares is copied before it changes.
    #[cfg(feature = "sabotage")]
    SharedTable = 1 << 48,
    /// A freed cluster is used again when its hole is there.
    PunchedFirst = 1 << 49,
    /// A cluster that could not be punched is not used again.
    UnpunchedStays = 1 << 50,
    /// Nothing is accepted while the disk gets smaller.
    Exclusive = 1 << 51,
    /// Free clusters that are on their way already are not found a second time.
    HeldOnce = 1 << 52,
    /// A hole is durable before a pointer to its cluster's new use.
    HoleBeforePointer = 1 << 53,
    /// What ends while a sync is in flight is not covered by it.
    CoveredBefore = 1 << 54,
    /// QE6: what a check on opening repairs is durable before the image says that it is clean, and is used.
    RepairDurably = 1 << 55,
    /// After a corruption was found, what was answered before still reaches the file.
    CommitAfterCorruption = 1 << 56,
    /// QC20: entries that a repair drops are gone, durably, before it puts anything where they led.
    DropBeforePlace = 1 << 57,
    /// QE12: the need-check bit is in the file before the file grows.
    BitBeforeGrowth = 1 << 58,
    /// QE12: the file ends with its data before the bit is cleared.
    CutBeforeClear = 1 << 59,
    /// QC6: space that was in the file, uncounted, is cleared before it is used.
    ClearBeforeUse = 1 << 60,
    /// QC6: of a device, clusters that may hold anything are handed only to a write that covers them.
    CoverStale = 1 << 61,
    /// QC21: all that is new of a snapshot is durable before the header leads to it.
    SnapshotBeforeHeader = 1 << 62,
    /// QC22: the header with a new list is durable before what only the old one led to is free.
    SnapshotBeforeFree = 1 << 63,
    /// QC23: a host cluster counts each compressed cluster that has bytes in it.
    PackedCounted = 1 << 64,
    /// QC24: a host cluster that was given up takes no more compressed bytes.
    PackedClosed = 1 << 65,
    /// QC25: a header of several sectors changes in steps, each of them durable before the next.
    HeaderSteps = 1 << 66,
    /// QC15: bitmaps that are kept up are in use, durably, before the first change of the guest's data.
    InUseFirst = 1 << 67,
}
