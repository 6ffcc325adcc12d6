//! What is under way, in memory that outlives the server: the split ring's layout of the vhost-user
//! specification ("Inflight I/O tracking").
//!
//! Knows: that layout, its order of steps. Must never know: requests, sockets.
//!
//! Invariants: a head is recorded before anything of its request is done, and is given up after the guest
//! was told of its end; between the two steps of telling, the list of the last batch says which heads the
//! guest knows of already. So a server that is killed between any two instructions answers each request once.
//! What the memory says is another's, and believed within its bounds alone.

use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory, VolatileSlice};

/// Bytes of a queue's head, and of a descriptor's state.
const HEAD: usize = 16;
const STATE: usize = 16;
/// Queues' parts begin at multiples of this.
const ALIGNMENT: usize = 64;

// of the head
const VERSION: usize = 8;
const COUNT: usize = 10;
const LAST: usize = 12;
const USED: usize = 14;
// of a state
const UNDER_WAY: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Bytes of a queue's part.
fn part(size: u16) -> usize {
    (HEAD + usize::from(size) * STATE).next_multiple_of(ALIGNMENT)
}

/// The memory of all queues.
#[derive(Clone, Debug)]
pub struct Inflight {
    mapped: Arc<MmapRegion<()>>,
    queues: u16,
    size: u16,
}

impl Inflight {
    /// New memory for so many queues of so many descriptors, as a file: with its length.
    pub fn create(queues: u16, size: u16) -> io::Result<(File, u64)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("quod-inflight", flags)?);
        let len = (part(size) * usize::from(queues)) as u64;
        file.set_len(len)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok((file, len))
    }

    /// Memory that was made here, or by a server before.
    pub fn open(file: File, offset: u64, len: u64, queues: u16, size: u16) -> io::Result<Inflight> {
        let needed = part(size) * usize::from(queues);
        let end = offset.checked_add(len);
        let whole =
            len >= needed as u64 && end.is_some_and(|end| file.metadata().is_ok_and(|f| f.len() >= end));
        if !whole {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory is too short"));
        }
        let mapped =
            MmapRegion::from_file(FileOffset::new(file, offset), needed).map_err(io::Error::other)?;
        Ok(Inflight { mapped: Arc::new(mapped), queues, size })
    }

    /// The part of a queue, if it has one of that size.
    pub fn queue(&self, index: usize, size: u16) -> Option<Record> {
        if index >= usize::from(self.queues) || size > self.size {
            return None;
        }
        Some(Record { mapped: Arc::clone(&self.mapped), at: index * part(self.size), size, counter: 0 })
    }
}

/// What of one queue is under way.
#[derive(Debug)]
pub struct Record {
    mapped: Arc<MmapRegion<()>>,
    at: usize,
    size: u16,
    /// Of the next request.
    counter: u64,
}

impl Record {
    fn memory(&self) -> VolatileSlice<'_> {
        self.mapped.as_volatile_slice()
    }

    // the bounds were checked when it was mapped: no access fails
    fn u16(&self, at: usize) -> u16 {
        self.memory().load(self.at + at, Ordering::Acquire).unwrap_or_default()
    }

    fn set_u16(&self, at: usize, value: u16) {
        let stored = self.memory().store(value, self.at + at, Ordering::Release);
        debug_assert!(stored.is_ok(), "inside the queue's part");
    }

    fn state(head: u16) -> usize {
        HEAD + usize::from(head) * STATE
    }

    fn is_under_way(&self, head: u16) -> bool {
        let at = self.at + Record::state(head) + UNDER_WAY;
        self.memory().load::<u8>(at, Ordering::Acquire).unwrap_or_default() != 0
    }

    fn set_under_way(&self, head: u16, under_way: bool) {
        let at = self.at + Record::state(head) + UNDER_WAY;
        let stored = self.memory().store(u8::from(under_way), at, Ordering::Release);
        debug_assert!(stored.is_ok(), "inside the queue's part");
    }

    fn counter_of(&self, head: u16) -> u64 {
        let at = self.at + Record::state(head) + COUNTER;
        self.memory().load(at, Ordering::Acquire).unwrap_or_default()
    }

    /// Takes up what a server before has left: `used` is the used ring's index. The heads of requests that
    /// were not answered, in the order in which they were taken.
    pub fn take_up(&mut self, used: u16) -> Vec<u16> {
        if self.u16(VERSION) == 0 {
            self.set_u16(COUNT, self.size);
            self.set_u16(USED, used);
            self.set_u16(VERSION, 1);
        }
        // the guest was told, and the server died before it wrote that down
        let batch = used.wrapping_sub(self.u16(USED));
        if batch <= self.size {
            let mut head = self.u16(LAST);
            for _ in 0..batch {
                if head >= self.size {
                    break;
                }
                self.set_under_way(head, false);
                head = self.u16(Record::state(head) + NEXT);
            }
        }
        self.set_u16(USED, used);
        let mut left: Vec<u16> = (0..self.size).filter(|&head| self.is_under_way(head)).collect();
        left.sort_by_key(|&head| self.counter_of(head));
        let last = left.last().map_or(0, |&head| self.counter_of(head));
        self.counter = last.wrapping_add(1);
        left
    }

    /// A request was taken from the ring.
    pub fn begin(&mut self, head: u16) {
        let at = self.at + Record::state(head) + COUNTER;
        let stored = self.memory().store(self.counter, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "inside the queue's part");
        self.counter = self.counter.wrapping_add(1);
        self.set_under_way(head, true);
    }

    /// The guest is about to be told of its end.
    pub fn telling(&mut self, head: u16) {
        self.set_u16(Record::state(head) + NEXT, self.u16(LAST));
        self.set_u16(LAST, head);
    }

    /// It was told; the used ring's index is this now.
    pub fn told(&mut self, head: u16, used: u16) {
        self.set_under_way(head, false);
        self.set_u16(USED, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> (File, Record) {
        let (file, len) = Inflight::create(2, 8).unwrap();
        let kept = file.try_clone().unwrap();
        (kept, Inflight::open(file, 0, len, 2, 8).unwrap().queue(1, 8).unwrap())
    }

    /// A server that knows nothing but the memory.
    fn next_server(file: &File, used: u16) -> Vec<u16> {
        let len = file.metadata().unwrap().len();
        let inflight = Inflight::open(file.try_clone().unwrap(), 0, len, 2, 8).unwrap();
        inflight.queue(1, 8).unwrap().take_up(used)
    }

    #[test]
    fn what_was_not_answered_is_found_in_the_order_in_which_it_came() {
        let (file, mut record) = record();
        assert_eq!(record.take_up(0), [0; 0]);
        for head in [5, 2, 7, 0] {
            record.begin(head);
        }
        assert_eq!(next_server(&file, 0), [5, 2, 7, 0]);
        record.telling(2);
        record.told(2, 1);
        assert_eq!(next_server(&file, 1), [5, 7, 0]);
        record.begin(2);
        assert_eq!(next_server(&file, 1), [5, 7, 0, 2]);
    }

    #[test]
    fn a_kill_between_any_two_steps_answers_a_request_once() {
        for killed_after in 0..3 {
            let (file, mut record) = record();
            record.take_up(0xffff);
            record.begin(3);
            record.begin(4);
            let mut used = 0xffff_u16;
            record.telling(3);
            if killed_after > 0 {
                used = used.wrapping_add(1); // the guest sees it
            }
            if killed_after > 1 {
                record.told(3, used);
            }
            let left = next_server(&file, used);
            assert_eq!(left, if killed_after == 0 { vec![3, 4] } else { vec![4] }, "{killed_after}");
        }
    }

    /// Other servers tell of several at once.
    #[test]
    fn a_batch_of_another_server_is_taken_up() {
        let (file, mut record) = record();
        record.take_up(0);
        (0..6).for_each(|head| record.begin(head));
        [4, 1, 3].into_iter().for_each(|head| record.telling(head));
        assert_eq!(next_server(&file, 3), [0, 2, 5]);
    }

    #[test]
    fn memory_full_of_anything_is_harmless() {
        let (file, record) = record();
        record.memory().write_slice(&[0xff; 384], 0).unwrap();
        assert_eq!(next_server(&file, 7).len(), 8, "all heads, once");
        let len = file.metadata().unwrap().len();
        assert!(Inflight::open(file.try_clone().unwrap(), 0, len, 3, 8).is_err());
        assert!(Inflight::open(file.try_clone().unwrap(), 0, len, u16::MAX, u16::MAX).is_err());
        assert!(Inflight::open(file.try_clone().unwrap(), u64::MAX, len, 2, 8).is_err());
        let inflight = Inflight::open(file, 0, len, 2, 8).unwrap();
        assert!(inflight.queue(2, 8).is_none() && inflight.queue(0, 16).is_none());
        assert!(inflight.queue(0, 4).is_some());
    }
}
