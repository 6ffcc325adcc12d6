//! Opening a disk: one file after the other, from the image down its chain of backing files.
//!
//! Knows: the steps (open, stat, lock, the format's own opening), the gate, the chain's limits. Must never
//! know: what a header says, beyond the backing name.
//! Invariants: nothing waits; whatever fails, every file that was opened is closed before the failure is
//! delivered; a file named by an image is opened only if the gate allows it, and never twice in one chain.

use crate::buffers::Buffers;
use crate::config::OpenOptions;
use crate::disk::{Disk, Layer, LayerFile, Phase};
use crate::driver::Driver;
use crate::error::Error;
use crate::gate::plain_name;
use crate::port::{Flight, NO_IO, Target, Task};
use crate::request::{Completion, CompletionKind, DiskId, DiskInfo, LayerInfo};
use crate::stats::Stats;
use crate::translate::{Place, land_plain, plain};
use quod_backend::{Backend, Errno, FileId, LockMode, Op, OpenFlags, Output, Stat};
use quod_states::{Backing, Format, Machine, Opened, Opening, Path as Met};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// What an opening is waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Open,
    Stat,
    Lock,
    /// The length may have changed until we had the lock.
    StatAgain,
    Machine,
}

/// The opening of a disk; its layers so far stand in the disk.
pub(crate) struct Opener {
    options: OpenOptions,
    started: Duration,
    /// The file that is being opened.
    path: PathBuf,
    format: Option<Format>,
    step: Step,
    file: FileId,
    stat: Option<Stat>,
    machine: Option<Opening>,
    infos: Vec<LayerInfo>,
}

impl Opener {
    pub(crate) fn new(path: PathBuf, options: OpenOptions, started: Duration) -> Opener {
        let format = options.format;
        Opener {
            options,
            started,
            path,
            format,
            step: Step::Open,
            file: FileId(u32::MAX),
            stat: None,
            machine: None,
            infos: Vec::new(),
        }
    }
}

/// What goes on next.
enum Next {
    /// Wait for an operation.
    Wait,
    /// The format's machine starts.
    Machine,
}

impl<B: Backend> Driver<B> {
    /// Opens the opener's file.
    pub(crate) fn open_layer(&mut self, index: u32) {
        let depth = self.disks[index as usize].layers.len();
        let Some(opener) = opener(&mut self.disks[index as usize]) else { return };
        let Ok(path) = CString::new(opener.path.as_os_str().as_bytes()) else {
            let error = Error::io(&opener.path, "open", libc::EINVAL);
            return self.fail_open(index, error);
        };
        let options = &opener.options;
        let below = options.backing_direct.unwrap_or(options.direct);
        let direct = if depth == 0 { options.direct } else { below };
        let flags = OpenFlags { write: depth == 0 && options.write, direct };
        opener.step = Step::Open;
        self.step_op(index, Op::Open { path, flags });
    }

    fn step_op(&mut self, index: u32, op: Op) {
        let disk = &mut self.disks[index as usize];
        disk.flights += 1;
        let target = Target::Opener(disk.layers.len() as u16);
        self.port.send(Flight { disk: index, target, io: NO_IO, task: Task::Step }, op);
    }

    /// An operation of an opening came back.
    pub(crate) fn opener_landed(
        &mut self,
        index: u32,
        depth: u16,
        flight: Flight,
        result: Result<Output, Errno>,
    ) {
        let disk = &mut self.disks[index as usize];
        let current = disk.layers.len() == usize::from(depth);
        if let (Task::Step, Ok(Output::Opened(file))) = (&flight.task, result) {
            let path = opener(disk).map(|opener| opener.path.clone()).unwrap_or_default();
            disk.files.push((file, path));
        }
        match (opener(disk).filter(|_| current), flight.task) {
            (None, task) => self.port.discard(task),
            (Some(_), Task::Step) => match self.step(index, result) {
                Ok(Next::Wait) => {}
                Ok(Next::Machine) => self.pump_opening(index),
                Err(error) => self.fail_open(index, error),
            },
            (Some(opener), task) => {
                if let Some(machine) = &mut opener.machine {
                    land_plain(machine, &mut self.port.arena, flight.io, task, result);
                    self.pump_opening(index);
                } else {
                    self.port.discard(task);
                }
            }
        }
    }

    fn step(&mut self, index: u32, result: Result<Output, Errno>) -> Result<Next, Error> {
        let config = self.config;
        let disk = &mut self.disks[index as usize];
        let Phase::Opening(opener) = &mut disk.phase else { return Ok(Next::Wait) };
        let depth = disk.layers.len();
        let write = depth == 0 && opener.options.write;
        let output = result.map_err(|errno| step_error(opener, write, errno))?;
        match (opener.step, output) {
            (Step::Open, Output::Opened(file)) => {
                opener.file = file;
                opener.step = Step::Stat;
                self.step_op(index, Op::Stat { file });
                Ok(Next::Wait)
            }
            (Step::Stat, Output::Stat(stat)) => {
                if disk.layers.iter().any(|above| above.file.stat.identity == stat.identity) {
                    let image = disk.layers.last().map(|above| above.file.path.clone()).unwrap_or_default();
                    return Err(Error::BackingLoop { image, repeated: opener.path.clone() });
                }
                opener.stat = Some(stat);
                if !opener.options.lock {
                    opener.begin(depth, stat, &config);
                    return Ok(Next::Machine);
                }
                opener.step = Step::Lock;
                let mode = if write { LockMode::Write } else { LockMode::Read };
                let file = opener.file;
                self.step_op(index, Op::Lock { file, mode });
                Ok(Next::Wait)
            }
            (Step::Lock, _) => {
                opener.step = Step::StatAgain;
                let file = opener.file;
                self.step_op(index, Op::Stat { file });
                Ok(Next::Wait)
            }
            (Step::StatAgain, Output::Stat(stat)) => {
                opener.stat = Some(stat);
                opener.begin(depth, stat, &config);
                Ok(Next::Machine)
            }
            _ => Err(Error::io(&opener.path, "open", libc::EIO)),
        }
    }

    /// Drains the format's opening machine.
    fn pump_opening(&mut self, index: u32) {
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let (Some(machine), Some(stat)) = (&mut opener.machine, opener.stat) else { return };
        let file = LayerFile { id: opener.file, stat, path: PathBuf::new() };
        let target = Target::Opener(depth as u16);
        while let Some(io) = machine.poll_io() {
            match plain(machine, &mut self.port.arena, &file, opener.options.allocate_ahead, &io) {
                Some((task, op)) => {
                    disk.flights += 1;
                    self.port.send(Flight { disk: index, target, io: io.id, task }, op);
                }
                None => debug_assert!(false, "an opening has no guest bytes"),
            }
        }
        match machine.poll_result() {
            None => {}
            Some(Err(error)) => {
                let error = Error::from_core(&opener.path, &error);
                self.fail_open(index, error);
            }
            Some(Ok(opened)) => self.layer_opened(index, opened),
        }
    }

    /// One more layer is there: go on with its backing file, or the disk is open.
    fn layer_opened(&mut self, index: u32, opened: Opened) {
        let config = self.config;
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let Some(stat) = opener.stat else { return };
        opener.machine = None;
        let path = opener.path.clone();
        let options = opener.options.core(&config, depth, stat.offset_align);
        let file = LayerFile { id: opener.file, stat, path: path.clone() };
        let Opened { image, info, report } = opened;
        disk.layers.push(Layer::new(image, &info, file, &options, opener.options.allocate_ahead));
        let backing = info.backing.clone().filter(|_| opener.options.follow_backing);
        opener.infos.push(LayerInfo { path, format: info.format, info, report });
        match backing.map(|backing| opener.next(depth, backing)) {
            None => self.opened(index),
            Some(Ok(())) => self.open_layer(index),
            Some(Err(error)) => self.fail_open(index, error),
        }
    }

    /// The whole chain is there.
    fn opened(&mut self, index: u32) {
        let disk = &mut self.disks[index as usize];
        let id = disk.id(index);
        let Phase::Opening(opener) = std::mem::replace(&mut disk.phase, Phase::Open) else { return };
        let mut below = None;
        for layer in disk.layers.iter_mut().rev() {
            layer.image.set_backing_len(below);
            below = Some(layer.image.virtual_size());
        }
        let Opener { options, started, infos, .. } = *opener;
        disk.info = Some(DiskInfo {
            format: infos[0].format,
            virtual_size: disk.layers[0].image.virtual_size(),
            layers: infos,
        });
        disk.stats = Some(Box::new(Stats::new()));
        let layers = disk.layers.len() as u16;
        for layer in 0..layers {
            self.settle(Place { disk: index, layer });
        }
        let latency = self.now.saturating_sub(started);
        self.complete(completion(id, options.user, Ok(()), latency));
    }

    /// The opening failed: close what was opened, then say so.
    pub(crate) fn fail_open(&mut self, index: u32, error: Error) {
        let disk = &mut self.disks[index as usize];
        let id = disk.id(index);
        let Some(opener) = opener(disk) else { return };
        let latency = self.now.saturating_sub(opener.started);
        let completion = completion(id, opener.options.user, Err(error), latency);
        self.begin_close(index, completion);
    }
}

impl Opener {
    fn begin(&mut self, depth: usize, stat: Stat, config: &crate::config::Config) {
        let options = self.options.core(config, depth, stat.offset_align);
        self.step = Step::Machine;
        self.machine = Some(Opening::new(self.format, stat.len, options));
    }

    /// Sets out for the backing file that the layer at `depth` names.
    fn next(&mut self, depth: usize, backing: Backing) -> Result<(), Error> {
        let image = self.path.clone();
        let shown = String::from_utf8_lossy(&backing.name).into_owned();
        if depth + 1 >= self.options.max_depth as usize {
            return Err(Error::TooDeep { image, depth: self.options.max_depth });
        }
        let Some(name) = plain_name(&backing.name) else {
            let what = format!("backing file '{shown}' is not a file's name but a protocol's");
            return Err(Error::Unsupported { path: image, what });
        };
        match self.options.ask_gate(&image, name) {
            None => Err(Error::NotAllowed { image, backing: shown }),
            Some(path) => {
                self.path = path;
                self.format = backing.format;
                self.stat = None;
                Ok(())
            }
        }
    }
}

fn opener(disk: &mut Disk) -> Option<&mut Opener> {
    match &mut disk.phase {
        Phase::Opening(opener) => Some(opener),
        _ => None,
    }
}

fn step_error(opener: &Opener, write: bool, errno: Errno) -> Error {
    let op = match opener.step {
        Step::Open => "open",
        Step::Stat | Step::StatAgain => "examine",
        Step::Lock if errno.0 == libc::EAGAIN || errno.0 == libc::EACCES => {
            let lock = if write { "write" } else { "read" };
            return Error::Locked { path: opener.path.clone(), lock };
        }
        Step::Lock => "lock",
        Step::Machine => "read",
    };
    Error::io(&opener.path, op, errno.0)
}

fn completion(disk: DiskId, user: u64, result: Result<(), Error>, latency: Duration) -> Completion {
    Completion {
        disk,
        user,
        kind: CompletionKind::Opened,
        result,
        buffers: Buffers::None,
        path: Met::empty(),
        extent: None,
        latency,
    }
}
