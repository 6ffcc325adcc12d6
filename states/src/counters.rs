//! What an image counts since it was opened: for its user to read, never to decide by.

/// Counts since the image was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
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

impl Counters {
    /// Adds those of another image.
    pub const fn add(&mut self, other: &Counters) {
        // by their names, without `..`: one that is new does not compile before it is added
        let Counters {
            hits,
            misses,
            allocations,
            table_reads,
            table_writes,
            table_bytes_written,
            syncs,
            grows,
            commits,
            new_tables,
            header_writes,
            stale_completions,
            lost_transitions,
        } = other;
        self.hits += *hits;
        self.misses += *misses;
        self.allocations += *allocations;
        self.table_reads += *table_reads;
        self.table_writes += *table_writes;
        self.table_bytes_written += *table_bytes_written;
        self.syncs += *syncs;
        self.grows += *grows;
        self.commits += *commits;
        self.new_tables += *new_tables;
        self.header_writes += *header_writes;
        self.stale_completions += *stale_completions;
        self.lost_transitions += *lost_transitions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_counter_is_forgotten() {
        let image = Counters {
            hits: 1,
            misses: 2,
            allocations: 3,
            table_reads: 4,
            table_writes: 5,
            table_bytes_written: 6,
            syncs: 7,
            grows: 8,
            commits: 9,
            new_tables: 10,
            header_writes: 11,
            stale_completions: 12,
            lost_transitions: 13,
        };
        let mut sum = Counters::default();
        sum.add(&image);
        assert_eq!(sum, image);
        sum.add(&image);
        assert_eq!((sum.hits, sum.lost_transitions), (2, 26));
    }
}
