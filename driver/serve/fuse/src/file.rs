//! The one file: what each request of the kernel's asks of the disk, and what its end answers.
//!
//! Knows: the driver's face, requests under way. Must never know: descriptors, layouts of messages.
//! Invariants: a request that wants an answer has one, once; what is under way is bounded by whoever asks
//! [`File::is_full`]; a read is as long as it was asked for, but at the end of the disk.

use crate::limits::{IN_FLIGHT, TRANSFER};
use crate::message::{Attributes, KEEP_SIZE, Message, Op, PUNCH_HOLE, Reply, ZERO_RANGE, set};
use crate::pool::Pool;
use crate::seek::{Step, Walk, Wanted};
use quod::{Buffer, Buffers, Completion, CompletionKind, DiskId, Driver, Error, Request};
use quod_door::{Count, Door, Shown};
use rustix::io::Errno;
use slab::Slab;
use std::path::PathBuf;

/// `whence` of lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// The `user` value of the close. (The highest bit is the control's.)
const CLOSE: u64 = u64::MAX >> 1;

/// What is under way for a request.
#[derive(Debug)]
enum Work {
    Read,
    Write(u32),
    /// A flush, zeros: nothing is told of them but that they ended.
    Plain,
    Seek(Walk),
}

#[derive(Debug)]
struct Slot {
    unique: u64,
    work: Work,
}

/// An answer to be sent.
pub struct Answered {
    pub unique: u64,
    pub reply: Reply,
    /// The bytes of a read; to be given back to the pool.
    pub data: Option<Buffer>,
}

/// See the module's header.
pub struct File {
    pub driver: Driver,
    pub pool: Pool,
    disk: DiskId,
    path: PathBuf,
    writable: bool,
    attributes: Attributes,
    /// Of the layers, from the image down.
    sizes: Vec<u64>,
    slots: Slab<Slot>,
    /// No request is to be taken for now.
    held: bool,
    /// The kernel has not been told of the size.
    changed: bool,
}

/// What a completion was.
pub enum Ended {
    Answer(Answered),
    /// A request goes on.
    Nothing,
    Closed(Result<(), Error>),
}

impl File {
    /// Of a disk that is open.
    pub fn new(driver: Driver, disk: DiskId, path: PathBuf, writable: bool, attributes: Attributes) -> File {
        let layers = driver.disk_info(disk).map(|info| info.layers()).unwrap_or_default();
        let sizes = layers.iter().map(|layer| layer.info.virtual_size).collect();
        let slots = Slab::with_capacity(IN_FLIGHT);
        let (pool, held, changed) = (Pool::default(), false, false);
        File { driver, pool, disk, path, writable, attributes, sizes, slots, held, changed }
    }

    /// No request is to be taken for now.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Has the size changed since this was asked?
    pub fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// As much is under way as may be.
    pub fn is_full(&self) -> bool {
        self.slots.len() >= IN_FLIGHT
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a request; what is answered at once. `payload` gives the bytes of a write: so many.
    pub fn take(
        &mut self,
        message: Message,
        payload: &mut dyn FnMut(&mut Pool, usize) -> Option<Buffers>,
    ) -> Option<Answered> {
        let size = self.attributes.size;
        let reply = match message.op {
            Op::Forget => return None,
            Op::Interrupt { unique } => {
                self.interrupt(unique);
                return None;
            }
            Op::GetAttr => Reply::Attributes(self.attributes),
            Op::SetAttr { valid, size } => self.set(valid, size),
            Op::Open => Reply::Opened,
            Op::StatFs => Reply::Space(self.attributes),
            Op::Release | Op::Destroy => Reply::Done,
            Op::Fsync if !self.writable => Reply::Done,
            Op::Fsync => return self.start(message.unique, Work::Plain, Request::flush),
            Op::Read { offset, len } => return self.read(message.unique, offset, len),
            Op::Write { .. } | Op::Allocate { .. } if !self.writable => error(Errno::ROFS),
            Op::Write { offset, len } => {
                let room = size.saturating_sub(offset).min(len.into()) as usize;
                if room == 0 && len > 0 {
                    return answered(message.unique, error(Errno::NOSPC));
                }
                let Some(buffers) = payload(&mut self.pool, room).filter(|_| room > 0) else {
                    return answered(message.unique, error(Errno::INVAL));
                };
                let write = |user| Request::write(offset, buffers, user);
                return self.start(message.unique, Work::Write(room as u32), write);
            }
            Op::Allocate { offset, len, mode } => return self.allocate(message.unique, offset, len, mode),
            Op::Seek { offset, whence } => return self.seek(message.unique, offset, whence),
            Op::Other(_) => error(Errno::NOSYS),
        };
        answered(message.unique, reply)
    }

    /// Times may be said, and are not kept. The size and the permissions stay as they are.
    fn set(&self, valid: u32, size: u64) -> Reply {
        let resizes = valid & set::SIZE != 0 && size != self.attributes.size;
        match valid & !(set::HARMLESS | set::SIZE) != 0 || resizes {
            true => error(Errno::PERM),
            false => Reply::Attributes(self.attributes),
        }
    }

    fn read(&mut self, unique: u64, offset: u64, len: u32) -> Option<Answered> {
        let len = self.attributes.size.saturating_sub(offset).min(len.into()) as usize;
        if len == 0 {
            return answered(unique, Reply::Data(0));
        }
        if len > TRANSFER {
            // the kernel was told; a shorter answer would say that the disk ends there
            return answered(unique, error(Errno::INVAL));
        }
        let buffer = self.pool.take(len);
        self.start(unique, Work::Read, |user| Request::read(offset, buffer, user))
    }

    /// fallocate(2).
    fn allocate(&mut self, unique: u64, offset: u64, len: u64, mode: u32) -> Option<Answered> {
        const PUNCH: u32 = PUNCH_HOLE | KEEP_SIZE;
        const ZERO: u32 = ZERO_RANGE | KEEP_SIZE;
        if ![PUNCH, ZERO, ZERO_RANGE].contains(&mode) {
            return answered(unique, error(Errno::OPNOTSUPP));
        }
        let inside = self.attributes.size.saturating_sub(offset).min(len);
        if inside < len && mode & KEEP_SIZE == 0 {
            return answered(unique, error(Errno::FBIG));
        }
        if inside == 0 {
            return answered(unique, Reply::Done);
        }
        let zeroes = |user| {
            let zeroes = Request::write_zeroes(offset, inside, user);
            if mode == PUNCH { zeroes.may_unmap() } else { zeroes }
        };
        self.start(unique, Work::Plain, zeroes)
    }

    fn seek(&mut self, unique: u64, offset: u64, whence: u32) -> Option<Answered> {
        let wanted = match whence {
            SEEK_DATA => Wanted::Data,
            SEEK_HOLE => Wanted::Hole,
            _ => return answered(unique, error(Errno::INVAL)),
        };
        let Some(walk) = Walk::new(wanted, offset, self.attributes.size) else {
            return answered(unique, error(Errno::NXIO));
        };
        self.start(unique, Work::Seek(walk), |user| map(&walk, user))
    }

    /// Hands a request to the driver.
    fn start(&mut self, unique: u64, work: Work, make: impl FnOnce(u64) -> Request) -> Option<Answered> {
        let entry = self.slots.vacant_entry();
        match self.driver.submit(self.disk, make(entry.key() as u64)) {
            Ok(()) => {
                entry.insert(Slot { unique, work });
                None
            }
            Err(rejected) => {
                let buffer = rejected.request.kind.into_buffers().and_then(|buffers| buffers.into_owned());
                buffer.into_iter().for_each(|buffer| self.pool.give(buffer));
                answered(unique, Reply::Error(Error::from(rejected.reason).errno()))
            }
        }
    }

    /// A client does not want to wait for this request any more: what has not begun is left undone.
    fn interrupt(&mut self, unique: u64) {
        if let Some((key, _)) = self.slots.iter().find(|(_, slot)| slot.unique == unique) {
            self.driver.cancel(self.disk, key as u64);
        }
    }

    /// What is told of something that ended; an error is shown to `report` as well.
    pub fn ended(&mut self, done: Completion, report: &mut dyn FnMut(&Error)) -> Ended {
        let Completion { user, kind, result, .. } = done;
        if user == CLOSE {
            return Ended::Closed(result);
        }
        let key = user as usize;
        let Some(slot) = self.slots.get_mut(key) else { return Ended::Nothing };
        let unique = slot.unique;
        let reply = match (&mut slot.work, &result) {
            (_, Err(Error::Cancelled)) => error(Errno::INTR),
            (_, Err(why)) => {
                report(why);
                Reply::Error(why.errno())
            }
            (Work::Read, Ok(())) => Reply::Data(0),
            (Work::Write(len), Ok(())) => Reply::Written(*len),
            (Work::Plain, Ok(())) => Reply::Done,
            (Work::Seek(walk), Ok(())) => {
                let found = kind.extent().map(|extent| walk.answer(extent.status, extent.len, &self.sizes));
                match found {
                    Some(Step::Ask) => match self.driver.submit(self.disk, map(walk, user)) {
                        Ok(()) => return Ended::Nothing,
                        Err(rejected) => Reply::Error(Error::from(rejected.reason).errno()),
                    },
                    Some(Step::Found(offset)) => Reply::Found(offset),
                    Some(Step::Nothing) => error(Errno::NXIO),
                    None => error(Errno::IO),
                }
            }
        };
        self.slots.remove(key);
        Ended::Answer(self.with_data(unique, reply, kind))
    }

    /// Adds the bytes of a read.
    fn with_data(&mut self, unique: u64, reply: Reply, kind: CompletionKind) -> Answered {
        let buffer = kind.into_buffers().and_then(|buffers| buffers.into_owned());
        match (reply, buffer) {
            (Reply::Data(_), Some(buffer)) => {
                Answered { unique, reply: Reply::Data(buffer.as_slice().len()), data: Some(buffer) }
            }
            (reply, buffer) => {
                buffer.into_iter().for_each(|buffer| self.pool.give(buffer));
                Answered { unique, reply, data: None }
            }
        }
    }

    /// Answers all that is under way with an error: it will not end.
    pub fn abandon(&mut self) -> Vec<Answered> {
        let lost = |slot: Slot| Answered { unique: slot.unique, reply: error(Errno::IO), data: None };
        self.slots.drain().map(lost).collect()
    }

    /// Refuses a request that nobody can do any more.
    pub fn refuse(message: Message) -> Option<Answered> {
        match message.op {
            Op::Forget | Op::Interrupt { .. } => None,
            _ => answered(message.unique, error(Errno::IO)),
        }
    }

    /// Begins to close the disk.
    pub fn close(&mut self) -> Result<(), Error> {
        self.driver.submit(self.disk, Request::close(CLOSE)).map_err(Error::from)
    }
}

impl Door for File {
    fn protocol(&self) -> &'static str {
        "fuse"
    }

    fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    fn shown(&self) -> Vec<Shown> {
        let (path, disk, read_only) = (self.path.clone(), self.disk, !self.writable);
        vec![Shown { name: String::new(), path, disk, read_only }]
    }

    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }

    fn hold(&mut self, _: DiskId, hold: bool) {
        self.held = hold;
    }

    fn resized(&mut self, disk: DiskId) {
        let Some(info) = self.driver.disk_info(disk) else { return };
        let size = info.virtual_size();
        if let Some(own) = self.sizes.first_mut() {
            *own = size;
        }
        // holes are looked for in what is new
        let whole = size.div_ceil(512);
        self.attributes.blocks = self.attributes.blocks.min(whole.saturating_sub(1));
        self.attributes.size = size;
        self.changed = true;
    }
}

fn map(walk: &Walk, user: u64) -> Request {
    Request::map(walk.layer, walk.offset, walk.len, user)
}

fn error(number: Errno) -> Reply {
    Reply::Error(number.raw_os_error())
}

fn answered(unique: u64, reply: Reply) -> Option<Answered> {
    Some(Answered { unique, reply, data: None })
}
