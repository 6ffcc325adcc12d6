//! What the QED machine promises about concurrency, batching, ordering and failure, one test a promise.

use quod_states::{
    AllocationGate, Error, Flags, Image, IoOp, Op, Options, Policy, Request, RequestKind, State, Timer,
};
use quod_states_tests::{Disk, Rng, qed_disk, qed_file, read_all, request, write};

const CLUSTER: u64 = 65536;

fn setup(options: Options) -> (Disk, Image) {
    setup_with(1 << 30, None, options)
}

fn setup_with(size: u64, backing: Option<Vec<u8>>, options: Options) -> (Disk, Image) {
    qed_disk(size, 4, backing, options)
}

fn names(disk: &Disk) -> Vec<&'static str> {
    disk.pending
        .iter()
        .map(|(io, _)| match io.op {
            IoOp::ReadTable { .. } => "read table",
            IoOp::WriteTable { offset: 0, .. } => "header",
            IoOp::WriteTable { .. } => "write table",
            IoOp::WriteData { .. } => "data",
            IoOp::ReadData { .. } => "read",
            IoOp::Sync => "sync",
            IoOp::Grow { .. } => "grow",
            _ => "other",
        })
        .collect()
}

/// Completes what is pending until only `keep` is left.
fn complete_until(disk: &mut Disk, image: &mut Image, keep: &str) {
    for _ in 0..10_000 {
        let Some(index) = names(disk).iter().position(|name| *name != keep) else { return };
        disk.complete(image, index);
    }
    panic!("never comes to rest");
}

#[test]
fn sixty_four_allocating_writes_cost_two_table_writes() {
    let (mut disk, mut image) = setup(Options::default().policy(Policy::Writethrough));
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    let before = image.counters();
    for n in 1..=64 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    // a device that answers in the order it was asked
    while !disk.pending.is_empty() {
        disk.complete_first(&mut image);
    }
    assert_eq!(disk.done.len(), 64);
    assert!(disk.done.iter().all(|(_, result, ..)| result.is_ok()));
    let writes = image.counters().table_writes - before.table_writes;
    assert!((1..=2).contains(&writes), "{writes} table writes");
}

#[test]
fn independent_allocating_writes_are_all_in_flight_at_once() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    for n in 1..=32 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    assert_eq!(names(&disk).iter().filter(|name| **name == "data").count(), 32);
}

#[test]
fn the_gates_let_through_what_they_should() {
    // writes in flight after eight allocating writes: four under one L2 table (2 GiB apart from the rest),
    // four under another
    let in_flight = |gate| {
        let (mut disk, mut image) = setup_with(8 << 30, None, Options::default().allocation_gate(gate));
        for table in 0..2 {
            disk.run(&mut image, request(RequestKind::Write, table << 31, 512, 99), vec![1; 512]);
        }
        for n in 0..8 {
            write(&mut disk, &mut image, ((n % 2) << 31) + (1 + n) * CLUSTER, 4096, n);
        }
        let count = names(&disk).iter().filter(|name| **name == "data").count();
        disk.settle(&mut image, &mut Rng(5));
        assert_eq!(disk.done.len(), 8);
        count
    };
    assert_eq!(in_flight(AllocationGate::Image), 1);
    assert_eq!(in_flight(AllocationGate::Table), 2);
    assert_eq!(in_flight(AllocationGate::NewTable), 8);
    assert_eq!(in_flight(AllocationGate::Cluster), 8);
}

#[test]
fn a_new_table_freezes_only_requests_that_need_it() {
    let (mut disk, mut image) = setup_with(8 << 30, None, Options::default().grow_step(0));
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    write(&mut disk, &mut image, 1 << 31, 4096, 1);
    complete_until(&mut disk, &mut image, "grow");
    assert_eq!(names(&disk), ["grow"], "the new table waits for space");
    disk.submit(&mut image, request(RequestKind::Read, 0, 512, 2), vec![0; 512]).unwrap();
    write(&mut disk, &mut image, 0, 512, 3);
    complete_until(&mut disk, &mut image, "grow");
    let ended: Vec<u64> = disk.done.iter().map(|done| done.0).collect();
    assert_eq!(ended, [2, 3], "the others went past it");
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.done.len(), 3);
}

#[test]
fn concurrent_misses_share_one_load() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 1 << 20, 0), vec![1; 1 << 20]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    let mut image = disk.open(Options::default()).unwrap().image;
    for n in 0..16 {
        disk.submit(&mut image, request(RequestKind::Read, n * CLUSTER, 4096, n), vec![0; 4096]).unwrap();
    }
    assert_eq!(names(&disk), ["read table"], "the L1 slice, once");
    disk.complete(&mut image, 0);
    assert_eq!(names(&disk), ["read table"], "the L2 slice, once");
    disk.complete(&mut image, 0);
    assert_eq!(names(&disk).len(), 16, "then all sixteen read their data");
    disk.settle(&mut image, &mut Rng(2));
    assert_eq!(image.counters().table_reads, 2);
}

#[test]
fn two_writers_of_one_cluster_wait_readers_do_not() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![9; 512]);
    write(&mut disk, &mut image, CLUSTER, 512, 1);
    write(&mut disk, &mut image, CLUSTER + 4096, 512, 2);
    disk.submit(&mut image, request(RequestKind::Read, CLUSTER, 512, 3), vec![7; 512]).unwrap();
    assert_eq!(names(&disk), ["data"], "the second writer waits");
    assert_eq!(disk.done.len(), 1, "the reader was answered: zeros, the write is not done");
    assert_eq!(disk.done[0].2, vec![0; 512]);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(image.counters().allocations, 2, "one cluster for both");
}

#[test]
fn a_lone_flush_costs_two_syncs_and_an_idle_one_none() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    for n in 0..32 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    disk.settle(&mut image, &mut Rng(1));
    let before = image.counters();
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert_eq!(image.counters().syncs - before.syncs, 2, "new L2 table and dirty bit included");
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert_eq!(image.counters().syncs - before.syncs, 2, "nothing was written since");
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![5; 4096]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert_eq!(image.counters().syncs - before.syncs, 3, "a write in place needs one");
}

#[test]
fn data_is_durable_before_its_pointer_and_the_bit_before_both() {
    let (mut disk, mut image) = setup(Options::default());
    let mut order = Vec::new();
    let mut settle = |disk: &mut Disk, image: &mut Image| {
        while !disk.pending.is_empty() {
            order.push(names(disk)[0]);
            disk.complete_first(image);
        }
    };
    write(&mut disk, &mut image, 0, 4096, 1);
    settle(&mut disk, &mut image);
    disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 2), vec![]).unwrap();
    settle(&mut disk, &mut image);
    order.dedup();
    // the bit before the file grows (QE12)
    let write = ["read table", "header", "grow", "data"];
    assert_eq!(order, [write.as_slice(), &["sync", "write table", "sync"]].concat());
}

#[test]
fn a_write_that_finishes_during_the_sync_stays_out_of_the_tables_of_that_round() {
    let (mut disk, mut image) = setup(Options::default());
    write(&mut disk, &mut image, 0, 4096, 1);
    disk.settle(&mut image, &mut Rng(1));
    disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 2), vec![]).unwrap();
    complete_until(&mut disk, &mut image, "sync");
    // the round's sync is in flight: this write is too late for it
    write(&mut disk, &mut image, CLUSTER, 4096, 3);
    complete_until(&mut disk, &mut image, "sync");
    assert!(disk.done.iter().any(|done| done.0 == 3), "written and visible");
    disk.complete(&mut image, 0);
    let l2 = disk
        .pending
        .iter()
        .find_map(|(io, bytes)| match io.op {
            IoOp::WriteTable { offset, .. } if offset == 5 * CLUSTER => Some(bytes),
            _ => None,
        })
        .expect("the L2 slice is being written");
    assert_ne!(l2[..8], [0; 8], "the first write's pointer");
    assert_eq!(l2[8..16], [0; 8], "not the second's: its data is not durable");
    disk.settle(&mut image, &mut Rng(1));
    let read = disk.run(&mut image, request(RequestKind::Read, CLUSTER, 4096, 4), vec![0; 4096]);
    assert_eq!(read, vec![3; 4096]);
}

#[test]
fn need_check_is_cleared_by_its_timer_and_by_close() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert_eq!(disk.file[16] & 2, 2, "set");
    let alarm = disk.alarms.iter().rfind(|alarm| alarm.timer == Timer::NeedCheck).expect("armed");
    assert_eq!(alarm.after_ms, Some(5000));
    image.handle_timeout(Timer::NeedCheck);
    disk.drain(&mut image);
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.file[16] & 2, 0, "cleared by the timer");
    disk.run(&mut image, request(RequestKind::Write, CLUSTER, 4096, 0), vec![1; 4096]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert_eq!(disk.file[16] & 2, 2, "set again");
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert_eq!(disk.file[16] & 2, 0, "cleared by close");
}

#[test]
fn close_trims_what_was_grown_ahead_and_refuses_what_comes_after() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    let ahead = disk.file.len();
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    assert!(disk.file.len() < ahead);
    assert_eq!(disk.file.len() as u64, 10 * CLUSTER, "header, L1, L2, one cluster");
    let refused = image.submit(request(RequestKind::Read, 0, 512, 0));
    assert_eq!(refused, Err(quod_states::Refused::Invalid(Error::Closed)));
}

#[test]
fn a_failed_data_write_ends_its_request_and_nothing_else() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    write(&mut disk, &mut image, CLUSTER, 4096, 1);
    disk.fail = Some((0, 5));
    disk.complete(&mut image, 0);
    let failed = disk.done.pop().unwrap();
    assert!(matches!(failed.1, Err(Error::Device { op: Op::WriteData, errno: 5, .. })), "{failed:?}");
    assert!(image.poisoned().is_none());
    let read = disk.run(&mut image, request(RequestKind::Read, CLUSTER, 4096, 2), vec![9; 4096]);
    assert_eq!(read, vec![0; 4096], "not linked");
    disk.run(&mut image, request(RequestKind::Write, CLUSTER, 4096, 3), vec![3; 4096]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 4), vec![]);
    assert_eq!(read_all(&mut disk, Options::default())[CLUSTER as usize], 3);
}

#[test]
fn no_space_ends_the_writes_that_need_it_and_does_not_poison() {
    // a limit of the file's length (27) is no full device
    for errno in [28, 122, 27] {
        let (mut disk, mut image) = setup(Options::default());
        write(&mut disk, &mut image, 0, 4096, 1);
        complete_until(&mut disk, &mut image, "grow");
        disk.fail = Some((0, errno));
        disk.complete(&mut image, 0);
        assert_eq!(names(&disk), ["grow"], "a smaller step is tried");
        disk.complete(&mut image, 0);
        match disk.done.pop().unwrap().1 {
            Err(Error::NoSpace) => assert_ne!(errno, 27),
            Err(Error::Device { errno: 27, .. }) => assert_eq!(errno, 27),
            other => panic!("{errno}: {other:?}"),
        }
        assert!(image.poisoned().is_none());
        disk.run(&mut image, request(RequestKind::Write, 0, 4096, 2), vec![2; 4096]);
    }
}

fn poison_at(name: &str) -> (Disk, Image) {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    // the bit was set for the growth already, and is cleared at the end
    let kind = if name == "header" { RequestKind::Quiesce } else { RequestKind::Flush };
    disk.submit(&mut image, request(kind, 0, 0, 7), vec![]).unwrap();
    for _ in 0..100 {
        if let Some(index) = names(&disk).iter().position(|pending| *pending == name) {
            disk.fail = Some((0, 5));
            disk.complete(&mut image, index);
            break;
        }
        disk.complete(&mut image, 0);
    }
    disk.settle(&mut image, &mut Rng(1));
    let failed = disk.done.pop().unwrap();
    assert!(failed.0 == 7 && failed.1.is_err(), "the flush fails: {failed:?}");
    (disk, image)
}

#[test]
fn a_failed_metadata_write_or_sync_poisons_and_reads_go_on() {
    for name in ["header", "sync", "write table"] {
        let (mut disk, mut image) = poison_at(name);
        assert!(image.poisoned().is_some(), "{name}");
        let read = disk.run(&mut image, request(RequestKind::Read, 0, 4096, 1), vec![0; 4096]);
        assert_eq!(read, vec![1; 4096]);
        for kind in [
            RequestKind::Write,
            RequestKind::WriteZeroes,
            RequestKind::Flush,
            RequestKind::Quiesce,
            RequestKind::Resize { size: 2 << 30 },
            RequestKind::Close,
        ] {
            let ranged = matches!(kind, RequestKind::Write | RequestKind::WriteZeroes);
            let (offset, len) = if ranged { (CLUSTER, 512) } else { (0, 0) };
            disk.submit(&mut image, request(kind, offset, len, 2), vec![0; 512]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            let (_, result, ..) = disk.done.pop().unwrap();
            assert_eq!(result, Err(Error::Poisoned), "{name}, {kind:?}");
        }
    }
}

#[test]
fn fua_makes_the_mapping_durable_even_when_nothing_had_to_be_written() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    let before = image.counters();
    let fua = Request { kind: RequestKind::Write, offset: 0, len: 512, flags: Flags::FUA, user: 1 };
    disk.run(&mut image, fua, vec![2; 512]);
    assert_eq!(image.counters().syncs - before.syncs, 2, "its cluster's pointer was not durable");
    disk.run(&mut image, fua, vec![3; 512]);
    assert_eq!(image.counters().syncs - before.syncs, 3, "now it is");
}

#[test]
fn growing_the_disk_is_durable_and_shrinking_is_refused() {
    let (mut disk, mut image) = setup(Options::default());
    disk.run(&mut image, request(RequestKind::Resize { size: 2 << 30 }, 0, 0, 0), vec![]);
    assert_eq!(image.virtual_size(), 2 << 30);
    assert_eq!(disk.file[48..56], (2u64 << 30).to_le_bytes());
    disk.run(&mut image, request(RequestKind::Write, (2 << 30) - 512, 512, 0), vec![4; 512]);
    assert!(image.submit(request(RequestKind::Resize { size: 1 << 20 }, 0, 0, 0)).is_err());
    assert!(image.submit(request(RequestKind::Resize { size: (2 << 30) + 1 }, 0, 0, 0)).is_err());
}

#[test]
fn write_zeroes_allocates_nothing_and_hides_the_backing_layer() {
    let (mut disk, mut image) = setup_with(1 << 20, Some(vec![7; 1 << 20]), Options::default());
    disk.run(&mut image, request(RequestKind::WriteZeroes, 0, 8 * CLUSTER, 0), vec![]);
    assert_eq!(image.counters().allocations, 0);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    let read = read_all(&mut disk, Options::default());
    assert!(read[..8 * CLUSTER as usize].iter().all(|byte| *byte == 0));
    assert!(read[8 * CLUSTER as usize..].iter().all(|byte| *byte == 7));
}

#[test]
fn a_clone_behaves_like_its_original() {
    let (mut disk, mut image) = setup(Options::default());
    for n in 0..20 {
        write(&mut disk, &mut image, n * 3000, 2000, n);
    }
    let copy = image.clone();
    assert!(copy == image);
    assert_eq!(copy.digest(), image.digest());
    disk.complete(&mut image, 0);
    assert_ne!(copy.digest(), image.digest());
}

#[test]
fn stale_completions_are_counted_and_ignored() {
    let (mut disk, mut image) = setup(Options::default());
    disk.submit(&mut image, request(RequestKind::Read, 0, 512, 0), vec![0; 512]).unwrap();
    let (io, _) = disk.pending[0].clone();
    disk.settle(&mut image, &mut Rng(1));
    let digest = image.digest();
    quod_states::Machine::handle_completion(&mut image, io.id, quod_states::Outcome::Done);
    assert_eq!((image.counters().stale_completions, image.digest()), (1, digest));
}

#[test]
fn large_clusters_are_copied_in_bounded_pieces() {
    let size = 16 << 20;
    let backing: Vec<u8> = (0..size).map(|at: u64| (at / 4096) as u8 | 1).collect();
    let file = qed_file(size, 8 << 20, 1, Some(b"base"));
    let mut disk = Disk::new(file, Some(backing.clone()), 512);
    let mut image = disk.open(Options::default().align(512)).unwrap().image;
    write(&mut disk, &mut image, (3 << 20) + 512, 1024, 1);
    while !disk.pending.is_empty() {
        for (io, _) in &disk.pending {
            if let IoOp::ReadFill { part_len, .. } = io.op {
                assert!(part_len <= 1 << 20, "a fill of {part_len} bytes");
            }
        }
        disk.complete(&mut image, 0);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 2), vec![]);
    let mut expected = backing;
    expected[(3 << 20) + 512..(3 << 20) + 1536].fill(1);
    assert!(read_all(&mut disk, Options::default().align(512)) == expected);
}

#[test]
fn a_close_waits_for_everything_in_flight() {
    let (mut disk, mut image) = setup(Options::default());
    for n in 0..8 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    disk.submit(&mut image, request(RequestKind::Close, 0, 0, 100), vec![]).unwrap();
    assert!(image.submit(request(RequestKind::Read, 0, 512, 0)).is_err());
    disk.settle(&mut image, &mut Rng(4));
    assert_eq!(disk.done.last().unwrap().0, 100, "answered last");
    assert_eq!(disk.done.len(), 9);
    assert!(image.edge_counts().get(State::WaitRequests, State::SyncData) == 1);
}

#[test]
fn the_ring_of_transitions_keeps_the_newest() {
    let (mut disk, mut image) = setup(Options::default().trace(true));
    disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
    for _ in 0..2000 {
        let id = image.submit(request(RequestKind::Read, 0, 4096, 1)).unwrap();
        let io = quod_states::Machine::poll_io(&mut image).unwrap();
        quod_states::Machine::handle_completion(&mut image, io.id, quod_states::Outcome::Done);
        assert!(
            matches!(image.poll_event(), Some(quod_states::Event::Done { request, .. }) if request == id)
        );
    }
    // four transitions a hit
    assert_eq!(image.counters().lost_transitions, 2000 * 4 - 4096);
    let last = std::iter::from_fn(|| image.poll_transition()).last().unwrap();
    assert_eq!((last.from, last.to), (State::Done, State::Free));
}

/// Trap Q5: a crash left a pointer past the end of an image that says it is clean. The file grows over that
/// place, and another cluster gets it; the pointer must not come alive.
#[test]
fn a_pointer_past_the_end_stays_dead_when_the_file_grows() {
    for cache_bytes in [8192, 1 << 20] {
        let options = Options::default().cache_bytes(cache_bytes);
        let (mut disk, mut image) = setup_with(4 << 30, None, options);
        disk.run(&mut image, request(RequestKind::Write, 0, 4096, 0), vec![1; 4096]);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        // guest cluster 1 points two clusters past the end
        let (end, l2) = (disk.file.len() as u64, 5 * CLUSTER as usize);
        disk.file[l2 + 8..l2 + 16].copy_from_slice(&(end + 2 * CLUSTER).to_le_bytes());
        let mut image = disk.open(options).unwrap().image;
        for n in 2..8 {
            disk.run(&mut image, request(RequestKind::Write, n * CLUSTER, 4096, 0), vec![n as u8; 4096]);
        }
        // pushes the slice out of the small cache, and back
        for far in [1 << 30, 2 << 30, 3 << 30] {
            disk.run(&mut image, request(RequestKind::Write, far, 4096, 0), vec![9; 4096]);
            disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
        }
        for kind in [RequestKind::Read, RequestKind::Write] {
            disk.submit(&mut image, request(kind, CLUSTER, 4096, 1), vec![0; 4096]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            let (_, result, ..) = disk.done.pop().unwrap();
            assert!(matches!(result, Err(Error::Corrupt(_))), "{result:?}");
        }
        let read = disk.run(&mut image, request(RequestKind::Read, 4 * CLUSTER, 4096, 2), vec![0; 4096]);
        assert_eq!(read, vec![4; 4096], "its new owner's bytes are whole");
    }
}
