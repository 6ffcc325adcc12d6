//! Places for compressed clusters: packed behind each other, from any byte on, in host clusters that count
//! each compressed cluster that has bytes in them.
//!
//! Knows: where the last of them ended, counts. Must never know: what shrank to what, entries.
//!
//! Invariants:
//! * the count of a host cluster goes up before bytes are placed in it, once for each compressed cluster, so
//!   it comes back when the last of those is given up (QC23);
//! * nothing is placed behind others in a host cluster whose count has been 0 since: it is, or will be,
//!   somebody else's (QC24); nor where the counter has no room for one more;
//! * where the file has blocks (O_DIRECT) a place begins with one: two writes share none;
//! * bytes lie in two host clusters at most, neighbours, on the same side of the borders that the file had
//!   when it was opened: an entry of then that seems to go on behind such a border is cut off there.

use super::Cx;
use super::allocate::Stop;
use super::counts::{Counted, Refcounted, count_of};
use super::kind::{ClusterRun, Need};
use crate::base::geometry::align_up;
use crate::options::Options;
use crate::rule::Rule;

/// The first of these borders behind `host`.
pub(crate) fn border_behind(borders: [u64; 2], host: u64) -> u64 {
    let first = borders.into_iter().filter(|border| *border > host).min().unwrap_or(u64::MAX);
    debug_assert!(first > host, "it lies behind");
    first
}

impl Refcounted {
    /// A place for `len` bytes, fewer than a cluster has, counted.
    pub(crate) fn allocate_packed(
        &mut self,
        len: u64,
        borders: [u64; 2],
        cx: &mut Cx<'_>,
    ) -> Result<u64, Stop> {
        let (bits, cluster) = (self.header.cluster_bits, self.header.cluster_size());
        debug_assert!(len > 0 && len < cluster, "it has become shorter");
        if let Some(error) = &self.broken {
            return Err(Stop::Bad(error.clone()));
        }
        let mut open = self.open_packed(cx.options);
        if let Some(at) = open
            && !self.takes_one_more(at >> bits, cx)?
        {
            (open, self.packed) = (None, 0);
        }
        if let Some(at) = open
            && len <= cluster - at % cluster
        {
            self.count_one_more(at >> bits, cx);
            self.packed = at + len;
            return Ok(at);
        }
        let new = self.allocate(cluster, Need::Zeros, cx)?.run().first << bits;
        let follows = |at: &u64| align_up(*at, cluster) == new && border_behind(borders, *at) > new;
        let at = match open.filter(follows) {
            // its count may have left the cache meanwhile: then its rest stays empty
            Some(at) if self.takes_one_more(at >> bits, cx) == Ok(true) => {
                self.count_one_more(at >> bits, cx);
                at
            }
            _ => new,
        };
        self.packed = at + len;
        debug_assert!(at + len <= new + cluster, "it ends in the new cluster");
        Ok(at)
    }

    /// Where there is room behind compressed bytes, if it is so.
    fn open_packed(&self, options: &Options) -> Option<u64> {
        let at = align_up(self.packed, options.align.into());
        debug_assert!(at >= self.packed, "blocks are rounded up");
        (!at.is_multiple_of(self.header.cluster_size())
            && at >> self.header.cluster_bits == self.packed >> self.header.cluster_bits)
            .then_some(at)
    }

    /// Can one more be counted in this cluster, which was ours?
    fn takes_one_more(&self, cluster: u64, cx: &mut Cx<'_>) -> Result<bool, Stop> {
        debug_assert!(cluster > 0, "the header's cluster holds no data");
        match self.refcount_slice(cluster, cx) {
            Ok((slot, start, _)) => {
                let count = count_of(self.counts, &cx.tables.slot(slot).entries, cluster - start);
                let lives = count > 0 || cx.options.sabotaged(Rule::PackedClosed);
                Ok(lives && count < self.counts.max())
            }
            Err(Counted::Loading(slot)) => Err(Stop::Load(slot)),
            Err(Counted::NoSlot) => Err(Stop::Slot),
            Err(_) => Ok(false),
        }
    }

    /// It is.
    fn count_one_more(&mut self, cluster: u64, cx: &mut Cx<'_>) {
        if cx.options.sabotaged(Rule::PackedCounted) {
            return;
        }
        let count = self.count(cluster, cx).unwrap_or(0);
        debug_assert!(count < self.counts.max(), "that was looked at");
        self.set_counts(ClusterRun::new(cluster, 1), count + 1, cx);
    }

    /// Nobody counts these clusters any more: nothing is placed in them behind what they held.
    pub(super) fn close_packed(&mut self, run: ClusterRun, options: &Options) {
        let open = !self.packed.is_multiple_of(self.header.cluster_size());
        if open
            && run.contains(self.packed >> self.header.cluster_bits)
            && !options.sabotaged(Rule::PackedClosed)
        {
            self.packed = 0;
            debug_assert!(self.open_packed(options).is_none(), "it takes no more");
        }
    }
}
