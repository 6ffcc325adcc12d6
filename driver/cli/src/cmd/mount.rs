//! `quod mount`: the guest's disk of an image as one file, until it is unmounted or a signal ends it.
//!
//! Knows: options, the library's face. Must never know: FUSE, requests.

use super::sandbox::Needs;
use super::serving::{Managing, Opening, ended_by_signal, not_opened};
use crate::interrupt;
use crate::out::{fail, flush, note};
use crate::words::errno::words;
use crate::words::failure::warn_of_change;
use quod::{Config, Error};
use quod_mount::{Control, Mount, MountError, MountOptions, unmount_when_told};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

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
        Ok(code) => code,
        Err(MountError::Open(error)) => not_opened(&args.image, &error),
        Err(error @ (MountError::Close(_) | MountError::Driver(_))) => {
            fail(format_args!("{}: {error}", args.image.display()))
        }
        Err(error) => fail(error),
    }
}

fn mount(args: &Args, options: MountOptions, control: Option<Control>) -> Result<ExitCode, MountError> {
    let mut mount = Mount::new(&args.image, &args.place, options)?;
    if let Some(control) = control {
        mount.use_control(control)?;
    }
    mount.stop_when_readable(ended_by_signal().map_err(MountError::Wait)?)?;
    warn_of_change(&args.image, Some(mount.info()));
    if args.managing.wants_sandbox() {
        let helper = match helper(mount.place()) {
            Ok(helper) => helper,
            Err(error) => {
                let text = "the process that unmounts does not start (--sandbox=off needs none)";
                return Ok(fail(format_args!("{text}: {}", words(&error))));
            }
        };
        mount.unmount_through(helper)?;
        let restricted = mount.has_restricted_ring();
        let renew = || mount.is_confined();
        if let Err(code) = args.managing.confine(Needs::MOUNT, std::iter::empty(), restricted, renew) {
            return Ok(code);
        }
    }
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
    Ok(ExitCode::SUCCESS)
}

/// Starts the process that unmounts, because this one will not be able to. It ends when this one does, whose
/// child it is not any more then, and by no signal of a terminal's or a service's before.
fn helper(place: &Path) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    Command::new("/proc/self/exe")
        .arg0("quod")
        .arg(UNMOUNTER)
        .arg(place)
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(ours)
}

/// The name of the command that unmounts.
pub const UNMOUNTER: &str = "unmounter";

/// Unmount a file when a byte comes; 'quod mount' starts it for itself
#[derive(clap::Args)]
pub struct UnmounterArgs {
    place: PathBuf,
}

/// Runs the command that unmounts.
pub fn run_unmounter(args: &UnmounterArgs) -> ExitCode {
    interrupt::survive();
    match unmount_when_told(&args.place, io::stdin().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(format_args!("{}: {error}", args.place.display())),
    }
}
