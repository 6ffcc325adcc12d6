//! `quod create`: makes an image, with the options and the words of `qemu-img create`.
//!
//! Knows: names and limits of options, backing files as arguments. Must never know: how an image is laid out.

use crate::failure::{fail, why_not_opened};
use crate::sizes::{self, SizeError};
use crate::{format, keyval};
use quod::Format;
use quod::tools::{self, CreateOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of a QED cluster unless an option says otherwise.
const CLUSTER_SIZE: u64 = 65536;
/// Clusters of a QED table unless an option says otherwise.
const TABLE_SIZE: u64 = 4;

/// Make a new image
#[derive(clap::Args)]
pub struct Args {
    /// Format of the new image: raw or qed
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// Options of the format, NAME=VALUE[,...]; 'help' lists them
    #[arg(short, value_name = "OPTS")]
    options: Vec<String>,
    /// Backing file
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,
    /// Do not look whether the backing file exists
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The new image
    file: Option<PathBuf>,
    /// Size of the guest disk (b k K M G T P E; 1024 based)
    #[arg(allow_hyphen_values = true)]
    size: Option<String>,
}

/// What the command line asks for, all texts read.
#[derive(Default)]
struct Wanted {
    size: Option<u64>,
    cluster_size: Option<u64>,
    table_size: Option<u64>,
    backing: Option<String>,
    backing_format: Option<String>,
}

const NO_QCOW2: &str = "qcow2 images are only read so far, not created";

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if args.options.iter().any(|list| list == "help" || list == "?") {
        return help(&args.format);
    }
    let Some(file) = args.file.clone() else { return fail("Expecting image file name") };
    match make(&args, &file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => fail(text),
    }
}

fn help(format: &str) -> ExitCode {
    match format {
        "raw" => print!("Supported raw options:\n  size=<size>            - Virtual disk size\n"),
        "qed" => print!(
            "Supported qed options:\n  backing_file=<str>     - File name of a base image\n  \
             backing_fmt=<str>      - Image format of the base image\n  \
             cluster_size=<size>    - Cluster size (in bytes)\n  \
             size=<size>            - Virtual disk size\n  \
             table_size=<size>      - L1/L2 table size (in clusters)\n"
        ),
        "qcow2" => return fail(NO_QCOW2),
        other => return fail(format!("Unknown file format '{other}'")),
    }
    ExitCode::SUCCESS
}

fn make(args: &Args, file: &Path) -> Result<(), String> {
    let here = |text: String| format!("{}: {text}", file.display());
    let format =
        format::parse(&args.format).map_err(|_| here(format!("Unknown file format '{}'", args.format)))?;
    if format == Format::Qcow2 {
        return Err(here(NO_QCOW2.into()));
    }
    let mut wanted = read_options(args, format).map_err(|text| match text {
        OptionError::List(list) => format!("Invalid option list: {list}"),
        OptionError::Item(text) => here(text),
    })?;
    if let Some(text) = &args.size {
        if wanted.size.is_some() {
            return Err(here("The image size must be specified only once".into()));
        }
        wanted.size = Some(image_size(text)?);
    }
    let backing_format = look_at_backing(args, file, &mut wanted).map_err(here)?;
    let size = wanted.size.ok_or_else(|| here("Image creation needs a size parameter".into()))?;
    if !args.quiet {
        println!("{}", announcement(args, file, &wanted, size));
    }
    if format == Format::Qed {
        validate_qed(&wanted, size).map_err(here)?;
    }
    let options = CreateOptions {
        format,
        size: size.next_multiple_of(512),
        cluster_size: wanted.cluster_size.map(|bytes| bytes as u32),
        table_size: wanted.table_size.map(|clusters| clusters as u32),
        backing: wanted.backing.map(|name| (name, backing_format)),
    };
    tools::create(file, &options).map_err(|error| match error {
        quod::Error::Io { errno, .. } => {
            here(format!("Could not create '{}': {}", file.display(), crate::failure::strerror(errno)))
        }
        other => other.to_string(),
    })
}

fn image_size(text: &str) -> Result<u64, String> {
    sizes::parse(text).map_err(|error| match error {
        SizeError::NotANumber => format!("Invalid image size specified: '{text}'."),
        SizeError::OutOfRange => {
            format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX)
        }
    })
}

enum OptionError {
    /// The list is no list.
    List(String),
    /// One option is wrong.
    Item(String),
}

fn read_options(args: &Args, format: Format) -> Result<Wanted, OptionError> {
    let mut wanted = Wanted::default();
    for list in &args.options {
        let pairs = keyval::parse(list).ok_or_else(|| OptionError::List(list.clone()))?;
        for (name, value) in pairs {
            let size = || {
                sizes::parse(&value).map(Some).map_err(|_| {
                    let hint = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                                and exabytes, respectively.";
                    OptionError::Item(format!(
                        "Parameter '{name}' expects a non-negative number below 2^64\n{hint}"
                    ))
                })
            };
            match (name.as_str(), format) {
                ("size", _) => wanted.size = size()?,
                ("preallocation", Format::Raw) if value == "off" => {}
                ("preallocation", Format::Raw) => {
                    let text =
                        format!("Parameter 'preallocation' does not accept value '{value}' (only off)");
                    return Err(OptionError::Item(text));
                }
                ("cluster_size", Format::Qed) => wanted.cluster_size = size()?,
                ("table_size", Format::Qed) => wanted.table_size = size()?,
                ("backing_file", Format::Qed) => wanted.backing = Some(value),
                ("backing_fmt", Format::Qed) => wanted.backing_format = Some(value),
                _ => return Err(OptionError::Item(format!("Invalid parameter '{name}'"))),
            }
        }
    }
    if let Some(name) = &args.backing {
        if format == Format::Raw {
            let text = format!("Backing file not supported for file format '{}'", args.format);
            return Err(OptionError::Item(text));
        }
        wanted.backing = Some(name.clone());
    }
    if let Some(name) = &args.backing_format {
        if format == Format::Raw {
            let text = format!("Backing format not supported for file format '{}'", args.format);
            return Err(OptionError::Item(text));
        }
        wanted.backing_format = Some(name.clone());
    }
    Ok(wanted)
}

/// Checks what is said of the backing file and takes the size from it if none was given. The backing format.
fn look_at_backing(args: &Args, file: &Path, wanted: &mut Wanted) -> Result<Option<Format>, String> {
    let format = match &wanted.backing_format {
        Some(name) => {
            Some(format::parse(name).map_err(|text| format!("{text}\nCould not open backing image."))?)
        }
        None => None,
    };
    let Some(name) = wanted.backing.as_deref() else { return Ok(format) };
    if name.is_empty() {
        return Err("Expected backing file name, got empty string".into());
    }
    let path = quod::gate::resolve(file, name.as_bytes());
    if path == file {
        return Err("Error: Trying to create an image with the same filename as the backing file".into());
    }
    if args.backing_unsafe {
        let none = format.is_none();
        return if none { Err("Backing file specified without backing format".into()) } else { Ok(format) };
    }
    let info = tools::info(&path, format, true)
        .map_err(|error| format!("{}\nCould not open backing image.", why_not_opened(&path, &error)))?;
    if format.is_none() {
        let found = format::name(info.format);
        return Err(format!("Backing file specified without backing format\nDetected format of {found}."));
    }
    wanted.size = wanted.size.or(Some(info.info.virtual_size));
    Ok(format)
}

fn announcement(args: &Args, file: &Path, wanted: &Wanted, size: u64) -> String {
    // QEMU prints option lists as they would be typed: commas doubled
    let doubled = |text: &str| text.replace(',', ",,");
    let mut text = format!("Formatting '{}', fmt={} size={size}", file.display(), args.format);
    if let Some(name) = &wanted.backing {
        text += &format!(" backing_file={}", doubled(name));
    }
    if let Some(name) = &wanted.backing_format {
        text += &format!(" backing_fmt={}", doubled(name));
    }
    if args.format == "qed" {
        text += &format!(" cluster_size={}", wanted.cluster_size.unwrap_or(CLUSTER_SIZE));
    }
    if let Some(clusters) = wanted.table_size {
        text += &format!(" table_size={clusters}");
    }
    text
}

fn validate_qed(wanted: &Wanted, size: u64) -> Result<(), String> {
    let cluster = wanted.cluster_size.unwrap_or(CLUSTER_SIZE);
    let table = wanted.table_size.unwrap_or(TABLE_SIZE);
    if !(4096..=67_108_864).contains(&cluster) || !cluster.is_power_of_two() {
        return Err("QED cluster size must be within range [4096, 67108864] and power of 2".into());
    }
    if !(1..=16).contains(&table) || !table.is_power_of_two() {
        return Err("QED table size must be within range [1, 16] and power of 2".into());
    }
    let entries = u128::from(table * cluster / 8);
    let limit = entries * entries * u128::from(cluster);
    if u128::from(size) > limit {
        return Err(format!(
            "QED image size must be a non-zero multiple of cluster size and less than {limit} bytes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_does_not_wrap() {
        let wanted = |cluster, table| Wanted {
            cluster_size: Some(cluster),
            table_size: Some(table),
            ..Wanted::default()
        };
        assert_eq!(validate_qed(&Wanted::default(), 1 << 46), Ok(()));
        assert!(validate_qed(&Wanted::default(), (1 << 46) + 512).unwrap_err().contains("70368744177664"));
        assert!(validate_qed(&wanted(4096, 1), 2 << 30).unwrap_err().contains("1073741824"));
        assert_eq!(validate_qed(&wanted(64 << 20, 16), i64::MAX as u64), Ok(()));
        assert!(validate_qed(&wanted(3000, 4), 0).is_err() && validate_qed(&wanted(4096, 3), 0).is_err());
    }
}
