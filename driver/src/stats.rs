//! What a disk has done: counters, bytes, latencies.
//!
//! Knows: kinds of requests and what they met. Must never know: which request.
//! Invariant: recording never allocates; a request counts in one kind and in one path class.

use crate::completion::CompletionKind;
use crate::hold::{nanos_histogram, no_histogram};
use crate::request::Kind;
use hdrhistogram::Histogram;
use quod_states::{Counters, Met};
use std::time::Duration;

/// The class of a request's path for latency reports: the most expensive thing that it met.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum PathClass {
    /// Data in allocated clusters, tables in the cache.
    Hit,
    /// A table had to be read.
    Miss,
    /// New clusters were allocated.
    Allocate,
    /// The backing layer was read.
    Backing,
    /// A compressed cluster was read.
    Compressed,
    /// Answered by a range known to be zero.
    Zero,
    /// Waited for the commit pipeline.
    Flush,
    /// A sector was read, modified and written back.
    Modify,
}

impl PathClass {
    /// All, by index.
    pub const ALL: [PathClass; 8] = [
        PathClass::Hit,
        PathClass::Miss,
        PathClass::Allocate,
        PathClass::Backing,
        PathClass::Compressed,
        PathClass::Zero,
        PathClass::Flush,
        PathClass::Modify,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PathClass::Hit => "hit",
            PathClass::Miss => "miss",
            PathClass::Allocate => "allocate",
            PathClass::Backing => "backing",
            PathClass::Compressed => "compressed",
            PathClass::Zero => "zero",
            PathClass::Flush => "flush",
            PathClass::Modify => "modify",
        }
    }

    /// The class of a path; None if the request met nothing.
    pub fn of(met: Met) -> Option<PathClass> {
        let order = [
            (Met::FLUSH, PathClass::Flush),
            (Met::ALLOCATE, PathClass::Allocate),
            (Met::MODIFY, PathClass::Modify),
            (Met::BACKING, PathClass::Backing),
            (Met::COMPRESSED, PathClass::Compressed),
            (Met::MISS, PathClass::Miss),
            (Met::HIT, PathClass::Hit),
            (Met::ZERO, PathClass::Zero),
        ];
        order.into_iter().find(|(flag, _)| met.contains(*flag)).map(|(_, class)| class)
    }
}

/// What a disk has done since it was opened. Histograms are of nanoseconds from submission to completion, 1
/// ns to 60 s (longer counts as that), two digits; requests that failed are in them too. They are empty
/// without [`Config::timing`](field@crate::Config::timing).
///
/// ```
/// use quod::{Config, Kind, PathClass, Stats};
/// /// 99 of 100 reads of allocated clusters took no longer, in nanoseconds.
/// fn slow_hits(stats: &Stats) -> u64 {
///     stats.path(PathClass::Hit).value_at_quantile(0.99)
/// }
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qed");
/// # quod_tools::create(&path, &quod_tools::CreateOptions::new(quod::Format::Qed, 1 << 20))?;
/// # let open = quod::OpenOptions::new().write(true);
/// # let config = Config::default().timing(true);
/// # let mut session = quod_tools::Session::with_config(&path, open, config)?;
/// # session.write(0, &[1; 4096])?;
/// # session.read(0, &mut [0; 4096])?;
/// # let stats = session.stats().unwrap();
/// assert_eq!((stats.bytes_read, stats.bytes_written, stats.errors), (4096, 4096, 0));
/// assert!(slow_hits(&stats) > 0 && stats.kind(Kind::Write).len() == 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Counters of the machines, summed over the layers.
    pub counters: Counters,
    /// Guest bytes read.
    pub bytes_read: u64,
    /// Guest bytes written.
    pub bytes_written: u64,
    /// Compressed clusters decompressed.
    pub decompressions: u64,
    /// Clusters that were tried to be compressed.
    pub compressions: u64,
    /// Requests that completed with an error.
    pub errors: u64,
    kinds: Vec<Histogram<u32>>,
    paths: Vec<Histogram<u32>>,
}

impl Stats {
    /// `timed`: with histograms that have room for every latency; 300 KiB.
    pub(crate) fn new(timed: bool) -> Stats {
        let histogram = || if timed { nanos_histogram() } else { no_histogram() };
        Stats {
            counters: Counters::default(),
            bytes_read: 0,
            bytes_written: 0,
            decompressions: 0,
            compressions: 0,
            errors: 0,
            kinds: Kind::ALL.iter().map(|_| histogram()).collect(),
            paths: PathClass::ALL.iter().map(|_| histogram()).collect(),
        }
    }

    /// A request took so long.
    pub(crate) fn time(&mut self, kind: Kind, met: Met, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.kinds[kind as usize].saturating_record(nanos);
        if let Some(class) = PathClass::of(met) {
            self.paths[class as usize].saturating_record(nanos);
        }
    }

    /// A read or a write completed.
    #[inline]
    pub(crate) fn moved(&mut self, kind: &CompletionKind, len: u64) {
        match kind {
            CompletionKind::Read(_) => self.bytes_read += len,
            _ => self.bytes_written += len,
        }
    }

    /// A request completed.
    pub(crate) fn count(&mut self, kind: Kind, len: u64, ok: bool) {
        match kind {
            _ if !ok => self.errors += 1,
            Kind::Read => self.bytes_read += len,
            Kind::Write | Kind::WriteCompressed | Kind::WriteZeroes => self.bytes_written += len,
            _ => {}
        }
    }

    /// Latencies of one kind of request, nanoseconds.
    pub fn kind(&self, kind: Kind) -> &Histogram<u32> {
        &self.kinds[kind as usize]
    }

    /// Latencies of one path class, nanoseconds.
    pub fn path(&self, class: PathClass) -> &Histogram<u32> {
        &self.paths[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_agree_with_the_lists() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        for (index, class) in PathClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
    }

    #[test]
    fn the_most_expensive_thing_names_the_class() {
        assert_eq!(PathClass::of(Met::empty()), None);
        assert_eq!(PathClass::of(Met::HIT | Met::WAITED), Some(PathClass::Hit));
        assert_eq!(PathClass::of(Met::HIT | Met::MISS), Some(PathClass::Miss));
        assert_eq!(PathClass::of(Met::ALLOCATE | Met::BACKING | Met::MISS), Some(PathClass::Allocate));
    }

    #[test]
    fn failures_move_no_bytes() {
        let mut stats = Stats::new(true);
        for (kind, ok) in [(Kind::Read, true), (Kind::Write, false)] {
            stats.count(kind, 4096, ok);
            stats.time(kind, Met::HIT, Duration::from_micros(5));
        }
        assert_eq!((stats.bytes_read, stats.bytes_written, stats.errors), (4096, 0, 1));
        assert_eq!(stats.kind(Kind::Read).len(), 1);
        assert_eq!(stats.path(PathClass::Hit).len(), 2);
    }
}
