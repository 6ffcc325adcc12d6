//! Repairs on a device: nothing makes it longer, so what has to be placed goes where it has room.
//!
//! Checks: counts that are missing are put right where their block lies, though nothing is free; a block that
//! is lost is made anew in clusters that are free anywhere; where none are it is said, and nothing is
//! written.

use quod_states::qcow2::{Check, CreateOptions};
use quod_states::{Error, IoOp, Options, Repair, Report, RequestKind};
use quod_states_tests::qcow2::{assert_sound, created, header, l2_entry, set_count};
use quod_states_tests::request;

const CLUSTER: u64 = 512;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image that fills its file to the last cluster, but for so many that lie before.
fn full(free: u64) -> Vec<u8> {
    let create = CreateOptions { size: 1 << 20, cluster_size: CLUSTER as u32, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, None, Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 400 * CLUSTER, 1), vec![1; 400 * CLUSTER as usize]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 2), Vec::new());
    if free > 0 {
        disk.run(&mut image, request(RequestKind::Discard, 0, free * CLUSTER, 3), Vec::new());
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 4), Vec::new());
    let mut file = disk.file.clone();
    let mut check = Check::new(header(&file), file.len() as u64, None);
    let found = quod_memory::run(&mut check, &mut file, Check::poll_result, |_| Ok::<(), ()>(()));
    assert_eq!(found.map(|report| report.map(|report| report.leaks)), Ok(Ok(0)));
    file.truncate(check.image_end() as usize);
    file
}

/// Repairs it as on a device: the file keeps its length, and what is written lies in it.
fn repair(file: &mut Vec<u8>) -> Result<Report, Error> {
    let len = file.len() as u64;
    let mut check = Check::new(header(file), len, Some(Repair::All)).on_device(true);
    let inside = |op: &IoOp| match *op {
        IoOp::WriteTable { offset, len: bytes } => assert!(offset + u64::from(bytes) <= len, "{op:?}"),
        IoOp::SetLen { .. } | IoOp::Grow { .. } => panic!("{op:?}"),
        _ => {}
    };
    let result = quod_memory::run(&mut check, file, Check::poll_result, |op| {
        inside(op);
        Ok::<(), ()>(())
    });
    assert_eq!(file.len() as u64, len);
    result.unwrap()
}

/// The second refcount block is gone: nothing counts clusters from 256 on.
fn lose_block(file: &mut [u8]) {
    let at = header(file).reftable_offset as usize + 8;
    assert!(file[at..at + 8].iter().any(|byte| *byte != 0));
    file[at..at + 8].fill(0);
}

#[test]
fn counts_are_put_right_in_place_where_nothing_is_free() {
    let mut file = full(0);
    for guest in [7, 300] {
        let cluster = (l2_entry(&file, guest * CLUSTER) & OFFSET) / CLUSTER;
        set_count(&mut file, cluster, 0);
    }
    let report = repair(&mut file).unwrap();
    assert!(report.is_sound() && report.corruptions_fixed == 2, "{report:?}");
    assert_sound(&file, "counted again");
}

#[test]
fn a_lost_block_is_made_anew_in_free_clusters_before_what_it_counts() {
    let mut file = full(12);
    lose_block(&mut file);
    let report = repair(&mut file).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_sound(&file, "made anew");
}

#[test]
fn without_room_for_a_lost_block_it_says_so_and_writes_nothing() {
    let mut file = full(0);
    lose_block(&mut file);
    let before = file.clone();
    assert_eq!(repair(&mut file).map(drop), Err(Error::NoSpace));
    assert!(file == before);
}
