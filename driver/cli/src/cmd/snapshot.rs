//! `quod snapshot`: snapshots in an image, with the words of `qemu-img snapshot`.
//!
//! Knows: the command line, QEMU's words. Must never know: how a snapshot is made.

use crate::interrupt;
use crate::out::{fail, note};
use crate::words::failure::{could_not_open, warn_about_probing, why_not_opened};
use crate::words::format;
use crate::words::qcow2;
use quod::fault::FormatLack;
use quod::{AllowAll, Error, ErrorKind, Format, Lack, OpenOptions, Request, SnapshotAsk};
use quod::{SnapshotSelector, describe};
use quod_tools::Session;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// QEMU shows so many bytes of a name, and finds no longer one.
const NAME_MAX: usize = 255;

/// List, make, apply or delete snapshots in an image
#[derive(clap::Args)]
pub struct Args {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// List the snapshots (the default)
    #[arg(short, long)]
    list: bool,
    /// Make a snapshot of this name
    #[arg(short, long, value_name = "SNAPSHOT")]
    create: Option<String>,
    /// The disk becomes what this one keeps: its ID or name
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Delete the snapshot of this name
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// List even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    files: Vec<PathBuf>,
    #[command(flatten)]
    refused: Lacks,
}

/// What qemu-img has and quod has not: refused by name.
#[derive(clap::Args)]
struct Lacks {
    #[arg(long, hide = true)]
    object: Option<String>,
    #[arg(long, hide = true)]
    image_opts: bool,
}

/// What is done, and the name that it is done by.
#[derive(Clone, Copy)]
enum Action<'a> {
    Create(&'a str),
    Apply(&'a str),
    Delete(&'a str),
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let actions: Vec<Action<'_>> = [
        args.create.as_deref().map(Action::Create),
        args.apply.as_deref().map(Action::Apply),
        args.delete.as_deref().map(Action::Delete),
    ]
    .into_iter()
    .flatten()
    .collect();
    if actions.len() + usize::from(args.list) > 1 {
        return fail("Cannot mix '-l', '-a', '-c', '-d'");
    }
    let [file] = args.files.as_slice() else { return fail("Expecting one image file name") };
    if args.refused.object.is_some() {
        return fail("--object: there are no objects (not supported)");
    }
    if args.refused.image_opts {
        return fail("--image-opts: the image is named by its file (not supported)");
    }
    let format = match args.format.as_deref().map(format::parse).transpose() {
        Ok(format) => format,
        Err(why) => return fail(format!("Could not open '{}': {why}", file.display())),
    };
    match actions.first() {
        None => list(file, format, args.force_share),
        Some(_) if args.force_share => {
            let why = "force-share=on can only be used with read-only images";
            fail(format!("Could not open '{}': {why}", file.display()))
        }
        Some(action) => {
            interrupt::watch();
            match change(file, format, *action) {
                Ok(()) => {
                    if interrupt::asked() {
                        note("interrupted: the snapshot is dealt with and the image closed cleanly");
                    }
                    ExitCode::SUCCESS
                }
                Err(text) => fail(text),
            }
        }
    }
}

fn list(file: &Path, format: Option<Format>, force_share: bool) -> ExitCode {
    match quod_tools::info(file, format, force_share) {
        Ok(image) => {
            let snapshots = image.qcow2.iter().flat_map(|facts| qcow2::snapshots(&facts.snapshots));
            snapshots.for_each(|line| sayln!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => could_not_open(file, &error),
    }
}

fn change(file: &Path, format: Option<Format>, action: Action<'_>) -> Result<(), String> {
    let could_not = |why: String| format!("Could not open '{}': {why}", file.display());
    let (verb, name, ask) = match action {
        Action::Create(name) => ("create", name, quod_tools::snapshot_now(name)),
        Action::Apply(name) => ("apply", name, SnapshotAsk::Apply(SnapshotSelector::IdOrName(name.into()))),
        Action::Delete(name) => ("delete", name, SnapshotAsk::Delete(SnapshotSelector::Name(name.into()))),
    };
    if matches!(action, Action::Create(_)) && name.len() > NAME_MAX {
        return Err(format!("Could not create snapshot '{name}': the name has more than {NAME_MAX} bytes"));
    }
    let options = OpenOptions::new().write(true).format(format).open_gate(AllowAll);
    let mut session =
        Session::open(file, options).map_err(|error| could_not(why_not_opened(file, &error)))?;
    if session.first_sector().is_some() {
        warn_about_probing(file);
    }
    let done = session.run(Request::snapshot(ask, 0)).map(drop);
    let done = done.map_err(|error| format!("Could not {verb} snapshot '{name}': {}", why(action, &error)));
    // what could not be done is closed as it was
    let closed = session.close().map_err(|error| error.to_string());
    done.and(closed)
}

/// Why it was not done, in QEMU's words where it has some.
fn why(action: Action<'_>, error: &Error) -> String {
    let errno = |number| match action {
        Action::Apply(_) => format!("Failed to load snapshot: {}", describe(number)),
        Action::Create(_) | Action::Delete(_) => describe(number),
    };
    match (error.kind(), action) {
        (Some(ErrorKind::NoSnapshot), Action::Delete(_)) => "snapshot not found".into(),
        (Some(ErrorKind::NoSnapshot), _) => errno(libc::ENOENT),
        (Some(ErrorKind::NoSpace), _) => errno(libc::ENOSPC),
        (Some(ErrorKind::Unsupported(Lack::Format(lack))), _) => match (lack, action) {
            // what has none has none that could be found
            (FormatLack::Snapshots(_) | FormatLack::SnapshotDataFile, Action::Delete(_)) => {
                "snapshot not found".into()
            }
            (FormatLack::Snapshots(_), Action::Apply(_)) => "Block driver does not support snapshots".into(),
            (FormatLack::Snapshots(_) | FormatLack::SnapshotDataFile, _) => errno(libc::ENOTSUP),
            (FormatLack::SnapshotBitmaps, _) => "Device has active dirty bitmaps".into(),
            (FormatLack::RefcountOverflow(bits), _) => {
                format!("{} (refcounts of {bits} bits cannot count so many)", errno(libc::EINVAL))
            }
            (FormatLack::TooManySnapshots, _) => errno(libc::EFBIG),
            _ => error.to_string(),
        },
        _ => error.to_string(),
    }
}
