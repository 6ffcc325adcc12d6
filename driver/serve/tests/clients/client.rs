//! A server in a thread, and a client that is no more than bytes.

use quod::{Format, OpenOptions};
use quod_serve::{Address, ExportOptions, ServeError, Server, ServerOptions};
use quod_tools::CreateOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST: u16 = 16;

pub const EINVAL: u32 = 22;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// Nobody waits longer for a reply.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of one image, in a thread of its own.
pub struct Served {
    pub folder: TempDir,
    socket: PathBuf,
    stop: UnixStream,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    /// With a new qcow2 image of this size.
    pub fn new(size: u64) -> Served {
        Served::with(size, ServerOptions::default())
    }

    pub fn with(size: u64, options: ServerOptions) -> Served {
        let folder = tempfile::tempdir().unwrap();
        quod_tools::create(folder.path().join("d"), &CreateOptions::new(Format::Qcow2, size)).unwrap();
        Served::of(folder, options)
    }

    /// With the image `d` of this folder.
    pub fn of(folder: TempDir, options: ServerOptions) -> Served {
        Served::opened(folder, options, OpenOptions::new().write(true))
    }

    /// The same, whose backing file lies beside it.
    pub fn of_chain(folder: TempDir, options: ServerOptions) -> Served {
        Served::opened(folder, options, OpenOptions::new().write(true).open_gate(quod::SameDirectory))
    }

    fn opened(folder: TempDir, options: ServerOptions, open: OpenOptions) -> Served {
        let (socket, image) = (folder.path().join("s"), folder.path().join("d"));
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let at = socket.clone();
        let thread = std::thread::spawn(move || {
            let mut server = Server::new(options)?;
            server.listen(&Address::Unix(at))?;
            server.open(ExportOptions::new("", image, open))?;
            server.stop_when_readable(stopped)?;
            ready.send(()).unwrap();
            server.run()
        });
        is_ready.recv().expect("the server begins");
        Served { folder, socket, stop, thread: Some(thread) }
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client of this style that has chosen the export, with all contexts.
    pub fn client(&self, style: Style) -> Client {
        Client::new(self.connect(), style)
    }

    /// Asks for the end, and does not wait for it.
    pub fn ask_to_stop(&mut self) {
        self.stop.write_all(b"x").unwrap();
    }

    /// Ends the server, in order.
    pub fn stop(mut self) -> TempDir {
        self.ask_to_stop();
        self.join();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    pub fn join(&mut self) {
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("it does not panic").expect("it ends in order");
        assert!(!self.socket.exists(), "an ended server leaves no socket");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.write_all(b"x");
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("it does not panic").expect("it ends in order");
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Simple,
    Structured,
    Extended,
}

pub const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// A reply: the error, or what was read, in pieces as they came.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    pub error: u32,
    pub data: Vec<(u64, Vec<u8>)>,
    pub holes: Vec<(u64, u32)>,
    /// Context, descriptors.
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
}

impl Reply {
    /// All bytes of a read that covers a range without overlaps.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.error, 0);
        let mut bytes = vec![0; len];
        let mut covered = 0;
        for (at, data) in &self.data {
            let from = (at - offset) as usize;
            bytes[from..from + data.len()].copy_from_slice(data);
            covered += data.len();
        }
        covered += self.holes.iter().map(|(_, len)| *len as usize).sum::<usize>();
        assert_eq!(covered, len, "each byte once");
        bytes
    }
}

pub struct Client {
    pub stream: UnixStream,
    pub style: Style,
    cookie: u64,
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
    [&head, data].concat()
}

impl Client {
    fn new(stream: UnixStream, style: Style) -> Client {
        let mut client = Client { stream, style, cookie: 0 };
        assert_eq!(client.read::<18>()[..16], *b"NBDMAGICIHAVEOPT");
        client.stream.write_all(&3u32.to_be_bytes()).unwrap();
        match style {
            Style::Simple => {}
            Style::Structured => client.negotiate(8, &[]),
            Style::Extended => client.negotiate(11, &[]),
        }
        if style != Style::Simple {
            let mut data = [&[0; 4][..], &3u32.to_be_bytes()].concat();
            for name in ["base:allocation", "qemu:allocation-depth", "x-quod:kind"] {
                data.extend((name.len() as u32).to_be_bytes());
                data.extend(name.as_bytes());
            }
            client.negotiate(10, &data);
        }
        client.negotiate(7, &[0, 0, 0, 0, 0, 0]);
        client
    }

    pub fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn read_long(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// An option that is acknowledged.
    fn negotiate(&mut self, number: u32, data: &[u8]) {
        self.stream.write_all(&option(number, data)).unwrap();
        loop {
            let head = self.read::<20>();
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            self.read_long(word(16) as usize);
            match word(12) {
                1 => return,
                2..=4 => {}
                error => panic!("option {number}: {error:#x}"),
            }
        }
    }

    /// A request's header.
    pub fn head(&self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let (magic, flags) = match (extended, command) {
            (true, WRITE) => (0x21e4_1c71u32, flags | 32),
            (true, _) => (0x21e4_1c71, flags),
            (false, _) => (0x2560_9513, flags),
        };
        let mut head = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        head.extend(cookie.to_be_bytes());
        head.extend(offset.to_be_bytes());
        if extended {
            head.extend(len.to_be_bytes());
        } else {
            head.extend(u32::try_from(len).unwrap().to_be_bytes());
        }
        head
    }

    /// Sends a request; its cookie.
    pub fn send(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let head = self.head(flags, command, self.cookie, offset, len);
        self.stream.write_all(&[&head[..], payload].concat()).unwrap();
        self.cookie
    }

    /// Takes one reply of some request: its cookie, and the reply, as soon as it is whole. `len`: what was
    /// asked of reads, whose simple replies do not say.
    pub fn reply(&mut self, offset: u64, len: usize) -> (u64, Reply) {
        let mut reply = Reply::default();
        loop {
            let magic = u32::from_be_bytes(self.read());
            if magic == 0x6744_6698 {
                reply.error = u32::from_be_bytes(self.read());
                let cookie = u64::from_be_bytes(self.read());
                if reply.error == 0 && len > 0 {
                    reply.data.push((offset, self.read_long(len)));
                }
                return (cookie, reply);
            }
            let (flags, kind) = (u16::from_be_bytes(self.read()), u16::from_be_bytes(self.read()));
            let cookie = u64::from_be_bytes(self.read());
            let len = if magic == 0x6e8a_278c {
                assert_eq!(u64::from_be_bytes(self.read()), offset, "the request's offset");
                u64::from_be_bytes(self.read())
            } else {
                assert_eq!(magic, 0x668e_33ef);
                u64::from(u32::from_be_bytes(self.read()))
            };
            let payload = self.read_long(len as usize);
            chunk(&mut reply, magic == 0x6e8a_278c, kind, &payload);
            if flags & 1 != 0 {
                return (cookie, reply);
            }
        }
    }

    /// One request and its reply.
    pub fn ask(&mut self, flags: u16, command: u16, offset: u64, len: u64, payload: &[u8]) -> Reply {
        let cookie = self.send(flags, command, offset, len, payload);
        let simple = if command == READ { len as usize } else { 0 };
        let (answered, reply) = self.reply(offset, simple);
        assert_eq!(answered, cookie);
        reply
    }

    /// One that succeeds.
    pub fn must(&mut self, flags: u16, command: u16, offset: u64, len: u64) -> Reply {
        let reply = self.ask(flags, command, offset, len, &[]);
        assert_eq!(reply.error, 0, "{command}");
        reply
    }

    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) {
        let reply = self.ask(0, WRITE, offset, bytes.len() as u64, bytes);
        assert_eq!(reply, Reply::default());
    }

    pub fn read_at(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.must(0, READ, offset, len as u64).bytes(offset, len)
    }

    /// Nothing more comes.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0)) || self.stream.peer_addr().is_err()
    }
}

fn chunk(reply: &mut Reply, extended: bool, kind: u16, payload: &[u8]) {
    let u32_at = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
    match kind {
        0 => assert!(payload.is_empty()),
        1 => reply.data.push((u64_at(0), payload[8..].to_vec())),
        2 => reply.holes.push((u64_at(0), u32_at(8))),
        5 if !extended => {
            let one = |at: &usize| (u64::from(u32_at(*at)), u64::from(u32_at(at + 4)));
            let all = (4..payload.len()).step_by(8).collect::<Vec<usize>>();
            reply.status.push((u32_at(0), all.iter().map(one).collect()));
        }
        6 if extended => {
            let all = (8..payload.len()).step_by(16).collect::<Vec<usize>>();
            assert_eq!(u32_at(4) as usize, all.len(), "the count of descriptors");
            reply.status.push((u32_at(0), all.iter().map(|at| (u64_at(*at), u64_at(at + 8))).collect()));
        }
        0x8001 => reply.error = u32_at(0),
        kind => panic!("a chunk of type {kind}"),
    }
}

/// Bytes that tell where they are.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
