//! Scenarios for edges of the state tables that the others do not take: one control block, FUA on zeros,
//! clusters that are copied in pieces, a cache without room, large blocks, changes of size.
//!
//! Knows: which request takes which edge. Must never know: how they are driven.

use super::qcow2::{K, LATE, S, SMALL, SPAN, SPLIT, USUAL, data, discard, packed, scenario, zeros};
use super::setting::{CLUSTER, Scenario, read, write, zero};
use crate::image::{Form, Part, Qcow2};
use crate::world::Ask;

const M: u64 = 1 << 20;
/// Guest bytes under one L2 table of QED.
const SPAN_OF_QED: u64 = CLUSTER * CLUSTER / 8;

const fn zero_fua(offset: u64, len: u64) -> Ask {
    Ask::Zero { offset, len, fua: true }
}

const fn resize(len: u64) -> Ask {
    Ask::Resize { len }
}

impl Scenario {
    /// The extents of a request follow each other.
    pub(super) fn one_acb(mut self) -> Scenario {
        self.acbs = 1;
        self
    }

    /// Clusters of 2 MiB: more than is copied at once.
    fn pieces(mut self) -> Scenario {
        self.form = match self.form {
            Form::Qcow2(_) => Form::Qcow2(Qcow2::new(2 << 20)),
            _ => Form::Qed { cluster: 2 << 20, table: 1 },
        };
        self.size = 2 * M;
        self
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut list = qed();
    list.extend(qcow2());
    list.extend(resizes());
    list.extend(emptied());
    list
}

fn qed() -> Vec<Scenario> {
    let two = [write(0, CLUSTER), write(2 * CLUSTER, CLUSTER)];
    let fua = Ask::Write { offset: 0, len: 512, fua: true };
    vec![
        Scenario::new("one-acb-reads", 1, &[read(512, 3 * CLUSTER), Ask::Flush])
            .backed(6 * CLUSTER)
            .after(&two)
            .one_acb(),
        Scenario::new("one-acb-writes", 1, &[write(512, 2 * CLUSTER), Ask::Flush]).after(&two).one_acb(),
        Scenario::new("one-acb-zeroes", 1, &[zero(512, 3 * CLUSTER), Ask::Flush]).after(&two).one_acb(),
        Scenario::new("zeroes-fua", 2, &[zero_fua(0, CLUSTER), zero_fua(CLUSTER, CLUSTER)]).after(&two),
        Scenario::new("fua-and-flush", 1, &[fua, Ask::Flush]),
        Scenario::new("pieces-of-a-copy", 1, &[write(M + 512, 512)]).backed(M + 1024).pieces(),
        Scenario::new("piece-of-a-copy", 1, &[write(M + 512, 512)]).backed(M).pieces(),
    ]
}

fn qcow2() -> Vec<Scenario> {
    let kinds = [data(0, 1), packed(2, 1), data(4, 1)];
    let fua = Ask::Write { offset: 0, len: 512, fua: true };
    // a table for each of so many requests that the cache has no slot for the last of them
    let tables: Vec<Part> = (0..18).map(|n| data(64 * n, 1)).collect();
    let reads: Vec<Ask> = (0..18).map(|n| read(SPAN * n + 512, 512)).collect();
    let mut room = scenario("qcow2-no-room", SMALL, 18, &reads).sized(18 * SPAN).made(&tables);
    room.cache = 4096;
    room.acbs = 18;
    let part = Part::Subclusters { at: 0, data: 0x0000_00f0, zero: 0x0000_0f00 };
    let blocks = [write(12 * K + 612, 200), write(14 * K, 512), Ask::Flush];
    let mut blocks = scenario("qcow2-subclusters-in-blocks", SPLIT, 2, &blocks)
        .sized(2 * S)
        .backed(S)
        .made(&[part])
        .direct();
    blocks.align = 4096;
    vec![
        scenario("qcow2-one-acb-reads", USUAL, 1, &[read(512, 4 * K), Ask::Flush])
            .backed(7 * K)
            .made(&kinds)
            .one_acb(),
        scenario("qcow2-one-acb-writes", USUAL, 1, &[write(512, 3 * K), Ask::Flush])
            .backed(7 * K)
            .made(&kinds)
            .one_acb(),
        scenario("qcow2-one-acb-zeroes", USUAL, 1, &[zero(512, 2 * K), Ask::Flush])
            .made(&[data(0, 3)])
            .one_acb(),
        scenario("qcow2-zeroes-fua", USUAL, 2, &[zero_fua(512, 512), zero_fua(K, K)])
            .made(&[data(0, 1), zeros(1, false)]),
        scenario("qcow2-second-cluster", USUAL, 1, &[write(K, 512), Ask::Flush]).made(&[data(0, 1)]),
        scenario("qcow2-fua-and-flush", USUAL, 1, &[fua, Ask::Flush]),
        scenario("qcow2-pieces-of-a-copy", USUAL, 1, &[write(M + 512, 512)]).backed(M + 1024).pieces(),
        scenario("qcow2-piece-of-a-copy", USUAL, 1, &[write(M + 512, 512)]).backed(M).pieces(),
        room,
        blocks,
    ]
}

/// The image comes to hold nothing.
fn emptied() -> Vec<Scenario> {
    let two = [write(0, CLUSTER), write(2 * CLUSTER, CLUSTER)];
    let tables = [write(0, 512), write(SPAN_OF_QED, 512)];
    let asks = [Ask::Empty, write(CLUSTER, 512), Ask::Flush];
    let counted = [Ask::Empty, write(K, 512), Ask::Flush];
    let marked = |bytes: &mut Vec<u8>| bytes[32] |= 1;
    vec![
        Scenario::new("empty", 1, &asks).after(&two),
        Scenario::new("empty-and-close", 1, &[Ask::Empty, Ask::Close]).large().after(&tables),
        Scenario::new("empty-beside-a-writer", 2, &[write(CLUSTER, 512), Ask::Empty, Ask::Flush]).after(&two),
        Scenario::new("empty-what-is-empty", 1, &[Ask::Empty, write(0, 512), Ask::Flush]),
        // what comes before would clear them
        Scenario::new("empty-with-unknown-autoclear-bits", 1, &asks).patched(marked, 0),
        scenario("qcow2-empty", USUAL, 1, &counted).made(&[data(0, 1)]),
        scenario("qcow2-empty-of-all-kinds", USUAL, 1, &[Ask::Empty, Ask::Flush]).made(&[
            data(0, 1),
            zeros(3, true),
            packed(4, 2),
        ]),
        scenario("qcow2-empty-and-close", SMALL, 1, &[Ask::Empty, Ask::Close])
            .sized(SPAN + 2048)
            .made(&[data(0, 2), data(64, 1)]),
        scenario("qcow2-empty-beside-a-writer", USUAL, 2, &[write(K, 512), Ask::Empty, Ask::Flush])
            .made(&[data(0, 1), data(3, 1)]),
        scenario("qcow2-empty-beside-a-reader", USUAL, 2, &[read(0, K), Ask::Empty, write(0, 512)])
            .made(&[data(0, 1)]),
        scenario("qcow2-empty-shared", SMALL, 1, &[Ask::Empty, write(512, 512), Ask::Flush])
            .made(&[data(0, 2), Part::Snapshot]),
        scenario("qcow2-lazy-empty", LATE, 1, &[Ask::Empty, write(512, 512), Ask::Close]).made(&[data(0, 1)]),
    ]
}

/// The disk grows, with a new L1 table or without, or shrinks.
fn resizes() -> Vec<Scenario> {
    let moves = [write(0, 512), resize(SPAN + 4096), Ask::Flush];
    vec![
        scenario("qcow2-grow-moves-the-table", SMALL, 2, &moves),
        scenario("qcow2-grow-moves-the-table-alone", SMALL, 1, &[resize(SPAN + 4096), write(2048, 512)])
            .made(&[data(0, 2)]),
        scenario("qcow2-grow-moves-the-table-shared", SMALL, 1, &[resize(SPAN + 4096), write(0, 512)])
            .made(&[data(0, 2), Part::Snapshot]),
        // an entry of the table that moves changes, if somebody comes in meanwhile
        scenario(
            "qcow2-grow-moves-an-empty-table",
            SMALL,
            1,
            &[resize(SPAN + 4096), write(2048, 512), Ask::Flush],
        ),
        // the header is the pointer, and the count of what it points to comes late
        scenario("qcow2-lazy-grow-moves-the-table", LATE, 1, &[resize(SPAN + 4096), Ask::Close])
            .made(&[data(0, 1)]),
        scenario("qcow2-grow", USUAL, 2, &[write(0, 512), resize(16 * K), Ask::Flush])
            .sized(7 * K + 512)
            .made(&[data(7, 1)]),
        scenario("qcow2-shrink", USUAL, 2, &[write(0, 512), resize(4 * K), Ask::Flush]).made(&[data(0, 8)]),
        scenario("qcow2-shrink-and-discard", USUAL, 2, &[discard(0, K), resize(4 * K), write(K, 512)])
            .made(&[data(0, 6), packed(6, 2)]),
    ]
}
