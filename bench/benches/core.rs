//! What the machine itself costs, no I/O done: read hit, in-place write, allocating write, table miss, table
//! batching.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quod_bench::bare::{Bare, CLUSTER, SLICE};
use quod_states::{AllocationGate, Options, RequestKind};
use std::hint::black_box;
use std::time::{Duration, Instant};

const BATCH: u64 = 64;

fn bare(guest_len: u64, options: &Options) -> Bare {
    Bare::qed(guest_len, options).expect("an empty image opens")
}

/// Submits a batch, runs it, and sees that all of it ended well.
fn batch(bare: &mut Bare, kind: RequestKind, offsets: impl Iterator<Item = u64>) {
    let mut count = 0;
    for offset in offsets {
        bare.submit(kind, offset, 4096).expect("slots for a batch");
        count += 1;
    }
    assert_eq!(black_box(bare.finish()), count);
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    for (name, kind) in [("read_hit", RequestKind::Read), ("in_place_write", RequestKind::Write)] {
        let mut bare = bare(1 << 30, &Options::default());
        assert!((0..256).all(|cluster| bare.run(RequestKind::Write, cluster * CLUSTER, CLUSTER)));
        assert!(bare.run(RequestKind::Flush, 0, 0));
        group.throughput(Throughput::Elements(1));
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 4096) % (256 * CLUSTER);
                assert!(bare.run(kind, at, 4096));
            });
        });
        group.throughput(Throughput::Elements(BATCH));
        group.bench_function(BenchmarkId::new(name, "batch_of_64"), |b| {
            b.iter(|| batch(&mut bare, kind, (0..BATCH).map(|i| i * 4096)));
        });
    }
    group.finish();
}

/// 4 KiB at a stride of one cluster into an empty image; a new image whenever one is full.
fn allocating(c: &mut Criterion) {
    const GUEST: u64 = 4 << 30;
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    for gate in
        [AllocationGate::Cluster, AllocationGate::Table, AllocationGate::NewTable, AllocationGate::Image]
    {
        let options = Options::default().allocation_gate(gate);
        group.bench_function(BenchmarkId::new("allocating_write", format!("{gate:?}")), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut image = bare(GUEST, &options);
                let mut at = 0;
                for _ in 0..iterations {
                    if at + BATCH * CLUSTER > GUEST {
                        image = bare(GUEST, &options);
                        at = 0;
                    }
                    let began = Instant::now();
                    batch(&mut image, RequestKind::Write, (0..BATCH).map(|i| at + i * CLUSTER));
                    spent += began.elapsed();
                    at += BATCH * CLUSTER;
                }
                spent
            });
        });
    }
    group.finish();
}

/// Reads that walk over twice as many table slices as the cache holds.
fn misses(c: &mut Criterion) {
    const SLICES: u64 = 512;
    let options = Options::default().cache_bytes(SLICES / 2 * 4096);
    let mut bare = bare(SLICES * SLICE, &options);
    for slice in 0..SLICES {
        assert!(bare.run(RequestKind::Write, slice * SLICE, 4096) && bare.run(RequestKind::Flush, 0, 0));
    }
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(1));
    let (mut slice, before) = (0, bare.image().counters().misses);
    let mut reads = 0;
    group.bench_function("l2_miss", |b| {
        b.iter(|| {
            slice = (slice + 1) % SLICES;
            reads += 1;
            assert!(bare.run(RequestKind::Read, slice * SLICE, 4096));
        });
    });
    let misses = bare.image().counters().misses - before;
    assert!(misses * 10 >= reads * 9, "{misses} misses in {reads} reads: the cache is larger than meant");
    group.finish();
}

/// 64 allocating writes under one L2 table and the flush that makes them durable: how many table writes?
fn batching(c: &mut Criterion) {
    const GUEST: u64 = 4 << 30;
    let options = Options::default();
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    let (mut image, mut at, mut batches, mut writes) = (bare(GUEST, &options), 0, 0u64, 0);
    group.bench_function("64_allocating_writes_and_flush", |b| {
        b.iter(|| {
            if at + BATCH * CLUSTER > GUEST {
                image = bare(GUEST, &options);
                at = 0;
            }
            let before = image.image().counters().table_writes;
            batch(&mut image, RequestKind::Write, (0..BATCH).map(|i| at + i * CLUSTER));
            assert!(image.run(RequestKind::Flush, 0, 0));
            writes += image.image().counters().table_writes - before;
            batches += 1;
            at += BATCH * CLUSTER;
        });
    });
    group.finish();
    if batches > 0 {
        println!("table writes of a batch: {:.2}", writes as f64 / batches as f64);
    }
}

criterion_group!(benches, hits, allocating, misses, batching);
criterion_main!(benches);
