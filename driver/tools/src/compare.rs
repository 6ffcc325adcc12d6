//! Two disks, byte for byte, as `qemu-img compare` does it: what both know to be zero is not read, all else
//! is read with many reads in flight on both.
//!
//! Knows: runs of both disks, a ring of pieces. Must never know: how the answer is said.
//!
//! Invariants:
//! * the answer is about the first difference in guest order, whichever read ends first;
//! * 2 * [`DEPTH`] * [`PIECE`] bytes of buffers (8 MiB) at most, beside the tables of both chains.

use crate::bytes::{SECTOR, first_difference, first_nonzero};
use crate::disks::{Disks, Walk};
use crate::layers::MapRun;
use quod::{Buffer, Buffers, Config, DiskId, Error, OpenOptions, Request};
use std::collections::VecDeque;
use std::path::Path;

/// Bytes of a piece at most: two of them, and their copies in the page cache, are in a processor's cache.
const PIECE: u64 = 256 << 10;
/// Pieces in flight.
const DEPTH: usize = 16;

/// How two disks compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Nothing differs; the longer disk reads as zeros behind the end of the shorter one.
    Identical,
    /// The first sector that differs begins here.
    Content(u64),
    /// Strict: the disks are not of one size.
    Size,
    /// Strict: from here on one has data, zeros or nothing where the other has not.
    Status(u64),
}

/// Why two disks could not be compared. The number says which of them: 0 or 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareError {
    /// It could not be opened.
    Open(usize, Error),
    /// Its tables do not tell where its bytes are.
    Status(usize, Error),
    /// The range from this byte on could not be read.
    Read(usize, u64, Error),
    /// The driver failed.
    Driver(Error),
}

/// What happens while disks are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompareStep {
    /// So many bytes more are known to be equal, of so many.
    Equal(u64, u64),
    /// The shorter disk is done, and was equal: now the rest of the longer one is looked at.
    SizesDiffer,
}

/// Compares two disks, each given by its path and how to open it. `strict`: sizes and block statuses must be
/// the same, too. `told` hears of each step.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{Comparison, CreateOptions, Session, compare, create};
/// # let folder = tempfile::tempdir()?;
/// # let paths = [folder.path().join("a.qcow2"), folder.path().join("b.qed")];
/// create(&paths[0], &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// create(&paths[1], &CreateOptions::new(Format::Qed, 1 << 30))?;
/// let both = || [(paths[0].as_path(), OpenOptions::new()), (paths[1].as_path(), OpenOptions::new())];
/// assert_eq!(compare(both(), false, &mut |_| {}), Ok(Comparison::Identical));
/// let mut session = Session::open(&paths[1], OpenOptions::new().write(true))?;
/// session.write(70_000, b"x")?;
/// session.close()?;
/// assert_eq!(compare(both(), false, &mut |_| {}), Ok(Comparison::Content(69_632)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`CompareError`], if everything before it is equal.
pub fn compare(
    files: [(&Path, OpenOptions); 2],
    strict: bool,
    told: &mut dyn FnMut(CompareStep),
) -> Result<Comparison, CompareError> {
    let config = Config::default().requests(4 * DEPTH as u32 + 64);
    let mut disks = Disks::new(config).map_err(CompareError::Driver)?;
    let mut open = |index: usize, (path, options)| {
        let disk = disks.open(path, options).map_err(|error| CompareError::Open(index, error))?;
        let walk = Walk::new(&disks, disk).map_err(CompareError::Driver)?;
        Ok(Side { disk, walk, len: disks.size(disk) })
    };
    let [first, second] = files;
    let sides = [open(0, first)?, open(1, second)?];
    let sizes = [sides[0].walk.size(), sides[1].walk.size()];
    let (common, all) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let mut work = Work { disks, sides, ring: VecDeque::new(), free: Vec::new(), next_user: 0, all, told };
    (work.told)(CompareStep::Equal(0, all));
    if strict && sizes[0] != sizes[1] {
        return work.end(Comparison::Size);
    }
    let mut found = work.range(0, common, &[0, 1], strict)?;
    if found == Comparison::Identical && sizes[0] != sizes[1] {
        (work.told)(CompareStep::SizesDiffer);
        let longer = usize::from(sizes[1] > sizes[0]);
        found = work.range(common, all, &[longer], false)?;
    }
    work.end(found)
}

/// One of the disks.
struct Side {
    disk: DiskId,
    walk: Walk,
    /// Bytes that can be read; behind them are zeros up to a whole sector.
    len: u64,
}

/// A piece that is read, or is known.
struct Piece {
    at: u64,
    len: u64,
    /// The number of its first read; that of the second disk follows.
    user: u64,
    /// Of each disk: None, it is not read; the buffer when its read has ended.
    reads: [Option<Read>; 2],
}

enum Read {
    Flying,
    Done(Result<Buffer, Error>),
}

struct Work<'a> {
    disks: Disks,
    sides: [Side; 2],
    /// In guest order.
    ring: VecDeque<Piece>,
    free: Vec<Buffer>,
    next_user: u64,
    /// Bytes of the longer disk.
    all: u64,
    told: &'a mut dyn FnMut(CompareStep),
}

/// What block status says of a range, strictly.
fn status(run: &MapRun) -> (bool, bool, bool, bool, bool) {
    (run.present, run.zero, run.data, run.compressed, run.offset.is_some())
}

impl Work<'_> {
    /// Compares a range: of both disks, or of one with zeros.
    fn range(
        &mut self,
        mut at: u64,
        end: u64,
        which: &[usize],
        strict: bool,
    ) -> Result<Comparison, CompareError> {
        let mut last = Ok(Comparison::Identical);
        while at < end {
            match self.piece(at, end, which, strict) {
                Ok(Ok(piece)) => {
                    at += piece.len;
                    if let Some(found) = self.take(piece)? {
                        return Ok(found);
                    }
                }
                // what was read before it is looked at first
                Ok(Err(found)) => {
                    last = Ok(found);
                    break;
                }
                Err(error) => {
                    last = Err(error);
                    break;
                }
            }
        }
        while !self.ring.is_empty() {
            if let Some(found) = self.oldest()? {
                return Ok(found);
            }
        }
        last
    }

    /// The next piece, joined of runs that are to be treated alike; or a status that differs.
    fn piece(
        &mut self,
        at: u64,
        end: u64,
        which: &[usize],
        strict: bool,
    ) -> Result<Result<Piece, Comparison>, CompareError> {
        let mut reads = [false; 2];
        let mut stop = at;
        while stop < end {
            let (mut here, mut until, mut seen) = ([false; 2], end, [None; 2]);
            for &side in which {
                let walk = &mut self.sides[side].walk;
                let run =
                    walk.at(&mut self.disks, stop).map_err(|error| CompareError::Status(side, error))?;
                (here[side], seen[side]) = (!run.zero, Some(status(run)));
                let stops = run.start + run.length;
                // data ends with a whole sector, where the file ends within one too
                until = until.min(if run.zero { stops } else { stops.next_multiple_of(SECTOR as u64) });
            }
            if strict && seen[0] != seen[1] {
                if stop == at {
                    return Ok(Err(Comparison::Status(at)));
                }
                break;
            }
            if stop > at && here != reads {
                break;
            }
            reads = here;
            let known = !reads[0] && !reads[1];
            stop = if known { until } else { until.min(at + PIECE) };
            if known || stop == at + PIECE {
                break;
            }
        }
        let user = self.next_user;
        self.next_user += 2;
        Ok(Ok(Piece { at, len: stop - at, user, reads: reads.map(|read| read.then_some(Read::Flying)) }))
    }

    /// Starts what a piece reads; looks at the oldest ones until there is room.
    fn take(&mut self, piece: Piece) -> Result<Option<Comparison>, CompareError> {
        while self.ring.len() >= DEPTH {
            if let Some(found) = self.oldest()? {
                return Ok(Some(found));
            }
        }
        for (side, read) in piece.reads.iter().enumerate() {
            if read.is_none() {
                continue;
            }
            let Side { disk, len, .. } = self.sides[side];
            let buffer = self.free.pop().unwrap_or_else(|| Buffer::zeroed(PIECE as usize));
            let inside = piece.len.min(len.saturating_sub(piece.at)) as usize;
            let request = Request::read(piece.at, Buffers::Front(buffer, inside), piece.user + side as u64);
            self.disks.submit(disk, request).map_err(CompareError::Driver)?;
        }
        self.ring.push_back(piece);
        Ok(None)
    }

    /// Waits for the oldest piece and looks at it.
    fn oldest(&mut self) -> Result<Option<Comparison>, CompareError> {
        while let Some(piece) = self.ring.front() {
            if !piece.reads.iter().flatten().any(|read| matches!(read, Read::Flying)) {
                break;
            }
            self.arrive()?;
        }
        let Some(Piece { at, len, reads, .. }) = self.ring.pop_front() else { return Ok(None) };
        let mut buffers = [None, None];
        for (side, read) in reads.into_iter().enumerate() {
            if let Some(Read::Done(result)) = read {
                let mut buffer = result.map_err(|error| CompareError::Read(side, at, error))?;
                // a part of a sector at the disk's end
                let inside = len.min(self.sides[side].len.saturating_sub(at)) as usize;
                buffer.as_mut_slice()[inside..len as usize].fill(0);
                buffers[side] = Some(buffer);
            }
        }
        let first = |side: usize| buffers[side].as_ref().map(|buffer| &buffer.as_slice()[..len as usize]);
        let differs = match (first(0), first(1)) {
            (Some(a), Some(b)) => first_difference(a, b),
            (Some(bytes), None) | (None, Some(bytes)) => first_nonzero(bytes),
            (None, None) => None,
        };
        self.free.extend(buffers.into_iter().flatten());
        if let Some(inside) = differs {
            return Ok(Some(Comparison::Content(at + inside as u64)));
        }
        (self.told)(CompareStep::Equal(len, self.all));
        Ok(None)
    }

    /// Takes the next read that ends.
    fn arrive(&mut self) -> Result<(), CompareError> {
        let done = self.disks.next().map_err(CompareError::Driver)?;
        let side = (done.user % 2) as usize;
        let piece = self.ring.iter_mut().find(|piece| piece.user == done.user - side as u64);
        let buffer = done.kind.into_buffers().and_then(Buffers::into_owned);
        let result = match (done.result, buffer) {
            (Ok(()), Some(buffer)) => Ok(buffer),
            (Ok(()), None) => Err(Error::Misuse("a read lost its buffer")),
            (Err(error), _) => Err(error),
        };
        if let Some(piece) = piece {
            piece.reads[side] = Some(Read::Done(result));
        }
        Ok(())
    }

    /// Closes both disks; what is still read of them ends before.
    fn end(mut self, found: Comparison) -> Result<Comparison, CompareError> {
        for side in [0, 1] {
            self.disks.close(self.sides[side].disk).map_err(CompareError::Driver)?;
        }
        Ok(found)
    }
}
