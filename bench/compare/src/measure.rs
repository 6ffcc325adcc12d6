//! A process is run, and what it cost the host is taken: processor time, requests to the block device, bytes.
//!
//! Knows: processes, the kernel's counters. Must never know: engines, works.
//!
//! Invariant: one child at a time, or the processor time of children would be that of two.

use nix::sys::resource::{UsageWho, getrusage};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the block device has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Reads, writes, discards and flushes that it has completed.
    pub operations: u64,
    /// Bytes that it has read and written.
    pub bytes: u64,
}

/// The counters of the block device that a folder is on.
#[derive(Clone, Debug)]
pub struct Host {
    folder: PathBuf,
    counters: Option<PathBuf>,
}

impl Host {
    /// Of a folder.
    pub fn of(folder: &Path) -> io::Result<Host> {
        let device = folder.metadata()?.st_dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let counters = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        let counters = counters.exists().then_some(counters);
        Ok(Host { folder: folder.to_path_buf(), counters })
    }

    /// The counters now; `None` where the folder is on no block device.
    fn device(&self) -> Option<Device> {
        let text = std::fs::read_to_string(self.counters.as_ref()?).ok()?;
        let fields: Vec<u64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        let sectors = field(2) + field(6);
        // reads, writes, discards, flushes
        Some(Device { operations: field(0) + field(4) + field(11) + field(15), bytes: sectors * 512 })
    }

    /// Everything that was written is on the device.
    fn settle(&self) -> Result<(), String> {
        let folder = File::open(&self.folder).map_err(|error| error.to_string())?;
        nix::unistd::syncfs(folder).map_err(|error| error.to_string())
    }
}

/// What a process did.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    /// From the line that was waited for to its end, seconds.
    pub closing: f64,
    /// Processor time, user and system, of all its threads, seconds.
    pub cpu: f64,
    /// What the device did meanwhile.
    pub device: Option<Device>,
}

fn cpu() -> Result<Duration, String> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| error.to_string())?;
    let micros = |time: nix::sys::time::TimeVal| {
        u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0)
    };
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// Runs a process to its end. A line of stdout that begins with `mark` begins its closing.
pub fn run(words: &[String], mark: Option<&str>, host: &Host) -> Result<Ran, String> {
    host.settle()?;
    let (program, rest) = words.split_first().ok_or("no program")?;
    let (device, before) = (host.device(), cpu()?);
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("no pipe".to_owned());
    };
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // what cannot be read is not told
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (mut said, mut marked) = (String::new(), None);
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|error| format!("{program}: {error}"))?;
        if mark.is_some_and(|mark| line.starts_with(mark)) {
            marked = Some(Instant::now());
        }
        said += &line;
        said.push('\n');
    }
    let status = child.wait().map_err(|error| format!("{program}: {error}"))?;
    let closing = marked.map_or(0.0, |marked| marked.elapsed().as_secs_f64());
    let cpu = cpu()?.saturating_sub(before).as_secs_f64();
    let device = host.device().zip(device).map(|(after, before)| Device {
        operations: after.operations.saturating_sub(before.operations),
        bytes: after.bytes.saturating_sub(before.bytes),
    });
    let stderr = complaints.join().unwrap_or_default();
    if !status.success() {
        let first = stderr.lines().next().unwrap_or("it said nothing");
        return Err(format!("{program} failed: {first}"));
    }
    Ok(Ran { stdout: said, stderr, closing, cpu, device })
}
