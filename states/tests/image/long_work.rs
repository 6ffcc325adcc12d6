//! Work that is too long for one call, and much of it.
//!
//! Checks: a long discard, and the counts that go down after it, are done in bounded turns and to the end;
//! holes are punched one after another for ever; a disk that grew far is mapped to its end.

use quod_states::qcow2::CreateOptions;
use quod_states::{Image, IoOp, Options, RequestKind};
use quod_states_tests::qcow2::{assert_sound, count, l2_entry, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_file, request};

/// 512-byte clusters: many for little.
fn narrow(size: u64) -> (Disk, Image) {
    let create = CreateOptions { size, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let image = disk.open(Options::default().grow_step(0)).unwrap().image;
    (disk, image)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 0), vec![1; len as usize]);
}

fn steps(disk: &Disk, wanted: fn(&IoOp) -> bool) -> usize {
    disk.log.iter().filter(|step| wanted(&step.op)).count()
}

fn is_yield(op: &IoOp) -> bool {
    matches!(op, IoOp::Yield)
}

#[test]
fn a_long_discard_takes_turns() {
    const CLUSTERS: u64 = 3000;
    let (mut disk, mut image) = narrow(2 << 20);
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTERS * 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let hosts: Vec<u64> = (0..CLUSTERS).map(|n| (l2_entry(&disk.file, n * 512) & !(1 << 63)) / 512).collect();
    assert!(hosts.iter().all(|host| count(&disk.file, *host) == 1));
    disk.log.clear();
    run(&mut disk, &mut image, RequestKind::Discard, 0, CLUSTERS * 512);
    let discard = steps(&disk, is_yield);
    run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
    let counting = steps(&disk, is_yield) - discard;
    assert_eq!((discard, counting), (0, 2), "64 changes a table; 1024 counts a turn");
    assert!(hosts.iter().all(|host| count(&disk.file, *host) == 0));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "all of it is gone");
}

#[test]
fn a_long_discard_in_one_table_takes_turns() {
    // tables of 512 entries
    let create = CreateOptions { size: 4 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 4 << 20);
    for (clusters, turns) in [(1024, 1), (255, 0), (256, 0), (600, 1)] {
        run(&mut disk, &mut image, RequestKind::Write, 0, 4 << 20);
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Discard, 0, clusters * 4096);
        assert_eq!(steps(&disk, is_yield), turns, "{clusters} clusters");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

#[test]
fn holes_are_punched_one_after_another() {
    let (mut disk, mut image) = narrow(1 << 20);
    run(&mut disk, &mut image, RequestKind::Write, 0, 100 * 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    disk.log.clear();
    for n in 0..20 {
        run(&mut disk, &mut image, RequestKind::Discard, n * 4 * 512, 512);
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        assert_eq!(steps(&disk, |op| matches!(op, IoOp::PunchHole { len: 512, .. })) as u64, n + 1);
    }
    // many at once: eight are in flight, the others follow
    for n in 0..20 {
        run(&mut disk, &mut image, RequestKind::Discard, (n * 4 + 2) * 512, 512);
    }
    disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 1), vec![]).unwrap();
    let punches =
        |disk: &Disk| disk.pending.iter().filter(|(io, _)| matches!(io.op, IoOp::PunchHole { .. })).count();
    let mut most = 0;
    for _ in 0..1000 {
        most = most.max(punches(&disk));
        let Some(index) = disk.pending.iter().position(|(io, _)| !matches!(io.op, IoOp::PunchHole { .. }))
        else {
            break;
        };
        disk.complete(&mut image, index);
    }
    assert_eq!(most, 8);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(steps(&disk, |op| matches!(op, IoOp::PunchHole { .. })), 40);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

#[test]
fn a_disk_that_grew_far_is_mapped_to_its_end() {
    let mut disk = Disk::new(qed_file(1 << 30, 65536, 16, None), None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    let size = 16 << 40;
    run(&mut disk, &mut image, RequestKind::Resize { size }, 0, 0);
    run(&mut disk, &mut image, RequestKind::Write, size - 512, 512);
    let read = disk.run(&mut image, request(RequestKind::Read, size - 1024, 1024, 0), vec![7; 1024]);
    assert_eq!((&read[..512], &read[512..]), (&[0; 512][..], &[1; 512][..]));
    assert_eq!(image.counters().misses, 2, "the tables stay where they were found");
}
