//! Where a repair of qcow2 writes a better snapshot table, in which order, and what is counted then.
//!
//! Checks: the first free clusters in a row that have counts are taken, inside the file or behind its end;
//! without such, nothing is written; version 2 asks for less than version 3.

use quod_states::qcow2::Finding;
use quod_states::{IoOp, Repair, Report};
use quod_states_tests::sparse::*;

/// A name of 1000 bytes: without extra data, the entry has 1040 bytes, and complete, 1056.
fn long(extra: &[u8]) -> Vec<u8> {
    snapshot((0, 0), extra, b"", &[b'n'; 1000])
}

/// The guest's first clusters have data, from cluster 5 on; behind that is a snapshot table of two clusters,
/// whose entry is to be completed.
fn image(clusters: u64) -> File {
    let table = (5 + clusters) * K;
    let mut file = Plan { snapshots: (table, 1), len: table + 2 * K, ..PLAN }.file();
    file.put(REFTABLE, &[BLOCK]);
    file.put(BLOCK, &vec![1; 7 + clusters as usize]);
    file.put(L1, &[COPIED | L2]);
    let entries: Vec<u64> = (5..5 + clusters).map(|cluster| COPIED | (cluster * K)).collect();
    file.put(L2, &entries);
    file.write(table, &long(&[]));
    file
}

/// Guest clusters from `first` on lose their data.
fn forget(file: &mut File, first: u64, clusters: u64) {
    file.put(L2 + first * 8, &vec![0; clusters as usize]);
    file.put(BLOCK + (5 + first) * 8, &vec![0; clusters as usize]);
}

fn report(allocated: u64, fragmented: u64) -> Report {
    let (allocated_clusters, fragmented_clusters) = (allocated, fragmented);
    Report { allocated_clusters, fragmented_clusters, ..sound_report() }
}

/// The words of `file` once the table has moved from `old` to `new`.
fn moved(file: &File, old: u64, new: u64) -> File {
    let mut expected = file.clone();
    expected.put(64, &[new * K]);
    expected.put(BLOCK + old * 8, &[0, 0]);
    expected.put(BLOCK + new * 8, &[1, 1]);
    expected.write(new * K, &long(&complete()));
    expected
}

#[test]
fn a_better_table_is_durable_before_the_header_leads_to_it() {
    let mut file = image(3);
    let expected = moved(&file, 8, 10);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.findings, [Finding::Snapshot { index: 0, extra: 0, repaired: true }]);
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 1, ..report(3, 0) }));
    let durable = [write(BLOCK, 1024), write(10 * K, 1056), IoOp::Sync, write(0, 1024), IoOp::Sync];
    // what the old one took is free only now
    let freed = [write(BLOCK, 1024), IoOp::Sync];
    assert_eq!(ran.changing(), [&durable[..], &freed].concat());
    assert_eq!(file.changes(&expected), []);
    // all of its last cluster is in use
    assert_eq!((ran.len, ran.end, ran.header.snapshots_offset), (12 * K, 12 * K, 10 * K));
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((ran.changing(), ran.report), (vec![], Ok(report(3, 0))));
}

#[test]
fn the_first_gap_that_is_large_enough_is_taken() {
    // clusters of data, those that lose it (guest cluster, how many); where the table goes
    let cases = [
        // one is too few, two are enough, whatever is behind them
        (10, vec![(1, 1), (3, 2), (7, 3)], 8),
        (10, vec![(1, 1), (3, 1), (5, 1)], 17),
        (4, vec![(3, 1)], 11),
        // behind the file: 95 clusters and 7
        (93, vec![], 100),
        // the last two clusters that the block counts
        (119, vec![], 126),
    ];
    for (clusters, gaps, place) in cases {
        let mut file = image(clusters);
        gaps.iter().for_each(|(first, n)| forget(&mut file, *first, *n));
        let expected = moved(&file, 5 + clusters, place);
        let ran = run(&mut file, Some(Repair::All));
        assert_eq!(file.changes(&expected), [], "{clusters} {gaps:?}");
        let found = ran.report.unwrap();
        assert!(found.is_sound() && found.leaks == 0, "{clusters} {gaps:?}: {found:?}");
        assert_eq!((found.corruptions_fixed, ran.header.snapshots_offset), (1, place * K));
        // in front of the old table are the last clusters of data, if they have not lost it
        let gap = |n: &u64| gaps.iter().any(|(first, count)| (*first..first + count).contains(n));
        let last = (0..clusters).rfind(|n| !gap(n)).map_or(0, |n| 5 + n + 1);
        assert_eq!(ran.len, (last * K).max((place + 2) * K), "{clusters} {gaps:?}");
    }
}

/// The first block counts clusters 0 to 127, and all but the last are in use.
#[test]
fn a_table_goes_only_where_it_is_counted() {
    let mut file = image(120);
    let before = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((ran.changing(), file.changes(&before)), (vec![], vec![]));
    let problems = vec![corrupt("snapshot table", 0, 0, "has less extra data than version 3 asks for")];
    assert_eq!(ran.report, Ok(Report { corruptions: 1, problems, ..report(120, 0) }));
    // with a second block it is put across the border: that block is where data was
    let block = 20 * K;
    forget(&mut file, 15, 1);
    file.put(REFTABLE + 8, &[block]);
    file.put(BLOCK + 20 * 8, &[1]);
    let mut expected = file.clone();
    expected.put(64, &[127 * K]);
    expected.put(BLOCK + 125 * 8, &[0, 0, 1]);
    expected.put(block, &[1]);
    expected.write(127 * K, &long(&complete()));
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(file.changes(&expected), []);
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 1, ..report(119, 1) }));
    assert_eq!((ran.len, ran.end), (129 * K, 129 * K));
}

/// An entry of version 2 has what it needs, and stays as it is when another one is repaired.
#[test]
fn version_2_asks_for_no_extra_data() {
    const ONES: u64 = 0x0001_0001_0001_0001;
    let image = |extra: usize| {
        let snapshots = [snapshot((0, 0), &vec![7; extra], b"1", b""), snapshot((0, 0), &[], b"2", b"two")];
        let table = (8 * K, snapshots.len() as u32);
        let mut file = filled(Plan { version: 2, order: 4, snapshots: table, len: 11 * K, ..PLAN });
        file.write(8 * K, &snapshots.concat());
        file
    };
    let mut file = image(0);
    file.put(BLOCK, &[ONES, ONES, 1 << 48, 0, 0, 0, 0, 0]);
    let ran = run(&mut file, Some(Repair::All));
    let cut = vec![IoOp::SetLen { len: 9 * K }];
    assert_eq!((ran.changing(), ran.report), (cut, Ok(report(3, 0))), "the file ends with its last cluster");
    // too much of it is cut off
    let mut file = image(2000);
    file.put(BLOCK, &[ONES, ONES, ONES & !0xffff, 0, 0, 0, 0, 0]);
    let mut expected = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 1, ..report(3, 0) }));
    expected.put(64, &[11 * K]);
    expected.put(BLOCK + 16, &[1, 1 << 48]);
    expected.write(11 * K, &snapshot((0, 0), &[7; 1024], b"1", b""));
    expected.write(11 * K + 1072, &snapshot((0, 0), &[], b"2", b"two"));
    assert_eq!(file.changes(&expected), []);
}
