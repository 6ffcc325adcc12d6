//! A repair of qcow2's counts, I/O by I/O and word by word, on images that are put together by hand.
//!
//! Checks: what is read and written, in which order; which blocks are read at all; where new refcount
//! structures go and what they count; what is told when a cluster is far away, or referred to too often; what
//! I/O that fails leaves to be told.

use quod_states::qcow2::Finding;
use quod_states::{Error, IoOp, Op, Repair, Report};
use quod_states_tests::sparse::*;

/// A cluster of zeros.
const ZERO: u64 = 1;

/// All tables of [`sound`], in the order in which a check looks at them; the last two only if a flag may be
/// wrong.
const READS: [IoOp; 6] = [
    IoOp::ReadTable { offset: REFTABLE, len: 1024 },
    IoOp::ReadTable { offset: L1, len: 8 },
    IoOp::ReadTable { offset: L2, len: 1024 },
    IoOp::ReadTable { offset: BLOCK, len: 1024 },
    IoOp::ReadTable { offset: L1, len: 8 },
    IoOp::ReadTable { offset: L2, len: 1024 },
];

/// A file in which the guest's first `clusters` have data, from cluster 5 on.
fn with_data(clusters: u64) -> File {
    let mut file = Plan { len: (5 + clusters) * K, ..PLAN }.file();
    let entries: Vec<u64> = (5..5 + clusters).map(|cluster| COPIED | (cluster * K)).collect();
    file.put(REFTABLE, &[BLOCK]);
    file.put(L1, &[COPIED | L2]);
    file.put(L2, &entries);
    file
}

#[test]
fn a_sound_image_is_read_once_and_left_alone() {
    for repair in [None, Some(Repair::Leaks), Some(Repair::All)] {
        let mut file = sound();
        let ran = run(&mut file, repair);
        assert_eq!((ran.report, ran.findings), (Ok(sound_report()), vec![]), "{repair:?}");
        assert_eq!((&ran.io[..], ran.len, ran.end), (&READS[..4], 8 * K, 8 * K), "{repair:?}");
        assert_eq!(file, sound(), "{repair:?}");
    }
}

/// The tables are read again for their flags where one could be wrong.
#[test]
fn flags_are_looked_at_where_one_could_be_wrong() {
    type Change = (u64, u64);
    let flag = |l1_index, entry, refcount| Finding::Copied { l1_index, entry, refcount, repaired: false };
    let cases: [(&[Change], &[Finding], bool); 5] = [
        (&[(L1, L2)], &[flag(Some(0), L2, 1)], true),
        (&[(L2 + 8, 6 * K)], &[flag(None, 6 * K, 1)], true),
        (&[(L2 + 8, (6 * K) | ZERO)], &[flag(None, (6 * K) | ZERO, 1)], true),
        // counted twice, and right so: two entries lead there
        (
            &[(L2 + 8, COPIED | (5 * K)), (BLOCK + 5 * 8, 2), (BLOCK + 6 * 8, 0)],
            &[flag(None, COPIED | (5 * K), 2), flag(None, COPIED | (5 * K), 2)],
            true,
        ),
        // and a cluster of zeros that has the flag
        (&[(L2 + 8, COPIED | (6 * K) | ZERO)], &[], false),
    ];
    for (changes, findings, again) in cases {
        let mut file = sound();
        changes.iter().for_each(|(at, word)| file.put(*at, &[*word]));
        let ran = run(&mut file, None);
        assert_eq!(ran.findings, findings, "{changes:x?}");
        assert_eq!(ran.io, if again { &READS[..] } else { &READS[..4] }, "{changes:x?}");
    }
}

/// What no repair puts right is told once, by one run.
#[test]
fn what_cannot_be_repaired_is_told_once() {
    let mut file = sound();
    file.put(L2, &[COPIED | (5 * K + 512)]);
    let damaged = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let what = "the data does not begin at a cluster";
    // its data reaches into the next cluster, which is counted once: that can be counted right
    let flag = Finding::Copied { l1_index: None, entry: COPIED | (6 * K), refcount: 2, repaired: true };
    let first = Finding::Unaligned { offset: 5 * K + 512, data: true, repaired: false };
    assert_eq!(ran.findings, [first, refcount(6, 1, 2, false), refcount(6, 1, 2, true), flag, first]);
    let report = Report {
        corruptions: 1,
        corruptions_fixed: 2,
        fragmented_clusters: 1,
        problems: vec![corrupt("L2 table", 0, COPIED | (5 * K + 512), what)],
        ..sound_report()
    };
    assert_eq!(ran.report, Ok(report.clone()));
    assert_eq!(file.changes(&damaged), [(BLOCK + 6 * 8, 2), (L2 + 8, 6 * K)]);
    // and again: there is nothing more to be done
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((ran.findings, ran.io), (vec![first], READS.to_vec()));
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 0, ..report }));
}

/// Tables of more than 64 KiB are read in pieces, each once, the last as short as it is.
#[test]
fn a_large_table_is_read_in_pieces() {
    let large = 8 * K;
    let image = || {
        let mut file = filled(Plan { l1: (large, 20000), len: 200 * K, ..PLAN });
        file.put(REFTABLE, &[BLOCK, 165 * K]);
        file.put(large, &[COPIED | L2]);
        file.put(BLOCK, &[1, 1, 1, 0, 1, 1, 1, 1]);
        // 160000 bytes are 157 clusters, and behind them is the second block
        file.put(BLOCK + 8 * 8, &[1; 120]);
        file.put(165 * K, &[1; 38]);
        file
    };
    let pieces = [(large, 65536), (large + 65536, 65536), (large + 131_072, 28928)];
    let blocks = [(BLOCK, 1024), (165 * K, 1024)];
    let l2 = [(L2, 1024)];
    let ran = run(&mut image(), None);
    assert_eq!((&ran.report, &ran.findings[..]), (&Ok(sound_report()), &[][..]));
    assert_eq!(ran.reads(), [&[(REFTABLE, 1024)], &pieces[..], &l2, &blocks].concat());
    for (offset, _) in pieces {
        let fails = |op: &IoOp| matches!(*op, IoOp::ReadTable { offset: at, .. } if at == offset);
        let report = run_failing(&mut image(), None, fails).report;
        assert_eq!(report, Err(Error::Device { op: Op::Check, offset, errno: 5 }));
    }
}

/// Between what is near and what is far there may be any number of clusters that nobody counts.
#[test]
fn a_far_cluster_costs_no_walk_to_it() {
    let far = i32::MAX as u64 - 1;
    let mut file = sound();
    file.len = (far + 1) * K;
    file.put(L2 + 3 * 8, &[COPIED | (far * K)]);
    let ran = run(&mut file, None);
    let flag = Finding::Copied { l1_index: None, entry: COPIED | (far * K), refcount: 0, repaired: false };
    assert_eq!(ran.findings, [refcount(far, 0, 1, false), flag]);
    let problems = vec![
        corrupt("refcount of cluster", far, 0, "is lower than the number of references"),
        corrupt("L2 table", 3, COPIED | (far * K), "the copied flag contradicts the refcount"),
    ];
    let counts = Report { allocated_clusters: 4, fragmented_clusters: 1, ..sound_report() };
    assert_eq!(ran.report, Ok(Report { corruptions: 2, problems, ..counts }));
    assert_eq!(ran.end, (far + 1) * K);
}

/// Entry of the refcount table, what is found, how often, clusters without a count that can be read.
type Entry = (u64, u64, Vec<Finding>, Vec<Error>, u64);

/// The file has 300 clusters, so the first three entries count some of them. A block is read for the first
/// entry that leads to it, where it can be read, and where it counts a cluster of the file.
#[test]
fn only_blocks_that_count_are_read() {
    let (place, beyond) = ("refcount table", 1 << 63);
    let what = "the block is referred to more than once";
    let shared = |index| Finding::BlockShared { index, references: 2 };
    let low = corrupt("refcount of cluster", 2, 1, "is lower than the number of references");
    let reserved = "reserved bits are set";
    let outside = "the block lies beyond the end of the file";
    let cases: [Entry; 5] = [
        (3, 8 * K, vec![], vec![], 0),
        (1, BLOCK, vec![shared(1), refcount(2, 1, 2, false)], vec![corrupt(place, 1, BLOCK, what), low], 0),
        (
            1,
            beyond | 1,
            vec![entry(place, 1, beyond | 1, reserved)],
            vec![corrupt(place, 1, beyond | 1, reserved)],
            0,
        ),
        (
            2,
            beyond,
            vec![Finding::BlockBeyond { index: 2, repaired: false }],
            vec![corrupt(place, 2, beyond, outside)],
            300 - 256,
        ),
        (
            1,
            beyond + 512,
            vec![entry(place, 1, beyond + 512, "the block does not begin at a cluster")],
            vec![corrupt(place, 1, beyond + 512, "the block does not begin at a cluster")],
            128,
        ),
    ];
    for (index, word, findings, problems, check_errors) in cases {
        let mut file = sound();
        file.len = 300 * K;
        file.put(REFTABLE + index * 8, &[word]);
        if word == 8 * K {
            // it is counted itself, and would count clusters that are not there
            file.put(BLOCK + 8 * 8, &[1]);
            file.put(8 * K, &[7; 128]);
        }
        let ran = run(&mut file, None);
        assert_eq!(ran.findings, findings, "entry {index}: {word:#x}");
        let corruptions = problems.len() as u64;
        let report = Report { corruptions, problems, check_errors, ..sound_report() };
        assert_eq!(ran.report, Ok(report), "entry {index}: {word:#x}");
        let reads = if corruptions + check_errors > 0 { &READS[..] } else { &READS[..4] };
        assert_eq!(ran.io, reads, "entry {index}: {word:#x}");
    }
}

/// A count of 0 where there is data: all counts are written anew, behind what is in use, and what the old
/// ones took is free in the end.
#[test]
fn new_counts_are_durable_before_the_header_leads_to_them() {
    let mut file = sound();
    file.put(BLOCK + 5 * 8, &[0]);
    let damaged = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let (block, table) = (8 * K, 9 * K);
    let anew = [write(block, 1024), IoOp::Sync, write(table, 1024), IoOp::Sync, write(0, 1024), IoOp::Sync];
    let l2 = [read(L1, 8), read(L2, 1024)];
    let again = [&[read(table, 1024)], &l2[..], &[read(block, 1024)]].concat();
    let corrected = [&l2[..], &[write(block, 1024)], &l2, &[IoOp::Sync]].concat();
    assert_eq!(ran.io, [&READS[..4], &anew, &corrected, &again].concat());
    let rebuild = Finding::Rebuild { repaired: true };
    let old = [refcount(1, 1, 0, true), refcount(2, 1, 0, true)];
    assert_eq!(ran.findings, [&[refcount(5, 0, 1, false), rebuild], &old[..]].concat());
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 1, ..sound_report() }));
    assert_eq!((ran.len, ran.end, file.len), (10 * K, 10 * K, 10 * K));
    let mut expected = damaged;
    expected.write(table, &[0; 1024]);
    expected.put(48, &[table]);
    expected.put(table, &[block]);
    expected.put(block, &[1, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(file.changes(&expected), []);
}

/// Blocks count 128 clusters: what is built anew may itself need a block that nobody needed before.
#[test]
fn new_structures_count_themselves() {
    // clusters of data; then: the first block, the second block, the table, the counts of both blocks
    type Built = (u64, [u64; 3], [Vec<u64>; 2]);
    let counts = |free: &[u64], used: u64| -> Vec<u64> {
        (0..128).map(|n| u64::from(!free.contains(&n) && n < used)).collect()
    };
    let cases: [Built; 3] = [
        // all of the first block's clusters are in use: it lies in the range of the second, and so does that
        (123, [128, 129, 130], [counts(&[1, 2], 128), counts(&[], 3)]),
        // the first block takes the last of its clusters, the table the first of the next
        (122, [127, 129, 128], [counts(&[1, 2], 128), counts(&[], 2)]),
        // both fit
        (121, [126, 0, 127], [counts(&[1, 2], 128), counts(&[], 0)]),
    ];
    for (clusters, [first, second, table], [low, high]) in cases {
        let mut file = with_data(clusters);
        let ran = run(&mut file, Some(Repair::All));
        let report = ran.report.unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{clusters}: {report:?}");
        assert_eq!((report.corruptions_fixed, report.leaks_fixed), (5 + clusters, 0), "{clusters}");
        assert_eq!((ran.header.reftable_offset, ran.header.reftable_clusters), (table * K, 1), "{clusters}");
        let words = |at: u64, n: u64| (0..n).map(|n| file.word(at + n * 8)).collect::<Vec<u64>>();
        assert_eq!(words(table * K, 3), [first * K, second * K, 0], "{clusters}");
        assert_eq!(words(first * K, 128), low, "{clusters}");
        if second != 0 {
            assert_eq!(words(second * K, 128), high, "{clusters}");
        }
        let last = first.max(second).max(table) + 1;
        assert_eq!((ran.len, ran.end), (last * K, last * K), "{clusters}");
    }
}

/// What is free is used before the file gets longer, be it a single cluster between two others.
#[test]
fn new_structures_go_to_the_first_free_clusters() {
    let mut file = sound();
    file.put(L2, &[0]);
    file.put(BLOCK + 5 * 8, &[0, 0]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((ran.header.reftable_offset, file.word(8 * K), file.len), (8 * K, 5 * K, 9 * K));
    let counts: Vec<u64> = (0..10).map(|n| file.word(5 * K + n * 8)).collect();
    assert_eq!(counts, [1, 0, 0, 1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 1, allocated_clusters: 2, ..sound_report() }));
}

/// A block behind the end of the file is reached by a longer file, unless that would have more clusters than
/// QEMU counts.
#[test]
fn a_file_grows_for_its_counts_within_limits() {
    let most = i32::MAX as u64;
    for (cluster, named) in [(most - 1, true), (most, false)] {
        let mut file = sound();
        file.put(REFTABLE + 8, &[cluster * K]);
        let fails = |op: &IoOp| matches!(op, IoOp::SetLen { .. });
        let ran = run_failing(&mut file, Some(Repair::All), fails);
        let grow = IoOp::SetLen { len: (cluster + 1) * K };
        assert_eq!(ran.io.contains(&grow), named, "{cluster}");
        assert_eq!(ran.io.iter().filter(|op| fails(op)).count(), usize::from(named), "{cluster}");
        assert_eq!(ran.findings[0], Finding::BlockBeyond { index: 1, repaired: true });
        assert!(ran.findings.contains(&Finding::Rebuild { repaired: true }), "{:?}", ran.findings);
        assert!(ran.report.is_ok_and(|report| report.is_sound() && report.leaks == 0), "{cluster}");
        assert_eq!((ran.len, file.len), (10 * K, 10 * K));
    }
    // the block counts clusters 128 to 255, itself not: that is built anew, and found right
    let mut file = sound();
    file.put(REFTABLE + 8, &[200 * K]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.changing()[0], IoOp::SetLen { len: 201 * K });
    // what counted cluster 200 lies in the same range, and counts only itself in the end
    assert_eq!((ran.len, file.len, ran.end), (129 * K, 129 * K, 129 * K), "and the rest is cut off");
    assert_eq!(ran.header.reftable_offset, 9 * K);
    assert!(ran.report.is_ok_and(|report| report.is_sound() && report.leaks == 0));
}

/// Counts of one bit say 0 or 1.
#[test]
fn a_second_reference_is_more_than_a_bit_can_count() {
    let mut file = filled(Plan { order: 0, ..PLAN });
    file.write(BLOCK, &[0; 64]);
    file.write(BLOCK, &[0xff]);
    file.put(L2 + 8, &[COPIED | (5 * K)]);
    let ran = run(&mut file, None);
    assert_eq!(ran.findings, [Finding::Overflow { offset: 5 * K }, refcount(6, 1, 0, false)]);
    let what = "has more references than a refcount can say";
    let problems = vec![corrupt("cluster of the file", 5, 1, what)];
    let report = Report { corruptions: 1, leaks: 1, fragmented_clusters: 2, problems, ..sound_report() };
    assert_eq!(ran.report, Ok(report));
}

/// A write that fails is told with its place, whatever was read or written before it.
#[test]
fn a_write_that_fails_is_told_with_its_place() {
    let mut damaged = filled(Plan { incompatible: 1, ..PLAN });
    damaged.put(BLOCK + 5 * 8, &[0]);
    let all = run(&mut damaged.clone(), Some(Repair::All)).changing();
    let writes = all.iter().filter_map(|op| match *op {
        IoOp::WriteTable { offset, .. } => Some(offset),
        _ => None,
    });
    let writes: Vec<u64> = writes.collect();
    // the new block, the new table, the header, the block without what the old ones took, the header
    assert_eq!(writes, [8 * K, 9 * K, 0, 8 * K, 0]);
    for (n, offset) in writes.into_iter().enumerate() {
        let mut left = n + 1;
        let fails = |op: &IoOp| {
            left -= usize::from(matches!(op, IoOp::WriteTable { .. }));
            left == 0
        };
        let report = run_failing(&mut damaged.clone(), Some(Repair::All), fails).report;
        assert_eq!(report, Err(Error::Device { op: Op::Check, offset, errno: 5 }), "write {n}");
    }
}
