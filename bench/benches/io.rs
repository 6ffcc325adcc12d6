//! What I/O costs, on files in the temporary folder (set TMPDIR to choose the file system): a ring round
//! trip, allocating writes under the four gates, the replay of the shipped trace.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quod::{AllocationGate, BackendKind, Buffer, Config, Format, OpenOptions};
use quod_backend::{AnyBackend, Backend, Completion, FileId, Op, OpenFlags, Output, Token};
use quod_bench::load::sequential::{self, FLUSHES_MAX, Load};
use quod_bench::replay::{self, Options};
use quod_bench::trace::{Choice, Source};
use quod_tools::{self as tools, CreateOptions, Session};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const KINDS: [(BackendKind, &str); 2] = [(BackendKind::Uring, "uring"), (BackendKind::Threads, "threads")];

/// Runs one operation to its end.
fn finish(backend: &mut AnyBackend, op: Op, done: &mut Vec<Completion>) -> Output {
    backend.push(Token(1), op).expect("room for one operation");
    while backend.reap(done) == 0 {
        backend.wait(None).expect("the backend waits");
    }
    done.pop().and_then(|completion| completion.result.ok()).expect("the operation succeeds")
}

fn open(backend: &mut AnyBackend, path: &Path, done: &mut Vec<Completion>) -> FileId {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    match finish(backend, Op::Open { path, flags: OpenFlags::default() }, done) {
        Output::Opened(file) => file,
        other => panic!("opening gave {other:?}"),
    }
}

fn round_trip(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("data");
    std::fs::write(&path, vec![7; 1 << 20]).expect("a file of 1 MiB");
    let mut group = c.benchmark_group("round_trip_4k");
    group.throughput(Throughput::Bytes(4096));
    for (kind, name) in KINDS {
        let Ok(mut backend) = AnyBackend::new(kind, 64) else {
            println!("{name}: not available here");
            continue;
        };
        let mut done = Vec::with_capacity(64);
        let file = open(&mut backend, &path, &mut done);
        let mut buffer = Buffer::zeroed(4096);
        let mut offset = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                offset = (offset + 4096) % (1 << 20);
                // SAFETY: `finish` returns only when the operation was reaped; the buffer outlives it,
                // untouched
                let segment = unsafe { buffer.segment(0, 4096) };
                let op = Op::Read { file, offset, segments: [segment].into_iter().collect() };
                assert_eq!(finish(&mut backend, op, &mut done), Output::Bytes(4096));
            });
        });
    }
    group.finish();
}

/// Allocates every cluster of a fresh image once: 4 KiB at a stride of 64 KiB, 64 in flight.
fn allocate(path: &Path, gate: AllocationGate, count: u64) -> Duration {
    tools::create(path, &CreateOptions::new(Format::Qed, count << 16)).expect("a fresh image");
    let open = OpenOptions::new().write(true).allocation_gate(gate).format(Some(Format::Qed));
    let config = Config::default().requests(64 + FLUSHES_MAX);
    let mut session = Session::with_config(path, open, config).expect("the image opens");
    let load = Load { count, step: 65536, reads: 0, pattern: 1, ..Load::default() };
    let disk = session.disk();
    let outcome = sequential::run(session.driver(), disk, &load).expect("the load runs");
    session.close().expect("the image closes");
    outcome.elapsed
}

fn gates(c: &mut Criterion) {
    const COUNT: u64 = 4096;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("image.qed");
    let mut group = c.benchmark_group("allocating_writes");
    group.throughput(Throughput::Elements(COUNT)).sample_size(10);
    for gate in
        [AllocationGate::Cluster, AllocationGate::Table, AllocationGate::NewTable, AllocationGate::Image]
    {
        group.bench_function(BenchmarkId::from_parameter(format!("{gate:?}")), |b| {
            b.iter_custom(|iterations| (0..iterations).map(|_| allocate(&path, gate, COUNT)).sum());
        });
    }
    group.finish();
}

fn shipped(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("image.qed");
    let summary = replay::examine(&Source::Shipped, &Choice::default()).expect("the shipped trace is whole");
    let size = replay::disk_size(&summary).expect("it fits");
    let mut group = c.benchmark_group("replay_shipped_trace");
    group.throughput(Throughput::Elements(summary.operations)).sample_size(10);
    for (backend, name) in KINDS {
        if AnyBackend::new(backend, 64).is_err() {
            continue;
        }
        let options = Options { backend, follow: false, ..Options::default() };
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    tools::create(&path, &CreateOptions::new(Format::Qed, size)).expect("a fresh image");
                    let report =
                        replay::run(&path, &Source::Shipped, &summary, &options, &mut ()).expect("it plays");
                    assert!(report.verification.passed(), "{report}");
                    spent += Duration::from_secs_f64(report.elapsed_s);
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round_trip, gates, shipped);
criterion_main!(benches);
