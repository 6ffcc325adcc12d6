//! Scenarios of QED.
//!
//! Knows: offsets that make requests meet. Must never know: how they are driven.

use super::setting::{CLUSTER, SPAN, Scenario, read, write, zero};
use crate::world::Ask;
use quod::Policy;

/// Small ones first.
pub fn all() -> Vec<Scenario> {
    let fua = Ask::Write { offset: 512, len: 512, fua: true };
    let backed = 6 * CLUSTER;
    let mut list = vec![
        Scenario::new("two-writers-one-cluster", 2, &[write(0, 512), write(1024, 512), Ask::Flush]),
        Scenario::new("two-writers-one-cluster-backed", 2, &[write(0, 512), write(1024, 512), Ask::Flush])
            .backed(backed),
        Scenario::new("two-writers-one-table", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Flush]),
        Scenario::new("writer-and-reader", 2, &[write(512, 512), read(0, CLUSTER), Ask::Flush]),
        Scenario::new("two-new-tables", 2, &[write(0, 512), write(SPAN, 512), Ask::Flush]).large(),
        Scenario::new("writer-and-flush", 1, &[write(0, 1024), Ask::Flush]),
        Scenario::new("first-write-fua", 1, &[fua, write(0, 512)]),
        Scenario::new("two-flushes", 1, &[write(0, 512), Ask::Flush, write(512, 512), Ask::Flush]),
        Scenario::new("overlapping-in-place", 2, &[write(0, 1024), write(512, 1024), Ask::Flush])
            .after(&[write(0, CLUSTER)]),
        Scenario::new(
            "writer-and-discard",
            2,
            &[write(0, 512), Ask::Discard { offset: 0, len: CLUSTER }, Ask::Flush],
        )
        .after(&[write(0, CLUSTER)]),
        Scenario::new("zeroes-over-all-kinds", 1, &[zero(2048, 3 * CLUSTER), Ask::Flush])
            .backed(backed)
            .after(&[write(0, CLUSTER), zero(CLUSTER, CLUSTER)]),
        Scenario::new("zeroes-and-writer", 2, &[zero(0, 2 * CLUSTER), write(512, 512), Ask::Flush])
            .backed(backed),
        Scenario::new("write-over-zero-entry", 1, &[write(512, 512), Ask::Flush])
            .backed(backed)
            .after(&[zero(0, CLUSTER)]),
        Scenario::new("copy-beside-reader", 2, &[write(1024, 512), read(0, CLUSTER), Ask::Flush])
            .backed(backed),
        Scenario::new("short-backing", 2, &[write(512, 512), write(CLUSTER, 512), Ask::Flush])
            .backed(CLUSTER + 1024),
        Scenario::new("close-in-flight", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Close]),
        Scenario::new("quiesce-and-writer", 1, &[write(0, 512), Ask::Quiesce, write(CLUSTER, 512)]),
        Scenario::new("sector-writers", 3, &[write(10, 20), write(100, 50), write(120, 600), read(0, 1024)])
            .direct()
            .after(&[write(0, CLUSTER)]),
        Scenario::new("unaligned-new-cluster", 2, &[write(700, 100), write(900, 300), Ask::Flush]).direct(),
        Scenario::new("spans-two-clusters", 1, &[write(CLUSTER - 512, 1024), Ask::Flush]).backed(backed),
    ];
    let mut through = Scenario::new("writethrough", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Flush]);
    through.policy = Policy::Writethrough;
    let mut pressure =
        Scenario::new("cache-pressure", 2, &[write(0, 512), write(SPAN, 512), read(0, 512)]).large();
    pressure.cache = 8192;
    let mut reads = Scenario::new("cache-pressure-reads", 2, &[read(0, 512), read(SPAN, 512)])
        .large()
        .after(&[write(0, 512), write(SPAN, 512)]);
    reads.cache = 8192;
    let timer = Scenario::new("need-check-timer", 1, &[write(0, 512), write(CLUSTER, 512)]).with_timers();
    let late = Scenario::new("timers-and-backing", 2, &[write(512, 512), write(CLUSTER, 512)])
        .backed(backed)
        .with_timers();
    let quiesces = [write(0, 512), Ask::Quiesce, write(CLUSTER, 512), Ask::Quiesce];
    let three = [write(0, 512), write(CLUSTER, 512), write(SPAN, 512), Ask::Flush];
    let three = Scenario::new("three-writers-two-tables", 3, &three).large();
    let two = Scenario::new("two-quiesces", 1, &quiesces);
    // with the write of the second failing: its table is linked, in space that only the growth has made
    let later = Scenario::new("second-table", 1, &[write(SPAN, 512), Ask::Flush])
        .large()
        .warmed(&[write(0, 512), Ask::Flush]);
    let mut chain =
        Scenario::new("chain-of-three", 2, &[write(512, 512), read(0, CLUSTER), Ask::Flush]).backed(backed);
    chain.middle = true;
    list.extend([through, pressure, reads, timer, late, chain, two, three, later]);
    list
}
