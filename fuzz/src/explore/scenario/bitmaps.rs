//! Scenarios of persistent bitmaps: one is added, changed or removed, in headers of one sector and of
//! several, beside data, snapshots and other bitmaps.
//!
//! Knows: what each begins with. Must never know: how a bitmap is changed.

use super::qcow2::{K, LAZY, SMALL, SPLIT, USUAL, data, scenario};
use super::setting::{Scenario, write};
use crate::image::{MapChange, Part, Qcow2};
use crate::world::Ask;

/// The feature names make the header longer than a sector.
const LONG: Qcow2 = Qcow2::new(8 << 10);

const fn map(index: u8, change: MapChange) -> Ask {
    Ask::Map { index, change }
}

const ADD: Ask = map(0, MapChange::Add);
const MERGE: Ask = map(0, MapChange::Merge);
const REMOVE: Ask = map(0, MapChange::Remove);

/// All of them.
pub fn all() -> Vec<Scenario> {
    let (clear, disable) = (map(0, MapChange::Clear), map(0, MapChange::Disable));
    let (second, gone) = (map(1, MapChange::Add), map(1, MapChange::Remove));
    vec![
        scenario("qcow2-bitmap-added", USUAL, 1, &[ADD]).made(&[data(0, 2)]),
        scenario("qcow2-bitmap-added-in-a-long-header", LONG, 1, &[ADD]).sized(16 * K).made(&[data(0, 1)]),
        scenario("qcow2-bitmap-added-over-a-backing-file", LONG, 1, &[ADD]).sized(16 * K).backed(16 * K),
        scenario("qcow2-bitmap-added-beside-a-snapshot", SMALL, 1, &[ADD]).made(&[
            data(0, 2),
            Part::Snapshot,
            data(1, 1),
        ]),
        scenario("qcow2-bitmap-merged", USUAL, 1, &[ADD, MERGE]),
        scenario("qcow2-bitmap-merged-and-cleared", SMALL, 1, &[clear]).warmed(&[ADD, MERGE]),
        scenario("qcow2-bitmap-merged-and-removed", USUAL, 1, &[REMOVE]).warmed(&[ADD, MERGE]),
        scenario("qcow2-bitmap-removed-of-a-long-header", LONG, 1, &[REMOVE]).sized(16 * K).warmed(&[ADD]),
        scenario("qcow2-bitmap-disabled", SPLIT, 1, &[disable]).sized(32 * K).warmed(&[ADD]),
        scenario("qcow2-bitmaps-of-two", USUAL, 1, &[second, MERGE, gone]).warmed(&[ADD]),
        // what memory alone knows when it begins
        scenario("qcow2-bitmap-added-to-what-is-new", USUAL, 1, &[ADD, Ask::Close])
            .warmed(&[write(512, 512), write(2 * K, K)]),
        scenario("qcow2-lazy-bitmap-added", LAZY, 1, &[ADD, Ask::Close]).warmed(&[write(0, 2 * K)]),
        scenario("qcow2-bitmap-merged-and-written-over", SMALL, 1, &[MERGE, write(0, 512), Ask::Flush])
            .warmed(&[ADD]),
        // kept up
        scenario("qcow2-bitmap-kept-up", USUAL, 1, &[write(K, 512), Ask::Close]).warmed(&[ADD]),
        scenario("qcow2-bitmap-kept-up-in-place", SMALL, 1, &[write(512, 512), Ask::Quiesce, write(0, 512)])
            .made(&[data(0, 2)])
            .warmed(&[ADD]),
        scenario(
            "qcow2-bitmap-kept-up-of-two-writes",
            USUAL,
            2,
            &[write(0, 512), write(2 * K, 512), Ask::Close],
        )
        .warmed(&[ADD, second]),
        scenario("qcow2-bitmap-kept-up-and-cleared", USUAL, 1, &[write(0, 512), clear, Ask::Close])
            .warmed(&[ADD]),
        scenario("qcow2-bitmap-kept-up-beside-one-that-is-not", USUAL, 1, &[write(0, 512), Ask::Quiesce])
            .warmed(&[ADD, second, map(1, MapChange::Disable)]),
    ]
}
