//! A repair does not write an L2 table that lies on other metadata.
//!
//! Checks: for each cluster of an image with every kind of table, of one cluster and of several: with an L2
//! table there, an entry that could be repaired is repaired exactly when nothing else is in that cluster;
//! flags are not corrected in what is also a table of a bitmap, nor in an L1 table that lies on other
//! metadata, be it new.

use quod_states::qcow2::Finding;
use quod_states::{IoOp, Repair};
use quod_states_tests::sparse::*;

/// Zeros that keep space which does not begin at a cluster: a repair lets go of the space.
const BAD: u64 = 20 * K + 512 + 1;
/// What it makes of them: zeros without space.
const ZEROS: u64 = 1;
/// The last word of a cluster.
const LAST: u64 = K - 8;

/// By clusters: header, 1 to 3 refcount table, 4 a block, 5 to 7 active L1 table, 9 snapshot table, 10 to 12
/// a snapshot's L1 table, 15 another block, 17 a bitmap's directory, 19 its table. Nothing is in the others.
fn image(snapshots: &[Vec<u8>]) -> File {
    let plan = Plan {
        size: 300 * 128 * K,
        l1: (5 * K, 300),
        reftable: (K, 3),
        snapshots: (9 * K, snapshots.len() as u32),
        bitmaps: Some((1, 32, 17 * K)),
        len: 24 * K,
        ..PLAN
    };
    let mut file = plan.file();
    file.put(K, &[4 * K, 15 * K]);
    file.put(4 * K, &[1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1]);
    file.put(17 * K, &[19 * K, 1 << 32, 0x0110_0008_0000_0000, u64::from_be_bytes(*b"a bitmap")]);
    file.write(9 * K, &snapshots.concat());
    file
}

/// Makes the guest's first L2 table lie at `offset`, with an entry that could be repaired at its end. Whether
/// it was.
fn repaired(mut file: File, offset: u64) -> bool {
    file.put(5 * K, &[COPIED | offset]);
    file.put(offset + LAST, &[BAD]);
    let ran = run(&mut file, Some(Repair::All));
    let unaligned = |finding: &Finding| match *finding {
        Finding::Unaligned { offset: 0x5200, data: false, repaired } => Some(repaired),
        Finding::Unaligned { .. } => panic!("{finding:?}"),
        _ => None,
    };
    let told: Vec<bool> = ran.findings.iter().filter_map(unaligned).collect();
    // what is not repaired is found by each run
    assert!(told == [true] || !told.is_empty() && !told.contains(&true), "{offset:#x}: {told:?}");
    // where all counts were built anew elsewhere, the flag may be corrected after that
    assert_eq!(file.word(offset + LAST) & !COPIED, if told[0] { ZEROS } else { BAD }, "{offset:#x}");
    assert_eq!(ran.changing().first() == Some(&write(offset, 1024)), told[0], "{offset:#x}");
    told[0]
}

#[test]
fn an_l2_table_that_lies_on_other_metadata_is_not_written() {
    let with_table = snapshot((10 * K, 300), &complete(), b"1", b"one");
    for cluster in 0..24 {
        // where bitmaps have tables is not known yet, and what is right in those is right here, too
        let alone = matches!(cluster, 8 | 13 | 14 | 16 | 18..);
        assert_eq!(
            repaired(image(std::slice::from_ref(&with_table)), cluster * K),
            alone,
            "cluster {cluster}"
        );
    }
    // not at a cluster: no place for a table
    assert!(!repaired(image(&[with_table]), 13 * K + 512));
}

/// Nowhere is anything of it, wherever it is said to begin.
#[test]
fn a_table_without_entries_overlaps_nothing() {
    for offset in [16 * K, 16 * K + 512] {
        let without = snapshot((offset, 0), &complete(), b"1", b"one");
        assert!(repaired(image(&[without]), 16 * K), "{offset:#x}");
    }
}

/// Where a count has one bit, it is 1 for what is referred to twice.
#[test]
fn flags_are_not_corrected_in_the_table_of_a_bitmap() {
    let plan = Plan { order: 0, size: 256 * K, l1: (L1, 2), bitmaps: Some((1, 32, 8 * K)), ..PLAN };
    let mut file = filled(Plan { len: 11 * K, ..plan });
    file.put(BLOCK, &[0xff07 << 48, 0, 0, 0, 0, 0, 0, 0]);
    file.put(8 * K, &[9 * K, 1 << 32, 0x0110_0008_0000_0000, u64::from_be_bytes(*b"a bitmap")]);
    file.put(9 * K, &[10 * K]);
    file.put(L1 + 8, &[COPIED | (9 * K)]);
    let before = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let overflow = |cluster| Finding::Overflow { offset: cluster * K };
    let flag = Finding::Copied { l1_index: None, entry: 10 * K, refcount: 1, repaired: false };
    assert_eq!(ran.findings, [overflow(9), overflow(10), flag]);
    assert_eq!((ran.changing(), file.changes(&before)), (vec![], vec![]));
}

/// The L1 table is the snapshot table, too: what would be a flag belongs to the snapshot's name.
#[test]
fn flags_are_not_corrected_in_an_l1_table_that_lies_on_other_metadata() {
    let mut file = filled(Plan { size: 1024 * K, l1: (L1, 8), snapshots: (L1, 1), ..PLAN });
    let name = [0xc3, 0xa9, b't', 0xc3, 0xa9];
    file.write(L1, &snapshot((0, 0), &complete(), b"", &name));
    let before = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let word = u64::from_be_bytes([0xc3, 0xa9, b't', 0xc3, 0xa9, 0, 0, 0]);
    let flag = Finding::Copied { l1_index: Some(7), entry: word, refcount: 0, repaired: false };
    assert!(ran.findings.contains(&flag), "{:?}", ran.findings);
    let changes = file.changes(&before);
    // words of the table that lead beyond the end stay as well: the image is marked corrupt
    assert!(changes.iter().all(|(at, _)| *at / K == BLOCK / K || *at == 72), "{changes:x?}");
}

/// A bitmap has its table where the last entry of the L1 table is, in that one's second cluster.
#[test]
fn flags_are_not_corrected_in_an_l1_table_whose_end_lies_on_other_metadata() {
    let plan = Plan { size: 129 * 128 * K, l1: (8 * K, 129), bitmaps: Some((1, 32, 11 * K)), ..PLAN };
    let mut file = filled(Plan { len: 12 * K, ..plan });
    file.put(8 * K, &[L2]);
    file.put(11 * K, &[9 * K, 1 << 32, 0x0110_0008_0000_0000, u64::from_be_bytes(*b"a bitmap")]);
    file.put(BLOCK, &[1, 1, 1, 0, 1, 1, 1, 1, 1, 2, 0, 1]);
    let before = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    let flag = Finding::Copied { l1_index: Some(0), entry: L2, refcount: 1, repaired: false };
    assert_eq!((ran.findings, file.changes(&before)), (vec![flag], vec![]));
}

/// The file ends behind its first two clusters: new counts do not come to lie where the header has the L1
/// table, be the file made longer for that or not.
#[test]
fn a_new_refcount_table_leaves_the_l1_table_its_place() {
    for fails in [false, true] {
        let mut file = Plan { len: K + 1, ..PLAN }.file();
        let longer = |op: &IoOp| fails && matches!(op, IoOp::SetLen { .. });
        let ran = run_failing(&mut file, Some(Repair::All), longer);
        assert_eq!((ran.header.reftable_offset, ran.header.l1_offset), (4 * K, L1));
        assert_eq!((file.word(4 * K), file.word(L1)), (2 * K, 0));
        assert_eq!(ran.report.unwrap().is_sound(), !fails, "it is not counted, and in the file by now");
    }
}
