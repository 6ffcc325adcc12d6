//! `quod mount`: the guest's disk of an image as one file, until it is unmounted or a signal ends it.
//!
//! Knows: options, the library's face. Must never know: FUSE, requests.

use super::serving::{Managing, Opening, ended_by_signal, not_opened};
use crate::interrupt;
use crate::out::{fail, flush, note};
use crate::words::failure::warn_of_change;
use quod::{Config, Error};
use quod_mount::{Control, Mount, MountError, MountOptions};
use std::path::PathBuf;
use std::process::ExitCode;

/// Errors of requests that are shown, at most: their clients are told of each.
const SHOWN: usize = 20;

/// Show the guest's disk of an image as one file, until it is unmounted or a signal ends it (SIGTERM, SIGINT)
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    managing: Managing,
    /// Other users may use the file, too
    #[arg(long)]
    allow_other: bool,
    /// The image
    image: PathBuf,
    /// A regular file that is there: the disk is seen in its place
    #[arg(value_name = "MOUNTPOINT-FILE")]
    place: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if let Err(code) = args.managing.log() {
        return code;
    }
    if args.managing.requires_sandbox() {
        return fail(
            "--sandbox=require: a mount gives up its ring alone: its end takes calls, files and programs",
        );
    }
    let options = match args.opening.options() {
        Ok(options) => MountOptions::new(options).allow_other(args.allow_other),
        Err(code) => return code,
    };
    let options = options.config(args.managing.config(Config::default()));
    let control = match args.managing.control() {
        Ok(control) => control,
        Err(code) => return code,
    };
    match mount(&args, options, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(MountError::Open(error)) => not_opened(&args.image, &error),
        Err(error @ (MountError::Close(_) | MountError::Driver(_))) => {
            fail(format_args!("{}: {error}", args.image.display()))
        }
        Err(error) => fail(error),
    }
}

fn mount(args: &Args, options: MountOptions, control: Option<Control>) -> Result<(), MountError> {
    let mut mount = Mount::new(&args.image, &args.place, options)?;
    if let Some(control) = control {
        mount.use_control(control)?;
    }
    mount.stop_when_readable(ended_by_signal().map_err(MountError::Wait)?)?;
    warn_of_change(&args.image, Some(mount.info()));
    sayln!("{} is at {}", args.image.display(), args.place.display());
    // whoever started the command waits for this line
    flush();
    let mut shown = 0;
    mount.run(&mut |error: &Error| {
        shown += 1;
        if shown <= SHOWN {
            note(error);
        }
    })?;
    interrupt::forget();
    Ok(())
}
