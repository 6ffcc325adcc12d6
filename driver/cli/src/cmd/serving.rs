//! What `quod mount` and all protocols of `quod serve` are asked for: how images are opened, how the server
//! is watched and told what to do, when it ends.
//!
//! Knows: options. Must never know: who is served, and how.

use super::sandbox::{self, Needs};
use crate::interrupt;
use crate::out::{fail, note};
use crate::words::errno::words;
use crate::words::failure::could_not_open;
use crate::words::format;
use crate::words::holder::holders;
use crate::words::snapshot;
use quod::{Config, Error, ErrorKind, Format, Named, OpenGate, OpenOptions};
use quod_door::{Address, Control};
use std::fmt::Display;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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
    /// The disk as it was when this snapshot in the image was taken (qcow2), to be read: its ID or name, or
    /// snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "load-snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,
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
        let snapshot = self.snapshot.as_deref().map(snapshot::parse).transpose().map_err(fail)?;
        let mut folders = Vec::new();
        for folder in &self.allow_backing {
            match folder.canonicalize() {
                Ok(folder) => folders.push(folder),
                Err(error) => {
                    return Err(fail(format!("--allow-backing {}: {}", folder.display(), words(&error))));
                }
            }
        }
        let write = !self.read_only && snapshot.is_none();
        let options = OpenOptions::new().write(write).direct(self.direct).format(format);
        let options = options.snapshot(snapshot);
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
    /// When the images are open, give up what is not needed; 'require': end if not all of it can be
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t)]
    sandbox: Sandbox,
    /// Say what happens, on standard error; twice: more. QUOD_LOG has finer filters
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// What `--sandbox` may be.
#[derive(Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Sandbox {
    Off,
    #[default]
    On,
    Require,
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
        let timing = self.control.is_some() || !self.metrics.is_empty();
        config.timing(timing).restricted(self.wants_sandbox())
    }

    /// There is to be a sandbox.
    pub fn wants_sandbox(&self) -> bool {
        self.sandbox != Sandbox::Off
    }

    /// Gives up what is not needed any more: all images are open, sockets are at these addresses, and so much
    /// more is needed. `renew` replaces threads. What is not to be had is said once. Or the end of the
    /// command.
    pub fn confine<E: Display>(
        &self,
        needs: Needs,
        sockets: impl Iterator<Item = Address>,
        has_restricted_ring: bool,
        renew: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), ExitCode> {
        if !self.wants_sandbox() {
            return Ok(());
        }
        let own = self.control.iter().cloned().map(Address::Unix);
        let all = sockets.chain(own).chain(self.metrics.iter().cloned());
        let mut folders: Vec<PathBuf> = all.filter_map(|address| folder(&address)).collect();
        folders.sort_unstable();
        folders.dedup();
        let mut lacking = sandbox::confine(needs, &folders, renew).map_err(fail)?;
        if !has_restricted_ring {
            lacking.push("this kernel's io_uring cannot be restricted (Linux 6.1 can)".into());
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let text = format!("the sandbox is not whole: {}", lacking.join("; "));
        if self.sandbox == Sandbox::Require {
            return Err(fail(format!("{text} (--sandbox=on goes on without)")));
        }
        note(format!("{text} (--sandbox=off says nothing)"));
        Ok(())
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

/// The folder of a UNIX socket.
fn folder(address: &Address) -> Option<PathBuf> {
    let Address::Unix(path) = address else { return None };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).canonicalize().ok()
}

/// An image that could not be opened, in words; and who has it, if it is locked.
pub fn not_opened(path: &Path, error: &Error) -> ExitCode {
    let code = could_not_open(path, error);
    if let Error::File { path, kind: ErrorKind::Locked(_), .. } = error {
        for holder in holders(path) {
            note(format!("{}: locked by {holder}", path.display()));
        }
    }
    code
}

/// Why nobody can be listened for.
pub fn not_listening(address: &Address, error: &io::Error) -> String {
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
