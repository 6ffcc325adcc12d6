//! Tables on their way to another place when the image is poisoned: nothing more is written.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, RequestKind, Timer};
use quod_states_tests::qcow2::{opened, qcow2_file, snapshot};
use quod_states_tests::{Disk, request, write};

const CLUSTER: u64 = 65536;

fn writes(op: &IoOp) -> bool {
    matches!(op, IoOp::WriteTable { .. } | IoOp::WriteData { .. } | IoOp::PunchHole { .. } | IoOp::Sync)
}

/// The counts of the space that a table moves to cannot be written, while a chunk of it is being read.
fn poison_while_reading(disk: &mut Disk, image: &mut Image, user: u64) {
    let chunk = |op: &IoOp| matches!(op, IoOp::ReadTable { len: 65536, .. });
    while !disk.pending.iter().any(|(io, _)| chunk(&io.op)) {
        disk.complete_first(image);
    }
    image.handle_timeout(Timer::Commit);
    disk.drain(image);
    let counts = disk.pending.iter().position(|(io, _)| matches!(io.op, IoOp::WriteTable { .. }));
    disk.fail = Some((0, 5));
    disk.complete(image, counts.expect("a round has begun"));
    assert!(image.poisoned().is_some());
    disk.log.clear();
    while !disk.pending.is_empty() {
        disk.complete_first(image);
    }
    assert!(!disk.log.iter().any(|step| writes(&step.op)), "written after the failure");
    let answer = disk.done.iter().find(|done| done.0 == user).unwrap();
    assert_eq!(answer.1, Err(Error::Poisoned));
    assert_eq!(image.open_requests(), 0);
}

#[test]
fn a_copy_of_a_shared_table_ends_with_the_failure() {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    disk.run(&mut image, request(RequestKind::Write, 0, CLUSTER, 0), vec![1; 1 << 16]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    let mut image = opened(&mut disk, Options::default()).image;
    write(&mut disk, &mut image, 0, 512, 7);
    poison_while_reading(&mut disk, &mut image, 7);
}

/// An L1 table of two chunks.
#[test]
fn a_move_of_the_l1_table_ends_with_the_failure() {
    let create = CreateOptions { size: 16384 << 15, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    disk.submit(&mut image, request(RequestKind::Resize { size: 32768 << 15 }, 0, 0, 7), vec![]).unwrap();
    poison_while_reading(&mut disk, &mut image, 7);
}
