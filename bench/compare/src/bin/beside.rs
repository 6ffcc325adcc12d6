//! `beside`: what a read of an image costs while another image of the same driver is decompressed.
//!
//! One 4 KiB read of the plain image is in flight at a time: alone first, then beside 16 reads of compressed
//! clusters, each of another one. Rounds take turns, so that whatever the machine does meanwhile meets both.
//!
//! Knows: the driver's public face. Must never know: how clusters are decompressed.

use clap::Parser;
use quod::{AllowAll, Buffer, Buffers, CompletionKind, Config, DiskId, Driver, OpenOptions, Request};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const READ: u64 = 4096;
const CLUSTER: u64 = 65536;
/// Reads of compressed clusters in flight.
const BESIDE: u64 = 16;
/// The requests of the plain image are told from the others by this.
const PLAIN: u64 = u64::MAX;

/// What a read costs beside decompression
#[derive(Parser, Debug)]
struct Args {
    /// Image without compressed clusters
    plain: PathBuf,
    /// qcow2 image of compressed clusters of 64 KiB
    compressed: PathBuf,
    /// Rounds, each one second alone and one beside
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            let _ = writeln!(io::stderr(), "beside: {what}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), String> {
    let failed = |error: quod::Error| error.to_string();
    let mut driver = Driver::new(Config::default().requests(64)).map_err(failed)?;
    let plain = open(&mut driver, &args.plain).map_err(failed)?;
    let compressed = open(&mut driver, &args.compressed).map_err(failed)?;
    let places = |disk: DiskId, driver: &Driver| {
        driver.disk_info(disk).map(|info| info.virtual_size() / CLUSTER).ok_or("the disk is not open")
    };
    let (plain_places, compressed_places) = (places(plain, &driver)?, places(compressed, &driver)?);
    let mut load = Load { driver, plain, plain_places, compressed, compressed_places, next: 0, unzipped: 0 };
    let mut told = String::from("| round | alone: p50, p99, p99.9 us | beside | clusters/s |\n");
    told += "| --- | --- | --- | --- |\n";
    for round in 1..=args.rounds {
        let alone = load.round(0).map_err(failed)?;
        load.unzipped = 0;
        let beside = load.round(BESIDE).map_err(failed)?;
        told += &format!("| {round} | {alone} | {beside} | {} |\n", load.unzipped);
    }
    write!(io::stdout(), "{told}").map_err(|error| format!("standard output: {error}"))
}

fn open(driver: &mut Driver, path: &Path) -> Result<DiskId, quod::Error> {
    let disk = driver.open(path, OpenOptions::new().direct(true).open_gate(AllowAll))?;
    loop {
        driver.wait(None)?;
        if let Some(done) = driver.next_completion() {
            done.result?;
            return Ok(disk);
        }
    }
}

struct Load {
    driver: Driver,
    plain: DiskId,
    plain_places: u64,
    compressed: DiskId,
    compressed_places: u64,
    /// Reads that were made.
    next: u64,
    /// Clusters that were decompressed in this round.
    unzipped: u64,
}

impl Load {
    /// A second of it, with so many reads of compressed clusters in flight; percentiles.
    fn round(&mut self, beside: u64) -> Result<String, quod::Error> {
        let (began, mut times) = (Instant::now(), Vec::new());
        let mut out = 0;
        for _ in 0..beside {
            self.unzip(Buffer::zeroed(READ as usize))?;
            out += 1;
        }
        let mut sent = self.read(Buffer::zeroed(READ as usize))?;
        let mut left = true;
        while out > 0 || left {
            self.driver.wait(None)?;
            let more = began.elapsed() < Duration::from_secs(1);
            while let Some(done) = self.driver.next_completion() {
                done.result?;
                let CompletionKind::Read(buffers) = done.kind else { continue };
                let Some(buffer) = Buffers::into_owned(buffers) else { continue };
                if done.user == PLAIN {
                    times.push(sent.elapsed());
                    left = more;
                    if more {
                        sent = self.read(buffer)?;
                    }
                } else if more {
                    self.unzipped += 1;
                    self.unzip(buffer)?;
                } else {
                    out -= 1;
                }
            }
        }
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos() as f64 / 1e3;
        Ok(format!("{:.1}, {:.1}, {:.1}", at(0.5), at(0.99), at(0.999)))
    }

    fn read(&mut self, buffer: Buffer) -> Result<Instant, quod::Error> {
        self.next += 1;
        // odd, so that it comes everywhere
        let at = self.next * 1579 % self.plain_places * CLUSTER;
        let sent = Instant::now();
        self.driver.submit(self.plain, Request::read(at, buffer, PLAIN))?;
        Ok(sent)
    }

    fn unzip(&mut self, buffer: Buffer) -> Result<(), quod::Error> {
        self.next += 1;
        let at = self.next * 1579 % self.compressed_places * CLUSTER;
        self.driver.submit(self.compressed, Request::read(at, buffer, 0))?;
        Ok(())
    }
}
