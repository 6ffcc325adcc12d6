//! The append pointer alone: what is torn, found, cleared and grown.

use super::*;

const CLUSTER: u64 = 65536;
const MIB: u64 = 1 << 20;

#[test]
fn a_cluster_that_the_file_cuts_off_is_torn() {
    let cut = Append::new(10 * CLUSTER + 700, CLUSTER, 0);
    assert_eq!((cut.end(), cut.file_len()), (11 * CLUSTER, 10 * CLUSTER + 700));
    assert!(!cut.is_torn(10 * CLUSTER), "not yet");
    let cut = cut.whole_clusters();
    for (offset, len, end) in
        [(10, 1, 10), (9, 2, 10), (8, 4, 10), (9, 1, 11), (8, 2, 11), (11, 1, 11), (12, 9, 11)]
    {
        assert_eq!(cut.end_for(offset * CLUSTER, len * CLUSTER), end * CLUSTER, "{len} clusters at {offset}");
    }
    assert_eq!([9, 10, 11].map(|n| cut.is_torn(n * CLUSTER)), [false, true, false]);
    let whole = Append::new(10 * CLUSTER, CLUSTER, 0).whole_clusters();
    assert_eq!([9, 10, 11].map(|n| whole.is_torn(n * CLUSTER)), [false; 3]);
    assert_eq!([9, 10, 11].map(|n| whole.end_for(n * CLUSTER, CLUSTER)), [10 * CLUSTER; 3]);
}

#[test]
fn the_file_grows_by_half_of_what_it_has_within_limits() {
    let step = |len, step_max| Append::new(len, CLUSTER, step_max).step();
    for (len, step_max, expected) in [
        (0, 64 * MIB, 8 * MIB),
        (17 * MIB, 64 * MIB, 17 * MIB / 2),
        (100 * MIB, 64 * MIB, 50 * MIB),
        (1 << 40, 64 * MIB, 64 * MIB),
        (1 << 40, MIB, MIB),
        (100 * MIB, 0, CLUSTER),
    ] {
        assert_eq!(step(len, step_max), expected, "{len} bytes, at most {step_max}");
    }
    let space = Append::new(100 * MIB, CLUSTER, 64 * MIB);
    assert_eq!(space.target(CLUSTER), 150 * MIB + CLUSTER);
    assert_eq!(space.target(1), 150 * MIB + CLUSTER, "whole clusters");
    assert_eq!(Append::new(MIB, 512, 0).target(1), MIB + 4096, "and whole blocks");
}

#[test]
fn space_runs_low_at_half_a_step() {
    let mut space = Append::new(100 * MIB, CLUSTER, 8 * MIB);
    assert!(space.runs_low());
    space.grown = space.append + 4 * MIB;
    assert!(!space.runs_low(), "half a step is left");
    space.grown -= 1;
    assert!(space.runs_low());
    space.growing = Some(200 * MIB);
    assert!(!space.runs_low(), "it grows already");
    // small steps are not taken ahead
    let space = Append::new(100 * MIB, CLUSTER, 8 * MIB - 1);
    assert!(!space.runs_low());
}
