//! A part of a disk copied to the beginning of another one, as `qemu-img dd` does it: every byte is written,
//! zeros too.
//!
//! Knows: a ring of pieces. Must never know: blocks that the part is counted in, how it is said.
//!
//! Invariants:
//! * the source is only read;
//! * writes go out in order, one at a time where clusters are placed, so that they lie the same each time;
//! * [`DEPTH`] pieces at most, whose buffers take [`DEPTH`] * [`PIECE`] bytes (8 MiB) at most.

use crate::chain::same_file;
use crate::disks::{Disks, Walk};
use quod::{Buffer, Buffers, CompletionKind, Config, DiskId, Error, Format, OpenOptions, Request};
use std::collections::VecDeque;
use std::path::Path;

/// Bytes of a piece at most.
const PIECE: u64 = 512 << 10;
/// Pieces in flight at most.
const DEPTH: usize = 16;

/// Why a part was not copied whole. Offsets are the source's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartError {
    /// The target could not be opened: nothing was written.
    Open(Error),
    /// The source could not be read.
    Read(u64, Error),
    /// The target could not be written.
    Write(u64, Error),
    /// The target could not be made durable, or closed.
    Finish(Error),
    /// Somebody asked for an end.
    Stopped,
    /// The driver failed.
    Driver(Error),
}

/// An open disk, a part of which is to be copied.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{CreateOptions, Part, create};
/// # let folder = tempfile::tempdir()?;
/// # let (from, to) = (folder.path().join("a"), folder.path().join("b"));
/// std::fs::write(&from, [[1; 512], [2; 512], [3; 512]].concat())?;
/// let part = Part::open(&from, OpenOptions::new().format(Some(Format::Raw)))?;
/// create(&to, &CreateOptions::new(Format::Raw, 512))?;
/// let options = OpenOptions::new().format(Some(Format::Raw));
/// part.copy(&to, options, (512, 512), || false).unwrap();
/// assert_eq!(std::fs::read(&to)?, [2; 512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Part {
    disks: Disks,
    source: DiskId,
    /// Bytes that can be read; behind them are zeros up to a whole sector.
    len: u64,
}

impl Part {
    /// Opens the disk.
    ///
    /// # Errors
    /// Those of [`Driver::new`](quod::Driver::new) and [`Driver::open`](quod::Driver::open).
    pub fn open(path: &Path, options: OpenOptions) -> Result<Part, Error> {
        let mut disks = Disks::new(Config::default().requests(256))?;
        let source = disks.open(path, options)?;
        Ok(Part { len: disks.size(source), disks, source })
    }

    /// Bytes of the disk: whole sectors.
    pub fn size(&self) -> u64 {
        self.len.next_multiple_of(512)
    }

    /// One of its files is this one, by whatever name: it must not be written.
    pub fn holds(&self, path: &Path) -> bool {
        let Ok(walk) = Walk::new(&self.disks, self.source) else { return true };
        walk.layers().any(|layer| {
            let data = layer.data_file.as_deref().is_some_and(|data| same_file(data, path));
            data || same_file(&layer.path, path)
        })
    }

    /// Copies the bytes from `from` on, so many, to an image that exists, which is opened for writing with
    /// these options, and closed. `stop` is asked between two requests.
    ///
    /// # Errors
    /// [`PartError`]; the target is closed in order all the same, and has what was written before.
    pub fn copy(
        mut self,
        target: &Path,
        options: OpenOptions,
        (from, len): (u64, u64),
        stop: fn() -> bool,
    ) -> Result<(), PartError> {
        let disk = self.disks.open(target, options.write(true)).map_err(PartError::Open)?;
        let alone = self.disks.format(disk) != Some(Format::Raw);
        let copied = self.run(disk, (from, len), alone, stop);
        // what is in flight ends with the close
        let flushed = match copied.is_ok() {
            true => self.disks.run(disk, Request::flush(0)).map(drop),
            false => Ok(()),
        };
        let closed = self.disks.close(disk);
        copied?;
        flushed.and(closed).map_err(PartError::Finish)
    }

    fn run(
        &mut self,
        target: DiskId,
        (from, len): (u64, u64),
        alone: bool,
        stop: fn() -> bool,
    ) -> Result<(), PartError> {
        // by where each piece begins, in order; without its buffer while that is read
        let mut ring: VecDeque<(u64, Option<Buffer>)> = VecDeque::new();
        let (mut at, mut writing, mut free) = (0, 0, Vec::new());
        while at < len || !ring.is_empty() || writing > 0 {
            if stop() {
                return Err(PartError::Stopped);
            }
            while at < len && ring.len() + writing < DEPTH {
                let piece = PIECE.min(len - at);
                let buffer = free.pop().unwrap_or_else(|| Buffer::zeroed(PIECE as usize));
                ring.push_back((at, self.read(from + at, piece, buffer, at)?));
                at += piece;
            }
            while (!alone || writing == 0) && ring.front().is_some_and(|(_, buffer)| buffer.is_some()) {
                let Some((at, Some(buffer))) = ring.pop_front() else { break };
                let buffers = Buffers::Front(buffer, PIECE.min(len - at) as usize);
                let request = Request::write(at, buffers, at);
                self.disks.submit(target, request).map_err(|error| PartError::Write(from + at, error))?;
                writing += 1;
            }
            if writing == 0 && ring.iter().all(|(_, buffer)| buffer.is_some()) {
                continue;
            }
            let done = self.disks.next().map_err(PartError::Driver)?;
            let (at, is_read) = (done.user, matches!(done.kind, CompletionKind::Read(_)));
            let failed = if is_read { PartError::Read } else { PartError::Write };
            done.result.map_err(|error| failed(from + at, error))?;
            let buffer = done.kind.into_buffers().and_then(Buffers::into_owned);
            match ring.iter_mut().find(|(start, _)| is_read && *start == at) {
                Some(place) => place.1 = buffer,
                None => {
                    writing -= 1;
                    free.extend(buffer);
                }
            }
        }
        Ok(())
    }

    /// Reads a piece; all of it lies behind the end: its zeros.
    fn read(
        &mut self,
        at: u64,
        len: u64,
        mut buffer: Buffer,
        user: u64,
    ) -> Result<Option<Buffer>, PartError> {
        let readable = self.len.saturating_sub(at).min(len) as usize;
        buffer.as_mut_slice()[readable..].fill(0);
        if readable == 0 {
            return Ok(Some(buffer));
        }
        let request = Request::read(at, Buffers::Front(buffer, readable), user);
        self.disks.submit(self.source, request).map_err(|error| PartError::Read(at, error))?;
        Ok(None)
    }
}
