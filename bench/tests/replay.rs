//! Checks: a replay on a real file passes where the driver is right, fails where the disk holds other bytes
//! than it should, keeps the times it promises, and refuses images that are too small; a sequential load goes
//! where it should.

use quod::{BackendKind, Config, Format, OpenOptions};
use quod_bench::contract::blocks::Initial;
use quod_bench::load::order::Order;
use quod_bench::load::sequential::{self, FLUSHES_MAX, Load};
use quod_bench::replay::{self, Observer, Options, ReplayError, Speed};
use quod_bench::report::ReplayReport;
use quod_bench::trace::{Choice, Op, Record, Source, Version, Writer};
use quod_tools::{self as tools, CreateOptions, Session};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

struct Fixture {
    path: PathBuf,
    _folder: TempDir,
}

fn fresh(format: Format) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let options = CreateOptions {
        cluster_size: (format != Format::Raw).then_some(4096),
        ..CreateOptions::new(format, SIZE)
    };
    tools::create(&path, &options).unwrap();
    Fixture { path, _folder: folder }
}

/// A trace with every operation, much overlap, and ranges of all lengths.
fn trace(count: u64, step_us: u64, version: Version) -> Source {
    let mut writer = Writer::new(Vec::new(), version, "disk").unwrap();
    let mut dice = 12345u64;
    for index in 0..count {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (kind, place, length) = (dice >> 60, (dice >> 40) % (SIZE / 512 - 64), (dice >> 30) % 64 + 1);
        let op = match kind {
            0..=5 => Op::Read,
            6..=12 => Op::Write,
            13 => Op::Trim,
            _ => Op::Sync,
        };
        let (offset, len) = if op == Op::Sync { (0, 0) } else { (place * 512, length * 512) };
        writer.write(&Record { at_us: index * step_us, file: 0, op, offset, len, line: 0 }).unwrap();
    }
    Source::Text(writer.finish().unwrap())
}

fn play(path: &Path, source: &Source, options: &Options) -> ReplayReport {
    let summary = replay::examine(source, &Choice::default()).unwrap();
    replay::run(path, source, &summary, options, &mut ()).unwrap()
}

#[test]
fn right_drivers_pass() {
    let source = trace(3000, 1, Version::V3);
    for format in [Format::Raw, Format::Qed] {
        for backend in [BackendKind::Auto, BackendKind::Threads] {
            for depth in [1, 32] {
                let fixture = fresh(format);
                let options = Options { format: Some(format), backend, depth, ..Options::default() };
                let report = play(&fixture.path, &source, &options);
                assert!(report.verification.passed(), "{report}");
                assert_eq!(report.operations, 3000);
                assert_eq!(report.verification.bytes_compared, SIZE);
                assert!(report.verification.blocks_verified_during > 1000);
                assert!(!report.states.is_empty() && report.pacing.is_none());
                assert_eq!(report.kinds.len(), 4);
                assert!(report.to_string().ends_with("PASSED: every byte is as it must be\n"));
            }
        }
    }
}

#[test]
fn wrong_bytes_fail_and_are_named() {
    let fixture = fresh(Format::Raw);
    std::fs::write(&fixture.path, vec![0x55; SIZE as usize]).unwrap();
    let source = trace(500, 1, Version::V3);
    let options = Options { format: Some(Format::Raw), ..Options::default() };
    let report = play(&fixture.path, &source, &options);
    assert!(!report.verification.passed());
    assert!(report.verification.mismatches[0].contains("expected zeros, found foreign bytes `UUUUUUUU`"));
    assert!(report.to_string().contains("FAILED"));
    // the same image is right if nobody claims to know what it held
    let options = Options { initial: Initial::Unknown, ..options };
    let report = play(&fixture.path, &source, &options);
    assert!(report.verification.passed() && report.verification.blocks_unknown > 0, "{report}");
}

#[test]
fn times_are_kept() {
    let fixture = fresh(Format::Raw);
    let options = Options { format: Some(Format::Raw), speed: Speed::Times(2.0), ..Options::default() };
    for version in [Version::V2, Version::V3] {
        let report = play(
            &fixture.path,
            &trace(101, 2000, version),
            &Options { initial: Initial::Unknown, ..options.clone() },
        );
        let pacing = report.pacing.unwrap();
        assert!((pacing.intended_s - 0.1).abs() < 1e-6, "{}", pacing.intended_s);
        assert!(report.elapsed_s >= 0.1);
        assert_eq!((pacing.lateness.count, pacing.response.count), (101, 101));
    }
}

#[test]
fn a_timeline_is_written() {
    let fixture = fresh(Format::Raw);
    let timeline = fixture.path.with_extension("json");
    let options =
        Options { format: Some(Format::Raw), timeline: Some(timeline.clone()), ..Options::default() };
    let report = play(&fixture.path, &trace(200, 1, Version::V3), &options);
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(timeline).unwrap()).unwrap();
    let slices =
        value["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").count() as u64;
    assert_eq!(slices, report.states.iter().map(|row| row.visits).sum::<u64>());
}

/// Stops in a phase.
struct Stopper(&'static str, bool);

impl Observer for Stopper {
    fn phase(&mut self, name: &'static str, _total: u64) {
        self.1 = self.0 == name;
    }
    fn progress(&mut self, _done: u64) {}
    fn stops(&mut self) -> bool {
        self.1
    }
}

#[test]
fn it_ends_when_it_is_told_to() {
    let source = trace(3000, 1, Version::V3);
    let summary = replay::examine(&source, &Choice::default()).unwrap();
    for phase in ["replay", "read back", "compare"] {
        let fixture = fresh(Format::Qed);
        let options = Options { format: Some(Format::Qed), ..Options::default() };
        let report =
            replay::run(&fixture.path, &source, &summary, &options, &mut Stopper(phase, false)).unwrap();
        assert_eq!(report.interrupted, Some(phase));
        assert!(!report.passed() && report.verification.passed());
        assert!(report.to_string().contains("INTERRUPTED"), "{report}");
        assert_eq!(report.operations == 3000, phase != "replay");
        assert!(tools::check(&fixture.path, None, None).unwrap().is_sound());
    }
}

#[test]
fn a_trace_that_changes_is_not_trusted() {
    let fixture = fresh(Format::Raw);
    let path = fixture.path.with_extension("trace");
    std::fs::write(&path, "fio version 3 iolog\n0 d read 0 512\n").unwrap();
    let source = Source::File(path.clone());
    let summary = replay::examine(&source, &Choice::default()).unwrap();
    for line in ["0 d read 512 512", "0 d read 1 1", "0 d read 0 0", "0 d sync\n0 d write 0 513"] {
        std::fs::write(&path, format!("fio version 3 iolog\n{line}\n")).unwrap();
        let options = Options { format: Some(Format::Raw), ..Options::default() };
        let result = replay::run(&fixture.path, &source, &summary, &options, &mut ());
        assert!(matches!(result, Err(ReplayError::Trace(_))), "{line}: {result:?}");
    }
}

#[test]
fn a_small_image_is_refused() {
    let fixture = fresh(Format::Raw);
    let source = Source::Text(format!("fio version 3 iolog\n0 d read {SIZE} 512\n").into_bytes());
    let summary = replay::examine(&source, &Choice::default()).unwrap();
    let result = replay::run(&fixture.path, &source, &summary, &Options::default(), &mut ());
    assert!(matches!(result, Err(ReplayError::Size(_))), "{result:?}");
}

#[test]
fn a_load_writes_where_it_should() {
    for (flush_interval, drain) in [(0, true), (8, true), (8, false)] {
        let fixture = fresh(Format::Raw);
        let config = Config::default().requests(8 + FLUSHES_MAX).timing(true);
        let open = OpenOptions::new().write(true).format(Some(Format::Raw));
        let mut session = Session::with_config(&fixture.path, open, config).unwrap();
        let load = Load {
            count: 100,
            depth: 8,
            size: 4096,
            step: 8192,
            offset: 4096,
            reads: 0,
            pattern: 0xa5,
            fua: false,
            flush_interval,
            drain,
            ..Load::default()
        };
        let disk = session.disk();
        let outcome = sequential::run(session.driver(), disk, &load).unwrap();
        session.close().unwrap();
        assert_eq!((outcome.writes.count(), outcome.reads.count()), (100, 0));
        // at 92, 84, ... and 0 of 100 unsent if the queue is drained; otherwise whenever such a number is met
        let flushes = outcome.flushes.count();
        assert!(if flush_interval == 0 { flushes == 0 } else { flushes >= 11 }, "{flushes} flushes");
        assert!(outcome.elapsed > Duration::ZERO && outcome.done == 100);
        let bytes = std::fs::read(&fixture.path).unwrap();
        for (index, chunk) in bytes.chunks(4096).enumerate() {
            let written = index % 2 == 1 && index < 200;
            assert!(chunk.iter().all(|byte| *byte == if written { 0xa5 } else { 0 }), "chunk {index}");
        }
    }
}

#[test]
fn a_load_stops_in_order() {
    for (flush_interval, drain) in [(0, true), (8, true), (8, false)] {
        let fixture = fresh(Format::Raw);
        let config = Config::default().requests(8 + FLUSHES_MAX).timing(true);
        let open = OpenOptions::new().write(true).format(Some(Format::Raw));
        let mut session = Session::with_config(&fixture.path, open, config).unwrap();
        let load = Load {
            count: 100_000,
            depth: 8,
            size: 4096,
            step: 4096,
            offset: 0,
            reads: 0,
            pattern: 1,
            fua: false,
            flush_interval,
            drain,
            ..Load::default()
        };
        let (disk, asked) = (session.disk(), std::cell::Cell::new(0));
        let stops = || {
            asked.set(asked.get() + 1);
            asked.get() > 20
        };
        let outcome = sequential::run_guarded(session.driver(), disk, &load, None, &stops).unwrap();
        session.close().unwrap();
        assert!(outcome.done >= 8 && outcome.done < 100_000, "{}", outcome.done);
        assert_eq!(outcome.writes.count(), outcome.done);
    }
}

#[test]
fn what_ends_in_the_call_that_made_it_is_timed() {
    let fixture = fresh(Format::Qed);
    let config = Config::default().requests(8 + FLUSHES_MAX).timing(true);
    let mut session = Session::with_config(&fixture.path, OpenOptions::new(), config).unwrap();
    let load = Load { count: 1000, depth: 8, size: 4096, step: 4096, offset: 0, ..Load::default() };
    // nothing is allocated: the disk is asked for nothing but its first table
    let disk = session.disk();
    let outcome = sequential::run(session.driver(), disk, &load).unwrap();
    let found = outcome.reads.summary();
    assert!(found.count == 1000 && found.p50_us > 0.01 && found.p999_us <= found.max_us, "{found:?}");
    let stats = session.stats().unwrap();
    let reads = stats.kind(quod::Kind::Read);
    assert!(reads.len() == 1000 && reads.value_at_quantile(0.5) > 10, "{}", reads.value_at_quantile(0.5));
    session.close().unwrap();
}

/// Runs a load on a raw image of 1 MiB, whose bytes are 1, opened for writing.
fn on_ones(load: &Load, timing: bool) -> (sequential::LoadOutcome, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ones");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let config = Config::default().requests(load.depth + FLUSHES_MAX).timing(timing);
    let open = OpenOptions::new().write(true).format(Some(Format::Raw));
    let mut session = Session::with_config(&path, open, config).unwrap();
    let disk = session.disk();
    let outcome = sequential::run(session.driver(), disk, load).unwrap();
    session.close().unwrap();
    (outcome, std::fs::read(&path).unwrap())
}

#[test]
fn a_mix_writes_its_pattern_alone_and_flushes_after_its_writes() {
    for (drain, final_flush) in [(true, false), (false, true)] {
        let load = Load {
            count: 2000,
            depth: 8,
            order: Order::Random,
            reads: 70,
            pattern: 7,
            flush_interval: 4,
            drain,
            final_flush,
            ..Load::default()
        };
        let (outcome, bytes) = on_ones(&load, true);
        let writes = outcome.done - outcome.done_reads;
        assert!((450..750).contains(&writes), "{writes} of {} write", outcome.done);
        assert_eq!((outcome.reads.count(), outcome.writes.count()), (outcome.done_reads, writes));
        assert_eq!(outcome.requests().count(), outcome.done);
        // behind the last four writes no request may come that would send their flush
        let flushes = outcome.done_flushes - u64::from(final_flush);
        assert!((writes / 4 - 1..=writes / 4).contains(&flushes), "{flushes} flushes, {writes} writes");
        assert_eq!(outcome.flushes.count(), outcome.done_flushes);
        // a buffer that was read into is never written
        let (blocks, _) = bytes.as_chunks::<4096>();
        assert!(blocks.iter().all(|block| *block == [1; 4096] || *block == [7; 4096]));
        let written = blocks.iter().filter(|block| block[0] == 7).count();
        assert!((150..256).contains(&written), "{written} of 256 blocks");
    }
}

#[test]
fn a_seed_writes_the_same_places_again() {
    let load = Load { count: 60, depth: 5, order: Order::Random, reads: 0, pattern: 9, ..Load::default() };
    let first = on_ones(&load, false);
    assert_eq!((first.0.done, first.0.writes.count()), (60, 0), "nobody asked for latencies");
    assert_eq!(on_ones(&load, false).1, first.1);
    assert_ne!(on_ones(&Load { seed: 2, ..load }, false).1, first.1);
}

#[test]
fn random_requests_that_fit_nowhere_are_refused() {
    let fixture = fresh(Format::Raw);
    let mut session = Session::with_config(&fixture.path, OpenOptions::new(), Config::default()).unwrap();
    let load = Load { order: Order::Random, offset: 1 << 40, ..Load::default() };
    let disk = session.disk();
    assert!(sequential::run(session.driver(), disk, &load).is_err());
    session.close().unwrap();
}
