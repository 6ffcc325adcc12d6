//! Checks: a replay on a real file passes where the driver is right, fails where the disk holds other bytes
//! than it should, keeps the times it promises, and refuses images that are too small; a sequential load goes
//! where it should.

use quod::tools::{self, CreateOptions, Session};
use quod::{BackendKind, Config, Format, OpenOptions};
use quod_bench::model::Initial;
use quod_bench::replay::{self, Error, Options, Speed};
use quod_bench::report::Report;
use quod_bench::sequential::{self, FLUSHES_MAX, Load};
use quod_bench::trace::{Op, Record, Source, Version, Writer};
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

fn play(path: &Path, source: &Source, options: &Options) -> Report {
    let summary = replay::examine(source).unwrap();
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

#[test]
fn a_small_image_is_refused() {
    let fixture = fresh(Format::Raw);
    let source = Source::Text(format!("fio version 3 iolog\n0 d read {SIZE} 512\n").into_bytes());
    let summary = replay::examine(&source).unwrap();
    let result = replay::run(&fixture.path, &source, &summary, &Options::default(), &mut ());
    assert!(matches!(result, Err(Error::Size(_))), "{result:?}");
}

#[test]
fn a_load_writes_where_it_should() {
    for (flush_interval, drain) in [(0, true), (8, true), (8, false)] {
        let fixture = fresh(Format::Raw);
        let config = Config { requests: 8 + FLUSHES_MAX, ..Config::default() };
        let open = OpenOptions::new().write(true).format(Some(Format::Raw));
        let mut session = Session::with_config(&fixture.path, open, config).unwrap();
        let load = Load {
            count: 100,
            depth: 8,
            size: 4096,
            step: 8192,
            offset: 4096,
            write: true,
            pattern: 0xa5,
            fua: false,
            flush_interval,
            drain,
        };
        let disk = session.disk();
        let outcome = sequential::run(session.driver(), disk, &load).unwrap();
        session.close().unwrap();
        assert_eq!(outcome.latencies.count(), 100);
        // at 92, 84, ... and 0 of 100 unsent if the queue is drained; otherwise whenever such a number is met
        let flushes = outcome.flushes.count();
        assert!(if flush_interval == 0 { flushes == 0 } else { flushes >= 11 }, "{flushes} flushes");
        assert!(outcome.elapsed > Duration::ZERO);
        let bytes = std::fs::read(&fixture.path).unwrap();
        for (index, chunk) in bytes.chunks(4096).enumerate() {
            let written = index % 2 == 1 && index < 200;
            assert!(chunk.iter().all(|byte| *byte == if written { 0xa5 } else { 0 }), "chunk {index}");
        }
    }
}
