//! Allocation of counted clusters, and of what counts them: refcount blocks, and a larger refcount table.
//!
//! Knows: counts, free runs, the end of the file. Must never know: which acb wants space, and how it waits.
//!
//! Invariants: as those of `counts.rs`; whatever stops an allocation has changed nothing but what the next
//! attempt finds done already.

use super::Cx;
use super::counts::{Counted, Move, Refcounted};
use super::kind::{ClusterRun, Need, Space, Stale, Zeroed};
use crate::error::Error;

/// Bytes of a refcount table at most (formats.md 3.12).
const TABLE_MAX: u64 = 8 << 20;
/// qcow2's entries hold offsets below this.
const HOST_MAX: u64 = 1 << 56;

/// Why there is no space now.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The file has to grow by so many bytes; `counts`: for what counts clusters.
    Grow { len: u64, need: Need, counts: bool },
    /// A slice of the refcounts is being loaded into this slot.
    Load(u32),
    /// No slot of the cache is free.
    Slot,
    /// There never will be.
    NoSpace,
    /// The image contradicts itself.
    Bad(Error),
}

impl Refcounted {
    /// `len` bytes of space that nobody refers to, each cluster counted once.
    pub(crate) fn allocate(&mut self, len: u64, need: Need, cx: &mut Cx<'_>) -> Result<Space, Stop> {
        debug_assert!(len > 0 && len.is_multiple_of(self.header.cluster_size()));
        if self.moving.as_ref().is_some_and(|moving| moving.offset.is_none()) {
            self.place_reftable(cx)?;
            debug_assert!(
                self.moving.as_ref().is_some_and(|moving| moving.offset.is_some()),
                "it has space now"
            );
        }
        self.allocate_run(len, need, cx)
    }

    fn allocate_run(&mut self, len: u64, need: Need, cx: &mut Cx<'_>) -> Result<Space, Stop> {
        debug_assert!(len > 0 && len.is_multiple_of(self.header.cluster_size()));
        let bits = self.header.cluster_bits;
        let count = len >> bits;
        debug_assert!(count > 0, "a cluster at least");
        self.look_for_free(cx);
        if let Some(error) = &self.broken {
            return Err(Stop::Bad(error.clone()));
        }
        loop {
            let reused = self.quarantine.free_run(count);
            let first = reused.unwrap_or(cx.append.next() >> bits);
            if reused.is_none() && (first + count) << bits > HOST_MAX {
                return Err(Stop::NoSpace);
            }
            let stale = reused.is_none() && need == Need::Any && cx.append.has_stale(len, cx.durable > 0);
            if (reused.is_none() || cx.append.is_short()) && !stale {
                has_space(len, need, cx)?;
            }
            match self.count_run(first, count, cx) {
                Counted::Free => {
                    if self.step_over_metadata(first, count, reused.is_some(), cx) {
                        continue;
                    }
                    let run = ClusterRun::new(first, count);
                    debug_assert!(first > 0, "the header's cluster is never free");
                    self.set_counts(run, 1, cx);
                    match reused {
                        _ if stale => {
                            cx.append.take_stale(len);
                            return Ok(Space::Stale(Stale::free_end(run)));
                        }
                        Some(first) => self.quarantine.take(first, count),
                        None => take_space(len, need, cx),
                    }
                    return Ok(Space::Zeroed(Zeroed::new_space(run)));
                }
                // in use, though nothing should be there: it stays as it is
                Counted::Used(cluster) => match reused {
                    Some(_) => self.quarantine.take(cluster, 1),
                    None => cx.append.skip_to((cluster + 1) << bits),
                },
                Counted::Loading(slot) => return Err(Stop::Load(slot)),
                Counted::NoSlot => return Err(Stop::Slot),
                Counted::NoBlock(index) => self.make_block(index, cx)?,
                Counted::Bad(error) => return Err(Stop::Bad(error)),
            }
        }
    }

    /// Metadata that nobody counts is not free: such a run is left alone, and where it was found within the
    /// file the counts are not to be trusted.
    fn step_over_metadata(&mut self, first: u64, count: u64, reused: bool, cx: &mut Cx<'_>) -> bool {
        debug_assert!(count > 0);
        if self.check_uncounted(first, count).is_ok() {
            return false;
        }
        if reused || cx.append.has_found() {
            self.distrust();
            cx.append.distrust_found();
            return true;
        }
        let last = (first..first + count).rfind(|cluster| self.check_uncounted(*cluster, 1).is_err());
        debug_assert!(last.is_some(), "one of them holds it");
        let behind = (last.unwrap_or(first) + 1) << self.counts.cluster_bits;
        cx.append.skip_to(behind);
        true
    }

    /// A refcount block for an index that has none.
    fn make_block(&mut self, index: u64, cx: &mut Cx<'_>) -> Result<(), Stop> {
        debug_assert!(self.table.get(index as usize).is_none_or(|entry| *entry == 0), "there is one");
        let (counts, cluster_size) = (self.counts, self.header.cluster_size());
        let (first, clusters) = (index << counts.block_bits(), 1 << counts.block_bits());
        self.check_uncounted(first, clusters).map_err(Stop::Bad)?;
        if index >= self.table.len() as u64 {
            return self.grow_reftable(index, cx);
        }
        has_space(cluster_size, Need::Zeros, cx)?;
        let cluster = cx.append.next() >> counts.cluster_bits;
        let own = counts.table_index(cluster);
        if own != index {
            // the space at hand is counted elsewhere: its block comes first
            if self.table.get(own as usize).is_none_or(|entry| *entry == 0) {
                return self.make_block(own, cx);
            }
            let block = self.allocate_run(cluster_size, Need::Zeros, cx)?;
            self.add_block(index, block.run().first << counts.cluster_bits, cx.window);
            return Ok(());
        }
        let per_slice = self.slice_counters(cx.geometry);
        debug_assert!(per_slice > 0, "a slice counts clusters");
        let byte = counts.block_index(cluster) / per_slice * u64::from(cx.geometry.slice_bytes());
        let number = cx.geometry.refcount_slice(index, byte);
        let block = cluster << counts.cluster_bits;
        let words = cx.geometry.slice_words();
        cx.tables.claim_zeros(number, block + byte, words).ok_or(Stop::Slot)?;
        take_space(cluster_size, Need::Zeros, cx);
        self.add_block(index, block, cx.window);
        self.set_counts(ClusterRun::new(cluster, 1), 1, cx);
        Ok(())
    }

    fn add_block(&mut self, index: u64, block: u64, window: u64) {
        debug_assert!(block > 0 && block.is_multiple_of(self.header.cluster_size()));
        debug_assert!((index as usize) < self.table.len(), "the table has room for it");
        if let Some(entry) = self.table.get_mut(index as usize) {
            debug_assert_eq!(*entry, 0);
            *entry = block;
        }
        self.map.add_block(block);
        self.changed.push((index as usize, window));
    }

    /// The refcount table gets room for entry `index`: in memory at once, in the file by the commit pipeline.
    fn grow_reftable(&mut self, index: u64, cx: &mut Cx<'_>) -> Result<(), Stop> {
        debug_assert!(index >= self.table.len() as u64, "the table has room already");
        let cluster = self.header.cluster_size();
        if self.moving.is_some() {
            // one move at a time: the round that is due makes room
            return Err(Stop::Slot);
        }
        let wanted = (index + 1).max(self.table.len() as u64 * 3 / 2);
        let bytes = (wanted * 8).next_multiple_of(cluster).min(TABLE_MAX);
        debug_assert!(bytes.is_multiple_of(cluster), "a table is whole clusters");
        if index >= bytes / 8 {
            return Err(Stop::NoSpace);
        }
        self.table.resize((bytes / 8) as usize, 0);
        self.moving = Some(Move { clusters: bytes / cluster, offset: None, window: 0 });
        self.place_reftable(cx)
    }

    /// Space for the new refcount table. It has to be durable like data, though no acb waits for that: the
    /// entries beyond the old table's end do.
    fn place_reftable(&mut self, cx: &mut Cx<'_>) -> Result<(), Stop> {
        debug_assert!(self.moving.as_ref().is_some_and(|moving| moving.offset.is_none()));
        let Some(clusters) = self.moving.as_ref().map(|moving| moving.clusters) else { return Ok(()) };
        let bytes = clusters << self.header.cluster_bits;
        debug_assert!(bytes > 0 && bytes <= TABLE_MAX, "limits of the format");
        let placed = self.allocate_run(bytes, Need::Zeros, cx).map_err(|stop| match stop {
            Stop::Grow { len, need, .. } => Stop::Grow { len, need, counts: true },
            other => other,
        })?;
        if let Some(moving) = &mut self.moving {
            moving.offset = Some(placed.run().first << self.header.cluster_bits);
            moving.window = cx.window;
        }
        cx.out.due |= crate::outbox::Due::WROTE;
        Ok(())
    }
}

fn has_space(len: u64, need: Need, cx: &mut Cx<'_>) -> Result<(), Stop> {
    debug_assert!(len > 0);
    match cx.append.has(len, cx.options, cx.out) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Stop::Grow { len, need, counts: false }),
        Err(_) => Err(Stop::NoSpace),
    }
}

/// Takes space that is there.
fn take_space(len: u64, need: Need, cx: &mut Cx<'_>) {
    debug_assert!(len > 0, "nobody takes nothing");
    let taken = cx.append.take(len, need, cx.out);
    debug_assert!(taken.is_some());
}
