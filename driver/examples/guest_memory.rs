//! Guest memory: what a virtio block device does with the descriptors of a request, with vm-memory.
//!
//! `cargo run -p quod --example guest_memory -- disk.img`

use quod::{Buffers, Completion, Config, DiskId, Driver, OpenOptions, RawBuffers, Request, Segment};
use std::error::Error;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Answer<T> = Result<T, Box<dyn Error>>;

/// A descriptor of a virtqueue: an address of the guest's and a length, neither of which is to be believed.
type Descriptor = (GuestAddress, usize);

/// The scatter list of a chain of descriptors. An address outside the guest's memory is an error.
fn buffers(memory: &GuestMemoryMmap, chain: &[Descriptor]) -> Answer<Buffers> {
    let mut segments = Vec::new();
    for &(address, len) in chain {
        // one descriptor may reach over several regions
        for slice in memory.get_slices(address, len) {
            let slice = slice?;
            // SAFETY: `run` keeps the memory mapped until after the driver is gone. Nobody on our side
            // touches it before the completion; the guest may.
            segments.push(unsafe { Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()) });
        }
    }
    // SAFETY: the same.
    Ok(unsafe { RawBuffers::new(segments) }.into())
}

fn finish(driver: &mut Driver) -> Answer<Completion> {
    loop {
        driver.wait(None)?; // an event loop would `turn`
        if let Some(done) = driver.next_completion() {
            done.result.clone()?;
            return Ok(done);
        }
    }
}

fn request(driver: &mut Driver, disk: DiskId, request: Request) -> Answer<()> {
    let kind = request.kind.name();
    driver.submit(disk, request)?;
    let done = finish(driver)?;
    if done.kind.request() == Some(kind) { Ok(()) } else { Err("another one ended".into()) }
}

/// A guest with two regions of memory writes from one end to the other, and reads it elsewhere.
pub fn run(path: &Path) -> Answer<()> {
    let regions = [(GuestAddress(0), 64 << 10), (GuestAddress(64 << 10), 64 << 10)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions)?;
    // after the memory: dropped before it
    let mut driver = Driver::new(Config::default())?;
    let disk = driver.open(path, OpenOptions::new().write(true))?;
    finish(&mut driver)?;

    let text: Vec<u8> = (0..8192u32).map(|at| (at / 32) as u8).collect();
    memory.write_slice(&text, GuestAddress((64 << 10) - 4096))?; // over the seam
    let chain = [(GuestAddress((64 << 10) - 4096), 8192)];
    request(&mut driver, disk, Request::write(512, buffers(&memory, &chain)?, 1))?;

    let chain = [(GuestAddress(1000), 96), (GuestAddress(100_000), 8000), (GuestAddress(3), 96)];
    request(&mut driver, disk, Request::read(512, buffers(&memory, &chain)?, 2))?;
    let mut found = Vec::new();
    for (address, len) in chain {
        let mut part = vec![0; len];
        memory.read_slice(&mut part, address)?;
        found.extend(part);
    }
    if found != text {
        return Err("it reads back differently".into());
    }
    if buffers(&memory, &[(GuestAddress(127 << 10), 4096)]).is_ok() {
        return Err("memory that is not there was taken".into());
    }
    request(&mut driver, disk, Request::close(3))
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() -> Answer<()> {
    let path =
        std::env::args_os().nth(1).ok_or("usage: guest_memory IMAGE (its first bytes are overwritten)")?;
    run(Path::new(&path))
}
