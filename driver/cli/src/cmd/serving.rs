//! What `quod mount` and all protocols of `quod serve` are asked for: how images are opened, when it ends.
//!
//! Knows: options. Must never know: who is served, and how.

use crate::interrupt;
use crate::out::fail;
use crate::words::errno::words;
use crate::words::format;
use quod::{Format, Named, OpenGate, OpenOptions};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

/// How images are opened.
#[derive(clap::Args)]
pub struct Opening {
    /// Format of the images (default: probe; a raw one that may be written must be named)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Nobody may write
    #[arg(short, long)]
    read_only: bool,
    /// Past the page cache (O_DIRECT)
    #[arg(long)]
    direct: bool,
    /// Backing and data files may be opened if they lie in this folder, or below it; may be given again
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,
}

impl Opening {
    /// How to open an image; or the end of the command.
    pub fn options(&self) -> Result<OpenOptions, ExitCode> {
        let format: Option<Format> = self.format.as_deref().map(format::parse).transpose().map_err(fail)?;
        let mut folders = Vec::new();
        for folder in &self.allow_backing {
            match folder.canonicalize() {
                Ok(folder) => folders.push(folder),
                Err(error) => {
                    return Err(fail(format!("--allow-backing {}: {}", folder.display(), words(&error))));
                }
            }
        }
        let options = OpenOptions::new().write(!self.read_only).direct(self.direct).format(format);
        Ok(if folders.is_empty() { options } else { options.open_gate(Folders(folders)) })
    }
}

/// A gate that allows files in some folders, wherever a symbolic link says that they are.
struct Folders(Vec<PathBuf>);

impl OpenGate for Folders {
    fn allow(&mut self, named: &Named<'_>) -> Option<PathBuf> {
        // images are opened before anybody is served, so that nobody waits for this
        let path: PathBuf = named.path()?.canonicalize().ok()?;
        let inside = |folder: &PathBuf| path.starts_with(folder);
        self.0.iter().any(inside).then_some(path)
    }
}

/// What is readable as soon as somebody asks for the command's end. The second signal ends it at once.
pub fn ended_by_signal() -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    interrupt::tell(&writer)?;
    // the handlers have descriptors of their own
    Ok(reader)
}
