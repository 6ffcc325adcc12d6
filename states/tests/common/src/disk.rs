//! A disk in memory that answers the machine's I/O in an order that a seed chooses, and makes some of it
//! fail.

use crate::packed;
use quod_memory::{Memory, encode, outcome};
use quod_states::qed::{CreateOptions, Header};
use quod_states::{
    Event, Image, Io, IoId, IoOp, Machine, Opened, Opening, Options, Outcome, Refused, Request, RequestId,
    RequestKind,
};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

/// Random numbers of a seed.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.word() % n
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
    disk.submit(image, request(RequestKind::Write, offset, len, user), vec![user as u8 | 1; len as usize])
        .unwrap();
}

/// One I/O as the device saw it. Times count the device's events.
pub struct Step {
    /// What it does.
    pub op: IoOp,
    id: IoId,
    /// What a table write writes.
    pub bytes: Vec<u8>,
    /// When the machine named it.
    pub submitted: u64,
    /// When it was answered; `u64::MAX`: not yet.
    pub completed: u64,
    /// The device refused it.
    pub failed: bool,
}

/// An ended request: its user value, how it ended, its buffer, its id.
pub type Answer = (u64, Result<(), quod_states::Error>, Vec<u8>, RequestId);

/// Files and buffers of an image, I/O in flight, and what came of it.
pub struct Disk {
    memory: Memory,
    /// I/O in flight, with the bytes of what writes tables.
    pub pending: Vec<(Io, Vec<u8>)>,
    /// Ended requests, oldest first.
    pub done: Vec<Answer>,
    /// Alarms that the machine has set.
    pub alarms: Vec<quod_states::Alarm>,
    /// What the last answered question about an extent says.
    pub extent: Option<quod_states::Extent>,
    /// What the last answered request of each user value met.
    pub paths: BTreeMap<u64, quod_states::Met>,
    /// The n-th I/O from now fails with this error number.
    pub fail: Option<(u64, i32)>,
    full: bool,
    /// The file grows no further.
    pub room: u64,
    /// Holes can be punched.
    pub holes: bool,
    /// All I/O since the disk was made or the log cleared.
    pub log: Vec<Step>,
    clock: u64,
}

impl Deref for Disk {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl DerefMut for Disk {
    fn deref_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

/// Eight bytes are a compressed cluster (see `packed.rs`).
fn inflate(file: &[u8], host: u64, within: u64, to: &mut [u8]) {
    to.copy_from_slice(&packed::decompress(&file[host as usize..], within, to.len() as u64));
}

impl Disk {
    /// A disk over these bytes, whose requests lie on multiples of `align`.
    pub fn new(file: Vec<u8>, backing: Option<Vec<u8>>, align: u64) -> Disk {
        let mut memory = Memory::new(file, backing, align, inflate);
        memory.deflate = Some(packed::deflate);
        Disk {
            memory,
            pending: Vec::new(),
            done: Vec::new(),
            alarms: Vec::new(),
            extent: None,
            paths: BTreeMap::new(),
            fail: None,
            full: false,
            room: u64::MAX,
            holes: true,
            log: Vec::new(),
            clock: 0,
        }
    }

    /// Opens the image; an opening that asks for I/O gets it at once.
    pub fn open(&mut self, options: Options) -> Result<Opened, quod_states::Error> {
        let mut opening = Opening::new(None, self.file.len() as u64, options);
        self.finish(&mut opening)
    }

    /// Brings an opening to its end.
    pub fn finish(&mut self, opening: &mut Opening) -> Result<Opened, quod_states::Error> {
        loop {
            if let Some(result) = opening.poll_result() {
                return result.map(|mut opened| {
                    let len = self.backing.as_ref().map(|backing| backing.len() as u64);
                    opened.image.set_backing_len(len);
                    opened
                });
            }
            let io = opening.poll_io().expect("an opening that is not done wants something");
            let bytes = self.encode(opening, io);
            self.perform(opening, io, bytes);
        }
    }

    fn encode(&self, machine: &mut impl Machine, io: Io) -> Vec<u8> {
        if let IoOp::WriteTable { offset, len } = io.op {
            assert_eq!(offset % self.align.max(512), 0, "table writes are aligned");
            assert_eq!(u64::from(len) % self.align.max(512), 0, "table writes are whole blocks");
        }
        let mut bytes = Vec::new();
        encode(machine, &io, &mut bytes);
        bytes
    }

    /// Submits a request whose buffer holds these bytes; what it asks for is pending then.
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

    /// Takes all that the machine has to say, and looks for broken invariants.
    pub fn drain(&mut self, image: &mut Image) {
        while let Some(io) = image.poll_io() {
            if self.memory.at_once(&io.op) {
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

    fn perform(&mut self, machine: &mut impl Machine, io: Io, mut bytes: Vec<u8>) {
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
        self.memory.perform(&io.op, &mut bytes);
        machine.handle_completion(io.id, outcome(&io.op, &bytes));
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

/// A request without flags.
pub fn request(kind: RequestKind, offset: u64, len: u64, user: u64) -> Request {
    Request { kind, offset, len, flags: quod_states::Flags::empty(), user }
}

/// Opens the image anew and reads everything back.
pub fn read_all(disk: &mut Disk, options: Options) -> Vec<u8> {
    let mut image = disk.open(options.read_only(true)).unwrap().image;
    let size = image.virtual_size();
    disk.run(&mut image, request(RequestKind::Read, 0, size, 0), vec![0xcc; size as usize])
}
