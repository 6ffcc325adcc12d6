//! A front end that is connected: memory that it shares, rings that run.
//!
//! Knows: the order of messages. Must never know: what requests ask for.
//! Invariant: the memory stays the same over connections, as a guest's does.

use crate::changes::Changes;
use crate::queue::{AREA, Queue};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Feature bits that a driver of the ring may leave out.
const EVENT_INDEX: u64 = 1 << 29;
const LOG_ALL: u64 = 1 << 26;
const PROTOCOL: u64 = 1 << 30;
/// Bytes of the config space that QEMU asks for.
const CONFIG: u32 = 57;

/// What a front end wants.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rings.
    pub queues: usize,
    /// Descriptors of a ring.
    pub size: u16,
    /// Bytes for data, behind the rings.
    pub data: usize,
    /// Features that are not taken, though they are offered.
    pub without: u64,
    /// What is under way is kept in memory, if the server can.
    pub inflight: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { queues: 1, size: 128, data: 16 << 20, without: 0, inflight: true }
    }
}

/// See the module's header.
pub struct Guest {
    options: Options,
    file: File,
    /// The guest's memory, from address 0 on.
    pub memory: GuestMemoryMmap<()>,
    /// Its rings.
    pub queues: Vec<Queue>,
    /// The socket's other end, to say more.
    pub front: Frontend,
    /// Features that both know.
    pub features: u64,
    /// The device's config space.
    pub config: Vec<u8>,
    kept: Option<(VhostUserInflight, File)>,
    /// What the server tells unasked, if it can.
    pub changes: Option<Changes>,
    /// The server's process.
    pub server: Option<u32>,
    poll: Poll,
    events: Events,
}

fn said(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

/// What was agreed on.
struct Greeted {
    front: Frontend,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    config: Vec<u8>,
    server: Option<u32>,
}

/// Says hello.
fn greet(path: &Path, options: &Options) -> io::Result<Greeted> {
    let socket = UnixStream::connect(path)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).ok();
    let server = peer.map(|peer| peer.pid.as_raw_nonzero().get().cast_unsigned());
    let mut front = Frontend::from_stream(socket, options.queues as u64);
    front.set_owner().map_err(said)?;
    let features = front.get_features().map_err(said)? & !options.without & !LOG_ALL;
    let known = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    let protocol = front.get_protocol_features().map_err(said)? & known;
    front.set_protocol_features(protocol).map_err(said)?;
    if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    front.set_features(features).map_err(said)?;
    let config = front.get_config(0, CONFIG, VhostUserConfigFlags::empty(), &[0; CONFIG as usize]);
    let (_, config) = config.map_err(said)?;
    Ok(Greeted { front, features, protocol, config, server })
}

impl Guest {
    /// Connects, and begins the rings.
    ///
    /// # Errors
    /// Nobody listens there, or something was refused.
    pub fn connect(path: &Path, options: Options) -> io::Result<Guest> {
        let len = options.queues * AREA + options.data;
        let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.set_len(len as u64)?;
        let region = (GuestAddress(0), len, Some(FileOffset::new(file.try_clone()?, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([region]).map_err(said)?;
        let Greeted { front, features, protocol, config, server } = greet(path, &options)?;
        let event_index = features & EVENT_INDEX != 0;
        let queue = |n| Queue::new(memory.clone(), (n * AREA) as u64, options.size, event_index);
        let queues = (0..options.queues).map(queue).collect::<io::Result<Vec<Queue>>>()?;
        let poll = Poll::new()?;
        for (n, queue) in queues.iter().enumerate() {
            let call = queue.call.as_raw_fd();
            poll.registry().register(&mut SourceFd(&call), Token(n), Interest::READABLE)?;
        }
        let mut guest = Guest {
            options,
            file,
            memory,
            queues,
            front,
            features,
            config,
            kept: None,
            changes: None,
            server,
            poll,
            events: Events::with_capacity(options.queues),
        };
        if options.inflight && protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            let asked = VhostUserInflight::new(0, 0, options.queues as u16, options.size);
            guest.kept = Some(guest.front.get_inflight_fd(&asked).map_err(said)?);
        }
        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            guest.changes = Some(Changes::new()?);
        }
        guest.begin()?;
        Ok(guest)
    }

    /// Connects again, as QEMU does when its server has gone: with what was under way, and without a word
    /// about what the server had taken.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn reconnect(&mut self, path: &Path) -> io::Result<()> {
        let Greeted { front, server, .. } = greet(path, &self.options)?;
        (self.front, self.server) = (front, server);
        self.begin()
    }

    /// Waits until something has ended, or may have. False: it took too long.
    ///
    /// # Errors
    /// Of the wait.
    pub fn wait(&mut self, most: Duration) -> io::Result<bool> {
        if self.queues.iter().filter(|queue| queue.arm()).count() > 0 {
            return Ok(true);
        }
        match self.poll.poll(&mut self.events, Some(most)) {
            // a process that was stopped and goes on: nobody knows how long that took
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
            Ok(()) => Ok(!self.events.is_empty()),
        }
    }

    /// Where data may be: behind the rings.
    pub fn data(&self) -> u64 {
        (self.options.queues * AREA) as u64
    }

    fn user(&self, at: u64) -> u64 {
        // one region, from address 0 on
        self.memory.get_host_address(GuestAddress(at)).map_or(0, |host| host.addr() as u64)
    }

    /// The memory, as messages tell of it.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.memory.iter().map(GuestMemoryRegion::len).sum(),
            userspace_addr: self.user(0),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        if let Some(changes) = &self.changes {
            self.front.set_backend_request_fd(&changes.given()).map_err(said)?;
        }
        if let Some((inflight, file)) = &self.kept {
            self.front.set_inflight_fd(inflight, file.as_raw_fd()).map_err(said)?;
        }
        self.front.set_mem_table(&[self.region()]).map_err(said)?;
        for index in 0..self.queues.len() {
            self.begin_ring(index)?;
        }
        // QEMU kicks before it enables
        for index in 0..self.queues.len() {
            self.queues[index].kick_always()?;
            if self.features & PROTOCOL != 0 {
                self.front.set_vring_enable(index, true).map_err(said)?;
            }
        }
        Ok(())
    }

    /// Says all of a ring.
    ///
    /// # Errors
    /// It was refused.
    pub fn begin_ring(&mut self, index: usize) -> io::Result<()> {
        let queue = &self.queues[index];
        let (table, available, used) = queue.places();
        let told = VringConfigData {
            queue_max_size: self.options.size,
            queue_size: self.options.size,
            flags: 0,
            desc_table_addr: self.user(table),
            used_ring_addr: self.user(used),
            avail_ring_addr: self.user(available),
            log_addr: None,
        };
        self.front.set_vring_num(index, self.options.size).map_err(said)?;
        self.front.set_vring_base(index, queue.used_index()).map_err(said)?;
        self.front.set_vring_addr(index, &told).map_err(said)?;
        self.front.set_vring_kick(index, &queue.kick).map_err(said)?;
        self.front.set_vring_call(index, &queue.call).map_err(said)
    }
}
