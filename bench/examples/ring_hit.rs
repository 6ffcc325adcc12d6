//! Runs N requests through a driver on a real ring, 64 in flight, for instruction counts:
//!
//! ```text
//! cargo build --release -p quod-bench --example ring_hit
//! valgrind --tool=callgrind target/release/examples/ring_hit 10000 read qcow2     # I1
//! valgrind --tool=callgrind target/release/examples/ring_hit 110000 read qcow2    # I2
//! ```
//!
//! Instructions in user space of one request, from `submit` over `turn` until its completion was taken, the
//! loop around it included: (I2 - I1) / 100000. `read` is a read hit, `write` a write in place, `null` the
//! loop alone. The image is warm and lies in the page cache: what a device would do takes no instructions of
//! ours, only more turns.

use quod::{BackendKind, Buffer, Buffers, Config, DiskId, Driver, Error, Format, OpenOptions, Request};
use quod_tools::CreateOptions;
use std::process::ExitCode;

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 256;
const BLOCK: usize = 4096;
const DEPTH: u64 = 64;

/// Whatever goes wrong.
type Fault = Box<dyn std::error::Error>;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Read,
    Write,
    Null,
}

fn open(driver: &mut Driver, format: Format, folder: &std::path::Path) -> Result<DiskId, Fault> {
    let path = folder.join("image");
    quod_tools::create(&path, &CreateOptions::new(format, 1 << 30))?;
    let disk = driver.open(&path, OpenOptions::new().write(true).format(Some(format)))?;
    finish(driver, 1, &mut Vec::new())?;
    for cluster in 0..CLUSTERS {
        driver.submit(disk, Request::write(cluster * CLUSTER, Buffer::zeroed(CLUSTER as usize), 0))?;
        finish(driver, 1, &mut Vec::new())?;
    }
    driver.submit(disk, Request::flush(0))?;
    finish(driver, 1, &mut Vec::new())?;
    Ok(disk)
}

/// Takes as many completions, and puts their buffers back.
fn finish(driver: &mut Driver, mut left: u64, buffers: &mut Vec<Buffer>) -> Result<(), Error> {
    driver.turn()?;
    while left > 0 {
        match driver.next_completion() {
            Some(done) => {
                done.result?;
                buffers.extend(done.kind.into_buffers().and_then(Buffers::into_owned));
                left -= 1;
            }
            None => driver.wait(None)?,
        }
    }
    Ok(())
}

fn run(count: u64, work: Work, format: Format) -> Result<(), Fault> {
    let folder = tempfile::tempdir()?;
    let mut driver = Driver::new(Config::default().backend(BackendKind::Uring))?;
    let disk = open(&mut driver, format, folder.path())?;
    let mut buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer::zeroed(BLOCK)).collect();
    let mut spare = Vec::with_capacity(DEPTH as usize);
    for batch in 0..count / DEPTH {
        for hit in batch * DEPTH..(batch + 1) * DEPTH {
            let Some(buffer) = buffers.pop() else { return Err("a buffer was lost".into()) };
            let offset = hit * BLOCK as u64 % (CLUSTERS * CLUSTER);
            let request = match work {
                Work::Read => Request::read(offset, buffer, hit),
                Work::Write => Request::write(offset, buffer, hit),
                Work::Null => {
                    let request = std::hint::black_box(Request::read(offset, buffer, hit));
                    if let quod::RequestKind::Read { buffers, .. } = request.kind {
                        spare.extend(buffers.into_owned());
                    }
                    continue;
                }
            };
            driver.submit(disk, request)?;
        }
        match work {
            Work::Null => std::mem::swap(&mut buffers, &mut spare),
            Work::Read | Work::Write => finish(&mut driver, DEPTH, &mut buffers)?,
        }
    }
    println!("{count} requests, {} hits", driver.stats(disk).map_or(0, |stats| stats.counters.hits));
    Ok(())
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let count = words.next().and_then(|word| word.parse().ok()).unwrap_or(10_000);
    let work = match words.next().as_deref() {
        Some("write") => Work::Write,
        Some("null") => Work::Null,
        _ => Work::Read,
    };
    let format = match words.next().as_deref() {
        Some("raw") => Format::Raw,
        Some("qed") => Format::Qed,
        _ => Format::Qcow2,
    };
    match run(count, work, format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ring_hit: {error}");
            ExitCode::FAILURE
        }
    }
}
