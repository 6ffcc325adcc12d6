//! What a check of qcow2 makes of the entries of L2 tables and bitmaps, to the last number and word.
//!
//! Checks: which entries have a cluster in a data file, and in the file itself; what is beyond the end of the
//! file; entries with subclusters; tables of bitmaps, and where they may not lie.

use quod_states::qcow2::Finding;
use quod_states::{Error, IoOp, Repair, Report};
use quod_states_tests::sparse::*;

const FLAG: &str = "the copied flag contradicts the refcount";
const RESERVED: &str = "reserved bits are set";

fn flag(entry: u64, refcount: u64, repaired: bool) -> Finding {
    Finding::Copied { l1_index: None, entry, refcount, repaired }
}

/// An entry without an offset, what is found in it, and whether it has a cluster.
type Case = (u64, &'static [&'static str], bool);

/// In a data file the offset 0 is a place like any other, and the copied flag says that it is meant.
#[test]
fn offset_0_is_a_cluster_only_in_a_data_file_and_with_its_flag() {
    let plain: [Case; 5] = [
        (0, &[], false),
        (COPIED, &[], false),
        (2, &[RESERVED], false),
        (1, &[], false),
        (COPIED | 1, &[], false),
    ];
    let elsewhere: [Case; 5] = [
        (0, &[], false),
        (COPIED, &[], true),
        (2, &[RESERVED], false),
        (1, &[], false),
        (COPIED | 1, &[], false),
    ];
    for (incompatible, cases) in [(0, plain), (4, elsewhere)] {
        for (word, found, allocated) in cases {
            let mut file = filled(Plan { incompatible, ..PLAN });
            // the data file's clusters are where the guest has them
            let (at, others) = if incompatible == 0 { (3, 3) } else { (0, 2) };
            if incompatible != 0 {
                file.put(L2 + 8, &[COPIED | K, COPIED | (2 * K)]);
                file.put(BLOCK + 5 * 8, &[0, 0, 0]);
            }
            file.put(L2 + at * 8, &[word]);
            let ran = run(&mut file, None);
            let findings: Vec<Finding> = found.iter().map(|what| entry("L2 table", at, word, what)).collect();
            assert_eq!(ran.findings, findings, "{incompatible} {word:#x}");
            let report = Report {
                corruptions: found.len() as u64,
                problems: found.iter().map(|what| corrupt("L2 table", at, word, what)).collect(),
                allocated_clusters: others + u64::from(allocated),
                ..sound_report()
            };
            assert_eq!(ran.report, Ok(report), "{incompatible} {word:#x}");
        }
    }
}

/// A data file's clusters have no counts: the flag has to be there, and a repair sets it.
#[test]
fn in_a_data_file_every_cluster_has_its_flag() {
    let mut file = filled(Plan { incompatible: 4, ..PLAN });
    file.put(BLOCK + 5 * 8, &[0, 0, 0]);
    file.put(L2, &[COPIED, K, COPIED | (2 * K)]);
    file.put(L2 + 5 * 8, &[(5 * K) | 1]);
    let ran = run(&mut file, None);
    assert_eq!(ran.findings, [flag(K, 1, false), flag((5 * K) | 1, 1, false)]);
    let problems = vec![corrupt("L2 table", 1, K, FLAG), corrupt("L2 table", 5, (5 * K) | 1, FLAG)];
    let counts = Report { allocated_clusters: 4, fragmented_clusters: 1, ..sound_report() };
    assert_eq!(ran.report, Ok(Report { corruptions: 2, problems, ..counts.clone() }));
    // where the counts are right, a repair of leaks corrects flags, too
    for repair in [Repair::Leaks, Repair::All] {
        let mut repaired = file.clone();
        let ran = run(&mut repaired, Some(repair));
        assert_eq!(ran.findings, [flag(K, 1, true), flag((5 * K) | 1, 1, true)]);
        assert_eq!(ran.report, Ok(Report { corruptions_fixed: 2, ..counts.clone() }));
        assert_eq!(repaired.changes(&file), [(L2 + 8, COPIED | K), (L2 + 40, COPIED | (5 * K) | 1)]);
    }
}

/// The last cluster of a file may be there in part.
#[test]
fn what_is_beyond_the_end_is_told_with_its_place() {
    let place = |offset: u64| corrupt("reference", offset / K, offset, "goes beyond the end of the file");
    for (offset, len, beyond) in [(7 * K, 7 * K, true), (7 * K, 7 * K + 1, false), (1 << 40, 8 * K, true)] {
        let mut file = sound();
        file.put(BLOCK + 7 * 8, &[0]);
        file.put(L2 + 2 * 8, &[offset]);
        file.len = len;
        let ran = run(&mut file, None);
        let low = "is lower than the number of references";
        let (finding, problem) = if beyond {
            (Finding::Beyond { offset, len: K }, place(offset))
        } else {
            (refcount(7, 0, 1, false), corrupt("refcount of cluster", 7, 0, low))
        };
        assert_eq!(ran.findings, [finding], "{offset:#x} {len:#x}");
        let fragmented_clusters = u64::from(offset != 7 * K);
        let report =
            Report { corruptions: 1, fragmented_clusters, problems: vec![problem], ..sound_report() };
        assert_eq!(ran.report, Ok(report), "{offset:#x} {len:#x}");
    }
}

/// Clusters of 16 KiB with subclusters: each entry has a second word.
#[test]
fn entries_with_subclusters_are_repaired_with_their_bitmap() {
    const C: u64 = 16 * K;
    let plan = Plan {
        cluster_bits: 14,
        size: 1024 * C,
        l1: (3 * C, 1),
        reftable: (C, 1),
        incompatible: 16,
        len: 6 * C,
        ..PLAN
    };
    let mut file = plan.file();
    file.put(C, &[2 * C]);
    file.put(2 * C, &[1; 6]);
    file.put(3 * C, &[COPIED | (4 * C)]);
    let (zeros, both) = (0xff << 32, 1 << 40 | 1 << 8);
    // data, zeros whose space begins nowhere, data whose space begins nowhere; zeros without space
    file.put(
        4 * C + 3 * 16,
        &[5 * C, 0xffff_ffff, 5 * C + 512, zeros, COPIED | (9 << 40) | 512, 1, 0, zeros],
    );
    file.put(4 * C + 9 * 16, &[0, 1 << 3, 9 << 40, both]);
    let damaged = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let twice = "a subcluster is both allocated and zero";
    let nowhere = "subclusters are allocated, the cluster is not";
    let unaligned = |offset, data| Finding::Unaligned { offset, data, repaired: !data };
    let beyond = |offset| Finding::Beyond { offset, len: C };
    let found = [
        unaligned(5 * C + 512, false),
        unaligned((9 << 40) + 512, true),
        beyond((9 << 40) + 512),
        entry("L2 table", 9, 8, nowhere),
        entry("L2 table", 10, 9 << 40, twice),
        beyond(9 << 40),
        Finding::Dropped { entries: 2 },
        flag(5 * C, 1, true),
    ];
    assert_eq!(ran.findings, [&found[..], &[entry("L2 table", 9, 8, nowhere)]].concat());
    let report = Report {
        corruptions: 1,
        corruptions_fixed: 4,
        dropped: 2,
        total_clusters: 1024,
        allocated_clusters: 1,
        problems: vec![corrupt("L2 table", 9, 8, nowhere)],
        ..Report::default()
    };
    assert_eq!(ran.report, Ok(report));
    let unaligned = [(4 * C + 48, COPIED | (5 * C)), (4 * C + 64, 0)];
    // what led beyond the end keeps its zeros alone
    let dropped = [(4 * C + 80, 0), (4 * C + 88, 0), (4 * C + 160, 0), (4 * C + 168, 1 << 40)];
    assert_eq!(file.changes(&damaged), [&unaligned[..], &dropped].concat());
}

const DIRECTORY: u64 = 8 * K;

/// An entry of the bitmap directory: a bitmap with a bit for 64 KiB.
fn bitmap(table: u64, entries: u32, name: &[u8; 8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(table.to_be_bytes());
    bytes.extend(entries.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 1, 16, 0, 8, 0, 0, 0, 0]);
    bytes.extend(name);
    bytes
}

/// Two bitmaps, the second with its table at `table`: the first one's table has two clusters, from 9 on.
fn with_bitmaps(table: u64) -> File {
    let mut file = filled(Plan { bitmaps: Some((2, 64, DIRECTORY)), len: 14 * K, ..PLAN });
    file.put(BLOCK + 8 * 8, &[1; 6]);
    file.write(DIRECTORY, &bitmap(9 * K, 200, b"the long"));
    file.write(DIRECTORY + 32, &bitmap(table, 1, b"a single"));
    file.put(9 * K + 199 * 8, &[12 * K]);
    file.put(11 * K, &[13 * K]);
    file
}

#[test]
fn the_tables_of_bitmaps_are_read_whole() {
    let ran = run(&mut with_bitmaps(11 * K), None);
    assert_eq!((&ran.report, &ran.findings[..]), (&Ok(sound_report()), &[][..]));
    let bitmaps = [(DIRECTORY, 64), (9 * K, 1600), (11 * K, 8)];
    let walked = [(REFTABLE, 1024), (L1, 8), (L2, 1024)];
    assert_eq!(ran.reads()[..6], [walked, bitmaps].concat());
}

#[test]
fn entries_of_bitmaps_that_contradict_the_format_are_counted() {
    let mut file = with_bitmaps(11 * K);
    file.put(9 * K, &[1, 2, 12 * K + 512, 12 * K + 1]);
    let ran = run(&mut file, None);
    let (place, start) = ("bitmap table", "the bits do not begin at a cluster");
    let problems = vec![
        corrupt(place, 1, 2, RESERVED),
        corrupt(place, 2, 12 * K + 512, start),
        corrupt(place, 3, 12 * K + 1, RESERVED),
    ];
    let findings = [
        entry(place, 1, 2, RESERVED),
        entry(place, 2, 12 * K + 512, start),
        entry(place, 3, 12 * K + 1, RESERVED),
    ];
    assert_eq!(ran.findings, findings);
    assert_eq!(ran.report, Ok(Report { corruptions: 3, problems, ..sound_report() }));
}

#[test]
fn a_bitmap_beyond_2_to_the_63_ends_the_check() {
    let end = |index, value, what| Err(corrupt("bitmap directory", index, value, what));
    let far = "the table lies beyond 2^63";
    for table in [1 << 63, u64::MAX - 1023] {
        assert_eq!(run(&mut with_bitmaps(table), None).report, end(1, table, far), "{table:#x}");
    }
    // nearer, it lies beyond the end of the file, and has zeros
    for table in [1 << 40, 1 << 61, (1 << 63) - 1024] {
        let ran = run(&mut with_bitmaps(table), None);
        assert_eq!(ran.findings[0], Finding::Beyond { offset: table, len: 8 }, "{table:#x}");
        assert!(ran.io.contains(&IoOp::ReadTable { offset: table, len: 8 }), "{table:#x}");
        let report = ran.report.unwrap();
        assert_eq!((report.corruptions, report.leaks), (1, 2), "{table:#x}: its own clusters are free");
    }
    for (size, offset) in [(0, DIRECTORY), (64, 1 << 63), (0, 1 << 63)] {
        let mut file = with_bitmaps(11 * K);
        file.put(120, &[size, offset]);
        let report: Result<Report, Error> = run(&mut file, None).report;
        assert_eq!(report, end(0, offset, "does not exist"), "{size} at {offset:#x}");
    }
}
