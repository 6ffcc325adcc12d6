//! What `quod mount` and all protocols of `quod serve` are asked for: how images are opened, how the server
//! is watched and told what to do, when it ends.
//!
//! Knows: options. Must never know: who is served, and how.

use crate::interrupt;
use crate::out::fail;
use crate::words::errno::words;
use crate::words::format;
use quod::{Config, Format, Named, OpenGate, OpenOptions};
use quod_door::{Address, Control};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// How the server is looked at while it runs.
#[derive(clap::Args)]
pub struct Managing {
    /// Take requests (stats, quiesce, resume, resize, stop) at this UNIX socket, which is the owner's alone
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Give metrics for Prometheus at this TCP address (ADDR:PORT) or UNIX socket; may be given again
    #[arg(long, value_name = "ADDR|PATH")]
    metrics: Vec<Address>,
    /// Say what happens, on standard error; twice: more. QUOD_LOG has finer filters
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl Managing {
    /// Messages go to standard error from now on; or the end of the command.
    pub fn log(&self) -> Result<(), ExitCode> {
        let level = [LevelFilter::ERROR, LevelFilter::INFO, LevelFilter::DEBUG];
        let level = level.get(usize::from(self.verbose)).copied().unwrap_or(LevelFilter::TRACE);
        let named =
            ["QUOD_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
        let filter = match named {
            None => Targets::new().with_default(level),
            Some((name, text)) => match text.parse::<Targets>() {
                Ok(filter) => filter,
                Err(error) => return Err(fail(format!("{name}: '{text}' is no filter: {error}"))),
            },
        };
        let lines =
            tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false);
        tracing_subscriber::registry().with(lines).with(filter).init();
        Ok(())
    }

    /// The driver's settings: times of requests are taken if somebody may ask for them.
    pub fn config(&self, config: Config) -> Config {
        config.timing(self.control.is_some() || !self.metrics.is_empty())
    }

    /// What listens for questions, if that is wanted; or the end of the command.
    pub fn control(&self) -> Result<Option<Control>, ExitCode> {
        if self.control.is_none() && self.metrics.is_empty() {
            return Ok(None);
        }
        let mut control = Control::new();
        if let Some(path) = &self.control {
            let address = Address::Unix(path.clone());
            control.listen(path).map_err(|error| fail(not_listening(&address, &error)))?;
        }
        for address in &self.metrics {
            control.listen_metrics(address).map_err(|error| fail(not_listening(address, &error)))?;
        }
        Ok(Some(control))
    }
}

/// Why nobody can be listened for.
fn not_listening(address: &Address, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("{address}: another server listens there already"),
        _ => format!("cannot listen at {address}: {}", words(error)),
    }
}

/// What is readable as soon as somebody asks for the command's end. The second signal ends it at once.
pub fn ended_by_signal() -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    interrupt::tell(&writer)?;
    // the handlers have descriptors of their own
    Ok(reader)
}
