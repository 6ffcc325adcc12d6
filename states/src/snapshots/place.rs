//! Places for what is new: clusters that nobody counts now, each of them taken once.
//!
//! Single clusters come from the middle of the file, first to last; runs, and what the middle has not, from
//! behind the end of what is in use.
//!
//! Knows: the old counts, where metadata lies. Must never know: what is placed.
//!
//! Invariants:
//! * what is placed was free by the old counts, and is no metadata: as long as the header leads to those,
//!   nobody sees it;
//! * a place that was begun is gone on with: whoever is stopped asks for the same again.

use super::counts::Counts;
use super::stop::Stop;
use crate::error::Error;
use crate::space::counts::Refcounted;
use alloc::vec::Vec;

/// Host offsets that entries can hold are below this.
const HOST_MAX: u64 = 1 << 56;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Places {
    /// The next cluster of the middle of the file,
    hand: u64,
    /// which ends here.
    begin: u64,
    /// The next one behind what is in use, and how many from there on are known to be free.
    end: u64,
    seen: u64,
    /// Of a device: its clusters.
    limit: Option<u64>,
    /// The old block that was read last.
    block: Option<(u64, Vec<u8>)>,
    /// Clusters that were taken and are not counted yet,
    uncounted: Vec<u64>,
    /// and the first of those that were asked for.
    placed: Option<u64>,
}

impl Places {
    /// Nothing is in use from cluster `begin` on; a device has no more than `limit` clusters.
    pub(super) const fn new(begin: u64, limit: Option<u64>) -> Places {
        debug_assert!(begin > 0, "the header is in use");
        Places {
            hand: 1,
            begin,
            end: begin,
            seen: 0,
            limit,
            block: None,
            uncounted: Vec::new(),
            placed: None,
        }
    }

    /// The first cluster behind all that is in use.
    pub(super) const fn end(&self) -> u64 {
        debug_assert!(self.end >= self.begin, "it only rises");
        self.end
    }

    /// The old block that was asked for.
    pub(super) fn loaded(&mut self, index: u64, bytes: &[u8]) {
        debug_assert!(!bytes.is_empty(), "a block has counters");
        self.block = Some((index, bytes.to_vec()));
    }

    /// The first of `count` clusters in a row, counted.
    pub(super) fn take(
        &mut self,
        count: u64,
        counts: &mut Counts,
        counted: &Refcounted,
    ) -> Result<u64, Stop> {
        debug_assert!(count > 0, "nobody takes nothing");
        while self.placed.is_none() {
            self.look(count, counts, counted)?;
        }
        self.count_rest(counts)?;
        // cannot fail: the loop has ended
        Ok(self.placed.take().unwrap_or(self.end))
    }

    /// A place for the new block of an index that has an old one. It is counted later (`count_rest`): before
    /// all blocks have places none of them may have to leave memory.
    pub(super) fn take_block(
        &mut self,
        index: u64,
        counts: &mut Counts,
        counted: &Refcounted,
    ) -> Result<(), Stop> {
        debug_assert!(counts.old_block(index) != 0, "a block that is new has its place");
        while self.placed.is_none() {
            self.look(1, counts, counted)?;
        }
        if let Some(cluster) = self.placed.take() {
            counts.place(index, cluster << counts.shape().cluster_bits);
        }
        Ok(())
    }

    /// Counts all that was taken.
    pub(super) fn count_rest(&mut self, counts: &mut Counts) -> Result<(), Stop> {
        while let Some(cluster) = self.uncounted.last() {
            debug_assert!(*cluster > 0, "the header is in use");
            counts.count_new(*cluster)?;
            self.uncounted.pop();
        }
        Ok(())
    }

    /// Takes clusters, or the place of a block that has to be there to count them.
    fn look(&mut self, count: u64, counts: &mut Counts, counted: &Refcounted) -> Result<(), Stop> {
        debug_assert!(self.placed.is_none(), "one place at a time");
        if count == 1 && self.hand < self.begin {
            if let Some(cluster) = self.find_single(counts, counted)? {
                self.uncounted.push(cluster);
                self.placed = Some(cluster);
            }
            return Ok(());
        }
        while self.seen < count {
            let cluster = self.end + self.seen;
            match self.is_free(cluster, counts, counted)? {
                true => self.seen += 1,
                false => (self.end, self.seen) = (cluster + 1, 0),
            }
        }
        let (first, behind, shape) = (self.end, self.end + count, counts.shape());
        if behind >= HOST_MAX >> shape.cluster_bits || self.limit.is_some_and(|limit| behind > limit) {
            return Err(Stop::Bad(Error::NoSpace));
        }
        let mut indices = shape.table_index(first)..=shape.table_index(behind - 1);
        let missing = indices.find(|index| counts.old_block(*index) == 0 && counts.new_block(*index) == 0);
        // the block comes first: where it counts itself, if it can
        let taken = if missing.is_some() { 1 } else { count };
        (self.end, self.seen) = (first + taken, self.seen - taken);
        self.uncounted.extend((first..first + taken).rev());
        match missing {
            Some(index) => counts.place(index, first << shape.cluster_bits),
            None => self.placed = Some(first),
        }
        Ok(())
    }

    /// The next free cluster in the middle of the file.
    fn find_single(&mut self, counts: &Counts, counted: &Refcounted) -> Result<Option<u64>, Stop> {
        let shape = counts.shape();
        debug_assert!(self.hand <= self.begin, "the middle ends there");
        while self.hand < self.begin {
            let index = shape.table_index(self.hand);
            // what has no block would need one
            if counts.old_block(index) == 0 {
                self.hand = self.begin.min((index + 1) << shape.block_bits());
                continue;
            }
            let cluster = self.hand;
            let free = self.is_free(cluster, counts, counted)?;
            self.hand += 1;
            if free {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }

    /// Nobody counts it, and it is no metadata.
    fn is_free(&mut self, cluster: u64, counts: &Counts, counted: &Refcounted) -> Result<bool, Stop> {
        let shape = counts.shape();
        let index = shape.table_index(cluster);
        let host = counts.old_block(index);
        debug_assert!(cluster > 0, "the header is in use");
        if host != 0 {
            let Some((_, bytes)) = self.block.as_ref().filter(|(held, _)| *held == index) else {
                return Err(Stop::ReadOld { index, host });
            };
            if shape.get(bytes, shape.block_index(cluster)) != 0 {
                return Ok(false);
            }
        }
        Ok(counted.check_uncounted(cluster, 1).is_ok())
    }
}
