//! `quod amend`: what a qcow2 image says of its format, changed as `qemu-img amend` does it.
//!
//! Knows: the command line, which options an image may change. Must never know: what a header looks like.

use super::named::{Image, Naming};
use super::progress::Progress;
use crate::interrupt;
use crate::out::{fail, program};
use crate::words::failure::{resize_rule, warn_of_size};
use crate::words::{cache, keyval, sizes};
use quod::{Error, Format, describe};
use quod_tools::{self as tools, Amendment, Session};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options that only a new image has.
const OF_CREATE: [&str; 9] = [
    "cluster_size",
    "compression_type",
    "encryption",
    "encrypt.format",
    "encrypt.cipher-alg",
    "extended_l2",
    "nocow",
    "preallocation",
    "extent_size_hint",
];

/// Change options of a qcow2 image: compat, lazy_refcounts, size
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// What shall be otherwise, NAME=VALUE[,...]; 'help' lists the names
    #[arg(short, value_name = "OPTS")]
    options: Vec<String>,
    /// Cache mode: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// The disk may lose its end
    #[arg(long)]
    shrink: bool,
    /// Accepted; nothing here needs it
    #[arg(long)]
    force: bool,
    /// Show how far it is
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    files: Vec<PathBuf>,
}

/// What the options say.
#[derive(Default)]
struct Wanted {
    change: Amendment,
    size: Option<u64>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if args.options.iter().any(|list| list == "help" || list == "?") {
        sayln!("Amend options for 'qcow2':");
        sayln!("  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])");
        sayln!("  lazy_refcounts=<bool (on/off)> - Postpone refcount updates");
        sayln!("  size=<size>            - Virtual disk size");
        return ExitCode::SUCCESS;
    }
    interrupt::watch();
    match change(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(text),
    }
}

fn change(args: &Args) -> Result<(), String> {
    if args.options.is_empty() {
        return Err("Must specify options (-o)".into());
    }
    let [file] = args.files.as_slice() else { return Err("Expecting one image file name".into()) };
    let cache = cache::parse(&args.cache).ok_or_else(|| format!("Invalid cache option: {}", args.cache))?;
    let image = args.naming.image(file)?;
    let mut pairs = Vec::new();
    for list in &args.options {
        pairs.extend(keyval::parse(list).ok_or_else(|| format!("Invalid option list: {list}"))?);
    }
    let options = image.writable()?.tolerate_writers(false).direct(cache.direct);
    let mut session =
        Session::open(&image.path, options.clone()).map_err(|error| image.not_opened(&error))?;
    let facts = session.info().map(|info| (info.format(), info.virtual_size(), info.image().info.version));
    let (format, old, version) = facts.unwrap_or((Format::Raw, 0, 0));
    if format != Format::Qcow2 {
        return Err(format!("Format driver '{}' does not support option amendment", format.name()));
    }
    let wanted = read(&pairs, version)?;
    let size = wanted.size.filter(|size| *size != old);
    if let Some(new) = size {
        refuse(new, old, args.shrink)?;
    }
    let mut progress = Progress::begin(args.progress && !args.quiet, 1.0);
    progress.advance(0, 1);
    let failed = |error: &Error| told(&image, error);
    let sized = match size {
        Some(new) => {
            warn_of_size(&image.path, session.info());
            session.resize(new).map_err(|error| failed(&error))
        }
        None => Ok(()),
    };
    let closed = session.close().map_err(|error| failed(&error));
    sized.and(closed)?;
    if wanted.change != Amendment::default() {
        tools::amend(&image.path, options, wanted.change).map_err(|error| failed(&error))?;
    }
    progress.finish(true);
    Ok(())
}

/// What the options ask of an image of this version.
fn read(pairs: &[(String, String)], version: u32) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    for (name, value) in pairs {
        match name.as_str() {
            "compat" => {
                wanted.change.version = match value.as_str() {
                    "0.10" | "v2" => Some(2),
                    "1.1" | "v3" => Some(3),
                    other => return Err(format!("Unknown compatibility level {other}")),
                };
            }
            "lazy_refcounts" => {
                wanted.change.lazy_refcounts = match value.as_str() {
                    "on" => Some(true),
                    "off" => Some(false),
                    _ => return Err(format!("Parameter '{name}' expects 'on' or 'off'")),
                };
            }
            "size" => wanted.size = Some(sizes::option("size", value)?),
            "backing_file" | "backing_fmt" => {
                return Err("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.".into());
            }
            "data_file_raw" => return Err("data-file-raw cannot be set on existing images".into()),
            "refcount_bits" | "data_file" => return Err(format!("{name}= is not supported here")),
            other if other.starts_with("encrypt.") => return Err(format!("{name}= is not supported here")),
            other if OF_CREATE.contains(&other) => {
                return Err(format!(
                    "Invalid parameter '{name}'\nThis option is only supported for image creation"
                ));
            }
            _ => return Err(format!("Invalid parameter '{name}'")),
        }
    }
    if wanted.change.version.unwrap_or(version) < 3 && wanted.change.lazy_refcounts == Some(true) {
        return Err(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or \
                    greater)"
                .into(),
        );
    }
    Ok(wanted)
}

/// Sizes that a disk does not get.
fn refuse(new: u64, old: u64, shrink: bool) -> Result<(), String> {
    if let Some(text) = resize_rule(Format::Qcow2, old, new) {
        return Err(text.into());
    }
    if new < old && !shrink {
        return Err("Use the --shrink option to perform a shrink operation.".into());
    }
    Ok(())
}

fn told(image: &Image, error: &Error) -> String {
    let why = match error {
        Error::Misuse(what) => (*what).to_string(),
        error => describe(error.errno()),
    };
    format!("{why}\n{}: '{}' is not changed any further", program(), image.path.display())
}
