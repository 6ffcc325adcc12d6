//! Pointers that led beyond the end of the file when it was opened, and no longer do since the file has
//! grown: what lies there now is somebody else's. Nobody reads it, overwrites it or gives it up through them.

mod common;

use common::qcow2::{count, header, l2_entry, opened, qcow2_file, set_l2_entry};
use common::{Disk, Rng, request};
use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Flags, Image, IoOp, Kind, Options, Request};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn run(disk: &mut Disk, image: &mut Image, kind: Kind, offset: u64, len: u64, byte: u8) -> Vec<u8> {
    disk.run(image, request(kind, offset, len, 1), vec![byte; len as usize])
}

/// Guest clusters 0 and 1 have data, 2 had a pointer right behind the end of the file, where by now the data
/// of guest cluster 9 is: at the host offset that is returned.
fn grown_past() -> (Disk, Image, u64) {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, Kind::Write, 0, 2 * CLUSTER, 0x11);
    run(&mut disk, &mut image, Kind::Close, 0, 0, 0);
    let end = disk.file.len() as u64;
    assert_eq!(l2_entry(&disk.file, CLUSTER), (end - CLUSTER) | COPIED, "the file ends with its data");
    set_l2_entry(&mut disk.file, 2 * CLUSTER, end | COPIED);
    let options = Options { grow_step: 0, ..Options::default() };
    let mut image = opened(&mut disk, options).image;
    run(&mut disk, &mut image, Kind::Write, 9 * CLUSTER, CLUSTER, 0x99);
    run(&mut disk, &mut image, Kind::Flush, 0, 0, 0);
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
    Some(Error::Corrupt { place: "table entry", index: 2, value: end | COPIED, what })
}

#[test]
fn a_run_ends_in_front_of_such_a_pointer() {
    for start in [0, CLUSTER] {
        let (mut disk, mut image, end) = grown_past();
        disk.log.clear();
        let error = outcome(&mut disk, &mut image, request(Kind::Read, start, 3 * CLUSTER - start, 7));
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
        (Kind::Discard, none, 0, 4 * CLUSTER),
        (Kind::Discard, none, CLUSTER, 2 * CLUSTER),
        (Kind::WriteZeroes, Flags::MAY_UNMAP, 0, 4 * CLUSTER),
        (Kind::WriteZeroes, none, 0, 4 * CLUSTER),
        // a new size
        (Kind::Resize, none, CLUSTER, 0),
    ] {
        let (mut disk, mut image, end) = grown_past();
        let error = outcome(&mut disk, &mut image, Request { kind, offset, len, flags, user: 7 });
        assert_eq!(error, refused(end), "{kind:?}");
        outcome(&mut disk, &mut image, request(Kind::Flush, 0, 0, 8));
        assert_eq!(count(&disk.file, end / CLUSTER), 1, "{kind:?}");
        assert_eq!(l2_entry(&disk.file, 9 * CLUSTER), end | COPIED, "{kind:?}");
        assert_eq!(run(&mut disk, &mut image, Kind::Read, 9 * CLUSTER, 512, 0), vec![0x99; 512], "{kind:?}");
    }
}

/// Compressed data that begins in one cluster and ends in the next has both.
#[test]
fn compressed_data_that_the_file_has_is_given_up_whole() {
    let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, Kind::Write, 0, 3 * CLUSTER, 0x11);
    run(&mut disk, &mut image, Kind::Close, 0, 0, 0);
    let border = l2_entry(&disk.file, 2 * CLUSTER) & OFFSET;
    let entry = header(&disk.file).shape().encode_compressed(border - 600, 2000).unwrap();
    set_l2_entry(&mut disk.file, CLUSTER, entry);
    set_l2_entry(&mut disk.file, 2 * CLUSTER, 0);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, Kind::Discard, CLUSTER, CLUSTER, 0);
    run(&mut disk, &mut image, Kind::Quiesce, 0, 0, 0);
    let counts =
        [border - 2 * CLUSTER, border - CLUSTER, border].map(|host| count(&disk.file, host / CLUSTER));
    assert_eq!(counts, [1, 0, 0]);
}

/// Of compressed data the file had the first sectors alone: as many as it had are given up.
#[test]
fn the_missing_end_of_compressed_data_is_not_given_up_with_it() {
    for kind in [Kind::Discard, Kind::Write] {
        let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, Kind::Write, 0, 2 * CLUSTER, 0x11);
        run(&mut disk, &mut image, Kind::Close, 0, 0, 0);
        let end = disk.file.len() as u64;
        let entry = header(&disk.file).shape().encode_compressed(end - 600, 2000).unwrap();
        set_l2_entry(&mut disk.file, CLUSTER, entry);
        let options = Options { grow_step: 0, ..Options::default() };
        let mut image = opened(&mut disk, options).image;
        run(&mut disk, &mut image, Kind::Write, 9 * CLUSTER, CLUSTER, 0x99);
        run(&mut disk, &mut image, Kind::Flush, 0, 0, 0);
        assert_eq!(l2_entry(&disk.file, 9 * CLUSTER), end | COPIED, "somebody got that space");
        run(&mut disk, &mut image, kind, CLUSTER, CLUSTER, 0x22);
        run(&mut disk, &mut image, Kind::Quiesce, 0, 0, 0);
        let counts = [end - CLUSTER, end].map(|host| count(&disk.file, host / CLUSTER));
        assert_eq!(counts, [0, 1], "{kind:?}");
        assert_eq!(run(&mut disk, &mut image, Kind::Read, 9 * CLUSTER, 512, 0), vec![0x99; 512], "{kind:?}");
    }
}
