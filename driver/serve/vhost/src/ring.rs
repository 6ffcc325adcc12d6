//! A ring that runs: heads that the guest offers, and answers to them.
//!
//! Knows: `virtio-queue`'s ring, the record of what is under way. Must never know: requests, the driver.
//!
//! Invariants: a head is under way once at a time; one that the guest offers twice, or an index that jumps,
//! ends the ring, and nothing else; nothing of the ring is believed twice.

use crate::inflight::Record;
use crate::memory::Guest;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Descriptors of a ring, at most.
pub const SIZE_MAX: u16 = 1024;

/// How a ring is begun.
#[derive(Debug)]
pub struct Start {
    pub size: u16,
    pub table: GuestAddress,
    pub available: GuestAddress,
    pub used: GuestAddress,
    /// The next head of the available ring.
    pub base: u16,
    pub event_index: bool,
    pub kick: Arc<File>,
    pub record: Option<Record>,
}

/// Why a ring cannot begin, or go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is not in memory.
    Memory,
    /// No power of two, or too many descriptors.
    Size,
    /// The guest offers more than the ring has.
    Index,
    /// A head that is under way, or none.
    Head(u16),
}

/// See the module's header.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    table: GuestAddress,
    available: GuestAddress,
    kick: Arc<File>,
    pub call: Option<Arc<File>>,
    under_way: Vec<bool>,
    pub in_flight: u16,
    record: Option<Record>,
    /// Taken by a server before, and not answered.
    left: VecDeque<u16>,
    /// The guest has not been told of what was answered.
    untold: bool,
    pub fault: Option<Fault>,
}

impl Ring {
    pub fn new(guest: &Guest, start: Start) -> Result<Ring, Fault> {
        let mut queue = Queue::new(SIZE_MAX).map_err(|_| Fault::Size)?;
        queue.try_set_size(start.size).map_err(|_| Fault::Size)?;
        queue.try_set_desc_table_address(start.table).map_err(|_| Fault::Memory)?;
        queue.try_set_avail_ring_address(start.available).map_err(|_| Fault::Memory)?;
        queue.try_set_used_ring_address(start.used).map_err(|_| Fault::Memory)?;
        queue.set_event_idx(start.event_index);
        queue.set_ready(true);
        if !queue.is_valid(guest) {
            return Err(Fault::Memory);
        }
        let used = queue.used_idx(guest, Ordering::Acquire).map_err(|_| Fault::Memory)?.0;
        let mut record = start.record;
        let left: VecDeque<u16> = record.as_mut().map_or_else(Vec::new, |record| record.take_up(used)).into();
        // with a record nothing else is to be believed: the front end may not know what was taken
        let base = if record.is_some() { used.wrapping_add(left.len() as u16) } else { start.base };
        queue.set_next_avail(base);
        queue.set_next_used(used);
        Ok(Ring {
            queue,
            table: start.table,
            available: start.available,
            kick: start.kick,
            call: None,
            under_way: vec![false; start.size.into()],
            in_flight: 0,
            record,
            left,
            untold: false,
            fault: None,
        })
    }

    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// The descriptors' table, and how many it has.
    pub fn table(&self) -> (GuestAddress, u16) {
        (self.table, self.queue.size())
    }

    /// The next head of the available ring that was not taken.
    pub fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Takes heads, `most` at most. True: there are more.
    pub fn take(&mut self, guest: &Guest, most: usize, heads: &mut Vec<u16>) -> Result<bool, Fault> {
        while let Some(head) = self.left.pop_front() {
            self.begin(head, false)?;
            heads.push(head);
            if heads.len() >= most {
                return Ok(true);
            }
        }
        self.queue.disable_notification(guest).map_err(|_| Fault::Memory)?;
        loop {
            while heads.len() < most {
                let mut offered = self.queue.iter(guest).map_err(|_| Fault::Index)?;
                let Some(head) = offered.next().map(|chain| chain.head_index()) else { break };
                self.begin(head, true)?;
                heads.push(head);
            }
            if heads.len() >= most {
                return Ok(true);
            }
            if !self.queue.enable_notification(guest).map_err(|_| Fault::Memory)? {
                return Ok(false);
            }
        }
    }

    fn begin(&mut self, head: u16, is_new: bool) -> Result<(), Fault> {
        let under_way = self.under_way.get_mut(usize::from(head)).ok_or(Fault::Head(head))?;
        if std::mem::replace(under_way, true) {
            return Err(Fault::Head(head));
        }
        self.in_flight += 1;
        if let Some(record) = self.record.as_mut().filter(|_| is_new) {
            record.begin(head);
        }
        Ok(())
    }

    /// Gives a head back, with so many bytes written.
    pub fn answer(&mut self, guest: &Guest, head: u16, len: u32) {
        debug_assert!(self.under_way[usize::from(head)], "answered once");
        self.under_way[usize::from(head)] = false;
        self.in_flight -= 1;
        if let Some(record) = &mut self.record {
            record.telling(head);
        }
        // it was in memory when the ring began, and memory does not go while a ring runs
        if self.queue.add_used(guest, head, len).is_err() {
            self.fault = Some(Fault::Memory);
        }
        if let Some(record) = &mut self.record {
            record.told(head, self.queue.next_used());
        }
        self.untold = true;
    }

    /// Tells the guest of what was answered, if it wants to be told.
    pub fn signal(&mut self, guest: &Guest) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(guest).unwrap_or(true)
        } else {
            // the driver's flag, which the crate does not look at: NO_INTERRUPT
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = guest.load(self.available, Ordering::Relaxed).unwrap_or_default();
            u16::from_le(flags) & 1 == 0
        };
        if wanted && let Some(call) = &self.call {
            // full is told already; gone is the front end's own doing
            let _ = (&**call).write(&1u64.to_ne_bytes());
        }
    }
}
