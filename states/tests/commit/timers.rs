//! What happens though nobody asks for it, and what is counted.
//!
//! Checks: the first change sets the commit's timer, and what it writes is all that a flush would; the timer
//! of QED's need-check bit runs only while nothing is to be written, and clears the bit; counters, to the
//! last.

use quod_states::qcow2::CreateOptions;
use quod_states::{Alarm, Counters, Image, IoOp, Options, Policy, RequestKind, Timer};
use quod_states_tests::qcow2::{assert_sound, count, l2_entry, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_file, request};

const CLUSTER: u64 = 65536;
const NEED_CHECK: u8 = 2;

fn qed(options: Options) -> (Disk, Image) {
    let mut disk = Disk::new(qed_file(1 << 30, CLUSTER as u32, 1, None), None, 1);
    let image = disk.open(options).unwrap().image;
    (disk, image)
}

fn qcow2(options: Options) -> (Disk, Image) {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let image = disk.open(options).unwrap().image;
    (disk, image)
}

fn write(disk: &mut Disk, image: &mut Image, cluster: u64) {
    disk.run(image, request(RequestKind::Write, cluster * CLUSTER, 4096, 0), vec![1; 4096]);
}

fn alarms(disk: &mut Disk) -> Vec<(Timer, Option<u32>)> {
    std::mem::take(&mut disk.alarms).into_iter().map(|Alarm { timer, after_ms }| (timer, after_ms)).collect()
}

fn timeout(disk: &mut Disk, image: &mut Image, timer: Timer) {
    image.handle_timeout(timer);
    disk.drain(image);
    disk.settle(image, &mut Rng(1));
}

const COMMIT: (Timer, Option<u32>) = (Timer::Commit, Some(1000));
const CHECK: (Timer, Option<u32>) = (Timer::NeedCheck, Some(5000));
const NO_CHECK: (Timer, Option<u32>) = (Timer::NeedCheck, None);

#[test]
fn the_timers_of_qed_take_turns() {
    let (mut disk, mut image) = qed(Options::default());
    write(&mut disk, &mut image, 0);
    write(&mut disk, &mut image, 1);
    assert_eq!(alarms(&mut disk), [COMMIT], "once for both");
    let table = |disk: &Disk| disk.file[CLUSTER as usize..][..8] != [0; 8] && disk.file[16] & NEED_CHECK != 0;
    assert!(!table(&disk), "nothing is written yet");
    timeout(&mut disk, &mut image, Timer::Commit);
    assert!(table(&disk));
    assert_eq!(alarms(&mut disk), [CHECK]);
    // a write in place changes nothing of that
    write(&mut disk, &mut image, 1);
    assert_eq!(alarms(&mut disk), []);
    write(&mut disk, &mut image, 2);
    assert_eq!(alarms(&mut disk), [COMMIT, NO_CHECK]);
    timeout(&mut disk, &mut image, Timer::Commit);
    assert_eq!(alarms(&mut disk), [CHECK]);
    // not while an allocating write is on its way
    disk.submit(&mut image, request(RequestKind::Write, 9 * CLUSTER, 512, 1), vec![1; 512]).unwrap();
    image.handle_timeout(Timer::NeedCheck);
    disk.drain(&mut image);
    assert_eq!(alarms(&mut disk), [CHECK]);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(alarms(&mut disk), [COMMIT, NO_CHECK]);
    timeout(&mut disk, &mut image, Timer::Commit);
    assert_eq!(alarms(&mut disk), [CHECK]);
    timeout(&mut disk, &mut image, Timer::NeedCheck);
    assert!(!table(&disk), "the bit is clear");
    assert_eq!(alarms(&mut disk), []);
    let before = image.counters();
    timeout(&mut disk, &mut image, Timer::Commit);
    assert_eq!((image.counters(), alarms(&mut disk)), (before, vec![]), "an idle image stays idle");
    timeout(&mut disk, &mut image, Timer::NeedCheck);
    assert_eq!((image.counters().syncs, alarms(&mut disk)), (before.syncs, vec![]));
}

#[test]
fn the_commit_timer_does_what_a_flush_does() {
    let (mut disk, mut image) = qcow2(Options::default());
    for cluster in 0..3 {
        write(&mut disk, &mut image, cluster);
    }
    assert_eq!((alarms(&mut disk), l2_entry(&disk.file, 0)), (vec![COMMIT], 0));
    timeout(&mut disk, &mut image, Timer::Commit);
    let data = l2_entry(&disk.file, CLUSTER) & !(1 << 63);
    assert_eq!((data % CLUSTER, count(&disk.file, data / CLUSTER)), (0, 1));
    assert_eq!(alarms(&mut disk), []);
    disk.run(&mut image, request(RequestKind::Discard, CLUSTER, CLUSTER, 0), vec![]);
    // until the removal is durable, its count has gone down, and that is written
    let mut turns = 0;
    while let [COMMIT] = alarms(&mut disk)[..] {
        timeout(&mut disk, &mut image, Timer::Commit);
        turns += 1;
        assert!(turns < 5, "it comes to rest");
    }
    assert_eq!((l2_entry(&disk.file, CLUSTER), count(&disk.file, data / CLUSTER)), (1, 0));
    assert!(disk.log.iter().any(|step| matches!(step.op, IoOp::PunchHole { host, .. } if host == data)));
    assert_sound(&disk.file, "by timers alone");
}

#[test]
fn a_poisoned_image_has_no_timers() {
    let (mut disk, mut image) = qed(Options::default().policy(Policy::Writethrough));
    write(&mut disk, &mut image, 0);
    disk.submit(&mut image, request(RequestKind::Write, CLUSTER, 512, 1), vec![1; 512]).unwrap();
    while !disk.pending.iter().any(|(io, _)| matches!(io.op, IoOp::Sync)) {
        disk.complete_first(&mut image);
    }
    disk.fail = Some((0, 5));
    disk.settle(&mut image, &mut Rng(1));
    assert!(image.poisoned().is_some());
    alarms(&mut disk);
    disk.log.clear();
    for timer in [Timer::Commit, Timer::NeedCheck] {
        timeout(&mut disk, &mut image, timer);
    }
    assert_eq!((disk.log.len(), alarms(&mut disk)), (0, vec![]));
}

#[test]
fn counters_count() {
    let (mut disk, mut image) = qed(Options::default());
    for cluster in [0, 1, 2] {
        write(&mut disk, &mut image, cluster);
    }
    disk.run(&mut image, request(RequestKind::Read, 0, 4096, 0), vec![0; 4096]);
    disk.run(&mut image, request(RequestKind::Read, 1, 2 * CLUSTER, 0), vec![0; 2 * CLUSTER as usize]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    let mut counters = Counters::default();
    counters.hits = 5;
    counters.misses = 1;
    counters.allocations = 3;
    counters.table_reads = 1;
    counters.table_writes = 2;
    counters.table_bytes_written = 1024;
    counters.syncs = 2;
    counters.grows = 1;
    counters.commits = 2;
    counters.new_tables = 1;
    counters.header_writes = 1;
    assert_eq!(image.counters(), counters);
}
