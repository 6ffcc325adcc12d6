//! `quod resize`: another size for a guest disk, as `qemu-img resize` gives it.
//!
//! Knows: sizes as arguments, QEMU's words. Must never know: how a format grows or shrinks.

use super::named::Naming;
use crate::interrupt;
use crate::out::{fail, note, program};
use crate::words::failure::{resize_rule, warn_about_probing, warn_of_size};
use crate::words::sizes;
use crate::words::sizes::SizeError;
use quod::fault::FormatLack;
use quod::{Error, ErrorKind, Format, Lack, describe};
use quod_tools::{self as tools, Preallocation, Session};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Change the size of a guest disk
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    naming: Naming,
    /// The disk may lose its end
    #[arg(long)]
    shrink: bool,
    /// What the new end of the disk has from the start: off, metadata, falloc or full
    #[arg(long, value_name = "MODE", default_value = "off")]
    preallocation: String,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    file: Option<PathBuf>,
    /// The new size, or with a sign the difference (b k K M G T P E; 1024 based)
    #[arg(allow_hyphen_values = true)]
    size: Option<String>,
}

const NOT_POSITIVE: &str = "New image size must be positive";

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    interrupt::watch();
    match resize(&args) {
        Ok(()) => {
            if interrupt::asked() {
                note("interrupted: the image is resized and closed cleanly");
            }
            if !args.quiet {
                sayln!("Image resized.");
            }
            ExitCode::SUCCESS
        }
        Err(text) => fail(text),
    }
}

fn resize(args: &Args) -> Result<(), String> {
    let (Some(file), Some(size)) = (&args.file, &args.size) else {
        return Err("Expecting image file name and size".into());
    };
    match args.preallocation.as_str() {
        "off" | "metadata" | "falloc" | "full" => {}
        other => return Err(format!("Invalid preallocation mode '{other}'")),
    }
    let (relative, amount) = read_size(size)?;
    let image = args.naming.image(file)?;
    // where tables alone are wanted, data is a hole
    let ahead = mode(&args.preallocation) != Preallocation::Metadata;
    let options = image.writable()?.tolerate_writers(false).allocate_ahead(ahead);
    let file = &image.path;
    let mut session = Session::open(file, options).map_err(|error| image.not_opened(&error))?;
    if session.first_sector().is_some() {
        warn_about_probing(file);
    }
    let (format, old) = session
        .info()
        .map_or((Format::Raw, 0), |info| (info.format(), info.virtual_size().next_multiple_of(512)));
    let new = if relative { i128::from(old) + amount } else { amount };
    let new =
        u64::try_from(new).ok().filter(|new| (1..=i64::MAX as u64).contains(new)).ok_or(NOT_POSITIVE)?;
    let result = match refusal(args, format, old, new) {
        Some(text) => Err(text),
        None => {
            warn_of_size(file, session.info());
            session.resize(new).map_err(|error| why(format, &error)).and_then(|()| {
                let how = mode(&args.preallocation);
                let filled = tools::preallocate(&mut session, old, new, how, interrupt::asked);
                filled.map_err(|error| not_filled(file, &error))
            })
        }
    };
    // what could not be resized is closed as it was
    let closed = session.close().map_err(|error| error.to_string());
    result.and(closed)
}

/// The mode of this name, which was looked at before.
fn mode(name: &str) -> Preallocation {
    match name {
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => Preallocation::Off,
    }
}

/// The disk has its size, and not all of the space that it should.
fn not_filled(file: &Path, error: &Error) -> String {
    let (name, program) = (file.display(), program());
    let why = match error {
        Error::Cancelled => "interrupted".into(),
        error => format!("Could not preallocate: {}", describe(error.errno())),
    };
    format!("{why}\n{program}: '{name}' has its new size, and a part of the space")
}

/// Is it a difference? And the number.
fn read_size(text: &str) -> Result<(bool, i128), String> {
    let (relative, sign, digits) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(rest), _) => (true, 1, rest),
        (_, Some(rest)) => (true, -1, rest),
        _ => (false, 1, text),
    };
    match sizes::parse(digits) {
        Err(SizeError::OutOfRange) if !digits.starts_with('-') => Err(NOT_POSITIVE.into()),
        _ => sizes::option("size", digits).map(|amount| (relative, i128::from(amount) * sign)),
    }
}

/// What QEMU refuses before it asks the image.
fn refusal(args: &Args, format: Format, old: u64, new: u64) -> Option<String> {
    let mode = &args.preallocation;
    if mode != "off" && new <= old {
        return Some("Preallocation can only be used for growing images".into());
    }
    let known = match format {
        Format::Raw => mode != "metadata",
        Format::Qed => mode == "off",
        Format::Qcow2 => true,
    };
    if !known && format == Format::Raw {
        return Some(format!("Unsupported preallocation mode: {mode}"));
    }
    if !known {
        return Some(format!("Unsupported preallocation mode '{mode}'"));
    }
    if new < old && !args.shrink {
        return Some(format!(
            "Use the --shrink option to perform a shrink operation.\n{}: warning: Shrinking an image will \
             delete all data beyond the shrunken image's end. Before performing such an operation, make sure \
             there is no important data there.",
            program()
        ));
    }
    resize_rule(format, old, new).map(String::from)
}

fn why(format: Format, error: &Error) -> String {
    let file = |errno| format!("Could not resize file: {}", describe(errno));
    match error {
        Error::Misuse(_) if format == Format::Raw => file(libc::EFBIG),
        Error::Misuse(_) if format == Format::Qed => "Invalid image size specified".into(),
        Error::Misuse(what) => (*what).into(),
        Error::File { kind: ErrorKind::Device { errno, .. } | ErrorKind::Io { errno, .. }, .. }
        | Error::Backend { errno, .. } => file(*errno),
        Error::File { kind: ErrorKind::NoSpace, .. } => file(libc::ENOSPC),
        Error::File { kind: ErrorKind::Unsupported(Lack::Format(FormatLack::ResizeDevice(_))), .. } => {
            "Cannot resize device files".into()
        }
        other => other.to_string(),
    }
}
