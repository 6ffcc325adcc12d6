//! Checks: once warm, read hits and in-place writes allocate nothing: in the machine alone, and through the
//! whole driver on a real file, with both backends' completions passing through.
//!
//! One test function: the counter belongs to the process, and tests run side by side.

use quod::{BackendKind, Buffer, Buffers, Config, Driver, Format, OpenOptions, Request};
use quod_bench::bare::{Bare, CLUSTER};
use quod_states::{Options, RequestKind};
use quod_tools::{self as tools, CreateOptions, Session};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts what is allocated, and leaves the work to the system.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory but the counter.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: `address` came from `alloc` or `realloc` of the system with this layout.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(address, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const CLUSTERS: u64 = 64;
const COUNT: u64 = 10_000;

/// Allocations that happen in `work`, each time: what the test's own harness allocates beside it (it starts
/// its thread just before) does not come three times.
fn allocations(mut work: impl FnMut()) -> u64 {
    let mut count = || {
        let before = ALLOCATIONS.load(Relaxed);
        work();
        ALLOCATIONS.load(Relaxed) - before
    };
    (0..3).map(|_| count()).min().unwrap_or(u64::MAX)
}

fn offset(index: u64) -> u64 {
    index * 4096 * 7 % (CLUSTERS * CLUSTER)
}

fn the_machine(kind: RequestKind) -> u64 {
    let mut bare = Bare::qed(1 << 30, &Options::default()).unwrap();
    assert!((0..CLUSTERS).all(|cluster| bare.run(RequestKind::Write, cluster * CLUSTER, CLUSTER)));
    assert!(bare.run(RequestKind::Flush, 0, 0));
    let mut hits = |count| {
        for batch in 0..count / 16 {
            (0..16).for_each(|i| bare.submit(kind, offset(batch * 16 + i), 4096).unwrap());
            assert_eq!(bare.finish(), 16);
        }
    };
    hits(1000);
    allocations(|| hits(COUNT))
}

/// `count` requests, 16 in flight, buffers going round.
fn through(
    driver: &mut Driver,
    disk: quod::DiskId,
    kind: RequestKind,
    count: u64,
    buffers: &mut Vec<Buffer>,
) {
    let (mut sent, mut done) = (0, 0);
    while done < count {
        while sent < count
            && let Some(buffer) = buffers.pop()
        {
            let request = match kind {
                RequestKind::Write => Request::write(offset(sent), buffer, sent),
                _ => Request::read(offset(sent), buffer, sent),
            };
            driver.submit(disk, request).unwrap();
            sent += 1;
        }
        driver.wait(None).unwrap();
        while let Some(completion) = driver.next_completion() {
            completion.result.unwrap();
            let Some(Buffers::Owned(buffer)) = completion.kind.into_buffers() else {
                panic!("the buffer is lost")
            };
            buffers.push(buffer);
            done += 1;
        }
    }
}

fn the_driver(backend: BackendKind, kind: RequestKind) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qed");
    tools::create(&path, &CreateOptions::new(Format::Qed, 1 << 30)).unwrap();
    let config = Config::default().backend(backend);
    let mut session = Session::with_config(&path, OpenOptions::new().write(true), config).unwrap();
    let bytes = vec![5; CLUSTER as usize];
    (0..CLUSTERS).for_each(|cluster| session.write(cluster * CLUSTER, &bytes).unwrap());
    session.flush().unwrap();
    let (disk, driver) = (session.disk(), session.driver());
    let mut buffers: Vec<Buffer> = (0..16).map(|_| Buffer::zeroed(4096)).collect();
    through(driver, disk, kind, 2000, &mut buffers);
    let counted = allocations(|| through(driver, disk, kind, COUNT, &mut buffers));
    session.close().unwrap();
    counted
}

#[test]
fn hits_and_in_place_writes_allocate_nothing() {
    for kind in [RequestKind::Read, RequestKind::Write] {
        assert_eq!(the_machine(kind), 0, "the machine, {kind:?}");
        for backend in [BackendKind::Uring, BackendKind::Threads] {
            if Driver::new(Config::default().backend(backend)).is_err() {
                println!("{backend:?}: not available here");
                continue;
            }
            assert_eq!(the_driver(backend, kind), 0, "the driver on {backend:?}, {kind:?}");
        }
    }
}
