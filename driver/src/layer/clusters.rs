//! The compressed clusters of one layer: those that are wanted, in progress, and kept for the next read of
//! them.
//!
//! Knows: clusters by the host offset of their data, which I/O waits for which. Must never know: how one is
//! read and decompressed, table entries, requests beyond the buffer that is to be filled.
//!
//! Invariants:
//! * concurrent reads of one cluster share one decompression; what a read waits for is bounded by the
//!   machine's acbs, the clusters kept by [`KEEP`] and [`FEWEST`];
//! * what is kept is never stale: the machine says which host ranges may be used again, and a cluster that
//!   lies there is dropped, or, in progress, serves those that wait for it and nothing else.

use super::flight::Dest;
use quod_states::qcow2::Compression;
use quod_states::{Info, IoId};
use std::collections::VecDeque;
use std::vec::Drain;

/// Decompressed bytes that a layer keeps, unless [`FEWEST`] clusters are more.
const KEEP: usize = 2 << 20;
/// Clusters that a layer keeps and has in progress, at least.
const FEWEST: usize = 4;
/// And at most.
const MOST: usize = 32;

/// Part of a compressed cluster that an I/O wants in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub io: IoId,
    /// Whose buffer; its owner counts this want as an operation on it.
    pub dest: Dest,
    pub len: u64,
    /// Where the compressed bytes begin in the file.
    pub host: u64,
    /// How many there are at most.
    pub bytes: u32,
    /// Where in the cluster.
    pub within: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Empty,
    /// Its bytes are being read or wait for their turn to be decompressed.
    Busy,
    Ready,
}

/// A cluster that is kept or in progress.
#[derive(Debug)]
struct Cluster {
    /// Offset and number of the compressed bytes.
    key: (u64, u32),
    stage: Stage,
    /// In use, and its compressed bytes may have changed since: nobody else may have it.
    stale: bool,
    /// When it was last wanted.
    used: u64,
    /// Empty while a worker has it.
    contents: Vec<u8>,
    wants: Vec<Want>,
    /// Copies that are still to be made of it: until then it stays.
    copies: u32,
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Clusters {
    size: usize,
    compression: Compression,
    most: usize,
    clusters: Vec<Cluster>,
    /// Wants that nobody has looked at.
    wanted: VecDeque<Want>,
    /// Wants that found every cluster busy.
    parked: VecDeque<Want>,
    clock: u64,
}

impl Clusters {
    pub(crate) fn new(info: &Info) -> Clusters {
        let size = info.cluster_size as usize;
        Clusters {
            size,
            compression: info.compression,
            most: (KEEP / size.max(1)).clamp(FEWEST, MOST),
            clusters: Vec::new(),
            wanted: VecDeque::new(),
            parked: VecDeque::new(),
            clock: 0,
        }
    }

    /// Bytes of a cluster.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Somebody wants part of a cluster: it is for the transforms to serve.
    pub(crate) fn want(&mut self, want: Want) {
        self.wanted.push_back(want);
    }

    /// There are wants that nobody has looked at.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    pub(crate) fn next_want(&mut self) -> Option<Want> {
        self.wanted.pop_front()
    }

    /// Every cluster is busy: the want waits.
    pub(crate) fn park(&mut self, want: Want) {
        self.parked.push_back(want);
    }

    /// The want that waits longest for a cluster.
    pub(crate) fn first_parked(&self) -> Option<Want> {
        self.parked.front().copied()
    }

    /// It waits no longer.
    pub(crate) fn unpark(&mut self) {
        self.parked.pop_front();
    }

    /// The place of a want's cluster, and whether it is there already (or on its way). None: all are busy.
    pub(crate) fn place(&mut self, want: &Want) -> Option<(usize, Stage)> {
        self.clock += 1;
        let key = (want.host, want.bytes);
        let known = |cluster: &Cluster| cluster.stage != Stage::Empty && !cluster.stale && cluster.key == key;
        let index = match self.clusters.iter().position(known) {
            Some(index) => index,
            None => self.replace(key)?,
        };
        let cluster = &mut self.clusters[index];
        cluster.used = self.clock;
        Some((index, cluster.stage))
    }

    /// Makes room: one that is empty, a new one, or the one whose last use is the longest ago.
    fn replace(&mut self, key: (u64, u32)) -> Option<usize> {
        let empty = self.clusters.iter().position(|cluster| cluster.stage == Stage::Empty);
        let index = match empty {
            Some(index) => index,
            None if self.clusters.len() < self.most => {
                // whoever decompresses to it makes it as long as it must be: fresh memory takes long
                let contents = Vec::new();
                self.clusters.push(Cluster {
                    key,
                    stage: Stage::Empty,
                    stale: false,
                    used: 0,
                    contents,
                    wants: Vec::new(),
                    copies: 0,
                });
                self.clusters.len() - 1
            }
            None => {
                let all = self.clusters.iter().enumerate();
                let idle = all.filter(|(_, one)| one.stage == Stage::Ready && one.copies == 0);
                idle.min_by_key(|(_, cluster)| cluster.used)?.0
            }
        };
        let cluster = &mut self.clusters[index];
        (cluster.key, cluster.stage) = (key, Stage::Empty);
        Some(index)
    }

    /// Host offset and number of a cluster's compressed bytes.
    pub(crate) fn key(&self, index: usize) -> (u64, u32) {
        self.clusters[index].key
    }

    /// The want waits for a cluster that is not there. True: it is the first, the cluster must be read.
    pub(crate) fn join(&mut self, index: usize, want: Want) -> bool {
        let cluster = &mut self.clusters[index];
        debug_assert_ne!(cluster.stage, Stage::Ready, "a want waits for what is there");
        cluster.wants.push(want);
        std::mem::replace(&mut cluster.stage, Stage::Busy) == Stage::Empty
    }

    /// The memory of a cluster, for whoever decompresses to it.
    pub(crate) fn contents(&mut self, index: usize) -> &mut Vec<u8> {
        &mut self.clusters[index].contents
    }

    /// `len` bytes of a cluster that is there, from `from` on; none if it is shorter.
    pub(crate) fn bytes(&self, index: usize, from: usize, len: usize) -> &[u8] {
        self.clusters[index].contents.get(from..from + len).unwrap_or_default()
    }

    /// The cluster is there: those that waited for it, for each of which a copy is to be made.
    pub(crate) fn ready(&mut self, index: usize) -> Drain<'_, Want> {
        let cluster = &mut self.clusters[index];
        cluster.stage = Stage::Ready;
        cluster.copies = cluster.wants.len() as u32;
        cluster.wants.drain(..)
    }

    /// The cluster will not come: those that waited for it.
    pub(crate) fn broken(&mut self, index: usize) -> Drain<'_, Want> {
        let cluster = &mut self.clusters[index];
        cluster.stage = Stage::Empty;
        cluster.stale = false;
        cluster.wants.drain(..)
    }

    /// One more copy is to be made of a cluster that is there.
    pub(crate) fn copying(&mut self, index: usize) {
        self.clusters[index].copies += 1;
    }

    /// A copy was made. True: it was the last, there is room for another cluster.
    pub(crate) fn copied(&mut self, index: usize) -> bool {
        let cluster = &mut self.clusters[index];
        cluster.copies -= 1;
        if cluster.copies == 0 && std::mem::take(&mut cluster.stale) {
            cluster.stage = Stage::Empty;
        }
        cluster.copies == 0
    }

    /// The host range may be used again.
    pub(crate) fn forget(&mut self, host: u64, len: u64) {
        let end = host.saturating_add(len);
        for cluster in &mut self.clusters {
            let (start, bytes) = cluster.key;
            if start >= end || start.saturating_add(u64::from(bytes)) <= host {
                continue;
            }
            match cluster.stage {
                Stage::Empty => {}
                Stage::Ready if cluster.copies == 0 => cluster.stage = Stage::Empty,
                Stage::Busy | Stage::Ready => cluster.stale = true,
            }
        }
    }

    /// Every cluster's stage.
    #[cfg(test)]
    pub(crate) fn stages(&self) -> Vec<Stage> {
        self.clusters.iter().map(|one| one.stage).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(host: u64) -> Want {
        let io = IoId { index: 0, generation: 0 };
        Want { io, dest: Dest::Request { index: 0, offset: 0 }, len: 1, host, bytes: 10, within: 0 }
    }

    fn clusters(most: usize) -> Clusters {
        Clusters {
            size: 512,
            compression: Compression::Deflate,
            most,
            clusters: Vec::new(),
            wanted: VecDeque::new(),
            parked: VecDeque::new(),
            clock: 0,
        }
    }

    #[test]
    fn the_one_used_longest_ago_makes_room_unless_it_is_in_use() {
        let mut clusters = clusters(2);
        for host in [100, 200] {
            let (index, stage) = clusters.place(&want(host)).unwrap();
            assert!(stage == Stage::Empty && clusters.join(index, want(host)));
            assert!(!clusters.join(index, want(host)), "one read serves both");
        }
        assert_eq!(clusters.place(&want(300)), None, "both are on their way");
        assert_eq!(clusters.ready(0).count(), 2);
        assert_eq!(clusters.place(&want(300)), None, "two copies are to be made");
        assert!(!clusters.copied(0) && clusters.copied(0));
        assert_eq!(clusters.broken(1).count(), 2);
        assert_eq!(clusters.place(&want(300)), Some((1, Stage::Empty)));
        clusters.join(1, want(300));
        clusters.ready(1).for_each(drop);
        assert!(clusters.copied(1));
        assert_eq!(clusters.place(&want(100)), Some((0, Stage::Ready)));
        assert_eq!(clusters.place(&want(400)), Some((1, Stage::Empty)), "300 was used before 100");
    }

    #[test]
    fn a_stale_cluster_serves_those_who_wait_and_nobody_else() {
        let mut clusters = clusters(2);
        clusters.place(&want(100)).unwrap();
        clusters.join(0, want(100));
        clusters.forget(109, 1);
        assert_eq!(clusters.place(&want(100)), Some((1, Stage::Empty)));
        assert_eq!(clusters.ready(0).count(), 1);
        assert!(clusters.copied(0));
        assert_eq!(clusters.stages(), [Stage::Empty, Stage::Empty]);
    }
}
