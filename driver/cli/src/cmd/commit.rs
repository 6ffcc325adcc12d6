//! `quod commit`: what an overlay has goes to its backing file, as `qemu-img commit` does it.
//!
//! Knows: the command line, which images of a chain take part. Must never know: how bytes are moved.

use super::named::{Image, Naming};
use super::progress::Progress;
use crate::interrupt;
use crate::out::{fail, program};
use crate::words::failure::{warn_about_probing, warn_of_bitmaps, why_not_opened};
use crate::words::open::{COMMIT_MS, TABLES_ONCE};
use crate::words::{cache, sizes};
use quod::{AllowAll, Format, OpenOptions, describe};
use quod_tools::{self as tools, ChainError, ImageInfo, MergeError, MergePlan};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write what an image has to its backing file, and empty it
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// Cache mode: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// Write to this image of the chain, and not to the next one (implies -d)
    #[arg(short, long, value_name = "FILE")]
    base: Option<String>,
    /// Do not empty the image
    #[arg(short, long)]
    drop: bool,
    /// Bytes a second at most
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    rate: Option<String>,
    /// Though it changes what internal snapshots hold
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

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    interrupt::watch();
    match commit(&args) {
        Ok(()) => {
            if !args.quiet {
                sayln!("Image committed.");
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

/// A bound of bytes a second.
pub fn rate(text: Option<&str>) -> Result<u64, String> {
    let Some(text) = text else { return Ok(0) };
    sizes::parse(text).map_err(|error| match error {
        sizes::SizeError::NotANumber => format!("Invalid rate limit specified: '{text}'."),
        sizes::SizeError::OutOfRange => {
            format!("Invalid rate limit specified. Must be between 0 and {}.", i64::MAX)
        }
    })
}

fn commit(args: &Args) -> Result<(), String> {
    let rate = rate(args.rate.as_deref())?;
    let [file] = args.files.as_slice() else { return Err("Expecting one image file name".into()) };
    let cache = cache::parse(&args.cache).ok_or_else(|| format!("Invalid cache option: {}", args.cache))?;
    let image = args.naming.image(file)?;
    let top = image.writable()?;
    let chain = chain(&image)?;
    if chain[0].info.format == Format::Raw && !args.naming.says_format() {
        warn_about_probing(&image.path);
    }
    if chain.len() < 2 {
        return Err("Image does not have a backing file".into());
    }
    let target = match &args.base {
        None => 1,
        Some(name) => find(&chain, name).ok_or_else(|| {
            format!("Did not find '{name}' in the backing chain of '{}'", image.path.display())
        })?,
    };
    // `info` follows descriptions to tell of them; nothing is written by the word of one
    let described = chain[..target].iter().filter_map(|over| over.info.backing.as_ref());
    if let Some(name) = described.map(|backing| &backing.name).find(|name| name.starts_with(b"json:")) {
        let name = String::from_utf8_lossy(name);
        let why = "the name describes a block device; only files are opened";
        return Err(image.could_not(&format!("Could not open backing file: Could not open '{name}': {why}")));
    }
    let named = chain[target].path.display();
    keep_snapshots(&chain[..target], args.force, &format!("what '{named}' has"))?;
    let empty = !args.drop && args.base.is_none();
    if chain[target].info.virtual_size < chain[0].info.virtual_size {
        warn_of_bitmaps(&chain[target]);
    }
    let below = |index: usize| {
        // a format that nobody names is found out, and writes to a raw image's beginning are looked at
        let said = chain[index - 1].below.as_ref().and_then(|below| below.as_ref().ok());
        let format = said.and_then(|below| below.format);
        OpenOptions::new()
            .format(if index == target { format } else { Some(chain[index].info.format) })
            .direct(cache.direct)
            .tolerate_writers(true)
            .cache_bytes(if index == target { 16 << 20 } else { TABLES_ONCE })
            .commit_ms(COMMIT_MS)
            .lock(image.mode.takes_locks())
            .open_gate(AllowAll)
    };
    let mut layers = vec![(image.path.as_path(), top.direct(cache.direct).commit_ms(COMMIT_MS))];
    layers.extend((1..target).map(|index| (chain[index].path.as_path(), below(index))));
    let mut progress = Progress::begin(args.progress && !args.quiet, 1.0);
    let plan = MergePlan { empty, rate };
    let base = (chain[target].path.as_path(), below(target));
    let merged = tools::merge(&layers, base, plan, interrupt::asked, &mut |part, whole| {
        progress.advance(part, whole);
    });
    progress.finish(merged.is_ok());
    merged.map_err(|error| told(&image, &chain[..=target], &error))
}

/// All images of the chain, or why they are not known.
pub fn chain(image: &Image) -> Result<Vec<ImageInfo>, String> {
    tools::chain(&image.path, image.mode.format, image.mode.unlocked).map_err(|error| match error {
        ChainError::Image(path, error) if path == image.path => image.not_opened(&error),
        ChainError::Image(path, error) => {
            let why = why_not_opened(&path, &error);
            image.could_not(&format!("Could not open backing file: {why}"))
        }
        ChainError::Name(name, why) => {
            image.could_not(&format!("Could not open backing file: Could not open '{name}': {why}"))
        }
        ChainError::Loop(path) => {
            image.could_not(&format!("Backing file '{}' creates an infinite loop.", path.display()))
        }
    })
}

/// Which image below the first one has this name: as another image names it, or as a file.
fn find(chain: &[ImageInfo], name: &str) -> Option<usize> {
    let id = |path: &Path| std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
    (1..chain.len()).find(|index| {
        let over = &chain[index - 1];
        let said = over.info.backing.as_ref().is_some_and(|backing| backing.name == name.as_bytes());
        let beside = over.path.parent().unwrap_or(Path::new("")).join(name);
        let file = id(&chain[*index].path);
        said || file.is_some() && [Path::new(name), &beside].into_iter().any(|path| id(path) == file)
    })
}

/// Snapshots of these images read from what is below what they do not have themselves.
pub fn keep_snapshots(images: &[ImageInfo], force: bool, what: &str) -> Result<(), String> {
    let snapshots = |image: &ImageInfo| image.qcow2.as_deref().map_or(0, |facts| facts.snapshots.len());
    match images.iter().find(|image| snapshots(image) > 0).filter(|_| !force) {
        Some(image) => Err(format!(
            "'{}' has internal snapshots, which hold {what} where they have nothing of their own: that would \
             change (--force does it all the same)",
            image.path.display()
        )),
        None => Ok(()),
    }
}

/// Why a merge ended, and what the images are now.
fn told(image: &Image, chain: &[ImageInfo], error: &MergeError) -> String {
    let (top, base) = (image.path.display(), chain[chain.len() - 1].path.display());
    let job = |error: &quod::Error| format!("Block job failed: {}", describe(error.errno()));
    let why = match error {
        MergeError::Open(0, error) => return image.not_opened(error),
        MergeError::Open(index, error) => {
            let path = &chain[*index].path;
            return format!("Could not open '{}': {}", path.display(), why_not_opened(path, error));
        }
        MergeError::Empty(error) => {
            let why = describe(error.errno());
            return format!("Could not empty {top}: {why}\n{}: '{base}' has all of its data", program());
        }
        MergeError::Close(error) => {
            return format!("error while closing: {}\n{}: '{base}' has all of the data", error, program());
        }
        MergeError::Stopped => "interrupted".into(),
        MergeError::Driver(error) => error.to_string(),
        MergeError::Grow(error) | MergeError::Read(_, error) | MergeError::Write(error) => job(error),
    };
    let program = program();
    format!(
        "{why}\n{program}: '{base}' has some of the data; '{top}' is unchanged, and its disk reads as before"
    )
}
