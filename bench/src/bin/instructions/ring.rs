//! Paths through a whole driver on a ring, 64 requests in flight: from `submit` over `turn` until the
//! completion was taken. The image is warm and lies in the page cache: what a device would do takes no
//! instructions of ours, only more turns.
//!
//! Knows: the driver's public face. Must never know: how instructions are counted.
//! Invariant: a run fails if its requests did not do what the path is called after.

use crate::fault::Fault;
use quod::{
    BackendKind, Buffer, Buffers, Config, DiskId, Driver, Error, Format, OpenOptions, Request, RequestKind,
};
use quod_tools::CreateOptions;
use std::io::Write;
use std::path::Path;

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 256;
const BLOCK: usize = 4096;
const DEPTH: u64 = 64;

fn open(driver: &mut Driver, format: Format, folder: &Path) -> Result<DiskId, Fault> {
    let path = folder.join("image");
    quod_tools::create(&path, &CreateOptions::new(format, 4 << 30))?;
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

/// A batch of requests, all in flight at once.
fn batch(
    driver: &mut Driver,
    disk: DiskId,
    work: &str,
    first: u64,
    buffers: &mut Vec<Buffer>,
    spare: &mut Vec<Buffer>,
) -> Result<(), Fault> {
    for number in first..first + DEPTH {
        let Some(buffer) = buffers.pop() else { return Err("a buffer was lost".into()) };
        let offset = number * BLOCK as u64 % (CLUSTERS * CLUSTER);
        let request = match work {
            "read" => Request::read(offset, buffer, number),
            "write" => Request::write(offset, buffer, number),
            "allocate" => Request::write((CLUSTERS + number) * CLUSTER, buffer, number),
            "null" => {
                // the loop alone
                let request = std::hint::black_box(Request::read(offset, buffer, number));
                if let RequestKind::Read { buffers, .. } = request.kind {
                    spare.extend(buffers.into_owned());
                }
                continue;
            }
            _ => return Err(format!("no such work: {work}").into()),
        };
        driver.submit(disk, request)?;
    }
    match work {
        "null" => std::mem::swap(buffers, spare),
        _ => finish(driver, DEPTH, buffers)?,
    }
    Ok(())
}

/// As many requests on this path, rounded down to batches.
pub fn run(work: &str, format: &str, count: u64) -> Result<(), Fault> {
    let format = match format {
        "raw" => Format::Raw,
        "qed" => Format::Qed,
        "qcow2" => Format::Qcow2,
        _ => return Err(format!("no such format: {format}").into()),
    };
    let folder = tempfile::tempdir()?;
    let mut driver = Driver::new(Config::default().backend(BackendKind::Uring))?;
    let disk = open(&mut driver, format, folder.path())?;
    let before = driver.stats(disk).ok_or("no disk")?;
    let mut buffers: Vec<Buffer> = (0..DEPTH).map(|_| Buffer::zeroed(BLOCK)).collect();
    let mut spare = Vec::with_capacity(DEPTH as usize);
    for number in 0..count / DEPTH {
        batch(&mut driver, disk, work, number * DEPTH, &mut buffers, &mut spare)?;
    }
    let after = driver.stats(disk).ok_or("no disk")?;
    let allocations = after.counters.allocations - before.counters.allocations;
    let seen = match work {
        "read" => (after.bytes_read - before.bytes_read) / BLOCK as u64,
        "write" if allocations == 0 => (after.bytes_written - before.bytes_written) / BLOCK as u64,
        "allocate" => allocations,
        _ => count,
    };
    writeln!(std::io::stdout(), "{work}: {seen} of {count}")?;
    if seen / DEPTH == count / DEPTH { Ok(()) } else { Err("it was another path".into()) }
}
