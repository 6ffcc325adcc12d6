//! Opening a disk: one file after the other, from the image down its chain of backing files, each with its
//! data file if it has one.
//!
//! Knows: the steps and their operations. Must never know: what a header says, which lock, gate or file comes
//! next (the opener says so).
//! Invariants: nothing waits; whatever fails, every file that was opened is closed before the failure is
//! delivered.

use super::Engine;
use super::translate::{land_plain, plain};
use crate::completion::{CompletionKind, Ended};
use crate::error::{Error, ErrorKind, FileOp, Lack};
use crate::info::{DiskInfo, LayerInfo};
use crate::layer::disk::{Disk, Phase};
use crate::layer::flight::{Flight, FlightTask, NO_IO, Place, Target};
use crate::layer::opener::{Next, OpenStep, Opener, is_conflict, step_error, stricter};
use crate::layer::{Layer, LayerFile};
use crate::request::DiskId;
use crate::stats::Stats;
use crate::transform::inflate::is_built_in;
use quod_backend::{Backend, Errno, LockMode, Op, OpenFlags, Output, Proven, Stat, Store};
use quod_states::qcow2::Compression;
use quod_states::{Format, Machine, Met, Opened};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

impl<B: Backend> Engine<B> {
    /// Opens the opener's file.
    pub(crate) fn open_layer(&mut self, index: u32) {
        let depth = self.disks[index as usize].layers.len();
        let Some(opener) = opener(&mut self.disks[index as usize]) else { return };
        let Ok(path) = CString::new(opener.path.as_os_str().as_bytes()) else {
            let error = opener.error(ErrorKind::Io { op: FileOp::Open, errno: libc::EINVAL });
            return self.fail_open(index, error);
        };
        let options = &opener.options;
        let below = options.backing_direct.unwrap_or(options.direct);
        let direct = if depth == 0 { options.direct } else { below };
        opener.proven = None;
        let write = depth == 0 && options.write;
        let flags = OpenFlags { write, direct, claim: write && opener.takes_lock() };
        (opener.lock, opener.shares) = opener.wanted_lock(depth);
        opener.refused = None;
        (opener.step, opener.direct) = (OpenStep::Open, direct);
        let op = match opener.given.take() {
            Some(fd) => Op::Adopt { fd, flags },
            None => Op::Open { path, flags },
        };
        self.step_op(index, op);
    }

    fn step_op(&mut self, index: u32, op: Op) {
        let disk = &mut self.disks[index as usize];
        disk.flights += 1;
        let target = Target::Opener(disk.layers.len() as u16);
        self.port.send(Flight { disk: index, target, io: NO_IO, task: FlightTask::Step }, op);
    }

    /// An operation of an opening came back.
    pub(super) fn opener_landed(
        &mut self,
        index: u32,
        depth: u16,
        flight: Flight,
        result: Result<Output, Errno>,
    ) {
        let disk = &mut self.disks[index as usize];
        let current = disk.layers.len() == usize::from(depth);
        if let (FlightTask::Step, Ok(Output::Opened(file))) = (&flight.task, result) {
            let path = opener(disk).map(|opener| opener.path.clone()).unwrap_or_default();
            disk.files.push((file, path));
        }
        match (opener(disk).filter(|_| current), flight.task) {
            (None, task) => self.port.discard(task),
            (Some(_), FlightTask::Step) => match self.step(index, result) {
                Ok(Next::Wait) => {}
                Ok(Next::Machine) => self.pump_opening(index),
                Ok(Next::Data(stat)) => self.data_opened(index, stat),
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
        let (config, now) = (self.config, self.time());
        let disk = &mut self.disks[index as usize];
        let Phase::Opening(opener) = &mut disk.phase else { return Ok(Next::Wait) };
        let depth = disk.layers.len();
        let output = match result {
            Ok(output) => output,
            Err(errno) if opener.step == OpenStep::Lock && is_conflict(errno) && opener.waits(now) => {
                match opener.retry {
                    Some(_) => self.earliest = [self.earliest, opener.retry].into_iter().flatten().min(),
                    None => self.ask_lock(index),
                }
                return Ok(Next::Wait);
            }
            // what could not be tried is not believed
            Err(_) if opener.step == OpenStep::Prove => Output::Done,
            Err(errno) => return Err(step_error(opener, errno)),
        };
        match (opener.step, output) {
            (OpenStep::Open, Output::Opened(file)) => {
                opener.file = file;
                opener.step = OpenStep::Stat;
                self.step_op(index, Op::Stat { file });
                Ok(Next::Wait)
            }
            (OpenStep::Stat, Output::Stat(stat)) => {
                opener.refuse_loop(&disk.layers, &stat)?;
                if !opener.takes_lock() {
                    return Ok(self.found(index, stat));
                }
                opener.stat = Some(stat);
                opener.step = OpenStep::Lock;
                self.ask_lock(index);
                Ok(Next::Wait)
            }
            (OpenStep::Lock, _) => {
                opener.step = OpenStep::StatAgain;
                let file = opener.file;
                self.step_op(index, Op::Stat { file });
                Ok(Next::Wait)
            }
            (OpenStep::StatAgain, Output::Stat(stat)) => Ok(self.found(index, stat)),
            (OpenStep::Prove, output) => {
                let Some(stat) = opener.stat else { return Ok(Next::Wait) };
                opener.proven = match output {
                    Output::Proven(proven) => Some(proven),
                    _ => None,
                };
                Ok(opener.ready(depth, stat, &config))
            }
            _ => Err(opener.error(ErrorKind::Io { op: FileOp::Open, errno: libc::EIO })),
        }
    }

    /// The file's length is known. If it may be written, and it is not known what its file system's answers
    /// are worth, that is found out, unless an open file there has told it already.
    fn found(&mut self, index: u32, mut stat: Stat) -> Next {
        let config = self.config;
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return Next::Wait };
        stat.offset_align = stat.offset_align.max(opener.options.align);
        opener.stat = Some(stat);
        let writes = depth == 0 && opener.options.write;
        if !writes || stat.store == Store::Known {
            return opener.ready(depth, stat, &config);
        }
        opener.step = OpenStep::Prove;
        let (file, direct) = (opener.file, opener.direct);
        let shown = self.shown(&stat, direct);
        self.step_op(index, Op::Prove { file, shown });
        Next::Wait
    }

    /// What the opening of a file on the same file system has shown. Only files that are open count: when the
    /// last is closed another file system may get the number.
    fn shown(&self, stat: &Stat, direct: bool) -> Option<Proven> {
        let layers = self.disks.iter().filter_map(|disk| disk.layers.first());
        let mut files = layers.flat_map(Layer::files);
        files
            .find(|f| f.stat.identity.0 == stat.identity.0 && f.direct == direct && f.proven.is_some())?
            .proven
    }

    fn ask_lock(&mut self, index: u32) {
        if let Some(opener) = opener(&mut self.disks[index as usize]) {
            opener.retry = None;
            let (file, mode) = (opener.file, opener.lock);
            self.step_op(index, Op::Lock { file, mode });
        }
    }

    /// Asks again for a lock that was refused, if it is time to.
    pub(super) fn retry_lock(&mut self, index: u32) {
        let now = self.now; // as `fire_timers` has asked
        if opener(&mut self.disks[index as usize]).is_some_and(|o| o.retry.is_some_and(|at| at <= now)) {
            self.ask_lock(index);
        }
    }

    /// Drains the format's opening machine.
    fn pump_opening(&mut self, index: u32) {
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let Some(stat) = opener.stat else { return };
        let file = opener.layer_file(stat, PathBuf::new());
        let Some(machine) = &mut opener.machine else { return };
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
        let result = machine.poll_result();
        let raw = matches!(&result, Some(Ok(opened)) if opened.info.format == Format::Raw);
        if result.is_some() && opener.lock == LockMode::Share && !raw {
            // another format: its tables are read while nobody writes them
            (opener.machine, opener.lock, opener.step) = (None, LockMode::Read, OpenStep::Lock);
            return self.ask_lock(index);
        }
        match result {
            None => {}
            Some(Err(error)) => {
                let error = Error::from_core(&opener.path, opener.role, &error);
                self.fail_open(index, error);
            }
            Some(Ok(opened)) => self.layer_opened(index, opened),
        }
    }

    /// A format's machine is done: the layer is there, or goes on with its data file.
    fn layer_opened(&mut self, index: u32, opened: Opened) {
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let Some(stat) = opener.stat else { return };
        opener.machine = None;
        // the format wants it refused now, whether or not a cluster is compressed; of deflate it does not
        if opened.info.compression == Compression::Zstd && !is_built_in(Compression::Zstd) {
            let error = opener.error(ErrorKind::Unsupported(Lack::Decoder(Compression::Zstd)));
            return self.fail_open(index, error);
        }
        let file = opener.layer_file(stat, opener.path.clone());
        match (&opened.info.data_file, opener.data.take()) {
            (Some(name), None) => {
                let next = opener.next_data(depth, name);
                opener.image = Some(Box::new((opened, file)));
                match next {
                    Ok(()) => self.open_layer(index),
                    Err(error) => self.fail_open(index, error),
                }
            }
            (name, data) => {
                let data = data.filter(|_| name.is_some());
                self.layer_complete(index, opened, file, data);
            }
        }
    }

    /// A data file was opened: back to its image.
    fn data_opened(&mut self, index: u32, stat: Stat) {
        let config = self.config;
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let Some(image) = opener.image.take() else { return };
        let (opened, file) = *image;
        let path = std::mem::replace(&mut opener.path, file.path.clone());
        let data = opener.layer_file(stat, path);
        (opener.file, opener.stat, opener.role) = (file.id, Some(file.stat), file.role);
        (opener.direct, opener.proven) = (file.direct, file.proven);
        if stat.offset_align <= file.stat.offset_align {
            return self.layer_complete(index, opened, file, Some(data));
        }
        // the machine must align its writes for both files, and knew only one: it opens the image once more
        opener.data = Some(data);
        opener.begin(depth, file.stat, &config);
        self.pump_opening(index);
    }

    /// One more layer is there: go on with its backing file, or the disk is open.
    fn layer_complete(&mut self, index: u32, opened: Opened, file: LayerFile, data: Option<LayerFile>) {
        let config = self.config;
        let disk = &mut self.disks[index as usize];
        let depth = disk.layers.len();
        let Phase::Opening(opener) = &mut disk.phase else { return };
        let options = opener.options.core(&config, depth, &file.stat, stricter(&file.stat, data.as_ref()));
        let path = file.path.clone();
        let data_file = data.as_ref().map(|data| data.path.clone());
        let Opened { image, info, report } = opened;
        let ahead = opener.options.allocate_ahead;
        let mut layer = Layer::new(image, &info, file, data, &options, ahead);
        layer.packs.method.near = opener.options.near_window;
        disk.layers.push(layer);
        let backing = info.backing.clone().filter(|_| opener.options.follow_backing);
        opener.infos.push(LayerInfo { path, data_file, info, report });
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
        disk.info = DiskInfo::of(infos);
        debug_assert_eq!(disk.info.as_ref().map(DiskInfo::virtual_size), below, "machine and header differ");
        disk.stats = Some(Box::new(Stats::new(self.config.timing)));
        let layers = disk.layers.len() as u16;
        for layer in 0..layers {
            self.settle(Place { disk: index, layer });
        }
        let latency = self.latency(started);
        self.complete(ended(id, options.user, Ok(()), latency));
    }

    fn latency(&self, started: Duration) -> Option<Duration> {
        self.config.timing.then(|| self.now.saturating_sub(started))
    }

    /// The opening failed: close what was opened, then say so.
    fn fail_open(&mut self, index: u32, error: Error) {
        let disk = &mut self.disks[index as usize];
        let id = disk.id(index);
        let Some(opener) = opener(disk) else { return };
        let (user, started) = (opener.options.user, opener.started);
        let ended = ended(id, user, Err(Box::new(error)), self.latency(started));
        self.begin_close(index, ended);
    }
}

fn opener(disk: &mut Disk) -> Option<&mut Opener> {
    match &mut disk.phase {
        Phase::Opening(opener) => Some(opener),
        _ => None,
    }
}

fn ended(disk: DiskId, user: u64, result: Result<(), Box<Error>>, latency: Option<Duration>) -> Ended {
    Ended { disk, user, kind: CompletionKind::Opened, result, met: Met::empty(), latency }
}
