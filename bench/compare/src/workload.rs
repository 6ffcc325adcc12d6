//! What is asked of the engines: the list of works, as data.
//!
//! Knows: requests, what an image holds before. Must never know: engines, files.

use crate::setting::Start;
use serde::{Deserialize, Serialize};

/// Requests of one kind, or a mix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of each.
    pub size: u64,
    /// From one to the next, bytes.
    pub step: u64,
    /// At random places instead, each a number of steps from the first.
    pub random: bool,
    /// Requests of a hundred that read.
    pub reads: u32,
    /// In flight at once.
    pub depth: u32,
    /// Requests.
    pub count: u64,
    /// A flush after this many writes; 0: none but the last.
    pub flush_every: u64,
    /// Before such a flush everything in flight ends.
    pub drain: bool,
}

impl Load {
    /// It changes the image.
    pub fn writes(&self) -> bool {
        self.reads < 100
    }

    /// Neighbours in time are far from each other in place.
    pub fn is_scattered(&self) -> bool {
        self.random || self.step > 16 * self.size
    }

    /// It reads and writes.
    pub fn is_mix(&self) -> bool {
        (1..100).contains(&self.reads)
    }
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Requests at places that can be counted off.
    Load(Load),
    /// All of the image is discarded, pieces of this many bytes in a stride, and then written again.
    Discard {
        /// Bytes of each request.
        size: u64,
        /// In flight at once.
        depth: u32,
        /// Requests of each of the two rounds.
        count: u64,
    },
    /// The trace that ships with quod, as fast as it goes.
    Trace {
        /// In flight at once.
        depth: u32,
        /// Operations, the first of the trace.
        count: u64,
    },
}

impl Work {
    /// It changes the image.
    pub fn writes(&self) -> bool {
        match self {
            Work::Load(load) => load.writes(),
            Work::Discard { .. } | Work::Trace { .. } => true,
        }
    }

    /// Requests.
    pub fn count(&self) -> u64 {
        match self {
            Work::Load(load) => load.count,
            Work::Discard { count, .. } => 2 * count,
            Work::Trace { count, .. } => *count,
        }
    }

    /// The same with another number of requests.
    pub fn with_count(self, count: u64) -> Work {
        match self {
            Work::Load(load) => Work::Load(Load { count, ..load }),
            Work::Discard { size, depth, .. } => Work::Discard { size, depth, count: count.div_ceil(2) },
            Work::Trace { depth, .. } => Work::Trace { depth, count },
        }
    }
}

/// What a figure of speed counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Thousands of requests a second.
    KiloIops,
    /// MiB a second.
    MibPerSecond,
}

impl Unit {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Unit::KiloIops => "1,000 IOPS",
            Unit::MibPerSecond => "MiB/s",
        }
    }
}

/// One row of works.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The word for `--only`.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// What the image holds before.
    pub start: Start,
    /// What is done.
    pub work: Work,
    /// How its speed is told.
    pub unit: Unit,
}

impl Workload {
    /// Bytes of a request where all have the same.
    pub fn size(&self) -> u64 {
        match self.work {
            Work::Load(Load { size, .. }) | Work::Discard { size, .. } => size,
            Work::Trace { .. } => 0,
        }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Clusters of 64 KiB from one cold read to the next: a prime, so that each needs another table.
const FAR: u64 = 7919 * 64 * KIB;
/// From one scattered request to the next, in an image of 256 MiB, 16 GiB and 1 MiB: far, and an odd number
/// of its places of 4 KiB, so that each comes once before one comes again.
const SCATTERED: u64 = 40_503 * 4 * KIB;
const SCATTERED_16G: u64 = 324_517 * 4 * KIB;
const SCATTERED_1M: u64 = 157 * 4 * KIB;

/// 4 KiB reads in order.
const READ: Load = Load {
    size: 4 * KIB,
    step: 4 * KIB,
    random: false,
    reads: 100,
    depth: 64,
    count: 300_000,
    flush_every: 0,
    drain: false,
};
/// 4 KiB writes in order.
const WRITE: Load = Load { reads: 0, count: 20_000, ..READ };

const fn iops(name: &'static str, title: &'static str, start: Start, load: Load) -> Workload {
    Workload { name, title, start, work: Work::Load(load), unit: Unit::KiloIops }
}

const fn speed(name: &'static str, title: &'static str, start: Start, load: Load) -> Workload {
    Workload { name, title, start, work: Work::Load(load), unit: Unit::MibPerSecond }
}

/// The same of other pieces, one behind the other.
const fn pieces(load: Load, size: u64, depth: u32, count: u64) -> Load {
    Load { size, step: size, depth, count, ..load }
}

/// Reads of a full image.
const READS: [Workload; 6] = {
    let scattered = Load { step: SCATTERED, ..READ };
    let one = Load { depth: 1, count: 60_000, ..scattered };
    let some = Load { depth: 16, ..scattered };
    let (in_order, large) = (pieces(READ, 64 * KIB, 16, 16_384), pieces(READ, MIB, 8, 1024));
    [
        iops("read4k-1", "4 KiB reads, scattered, full image, depth 1", Start::Full, one),
        iops("read4k-16", "4 KiB reads, scattered, full image, depth 16", Start::Full, some),
        iops("read4k-64", "4 KiB reads, scattered, full image, depth 64", Start::Full, scattered),
        speed("read64k", "64 KiB reads in order, full image, depth 16", Start::Full, in_order),
        speed("read1m", "1 MiB reads in order, full image, depth 8", Start::Full, large),
        speed(
            "fragmented",
            "64 KiB reads in order, clusters scattered in the file, depth 16",
            Start::Fragmented,
            pieces(READ, 64 * KIB, 16, 8192),
        ),
    ]
};

/// Writes.
const WRITES: [Workload; 8] = {
    let overwrites = Load { step: SCATTERED, count: 100_000, ..WRITE };
    let strides = Load { step: 64 * KIB, ..WRITE };
    let scattered = Load { step: SCATTERED_16G, ..WRITE };
    let over = Load { step: SCATTERED, count: 6000, ..WRITE };
    let over_extended = Load { count: 20_000, ..over };
    let flushed = Load { depth: 16, count: 3200, flush_every: 16, drain: true, ..strides };
    let mix = Load { random: true, reads: 70, flush_every: 16, ..pieces(READ, 8 * KIB, 16, 30_000) };
    [
        iops("write4k", "4 KiB overwrites, scattered, full image, depth 64", Start::Full, overwrites),
        iops("alloc4k", "allocating: 4 KiB at a stride of 64 KiB, depth 64", Start::Empty, strides),
        speed(
            "alloc64k",
            "allocating: 64 KiB in order, depth 64",
            Start::Empty,
            pieces(WRITE, 64 * KIB, 64, 20_000),
        ),
        iops("alloc4k-far", "allocating: 4 KiB scattered over 16 GiB, depth 64", Start::Wide, scattered),
        iops("overlay", "overlay: 4 KiB writes, scattered, clusters copied, depth 64", Start::Overlay, over),
        iops(
            "overlay-extended",
            "overlay with extended L2: 4 KiB writes, scattered, depth 64",
            Start::OverlayExtended,
            over_extended,
        ),
        iops("flush16", "allocating: 16 writes of 4 KiB, then a flush, depth 16", Start::Empty, flushed),
        iops(
            "database",
            "full image, 8 KiB random, 70 of 100 read, a flush after 16 writes, depth 16",
            Start::Full,
            mix,
        ),
    ]
};

/// Tables that are not in memory, and compressed clusters.
const METADATA: [Workload; 5] = {
    let far = Load { step: FAR, count: 20_000, ..READ };
    let cold = Load { step: 64 * KIB, depth: 16, count: 4096, ..READ };
    let hot = Load { step: SCATTERED_1M, depth: 16, count: 8192, ..READ };
    [
        iops("cold", "4 KiB reads far apart in 1 TiB, 1 MiB of cache, depth 64", Start::Cold, far),
        iops("zlib-cold", "zlib: 4 KiB reads, each of another cluster, depth 16", Start::Deflate, cold),
        iops("zlib-hot", "zlib: 4 KiB reads of the same 16 clusters, depth 16", Start::HotDeflate, hot),
        iops("zstd-cold", "zstd: 4 KiB reads, each of another cluster, depth 16", Start::Zstd, cold),
        iops("zstd-hot", "zstd: 4 KiB reads of the same 16 clusters, depth 16", Start::HotZstd, hot),
    ]
};

/// What is no load.
const OTHERS: [Workload; 2] = [
    Workload {
        name: "discard",
        title: "full image: 64 KiB discards of all of it, then all written again, depth 16",
        start: Start::Full,
        work: Work::Discard { size: 64 * KIB, depth: 16, count: 4096 },
        unit: Unit::KiloIops,
    },
    Workload {
        name: "trace",
        title: "the shipped trace as fast as it goes, depth 64",
        start: Start::Guest,
        work: Work::Trace { depth: 64, count: 8540 },
        unit: Unit::KiloIops,
    },
];

/// All of them, in the order of the table, in groups that have a plot each.
pub const GROUPS: [(&str, &[Workload]); 4] =
    [("reads", &READS), ("writes", &WRITES), ("metadata", &METADATA), ("others", &OTHERS)];

/// All of them.
pub fn all() -> impl Iterator<Item = Workload> {
    GROUPS.into_iter().flat_map(|(_, works)| works.iter().copied())
}
