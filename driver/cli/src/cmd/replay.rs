//! `quod replay`: plays a guest's block trace on an image and verifies every byte.
//!
//! Knows: the command line, the terminal, temporary folders. Must never know: how a trace is played.

use crate::cmd::create;
use crate::cmd::create::Values;
use crate::out::{fail, note};
use crate::output::Output;
use crate::words::failure::{warn_about_probing, warn_of_change};
use crate::words::{format, keyval};
use crate::{interrupt, out};
use indicatif::{ProgressBar, ProgressStyle};
use quod::{BackendKind, DiskInfo, Format, Policy};
use quod_bench::contract::blocks::Initial;
use quod_bench::options;
use quod_bench::replay::{self, Observer, Options, Speed};
use quod_bench::report::ReplayReport;
use quod_bench::trace::{self, Choice, Source, Summary, Waits};
use quod_tools as tools;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::TempDir;

/// Replay a guest's block trace and verify every byte
///
/// Without arguments: the trace that ships with quod, on a fresh QED image, then on a fresh qcow2 image, in
/// temporary folders.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A trace in fio's iolog format, version 2 or 3; - is stdin (default: the one that ships with quod)
    trace: Option<PathBuf>,
    /// The file of the trace whose operations are played (default: the first that has one)
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// What `wait` of version 2 counts: us, since the wait before (fio's manual); ms, since the start (fio)
    #[arg(long, value_name = "UNIT", default_value = "us", value_parser = options::waits)]
    wait_unit: Waits,
    /// Play on this image; it is created if it does not exist. What the trace writes to is OVERWRITTEN
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Image format: raw, qed, qcow2, or both (default: both; for --image: qed if it is new, else probe)
    #[arg(short, long, value_name = "FMT", value_parser = formats)]
    format: Option<Formats>,
    /// `max`; `real`: at the times of the trace; or how many times as fast
    #[arg(long, default_value = "max")]
    speed: Speed,
    /// Operations in flight at once, at most
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Seed of the payload
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report to this file as JSON; of several formats: an array. -: to stdout, and the report for
    /// people to stderr
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a timeline to this file: Chrome's trace format, opens in Perfetto. Of several formats: a file
    /// each, the format in its name; a device or a pipe gets one behind the other
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
    /// Register the buffers with the ring, as a VMM does with a guest's memory
    #[arg(long)]
    registered: bool,
    /// Processors for the kernel's and the driver's worker threads, as in 2-3,6
    #[arg(long, value_name = "LIST", value_parser = options::cpus)]
    worker_cpus: Option<quod::CpuSet>,
    /// What an allocating write waits for: image, new-table, table or cluster
    #[arg(long, default_value = "cluster", value_parser = options::gate)]
    gate: quod::AllocationGate,
    /// An allocating write completes only when its mapping is written
    #[arg(long)]
    writethrough: bool,
    /// Do not record state transitions (no time by state in the report)
    #[arg(long)]
    no_states: bool,
    /// Options of a fresh image, as in create; of several formats, each takes those that it has
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Formats to play on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Formats(&'static [Format]);

const BOTH: Formats = Formats(&[Format::Qed, Format::Qcow2]);
/// What is played on when nobody says anything.
const FRESH: Formats = BOTH;

fn formats(name: &str) -> Result<Formats, String> {
    match name {
        "both" => Ok(BOTH),
        name => format::parse(name).map(|format| match format {
            Format::Raw => Formats(&[Format::Raw]),
            Format::Qed => Formats(&[Format::Qed]),
            Format::Qcow2 => Formats(&[Format::Qcow2]),
        }),
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match play(&args) {
        Ok(reports) if reports.iter().all(ReplayReport::passed) => ExitCode::SUCCESS,
        // the signal decides how it ends
        Ok(reports) if reports.iter().any(|report| report.interrupted.is_some()) => ExitCode::FAILURE,
        Ok(reports) => fail(format_args!("replay: {}", complaint(&reports))),
        Err(what) => fail(format_args!("replay: {what}")),
    }
}

/// Why not all came out right, in a line.
fn complaint(reports: &[ReplayReport]) -> String {
    let bad = reports.iter().find(|report| !report.verification.passed());
    bad.map_or_else(String::new, |report| report.verification.complaint())
}

/// Plays on one format after the other; what is found wrong with one does not keep the next from its turn.
fn play(args: &Args) -> Result<Vec<ReplayReport>, String> {
    let json = args.json.as_deref().map(Output::open).transpose()?;
    let (source, summary) = read_trace(args)?;
    // until here nothing is lost
    interrupt::watch();
    let old = args.image.as_ref().is_some_and(|path| path.exists());
    let given = args.format.map(|Formats(formats)| formats);
    if let (Some([_, _, ..]), Some(path)) = (given, &args.image) {
        return Err(format!("'{}' is one image; several formats are played on fresh ones", path.display()));
    }
    // an image that exists is probed unless its format is given
    let formats: Vec<Option<Format>> = match given {
        None if old => vec![None],
        None if args.image.is_some() => vec![Some(Format::Qed)],
        given => given.unwrap_or(FRESH.0).iter().copied().map(Some).collect(),
    };
    let several = formats.len() > 1;
    formats.iter().try_for_each(|format| timeline(args, *format, several).map(drop))?;
    let mut reports: Vec<ReplayReport> = Vec::new();
    for format in &formats {
        let target = target(args, &summary, *format, several)?;
        let report = play_on(args, &source, &summary, &target)?;
        if !args.quiet {
            let space = if reports.is_empty() { "" } else { "\n" };
            say!("{space}{report}");
        }
        let stopped = report.interrupted.is_some();
        reports.push(report);
        if stopped {
            note(format_args!("replay: interrupted; {}", target.state()));
        }
        if stopped || out::has_failed() {
            break;
        }
    }
    if let Some(json) = json {
        let text = match reports.as_slice() {
            [report] => serde_json::to_string_pretty(report),
            reports => serde_json::to_string_pretty(reports),
        };
        let text = text.map_err(|error| error.to_string())?;
        json.write(&(text + "\n"))?;
    }
    Ok(reports)
}

fn read_trace(args: &Args) -> Result<(Source, Summary), String> {
    let choice = Choice { file: args.file.clone(), waits: args.wait_unit };
    let Some(path) = &args.trace else {
        let source = Source::Shipped;
        let summary = replay::examine(&source, &choice).map_err(|error| error.to_string())?;
        return Ok((source, summary));
    };
    let source = Source::of_path(path).map_err(|error| why_not_read(path, &error))?;
    match replay::examine(&source, &choice) {
        Ok(summary) => Ok((source, summary)),
        Err(replay::ReplayError::Trace(error)) => Err(why_not_read(path, &error)),
        Err(error) => Err(error.to_string()),
    }
}

fn play_on(args: &Args, source: &Source, summary: &Summary, target: &Target) -> Result<ReplayReport, String> {
    let options = Options {
        speed: args.speed,
        depth: args.depth,
        seed: args.seed,
        initial: target.initial,
        format: target.format,
        backend: args.backend,
        registered: args.registered,
        worker_cpus: args.worker_cpus,
        direct: args.direct || args.cache.as_deref() == Some("none"),
        gate: args.gate,
        policy: if args.writethrough { Policy::Writethrough } else { Policy::Writeback },
        follow: !args.no_states,
        timeline: target.timeline.clone(),
    };
    let mut progress = Progress::new(args.quiet, summary.changes.then(|| target.path.clone()));
    let report = replay::run(&target.path, source, summary, &options, &mut progress);
    progress.end();
    report.map_err(|error| why_not(source, &error))
}

/// An error, with the file that it is about.
fn why_not(source: &Source, error: &replay::ReplayError) -> String {
    match (error, source) {
        (replay::ReplayError::Trace(error), Source::File(path)) => why_not_read(path, error),
        (replay::ReplayError::Trace(error), _) => format!("{}: {error}", source.name()),
        _ => error.to_string(),
    }
}

/// Why it is no trace.
fn why_not_read(path: &Path, error: &trace::TraceError) -> String {
    let shown = path.display();
    match if path.is_file() { tools::probe(path) } else { Ok(Format::Raw) } {
        Ok(Format::Raw) | Err(_) => format!("{shown}: {error}"),
        Ok(format) => format!(
            "'{shown}' is an image ({}), and no trace; '--image {shown}' plays a trace on it",
            format::name(format)
        ),
    }
}

/// Where to play.
struct Target {
    path: PathBuf,
    format: Option<Format>,
    initial: Initial,
    timeline: Option<PathBuf>,
    /// Deleted when it is dropped.
    folder: Option<TempDir>,
}

impl Target {
    /// What becomes of the image when a run ends in order.
    fn state(&self) -> String {
        match self.folder {
            Some(_) => "the temporary image is removed".into(),
            None => format!("'{}' is closed cleanly", self.path.display()),
        }
    }
}

/// Where the timeline of one format goes, which can be written there.
fn timeline(args: &Args, format: Option<Format>, several: bool) -> Result<Option<PathBuf>, String> {
    let Some(path) = &args.timeline else { return Ok(None) };
    if path.as_os_str() == "-" {
        return Err("--timeline -: a timeline goes to a file (./- if that is its name)".into());
    }
    let special = path.metadata().is_ok_and(|found| !found.is_file());
    let path = match format {
        Some(format) if several && !special => named(path, format),
        _ => path.clone(),
    };
    if !special {
        // can it be written to? Nobody wants to know after the run
        drop(Output::open(&path)?);
    }
    Ok(Some(path))
}

/// `several`: this is one of several formats.
fn target(args: &Args, summary: &Summary, format: Option<Format>, several: bool) -> Result<Target, String> {
    let timeline = timeline(args, format, several)?;
    let (path, folder) = match &args.image {
        Some(path) if path.exists() => {
            if !args.options.is_empty() {
                return Err(format!("'{}' exists; -o is for a fresh image", path.display()));
            }
            if format.is_none() && tools::probe(path).is_ok_and(|found| found == Format::Raw) {
                warn_about_probing(path);
            }
            let path = path.clone();
            return Ok(Target { path, format, initial: Initial::Unknown, timeline, folder: None });
        }
        Some(path) => (path.clone(), None),
        None => {
            let folder = tempfile::Builder::new().prefix("quod-replay-").tempdir();
            let folder = folder.map_err(|error| format!("cannot make a temporary folder: {error}"))?;
            (folder.path().join("replay.img"), Some(folder))
        }
    };
    let size = replay::disk_size(summary).map_err(|error| error.to_string())?;
    let format = format.unwrap_or(Format::Qed);
    create(&path, format, size, &args.options, several)?;
    Ok(Target { path, format: Some(format), initial: Initial::Zeros, timeline, folder })
}

/// `trace.json` for QED: `trace.qed.json`.
fn named(path: &Path, format: Format) -> PathBuf {
    let end = path.extension().map_or(String::new(), |end| format!(".{}", end.to_string_lossy()));
    path.with_extension(format!("{}{end}", format::name(format)))
}

fn create(path: &Path, format: Format, size: u64, words: &[String], several: bool) -> Result<(), String> {
    let mut values = Values::new(format);
    for list in words {
        for (name, value) in keyval::parse(list).ok_or_else(|| format!("Invalid option list: {list}"))? {
            if several && !values.knows(&name) && BOTH.0.iter().any(|other| Values::new(*other).knows(&name))
            {
                continue;
            }
            values.add(&name, value)?;
        }
    }
    if values.text("backing_file").is_some() {
        return Err("-o backing_file: a replay begins with a disk of zeros".into());
    }
    if let Some(name) = values.text("data_file").map(String::from) {
        if name.contains('/') {
            return Err("-o data_file: the data file of a replay lies beside its image: a name without a \
                        folder"
                .into());
        }
        // beside the image, where it goes with the folder
        let beside = std::path::absolute(path.with_file_name(name)).map_err(|error| error.to_string())?;
        values.set("data_file", beside.display().to_string());
    }
    let size = values.size("size").unwrap_or(size);
    let options = create::image_options(format, size, &values, None)?;
    tools::create(path, &options).map_err(|error| error.to_string())
}

/// A bar on a terminal; nothing elsewhere.
struct Progress {
    bar: ProgressBar,
    quiet: bool,
    /// What will be changed.
    changes: Option<PathBuf>,
}

impl Progress {
    fn new(quiet: bool, changes: Option<PathBuf>) -> Progress {
        Progress { bar: ProgressBar::hidden(), quiet, changes }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn opened(&mut self, disk: &DiskInfo) {
        if let Some(path) = &self.changes {
            warn_of_change(path, Some(disk));
        }
    }

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

    fn stops(&mut self) -> bool {
        interrupt::asked()
    }
}
