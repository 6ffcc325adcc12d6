//! `quod convert`: disks copied into a new image, with the words of `qemu-img convert`.
//!
//! Knows: the command line, when a target reads as zeros. Must never know: how disks are copied.

use super::carried::Carried;
use super::create::{self, Refused, Values};
use super::progress::Progress;
use crate::interrupt;
use crate::out::{fail, note, program};
use crate::words::cache::Cache;
use crate::words::failure::why_not_opened;
use crate::words::open::{COMMIT_MS, TABLES_ONCE};
use crate::words::{cache, format, sizes, snapshot};
use quod::fault::FormatLack;
use quod::{AllowAll, Error, ErrorKind, Format, Lack, OpenOptions, SnapshotSelector, describe};
use quod_tools::{self as tools, CopyError, CopyPlan, CopyStep, Sources};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of the target's tables that are kept.
const TARGET_TABLES: u64 = 16 << 20;
/// Bytes of zeros that are looked for at most.
const SPARSE_MAX: u64 = 16 << 20;
/// Pieces in flight at most, as many as QEMU has coroutines.
const PARALLEL_MAX: i64 = 16;

/// Copy images into one, in another format if wanted
#[derive(clap::Args)]
pub struct Args {
    /// Format of the sources (default: probe)
    #[arg(short = 'f', long = "source-format", value_name = "FMT")]
    format: Option<String>,
    /// Format of the target: raw, qed or qcow2
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,
    /// Options of the target's format, NAME=VALUE[,...]; 'help' lists them
    #[arg(short = 'o', long = "target-options", value_name = "OPTS")]
    options: Vec<String>,
    /// The target's backing file, which has what the sources' backing files have
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Compress the target's clusters (qcow2; compression_type=zlib or zstd with -o)
    #[arg(short = 'c', long)]
    compress: bool,
    /// The target exists
    #[arg(short = 'n', long)]
    no_create: bool,
    /// With -n: the target reads as zeros
    #[arg(long)]
    target_is_zero: bool,
    /// Write as reads end, not in order
    #[arg(short = 'W', long = "oob-writes")]
    out_of_order: bool,
    /// Pieces in flight, 1 to 16
    #[arg(short = 'm', long, value_name = "COUNT", default_value = "8", allow_hyphen_values = true)]
    parallel: String,
    /// Zeros that are so long are not written; 0: everything is
    #[arg(short = 'S', long, value_name = "SIZE", default_value = "4k", allow_hyphen_values = true)]
    sparse_size: String,
    /// Cache mode of the target: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "CACHE")]
    target_cache: Option<String>,
    /// Cache mode of the sources
    #[arg(short = 'T', long, value_name = "CACHE", default_value = "writeback")]
    source_cache: String,
    /// Bytes a second at most
    #[arg(short = 'r', long, value_name = "SIZE", allow_hyphen_values = true)]
    rate: Option<String>,
    /// What cannot be read becomes zeros, and is told
    #[arg(long)]
    salvage: bool,
    /// Show how far it is
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Read even if a writer has a source open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Copy this snapshot of the source: its ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Copy the source's persistent bitmaps, too (qcow2)
    #[arg(long)]
    bitmaps: bool,
    /// With --bitmaps: leave out those that are inconsistent
    #[arg(long)]
    skip_broken_bitmaps: bool,
    /// The sources, one behind the other, and the target
    files: Vec<PathBuf>,
    #[command(flatten)]
    refused: Lacks,
}

/// What qemu-img has and quod has not: refused by name.
#[derive(clap::Args)]
struct Lacks {
    #[arg(short = 'C', long, hide = true)]
    copy_range_offloading: bool,
    #[arg(long, hide = true)]
    object: Option<String>,
    #[arg(long, hide = true, alias = "source-image-opts")]
    image_opts: bool,
    #[arg(long, hide = true)]
    target_image_opts: bool,
}

impl Lacks {
    fn refuse(&self) -> Result<(), String> {
        let named = [
            (self.copy_range_offloading, "-C: ranges are copied by reading and writing"),
            (self.object.is_some(), "--object: there are no objects"),
            (self.image_opts, "--image-opts: sources are named by their files"),
            (self.target_image_opts, "--target-image-opts: the target is named by its file"),
        ];
        match named.into_iter().find(|(given, _)| *given) {
            Some((_, text)) => Err(format!("{text} (not supported)")),
            None => Ok(()),
        }
    }
}

/// What the words of the command line mean.
struct Order {
    target: Format,
    plan: CopyPlan,
    source_cache: Cache,
    target_cache: Cache,
    snapshot: Option<SnapshotSelector>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if args.options.iter().any(|list| list == "help" || list == "?") {
        return match format::parse(&args.target_format) {
            Ok(format) => {
                say!("{}", create::help(format));
                ExitCode::SUCCESS
            }
            Err(_) => fail(format!("Unknown file format '{}'", args.target_format)),
        };
    }
    interrupt::watch();
    match convert(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(text),
    }
}

fn number(what: &str, text: &str) -> Result<u64, String> {
    sizes::parse(text).map_err(|error| match error {
        sizes::SizeError::NotANumber => format!("Invalid {what} specified: '{text}'."),
        sizes::SizeError::OutOfRange => {
            format!("Invalid {what} specified. Must be between 0 and {}.", i64::MAX)
        }
    })
}

fn read(args: &Args) -> Result<Order, String> {
    args.refused.refuse()?;
    let snapshot = args.snapshot.as_deref().map(snapshot::parse).transpose()?;
    let sparse = number("buffer size for sparse output", &args.sparse_size)?;
    if !sparse.is_multiple_of(512) || sparse > SPARSE_MAX {
        return Err(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {SPARSE_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        ));
    }
    let rate = args.rate.as_deref().map_or(Ok(0), |text| number("rate limit", text))?;
    let depth = match crate::words::numbers::c_integer(&args.parallel) {
        Some(depth @ 1..=PARALLEL_MAX) => depth as u32,
        Some(_) => {
            let range = "Must be between 1 and 16.";
            return Err(format!("Invalid number of coroutines specified. {range}"));
        }
        None => return Err(format!("Invalid number of coroutines specified: '{}'.", args.parallel)),
    };
    if args.files.len() < 2 {
        return Err("Must specify image file name".into());
    }
    if args.no_create && !args.options.is_empty() {
        return Err("-o has no effect when skipping image creation".into());
    }
    if args.skip_broken_bitmaps && !args.bitmaps {
        return Err("Use of --skip-broken-bitmaps requires --bitmaps".into());
    }
    if args.target_is_zero && !args.no_create {
        return Err("--target-is-zero requires use of -n flag".into());
    }
    let source_cache = cache::parse(&args.source_cache)
        .ok_or_else(|| format!("Invalid source cache option: {}", args.source_cache))?;
    let target = format::parse(&args.target_format);
    let target = target.map_err(|_| format!("Unknown file format '{}'", args.target_format));
    let named = args.target_cache.as_deref();
    let target_cache = cache::parse(named.unwrap_or("writeback"))
        .ok_or_else(|| format!("Invalid cache option: {}", named.unwrap_or_default()));
    let plan = CopyPlan {
        target_is_zero: args.target_is_zero,
        over_backing: false,
        sparse,
        out_of_order: args.out_of_order,
        depth,
        salvage: args.salvage,
        rate,
        compress: args.compress,
        flush: true,
    };
    Ok(Order { target: target?, plan, source_cache, target_cache: target_cache?, snapshot })
}

fn convert(args: &Args) -> Result<(), String> {
    let Order { target: format, mut plan, source_cache, target_cache, snapshot } = read(args)?;
    plan.flush = !target_cache.unsafe_;
    let Some((target, sources)) = args.files.split_last() else { return Ok(()) };
    if args.bitmaps && sources.len() > 1 {
        return Err("Copying bitmaps only possible with single source".into());
    }
    if snapshot.is_some() && sources.len() > 1 {
        return Err("No support for concatenating multiple snapshot".into());
    }
    let mut progress = Progress::begin(args.progress && !args.quiet, 1.0);
    let could_not = |file: &Path, why: String| format!("Could not open '{}': {why}", file.display());
    let mut from = Sources::new().map_err(|error| error.to_string())?;
    for file in sources {
        let format = args.format.as_deref().map(format::parse).transpose();
        let options = OpenOptions::new()
            .format(format.map_err(|why| could_not(file, why))?)
            .direct(source_cache.direct)
            .lock(!args.force_share)
            .tolerate_writers(true)
            .cache_bytes(TABLES_ONCE)
            .snapshot(snapshot.clone())
            .open_gate(AllowAll);
        let why = |error: &Error| could_not(file, why_not_opened(file, error));
        from.open(file, options).map_err(|error| no_snapshot(&error).unwrap_or_else(|| why(&error)))?;
    }
    let carried = match sources {
        [source] if args.bitmaps => {
            let named = args.format.as_deref().map(format::parse).transpose()?;
            Some(Carried::of(source, named, format, args.skip_broken_bitmaps)?)
        }
        _ => None,
    };
    let mut near_window = false;
    if !args.no_create {
        let (backed, near) = make(args, format, target, &from)?;
        near_window = near;
        let device = target.metadata().is_ok_and(|facts| !facts.is_file());
        plan.over_backing = backed;
        // what a device held before is there, unless a format says that it is not
        plan.target_is_zero = !backed && (format != Format::Raw || !device);
    } else if from.hold(target) {
        return Err(could_not(target, in_use(target)));
    } else {
        compressible(args, format)?;
        plan.over_backing = args.backing.is_some();
    }
    carried.as_ref().map_or(Ok(()), |carried| carried.check(target))?;
    let options = OpenOptions::new()
        .format(Some(format))
        .direct(target_cache.direct)
        .cache_bytes(TARGET_TABLES)
        .commit_ms(COMMIT_MS)
        .near_window(near_window)
        .open_gate(AllowAll);
    let copied = from.copy(target, options, plan, interrupt::asked, &mut |step| match step {
        CopyStep::Done(part, whole) => progress.advance(part, whole),
        CopyStep::Lost(offset, error) => {
            let why = describe(error.errno());
            note(format_args!("warning: error while reading offset {offset}: {why}"));
        }
    });
    progress.finish(copied.is_ok());
    copied.map_err(|error| told(target, &error))?;
    carried.map_or(Ok(()), |carried| carried.copy(target))
}

/// What QEMU says of a snapshot that is not there.
fn no_snapshot(error: &Error) -> Option<String> {
    let why = match error.kind()? {
        ErrorKind::NoSnapshot => "Can't find snapshot".into(),
        ErrorKind::Unsupported(Lack::Format(FormatLack::Snapshots(format))) => format!(
            "Block format '{format}' used by device '' does not support temporarily loading internal \
             snapshots"
        ),
        _ => return None,
    };
    Some(format!("Failed to load snapshot: {why}"))
}

fn compressible(args: &Args, format: Format) -> Result<(), String> {
    match args.compress && format != Format::Qcow2 {
        true => Err("Compression not supported for this file format".into()),
        false => Ok(()),
    }
}

/// How the target's clusters are to be compressed: does deflate keep to the near window?
fn window(args: &Args, values: &Values) -> Result<bool, String> {
    let window = values.text(create::WINDOW);
    if !args.compress {
        let text = format!("-o {} has no effect without -c", create::WINDOW);
        return if window.is_some() { Err(text) } else { Ok(false) };
    }
    if values.text("preallocation").is_some_and(|mode| mode != "off") {
        return Err("Compression and preallocation not supported at the same time".into());
    }
    if values.text("data_file").is_some() {
        return Err("Compression not supported with an external data file".into());
    }
    match window {
        None | Some("full") => Ok(false),
        Some("compat") => Ok(true),
        Some(other) => Err(format!("Invalid value '{other}' of '{}': it is full or compat", create::WINDOW)),
    }
}

/// Makes the target; does it have a backing file, and what is said of compression?
fn make(args: &Args, format: Format, target: &Path, from: &Sources) -> Result<(bool, bool), String> {
    let mut values = Values::new(format);
    args.options.iter().try_for_each(|list| values.read(list)).map_err(|refused| match refused {
        Refused::List(list) => format!("Invalid option list: {list}"),
        Refused::Item(text) => text,
    })?;
    compressible(args, format)?;
    let near = window(args, &values)?;
    if format == Format::Raw {
        create::lacks_of_raw(&values)?;
        let given = [("file", args.backing.is_some()), ("format", args.backing_format.is_some())];
        if let Some((what, _)) = given.into_iter().find(|(_, given)| *given) {
            return Err(format!("Backing {what} not supported for file format '{}'", args.target_format));
        }
    }
    let given = [("backing_file", &args.backing), ("backing_fmt", &args.backing_format)];
    for (name, value) in given {
        if let Some(value) = value {
            values.set(name, value.clone());
        }
    }
    values.set("size", from.size().to_string());
    let backed = values.text("backing_file").is_some();
    if backed && args.files.len() > 2 {
        let text = "Having a backing file for the target makes no sense when concatenating multiple input \
                    images";
        return Err(text.into());
    }
    let backing = values.text("backing_fmt").map(format::parse).transpose()?;
    if backed && backing.is_none() {
        return Err("Use of backing file requires explicit backing format".into());
    }
    let here =
        |why: String| format!("{}: error while converting {}: {why}", target.display(), format::name(format));
    let options = create::image_options(format, from.size(), &values, backing).map_err(here)?;
    if from.hold(target) {
        return Err(here(in_use(target)));
    }
    tools::create_until(target, &options, interrupt::asked)
        .map_err(|error| here(create::why_not_created(&options, &error).unwrap_or(error.to_string())))?;
    Ok((backed, near))
}

fn in_use(target: &Path) -> String {
    format!("Failed to get \"write\" lock\nIs another process using the image [{}]?", target.display())
}

/// Why a copy ended, and what the target is now.
fn told(target: &Path, error: &CopyError) -> String {
    let name = target.display();
    let why = match error {
        CopyError::Open(error) => {
            return format!("Could not open '{name}': {}", why_not_opened(target, error));
        }
        CopyError::TooSmall => return "output file is smaller than input file".into(),
        CopyError::Status(at, error) => format!("error while reading block status at offset {at}: {error}"),
        CopyError::Read(at, error) => {
            format!("error while reading at byte {at}: {}", describe(error.errno()))
        }
        CopyError::Write(at, error) => {
            format!("error while writing at byte {at}: {}", describe(error.errno()))
        }
        CopyError::Finish(error) => format!("error while closing '{name}': {}", describe(error.errno())),
        CopyError::Stopped => "interrupted".into(),
        CopyError::Driver(error) => error.to_string(),
    };
    let program = program();
    format!("{why}\n{program}: '{name}' is incomplete: it has some of the data; the sources are unchanged")
}
