//! A device in a thread, and guests that ask for what they may and for what they may not.

mod hostile;
mod messages;
mod requests;

use quod::{Format, OpenOptions};
use quod_tools::CreateOptions;
use quod_vhost::{Device, DeviceOptions, Listener};
use quod_vhost_load::vm_memory::{Bytes, GuestAddress};
use quod_vhost_load::{Ask, Guest, Options};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);
/// Bytes of the disk.
const DISK: u64 = 64 << 20;

/// A device that is served until it is asked to end.
struct Served {
    folder: tempfile::TempDir,
    socket: PathBuf,
    options: DeviceOptions,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new() -> Served {
        Served::with(|options| options, true)
    }

    fn with(change: impl FnOnce(DeviceOptions) -> DeviceOptions, write: bool) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let options = change(DeviceOptions::new(OpenOptions::new().write(write)));
        let mut served = Served { folder, socket, options, stop: None, thread: None };
        quod_tools::create(served.image(), &CreateOptions::new(Format::Qcow2, DISK)).unwrap();
        served.begin();
        served
    }

    fn begin(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let listener = Listener::given_unix(listener).unwrap();
        let (stop, end) = UnixStream::pair().unwrap();
        let (image, options) = (self.image(), self.options.clone());
        self.thread = Some(std::thread::spawn(move || {
            let mut device = Device::new(listener, image, options).unwrap();
            device.stop_when_readable(end).unwrap();
            device.run().unwrap();
        }));
        self.stop = Some(stop);
    }

    fn stop(&mut self) {
        self.stop.take();
        self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }

    fn connect(&self, options: Options) -> Guest {
        Guest::connect(&self.socket, options).unwrap()
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.qcow2")
    }

    /// In order, and the image is sound.
    fn end(self) {
        self.end_with(|_| {});
    }

    fn end_with(mut self, look: impl FnOnce(&Path)) {
        self.stop();
        let report = quod_tools::check(self.image(), None, None).unwrap();
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{report:?}");
        look(&self.image());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

/// Waits for one request to end.
fn finish(guest: &mut Guest, queue: usize) -> (u16, u32) {
    loop {
        if let Some(ended) = guest.queues[queue].ended().unwrap() {
            return ended;
        }
        assert!(guest.wait(LONG).unwrap(), "no answer");
    }
}

/// One request, from its beginning to its end: its status, and how many bytes were written.
fn ask(guest: &mut Guest, queue: usize, ask: Ask, sector: u64, pieces: &[(u64, u32)]) -> (u8, u32) {
    let head = guest.queues[queue].request(ask, sector, pieces).unwrap().unwrap();
    guest.queues[queue].kick().unwrap();
    let (ended, len) = finish(guest, queue);
    assert_eq!(ended, head);
    (guest.queues[queue].status(head), len)
}

fn put(guest: &Guest, at: u64, bytes: &[u8]) {
    guest.memory.write_slice(bytes, GuestAddress(at)).unwrap();
}

fn get(guest: &Guest, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// Everything still works.
fn works(guest: &mut Guest, queue: usize) {
    let data = guest.data();
    put(guest, data, &[0x5a; 4096]);
    assert_eq!(ask(guest, queue, Ask::Write, 8, &[(data, 4096)]), (0, 1));
    put(guest, data, &[0; 4096]);
    assert_eq!(ask(guest, queue, Ask::Read, 8, &[(data, 4096)]), (0, 4097));
    assert_eq!(get(guest, data, 4096), [0x5a; 4096]);
}

fn read_image(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut session = quod_tools::Session::open(path, OpenOptions::new()).unwrap();
    let mut bytes = vec![0; len];
    session.read(offset, &mut bytes).unwrap();
    bytes
}
