//! What a repair of qcow2 makes of references beyond the end of the file, I/O by I/O and word by word.
//!
//! Checks: entries that lead there are dropped, with what they say besides; that is durable before a count
//! goes down or anything is placed; what cannot be dropped keeps its place and marks the image; an L1 table
//! that lies there is reached by a longer file.

use quod_states::qcow2::Finding;
use quod_states::{Error, IoOp, Repair, Report};
use quod_states_tests::sparse::*;

const FAR: u64 = 1 << 40;
const ZERO: u64 = 1;

fn beyond(offset: u64, len: u64) -> Finding {
    Finding::Beyond { offset, len }
}

fn place(offset: u64) -> Error {
    corrupt("reference", offset / K, offset, "goes beyond the end of the file")
}

fn is_sound(report: &Result<Report, Error>) -> bool {
    report.as_ref().is_ok_and(|report| report.is_sound() && report.leaks == 0)
}

/// Data, zeros with space, compressed data, and an L2 table that lie beyond the end.
fn with_entries(version: u32) -> File {
    let mut plan = Plan { l1: (L1, 2), size: 256 * K, version, ..PLAN };
    plan.order = if version == 2 { 4 } else { plan.order };
    let mut file = filled(plan);
    if version == 2 {
        file.put(BLOCK, &[0x0001_0001_0001_0001, 0x0001_0001_0001_0001, 0, 0, 0, 0, 0, 0]);
    }
    file.put(L1 + 8, &[COPIED | FAR]);
    // of compressed data two sectors, from the middle of the first
    // (version 2 has no zero flag, and its check says so when nothing else is wrong)
    let zero = if version == 2 { 0 } else { ZERO };
    file.put(L2 + 3 * 8, &[COPIED | (9 * K), FAR | zero, 1 << 62 | 1 << 60 | (FAR + 100), zero]);
    file
}

#[test]
fn entries_that_lead_there_are_dropped() {
    for version in [2, 3] {
        let mut file = with_entries(version);
        let damaged = file.clone();
        let found = [(9 * K, K), (FAR, K), (FAR + 100, 924), (FAR, K)];
        for repair in [None, Some(Repair::Leaks)] {
            let ran = run(&mut file, repair);
            let report = ran.report.unwrap();
            let flags = ran.findings.iter().filter(|f| matches!(f, Finding::Copied { .. })).count() as u64;
            assert_eq!((report.corruptions, report.corruptions_fixed), (4 + flags, 0), "{repair:?}");
            assert!(found.iter().all(|f| ran.findings.contains(&beyond(f.0, f.1))), "{repair:?}");
            assert_eq!(file, damaged, "{repair:?}");
        }
        let ran = run(&mut file, Some(Repair::All));
        let dropped = Finding::Dropped { entries: 4 };
        assert_eq!(ran.findings, [&found.map(|(offset, len)| beyond(offset, len))[..], &[dropped]].concat());
        assert_eq!(ran.changing(), [write(L2, 1024), write(L1, 1024), IoOp::Sync, IoOp::Sync]);
        let report = Report {
            corruptions_fixed: 4,
            dropped: 4,
            total_clusters: 256,
            allocated_clusters: 3,
            ..Report::default()
        };
        assert_eq!(ran.report, Ok(report));
        // zeros stay zeros where the version knows them
        let zeros = if version == 3 { ZERO } else { 0 };
        let changed = [(L1 + 8, 0), (L2 + 24, 0), (L2 + 32, zeros), (L2 + 40, 0)];
        assert_eq!(file.changes(&damaged), changed, "version {version}");
        let ran = run(&mut file, Some(Repair::All));
        assert_eq!((ran.changing(), ran.findings), (vec![], vec![]), "once is enough");
    }
}

/// Subclusters that were zero stay so; those that had data have none.
#[test]
fn of_a_split_cluster_the_zeros_stay() {
    const C: u64 = 16 * K;
    let plan = Plan {
        cluster_bits: 14,
        size: 1024 * C,
        l1: (3 * C, 1),
        reftable: (C, 1),
        incompatible: 16,
        len: 5 * C,
        ..PLAN
    };
    let mut file = plan.file();
    file.put(C, &[2 * C]);
    file.put(2 * C, &[1; 5]);
    file.put(3 * C, &[COPIED | (4 * C)]);
    let both = 0xf0 << 32 | 0x0f;
    file.put(4 * C, &[COPIED | FAR, both, COPIED | (9 * C), 0xffff_ffff]);
    let ran = run(&mut file, Some(Repair::All));
    assert!(is_sound(&ran.report), "{:?}", ran.report);
    let words: Vec<u64> = (0..4).map(|n| file.word(4 * C + n * 8)).collect();
    assert_eq!(words, [0, 0xf0 << 32, 0, 0]);
}

/// The snapshot's L1 table has an entry of its own that leads nowhere.
#[test]
fn entries_of_snapshots_are_dropped_too() {
    let mut file = filled(Plan { snapshots: (8 * K, 1), len: 10 * K, ..PLAN });
    file.write(8 * K, &snapshot((9 * K, 1), &complete(), b"1", b"s"));
    file.put(9 * K, &[FAR]);
    file.put(BLOCK + 8 * 8, &[1, 1]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.findings, [beyond(FAR, K), Finding::Dropped { entries: 1 }]);
    assert_eq!(ran.changing(), [write(9 * K, 1024), IoOp::Sync, IoOp::Sync]);
    assert!(is_sound(&ran.report) && file.word(9 * K) == 0);
}

/// An entry leads right behind the end of the file, where new refcounts go.
#[test]
fn what_led_there_is_gone_durably_before_anything_is_placed() {
    let mut file = sound();
    file.put(BLOCK + 5 * 8, &[0]);
    file.put(L2 + 3 * 8, &[COPIED | (8 * K)]);
    let ran = run(&mut file, Some(Repair::All));
    let first = [write(L2, 1024), IoOp::Sync, write(8 * K, 1024), IoOp::Sync, write(9 * K, 1024)];
    assert_eq!(ran.changing()[..5], first, "the block is where the entry led");
    assert!(is_sound(&ran.report) && file.word(L2 + 3 * 8) == 0, "{:?}", ran.report);
}

/// What an entry had counted behind the end comes free with it, later.
#[test]
fn its_count_goes_down_when_it_is_gone() {
    let mut file = sound();
    file.put(BLOCK + 9 * 8, &[1, 1]);
    file.put(L2 + 3 * 8, &[COPIED | (9 * K)]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.changing(), [write(L2, 1024), IoOp::Sync, write(BLOCK, 1024), IoOp::Sync]);
    assert!(is_sound(&ran.report), "{:?}", ran.report);
    assert_eq!([9, 10].map(|n| file.word(BLOCK + n * 8)), [0, 0], "nobody leads there");
}

/// A snapshot's L1 table lies behind the end of the file: new refcounts go before and behind it.
#[test]
fn what_is_not_dropped_keeps_its_place() {
    let mut file = filled(Plan { snapshots: (8 * K, 1), len: 9 * K, ..PLAN });
    file.write(8 * K, &snapshot((10 * K, 1), &complete(), b"1", b"s"));
    file.put(BLOCK + 5 * 8, &[0, 1, 1, 1]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((file.word(48), file.word(11 * K)), (11 * K, 9 * K), "table and block");
    assert!(ran.findings.contains(&beyond(10 * K, 8)));
    assert_eq!(file.word(72), 0, "the table is known whenever the image is opened");
}

/// The L2 table is the refcount block: its entries are counts, and cannot be dropped.
#[test]
fn an_entry_that_stays_marks_the_image() {
    let mut file = sound();
    file.put(L1, &[COPIED | BLOCK]);
    file.put(BLOCK + 100 * 8, &[COPIED | FAR]);
    let ran = run(&mut file, Some(Repair::All));
    let report = ran.report.unwrap();
    assert!(!report.is_sound() && report.problems.contains(&place(FAR)), "{report:?}");
    assert_eq!(file.word(72), 2, "corrupt");
    // its counts are elsewhere now, so it is a table like any other
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!((file.word(72), file.word(BLOCK + 100 * 8)), (0, 0), "{:?}", ran.report);
}

#[test]
fn an_l1_table_is_reached_by_a_longer_file() {
    let image = |at| filled(Plan { l1: (at, 1), ..PLAN });
    let grow = |op: &IoOp| matches!(op, IoOp::SetLen { .. });
    let mut file = image(16 * K);
    let ran = run(&mut file, None);
    assert!(ran.findings.contains(&beyond(16 * K, 8)) && ran.changing().is_empty());
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.changing()[0], IoOp::SetLen { len: 17 * K });
    assert!(ran.findings.contains(&beyond(16 * K, 8)) && is_sound(&ran.report), "{:?}", ran.report);
    assert!(file.len >= 17 * K);
    // where it fails, and where no full disk would reach, the table stays away, and its place its own
    for (at, fails) in [(16 * K, true), (FAR, false)] {
        let mut file = image(at);
        let ran = run_failing(&mut file, Some(Repair::All), |op| fails && grow(op));
        assert!(ran.report.is_ok_and(|report| report.problems.contains(&place(at))), "{at:#x}");
        assert_eq!(ran.io.iter().any(grow), fails, "{at:#x}");
    }
}

/// What is known of places is bounded: a check that has too many builds nothing new.
#[test]
fn too_many_places_are_too_many() {
    // 65 bitmaps of which each entry but every second one leads to a cluster of its own
    let (tables, entries) = (65 * 8, 8 * 128);
    let directory = 9 * K;
    let mut file = filled(Plan { bitmaps: Some((65, 65 * 32, directory)), len: (20 + tables) * K, ..PLAN });
    for n in 0..65 {
        let table = (16 + n * 8) * K;
        let mut bytes = Vec::new();
        bytes.extend(table.to_be_bytes());
        bytes.extend((entries as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 0, 1, 16, 0, 8, 0, 0, 0, 0]);
        bytes.extend(format!("bits{n:04}").as_bytes());
        file.write(directory + n * 32, &bytes);
        let bits: Vec<u64> = (0..entries).map(|m| (512 << 20) + (n * entries + m) * 2 * K).collect();
        file.put(table, &bits);
    }
    let ran = run(&mut file, Some(Repair::All));
    let what = "too many go beyond the end of the file: there is no safe place for new refcounts";
    assert_eq!(ran.report, Err(corrupt("reference", 0, (20 + tables) * K, what)));
    assert_eq!(ran.changing(), []);
}

/// An L1 entry leads to what is a guest's data: its bytes are no entries, however far they lead.
#[test]
fn data_that_is_taken_for_a_table_keeps_its_bytes() {
    for (l1, table, width) in [((L1, 2), L1 + 8, 4), ((L1, 2), L1 + 8, 0)] {
        let mut file = filled(Plan { l1, size: 256 * K, order: width, ..PLAN });
        if width == 4 {
            file.put(BLOCK, &[0x0001_0001_0001_0001, 0x0001_0001_0001_0001, 0, 0, 0, 0, 0, 0]);
        } else {
            file.put(BLOCK, &[0xff << 56, 0, 0, 0, 0, 0, 0, 0]);
        }
        file.put(table, &[COPIED | (6 * K)]);
        file.put(6 * K, &[0x7777_7777_7777_7600; 128]);
        file.put(L2 + 3 * 8, &[COPIED | FAR]);
        let ran = run(&mut file, Some(Repair::All));
        assert!(ran.report.is_ok_and(|report| !report.is_sound()));
        for n in 0..128 {
            assert_eq!(file.word(6 * K + n * 8) & !COPIED, 0x7777_7777_7777_7600, "word {n}");
        }
        assert_eq!(file.word(72), 2, "corrupt");
    }
}

/// A table that a snapshot shares is met twice, and its entries are dropped once.
#[test]
fn entries_of_shared_tables_are_dropped() {
    let mut file = filled(Plan { snapshots: (8 * K, 1), len: 10 * K, incompatible: 1, ..PLAN });
    file.write(8 * K, &snapshot((9 * K, 1), &complete(), b"1", b"s"));
    file.put(9 * K, &[L2]);
    file.put(L1, &[L2]);
    file.put(L2, &[5 * K, 6 * K, 7 * K, FAR]);
    file.put(BLOCK, &[1, 1, 1, 1, 2, 2, 2, 2, 1, 1]);
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.findings, [beyond(FAR, K), beyond(FAR, K), Finding::Dropped { entries: 2 }]);
    assert!(is_sound(&ran.report) && file.word(L2 + 24) == 0, "{:?}", ran.report);
    assert_eq!(file.word(72), 0, "and it is clean");
}
