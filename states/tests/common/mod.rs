//! A disk of bytes that answers the machine's I/O in an order that a seed chooses. The whole embedder in one
//! file.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod qcow2;

use quod_states::qed::{CreateOptions, Header};
use quod_states::{
    AcbId, Event, FillSource, Image, Io, IoId, IoOp, Kind, Machine, Opened, Opening, Options, Outcome, Part,
    Refused, Request, RequestId,
};
use std::collections::BTreeMap;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The bytes of a fresh QED image.
pub fn qed_file(size: u64, cluster_size: u32, table_size: u32, backing: Option<&[u8]>) -> Vec<u8> {
    let options = CreateOptions { size, cluster_size, table_size, backing, backing_raw: true };
    let header = Header::create(&options).unwrap();
    let mut file = vec![0; (header.l1_table_offset + header.table_bytes()) as usize];
    file[..64].copy_from_slice(&header.encode());
    let name = backing.unwrap_or(b"");
    file[64..64 + name.len()].copy_from_slice(name);
    file
}

/// A fresh QED image with clusters of 64 KiB, opened.
pub fn qed_disk(size: u64, table: u32, backing: Option<Vec<u8>>, options: Options) -> (Disk, Image) {
    let name = backing.as_ref().map(|_| b"base".as_slice());
    let mut disk = Disk::new(qed_file(size, 65536, table, name), backing, options.align.into());
    let image = disk.open(options).unwrap().image;
    (disk, image)
}

/// Submits a write whose bytes tell who made it.
pub fn write(disk: &mut Disk, image: &mut Image, offset: u64, len: u64, user: u64) {
    disk.submit(image, request(Kind::Write, offset, len, user), vec![user as u8 | 1; len as usize]).unwrap();
}

#[derive(Default)]
pub struct Fills {
    generation: u32,
    parts: [Vec<u8>; 2],
}

/// One I/O as the device saw it. Times count the device's events.
pub struct Step {
    pub op: IoOp,
    id: IoId,
    /// What a table write writes.
    pub bytes: Vec<u8>,
    pub submitted: u64,
    /// `u64::MAX`: not yet.
    pub completed: u64,
    pub failed: bool,
}

/// An ended request: its user value, how it ended, its buffer, its id.
pub type Answer = (u64, Result<(), quod_states::Error>, Vec<u8>, RequestId);

pub struct Disk {
    pub file: Vec<u8>,
    /// The external data file, of an image that has one.
    pub data: Option<Vec<u8>>,
    pub backing: Option<Vec<u8>>,
    pub pending: Vec<(Io, Vec<u8>)>,
    pub buffers: BTreeMap<RequestId, Vec<u8>>,
    pub done: Vec<Answer>,
    pub alarms: Vec<quod_states::Alarm>,
    pub extent: Option<quod_states::Extent>,
    /// What the last answered request of each user value met.
    pub paths: BTreeMap<u64, quod_states::Met>,
    fills: BTreeMap<u32, Fills>,
    /// The n-th I/O from now fails with this error number.
    pub fail: Option<(u64, i32)>,
    pub align: u64,
    full: bool,
    /// The file grows no further.
    pub room: u64,
    /// Holes can be punched.
    pub holes: bool,
    /// All I/O since the disk was made or the log cleared.
    pub log: Vec<Step>,
    clock: u64,
}

impl Disk {
    pub fn new(file: Vec<u8>, backing: Option<Vec<u8>>, align: u64) -> Disk {
        Disk {
            file,
            data: None,
            backing,
            pending: Vec::new(),
            buffers: BTreeMap::new(),
            done: Vec::new(),
            alarms: Vec::new(),
            extent: None,
            paths: BTreeMap::new(),
            fills: BTreeMap::new(),
            fail: None,
            align,
            full: false,
            room: u64::MAX,
            holes: true,
            log: Vec::new(),
            clock: 0,
        }
    }

    pub fn open(&mut self, options: Options) -> Result<Opened, quod_states::Error> {
        let mut opening = Opening::new(None, self.file.len() as u64, options);
        loop {
            if let Some(result) = opening.poll_result() {
                return result.map(|mut opened| {
                    let len = self.backing.as_ref().map(|backing| backing.len() as u64);
                    opened.image.set_backing_len(len);
                    opened
                });
            }
            let io = opening.poll_io().expect("an opening that is not done wants something");
            let bytes = self.encode(&mut opening, io);
            self.perform(&mut opening, io, bytes);
        }
    }

    fn encode(&self, machine: &mut impl Machine, io: Io) -> Vec<u8> {
        let IoOp::WriteTable { offset, len } = io.op else { return Vec::new() };
        assert_eq!(offset % self.align.max(512), 0, "table writes are aligned");
        assert_eq!(u64::from(len) % self.align.max(512), 0, "table writes are whole blocks");
        let mut bytes = vec![0xee; len as usize];
        machine.encode(io.id, &mut bytes);
        bytes
    }

    pub fn submit(
        &mut self,
        image: &mut Image,
        request: Request,
        bytes: Vec<u8>,
    ) -> Result<RequestId, Refused> {
        let id = image.submit(request)?;
        self.buffers.insert(id, bytes);
        self.drain(image);
        Ok(id)
    }

    pub fn drain(&mut self, image: &mut Image) {
        while let Some(io) = image.poll_io() {
            if let IoOp::ZeroBuffer { request, buffer_offset, len } = io.op {
                let buffer = self.buffers.get_mut(&request).unwrap();
                buffer[buffer_offset as usize..(buffer_offset + len) as usize].fill(0);
                continue;
            }
            if let IoOp::ForgetCompressed { .. } = io.op {
                continue;
            }
            let bytes = self.encode(image, io);
            self.clock += 1;
            let (submitted, completed) = (self.clock, u64::MAX);
            let step =
                Step { op: io.op, id: io.id, bytes: bytes.clone(), submitted, completed, failed: false };
            self.log.push(step);
            self.pending.push((io, bytes));
        }
        while let Some(alarm) = image.poll_timeout() {
            self.alarms.push(alarm);
        }
        while let Some(event) = image.poll_event() {
            if let Event::Done { request, user, result, extent, met } = event {
                self.paths.insert(user, met);
                let buffer = self.buffers.remove(&request).unwrap_or_default();
                self.extent = extent.map(|extent| *extent).or(self.extent);
                self.done.push((user, result.map_err(|error| *error), buffer, request));
            }
        }
        while image.poll_transition().is_some() {}
        image.check_invariants().unwrap();
    }

    /// Completes pending I/O `index`.
    pub fn complete(&mut self, image: &mut Image, index: usize) {
        let (io, bytes) = self.pending.swap_remove(index);
        self.perform(image, io, bytes);
        self.drain(image);
    }

    /// Completes the oldest pending I/O.
    pub fn complete_first(&mut self, image: &mut Image) {
        let (io, bytes) = self.pending.remove(0);
        self.perform(image, io, bytes);
        self.drain(image);
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        part(&self.file, offset, len)
    }

    /// Of the file that holds the guest's data.
    fn read_data(&self, offset: u64, len: u64) -> Vec<u8> {
        part(self.data.as_ref().unwrap_or(&self.file), offset, len)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        put(&mut self.file, offset, bytes);
    }

    fn write_data(&mut self, offset: u64, bytes: &[u8]) {
        put(self.data.as_mut().unwrap_or(&mut self.file), offset, bytes);
    }

    fn fill(&mut self, acb: AcbId) -> &mut Fills {
        let fills = self.fills.entry(acb.index).or_default();
        if fills.generation != acb.generation {
            *fills = Fills { generation: acb.generation, ..Fills::default() };
        }
        fills
    }

    fn perform(&mut self, machine: &mut impl Machine, io: Io, bytes: Vec<u8>) {
        self.clock += 1;
        let fails = self.fail.is_some_and(|(count, _)| count == 0);
        let in_flight = |step: &&mut Step| step.id == io.id && step.completed == u64::MAX;
        if let Some(step) = self.log.iter_mut().rev().find(in_flight) {
            (step.completed, step.failed) = (self.clock, fails);
        }
        if let Some((count, errno)) = &mut self.fail {
            if *count == 0 {
                let errno = *errno;
                // a full device stays full for the smaller second try
                self.fail = matches!(io.op, IoOp::Grow { .. }).then_some((0, errno)).filter(|_| !self.full);
                self.full = self.fail.is_some();
                return machine.handle_completion(io.id, Outcome::Failed(errno));
            }
            *count -= 1;
        }
        let cannot = match io.op {
            IoOp::Grow { to, .. } if to > self.room => Some(28),
            IoOp::PunchHole { .. } if !self.holes => Some(95),
            _ => None,
        };
        if let Some(errno) = cannot {
            return machine.handle_completion(io.id, Outcome::Failed(errno));
        }
        match io.op {
            IoOp::ReadTable { offset, len } => {
                let bytes = self.read(offset, len.into());
                return machine.handle_completion(io.id, Outcome::Table(&bytes));
            }
            IoOp::WriteTable { offset, .. } => self.write(offset, &bytes),
            IoOp::ReadData { request, buffer_offset, len, host } => {
                let bytes = self.read_data(host, len);
                self.fill_buffer(request, buffer_offset, &bytes);
            }
            IoOp::ReadBacking { request, buffer_offset, len, guest } => {
                let backing = self.backing.as_ref().unwrap();
                let bytes = backing[guest as usize..(guest + len) as usize].to_vec();
                self.fill_buffer(request, buffer_offset, &bytes);
            }
            IoOp::ReadCompressed { request, buffer_offset, len, host, within, .. } => {
                let bytes = qcow2::decompress(&self.read(host, 8), within.into(), len);
                self.fill_buffer(request, buffer_offset, &bytes);
            }
            IoOp::ReadFill { acb, part, part_len, at, len, source } => {
                let bytes = match source {
                    FillSource::Host(host) => self.read_data(host, len.into()),
                    FillSource::Backing(guest) => {
                        self.backing.as_ref().unwrap()[guest as usize..][..len as usize].to_vec()
                    }
                    FillSource::Compressed { host, within, .. } => {
                        qcow2::decompress(&self.read(host, 8), within.into(), len.into())
                    }
                };
                let buffer = &mut self.fill(acb).parts[usize::from(part == Part::Tail)];
                buffer.resize(part_len as usize, 0);
                buffer[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            IoOp::WriteData { acb, request, buffer_offset, len, host, head, tail, zero } => {
                let mut fills = std::mem::take(self.fill(acb));
                let [before, after] = &mut fills.parts;
                before.resize(head as usize, 0);
                after.resize(tail as usize, 0);
                let mut all = before.clone();
                if zero || len == 0 {
                    all.resize(all.len() + len as usize, 0);
                } else {
                    all.extend_from_slice(&self.buffers[&request][buffer_offset as usize..][..len as usize]);
                }
                all.extend_from_slice(after);
                let start = host - u64::from(head);
                assert_eq!(start % self.align, 0, "data writes are aligned");
                assert_eq!(all.len() as u64 % self.align, 0, "data writes are whole blocks");
                assert!(
                    self.data.is_some() || start + all.len() as u64 <= self.file.len() as u64,
                    "nothing is written beyond the file"
                );
                self.write_data(start, &all);
            }
            IoOp::ZeroRange { host, len, .. } => self.write_data(host, &vec![0; len as usize]),
            IoOp::PunchHole { host, len } | IoOp::Clear { host, len } => {
                self.write(host, &vec![0; len as usize]);
            }
            IoOp::Grow { from, to } => {
                // it may not have been cut as far as was asked
                assert!(from <= self.file.len() as u64);
                self.file.resize(self.file.len().max(to as usize), 0);
            }
            IoOp::SetLen { len } => self.file.resize(len as usize, 0),
            IoOp::Sync => {}
            IoOp::ZeroBuffer { .. } | IoOp::ForgetCompressed { .. } => unreachable!(),
            IoOp::Yield => {}
        }
        machine.handle_completion(io.id, Outcome::Done);
    }

    fn fill_buffer(&mut self, request: RequestId, offset: u64, bytes: &[u8]) {
        let buffer = self.buffers.get_mut(&request).unwrap();
        buffer[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Completes everything, in an order that the seed chooses.
    pub fn settle(&mut self, image: &mut Image, rng: &mut Rng) {
        let mut steps = 0;
        while !self.pending.is_empty() {
            let index = rng.below(self.pending.len() as u64) as usize;
            self.complete(image, index);
            steps += 1;
            assert!(steps < 1_000_000, "the machine does not come to rest");
        }
        let open = image.open_requests();
        assert_eq!(open, 0, "the device has answered everything, yet requests wait: {}", image.describe());
    }

    /// One request from start to end, alone.
    pub fn run(&mut self, image: &mut Image, request: Request, bytes: Vec<u8>) -> Vec<u8> {
        self.try_run(image, request, bytes).unwrap()
    }

    /// The same of one that may fail.
    pub fn try_run(
        &mut self,
        image: &mut Image,
        request: Request,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, quod_states::Error> {
        self.submit(image, request, bytes).unwrap();
        self.settle(image, &mut Rng(1));
        let (_, result, buffer, _) = self.done.pop().unwrap();
        result.map(|()| buffer)
    }
}

fn part(file: &[u8], offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| file.get(at as usize).copied().unwrap_or(0)).collect()
}

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if end > file.len() {
        file.resize(end, 0);
    }
    file[offset as usize..end].copy_from_slice(bytes);
}

pub fn request(kind: Kind, offset: u64, len: u64, user: u64) -> Request {
    Request { kind, offset, len, flags: quod_states::Flags::empty(), user }
}

/// Opens the image anew and reads everything back.
pub fn read_all(disk: &mut Disk, options: Options) -> Vec<u8> {
    let mut image = disk.open(Options { read_only: true, ..options }).unwrap().image;
    let size = image.virtual_size();
    disk.run(&mut image, request(Kind::Read, 0, size, 0), vec![0xcc; size as usize])
}
