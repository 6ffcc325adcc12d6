//! The disk behind the rings: chains become requests of the driver, completions become answers.
//!
//! Knows: the driver's face, what a request asks for. Must never know: rings, sockets.
//!
//! Invariants: a request that was begun ends once, in [`Disk::next_answer`]; its chain's memory is used until
//! then and no longer; what is wrong with a chain is the error of that request.

use crate::blk::{self, Facts, Plan, SECTOR, Status};
use crate::chain::{Broken, Chain};
use crate::memory::Memory;
use crate::order::Order;
use quod::{Completion, DiskId, DiskInfo, Driver, Error, Format, Refusal, Request, Segment};
use quod_door::{Control, Count, Door, Shown};
use std::collections::VecDeque;
use std::path::PathBuf;
use vm_memory::{Bytes, GuestAddress};

/// A request's name: its ring, and the head of its chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    pub ring: u16,
    pub head: u16,
}

impl Name {
    fn to_user(self) -> u64 {
        u64::from(self.ring) << 16 | u64::from(self.head)
    }

    fn of_user(user: u64) -> Name {
        Name { ring: (user >> 16) as u16, head: user as u16 }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub name: Name,
    /// Where the guest reads how; None: nowhere.
    place: Option<GuestAddress>,
    status: Status,
    /// Bytes that were written for the guest, but for the status.
    len: u32,
}

impl Answer {
    /// Writes the status, and says how many bytes were written.
    pub fn write(&self, memory: &Memory) -> u32 {
        let Some(place) = self.place else { return 0 };
        match memory.guest().write_obj(self.status as u8, place) {
            Ok(()) => self.len + 1,
            Err(_) => 0,
        }
    }
}

/// A request that is under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    answer: Answer,
    /// Requests of the driver that have not ended.
    left: u16,
    /// It changes the disk.
    changes: bool,
}

/// See the module's header.
pub struct Disk {
    pub driver: Driver,
    pub id: DiskId,
    pub facts: Facts,
    path: PathBuf,
    /// Nothing is to be begun for now.
    held: bool,
    /// The size is another one, and front ends have not been told.
    changed: bool,
    /// Of front ends.
    pub connections: u64,
    chain: Chain,
    list: Vec<Segment>,
    /// By ring, by head.
    slots: Vec<Vec<Option<Slot>>>,
    /// None: the image has no tables.
    order: Option<Order<Name, Answer>>,
    /// What the driver has no slot for.
    waiting: VecDeque<Request>,
    /// Ended without the driver.
    ended: VecDeque<Answer>,
}

impl Disk {
    pub fn new(driver: Driver, id: DiskId, path: PathBuf, facts: Facts) -> Disk {
        let format = driver.disk_info(id).map(DiskInfo::format);
        let order = (format != Some(Format::Raw)).then(|| Order::new(facts.cluster));
        Disk {
            driver,
            id,
            facts,
            path,
            held: false,
            changed: false,
            connections: 0,
            chain: Chain::default(),
            list: Vec::new(),
            slots: vec![Vec::new(); facts.queues.into()],
            order,
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
        }
    }

    /// No more requests should be begun: some wait already, or all are held.
    pub fn is_full(&self) -> bool {
        self.held || !self.waiting.is_empty()
    }

    /// Has the size changed since this was asked?
    pub fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// There is something to do that the driver does not know of.
    pub fn is_pending(&self) -> bool {
        !self.ended.is_empty()
    }

    /// A ring of so many descriptors begins.
    pub fn make_room(&mut self, ring: usize, size: u16) {
        self.slots[ring].resize(size.into(), None);
    }

    /// Begins the request whose chain begins there. `through`: it is durable when it ends.
    pub fn begin(&mut self, memory: &Memory, table: (GuestAddress, u16), name: Name, through: bool) {
        let read = self.chain.read(memory.guest(), table.0, table.1, name.head);
        let place = self.chain.take_status();
        let mut answer = Answer { name, place, status: Status::Ok, len: 0 };
        let begun = match (read, place) {
            (Ok(()), Some(_)) => self.start(memory, &mut answer, through),
            (Ok(()), None) => Err(refuse(name, Broken::Short)),
            (Err(broken), _) => Err(refuse(name, broken)),
        };
        if let Err(status) = begun {
            (answer.status, answer.len) = (status, 0);
            self.ended.push_back(answer);
        }
    }

    fn start(&mut self, memory: &Memory, answer: &mut Answer, through: bool) -> Result<(), Status> {
        let name = answer.name;
        let broken = |broken| refuse(name, broken);
        let header = self.chain.take(memory.guest()).map_err(broken)?;
        let (out, into) = (self.chain.out_len(), self.chain.room());
        let user = name.to_user();
        match blk::plan(&header, out, into, &self.facts)? {
            Plan::Read { .. } if into == 0 => self.ended.push_back(*answer),
            Plan::Read { offset } => {
                answer.len = into as u32;
                let buffers = memory.buffers(&self.chain.into, &mut self.list).map_err(broken)?;
                self.submit(*answer, Request::read(offset, buffers, user));
            }
            Plan::Write { .. } if out == 0 => self.ended.push_back(*answer),
            Plan::Write { offset } => {
                let buffers = memory.buffers(&self.chain.out, &mut self.list).map_err(broken)?;
                let request = Request::write(offset, buffers, user);
                let request = if through { request.fua() } else { request };
                self.set(Slot { answer: *answer, left: 1, changes: true });
                if let Some(order) = &mut self.order {
                    order.begin(name, offset, out);
                }
                self.hand_over_or_wait(request);
            }
            Plan::Flush => self.submit(*answer, Request::flush(user)),
            plan @ (Plan::Discard | Plan::WriteZeroes) => {
                self.start_ranges(memory, answer, plan == Plan::WriteZeroes, through)?;
            }
            Plan::Id => {
                answer.len = self.tell_id(memory).map_err(broken)?;
                self.ended.push_back(*answer);
            }
        }
        Ok(())
    }

    /// All ranges are looked at before the first is begun.
    fn start_ranges(
        &mut self,
        memory: &Memory,
        answer: &Answer,
        zeroes: bool,
        through: bool,
    ) -> Result<(), Status> {
        let user = answer.name.to_user();
        let mut ranges = Vec::with_capacity(blk::RANGES_MAX);
        while self.chain.out_len() > 0 {
            let bytes = self.chain.take(memory.guest()).map_err(|broken| refuse(answer.name, broken))?;
            let range = blk::range(&bytes, zeroes, &self.facts)?;
            if range.len > 0 {
                ranges.push(range);
            }
        }
        if ranges.is_empty() {
            self.ended.push_back(*answer);
            return Ok(());
        }
        self.set(Slot { answer: *answer, left: ranges.len() as u16, changes: true });
        // all are known before the first can end
        for range in &ranges {
            if let Some(order) = &mut self.order {
                order.begin(answer.name, range.offset, range.len);
            }
        }
        for range in ranges {
            let request = if zeroes {
                let request = Request::write_zeroes(range.offset, range.len, user);
                let request = if range.unmap { request.may_unmap() } else { request };
                if through { request.fua() } else { request }
            } else {
                Request::discard(range.offset, range.len, user)
            };
            self.hand_over_or_wait(request);
        }
        Ok(())
    }

    fn tell_id(&mut self, memory: &Memory) -> Result<u32, Broken> {
        let mut at = 0;
        for piece in &self.chain.into {
            let len = (blk::ID - at).min(piece.len as usize);
            let bytes = &self.facts.id[at..at + len];
            let written = memory.guest().write_slice(bytes, piece.address);
            written.map_err(|_| Broken::Address(piece.address.0))?;
            at += len;
        }
        Ok(at as u32)
    }

    fn set(&mut self, slot: Slot) {
        let Name { ring, head } = slot.answer.name;
        let place = &mut self.slots[usize::from(ring)][usize::from(head)];
        debug_assert!(place.is_none(), "a head is under way once");
        *place = Some(slot);
    }

    fn submit(&mut self, answer: Answer, request: Request) {
        self.set(Slot { answer, left: 1, changes: false });
        self.hand_over_or_wait(request);
    }

    fn hand_over_or_wait(&mut self, request: Request) {
        if self.is_full() {
            self.waiting.push_back(request);
        } else if let Some(request) = self.hand_over(request) {
            self.waiting.push_back(request);
        }
    }

    /// What the driver had no slot for comes back.
    fn hand_over(&mut self, request: Request) -> Option<Request> {
        let rejected = self.driver.submit(self.id, request).err()?;
        match rejected.reason {
            Refusal::Busy => Some(rejected.request),
            Refusal::Error(error) => {
                self.one_ended(rejected.request.user, Err(error));
                None
            }
        }
    }

    /// Lets the driver work.
    ///
    /// # Errors
    /// As of [`Driver::turn`].
    pub fn turn(&mut self) -> Result<(), Error> {
        while !self.held
            && let Some(request) = self.waiting.pop_front()
        {
            if let Some(request) = self.hand_over(request) {
                self.waiting.push_front(request);
                break;
            }
        }
        self.driver.turn()
    }

    fn one_ended(&mut self, user: u64, result: Result<(), Error>) {
        let Name { ring, head } = Name::of_user(user);
        let place = self.slots.get_mut(usize::from(ring)).and_then(|ring| ring.get_mut(usize::from(head)));
        let Some(place) = place else {
            debug_assert!(false, "rings only grow");
            return;
        };
        let Some(slot) = place else {
            debug_assert!(false, "it was begun");
            return;
        };
        if let Err(error) = result {
            tracing::warn!("{error}");
            (slot.answer.status, slot.answer.len) = (Status::Error, 0);
        }
        slot.left -= 1;
        if slot.left > 0 {
            return;
        }
        let (answer, changes) = (slot.answer, slot.changes);
        *place = None;
        match self.order.as_mut().filter(|_| changes) {
            Some(order) => order.end(answer.name, answer, |answer| self.ended.push_back(answer)),
            None => self.ended.push_back(answer),
        }
    }

    /// The next request that ended. What the control has asked for is its own.
    pub fn next_answer(&mut self, control: &mut Option<Control>) -> Option<Answer> {
        loop {
            if let Some(answer) = self.ended.pop_front() {
                return Some(answer);
            }
            let Completion { user, result, .. } = self.driver.next_completion()?;
            match control.as_mut().filter(|_| Control::is_own(user)) {
                Some(control) => control.ended(user, result, self),
                None => self.one_ended(user, result),
            }
        }
    }
}

impl Door for Disk {
    fn protocol(&self) -> &'static str {
        "vhost-user"
    }

    fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    fn shown(&self) -> Vec<Shown> {
        let (path, disk, read_only) = (self.path.clone(), self.id, self.facts.read_only);
        vec![Shown { name: String::new(), path, disk, read_only }]
    }

    fn counts(&self) -> Vec<Count> {
        let help = "Front ends that were taken.";
        vec![Count { name: "connections_total", help, value: self.connections }]
    }

    fn hold(&mut self, _: DiskId, hold: bool) {
        self.held = hold;
    }

    fn resized(&mut self, disk: DiskId) {
        if let Some(info) = self.driver.disk_info(disk) {
            self.facts.sectors = info.virtual_size() / SECTOR;
            self.changed = true;
        }
    }
}

fn refuse(name: Name, broken: Broken) -> Status {
    tracing::warn!(ring = name.ring, head = name.head, "a request is no request: {broken}");
    Status::Error
}
