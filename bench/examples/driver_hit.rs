//! Runs N read hits through a whole driver over a backend that costs nothing, for instruction counts:
//!
//! ```text
//! cargo build --release -p quod-bench --example driver_hit
//! valgrind --tool=callgrind target/release/examples/driver_hit 10000     # I1
//! valgrind --tool=callgrind target/release/examples/driver_hit 110000    # I2
//! ```
//!
//! Instructions of one hit, from `submit` over `turn` until its completion was taken, the loop around it
//! included: (I2 - I1) / 100000; what else the program does is the same in both runs. `driver_hit N write`
//! does the same for in-place writes.

use quod::{Buffer, Buffers, Completion, Config, DiskId, Driver, Error, OpenOptions, Request};
use quod_backend::sim::{FileOptions, Sim};
use quod_backend::{Backend, Completion as Landed, Full, Op, Output, Segment, Token};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::Duration;

const CLUSTER: u64 = 64 << 10;
const CLUSTERS: u64 = 256;
const BLOCK: usize = 4096;

/// The simulated disk until the image is warm; from then on reads and writes end where they begin.
struct Instant {
    sim: Sim,
    warm: bool,
    done: Vec<Landed>,
}

impl Backend for Instant {
    fn push(&mut self, token: Token, op: Op) -> Result<(), Full> {
        match op {
            Op::Read { segments, .. } | Op::Write { segments, .. } if self.warm => {
                let bytes = segments.iter().map(|segment| segment.len() as u64).sum();
                self.done.push(Landed { token, result: Ok(Output::Bytes(bytes)) });
                Ok(())
            }
            op => self.sim.push(token, op),
        }
    }

    fn submit(&mut self) -> std::io::Result<()> {
        if self.warm { Ok(()) } else { self.sim.submit() }
    }

    fn reap(&mut self, out: &mut Vec<Landed>) -> usize {
        if !self.warm {
            return self.sim.reap(out);
        }
        let count = self.done.len();
        out.append(&mut self.done);
        count
    }

    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.sim.wait(timeout)
    }

    fn notify_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_notify(&mut self) {}

    fn capacity(&self) -> usize {
        self.sim.capacity()
    }

    fn in_flight(&self) -> usize {
        self.sim.in_flight() + self.done.len()
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn name(&self) -> &'static str {
        "instant"
    }

    fn time_calls(&mut self, _: bool) {}

    fn take_syscall_nanos(&mut self) -> u64 {
        0
    }

    fn register_memory(&mut self, _: Segment) -> std::io::Result<quod_backend::MemoryId> {
        Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn unregister_memory(&mut self, _: quod_backend::MemoryId) -> bool {
        false
    }
}

/// An empty QED image: clusters of 64 KiB, tables of four clusters.
fn image(guest_len: u64) -> Vec<u8> {
    let mut bytes = b"QED\0".to_vec();
    [CLUSTER as u32, 4, 1].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    [0, 0, 0, CLUSTER, guest_len, 0].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.resize(5 * CLUSTER as usize, 0);
    bytes
}

fn next(driver: &mut Driver<Instant>) -> Result<Completion, Error> {
    loop {
        if let Some(done) = driver.next_completion() {
            return done.result.clone().map(|()| done);
        }
        driver.wait(None)?;
    }
}

fn one(driver: &mut Driver<Instant>, disk: DiskId, request: Request) -> Result<Completion, Error> {
    driver.submit(disk, request).map_err(|rejected| rejected.reason)?;
    next(driver)
}

fn run(count: u64, write: bool) -> Result<(), Error> {
    let mut sim = Sim::new();
    sim.insert_file("disk", &image(1 << 30), FileOptions::default());
    let backend = Instant { sim, warm: false, done: Vec::with_capacity(16) };
    let mut driver = Driver::with_backend(backend, Config::default())?;
    let disk = driver.open("disk", OpenOptions::new().write(true))?;
    next(&mut driver)?;
    for cluster in 0..CLUSTERS {
        let buffer = Buffer::zeroed(CLUSTER as usize);
        one(&mut driver, disk, Request::write(cluster * CLUSTER, buffer, 0))?;
    }
    one(&mut driver, disk, Request::flush(0))?;
    driver.backend_mut().warm = true;
    let mut buffer = Buffer::zeroed(BLOCK);
    for hit in 0..count {
        let offset = hit * BLOCK as u64 % (CLUSTERS * CLUSTER);
        let request =
            if write { Request::write(offset, buffer, hit) } else { Request::read(offset, buffer, hit) };
        driver.submit(disk, request).map_err(|rejected| rejected.reason)?;
        driver.turn()?;
        let done = driver.next_completion().ok_or(Error::Misuse("a hit that waits"))?;
        done.result?;
        buffer = done
            .kind
            .into_buffers()
            .and_then(Buffers::into_owned)
            .ok_or(Error::Misuse("a hit without its buffer"))?;
    }
    println!("{count} hits, {} counted by the machine", driver.stats(disk).map_or(0, |s| s.counters.hits));
    Ok(())
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(10_000);
    match run(count, words.next().as_deref() == Some("write")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("driver_hit: {error}");
            ExitCode::FAILURE
        }
    }
}
