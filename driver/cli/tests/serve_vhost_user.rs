//! `quod serve vhost-user`: killed under load and started again, ended by signals, and what it refuses. The
//! guest is `bench/guest.sh`'s; here a front end in Rust stands for it.

mod common;

use common::server::Server;
use common::{documented, must, prepare, run, shell};
use quod_vhost_load::vm_memory::{Bytes, GuestAddress};
use quod_vhost_load::{Ask, Guest, Options};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

struct Served {
    server: Server,
}

impl Served {
    fn new(folder: &Path, args: &[&str]) -> Served {
        let (served, line) = Served::start(folder, args);
        assert_eq!(line, "Serving at s\n");
        served
    }

    /// Behind one that was killed: until the kernel has let go of its ring, which takes longer than a server
    /// waits where the machine is busy, the image is locked.
    fn again(folder: &Path, args: &[&str]) -> Served {
        let until = Instant::now() + LONG;
        loop {
            let (served, line) = Served::start(folder, args);
            if line == "Serving at s\n" {
                return served;
            }
            assert!(line.is_empty() && Instant::now() < until, "{line}");
        }
    }

    fn start(folder: &Path, args: &[&str]) -> (Served, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quod"));
        command.args(["serve", "vhost-user", "--socket", "s"]).args(args).current_dir(folder);
        let (server, line) = Server::start(&mut command);
        (Served { server }, line)
    }

    fn kill(&mut self) {
        self.server.signal(rustix::process::Signal::KILL);
        self.server.wait(LONG);
    }

    fn end(mut self) -> ExitStatus {
        self.server.signal(rustix::process::Signal::TERM);
        self.server.wait(LONG)
    }
}

/// Blocks of the disk.
const BLOCKS: u64 = 2000;

/// What a guest writes, and knows of.
struct Writer {
    guest: Guest,
    /// By head: which block, and which version.
    under_way: Vec<Option<(u64, u8)>>,
    /// By block: the version that it has; None while one is under way.
    versions: Vec<Option<u8>>,
    state: u64,
}

impl Writer {
    fn new(guest: Guest, heads: usize) -> Writer {
        let versions = vec![Some(0); BLOCKS as usize];
        Writer { guest, under_way: vec![None; heads], versions, state: 1 }
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.state >> 33
    }

    /// Begins writes, until no head is free.
    fn begin(&mut self) {
        for _ in 0..self.under_way.len() {
            let block = self.random() % BLOCKS;
            let Some(version) = self.versions[block as usize] else { continue };
            let version = version.wrapping_add(1);
            let at = self.guest.data() + block * 4096;
            self.guest.memory.write_slice(&[version; 4096], GuestAddress(at)).unwrap();
            let asked = self.guest.queues[0].request(Ask::Write, block * 8, &[(at, 4096)]).unwrap();
            let Some(head) = asked else { break };
            self.under_way[usize::from(head)] = Some((block, version));
            self.versions[block as usize] = None;
        }
        self.guest.queues[0].kick().unwrap();
    }

    /// Takes what has ended. A head that ends twice is an error of the queue's.
    fn take(&mut self) -> usize {
        let mut taken = 0;
        while let Some((head, len)) = self.guest.queues[0].ended().unwrap() {
            assert_eq!((self.guest.queues[0].status(head), len), (0, 1));
            let (block, version) = self.under_way[usize::from(head)].take().expect("it was asked for");
            self.versions[block as usize] = Some(version);
            taken += 1;
        }
        taken
    }

    fn finish(&mut self) {
        while self.under_way.iter().any(Option::is_some) {
            if self.take() == 0 {
                assert!(self.guest.wait(LONG).unwrap(), "a request was lost");
            }
        }
    }
}

/// Code of a boot sector: says its text at the first serial port, and resets the machine.
const BOOT: &[u8] = &[
    0xbe, 0x20, 0x7c, // mov si, text
    0x31, 0xc0, 0x8e, 0xd8, // ds = 0
    0xba, 0xf8, 0x03, // mov dx, port
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // until a zero: out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // the keyboard's controller resets
    0xf4, 0xeb, 0xfd, // halt
];
const TEXT: &str = "booted from quod\r\n";

/// The two commands of docs/serve.md, as they stand there: a machine starts from the disk. It is told beside
/// that to have no screen, and to end when it is reset.
#[test]
fn the_commands_of_the_documentation_work() {
    let blocks = documented("serve.md", "quod serve vhost-user");
    let [block] = &blocks[..] else { panic!("{blocks:?}") };
    let [first, second] = &block[..] else { panic!("{block:?}") };
    assert!(second.starts_with("qemu-system-x86_64 "), "{second}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut sector = vec![0u8; 512];
    sector[..BOOT.len()].copy_from_slice(BOOT);
    sector[0x20..0x20 + TEXT.len()].copy_from_slice(TEXT.as_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path.join("sector"), &sector).unwrap();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"], path);
    prepare("qemu-io", &["-c", "write -s sector 0 512", "disk.qcow2"], path);
    let (server, line) = Server::start(&mut shell(&format!("exec {first}"), path));
    assert_eq!(line, "Serving at disk.sock\n");
    let machine = format!("{second} -display none -serial stdio -no-reboot");
    let told = must("sh", &["-c", &machine], path);
    assert!(told.contains(TEXT), "{told}");
    assert_eq!(Served { server }.end().code(), Some(0));
    must("qemu-img", &["check", "-q", "disk.qcow2"], path);
}

/// A server that is killed at any moment and started again: the front end waits, and loses nothing.
#[test]
fn a_killed_server_loses_nothing_and_answers_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "d", "64M"], path);
    let mut served = Served::new(path, &["d"]);
    let guest = Guest::connect(&path.join("s"), Options::default()).unwrap();
    let mut writer = Writer::new(guest, 128);
    let mut in_the_middle = 0;
    for round in 0..100 {
        let until = Instant::now() + Duration::from_micros(writer.random() % 20_000);
        while Instant::now() < until {
            writer.begin();
            writer.take();
        }
        served.kill();
        in_the_middle += usize::from(writer.under_way.iter().any(Option::is_some));
        served = Served::again(path, &["d"]);
        writer.guest.reconnect(&path.join("s")).unwrap();
        if round % 10 == 9 {
            writer.finish();
        }
    }
    writer.finish();
    assert!(in_the_middle > 50, "only {in_the_middle} kills were in the middle of something");
    let data = writer.guest.data();
    for block in 0..BLOCKS {
        let at = GuestAddress(data + block * 4096);
        writer.guest.memory.write_slice(&[0xee; 4096], at).unwrap();
        writer.guest.queues[0].request(Ask::Read, block * 8, &[(at.0, 4096)]).unwrap().unwrap();
        writer.guest.queues[0].kick().unwrap();
        while writer.guest.queues[0].ended().unwrap().is_none() {
            assert!(writer.guest.wait(LONG).unwrap());
        }
        let mut found = [0; 4096];
        writer.guest.memory.read_slice(&mut found, at).unwrap();
        let version = writer.versions[block as usize].unwrap();
        assert!(found.iter().all(|&byte| byte == version), "block {block}: {} for {version}", found[0]);
    }
    drop(writer);
    assert_eq!(served.end().code(), Some(0));
    assert!(!path.join("s").exists(), "the socket is gone");
    // a kill may leave clusters that nobody uses, and nothing worse
    let told = run("qemu-img", &["check", "-q", "-r", "leaks", "d"], path, "");
    assert!(told.code == Some(0), "{told:?}");
    must("qemu-img", &["check", "-q", "d"], path);
}

#[test]
fn what_cannot_be_served_is_said_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "d", "1M"], path);
    prepare("qemu-img", &["create", "-q", "-f", "raw", "r", "1M"], path);
    let quod = env!("CARGO_BIN_EXE_quod");
    let refused = |args: &[&str], words: &str| {
        let told = run(quod, &[&["serve", "vhost-user"], args].concat(), path, "");
        assert_eq!(told.code, Some(1), "{args:?}: {told:?}");
        assert!(told.stderr.contains(words), "{args:?}: {told:?}");
    };
    refused(&["d"], "nowhere to listen: --socket PATH");
    refused(&["-k", "t", "missing"], "No such file or directory");
    refused(&["-k", "t", "r"], "r: it has no signature of a format; name it (raw)");
    refused(&["-k", "no/such/folder", "d"], "cannot listen at no/such/folder: No such file or directory");
    assert!(!path.join("t").exists(), "no socket stays");
    let served = Served::new(path, &["d"]);
    refused(&["-k", "s", "d"], "s: another server listens there already");
    refused(&["-k", "t", "d"], "Failed to get \"write\" lock");
    assert_eq!(served.end().code(), Some(0));
    for queues in ["0", "257"] {
        let told = run(quod, &["serve", "vhost-user", "-k", "t", "--num-queues", queues, "d"], path, "");
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stderr.contains("is not in 1..=256"), "{told:?}");
    }
}

/// A signal in the middle of requests: they are answered, or left to the next server.
#[test]
fn a_signal_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "d", "64M"], path);
    let served = Served::new(path, &["--num-queues", "2", "d"]);
    let guest = Guest::connect(&path.join("s"), Options::default()).unwrap();
    assert_eq!(guest.server, Some(served.server.id()));
    let mut writer = Writer::new(guest, 128);
    writer.begin();
    assert_eq!(served.end().code(), Some(0));
    must("qemu-img", &["check", "-q", "d"], path);
    let served = Served::new(path, &["d"]);
    writer.guest.reconnect(&path.join("s")).unwrap();
    writer.finish();
    assert_eq!(served.end().code(), Some(0));
}
