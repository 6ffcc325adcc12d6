//! Images on a device: a file of a length that is not the machine's, full of old bytes.
//!
//! Checks:
//! * a write that covers its clusters gets them as they are, one that does not gets them cleared; nothing old
//!   shows; the file is neither lengthened nor cut;
//! * every cluster is used before "no space"; what was answered stays; when the device has grown it goes on,
//!   and the new space is not taken for zeros;
//! * an image that was made empty has all of the device again; what it held does not show, and is no leak;
//! * of a QED image all tables are walked when it is opened to be written, and one that cannot be read
//!   forbids it;
//! * a raw image has the size that the device has.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Lack, Options, RequestKind, qed};
use quod_states_tests::qcow2::{assert_sound, created, l2_entry, opened, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_file, request};

const CLUSTER: u64 = 65536;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const OLD: u8 = 0xdb;

fn device() -> Options {
    Options::default().fixed_len(true)
}

/// A qcow2 image, and so many old bytes behind it.
fn qcow2(more: u64) -> Disk {
    let mut file = qcow2_file(&CreateOptions { size: 1 << 30, ..CreateOptions::default() });
    file.resize(file.len() + more as usize, OLD);
    Disk::new(file, None, 1)
}

/// A QED image.
fn qed(more: u64) -> Disk {
    let mut file = qed_file(1 << 30, CLUSTER as u32, 1, None);
    file.resize(file.len() + more as usize, OLD);
    Disk::new(file, None, 1)
}

fn open(disk: &mut Disk) -> Image {
    let image = opened(disk, device()).image;
    disk.log.clear();
    image
}

fn ask(
    disk: &mut Disk,
    image: &mut Image,
    kind: RequestKind,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, Error> {
    let byte = 1 + (offset / CLUSTER % 200) as u8;
    disk.try_run(image, request(kind, offset, len, 7), vec![byte; len as usize])
}

fn write(disk: &mut Disk, image: &mut Image, cluster: u64, len: u64) -> Result<(), Error> {
    ask(disk, image, RequestKind::Write, cluster * CLUSTER, len).map(drop)
}

fn read(disk: &mut Disk, image: &mut Image, cluster: u64) -> Vec<u8> {
    ask(disk, image, RequestKind::Read, cluster * CLUSTER, CLUSTER).unwrap()
}

/// What was asked of the device, but reads and table writes.
fn changes(disk: &mut Disk) -> Vec<IoOp> {
    let steps = std::mem::take(&mut disk.log);
    let tables =
        |op: &IoOp| matches!(op, IoOp::ReadTable { .. } | IoOp::ReadData { .. } | IoOp::WriteTable { .. });
    steps.into_iter().map(|step| step.op).filter(|op| !tables(op)).collect()
}

#[test]
fn what_covers_its_clusters_needs_no_zeros() {
    for mut disk in [qcow2(64 * CLUSTER), qed(64 * CLUSTER)] {
        let len = disk.file.len();
        let mut image = open(&mut disk);
        // the first write needs a table, which is cleared
        write(&mut disk, &mut image, 0, 512).unwrap();
        let first = changes(&mut disk);
        assert!(
            matches!(first[..], [IoOp::Sync, IoOp::Clear { .. }, .., IoOp::WriteData { .. }]),
            "{first:?}"
        );
        // use up what was cleared
        let cleared = 4 << 20;
        for cluster in 1..cleared / CLUSTER - 2 {
            write(&mut disk, &mut image, cluster, CLUSTER).unwrap();
        }
        assert!(changes(&mut disk).iter().all(|op| matches!(op, IoOp::WriteData { head: 0, tail: 0, .. })));
        disk.file.resize(len + 256 * CLUSTER as usize, OLD);
        for cluster in 100..140 {
            write(&mut disk, &mut image, cluster, CLUSTER).unwrap();
        }
        let whole = changes(&mut disk);
        assert!(!whole.iter().any(|op| matches!(op, IoOp::Clear { .. })), "{whole:?}");
        assert!(whole.iter().any(|op| matches!(op, IoOp::Length)), "the device has grown: {whole:?}");
        write(&mut disk, &mut image, 200, 512).unwrap();
        let part = changes(&mut disk);
        assert!(matches!(part[0], IoOp::Clear { .. }), "{part:?}");
        assert!(read(&mut disk, &mut image, 200)[512..].iter().all(|byte| *byte == 0), "nothing old shows");
        assert_eq!(read(&mut disk, &mut image, 139), [140; CLUSTER as usize]);
        ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
        let closing = changes(&mut disk);
        assert!(
            !closing.iter().any(|op| matches!(op, IoOp::SetLen { .. } | IoOp::Grow { .. })),
            "{closing:?}"
        );
        assert_eq!(disk.file.len(), len + 256 * CLUSTER as usize);
    }
}

/// Subclusters beside those that are written say themselves that they hold nothing.
#[test]
fn subclusters_need_no_zeros_around_them() {
    let create = CreateOptions { size: 1 << 30, extended_l2: true, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, None, Options::default());
    ask(&mut disk, &mut image, RequestKind::Write, 0, 512).unwrap();
    ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
    let len = disk.file.len() + 16 * CLUSTER as usize;
    disk.file.resize(len, OLD);
    let mut image = open(&mut disk);
    write(&mut disk, &mut image, 3, 512).unwrap();
    let ops = changes(&mut disk);
    // a subcluster of 2 KiB is written whole
    assert!(
        matches!(ops[..], [IoOp::Sync, IoOp::WriteData { head: 0, len: 512, tail: 1536, .. }]),
        "{ops:?}"
    );
    let bytes = read(&mut disk, &mut image, 3);
    assert!(bytes[512..].iter().all(|byte| *byte == 0));
    ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
    assert_sound(&disk.file, "closed");
}

#[test]
fn all_of_it_is_used_and_then_there_is_no_space_until_there_is() {
    for mut disk in [qcow2(20 * CLUSTER + 512), qed(20 * CLUSTER + 512)] {
        let mut image = open(&mut disk);
        // more than fits, in one: some of it gets there
        assert_eq!(write(&mut disk, &mut image, 0, 15 * CLUSTER), Ok(()));
        assert_eq!(write(&mut disk, &mut image, 100, 15 * CLUSTER), Err(Error::NoSpace));
        let mut placed = 0;
        for cluster in 200..220 {
            placed += u64::from(write(&mut disk, &mut image, cluster, 512).is_ok());
        }
        assert_eq!(placed, 0, "the large one took the last");
        ask(&mut disk, &mut image, RequestKind::Flush, 0, 0).unwrap();
        assert_eq!(read(&mut disk, &mut image, 14), [1; CLUSTER as usize]);
        let long = disk.file.len() + 3 * CLUSTER as usize;
        disk.file.resize(long, OLD);
        assert_eq!(write(&mut disk, &mut image, 300, 512), Ok(()), "the device has grown");
        assert!(read(&mut disk, &mut image, 300)[512..].iter().all(|byte| *byte == 0));
        ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
        assert_eq!(disk.file.len(), long);
        let mut again = open(&mut disk);
        assert_eq!(read(&mut disk, &mut again, 14), [1; CLUSTER as usize]);
        assert_eq!(read(&mut disk, &mut again, 300)[..512], [101; 512]);
    }
}

/// It can neither be cleared nor written.
#[test]
fn the_cluster_that_a_device_cuts_off_is_no_space() {
    let mut disk = qcow2(0);
    let end = disk.file.len().next_multiple_of(CLUSTER as usize) + 700;
    disk.file.resize(end, OLD);
    let mut image = open(&mut disk);
    assert_eq!(write(&mut disk, &mut image, 0, 512), Err(Error::NoSpace));
    let ops = changes(&mut disk);
    let outside = |op: &IoOp| matches!(*op, IoOp::Clear { host, len } if host + len > end as u64);
    assert!(!ops.iter().any(outside), "{ops:?}");
}

/// A device that fails to clear answers those that wait; a later write tries again.
#[test]
fn a_failure_to_clear_is_told() {
    for mut disk in [qcow2(20 * CLUSTER), qed(20 * CLUSTER)] {
        let mut image = open(&mut disk);
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 7), vec![1; 512]).unwrap();
        while !disk.pending.iter().any(|(io, _)| matches!(io.op, IoOp::Clear { .. })) {
            disk.complete_first(&mut image);
        }
        disk.fail = Some((0, 5));
        disk.settle(&mut image, &mut Rng(1));
        let answer = disk.done.pop().unwrap().1;
        assert!(matches!(answer, Err(Error::Device { errno: 5, .. })), "{answer:?}");
        write(&mut disk, &mut image, 0, 512).unwrap();
    }
}

/// So does one that does not tell its length.
#[test]
fn a_length_that_is_not_told_is_an_error() {
    let mut disk = qed(0);
    let mut image = open(&mut disk);
    disk.fail = Some((0, 5));
    let answer = write(&mut disk, &mut image, 0, 512);
    assert!(matches!(answer, Err(Error::Device { errno: 5, .. })), "{answer:?}");
    assert_eq!(write(&mut disk, &mut image, 0, 512), Err(Error::NoSpace));
}

/// A leak would be what it held: nothing there can be cut off.
#[test]
fn an_emptied_device_is_used_from_its_free_end_on() {
    for (mut disk, qed) in [(qcow2(20 * CLUSTER), false), (qed(20 * CLUSTER), true)] {
        let mut image = open(&mut disk);
        for round in 0..3 {
            // it fits once, and only if all of it has come back
            for cluster in 0..12 {
                write(&mut disk, &mut image, cluster * 2 + round, CLUSTER).unwrap();
            }
            ask(&mut disk, &mut image, RequestKind::Flush, 0, 0).unwrap();
            ask(&mut disk, &mut image, RequestKind::Empty, 0, 0).unwrap();
            disk.settle(&mut image, &mut Rng(round));
            write(&mut disk, &mut image, 40, 512).unwrap();
            assert!(
                read(&mut disk, &mut image, 40)[512..].iter().all(|byte| *byte == 0),
                "nothing old shows"
            );
            assert!(read(&mut disk, &mut image, round).iter().all(|byte| *byte == 0));
            ask(&mut disk, &mut image, RequestKind::Discard, 40 * CLUSTER, CLUSTER).unwrap();
        }
        ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
        match qed {
            true => assert_eq!(leaks(&mut disk), 0),
            false => assert_sound(&disk.file, "emptied three times"),
        }
    }
}

/// Of a QED image: nothing else is wrong with it.
fn leaks(disk: &mut Disk) -> u64 {
    let len = disk.file.len() as u64;
    let header = qed::Header::parse(&disk.file[..512], len).unwrap();
    let mut check = qed::Check::new(header, len, None).on_device(true);
    let report =
        quod_memory::run(&mut check, &mut disk.file, qed::Check::poll_result, |_| Ok::<(), ()>(())).unwrap();
    let report = report.unwrap();
    assert_eq!(report.corruptions, 0);
    report.leaks
}

#[test]
fn a_qed_image_is_walked_before_it_is_written() {
    let mut disk = qed(64 * CLUSTER);
    let mut image = open(&mut disk);
    write(&mut disk, &mut image, 0, CLUSTER).unwrap();
    write(&mut disk, &mut image, 1, CLUSTER).unwrap();
    ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
    assert_eq!(leaks(&mut disk), 0, "what is free is no leak");
    let mut again = open(&mut disk);
    write(&mut disk, &mut again, 2, CLUSTER).unwrap();
    for cluster in 0..3 {
        assert_eq!(read(&mut disk, &mut again, cluster), [cluster as u8 + 1; CLUSTER as usize], "{cluster}");
    }
    ask(&mut disk, &mut again, RequestKind::Close, 0, 0).unwrap();
    // header, then the L1 table, then an L2 table that cannot be read
    disk.fail = Some((2, 5));
    let refused = disk.open(device());
    assert!(matches!(refused, Err(Error::Device { errno: 5, .. })), "{refused:?}");
    disk.fail = Some((2, 5));
    assert!(disk.open(device().read_only(true)).is_ok(), "it is not walked to be read");
}

#[test]
fn counts_say_where_a_qcow2_image_ends() {
    let mut disk = qcow2(64 * CLUSTER);
    let mut image = open(&mut disk);
    write(&mut disk, &mut image, 0, 2 * CLUSTER).unwrap();
    ask(&mut disk, &mut image, RequestKind::Close, 0, 0).unwrap();
    let before = l2_entry(&disk.file, CLUSTER) & OFFSET;
    let mut again = open(&mut disk);
    write(&mut disk, &mut again, 2, CLUSTER).unwrap();
    ask(&mut disk, &mut again, RequestKind::Close, 0, 0).unwrap();
    assert_eq!(l2_entry(&disk.file, 2 * CLUSTER) & OFFSET, before + CLUSTER);
    assert_sound(&disk.file, "two sessions");
}

/// Nobody has asked for zeros, and a device may have to write them.
#[test]
fn a_discard_of_a_raw_device_asks_for_no_zeros() {
    for (options, expected) in [(device(), "Discard"), (Options::default(), "ZeroRange")] {
        let mut disk = Disk::new(vec![OLD; 1 << 20], None, 1);
        let mut image = Image::raw(1 << 20, &options);
        ask(&mut disk, &mut image, RequestKind::Discard, 4096, 8192).unwrap();
        let ops = changes(&mut disk);
        assert!(ops.len() == 1 && format!("{ops:?}").contains(expected), "{ops:?}");
        ask(&mut disk, &mut image, RequestKind::WriteZeroes, 4096, 8192).unwrap();
        let ops = changes(&mut disk);
        assert!(matches!(ops[..], [IoOp::ZeroRange { host: 4096, len: 8192, unmap: false }]), "{ops:?}");
    }
}

#[test]
fn a_raw_image_has_the_size_of_the_device() {
    let mut disk = Disk::new(vec![OLD; 1 << 20], None, 1);
    let mut image = Image::raw(1 << 20, &device());
    let resize = |disk: &mut Disk, image: &mut Image, size| {
        disk.try_run(image, request(RequestKind::Resize { size }, 0, 0, 7), Vec::new())
    };
    for size in [1 << 19, 1 << 21] {
        let refused = resize(&mut disk, &mut image, size);
        assert_eq!(refused, Err(Error::Unsupported(Lack::ResizeDevice(1 << 20))));
        assert_eq!(image.virtual_size(), 1 << 20);
    }
    disk.file.resize(1 << 21, OLD);
    assert_eq!(resize(&mut disk, &mut image, 1 << 21), Ok(Vec::new()));
    assert_eq!((image.virtual_size(), disk.file.len()), (1 << 21, 1 << 21));
}
