//! Scenarios of cancelling: at any moment, whatever the request waits for, alone and with others that wait
//! for the same.
//!
//! Knows: which request waits for what. Must never know: how they are driven.

use super::qcow2::{K, S, SMALL, SPAN, SPLIT, USUAL, data, discard, packed, scenario};
use super::setting::{CLUSTER, SPAN as QED_SPAN, Scenario, read, write, zero};
use crate::image::Part;
use crate::world::Ask;

/// The last request, and the one before.
const LAST: Ask = Ask::Cancel { back: 1 };
const FIRST: Ask = Ask::Cancel { back: 2 };

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = qed();
    list.extend(qcow2());
    list.extend(shared());
    list
}

fn qed() -> Vec<Scenario> {
    let backed = 6 * CLUSTER;
    let one = [write(0, 512), write(1024, 512), FIRST, LAST, Ask::Flush];
    let tables = [write(0, 512), write(QED_SPAN, 512), FIRST, LAST, Ask::Close];
    let two = [write(0, CLUSTER), write(2 * CLUSTER, CLUSTER)];
    let sectors = [write(10, 20), write(100, 50), FIRST, LAST, read(0, 512)];
    vec![
        Scenario::new("cancel-two-writers", 2, &one),
        Scenario::new("cancel-two-writers-backed", 2, &one).backed(backed),
        Scenario::new("cancel-and-close", 2, &tables).large(),
        Scenario::new("cancel-reads", 1, &[read(512, 3 * CLUSTER), LAST, Ask::Flush])
            .backed(backed)
            .after(&two)
            .one_acb(),
        Scenario::new("cancel-writes", 1, &[write(512, 2 * CLUSTER), LAST, Ask::Flush]).after(&two).one_acb(),
        Scenario::new("cancel-zeroes", 1, &[zero(512, 3 * CLUSTER), LAST, Ask::Flush])
            .backed(backed)
            .after(&two)
            .one_acb(),
        Scenario::new("cancel-sector-writers", 2, &sectors).direct().after(&[write(0, CLUSTER)]),
    ]
}

/// Allocating, discarding, compressed clusters.
fn qcow2() -> Vec<Scenario> {
    let one = [write(0, 512), write(700, 200), FIRST, LAST, Ask::Flush];
    let tables = [write(0, 512), write(SPAN, 512), FIRST, LAST, Ask::Close];
    let kinds = [data(0, 1), packed(2, 1), data(4, 1)];
    let fua = Ask::Write { offset: 0, len: 3 * K, fua: true };
    let blocks = [write(0, 1024), LAST, write(1024, 512), Ask::Flush];
    vec![
        scenario("qcow2-cancel-two-writers", USUAL, 2, &one),
        scenario("qcow2-cancel-two-writers-backed", USUAL, 2, &one).backed(6 * K),
        scenario("qcow2-cancel-and-close", SMALL, 2, &tables).sized(SPAN + 2048),
        scenario("qcow2-cancel-reads", USUAL, 1, &[read(512, 4 * K), LAST, Ask::Flush])
            .backed(7 * K)
            .made(&kinds)
            .one_acb(),
        scenario("qcow2-cancel-writes", USUAL, 1, &[write(512, 3 * K), LAST, Ask::Flush])
            .backed(7 * K)
            .made(&kinds)
            .one_acb(),
        scenario("qcow2-cancel-fua", USUAL, 1, &[fua, LAST, write(4 * K, 512)]).made(&[data(0, 2)]),
        scenario("qcow2-cancel-discard", USUAL, 2, &[write(K, 512), discard(0, 3 * K), LAST, Ask::Flush])
            .made(&[data(0, 3)]),
        scenario("qcow2-cancel-zeroes", USUAL, 2, &[zero(512, 2 * K), write(K, 512), FIRST, Ask::Flush])
            .backed(7 * K)
            .made(&[data(0, 1)]),
        scenario("qcow2-cancel-new-refcount-block", SMALL, 1, &blocks).made(&[Part::Leaks { end: 255 }]),
    ]
}

/// Tables and clusters that a snapshot shares, subclusters.
fn shared() -> Vec<Scenario> {
    let two = [write(0, 512), write(K, 512), FIRST, LAST, Ask::Flush];
    let partial = [write(512, 700), write(4096, 100), FIRST, LAST, Ask::Flush];
    vec![
        scenario("qcow2-cancel-shared-table", USUAL, 2, &two).made(&[data(0, 2), Part::Snapshot]),
        scenario("qcow2-cancel-shared-cluster", USUAL, 2, &[write(0, 100), write(300, 50), LAST, Ask::Close])
            .made(&[data(0, 1), Part::Snapshot]),
        scenario("qcow2-cancel-subclusters", SPLIT, 2, &partial).sized(S).backed(S),
    ]
}
