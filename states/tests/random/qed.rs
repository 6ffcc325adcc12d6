//! Random requests, many in flight, completions in random order, against a model of plain bytes.
//!
//! Checks: reads give what the last write before them left; the invariant sweep after every step; every
//! request ends; after close a check finds neither corruption nor leaks, the dirty bit is clear, and a fresh
//! open reads the same bytes.

use quod_states::acb::edges::QED_EDGES;
use quod_states::qed::{Check, Header};
use quod_states::{
    AllocationGate, Error, Flags, IoOp, Machine, Options, Outcome, Policy, Refused, Report, Request,
    RequestKind, State,
};
use quod_states_tests::{Disk, Rng, qed_file, read_all, request};

/// Checks a file in memory.
fn check(file: &[u8], may_be_dirty: bool) -> Report {
    let header = Header::parse(&file[..512], file.len() as u64).unwrap();
    assert!(may_be_dirty || !header.need_check(), "a closed image is clean");
    let mut check = Check::new(header, file.len() as u64, None);
    loop {
        if let Some(report) = check.poll_result() {
            return report.unwrap();
        }
        let io = check.poll_io().unwrap();
        let IoOp::ReadTable { offset, len } = io.op else { panic!("a check without repair only reads") };
        check.handle_completion(io.id, Outcome::Table(&file[offset as usize..][..len as usize]));
    }
}

struct Case {
    size: u64,
    cluster_size: u32,
    table_size: u32,
    backing: Option<Vec<u8>>,
    options: Options,
}

fn case(rng: &mut Rng) -> Case {
    // mostly small; some with more slices than the cache holds, some with clusters that are copied in pieces
    let (cluster_bits, clusters) =
        [(12 + rng.below(3), 40), (12, 2500), (22, 2)][[0, 0, 0, 1, 2][rng.below(5) as usize]];
    let cluster_size: u32 = 1 << cluster_bits;
    let table_size = if clusters > 40 { 1 } else { 1 << rng.below(3) };
    let size = 512 * (1 + rng.below(1 + clusters * u64::from(cluster_size) / 512));
    let backing = (rng.below(2) == 0).then(|| {
        let len = 512 * rng.below(1 + 2 * size / 512);
        (0..len).map(|at| (at / 512 * 7 + 1) as u8).collect()
    });
    let gates =
        [AllocationGate::Image, AllocationGate::NewTable, AllocationGate::Table, AllocationGate::Cluster];
    let options = Options::default()
        .requests(1 + rng.below(16) as u32)
        .acbs(1 + rng.below(32) as u32)
        .cache_bytes(8192 << rng.below(3))
        .align([1, 512, 4096][rng.below(3) as usize])
        .policy([Policy::Writeback, Policy::Writethrough][rng.below(2) as usize])
        .allocation_gate(gates[rng.below(4) as usize])
        .grow_step([0, 4096, 1 << 20][rng.below(3) as usize])
        .trace(true);
    Case { size, cluster_size, table_size, backing, options }
}

/// What is in flight, so that overlapping requests wait for each other and the model stays simple.
#[derive(Default)]
struct Flight(Vec<(u64, u64, u64, bool, Vec<u8>)>);

impl Flight {
    fn conflicts(&self, start: u64, end: u64, writes: bool) -> bool {
        self.0.iter().any(|(_, low, high, w, _)| *low < end && start < *high && (writes || *w))
    }
}

fn reap(disk: &mut Disk, flight: &mut Flight, seed: u64, faults: bool) {
    for (user, result, buffer, _) in std::mem::take(&mut disk.done) {
        let index = flight.0.iter().position(|entry| entry.0 == user).expect("answered once");
        let (_, start, _, writes, expected) = flight.0.swap_remove(index);
        if faults {
            continue;
        }
        result.unwrap_or_else(|error| panic!("seed {seed}: request {user}: {error}"));
        if !writes && !expected.is_empty() {
            let wrong = buffer.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(wrong.map(|at| start + at as u64), None, "seed {seed}: wrong byte read");
        }
    }
}

fn one_request(rng: &mut Rng, user: u64, size: u64, align: u64) -> Request {
    let start = rng.below(size);
    let len = match rng.below(4) {
        0 => rng.below(size - start + 1),
        1 => rng.below(600).min(size - start),
        _ => (512 * (1 + rng.below(32))).min(size - start),
    };
    let (start, len) = if rng.below(3) == 0 { (start, len) } else { (start & !511, len.max(512) & !511) };
    let len = len.min(size - start);
    let kind = match rng.below(20) {
        0 => RequestKind::Flush,
        1 | 2 => RequestKind::WriteZeroes,
        3 => RequestKind::Discard,
        4..=9 => RequestKind::Read,
        10 => RequestKind::Quiesce,
        _ => RequestKind::Write,
    };
    assert!(align > 0);
    let flags = if rng.below(8) == 0 { Flags::FUA } else { Flags::empty() };
    match kind {
        RequestKind::Flush | RequestKind::Quiesce => {
            Request { kind, offset: 0, len: 0, flags: Flags::empty(), user }
        }
        _ => Request { kind, offset: start, len, flags, user },
    }
}

/// Runs one seed; with `faults` any I/O may fail, and then only the answers count: each request ends, nothing
/// is corrupt.
fn run(seed: u64, faults: bool, edges: &mut Edges) {
    let mut rng = Rng(seed);
    let Case { size, cluster_size, table_size, backing, options } = case(&mut rng);
    let mut model = backing.clone().unwrap_or_default();
    model.resize(size as usize, 0);
    let name = backing.as_ref().map(|_| b"base".as_slice());
    let align = u64::from(options.align);
    let mut disk = Disk::new(qed_file(size, cluster_size, table_size, name), backing, align);
    if seed.is_multiple_of(2) {
        // an autoclear bit that nobody knows
        disk.file[32] = 4;
    }
    let mut image = disk.open(options).unwrap().image;
    if seed.is_multiple_of(8) {
        disk.run(&mut image, request(RequestKind::Resize { size }, 0, 0, 0), vec![]);
    }
    if seed % 8 == 4 {
        disk.run(&mut image, request(RequestKind::Empty, 0, 0, 0), vec![]);
    }
    if faults && seed % 8 == 2 {
        disk.fail = Some((seed / 8 % 3, 5));
    }
    let mut flight = Flight::default();
    let mut user = 0;
    for _ in 0..150 {
        let wanted = one_request(&mut rng, user, size, align);
        let (start, end) = (wanted.offset, wanted.offset + wanted.len);
        let writes = matches!(wanted.kind, RequestKind::Write | RequestKind::WriteZeroes);
        if !flight.conflicts(start, end, writes) {
            let mut bytes: Vec<u8> = vec![0xbb; wanted.len as usize];
            if wanted.kind == RequestKind::Write {
                bytes = (0..wanted.len).map(|at| (user + at / 64) as u8 | 1).collect();
            }
            match disk.submit(&mut image, wanted, bytes.clone()) {
                Ok(_) => {
                    user += 1;
                    let range = start as usize..end as usize;
                    let expected =
                        if wanted.kind == RequestKind::Read { model[range.clone()].to_vec() } else { vec![] };
                    match wanted.kind {
                        RequestKind::Write => model[range].copy_from_slice(&bytes),
                        RequestKind::WriteZeroes => model[range].fill(0),
                        _ => {}
                    }
                    flight.0.push((wanted.user, start, end, writes, expected));
                }
                Err(Refused::Busy) => {}
                Err(Refused::Invalid(error)) => panic!("seed {seed}: refused {wanted:?}: {error}"),
            }
        }
        if faults && disk.fail.is_none() && rng.below(20) == 0 {
            disk.fail = Some((rng.below(20), [5, 28][rng.below(2) as usize]));
        }
        for _ in 0..rng.below(4) {
            if !disk.pending.is_empty() {
                let index = rng.below(disk.pending.len() as u64) as usize;
                disk.complete(&mut image, index);
            }
        }
        if rng.below(10) == 0 {
            for alarm in std::mem::take(&mut disk.alarms) {
                image.handle_timeout(alarm.timer);
                disk.drain(&mut image);
            }
        }
        reap(&mut disk, &mut flight, seed, faults);
    }
    disk.settle(&mut image, &mut rng);
    reap(&mut disk, &mut flight, seed, faults);
    if seed % 8 == 5 && !faults {
        // with a write before it, whose table is not durable yet
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 0), vec![9; 512]).unwrap();
        disk.submit(&mut image, request(RequestKind::Empty, 0, 0, 1), vec![]).unwrap();
        disk.settle(&mut image, &mut rng);
        assert!(disk.done.drain(..).all(|(_, result, ..)| result.is_ok()), "seed {seed}");
        model = disk.backing.clone().unwrap_or_default();
        model.resize(size as usize, 0);
    }
    disk.submit(&mut image, request(RequestKind::Close, 0, 0, u64::MAX), vec![]).unwrap();
    disk.settle(&mut image, &mut rng);
    add_edges(edges, &image);
    let closed = disk.done.pop().unwrap().1;
    if faults {
        assert!(closed.is_ok() || image.poisoned().is_some() || matches!(closed, Err(Error::Device { .. })));
        disk.fail = None;
        let report = check(&disk.file, true);
        assert!(report.is_sound(), "seed {seed}: {report:?}");
        return;
    }
    closed.unwrap();
    let report = check(&disk.file, false);
    assert!(report.is_sound() && report.leaks == 0, "seed {seed}: {report:?}");
    assert_eq!(disk.file[32], 0, "seed {seed}: something has changed");
    let read = read_all(&mut disk, options);
    let wrong = read.iter().zip(&model).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "seed {seed}: wrong byte after reopening");
}

type Edges = std::collections::BTreeMap<(State, State), u64>;

fn add_edges(edges: &mut Edges, image: &quod_states::Image) {
    for &from in State::ALL {
        for &to in State::ALL {
            *edges.entry((from, to)).or_default() += image.edge_counts().get(from, to);
        }
    }
}

/// Every edge of the table is taken by some seed, and (checked by `set_state` in debug builds, and here) no
/// other.
#[test]
fn random_requests_match_the_model_and_take_every_edge() {
    let mut edges = Edges::new();
    for seed in 0..400 {
        run(seed, false, &mut edges);
    }
    for seed in 0..400 {
        run(seed, true, &mut edges);
    }
    let listed = |edge: &(State, State)| QED_EDGES.contains(edge);
    let foreign: Vec<_> = edges.iter().filter(|(edge, count)| !listed(edge) && **count > 0).collect();
    assert!(foreign.is_empty(), "edges that the table does not list: {foreign:?}");
    let untaken: Vec<_> = QED_EDGES.iter().filter(|edge| edges[*edge] == 0).collect();
    assert!(untaken.is_empty(), "edges that no seed takes: {untaken:?}");
}
