//! Pointers that led beyond the end of the file when it was opened, and no longer do since the file has
//! grown: what lies there now is somebody else's. Nobody reads it, overwrites it or gives it up through them.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Flags, Image, IoOp, Options, Repair, Request, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{
    assert_sound, check, count, header, l2_entry, opened, qcow2_file, set_l2_entry,
};
use quod_states_tests::{Disk, Rng, request};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64, byte: u8) -> Vec<u8> {
    disk.run(image, request(kind, offset, len, 1), vec![byte; len as usize])
}

/// Guest clusters 0 and 1 have data, 2 had a pointer right behind the end of the file, where by now the data
/// of guest cluster 9 is: at the host offset that is returned.
fn grown_past() -> (Disk, Image, u64) {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 2 * CLUSTER, 0x11);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0, 0);
    let end = disk.file.len() as u64;
    assert_eq!(l2_entry(&disk.file, CLUSTER), (end - CLUSTER) | COPIED, "the file ends with its data");
    set_l2_entry(&mut disk.file, 2 * CLUSTER, end | COPIED);
    let options = Options::default().grow_step(0);
    let mut image = opened(&mut disk, options).image;
    run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, CLUSTER, 0x99);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0, 0);
    assert_eq!(l2_entry(&disk.file, 9 * CLUSTER) & OFFSET, end, "somebody got that space");
    (disk, image, end)
}

fn outcome(disk: &mut Disk, image: &mut Image, wanted: Request) -> Option<Error> {
    disk.submit(image, wanted, vec![0xcc; wanted.len as usize]).unwrap();
    disk.settle(image, &mut Rng(1));
    disk.done.pop().unwrap().1.err()
}

/// What is said of the pointer to `end`.
fn refused(end: u64) -> Option<Error> {
    let what = "pointed beyond the end of the file when the image was opened";
    Some(corrupt("table entry", 2, end | COPIED, what))
}

#[test]
fn a_run_ends_in_front_of_such_a_pointer() {
    for start in [0, CLUSTER] {
        let (mut disk, mut image, end) = grown_past();
        disk.log.clear();
        let error = outcome(&mut disk, &mut image, request(RequestKind::Read, start, 3 * CLUSTER - start, 7));
        assert_eq!(error, refused(end));
        let reads: Vec<(u64, u64)> = disk
            .log
            .iter()
            .filter_map(|step| match step.op {
                IoOp::ReadData { host, len, .. } => Some((host, len)),
                _ => None,
            })
            .collect();
        let own = [(end - 2 * CLUSTER, CLUSTER), (end - CLUSTER, CLUSTER)];
        assert_eq!(reads, own[(start / CLUSTER) as usize..], "a cluster at a time, and no more");
    }
}

#[test]
fn what_lies_there_now_is_not_given_up_with_a_range_that_has_such_a_pointer() {
    let none = Flags::empty();
    for (kind, flags, offset, len) in [
        (RequestKind::Discard, none, 0, 4 * CLUSTER),
        (RequestKind::Discard, none, CLUSTER, 2 * CLUSTER),
        (RequestKind::WriteZeroes, Flags::MAY_UNMAP, 0, 4 * CLUSTER),
        (RequestKind::WriteZeroes, none, 0, 4 * CLUSTER),
        // a new size
        (RequestKind::Resize { size: CLUSTER }, none, 0, 0),
    ] {
        let (mut disk, mut image, end) = grown_past();
        let error = outcome(&mut disk, &mut image, Request { kind, offset, len, flags, user: 7 });
        assert_eq!(error, refused(end), "{kind:?}");
        outcome(&mut disk, &mut image, request(RequestKind::Flush, 0, 0, 8));
        assert_eq!(count(&disk.file, end / CLUSTER), 1, "{kind:?}");
        assert_eq!(l2_entry(&disk.file, 9 * CLUSTER), end | COPIED, "{kind:?}");
        assert_eq!(
            run(&mut disk, &mut image, RequestKind::Read, 9 * CLUSTER, 512, 0),
            vec![0x99; 512],
            "{kind:?}"
        );
    }
}

/// Compressed data that begins in one cluster and ends in the next has both.
#[test]
fn compressed_data_that_the_file_has_is_given_up_whole() {
    let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 3 * CLUSTER, 0x11);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0, 0);
    let border = l2_entry(&disk.file, 2 * CLUSTER) & OFFSET;
    let entry = header(&disk.file).shape().encode_compressed(border - 600, 2000).unwrap();
    set_l2_entry(&mut disk.file, CLUSTER, entry);
    set_l2_entry(&mut disk.file, 2 * CLUSTER, 0);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Discard, CLUSTER, CLUSTER, 0);
    run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0, 0);
    let counts =
        [border - 2 * CLUSTER, border - CLUSTER, border].map(|host| count(&disk.file, host / CLUSTER));
    assert_eq!(counts, [1, 0, 0]);
}

/// Of compressed data the file had the first sectors alone: as many as it had are given up.
#[test]
fn the_missing_end_of_compressed_data_is_not_given_up_with_it() {
    for kind in [RequestKind::Discard, RequestKind::Write] {
        let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, 0, 2 * CLUSTER, 0x11);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0, 0);
        let end = disk.file.len() as u64;
        let entry = header(&disk.file).shape().encode_compressed(end - 600, 2000).unwrap();
        set_l2_entry(&mut disk.file, CLUSTER, entry);
        let options = Options::default().grow_step(0);
        let mut image = opened(&mut disk, options).image;
        run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, CLUSTER, 0x99);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0, 0);
        assert_eq!(l2_entry(&disk.file, 9 * CLUSTER), end | COPIED, "somebody got that space");
        run(&mut disk, &mut image, kind, CLUSTER, CLUSTER, 0x22);
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0, 0);
        let counts = [end - CLUSTER, end].map(|host| count(&disk.file, host / CLUSTER));
        assert_eq!(counts, [0, 1], "{kind:?}");
        assert_eq!(
            run(&mut disk, &mut image, RequestKind::Read, 9 * CLUSTER, 512, 0),
            vec![0x99; 512],
            "{kind:?}"
        );
    }
}

fn close(disk: &mut Disk, image: &mut Image) {
    run(disk, image, RequestKind::Close, 0, 0, 0);
}

fn move_l1(file: &mut Vec<u8>, to: u64, len: u64) {
    file[40..48].copy_from_slice(&to.to_be_bytes());
    file.resize(len as usize, 0);
}

/// An L1 table that lies beyond the end of the file, or is cut off by it, has zeros there. What is written
/// afterwards is there when the image is closed, and the table within the file.
#[test]
fn a_table_beyond_the_end_is_written_and_not_cut_off() {
    let sizes = [1 << 30, 100 << 30, 5 << 40];
    for (size, at, len) in sizes.into_iter().flat_map(|size| {
        let places =
            [(7 * CLUSTER, 3 * CLUSTER), (3 * CLUSTER, 3 * CLUSTER + 512), (800 * CLUSTER, 4 * CLUSTER)];
        places.map(|(at, len)| (size, at, len))
    }) {
        let create = CreateOptions { size, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        move_l1(&mut disk.file, at, len);
        let last = size - CLUSTER;
        for byte in [0x11, 0x22] {
            let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
            run(&mut disk, &mut image, RequestKind::Write, last, CLUSTER, byte);
            run(&mut disk, &mut image, RequestKind::Flush, 0, 0, 0);
            close(&mut disk, &mut image);
            let end = at + u64::from(header(&disk.file).l1_entries) * 8;
            assert!(disk.file.len() as u64 >= end, "{size:#x} at {at:#x}: the file ends in front of it");
            let mut image = opened(&mut disk, Options::default()).image;
            let found = run(&mut disk, &mut image, RequestKind::Read, last, CLUSTER, 0);
            assert!(found == vec![byte; CLUSTER as usize], "{size:#x} at {at:#x}");
        }
        // space is handed out behind it, or where the file was
        let entry = l2_entry(&disk.file, last) & OFFSET;
        assert!(entry >= len && !(at..at + CLUSTER).contains(&entry), "{entry:#x}");
    }
}

/// Further than behind a full disk no table is looked for.
#[test]
fn a_table_far_beyond_the_end_is_refused() {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    for at in [1 << 31, 1 << 40, 1 << 62] {
        let mut file = qcow2_file(&create);
        let len = file.len() as u64;
        move_l1(&mut file, at, len);
        let mut disk = Disk::new(file, None, 1);
        let (place, what) = (
            "qcow2 header field l1_table_offset",
            "the L1 table lies far beyond the end of the file: check the image",
        );
        let error = disk.open(Options::default()).err();
        assert_eq!(error, Some(corrupt(place, 0, at, what)));
        assert!(disk.open(Options::default().read_only(true)).is_ok(), "{at:#x}");
    }
}

/// Counts that are not there would be taken for 0: nothing is handed out, and what has its place is written.
#[test]
fn counts_beyond_the_end_are_not_taken_for_zeros() {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let prepared = || {
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER, 0x11);
        close(&mut disk, &mut image);
        disk
    };
    let table = header(&prepared().file).reftable_offset;
    let (block, all) =
        ("the refcount block lies beyond the end of the file", "the refcount table lies beyond");
    for (at, value, said) in
        [(table + 8, 40 * CLUSTER, block), (table, 40 * CLUSTER, block), (48, 1 << 32, all)]
    {
        let mut disk = prepared();
        disk.file[at as usize..][..8].copy_from_slice(&u64::to_be_bytes(value));
        let before = disk.file.clone();
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER, 0x22);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0, 0);
        let error =
            outcome(&mut disk, &mut image, request(RequestKind::Write, 5 * CLUSTER, CLUSTER, 7)).unwrap();
        assert!(error.to_string().contains(said), "{error}");
        let data = (l2_entry(&before, 0) & OFFSET) as usize;
        assert_eq!(disk.file[data], 0x22);
        disk.file[data..][..CLUSTER as usize].fill(0x11);
        disk.file[72..80].fill(0);
        assert!(disk.file == before, "but for the corrupt bit nothing else was written: {said}");
    }
}

/// A copy that was cut off: `of` clusters of data, of which the file has the first `kept`.
fn cut(of: u64, kept: u64) -> (Disk, u64) {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
    for n in 0..of {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, CLUSTER, n as u8 + 1);
    }
    close(&mut disk, &mut image);
    let end = (l2_entry(&disk.file, kept * CLUSTER) & OFFSET) - 1000;
    disk.file.truncate(end as usize);
    (disk, end)
}

/// New clusters, then writes to all the old ones, in openings of their own: the new ones keep their bytes.
fn write_beside(disk: &mut Disk, of: u64) {
    for (first, count, byte) in [(1000, of, 0x77), (0, of, 0x88)] {
        for n in first..first + count {
            let mut image = opened(disk, Options::default()).image;
            let wanted = request(RequestKind::Write, n * CLUSTER, CLUSTER, 7);
            disk.submit(&mut image, wanted, vec![byte; CLUSTER as usize]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            disk.done.clear();
            disk.submit(&mut image, request(RequestKind::Close, 0, 0, 8), vec![]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            // a bad pointer marks the image: another program takes the mark away
            disk.file[79] &= !2;
        }
    }
    let mut image = opened(disk, Options::default().read_only(true)).image;
    for n in 1000..1000 + of {
        let found = run(disk, &mut image, RequestKind::Read, n * CLUSTER, 512, 0);
        assert_eq!(found, vec![0x77; 512], "guest cluster {n}");
    }
}

/// What is beyond the end was counted before anything led there, and its counts are within the file.
#[test]
fn counted_clusters_beyond_the_end_are_nobody_elses() {
    let (mut disk, _) = cut(12, 5);
    write_beside(&mut disk, 12);
}

/// The counts are lost as well. A repair makes them anew, after it dropped what led beyond the end.
#[test]
fn a_repaired_copy_that_was_cut_off_is_like_any_other() {
    let (mut disk, end) = cut(12, 5);
    let table = header(&disk.file).reftable_offset as usize;
    disk.file[table..table + 8].fill(0);
    let report = check(&mut disk.file, Some(Repair::All));
    assert!(report.is_sound() && report.leaks == 0, "{report:?}");
    assert_sound(&disk.file, "repaired");
    for n in 5..12 {
        assert_eq!(l2_entry(&disk.file, n * CLUSTER), 0, "it led beyond {end:#x}");
    }
    write_beside(&mut disk, 12);
    assert_sound(&disk.file, "written");
}
