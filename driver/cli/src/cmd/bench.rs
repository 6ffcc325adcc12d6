//! `quod bench`: a load with the options and the lines of `qemu-img bench`, and a few of both more.
//!
//! Knows: the command line. Must never know: how the load is run.

use crate::out::{fail, note};
use crate::output::Output;
use crate::words::failure::{warn_about_probing, warn_of_change, why_not_opened};
use crate::words::{format, sizes};
use crate::{interrupt, out};
use quod::{AllowAll, BackendKind, Config, Error, OpenOptions, Policy};
use quod_bench::load::order::Order;
use quod_bench::load::sequential::{self, FLUSHES_MAX, Load, LoadOutcome};
use quod_bench::measure::histogram::Latencies;
use quod_bench::options;
use quod_bench::report::Hold;
use quod_tools::Session;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Run a simple image benchmark, as qemu-img bench does
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Number of I/O requests to perform
    #[arg(short, long, default_value = "75000", allow_hyphen_values = true)]
    count: String,
    /// Number of requests to perform in parallel
    #[arg(short, long, default_value = "64", allow_hyphen_values = true)]
    depth: String,
    /// Image format (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// threads, native or io_uring; native means io_uring here
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    /// As -i native
    #[arg(short, long)]
    native: bool,
    /// Start the first request at this offset
    #[arg(short, long, default_value = "0", allow_hyphen_values = true)]
    offset: String,
    /// Size of each request
    #[arg(short = 's', long, default_value = "4096", value_name = "SIZE", allow_hyphen_values = true)]
    buffer_size: String,
    /// Increment of the offset from one request to the next (default: the buffer size)
    #[arg(short = 'S', long, default_value = "0", value_name = "SIZE", allow_hyphen_values = true)]
    step_size: String,
    /// Cache mode: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, default_value = "writeback", value_name = "CACHE")]
    cache: String,
    /// Write instead of read
    #[arg(short, long)]
    write: bool,
    /// Byte to write
    #[arg(long, default_value = "0", allow_hyphen_values = true)]
    pattern: String,
    /// Requests at random places, each a whole number of steps behind the offset
    #[arg(long)]
    random: bool,
    /// Of -w, read this percentage of the requests, in a random mix
    #[arg(long, value_name = "PERCENT", default_value = "0", requires = "write")]
    reads: String,
    /// Seed of --random and --reads: the same number makes the same requests again
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    seed: u64,
    /// Flush after this many requests, with --reads after this many writes
    #[arg(long, default_value = "0", value_name = "COUNT", allow_hyphen_values = true)]
    flush_interval: String,
    /// Flush once more at the end, as a part of the run
    #[arg(long)]
    final_flush: bool,
    /// Do not wait for the requests in flight before a flush
    #[arg(long)]
    no_drain: bool,
    /// Open without locks, even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Measure how long each request takes, and how long calls into the driver hold the thread
    #[arg(long)]
    latency: bool,
    /// Register the buffers with the ring, as a VMM does with a guest's memory
    #[arg(long)]
    registered: bool,
    /// Processors for the kernel's and the driver's worker threads, as in 2-3,6
    #[arg(long, value_name = "LIST", value_parser = options::cpus)]
    worker_cpus: Option<quod::CpuSet>,
    /// Print only what qemu-img prints
    #[arg(short, long)]
    quiet: bool,
    /// What an allocating write waits for: image, new-table, table or cluster
    #[arg(long, default_value = "cluster", value_parser = options::gate)]
    gate: quod::AllocationGate,
    /// An allocating write completes only when its mapping is written
    #[arg(long)]
    writethrough: bool,
    /// Memory for tables and refcounts, of each image of the chain
    #[arg(long, value_name = "SIZE", default_value = "32M")]
    table_cache: String,
    /// Who moves bytes: auto, uring or threads (overrides -i)
    #[arg(long, value_parser = options::backend)]
    backend: Option<BackendKind>,
    /// Write the results to this file as JSON; -: to stdout, and everything else to stderr
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The image
    #[arg(value_name = "FILENAME")]
    image: Vec<String>,
}

/// What the words of the command line mean.
struct Plan {
    image: String,
    load: Load,
    open: OpenOptions,
    config: Config,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match plan(&args).and_then(|plan| measure(&args, plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => fail(what),
    }
}

/// A number as QEMU takes it, messages included: decimal or 0x..., with `units` a size.
fn number(what: &str, text: &str, min: u64, max: u64, units: bool) -> Result<u64, String> {
    let bad = || format!("Invalid {what} specified: '{text}'.");
    let out_of_range = || format!("Invalid {what} specified. Must be between {min} and {max}.");
    let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    if !units && !hexadecimal && text.contains(|c: char| !c.is_ascii_digit() && c != '-') {
        return Err(bad());
    }
    match sizes::parse(text) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        Ok(_) | Err(sizes::SizeError::OutOfRange) => Err(out_of_range()),
        Err(sizes::SizeError::NotANumber) => Err(bad()),
    }
}

const INT_MAX: u64 = i32::MAX as u64;

fn load(args: &Args) -> Result<Load, String> {
    let count = number("request count", &args.count, 1, INT_MAX, false)?;
    let depth = number("queue depth", &args.depth, 1, INT_MAX, false)?;
    let offset = number("offset", &args.offset, 0, i64::MAX as u64, true)?;
    let size = number("buffer size", &args.buffer_size, 1, INT_MAX, true)?;
    let step = number("step size", &args.step_size, 0, INT_MAX, true)?;
    let pattern = number("pattern byte", &args.pattern, 0, 255, false)?;
    let reads = if args.write { number("percentage of reads", &args.reads, 0, 99, false)? } else { 100 };
    let flush_interval = number("flush interval", &args.flush_interval, 0, INT_MAX, false)?;
    if !args.write && flush_interval > 0 {
        return Err("--flush-interval is only available in write tests".into());
    }
    if flush_interval > 0 && flush_interval < depth && reads == 0 {
        return Err("Flush interval can't be smaller than depth".into());
    }
    Ok(Load {
        count,
        // no more can be in flight than there are; the number fits, it is at most INT_MAX
        depth: u32::try_from(depth.min(count)).unwrap_or(u32::MAX),
        size: size as usize,
        step: if step == 0 { size } else { step },
        offset,
        order: if args.random { Order::Random } else { Order::Steps },
        seed: args.seed,
        reads: reads as u32,
        pattern: pattern as u8,
        fua: matches!(args.cache.as_str(), "writethrough" | "directsync"),
        flush_interval: if args.cache == "unsafe" { 0 } else { flush_interval },
        drain: !args.no_drain,
        final_flush: args.final_flush && args.write && args.cache != "unsafe",
        registered: args.registered,
    })
}

fn plan(args: &Args) -> Result<Plan, String> {
    let load = load(args)?;
    let [image] = args.image.as_slice() else { return Err("Expecting one image file name".into()) };
    let direct = match args.cache.as_str() {
        "none" | "off" | "directsync" => true,
        "writeback" | "unsafe" | "writethrough" => false,
        _ => return Err("Invalid cache mode".into()),
    };
    let aio = match args.aio.as_deref() {
        None | Some("native") => BackendKind::Auto,
        Some("io_uring") => BackendKind::Uring,
        Some("threads") => BackendKind::Threads,
        Some(other) => return Err(format!("Invalid aio option: {other}")),
    };
    let could_not = |what: &str| format!("Could not open '{image}': {what}");
    if args.force_share && args.write {
        return Err(could_not("force-share=on can only be used with read-only images"));
    }
    let format = args.format.as_deref().map(format::parse).transpose().map_err(|what| could_not(&what))?;
    let cache = number("table cache size", &args.table_cache, 0, 1 << 40, true)?;
    let policy = if args.writethrough { Policy::Writethrough } else { Policy::Writeback };
    let open = OpenOptions::new().write(args.write).direct(direct).format(format).lock(!args.force_share);
    let open = open
        .allocation_gate(args.gate)
        .policy(policy)
        .cache_bytes(cache)
        .open_gate(AllowAll)
        .tolerate_writers(true);
    let open = open.acbs(load.depth.saturating_mul(2).max(256));
    let config = Config::default()
        .backend(args.backend.unwrap_or(aio))
        .queue_depth(Config::default().queue_depth.max(load.depth.saturating_add(64)))
        .requests(load.depth.saturating_add(FLUSHES_MAX))
        .worker_cpus(args.worker_cpus)
        .timing(args.latency);
    Ok(Plan { image: image.clone(), load, open, config })
}

fn measure(args: &Args, plan: Plan) -> Result<(), String> {
    let Plan { image, load, open, config } = plan;
    let output = args.json.as_deref().map(Output::open).transpose()?;
    interrupt::watch();
    let why = |error| format!("Could not open '{image}': {}", why_not_opened(image.as_ref(), &error));
    let mut session = Session::with_config(&image, open, config).map_err(why)?;
    let first = session.first_sector().cloned();
    if first.is_some() {
        warn_about_probing(image.as_ref());
    }
    if load.writes() {
        warn_of_change(image.as_ref(), session.info());
    }
    announce(&load);
    if out::has_failed() {
        return session.close().map_err(|error| format!("Could not close '{image}': {error}"));
    }
    let disk = session.disk();
    session.driver().reset_hold();
    let outcome = sequential::run_guarded(session.driver(), disk, &load, first, &interrupt::asked);
    let outcome = outcome.map_err(|error| failed(&error))?;
    let seconds = outcome.elapsed.as_secs_f64();
    if outcome.done < load.count {
        sayln!("Run interrupted after {seconds:.3} seconds.");
    } else {
        sayln!("Run completed in {seconds:.3} seconds.");
    }
    let hold = Hold::of(session.driver().hold());
    let backend = session.driver().backend_name();
    let format = session.info().map_or("", |info| format::name(info.format()));
    let closing = Instant::now();
    session.close().map_err(|error| format!("Could not close '{image}': {error}"))?;
    let closed = closing.elapsed();
    if !args.quiet {
        print(&load, &outcome, &hold, backend, closed);
    }
    if outcome.done < load.count {
        let state = if load.writes() { "the image is closed cleanly" } else { "the image was only read" };
        note(format_args!("interrupted: {} of {} requests done; {state}", outcome.done, load.count));
    }
    let Some(output) = output else { return Ok(()) };
    let mut value = figures(&load, &outcome, &hold, closed);
    value["image"] = json!(image);
    value["format"] = json!(format);
    value["backend"] = json!(backend);
    value["cache"] = json!(args.cache);
    value["gate"] = json!(options::gate_name(args.gate));
    value["writethrough"] = json!(args.writethrough);
    output.write(&format!("{value:#}\n"))
}

fn failed(error: &Error) -> String {
    format!("Failed request: {error}")
}

fn announce(load: &Load) {
    let Load { count, depth, size, step, offset, reads, .. } = load;
    let kind = match reads {
        0 => "write",
        100 => "read",
        _ => "mixed",
    };
    sayln!(
        "Sending {count} {kind} requests, {size} bytes each, {depth} in parallel \
         (starting at offset {offset}, step size {step})"
    );
    if load.order == Order::Random {
        sayln!("At random places, seed {}", load.seed);
    }
    if load.is_mix() {
        sayln!("{reads} of 100 requests read, seed {}", load.seed);
    }
    if load.flush_interval > 0 {
        let what = if load.is_mix() { "writes" } else { "requests" };
        sayln!("Sending flush every {} {what}", load.flush_interval);
    }
    if load.final_flush {
        sayln!("Sending a flush at the end");
    }
}

fn rate(load: &Load, outcome: &LoadOutcome) -> (f64, f64, f64) {
    let seconds = outcome.elapsed.as_secs_f64().max(1e-9);
    let iops = outcome.done as f64 / seconds;
    let mib = iops * load.size as f64 / f64::from(1 << 20);
    (iops, mib, outcome.cpu.as_secs_f64() * 1e6 / outcome.done.max(1) as f64)
}

fn print(load: &Load, outcome: &LoadOutcome, hold: &Hold, backend: &str, closed: Duration) {
    let (iops, mib, cpu) = rate(load, outcome);
    sayln!("{iops:.0} IOPS, {mib:.1} MiB/s, {cpu:.2} us CPU per request ({backend})");
    let rows = [
        ("Read latency", outcome.reads.summary()),
        ("Write latency", outcome.writes.summary()),
        ("Flush latency", outcome.flushes.summary()),
    ];
    let parts = [("Thread held", hold.hold), ("  own code", hold.own), ("  system calls", hold.syscall)];
    let rows = rows.into_iter().chain(parts);
    for (name, row) in rows.filter(|(_, row)| row.count > 0) {
        let (p50, p90, p99, p999, max) = (row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us);
        sayln!(
            "{name:<22} p50 {p50:.1} us, p90 {p90:.1} us, p99 {p99:.1} us, p99.9 {p999:.1} us, \
             max {max:.1} us"
        );
    }
    sayln!("Closed in {:.3} seconds.", closed.as_secs_f64());
}

fn figures(load: &Load, outcome: &LoadOutcome, hold: &Hold, closed: Duration) -> serde_json::Value {
    let (iops, mib, cpu) = rate(load, outcome);
    json!({
        "write": load.writes(),
        "random": load.order == Order::Random,
        "reads_percent": load.reads,
        "seed": load.seed,
        "count": load.count,
        "done": outcome.done,
        "done_reads": outcome.done_reads,
        "done_flushes": outcome.done_flushes,
        "depth": load.depth,
        "buffer_size": load.size,
        "step_size": load.step,
        "offset": load.offset,
        "flush_interval": load.flush_interval,
        "drain": load.drain,
        "final_flush": load.final_flush,
        "registered": load.registered,
        "elapsed_s": outcome.elapsed.as_secs_f64(),
        "close_s": closed.as_secs_f64(),
        "iops": iops,
        "mib_per_s": mib,
        "cpu_us_per_request": cpu,
        "latency": recorded(&outcome.requests()),
        "read_latency": recorded(&outcome.reads),
        "write_latency": recorded(&outcome.writes),
        "flush_latency": recorded(&outcome.flushes),
        "hold": (hold.own.count > 0).then_some(hold),
    })
}

/// Null unless some were recorded.
fn recorded(latencies: &Latencies) -> serde_json::Value {
    if latencies.count() > 0 { json!(latencies.summary()) } else { json!(null) }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_refused_in_qemus_words() {
        assert_eq!(number("buffer size", "1.5k", 1, 4096, true), Ok(1536));
        assert_eq!(number("request count", "0x10", 1, 4096, false), Ok(16));
        let range = Err("Invalid queue depth specified. Must be between 1 and 9.".to_owned());
        for text in ["0", "10", "-1", "99999999999999999999"] {
            assert_eq!(number("queue depth", text, 1, 9, false), range);
        }
        for text in ["", "x", "1k", "1.5", "5-"] {
            assert_eq!(
                number("queue depth", text, 1, 9, false),
                Err(format!("Invalid queue depth specified: '{text}'."))
            );
        }
    }
}
