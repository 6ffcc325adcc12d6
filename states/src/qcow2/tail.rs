//! The free end of a file: from where on the counts of its clusters are all 0. A program that was killed left
//! the space that the file had grown ahead; it is looked for from the end on, in a few pieces of refcount
//! blocks.
//!
//! Knows: the refcount table, how counts lie in a block. Must never know: what clusters hold.
//!
//! Invariants:
//! * `READS_MAX` pieces are read at most: what lies before them is found while space is wanted
//!   (`image/reclaim.rs`);
//! * where a block cannot be read, or its entry is bad, the search ends: nothing there is called free.

use super::Shape;
use super::refcount::BlockShape;

/// Bytes of a refcount block that are read at once.
const PIECE: u64 = 64 << 10;
/// Pieces that are read at most.
const READS_MAX: u32 = 64;

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    counts: BlockShape,
    shape: Shape,
    /// Whole clusters of the file.
    clusters: u64,
    /// Nothing is in use from this cluster on.
    at: u64,
    reads: u32,
}

/// What the search wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// This piece of a refcount block.
    Read { offset: u64, len: u32 },
    /// Nothing: it has ended at this cluster.
    End(u64),
}

impl Tail {
    /// Of a file of so many whole clusters.
    pub(crate) fn new(counts: BlockShape, shape: Shape, clusters: u64) -> Tail {
        debug_assert!(counts.cluster_bits == shape.cluster_bits, "one image, one size of clusters");
        Tail { counts, shape, clusters, at: clusters, reads: READS_MAX }
    }

    /// Where the search ended.
    pub(crate) fn end(&self) -> u64 {
        debug_assert!(self.at <= self.clusters);
        self.at
    }

    /// What to read next.
    pub(crate) fn next(&mut self, reftable: &[u64]) -> Next {
        debug_assert!(self.at <= self.clusters);
        let Some(last) = self.at.checked_sub(1) else { return Next::End(0) };
        // blocks that are not there count nothing
        let index = self.counts.table_index(last);
        let known = reftable.get(..reftable.len().min(index as usize + 1)).unwrap_or_default();
        let Some(used) = known.iter().rposition(|entry| *entry != 0) else {
            self.at = 0;
            return Next::End(0);
        };
        if (used as u64) < index {
            self.at = self.at.min((used as u64 + 1) << self.counts.block_bits());
            return self.next(reftable);
        }
        let block = reftable.get(used).and_then(|entry| self.shape.decode_reftable(index, *entry).ok());
        match block.flatten() {
            Some(block) if self.reads > 0 && block >> self.counts.cluster_bits < self.clusters => {
                self.reads -= 1;
                let piece = self.piece();
                let byte = (self.counts.block_index(last) << self.counts.order) / 8;
                debug_assert!(byte / piece * piece + piece <= 1 << self.counts.cluster_bits, "of the block");
                Next::Read { offset: block + byte / piece * piece, len: piece as u32 }
            }
            _ => Next::End(self.at),
        }
    }

    fn piece(&self) -> u64 {
        debug_assert!(self.counts.cluster_bits >= 9, "limits of the format");
        PIECE.min(1 << self.counts.cluster_bits)
    }

    /// The piece was read: does the search go on?
    pub(crate) fn read(&mut self, bytes: &[u8]) -> bool {
        debug_assert!(self.at > 0, "there is something to look at");
        let Some(last) = self.at.checked_sub(1) else { return false };
        let per_piece = (self.piece() * 8) >> self.counts.order;
        let within = self.counts.block_index(last) % per_piece;
        let first = last - within;
        debug_assert!(within < per_piece && first <= last, "the piece counts the cluster");
        match (0..=within).rev().find(|index| self.counts.get(bytes, *index) != 0) {
            Some(used) => {
                self.at = first + used + 1;
                false
            }
            None => {
                self.at = first;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 512 * 7;

    /// Clusters of 512 bytes, counts of 16 bits: 256 a block.
    fn tail(clusters: u64) -> Tail {
        let shape = Shape { version: 3, cluster_bits: 9, extended: false, data_file: false };
        Tail::new(BlockShape { cluster_bits: 9, order: 4 }, shape, clusters)
    }

    fn counts(used: &[usize]) -> [u8; 512] {
        let mut bytes = [0; 512];
        used.iter().for_each(|index| bytes[index * 2 + 1] = 1);
        bytes
    }

    #[test]
    fn it_goes_backwards_to_the_last_cluster_in_use() {
        let mut search = tail(900);
        let table = [BLOCK, 2 * BLOCK, 0, 3 * BLOCK, 0];
        assert_eq!(search.next(&table), Next::Read { offset: 3 * BLOCK, len: 512 });
        assert!(search.read(&counts(&[140])), "that is behind the end of the file");
        assert_eq!(search.end(), 768);
        assert_eq!(search.next(&table), Next::Read { offset: 2 * BLOCK, len: 512 }, "past what is not there");
        assert!(!search.read(&counts(&[0, 3, 77])));
        assert_eq!(search.end(), 256 + 78);
        // nothing at all
        let mut search = tail(300);
        assert_eq!(search.next(&[0, 0, BLOCK]), Next::End(0));
        assert_eq!((search.end(), tail(0).next(&table)), (0, Next::End(0)));
        // the last one is in use, and is the last of a block
        let mut search = tail(256);
        assert_eq!(search.next(&table), Next::Read { offset: BLOCK, len: 512 });
        assert!(!search.read(&counts(&[255])));
        assert_eq!(search.end(), 256);
    }

    #[test]
    fn it_ends_where_it_cannot_look_and_after_so_many_reads() {
        assert_eq!(tail(700).next(&[BLOCK, BLOCK, 77]), Next::End(700), "a bad entry");
        assert_eq!(tail(700).next(&[BLOCK, BLOCK, 700 * 512]), Next::End(700), "behind the end");
        let table = [BLOCK; 100];
        let mut search = tail(100 * 256);
        for _ in 0..READS_MAX {
            assert!(matches!(search.next(&table), Next::Read { .. }));
            assert!(search.read(&counts(&[])));
        }
        assert_eq!(search.next(&table), Next::End((100 - u64::from(READS_MAX)) * 256));
    }

    /// A block of more than 64 KiB is read from behind, a piece at a time.
    #[test]
    fn large_blocks_are_read_in_pieces() {
        let shape = Shape { version: 3, cluster_bits: 21, extended: false, data_file: false };
        let mut search = Tail::new(BlockShape { cluster_bits: 21, order: 4 }, shape, 40_000);
        let table = [4 << 21];
        assert_eq!(search.next(&table), Next::Read { offset: (4 << 21) + (64 << 10), len: 64 << 10 });
        let mut bytes = [0; 64 << 10];
        assert!(search.read(&bytes));
        assert_eq!(search.end(), 32_768);
        assert_eq!(search.next(&table), Next::Read { offset: 4 << 21, len: 64 << 10 });
        bytes[20_001] = 1;
        assert!(!search.read(&bytes));
        assert_eq!(search.end(), 10_001);
    }
}
