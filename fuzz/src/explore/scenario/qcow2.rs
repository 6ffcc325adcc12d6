//! Scenarios of qcow2: clusters of 1 KiB, so that a power cut can tear them, or of 512 bytes, so that tables
//! are full at once.
//!
//! Knows: which requests meet at which structure. Must never know: how they are driven.

use super::setting::{Scenario, read, write, zero};
use crate::image::{Form, Part, Qcow2};
use crate::world::Ask;
use quod::Policy;

/// Bytes of a cluster.
pub(super) const K: u64 = 1024;
pub(super) const USUAL: Qcow2 = Qcow2::new(K as u32);
pub(super) const LAZY: Qcow2 = Qcow2 { lazy_refcounts: true, ..USUAL };
const ZSTD: Qcow2 = Qcow2 { zstd: true, ..USUAL };
const OLD: Qcow2 = Qcow2 { version: 2, ..USUAL };
/// The smallest clusters, and guest bytes under one of their L2 tables.
pub(super) const SMALL: Qcow2 = Qcow2::new(512);
pub(super) const SPAN: u64 = 512 * 64;
/// The smallest clusters, with counts that come late.
pub(super) const LATE: Qcow2 = Qcow2 { lazy_refcounts: true, ..SMALL };
/// A refcount block counts 64 clusters, the refcount table has 64 blocks.
pub(super) const WIDE: Qcow2 = Qcow2 { refcount_bits: 64, ..SMALL };
/// Clusters of 16 KiB are the smallest that have subclusters.
pub(super) const SPLIT: Qcow2 = Qcow2 { extended_l2: true, ..Qcow2::new(16 << 10) };
/// Bytes of such a cluster.
pub(super) const S: u64 = 16 << 10;

pub(super) const fn data(first: u64, count: u64) -> Part {
    Part::Data { first, count }
}

pub(super) const fn packed(first: u64, count: u64) -> Part {
    Part::Compressed { first, count }
}

pub(super) const fn zeros(first: u64, keep: bool) -> Part {
    Part::Zero { first, count: 1, keep }
}

pub(super) const fn discard(offset: u64, len: u64) -> Ask {
    Ask::Discard { offset, len }
}

pub(super) fn scenario(name: &'static str, qcow2: Qcow2, at_once: usize, asks: &[Ask]) -> Scenario {
    let mut scenario = Scenario::new(name, at_once, asks);
    scenario.form = Form::Qcow2(qcow2);
    scenario.size = 8 * u64::from(qcow2.cluster);
    scenario
}

impl Scenario {
    pub(super) fn made(mut self, parts: &[Part]) -> Scenario {
        self.parts = parts.to_vec();
        self
    }

    pub(super) fn sized(mut self, size: u64) -> Scenario {
        self.size = size;
        self
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = writers();
    list.extend(others());
    list.extend(discards());
    list.extend(zeroes());
    list.extend(growth());
    list.extend(shared());
    list.extend(compressed());
    list.extend(lazy());
    list.extend(split());
    list
}

/// Clusters and tables are allocated.
fn writers() -> Vec<Scenario> {
    let fua = Ask::Write { offset: 512, len: 512, fua: true };
    let backed = 6 * K;
    let mut through = scenario("qcow2-writethrough", USUAL, 2, &[write(0, 512), write(K, 512), Ask::Flush]);
    through.policy = Policy::Writethrough;
    vec![
        scenario("qcow2-writer-and-flush", USUAL, 1, &[write(0, K), Ask::Flush]),
        scenario("qcow2-two-writers-one-cluster", USUAL, 2, &[write(0, 512), write(512, 512), Ask::Flush]),
        scenario(
            "qcow2-two-writers-one-cluster-backed",
            USUAL,
            2,
            &[write(0, 512), write(700, 200), Ask::Flush],
        )
        .backed(backed),
        scenario("qcow2-two-writers-one-table", USUAL, 2, &[write(0, 512), write(K, 512), Ask::Flush]),
        scenario("qcow2-two-new-tables", SMALL, 2, &[write(0, 512), write(SPAN, 512), Ask::Flush])
            .sized(SPAN + 2048),
        scenario("qcow2-writer-and-reader", USUAL, 2, &[write(512, 512), read(0, K), Ask::Flush]),
        scenario("qcow2-first-write-fua", USUAL, 1, &[fua, write(0, 512)]),
        scenario("qcow2-two-flushes", USUAL, 1, &[write(0, 512), Ask::Flush, write(K, 512), Ask::Flush]),
        scenario("qcow2-overlapping-in-place", USUAL, 2, &[write(0, K), write(512, K), Ask::Flush])
            .made(&[data(0, 2)]),
        scenario(
            "qcow2-preallocated",
            Qcow2 { preallocated: true, ..USUAL },
            2,
            &[write(K, 512), Ask::Flush],
        ),
        scenario("qcow2-old", OLD, 2, &[write(0, 512), write(K, 512), Ask::Flush]).backed(backed),
        scenario("qcow2-copy-beside-reader", USUAL, 2, &[write(512, 256), read(0, K), Ask::Flush])
            .backed(backed),
        scenario("qcow2-short-backing", USUAL, 2, &[write(512, 512), write(K, 256), Ask::Flush])
            .backed(K + 512),
        scenario("qcow2-spans-two-clusters", USUAL, 1, &[write(K - 512, K), Ask::Flush]).backed(backed),
        through,
    ]
}

/// What QED has as well: little memory, sectors, ends.
fn others() -> Vec<Scenario> {
    let mut pressure =
        scenario("qcow2-cache-pressure", SMALL, 2, &[write(0, 512), write(SPAN, 512), read(0, 512)])
            .sized(SPAN + 2048);
    pressure.cache = 4096;
    let quiesces = [write(0, 512), Ask::Quiesce, write(K, 512), Ask::Quiesce];
    vec![
        pressure,
        scenario("qcow2-close-in-flight", USUAL, 2, &[write(0, 512), write(K, 512), Ask::Close]),
        scenario("qcow2-discard-and-close", USUAL, 2, &[discard(0, K), write(2 * K, 512), Ask::Close])
            .made(&[data(0, 2)]),
        scenario("qcow2-two-quiesces", USUAL, 1, &quiesces),
        scenario("qcow2-timers", USUAL, 1, &[write(0, 512)]).with_timers(),
        scenario(
            "qcow2-sector-writers",
            USUAL,
            3,
            &[write(10, 20), write(100, 50), write(120, 600), read(0, K)],
        )
        .direct()
        .made(&[data(0, 1)]),
        scenario("qcow2-unaligned-new-cluster", USUAL, 2, &[write(700, 100), write(900, 300), Ask::Flush])
            .direct(),
    ]
}

/// Space is given back, and used again.
fn discards() -> Vec<Scenario> {
    vec![
        scenario("qcow2-writer-and-discard", USUAL, 2, &[write(0, 512), discard(0, K), Ask::Flush])
            .made(&[data(0, 1)]),
        scenario("qcow2-new-writer-and-discard", USUAL, 2, &[write(0, 512), discard(0, 2 * K), Ask::Flush])
            .backed(2 * K),
        scenario("qcow2-discard-and-flush", USUAL, 1, &[discard(0, 2 * K), Ask::Flush]).made(&[data(0, 3)]),
        scenario("qcow2-discard-unaligned", USUAL, 1, &[discard(512, 2 * K), Ask::Flush]).made(&[data(0, 3)]),
        scenario("qcow2-discard-shows-no-backing", USUAL, 1, &[discard(0, 3 * K), Ask::Flush])
            .backed(4 * K)
            .made(&[data(0, 1), zeros(1, true)]),
        scenario("qcow2-discard-old", OLD, 1, &[discard(0, 2 * K), write(0, 512), Ask::Flush])
            .made(&[data(0, 1)]),
        scenario(
            "qcow2-discard-and-reuse",
            USUAL,
            1,
            &[discard(0, K), Ask::Flush, write(4 * K, K), Ask::Flush],
        )
        .made(&[data(0, 1)]),
        scenario(
            "qcow2-discard-twice-and-reuse",
            USUAL,
            1,
            &[discard(0, K), Ask::Flush, write(K, 512), discard(K, K), Ask::Flush],
        )
        .made(&[data(0, 1)]),
        // the reader has looked the cluster up when it is given back and used again
        scenario(
            "qcow2-reuse-beside-reader",
            USUAL,
            2,
            &[read(0, K), discard(0, K), Ask::Flush, write(4 * K, K), Ask::Flush],
        )
        .made(&[data(0, 1)]),
        scenario(
            "qcow2-reuse-beside-writer",
            USUAL,
            2,
            &[write(0, K), discard(0, K), Ask::Flush, write(4 * K, 512)],
        )
        .made(&[data(0, 1)]),
        scenario("qcow2-discard-whole-table", SMALL, 1, &[discard(0, 4 * 512), Ask::Flush, write(512, 512)])
            .made(&[data(0, 4)]),
    ]
}

/// Zeros over everything, and data over zeros.
fn zeroes() -> Vec<Scenario> {
    let kinds = [data(0, 1), zeros(1, false), zeros(2, true), packed(4, 1)];
    vec![
        scenario("qcow2-zeroes-over-all-kinds", USUAL, 1, &[zero(512, 5 * K), Ask::Flush])
            .backed(7 * K)
            .made(&kinds),
        scenario("qcow2-zeroes-again", USUAL, 2, &[zero(0, K), zero(0, 2 * K), Ask::Flush])
            .backed(2 * K)
            .made(&[data(0, 1)]),
        scenario(
            "qcow2-writes-over-all-kinds",
            USUAL,
            1,
            &[write(K + 100, 300), write(2 * K + 512, 512), write(4 * K, 512), Ask::Flush],
        )
        .backed(7 * K)
        .made(&kinds),
        scenario("qcow2-discards-over-all-kinds", USUAL, 1, &[discard(0, 5 * K), Ask::Flush])
            .backed(7 * K)
            .made(&kinds),
        scenario("qcow2-zeroes-and-writer", USUAL, 2, &[zero(0, 2 * K), write(512, 512), Ask::Flush])
            .backed(4 * K),
        scenario("qcow2-zero-kept-writers", USUAL, 2, &[write(0, 512), write(512, 256), Ask::Flush])
            .made(&[zeros(0, true)]),
        scenario("qcow2-old-zeroes", OLD, 1, &[zero(0, 3 * K), Ask::Flush]).backed(2 * K).made(&[data(0, 1)]),
    ]
}

/// The refcount table is full when the writes before have had their clusters. They also have what was free
/// looked for in every refcount block, four of which are read at once: in one order, as there are too many.
fn table(name: &'static str, at_once: usize, asks: &[Ask]) -> Scenario {
    let warm = [write(0, 512), Ask::Flush, write(512, 512), Ask::Flush];
    scenario(name, WIDE, at_once, asks).made(&[Part::Leaks { end: 4093 }]).warmed(&warm)
}

/// The next cluster has no refcount block, or the block no place in the refcount table.
fn growth() -> Vec<Scenario> {
    let two = [write(0, 512), write(512, 512), Ask::Flush];
    vec![
        scenario("qcow2-new-refcount-block", WIDE, 2, &two).made(&[Part::Leaks { end: 63 }]),
        scenario("qcow2-new-refcount-block-at-once", WIDE, 1, &[write(0, 2048), Ask::Flush])
            .made(&[Part::Leaks { end: 64 }]),
        scenario(
            "qcow2-new-refcount-block-and-discard",
            WIDE,
            2,
            &[discard(0, 512), write(1024, 512), Ask::Flush],
        )
        .made(&[data(0, 2), Part::Leaks { end: 64 }]),
        table("qcow2-new-refcount-table", 1, &[write(1024, 512), Ask::Flush]),
        table("qcow2-new-refcount-table-two-writers", 2, &[write(1024, 512), write(1536, 512), Ask::Flush]),
        table("qcow2-new-refcount-table-and-close", 1, &[write(1024, 1024), Ask::Close]),
        scenario(
            "qcow2-refcounts-of-one-bit",
            Qcow2 { refcount_bits: 1, ..USUAL },
            1,
            &[write(0, 512), discard(K, K), Ask::Flush, write(2 * K, 512)],
        )
        .made(&[data(1, 1)]),
    ]
}

/// A snapshot holds the clusters, or the table, or both.
fn shared() -> Vec<Scenario> {
    let all = [data(0, 2), Part::Snapshot];
    let clusters = [data(0, 3), Part::Snapshot, data(2, 1)];
    // in the first alone, in both, in the second alone, in none
    let twice = [data(0, 3), Part::Snapshot, data(2, 2), Part::Snapshot, data(3, 2)];
    let thrice = [data(0, 1), packed(1, 2), Part::Snapshot, Part::Snapshot, zeros(3, true), Part::Snapshot];
    vec![
        scenario("qcow2-shared-table", USUAL, 1, &[write(3 * K, 512), Ask::Flush]).made(&all),
        scenario("qcow2-shared-table-two-writers", USUAL, 2, &[write(0, 512), write(K, 512), Ask::Flush])
            .made(&all),
        scenario("qcow2-shared-cluster", USUAL, 2, &[write(0, 512), read(0, K), Ask::Flush]).made(&clusters),
        scenario("qcow2-shared-cluster-two-writers", USUAL, 2, &[write(0, 512), write(512, 256), Ask::Flush])
            .made(&clusters),
        scenario("qcow2-shared-and-own", USUAL, 1, &[write(K, 2 * K), Ask::Flush]).made(&clusters),
        scenario("qcow2-shared-discard", USUAL, 1, &[discard(0, 2 * K), Ask::Flush, write(4 * K, 512)])
            .made(&all),
        scenario("qcow2-shared-discard-own-table", USUAL, 1, &[discard(0, 3 * K), Ask::Flush, write(0, 512)])
            .made(&clusters),
        scenario("qcow2-shared-zeroes", USUAL, 1, &[zero(0, K + 512), Ask::Flush]).made(&all),
        scenario("qcow2-shared-zero-kept", USUAL, 1, &[write(0, 512), zero(K, K), Ask::Flush]).made(&[
            zeros(0, true),
            zeros(1, true),
            Part::Snapshot,
        ]),
        scenario("qcow2-shared-twice", USUAL, 2, &[write(K, 512), write(4 * K, 512), Ask::Flush])
            .made(&twice),
        scenario("qcow2-shared-twice-discard", USUAL, 1, &[discard(0, 5 * K), Ask::Flush, write(0, 512)])
            .made(&twice),
        scenario("qcow2-shared-thrice", USUAL, 2, &[write(K, 512), write(3 * K, 512), Ask::Flush])
            .made(&thrice),
        scenario("qcow2-shared-thrice-zeroes", USUAL, 1, &[zero(0, 4 * K), Ask::Close]).made(&thrice),
        scenario("qcow2-shared-close", USUAL, 2, &[write(0, 512), discard(K, K), Ask::Close]).made(&all),
        scenario("qcow2-shared-old", OLD, 2, &[write(0, 512), discard(K, K), Ask::Flush]).made(&all),
        scenario("qcow2-shared-sectors", USUAL, 2, &[write(10, 20), write(100, 50), Ask::Flush])
            .direct()
            .made(&all),
    ]
}

/// Compressed clusters are written, beside others in the same host cluster.
fn compressed() -> Vec<Scenario> {
    vec![
        scenario("qcow2-compressed-rewrite", USUAL, 1, &[write(0, K), Ask::Flush, write(K, 512), Ask::Flush])
            .made(&[packed(0, 2)]),
        scenario("qcow2-compressed-beside-reader", USUAL, 2, &[write(256, 512), read(0, 2 * K), Ask::Flush])
            .made(&[packed(0, 3)]),
        scenario(
            "qcow2-compressed-discard",
            USUAL,
            2,
            &[read(0, 2 * K), discard(0, 2 * K), Ask::Flush, write(4 * K, K)],
        )
        .made(&[packed(0, 2)]),
        scenario("qcow2-compressed-by-zstd", ZSTD, 2, &[write(256, 512), read(0, 2 * K), Ask::Flush])
            .made(&[packed(0, 3)]),
        scenario(
            "qcow2-compressed-by-zstd-rewrite",
            ZSTD,
            1,
            &[write(0, K), Ask::Flush, write(K, 512), discard(2 * K, K), Ask::Flush],
        )
        .made(&[packed(0, 3)]),
        scenario("qcow2-compressed-shared", USUAL, 2, &[write(0, K), discard(K, K), Ask::Flush])
            .made(&[packed(0, 3), Part::Snapshot]),
    ]
}

/// Refcounts come late: the dirty bit first.
fn lazy() -> Vec<Scenario> {
    vec![
        scenario("qcow2-lazy", LAZY, 2, &[write(0, 512), write(K, 512), Ask::Flush]),
        scenario(
            "qcow2-lazy-fua-and-close",
            LAZY,
            1,
            &[Ask::Write { offset: 0, len: 512, fua: true }, Ask::Close],
        ),
        scenario("qcow2-lazy-timers", LAZY, 1, &[write(0, 512)]).with_timers(),
        scenario("qcow2-lazy-quiesce", LAZY, 1, &[write(0, 512), Ask::Quiesce, write(K, 512)]),
        scenario(
            "qcow2-lazy-discard-and-reuse",
            LAZY,
            1,
            &[discard(0, K), Ask::Flush, write(4 * K, K), Ask::Flush],
        )
        .made(&[data(0, 1)]),
        scenario("qcow2-lazy-shared", LAZY, 2, &[write(0, 512), discard(K, K), Ask::Flush])
            .made(&[data(0, 2), Part::Snapshot]),
        scenario(
            "qcow2-lazy-new-refcount-block",
            Qcow2 { lazy_refcounts: true, ..WIDE },
            1,
            &[write(0, 1024), Ask::Flush],
        )
        .made(&[Part::Leaks { end: 63 }]),
    ]
}

/// Subclusters.
fn split() -> Vec<Scenario> {
    let part = Part::Subclusters { at: 0, data: 0x0000_00f0, zero: 0x0000_0f00 };
    let own = |name, at_once, asks: &[Ask]| scenario(name, SPLIT, at_once, asks).sized(2 * S);
    vec![
        own("qcow2-subclusters-new", 2, &[write(0, 512), write(1024, 512), Ask::Flush]).backed(S),
        own("qcow2-subclusters-partial", 2, &[write(100, 200), write(1500, 100), Ask::Flush]).backed(S),
        own("qcow2-subclusters-of-all-kinds", 2, &[write(1024, 2048), write(3584, 1024), Ask::Flush])
            .backed(S)
            .made(&[part]),
        own("qcow2-subclusters-zeroes", 1, &[zero(1024, 2048), zero(8192, 512), Ask::Flush])
            .backed(S)
            .made(&[part]),
        own("qcow2-subclusters-discard", 1, &[discard(0, S), Ask::Flush, write(512, 512)])
            .backed(S)
            .made(&[part]),
        own("qcow2-subclusters-shared", 2, &[write(2048, 512), write(0, 512), Ask::Flush])
            .backed(S)
            .made(&[part, Part::Snapshot]),
        own("qcow2-subclusters-compressed", 1, &[write(512, 512), Ask::Flush]).made(&[packed(0, 1)]),
    ]
}
