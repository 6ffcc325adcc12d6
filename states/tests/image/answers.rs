//! What an answer says of its request.
//!
//! Checks: the path that a request went; the runs that `Map` tells; of a request whose I/O failed what was
//! tried, and where; what is refused, and why.

use quod_states::qcow2::CreateOptions;
use quod_states::{
    Error, Extent, Flags, Image, IoOp, Met, Op, Options, Policy, Refused, Request, RequestKind, Status,
};
use quod_states_tests::qcow2::{compress, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_disk, request};

const CLUSTER: u64 = 65536;

fn qed(backing: Option<Vec<u8>>, options: Options) -> (Disk, Image) {
    qed_disk(1 << 30, 1, backing, options)
}

fn qcow2(file: Vec<u8>, options: Options) -> (Disk, Image) {
    let mut disk = Disk::new(file, None, options.align.into());
    let image = disk.open(options).unwrap().image;
    (disk, image)
}

/// One request alone, and the path that it went.
fn path(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Met {
    disk.run(image, request(kind, offset, len, 5), vec![7; len as usize]);
    disk.paths[&5]
}

#[test]
fn an_answer_tells_the_path() {
    let options = Options::default().align(512).policy(Policy::Writethrough);
    let (mut disk, mut image) = qed(Some(vec![3; CLUSTER as usize]), options);
    let (disk, image) = (&mut disk, &mut image);
    assert_eq!(path(disk, image, RequestKind::Read, 0, 512), Met::MISS | Met::BACKING);
    assert_eq!(path(disk, image, RequestKind::Read, CLUSTER, 512), Met::ZERO);
    assert_eq!(path(disk, image, RequestKind::WriteZeroes, 2 * CLUSTER, 512), Met::ZERO, "nothing is there");
    let new = Met::NEW_TABLE | Met::ALLOCATE | Met::BACKING | Met::FLUSH;
    assert_eq!(path(disk, image, RequestKind::Write, 0, 512), new);
    assert_eq!(path(disk, image, RequestKind::Write, CLUSTER, CLUSTER), Met::ALLOCATE | Met::FLUSH);
    assert_eq!(path(disk, image, RequestKind::Write, CLUSTER, 512), Met::HIT);
    assert_eq!(path(disk, image, RequestKind::Write, CLUSTER + 1, 512), Met::HIT | Met::MODIFY);
    assert_eq!(path(disk, image, RequestKind::Read, CLUSTER, 512), Met::HIT);
    // both extents are told of
    assert_eq!(path(disk, image, RequestKind::Read, CLUSTER, 2 * CLUSTER), Met::HIT | Met::ZERO);
    assert_eq!(path(disk, image, RequestKind::Flush, 0, 0), Met::FLUSH);
    // the second writer of a cluster waits for the first
    for user in 0..2 {
        disk.submit(image, request(RequestKind::Write, 9 * CLUSTER, 512, user), vec![1; 512]).unwrap();
    }
    disk.settle(image, &mut Rng(1));
    assert_eq!(disk.paths[&0], Met::ALLOCATE | Met::FLUSH);
    assert_eq!(disk.paths[&1], Met::WAITED | Met::HIT);
}

#[test]
fn map_tells_runs_of_all_kinds() {
    let create = CreateOptions { size: 1 << 22, ..CreateOptions::default() };
    let (mut disk, mut image) = qcow2(qcow2_file(&create), Options::default());
    for cluster in [0, 1, 4] {
        disk.run(
            &mut image,
            request(RequestKind::Write, cluster * CLUSTER, CLUSTER, 0),
            vec![1; CLUSTER as usize],
        );
    }
    disk.run(&mut image, request(RequestKind::WriteZeroes, 6 * CLUSTER, 2 * CLUSTER, 0), vec![]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    compress(&mut disk.file, &[4], &mut vec![0; 1 << 22]);
    let mut image = disk.open(Options::default()).unwrap().image;
    let first = quod_states_tests::qcow2::l2_entry(&disk.file, 0) & !(1 << 63);
    for (offset, len, status, host) in [
        (0, 2 * CLUSTER, Status::Data, Some(first)),
        (513, 2 * CLUSTER - 513, Status::Data, Some(first + 513)),
        (2 * CLUSTER, 2 * CLUSTER, Status::Unallocated, None),
        (4 * CLUSTER + 5, CLUSTER - 5, Status::Compressed, None),
        (6 * CLUSTER, 2 * CLUSTER, Status::Zero, None),
        (8 * CLUSTER, (1 << 22) - 8 * CLUSTER, Status::Unallocated, None),
    ] {
        disk.run(&mut image, request(RequestKind::Map, offset, (1 << 22) - offset, 0), vec![]);
        let told = disk.extent.map(|told: Extent| (told.offset, told.len, told.status, told.host));
        assert_eq!(told, Some((offset, len, status, host)));
    }
}

/// The error of a request when the first I/O that `wanted` names fails with EIO.
fn error(disk: &mut Disk, image: &mut Image, asked: Request, wanted: fn(&IoOp) -> bool) -> (Op, u64) {
    disk.submit(image, asked, vec![7; asked.len as usize]).unwrap();
    for _ in 0..1000 {
        let Some(index) = disk.pending.iter().position(|(io, _)| wanted(&io.op)) else {
            disk.complete_first(image);
            continue;
        };
        disk.fail = Some((0, 5));
        disk.complete(image, index);
        disk.settle(image, &mut Rng(1));
        return match disk.done.pop().unwrap().1 {
            Err(Error::Device { op, offset, errno: 5 }) => (op, offset),
            other => panic!("{asked:?}: {other:?}"),
        };
    }
    panic!("{asked:?} never asks for it");
}

#[test]
fn the_own_io_that_failed_is_named() {
    let options = Options::default().align(512).grow_step(0);
    let (mut disk, mut image) = qed(Some(vec![3; 4 * CLUSTER as usize]), options);
    let (disk, image) = (&mut disk, &mut image);
    disk.run(image, request(RequestKind::Write, CLUSTER, CLUSTER, 0), vec![1; CLUSTER as usize]);
    disk.run(image, request(RequestKind::Map, CLUSTER, 1, 0), vec![]);
    let host = disk.extent.unwrap().host.unwrap();
    let data = |op: &IoOp| matches!(op, IoOp::ReadData { .. });
    let fill = |op: &IoOp| matches!(op, IoOp::ReadFill { .. });
    let write = |op: &IoOp| matches!(op, IoOp::WriteData { .. });
    let backing = |op: &IoOp| matches!(op, IoOp::ReadBacking { .. });
    let zero = |op: &IoOp| matches!(op, IoOp::ZeroRange { .. });
    let read = request(RequestKind::Read, CLUSTER + 512, 512, 0);
    assert_eq!(error(disk, image, read, data), (Op::ReadData, host + 512));
    assert_eq!(error(disk, image, request(RequestKind::Read, 99, 1, 0), backing), (Op::ReadBacking, 99));
    let overwrite = request(RequestKind::Write, CLUSTER + 1024, 512, 0);
    assert_eq!(error(disk, image, overwrite, write), (Op::WriteData, host + 1024));
    let odd = request(RequestKind::Write, CLUSTER + 1025, 512, 0);
    assert_eq!(error(disk, image, odd, fill), (Op::ReadForModification, host + 1025));
    let new = request(RequestKind::Write, 2 * CLUSTER + 512, 512, 0);
    assert_eq!(error(disk, image, new, fill).0, Op::ReadForCopy);
    let zeroes = request(RequestKind::WriteZeroes, CLUSTER, 4096, 0);
    assert_eq!(error(disk, image, zeroes, zero), (Op::ZeroRange, host));
    let grow = |op: &IoOp| matches!(op, IoOp::SetLen { .. });
    let mut raw = Image::raw(4096, &Options::default());
    let mut disk = Disk::new(vec![0; 4096], None, 1);
    assert_eq!(
        error(&mut disk, &mut raw, request(RequestKind::Resize { size: 8192 }, 0, 0, 0), grow).0,
        Op::SetLen
    );
}

#[test]
fn the_table_that_failed_is_named() {
    let create = CreateOptions { size: 1 << 22, ..CreateOptions::default() };
    let (mut disk, mut image) = qcow2(qcow2_file(&create), Options::default());
    for n in [0, 1] {
        disk.run(&mut image, request(RequestKind::Write, n * CLUSTER, CLUSTER, 0), vec![1; CLUSTER as usize]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    compress(&mut disk.file, &[1], &mut vec![0; 1 << 22]);
    let file = &disk.file;
    let header = quod_states_tests::qcow2::header(file);
    let (l1, table) = (header.l1_offset, header.reftable_offset as usize);
    let block = u64::from_be_bytes(file[table..table + 8].try_into().unwrap());
    let l2 = quod_states_tests::qcow2::l2_at(file, 0).unwrap();
    let any_table = |op: &IoOp| matches!(op, IoOp::ReadTable { .. });
    let compressed = |op: &IoOp| matches!(op, IoOp::ReadCompressed { .. });
    let mut image = disk.open(Options::default()).unwrap().image;
    let disk = &mut disk;
    assert_eq!(error(disk, &mut image, request(RequestKind::Read, 0, 1, 0), any_table), (Op::ReadL1, l1));
    let l2_read = |op: &IoOp| matches!(op, IoOp::ReadTable { offset, .. } if *offset >= 4 * CLUSTER);
    assert_eq!(error(disk, &mut image, request(RequestKind::Read, 0, 1, 0), l2_read), (Op::ReadL2, l2));
    let read = request(RequestKind::Read, CLUSTER, 512, 0);
    assert_eq!(error(disk, &mut image, read, compressed).0, Op::ReadCompressed);
    let new = request(RequestKind::Write, 9 * CLUSTER, 512, 0);
    assert_eq!(error(disk, &mut image, new, any_table), (Op::ReadRefcounts, block));
}

fn refusal(image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Option<Error> {
    match image.submit(request(kind, offset, len, 0)) {
        Ok(_) => None,
        Err(Refused::Invalid(error)) => Some(error),
        Err(Refused::Busy) => panic!("nothing is open"),
    }
}

#[test]
fn what_is_refused_and_what_is_not() {
    const SIZE: u64 = 1 << 30;
    let beyond = Some(Error::Misuse("the range lies beyond the end of the disk"));
    let reading = Some(Error::Misuse("the image is open for reading only"));
    let (_, mut image) = qed(None, Options::default().read_only(true));
    for kind in [RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Discard] {
        assert_eq!(refusal(&mut image, kind, 0, 512), reading, "{kind:?}");
    }
    assert_eq!(refusal(&mut image, RequestKind::Resize { size: 512 }, 0, 0), reading);
    assert_eq!(refusal(&mut image, RequestKind::Read, SIZE, 1), beyond);
    for kind in [
        RequestKind::Read,
        RequestKind::Map,
        RequestKind::Write,
        RequestKind::WriteZeroes,
        RequestKind::Discard,
    ] {
        for (offset, len) in [(SIZE - 512, 513), (SIZE, 1), (u64::MAX, 2), (u64::MAX, 1)] {
            let (_, mut image) = qed(None, Options::default());
            assert_eq!(refusal(&mut image, kind, offset, len), beyond, "{kind:?} {offset:#x}");
        }
        for (offset, len) in [(SIZE - 512, 512), (SIZE, 0), (0, SIZE)] {
            let (_, mut image) = qed(None, Options::default());
            assert_eq!(refusal(&mut image, kind, offset, len), None, "{kind:?} {offset:#x}");
        }
    }
    // these have no range
    for kind in [RequestKind::Flush, RequestKind::Quiesce, RequestKind::Close] {
        let (_, mut image) = qed(None, Options::default());
        assert_eq!(refusal(&mut image, kind, u64::MAX, u64::MAX), None, "{kind:?}");
    }
    let (mut disk, mut image) = qed(None, Options::default());
    assert_eq!(image.open_requests(), 0);
    disk.submit(&mut image, request(RequestKind::Read, 0, 512, 0), vec![0; 512]).unwrap();
    assert_eq!(image.open_requests(), 1);
    disk.submit(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]).unwrap();
    assert_eq!(refusal(&mut image, RequestKind::Read, 0, 512), Some(Error::Closed));
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(refusal(&mut image, RequestKind::Flush, 0, 0), Some(Error::Closed));
}

#[test]
fn requests_beyond_the_limit_are_busy() {
    for (requests, acbs) in [(2, 8), (8, 2)] {
        let (mut disk, mut image) = qed(None, Options::default().requests(requests).acbs(acbs));
        let read = Request { kind: RequestKind::Read, offset: 0, len: 512, flags: Flags::empty(), user: 0 };
        for _ in 0..2 {
            disk.submit(&mut image, read, vec![0; 512]).unwrap();
        }
        assert_eq!(image.submit(read), Err(Refused::Busy));
        disk.settle(&mut image, &mut Rng(1));
        disk.submit(&mut image, read, vec![0; 512]).unwrap();
    }
}
