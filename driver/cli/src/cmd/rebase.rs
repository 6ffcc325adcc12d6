//! `quod rebase`: another backing file for an image, whose disk stays as it is, as `qemu-img rebase` does it.
//!
//! Knows: the command line. Must never know: how disks are compared, what a header looks like.

use super::commit::keep_snapshots;
use super::named::{Image, Naming};
use super::progress::Progress;
use crate::interrupt;
use crate::out::{fail, program};
use crate::words::failure::{warn_about_probing, why_not_opened};
use crate::words::open::{COMMIT_MS, TABLES_ONCE};
use crate::words::{cache, format};
use quod::{AllowAll, Error, ErrorKind, Fault, Format, Lack, Named, OpenOptions, Role, describe};
use quod_tools::{self as tools, RebaseError, RebasePlan};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Change the backing file of an image
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// Cache mode of the image: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// The new backing file; an empty name: none
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Its format
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Cache mode of the backing files
    #[arg(short = 'T', long, value_name = "CACHE", default_value = "writeback")]
    backing_cache: String,
    /// Change the name alone: neither backing file is read, and the disk may read otherwise
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Though it changes what internal snapshots hold
    #[arg(long)]
    force: bool,
    /// Write compressed clusters
    #[arg(short = 'c', long)]
    compress: bool,
    /// Read backing files even if a writer has them open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Show how far it is
    #[arg(short, long)]
    progress: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    files: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    interrupt::watch();
    match change(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(text),
    }
}

fn change(args: &Args) -> Result<(), String> {
    let [file] = args.files.as_slice() else { return Err("Expecting one image file name".into()) };
    if !args.backing_unsafe && args.backing.is_none() {
        return Err("Must specify backing file (-b) or use unsafe mode (-u)".into());
    }
    let cached =
        |name: &str, what: &str| cache::parse(name).ok_or_else(|| format!("Invalid {what} option: {name}"));
    let (own, below) = (cached(&args.cache, "cache")?, cached(&args.backing_cache, "source cache")?);
    let image = args.naming.image(file)?;
    let options = image.writable()?;
    let facts = tools::info(&image.path, image.mode.format, image.mode.unlocked);
    let facts = facts.map_err(|error| image.not_opened(&error))?;
    let name = args.backing.as_deref().filter(|name| !name.is_empty());
    let format = match args.backing_format.as_deref().map(format::parse).transpose() {
        Ok(format) => format.filter(|_| name.is_some()),
        // neither file is opened
        Err(_) if args.backing_unsafe && args.backing_format.as_deref().is_some_and(format::is_known) => None,
        Err(_) => {
            return Err(format!(
                "Invalid format name: '{}'",
                args.backing_format.as_deref().unwrap_or_default()
            ));
        }
    };
    if facts.info.format == Format::Raw && !args.naming.says_format() {
        warn_about_probing(&image.path);
    }
    let cannot = |why: &str| could_not(name, why);
    let data_file = facts.qcow2.as_deref().is_some_and(|facts| facts.data_file_name.is_some());
    if args.compress && (facts.info.format != Format::Qcow2 || data_file) {
        return Err("Compression not supported for this file format".into());
    }
    if facts.info.format == Format::Raw {
        return Err(cannot("Operation not supported"));
    }
    if let (Some(_), None) = (name, &args.backing_format) {
        return Err(cannot("backing format must be specified"));
    }
    let new = name.map(|name| file_of(&image.path, name)).transpose();
    if !args.backing_unsafe {
        keep_snapshots(std::slice::from_ref(&facts), args.force, "what the backing file has")?;
        let new = new.map_err(|why| {
            format!("Could not open new backing file '{}': {why}", name.unwrap_or_default())
        })?;
        let options = options.direct(own.direct).commit_ms(COMMIT_MS).backing_direct(Some(below.direct));
        let below = OpenOptions::new()
            .format(format)
            .direct(below.direct)
            .lock(!args.force_share && image.mode.takes_locks())
            .tolerate_writers(true)
            .cache_bytes(TABLES_ONCE)
            .open_gate(AllowAll);
        copy(args, &image, options, new.as_deref().map(|path| (path, below)))?;
    }
    let named = name.map(|name| (name, args.backing_format.as_deref()));
    tools::set_backing_named(&image.path, image.mode.format, named)
        .map_err(|error| why_not_changed(name, &error))
}

/// The file that a name in the image's header leads to.
fn file_of(image: &Path, name: &str) -> Result<PathBuf, String> {
    let named = Named { image, name: name.as_bytes(), role: Role::Backing };
    named.path().ok_or_else(|| match name.split_once(':') {
        Some(("json", _)) => "the name describes a block device; only files are opened".into(),
        Some((protocol, _)) => format!("Unknown protocol '{protocol}'"),
        None => "the name is no file's".into(),
    })
}

/// The image gets what would read otherwise.
fn copy(
    args: &Args,
    image: &Image,
    options: OpenOptions,
    new: Option<(&Path, OpenOptions)>,
) -> Result<(), String> {
    let name = args.backing.as_deref().unwrap_or_default();
    let path = new.as_ref().map(|(path, _)| path.to_path_buf());
    let mut progress = Progress::begin(args.progress && !args.quiet, 1.0);
    let plan = RebasePlan { compress: args.compress };
    let copied = tools::rebase((&image.path, options), new, plan, interrupt::asked, &mut |part, whole| {
        progress.advance(part, whole);
    });
    progress.finish(copied.is_ok());
    let new_one = |error: &Error| {
        let path = path.as_deref().unwrap_or(Path::new(""));
        format!("Could not open new backing file '{name}': {}", why_not_opened(path, error))
    };
    copied.map_err(|error| {
        let why = match &error {
            RebaseError::Open(error) => return image.not_opened(error),
            RebaseError::OpenNew(error) => return new_one(error),
            RebaseError::Loop => {
                return format!("Could not open new backing file '{name}': it is over the image itself");
            }
            RebaseError::Read(true, ..) => "error while reading from new backing file".into(),
            RebaseError::Read(false, ..) => "error while reading from old backing file".into(),
            RebaseError::Write(error) => {
                format!("Error while writing to COW image: {}", describe(error.errno()))
            }
            RebaseError::Stopped => "interrupted".into(),
            RebaseError::Driver(error) => error.to_string(),
        };
        let shown = image.path.display();
        format!("{why}\n{}: '{shown}' has its old backing file, and its disk reads as before", program())
    })
}

fn could_not(name: Option<&str>, why: &str) -> String {
    format!("Could not change the backing file to '{}': {why}", name.unwrap_or("(null)"))
}

fn why_not_changed(name: Option<&str>, error: &Error) -> String {
    let why = match error.kind() {
        Some(ErrorKind::NoSpace) => "No space left in the file header".into(),
        Some(ErrorKind::Corrupt(Fault::New { .. })) => describe(libc::EINVAL),
        Some(ErrorKind::Unsupported(Lack::Rebase(_))) => describe(libc::ENOTSUP),
        _ => describe(error.errno()),
    };
    could_not(name, &why)
}
