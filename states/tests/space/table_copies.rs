//! Copies of shared tables, and slices that are not in the cache when they are wanted.
//!
//! Checks: copies at once do not mix; whoever copies a table waits for the L1 slice that leads there,
//! whoever loads it, and is told if that fails; a table that two entries of the active L1 table lead to is
//! copied like a snapshot's, if neither says that it is its own; a slice that nobody holds any more makes
//! room at once.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Fault, Image, IoOp, Op, Options, Repair, RequestKind};
use quod_states_tests::qcow2::{
    assert_sound, check, header, l1_entry, of_snapshot, opened, qcow2_file, set_l1_entry, snapshot,
};
use quod_states_tests::{Disk, qed_disk, request, write};

/// Guest bytes that a table maps, and tables that a slice of the L1 table leads to: clusters have 512 bytes.
const TABLE: u64 = 64 * 512;
const L1_SLICE: u64 = 512 * TABLE;

/// An image with data in the first cluster of tables 0 to 7, and of 48 in the next slice of the L1 table; a
/// snapshot has all of it.
fn shared() -> Disk {
    let create = CreateOptions { size: 4 * L1_SLICE, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    for offset in (0..8).map(|n| n * TABLE).chain((0..48).map(|n| L1_SLICE + n * TABLE)) {
        disk.run(&mut image, request(RequestKind::Write, offset, 512, 0), vec![byte_at(offset); 512]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    disk
}

fn byte_at(offset: u64) -> u8 {
    1 + (offset / TABLE % 200) as u8
}

fn read(disk: &mut Disk, image: &mut Image, offset: u64) -> Vec<u8> {
    disk.run(image, request(RequestKind::Read, offset, 512, 0), vec![0; 512])
}

/// Opened with a cache of 16 slices, used until table 0's slice is there, and the slice of the L1 table that
/// leads to it is not.
fn without_l1(disk: &mut Disk) -> Image {
    let options = Options::default().cache_bytes(0).grow_step(0);
    let mut image = opened(disk, options).image;
    for n in 0..96 {
        assert_eq!(read(disk, &mut image, 0), [byte_at(0); 512]);
        let far = L1_SLICE + n % 48 * TABLE;
        assert_eq!(read(disk, &mut image, far), [byte_at(far); 512]);
    }
    disk.log.clear();
    image
}

/// The newest I/O first: what was asked for last is there first.
fn settle_backwards(disk: &mut Disk, image: &mut Image) {
    while !disk.pending.is_empty() {
        disk.complete(image, disk.pending.len() - 1);
    }
    assert_eq!(image.open_requests(), 0);
}

/// The image, and its snapshot, hold what they should after these tables' first clusters were written.
fn assert_written(disk: &mut Disk, image: &mut Image, tables: &[u64]) {
    let before = l1_entry(&of_snapshot(&disk.file), 0);
    disk.run(image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert_sound(&disk.file, "copied");
    let mut snapshot = Disk::new(of_snapshot(&disk.file), None, 1);
    assert_eq!(l1_entry(&snapshot.file, 0), before);
    let options = Options::default().read_only(true);
    let (mut old, mut new) = (opened(&mut snapshot, options).image, opened(disk, options).image);
    for table in 0..8 {
        let byte = byte_at(table * TABLE);
        assert_eq!(read(&mut snapshot, &mut old, table * TABLE), [byte; 512], "table {table}");
        let byte = if tables.contains(&table) { 0xf1 } else { byte };
        assert_eq!(read(disk, &mut new, table * TABLE), [byte; 512], "table {table}");
    }
}

/// Tables of 64 KiB, each with data at its begin and in its midst: what a write there changes is a sector of
/// the copy, the rest comes from the old table.
#[test]
fn copies_at_once_do_not_mix() {
    let create = CreateOptions { size: 2 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    let places: Vec<u64> = (0..3).flat_map(|table| [table << 29, (table << 29) + (300 << 20)]).collect();
    for (&offset, byte) in places.iter().zip(1..) {
        disk.run(&mut image, request(RequestKind::Write, offset, 512, 0), vec![byte; 512]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
    for table in 0..3 {
        read(&mut disk, &mut image, table << 29);
    }
    for table in 0..3 {
        write(&mut disk, &mut image, table << 29, 512, 0xf1);
    }
    settle_backwards(&mut disk, &mut image);
    assert_eq!(image.counters().new_tables, 3);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert_sound(&disk.file, "copied");
    let mut snapshot = Disk::new(of_snapshot(&disk.file), None, 1);
    let options = Options::default().read_only(true);
    for (disk, expected) in [(&mut disk, [0xf1, 2, 0xf1, 4, 0xf1, 6]), (&mut snapshot, [1, 2, 3, 4, 5, 6])] {
        let mut image = opened(disk, options).image;
        let found: Vec<_> = places.iter().map(|offset| read(disk, &mut image, *offset)[0]).collect();
        assert_eq!(found, expected);
    }
}

/// A read of another table has asked for the L1 slice; nothing is known of it before it is there.
#[test]
fn a_copy_waits_for_an_l1_slice_that_others_load() {
    let mut disk = shared();
    let mut image = without_l1(&mut disk);
    let l1 = header(&disk.file).l1_offset;
    disk.submit(&mut image, request(RequestKind::Read, 5 * TABLE, 512, 1), vec![0; 512]).unwrap();
    write(&mut disk, &mut image, 0, 512, 0xf1);
    let pending: Vec<_> = disk.pending.iter().map(|(io, _)| io.op).collect();
    assert_eq!(pending, [IoOp::ReadTable { offset: l1, len: 4096 }], "one load for both");
    settle_backwards(&mut disk, &mut image);
    let answers: Vec<_> = disk.done.drain(..).map(|done| (done.0, done.1.is_ok())).collect();
    assert_eq!(answers, [(0xf1, true), (1, true)]);
    assert_written(&mut disk, &mut image, &[0]);
}

#[test]
fn a_copy_whose_l1_slice_cannot_be_read_fails() {
    let mut disk = shared();
    let mut image = without_l1(&mut disk);
    let offset = header(&disk.file).l1_offset;
    write(&mut disk, &mut image, 0, 512, 0xf1);
    assert_eq!(disk.pending[0].0.op, IoOp::ReadTable { offset, len: 4096 });
    disk.fail = Some((0, 5));
    settle_backwards(&mut disk, &mut image);
    let (_, result, ..) = disk.done.pop().unwrap();
    assert_eq!(result, Err(Error::Device { op: Op::ReadL1, offset, errno: 5 }));
    assert_written(&mut disk, &mut image, &[]);
}

/// Two slots, and two writes in flight that hold them.
#[test]
fn a_slice_that_nobody_holds_any_more_makes_room_at_once() {
    let options = Options::default().cache_bytes(0).grow_step(0);
    let (mut disk, mut image) = qed_disk(8 << 30, 1, None, options);
    // one table after the other, each with a cluster
    for n in 0..3 {
        disk.run(&mut image, request(RequestKind::Write, n << 30, 512, 0), vec![3; 512]);
    }
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    let is_write = |op: &IoOp| matches!(op, IoOp::WriteData { .. });
    for n in [0, 1] {
        write(&mut disk, &mut image, (n << 30) + (1 << 20), 512, n);
        while let Some(index) = disk.pending.iter().position(|(io, _)| !is_write(&io.op)) {
            disk.complete(&mut image, index);
        }
    }
    disk.submit(&mut image, request(RequestKind::Read, 2 << 30, 512, 2), vec![0; 512]).unwrap();
    assert!(disk.pending.len() == 2 && disk.pending.iter().all(|(io, _)| is_write(&io.op)), "it waits");
    // a write that fails changes nothing in its slice
    disk.fail = Some((0, 5));
    disk.complete_first(&mut image);
    while let Some(index) = disk.pending.iter().position(|(io, _)| !is_write(&io.op)) {
        disk.complete(&mut image, index);
    }
    let answers: Vec<_> = disk.done.drain(..).map(|done| (done.0, done.1.is_ok())).collect();
    assert_eq!(answers, [(0, false), (2, true)], "the other write is in flight still");
}

/// Two entries of the active L1 table lead to one table, counted twice, as are its clusters: whoever writes
/// gets a copy, and the other sees what it saw. What is left to one of them alone stays counted twice: a
/// leak, not a flag that is missing.
#[test]
fn a_table_of_two_entries_is_copied_for_the_first_that_changes_it() {
    for (first, kind) in [
        (0, RequestKind::Write),
        (1, RequestKind::Write),
        (0, RequestKind::Discard),
        (1, RequestKind::WriteZeroes),
    ] {
        let create = CreateOptions { size: 4 * TABLE, cluster_size: 512, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        disk.run(&mut image, request(RequestKind::Write, 0, 3 * 512, 0), vec![7; 3 * 512]);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let table = l1_entry(&disk.file, 0);
        set_l1_entry(&mut disk.file, 1, table);
        check(&mut disk.file, Some(Repair::All));
        assert_sound(&disk.file, "both are counted");
        let mut image = opened(&mut disk, Options::default()).image;
        for (entry, byte) in [(first, 0), (1 - first, 7)] {
            assert_eq!(read(&mut disk, &mut image, entry * TABLE + 512), [7; 512]);
            let bytes = vec![8; if kind == RequestKind::Write { 512 } else { 0 }];
            disk.run(&mut image, request(kind, entry * TABLE, 512, 0), bytes);
            assert_eq!(read(&mut disk, &mut image, (1 - first) * TABLE)[0] == 7, byte == 0);
            disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
        }
        for entry in [0, 1] {
            let byte = if kind == RequestKind::Write { 8 } else { 0 };
            assert_eq!(read(&mut disk, &mut image, entry * TABLE), [byte; 512]);
            assert_eq!(read(&mut disk, &mut image, entry * TABLE + 1024), [7; 512]);
        }
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let report = check(&mut disk.file, Some(Repair::Leaks));
        // the first table, and its first cluster, if that is given up
        let leaks = 1 + u64::from(kind != RequestKind::WriteZeroes);
        assert_eq!((report.corruptions, report.leaks_fixed), (0, leaks), "{kind:?} by {first} first");
        assert_sound(&disk.file, &format!("{kind:?} by {first} first"));
    }
}

/// One of them says that the table is its own: it would write it in place.
#[test]
fn a_table_of_two_entries_is_refused_if_one_says_that_it_is_its_own() {
    for (flags, reader) in [([1 << 63, 0], 1), ([0, 1 << 63], 1), ([1 << 63, 1 << 63], 1)] {
        let create = CreateOptions { size: 4 * TABLE, cluster_size: 512, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![7; 512]);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let table = l1_entry(&disk.file, 0) & !(1 << 63);
        (0..2).for_each(|n| set_l1_entry(&mut disk.file, n as u64, table | flags[n]));
        let mut image = opened(&mut disk, Options::default()).image;
        assert_eq!(read(&mut disk, &mut image, 0), [7; 512], "the first is right");
        let refused =
            disk.try_run(&mut image, request(RequestKind::Read, reader * TABLE, 512, 0), vec![0; 512]);
        assert!(matches!(refused, Err(Error::Corrupt(Fault::L1Entry { index: 1, .. }))), "{refused:?}");
        assert!(check(&mut disk.file, None).corruptions > 0, "the check says so too");
    }
}
