//! The disks behind the clients: the driver, what waits for it, the buffers.
//!
//! Knows: the driver's face. Must never know: clients, sockets, the protocol's words.
//! Invariants: what was given to [`Disks::submit`] ends once, in [`Disks::next_done`]; what the driver has no
//! slot for waits in the order in which it came, so that no client overtakes another; nothing is handed to
//! the driver for a disk that is held.

use crate::export::{Export, Told};
use crate::pool::Pool;
use quod::{
    Buffer, Buffers, Completion, CompletionKind, DiskId, Driver, Error, Extent, Met, Refusal, Request,
};
use std::collections::VecDeque;

/// What ended: a request, or the closing of a disk.
#[derive(Debug)]
pub(crate) struct Done {
    pub user: u64,
    pub result: Result<(), Error>,
    /// Of a read or a write.
    pub buffer: Option<Buffer>,
    /// Of a map.
    pub extent: Option<Extent>,
    pub met: Met,
}

/// See the module's header.
pub(crate) struct Disks {
    pub driver: Driver,
    pub pool: Pool,
    pub exports: Vec<Export>,
    waiting: VecDeque<(DiskId, Request)>,
    /// Disks that get nothing for now, and what waits for that to end.
    held: Vec<(DiskId, VecDeque<Request>)>,
    /// For the next turn.
    later: Vec<(DiskId, Request)>,
    /// Refused after they had waited.
    refused: VecDeque<Done>,
}

impl Disks {
    pub fn new(driver: Driver) -> Disks {
        Disks {
            driver,
            pool: Pool::default(),
            exports: Vec::new(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            later: Vec::new(),
            refused: VecDeque::new(),
        }
    }

    /// What the protocol may know.
    pub fn told(&self) -> Told<'_> {
        Told { exports: &self.exports, driver: &self.driver }
    }

    /// Hands a request over, or lets it wait.
    pub fn submit(&mut self, disk: DiskId, request: Request) {
        if let Some((_, waiting)) = self.held.iter_mut().find(|(held, _)| *held == disk) {
            waiting.push_back(request);
        } else if self.waiting.is_empty() {
            self.hand_over(disk, request);
        } else {
            self.waiting.push_back((disk, request));
        }
    }

    /// Nothing is handed over for this disk from now on, or it is again.
    pub fn hold(&mut self, disk: DiskId, hold: bool) {
        let place = self.held.iter().position(|(held, _)| *held == disk);
        match (place, hold) {
            (None, true) => {
                let (held, waiting) =
                    std::mem::take(&mut self.waiting).into_iter().partition(|(of, _)| *of == disk);
                self.waiting = waiting;
                let held: VecDeque<(DiskId, Request)> = held;
                self.held.push((disk, held.into_iter().map(|(_, request)| request).collect()));
            }
            (Some(place), false) => {
                let (disk, requests) = self.held.swap_remove(place);
                requests.into_iter().for_each(|request| self.submit(disk, request));
            }
            _ => {}
        }
    }

    /// Nothing is handed over for this disk.
    pub fn is_held(&self, disk: DiskId) -> bool {
        self.held.iter().any(|(held, _)| *held == disk)
    }

    /// The same, in the next turn.
    pub fn submit_later(&mut self, disk: DiskId, request: Request) {
        self.later.push((disk, request));
    }

    /// False: there is no slot, and it waits in front.
    fn hand_over(&mut self, disk: DiskId, request: Request) -> bool {
        let Err(rejected) = self.driver.submit(disk, request) else { return true };
        let request = rejected.request;
        match rejected.reason {
            Refusal::Busy => {
                self.waiting.push_front((disk, request));
                false
            }
            Refusal::Error(error) => {
                let buffer = request.kind.into_buffers().and_then(Buffers::into_owned);
                let (user, met) = (request.user, Met::empty());
                self.refused.push_back(Done { user, result: Err(error), buffer, extent: None, met });
                true
            }
        }
    }

    /// Hands over what has waited, as far as there are slots.
    fn hand_over_waiting(&mut self) {
        while let Some((disk, request)) = self.waiting.pop_front() {
            if !self.hand_over(disk, request) {
                break;
            }
        }
    }

    /// More than a few requests wait: nothing new should be asked for.
    pub fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Lets the driver work.
    ///
    /// # Errors
    /// As of [`Driver::turn`].
    pub fn turn(&mut self) -> Result<(), Error> {
        self.hand_over_waiting();
        for (disk, request) in std::mem::take(&mut self.later) {
            self.submit(disk, request);
        }
        self.driver.turn()
    }

    /// The next thing that ended.
    pub fn next_done(&mut self) -> Option<Done> {
        if let Some(done) = self.refused.pop_front() {
            return Some(done);
        }
        let done = self.driver.next_completion()?;
        if !self.waiting.is_empty() {
            self.hand_over_waiting();
        }
        Some(Done::of(done))
    }

    /// There is something to do that the driver does not know of.
    pub fn is_pending(&self) -> bool {
        !self.refused.is_empty() || !self.later.is_empty()
    }
}

impl Done {
    fn of(completion: Completion) -> Done {
        let Completion { user, kind, result, met, .. } = completion;
        let (mut buffer, mut extent) = (None, None);
        match kind {
            CompletionKind::Read(buffers) | CompletionKind::Write(buffers) => buffer = buffers.into_owned(),
            CompletionKind::Map(found) => extent = found,
            _ => {}
        }
        Done { user, result, buffer, extent, met }
    }
}
