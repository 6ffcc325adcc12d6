//! The pump over the simulated disk: raw images, buffered and O_DIRECT, any order of completion, errors,
//! opening.

#[path = "differential/random.rs"]
#[allow(dead_code, reason = "shared with the differential tests")]
mod random;

use quod::{
    AllowAll, Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Driver, Error, ErrorKind, FileOp,
    FileRole, Format, Kind, OpenOptions, RawBuffers, Refusal, Request,
};
use quod_backend::Backend;
use quod_backend::sim::{Fault, FaultPlan, FileOptions, OpKind, Seeded, Sim, When};
use quod_tools::{self as tools, CreateOptions};
use random::Random;
use std::time::Duration;

const SIZE: usize = 256 << 10;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn driver_on(sim: Sim) -> Driver<Sim> {
    Driver::with_backend(sim, Config::default().requests(16)).unwrap()
}

/// Runs until a completion is there.
fn next(driver: &mut Driver<Sim>, order: &mut Seeded) -> Completion {
    for _ in 0..10_000 {
        if let Some(done) = driver.next_completion() {
            return done;
        }
        driver.turn().unwrap();
        if !driver.backend_mut().step(order)
            && let Some(time) = driver.next_timeout()
        {
            driver.backend_mut().advance(time);
        }
    }
    panic!("nothing completes");
}

fn open(driver: &mut Driver<Sim>, options: OpenOptions) -> (DiskId, Result<(), Error>) {
    let disk = driver.open("disk", options.user(7)).unwrap();
    let done = next(driver, &mut Seeded::new(1));
    assert_eq!((done.disk, done.kind.request(), done.user), (disk, None, 7));
    (disk, done.result)
}

fn submit(driver: &mut Driver<Sim>, disk: DiskId, request: Request) {
    driver.submit(disk, request).map_err(|rejected| rejected.reason).unwrap();
}

/// Runs requests together, as far as the driver takes them.
fn together(
    driver: &mut Driver<Sim>,
    disk: DiskId,
    order: &mut Seeded,
    requests: Vec<Request>,
) -> Vec<Completion> {
    let count = requests.len();
    let mut done = Vec::new();
    for mut request in requests {
        while let Err(rejected) = driver.submit(disk, request) {
            assert_eq!(rejected.reason, Refusal::Busy);
            done.push(next(driver, order));
            request = rejected.request;
        }
    }
    while done.len() < count {
        done.push(next(driver, order));
    }
    done
}

fn raw() -> OpenOptions {
    OpenOptions::new().format(Some(Format::Raw)).write(true)
}

impl Random {
    /// `len` bytes in up to three buffers, so that scatter lists are cut everywhere.
    fn buffers(&mut self, bytes: &[u8]) -> Buffers {
        let a = self.below(bytes.len() as u64 + 1) as usize;
        let b = a + self.below((bytes.len() - a) as u64 + 1) as usize;
        match self.below(2) {
            0 => Buffers::Owned(Buffer::from(bytes)),
            _ => Buffers::Vec([&bytes[..a], &bytes[a..b], &bytes[b..]].map(Buffer::from).into()),
        }
    }
}

fn bytes_of(kind: &CompletionKind) -> Vec<u8> {
    kind.buffers().map_or_else(Vec::new, Buffers::to_vec)
}

/// A QED image as a file's bytes.
fn qed(size: u64, backing: Option<&str>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let options = CreateOptions {
        cluster_size: Some(4096),
        table_size: Some(1),
        backing: backing.map(|name| (name.to_string(), None)),
        ..CreateOptions::new(Format::Qed, size)
    };
    tools::create(folder.path().join("image"), &options).unwrap();
    std::fs::read(folder.path().join("image")).unwrap()
}

fn raw_round_trip(seed: u64, direct: bool) {
    let mut sim = Sim::new();
    sim.set_capacity(1 + seed as usize % 7);
    let mut model = pattern(SIZE);
    sim.insert_file("disk", &model, FileOptions::default());
    let driver = round_trip(sim, seed, raw().direct(direct), &mut model);
    assert!(driver.backend().file_bytes("disk") == model, "seed {seed}");
}

/// QED on QED on raw, the lower ones shorter.
fn chain_round_trip(seed: u64, direct: bool) {
    let mut sim = Sim::new();
    sim.set_capacity(1 + seed as usize % 23);
    let base = pattern(SIZE / 2 + 100);
    let mut model = base.clone();
    model.resize(SIZE, 0);
    sim.insert_file("base", &base, FileOptions::default());
    sim.insert_file("middle", &qed(SIZE as u64 - 20480, Some("base")), FileOptions::default());
    sim.insert_file("disk", &qed(SIZE as u64, Some("middle")), FileOptions::default());
    // few control blocks, so that extents and children wait for them
    let acbs = 1 + seed as u32 % 9;
    let options = OpenOptions::new().write(true).direct(direct).open_gate(AllowAll).acbs(acbs).commit_ms(1);
    let driver = round_trip(sim, seed, options, &mut model);
    let mut driver = driver_on(driver.backend().crash_with(|_| 0));
    let (disk, result) = open(&mut driver, OpenOptions::new().open_gate(AllowAll));
    result.unwrap();
    assert_eq!(driver.layers(disk), 3);
    submit(&mut driver, disk, Request::read(0, Buffer::zeroed(SIZE), 0));
    let done = next(&mut driver, &mut Seeded::new(seed));
    assert!(bytes_of(&done.kind) == model, "seed {seed}: what close made durable");
}

/// Writes to disjoint ranges at once, reads them back at once, for every order that the seed makes; closes.
fn round_trip(sim: Sim, seed: u64, options: OpenOptions, model: &mut [u8]) -> Driver<Sim> {
    let mut driver = driver_on(sim);
    let (disk, result) = open(&mut driver, options);
    result.unwrap();
    assert_eq!(driver.disk_info(disk).unwrap().virtual_size(), SIZE as u64);
    let (mut random, mut order) = (Random(seed + 1), Seeded::new(seed));
    for _ in 0..4 {
        let mut requests = Vec::new();
        for lane in 0..8u64 {
            let offset = lane * 32768 + random.below(9000);
            let len = 1 + random.below(20000);
            let range = offset as usize..(offset + len) as usize;
            if random.below(4) == 0 {
                model[range].fill(0);
                requests.push(Request::write_zeroes(offset, len, lane));
            } else {
                let bytes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
                model[range].copy_from_slice(&bytes);
                requests.push(Request::write(offset, random.buffers(&bytes), lane));
            }
        }
        for done in together(&mut driver, disk, &mut order, requests) {
            done.result.unwrap();
        }
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for user in 0..8u64 {
            let offset = random.below(SIZE as u64 - 5000);
            let len = 1 + random.below(5000);
            asked.push((offset, len));
            requests.push(Request::read(offset, random.buffers(&vec![0xee; len as usize]), user));
        }
        for done in together(&mut driver, disk, &mut order, requests) {
            done.result.unwrap();
            let (offset, len) = asked[done.user as usize];
            let want = &model[offset as usize..(offset + len) as usize];
            assert!(bytes_of(&done.kind) == want, "seed {seed} read {offset}+{len}");
        }
    }
    submit(&mut driver, disk, Request::close(9));
    let done = next(&mut driver, &mut order);
    assert_eq!((done.kind.request(), done.result), (Some(Kind::Close), Ok(())));
    assert!(driver.idle());
    assert!(driver.disk_info(disk).is_none());
    driver
}

#[test]
fn raw_images_move_buffered_and_direct() {
    for seed in 0..40 {
        raw_round_trip(seed, false);
        raw_round_trip(seed, true);
    }
}

#[test]
fn chains_move_in_any_order_of_completion() {
    for seed in 0..60 {
        chain_round_trip(seed, seed % 2 == 0);
    }
}

#[test]
fn a_full_driver_says_busy_and_gives_the_request_back() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = driver_on(sim);
    let (disk, _) = open(&mut driver, raw());
    for user in 0..16 {
        submit(&mut driver, disk, Request::read(user * 512, Buffer::zeroed(512), user));
    }
    let rejected = driver.submit(disk, Request::read(0, Buffer::zeroed(512), 99)).unwrap_err();
    assert_eq!(rejected.reason, Refusal::Busy);
    assert_eq!(rejected.request.user, 99);
    assert_eq!(rejected.request.kind.into_buffers().map(|buffers| buffers.len()), Some(512));
    // done and not taken is as good as busy: completions are bounded too
    for _ in 0..100 {
        driver.turn().unwrap();
        driver.backend_mut().step(&mut Seeded::new(3));
    }
    assert_eq!(driver.next_timeout(), Some(Duration::ZERO));
    assert_eq!(driver.submit(disk, Request::flush(0)).unwrap_err().reason, Refusal::Busy);
    let mut order = Seeded::new(4);
    for _ in 0..16 {
        let done = next(&mut driver, &mut order);
        assert_eq!(bytes_of(&done.kind), &pattern(SIZE)[done.user as usize * 512..][..512]);
    }
    assert!(driver.idle());
}

#[test]
fn a_driver_for_no_requests_is_refused() {
    let none = Config::default().requests(0);
    assert!(matches!(Driver::new(none), Err(Error::Misuse(what)) if what.contains("Config::requests")));
    assert!(matches!(Driver::with_backend(Sim::new(), none), Err(Error::Misuse(_))));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = driver_on(sim);
    let early = driver.open("disk", raw()).unwrap();
    let refuse = |driver: &mut Driver<Sim>, disk, request| match driver.submit(disk, request) {
        Err(rejected) => Error::from(rejected.reason),
        Ok(()) => panic!("accepted"),
    };
    assert!(matches!(refuse(&mut driver, early, Request::flush(0)), Error::Misuse(_)));
    next(&mut driver, &mut Seeded::new(1)).result.unwrap();
    assert!(matches!(refuse(&mut driver, early, Request::map(1, 0, 1, 0)), Error::Misuse(_)));
    for nowhere in [Request::read(0, Vec::new(), 0), Request::write(0, RawBuffers::default(), 0)] {
        assert!(matches!(refuse(&mut driver, early, nowhere), Error::Misuse(_)));
    }
    // of no bytes, but somewhere
    submit(&mut driver, early, Request::read(0, Buffer::zeroed(0), 0));
    next(&mut driver, &mut Seeded::new(1)).result.unwrap();
    submit(&mut driver, early, Request::close(0));
    assert_eq!(refuse(&mut driver, early, Request::flush(0)), Error::Closed);
    next(&mut driver, &mut Seeded::new(1)).result.unwrap();
    let again = driver.open("disk", raw()).unwrap();
    assert_ne!(again, early);
    next(&mut driver, &mut Seeded::new(1)).result.unwrap();
    assert_eq!(refuse(&mut driver, early, Request::flush(0)), Error::Closed, "the old name stays invalid");
}

#[test]
fn failures_of_the_device_name_the_file_and_leave_the_driver_alive() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = driver_on(sim);
    let (disk, _) = open(&mut driver, raw());
    let mut order = Seeded::new(5);
    driver.backend_mut().set_faults(FaultPlan::none().and(Fault::new(
        &[OpKind::Read],
        When::Nth(1),
        libc::EIO,
    )));
    for user in 0..2 {
        submit(&mut driver, disk, Request::read(0, Buffer::zeroed(512), user));
    }
    let results: Vec<_> = (0..2).map(|_| next(&mut driver, &mut order).result).collect();
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].path().is_some_and(|path| path.ends_with("disk")), "{failed:?}");
    assert!(matches!(failed[0].kind(), Some(ErrorKind::Device { errno: libc::EIO, .. })), "{failed:?}");
    assert_eq!(driver.stats(disk).unwrap().errors, 1);
}

#[test]
fn opening_fails_with_the_name_of_the_file_and_leaves_nothing_open() {
    let mut driver = driver_on(Sim::new());
    let (_, result) = open(&mut driver, raw());
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::File { kind: ErrorKind::Io { op: FileOp::Open, errno: libc::ENOENT }, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("disk"));
    assert!(driver.idle());

    for kind in [OpKind::Stat, OpKind::Lock] {
        let mut sim = Sim::new();
        sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
        sim.set_faults(FaultPlan::none().and(Fault::new(&[kind], When::Nth(0), libc::EIO)));
        let mut driver = driver_on(sim);
        let (disk, result) = open(&mut driver, raw());
        assert!(
            matches!(result, Err(Error::File { kind: ErrorKind::Io { errno: libc::EIO, .. }, .. })),
            "{kind:?}"
        );
        assert!(driver.idle() && driver.disk_info(disk).is_none());
        assert_eq!(driver.backend().counters().completed(OpKind::Close), 1, "{kind:?}");
    }
}

#[test]
fn a_second_writer_is_refused_and_locks_go_with_the_disk() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = driver_on(sim);
    let (first, result) = open(&mut driver, raw());
    result.unwrap();
    let (_, second) = open(&mut driver, raw());
    let error = second.unwrap_err();
    assert!(error.to_string().contains("Failed to get \"write\" lock"), "{error}");
    open(&mut driver, raw().lock(false)).1.unwrap();
    submit(&mut driver, first, Request::close(0));
    next(&mut driver, &mut Seeded::new(2)).result.unwrap();
    open(&mut driver, raw()).1.unwrap();
}

#[test]
fn several_disks_share_a_driver() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &[1; 4096], FileOptions::default());
    sim.insert_file("other", &[2; 4096], FileOptions::default());
    let mut driver = driver_on(sim);
    let a = driver.open("disk", raw()).unwrap();
    let b = driver.open("other", raw().open_gate(AllowAll)).unwrap();
    let mut order = Seeded::new(6);
    for _ in 0..2 {
        next(&mut driver, &mut order).result.unwrap();
    }
    submit(&mut driver, a, Request::read(0, Buffer::zeroed(512), 0));
    submit(&mut driver, b, Request::read(0, Buffer::zeroed(512), 0));
    for _ in 0..2 {
        let done = next(&mut driver, &mut order);
        assert_eq!(bytes_of(&done.kind), [if done.disk == a { 1 } else { 2 }; 512]);
    }
}

#[test]
fn a_driver_may_be_dropped_in_the_middle() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = driver_on(sim);
    let (disk, _) = open(&mut driver, raw());
    submit(&mut driver, disk, Request::read(3, Buffer::zeroed(5000), 0));
    driver.turn().unwrap();
    assert!(driver.backend().in_flight() > 0);
    drop(driver);
}

#[test]
fn a_failing_backing_file_is_the_one_that_is_named() {
    let mut sim = Sim::new();
    sim.insert_file("base", &pattern(SIZE), FileOptions::default());
    sim.insert_file("middle", &qed(SIZE as u64, Some("base")), FileOptions::default());
    sim.insert_file("disk", &qed(SIZE as u64, Some("middle")), FileOptions::default());
    let mut driver = driver_on(sim);
    let options = || OpenOptions::new().write(true).open_gate(AllowAll);
    let (disk, result) = open(&mut driver, options());
    result.unwrap();
    let mut order = Seeded::new(8);
    let mut run = |driver: &mut Driver<Sim>, request| {
        submit(driver, disk, request);
        next(driver, &mut order).result
    };
    // a warm-up: the tables of all layers are loaded
    run(&mut driver, Request::read(0, Buffer::zeroed(4096), 0)).unwrap();
    for request in [Request::read(4096, Buffer::zeroed(512), 1), Request::write(8200, Buffer::zeroed(100), 2)]
    {
        let fault = Fault::new(&[OpKind::Read], When::Nth(0), libc::EIO);
        driver.backend_mut().set_faults(FaultPlan::none().and(fault));
        let error = run(&mut driver, request).unwrap_err();
        assert!(error.path().is_some_and(|path| path.ends_with("base")), "{error:?}");
        assert_eq!(error.role(), Some(FileRole::Backing(2)));
        assert!(matches!(error.kind(), Some(ErrorKind::Device { .. })), "{error:?}");
    }
    // the failed write changed nothing, and everything works again
    driver.backend_mut().set_faults(FaultPlan::none());
    let buffer = Buffer::zeroed(4096);
    submit(&mut driver, disk, Request::read(8192, buffer, 3));
    let done = next(&mut driver, &mut Seeded::new(1));
    assert_eq!(bytes_of(&done.kind), &pattern(SIZE)[8192..12288]);
}

#[test]
fn timers_fire_on_the_backends_clock() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &qed(SIZE as u64, None), FileOptions::default());
    let mut driver = driver_on(sim);
    let (disk, _) = open(&mut driver, OpenOptions::new().write(true).commit_ms(50).need_check_ms(200));
    let mut order = Seeded::new(1);
    submit(&mut driver, disk, Request::write(0, Buffer::zeroed(4096), 0));
    next(&mut driver, &mut order).result.unwrap();
    let run = |driver: &mut Driver<Sim>| {
        for _ in 0..100 {
            driver.turn().unwrap();
            driver.backend_mut().step(&mut Seeded::new(1));
        }
    };
    run(&mut driver);
    let counters = |driver: &Driver<Sim>| driver.layer_counters(disk, 0).unwrap();
    assert_eq!(counters(&driver).table_writes, 0);
    let timeout = driver.next_timeout().unwrap();
    assert!(timeout > Duration::ZERO && timeout <= Duration::from_millis(50), "{timeout:?}");
    driver.backend_mut().advance(timeout);
    assert_eq!(driver.next_timeout(), Some(Duration::ZERO));
    run(&mut driver);
    assert!(counters(&driver).table_writes > 0);
    let writes = counters(&driver).header_writes;
    for _ in 0..10 {
        driver.backend_mut().advance(Duration::from_millis(100));
        run(&mut driver);
    }
    assert!(counters(&driver).header_writes > writes, "the need-check bit is cleared");
    assert_eq!(driver.next_timeout(), None);
}

#[test]
fn one_turn_takes_a_portion_of_what_has_finished_and_says_that_there_is_more() {
    const COUNT: usize = 1000;
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = Driver::with_backend(sim, Config::default().requests(COUNT as u32)).unwrap();
    let (disk, opened) = open(&mut driver, raw().acbs(COUNT as u32));
    opened.unwrap();
    let mut order = Seeded::new(3);
    let zeroes_and_reads: [fn(u64) -> Request; 2] = [
        |at| Request::write_zeroes(at % 512 * 512, 512, at),
        |at| Request::read(at % 512 * 512, Buffer::zeroed(512), at),
    ];
    let mut turns = [0; 2];
    for (make, turns) in zeroes_and_reads.into_iter().zip(&mut turns) {
        for index in 0..COUNT {
            submit(&mut driver, disk, make(index as u64));
        }
        let mut seen = vec![false; COUNT];
        let mut left = COUNT;
        while left > 0 {
            while driver.backend_mut().step(&mut order) {}
            driver.turn().unwrap();
            *turns += 1;
            let waits = left;
            while let Some(done) = driver.next_completion() {
                done.result.unwrap();
                assert!(!std::mem::replace(&mut seen[done.user as usize], true), "once");
                left -= 1;
            }
            assert!(waits - left <= 512, "{} in one turn", waits - left);
            let finished = driver.backend().in_flight() == 0 && left > 0;
            assert!(!finished || driver.next_timeout() == Some(Duration::ZERO), "more is left");
        }
    }
    assert!(turns[1] >= 2 && turns[0] > turns[1], "what is no hit counts for more: {turns:?}");
}

#[test]
fn transitions_are_recorded_when_asked_for() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
    let mut driver = Driver::with_backend(sim, Config::default().trace(true)).unwrap();
    let (disk, _) = open(&mut driver, raw());
    submit(&mut driver, disk, Request::read(0, Buffer::zeroed(512), 0));
    next(&mut driver, &mut Seeded::new(1)).result.unwrap();
    let mut seen = Vec::new();
    driver.drain_transitions(&mut |step| seen.push(step));
    assert!(seen.len() >= 2 && seen.iter().all(|step| step.disk == disk && step.layer == 0));
    assert!(seen.windows(2).all(|pair| pair[0].transition.to == pair[1].transition.from), "{seen:?}");
    assert_eq!(driver.lost_transitions(), 0);
}

#[test]
fn what_no_turn_has_handed_over_is_not_done() {
    for below in [false, true] {
        let mut sim = Sim::new();
        sim.insert_file("disk", &qed(1 << 20, below.then_some("base")), FileOptions::default());
        sim.insert_file("base", &pattern(SIZE), FileOptions::default());
        let mut driver = driver_on(sim);
        let options = OpenOptions::new().write(true).open_gate(AllowAll);
        let (disk, result) = open(&mut driver, options);
        result.unwrap();
        let mut order = Seeded::new(1);
        if !below {
            submit(&mut driver, disk, Request::write(0, Buffer::from(&[1; 1024][..]), 0));
            next(&mut driver, &mut order).result.unwrap();
        }
        // the table is there now, or is not needed
        submit(&mut driver, disk, Request::read(0, Buffer::zeroed(512), 0));
        next(&mut driver, &mut order).result.unwrap();
        let before = *driver.backend().counters();
        for user in [1, 2] {
            let buffer = Buffer::from(&[9; 512][..]);
            submit(&mut driver, disk, Request::read(512 * (user - 1), buffer, user));
        }
        assert_eq!((driver.cancel(disk, 2), driver.cancel(disk, 2)), (1, 0));
        let mut done = [next(&mut driver, &mut order), next(&mut driver, &mut order)];
        done.sort_by_key(|done| done.user);
        assert_eq!(done[0].result, Ok(()), "its neighbour is left alone");
        assert_eq!(done[1].result, Err(Error::Cancelled));
        assert_eq!(done[1].kind.buffers().map(Buffers::len), Some(512));
        let after = driver.backend().counters();
        let read = after.bytes_read - before.bytes_read;
        let written = after.bytes_written - before.bytes_written;
        assert_eq!((read, written), (512, 0), "below: {below}");
        assert_eq!(driver.poisoned(disk), None);
        submit(&mut driver, disk, Request::close(4));
        next(&mut driver, &mut order).result.unwrap();
    }
}

#[test]
fn a_disk_belongs_to_its_driver() {
    let make = || {
        let mut sim = Sim::new();
        sim.insert_file("disk", &pattern(SIZE), FileOptions::default());
        let mut driver = driver_on(sim);
        let (disk, result) = open(&mut driver, raw());
        result.unwrap();
        (driver, disk)
    };
    let ((mut one, disk), (mut other, _)) = (make(), make());
    let refused = other.submit(disk, Request::read(0, Buffer::zeroed(512), 1)).unwrap_err();
    assert_eq!(refused.reason, Refusal::Error(Error::Closed));
    assert!(other.disk_info(disk).is_none() && other.stats(disk).is_none() && other.cancel(disk, 1) == 0);
    submit(&mut one, disk, Request::read(0, Buffer::zeroed(512), 1));
    next(&mut one, &mut Seeded::new(1)).result.unwrap();
}

#[test]
fn a_cancelled_request_is_answered_with_its_buffers() {
    let mut sim = Sim::new();
    sim.insert_file("disk", &qed(1 << 20, None), FileOptions::default());
    let mut driver = driver_on(sim);
    let (disk, _) = open(&mut driver, OpenOptions::new().write(true));
    for (offset, user) in [(0, 1), (1024, 2)] {
        submit(&mut driver, disk, Request::write(offset, Buffer::zeroed(512), user));
    }
    assert_eq!(driver.cancel(disk, 2), 1, "it waits for the cluster");
    assert_eq!(driver.cancel(disk, 3), 0, "there is none");
    let mut order = Seeded::new(1);
    let mut done = [next(&mut driver, &mut order), next(&mut driver, &mut order)];
    done.sort_by_key(|done| done.user);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(done[1].result, Err(Error::Cancelled));
    assert_eq!(done[1].result.as_ref().map_err(Error::errno), Err(libc::ECANCELED));
    assert_eq!(done[1].kind.buffers().map(Buffers::len), Some(512));
    submit(&mut driver, disk, Request::close(4));
    next(&mut driver, &mut order).result.unwrap();
    assert_eq!(driver.cancel(disk, 4), 0, "its id is invalid");
}
