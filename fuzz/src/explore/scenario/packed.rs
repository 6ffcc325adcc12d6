//! Scenarios of compressed writes: clusters that are packed behind each other, that meet other requests, and
//! whose space comes back and is used again.
//!
//! Knows: which requests meet at which host cluster. Must never know: how they are driven.

use super::qcow2::{K, LAZY, S, SPLIT, USUAL, data, discard, scenario, zeros};
use super::setting::{Scenario, read, write};
use crate::image::{Part, Qcow2};
use crate::world::Ask;
use quod::Policy;

/// Counts of one bit: nobody shares a host cluster.
const NARROW: Qcow2 = Qcow2 { refcount_bits: 1, ..USUAL };
const ZSTD: Qcow2 = Qcow2 { zstd: true, ..USUAL };

const fn pack(cluster: u64) -> Ask {
    Ask::Pack { offset: cluster * K, len: K, fua: false }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = alone();
    list.extend(meeting());
    list.extend(reused());
    list
}

/// One or two, packed or not.
fn alone() -> Vec<Scenario> {
    let two = [pack(0), pack(1), Ask::Flush];
    let fua = [Ask::Pack { offset: 0, len: K, fua: true }, pack(1)];
    let split = Ask::Pack { offset: S, len: S, fua: false };
    let mut through = scenario("qcow2-pack-writethrough", USUAL, 1, &[pack(0), Ask::Flush]);
    through.policy = Policy::Writethrough;
    vec![
        scenario("qcow2-pack-and-flush", USUAL, 1, &[pack(0), Ask::Flush]),
        scenario("qcow2-pack-two", USUAL, 2, &two),
        scenario("qcow2-pack-two-zstd", ZSTD, 2, &two),
        scenario("qcow2-pack-two-narrow", NARROW, 2, &two),
        scenario("qcow2-pack-two-lazy", LAZY, 2, &two),
        scenario("qcow2-pack-two-direct", USUAL, 2, &two).direct(),
        scenario("qcow2-pack-fua", USUAL, 2, &fua),
        through,
        scenario("qcow2-pack-subclusters", SPLIT, 1, &[split, Ask::Flush]).made(&[Part::Subclusters {
            at: 1,
            data: 0,
            zero: 0xf0,
        }]),
    ]
}

/// With other requests, and with what is there.
fn meeting() -> Vec<Scenario> {
    vec![
        scenario("qcow2-pack-beside-writer", USUAL, 2, &[pack(0), write(512, 512), Ask::Flush]),
        scenario("qcow2-pack-twice", USUAL, 2, &[pack(0), pack(0), Ask::Flush]),
        scenario("qcow2-pack-beside-discard", USUAL, 2, &[pack(0), discard(0, K), read(0, K)]),
        scenario("qcow2-pack-over-zeros", USUAL, 2, &[pack(0), pack(1), Ask::Flush])
            .made(&[zeros(0, false), zeros(1, true)]),
        scenario("qcow2-pack-over-data", USUAL, 1, &[pack(0), Ask::Flush]).made(&[data(0, 1)]),
        scenario("qcow2-pack-shared", USUAL, 1, &[pack(1), Ask::Flush]).made(&[data(0, 1), Part::Snapshot]),
        scenario("qcow2-pack-backed", USUAL, 1, &[pack(0), read(0, K)]).backed(6 * K),
        scenario("qcow2-pack-cancelled", USUAL, 2, &[pack(0), Ask::Cancel { back: 1 }, Ask::Flush]),
        scenario("qcow2-pack-and-close", USUAL, 2, &[pack(0), pack(1), Ask::Close]),
    ]
}

/// Space that comes back.
fn reused() -> Vec<Scenario> {
    let rewrite = [write(512, 512), Ask::Flush, read(K, K)];
    let gone = [discard(0, K), discard(K, K), Ask::Flush, Ask::Flush];
    vec![
        scenario("qcow2-pack-rewrite", USUAL, 1, &rewrite).warmed(&[pack(0), pack(1), Ask::Flush]),
        scenario("qcow2-pack-behind-a-neighbour-that-goes", USUAL, 2, &[discard(0, K), pack(2), Ask::Flush])
            .warmed(&[pack(0), pack(1), Ask::Flush]),
        // what they had is somebody else's when the next one comes
        scenario(
            "qcow2-pack-after-all-went",
            USUAL,
            1,
            &[write(3 * K, K), pack(4), read(3 * K, K), Ask::Flush],
        )
        .warmed(&[pack(0), pack(1), Ask::Flush, gone[0], gone[1], gone[2], gone[3]]),
    ]
}
