//! The driver under test, through its public interface: many requests in flight, every answer checked.

use super::qemu::Run;
use super::random::Random;
use quod::{
    Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Driver, Error, Extent, Format, OpenOptions,
    Refusal, Request, Status,
};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// No request takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// One thing to do with a disk. The ranges of a wave's writes do not overlap.
#[derive(Clone, Debug)]
pub enum Op {
    Read(Range<usize>),
    Write(usize, Vec<u8>, bool),
    Zero(Range<usize>, bool),
    Discard(Range<usize>),
    Resize(usize),
    Flush,
}

impl Op {
    /// What it changes.
    pub fn changes(&self) -> Range<usize> {
        match self {
            Op::Write(at, bytes, _) => *at..at + bytes.len(),
            Op::Zero(range, _) | Op::Discard(range) => range.clone(),
            Op::Read(_) | Op::Resize(_) | Op::Flush => 0..0,
        }
    }

    /// Does it to the model. What a discard names keeps its bytes: QED has no way to give them back.
    pub fn apply(&self, model: &mut Vec<u8>) {
        match self {
            Op::Write(at, bytes, _) => model[*at..at + bytes.len()].copy_from_slice(bytes),
            Op::Zero(range, _) => model[range.clone()].fill(0),
            Op::Resize(size) => model.resize(*size, 0),
            Op::Read(_) | Op::Discard(_) | Op::Flush => {}
        }
    }

    fn request(&self, user: u64, random: &mut Random) -> Request {
        let span = |range: &Range<usize>| (range.start as u64, range.len() as u64);
        match self {
            Op::Read(range) => {
                Request::read(range.start as u64, scattered(&vec![0xee; range.len()], random), user)
            }
            Op::Write(at, bytes, fua) => {
                let request = Request::write(*at as u64, scattered(bytes, random), user);
                if *fua { request.fua() } else { request }
            }
            Op::Zero(range, unmap) => {
                let (offset, len) = span(range);
                let request = Request::write_zeroes(offset, len, user);
                if *unmap { request.may_unmap() } else { request }
            }
            Op::Discard(range) => Request::discard(range.start as u64, range.len() as u64, user),
            Op::Resize(size) => Request::resize(*size as u64, user),
            Op::Flush => Request::flush(user),
        }
    }
}

/// One buffer, or three that meet anywhere.
fn scattered(bytes: &[u8], random: &mut Random) -> Buffers {
    if random.one_in(2) {
        return Buffers::Owned(Buffer::from(bytes));
    }
    let a = random.below(bytes.len() as u64 + 1) as usize;
    let b = a + random.below((bytes.len() - a) as u64 + 1) as usize;
    Buffers::Vec([&bytes[..a], &bytes[a..b], &bytes[b..]].map(Buffer::from).into())
}

fn collected(kind: &CompletionKind) -> Vec<u8> {
    kind.buffers().map_or_else(Vec::new, Buffers::to_vec)
}

/// An open disk.
pub struct Ours {
    pub driver: Driver,
    pub disk: DiskId,
    pub story: String,
}

impl Ours {
    pub fn open(path: &Path, options: OpenOptions, config: Config, story: &str) -> Result<Ours, Error> {
        let mut driver = Driver::new(config)?;
        let disk = driver.open(path, options)?;
        let mut ours = Ours { driver, disk, story: story.to_string() };
        ours.next().result?;
        Ok(ours)
    }

    pub fn next(&mut self) -> Completion {
        let began = std::time::Instant::now();
        loop {
            if let Some(done) = self.driver.next_completion() {
                return done;
            }
            assert!(began.elapsed() < PATIENCE, "{}: nothing completes", self.story);
            self.driver.wait(Some(PATIENCE)).unwrap();
        }
    }

    /// One request, alone.
    pub fn one(&mut self, request: Request) -> Result<Completion, Error> {
        self.driver.submit(self.disk, request).map_err(|rejected| Error::from(rejected.reason))?;
        let done = self.next();
        match &done.result {
            Ok(()) => Ok(done),
            Err(error) => Err(error.clone()),
        }
    }

    fn submit(&mut self, mut request: Request, early: &mut Vec<Completion>) {
        while let Err(rejected) = self.driver.submit(self.disk, request) {
            assert_eq!(rejected.reason, Refusal::Busy, "{}", self.story);
            early.push(self.next());
            request = rejected.request;
        }
    }

    /// All of them at once. Reads see, byte for byte, what was there before or what the wave wrote.
    pub fn wave(&mut self, ops: &[Op], model: &mut Vec<u8>, random: &mut Random) {
        let before = model.clone();
        let mut done = Vec::new();
        for (user, op) in ops.iter().enumerate() {
            let request = op.request(user as u64, random);
            self.submit(request, &mut done);
            if random.one_in(4) {
                self.driver.turn().unwrap();
            }
        }
        while done.len() < ops.len() {
            let completion = self.next();
            done.push(completion);
        }
        ops.iter().for_each(|op| op.apply(model));
        for completion in done {
            let op = &ops[completion.user as usize];
            let story = &self.story;
            assert_eq!(completion.result, Ok(()), "{story}: {op:?}");
            if let Op::Read(range) = op {
                let bytes = collected(&completion.kind);
                assert_eq!(bytes.len(), range.len());
                let wrong = bytes
                    .iter()
                    .zip(range.clone())
                    .find(|&(&byte, at)| byte != before[at] && byte != model[at]);
                assert!(wrong.is_none(), "{story}: read {range:?} found {wrong:?}");
            }
        }
    }

    /// The whole disk, read with many requests in flight.
    pub fn disk_bytes(&mut self) -> Vec<u8> {
        const CHUNK: usize = 192 << 10;
        let size = self.driver.disk_info(self.disk).unwrap().virtual_size() as usize;
        let mut bytes = vec![0xdd; size];
        let mut done = Vec::new();
        let mut begun = 0;
        for at in (0..size).step_by(CHUNK) {
            let buffer = Buffer::from(vec![0xcc; CHUNK.min(size - at)].as_slice());
            self.submit(Request::read(at as u64, buffer, at as u64), &mut done);
            begun += 1;
        }
        while done.len() < begun {
            let completion = self.next();
            done.push(completion);
        }
        for completion in done {
            assert_eq!(completion.result, Ok(()), "{}", self.story);
            let at = completion.user as usize;
            let read = collected(&completion.kind);
            bytes[at..at + read.len()].copy_from_slice(&read);
        }
        bytes
    }

    /// Panics unless the disk holds these bytes.
    pub fn assert_holds(&mut self, model: &[u8], when: &str) {
        let bytes = self.disk_bytes();
        assert_eq!(bytes.len(), model.len(), "{}: {when}: size", self.story);
        // whole slices compare faster than bytes do
        let wrong = (bytes != model).then(|| bytes.iter().zip(model).position(|(a, b)| a != b));
        assert!(wrong.is_none(), "{}: {when}: byte {wrong:?} differs", self.story);
    }

    fn extent(&mut self, layer: usize, start: u64, length: u64) -> Extent {
        let done = self.one(Request::map(layer, start, length, 0)).unwrap();
        done.kind.extent().expect("map gives an extent")
    }

    /// The map of the whole chain, as `qemu-img map` tells it.
    pub fn map(&mut self) -> Vec<Run> {
        let info = self.driver.disk_info(self.disk).unwrap().clone();
        let sizes: Vec<u64> =
            info.layers().iter().map(|layer| layer.info.virtual_size.next_multiple_of(512)).collect();
        let mut runs: Vec<Run> = Vec::new();
        let mut at = 0;
        while at < info.virtual_size() {
            let (mut depth, mut length) = (0, info.virtual_size() - at);
            let run = loop {
                if info.layers()[depth].info.format == Format::Raw {
                    break raw_run(&info.layers()[depth].path, depth, at, length);
                }
                let extent = self.extent(depth, at, length);
                length = length.min(extent.len);
                assert!(length > 0 && extent.offset == at, "{}: {extent:?}", self.story);
                let base = Run { start: at, length, depth: depth as u64, ..Run::default() };
                match extent.status {
                    Status::Data => break Run { present: true, data: true, offset: extent.host, ..base },
                    Status::Zero => {
                        break Run { present: true, zero: true, offset: extent.host, ..base };
                    }
                    Status::Compressed => break Run { present: true, data: true, compressed: true, ..base },
                    Status::Unallocated => {}
                }
                match sizes.get(depth + 1) {
                    Some(&below) if at < below => length = length.min(below - at),
                    _ => break Run { zero: true, ..base },
                }
                depth += 1;
            };
            at += run.length;
            push(&mut runs, run);
        }
        runs
    }

    pub fn close(mut self) {
        self.one(Request::close(0)).unwrap_or_else(|error| panic!("{}: close: {error}", self.story));
        assert!(self.driver.idle());
    }
}

/// Appends a run, joined with the last if it continues it.
pub fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut() {
        let kind =
            |run: &Run| (run.depth, run.present, run.zero, run.data, run.compressed, run.offset.is_some());
        let follows = last.offset.is_none_or(|offset| Some(offset + last.length) == run.offset);
        if kind(last) == kind(&run) && follows {
            last.length += run.length;
            return;
        }
    }
    runs.push(run);
}

/// Data and holes of a raw file.
fn raw_run(path: &Path, depth: usize, start: u64, length: u64) -> Run {
    let file = File::open(path).unwrap();
    // SAFETY: a plain system call on a descriptor that is open.
    let seek = |whence| unsafe { libc::lseek(file.as_raw_fd(), start as i64, whence) };
    let depth = depth as u64;
    let run = Run { start, length, depth, present: true, data: true, offset: Some(start), ..Run::default() };
    let (data, hole) = (seek(libc::SEEK_DATA), seek(libc::SEEK_HOLE));
    if data as u64 > start {
        let length = length.min((data as u64).saturating_sub(start));
        return Run { length, zero: true, data: false, ..run };
    }
    Run { length: length.min(hole as u64 - start), ..run }
}

/// A set of byte ranges that do not overlap.
#[derive(Default)]
pub struct Apart(HashMap<u64, Vec<Range<usize>>>);

impl Apart {
    /// False if it overlaps one that is there.
    pub fn add(&mut self, range: &Range<usize>) -> bool {
        let pages = |range: &Range<usize>| range.start as u64 >> 20..=(range.end.max(1) - 1) as u64 >> 20;
        let free = pages(range).all(|page| {
            self.0
                .get(&page)
                .is_none_or(|list| list.iter().all(|r| r.end <= range.start || range.end <= r.start))
        });
        if free && !range.is_empty() {
            pages(range).for_each(|page| self.0.entry(page).or_default().push(range.clone()));
        }
        free
    }
}
