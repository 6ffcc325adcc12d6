//! `quod compare`: do two images hold the same disk? With the words and exit codes of `qemu-img compare`.
//!
//! Knows: the command line. Must never know: how disks are read.

use super::named::Image;
use super::progress::Progress;
use crate::out::{self, fail, note};
use crate::words::cache;
use crate::words::open::TABLES_ONCE;
use quod::describe;
use quod_tools::{self as tools, CompareError, CompareStep, Comparison};
use std::path::PathBuf;
use std::process::ExitCode;

/// Check whether two images have the same contents
#[derive(clap::Args)]
pub struct Args {
    /// Format of the first image (default: probe)
    #[arg(short, long = "a-format", value_name = "FMT")]
    format: Option<String>,
    /// Format of the second image (default: probe)
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    second_format: Option<String>,
    /// Cache mode: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 'T', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// Show how far it is
    #[arg(short, long)]
    progress: bool,
    /// Say nothing; the exit code tells
    #[arg(short, long)]
    quiet: bool,
    /// Sizes must be the same, and what is data, zeros or nothing
    #[arg(short, long)]
    strict: bool,
    /// Look even if a writer has an image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Both images are named by options: driver=qcow2,file.filename=...
    #[arg(long)]
    image_opts: bool,
    #[arg(long, hide = true, value_name = "OBJECT")]
    object: Vec<String>,
    /// The two images
    files: Vec<PathBuf>,
}

/// Runs the command. The exit code: 0, they are identical; 1, they differ, or the command line is wrong; 2,
/// an image could not be opened; 3, its tables not be read; 4, its data not be read.
pub fn run(args: Args) -> ExitCode {
    let [first, second] = args.files.as_slice() else { return fail("Expecting two image file names") };
    let Some(cache) = cache::parse(&args.cache) else {
        return with(2, format!("Invalid source cache option: {}", args.cache));
    };
    if !args.object.is_empty() {
        return fail("--object: there are no objects (not supported)");
    }
    let named = [(first, &args.format), (second, &args.second_format)].map(|(words, format)| {
        let mut image = Image::named(words, format.as_deref(), args.image_opts)?;
        image.mode.direct |= cache.direct;
        image.mode.force_share |= args.force_share;
        let options = image.options()?.cache_bytes(TABLES_ONCE);
        Ok((image, options))
    });
    let [(first, options), (second, second_options)] = match named {
        [Ok(first), Ok(second)] => [first, second],
        [Err(why), _] | [_, Err(why)] => return with(2, why),
    };
    let both = [(first.path.as_path(), options), (second.path.as_path(), second_options)];
    let images = [&first, &second];
    let mut progress = Progress::begin(args.progress && !args.quiet, 2.0);
    let result = tools::compare(both, args.strict, &mut |step| match step {
        CompareStep::Equal(part, whole) => progress.advance(part, whole),
        CompareStep::SizesDiffer if !args.quiet => sayln!("Warning: Image size mismatch!"),
        CompareStep::SizesDiffer => {}
    });
    let code = match result {
        Ok(found) => {
            if !args.quiet {
                tell(found);
            }
            ExitCode::from(u8::from(found != Comparison::Identical))
        }
        Err(CompareError::Open(index, error)) => with(2, images[index].not_opened(&error)),
        Err(CompareError::Status(index, error)) => {
            let name = args.files[index].display();
            with(3, format!("Sector allocation test failed for {name}: {error}"))
        }
        Err(CompareError::Read(index, offset, error)) => {
            let name = args.files[index].display();
            let why = describe(error.errno());
            with(4, format!("Error while reading offset {offset} of {name}: {why}"))
        }
        Err(CompareError::Driver(error)) => with(4, error.to_string()),
    };
    out::flush();
    progress.end();
    code
}

fn tell(found: Comparison) {
    match found {
        Comparison::Identical => sayln!("Images are identical."),
        Comparison::Content(offset) => sayln!("Content mismatch at offset {offset}!"),
        Comparison::Size => sayln!("Strict mode: Image size mismatch!"),
        Comparison::Status(offset) => sayln!("Strict mode: Offset {offset} block status mismatch!"),
    }
}

fn with(code: u8, text: String) -> ExitCode {
    note(text);
    ExitCode::from(code)
}
