//! A split ring as a guest's driver fills it.
//!
//! Knows: the layouts of the virtio specification, section 2.7. Must never know: sockets.
//! Invariant: a head is offered once until it comes back, unless a test puts it there by hand.

use std::io;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of memory that a ring has: its three parts, then a head's header, status and table, for each.
pub const AREA: usize = 4 << 20;
/// Descriptors of a ring, at most.
const SIZE_MAX: u16 = 1024;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const HEADS: u64 = 0x10000;
/// Bytes of a head's own: header, status, and a table of 60 descriptors.
const HEAD: u64 = 0x400;
const STATUS: u64 = 16;
const TABLE: u64 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a request asks for, by virtio-blk's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Ask {
    /// Of sectors.
    Read = 0,
    /// Of sectors.
    Write = 1,
    /// All that was answered is durable.
    Flush = 4,
    /// The disk's name.
    Id = 8,
    /// Ranges are not needed.
    Discard = 11,
    /// Ranges read as zeros.
    WriteZeroes = 13,
}

/// See the module's header.
#[derive(Debug)]
pub struct Queue {
    memory: GuestMemoryMmap<()>,
    base: u64,
    size: u16,
    event_index: bool,
    free: Vec<u16>,
    /// By head: it was taken from `free`.
    taken: Vec<bool>,
    /// The available ring's index, and which was kicked for.
    offered: u16,
    kicked: u16,
    /// The used ring's index, as far as it was looked at.
    seen: u16,
    /// Tells the server.
    pub kick: EventFd,
    /// Tells the guest.
    pub call: EventFd,
}

fn lost<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::other(error.to_string())
}

impl Queue {
    pub(crate) fn new(
        memory: GuestMemoryMmap<()>,
        base: u64,
        size: u16,
        event_index: bool,
    ) -> io::Result<Queue> {
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Queue {
            memory,
            base,
            size,
            event_index,
            free: (0..size).rev().collect(),
            taken: vec![false; size.into()],
            offered: 0,
            kicked: 0,
            seen: 0,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Where its parts are: descriptors, available, used.
    pub fn places(&self) -> (u64, u64, u64) {
        (self.base, self.base + AVAILABLE, self.base + USED)
    }

    fn u16(&self, at: u64, order: Ordering) -> u16 {
        self.memory.load(GuestAddress(self.base + at), order).unwrap_or_default()
    }

    fn set_u16(&self, at: u64, value: u16, order: Ordering) {
        // in memory that was made for it
        let _ = self.memory.store(value, GuestAddress(self.base + at), order);
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        self.u16(USED + 2, Ordering::Acquire)
    }

    /// The available ring's index.
    pub fn offered(&self) -> u16 {
        self.offered
    }

    /// Sets the available ring's index, to anything.
    pub fn set_offered(&mut self, index: u16) {
        self.offered = index;
        self.set_u16(AVAILABLE + 2, index, Ordering::Release);
    }

    /// Puts a descriptor into the ring's table, or into another one.
    ///
    /// # Errors
    /// That is no memory.
    pub fn put(&self, table: Option<u64>, index: u16, descriptor: Descriptor) -> io::Result<()> {
        let at = table.unwrap_or(self.base) + u64::from(index) * 16;
        self.memory.write_obj(descriptor, GuestAddress(at)).map_err(lost)
    }

    /// A head that is not in use. None: all are.
    pub fn head(&mut self) -> Option<u16> {
        let head = self.free.pop()?;
        self.taken[usize::from(head)] = true;
        Some(head)
    }

    /// Offers a chain.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.set_u16(AVAILABLE + 4 + slot * 2, head, Ordering::Relaxed);
        self.set_offered(self.offered.wrapping_add(1));
    }

    fn own(&self, head: u16) -> u64 {
        self.base + HEADS + u64::from(head) * HEAD
    }

    /// Where the header of a head's request is.
    pub fn header_at(&self, head: u16) -> u64 {
        self.own(head)
    }

    /// Where its status is.
    pub fn status_at(&self, head: u16) -> u64 {
        self.own(head) + STATUS
    }

    /// Writes a header.
    ///
    /// # Errors
    /// That is no memory.
    pub fn set_header(&self, head: u16, ask: u32, sector: u64) -> io::Result<()> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&ask.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write_slice(&header, GuestAddress(self.own(head))).map_err(lost)
    }

    /// Makes a request of a table of its own, and offers it. None: no head is free.
    ///
    /// # Errors
    /// More than 58 pieces.
    pub fn request(&mut self, ask: Ask, sector: u64, pieces: &[(u64, u32)]) -> io::Result<Option<u16>> {
        if pieces.len() > 58 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(head) = self.head() else { return Ok(None) };
        self.set_header(head, ask as u32, sector)?;
        let into = if matches!(ask, Ask::Read | Ask::Id) { WRITE } else { 0 };
        let table = self.own(head) + TABLE;
        let mut index = 0;
        let mut add = |address: u64, len: u32, flags: u16| {
            index += 1;
            self.put(Some(table), index - 1, Descriptor::new(address, len, flags, index))
        };
        add(self.own(head), 16, NEXT)?;
        for &(address, len) in pieces {
            add(address, len, NEXT | into)?;
        }
        add(self.own(head) + STATUS, 1, WRITE)?;
        self.memory.write_obj(0xffu8, GuestAddress(self.status_at(head))).map_err(lost)?;
        self.put(None, head, Descriptor::new(table, u32::from(index) * 16, INDIRECT, 0))?;
        self.offer(head);
        Ok(Some(head))
    }

    /// Tells the server, if it wants to be told.
    ///
    /// # Errors
    /// Of the write.
    pub fn kick(&mut self) -> io::Result<()> {
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.kicked, self.offered), self.offered);
        let wanted = if self.event_index {
            let event = self.u16(USED + 4 + u64::from(self.size) * 8, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.u16(USED, Ordering::Relaxed) & 1 == 0
        };
        if wanted { self.kick.write(1) } else { Ok(()) }
    }

    /// Tells the server.
    ///
    /// # Errors
    /// Of the write.
    pub fn kick_always(&mut self) -> io::Result<()> {
        self.kicked = self.offered;
        self.kick.write(1)
    }

    /// The next request that ended, and the bytes that were written for it.
    ///
    /// # Errors
    /// The server has answered what was not asked.
    pub fn ended(&mut self) -> io::Result<Option<(u16, u32)>> {
        if self.used_index() == self.seen {
            return Ok(None);
        }
        let at = USED + 4 + u64::from(self.seen % self.size) * 8;
        let element: [u32; 2] = self.memory.read_obj(GuestAddress(self.base + at)).map_err(lost)?;
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(element[0]).ok().filter(|head| *head < self.size);
        let head = head.ok_or_else(|| lost(format!("there is no head {}", element[0])))?;
        if !std::mem::take(&mut self.taken[usize::from(head)]) {
            return Err(lost(format!("head {head} was answered twice")));
        }
        self.free.push(head);
        Ok(Some((head, element[1])))
    }

    /// How a request ended; 255: it did not.
    pub fn status(&self, head: u16) -> u8 {
        self.memory.read_obj(GuestAddress(self.status_at(head))).unwrap_or(0xfe)
    }

    /// Asks to be told of the next end, and whether there is one already.
    pub fn arm(&self) -> bool {
        if self.event_index {
            self.set_u16(AVAILABLE + 4 + u64::from(self.size) * 2, self.seen, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        self.used_index() != self.seen
    }
}
