//! What the rounds of the commit pipeline promise to the acbs that wait, and what they leave undone.
//!
//! Checks:
//! * an acb that waits shows the step that it waits for; a quiesce ends when the cleared bit is durable, and
//!   no sooner, and clears it once;
//! * the dirty bit is set by the round that writes pointers, and by no other (QE1, QC12);
//! * after a failure nothing is written, whatever was on its way; the corrupt bit waits for its turn;
//! * counts that a round leaves behind have their timer.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Op, Options, RequestKind, Timer};
use quod_states_tests::qcow2::{header, opened, qcow2_file, set_l2_entry};
use quod_states_tests::{Disk, Rng, qed_disk, request, write};

const CLUSTER: u64 = 65536;

fn qcow2(lazy_refcounts: bool) -> (Disk, Image) {
    let create = CreateOptions { size: 1 << 30, lazy_refcounts, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let image = opened(&mut disk, Options::default().grow_step(0)).image;
    (disk, image)
}

fn qed() -> (Disk, Image) {
    qed_disk(1 << 30, 1, None, Options::default().grow_step(0))
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 0), vec![1; len as usize]);
}

fn start(disk: &mut Disk, image: &mut Image, kind: RequestKind, user: u64) {
    disk.submit(image, request(kind, 0, 0, user), vec![]).unwrap();
}

/// What a step is, in a fresh qcow2 image with clusters of 64 KiB.
fn name(op: &IoOp) -> &'static str {
    match op {
        IoOp::WriteTable { offset, .. } => match offset / CLUSTER {
            0 => "header",
            1 => "refcount table",
            2 => "refcounts",
            3 => "L1",
            _ => "L2",
        },
        IoOp::WriteData { .. } => "data",
        IoOp::Sync => "sync",
        IoOp::Grow { .. } => "grow",
        IoOp::PunchHole { .. } => "punch",
        IoOp::Yield => "pause",
        _ => "other",
    }
}

/// The names of all steps since the log was cleared, in the order of their submission.
fn steps(disk: &Disk) -> Vec<&'static str> {
    disk.log.iter().map(|step| name(&step.op)).collect()
}

fn pending(disk: &Disk) -> Vec<&'static str> {
    disk.pending.iter().map(|(io, _)| name(&io.op)).collect()
}

/// Completes the first pending step of this name.
fn complete(disk: &mut Disk, image: &mut Image, wanted: &str) {
    let index = disk.pending.iter().position(|(io, _)| name(&io.op) == wanted);
    disk.complete(image, index.unwrap_or_else(|| panic!("no {wanted} among {:?}", pending(disk))));
}

fn settle(disk: &mut Disk, image: &mut Image) {
    disk.settle(image, &mut Rng(1));
}

/// Lets a write get as far as its data.
fn write_to_data(disk: &mut Disk, image: &mut Image, cluster: u64, user: u64) {
    write(disk, image, cluster * CLUSTER, 512, user);
    for _ in 0..100 {
        let Some(index) = disk.pending.iter().position(|(io, _)| matches!(name(&io.op), "other" | "grow"))
        else {
            return;
        };
        disk.complete(image, index);
    }
    panic!("it never comes to rest");
}

#[test]
fn who_waits_shows_the_step_that_it_waits_for() {
    let (mut disk, mut image) = qcow2(true);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    disk.log.clear();
    start(&mut disk, &mut image, RequestKind::Quiesce, 1);
    let mut seen = Vec::new();
    while let Some((io, _)) = disk.pending.first() {
        let text = image.describe();
        let state = text.strip_prefix("acb 0: ").and_then(|text| text.split(' ').next()).unwrap();
        seen.push((name(&io.op), state.to_string()));
        disk.complete_first(&mut image);
    }
    let seen: Vec<_> = seen.iter().map(|(name, state)| (*name, state.as_str())).collect();
    let expected = [
        ("header", "MarkDirty"),
        ("refcounts", "MarkDirty"),
        ("sync", "SyncData"),
        ("L1", "UpdateL2"),
        ("L2", "UpdateL2"),
        ("sync", "SyncTables"),
        ("header", "SyncTables"),
        ("sync", "SyncTables"),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_quiesce_ends_when_the_cleared_bit_is_durable() {
    for (mut disk, mut image) in [qed(), qcow2(true)] {
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        disk.log.clear();
        start(&mut disk, &mut image, RequestKind::Quiesce, 1);
        while disk.done.is_empty() {
            disk.complete_first(&mut image);
        }
        assert!(disk.pending.is_empty(), "nothing is on its way when it is answered");
        let last = steps(&disk);
        assert!(last.ends_with(&["header", "sync"]), "{last:?}");
        // a bit that cannot be cleared fails it
        run(&mut disk, &mut image, RequestKind::Write, CLUSTER, 512);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        disk.done.clear();
        start(&mut disk, &mut image, RequestKind::Quiesce, 2);
        while pending(&disk)[0] != "header" {
            disk.complete_first(&mut image);
        }
        disk.fail = Some((0, 5));
        settle(&mut disk, &mut image);
        let (_, result, ..) = disk.done.pop().unwrap();
        assert!(
            matches!(result, Err(Error::Device { op: Op::ClearDirty, offset: 0, errno: 5 })),
            "{result:?}"
        );
    }
}

/// The second request came when the bit was being cleared: it has a dirty period of its own, which nobody
/// asked to end.
#[test]
fn a_quiesce_that_has_ended_clears_no_bit_for_others() {
    let (mut disk, mut image) = qed();
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    start(&mut disk, &mut image, RequestKind::Quiesce, 1);
    while image.counters().header_writes < 2 {
        disk.complete_first(&mut image);
    }
    assert_eq!(pending(&disk), ["header"], "the bit is being cleared");
    write(&mut disk, &mut image, CLUSTER, 512, 2);
    assert_eq!(pending(&disk), ["header"], "the file grows when the bit is set again (QE12)");
    disk.log.clear();
    settle(&mut disk, &mut image);
    start(&mut disk, &mut image, RequestKind::Flush, 3);
    settle(&mut disk, &mut image);
    assert_eq!(disk.done.iter().map(|done| done.0).collect::<Vec<_>>(), [1, 2, 3]);
    // the names of the others are those of another format
    let kinds: Vec<_> =
        steps(&disk).into_iter().map(|name| if name == "header" { name } else { "-" }).collect();
    assert_eq!(
        kinds,
        ["-", "header", "-", "-", "-", "-", "-"],
        "sync; header, grow, data; sync, table, sync"
    );
    assert_eq!(image.counters().header_writes, 3);
}

/// The first write's data comes too late for the quiesce's round, whose next round only has counts to write.
#[test]
fn a_round_that_writes_no_pointers_sets_no_dirty_bit() {
    let (mut disk, mut image) = qcow2(true);
    run(&mut disk, &mut image, RequestKind::WriteZeroes, 0, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
    disk.log.clear();
    let before = image.counters().header_writes;
    write_to_data(&mut disk, &mut image, 0, 1);
    start(&mut disk, &mut image, RequestKind::Quiesce, 2);
    complete(&mut disk, &mut image, "refcounts");
    assert_eq!(pending(&disk), ["data", "sync"]);
    write_to_data(&mut disk, &mut image, 1, 3);
    let late = disk.pending.iter().position(|(io, _)| name(&io.op) == "data").unwrap();
    disk.complete(&mut image, late);
    complete(&mut disk, &mut image, "sync");
    complete(&mut disk, &mut image, "refcounts");
    complete(&mut disk, &mut image, "sync");
    assert_eq!(disk.done.last().map(|done| (done.0, done.1.is_ok())), Some((2, true)));
    assert!(!header(&disk.file).is_dirty() && image.counters().header_writes == before, "{:?}", steps(&disk));
}

/// A header without the bit, written in a round of its own, is not the one that sets it.
#[test]
fn a_header_with_a_new_size_does_not_stand_for_the_dirty_bit() {
    let (mut disk, mut image) = qcow2(true);
    run(&mut disk, &mut image, RequestKind::Resize { size: 2 << 30 }, 0, 0);
    assert!(!header(&disk.file).is_dirty());
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    disk.log.clear();
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    assert_eq!(steps(&disk), ["header", "sync", "L2", "L1", "sync"], "counts may wait, the bit says so");
    assert!(header(&disk.file).is_dirty());
}

/// Lazy counts wait where the dirty bit says so; where it is clear they are written, with a timer like all
/// else, and what a round leaves behind has a timer again.
#[test]
fn counts_that_a_round_leaves_behind_have_their_timer() {
    for lazy in [false, true] {
        let (mut disk, mut image) = qcow2(lazy);
        // so that there is a table
        run(&mut disk, &mut image, RequestKind::WriteZeroes, 0, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        image.handle_timeout(Timer::Commit);
        disk.alarms.clear();
        write_to_data(&mut disk, &mut image, 0, 1);
        let armed = |disk: &mut Disk| -> Vec<_> {
            disk.alarms.drain(..).map(|alarm| (alarm.timer, alarm.after_ms)).collect()
        };
        assert_eq!(armed(&mut disk), [(Timer::Commit, Some(1000))], "lazy: {lazy}");
        image.handle_timeout(Timer::Commit);
        disk.drain(&mut image);
        assert_eq!(pending(&disk), ["data", "refcounts"], "lazy: {lazy}");
        // counts in the same sector change, while it is being written
        write_to_data(&mut disk, &mut image, 1, 2);
        complete(&mut disk, &mut image, "refcounts");
        complete(&mut disk, &mut image, "sync");
        assert_eq!(pending(&disk), ["data", "data"], "the round has ended");
        assert_eq!(armed(&mut disk), [(Timer::Commit, Some(1000))], "lazy: {lazy}");
        image.handle_timeout(Timer::Commit);
        disk.drain(&mut image);
        assert_eq!(pending(&disk), ["data", "data", "refcounts"]);
        settle(&mut disk, &mut image);
    }
}

#[test]
fn no_table_follows_one_that_could_not_be_written() {
    let (mut disk, mut image) = qed_disk(4 << 30, 1, None, Options::default());
    // each in a slice of its own, more than are written at once
    for n in 0..40 {
        run(&mut disk, &mut image, RequestKind::Write, n << 25, 512);
    }
    start(&mut disk, &mut image, RequestKind::Flush, 1);
    while disk.pending.len() < 32 {
        disk.complete_first(&mut image);
    }
    disk.log.clear();
    disk.fail = Some((0, 5));
    settle(&mut disk, &mut image);
    assert!(image.poisoned().is_some());
    assert_eq!(steps(&disk), [""; 0], "those that were in flight end, and that is all");
    let (user, result, ..) = disk.done.pop().unwrap();
    assert!(user == 1 && matches!(result, Err(Error::Device { op: Op::WriteTable, .. })), "{result:?}");
    run(&mut disk, &mut image, RequestKind::Read, 39 << 25, 512);
}

/// Counts go down a thousand clusters a turn. The rest of them does not start a round in a poisoned image.
#[test]
fn counts_that_go_down_later_write_nothing_after_a_failure() {
    let create = CreateOptions { size: 16 << 20, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 1 << 20);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    run(&mut disk, &mut image, RequestKind::Discard, 0, 1 << 20);
    start(&mut disk, &mut image, RequestKind::Flush, 1);
    let paused = |disk: &Disk| pending(disk).contains(&"pause");
    while !paused(&disk) {
        disk.complete_first(&mut image);
    }
    // a write that needs a round, whose sync fails
    while let Some(index) = pending(&disk).iter().position(|name| *name != "pause") {
        disk.complete(&mut image, index);
    }
    run_beside(&mut disk, &mut image);
    assert!(image.poisoned().is_some());
    assert_eq!(pending(&disk), ["pause"]);
    disk.log.clear();
    settle(&mut disk, &mut image);
    assert_eq!(steps(&disk), [""; 0]);
}

/// A write and a flush while counts pause; the flush's sync fails.
fn run_beside(disk: &mut Disk, image: &mut Image) {
    write(disk, image, 8 << 20, 512, 2);
    while let Some(index) = pending(disk).iter().position(|name| *name != "pause") {
        disk.complete(image, index);
    }
    start(disk, image, RequestKind::Flush, 3);
    while let Some(index) = pending(disk).iter().position(|name| *name != "pause") {
        disk.fail = (pending(disk)[index] == "sync").then_some((0, 5));
        disk.complete(image, index);
    }
}

/// An image with data in guest clusters 0 and 1, whose second entry leads beyond the end of the file.
fn with_a_bad_entry(version: u32, lazy_refcounts: bool) -> (Disk, Image) {
    let create = CreateOptions { size: 1 << 30, version, lazy_refcounts, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 2 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    set_l2_entry(&mut disk.file, CLUSTER, 1 << 63 | 1 << 40);
    let image = opened(&mut disk, Options::default()).image;
    disk.log.clear();
    (disk, image)
}

fn meet_bad_entry(disk: &mut Disk, image: &mut Image) {
    disk.submit(image, request(RequestKind::Read, CLUSTER, 512, 7), vec![0; 512]).unwrap();
    let found = |disk: &Disk| disk.done.iter().any(|done| done.0 == 7 && done.1.is_err());
    while !found(disk) {
        disk.complete_first(image);
    }
    assert!(image.poisoned().is_some());
}

/// Two writes of the header at once could land in either order.
#[test]
fn the_corrupt_bit_waits_for_a_header_that_is_being_written() {
    let (mut disk, mut image) = with_a_bad_entry(3, true);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Write, 2 * CLUSTER, 512);
    start(&mut disk, &mut image, RequestKind::Flush, 1);
    assert_eq!(pending(&disk), ["header"], "the dirty bit is being set");
    meet_bad_entry(&mut disk, &mut image);
    assert_eq!(pending(&disk), ["header"]);
    complete(&mut disk, &mut image, "header");
    assert_eq!((disk.file[79], pending(&disk)), (1, vec!["sync"]), "the round goes on");
    complete(&mut disk, &mut image, "sync");
    complete(&mut disk, &mut image, "L2");
    assert_eq!((disk.file[79], pending(&disk)), (1, vec!["header"]), "then the corrupt bit");
    settle(&mut disk, &mut image);
    assert_eq!(disk.file[79], 3);
    assert!(disk.done.iter().any(|done| done.0 == 1 && done.1 == Ok(())), "and the flush has ended well");
}

#[test]
fn version_2_has_no_corrupt_bit() {
    let (mut disk, mut image) = with_a_bad_entry(2, false);
    let before = disk.file.clone();
    meet_bad_entry(&mut disk, &mut image);
    settle(&mut disk, &mut image);
    assert!(disk.file == before && !steps(&disk).contains(&"header"), "nothing is written");
    let refused = disk.submit(&mut image, request(RequestKind::Write, 0, 512, 8), vec![1; 512]);
    settle(&mut disk, &mut image);
    assert!(refused.is_ok() && disk.done.pop().unwrap().1 == Err(Error::Poisoned));
}
