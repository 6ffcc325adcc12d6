//! The check of a QED image, to the last number.
//!
//! Checks: every field of the report and every problem's words, for tables of more than one chunk and files
//! of many clusters; what a repair writes, in which order; what I/O that fails leaves behind.

use quod_states::qed::{Check, Header};
use quod_states::{Error, IoOp, Machine, Op, Outcome, Repair, Report};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qed_file;

/// Tables of 16 clusters: 16384 entries, read in two chunks.
const CLUSTER: u64 = 8192;
const L1: u64 = CLUSTER;
const T1: u64 = 17 * CLUSTER;
const T2: u64 = 33 * CLUSTER;
const CLUSTERS: u64 = 5000;
const NEED_CHECK: u8 = 2;

fn set(file: &mut [u8], table: u64, index: u64, entry: u64) {
    file[(table + index * 8) as usize..][..8].copy_from_slice(&entry.to_le_bytes());
}

fn get(file: &[u8], table: u64, index: u64) -> u64 {
    u64::from_le_bytes(file[(table + index * 8) as usize..][..8].try_into().unwrap())
}

/// Two tables with six clusters, and space that nobody uses.
fn image(dirty: bool) -> Vec<u8> {
    let mut file = qed_file(2 << 40, CLUSTER as u32, 16, None);
    file.resize((CLUSTERS * CLUSTER) as usize + 100, 0);
    set(&mut file, L1, 0, T1);
    set(&mut file, L1, 9000, T2);
    for (index, cluster) in [(0, 50), (1, 51), (2, 60), (9000, 4200)] {
        set(&mut file, T1, index, cluster * CLUSTER);
    }
    set(&mut file, T1, 7, 1);
    set(&mut file, T2, 8300, 1);
    set(&mut file, T2, 0, 4201 * CLUSTER);
    set(&mut file, T2, 5, 4300 * CLUSTER);
    file[16] |= if dirty { NEED_CHECK } else { 0 };
    file
}

/// What can be repaired: an entry in each chunk of each kind of table.
fn damage(file: &mut [u8]) {
    set(file, T1, 3, 6000 * CLUSTER);
    set(file, T2, 16300, 12345);
    set(file, L1, 10, CLUSTERS * CLUSTER);
    set(file, L1, 16000, T2 + 512);
}

/// Runs it; the n-th I/O that `fails` picks fails. The report, and what was done.
fn run(
    file: &mut Vec<u8>,
    repair: Option<Repair>,
    fails: impl Fn(&IoOp) -> bool,
) -> (Result<Report, Error>, Vec<&'static str>) {
    let header = Header::parse(&file[..512], file.len() as u64).unwrap();
    let mut check = Check::new(header, file.len() as u64, repair);
    let mut done = Vec::new();
    loop {
        if let Some(report) = check.poll_result() {
            return (report, done);
        }
        let io = check.poll_io().unwrap();
        if fails(&io.op) {
            check.handle_completion(io.id, Outcome::Failed(5));
            continue;
        }
        match io.op {
            IoOp::ReadTable { offset, len } => {
                assert!(len <= 65536);
                let bytes = file[offset as usize..][..len as usize].to_vec();
                check.handle_completion(io.id, Outcome::Table(&bytes));
                continue;
            }
            IoOp::WriteTable { offset, len } => {
                check.encode(io.id, &mut file[offset as usize..][..len as usize]);
                done.push(if offset == 0 { "header" } else { "table" });
            }
            IoOp::Sync => done.push("sync"),
            IoOp::SetLen { len } => {
                file.truncate(len as usize);
                done.push("trim");
            }
            other => panic!("{other:?}"),
        }
        check.handle_completion(io.id, Outcome::Done);
    }
}

fn never(_: &IoOp) -> bool {
    false
}

fn problems() -> Vec<Error> {
    let (l1, l2) = ("L1 table", "L2 table, guest cluster");
    vec![
        corrupt(l2, 3, 6000 * CLUSTER, "data cluster lies beyond the end of the file"),
        corrupt(l1, 10, CLUSTERS * CLUSTER, "L2 table lies beyond the end of the file"),
        corrupt(l2, 9000 * 16384 + 16300, 12345, "data offset is not aligned to a cluster"),
        corrupt(l1, 16000, T2 + 512, "L2 table offset is not aligned to a cluster"),
    ]
}

/// The report on the image as it is.
fn sound() -> Report {
    Report {
        leaks: CLUSTERS - 1 - 3 * 16 - 6,
        total_clusters: (2 << 40) / CLUSTER,
        allocated_clusters: 6,
        fragmented_clusters: 3,
        ..Report::default()
    }
}

#[test]
fn a_sound_image_is_counted_and_its_tail_given_back() {
    let mut file = image(false);
    assert_eq!(run(&mut file, None, never), (Ok(sound()), vec![]));
    let trimmed = Report { leaks: sound().leaks - 699, leaks_fixed: 699, ..sound() };
    assert_eq!(run(&mut file, Some(Repair::All), never), (Ok(trimmed.clone()), vec!["trim"]));
    assert_eq!(file.len() as u64, 4301 * CLUSTER);
    // nothing behind the last cluster is left to give back
    let left = Report { leaks_fixed: 0, ..trimmed };
    assert_eq!(run(&mut file, Some(Repair::All), never), (Ok(left), vec![]));
    let dirty = run(&mut image(true), Some(Repair::All), never);
    assert_eq!(dirty.1, ["trim", "sync", "header", "sync"], "durable before the bit is cleared");
}

/// They have the same place in what the check remembers, but for one part of it.
#[test]
fn clusters_far_apart_are_not_taken_for_one() {
    let mut file = image(false);
    for (index, cluster) in [(20, 50 + 64), (21, 50 + 4096), (22, 50 + 64 + 4096)] {
        set(&mut file, T2, index, cluster * CLUSTER);
    }
    let report = run(&mut file, None, never).0.unwrap();
    assert_eq!((report.corruptions, report.leaks, report.allocated_clusters), (0, sound().leaks - 3, 9));
}

#[test]
fn bad_entries_are_named_and_repaired() {
    let mut file = image(true);
    damage(&mut file);
    let found = Report {
        corruptions: 4,
        allocated_clusters: 8,
        fragmented_clusters: 5,
        problems: problems(),
        ..sound()
    };
    assert_eq!(run(&mut file, None, never), (Ok(found.clone()), vec![]));
    let fixed =
        Report { corruptions: 0, corruptions_fixed: 4, leaks: found.leaks - 699, leaks_fixed: 699, ..found };
    let order = ["table", "table", "table", "table", "sync", "trim", "sync", "header", "sync"];
    assert_eq!(run(&mut file, Some(Repair::All), never), (Ok(fixed), order.to_vec()));
    let mut expected = image(false);
    expected.truncate((4301 * CLUSTER) as usize);
    assert!(file == expected, "the bad entries are 0, the rest is as it was");
}

#[test]
fn what_two_refer_to_is_not_repaired() {
    let mut file = image(true);
    set(&mut file, T1, 4, 51 * CLUSTER);
    set(&mut file, L1, 11, T2);
    let twice =
        |cluster, value| corrupt("cluster of the file", cluster, value, "is referred to more than once");
    let mut problems = vec![twice(51, 51 * CLUSTER)];
    // the first of the two is as good as the other: its clusters belong to the lower index
    problems.extend((33..49).map(|cluster| twice(cluster, T2)));
    let report =
        Report { corruptions: 17, allocated_clusters: 7, fragmented_clusters: 4, problems, ..sound() };
    for repair in [None, Some(Repair::All)] {
        let (found, done) = run(&mut file, repair, never);
        assert_eq!((found, done), (Ok(report.clone()), vec![]));
    }
    assert_eq!((file[16] & NEED_CHECK, get(&file, T1, 4)), (NEED_CHECK, 51 * CLUSTER));
}

/// Clusters one behind the other are counted at once, and told one by one where they are not sound.
#[test]
fn a_row_of_clusters_is_sound_but_for_those_that_are_not() {
    let mut file = image(true);
    // the last ten lie beyond the end of the file; two are data of others
    (0..20).for_each(|n| set(&mut file, T1, 100 + n, (CLUSTERS - 10 + n) * CLUSTER));
    (0..11).for_each(|n| set(&mut file, T1, 200 + n, (49 + n) * CLUSTER));
    let beyond = |n| {
        let what = "data cluster lies beyond the end of the file";
        corrupt("L2 table, guest cluster", 100 + n, (CLUSTERS - 10 + n) * CLUSTER, what)
    };
    let twice =
        |cluster| corrupt("cluster of the file", cluster, cluster * CLUSTER, "is referred to more than once");
    let report = Report {
        corruptions: 12,
        leaks: sound().leaks - 10 - 9,
        allocated_clusters: 6 + 20 + 11,
        fragmented_clusters: 3 + 2,
        problems: (10..20).map(beyond).chain([twice(50), twice(51)]).collect(),
        ..sound()
    };
    assert_eq!(run(&mut file, None, never), (Ok(report.clone()), vec![]));
    let fixed = Report { corruptions: 2, corruptions_fixed: 10, ..report };
    assert_eq!(run(&mut file, Some(Repair::All), never), (Ok(fixed), vec!["table", "sync"]));
    let left = (0..20).map(|n| get(&file, T1, 100 + n)).filter(|entry| *entry != 0);
    assert!(left.eq((CLUSTERS - 10..CLUSTERS).map(|cluster| cluster * CLUSTER)));
}

#[test]
fn only_so_many_problems_are_described() {
    let mut file = image(false);
    for index in 100..200 {
        set(&mut file, T1, index, 513);
    }
    let report = run(&mut file, None, never).0.unwrap();
    assert_eq!((report.corruptions, report.problems.len()), (100, 64));
    assert!(!report.is_sound());
}

#[test]
fn what_cannot_be_read_is_told() {
    let device = |op, offset| Error::Device { op, offset, errno: 5 };
    for (chunk, at, allocated, fragmented) in [(T1, T1, 2, 1), (T1 + 65536, T1 + 65536, 5, 2), (T2, T2, 4, 2)]
    {
        let fails = |op: &IoOp| matches!(op, IoOp::ReadTable { offset, .. } if *offset == chunk);
        let report = Report {
            check_errors: 1,
            leaks: 0,
            allocated_clusters: allocated,
            fragmented_clusters: fragmented,
            problems: vec![device(Op::CheckL2, at)],
            ..sound()
        };
        assert_eq!(run(&mut image(true), Some(Repair::All), fails), (Ok(report), vec![]), "{chunk}");
    }
    let l1 = |op: &IoOp| matches!(op, IoOp::ReadTable { offset, .. } if *offset == L1 + 65536);
    assert_eq!(run(&mut image(false), None, l1).0, Err(device(Op::Check, L1)));
    // space that cannot be given back is a leak as before
    let trim = |op: &IoOp| matches!(op, IoOp::SetLen { .. });
    assert_eq!(run(&mut image(false), Some(Repair::All), trim), (Ok(sound()), vec![]));
    let write = |op: &IoOp| matches!(op, IoOp::WriteTable { .. });
    assert_eq!(run(&mut image(true), Some(Repair::All), write).0, Err(device(Op::Check, L1)));
}
