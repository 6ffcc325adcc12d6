//! What an overlay has, written to an image below it, as `qemu-img commit` does it: many pieces in flight.
//!
//! Each image above the target is opened alone, without what is below it: what it does not have is the
//! target's already.
//!
//! Knows: layers, pieces. Must never know: which images make a chain, how it is said.
//!
//! Invariants:
//! * the overlay changes only when all that it has is durable in the target: it is emptied last;
//! * until then the disk reads as before through the overlay, however far it came;
//! * [`DEPTH`] pieces at most, whose buffers take [`DEPTH`] * [`PIECE`] bytes (16 MiB) at most.

use crate::disks::Disks;
use crate::first_sector::FirstSector;
use crate::pace::Pace;
use quod::{
    Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Error, Format, OpenOptions, Request, Status,
};
use std::path::Path;

/// Bytes of a piece at most.
const PIECE: u64 = 512 << 10;
/// Pieces in flight at most.
const DEPTH: usize = 32;
/// Bytes that are zeroed by one request at most, so that an end is not waited for too long.
const ZERO_AT_ONCE: u64 = 256 << 20;

/// How an overlay is merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergePlan {
    /// The overlay holds nothing afterwards, if its format can.
    pub empty: bool,
    /// Bytes a second at most; 0: no bound.
    pub rate: u64,
}

/// Why an overlay was not merged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MergeError {
    /// This image of those that were named, the target last, could not be opened: nothing was written.
    Open(usize, Error),
    /// The target could not get the size of the overlay's disk.
    Grow(Error),
    /// What an image has could not be read, from this byte of the disk on.
    Read(u64, Error),
    /// The target could not be written, or made durable.
    Write(Error),
    /// All is in the target, durably; the overlay could not be emptied.
    Empty(Error),
    /// All is done; an image could not be closed.
    Close(Error),
    /// Somebody asked for an end.
    Stopped,
    /// The driver failed.
    Driver(Error),
}

struct Layer {
    disk: DiskId,
    size: u64,
}

/// What is known of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// This layer has it.
    Data(usize),
    /// It reads as zeros, whatever the target says.
    Zero,
    /// It is the target's already.
    Below,
}

/// Writes what `layers` have, the overlay first, to `target`, which the last of them is over. `stop` is asked
/// between two requests; `told` hears how many bytes more are done, of how many.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{CreateOptions, MergePlan, Session, create, merge};
/// # let folder = tempfile::tempdir()?;
/// # let (base, top) = (folder.path().join("base"), folder.path().join("top"));
/// create(&base, &CreateOptions::new(Format::Qcow2, 1 << 20))?;
/// let mut options = CreateOptions::new(Format::Qcow2, 1 << 20);
/// options.backing = Some(("base".into(), Some(Format::Qcow2)));
/// create(&top, &options)?;
/// let mut session = Session::open(&top, OpenOptions::new().write(true).open_gate(quod::AllowAll))?;
/// session.write(70_000, b"merged")?;
/// session.close()?;
/// let plan = MergePlan { empty: true, rate: 0 };
/// let images = [(top.as_path(), OpenOptions::new())];
/// merge(&images, (&base, OpenOptions::new()), plan, || false, &mut |_, _| {}).unwrap();
/// let mut bytes = [0; 6];
/// Session::open(&base, OpenOptions::new())?.read(70_000, &mut bytes)?;
/// assert_eq!(&bytes, b"merged");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`MergeError`]; all images are closed in order all the same.
pub fn merge(
    layers: &[(&Path, OpenOptions)],
    target: (&Path, OpenOptions),
    plan: MergePlan,
    stop: fn() -> bool,
    told: &mut dyn FnMut(u64, u64),
) -> Result<(), MergeError> {
    let mut disks = Disks::new(Config::default().requests(1024)).map_err(MergeError::Driver)?;
    let (path, options) = target;
    let guess = options.clone().write(true).probes_for_writing();
    let base = disks.open(path, options.write(true));
    let base = base.map_err(|error| MergeError::Open(layers.len(), error))?;
    let mut open = Vec::new();
    for (index, (path, options)) in layers.iter().enumerate() {
        let options = options.clone().no_backing(true).write(index == 0 && plan.empty);
        let disk = disks.open(path, options).map_err(|error| MergeError::Open(index, error))?;
        open.push(Layer { disk, size: disks.size(disk) });
    }
    let all = open.first().map_or(0, |top| top.size);
    let pace = Pace::new(plan.rate);
    let mut merge = Merge {
        disks,
        layers: open,
        base,
        first: None,
        pace,
        at: 0,
        all,
        flying: 0,
        free: Vec::new(),
        stop,
        told,
    };
    let merged = merge.run(path, guess, plan.empty);
    let mut closed = Ok(());
    for disk in merge.layers.iter().map(|layer| layer.disk).chain([base]) {
        closed = closed.and(merge.disks.close(disk));
    }
    merged?;
    closed.map_err(MergeError::Close)
}

struct Merge<'a> {
    disks: Disks,
    layers: Vec<Layer>,
    base: DiskId,
    /// Of a target that was guessed to be raw.
    first: Option<FirstSector>,
    pace: Pace,
    /// What lies before is done, or on its way.
    at: u64,
    all: u64,
    /// Pieces on their way.
    flying: usize,
    free: Vec<Buffer>,
    stop: fn() -> bool,
    told: &'a mut dyn FnMut(u64, u64),
}

impl Merge<'_> {
    fn run(&mut self, target: &Path, guess: bool, empty: bool) -> Result<(), MergeError> {
        (self.told)(0, self.all);
        if guess && self.disks.format(self.base) == Some(Format::Raw) {
            let len = self.disks.size(self.base).min(512) as usize;
            let read = self.disks.run(self.base, Request::read(0, Buffer::zeroed(len), 0));
            let done = read.map_err(|error| MergeError::Read(0, error))?;
            let bytes = done.kind.buffers().map(Buffers::to_vec).unwrap_or_default();
            self.first = Some(FirstSector::new(target, &bytes));
        }
        if self.disks.size(self.base) < self.all {
            let grown = self.disks.run(self.base, Request::resize(self.all, 0));
            grown.map_err(MergeError::Grow)?;
        }
        let copied = self.copy();
        // what is on its way ends before anything is closed
        while self.flying > 0 {
            let done = self.disks.next().map_err(MergeError::Driver)?;
            self.flying -= 1;
            drop(done);
        }
        copied?;
        // the overlay is all that has it until then
        self.disks.run(self.base, Request::flush(0)).map_err(MergeError::Write)?;
        if empty && let Some(top) = self.layers.first() {
            self.disks.run(top.disk, Request::empty(0)).map_err(MergeError::Empty)?;
        }
        Ok(())
    }

    fn copy(&mut self) -> Result<(), MergeError> {
        while self.at < self.all || self.flying > 0 {
            if (self.stop)() {
                return Err(MergeError::Stopped);
            }
            while self.at < self.all && self.flying < DEPTH {
                self.begin()?;
            }
            if self.flying > 0 {
                let done = self.disks.next().map_err(MergeError::Driver)?;
                self.arrive(done)?;
            }
        }
        Ok(())
    }

    /// What the next byte is, and up to where that is so.
    fn kind(&mut self, at: u64) -> Result<(Kind, u64), MergeError> {
        let mut end = self.all;
        for index in 0..self.layers.len() {
            let Layer { disk, size } = self.layers[index];
            // behind its end an image reads as zeros, and hides what is below
            if at >= size {
                return Ok((Kind::Zero, end));
            }
            end = end.min(size);
            let found = self.disks.run(disk, Request::map(0, at, end - at, 0));
            let extent = found.and_then(|done| done.kind.extent().ok_or(Error::Misuse("map gave no extent")));
            let extent = extent.map_err(|error| MergeError::Read(at, error))?;
            end = end.min(at + extent.len);
            match extent.status {
                Status::Data | Status::Compressed => return Ok((Kind::Data(index), end)),
                Status::Zero => return Ok((Kind::Zero, end)),
                Status::Unallocated => {}
            }
        }
        Ok((Kind::Below, end))
    }

    /// Begins with the next piece.
    fn begin(&mut self) -> Result<(), MergeError> {
        let at = self.at;
        let (kind, end) = self.kind(at)?;
        let most = match kind {
            Kind::Below => end,
            Kind::Zero => end.min(at + ZERO_AT_ONCE),
            Kind::Data(_) => end.min(at - at % PIECE + PIECE),
        };
        let len = most - at;
        match kind {
            Kind::Below => (self.told)(len, self.all),
            Kind::Zero => {
                self.write(Request::write_zeroes(at, len, at).may_unmap())?;
                (self.told)(len, self.all);
            }
            Kind::Data(index) => {
                let buffer = self.free.pop().unwrap_or_else(|| Buffer::zeroed(PIECE as usize));
                let request = Request::read(at, Buffers::Front(buffer, len as usize), at);
                let disk = self.layers[index].disk;
                self.disks.submit(disk, request).map_err(|error| MergeError::Read(at, error))?;
            }
        }
        self.flying += usize::from(kind != Kind::Below);
        self.at = most;
        Ok(())
    }

    fn write(&mut self, request: Request) -> Result<(), MergeError> {
        if let Some(first) = &mut self.first {
            first.admit(&request).map_err(MergeError::Write)?;
        }
        self.disks.submit(self.base, request).map_err(MergeError::Write)
    }

    /// Takes what has ended: a piece that was read is written.
    fn arrive(&mut self, done: Completion) -> Result<(), MergeError> {
        self.flying -= 1;
        let at = done.user;
        if let Err(error) = done.result {
            let read = matches!(done.kind, CompletionKind::Read(_));
            return Err(if read { MergeError::Read(at, error) } else { MergeError::Write(error) });
        }
        match done.kind {
            CompletionKind::Read(buffers) => {
                if !self.pace.pass(buffers.len(), self.stop) {
                    return Err(MergeError::Stopped);
                }
                self.flying += 1;
                self.write(Request::write(at, buffers, at)).inspect_err(|_| self.flying -= 1)
            }
            CompletionKind::Write(buffers) => {
                (self.told)(buffers.len(), self.all);
                self.free.extend(buffers.into_owned());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
