//! One point, in a process of its own: opens the images, reads every place once, then reads them at random.
//!
//! Knows: the driver's public face. Must never know: what grows.

use crate::axis::Outcome;
use crate::task::{READ, Task};
use nix::sys::resource::{UsageWho, getrusage};
use quod::{AllowAll, Buffer, Buffers, CompletionKind, Config, DiskId, Driver, OpenOptions, Request};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Runs a task; gives the words that tell what came of it.
pub fn run(task: &str) -> Result<String, String> {
    let task: Task = serde_json::from_str(task).map_err(|error| error.to_string())?;
    let outcome = measure(&task)?;
    serde_json::to_string(&outcome).map_err(|error| error.to_string())
}

fn measure(task: &Task) -> Result<Outcome, String> {
    let failed = |error: quod::Error| error.to_string();
    // those are ours, and no part of what a disk takes
    let buffers = buffers(task.depth);
    let mut driver = Driver::new(Config::default().requests(task.depth + 16)).map_err(failed)?;
    // the first has what all share
    let mut disks = open(&mut driver, task, &task.images[..1]).map_err(failed)?;
    let before = resident_kib()?;
    disks.extend(open(&mut driver, task, &task.images[1..]).map_err(failed)?);
    let others = disks.len().saturating_sub(1).max(1) as f64;
    let open_kib = (resident_kib()? - before).max(0.0) / others;
    let mut reader = Reader::new(&mut driver, &disks, task, buffers);
    reader.read(task.places * disks.len() as u64, false).map_err(failed)?;
    let (began, cpu) = (Instant::now(), cpu_time()?);
    reader.read(task.count, true).map_err(failed)?;
    let (elapsed, cpu) = (began.elapsed(), cpu_time()?.saturating_sub(cpu));
    let read_kib = (resident_kib()? - before).max(0.0) / others;
    Ok(Outcome {
        iops: task.count as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / task.count as f64,
        open_kib,
        read_kib,
    })
}

fn open(driver: &mut Driver, task: &Task, images: &[PathBuf]) -> Result<Vec<DiskId>, quod::Error> {
    let options = || {
        let options = OpenOptions::new().direct(true).format(Some(task.format.of_quod()));
        options.open_gate(AllowAll).acbs(task.depth.max(64) * 2)
    };
    let disks = images.iter().map(|path| driver.open(path, options())).collect::<Result<Vec<_>, _>>()?;
    let mut left = disks.len();
    while left > 0 {
        driver.wait(None)?;
        while let Some(done) = driver.next_completion() {
            done.result?;
            left -= 1;
        }
    }
    Ok(disks)
}

/// Reads in flight.
struct Reader<'a> {
    driver: &'a mut Driver,
    disks: &'a [DiskId],
    places: u64,
    step: u64,
    chance: u64,
    buffers: Vec<Buffer>,
}

impl<'a> Reader<'a> {
    fn new(driver: &'a mut Driver, disks: &'a [DiskId], task: &Task, buffers: Vec<Buffer>) -> Reader<'a> {
        Reader { driver, disks, places: task.places, step: task.step, chance: 1, buffers }
    }

    /// A number that nobody would guess: splitmix64.
    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// So many reads: of one place after the other, or anywhere.
    fn read(&mut self, count: u64, random: bool) -> Result<(), quod::Error> {
        let (mut sent, mut done) = (0, 0);
        while done < count {
            while sent < count
                && let Some(buffer) = self.buffers.pop()
            {
                let at = if random { self.draw() } else { sent };
                let all = self.places * self.disks.len() as u64;
                let (disk, place) = (at % all / self.places, at % self.places);
                let request = Request::read(place * self.step, buffer, 0);
                self.driver.submit(self.disks[disk as usize], request)?;
                sent += 1;
            }
            self.driver.wait(None)?;
            while let Some(completion) = self.driver.next_completion() {
                completion.result?;
                done += 1;
                if let CompletionKind::Read(buffers) = completion.kind {
                    self.buffers.extend(Buffers::into_owned(buffers));
                }
            }
        }
        Ok(())
    }
}

/// Buffers that are in memory.
fn buffers(depth: u32) -> Vec<Buffer> {
    let made = |_| {
        let mut buffer = Buffer::zeroed(READ as usize);
        buffer.as_mut_slice().fill(1);
        buffer
    };
    (0..depth).map(made).collect()
}

fn resident_kib() -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let number = line.split_whitespace().next().and_then(|word| word.parse().ok());
    number.ok_or_else(|| format!("VmRSS: {line}"))
}

fn cpu_time() -> Result<Duration, String> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|error| error.to_string())?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
