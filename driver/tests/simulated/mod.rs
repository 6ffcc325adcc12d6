//! A driver over the simulated disk, whole requests at a time, in an order that a seed chooses; and sectors
//! that say whose they are.

use quod::{
    AllowAll, Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Driver, Error, Format,
    OpenOptions, Refusal, Request,
};
use quod_backend::sim::{Choice, Chooser, FileOptions, OpKind, PendingOp, Seeded, Sim};
use quod_tools::{self as tools, CreateOptions};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub const SECTOR: usize = 512;

/// The bytes of a new image.
pub fn image(options: &CreateOptions) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    tools::create(folder.path().join("image"), options).unwrap();
    std::fs::read(folder.path().join("image")).unwrap()
}

/// A new qcow2 image; `change` sets what is not qemu-img's default.
pub fn qcow2(size: u64, change: impl FnOnce(&mut CreateOptions)) -> Vec<u8> {
    let mut options = CreateOptions::new(Format::Qcow2, size);
    change(&mut options);
    image(&options)
}

/// A sector that says which it is, and which version of it.
pub fn sector(number: u64, version: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (n, word) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        word[..8].copy_from_slice(&(number + 1).to_le_bytes());
        word[8..12].copy_from_slice(&version.to_le_bytes());
        word[12..].copy_from_slice(&(n as u32 ^ 0x5a5a_0000).to_le_bytes());
    }
    bytes
}

/// Sectors from byte `offset` on.
pub fn sectors(offset: u64, len: u64, version: u32) -> Vec<u8> {
    let number = offset / SECTOR as u64;
    (0..len / SECTOR as u64).flat_map(|n| sector(number + n, version)).collect()
}

/// The version of a sector that is what it should be: whole, at its place. 0: zeros.
pub fn version(number: u64, bytes: &[u8]) -> Option<u32> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    (bytes == sector(number, version)).then_some(version)
}

pub fn bytes_of(kind: &CompletionKind) -> Vec<u8> {
    kind.buffers().map_or_else(Vec::new, Buffers::to_vec)
}

/// An open disk on a simulated device.
pub struct World {
    pub driver: Driver<Sim>,
    pub disk: DiskId,
    pub order: Seeded,
    /// Operations of this kind do not complete as long as there are others.
    pub late: Option<OpKind>,
    /// Looks at the device after each of its steps.
    pub watch: fn(&Sim),
}

/// Chooses among the operations that are not held back.
struct Choosing<'a>(&'a mut Seeded, Vec<usize>);

impl Chooser for Choosing<'_> {
    fn choose(&mut self, what: Choice, n: usize) -> usize {
        match what {
            Choice::NextCompletion => self.1[self.0.choose(what, self.1.len())],
            _ => self.0.choose(what, n),
        }
    }
}

/// A disk with these files; "disk" is the image.
pub fn device(files: &[(&str, &[u8])]) -> Sim {
    let mut sim = Sim::new();
    for (name, bytes) in files {
        sim.insert_file(*name, bytes, FileOptions::default());
    }
    sim
}

pub fn writable() -> OpenOptions {
    OpenOptions::new().write(true).open_gate(AllowAll)
}

impl World {
    pub fn open(sim: Sim, options: OpenOptions, seed: u64) -> World {
        World::try_open(sim, options, seed).unwrap()
    }

    pub fn try_open(sim: Sim, options: OpenOptions, seed: u64) -> Result<World, Error> {
        let config = Config::default().requests(600);
        let mut driver = Driver::with_backend(sim, config).unwrap();
        let disk = driver.open("disk", options).unwrap();
        let mut world = World { driver, disk, order: Seeded::new(seed), late: None, watch: |_| () };
        let opened = world.next().result;
        opened.map(|()| world)
    }

    /// One operation of the device completes, or time passes. False: there is nothing to wait for.
    pub fn step(&mut self) -> bool {
        self.driver.turn().unwrap();
        let sim = self.driver.backend_mut();
        let pending: Vec<PendingOp> = sim.pending().take(sim.steppable()).collect();
        let mut allowed: Vec<usize> =
            (0..pending.len()).filter(|n| Some(pending[*n].kind) != self.late).collect();
        if allowed.is_empty() {
            allowed = (0..pending.len()).collect();
        }
        // a question with one answer is not asked
        if pending.len() > 1 || !allowed.is_empty() {
            sim.step(&mut Choosing(&mut self.order, allowed));
            (self.watch)(sim);
            return true;
        }
        match self.driver.next_timeout() {
            Some(time) if time > Duration::ZERO => self.driver.backend_mut().advance(time),
            Some(_) => {}
            None => return false,
        }
        true
    }

    pub fn next(&mut self) -> Completion {
        for _ in 0..200_000 {
            if let Some(done) = self.driver.next_completion() {
                return done;
            }
            self.step();
        }
        panic!("nothing completes");
    }

    /// All at once, as far as the driver takes them.
    pub fn together(&mut self, requests: Vec<Request>) -> Vec<Completion> {
        let count = requests.len();
        let mut done = Vec::new();
        for mut request in requests {
            while let Err(rejected) = self.driver.submit(self.disk, request) {
                assert_eq!(rejected.reason, Refusal::Busy);
                done.push(self.next());
                request = rejected.request;
            }
        }
        while done.len() < count {
            done.push(self.next());
        }
        done
    }

    pub fn try_one(&mut self, request: Request) -> Result<Completion, Error> {
        self.driver.submit(self.disk, request).map_err(|rejected| Error::from(rejected.reason))?;
        let done = self.next();
        done.result.clone().map(|()| done)
    }

    pub fn one(&mut self, request: Request) -> Completion {
        self.try_one(request).unwrap()
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.one(Request::write(offset, Buffer::from(bytes), 0));
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let done = self.one(Request::read(offset, Buffer::from(&vec![0xdd; len][..]), 0));
        bytes_of(&done.kind)
    }

    /// Takes the device's files as they are.
    pub fn file(&self) -> Vec<u8> {
        self.driver.backend().file_bytes("disk")
    }
}

/// Runs one of QEMU's programs; its exit code and what it said.
pub fn qemu(program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install QEMU's tools"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// What QEMU says of an image: no corruption, no leak, and these bytes.
pub fn judge(path: &Path, model: &[u8], story: &str) {
    let arg = path.to_str().unwrap();
    let (code, text) = qemu("qemu-img", &["check", "-f", "qcow2", arg]);
    assert!(code == 0, "{story}: {text}");
    let raw = path.with_extension("expected.raw");
    std::fs::write(&raw, model).unwrap();
    let (code, text) = qemu("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", arg, raw.to_str().unwrap()]);
    assert!(code == 0, "{story}: {text}");
    std::fs::remove_file(raw).unwrap();
}

/// The same for bytes; `others`: files that the image needs.
pub fn judge_bytes(file: &[u8], others: &[(&str, &[u8])], model: &[u8], story: &str) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in others {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let path = folder.path().join("disk");
    std::fs::write(&path, file).unwrap();
    judge(&path, model, story);
}

/// What our own check says of bytes: corruptions, leaks.
pub fn check_bytes(file: &[u8]) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, file).unwrap();
    let report = tools::check(&path, Some(Format::Qcow2), None).unwrap();
    assert_eq!(report.check_errors, 0);
    (report.corruptions, report.leaks)
}
