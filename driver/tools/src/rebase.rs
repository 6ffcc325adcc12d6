//! An image gets what would change under it, so that another backing file shows the same disk, as `qemu-img
//! rebase` does it. What the image has itself is not looked at, nor what both chains have from one file.
//!
//! Knows: both chains, pieces. Must never know: headers (`backing.rs`), how it is said.
//!
//! Invariants:
//! * the disk reads as before through the old backing file at each moment: only what reads so is written;
//! * what was written is durable when this ends well;
//! * [`DEPTH`] pieces at most, fewer if they are long: buffers take 2 * [`DEPTH`] * [`PIECE`] bytes (16 MiB)
//!   at most.

use crate::bytes::is_zero;
use crate::chain::{FileOf, file_of};
use crate::disks::{Disks, Walk};
use crate::layers::MapRun;
use quod::{
    Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Error, Format, OpenOptions, Request,
};
use std::path::Path;

/// Bytes of a piece at most.
const PIECE: u64 = 512 << 10;
/// Pieces in flight at most.
const DEPTH: usize = 16;
/// Larger clusters are compared, and written, in parts: the image copies the rest from the old chain.
const UNIT_MAX: u64 = 2 << 20;

/// How an image gets what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RebasePlan {
    /// Its clusters are written compressed: of a qcow2 image without a data file.
    pub compress: bool,
}

/// Why an image did not get what it needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RebaseError {
    /// The image, or one below it, could not be opened: nothing was written.
    Open(Error),
    /// The new backing file could not be opened: nothing was written.
    OpenNew(Error),
    /// The new backing file is over the image itself: nothing was written.
    Loop,
    /// A range could not be read, from this byte on: of the new backing file's chain, or of the old one.
    Read(bool, u64, Error),
    /// The image could not be written, made durable or closed.
    Write(Error),
    /// Somebody asked for an end.
    Stopped,
    /// The driver failed.
    Driver(Error),
}

/// Gives an image all that would read otherwise over the new backing file, or over none; what its header
/// names stays. `stop` is asked between two requests; `told` hears how many bytes more are done, of how many.
///
/// ```
/// use quod::{AllowAll, Format, OpenOptions};
/// use quod_tools::{CreateOptions, RebasePlan, Session, create, rebase, set_backing};
/// # let folder = tempfile::tempdir()?;
/// # let (base, top) = (folder.path().join("base"), folder.path().join("top"));
/// create(&base, &CreateOptions::new(Format::Qcow2, 1 << 20))?;
/// let mut session = Session::open(&base, OpenOptions::new().write(true))?;
/// session.write(70_000, b"below")?;
/// session.close()?;
/// let mut options = CreateOptions::new(Format::Qcow2, 1 << 20);
/// options.backing = Some(("base".into(), Some(Format::Qcow2)));
/// create(&top, &options)?;
/// let image = (top.as_path(), OpenOptions::new().open_gate(AllowAll));
/// rebase(image, None, RebasePlan::default(), || false, &mut |_, _| {}).unwrap();
/// set_backing(&top, None)?;
/// let mut bytes = [0; 5];
/// Session::open(&top, OpenOptions::new())?.read(70_000, &mut bytes)?;
/// assert_eq!(&bytes, b"below");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`RebaseError`]; the image is closed in order all the same, and its disk reads as before.
pub fn rebase(
    image: (&Path, OpenOptions),
    new: Option<(&Path, OpenOptions)>,
    plan: RebasePlan,
    stop: fn() -> bool,
    told: &mut dyn FnMut(u64, u64),
) -> Result<(), RebaseError> {
    let mut disks = Disks::new(Config::default().requests(1024)).map_err(RebaseError::Driver)?;
    let disk = disks.open(image.0, image.1.write(true)).map_err(RebaseError::Open)?;
    let old = Walk::new(&disks, disk).map_err(RebaseError::Driver)?;
    let mut below = None;
    if let Some((path, options)) = new {
        let disk = disks.open(path, options).map_err(RebaseError::OpenNew)?;
        let walk = Walk::new(&disks, disk).map_err(RebaseError::Driver)?;
        let over_itself = walk.layers().any(|layer| file_of(&layer.path) == file_of(image.0));
        if over_itself {
            return Err(RebaseError::Loop);
        }
        below = Some(New { disk, files: files_of(&walk), len: disks.size(disk), walk });
    }
    let top = old.layers().next().map(|layer| layer.info.clone());
    let (unit, flags) = top.map_or((512, false), |info| {
        // what is compressed is a whole cluster
        let unit = if plan.compress { info.cluster_size } else { info.unit };
        (u64::from(unit).clamp(512, UNIT_MAX), info.format == Format::Qcow2 && info.version >= 3)
    });
    let (size, files) = (disks.size(disk), files_of(&old));
    let mut work = Work {
        disks,
        disk,
        old,
        old_files: files,
        new: below,
        unit,
        flags,
        compress: plan.compress,
        at: 0,
        size,
        slots: Vec::new(),
        free: Vec::new(),
        flying: 0,
        stop,
        told,
    };
    work.slots.resize_with((DEPTH as u64 * PIECE / PIECE.max(unit)) as usize, || None);
    let copied = work.run();
    let flushed = match copied.is_ok() {
        true => work.disks.run(disk, Request::flush(0)).map(drop),
        false => Ok(()),
    };
    let mut closed = work.disks.close(disk);
    if let Some(new) = &work.new {
        closed = closed.and(work.disks.close(new.disk));
    }
    copied?;
    flushed.and(closed).map_err(RebaseError::Write)
}

/// Those of all layers, each with what it is read as.
fn files_of(walk: &Walk) -> Vec<(FileOf, Format)> {
    walk.layers().map(|layer| (file_of(&layer.path), layer.info.format)).collect()
}

/// The chain that shall be below.
struct New {
    disk: DiskId,
    walk: Walk,
    files: Vec<(FileOf, Format)>,
    len: u64,
}

/// A piece: what shows through now, and what would.
struct Slot {
    at: u64,
    len: usize,
    /// What differs becomes compressed clusters.
    compress: bool,
    /// Reads or writes that have not ended.
    waits: usize,
    old: Option<Buffer>,
    new: Option<Buffer>,
}

struct Work<'a> {
    disks: Disks,
    disk: DiskId,
    old: Walk,
    old_files: Vec<(FileOf, Format)>,
    new: Option<New>,
    /// Bytes that the image has or has not as a whole.
    unit: u64,
    /// It can say that a cluster is zeros, whatever is below.
    flags: bool,
    /// What is written becomes compressed clusters.
    compress: bool,
    at: u64,
    size: u64,
    slots: Vec<Option<Slot>>,
    free: Vec<Buffer>,
    flying: usize,
    stop: fn() -> bool,
    told: &'a mut dyn FnMut(u64, u64),
}

/// What a range is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It will read the same.
    Same,
    /// It has to be compared: are there bytes of the old chain, of the new one?
    Compare(bool, bool),
}

impl Work<'_> {
    fn run(&mut self) -> Result<(), RebaseError> {
        (self.told)(0, self.size);
        while self.at < self.size || self.flying > 0 {
            if (self.stop)() {
                return Err(RebaseError::Stopped);
            }
            while self.at < self.size && self.slots.iter().any(Option::is_none) {
                self.begin()?;
            }
            if self.flying > 0 {
                let done = self.disks.next().map_err(RebaseError::Driver)?;
                self.arrive(done)?;
            }
        }
        Ok(())
    }

    /// What becomes of the bytes from here on, and up to where that is so.
    fn kind(&mut self, at: u64) -> Result<(Kind, u64), RebaseError> {
        let run = self.old.at(&mut self.disks, at).map_err(|error| RebaseError::Read(false, at, error))?;
        let MapRun { start, length, depth, zero, present, .. } = *run;
        let mut end = (start + length).min(self.size);
        if depth == 0 && present {
            return Ok((Kind::Same, end));
        }
        let (mut is_new, mut file) = (false, None);
        if let Some(new) = &mut self.new
            && at < new.walk.size()
        {
            let run = new.walk.at(&mut self.disks, at);
            let run = run.map_err(|error| RebaseError::Read(true, at, error))?;
            end = end.min(run.start + run.length);
            is_new = !run.zero;
            file = new.files.get(run.depth).copied();
        }
        let from_one =
            file.is_some_and(|file| file.0.is_some()) && self.old_files.get(depth).copied() == file;
        Ok(match (!zero, is_new) {
            (false, false) => (Kind::Same, end),
            (true, true) if from_one => (Kind::Same, end),
            (old, new) => (Kind::Compare(old, new), end),
        })
    }

    /// The image has bytes of its own there: its cluster is not written compressed.
    fn has_own(&mut self, mut at: u64, end: u64) -> Result<bool, RebaseError> {
        while at < end {
            let run =
                self.old.at(&mut self.disks, at).map_err(|error| RebaseError::Read(false, at, error))?;
            if run.depth == 0 && run.present {
                return Ok(true);
            }
            at = run.start + run.length;
        }
        Ok(false)
    }

    /// Begins with the next piece: whole units, of which the image has none.
    fn begin(&mut self) -> Result<(), RebaseError> {
        let at = self.at;
        let (kind, end) = self.kind(at)?;
        let whole = if end == self.size { end } else { end - end % self.unit };
        if kind == Kind::Same && whole > at {
            self.at = whole;
            (self.told)(whole - at, self.size);
            return Ok(());
        }
        // where a unit is of several kinds all of it is compared
        let mixed = whole <= at;
        let (kind, end) = match mixed {
            false => (kind, whole),
            true => (Kind::Compare(true, true), (at - at % self.unit + self.unit).min(self.size)),
        };
        let compress = self.compress && !(mixed && self.has_own(at, end)?);
        let Kind::Compare(old, new) = kind else { return Ok(()) };
        let step = PIECE.max(self.unit);
        let len = (end.min(at - at % step + step) - at) as usize;
        self.at = at + len as u64;
        let Some(index) = self.slots.iter().position(Option::is_none) else { return Ok(()) };
        let (old_buffer, new_buffer) = (self.zeroed(len), self.zeroed(len));
        let mut slot = Slot { at, len, compress, waits: 0, old: Some(old_buffer), new: Some(new_buffer) };
        let wanted = [
            (old, false, self.disk, self.size),
            match &self.new {
                Some(below) => (new, true, below.disk, below.len),
                None => (false, true, self.disk, 0),
            },
        ];
        for (wanted, is_new, disk, size) in wanted {
            let readable = size.saturating_sub(at).min(len as u64) as usize;
            if !wanted || readable == 0 {
                continue;
            }
            let side = if is_new { &mut slot.new } else { &mut slot.old };
            let Some(buffer) = side.take() else { continue };
            let user = (index * 2 + usize::from(is_new)) as u64;
            let request = Request::read(at, Buffers::Front(buffer, readable), user);
            self.disks.submit(disk, request).map_err(|error| RebaseError::Read(is_new, at, error))?;
            slot.waits += 1;
            self.flying += 1;
        }
        self.slots[index] = Some(slot);
        if self.slots[index].as_ref().is_some_and(|slot| slot.waits == 0) {
            return self.both_read(index);
        }
        Ok(())
    }

    /// A buffer whose first bytes are zeros.
    fn zeroed(&mut self, len: usize) -> Buffer {
        let fits = self.free.iter().position(|buffer| buffer.as_slice().len() >= len);
        let mut buffer = match fits {
            Some(index) => self.free.swap_remove(index),
            None => return Buffer::zeroed(len.max(PIECE as usize)),
        };
        buffer.as_mut_slice()[..len].fill(0);
        buffer
    }

    /// Takes what has ended.
    fn arrive(&mut self, done: Completion) -> Result<(), RebaseError> {
        self.flying -= 1;
        let (index, is_new) = ((done.user / 2) as usize, done.user % 2 == 1);
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
        slot.waits -= 1;
        let at = slot.at;
        let is_read = matches!(done.kind, CompletionKind::Read(_));
        if let Err(error) = done.result {
            return Err(if is_read {
                RebaseError::Read(is_new, at, error)
            } else {
                RebaseError::Write(error)
            });
        }
        if is_read {
            let buffer = done.kind.into_buffers().and_then(Buffers::into_owned);
            if is_new { slot.new = buffer } else { slot.old = buffer }
        }
        match slot.waits {
            0 if is_read => self.both_read(index),
            0 => {
                self.end(index);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes the units that differ.
    fn both_read(&mut self, index: usize) -> Result<(), RebaseError> {
        let Some(Slot { at, len, compress, old: Some(old), new: Some(new), .. }) = &self.slots[index] else {
            self.end(index);
            return Ok(());
        };
        let (at, len, compress) = (*at, *len, *compress);
        let (old, new) = (&old.as_slice()[..len], &new.as_slice()[..len]);
        let how = How { unit: self.unit as usize, flags: self.flags, compress };
        let requests = differing(how, (at, index as u64 * 2), old, new);
        let count = requests.len();
        if let Some(slot) = &mut self.slots[index] {
            slot.waits = count;
        }
        if count == 0 {
            self.end(index);
        }
        for request in requests {
            self.disks.submit(self.disk, request).map_err(RebaseError::Write)?;
            self.flying += 1;
        }
        Ok(())
    }

    /// A piece is done.
    fn end(&mut self, index: usize) {
        let Some(slot) = self.slots[index].take() else { return };
        (self.told)(slot.len as u64, self.size);
        self.free.extend([slot.old, slot.new].into_iter().flatten());
    }
}

/// How what differs is written; see [`Work`].
#[derive(Clone, Copy)]
struct How {
    unit: usize,
    flags: bool,
    compress: bool,
}

/// The writes of the units of `old`, a range at `at`, that differ from those of `new`.
fn differing(how: How, (at, user): (u64, u64), old: &[u8], new: &[u8]) -> Vec<Request> {
    let How { unit, flags, compress } = how;
    let mut runs: Vec<(bool, usize, usize)> = Vec::new();
    for from in (0..old.len()).step_by(unit) {
        let to = (from + unit).min(old.len());
        if old[from..to] == new[from..to] {
            continue;
        }
        let zero = flags && is_zero(&old[from..to]);
        match runs.last_mut() {
            // a compressed write is one cluster
            Some(last) if last.0 == zero && last.2 == from && (zero || !compress) => last.2 = to,
            _ => runs.push((zero, from, to)),
        }
    }
    let requests = runs.into_iter().map(|(zero, from, to)| match zero {
        true => Request::write_zeroes(at + from as u64, (to - from) as u64, user),
        false if compress => Request::write_compressed(at + from as u64, Buffer::from(&old[from..to]), user),
        false => Request::write(at + from as u64, Buffer::from(&old[from..to]), user),
    });
    requests.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quod::RequestKind;

    #[test]
    fn units_that_differ_are_written_whole_and_joined() {
        let old: Vec<u8> = [[1; 512], [0; 512], [0; 512], [2; 512], [3; 512]].concat();
        let mut new = old.clone();
        new[5] = 9;
        new[600] = 9;
        new[2047] = 9;
        let ranges = |flags, compress| {
            let requests = differing(How { unit: 512, flags, compress }, (4096, 7), &old, &new);
            let range = |request: Request| match request.kind {
                RequestKind::Write { offset, buffers, .. } if !compress => (true, offset, buffers.len()),
                RequestKind::WriteCompressed { offset, buffers, .. } => (true, offset, buffers.len()),
                RequestKind::WriteZeroes { offset, len, .. } => (false, offset, len),
                other => panic!("{other:?}"),
            };
            requests.into_iter().map(range).collect::<Vec<_>>()
        };
        assert_eq!(ranges(true, false), [(true, 4096, 512), (false, 4608, 512), (true, 4096 + 1536, 512)]);
        assert_eq!(ranges(false, false), [(true, 4096, 1024), (true, 4096 + 1536, 512)]);
        let clusters = [(true, 4096, 512), (true, 4608, 512), (true, 4096 + 1536, 512)];
        assert_eq!(ranges(false, true), clusters);
        let how = How { unit: 512, flags: true, compress: true };
        assert!(differing(how, (0, 0), &old, &old).is_empty());
    }
}
