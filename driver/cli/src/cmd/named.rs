//! Which image a command changes or reads: a file and its format, or `--image-opts`.
//!
//! Knows: both ways to name an image. Must never know: what is done with it.

use crate::words::failure::why_not_opened;
use crate::words::format;
use crate::words::nodes::is_description;
use crate::words::open::{Mode, file_named, image_options};
use quod::{AllowAll, OpenOptions};
use quod_tools as tools;
use std::path::{Path, PathBuf};

/// How an image is named.
#[derive(clap::Args)]
pub struct Naming {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The image is named by options: driver=qcow2,file.filename=...
    #[arg(long)]
    image_opts: bool,
    #[arg(long, hide = true, value_name = "OBJECT")]
    object: Vec<String>,
}

/// An image as it was named.
pub struct Image {
    /// Its file.
    pub path: PathBuf,
    /// How it is opened.
    pub mode: Mode,
    /// Of a failure to open it: the words that named it.
    name: String,
}

impl Naming {
    /// The image that these words name.
    pub fn image(&self, words: &Path) -> Result<Image, String> {
        if !self.object.is_empty() {
            return Err("--object: there are no objects (not supported)".into());
        }
        Image::named(words, self.format.as_deref(), self.image_opts)
    }

    /// A format was named, or options that may name one.
    pub fn says_format(&self) -> bool {
        self.format.is_some() || self.image_opts
    }
}

impl Image {
    /// The image that these words name: a file, or with `image_opts` options.
    pub fn named(words: &Path, format: Option<&str>, image_opts: bool) -> Result<Image, String> {
        if image_opts && format.is_some() {
            return Err("--image-opts and --format are mutually exclusive".into());
        }
        let name = words.display().to_string();
        let mut mode = Mode::default();
        let said = format.map(format::parse).transpose();
        let path = match image_opts {
            true => image_options(&name, None, &mut mode),
            false if is_description(words) => said.and_then(|format| {
                let file = image_options("", Some(words), &mut mode)?;
                mode.format = format.or(mode.format);
                Ok(file)
            }),
            false => said.map(|format| {
                mode.format = format;
                file_named(words)
            }),
        };
        let path = path.map_err(|why| format!("Could not open '{name}': {why}"))?;
        Ok(Image { path, mode, name })
    }

    /// It cannot be opened, and this is why.
    pub fn could_not(&self, why: &str) -> String {
        format!("Could not open '{}': {why}", self.name)
    }

    /// The same of the libraries' reasons.
    pub fn not_opened(&self, error: &quod::Error) -> String {
        self.could_not(&why_not_opened(&self.path, error))
    }

    /// How the library opens it, for reading.
    pub fn options(&self) -> Result<OpenOptions, String> {
        let mode = &self.mode;
        let mut options = OpenOptions::new()
            .format(mode.format)
            .direct(mode.direct)
            .lock(mode.takes_locks())
            .lock_data_file(mode.data_locked.filter(|_| !mode.force_share))
            .tolerate_writers(true)
            .no_backing(mode.no_backing)
            .open_gate(AllowAll);
        if mode.needs_facts() {
            let facts =
                tools::info(&self.path, mode.format, true).map_err(|error| self.not_opened(&error))?;
            let fitted = mode.fit(&facts).map_err(|why| self.could_not(&why))?;
            options = fitted.add_to(options);
        }
        Ok(mode.data_file.iter().fold(options, OpenOptions::data_file))
    }

    /// The same for writing, which its options may forbid.
    pub fn writable(&self) -> Result<OpenOptions, String> {
        if self.mode.force_share {
            return Err(self.could_not("force-share=on can only be used with read-only images"));
        }
        if self.mode.filters.compress {
            return Err(self.could_not("driver=compress has a meaning for 'quod io' alone"));
        }
        Ok(self.options()?.write(true))
    }
}
