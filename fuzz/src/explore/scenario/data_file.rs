//! Scenarios of qcow2 images whose clusters lie in a file of their own: two files are made durable, and no
//! order between them is given.
//!
//! Knows: which requests meet. Must never know: how they are driven.

use super::qcow2::{K, SMALL, SPAN, USUAL, discard, scenario};
use super::setting::{Scenario, read, write, zero};
use crate::image::{Data, Qcow2};
use crate::world::Ask;

const FILE: Qcow2 = Qcow2 { data: Data::File, ..USUAL };
const RAW: Qcow2 = Qcow2 { data: Data::Raw, ..USUAL };
const LAZY: Qcow2 = Qcow2 { lazy_refcounts: true, ..FILE };

/// All of them.
pub fn all() -> Vec<Scenario> {
    let two = [write(0, 512), write(K, 512), Ask::Flush];
    let fua = Ask::Write { offset: 0, len: 512, fua: true };
    vec![
        scenario("qcow2-data-file", FILE, 2, &two),
        scenario("qcow2-data-file-one-cluster", FILE, 2, &[write(0, 512), write(700, 200), Ask::Flush])
            .backed(6 * K),
        scenario("qcow2-data-file-and-reader", FILE, 2, &[write(512, 512), read(0, K), Ask::Flush])
            .backed(6 * K),
        scenario(
            "qcow2-data-file-two-tables",
            Qcow2 { data: Data::File, ..SMALL },
            2,
            &[write(0, 512), write(SPAN, 512), Ask::Flush],
        )
        .sized(SPAN + 2048),
        scenario("qcow2-data-file-fua-and-close", FILE, 1, &[fua, Ask::Close]),
        scenario("qcow2-data-file-discard", FILE, 2, &[write(0, 512), discard(0, 2 * K), Ask::Flush])
            .after(&[write(0, 2 * K)]),
        scenario(
            "qcow2-data-file-discard-and-reuse",
            FILE,
            1,
            &[discard(0, K), Ask::Flush, write(512, 512), Ask::Flush],
        )
        .after(&[write(0, K)]),
        scenario("qcow2-data-file-zeroes", FILE, 2, &[zero(512, 2 * K), write(0, 512), Ask::Flush])
            .backed(6 * K)
            .after(&[write(0, K)]),
        scenario("qcow2-data-file-lazy", LAZY, 2, &two),
        scenario("qcow2-data-file-raw", RAW, 2, &[write(0, 512), write(700, 200), Ask::Flush]),
        scenario("qcow2-data-file-raw-zeroes", RAW, 2, &[zero(0, K + 512), write(K, 512), Ask::Flush])
            .after(&[write(0, 2 * K)]),
        scenario("qcow2-data-file-raw-discard", RAW, 1, &[discard(0, K), write(512, 512), Ask::Flush])
            .after(&[write(0, 2 * K)]),
        scenario(
            "qcow2-data-file-sectors",
            FILE,
            3,
            &[write(10, 20), write(100, 50), write(120, 600), read(0, K)],
        )
        .direct()
        .after(&[write(0, K)]),
    ]
}
