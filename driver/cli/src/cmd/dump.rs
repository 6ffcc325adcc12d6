//! `quod dump`: an image's metadata as text.
//!
//! Knows: the command line. Must never know: what the text says.

use crate::interrupt;
use crate::out::{self, Stream, fail, has_failed};
use crate::words::failure::could_not_open;
use crate::words::format;
use quod::Error;
use quod_tools::DumpError;
use std::io::BufWriter;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print an image's metadata as text: header, tables, refcounts, snapshots, bitmaps
///
/// What is wrong stands where it is, behind '# !'. The text is for people, for diff, and for 'quod restore'.
#[derive(clap::Args)]
pub struct Args {
    /// Format of the image: qed or qcow2 (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    file: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let format = match args.format.as_deref().map(format::parse).transpose() {
        Ok(format) => format,
        Err(why) => return fail(format!("Could not open '{}': {why}", args.file.display())),
    };
    let mut to = BufWriter::with_capacity(64 << 10, Stream);
    interrupt::watch();
    let stop = || interrupt::asked() || has_failed();
    let told = quod_tools::dump(&args.file, format, args.force_share, stop, &mut to);
    let written = to.flush();
    match told.and_then(|_| Ok(written?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(DumpError::Image(Error::Cancelled)) => ExitCode::FAILURE,
        Err(DumpError::Image(error)) => could_not_open(&args.file, &error),
        Err(DumpError::Raw) => fail("This image format has no metadata"),
        Err(DumpError::Text(error)) => {
            out::keep(Err(error));
            ExitCode::FAILURE
        }
    }
}
