//! The ring's hot path allocates nothing: counted, not believed. Prints what an operation costs.

mod common;
use common::*;
use quod_backend::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

struct Counting;

thread_local! {
    /// Of this thread: the test harness's own thread allocates when it likes.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn reads_writes_and_syncs_of_the_ring_allocate_nothing() {
    let dir = temp_dir();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![3; 4 << 20]).unwrap();
    let mut ring = Uring::new(32).unwrap();
    let f = open(&mut ring, &path, true, false);
    let mut buffer = Buffer::zeroed(32 * 4096);
    let mut out = Vec::with_capacity(64);
    let mut run = |rounds: u64, segments: usize, batch: u64| {
        let (start, before) = (Instant::now(), ALLOCATIONS.get());
        ring.time_calls(true);
        ring.take_syscall_nanos();
        for round in 0..rounds {
            for i in 0..batch {
                let len = 4096 / segments;
                let mut list = Segments::with_capacity(segments);
                // SAFETY: reaped before the buffer goes.
                list.extend(
                    (0..segments).map(|s| unsafe { buffer.segment(i as usize * 4096 + s * len, len) }),
                );
                let offset = (round * batch + i) % 1024 * 4096;
                let op = match i % 31 {
                    30 => Op::Write { file: f, offset, segments: list },
                    29 => Op::Sync { file: f },
                    _ => Op::Read { file: f, offset, segments: list },
                };
                ring.push(Token(i), op).unwrap();
            }
            ring.submit().unwrap();
            ring.reap(&mut out);
            while ring.in_flight() > 0 {
                ring.wait(Some(Duration::from_secs(20))).unwrap();
                ring.reap(&mut out);
            }
            assert_eq!(out.len() as u64, batch);
            assert!(out.iter().all(|c| c.result.is_ok()));
            out.clear();
        }
        // before printing, which allocates
        let allocated = ALLOCATIONS.get() - before;
        let ops = rounds * batch;
        let (total, inside) = (start.elapsed().as_nanos() as u64 / ops, ring.take_syscall_nanos() / ops);
        println!(
            "{segments} segments, {batch} a turn: {total} ns an operation, {inside} of them in submit's calls"
        );
        allocated
    };
    run(2, 4, 32);
    for (segments, batch) in [(1, 1), (1, 29), (4, 1), (4, 29), (2, 32)] {
        // a list of several is an allocation of whoever makes it
        let lists = if segments > 1 { 100 * batch } else { 0 };
        assert_eq!(run(100, segments, batch), lists, "{segments} segments, {batch} a turn");
    }
}
