//! What an image counts since it was opened: for its user to read, never to decide by.

/// Counts since the image was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Lookups that found their slice in the cache.
    pub hits: u64,
    /// Lookups that had to wait for a slice.
    pub misses: u64,
    /// Clusters allocated for data.
    pub allocations: u64,
    /// Slices read.
    pub table_reads: u64,
    /// Writes of table slices.
    pub table_writes: u64,
    /// Bytes in them.
    pub table_bytes_written: u64,
    /// Syncs of the file.
    pub syncs: u64,
    /// Times the file was grown ahead.
    pub grows: u64,
    /// Rounds of the commit pipeline.
    pub commits: u64,
    /// L2 tables allocated.
    pub new_tables: u64,
    /// Writes of the header.
    pub header_writes: u64,
    /// Completions that named no I/O in flight: the embedder's mistake.
    pub stale_completions: u64,
    /// Transitions that nobody polled in time.
    pub lost_transitions: u64,
}
