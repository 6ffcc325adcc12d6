//! What emptying an image does to the file: each I/O in its order, and what the disk reads afterwards.
//!
//! Checks: entries and L1 entries go, durably, before anything is freed or cut; the backing layer shows; a
//! cut that fails ends all changes; nothing is accepted meanwhile; what has no tables is never empty.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, Refused, RequestKind};
use quod_states_tests::qcow2::{assert_sound, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_disk, request};

const CLUSTER: u64 = 512;

fn options() -> Options {
    Options::default().grow_step(0)
}

fn opened(size: u64, backing: Option<Vec<u8>>) -> (Disk, Image) {
    let create = CreateOptions { size, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), backing, 1);
    let image = disk.open(options()).unwrap().image;
    (disk, image)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 7), vec![9; len as usize]);
}

/// What the guest reads.
fn read_all(disk: &mut Disk, image: &mut Image) -> Vec<u8> {
    let size = image.virtual_size();
    disk.run(image, request(RequestKind::Read, 0, size, 7), vec![0xcc; size as usize])
}

/// The order of what matters since the log was cleared.
fn order(disk: &mut Disk) -> Vec<&'static str> {
    let name = |op: IoOp| match op {
        IoOp::WriteTable { offset: 0, .. } => Some("header"),
        IoOp::WriteTable { .. } => Some("table"),
        IoOp::Sync => Some("sync"),
        IoOp::PunchHole { .. } => Some("hole"),
        IoOp::SetLen { .. } => Some("length"),
        _ => None,
    };
    let mut found: Vec<&str> = disk.log.drain(..).filter_map(|step| name(step.op)).collect();
    found.dedup();
    found
}

#[test]
fn a_qcow2_image_gives_its_tables_up_when_nothing_leads_to_them_durably() {
    let size = 64 * 64 * CLUSTER;
    let (mut disk, mut image) = opened(size, Some(vec![3; size as usize]));
    for at in [0, 5 * CLUSTER, 64 * CLUSTER, size - CLUSTER] {
        run(&mut disk, &mut image, RequestKind::Write, at, CLUSTER);
    }
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    disk.log.clear();
    run(&mut disk, &mut image, RequestKind::Empty, 0, 0);
    disk.settle(&mut image, &mut Rng(1));
    let order = order(&mut disk);
    let first = |name| order.iter().position(|found| *found == name).unwrap();
    let syncs: Vec<usize> = (0..order.len()).filter(|index| order[*index] == "sync").collect();
    assert!(syncs.iter().any(|sync| first("table") < *sync && *sync < first("hole")), "{order:?}");
    assert_eq!(read_all(&mut disk, &mut image), vec![3; size as usize]);
    // it is used again
    run(&mut disk, &mut image, RequestKind::Write, 64 * CLUSTER, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "emptied, and written again");
    // header, refcount table and block, L1 table; one cluster of data and its table, with no room behind
    assert_eq!(disk.file.len() as u64, 6 * CLUSTER);
}

#[test]
fn an_emptied_qed_file_is_cut_when_its_table_is_durable() {
    let size = 1 << 24;
    let (mut disk, mut image) = qed_disk(size, 4, Some(vec![3; 1 << 20]), options());
    let fresh = disk.file.len();
    for at in [0, 5 << 16] {
        run(&mut disk, &mut image, RequestKind::Write, at, 4096);
    }
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    disk.log.clear();
    run(&mut disk, &mut image, RequestKind::Empty, 0, 0);
    let order = order(&mut disk);
    let at = |name| order.iter().position(|found| *found == name).unwrap();
    assert!(order[at("table")..at("length")].contains(&"sync"), "{order:?}");
    assert_eq!(order.iter().rposition(|found| *found == "length"), Some(at("length")));
    assert_eq!(disk.file.len(), fresh);
    let bytes = read_all(&mut disk, &mut image);
    assert!(bytes[..1 << 20].iter().all(|byte| *byte == 3) && bytes[1 << 20..].iter().all(|byte| *byte == 0));
    // space that held something is zeros when it has a new owner
    run(&mut disk, &mut image, RequestKind::Write, 2 << 20, 512);
    let bytes = read_all(&mut disk, &mut image);
    assert_eq!(bytes[2 << 20..(2 << 20) + 512], [9; 512]);
    assert!(bytes[(2 << 20) + 512..].iter().all(|byte| *byte == 0));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
}

#[test]
fn a_file_that_cannot_be_cut_takes_no_more_changes() {
    let (mut disk, mut image) = qed_disk(1 << 24, 4, None, options());
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    disk.submit(&mut image, request(RequestKind::Empty, 0, 0, 7), vec![]).unwrap();
    while !disk.pending.is_empty() {
        if matches!(disk.pending[0].0.op, IoOp::SetLen { .. }) {
            disk.fail = Some((0, 5));
        }
        disk.complete_first(&mut image);
    }
    assert!(disk.done.pop().unwrap().1.is_err());
    let write = disk.submit(&mut image, request(RequestKind::Write, 1 << 20, 512, 8), vec![1; 512]);
    disk.settle(&mut image, &mut Rng(1));
    assert!(write.is_err() || disk.done.pop().unwrap().1.is_err());
}

#[test]
fn it_runs_alone_and_only_where_there_are_tables() {
    let (mut disk, mut image) = opened(64 * 64 * CLUSTER, None);
    disk.submit(&mut image, request(RequestKind::Write, 0, CLUSTER, 1), vec![1; 512]).unwrap();
    disk.submit(&mut image, request(RequestKind::Empty, 0, 0, 2), vec![]).unwrap();
    for kind in
        [RequestKind::Flush, RequestKind::Empty, RequestKind::Resize { size: 512 }, RequestKind::Close]
    {
        assert_eq!(image.submit(request(kind, 0, 0, 3)), Err(Refused::Busy), "{kind:?}");
    }
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.iter().all(|(_, result, ..)| result.is_ok()));
    assert!(read_all(&mut disk, &mut image).iter().all(|byte| *byte == 0));
    let mut raw = Image::raw(1 << 20, &options());
    let refused = raw.submit(request(RequestKind::Empty, 0, 0, 0));
    assert!(matches!(refused, Err(Refused::Invalid(Error::Misuse(_)))), "{refused:?}");
}
