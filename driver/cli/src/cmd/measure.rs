//! `quod measure`: how large a file or a device has to be for an image, as `qemu-img measure --size` tells
//! it.
//!
//! Knows: options, and how the two numbers are printed. Must never know: how an image is laid out.

use super::create::{self, Refused, Values};
use crate::out::fail;
use crate::words::format::{self, Output};
use crate::words::{json, sizes};
use serde_json::json as object;
use std::process::ExitCode;

/// Tell how large a file or device an image needs
#[derive(clap::Args)]
pub struct Args {
    /// Format of the image: raw, qed or qcow2
    #[arg(short = 'O', value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format, NAME=VALUE[,...], as of 'quod create'
    #[arg(short, value_name = "OPTS")]
    options: Vec<String>,
    /// Size of the guest disk (b k K M G T P E; 1024 based)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    size: String,
    /// How to answer
    #[arg(long, value_name = "OUTPUT", default_value = "human")]
    output: Output,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match measured(&args) {
        Ok(found) => {
            match args.output {
                Output::Human => {
                    sayln!("required size: {}", found.required);
                    sayln!("fully allocated size: {}", found.fully_allocated);
                }
                Output::Json => {
                    let sizes = object!({
                        "required": found.required,
                        "fully-allocated": found.fully_allocated,
                    });
                    sayln!("{}", json::pretty(&sizes));
                }
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

fn measured(args: &Args) -> Result<quod_tools::Measure, String> {
    let format = format::parse(&args.format).map_err(|_| format!("Unknown file format '{}'", args.format))?;
    let mut values = Values::new(format);
    args.options.iter().try_for_each(|list| values.read(list)).map_err(|refused| match refused {
        Refused::List(list) => format!("Invalid option list: {list}"),
        Refused::Item(text) => text,
    })?;
    let size =
        sizes::parse(&args.size).map_err(|_| format!("Invalid image size specified: '{}'.", args.size))?;
    let options = create::image_options(format, size, &values, None)?;
    quod_tools::measure(&options).map_err(|error| error.to_string())
}
