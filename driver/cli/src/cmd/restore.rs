//! `quod restore`: metadata from a text of `quod dump` back into an image.
//!
//! Knows: the command line, the words of its answers. Must never know: what the text says.

use crate::interrupt;
use crate::out::{fail, note};
use crate::words::errno::words;
use crate::words::failure::could_not_open;
use quod::Error;
use quod_tools::{RestoreError, RestoreOptions};
use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

/// Put metadata back into an image, from a text that 'quod dump' has printed
///
/// Only what the text says otherwise than the image does is written, and only when all of the text makes
/// sense. What the text leaves out stays. 'quod dump' first: that text undoes it.
#[derive(clap::Args)]
pub struct Args {
    /// Also if the text is of another image: of another length, format, or disk
    #[arg(long)]
    force: bool,
    /// Write nothing, and print where something would be written
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The image
    file: PathBuf,
    /// The text ('-': standard input)
    #[arg(default_value = "-")]
    text: PathBuf,
}

fn told(at: u64, len: u64) {
    sayln!("{at:#x}: {len} byte{}", if len == 1 { "" } else { "s" });
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let mut text: Box<dyn BufRead> = if args.text.as_os_str() == "-" {
        Box::new(stdin().lock())
    } else {
        match File::open(&args.text) {
            Ok(file) => Box::new(BufReader::with_capacity(64 << 10, file)),
            Err(error) => {
                return fail(format!("Could not open '{}': {}", args.text.display(), words(&error)));
            }
        }
    };
    interrupt::watch();
    let options = RestoreOptions {
        force: args.force,
        dry_run: args.dry_run,
        stop: interrupt::asked,
        told: if args.dry_run && !args.quiet { told } else { |_, _| {} },
    };
    match quod_tools::restore(&args.file, &mut text, options) {
        Ok(done) => {
            if !args.quiet {
                let (bytes, places) = (done.bytes, done.places);
                let plural = |count| if count == 1 { "" } else { "s" };
                match (places, args.dry_run) {
                    (0, _) => sayln!("The image says all that the text says."),
                    (_, true) => sayln!(
                        "Would write {bytes} byte{} in {places} place{}.",
                        plural(bytes),
                        plural(places)
                    ),
                    (_, false) => {
                        sayln!("Wrote {bytes} byte{} in {places} place{}.", plural(bytes), plural(places))
                    }
                }
            }
            ExitCode::SUCCESS
        }
        Err(RestoreError::Image(Error::Cancelled)) => fail("interrupted: nothing was written"),
        Err(RestoreError::Image(error)) => could_not_open(&args.file, &error),
        Err(error @ RestoreError::Unfit(_)) => {
            note(format_args!("{error}"));
            fail("nothing was written; --force writes it nevertheless")
        }
        Err(error) => fail(format!("{error}; nothing was written")),
    }
}
