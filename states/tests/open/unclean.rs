//! What opening promises about images that were not closed, are damaged, or lie.
//!
//! Checks: a dirty image is repaired, durably, before it is ready (QE6); one that is open for reading only is
//! not touched; what cannot be repaired keeps its bit (trap Q7); a partial last cluster is never used (QE7);
//! unknown autoclear bits go before a repair.

use quod_states::{Error, IoOp, Machine, Opening, Options, Outcome, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::{Disk, qed_file, request};

const CLUSTER: u64 = 65536;
/// Byte of the header's features, and the bit.
const FEATURES: usize = 16;
const NEED_CHECK: u8 = 2;
/// With tables of one cluster: header, L1 table, L2 table, and the first data cluster.
const L1: usize = CLUSTER as usize;
const L2: usize = 2 * CLUSTER as usize;
const DATA: u64 = 3 * CLUSTER;

/// An image whose guest clusters are mapped to these host offsets.
fn image(entries: &[u64], dirty: bool) -> Vec<u8> {
    let mut file = qed_file(1 << 30, CLUSTER as u32, 1, None);
    file.resize(DATA as usize + CLUSTER as usize, 0xaa);
    file[L2..DATA as usize].fill(0);
    file[L1..L1 + 8].copy_from_slice(&(L2 as u64).to_le_bytes());
    for (n, entry) in entries.iter().enumerate() {
        file[L2 + n * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    file[FEATURES] |= if dirty { NEED_CHECK } else { 0 };
    file
}

/// The kinds of write and sync that the opening asks for, in order.
fn order(file: &[u8], options: Options) -> Vec<&'static str> {
    let mut opening = Opening::new(None, file.len() as u64, options);
    let mut order = Vec::new();
    while let Some(io) = opening.poll_io() {
        let outcome = match io.op {
            IoOp::ReadTable { offset, len } => {
                let bytes = &file[offset as usize..][..len as usize];
                opening.handle_completion(io.id, Outcome::Table(bytes));
                continue;
            }
            IoOp::WriteTable { offset: 0, .. } => "header",
            IoOp::WriteTable { .. } => "table",
            IoOp::Sync => "sync",
            IoOp::SetLen { .. } => "trim",
            _ => "other",
        };
        order.push(outcome);
        opening.handle_completion(io.id, Outcome::Done);
    }
    assert!(opening.poll_result().is_some_and(|result| result.is_ok()), "ends, and well");
    order
}

#[test]
fn a_dirty_image_is_repaired_before_it_is_ready() {
    let beyond = 100 * CLUSTER;
    let file = image(&[DATA, beyond], true);
    assert_eq!(order(&file, Options::default()), ["table", "sync", "header", "sync"]);
    let mut disk = Disk::new(file, None, 1);
    let mut opened = disk.open(Options::default()).unwrap();
    let report = opened.report.expect("a report of the check");
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    assert!(opened.info.dirty, "it was");
    assert_eq!(disk.file[FEATURES] & NEED_CHECK, 0);
    let read = disk.run(&mut opened.image, request(RequestKind::Read, 0, 2 * CLUSTER, 0), vec![1; 2 * L1]);
    assert!(read[..L1].iter().all(|byte| *byte == 0xaa), "the good entry stays");
    assert!(read[L1..].iter().all(|byte| *byte == 0), "the bad one is unallocated now");
}

#[test]
fn a_dirty_image_that_is_only_read_is_not_touched() {
    let file = image(&[DATA], true);
    let options = Options::default().read_only(true);
    assert_eq!(order(&file, options), [""; 0]);
    let mut disk = Disk::new(file.clone(), None, 1);
    let mut opened = disk.open(options).unwrap();
    disk.run(&mut opened.image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert!(disk.file == file);
}

#[test]
fn what_cannot_be_repaired_keeps_the_bit() {
    let mut disk = Disk::new(image(&[DATA, DATA], true), None, 1);
    let mut opened = disk.open(Options::default()).unwrap();
    assert_eq!(opened.report.map(|report| report.corruptions), Some(1), "one cluster, two owners");
    disk.run(&mut opened.image, request(RequestKind::Write, 5 * CLUSTER, 512, 0), vec![3; 512]);
    disk.run(&mut opened.image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert_eq!(disk.file[FEATURES] & NEED_CHECK, NEED_CHECK, "neither quiesce nor close may clear it");
}

#[test]
fn trailing_space_is_given_back_to_a_sound_image_only() {
    let mut grown = image(&[DATA], true);
    grown.resize(64 * L1, 0);
    assert_eq!(order(&grown, Options::default()), ["trim", "sync", "header", "sync"]);
    let mut damaged = image(&[DATA, DATA], true);
    damaged.resize(64 * L1, 0);
    assert_eq!(order(&damaged, Options::default()), [""; 0]);
}

#[test]
fn a_partial_last_cluster_is_never_used() {
    let mut file = image(&[DATA], false);
    file.extend([0xbb; 700]);
    let mut disk = Disk::new(file, None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 9 * CLUSTER + 512, 512, 0), vec![4; 512]);
    let read = disk.run(&mut image, request(RequestKind::Read, 9 * CLUSTER, CLUSTER, 0), vec![9; L1]);
    assert_eq!(read.iter().filter(|byte| **byte == 4).count(), 512);
    assert!(read.iter().all(|byte| *byte == 4 || *byte == 0), "nothing of what stood there shows");
}

#[test]
fn an_entry_past_the_end_of_a_clean_image_is_an_error_with_its_place() {
    let mut disk = Disk::new(image(&[100 * CLUSTER], false), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    disk.submit(&mut image, request(RequestKind::Read, 0, 512, 0), vec![0; 512]).unwrap();
    while !disk.pending.is_empty() {
        disk.complete(&mut image, 0);
    }
    let (_, result, ..) = disk.done.pop().unwrap();
    assert!(
        matches!(result, Err(Error::Corrupt(fault)) if fault.numbers() == (0, 100 * CLUSTER)),
        "{result:?}"
    );
}

#[test]
fn unknown_autoclear_bits_are_cleared_durably_before_a_repair_only() {
    let mut file = image(&[DATA], true);
    file[32] = 4;
    assert_eq!(order(&file, Options::default()), ["header", "sync", "header", "sync"]);
    assert_eq!(order(&file, Options::default().read_only(true)), [""; 0]);
    file[FEATURES] &= !NEED_CHECK;
    assert_eq!(order(&file, Options::default()), [""; 0]);
}

/// Whole clusters alone are written to a file: a copy that was cut off within one is searched first.
#[test]
fn a_file_cut_off_within_a_cluster_is_refused_if_entries_lead_behind_it() {
    let cut = |entries: &[u64]| {
        let mut file = image(entries, false);
        file.extend([0xbb; 700]);
        file
    };
    assert_eq!(order(&cut(&[DATA, 1, 0]), Options::default()), [""; 0], "nothing leads there");
    for beyond in [DATA + CLUSTER, 100 * CLUSTER] {
        let file = cut(&[DATA, beyond]);
        let len = file.len() as u64;
        let mut disk = Disk::new(file.clone(), None, 1);
        let what = "the file is cut off within it, and entries lead beyond its end: check the image";
        let (place, index) = ("cluster of the file", len / CLUSTER);
        let error = disk.open(Options::default()).err();
        assert_eq!(error, Some(corrupt(place, index, len, what)));
        assert!(disk.open(Options::default().read_only(true)).is_ok());
        assert!(disk.file == file, "nothing was written");
        // a repair drops what leads there
        disk.file[FEATURES] |= NEED_CHECK;
        assert_eq!(disk.open(Options::default()).unwrap().report.unwrap().corruptions_fixed, 1);
        assert!(disk.open(Options::default()).is_ok());
    }
}
