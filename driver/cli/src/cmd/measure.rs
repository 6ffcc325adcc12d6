//! `quod measure`: how large a file or a device has to be for an image, new or a copy, as `qemu-img measure`
//! tells it.
//!
//! Knows: options, and how the numbers are printed. Must never know: how an image is laid out.

use super::create::{self, Refused, Values};
use super::named::Naming;
use crate::out::fail;
use crate::words::format::{self, Output};
use crate::words::open::TABLES_ONCE;
use crate::words::{json, sizes};
use quod_tools::{self as tools, Measure};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tell how large a file or device an image needs
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// Format of the image: raw, qed or qcow2
    #[arg(short = 'O', long = "target-format", value_name = "FMT", default_value = "raw")]
    target_format: String,
    /// Options of the format, NAME=VALUE[,...], as of 'quod create'; 'help' lists them
    #[arg(short, value_name = "OPTS")]
    options: Vec<String>,
    /// Of a new image: size of the guest disk (b k K M G T P E; 1024 based)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    size: Option<String>,
    /// How to answer
    #[arg(long, value_name = "OUTPUT", default_value = "human")]
    output: Output,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    #[arg(short = 'l', long = "snapshot", hide = true, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Of a copy: the image
    files: Vec<PathBuf>,
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
    match measured(&args) {
        Ok((found, bitmaps)) => {
            match args.output {
                Output::Human => {
                    sayln!("required size: {}", found.required);
                    sayln!("fully allocated size: {}", found.fully_allocated);
                    if let Some(bytes) = bitmaps {
                        sayln!("bitmaps size: {bytes}");
                    }
                }
                Output::Json => {
                    let mut fields = Map::new();
                    fields.extend(bitmaps.map(|bytes| ("bitmaps".into(), bytes.into())));
                    fields.insert("required".into(), found.required.into());
                    fields.insert("fully-allocated".into(), found.fully_allocated.into());
                    sayln!("{}", json::pretty(&Value::Object(fields)));
                }
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

/// Both numbers, and what bitmaps take if a copy has them.
fn measured(args: &Args) -> Result<(Measure, Option<u64>), String> {
    let size = match args.size.as_deref().map(sizes::parse) {
        Some(Err(sizes::SizeError::NotANumber)) => {
            return Err(format!(
                "Invalid image size specified: '{}'.",
                args.size.as_deref().unwrap_or_default()
            ));
        }
        Some(Err(sizes::SizeError::OutOfRange)) => {
            return Err(format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX));
        }
        Some(Ok(size)) => Some(size),
        None => None,
    };
    let file = match args.files.as_slice() {
        [] if size.is_none() => return Err("Either --size N or one filename must be specified.".into()),
        [] if args.naming.says_format() || args.snapshot.is_some() => {
            return Err("--image-opts, -f, and -l require a filename argument.".into());
        }
        [] => None,
        [_] if size.is_some() => return Err("--size N cannot be used together with a filename.".into()),
        [file] => Some(file),
        _ => return Err("At most one filename argument is allowed.".into()),
    };
    if args.snapshot.is_some() {
        return Err("-l: internal snapshots are not read here (not supported)".into());
    }
    let image = file.map(|file| args.naming.image(file)).transpose()?;
    let opening = image.as_ref().map(super::named::Image::options).transpose()?;
    let wrong = || format!("Unknown file format '{}'", args.target_format);
    let format = format::parse(&args.target_format).map_err(|_| wrong())?;
    let mut values = Values::new(format);
    args.options.iter().try_for_each(|list| values.read(list)).map_err(|refused| match refused {
        Refused::List(list) => format!("Invalid option list: {list}"),
        Refused::Item(text) => text,
    })?;
    let backing = values.text("backing_fmt").map(format::parse).transpose()?;
    let mut options = create::image_options(format, size.unwrap_or(0), &values, backing)?;
    let (Some(image), Some(opening)) = (image, opening) else {
        return tools::measure(&options).map(|found| (found, None)).map_err(|error| error.to_string());
    };
    let opening = opening.lock(!args.force_share && image.mode.takes_locks()).cache_bytes(TABLES_ONCE);
    let facts = tools::info(&image.path, image.mode.format, args.force_share || image.mode.unlocked);
    let facts = facts.map_err(|error| image.not_opened(&error))?;
    let found = tools::measure_copy(&image.path, opening, &mut options);
    let bitmaps = tools::measure_bitmaps(&facts, &options);
    found.map(|found| (found, bitmaps)).map_err(|error| image.not_opened(&error))
}
