//! Which request waits for which, which does not, and what each is told.
//!
//! Checks: neighbours that touch do not wait for each other; the gate of new tables; a writer of whole blocks
//! wakes one that modifies a block; completions that come twice or late change nothing; the first failure of
//! a request is its answer; growth ahead that fails does not matter; a changed slice has its timer; so many
//! table writes are in flight and no more.

use quod_states::{AllocationGate, Error, Image, Io, IoOp, Machine, Options, Outcome, RequestKind, Timer};
use quod_states_tests::{Disk, Rng, qed_disk, request, write};

const CLUSTER: u64 = 65536;

fn setup(size: u64, backing: Option<Vec<u8>>, options: Options) -> (Disk, Image) {
    qed_disk(size, 1, backing, options)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 0), vec![1; len as usize]);
}

fn pending(disk: &Disk, wanted: fn(&IoOp) -> bool) -> usize {
    disk.pending.iter().filter(|(io, _)| wanted(&io.op)).count()
}

fn is_write(op: &IoOp) -> bool {
    matches!(op, IoOp::WriteData { .. })
}

fn is_table_write(op: &IoOp) -> bool {
    matches!(op, IoOp::WriteTable { offset, .. } if *offset > 0)
}

/// Completes the oldest I/O until one that is wanted is pending.
fn complete_to(disk: &mut Disk, image: &mut Image, wanted: fn(&IoOp) -> bool) {
    for _ in 0..1000 {
        if pending(disk, wanted) > 0 {
            return;
        }
        disk.complete_first(image);
    }
    panic!("it is never asked for");
}

#[test]
fn neighbours_do_not_wait_for_each_other() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    for cluster in [9, 8, 10, 7] {
        write(&mut disk, &mut image, cluster * CLUSTER, CLUSTER, cluster);
    }
    assert_eq!(pending(&disk, is_write), 4);
}

#[test]
fn the_gate_of_new_tables_holds_both_ways() {
    let options = Options::default().allocation_gate(AllocationGate::NewTable).grow_step(0);
    let (mut disk, mut image) = setup(8 << 30, None, options);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    // one that made a table for itself, in flight: the next one waits
    write(&mut disk, &mut image, 1 << 30, 512, 1);
    complete_to(&mut disk, &mut image, is_write);
    write(&mut disk, &mut image, CLUSTER, 512, 2);
    assert_eq!(pending(&disk, |op| !is_write(op)), 0, "the other does not even ask for space");
    disk.settle(&mut image, &mut Rng(1));
    // one without, in flight: whichever wants a table waits
    write(&mut disk, &mut image, 5 * CLUSTER, 512, 3);
    complete_to(&mut disk, &mut image, is_write);
    write(&mut disk, &mut image, 3 << 30, 512, 4);
    assert_eq!(disk.pending.len(), 1);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.done.len(), 4);
}

#[test]
fn a_writer_of_whole_blocks_wakes_one_that_modifies_a_block() {
    let options = Options::default().align(512);
    let (mut disk, mut image) = setup(1 << 30, None, options);
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER);
    write(&mut disk, &mut image, 0, 1024, 1);
    write(&mut disk, &mut image, 100, 200, 2);
    assert_eq!(disk.pending.len(), 1, "the second one waits for the sector");
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.done.len(), 2);
    // and the other way round: what reads the block's rest would write it back over the other's bytes
    write(&mut disk, &mut image, 100, 200, 6);
    write(&mut disk, &mut image, 0, 1024, 7);
    assert_eq!(pending(&disk, is_write), 0, "the writer waits for the one that modifies");
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.done.len(), 4);
    // no host range touches another: nobody waits, two read their head and tail
    write(&mut disk, &mut image, 512, 512, 3);
    write(&mut disk, &mut image, 100, 200, 4);
    write(&mut disk, &mut image, 1100, 200, 5);
    assert_eq!(disk.pending.len(), 1 + 2 * 2);
}

/// Completes an I/O a second time.
fn again(image: &mut Image, io: Io) {
    let digest = image.digest();
    let before = image.counters().stale_completions;
    image.handle_completion(io.id, Outcome::Done);
    assert_eq!((image.counters().stale_completions, image.digest()), (before + 1, digest), "{io:?}");
}

#[test]
fn completions_that_come_twice_or_late_change_nothing() {
    let options = Options::default().align(512).grow_step(0).acbs(1);
    let (mut disk, mut image) = setup(1 << 30, Some(vec![7; 4 << 16]), options);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Write, CLUSTER, CLUSTER);
    disk.submit(&mut image, request(RequestKind::Read, CLUSTER, 512, 1), vec![0; 512]).unwrap();
    let (old, _) = disk.pending[0].clone();
    disk.settle(&mut image, &mut Rng(1));
    again(&mut image, old);
    disk.submit(&mut image, request(RequestKind::Read, CLUSTER, 512, 2), vec![0; 512]).unwrap();
    assert_eq!(disk.pending[0].0.id.index, old.id.index, "the same control block");
    again(&mut image, old);
    disk.settle(&mut image, &mut Rng(1));
    // a block that is written in part has its head and its tail read: either may be there first
    for first in [0, 1] {
        disk.submit(&mut image, request(RequestKind::Write, CLUSTER + 100, 1000, 3), vec![5; 1000]).unwrap();
        assert_eq!(disk.pending.len(), 2);
        let (early, _) = disk.pending[first].clone();
        disk.complete(&mut image, first);
        again(&mut image, early);
        disk.settle(&mut image, &mut Rng(1));
    }
}

#[test]
fn the_first_failure_is_the_answer() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, 2 * CLUSTER, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, CLUSTER, CLUSTER);
    disk.submit(&mut image, request(RequestKind::Read, 0, 3 * CLUSTER, 1), vec![0; 3 << 16]).unwrap();
    assert_eq!(disk.pending.len(), 3);
    for (errno, fails) in [(0, false), (28, true), (5, true)] {
        disk.fail = fails.then_some((0, errno));
        disk.complete_first(&mut image);
    }
    let (_, result, ..) = disk.done.pop().unwrap();
    assert!(matches!(result, Err(Error::Device { errno: 28, .. })), "{result:?}");
    disk.submit(&mut image, request(RequestKind::Read, 0, 3 * CLUSTER, 1), vec![0; 3 << 16]).unwrap();
    disk.fail = Some((0, 5));
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.pop().unwrap().1.is_err(), "extents that end well do not hide it");
}

#[test]
fn growth_ahead_that_fails_does_not_matter() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default().grow_step(8 << 20));
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    let mut cluster = 1;
    let is_grow = |op: &IoOp| matches!(op, IoOp::Grow { .. });
    while pending(&disk, is_grow) == 0 {
        write(&mut disk, &mut image, cluster * CLUSTER, 512, cluster);
        while pending(&disk, is_write) > 0 {
            let write = disk.pending.iter().position(|(io, _)| is_write(&io.op)).unwrap();
            disk.complete(&mut image, write);
        }
        cluster += 1;
    }
    let grows = image.counters().grows;
    assert_eq!(disk.pending.len(), 1);
    disk.fail = Some((0, 28));
    disk.complete_first(&mut image);
    disk.fail = None;
    assert_eq!(
        (disk.pending.len(), image.counters().grows),
        (0, grows),
        "nobody waits: nothing is tried again"
    );
    write(&mut disk, &mut image, cluster * CLUSTER, 512, cluster);
    assert_eq!(pending(&disk, is_grow), 1, "the next writer tries");
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.iter().all(|(_, result, ..)| result.is_ok()));
}

#[test]
fn a_change_that_a_round_leaves_behind_has_its_timer() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    disk.alarms.clear();
    image.handle_timeout(Timer::Commit);
    disk.drain(&mut image);
    // another change of the same slice, while its data is made durable
    complete_to(&mut disk, &mut image, |op| matches!(op, IoOp::Sync));
    write(&mut disk, &mut image, CLUSTER, 512, 1);
    let index = disk.pending.iter().position(|(io, _)| is_write(&io.op)).unwrap();
    disk.complete(&mut image, index);
    disk.settle(&mut image, &mut Rng(1));
    let alarms: Vec<_> = disk.alarms.iter().map(|alarm| (alarm.timer, alarm.after_ms)).collect();
    assert_eq!(alarms, [(Timer::Commit, Some(1000))]);
}

#[test]
fn so_many_table_writes_are_in_flight_and_no_more() {
    // each in a slice of its own: 32 MiB apart
    let (mut disk, mut image) = setup(4 << 30, None, Options::default());
    for n in 0..40 {
        run(&mut disk, &mut image, RequestKind::Write, n << 25, 512);
    }
    disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]).unwrap();
    complete_to(&mut disk, &mut image, is_table_write);
    assert_eq!(pending(&disk, is_table_write), 32);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(image.counters().table_writes, 40 + 1);
}

#[test]
fn a_round_writes_only_what_changed() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let before = image.counters();
    // entries 130 and 200 of 64 a sector: the third and the fourth
    for cluster in [130, 200] {
        run(&mut disk, &mut image, RequestKind::Write, cluster * CLUSTER, 512);
    }
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let after = image.counters();
    assert_eq!(after.table_bytes_written - before.table_bytes_written, 1024);
    assert_eq!(after.header_writes, 1, "the bit was set");
    // nothing to write but data in place: no table, no header
    run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
    let before = image.counters();
    assert_eq!(before.header_writes, 2, "the bit was cleared");
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let after = image.counters();
    assert_eq!((after.header_writes, after.table_writes), (before.header_writes, before.table_writes));
    assert_eq!(after.syncs - before.syncs, 1);
}

#[test]
fn a_count_is_written_with_its_sector_alone() {
    let create = quod_states::qcow2::CreateOptions { size: 1 << 30, ..Default::default() };
    let mut disk = Disk::new(quod_states_tests::qcow2::qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    // 256 counts and 64 entries a sector
    for n in 1..600 {
        let before = image.counters().table_bytes_written;
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, 512);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        assert_eq!(image.counters().table_bytes_written - before, 1024, "write {n}");
    }
}

#[test]
fn who_only_reads_syncs_nothing() {
    let (mut disk, mut image) = setup(1 << 30, None, Options::default().read_only(true));
    for kind in [RequestKind::Flush, RequestKind::Quiesce, RequestKind::Close] {
        run(&mut disk, &mut image, kind, 0, 0);
    }
    assert_eq!((disk.log.len(), image.counters().commits), (0, 0));
}
