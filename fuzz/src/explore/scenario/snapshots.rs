//! Scenarios of snapshots: one is made, applied or deleted, beside data, compressed clusters, zeros, other
//! snapshots, what memory alone knows, and in narrow refcount blocks.
//!
//! Knows: what each begins with. Must never know: how a snapshot is made.

use super::qcow2::{K, LATE, LAZY, SMALL, SPLIT, USUAL, WIDE, data, packed, scenario, zeros};
use super::setting::{Scenario, write};
use crate::image::{Part, Qcow2};
use crate::world::Ask;

const APPLY: Ask = Ask::Apply { index: 0 };
const DROP: Ask = Ask::Drop { index: 0 };

/// All of them.
pub fn all() -> Vec<Scenario> {
    let old = Qcow2 { version: 2, ..USUAL };
    let kinds = [data(0, 2), packed(2, 2), zeros(4, true), zeros(5, false)];
    // the snapshot and the disk share the first cluster, each has one of its own
    let two = [data(0, 2), Part::Snapshot, data(1, 2)];
    let three = [data(0, 1), packed(2, 2), Part::Snapshot, data(1, 1), packed(3, 1)];
    vec![
        scenario("qcow2-snapshot-made", USUAL, 1, &[Ask::Keep]).made(&kinds),
        scenario("qcow2-snapshot-made-of-nothing", USUAL, 1, &[Ask::Keep]),
        scenario("qcow2-snapshot-made-beside-another", old, 1, &[Ask::Keep]).made(&three),
        scenario("qcow2-snapshot-made-of-subclusters", SPLIT, 1, &[Ask::Keep])
            .sized(2 * 16 * K)
            .made(&[Part::Subclusters { at: 0, data: 0xf0, zero: 0xf00 }]),
        scenario("qcow2-snapshot-made-in-narrow-blocks", WIDE, 1, &[Ask::Keep])
            .made(&[data(0, 2), Part::Leaks { end: 62 }]),
        scenario("qcow2-snapshot-applied", USUAL, 1, &[APPLY]).made(&two),
        scenario("qcow2-snapshot-applied-over-nothing", old, 1, &[APPLY]).made(&[Part::Snapshot, data(0, 2)]),
        scenario("qcow2-snapshot-deleted", USUAL, 1, &[DROP]).made(&two),
        scenario("qcow2-snapshot-deleted-alone", SMALL, 1, &[DROP]).made(&three),
        // what memory alone knows when it begins
        scenario("qcow2-snapshot-made-of-what-is-new", USUAL, 1, &[Ask::Keep, write(0, 512), Ask::Flush])
            .made(&[data(0, 1)])
            .warmed(&[write(512, 512), write(2 * K, K)]),
        scenario("qcow2-snapshot-made-and-written-over", USUAL, 1, &[Ask::Keep, write(0, K), Ask::Close])
            .made(&[data(0, 1)]),
        scenario("qcow2-snapshot-deleted-and-written-over", USUAL, 1, &[DROP, write(0, 512)]).made(&two),
        scenario("qcow2-snapshot-applied-and-written-over", USUAL, 1, &[APPLY, write(K, 512), Ask::Flush])
            .made(&two)
            .warmed(&[write(3 * K, 512)]),
        scenario("qcow2-lazy-snapshot-made", LAZY, 1, &[Ask::Keep, Ask::Close]).warmed(&[write(0, 2 * K)]),
        scenario("qcow2-lazy-snapshot-applied", LATE, 1, &[APPLY, Ask::Close])
            .made(&[data(0, 1), Part::Snapshot])
            .warmed(&[write(512, 512)]),
        scenario("qcow2-snapshot-made-and-deleted", USUAL, 1, &[Ask::Keep, DROP]).made(&[data(0, 2)]),
    ]
}
