//! Scenarios for rules that the others do not need: images that another program left in a state of their own,
//! a cache without room while something is pinned, blocks of a table that did not change.
//!
//! Knows: which rule a scenario is for. Must never know: how it is kept.

use super::qcow2::{K, LATE, LAZY, SMALL, SPAN, USUAL, WIDE, data, discard, scenario};
use super::setting::{CLUSTER, Scenario, read, write, zero};
use crate::image::{Data, Part, Qcow2, STALE};
use crate::world::Ask;

impl Scenario {
    /// The file is changed before it is opened, and leaks so many clusters then.
    pub(super) fn patched(mut self, patch: fn(&mut Vec<u8>), leaks: u64) -> Scenario {
        (self.patch, self.patch_leaks) = (Some(patch), leaks);
        self
    }

    /// So many bytes of the file at `offset` must stay as they are.
    fn keeping(mut self, offset: u64, len: u64) -> Scenario {
        self.kept = (offset, len);
        self
    }

    /// A guest cluster whose pointer leads beyond the end of the file.
    fn bad(mut self, cluster: u64) -> Scenario {
        self.bad = (cluster * CLUSTER, (cluster + 1) * CLUSTER);
        self
    }

    /// Guest bytes whose entry contradicts the format.
    fn bad_bytes(mut self, start: u64, end: u64) -> Scenario {
        self.bad = (start, end);
        self
    }

    /// Entries lead beyond the end of the file before anything is written.
    fn dangling(mut self) -> Scenario {
        self.dangling = true;
        self
    }

    /// The power is cut within the first opening, too.
    fn cut_first(mut self) -> Scenario {
        self.cut_first = true;
        self
    }

    /// So many control blocks, and no more of a cache than has to be.
    fn crowded(mut self, acbs: u32) -> Scenario {
        (self.acbs, self.cache) = (acbs, 4096);
        self
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = found();
    list.extend(marked());
    list.extend(corrupt());
    list.extend(pinned());
    list.extend(others());
    list
}

/// As another program left them.
fn found() -> Vec<Scenario> {
    let one = [write(0, 512), Ask::Flush];
    let quiesce = [write(0, 512), Ask::Quiesce];
    let dangling = [write(5 * CLUSTER, 512), read(5 * CLUSTER, 512)];
    vec![
        Scenario::new("dirty-with-a-dangling-entry", 1, &[write(512, 512), read(0, 2 * CLUSTER), Ask::Flush])
            .patched(dirty_qed, 0),
        Scenario::new("dirty-with-space-ahead", 1, &[write(0, 512), Ask::Flush]).patched(dirty_and_long, 0),
        scenario("qcow2-free-end", USUAL, 1, &[write(512, 512), Ask::Flush])
            .patched(|bytes| bytes.resize(bytes.len() + 3 * K as usize, STALE), 0),
        // the pointer comes to lead to what the first write gets
        Scenario::new("dangling-entry", 1, &[write(0, 512), dangling[0], dangling[1], Ask::Flush])
            .patched(clean_qed, 0)
            .bad(5),
        Scenario::new("partial-last-cluster", 1, &one).patched(partial_cluster, 1),
        Scenario::new("unknown-header-bytes", 1, &quiesce)
            .patched(|bytes| unknown_bytes(bytes), 0)
            .keeping(256, 256),
        scenario("qcow2-dirty-without-counts", LAZY, 1, &[write(512, 512), write(2 * K, 512), Ask::Flush])
            .made(&[data(0, 2)])
            .patched(|bytes| without_counts(bytes), 0),
        scenario("qcow2-dirty-with-a-dangling-entry", LAZY, 1, &[write(512, 512), Ask::Flush])
            .made(&[data(0, 2)])
            .patched(|bytes| dirty_qcow2(bytes), 0)
            .dangling()
            .cut_first(),
        scenario("qcow2-unknown-header-bytes", LAZY, 1, &quiesce)
            .patched(|bytes| unknown_bytes(bytes), 0)
            .keeping(256, 256),
    ]
}

/// The header has an autoclear bit that nobody knows.
fn marked() -> Vec<Scenario> {
    let qed = |bytes: &mut Vec<u8>| bytes[32] |= 1;
    let qcow2 = |bytes: &mut Vec<u8>| bytes[95] |= 0x20;
    let file = Qcow2 { data: Data::File, ..USUAL };
    let one = [write(0, 512), Ask::Flush];
    // in place, and in new space
    let two = [write(0, 512), write(2 * K, 512), Ask::Flush];
    let looks = [read(0, 512), Ask::Flush, Ask::Quiesce, Ask::Close];
    let smaller = [Ask::Resize { len: 4 * K }, read(0, 512), Ask::Flush];
    vec![
        Scenario::new("unknown-autoclear-bits", 1, &one).patched(qed, 0),
        // where nothing else makes the header durable first: new space waits for the need-check bit
        Scenario::new("unknown-autoclear-bits-in-place", 1, &one).patched(marked_with_data, 0),
        Scenario::new(
            "unknown-autoclear-bits-and-resize",
            1,
            &[Ask::Resize { len: 9 * CLUSTER }, write(0, 512)],
        )
        .patched(qed, 0),
        Scenario::new("unknown-autoclear-bits-and-reader", 1, &looks).patched(qed, 0).keeping(0, 512),
        scenario("qcow2-unknown-autoclear-bits", USUAL, 2, &two).made(&[data(0, 1)]).patched(qcow2, 0),
        scenario("qcow2-unknown-autoclear-bits-and-data-file", file, 1, &one).patched(qcow2, 0),
        scenario("qcow2-unknown-autoclear-bits-and-shrink", USUAL, 1, &smaller)
            .made(&[data(0, 6)])
            .patched(qcow2, 0),
        scenario("qcow2-unknown-autoclear-bits-and-reader", USUAL, 1, &looks)
            .made(&[data(0, 1)])
            .patched(qcow2, 0)
            .keeping(0, 512),
    ]
}

/// An entry of version 2 has the zero flag, which only version 3 has: whoever meets it ends all changes, and
/// what was answered before is committed.
fn corrupt() -> Vec<Scenario> {
    let bad = |name, at_once, asks: &[Ask]| {
        scenario(name, Qcow2 { version: 2, ..USUAL }, at_once, asks)
            .made(&[data(0, 2)])
            .patched(|bytes| zero_flag(bytes), 0)
            .bad_bytes(3 * K, 4 * K)
    };
    let writes = [write(512, 512), write(5 * K, 512), read(3 * K, 512), Ask::Flush];
    let gone = [discard(0, K), write(4 * K, 512), Ask::Flush, write(3 * K, 512), Ask::Close];
    vec![bad("qcow2-bad-entry", 3, &writes), bad("qcow2-bad-entry-and-close", 2, &gone)]
}

/// Guest cluster 3 has no space, and the flag.
fn zero_flag(bytes: &mut [u8]) {
    let long = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |long| u64::from_be_bytes(*long))
    };
    let table = long(bytes, long(bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00;
    bytes[table as usize + 3 * 8 + 7] |= 1;
}

/// Its only table has an entry that leads beyond the end of the file, and it says so.
fn dirty_qed(bytes: &mut Vec<u8>) {
    dangling_entry(bytes, 1, 1);
    bytes[16] |= 2;
}

/// As a writer leaves it that is killed.
fn dirty_and_long(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len() + 3 * CLUSTER as usize, STALE);
    bytes[16] |= 2;
}

/// An entry that leads to the first cluster behind the end, without a word about it.
fn clean_qed(bytes: &mut Vec<u8>) {
    dangling_entry(bytes, 5, 0);
}

/// An autoclear bit that nobody knows, and a guest cluster of zeros that has space.
fn marked_with_data(bytes: &mut Vec<u8>) {
    dangling_entry(bytes, 0, 0);
    bytes.resize(bytes.len() + CLUSTER as usize, 0);
    bytes[32] |= 1;
}

/// Entry `index` of the first table leads so many clusters behind the end of the file.
fn dangling_entry(bytes: &mut Vec<u8>, index: usize, behind: u64) {
    let (table, clusters) = (bytes.len(), usize::from(bytes[8]));
    bytes.resize(table + CLUSTER as usize * clusters, 0);
    let beyond = bytes.len() as u64 + behind * CLUSTER;
    bytes[CLUSTER as usize..][..8].copy_from_slice(&(table as u64).to_le_bytes());
    bytes[table + 8 * index..][..8].copy_from_slice(&beyond.to_le_bytes());
}

fn partial_cluster(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len() + 1000, STALE);
}

fn unknown_bytes(bytes: &mut [u8]) {
    bytes[256..512].fill(STALE);
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |long| u64::from_be_bytes(*long))
}

/// Its counts came late, and so did the file's length: an entry leads right behind the end, where the repair
/// puts new counts.
fn dirty_qcow2(bytes: &mut [u8]) {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let (end, table) = (bytes.len() as u64, long(bytes, long(bytes, 40) as usize) & OFFSET);
    bytes[table as usize + 5 * 8..][..8].copy_from_slice(&(1 << 63 | end).to_be_bytes());
    without_counts(bytes);
}

/// As after a power cut of a writer whose counts come late.
fn without_counts(bytes: &mut [u8]) {
    let block = long(bytes, long(bytes, 48) as usize) as usize;
    bytes[79] |= 1;
    bytes[block..block + K as usize].fill(0);
}

/// Sixteen slots, and all but one of them are in use while something is allocated or copied.
fn pinned() -> Vec<Scenario> {
    let many = |count: u64| (0..count).map(|n| data(64 * n, 1)).collect::<Vec<Part>>();
    let reads = |first: u64, count: u64| (first..first + count).map(|n| read(SPAN * n, 512));
    let crowd = |name, ask: Ask, count: u64, form| {
        let asks: Vec<Ask> = match ask {
            Ask::Write { offset: 0, .. } => [ask].into_iter().chain(reads(1, count)).collect(),
            _ => reads(1, count).chain([ask]).collect(),
        };
        scenario(name, form, asks.len(), &asks).sized(18 * SPAN).crowded(20)
    };
    let shared: Vec<Part> = many(17).into_iter().chain([Part::Snapshot]).collect();
    let full: Vec<Part> = many(15).into_iter().chain([Part::Leaks { end: 63 }]).collect();
    vec![
        // the copy is on its way when the reads ask for the slot of its L1 slice
        crowd("qcow2-copy-in-a-full-cache", write(0, 512), 15, SMALL).made(&shared).warmed(&[
            write(SPAN * 16, 512),
            Ask::Flush,
            read(0, 512),
        ]),
        // a refcount block is made, and finds a slot, between the lookup and the link
        crowd("qcow2-new-table-in-a-full-cache", write(16 * SPAN, 512), 13, WIDE)
            .made(&full)
            .warmed(&[write(512, 512)]),
        crowd("qcow2-new-cluster-in-a-full-cache", write(14 * SPAN + 512, 512), 12, WIDE)
            .made(&full)
            .warmed(&[zero(17 * SPAN, 512), read(14 * SPAN, 512)]),
    ]
}

fn others() -> Vec<Scenario> {
    let step = 64 * CLUSTER;
    let (small, large) = (Ask::Resize { len: 4 * K }, Ask::Resize { len: 8 * K });
    let mut neighbours =
        Scenario::new("neighbours-of-changes", 2, &[write(0, 512), write(2 * step, 512), Ask::Flush])
            .after(&[write(step, 512)]);
    neighbours.size = 2 * step + CLUSTER;
    vec![
        neighbours,
        scenario("qcow2-grow-over-the-backing", USUAL, 1, &[Ask::Resize { len: 8 * K }, Ask::Flush])
            .sized(4 * K)
            .backed(8 * K),
        // a table in space that was data's, with nothing else to be made durable
        scenario(
            "qcow2-lazy-reuse-as-table",
            LATE,
            1,
            &[discard(0, 512), Ask::Flush, write(SPAN, 512), Ask::Flush],
        )
        .sized(SPAN + 2048)
        .made(&[data(0, 1)]),
        // behind the disk, in tables of its own, that a longer L1 table leads to
        scenario(
            "qcow2-state-behind-the-disk",
            SMALL,
            1,
            &[
                write(0, 512),
                Ask::GrowState { len: SPAN },
                Ask::WriteState { offset: 256, len: 512 },
                Ask::Flush,
                Ask::Resize { len: SPAN + 2048 },
                Ask::Flush,
            ],
        ),
        // what is linked behind the new end comes to light when the disk grows again
        scenario("qcow2-shrink-and-grow", USUAL, 2, &[write(6 * K, 512), small, large, Ask::Flush])
            .made(&[data(0, 2)]),
    ]
}
