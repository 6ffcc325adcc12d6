//! What a change of size, and a close, do to the file: each I/O with its place, in its order.
//!
//! Checks: an L1 table moves in pieces no longer than it is, and nothing may be written to its new place; one
//! of no entries leaves nothing behind; a move that fails gives its space back and leaves the stored size
//! alone; a size that changes no entry takes one round, and one that is the same stops nobody; which images
//! are refused; a file is cut where its data ends, and only if it is longer.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Lack, Met, Options, Refused, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{assert_sound, header, qcow2_file, set_l2_entry};
use quod_states_tests::{Disk, Rng, request};

const COPIED: u64 = 1 << 63;
/// What an L1 cluster of 512 bytes maps with clusters of 512 bytes.
const SPAN: u64 = 64 * 64 * 512;

fn options() -> Options {
    Options::default().grow_step(0)
}

fn create(size: u64) -> CreateOptions<'static> {
    CreateOptions { size, cluster_size: 512, ..CreateOptions::default() }
}

fn opened(file: Vec<u8>) -> (Disk, Image) {
    let mut disk = Disk::new(file, None, 1);
    let image = disk.open(options()).unwrap().image;
    (disk, image)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    disk.run(image, request(kind, offset, len, 7), vec![9; len as usize])
}

/// All I/O since the log was cleared, as text.
fn log(disk: &mut Disk) -> Vec<String> {
    let text = |op: IoOp| match op {
        IoOp::ReadTable { offset, len } => format!("read {offset} {len}"),
        IoOp::WriteTable { offset, len } => format!("write {offset} {len}"),
        IoOp::WriteData { host, len, .. } => format!("data {host} {len}"),
        IoOp::Grow { from, to } => format!("grow {from} {to}"),
        IoOp::SetLen { len } => format!("length {len}"),
        IoOp::PunchHole { host, len } => format!("hole {host} {len}"),
        IoOp::Sync => "sync".into(),
        other => format!("{other:?}"),
    };
    disk.log.drain(..).map(|step| text(step.op)).collect()
}

/// Starts a request, a write of one cluster if it is one, and ends all I/O: its answer.
fn answer(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64) -> Result<(), Error> {
    let len = if kind == RequestKind::Write { 512 } else { 0 };
    disk.submit(image, request(kind, offset, len, 7), vec![9; len as usize]).unwrap();
    disk.settle(image, &mut Rng(1));
    disk.done.pop().unwrap().1
}

/// What a move does, from an L1 table of so many clusters to one of so many, and where the file ends then. A
/// fresh image has its refcount block at 1024, its L1 table at 1536.
const MOVES: [(u64, u64, &str, usize); 3] = [
    (
        0,
        1,
        "sync, read 1024 512, grow 1536 4096, write 1024 512, sync, write 0 512, sync, write 0 512, sync",
        2048,
    ),
    (
        1,
        3,
        "sync, read 1024 512, grow 2048 4096, read 1536 512, write 2048 512, write 1024 512, sync, \
         write 0 512, sync, hole 1536 512, write 0 512, write 1024 512, sync",
        3584,
    ),
    // from 1536 to 73728, with a refcount block before it
    (
        140,
        141,
        "sync, read 1024 512, grow 73216 147456, read 73216 512, read 1536 65536, write 73728 65536, \
         read 67072 6144, write 139264 6144, write 1024 512, write 73216 512, sync, write 512 512, sync, \
         write 0 512, sync, hole 1536 71680, write 0 512, write 1024 512, sync",
        145_920,
    ),
];

#[test]
fn an_l1_table_moves_in_pieces_no_longer_than_it_is() {
    for (before, after, expected, len) in MOVES {
        let (mut disk, mut image) = opened(qcow2_file(&create(before * SPAN)));
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Resize { size: after * SPAN }, 0, 0);
        assert_eq!(log(&mut disk).join(", "), expected, "{before} to {after}");
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_eq!(disk.file.len(), len, "{before} to {after}");
        assert_sound(&disk.file, "moved");
    }
}

/// Nothing but the header changes: one round, that of what was written before.
#[test]
fn a_size_that_changes_no_entry_takes_one_round() {
    for size in [SPAN - 512, SPAN, SPAN + 512, SPAN + 5 * 512] {
        let (mut disk, mut image) = opened(qcow2_file(&create(SPAN + 512)));
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Resize { size }, 0, 0);
        let expected = ["write 0 512", "write 1024 512", "sync", "write 1536 512", "write 2560 512", "sync"];
        assert_eq!(log(&mut disk), expected, "{size}");
        assert_eq!(header(&disk.file).size, size);
    }
}

#[test]
fn the_same_size_waits_for_nobody() {
    for (size, alone) in [(SPAN - 512, true), (SPAN, false), (SPAN + 512, false)] {
        let (mut disk, mut image) = opened(qcow2_file(&create(SPAN)));
        if size > SPAN {
            // room for it in the L1 table
            (disk, image) = opened(qcow2_file(&create(SPAN + 512)));
            run(&mut disk, &mut image, RequestKind::Resize { size: SPAN }, 0, 0);
        }
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 1), vec![1; 512]).unwrap();
        disk.submit(&mut image, request(RequestKind::Resize { size }, 0, 0, 2), vec![]).unwrap();
        let other = image.submit(request(RequestKind::Map, 0, 512, 3));
        assert_eq!(other == Err(Refused::Busy), alone, "{size}");
        disk.settle(&mut image, &mut Rng(1));
        assert!(disk.done.iter().all(|answer| answer.1.is_ok()), "{size}");
        assert_eq!(image.virtual_size(), size);
    }
}

#[test]
fn a_move_that_fails_gives_its_space_back_at_once() {
    for (fail, written) in [(3, false), (4, true)] {
        let (mut disk, mut image) = opened(qcow2_file(&create(SPAN)));
        disk.log.clear();
        disk.fail = Some((fail, 5));
        assert!(answer(&mut disk, &mut image, RequestKind::Resize { size: 3 * SPAN }, 0).is_err());
        let mut expected = vec!["sync", "read 1024 512", "grow 2048 4096", "read 1536 512"];
        expected.extend(written.then_some("write 2048 512"));
        expected.push("hole 2048 1536");
        assert_eq!(log(&mut disk), expected);
        assert_eq!((image.poisoned().is_none(), image.virtual_size()), (true, SPAN));
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "after a move that failed");
        assert_eq!(disk.file.len(), 3072, "an L2 table and a cluster took the space");
    }
}

/// A size that is no multiple of 512 (QEMU rounds it down) stays as it is stored, until it is changed.
#[test]
fn a_move_that_fails_leaves_the_stored_size_alone() {
    for (fails, stored) in [(true, 1000), (false, 3 * SPAN)] {
        let mut file = qcow2_file(&CreateOptions { lazy_refcounts: true, ..create(1024) });
        file[24..32].copy_from_slice(&1000u64.to_be_bytes());
        let (mut disk, mut image) = opened(file);
        assert_eq!(image.virtual_size(), 512);
        disk.fail = fails.then_some((3, 5));
        assert_eq!(answer(&mut disk, &mut image, RequestKind::Resize { size: 3 * SPAN }, 0).is_err(), fails);
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        assert_eq!(log(&mut disk)[0], "write 0 512", "the dirty bit");
        assert_eq!(header(&disk.file).size, stored);
    }
}

/// An image with a cluster of data, and free clusters behind it.
fn with_free_space() -> Vec<u8> {
    let (mut disk, mut image) = opened(qcow2_file(&create(SPAN)));
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let len = disk.file.len() + 16 * 512;
    disk.file.resize(len, 0);
    // a snapshot table without an entry, behind the end: else the new table comes to lie there at once
    disk.file[64..72].copy_from_slice(&(len as u64).to_be_bytes());
    std::mem::take(&mut disk.file)
}

/// Opens it, has its free clusters found, and makes the disk larger.
fn moved(file: Vec<u8>) -> (Disk, Image) {
    let (mut disk, mut image) = opened(file);
    for _ in 0..2 {
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        run(&mut disk, &mut image, RequestKind::Write, 64 * 512, 512);
    }
    run(&mut disk, &mut image, RequestKind::Resize { size: 3 * SPAN }, 0, 0);
    (disk, image)
}

/// An entry leads to where the new L1 table will lie, to each of its clusters.
#[test]
fn nothing_is_written_to_the_new_place_of_an_l1_table() {
    let file = with_free_space();
    let to = header(&moved(file.clone()).0.file).l1_offset;
    assert!(to + 1536 <= file.len() as u64, "free space is used: {to}");
    for n in 0..3 {
        let (mut file, host) = (file.clone(), to + n * 512);
        set_l2_entry(&mut file, 5 * 512, COPIED | host);
        let (mut disk, mut image) = moved(file);
        assert_eq!((header(&disk.file).l1_offset, header(&disk.file).l1_entries), (to, 3 * 64));
        let table = disk.file[to as usize..][..1536].to_vec();
        let what = "overlaps the header, the L1 table or a snapshot's";
        let error = corrupt("L2 table, guest cluster", 5, host, what);
        assert_eq!(answer(&mut disk, &mut image, RequestKind::Write, 5 * 512), Err(error), "cluster {n}");
        assert!(disk.file[to as usize..][..1536] == table, "cluster {n}");
    }
}

#[test]
fn images_of_version_2_and_with_data_files_are_resized_as_far_as_they_can() {
    let file = qcow2_file(&CreateOptions { version: 2, ..create(SPAN) });
    let (mut disk, mut image) = opened(file);
    assert_eq!(answer(&mut disk, &mut image, RequestKind::Resize { size: 3 * SPAN }, 0), Ok(()));
    assert_eq!(header(&disk.file).size, 3 * SPAN);
    let file = qcow2_file(&CreateOptions { data_file: Some(b"d"), ..create(SPAN) });
    let (mut disk, mut image) = opened(file);
    for size in [SPAN - 512, SPAN + 512] {
        let refused = Refused::Invalid(Error::Unsupported(Lack::ResizeDataFile));
        assert_eq!(image.submit(request(RequestKind::Resize { size }, 0, 0, 0)), Err(refused));
    }
    assert_eq!(answer(&mut disk, &mut image, RequestKind::Resize { size: SPAN }, 0), Ok(()));
}

#[test]
fn a_raw_image_has_the_size_that_it_was_given() {
    for size in [1 << 19, 1 << 20, 1 << 21] {
        let mut disk = Disk::new(vec![1; 1 << 20], None, 1);
        let mut image = disk.open(options()).unwrap().image;
        run(&mut disk, &mut image, RequestKind::Resize { size }, 0, 0);
        assert_eq!((log(&mut disk), image.virtual_size()), (vec![format!("length {size}")], size));
        assert_eq!(disk.paths[&7], Met::FLUSH, "it counts as one");
        let read = run(&mut disk, &mut image, RequestKind::Read, size - 512, 512);
        assert_eq!(read, [u8::from(size <= 1 << 20); 512]);
        assert!(image.submit(request(RequestKind::Read, size - 512, 513, 0)).is_err());
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_eq!((log(&mut disk), image.virtual_size()), (vec!["sync".into()], size), "and no cut");
    }
}

/// Four writes of 8 KiB, at 2560 and behind; the last two are given up.
#[test]
fn a_close_cuts_the_file_where_its_data_ends() {
    for (grow_step, discards, end) in [(0, true, 18944), (1 << 20, true, 18944), (1 << 20, false, 35328)] {
        let mut disk = Disk::new(qcow2_file(&create(SPAN)), None, 1);
        let mut image = disk.open(options().grow_step(grow_step)).unwrap().image;
        for n in 0..4 {
            run(&mut disk, &mut image, RequestKind::Write, n * 8192, 8192);
        }
        if discards {
            run(&mut disk, &mut image, RequestKind::Discard, 2 * 8192, 2 * 8192);
        }
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_eq!(log(&mut disk), [format!("length {end}")]);
        assert_eq!((disk.file.len(), image.virtual_size()), (end, SPAN));
        assert_sound(&disk.file, "closed");
        // now there is nothing to cut
        let mut image = disk.open(options()).unwrap().image;
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_eq!(log(&mut disk), ["sync"]);
    }
}
