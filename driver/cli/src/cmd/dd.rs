//! `quod dd`: a part of a disk in blocks, copied into a new image, as `qemu-img dd` does it.
//!
//! Knows: the command line, blocks. Must never know: how a disk is copied.

use super::create::{self, Values};
use super::named::Naming;
use crate::interrupt;
use crate::out::{fail, note, program};
use crate::words::failure::why_not_opened;
use crate::words::{format, sizes};
use quod::{AllowAll, Format, OpenOptions, describe};
use quod_tools::{self as tools, Part, PartError};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of a block at most.
const BLOCK_MAX: u64 = i32::MAX as u64;

/// Copy a part of a disk into a new image
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// Format of the new image: raw, qed or qcow2
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    output_format: String,
    /// Read even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=IMAGE of=FILE, and bs=BYTES (of a block, default 512), skip=BLOCKS, count=BLOCKS (that are copied)
    operands: Vec<String>,
}

/// What the operands say.
struct Blocks {
    input: PathBuf,
    output: PathBuf,
    size: u64,
    skip: u64,
    count: Option<u64>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    interrupt::watch();
    match copy(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(text),
    }
}

fn number(name: &str, text: &str, least: u64, most: u64) -> Result<u64, String> {
    let range = || format!("Invalid {name} specified. Must be between {least} and {most}.");
    match sizes::parse(text) {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        Ok(_) | Err(sizes::SizeError::OutOfRange) => Err(range()),
        Err(sizes::SizeError::NotANumber) => Err(format!("Invalid {name} specified: '{text}'.")),
    }
}

fn read(args: &Args) -> Result<Blocks, String> {
    let (mut input, mut output, mut size, mut skip, mut count) = (None, None, 512, 0, None);
    for operand in &args.operands {
        let (name, value) = operand.split_once('=').unwrap_or((operand, ""));
        match name {
            _ if !operand.contains('=') => return Err(format!("unrecognized operand {operand}")),
            "if" => input = Some(PathBuf::from(value)),
            "of" => output = Some(PathBuf::from(value)),
            "bs" => size = number(name, value, 1, BLOCK_MAX)?,
            "skip" => skip = number(name, value, 0, i64::MAX as u64)?,
            "count" => count = Some(number(name, value, 0, i64::MAX as u64)?),
            _ => return Err(format!("unrecognized operand {name}")),
        }
    }
    match (input, output) {
        (Some(input), Some(output)) => Ok(Blocks { input, output, size, skip, count }),
        _ => Err("Must specify both input and output files".into()),
    }
}

fn copy(args: &Args) -> Result<(), String> {
    let blocks = read(args)?;
    let image = args.naming.image(&blocks.input)?;
    let format = format::parse(&args.output_format).map_err(|_| "Unknown file format")?;
    let options = image.options()?.lock(!args.force_share && image.mode.takes_locks());
    let part = Part::open(&image.path, options).map_err(|error| image.not_opened(&error))?;
    let all = part.size();
    let from = blocks.skip.checked_mul(blocks.size).filter(|from| *from <= all);
    if from.is_none_or(|from| from == all && from > 0) {
        note(format_args!("{}: cannot skip to specified offset", blocks.input.display()));
    }
    let from = from.unwrap_or(all);
    let most = blocks.count.map_or(u64::MAX, |count| count.saturating_mul(blocks.size));
    let len = most.min(all - from);
    let output = blocks.output.as_path();
    if part.holds(output) {
        let name = output.display();
        return Err(format!(
            "{name}: error while creating output image: Failed to get \"write\" lock\nIs another process \
             using the image [{name}]?"
        ));
    }
    make(output, format, len)?;
    let options = OpenOptions::new().format(Some(format)).open_gate(AllowAll);
    part.copy(output, options, (from, len), interrupt::asked).map_err(|error| told(output, &error))
}

/// Makes the new image.
fn make(output: &Path, format: Format, size: u64) -> Result<(), String> {
    let here = |why: String| format!("{}: error while creating output image: {why}", output.display());
    let options = create::image_options(format, size, &Values::new(format), None).map_err(here)?;
    tools::create_until(output, &options, interrupt::asked)
        .map_err(|error| here(create::why_not_created(&options, &error).unwrap_or(error.to_string())))
}

/// Why a copy ended, and what the new image is.
fn told(output: &Path, error: &PartError) -> String {
    let name = output.display();
    let why = match error {
        PartError::Open(error) => {
            return format!("Could not open '{name}': {}", why_not_opened(output, error));
        }
        PartError::Read(_, error) => {
            format!("error while reading from input image file: {}", describe(error.errno()))
        }
        PartError::Write(_, error) => {
            format!("error while writing to output image file: {}", describe(error.errno()))
        }
        PartError::Finish(error) => format!("error while closing '{name}': {}", describe(error.errno())),
        PartError::Stopped => "interrupted".into(),
        PartError::Driver(error) => error.to_string(),
    };
    format!("{why}\n{}: '{name}' is incomplete: it has some of the data; the source is unchanged", program())
}
