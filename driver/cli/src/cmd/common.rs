//! What the subcommands that only ask about an image have in common: which image, and how to answer.
//!
//! Knows: their options. Must never know: what is asked.

use crate::out::fail;
use crate::words::failure::could_not_open;
use crate::words::format::{self, Output};
use quod::{Error, Format};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where help lists an option behind how to answer.
pub const BEHIND_OUTPUT: usize = 101;
/// Where help lists an option behind all of these.
pub const LAST: usize = 103;

/// Options of `info`, `map` and `check`. Help lists a subcommand's own options behind the format.
#[derive(clap::Args)]
pub struct Asked {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT", display_order = 0)]
    pub format: Option<String>,
    /// How to answer
    #[arg(long, value_enum, value_name = "OFMT", default_value_t, display_order = 100)]
    pub output: Output,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long, display_order = 102)]
    pub force_share: bool,
    /// The image
    pub file: PathBuf,
}

impl Asked {
    /// The format that was named, if one was; or the end of the command.
    pub fn format(&self) -> Result<Option<Format>, ExitCode> {
        self.format.as_deref().map(format::parse).transpose().map_err(|text| self.cannot_open(&text))
    }

    /// Ends the command: the image cannot be opened, and this is why.
    pub fn cannot_open(&self, why: &str) -> ExitCode {
        fail(format!("Could not open '{}': {why}", self.file.display()))
    }

    /// The same of the libraries' reasons.
    pub fn not_opened(&self, error: &Error) -> ExitCode {
        could_not_open(&self.file, error)
    }
}
