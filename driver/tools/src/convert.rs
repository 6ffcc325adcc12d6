//! Disks copied into one image, as `qemu-img convert` does it: block status decides what is read, zeros are
//! left out, reads and writes overlap.
//!
//! Knows: runs of the sources, a ring of pieces. Must never know: how an image is made, how it is said.
//!
//! Invariants:
//! * sources are only read;
//! * in order, an image that places clusters has one write in flight, so that they lie the same each time;
//! * 16 pieces at most, whose buffers take 2 * [`BUFFERS_MAX`] bytes (16 MiB) at most, beside tables;
//!   clusters that are written compressed are whole ones, and the buffers of those that are on their way come
//!   on top.

use crate::bytes::{SECTOR, is_zero};
use crate::disks::{Disks, Walk};
use quod::{
    Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Error, Format, OpenOptions, Request,
    RequestKind,
};
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a piece at most.
const PIECE: u64 = 512 << 10;
/// Bytes that are zeroed by one request at most, so that an end is not waited for too long.
const ZERO_AT_ONCE: u64 = 256 << 20;
/// Bytes of all pieces in flight at most.
const BUFFERS_MAX: u64 = 8 << 20;
/// Pieces in flight at most.
const DEPTH_MAX: u32 = 16;

/// How sources are copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyPlan {
    /// The target reads as zeros, which need not be written.
    pub target_is_zero: bool,
    /// The target has a backing file: what the source's own backing files have is not copied.
    pub over_backing: bool,
    /// Zeros in data that are this long, bytes, and begin at a multiple of it, are not written as data; a
    /// multiple of 512. 0: everything is written.
    pub sparse: u64,
    /// Writes are handed over as reads end, and not in guest order.
    pub out_of_order: bool,
    /// Pieces in flight, 1 to 16.
    pub depth: u32,
    /// What cannot be read becomes zeros.
    pub salvage: bool,
    /// Bytes a second at most; 0: no bound.
    pub rate: u64,
    /// The target's clusters are written compressed.
    pub compress: bool,
    /// All is durable at the end.
    pub flush: bool,
}

/// qemu-img's, and durable at the end.
impl Default for CopyPlan {
    fn default() -> CopyPlan {
        CopyPlan {
            target_is_zero: false,
            over_backing: false,
            sparse: 4096,
            out_of_order: false,
            depth: 8,
            salvage: false,
            rate: 0,
            compress: false,
            flush: true,
        }
    }
}

/// Why a copy ended early. Offsets are the target's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyError {
    /// The target could not be opened: nothing was written.
    Open(Error),
    /// The target is smaller than its sources: nothing was written.
    TooSmall,
    /// A source's tables do not tell where its bytes are.
    Status(u64, Error),
    /// A source could not be read.
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

/// What happens meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyStep {
    /// So many bytes more are done, of so many.
    Done(u64, u64),
    /// Salvage: a sector that cannot be read is zeros in the target.
    Lost(u64, Error),
}

/// Open sources, one behind the other, each in whole sectors.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{CopyPlan, CreateOptions, Session, Sources, create};
/// # let folder = tempfile::tempdir()?;
/// # let (from, to) = (folder.path().join("a.qed"), folder.path().join("b.qcow2"));
/// create(&from, &CreateOptions::new(Format::Qed, 1 << 20))?;
/// let mut session = Session::open(&from, OpenOptions::new().write(true))?;
/// session.write(70_000, b"copied")?;
/// session.close()?;
/// let mut sources = Sources::new()?;
/// sources.open(&from, OpenOptions::new())?;
/// create(&to, &CreateOptions::new(Format::Qcow2, sources.size()))?;
/// let plan = CopyPlan { target_is_zero: true, ..CopyPlan::default() };
/// sources.copy(&to, OpenOptions::new(), plan, || false, &mut |_| {}).unwrap();
/// let mut bytes = [0; 6];
/// Session::open(&to, OpenOptions::new())?.read(70_000, &mut bytes)?;
/// assert_eq!(&bytes, b"copied");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sources {
    disks: Disks,
    sources: Vec<Source>,
}

struct Source {
    disk: DiskId,
    walk: Walk,
    /// Where it begins in the target.
    start: u64,
    /// Bytes that can be read of it.
    len: u64,
}

impl Sources {
    /// None yet.
    ///
    /// # Errors
    /// Those of [`Driver::new`](quod::Driver::new).
    pub fn new() -> Result<Sources, Error> {
        let disks = Disks::new(Config::default().requests(1024))?;
        Ok(Sources { disks, sources: Vec::new() })
    }

    /// Opens one more, behind those before.
    ///
    /// # Errors
    /// Those of [`Driver::open`](quod::Driver::open).
    pub fn open(&mut self, path: &Path, options: OpenOptions) -> Result<(), Error> {
        let start = self.size();
        let disk = self.disks.open(path, options)?;
        let walk = Walk::new(&self.disks, disk)?;
        self.sources.push(Source { disk, walk, start, len: self.disks.size(disk) });
        Ok(())
    }

    /// One of their files is this one, by whatever name: it must not be written.
    pub fn hold(&self, path: &Path) -> bool {
        let id = |path: &Path| std::fs::metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
        let Some(file) = id(path) else { return false };
        let layers = self.sources.iter().flat_map(|source| source.walk.layers());
        layers.into_iter().any(|layer| {
            id(&layer.path) == Some(file) || layer.data_file.as_deref().and_then(id) == Some(file)
        })
    }

    /// Bytes of all of them.
    pub fn size(&self) -> u64 {
        self.sources.last().map_or(0, |last| last.start + last.walk.size())
    }

    /// Copies them to an image that exists, which is opened for writing with these options, and closed.
    /// `stop` is asked between two requests; `told` hears of each step.
    ///
    /// # Errors
    /// [`CopyError`]; the target is closed in order all the same, and has what was written before.
    pub fn copy(
        mut self,
        target: &Path,
        options: OpenOptions,
        plan: CopyPlan,
        stop: fn() -> bool,
        told: &mut dyn FnMut(CopyStep),
    ) -> Result<(), CopyError> {
        let all = self.size();
        let disk = self.disks.open(target, options.write(true)).map_err(CopyError::Open)?;
        let below = self.disks.backing_size(disk);
        // compressed ones are placed in the order in which they were asked for
        let orders = self.disks.format(disk) == Some(Format::Raw) || plan.compress && plan.target_is_zero;
        let one_by_one = !plan.out_of_order && !orders;
        if self.disks.size(disk).next_multiple_of(SECTOR as u64) < all {
            self.disks.close(disk).map_err(CopyError::Finish)?;
            return Err(CopyError::TooSmall);
        }
        let cluster = if plan.compress { self.disks.cluster_size(disk) } else { 0 };
        let piece = PIECE.max(cluster);
        let depth = u64::from(plan.depth.clamp(1, DEPTH_MAX)).min((BUFFERS_MAX / piece).max(1)) as usize;
        told(CopyStep::Done(0, all));
        let mut copy = Copy {
            disks: self.disks,
            sources: self.sources,
            target: disk,
            len: 0,
            below,
            plan,
            ring: VecDeque::new(),
            free: Vec::new(),
            next_number: 0,
            at: 0,
            all,
            began: Instant::now(),
            flying: 0,
            one_by_one,
            cluster,
            piece,
            depth,
            copied: 0,
            stop,
            told,
        };
        copy.len = copy.disks.size(disk);
        let copied = copy.run();
        // what is in flight ends with the close
        let flushed = match plan.flush && copied.is_ok() {
            true => copy.disks.run(disk, Request::flush(0)).map(drop),
            false => Ok(()),
        };
        let closed = copy.disks.close(disk);
        copied?;
        flushed.and(closed).map_err(CopyError::Finish)
    }
}

/// What becomes of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// It is copied.
    Data,
    /// It shall read as zeros.
    Zero,
    /// The target has it.
    There,
}

struct Piece {
    number: u64,
    at: u64,
    len: u64,
    state: State,
}

enum State {
    Reading,
    /// The bytes are here.
    Ready(Buffer),
    /// It is to be zeroed.
    Zero,
    /// So many writes have not ended; some of them have not begun.
    Writing {
        left: usize,
        waiting: VecDeque<Request>,
    },
}

struct Copy<'a> {
    disks: Disks,
    sources: Vec<Source>,
    target: DiskId,
    /// Bytes of the target.
    len: u64,
    /// Bytes of the target's backing file, if it has one.
    below: u64,
    plan: CopyPlan,
    /// In guest order.
    ring: VecDeque<Piece>,
    free: Vec<Buffer>,
    next_number: u64,
    /// What lies before is in the ring, or done.
    at: u64,
    all: u64,
    began: Instant,
    /// Writes in flight.
    flying: usize,
    /// No more than one: clusters are placed where the writes before have left off.
    one_by_one: bool,
    /// Bytes of a cluster that is written compressed; 0: none is.
    cluster: u64,
    /// Bytes of a piece, and pieces in flight.
    piece: u64,
    depth: usize,
    /// Bytes that were written.
    copied: u64,
    stop: fn() -> bool,
    told: &'a mut dyn FnMut(CopyStep),
}

impl Copy<'_> {
    fn run(&mut self) -> Result<(), CopyError> {
        loop {
            if (self.stop)() {
                return Err(CopyError::Stopped);
            }
            while self.at < self.all && self.ring.len() < self.depth {
                self.begin()?;
            }
            self.write()?;
            while let Some(done) =
                self.ring.iter().position(|piece| matches!(piece.state, State::Writing { left: 0, .. }))
            {
                if let Some(piece) = self.ring.remove(done) {
                    (self.told)(CopyStep::Done(piece.len, self.all));
                }
            }
            if !self.ring.is_empty() {
                let done = self.disks.next().map_err(CopyError::Driver)?;
                self.arrive(done)?;
            } else if self.at >= self.all {
                return Ok(());
            }
        }
    }

    /// What becomes of the bytes from here on, and up to where that is so.
    fn kind(&mut self, at: u64) -> Result<(Kind, u64), CopyError> {
        let index = self.sources.iter().rposition(|source| source.start <= at).unwrap_or(0);
        let source = &mut self.sources[index];
        let end = source.start + source.walk.size();
        let run = match source.walk.at(&mut self.disks, at - source.start) {
            Ok(run) => run,
            // it will not be read either, and told then
            Err(_) if self.plan.salvage => return Ok((Kind::Data, end.min(at + PIECE))),
            Err(error) => return Err(CopyError::Status(at, error)),
        };
        let stops = source.start + run.start + run.length;
        let until = if run.zero { stops } else { stops.next_multiple_of(SECTOR as u64).min(end) };
        if !self.plan.over_backing {
            return Ok((if run.zero { Kind::Zero } else { Kind::Data }, until));
        }
        Ok(match (run.depth, run.zero) {
            (0, false) => (Kind::Data, until),
            (0, true) if at < self.below => (Kind::Zero, until.min(self.below)),
            _ => (Kind::There, until),
        })
    }

    /// Begins with the next piece.
    fn begin(&mut self) -> Result<(), CopyError> {
        let at = self.at;
        let (mut kind, mut until) = self.kind(at)?;
        if self.cluster > 0 {
            (kind, until) = self.whole_clusters(at, kind, until);
        }
        if kind == Kind::Zero && self.plan.target_is_zero && self.plan.sparse > 0 {
            kind = Kind::There;
        }
        if kind == Kind::There {
            self.at = until;
            (self.told)(CopyStep::Done(until - at, self.all));
            return Ok(());
        }
        let written = kind == Kind::Zero && self.plan.sparse == 0;
        let step = if kind == Kind::Zero && !written { ZERO_AT_ONCE } else { self.piece };
        // pieces end where the target's clusters do
        let most = (at - at % step + step).min(self.all);
        while kind == Kind::Data && until < most {
            match self.kind(until) {
                Ok((Kind::Data, next)) => until = next,
                _ => break,
            }
        }
        if self.cluster > 0 {
            until = self.whole_clusters(at, kind, until).1;
        }
        let len = until.min(most) - at;
        let number = self.next_number;
        self.next_number += 1;
        self.at = at + len;
        let state = if written {
            let mut buffer = self.buffer();
            buffer.as_mut_slice()[..len as usize].fill(0);
            State::Ready(buffer)
        } else if kind == Kind::Zero {
            State::Zero
        } else {
            return self.read(Piece { number, at, len, state: State::Reading });
        };
        self.ring.push_back(Piece { number, at, len, state });
        Ok(())
    }

    /// Clusters are written whole: what is less than one is data, as all of the cluster then.
    fn whole_clusters(&self, at: u64, kind: Kind, until: u64) -> (Kind, u64) {
        match until - until % self.cluster {
            _ if until == self.all => (kind, until),
            whole if whole > at => (kind, whole),
            _ => (Kind::Data, (at + self.cluster).min(self.all)),
        }
    }

    fn buffer(&mut self) -> Buffer {
        self.free.pop().unwrap_or_else(|| Buffer::zeroed(self.piece as usize))
    }

    /// Reads a piece, of one source: what is behind that comes with the next piece.
    fn read(&mut self, mut piece: Piece) -> Result<(), CopyError> {
        let index = self.sources.iter().rposition(|source| source.start <= piece.at).unwrap_or(0);
        let buffer = self.buffer();
        let source = &self.sources[index];
        let inside = piece.at - source.start;
        let here = source.walk.size() - inside;
        if self.cluster > 0 && here < piece.len && here < self.cluster {
            return self.read_across(piece, buffer);
        }
        let here = if self.cluster > 0 && here < piece.len { here - here % self.cluster } else { here };
        piece.len = piece.len.min(here);
        self.at = piece.at + piece.len;
        let readable = piece.len.min(source.len.saturating_sub(inside)) as usize;
        let request = Request::read(inside, Buffers::Front(buffer, readable), piece.number * 2);
        self.disks.submit(source.disk, request).map_err(CopyError::Driver)?;
        self.ring.push_back(piece);
        Ok(())
    }

    /// Reads a cluster that begins in one source and ends in another.
    fn read_across(&mut self, mut piece: Piece, mut buffer: Buffer) -> Result<(), CopyError> {
        piece.len = piece.len.min(self.cluster);
        self.at = piece.at + piece.len;
        let bytes = &mut buffer.as_mut_slice()[..piece.len as usize];
        bytes.fill(0);
        for source in &self.sources {
            let (start, end) = (source.start.max(piece.at), (source.start + source.len).min(self.at));
            if start >= end {
                continue;
            }
            let request = Request::read(start - source.start, Buffer::zeroed((end - start) as usize), 0);
            let done = self.disks.run(source.disk, request).map_err(|error| CopyError::Read(start, error))?;
            if let Some(read) = done.kind.buffers() {
                read.copy_to(&mut bytes[(start - piece.at) as usize..(end - piece.at) as usize]);
            }
        }
        piece.state = State::Ready(buffer);
        self.ring.push_back(piece);
        Ok(())
    }

    /// Hands over the writes of what is here, in order as far as that is wanted.
    fn write(&mut self) -> Result<(), CopyError> {
        for index in 0..self.ring.len() {
            let piece = &mut self.ring[index];
            let (at, len, user) = (piece.at, piece.len, piece.number * 2 + 1);
            let state = std::mem::replace(&mut piece.state, State::Reading);
            let (left, mut waiting) = match state {
                State::Reading if self.plan.out_of_order => continue,
                State::Reading => break,
                State::Writing { left, waiting } => (left, waiting),
                State::Zero => (1, VecDeque::from([zeroes(at, len.min(self.len - at), user)])),
                State::Ready(buffer) => {
                    let requests = self.split(at, len, buffer, user);
                    (requests.len(), requests)
                }
            };
            while self.flying == 0 || !self.one_by_one {
                let Some(request) = waiting.pop_front() else { break };
                self.pace(bytes_of(&request))?;
                self.flying += 1;
                self.disks.submit(self.target, request).map_err(|error| CopyError::Write(at, error))?;
            }
            let is_full = !waiting.is_empty();
            self.ring[index].state = State::Writing { left, waiting };
            if is_full {
                break;
            }
        }
        Ok(())
    }

    /// The writes of a piece: its data, without the zeros that need not be written as such.
    fn split(&mut self, at: u64, len: u64, buffer: Buffer, user: u64) -> VecDeque<Request> {
        // a target that ends within a sector has no room for the rest of it, which is zeros
        let len = len.min(self.len - at) as usize;
        if self.cluster > 0 {
            return self.split_clusters(at, len, buffer, user);
        }
        let Some(grain) = usize::try_from(self.plan.sparse).ok().filter(|grain| *grain > 0) else {
            return [Request::write(at, Buffers::Front(buffer, len), user)].into();
        };
        let bytes = &buffer.as_slice()[..len];
        let mut runs: Vec<(bool, usize, usize)> = Vec::new();
        let mut from = 0;
        while from < len {
            let to = (from + grain - ((at + from as u64) % grain as u64) as usize).min(len);
            let zero = is_zero(&bytes[from..to]);
            match runs.last_mut() {
                Some(last) if last.0 == zero => last.2 = to,
                _ => runs.push((zero, from, to)),
            }
            from = to;
        }
        if let [(false, ..)] = runs[..] {
            return [Request::write(at, Buffers::Front(buffer, len), user)].into();
        }
        let wanted = runs.into_iter().filter(|(zero, ..)| !(*zero && self.plan.target_is_zero));
        let requests = wanted.map(|(zero, from, to)| match zero {
            true => zeroes(at + from as u64, (to - from) as u64, user),
            false => Request::write(at + from as u64, Buffer::from(&bytes[from..to]), user),
        });
        let requests = requests.collect();
        self.free.push(buffer);
        requests
    }

    /// The compressed writes of a piece, a cluster each; clusters of zeros are zeroed, or left out.
    fn split_clusters(&mut self, at: u64, len: usize, buffer: Buffer, user: u64) -> VecDeque<Request> {
        let mut requests = VecDeque::new();
        for (n, bytes) in buffer.as_slice()[..len].chunks(self.cluster as usize).enumerate() {
            let at = at + n as u64 * self.cluster;
            match self.plan.sparse > 0 && is_zero(bytes) {
                true if self.plan.target_is_zero => {}
                true => requests.push_back(zeroes(at, bytes.len() as u64, user)),
                false => requests.push_back(Request::write_compressed(at, Buffer::from(bytes), user)),
            }
        }
        self.free.push(buffer);
        requests
    }

    /// Waits as long as the bound of bytes a second wants.
    fn pace(&mut self, len: u64) -> Result<(), CopyError> {
        self.copied += len;
        if self.plan.rate > 0 {
            let due = self.copied as f64 / self.plan.rate as f64;
            while self.began.elapsed().as_secs_f64() < due {
                if (self.stop)() {
                    return Err(CopyError::Stopped);
                }
                let left = due - self.began.elapsed().as_secs_f64();
                std::thread::sleep(Duration::from_secs_f64(left.clamp(0.0, 0.05)));
            }
        }
        Ok(())
    }

    /// Takes what has ended.
    fn arrive(&mut self, done: Completion) -> Result<(), CopyError> {
        let number = done.user / 2;
        let index = self.ring.iter().position(|piece| piece.number == number);
        let Some(index) = index else { return Ok(()) };
        let at = self.ring[index].at;
        let is_read = matches!(done.kind, CompletionKind::Read(_));
        let buffer = done.kind.into_buffers().and_then(Buffers::into_owned);
        if is_read {
            let Some(mut buffer) = buffer else { return Err(CopyError::Read(at, Error::Closed)) };
            match done.result {
                Ok(()) => self.blank_tail(index, &mut buffer),
                Err(_) if self.plan.salvage => self.rescue(index, &mut buffer)?,
                Err(error) => return Err(CopyError::Read(at, error)),
            }
            self.ring[index].state = State::Ready(buffer);
            return Ok(());
        }
        done.result.map_err(|error| CopyError::Write(at, error))?;
        let room = self.free.len() < self.depth;
        self.free.extend(buffer.filter(|buffer| room && buffer.as_slice().len() as u64 == self.piece));
        self.flying -= 1;
        if let State::Writing { left, .. } = &mut self.ring[index].state {
            *left -= 1;
        }
        Ok(())
    }

    /// Zeros behind the end of a source that ends within a sector.
    fn blank_tail(&self, index: usize, buffer: &mut Buffer) {
        let Piece { at, len, .. } = self.ring[index];
        let source = self.sources.iter().rfind(|source| source.start <= at);
        let end = source.map_or(0, |source| (source.start + source.len).saturating_sub(at)).min(len);
        buffer.as_mut_slice()[end as usize..len as usize].fill(0);
    }

    /// Reads a piece again, a sector at a time; those that cannot be read are zeros.
    fn rescue(&mut self, index: usize, buffer: &mut Buffer) -> Result<(), CopyError> {
        let Piece { at, len, .. } = self.ring[index];
        let Some(source) = self.sources.iter().rfind(|source| source.start <= at) else { return Ok(()) };
        let (disk, start, end) = (source.disk, source.start, source.start + source.len);
        for offset in (at..at + len).step_by(SECTOR) {
            let sector = &mut buffer.as_mut_slice()[(offset - at) as usize..][..SECTOR];
            sector.fill(0);
            let here = end.saturating_sub(offset).min(SECTOR as u64) as usize;
            if here == 0 {
                continue;
            }
            let request = Request::read(offset - start, Buffer::zeroed(here), 0);
            match self.disks.run(disk, request) {
                Ok(done) => {
                    if let Some(bytes) = done.kind.buffers() {
                        bytes.copy_to(sector);
                    }
                }
                Err(Error::Closed) => return Err(CopyError::Driver(Error::Closed)),
                Err(error) => (self.told)(CopyStep::Lost(offset, error)),
            }
        }
        Ok(())
    }
}

/// Bytes that a request writes.
fn bytes_of(request: &Request) -> u64 {
    match &request.kind {
        RequestKind::Write { buffers, .. } | RequestKind::WriteCompressed { buffers, .. } => buffers.len(),
        RequestKind::WriteZeroes { len, .. } => *len,
        _ => 0,
    }
}

fn zeroes(at: u64, len: u64, user: u64) -> Request {
    Request::write_zeroes(at, len, user).may_unmap()
}
