//! Fail the n-th operation, once or for ever, for n = 0, 1, 2, ... until the workload passes untouched.
//!
//! Checks: whatever fails, requests end; nothing is promised that a power cut takes; the image opens
//! afterwards.
//!
//! Knows: a fixed workload. Must never know: which operation is which.

use crate::image::{self, Form, Part, Qcow2, Shape};
use crate::world::{Ask, Session, Subject, TOP, Tweak, World};
use quod::{Format, OpenOptions};
use quod_backend::sim::{Aftermath, Fault, Fifo, FileOptions, OpKind, Seeded, Sim, When};
use quod_bench::contract::payload;
use quod_bench::contract::{Checked, Failure, fail};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lines of a story.
const TOLD: usize = 80;
const ANY: [OpKind; 7] = [
    OpKind::Read,
    OpKind::Write,
    OpKind::Sync,
    OpKind::ZeroRange,
    OpKind::PunchHole,
    OpKind::Grow,
    OpKind::SetLen,
];

/// The ways in which the n-th operation may fail.
pub fn faults(n: u64) -> Vec<Fault> {
    let once = |aftermath| Fault::new(&ANY, When::Nth(n), libc::EIO).leaving(aftermath);
    vec![
        once(Aftermath::Nothing),
        Fault::new(&ANY, When::From(n), libc::ENOSPC),
        once(Aftermath::All),
        Fault::new(&[OpKind::Sync], When::Nth(n), libc::EIO).leaving(Aftermath::DropUnsynced),
        Fault::new(&[OpKind::Write], When::Nth(n), libc::EIO).leaving(Aftermath::Torn),
    ]
}

/// The ways in which the next operation may fail, if it is of this kind.
pub fn ways(kind: OpKind) -> Vec<Fault> {
    let mut ways = faults(0);
    // that a read has happened makes no difference
    ways.retain(|fault| fault.concerns(kind) && (kind, fault.aftermath) != (OpKind::Read, Aftermath::All));
    ways
}

/// What the workload did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NthReport {
    /// The first n that no operation had, of each image.
    pub operations: u64,
    /// Workloads run.
    pub runs: u64,
}

const WORK: [Ask; 15] = [
    Ask::Write { offset: 1000, len: 3000, fua: false },
    Ask::Write { offset: 20_480, len: 9000, fua: false },
    Ask::Read { offset: 0, len: 30_000 },
    Ask::Zero { offset: 8192, len: 8192, fua: false },
    Ask::Flush,
    Ask::Write { offset: 2048, len: 512, fua: true },
    Ask::Discard { offset: 20_480, len: 4096 },
    Ask::Zero { offset: 21_000, len: 3000, fua: true },
    Ask::Resize { len: 65_536 },
    Ask::Write { offset: 30_000, len: 700, fua: false },
    Ask::Quiesce,
    Ask::Write { offset: 12_288, len: 512, fua: false },
    Ask::Discard { offset: 0, len: 24_576 },
    Ask::Flush,
    Ask::Write { offset: 4096, len: 6000, fua: false },
];

/// What the workload runs on.
#[derive(Clone, Debug)]
struct Ground {
    form: Form,
    parts: Vec<Part>,
}

fn grounds(format: Format) -> Vec<Ground> {
    let qcow2 = |qcow2, parts: &[Part]| Ground { form: Form::Qcow2(qcow2), parts: parts.to_vec() };
    let shared = [
        Part::Data { first: 1, count: 1 },
        Part::Zero { first: 2, count: 1, keep: true },
        Part::Compressed { first: 4, count: 2 },
        Part::Snapshot,
        Part::Data { first: 5, count: 1 },
    ];
    let wide = Qcow2 { refcount_bits: 64, ..Qcow2::new(512) };
    match format {
        Format::Raw => Vec::new(),
        Format::Qed => vec![Ground { form: Form::Qed { cluster: 4096, table: 1 }, parts: Vec::new() }],
        Format::Qcow2 => vec![
            qcow2(Qcow2::new(4096), &[]),
            qcow2(Qcow2::new(4096), &shared),
            qcow2(Qcow2 { lazy_refcounts: true, ..Qcow2::new(4096) }, &shared),
            qcow2(Qcow2 { extended_l2: true, ..Qcow2::new(16 << 10) }, &[]),
            qcow2(wide, &[Part::Leaks { end: 4090 }]),
        ],
    }
}

fn world(ground: &Ground, tweak: Tweak) -> Checked<World> {
    let mut sim = Sim::new();
    sim.insert_sparse(TOP, 0, FileOptions::default());
    let below = payload::bytes(9, 0, 24_000);
    sim.insert_file("base", &below, FileOptions::default());
    let form = ground.form;
    let shape = Shape { form, size: 49_152, backing: Some(("base".into(), Format::Raw)) };
    let start = image::start(&shape, &ground.parts, &below, 4_000_000)?;
    sim.insert_file(TOP, &start.bytes, FileOptions::default());
    let options = OpenOptions::new().direct(true).backing_direct(Some(false)).grow_step(0);
    let session = Session { options: tweak(options), requests: 16, trace: false };
    let leaks = start.leaks;
    let subject =
        Subject { backed: true, below: 24_000, snapshots: start.snapshots, leaks, ..Subject::new(form) };
    Ok(World::new(sim, start.content, session, subject))
}

/// The end of what happened.
fn story(ground: &Ground, fault: Fault, cut: bool, at_once: usize, tweak: Tweak) -> String {
    let Ok(mut world) = world(ground, tweak) else { return String::new() };
    world.tell();
    let ended = catch_unwind(AssertUnwindSafe(|| once(&mut world, fault, cut, at_once)));
    drop(ended);
    let told = world.told();
    told[told.len().saturating_sub(TOLD)..].join("\n")
}

/// The workload with this fault, then a power cut (`cut`) or a close, then recovery. True: something failed.
fn once(world: &mut World, fault: Fault, cut: bool, at_once: usize) -> Checked<bool> {
    world.arm(Some(fault));
    if !world.open(&mut Fifo)? {
        return Ok(true);
    }
    for asks in WORK.chunks(at_once) {
        for ask in asks {
            world.ask(*ask)?;
        }
        world.drain(&mut Fifo)?;
    }
    let failed = world.has_failed();
    if cut {
        world.cut_power(&mut Seeded::new(at_once as u64))?;
        world.recover(true)?;
        return Ok(failed);
    }
    world.close()?;
    let failed = failed || world.has_failed();
    let session = world.session();
    world.reopen(session)?;
    Ok(failed)
}

/// The loop, for each image of a format.
pub fn run(format: Format, tweak: Tweak) -> Checked<NthReport> {
    let mut sum = NthReport::default();
    for ground in grounds(format) {
        let report = run_on(&ground, tweak).map_err(|failure| Failure(format!("{ground:?}: {failure}")))?;
        sum.operations += report.operations;
        sum.runs += report.runs;
    }
    Ok(sum)
}

fn run_on(ground: &Ground, tweak: Tweak) -> Checked<NthReport> {
    let mut report = NthReport::default();
    for n in 0..10_000 {
        let mut any = false;
        for (index, fault) in faults(n).into_iter().enumerate() {
            for (cut, at_once) in [(true, 1), (false, 1), (true, 4), (false, 12)] {
                report.runs += 1;
                let outcome = once(&mut world(ground, tweak)?, fault.clone(), cut, at_once);
                any |= outcome.map_err(|failure| {
                    let story = story(ground, fault.clone(), cut, at_once, tweak);
                    let run = format!("operation {n}, fault {index}, cut {cut}, {at_once} at once");
                    Failure(format!("{story}\n{run}: {failure}"))
                })?;
            }
        }
        if !any {
            report.operations = n;
            return Ok(report);
        }
    }
    fail("something fails for ever")
}
