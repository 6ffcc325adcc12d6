//! The hot path does not allocate: reads and in-place writes of a warm image, on the ring and on workers.

use quod::{BackendKind, Buffer, Buffers, Completion, Config, DiskId, Driver, Format, OpenOptions, Request};
use quod_tools::{self as tools, CreateOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn next(driver: &mut Driver) -> Completion {
    loop {
        if let Some(done) = driver.next_completion() {
            assert_eq!(done.result, Ok(()));
            return done;
        }
        driver.wait(None).unwrap();
    }
}

const DEPTH: u64 = 16;
const BLOCKS: u64 = 256;

/// Keeps `DEPTH` requests in flight; every buffer travels on with the next request.
fn rounds(driver: &mut Driver, disk: DiskId, buffers: &mut Vec<Buffer>, count: u64, len: usize) {
    let request = |number: u64, buffer: Buffer| {
        let offset = number * 7 % BLOCKS * 4096 + (4096 - len as u64) / 2;
        match number % 3 {
            0 => Request::write(offset, buffer, number),
            _ => Request::read(offset, buffer, number),
        }
    };
    for number in 0..count {
        if number >= DEPTH {
            buffers.extend(next(driver).kind.into_buffers().and_then(Buffers::into_owned));
        }
        let buffer = buffers.pop().unwrap();
        driver.submit(disk, request(number, buffer)).map_err(|rejected| rejected.reason).unwrap();
    }
    for _ in 0..DEPTH {
        buffers.extend(next(driver).kind.into_buffers().and_then(Buffers::into_owned));
    }
}

fn measure(path: &Path, kind: BackendKind, direct: bool, len: usize) -> u64 {
    let mut driver = Driver::new(Config::default().backend(kind)).unwrap();
    let disk = driver.open(path, OpenOptions::new().write(true).direct(direct).commit_ms(60_000)).unwrap();
    next(&mut driver);
    let whole = Buffer::zeroed(BLOCKS as usize * 4096);
    driver.submit(disk, Request::write(0, whole, 0)).map_err(|rejected| rejected.reason).unwrap();
    next(&mut driver);
    let mut buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer::zeroed(len)).collect();
    rounds(&mut driver, disk, &mut buffers, 2000, len);
    let before = COUNT.get();
    rounds(&mut driver, disk, &mut buffers, 2000, len);
    COUNT.get() - before
}

#[test]
fn warm_requests_allocate_nothing() {
    for format in [Format::Raw, Format::Qed] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        tools::create(&path, &CreateOptions::new(format, 4 << 20)).unwrap();
        for kind in [BackendKind::Auto, BackendKind::Threads] {
            for (direct, len) in [(false, 4096), (true, 4096), (true, 1000)] {
                let count = measure(&path, kind, direct, len);
                assert_eq!(count, 0, "{format:?} {kind:?} direct {direct} length {len}");
            }
        }
    }
}
