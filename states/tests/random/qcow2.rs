//! Random requests on qcow2 images, many in flight, completions in random order, against a model of plain
//! bytes.
//!
//! Checks: reads give what the last write before them left; the invariant sweep after every step; every
//! request ends; after close a check finds neither corruption nor, without failures, leaks; a fresh open
//! reads the same bytes; a snapshot holds what it held; every edge of the table is taken, and no other.
//!
//! Over: cluster sizes, refcount widths, version 2, extended L2, lazy refcounts, backing layers, and images
//! that start with data, compressed clusters or a snapshot.

use quod_states::acb::edges::QCOW2_EDGES;
use quod_states::qcow2::CreateOptions;
use quod_states::{
    AllocationGate, Error, Flags, Image, Options, Policy, Refused, Request, RequestKind, State,
};
use quod_states_tests::packed::text;
use quod_states_tests::qcow2::{check, compress, header, of_snapshot, qcow2_file, snapshot};
use quod_states_tests::{Disk, Rng, read_all, request};
use std::collections::BTreeMap;

type Edges = BTreeMap<(State, State), u64>;

struct Case {
    create: CreateOptions<'static>,
    backing: Option<Vec<u8>>,
    options: Options,
    /// Some data, some compressed clusters, a snapshot.
    starts: [bool; 3],
}

fn case(rng: &mut Rng) -> Case {
    let extended_l2 = rng.below(4) == 0;
    let version = if !extended_l2 && rng.below(4) == 0 { 2 } else { 3 };
    // mostly small; some with more slices than the cache holds, some with clusters that are copied in pieces
    let (cluster_bits, clusters) = match (extended_l2, rng.below(8)) {
        (true, _) => (14 + rng.below(2), 24),
        (_, 0) => (21, 3),
        (_, 1) => (9, 6000),
        (_, 2) => (12, 1200),
        _ => (9 + rng.below(5), 60),
    };
    let size = 512 * (1 + rng.below(1 + (clusters << cluster_bits) / 512));
    let backing = (rng.below(2) == 0).then(|| {
        let len = 512 * rng.below(1 + 2 * size / 512);
        (0..len).map(|at| (at / 512 * 7 + 1) as u8).collect::<Vec<u8>>()
    });
    let create = CreateOptions {
        size,
        version,
        cluster_size: 1 << cluster_bits,
        refcount_bits: if version == 2 { 16 } else { 1 << rng.below(7) },
        lazy_refcounts: version == 3 && rng.below(4) == 0,
        extended_l2,
        backing: backing.as_ref().map(|_| &b"base"[..]),
        backing_format: backing.as_ref().map(|_| &b"raw"[..]),
        ..CreateOptions::default()
    };
    let gates =
        [AllocationGate::Cluster, AllocationGate::Image, AllocationGate::NewTable, AllocationGate::Table];
    let aligns: &[u32] = if cluster_bits < 12 { &[1, 512] } else { &[1, 512, 4096] };
    let options = Options::default()
        .requests(1 + rng.below(16) as u32)
        .acbs(1 + rng.below(32) as u32)
        .cache_bytes(8192 << rng.below(6))
        .align(aligns[rng.below(aligns.len() as u64) as usize])
        .policy([Policy::Writeback, Policy::Writethrough][rng.below(2) as usize])
        .allocation_gate(gates[rng.below(8).saturating_sub(4) as usize])
        .grow_step([0, 4096, 1 << 20][rng.below(3) as usize])
        .trace(true);
    // a snapshot doubles the counts of host clusters that compressed writes share
    let narrow = create.refcount_bits;
    let starts = [rng.below(2) == 0, rng.below(3) == 0 && narrow > 1, rng.below(3) == 0 && narrow > 4];
    Case { create, backing, options, starts }
}

/// What is in flight, so that overlapping requests wait for each other and the model stays simple.
#[derive(Default)]
struct Flight(Vec<(u64, u64, u64, bool, Vec<u8>)>);

impl Flight {
    fn conflicts(&self, start: u64, end: u64, writes: bool) -> bool {
        self.0.iter().any(|(_, low, high, w, _)| *low < end && start < *high && (writes || *w))
    }
}

/// Told when the test fails.
struct Story(String);

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

struct Run {
    seed: u64,
    rng: Rng,
    disk: Disk,
    model: Vec<u8>,
    flight: Flight,
    user: u64,
    faults: bool,
    /// Version 2 over a backing file cannot discard.
    keeps_discarded: bool,
    cluster: u64,
    align: u64,
}

impl Run {
    fn reap(&mut self) {
        for (user, result, buffer, _) in std::mem::take(&mut self.disk.done) {
            let seed = self.seed;
            let index = self.flight.0.iter().position(|entry| entry.0 == user).expect("answered once");
            let (_, start, _, writes, expected) = self.flight.0.swap_remove(index);
            if self.faults {
                continue;
            }
            if writes && !expected.is_empty() {
                // compressed: done, or refused
                match result {
                    Ok(()) => self.model[start as usize..][..expected.len()].copy_from_slice(&expected),
                    Err(Error::Occupied(at)) => assert_eq!(at, start, "seed {seed}: request {user}"),
                    Err(error) => panic!("seed {seed}: request {user}: {error}"),
                }
                continue;
            }
            result.unwrap_or_else(|error| panic!("seed {seed}: request {user}: {error}"));
            if !writes && !expected.is_empty() {
                let wrong = buffer.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(
                    wrong.map(|at| start + at as u64),
                    None,
                    "seed {seed}: request {user}: wrong byte read"
                );
            }
        }
    }

    fn one_request(&mut self) -> Request {
        let (rng, size) = (&mut self.rng, self.model.len() as u64);
        let start = rng.below(size);
        let len = match rng.below(5) {
            0 => rng.below(size - start + 1),
            1 => rng.below(600),
            2 => self.cluster * (1 + rng.below(3)),
            _ => 512 * (1 + rng.below(32)),
        };
        let (start, len) = match rng.below(4) {
            0 => (start, len),
            1 => (start - start % self.cluster, len.max(512)),
            _ => (start & !511, len.max(512) & !511),
        };
        let len = len.min(size - start).min(3 << 20);
        if rng.below(6) == 0 {
            let offset = start - start % self.cluster;
            let flags = if rng.below(8) == 0 { Flags::FUA } else { Flags::empty() };
            let len = self.cluster.min(size - offset);
            return Request { kind: RequestKind::WriteCompressed, offset, len, flags, user: self.user };
        }
        let kind = match rng.below(24) {
            0 => RequestKind::Flush,
            1 | 2 => RequestKind::WriteZeroes,
            3..=5 => RequestKind::Discard,
            6..=11 => RequestKind::Read,
            12 => RequestKind::Quiesce,
            13 => RequestKind::Map,
            _ => RequestKind::Write,
        };
        let mut flags = if rng.below(8) == 0 { Flags::FUA } else { Flags::empty() };
        flags.set(Flags::MAY_UNMAP, kind == RequestKind::WriteZeroes && rng.below(2) == 0);
        let user = self.user;
        match kind {
            RequestKind::Flush | RequestKind::Quiesce => {
                Request { kind, offset: 0, len: 0, flags: Flags::empty(), user }
            }
            _ => Request { kind, offset: start, len, flags, user },
        }
    }

    /// What a discard gives up: whole clusters, the disk's last one too.
    fn discarded(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let size = self.model.len() as u64;
        let first = start.next_multiple_of(self.cluster);
        let last = if end == size { size } else { end - end % self.cluster };
        let none = self.keeps_discarded || first >= last;
        if none { 0..0 } else { first as usize..last as usize }
    }

    fn submit(&mut self, image: &mut Image) {
        let wanted = self.one_request();
        let (start, end) = (wanted.offset, wanted.offset + wanted.len);
        let packs = wanted.kind == RequestKind::WriteCompressed;
        let writes = wanted.kind.changes();
        if self.flight.conflicts(start, end, writes) {
            return;
        }
        let seed = self.seed;
        let mut bytes: Vec<u8> = vec![0xbb; wanted.len as usize];
        if packs && !self.user.is_multiple_of(4) {
            bytes = text(self.user as u8 | 1, wanted.len);
        } else if packs || wanted.kind == RequestKind::Write {
            bytes = (0..wanted.len).map(|at| (self.user + at / 64) as u8 | 1).collect();
        }
        match self.disk.submit(image, wanted, bytes.clone()) {
            Ok(_) => {
                self.user += 1;
                let range = start as usize..end as usize;
                let expected = match wanted.kind {
                    RequestKind::Read => self.model[range.clone()].to_vec(),
                    RequestKind::WriteCompressed => bytes.clone(),
                    _ => vec![],
                };
                match wanted.kind {
                    RequestKind::Write => self.model[range].copy_from_slice(&bytes),
                    RequestKind::WriteZeroes => self.model[range].fill(0),
                    RequestKind::Discard => {
                        let range = self.discarded(start, end);
                        self.model[range].fill(0);
                    }
                    _ => {}
                }
                self.flight.0.push((wanted.user, start, end, writes, expected));
            }
            Err(Refused::Busy) => {}
            Err(Refused::Invalid(error)) => panic!("seed {seed}: refused {wanted:?}: {error}"),
        }
    }

    fn steps(&mut self, image: &mut Image, count: usize) {
        for _ in 0..count {
            self.submit(image);
            let rng = &mut self.rng;
            if self.faults && self.disk.fail.is_none() && rng.below(20) == 0 {
                self.disk.fail = Some((rng.below(20), [5, 28][rng.below(2) as usize]));
            }
            for _ in 0..self.rng.below(4) {
                let pending = self.disk.pending.len() as u64;
                if pending > 0 {
                    let index = self.rng.below(pending) as usize;
                    self.disk.complete(image, index);
                }
            }
            if self.rng.below(10) == 0 {
                for alarm in std::mem::take(&mut self.disk.alarms) {
                    image.handle_timeout(alarm.timer);
                    self.disk.drain(image);
                }
            }
            self.reap();
        }
    }

    /// A new size, sometimes while others are in flight. `far`: the L1 table moves, if it is small.
    fn resize(&mut self, image: &mut Image, far: bool) {
        let old = self.model.len() as u64;
        if self.rng.below(2) == 0 {
            self.disk.settle(image, &mut self.rng);
            self.reap();
        }
        // some beyond what the L1 table maps, which then moves
        let at_most = header(&self.disk.file);
        let most = u64::from(at_most.l1_entries + 2) * at_most.shape().l2_entries() * self.cluster;
        let near = 512 * (1 + self.rng.below((2 * old).min(most).min(4 << 20) / 512));
        let size = if far && most <= 4 << 20 { most } else { near };
        // what is in flight behind a smaller disk's new end would have to be known
        if size < old && self.flight.conflicts(size, old, true) {
            return;
        }
        let wanted = request(RequestKind::Resize { size }, 0, 0, self.user);
        match self.disk.submit(image, wanted, vec![]) {
            Ok(_) => {
                self.flight.0.push((self.user, 0, 0, false, vec![]));
                self.user += 1;
                self.disk.settle(image, &mut self.rng);
                self.reap();
                if !self.faults {
                    assert_eq!(image.virtual_size(), size, "seed {}", self.seed);
                }
                self.model.resize(image.virtual_size() as usize, 0);
            }
            Err(Refused::Busy) => {}
            Err(Refused::Invalid(Error::Unsupported(_))) => {}
            Err(Refused::Invalid(error)) => panic!("seed {}: resize to {size}: {error}", self.seed),
        }
    }

    fn close(&mut self, image: &mut Image) -> Result<(), Error> {
        self.disk.settle(image, &mut self.rng);
        self.reap();
        self.disk.submit(image, request(RequestKind::Close, 0, 0, u64::MAX), vec![]).unwrap();
        self.disk.settle(image, &mut self.rng);
        self.disk.done.pop().unwrap().1
    }
}

/// Runs one seed; with `faults` any I/O may fail, and then only the answers count: each request ends, nothing
/// is corrupt.
fn run(seed: u64, faults: bool, edges: &mut Edges) {
    let mut rng = Rng(seed ^ 0x51c0);
    let Case { create, backing, options, starts } = case(&mut rng);
    let _story = Story(format!("seed {seed} faults {faults} {create:?} {options:?} {starts:?}"));
    let mut model = backing.clone().unwrap_or_default();
    model.resize(create.size as usize, 0);
    let (cluster, align) = (u64::from(create.cluster_size), u64::from(options.align));
    let keeps_discarded = create.version == 2 && backing.is_some();
    let disk = Disk::new(qcow2_file(&create), backing, align);
    let flight = Flight::default();
    let mut run =
        Run { seed, rng, disk, model, flight, user: 0, faults: false, keeps_discarded, cluster, align };
    let [filled, compressed, shared] = starts;
    if filled || compressed || shared {
        let mut image = run.disk.open(options).unwrap().image;
        run.steps(&mut image, 40);
        run.close(&mut image).unwrap();
        add_edges(edges, &image);
    }
    if compressed {
        let clusters = run.model.len() as u64 / cluster;
        let chosen: Vec<u64> = (0..clusters).filter(|_| run.rng.below(3) == 0).take(64).collect();
        compress(&mut run.disk.file, &chosen, &mut run.model);
    }
    let mut before = None;
    if shared {
        snapshot(&mut run.disk.file);
        before = Some(run.model.clone());
        assert_eq!(read_all(&mut run.disk, options), run.model, "seed {seed}: with a snapshot");
    }
    run.faults = faults;
    if create.version == 3 && !seed.is_multiple_of(3) {
        // an autoclear bit that nobody knows
        run.disk.file[95] |= 0x20;
    }
    let mut image = run.disk.open(options).unwrap().image;
    if faults && seed % 8 == 2 {
        run.disk.fail = Some((seed / 8 % 3, 5));
    }
    if seed % 8 == 1 {
        run.resize(&mut image, seed % 16 == 1);
    }
    run.steps(&mut image, 60);
    if run.rng.below(3) == 0 {
        run.resize(&mut image, seed.is_multiple_of(4));
    }
    run.steps(&mut image, 60);
    let closed = run.close(&mut image);
    add_edges(edges, &image);
    run.judge(before, options, closed, &image);
}

impl Run {
    fn judge(&mut self, before: Option<Vec<u8>>, options: Options, closed: Result<(), Error>, image: &Image) {
        let (seed, story) = (self.seed, format!("seed {}", self.seed));
        if self.faults {
            assert!(
                closed.is_ok() || image.poisoned().is_some() || matches!(closed, Err(Error::Device { .. })),
                "{story}: {closed:?}"
            );
            self.disk.fail = None;
        } else {
            closed.unwrap();
            assert!(!header(&self.disk.file).is_dirty(), "{story}: closed, and dirty");
            assert_eq!(self.disk.file[95] & 0x20, 0, "{story}: something has changed");
        }
        let dirty = header(&self.disk.file).is_dirty();
        let mut file = self.disk.file.clone();
        let report = check(&mut file, None);
        assert!(report.is_sound() || dirty, "{story}: {report:?}");
        if let Some(before) = before {
            let mut disk = Disk::new(of_snapshot(&self.disk.file), self.disk.backing.clone(), self.align);
            assert!(read_all(&mut disk, options) == before, "{story}: the snapshot changed");
        }
        if self.faults {
            return;
        }
        assert_eq!(report.leaks, 0, "{story}: {report:?}");
        let read = read_all(&mut self.disk, options);
        let wrong = read.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "seed {seed}: wrong byte after reopening");
    }
}

fn add_edges(edges: &mut Edges, image: &Image) {
    for &from in State::ALL {
        for &to in State::ALL {
            *edges.entry((from, to)).or_default() += image.edge_counts().get(from, to);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("QUOD_RANDOM_FIRST").unwrap_or(0);
    first..first + number("QUOD_RANDOM_SEEDS").unwrap_or(400)
}

/// Edges that few seeds take: `a_resize_goes_on_from_a_round_without_old_pointers` of `qcow2.rs` does, and
/// `every_free_cluster_is_used_before_there_is_no_space` of `free_end.rs`.
const ELSEWHERE: [(State, State); 5] = [
    (State::UpdateL2, State::SyncData),
    (State::GrowFile, State::Done),
    // `snapshots.rs`
    (State::SyncData, State::Snapshot),
    (State::SyncTables, State::Snapshot),
    (State::Snapshot, State::Done),
];

/// Every edge of the table is taken by some seed, and (checked by `set_state` in debug builds, and here) no
/// other.
#[test]
fn random_requests_match_the_model_and_take_every_edge() {
    let mut edges = Edges::new();
    for seed in seeds() {
        run(seed, false, &mut edges);
    }
    for seed in seeds() {
        run(seed, true, &mut edges);
    }
    let listed = |edge: &(State, State)| QCOW2_EDGES.contains(edge);
    let foreign: Vec<_> = edges.iter().filter(|(edge, count)| !listed(edge) && **count > 0).collect();
    assert!(foreign.is_empty(), "edges that the table does not list: {foreign:?}");
    let taken = |edge: &(State, State)| edges[edge] > 0 || ELSEWHERE.contains(edge);
    let untaken: Vec<_> = QCOW2_EDGES.iter().filter(|edge| !taken(edge)).collect();
    assert!(untaken.is_empty(), "edges that no seed takes: {untaken:?}");
}
