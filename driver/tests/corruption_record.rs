//! The corruption record of drivers for these formats, 2020 to 2026, as tests: seven invariants that were
//! found by losing data, and the reports themselves, most of them about a virtual machine monitor's qcow2
//! driver (numbers are those of its tracker, github.com/cloud-hypervisor/cloud-hypervisor).
//!
//! Checks:
//! * invariants a to g;
//! * each report: its shape of work, with orders of completion and failures that it needed, and what its
//!   users lost.
//!
//! Every sector that these tests write says which it is and which version, so that bytes of another owner,
//! old bytes and torn ones are told apart.

#[allow(dead_code, reason = "shared with other tests")]
mod simulated;

use quod::{
    AllowAll, Buffer, Completion, Config, Driver, Error, ErrorKind, Format, Kind, OpenOptions, Refusal,
    Request,
};
use quod_backend::Backend;
use quod_backend::sim::{
    Aftermath, Choice, Chooser, Fault, FaultPlan, FileOptions, OpKind, Seeded, Sim, When,
};
use quod_tools::{self as tools, CreateOptions, Session};
use simulated::{
    SECTOR, World, bytes_of, check_bytes, device, judge, judge_bytes, qcow2, qemu, sectors, version, writable,
};
use std::path::Path;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// The life of a small disk: writes, discards, zeroes, reads and flushes, many at once, of whole sectors that
/// are tagged. Knows for each sector which versions it may have.
struct Life {
    world: World,
    random: Seeded,
    size: u64,
    unit: u64,
    /// The oldest version that a sector may show, and the newest; a discard makes zeros possible.
    sectors: Vec<(u32, u32, bool)>,
    next: u32,
    /// Requests may fail.
    faults: bool,
    story: String,
}

impl Life {
    fn new(sim: Sim, options: OpenOptions, seed: u64, size: u64, unit: u64) -> Life {
        let sectors = vec![(0, 0, true); (size / SECTOR as u64) as usize];
        let (world, random) = (World::open(sim, options, seed), Seeded::new(seed ^ 0xabcd));
        Life { world, random, size, unit, sectors, next: 1, faults: false, story: format!("seed {seed}") }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.choose(Choice::Workload, n as usize) as u64
    }

    /// Some requests that do not overlap, and what they do; then all of them at once.
    fn wave(&mut self, count: usize) {
        let mut requests: Vec<Request> = Vec::new();
        let mut ranges: Vec<(Kind, u64, u64, u32)> = Vec::new();
        while requests.len() < count {
            let at = self.below(self.size / self.unit) * self.unit;
            let len = match self.below(3) {
                0 => self.unit,
                1 => self.unit * (1 + self.below(4)),
                _ => SECTOR as u64 * (1 + self.below(self.unit / SECTOR as u64)),
            };
            let len = len.min(self.size - at);
            let user = ranges.len() as u64;
            let kind = match self.below(10) {
                0 | 1 => Kind::Discard,
                2 => Kind::WriteZeroes,
                3 | 4 => Kind::Read,
                5 => Kind::Flush,
                _ => Kind::Write,
            };
            // reads overlap what they like
            let apart =
                |other: &(Kind, u64, u64, u32)| other.0 == Kind::Read || other.2 <= at || at + len <= other.1;
            if !matches!(kind, Kind::Flush | Kind::Read) && !ranges.iter().all(apart) {
                if self.below(20) == 0 {
                    break;
                }
                continue;
            }
            let version = self.next;
            self.next += 1;
            let request = match kind {
                Kind::Discard => Request::discard(at, len, user),
                Kind::WriteZeroes => Request::write_zeroes(at, len, user).may_unmap(),
                Kind::Read => Request::read(at, Buffer::zeroed(len as usize), user),
                Kind::Flush => Request::flush(user),
                _ => Request::write(at, Buffer::from(&sectors(at, len, version)[..]), user),
            };
            let end = if kind == Kind::Flush { at } else { at + len };
            ranges.push((kind, at, end, version));
            requests.push(request);
        }
        let before = self.sectors.clone();
        let done = self.world.together(requests);
        for done in done.iter().filter(|done| done.kind.request() != Some(Kind::Read)) {
            let (kind, start, end, version) = ranges[done.user as usize];
            self.ended(done, kind, start, end, version);
        }
        for done in done.iter().filter(|done| done.kind.request() == Some(Kind::Read)) {
            self.read_ended(done, ranges[done.user as usize].1, &before);
        }
    }

    fn ended(&mut self, done: &Completion, kind: Kind, start: u64, end: u64, new: u32) {
        let ok = done.result.is_ok();
        assert!(ok || self.faults, "{}: {kind:?}: {:?}", self.story, done.result);
        let first = (start / SECTOR as u64) as usize;
        for state in &mut self.sectors[first..(end / SECTOR as u64) as usize] {
            match kind {
                Kind::Write if ok => *state = (new, new, false),
                Kind::Write => state.1 = new,
                Kind::WriteZeroes if ok => *state = (0, 0, true),
                Kind::WriteZeroes | Kind::Discard => state.2 = true,
                _ => {}
            }
        }
    }

    /// It may have seen what was there before the wave, and what came in it.
    fn read_ended(&self, done: &Completion, start: u64, before: &[(u32, u32, bool)]) {
        if done.result.is_err() {
            return assert!(self.faults, "{}: read: {:?}", self.story, done.result);
        }
        let first = (start / SECTOR as u64) as usize;
        for (n, bytes) in bytes_of(&done.kind).chunks(SECTOR).enumerate() {
            let (old, new) = (before[first + n], self.sectors[first + n]);
            let may_be = (old.0.min(new.0), old.1.max(new.1), old.2 || new.2);
            assert_sector(first + n, bytes, may_be, &self.story);
        }
    }

    /// Reads everything, in this driver.
    fn verify(&mut self) {
        let read = self.world.read(0, self.size as usize);
        self.verify_bytes(&read);
    }

    fn verify_bytes(&self, read: &[u8]) {
        for (n, state) in self.sectors.iter().enumerate() {
            assert_sector(n, &read[n * SECTOR..][..SECTOR], *state, &self.story);
        }
    }

    /// The image is closed, sound, without leaks, and has what it should have.
    fn close(mut self) {
        self.verify();
        let read = self.world.read(0, self.size as usize);
        self.world.one(Request::close(0));
        let (corruptions, leaks) = check_bytes(&self.world.file());
        assert_eq!((corruptions, leaks), (0, 0), "{}", self.story);
        let sim = self.world.driver.backend().crash_with(|_| 0);
        let mut again = World::open(sim, OpenOptions::new().open_gate(AllowAll), 1);
        assert!(again.read(0, self.size as usize) == read, "{}: closing changed the disk", self.story);
    }
}

fn assert_sector(number: usize, bytes: &[u8], (old, new, zeros): (u32, u32, bool), story: &str) {
    let found = version(number as u64, bytes);
    let good = found.is_some_and(|found| found >= old && found <= new || found == 0 && zeros);
    assert!(
        good,
        "{story}: sector {number} is of version {found:?}, expected {old} to {new}, zeros: {zeros}"
    );
}

/// No hole is punched where another operation is in flight.
fn no_hole_under_others(sim: &Sim) {
    let pending: Vec<_> = sim.pending().collect();
    for hole in pending.iter().filter(|op| op.kind == OpKind::PunchHole) {
        let others = pending.iter().filter(|op| {
            matches!(op.kind, OpKind::Read | OpKind::Write | OpKind::ZeroRange) && op.file == hole.file
        });
        for other in others {
            let apart = other.offset + other.len <= hole.offset || hole.offset + hole.len <= other.offset;
            assert!(apart, "{other:?} and {hole:?} are in flight together");
        }
    }
}

/// An image of 4 KiB clusters: many L2 tables, and clusters that change hands often.
fn small(size: u64) -> Vec<u8> {
    qcow2(size, |options| options.cluster_size = Some(4096))
}

/// Invariant a: a cluster goes back to the allocator only when no durable pointer leads to it and no host
/// operation on it (a read, a write, a hole) is in flight. Here the disk is smaller than what is written to
/// it, so clusters change hands all the time, and holes complete as late as they can.
#[test]
fn invariant_a_a_cluster_comes_back_when_nobody_is_on_it() {
    for seed in 0..12 {
        let options = writable().grow_step(4096).direct(seed % 2 == 0);
        let mut life = Life::new(device(&[("disk", &small(2 * M))]), options, seed, 2 * M, 4096);
        life.world.watch = no_hole_under_others;
        life.world.late = [None, Some(OpKind::PunchHole), Some(OpKind::Read)][seed as usize % 3];
        for _ in 0..30 {
            life.wave(24);
        }
        life.close();
    }
}

/// Invariant b: the count of a new cluster is there before any pointer to it, also when something fails in
/// between. The power is cut at random moments, with random parts of what is volatile: nothing but leaks.
#[test]
fn invariant_b_counts_are_there_before_pointers() {
    for seed in 0..10 {
        let mut life = Life::new(device(&[("disk", &small(8 * M))]), writable(), seed, 8 * M, 4096);
        let mut cuts = Seeded::new(seed);
        for _ in 0..8 {
            life.wave(12);
            let pending: Vec<Request> =
                (0..4).map(|n| Request::write(n * 2 * M + 8192, Buffer::zeroed(4096), n)).collect();
            for request in pending {
                life.world.driver.submit(life.world.disk, request).map_err(|r| r.reason).unwrap();
            }
            life.world.driver.submit(life.world.disk, Request::flush(9)).map_err(|r| r.reason).unwrap();
            for _ in 0..12 {
                life.world.step();
                let cut = life.world.driver.backend().crash(&mut cuts);
                assert_eq!(
                    check_bytes(&cut.file_bytes("disk")).0,
                    0,
                    "seed {seed}: corruption after a power cut"
                );
            }
            for _ in 0..5 {
                life.world.next().result.unwrap();
            }
            for n in 0..4 {
                let first = ((n * 2 * M + 8192) / SECTOR as u64) as usize;
                life.sectors[first..first + 8].fill((0, 0, true));
            }
        }
        life.close();
    }
}

/// Invariant c: an error leaks at most, and never frees a cluster that is referred to. Each kind of operation
/// fails once, at each of many moments.
#[test]
fn invariant_c_an_error_leaks_at_most() {
    let image = small(4 * M);
    for (kind, errno) in [
        (OpKind::Write, libc::EIO),
        (OpKind::Grow, libc::ENOSPC),
        (OpKind::PunchHole, libc::EIO),
        (OpKind::Read, libc::EIO),
        (OpKind::Sync, libc::EIO),
    ] {
        for nth in (0..40).step_by(if kind == OpKind::Write { 3 } else { 5 }) {
            let mut life =
                Life::new(device(&[("disk", &image)]), writable().grow_step(4096), nth, 4 * M, 4096);
            life.story = format!("{kind:?} {nth}");
            let aftermath = [Aftermath::Nothing, Aftermath::All][nth as usize % 2];
            let fault = Fault::new(&[kind], When::Nth(nth), errno).leaving(aftermath);
            life.wave(8);
            life.world.driver.backend_mut().set_faults(FaultPlan::none().and(fault));
            life.faults = true;
            for _ in 0..6 {
                life.wave(10);
            }
            let poisoned = life.world.driver.poisoned(life.world.disk).is_some();
            life.world.driver.backend_mut().set_faults(FaultPlan::none());
            life.verify();
            let closed = life.world.try_one(Request::close(0));
            assert!(closed.is_ok() || poisoned, "{}: {closed:?}", life.story);
            let (corruptions, leaks) = check_bytes(&life.world.file());
            assert_eq!(corruptions, 0, "{}", life.story);
            assert!(leaks == 0 || poisoned, "{}: {leaks} leaks without a reason", life.story);
        }
    }
}

/// Invariant d: the hole of a freed cluster is complete before the cluster is used again. Holes complete
/// last, whatever else is going on, and new data is verified after them.
#[test]
fn invariant_d_a_hole_is_complete_before_the_cluster_is_used() {
    for seed in 0..8 {
        let mut world = World::open(device(&[("disk", &small(M))]), writable().grow_step(0), seed);
        world.watch = no_hole_under_others;
        world.late = Some(OpKind::PunchHole);
        for round in 0..20u64 {
            let (free, fill) = ((round % 4) * 64 * K, ((round + 2) % 4) * 64 * K);
            world.one(Request::discard(free, 64 * K, 0));
            world.one(Request::flush(0));
            let requests = (0..16)
                .map(|n| {
                    let at = fill + n * 4096;
                    Request::write(at, Buffer::from(&sectors(at, 4096, round as u32 + 1)[..]), n)
                })
                .chain([Request::flush(99)]);
            for done in world.together(requests.collect()) {
                done.result.unwrap();
            }
            assert!(world.read(fill, 64 << 10) == sectors(fill, 64 * K, round as u32 + 1), "round {round}");
        }
        world.one(Request::close(0));
        assert_eq!(check_bytes(&world.file()), (0, 0));
        assert!(world.file().len() as u64 <= M, "{} bytes: freed space is used", world.file().len());
    }
}

/// Invariant e: a write of a part of a cluster never shows what the host had there before. The file has a
/// megabyte of somebody's bytes behind its last cluster, and its free clusters are full of old data.
#[test]
fn invariant_e_a_partial_write_shows_no_stale_bytes() {
    for (extended, holes) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut file = qcow2(4 * M, |options| options.qcow2.extended_l2 = extended);
        file.extend(std::iter::repeat_n(0xee, M as usize + 12345));
        let mut sim = Sim::new();
        sim.insert_file("disk", &file, FileOptions { holes, ..FileOptions::default() });
        let mut world = World::open(sim, writable().grow_step(4096), 3);
        let mut model = vec![0; 4 << 20];
        for round in 0..6u64 {
            for n in 0..10u64 {
                let at = (n * 5 + round) % 64 * 64 * K + 1000 * round;
                world.write(at, &[round as u8 + 1; 700]);
                model[at as usize..][..700].fill(round as u8 + 1);
            }
            let gone = (round * 7 % 60) * 64 * K;
            world.one(Request::discard(gone, 4 * 64 * K, 0));
            model[gone as usize..][..4 << 16].fill(0);
            world.one(Request::flush(0));
            let read = world.read(0, 4 << 20);
            let wrong = read.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "extended {extended}, holes {holes}, round {round}");
        }
        world.one(Request::close(0));
        judge_bytes(&world.file(), &[], &model, &format!("extended {extended}, holes {holes}"));
    }
}

/// Invariant f: short transfers are continued, and the end of the file is not the end of a cluster. QEMU
/// leaves files that end within their last cluster; what is behind reads as zeros. (That the backends
/// continue short reads and writes is in backend/tests/contract.rs.)
#[test]
fn invariant_f_a_read_at_the_end_of_the_file_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    tools::create(&path, &CreateOptions::new(Format::Qcow2, M)).unwrap();
    let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
    session.write(0, &sectors(0, 64 * K, 1)).unwrap();
    session.close().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 64 * K + 10_000).unwrap();
    let mut expected = sectors(0, 64 * K, 1);
    expected[10_000..].fill(0);
    for write in [false, true] {
        for direct in [false, true] {
            let mut session = Session::open(&path, OpenOptions::new().write(write).direct(direct)).unwrap();
            let mut read = vec![0xdd; 64 << 10];
            session.read(0, &mut read).unwrap();
            assert!(read == expected, "write {write}, direct {direct}");
            let mut tail = [0xdd; 3000];
            session.read(9000, &mut tail).unwrap();
            assert!(tail[..] == expected[9000..12000]);
            session.close().unwrap();
        }
    }
}

/// Invariant g: quiesce makes the file self-consistent without a guest's flush, and service goes on. A copy
/// of the file, taken as soon as quiesce ends, is a sound image with all that completed before.
#[test]
fn invariant_g_quiesce_makes_a_copy_of_the_file_whole() {
    for lazy in [false, true] {
        let mut life = Life::new(
            device(&[(
                "disk",
                &qcow2(4 * M, |options| {
                    (options.cluster_size, options.qcow2.lazy_refcounts) = (Some(16384), lazy);
                }),
            )]),
            writable(),
            lazy.into(),
            4 * M,
            4096,
        );
        for round in 0..10 {
            life.wave(20);
            life.world.one(Request::quiesce(0));
            let (file, disk) = (life.world.file(), life.world.read(0, 4 << 20));
            assert_eq!(check_bytes(&file), (0, 0), "lazy {lazy}, round {round}");
            if round % 5 == 0 {
                judge_bytes(&file, &[], &disk, &format!("lazy {lazy}, round {round}"));
            }
        }
        life.close();
    }
}

/// #7660, #7661, #7665, #7746, pull 7744: the state of an image (or its file position) was cloned for each
/// queue of a disk, and the copies overwrote each other's tables. Here a disk has one owner: four queues'
/// requests go through one driver, and a second writer of the file is refused, ours or QEMU's.
#[test]
fn report_7660_queues_share_one_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, small(16 * M)).unwrap();
    let mut driver = Driver::new(Config::default().requests(256)).unwrap();
    let disk = driver.open(&path, OpenOptions::new().write(true)).unwrap();
    assert_eq!(finish(&mut driver).kind.request(), None);
    let second = Session::open(&path, OpenOptions::new().write(true)).map(drop);
    assert!(second.is_err_and(|error| error.to_string().contains("lock")), "a second owner");
    let (code, text) = qemu("qemu-io", &["-f", "qcow2", "-c", "write 0 512", path.to_str().unwrap()]);
    assert!(code != 0 && text.contains("lock"), "{text}");
    let mut model = vec![0; 16 << 20];
    for round in 0..8u32 {
        // each queue its lane of each 64 KiB
        let requests = (0..256u64).map(|n| {
            let at = (n / 4 * 5 + u64::from(round) * 3) % 256 * 64 * K + n % 4 * 16 * K;
            (at, sectors(at, 16 * K, round + 1))
        });
        let mut pending = 0;
        for (at, bytes) in requests {
            model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
            let mut request = Request::write(at, Buffer::from(&bytes[..]), at);
            while let Err(rejected) = driver.submit(disk, request) {
                assert_eq!(rejected.reason, Refusal::Busy);
                finish(&mut driver).result.unwrap();
                pending -= 1;
                request = rejected.request;
            }
            pending += 1;
        }
        (0..pending).for_each(|_| finish(&mut driver).result.unwrap());
    }
    driver.submit(disk, Request::close(0)).map_err(|rejected| rejected.reason).unwrap();
    finish(&mut driver).result.unwrap();
    judge(&path, &model, "four queues");
}

fn finish(driver: &mut Driver) -> Completion {
    loop {
        if let Some(done) = driver.next_completion() {
            return done;
        }
        driver.wait(None).unwrap();
    }
}

/// #8358: the first 64 KiB of an image were overwritten by a guest's data; the header was gone. Guest
/// writes around offset 0, under failures and with discards, never touch the file's first cluster but for
/// the header's own fields.
#[test]
fn report_8358_the_first_cluster_of_the_file_stays_the_headers() {
    for seed in 0..6 {
        let file = qcow2(M, |_| ());
        let mut life = Life::new(device(&[("disk", &file)]), writable(), seed, M, 4096);
        life.faults = seed >= 3;
        if life.faults {
            let fault = Fault::new(&[OpKind::Write, OpKind::Grow], When::OneIn(30), libc::EIO);
            life.world.driver.backend_mut().set_faults(FaultPlan::none().and(fault));
        }
        for _ in 0..20 {
            life.wave(16);
            life.world
                .driver
                .submit(life.world.disk, Request::discard(0, 64 * K, 0))
                .map_err(|r| r.reason)
                .unwrap();
            life.sectors[..128].iter_mut().for_each(|state| state.2 = true);
            let done = life.world.next();
            assert!(done.result.is_ok() || life.faults);
            assert_eq!(life.world.file()[..512], file[..512], "seed {seed}");
            assert!(life.world.file()[512..65536].iter().eq(&file[512..65536]), "seed {seed}");
        }
    }
}

/// #8606: after ten days the allocator handed out live L2 tables as free clusters, because an error path
/// (no space left) released a table before its successor was there; 118 of 200 tables were overwritten, and
/// nobody noticed. Many L2 tables, discards and rewrites, and a device that is full every now and then;
/// every sector and the check afterwards.
#[test]
fn report_8606_live_tables_are_never_handed_out() {
    for seed in 0..5 {
        let options = writable().grow_step(0).cache_bytes(64 << 10);
        // 64 tables of 2 MiB each
        let mut life = Life::new(device(&[("disk", &small(128 * M))]), options, seed, 128 * M, 4096);
        for round in 0..24 {
            life.faults = round % 3 == 1;
            let full = Fault::new(&[OpKind::Grow, OpKind::Write], When::OneIn(6), libc::ENOSPC).extending();
            let plan = if life.faults { FaultPlan::none().and(full) } else { FaultPlan::none() };
            life.world.driver.backend_mut().set_faults(plan);
            life.wave(40);
        }
        life.world.driver.backend_mut().set_faults(FaultPlan::none());
        assert!(life.world.driver.poisoned(life.world.disk).is_none(), "a full device poisons nothing");
        assert!(life.world.driver.backend().counters().failed(OpKind::Grow) > 0, "it was full");
        life.close();
    }
}

/// Pull 8624: a hole that was punched late erased a cluster that had become an L2 table meanwhile: discard,
/// flush, a write that needs a new table, in that order. The hole is held back until nothing else is left to
/// do: the table gets other space, or waits.
#[test]
fn report_8624_a_late_hole_does_not_hit_a_new_table() {
    for seed in 0..20 {
        let mut world = World::open(device(&[("disk", &small(64 * M))]), writable().grow_step(0), seed);
        (world.late, world.watch) = (Some(OpKind::PunchHole), no_hole_under_others);
        world.write(0, &sectors(0, 64 * K, 1));
        for table in 1..20u64 {
            let at = table * 2 * M;
            let requests = vec![
                Request::discard((table - 1) % 16 * 4096, 4096, 0),
                Request::flush(1),
                Request::write(at, Buffer::from(&sectors(at, 4096, 2)[..]), 2),
                Request::flush(3),
                Request::write(at + 8192, Buffer::from(&sectors(at + 8192, 4096, 3)[..]), 4),
            ];
            for done in world.together(requests) {
                done.result.unwrap();
            }
        }
        for table in 1..20u64 {
            let at = table * 2 * M;
            assert!(world.read(at, 4096) == sectors(at, 4096, 2), "seed {seed}, table {table}");
            assert!(world.read(at + 8192, 4096) == sectors(at + 8192, 4096, 3), "seed {seed}, table {table}");
        }
        world.one(Request::close(0));
        assert_eq!(check_bytes(&world.file()), (0, 0), "seed {seed}");
    }
}

/// Pull 8721: the L1 table led to a new L2 table whose count was not yet written (nor ever, when something
/// failed in between). Each write here needs a new table; the power is cut after each operation of the
/// device, and the file must never have an L1 entry that leads to a cluster without a count.
#[test]
fn report_8721_a_new_table_is_counted_before_the_l1_table_leads_to_it() {
    for seed in 0..4 {
        let mut world = World::open(device(&[("disk", &small(64 * M))]), writable(), seed);
        let mut cuts = Seeded::new(seed);
        let requests = (0..24u64).flat_map(|n| {
            let at = n * 2 * M;
            [Request::write(at, Buffer::from(&sectors(at, 4096, 1)[..]), n), Request::flush(100 + n)]
        });
        for request in requests {
            world.driver.submit(world.disk, request).map_err(|rejected| rejected.reason).unwrap();
        }
        let mut ended = 0;
        while ended < 48 {
            world.step();
            while let Some(done) = world.driver.next_completion() {
                done.result.unwrap();
                ended += 1;
            }
            let cut = world.driver.backend().crash(&mut cuts);
            assert_eq!(check_bytes(&cut.file_bytes("disk")).0, 0, "seed {seed}");
        }
    }
}

/// Pull 8748: a write failed, its cluster went back to the allocator, and was handed out twice. Data writes
/// fail at random, and what the others wrote is verified.
#[test]
fn report_8748_a_failed_write_gives_its_cluster_back_once() {
    for seed in 0..8 {
        let mut life =
            Life::new(device(&[("disk", &small(2 * M))]), writable().grow_step(0), seed, 2 * M, 4096);
        // a disk that never commits by itself: no write of metadata can fail
        life.faults = true;
        for round in 0..15u64 {
            let fault = Fault::new(&[OpKind::Write], When::Nth(round % 5), libc::EIO);
            life.world.driver.backend_mut().set_faults(FaultPlan::none().and(fault));
            let requests = (0..8u64).map(|n| {
                let at = (round * 37 + n * 11) % 512 * 4096;
                Request::write(at, Buffer::from(&sectors(at, 4096, life.next)[..]), at)
            });
            let new = life.next;
            let done = life.world.together(requests.collect());
            life.next += 1;
            assert!(done.iter().any(|done| done.result.is_err()));
            for done in done {
                life.ended(&done, Kind::Write, done.user, done.user + 4096, new);
            }
            life.world.driver.backend_mut().set_faults(FaultPlan::none());
            life.world.one(Request::flush(0));
        }
        assert!(life.world.driver.poisoned(life.world.disk).is_none());
        life.close();
    }
}

/// #8621: several queues over a backing file, and ext4 found wrong checksums; it went away under tracing or
/// with one queue. The shape of the job that was given there (random reads and writes, 40 % of 4 KiB, 30 of
/// 8, 20 of 16, 10 of 64, sixteen jobs of depth 32, every block verified) as a short soak on real files;
/// the time is in `QUOD_SOAK_SECONDS`.
#[test]
fn report_8621_many_queues_over_a_backing_file() {
    let seconds = std::env::var("QUOD_SOAK_SECONDS").map_or(3, |text| text.parse().expect("seconds"));
    let size = 64 * M;
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base.qcow2"), folder.path().join("disk"));
    tools::create(&base, &CreateOptions::new(Format::Qcow2, size)).unwrap();
    let mut session = Session::open(&base, OpenOptions::new().write(true)).unwrap();
    for at in (0..size).step_by(M as usize) {
        session.write(at, &sectors(at, M / 2, 1)).unwrap();
    }
    session.close().unwrap();
    let mut options = CreateOptions::new(Format::Qcow2, size);
    options.backing = Some(("base.qcow2".into(), Some(Format::Qcow2)));
    tools::create(&path, &options).unwrap();
    let mut soak = Soak::open(&path, size);
    let began = std::time::Instant::now();
    while began.elapsed().as_secs() < seconds {
        soak.step();
    }
    soak.end(&path);
}

/// Five hundred requests in flight, one a block of 64 KiB at most.
struct Soak {
    driver: Driver,
    disk: quod::DiskId,
    random: Seeded,
    versions: Vec<u32>,
    busy: Vec<Option<(u64, u64, u32)>>,
    next: u32,
}

impl Soak {
    fn open(path: &Path, size: u64) -> Soak {
        let mut driver = Driver::new(Config::default().requests(512)).unwrap();
        let options = writable().commit_ms(20).cache_bytes(64 << 10);
        let disk = driver.open(path, options).unwrap();
        assert_eq!(finish(&mut driver).result, Ok(()));
        let blocks = (size / (64 * K)) as usize;
        let versions = (0..size / SECTOR as u64).map(|n| u32::from(n % 2048 < 1024)).collect();
        Soak { driver, disk, random: Seeded::new(8621), versions, busy: vec![None; blocks], next: 2 }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.choose(Choice::Workload, n as usize) as u64
    }

    fn step(&mut self) {
        for _ in 0..16 {
            let block = self.below(self.busy.len() as u64);
            if self.busy[block as usize].is_some() {
                continue;
            }
            let len = [4, 4, 4, 4, 8, 8, 8, 16, 16, 64][self.below(10) as usize] * K;
            let at = block * 64 * K + self.below(64 * K / len) * len;
            let version = if self.below(2) == 0 { self.next } else { 0 };
            self.next += 1;
            let request = match version {
                0 => Request::read(at, Buffer::zeroed(len as usize), block),
                _ => Request::write(at, Buffer::from(&sectors(at, len, version)[..]), block),
            };
            if self.driver.submit(self.disk, request).is_ok() {
                self.busy[block as usize] = Some((at, len, version));
            }
        }
        if self.below(40) == 0 {
            let _ = self.driver.submit(self.disk, Request::flush(u64::MAX));
        }
        self.driver.turn().unwrap();
        while let Some(done) = self.driver.next_completion() {
            self.ended(&done);
        }
    }

    fn ended(&mut self, done: &Completion) {
        assert_eq!(done.result, Ok(()));
        let Some((at, len, new)) = self.busy.get_mut(done.user as usize).and_then(Option::take) else {
            return;
        };
        let first = at / SECTOR as u64;
        let read = bytes_of(&done.kind);
        for n in 0..len / SECTOR as u64 {
            let wanted = &mut self.versions[(first + n) as usize];
            match new {
                0 => {
                    let found = version(first + n, &read[n as usize * SECTOR..][..SECTOR]);
                    assert_eq!(found, Some(*wanted), "sector {}", first + n);
                }
                _ => *wanted = new,
            }
        }
    }

    fn end(mut self, path: &Path) {
        while self.busy.iter().any(Option::is_some) {
            let done = finish(&mut self.driver);
            self.ended(&done);
        }
        self.driver.submit(self.disk, Request::close(77)).map_err(|rejected| rejected.reason).unwrap();
        while finish(&mut self.driver).kind.request() != Some(Kind::Close) {}
        let model: Vec<u8> = (0..)
            .zip(&self.versions)
            .flat_map(
                |(n, version)| if *version == 0 { vec![0; SECTOR] } else { sectors(n * 512, 512, *version) },
            )
            .collect();
        judge(path, &model, "the soak");
    }
}

/// Pull 8597: under frequent flushes a file grew to about twice its live data: freed blocks of tables and
/// counts did not come back. Rewrites, discards and a flush after each: the file stays about as large as
/// what lives in it.
#[test]
fn report_8597_the_file_does_not_grow_under_frequent_flushes() {
    for extended in [false, true] {
        let file = qcow2(16 * M, |options| {
            (options.cluster_size, options.qcow2.extended_l2) = (Some(16384), extended);
        });
        let mut world = World::open(device(&[("disk", &file)]), writable().grow_step(0), 5);
        let mut random = Seeded::new(5);
        let live = 2 * M;
        for n in 0..1500u32 {
            let at = random.choose(Choice::Workload, (live / 4096) as usize) as u64 * 4096;
            world.write(at, &sectors(at, 4096, n + 1));
            if n % 3 == 0 {
                let at = random.choose(Choice::Workload, (live / 16384) as usize) as u64 * 16384;
                world.one(Request::discard(at, 16384, 0));
            }
            world.one(Request::flush(0));
        }
        let len = world.file().len() as u64;
        assert!(len <= live + live / 4, "extended {extended}: {len} bytes for {live}");
        world.one(Request::close(0));
        assert_eq!(check_bytes(&world.file()), (0, 0));
    }
}

/// Pull 8607: tables were written on a guest's flush only, so that pausing a machine and copying its image
/// lost completed writes. Quiesce, on real files: QEMU finds the copy sound and whole while the original is
/// still open and used.
#[test]
fn report_8607_a_copy_after_quiesce_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("disk"), folder.path().join("copy"));
    for lazy in [false, true] {
        std::fs::write(&path, qcow2(8 * M, |options| options.qcow2.lazy_refcounts = lazy)).unwrap();
        let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
        let mut model = vec![0; 8 << 20];
        for round in 0..3u32 {
            for n in 0..40u64 {
                let at = (n * 97 + u64::from(round) * 31) % 2000 * 4096;
                let bytes = sectors(at, 4096, round + 1);
                session.write(at, &bytes).unwrap();
                model[at as usize..][..4096].copy_from_slice(&bytes);
            }
            session.quiesce().unwrap();
            std::fs::copy(&path, &copy).unwrap();
            judge(&copy, &model, &format!("lazy {lazy}, round {round}"));
        }
        session.close().unwrap();
        judge(&path, &model, "closed");
    }
}

/// #6354: opening an image dropped its lazy_refcounts bit, without a word. It is kept, and the dirty bit is
/// set while it has to be and clear after closing.
#[test]
fn report_6354_lazy_refcounts_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let arg = path.to_str().unwrap();
    let options = "lazy_refcounts=on,cluster_size=4k";
    assert_eq!(
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, arg, "8M"]),
        (0, String::new())
    );
    for round in 0..2u32 {
        let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
        session.write(u64::from(round) * M, &sectors(u64::from(round) * M, 64 * K, 1)).unwrap();
        session.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[79], 1, "dirty while it is written");
        session.close().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[79], 0);
        let (_, info) = qemu("qemu-img", &["info", arg]);
        assert!(info.contains("lazy refcounts: true"), "{info}");
        assert_eq!(qemu("qemu-img", &["check", "-f", "qcow2", arg]).0, 0);
    }
}

/// Pull 8245: write-zeroes of a cluster that the overlay did not have left it unallocated, and the backing
/// file's data was seen. All kinds of image, whole and parts of clusters, with and without unmap.
#[test]
fn report_8245_zeroes_hide_the_backing_file() {
    for (compat, extended) in [(3, false), (2, false), (3, true)] {
        for unmap in [false, true] {
            let file = qcow2(M, |options| {
                (options.qcow2.version, options.qcow2.extended_l2) = (compat, extended);
                options.backing = Some(("base".into(), Some(Format::Raw)));
            });
            let base = sectors(0, M, 9);
            let mut world = World::open(device(&[("disk", &file), ("base", &base)]), writable(), 1);
            let mut model = base.clone();
            for (at, len) in
                [(0, 64 * K), (130 * K, 3000), (200 * K, 200 * K), (M - 512, 512), (500 * K + 7, 2)]
            {
                let request = Request::write_zeroes(at, len, 0);
                world.one(if unmap { request.may_unmap() } else { request });
                model[at as usize..(at + len) as usize].fill(0);
            }
            let story = format!("version {compat}, extended {extended}, unmap {unmap}");
            assert!(world.read(0, M as usize) == model, "{story}");
            world.one(Request::close(0));
            judge_bytes(&world.file(), &[("base", &base)], &model, &story);
        }
    }
}

/// Pull 7526: entries of the L1 table were written without the copied flag, so that other programs copied
/// tables needlessly, and checks complained. Ours have it, in L1 and L2 tables alike, and QEMU agrees.
#[test]
fn report_7526_entries_have_the_copied_flag() {
    let mut world = World::open(device(&[("disk", &small(64 * M))]), writable(), 1);
    let mut model = vec![0; 64 << 20];
    for n in 0..16u64 {
        let at = n * 4 * M;
        world.write(at, &sectors(at, 8192, 1));
        model[at as usize..][..8192].copy_from_slice(&sectors(at, 8192, 1));
    }
    world.one(Request::close(0));
    let file = world.file();
    let be = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let l1 = be(40) as usize;
    let tables: Vec<u64> = (0..32).map(|n| be(l1 + n * 8)).filter(|entry| *entry != 0).collect();
    assert_eq!(tables.len(), 16);
    for table in tables {
        assert_eq!(table >> 63, 1, "{table:#x}");
        let at = (table & !(1 << 63)) as usize;
        assert!((0..2).all(|n| be(at + n * 8) >> 63 == 1));
    }
    judge_bytes(&file, &[], &model, "copied flags");
}

/// Pull 7882, its review: completions were lost when a batch was submitted in part, and short reads passed
/// for whole ones. A device that takes one, two or three operations at a time, and hundreds of requests:
/// each is answered, once, with all of its bytes.
#[test]
fn report_7882_no_completion_is_lost_when_the_device_is_busy() {
    for capacity in 1..=3 {
        let mut sim = device(&[("disk", &small(4 * M))]);
        sim.set_capacity(capacity);
        let mut world = World::open(sim, writable().acbs(64), capacity as u64);
        for round in 1..4u32 {
            let write =
                |n: u64| Request::write(n * 12288, Buffer::from(&sectors(n * 12288, 12288, round)[..]), n);
            let mut users: Vec<u64> = world
                .together((0..300).map(write).collect())
                .iter()
                .map(|done| {
                    assert_eq!(done.result, Ok(()));
                    done.user
                })
                .collect();
            users.sort_unstable();
            assert!(users.into_iter().eq(0..300), "each answered once");
            let read = |n: u64| Request::read(n * 12288, Buffer::from(&[0xdd; 12288][..]), n);
            for done in world.together((0..300).map(read).collect()) {
                assert!(bytes_of(&done.kind) == sectors(done.user * 12288, 12288, round), "{}", done.user);
            }
        }
        assert!(world.driver.backend().in_flight() <= capacity);
        world.one(Request::close(0));
        assert_eq!(check_bytes(&world.file()), (0, 0));
    }
}

/// A note beside the record: drivers that wrote in place without looking at the copied flag lost internal
/// snapshots, and drivers that left the bitmaps' bit set gave wrong incremental backups. (The second is in
/// qcow2_write.rs.) A snapshot of QEMU's holds what it held.
#[test]
fn a_snapshot_survives_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let arg = path.to_str().unwrap();
    std::fs::write(&path, small(4 * M)).unwrap();
    let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
    session.write(0, &sectors(0, 2 * M, 1)).unwrap();
    session.close().unwrap();
    assert_eq!(qemu("qemu-img", &["snapshot", "-c", "before", arg]).0, 0);
    let file = std::fs::read(&path).unwrap();
    let mut life = Life::new(device(&[("disk", &file)]), writable(), 1, 4 * M, 4096);
    life.sectors[..4096].fill((1, 1, false));
    life.next = 2;
    for _ in 0..30 {
        life.wave(20);
    }
    life.world.one(Request::close(0));
    std::fs::write(&path, life.world.file()).unwrap();
    assert_eq!(qemu("qemu-img", &["check", "-f", "qcow2", arg]).0, 0);
    let raw = folder.path().join("raw");
    let convert = ["convert", "-l", "before", "-f", "qcow2", "-O", "raw", arg, raw.to_str().unwrap()];
    assert_eq!(qemu("qemu-img", &convert), (0, String::new()));
    let mut expected = sectors(0, 2 * M, 1);
    expected.resize(4 << 20, 0);
    assert!(std::fs::read(&raw).unwrap() == expected);
}

/// Errors say whose fault they are: what cannot be written is refused, not half done.
#[test]
fn an_image_that_cannot_be_trusted_is_refused_by_name() {
    let mut file = small(M);
    file[79] = 2;
    let refused = World::try_open(device(&[("disk", &file)]), writable(), 1).map(drop);
    assert!(
        matches!(refused, Err(Error::File { kind: ErrorKind::Unsupported(_) | ErrorKind::Corrupt(_), .. })),
        "{refused:?}"
    );
    file[79] = 0x20;
    let refused = World::try_open(device(&[("disk", &file)]), OpenOptions::new(), 1).map(drop);
    assert!(matches!(refused, Err(Error::File { kind: ErrorKind::Unsupported(_), .. })), "{refused:?}");
}
