//! One run of one engine on one work: the image, the process, and the figures that come of it.
//!
//! Knows: how each engine is called. Must never know: how many runs there are, how they are told.

use crate::engine::{Engine, Maker};
use crate::image::Images;
use crate::measure::{self, Host, Ran};
use crate::program::{fio, qemu};
use crate::setting::Start;
use crate::task::{Outcome, Tail, Task};
use crate::workload::{Work, Workload};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Memory for tables of the cold work, bytes.
const SMALL_CACHE: u64 = 1 << 20;
/// Requests of the two runs whose instructions are subtracted.
const COUNTED: (u64, u64) = (2000, 12_000);

/// What one run came to, for each request where that is what is told.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Seconds, the last flush included.
    pub seconds: f64,
    /// Percentiles, if they were asked for and the engine tells them.
    pub tail: Option<Tail>,
    /// Processor time a request, microseconds.
    pub cpu: f64,
    /// Operations of the device a request, and bytes.
    pub device: Option<(f64, f64)>,
    /// Space of the file afterwards, bytes.
    pub space: u64,
    /// Longest hold in the driver's own code, and in the kernel, microseconds.
    pub hold: Option<(f64, f64)>,
}

/// What a process costs that does next to nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Idle {
    cpu: f64,
    closing: f64,
}

/// Runs engines.
#[derive(Clone, Debug)]
pub struct Runner {
    images: Images,
    host: Host,
    /// This program, which is the child too.
    program: PathBuf,
}

/// How one run is done.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// The engine.
    pub engine: Engine,
    /// The work, and the image it begins with.
    pub workload: &'a Workload,
    /// Of qemu-img, who moves bytes.
    pub mover: &'a str,
    /// Record how long each request takes.
    pub latency: bool,
}

impl Runner {
    /// On images in a folder.
    pub fn new(images: Images, folder: &Path) -> Result<Runner, String> {
        let told = |error: std::io::Error| error.to_string();
        let program = std::env::current_exe().map_err(told)?;
        Ok(Runner { images, host: Host::of(folder).map_err(told)?, program })
    }

    /// The image of a run: a fresh copy if it is written.
    fn image(&self, how: &How<'_>) -> Result<PathBuf, String> {
        let (start, format) = (how.workload.start, how.engine.format);
        if how.workload.work.writes() {
            self.images.fresh(start, format)
        } else {
            self.images.original(start, format)
        }
    }

    fn words(&self, how: &How<'_>, work: Work, image: &Path) -> Result<Vec<String>, String> {
        let Engine { maker, format } = how.engine;
        let cache = (how.workload.start == Start::Cold).then_some(SMALL_CACHE);
        match (maker, work) {
            (Maker::Fio, Work::Load(load)) => {
                let len = image.metadata().map_err(|error| error.to_string())?.len();
                Ok(fio::command(&load, image, len, how.latency))
            }
            (Maker::Qemu, Work::Load(load)) => Ok(qemu::command(&load, image, format, how.mover, cache)),
            (Maker::Fio | Maker::Qemu, _) => Err("it has no such work".to_owned()),
            _ => {
                let image = image.to_path_buf();
                let task = Task { maker, image, format, work, cache, latency: how.latency };
                let task = serde_json::to_string(&task).map_err(|error| error.to_string())?;
                Ok(vec![self.program.display().to_string(), "child".to_owned(), task])
            }
        }
    }

    fn process(&self, how: &How<'_>, work: Work) -> Result<(Ran, Outcome, u64), String> {
        let image = self.image(how)?;
        let words = self.words(how, work, &image)?;
        let mark = (how.engine.maker == Maker::Qemu).then_some(qemu::COMPLETED);
        let ran = measure::run(&words, mark, &self.host)?;
        let outcome = match how.engine.maker {
            Maker::Qemu => {
                qemu::seconds(&ran.stdout).map(|seconds| Outcome { seconds, ..Outcome::default() })
            }
            Maker::Fio => fio::outcome(&ran.stdout),
            _ => serde_json::from_str(&ran.stdout).ok(),
        };
        let space = image.metadata().map_err(|error| error.to_string())?.blocks() * 512;
        Ok((ran, outcome.ok_or("its output was not understood")?, space))
    }

    /// What the process costs with one request.
    pub fn idle(&self, how: &How<'_>) -> Result<Idle, String> {
        let (ran, _, _) = self.process(how, how.workload.work.with_count(1))?;
        Ok(Idle { cpu: ran.cpu, closing: ran.closing })
    }

    /// One run.
    pub fn run(&self, how: &How<'_>, idle: &Idle) -> Result<Figures, String> {
        let work = how.workload.work;
        let (ran, outcome, space) = self.process(how, work)?;
        let count = work.count() as f64;
        // qemu-img flushes when it closes the image, behind the time that it tells
        let flushing = if work.writes() { (ran.closing - idle.closing).max(0.0) } else { 0.0 };
        Ok(Figures {
            seconds: outcome.seconds + flushing,
            tail: outcome.tail,
            cpu: (ran.cpu - idle.cpu).max(0.0) * 1e6 / count,
            device: ran.device.map(|done| (done.operations as f64 / count, done.bytes as f64 / count)),
            space,
            hold: outcome.hold_own.zip(outcome.hold_kernel),
        })
    }

    /// Instructions in user space a request, by callgrind: the difference of two runs.
    pub fn instructions(&self, how: &How<'_>) -> Result<f64, String> {
        let counted = |count: u64| -> Result<f64, String> {
            let image = self.image(how)?;
            let words = self.words(how, how.workload.work.with_count(count), &image)?;
            // stdbuf becomes qemu-img: the last one that tells is meant
            let grind = "valgrind --tool=callgrind --callgrind-out-file=/dev/null --trace-children=yes";
            let grind: Vec<String> = grind.split(' ').map(str::to_owned).collect();
            let words = [&grind[..], &words].concat();
            let ran = measure::run(&words, None, &self.host)?;
            let line = ran.stderr.lines().rev().find_map(|line| line.split_once("Collected : "));
            let (_, figure) = line.ok_or("callgrind told nothing")?;
            figure.trim().parse().map_err(|_| format!("callgrind said {figure}"))
        };
        let (few, many) = COUNTED;
        Ok((counted(many)? - counted(few)?) / (many - few) as f64)
    }
}
