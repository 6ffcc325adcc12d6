//! The simulated disk's promises: what is durable, what a power cut may leave, what faults do.

use quod_backend::sim::*;
use quod_backend::*;
use std::collections::{BTreeSet, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

struct Disk {
    sim: Sim,
    file: FileId,
    buffers: Vec<Buffer>,
    next: u64,
}

/// One file "f" of `len` bytes 0xDD.
fn disk(len: usize) -> Disk {
    let mut sim = Sim::new();
    sim.insert_file("f", &vec![0xDD; len], FileOptions::default());
    let flags = OpenFlags { write: true, direct: false, claim: false };
    sim.push(Token(0), Op::Open { path: CString::new("f").unwrap(), flags }).unwrap();
    sim.wait(None).unwrap();
    let mut out = Vec::new();
    sim.reap(&mut out);
    let Ok(Output::Opened(file)) = out[0].result else { panic!() };
    Disk { sim, file, buffers: Vec::new(), next: 1 }
}

impl Disk {
    fn push(&mut self, op: Op) -> u64 {
        self.next += 1;
        self.sim.push(Token(self.next), op).unwrap();
        self.sim.submit().unwrap();
        self.next
    }

    fn push_write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let mut buffer = Buffer::from(bytes);
        // SAFETY: kept in `buffers`.
        let segment = unsafe { buffer.segment(0, bytes.len()) };
        self.buffers.push(buffer);
        self.push(Op::Write { file: self.file, offset, segments: Segments::from_slice(&[segment]) })
    }

    /// Completes everything, in order; the last result.
    fn finish(&mut self) -> Result<Output, Errno> {
        while self.sim.step(&mut Fifo) {}
        let mut out = Vec::new();
        self.sim.reap(&mut out);
        out.last().unwrap().result
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.push_write(offset, bytes);
        self.finish().unwrap();
    }

    fn sync(&mut self) -> Result<Output, Errno> {
        self.push(Op::Sync { file: self.file });
        self.finish()
    }

    /// Completes the operation with this token.
    fn complete(&mut self, token: u64) {
        let index = self.sim.pending().position(|op| op.token == Token(token)).unwrap();
        assert!(self.sim.step(&mut Script::new(vec![index as u32])));
    }

    /// All contents that a power cut now can leave.
    fn crashes(&self) -> BTreeSet<Vec<u8>> {
        let plan = self.sim.crash_plan();
        let mut images = BTreeSet::new();
        let mut indices = vec![0; plan.candidates().len()];
        loop {
            let mut next = indices.iter();
            images.insert(plan.build(|_| *next.next().unwrap()).file_bytes("f"));
            let Some(i) = (0..indices.len()).rev().find(|&i| indices[i] + 1 < plan.candidates()[i].versions)
            else {
                return images;
            };
            indices[i] += 1;
            indices[i + 1..].fill(0);
        }
    }
}

fn sectors(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&b| [b; 512]).collect()
}

fn images(all: &[&[u8]]) -> BTreeSet<Vec<u8>> {
    all.iter().map(|bytes| sectors(bytes)).collect()
}

#[test]
fn an_unsynced_write_may_or_may_not_survive() {
    let mut d = disk(1024);
    d.write(0, &sectors(&[1]));
    assert_eq!(d.sim.file_bytes("f"), sectors(&[1, 0xDD]));
    assert_eq!(d.crashes(), images(&[&[0xDD, 0xDD], &[1, 0xDD]]));
}

#[test]
fn a_synced_write_survives() {
    let mut d = disk(1024);
    d.write(0, &sectors(&[1]));
    d.sync().unwrap();
    assert!(d.sim.is_settled());
    assert_eq!(d.crashes(), images(&[&[1, 0xDD]]));
}

#[test]
fn a_sync_covers_only_what_completed_before_it_was_submitted() {
    let mut d = disk(1024);
    d.write(0, &sectors(&[1]));
    let late = d.push_write(512, &sectors(&[2]));
    let sync = d.push(Op::Sync { file: d.file });
    d.complete(late);
    d.complete(sync);
    assert_eq!(d.crashes(), images(&[&[1, 0xDD], &[1, 2]]));
    d.sync().unwrap();
    assert_eq!(d.crashes(), images(&[&[1, 2]]));
}

#[test]
fn a_sync_that_was_pushed_but_not_submitted_counts_from_its_submission() {
    let mut d = disk(512);
    let write = d.push_write(0, &sectors(&[1]));
    d.sim.push(Token(99), Op::Sync { file: d.file }).unwrap();
    d.complete(write);
    d.sync().unwrap();
    assert_eq!(d.crashes(), images(&[&[1]]));
}

#[test]
fn writes_in_flight_tear_at_units_and_old_versions_come_back() {
    let mut d = disk(1536);
    d.write(0, &sectors(&[1]));
    d.write(0, &sectors(&[2]));
    d.push_write(0, &sectors(&[3, 3, 3]));
    let mut want = BTreeSet::new();
    for a in [0xDD, 1, 2, 3] {
        for b in [0xDD, 3] {
            for c in [0xDD, 3] {
                want.insert(sectors(&[a, b, c]));
            }
        }
    }
    assert_eq!(d.crashes(), want);
    d.sim.set_crash_unit(4096);
    let mut want = images(&[&[0xDD, 0xDD, 0xDD], &[1, 0xDD, 0xDD], &[2, 0xDD, 0xDD]]);
    want.insert(sectors(&[3, 3, 3]));
    assert_eq!(d.crashes(), want);
}

#[test]
fn versions_of_a_unit_build_on_each_other() {
    let mut d = disk(512);
    d.write(0, &[1; 100]);
    d.write(100, &[2; 100]);
    d.push_write(200, &[3; 100]);
    let image = |parts: &[(usize, u8)]| {
        let mut bytes = sectors(&[0xDD]);
        parts.iter().for_each(|&(at, byte)| bytes[at..at + 100].fill(byte));
        bytes
    };
    let first = [(0, 1)];
    let both = [(0, 1), (100, 2)];
    let all = [(0, 1), (100, 2), (200, 3)];
    assert_eq!(d.crashes(), [image(&[]), image(&first), image(&both), image(&all)].into());
}

#[test]
fn growth_can_be_lost_while_data_is_kept_and_the_other_way_round() {
    let mut d = disk(512);
    d.push(Op::Grow { file: d.file, from: 512, to: 1536, allocate: true });
    d.finish().unwrap();
    assert_eq!(d.crashes(), images(&[&[0xDD], &[0xDD, 0, 0]]));
    d.write(1024, &sectors(&[5]));
    assert_eq!(d.crashes(), images(&[&[0xDD], &[0xDD, 0, 0], &[0xDD, 0, 5]]));
    d.write(1536, &sectors(&[6]));
    assert!(d.crashes().contains(&sectors(&[0xDD, 0, 0, 6])));
    assert!(d.crashes().contains(&sectors(&[0xDD, 0, 5, 0])));
    d.sync().unwrap();
    assert_eq!(d.crashes(), images(&[&[0xDD, 0, 5, 6]]));
    d.push(Op::SetLen { file: d.file, len: 512 });
    assert!(d.crashes().contains(&sectors(&[0xDD])));
    d.finish().unwrap();
    assert_eq!(d.sim.file_bytes("f"), sectors(&[0xDD]));
    assert!(d.crashes().contains(&sectors(&[0xDD, 0, 5, 6])));
    d.sync().unwrap();
    d.push(Op::Grow { file: d.file, from: 512, to: 2048, allocate: false });
    d.finish().unwrap();
    assert_eq!(d.sim.file_bytes("f"), sectors(&[0xDD, 0, 0, 0]), "cut bytes do not come back");
    d.sync().unwrap();
    assert_eq!(d.crashes(), images(&[&[0xDD, 0, 0, 0]]));
}

#[test]
fn data_past_a_lost_growth_is_gone() {
    let mut d = disk(512);
    d.write(512, &sectors(&[7]));
    // the data reached the disk, the length did not
    let mut crashed = d.sim.crash_with(|c| usize::from(c.what != Volatile::Length));
    assert_eq!(crashed.file_bytes("f"), sectors(&[0xDD]));
    let flags = OpenFlags { write: true, direct: false, claim: false };
    crashed.push(Token(0), Op::Open { path: CString::new("f").unwrap(), flags }).unwrap();
    crashed.wait(None).unwrap();
    crashed.push(Token(1), Op::Grow { file: FileId(0), from: 512, to: 1024, allocate: false }).unwrap();
    crashed.reap(&mut Vec::new());
    crashed.wait(None).unwrap();
    assert_eq!(crashed.file_bytes("f"), sectors(&[0xDD, 0]));
}

#[test]
fn what_was_not_submitted_never_reached_the_disk() {
    let mut d = disk(512);
    let mut buffer = Buffer::from(&sectors(&[1])[..]);
    // SAFETY: never submitted.
    let segments = Segments::from_slice(&[unsafe { buffer.segment(0, 512) }]);
    d.sim.push(Token(9), Op::Write { file: d.file, offset: 0, segments }).unwrap();
    assert_eq!((d.sim.pending().len(), d.sim.steppable()), (1, 0));
    assert!(!d.sim.step(&mut Fifo));
    assert!(d.sim.is_settled());
}

#[test]
fn zeroing_and_punching_are_volatile_too() {
    let mut d = disk(1536);
    d.push(Op::ZeroRange { file: d.file, offset: 512, len: 512, unmap: false });
    assert_eq!(d.crashes(), images(&[&[0xDD, 0xDD, 0xDD], &[0xDD, 0, 0xDD]]));
    d.finish().unwrap();
    d.push(Op::PunchHole { file: d.file, offset: 0, len: 1 << 40 });
    d.finish().unwrap();
    assert_eq!(d.sim.file_bytes("f"), sectors(&[0, 0, 0]));
    assert_eq!(d.crashes().len(), 8);
    d.sync().unwrap();
    assert_eq!(d.crashes(), images(&[&[0, 0, 0]]));
}

#[test]
fn a_failing_sync_keeps_or_drops() {
    for (aftermath, visible, after) in [
        (Aftermath::Nothing, 1, images(&[&[1]])),
        (Aftermath::DropUnsynced, 0xDD, images(&[&[0xDD]])),
        (Aftermath::All, 1, images(&[&[1]])),
    ] {
        let mut d = disk(512);
        d.sim.set_faults(Fault::new(&[OpKind::Sync], When::Nth(0), libc::EIO).leaving(aftermath).into());
        d.write(0, &sectors(&[1]));
        assert_eq!(d.sync(), Err(Errno(libc::EIO)));
        assert_eq!(d.sim.file_bytes("f"), sectors(&[visible]));
        assert_eq!(d.sync(), Ok(Output::Done));
        assert_eq!(d.crashes(), after, "{aftermath:?}");
    }
}

#[test]
fn faults_fire_when_told() {
    let mut d = disk(512);
    d.sim.set_faults(
        FaultPlan::none()
            .and(Fault::new(&[OpKind::Write], When::Nth(1), libc::EIO))
            .and(Fault::new(&OpKind::CHANGES, When::From(3), libc::ENOSPC).extending()),
    );
    let results: Vec<_> = (0..7)
        .map(|i| {
            d.push_write(i * 512, &sectors(&[i as u8]));
            d.finish().map_err(|e| e.0)
        })
        .collect();
    let ok = Ok(Output::Bytes(512));
    let full = Err(libc::ENOSPC);
    assert_eq!(results, [ok, Err(libc::EIO), ok, ok, full, full, full]);
    d.push_write(0, &sectors(&[9]));
    assert_eq!(d.finish(), ok.map_err(Errno), "not extending");
    assert_eq!(d.sim.counters().failed(OpKind::Write), 4);
    assert_eq!(d.sim.counters().completed(OpKind::Write), 8);
    assert_eq!(d.sim.file_len("f"), Some(2048));
}

#[test]
fn the_chooser_decides_chance_and_tearing() {
    let mut outcomes = BTreeSet::new();
    for script in 0..2 {
        for torn in 0..4 {
            let mut d = disk(1536);
            d.sim.set_faults(
                Fault::new(&[OpKind::Write], When::OneIn(2), libc::EIO).leaving(Aftermath::Torn).into(),
            );
            d.push_write(0, &sectors(&[1, 1, 1]));
            d.sim.step(&mut Script::new(vec![script, torn]));
            outcomes.insert(d.sim.file_bytes("f"));
        }
    }
    let want = images(&[&[0xDD, 0xDD, 0xDD], &[1, 0xDD, 0xDD], &[1, 1, 0xDD], &[1, 1, 1]]);
    assert_eq!(outcomes, want);
}

#[test]
fn a_write_stops_between_units_of_the_file() {
    let stops: BTreeSet<Vec<u8>> = (0..4)
        .map(|torn| {
            let mut d = disk(1536);
            let torn_write = Fault::new(&[OpKind::Write], When::Nth(0), libc::EIO).leaving(Aftermath::Torn);
            d.sim.set_faults(torn_write.into());
            d.push_write(300, &[1; 900]);
            d.sim.step(&mut Script::new(vec![torn]));
            d.sim.file_bytes("f")
        })
        .collect();
    let want = [300, 512, 1024, 1200].map(|stop| {
        let mut bytes = vec![0xDD; 1536];
        bytes[300..stop].fill(1);
        bytes
    });
    assert_eq!(stops, BTreeSet::from(want));
}

#[test]
fn reads_see_what_completed_before_them() {
    for order in [[0, 0], [1, 0]] {
        let mut d = disk(512);
        let mut to = Buffer::zeroed(1024);
        // SAFETY: reaped below.
        let segments = Segments::from_slice(&[unsafe { to.segment(0, 1024) }]);
        d.push(Op::Read { file: d.file, offset: 0, segments });
        d.push_write(0, &sectors(&[1]));
        d.sim.step(&mut Script::new(vec![order[0]]));
        d.sim.step(&mut Fifo);
        let mut out = Vec::new();
        assert_eq!(d.sim.reap(&mut out), 2);
        let read = out.iter().find(|c| c.token == Token(2)).unwrap();
        assert_eq!(read.result, Ok(Output::Bytes(512)), "short at the end of the file");
        let want = if order[0] == 0 { 0xDD } else { 1 };
        assert_eq!(to.as_slice()[..512], sectors(&[want]));
    }
}

#[test]
fn the_digest_tells_futures_apart_and_nothing_else() {
    let base = disk(4096);
    let digest = |change: &dyn Fn(&mut Disk)| {
        let mut d = disk(4096);
        change(&mut d);
        d.sim.digest()
    };
    let same = digest(&|d| {
        d.sim.advance(Duration::from_secs(1));
        d.sim.record_log(true);
    });
    assert_eq!(same, base.sim.digest());
    let mut seen = HashSet::from([same]);
    // synced, volatile, pending, longer, faulty: all different
    assert!(seen.insert(digest(&|d| _ = d.push_write(0, &[1]))));
    assert!(seen.insert(digest(&|d| d.write(0, &[1]))));
    assert!(seen.insert(digest(&|d| {
        d.write(0, &[1]);
        d.sync().unwrap();
    })));
    assert!(seen.insert(digest(&|d| _ = d.push(Op::Sync { file: d.file }))));
    assert!(seen.insert(digest(&|d| d.write(4096, &[0]))));
    assert!(seen.insert(digest(&|d| {
        d.sim.set_faults(Fault::new(&[OpKind::Read], When::Nth(5), 5).into());
    })));
    // a sync that covers the write and one that does not
    let covered = digest(&|d| {
        let w = d.push_write(0, &[1]);
        d.complete(w);
        d.push(Op::Sync { file: d.file });
    });
    let uncovered = digest(&|d| {
        let w = d.push_write(0, &[1]);
        d.push(Op::Sync { file: d.file });
        d.complete(w);
    });
    assert!(seen.insert(covered) && seen.insert(uncovered));
}

#[test]
fn same_seed_same_run() {
    let run = |seed| {
        let mut chooser = Seeded::new(seed);
        let mut d = disk(65536);
        d.sim.record_log(true);
        let plan = FaultPlan::none().and(Fault::new(&OpKind::DATA, When::OneIn(10), libc::EIO));
        d.sim.set_faults(plan);
        let mut digests = Vec::new();
        for i in 0..200u64 {
            let offset = chooser.choose(Choice::Workload, 60000) as u64;
            d.push_write(offset, &vec![i as u8; chooser.choose(Choice::Workload, 5000)]);
            if chooser.choose(Choice::Workload, 8) == 0 {
                d.push(Op::Sync { file: d.file });
            }
            while chooser.choose(Choice::Workload, 3) == 0 && d.sim.step(&mut chooser) {}
            d.sim.reap(&mut Vec::new());
            digests.push(d.sim.digest());
        }
        digests.push(d.sim.crash(&mut chooser).digest());
        digests
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
#[should_panic(expected = "misaligned O_DIRECT")]
fn misaligned_direct_transfers_panic() {
    let mut d = disk(8192);
    let flags = OpenFlags { write: true, direct: true, claim: false };
    d.push(Op::Open { path: CString::new("f").unwrap(), flags });
    let Ok(Output::Opened(direct)) = d.finish() else { panic!() };
    d.file = direct;
    d.push_write(100, &[1; 512]);
}

#[test]
fn locks_and_errors() {
    let mut d = disk(512);
    let flags = OpenFlags::default();
    d.push(Op::Open { path: CString::new("g").unwrap(), flags });
    assert_eq!(d.finish(), Err(Errno(libc::ENOENT)));
    d.push(Op::Open { path: CString::new("f").unwrap(), flags });
    let Ok(Output::Opened(other)) = d.finish() else { panic!() };
    let mut lock = |file, mode| {
        d.push(Op::Lock { file, mode });
        d.finish().map_err(|e| e.0)
    };
    let first = FileId(0);
    assert_eq!(lock(first, LockMode::Read), Ok(Output::Done));
    assert_eq!(lock(other, LockMode::Read), Ok(Output::Done));
    assert_eq!(lock(first, LockMode::Write), Err(libc::EAGAIN));
    assert_eq!(lock(other, LockMode::None), Ok(Output::Done));
    assert_eq!(lock(first, LockMode::Write), Ok(Output::Done));
    assert_eq!(lock(other, LockMode::Read), Err(libc::EAGAIN));
    d.file = other;
    d.push_write(0, b"x");
    assert_eq!(d.finish(), Err(Errno(libc::EBADF)), "opened for reading");
    d.push(Op::Close { file: other });
    assert_eq!(d.finish(), Ok(Output::Done));
    assert_eq!(d.sync(), Err(Errno(libc::EBADF)));
}

#[test]
fn a_terabyte_costs_nothing_and_time_is_virtual() {
    let mut d = disk(0);
    d.push(Op::Grow { file: d.file, from: 0, to: 1 << 40, allocate: true });
    d.finish().unwrap();
    d.write((1 << 40) - 5, b"hello");
    d.push(Op::ZeroRange { file: d.file, offset: 0, len: 1 << 40, unmap: false });
    d.push(Op::Sync { file: d.file });
    d.finish().unwrap();
    assert_eq!(d.sim.file_range("f", (1 << 40) - 5, 5), [0; 5]);
    let before = Instant::now();
    d.sim.wait(Some(Duration::from_secs(3600))).unwrap();
    assert_eq!(d.sim.now(), Duration::from_secs(3600));
    assert!(before.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_full_simulator_gives_the_operation_back() {
    let mut d = disk(512);
    d.sim.set_capacity(2);
    d.push(Op::Sync { file: d.file });
    d.push(Op::Sync { file: d.file });
    assert!(matches!(d.sim.push(Token(9), Op::Stat { file: d.file }), Err(Full(Op::Stat { .. }))));
    assert!(d.sim.step(&mut Fifo));
    assert!(d.sim.push(Token(9), Op::Stat { file: d.file }).is_err(), "not reaped yet");
    d.sim.reap(&mut Vec::new());
    d.sim.push(Token(9), Op::Stat { file: d.file }).unwrap();
}

#[test]
fn a_block_device_keeps_its_length_and_may_be_given_more() {
    let mut disk = disk(8192);
    let options = FileOptions { block_device: true, ..FileOptions::default() };
    disk.sim.insert_file("f", &[0xee; 8192], options);
    let file = disk.file;
    let full = Err(Errno(libc::ENOSPC));
    let ends = |disk: &mut Disk, op| {
        disk.push(op);
        disk.finish()
    };
    let grow = |to| Op::Grow { file, from: 8192, to, allocate: true };
    assert_eq!(ends(&mut disk, grow(8193)), full);
    assert_eq!(ends(&mut disk, Op::SetLen { file, len: 8193 }), full);
    assert_eq!(ends(&mut disk, Op::SetLen { file, len: 0 }), Ok(Output::Done));
    disk.push_write(8000, &[1; 512]);
    assert_eq!(disk.finish(), full);
    assert_eq!(disk.sim.file_bytes("f"), [0xee; 8192]);
    disk.sim.grow_device("f", 12_000, 0xdd);
    assert_eq!(ends(&mut disk, grow(12_000)), Ok(Output::Done));
    assert_eq!(disk.sim.file_bytes("f"), [&[0xee; 8192][..], &[0xdd; 3808]].concat());
}
