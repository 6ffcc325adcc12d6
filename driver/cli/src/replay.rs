//! `quod replay`: plays a guest's block trace on an image and verifies every byte.
//!
//! Knows: the command line, the terminal, temporary folders. Must never know: how a trace is played.

use crate::bench::number;
use crate::failure::{fail, warn_about_probing};
use crate::{format, keyval};
use indicatif::{ProgressBar, ProgressStyle};
use quod::tools::{self, CreateOptions};
use quod::{BackendKind, Format, Policy};
use quod_bench::model::Initial;
use quod_bench::options;
use quod_bench::replay::{self, Observer, Options, Speed};
use quod_bench::report::Report;
use quod_bench::trace::{Source, Summary};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::TempDir;

/// Replay a guest's block trace and verify every byte
///
/// Without arguments: the trace that ships with quod, on a fresh QED image in a temporary folder.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A trace in fio's iolog format, version 2 or 3 (default: the one that ships with quod)
    trace: Option<PathBuf>,
    /// Play on this image; it is created if it does not exist. What the trace writes to is OVERWRITTEN
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Image format (default: qed for a fresh image, else probe)
    #[arg(short, long, value_name = "FMT", value_parser = format::parse)]
    format: Option<Format>,
    /// `max`; `real`: at the times of the trace; or how many times as fast
    #[arg(long, default_value = "max")]
    speed: Speed,
    /// Operations in flight at once, at most
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Seed of the payload
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a timeline to this file: Chrome's trace format, opens in Perfetto
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Who moves bytes: auto, uring or threads
    #[arg(long, default_value = "auto", value_parser = options::backend)]
    backend: BackendKind,
    /// Bypass the page cache (O_DIRECT)
    #[arg(long)]
    direct: bool,
    /// Cache mode: none is --direct, writeback is not
    #[arg(short = 't', long, value_name = "CACHE", value_parser = ["none", "writeback"])]
    cache: Option<String>,
    /// What an allocating write waits for: image, new-table, table or cluster
    #[arg(long, default_value = "cluster", value_parser = options::gate)]
    gate: quod::Gate,
    /// An allocating write completes only when its mapping is written
    #[arg(long)]
    writethrough: bool,
    /// Do not record state transitions (no time by state in the report)
    #[arg(long)]
    no_states: bool,
    /// Options of a fresh image: size, cluster_size, table_size (comma-separated, as in create)
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match play(&args) {
        Ok(report) => {
            if !args.quiet {
                print!("{report}");
            }
            if report.verification.passed() {
                return ExitCode::SUCCESS;
            }
            fail("replay: verification failed")
        }
        Err(what) => fail(format_args!("replay: {what}")),
    }
}

fn play(args: &Args) -> Result<Report, String> {
    let source = args.trace.clone().map_or(Source::Shipped, Source::File);
    let summary = replay::examine(&source).map_err(|error| error.to_string())?;
    let target = target(args, &summary)?;
    let options = Options {
        speed: args.speed,
        depth: args.depth,
        seed: args.seed,
        initial: target.initial,
        format: target.format,
        backend: args.backend,
        direct: args.direct || args.cache.as_deref() == Some("none"),
        gate: args.gate,
        policy: if args.writethrough { Policy::Writethrough } else { Policy::Writeback },
        follow: !args.no_states,
        timeline: args.timeline.clone(),
    };
    let mut progress = Progress::new(args.quiet);
    let report = replay::run(&target.path, &source, &summary, &options, &mut progress);
    progress.end();
    let report = report.map_err(|error| error.to_string())?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

/// Where to play.
struct Target {
    path: PathBuf,
    format: Option<Format>,
    initial: Initial,
    /// Deleted when it is dropped.
    _folder: Option<TempDir>,
}

fn target(args: &Args, summary: &Summary) -> Result<Target, String> {
    let (path, folder) = match &args.image {
        Some(path) if path.exists() => {
            if !args.options.is_empty() {
                return Err(format!("'{}' exists; -o is for a fresh image", path.display()));
            }
            let (path, format) = (path.clone(), args.format);
            if format.is_none() && tools::probe(&path).is_ok_and(|found| found == Format::Raw) {
                warn_about_probing(&path);
            }
            return Ok(Target { path, format, initial: Initial::Unknown, _folder: None });
        }
        Some(path) => (path.clone(), None),
        None => {
            let folder = tempfile::Builder::new().prefix("quod-replay-").tempdir();
            let folder = folder.map_err(|error| format!("cannot make a temporary folder: {error}"))?;
            (folder.path().join("replay.img"), Some(folder))
        }
    };
    let format = args.format.unwrap_or(Format::Qed);
    let size = replay::disk_size(summary).map_err(|error| error.to_string())?;
    create(&path, format, size, &args.options)?;
    Ok(Target { path, format: Some(format), initial: Initial::Zeros, _folder: folder })
}

fn create(path: &Path, format: Format, size: u64, words: &[String]) -> Result<(), String> {
    let mut create = CreateOptions::new(format, size);
    for list in words {
        for (name, value) in keyval::parse(list).ok_or_else(|| format!("-o {list}: an empty option"))? {
            let small = || {
                let value = number(&name, &value, 1, u64::from(u32::MAX), true)?;
                u32::try_from(value).map_err(|error| error.to_string())
            };
            match name.as_str() {
                "size" => create.size = number(&name, &value, 512, i64::MAX as u64, true)?,
                "cluster_size" => create.cluster_size = Some(small()?),
                "table_size" => create.table_size = Some(small()?),
                _ => return Err(format!("-o {name}: a replay knows size, cluster_size and table_size")),
            }
        }
    }
    tools::create(path, &create).map_err(|error| error.to_string())
}

/// A bar on a terminal; nothing elsewhere.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    fn new(quiet: bool) -> Progress {
        Progress { bar: ProgressBar::hidden(), quiet }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn phase(&mut self, name: &'static str, total: u64) {
        self.end();
        if self.quiet {
            return;
        }
        // draws on standard error, and only if that is a terminal
        self.bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{msg:>10} {wide_bar} {percent:>3} % {eta:>4}") {
            self.bar.set_style(style);
        }
        self.bar.set_message(name);
    }

    fn progress(&mut self, done: u64) {
        self.bar.set_position(done);
    }
}
