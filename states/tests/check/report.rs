//! The check of a qcow2 image, to the last number and word, where `qcow2_check.rs` compares with qemu-img.
//!
//! Checks: a snapshot table whose entries say too little or too much is written anew, elsewhere, and its
//! counts are right; a refcount block beyond the end of the file is reached by a longer file; each damage has
//! its finding, its problem and its count; findings that nobody asks for are counted; what cannot be read
//! ends the check.

use quod_states::qcow2::{Check, CreateOptions, Finding};
use quod_states::{Error, IoOp, Machine, Op, Options, Outcome, Repair, Report, RequestKind};
use quod_states_tests::faults::{corrupt, fault};
use quod_states_tests::qcow2::{
    assert_sound, count, header, l1_entry, l2_entry, qcow2_file, set_count, set_l1_entry, set_l2_entry,
    snapshot,
};
use quod_states_tests::{Disk, request};

const CLUSTER: u64 = 4096;
const COPIED: u64 = 1 << 63;

/// Three clusters of data.
fn image(refcount_bits: u32) -> Vec<u8> {
    let create =
        CreateOptions { size: 1 << 20, cluster_size: 4096, refcount_bits, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 3 * CLUSTER, 0), vec![7; 3 * CLUSTER as usize]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    std::mem::take(&mut disk.file)
}

struct Found {
    report: Result<Report, Error>,
    findings: Vec<Finding>,
    steps: Vec<&'static str>,
    end: u64,
}

/// Runs a check; the first I/O that `fails` names fails.
fn run(file: &mut Vec<u8>, repair: Option<Repair>, fails: &str) -> Found {
    let mut check = Check::new(header(file), file.len() as u64, repair);
    let (mut findings, mut steps, mut failed) = (Vec::new(), Vec::new(), false);
    loop {
        findings.extend(std::iter::from_fn(|| check.poll_finding()));
        if let Some(report) = check.poll_result() {
            return Found { report, findings, steps, end: check.image_end() };
        }
        let io = check.poll_io().unwrap();
        let (step, bytes) = match io.op {
            IoOp::ReadTable { offset, len } => {
                let range = offset..offset + u64::from(len);
                ("read", range.map(|at| file.get(at as usize).copied().unwrap_or(0)).collect())
            }
            IoOp::WriteTable { offset: 0, .. } => ("header", vec![]),
            IoOp::WriteTable { .. } => ("table", vec![]),
            IoOp::Sync => ("sync", vec![]),
            _ => ("length", vec![]),
        };
        if step == fails && !failed {
            failed = true;
            check.handle_completion(io.id, Outcome::Failed(5));
            continue;
        }
        match io.op {
            IoOp::WriteTable { offset, len } => {
                let end = offset as usize + len as usize;
                file.resize(file.len().max(end), 0);
                check.encode(io.id, &mut file[offset as usize..end]);
            }
            IoOp::SetLen { len } => file.resize(len as usize, 0),
            _ => {}
        }
        if step != "read" {
            steps.push(step);
        }
        check.handle_completion(io.id, if step == "read" { Outcome::Table(&bytes) } else { Outcome::Done });
    }
}

fn be(file: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(file[at as usize..][..8].try_into().unwrap())
}

fn put(file: &mut [u8], at: u64, bytes: &[u8]) {
    file[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn change_l2(file: &mut [u8], guest: u64, change: fn(u64) -> u64) {
    let entry = change(l2_entry(file, guest));
    set_l2_entry(file, guest, entry);
}

fn change_l1(file: &mut [u8], change: fn(u64) -> u64) {
    let entry = change(l1_entry(file, 0));
    set_l1_entry(file, 0, entry);
}

#[test]
fn a_sound_image_is_counted() {
    let mut file = image(16);
    let found = run(&mut file, Some(Repair::All), "");
    let sound = Report { total_clusters: 256, allocated_clusters: 3, ..Report::default() };
    assert_eq!((found.report, found.findings, found.steps), (Ok(sound), vec![], vec![]));
    assert_eq!(found.end, file.len() as u64);
}

/// With entries of version 2 in an image of version 3, and one with too much extra data.
#[test]
fn a_snapshot_table_is_written_anew_elsewhere() {
    for (extra, cut) in [(0, false), (8, false), (2000, true)] {
        let mut file = image(16);
        snapshot(&mut file);
        let old = header(&file).snapshots_offset;
        let mut entry = file[old as usize..][..40].to_vec();
        entry[36..40].copy_from_slice(&u32::to_be_bytes(extra));
        entry.resize(40 + extra as usize, 0);
        if extra >= 16 {
            entry[48..56].copy_from_slice(&(1u64 << 20).to_be_bytes());
        }
        entry.extend(b"1s");
        // two entries: the second begins at a multiple of eight
        let second = entry.len().next_multiple_of(8);
        entry.resize(second, 0);
        let mut both = [&entry[..], &entry[..]].concat();
        // and has no L1 table
        both[second + 8..second + 12].fill(0);
        file[old as usize..][..both.len()].copy_from_slice(&both);
        put(&mut file, 60, &2u32.to_be_bytes());
        let before = file.clone();
        let found = run(&mut file, None, "");
        if cut {
            let what = "too much extra data";
            assert_eq!(found.report, Err(corrupt("snapshot table", 0, 2000, what)));
        } else {
            assert!(found.report.is_ok_and(|report| report.corruptions >= 2));
        }
        assert!(file == before, "without a repair nothing is written");
        let found = run(&mut file, Some(Repair::All), "");
        let report = found.report.unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{report:?}");
        let new = header(&file).snapshots_offset;
        assert!(new != old && new.is_multiple_of(CLUSTER));
        assert_eq!((count(&file, old / CLUSTER), count(&file, new / CLUSTER)), (0, 1));
        assert_sound(&file, "written anew");
        let len = 40 + if cut { 1024 } else { 16 };
        let step = (len + 2u64).next_multiple_of(8);
        for at in [new, new + step] {
            assert_eq!(be(&file, at + 48), 1 << 20, "the disk's size is known now");
            assert_eq!(&file[(at + len) as usize..][..2], b"1s");
        }
        assert_eq!(found.steps.iter().filter(|step| **step == "header").count(), 1);
    }
}

#[test]
fn a_block_beyond_the_end_is_reached_by_a_longer_file() {
    // blocks count 512 clusters of 64 bits: the second one would count from 2 MiB on
    let damaged = || {
        let mut file = image(64);
        let table = header(&file).reftable_offset;
        put(&mut file, table + 8, &(3u64 << 20).to_be_bytes());
        file
    };
    let what = "the block lies beyond the end of the file";
    let problem = corrupt("refcount table", 1, 3 << 20, what);
    let mut file = damaged();
    let found = run(&mut file, None, "");
    let report = found.report.unwrap();
    assert_eq!((report.corruptions, &report.problems[..]), (1, &[problem][..]));
    assert_eq!(found.findings, [Finding::BlockBeyond { index: 1, repaired: false }]);
    let found = run(&mut file, Some(Repair::All), "");
    assert_eq!(found.findings[0], Finding::BlockBeyond { index: 1, repaired: true });
    let report = found.report.unwrap();
    // it does not count itself, so all counts are written anew after that, and nothing needs that length
    assert_eq!((report.corruptions, report.leaks, file.len()), (0, 0, (2 << 20) + 4096));
    assert_eq!((found.steps[0], found.steps[found.steps.len() - 1]), ("length", "length"));
    assert_sound(&file, "longer");
    // where the file cannot get longer, all counts are written anew
    let mut file = damaged();
    let found = run(&mut file, Some(Repair::All), "length");
    assert!(found.findings.contains(&Finding::Rebuild { repaired: true }), "{:?}", found.findings);
    assert!(found.report.is_ok_and(|report| report.is_sound() && report.leaks == 0));
    assert_sound(&file, "rebuilt");
}

/// A damage, what is said of it, and how many corruptions and leaks that makes.
type Case = (fn(&mut Vec<u8>), Finding, u64, u64);

fn judge(cases: &[Case]) {
    for (damage, finding, corruptions, leaks) in cases {
        let mut file = image(16);
        damage(&mut file);
        let found = run(&mut file, None, "");
        let report = found.report.unwrap();
        assert!(found.findings.contains(finding), "{finding:?}: {:?}", found.findings);
        assert_eq!((report.corruptions, report.leaks), (*corruptions, *leaks), "{finding:?}: {report:?}");
        assert_eq!(report.problems.len() as u64, *corruptions, "a leak is no problem: {report:?}");
    }
}

fn flag(l1_index: Option<u64>, entry: u64) -> Finding {
    Finding::Copied { l1_index, entry, refcount: 1, repaired: false }
}

#[test]
fn each_damage_of_an_entry_has_its_finding_its_problem_and_its_count() {
    let sound = image(16);
    let (table, data) = (l1_entry(&sound, 0) & !COPIED, l2_entry(&sound, 0) & !COPIED);
    let reserved = |place, index, value| {
        let what = "reserved bits are set";
        Finding::Fault(fault(place, index, value, what))
    };
    let l2 = reserved("L2 table", 1, 1 << 57 | COPIED | (data + CLUSTER));
    let l1 = reserved("L1 table", 0, 1 | COPIED | table);
    let unaligned = Finding::Unaligned { offset: data + 512, data: true, repaired: false };
    // and the copied flag is wrong, too
    let beyond = Finding::Beyond { offset: 1 << 40, len: CLUSTER };
    judge(&[
        (|file| change_l2(file, CLUSTER, |entry| entry | 1 << 57), l2, 1, 0),
        (|file| change_l1(file, |entry| entry | 1), l1, 1, 0),
        (|file| change_l2(file, 0, |entry| entry | 512), unaligned, 2, 0),
        (|file| set_l2_entry(file, 0, COPIED | 1 << 40), beyond, 2, 1),
        (|file| change_l2(file, 0, |entry| entry & !COPIED), flag(None, data), 1, 0),
        (|file| change_l1(file, |entry| entry & !COPIED), flag(Some(0), table), 1, 0),
    ]);
}

#[test]
fn each_wrong_count_has_its_finding() {
    let count = |stored| Finding::Refcount { cluster: 1, stored, computed: 1, repaired: false };
    judge(&[(|file| set_count(file, 1, 3), count(3), 0, 1), (|file| set_count(file, 1, 0), count(0), 1, 0)]);
}

#[test]
fn findings_that_nobody_asks_for_are_counted() {
    let create = CreateOptions { size: 1 << 30, cluster_size: 1 << 20, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![7; 512]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    // every entry of the table leads beyond the end: 131072 of them
    let at = quod_states_tests::qcow2::l2_at(&disk.file, 0).unwrap() as usize;
    for entry in disk.file[at..at + (1 << 20)].as_chunks_mut::<8>().0 {
        *entry = (COPIED | 1 << 50).to_be_bytes();
    }
    let mut check = Check::new(header(&disk.file), disk.file.len() as u64, None);
    while check.poll_result().is_none_or(|report| report.unwrap().problems.len() != 64) {
        let io = check.poll_io().unwrap();
        let IoOp::ReadTable { offset, len } = io.op else { panic!("a check without repair only reads") };
        let bytes: Vec<u8> = (offset..offset + u64::from(len))
            .map(|at| disk.file.get(at as usize).copied().unwrap_or(0))
            .collect();
        check.handle_completion(io.id, Outcome::Table(&bytes));
    }
    let findings: Vec<Finding> = std::iter::from_fn(|| check.poll_finding()).collect();
    assert_eq!(findings.len(), (1 << 16) + 1);
    // 131072 that lead nowhere, with the copied flag set; one leak where data was
    assert_eq!(findings.last(), Some(&Finding::More(2 * (1 << 17) + 1 - (1 << 16))));
    assert_eq!(check.poll_finding(), None);
}

#[test]
fn what_cannot_be_read_or_written_ends_the_check() {
    let device = |offset| Err(Error::Device { op: Op::Check, offset, errno: 5 });
    let reftable = header(&image(16)).reftable_offset;
    assert_eq!(run(&mut image(16), None, "read").report, device(reftable));
    let mut file = image(16);
    set_count(&mut file, 1, 0);
    let failed = run(&mut file.clone(), Some(Repair::All), "table").report.unwrap_err();
    assert!(matches!(failed, Error::Device { op: Op::Check, offset: 1.., errno: 5 }), "{failed}");
    assert!(run(&mut file, Some(Repair::All), "sync").report.is_err());
}
