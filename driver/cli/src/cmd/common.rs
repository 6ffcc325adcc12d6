//! What the subcommands that only ask about an image have in common: which image, and how to answer.
//!
//! Knows: their options. Must never know: what is asked.

use crate::out::fail;
use crate::words::failure::could_not_open;
use crate::words::format::{self, Output};
use crate::words::nodes::is_description;
use crate::words::open::{Mode, file_named, image_options};
use quod::{Error, Format};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where help lists an option behind how to answer.
pub const BEHIND_OUTPUT: usize = 101;
/// Where help lists an option behind all of these.
pub const LAST: usize = 104;

/// Options of `info`, `map` and `check`. Help lists a subcommand's own options behind the format.
#[derive(clap::Args)]
pub struct Asked {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT", display_order = 0)]
    format: Option<String>,
    /// How to answer
    #[arg(long, value_enum, value_name = "OFMT", default_value_t, display_order = 100)]
    pub output: Output,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long, display_order = 102)]
    pub force_share: bool,
    /// The image is named by options: driver=qcow2,file.filename=...
    #[arg(long, display_order = 103)]
    image_opts: bool,
    #[arg(long, hide = true, value_name = "OBJECT")]
    object: Vec<String>,
    /// The image
    pub file: PathBuf,
}

impl Asked {
    /// The format that was named, if one was; or the end of the command. From now on `file` is the file.
    pub fn format(&mut self) -> Result<Option<Format>, ExitCode> {
        if !self.object.is_empty() {
            return Err(fail("--object: there are no objects (not supported)"));
        }
        let described = !self.image_opts && is_description(&self.file);
        if !self.image_opts && !described {
            self.file = file_named(&self.file);
            return self
                .format
                .as_deref()
                .map(format::parse)
                .transpose()
                .map_err(|text| self.cannot_open(&text));
        }
        if self.image_opts && self.format.is_some() {
            return Err(fail("--image-opts and --format are mutually exclusive"));
        }
        let mut mode = Mode::default();
        let text = if described { String::new() } else { self.file.display().to_string() };
        let word = self.file.clone();
        let named = image_options(&text, described.then_some(&*word), &mut mode).and_then(|file| {
            match (&mode.data_file, &mode.unknown, &mode.runtime.0) {
                (None, None, None) => Ok(file),
                (Some(_), ..) => Err("data-file.filename is not supported here".into()),
                (_, Some(name), _) | (_, _, Some(name)) => Err(format!("{name} is not supported here")),
            }
        });
        self.file = named.map_err(|text| self.cannot_open(&text))?;
        self.force_share |= mode.force_share || mode.unlocked;
        let named =
            self.format.as_deref().map(format::parse).transpose().map_err(|text| self.cannot_open(&text))?;
        Ok(named.or(mode.format))
    }

    /// A format was named, or options that may name one.
    pub fn says_format(&self) -> bool {
        self.format.is_some() || self.image_opts
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
