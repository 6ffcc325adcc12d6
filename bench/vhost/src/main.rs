//! A load generator for vhost-user-blk: `vhost-load --socket disk.sock --rw randread --depth 64`.
//!
//! One line of JSON: requests a second, p50 and p99 in us, and the processor time a request of the server's
//! process (all of its threads, in ticks of 10 ms) and of this one.

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use quod_vhost_load::{Ask, Guest, Options};
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Load a vhost-user-blk server
#[derive(Parser)]
struct Args {
    /// Its socket
    #[arg(long)]
    socket: PathBuf,
    /// What is asked for
    #[arg(long, value_enum, default_value_t)]
    rw: Rw,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    bs: u32,
    /// Requests at once, of all queues together
    #[arg(long, default_value_t = 64)]
    depth: usize,
    /// Queues
    #[arg(long, default_value_t = 1)]
    queues: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Pieces of memory in a request
    #[arg(long, default_value_t = 1)]
    pieces: u32,
    /// Not asked for, though the server has it: what is under way is kept
    #[arg(long)]
    no_inflight: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Rw {
    #[default]
    Randread,
    Randwrite,
    Read,
    Write,
}

fn main() -> ExitCode {
    let told = match run(&Args::parse()) {
        Ok(line) => writeln!(io::stdout(), "{line}").map(|()| ExitCode::SUCCESS),
        Err(error) => writeln!(io::stderr(), "vhost-load: {error}").map(|()| ExitCode::FAILURE),
    };
    told.unwrap_or(ExitCode::FAILURE)
}

/// Microseconds of processor time of a process.
fn processor_time(process: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime and stime, 14 and 15 of all, in hundredths of a second
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 * 10_000.0)
}

/// Where the next request goes.
struct Places {
    random: bool,
    blocks: u64,
    next: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        let now = self.next;
        // an odd factor and summand: all blocks come, in no order
        let factor = if self.random { 6_364_136_223_846_793_005 } else { 1 };
        self.next = now.wrapping_mul(factor).wrapping_add(1);
        if self.random { (now >> 20) % self.blocks } else { now % self.blocks }
    }
}

fn run(args: &Args) -> Result<String, Box<dyn Error>> {
    if args.bs == 0 || !args.bs.is_multiple_of(512) || args.depth == 0 || args.pieces == 0 {
        return Err("whole sectors, and at least one request, of at least one piece".into());
    }
    let each = args.depth.div_ceil(args.queues);
    let options = Options {
        queues: args.queues,
        size: each.next_power_of_two().clamp(64, 1024) as u16,
        data: args.bs as usize * args.queues * 1024,
        without: 0,
        inflight: !args.no_inflight,
    };
    let mut guest = Guest::connect(&args.socket, options)?;
    let capacity = guest.config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let ask = if matches!(args.rw, Rw::Randread | Rw::Read) { Ask::Read } else { Ask::Write };
    let sectors = u64::from(args.bs / 512);
    let random = matches!(args.rw, Rw::Randread | Rw::Randwrite);
    let mut places = Places { random, blocks: (capacity / sectors).max(1), next: 1 };
    let mut begun = vec![[Instant::now(); 1024]; args.queues];
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let server = guest.server.map(|pid| pid.to_string());
    let of_server = || server.as_deref().and_then(processor_time).unwrap_or_default();
    let (start, busy_before, own_before) = (Instant::now(), of_server(), processor_time("self"));
    let (mut under_way, mut done, mut ends) = (0, 0u64, false);
    let data = guest.data();
    let mut pieces = Vec::new();
    while !ends || under_way > 0 {
        ends = ends || start.elapsed().as_secs_f64() >= args.seconds;
        for (n, queue) in guest.queues.iter_mut().enumerate() {
            while let Some((head, _)) = queue.ended()? {
                times.saturating_record(begun[n][usize::from(head)].elapsed().as_nanos() as u64);
                if queue.status(head) != 0 {
                    return Err(format!("a request ended with status {}", queue.status(head)).into());
                }
                (under_way, done) = (under_way - 1, done + 1);
            }
            let now = Instant::now();
            for slot in 0..each {
                if ends || under_way >= args.depth {
                    break;
                }
                // any memory will do for what is read, and for random bytes
                let at = data + ((n * 1024 + (done as usize + slot) % 1024) * args.bs as usize) as u64;
                let len = args.bs / args.pieces;
                pieces.clear();
                pieces.extend((0..args.pieces).map(|piece| (at + u64::from(piece * len), len)));
                let Some(head) = queue.request(ask, places.next() * sectors, &pieces)? else { break };
                begun[n][usize::from(head)] = now;
                under_way += 1;
            }
            queue.kick()?;
        }
        if under_way > 0 && !guest.wait(Duration::from_secs(10))? {
            return Err("no answer for ten seconds".into());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = |before: f64, after: f64| (after - before) / done.max(1) as f64;
    let own = each(own_before.unwrap_or_default(), processor_time("self").unwrap_or_default());
    let quantile = |q: f64| times.value_at_quantile(q) as f64 / 1000.0;
    Ok(format!(
        "{{\"iops\": {:.0}, \"p50_us\": {:.1}, \"p99_us\": {:.1}, \
         \"server_us\": {:.2}, \"client_us\": {own:.2}}}",
        done as f64 / seconds,
        quantile(0.5),
        quantile(0.99),
        each(busy_before, of_server()),
    ))
}
