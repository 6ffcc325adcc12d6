//! One image under test: the real driver over the simulated disk, and the model that judges it.
//!
//! Knows: requests in flight, when the power is cut, what must hold after each step. Must never know: who
//! chooses (a chooser is handed in), how the driver works. Invariants: after every step the machines' own
//! sweep holds; a request is answered once; without a fault no request fails; what a read gives is allowed by
//! the model at the moment of its answer.

mod ask;
mod check;
mod crash;
mod open;
mod subject;
mod tally;

pub use ask::Ask;
pub use subject::{Kept, Session, Subject, Tweak, as_is};
pub use tally::Tally;

use crate::image;
use crate::image::Map;
use crate::probe::Probe;
use ask::{pack_id, request};
use quod::{Buffers, Completion, Config, DiskId, Driver, Error, ErrorKind, Format, Refusal, Rejected};
use quod_backend::Backend;
use quod_backend::sim::{Aftermath, Chooser, CrashPlan, Fault, FaultPlan, Fifo, OpKind, Sim};
use quod_bench::contract::exact::{Fill, Model, View};
use quod_bench::contract::hash::{hash_bytes, hash_words};
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::acb::edges::{Edges, QCOW2_EDGES, QED_EDGES, RAW_EDGES};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The image's path on the simulated disk. Files are opened from it downwards.
pub const TOP: &str = "top";

/// An accepted request.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    ask: Ask,
    submitted: u64,
    /// In the model.
    writes: [Option<u32>; 3],
    cancelled: bool,
    /// Nothing else was in flight when it was made.
    alone: bool,
}

/// See the module's header.
pub struct World {
    driver: Driver<Probe>,
    disk: Option<DiskId>,
    session: Session,
    model: Model,
    tickets: BTreeMap<u64, Ticket>,
    next_user: u64,
    subject: Subject,
    /// Sizes that were asked for, and may be found after a power cut or a failure.
    sizes: Vec<u64>,
    /// What each snapshot holds, as far as it was answered;
    kept: Kept,
    /// the list, and what the guest sees, that may be found as well.
    next: Option<(Kept, Option<Arc<[u8]>>)>,
    /// The bitmaps, as far as it was answered; as they will be stored; and as they may be found as well.
    maps: Vec<Map>,
    live_maps: Vec<Map>,
    next_maps: Vec<Vec<Map>>,
    /// The guest has changed something since they were stored: those that are enabled may be in use.
    maps_used: bool,
    /// Operations have failed in this session: requests may fail too, and nothing is promised about space.
    faulted: bool,
    /// Operations that had failed before the session.
    failed_before: u64,
    /// A failed sync dropped pages: what live reads find is not promised until the image is opened again.
    blind: bool,
    /// A failing sync will do so.
    drops: bool,
    /// The last answer said that everything is in order, durably, and nothing was asked for since.
    tidy: bool,
    /// Leaked clusters, and bytes of the file, when the session began.
    leaks: u64,
    opened_len: u64,
    /// What power cuts within openings may leave, if somebody wants to know.
    cuts: Option<Vec<CrashPlan>>,
    /// What happened, if somebody wants to read it.
    trace: Option<Vec<String>>,
    /// What was covered.
    pub tally: Tally,
}

impl World {
    /// A world around this disk, whose guest sees `content`. Nothing is open yet.
    pub fn new(sim: Sim, content: impl Into<Arc<Vec<u8>>>, session: Session, subject: Subject) -> World {
        let kept = subject.snapshots.clone();
        World {
            leaks: subject.leaks,
            opened_len: sim.file_len(TOP).unwrap_or(0),
            driver: driver(sim, &session),
            disk: None,
            session,
            model: Model::new(content),
            tickets: BTreeMap::new(),
            next_user: 1,
            subject,
            sizes: Vec::new(),
            kept,
            next: None,
            maps: Vec::new(),
            live_maps: Vec::new(),
            next_maps: Vec::new(),
            maps_used: false,
            faulted: false,
            failed_before: 0,
            blind: false,
            drops: false,
            tidy: false,
            cuts: None,
            trace: None,
            tally: Tally::default(),
        }
    }

    /// From now on what happens is written down.
    pub fn tell(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// What was written down.
    pub fn told(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    /// The disk beneath.
    pub fn sim(&self) -> &Sim {
        self.driver.backend().sim()
    }

    /// The disk beneath, to set faults.
    pub fn sim_mut(&mut self) -> &mut Sim {
        self.driver.backend_mut().sim_mut()
    }

    /// From now on operations fail so.
    pub fn arm(&mut self, fault: Option<Fault>) {
        self.note(|| format!("faults: {fault:?}"));
        self.drops = fault.as_ref().is_some_and(|fault| fault.aftermath == Aftermath::DropUnsynced);
        self.sim_mut().set_faults(fault.map_or_else(FaultPlan::none, FaultPlan::from));
    }

    /// Faults are over, without a word about it.
    fn arm_quietly(&mut self) {
        self.sim_mut().set_faults(FaultPlan::none());
    }

    /// Has an operation failed in this session?
    pub fn has_failed(&self) -> bool {
        self.faulted
    }

    /// The settings.
    pub fn session(&self) -> Session {
        self.session.clone()
    }

    /// From now on what reads see counts in the digest.
    pub fn watch(&mut self) {
        self.driver.backend_mut().watch_reads();
    }

    /// What the guest was promised.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Opened again, the disk may have one of these sizes.
    pub fn allow_sizes(&mut self, sizes: &[u64]) {
        self.sizes.extend(sizes);
    }

    /// After a power cut now, may the disk have this size?
    pub fn may_have_size(&self, len: u64) -> bool {
        len == self.model.len() || self.sizes.contains(&len)
    }

    /// Of all that a power cut now must keep.
    pub fn promises(&self) -> u128 {
        let next = self.next.as_ref().map_or(u64::MAX, |(kept, _)| kept.len() as u64);
        let lists = [self.kept.len() as u64, next];
        let digest = self.model.digest() ^ u128::from(self.is_tidy());
        let maps = format!("{:?}", (&self.maps, &self.live_maps, &self.next_maps, self.maps_used));
        let digest = if self.subject.mapped { hash_bytes(digest, maps.as_bytes()) } else { digest };
        hash_words(digest, self.sizes.iter().copied().chain(lists))
    }

    /// The image.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// A power cut now may not leave the need-check or dirty bit set: a quiesce or close has ended.
    pub fn is_tidy(&self) -> bool {
        self.tidy && !self.faulted
    }

    /// Nothing is in flight, and nothing was asked for after this request.
    fn is_quiet(&self, user: u64) -> bool {
        self.tickets.is_empty() && user + 1 == self.next_user
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.tickets.len()
    }

    /// Is the image open and taking requests?
    pub fn is_open(&self) -> bool {
        self.disk.is_some()
    }

    /// A failed write or sync made it read-only.
    pub fn is_poisoned(&self) -> bool {
        self.disk.is_some_and(|disk| self.driver.poisoned(disk).is_some())
    }

    /// A timer is running: how long until it runs out?
    pub fn timeout(&self) -> Option<Duration> {
        self.driver.next_timeout()
    }

    /// Settings for the next opening.
    pub fn set_session(&mut self, session: Session) {
        self.session = session;
    }

    /// Asks; false if the driver is busy.
    pub fn ask(&mut self, ask: Ask) -> Checked<bool> {
        let Some(disk) = self.disk else { return fail("nothing is open") };
        let user = self.next_user;
        // of two changes of size in flight either may be the last
        let qed = self.subject.form.format() == Format::Qed;
        if matches!(ask, Ask::Resize { .. }) && !qed && self.resizing().next().is_some() {
            return Ok(false);
        }
        // what a snapshot holds is known if nothing is in flight
        if ask.is_edit() && !self.tickets.is_empty() {
            return Ok(false);
        }
        if ask == Ask::Empty && !self.subject.empties() {
            return Ok(false);
        }
        let ids = if ask.is_snapshot() { image::snapshot_ids(self.sim(), TOP)? } else { Vec::new() };
        let Some(request) = request(ask, user, &ids, self.model.len()) else {
            let Ask::Cancel { back } = ask else { return fail("not a request") };
            return self.cancel(disk, user.saturating_sub(back));
        };
        let submitted = self.model.tick();
        match self.driver.submit(disk, request) {
            Ok(()) => {}
            Err(rejected) if rejected.reason == Refusal::Busy => return Ok(false),
            Err(Rejected {
                reason: Refusal::Error(Error::File { kind: ErrorKind::Unsupported(_), .. }),
                ..
            }) if matches!(ask, Ask::Resize { .. } | Ask::Pack { .. }) => {
                return Ok(false);
            }
            // what was the disk's last cluster is not any more
            Err(Rejected { reason: Refusal::Error(Error::Misuse(_)), .. })
                if matches!(ask, Ask::Pack { .. }) && self.resizing().next().is_some() =>
            {
                return Ok(false);
            }
            Err(rejected) => return fail(format!("{ask:?} is refused: {}", rejected.reason)),
        }
        self.note(|| format!("#{user} {ask:?}"));
        self.next_user += 1;
        self.tidy = false;
        if let Ask::Resize { len } = ask {
            self.sizes.push(len);
        }
        if ask.is_snapshot() {
            self.next = Some(self.list_after(ask)?);
        }
        if let Ask::Map { index, change } = ask {
            match change.done(index, self.model.len(), &self.live_maps) {
                Ok(next) => self.next_maps.push(next),
                // the request that it builds on has failed
                Err(_) if self.faulted => self.next_maps.push(self.live_maps.clone()),
                Err(failure) => return Err(failure),
            }
        } else if ask.changes() && !ask.is_snapshot() {
            let (start, end) = ask.range().unwrap_or((0, self.model.len()));
            self.live_maps.iter_mut().for_each(|map| map.note(start, end));
            self.maps_used = true;
        }
        let writes = match ask {
            Ask::Write { offset, len, .. } => self.writes(offset, offset + len, Fill::Data(user)),
            Ask::Pack { offset, len, .. } => self.writes(offset, offset + len, Fill::Data(pack_id(user))),
            Ask::Zero { offset, len, .. } => self.writes(offset, offset + len, Fill::Zero),
            Ask::Discard { offset, len } => self.discards(offset, offset + len),
            Ask::Empty => self.writes(0, self.model.len(), Fill::Zero),
            // as long as it has the old size, what will be cut off may be gone or not
            Ask::Resize { len } if len < self.model.len() => {
                [Some(self.model.submit(len, self.model.len(), Fill::Zero, true)), None, None]
            }
            _ => [None; 3],
        };
        let alone = self.tickets.is_empty();
        self.tickets.insert(user, Ticket { ask, submitted, writes, cancelled: false, alone });
        self.turn()?;
        Ok(true)
    }

    fn cancel(&mut self, disk: DiskId, user: u64) -> Checked<bool> {
        self.note(|| format!("#{user} is cancelled"));
        let cancelled = self.driver.cancel(disk, user) > 0;
        match self.tickets.get_mut(&user) {
            Some(ticket) => ticket.cancelled |= cancelled,
            None if cancelled => return fail(format!("#{user} has ended, and is cancelled")),
            None => {}
        }
        self.turn()?;
        Ok(true)
    }

    /// Sizes that requests in flight ask for.
    fn resizing(&self) -> impl Iterator<Item = u64> {
        self.tickets.values().filter_map(|ticket| match ticket.ask {
            Ask::Resize { len } => Some(len),
            _ => None,
        })
    }

    fn writes(&mut self, start: u64, end: u64, fill: Fill) -> [Option<u32>; 3] {
        [Some(self.model.submit(start, end, fill, false)), None, None]
    }

    /// What is not a whole unit may stay as it is.
    fn discards(&mut self, start: u64, end: u64) -> [Option<u32>; 3] {
        let unit = self.subject.discard_unit().unwrap_or(u64::MAX);
        let (first, last) = (start.checked_next_multiple_of(unit).unwrap_or(end), end / unit * unit);
        if first >= last {
            return [Some(self.model.submit(start, end, Fill::Zero, true)), None, None];
        }
        [(start, first, true), (first, last, false), (last, end, true)].map(|(start, end, optional)| {
            (start < end).then(|| self.model.submit(start, end, Fill::Zero, optional))
        })
    }

    /// Completes one operation of the chooser's choice, and lets everything follow from it. False: there is
    /// none.
    pub fn step(&mut self, chooser: &mut dyn Chooser) -> Checked<bool> {
        // what completes is one of these
        let mut before = if self.trace.is_some() { self.sim().pending().collect() } else { Vec::new() };
        if !self.driver.backend_mut().step(chooser) {
            return Ok(false);
        }
        before.retain(|op| !self.sim().pending().any(|left| left == *op));
        for op in before {
            self.note(|| format!("    {:?} {:#x} {:#x}", op.kind, op.offset, op.len));
        }
        self.tally.operations += 1;
        self.turn()?;
        Ok(true)
    }

    /// Lets the time pass until the next timer runs out. False: there is none.
    pub fn fire(&mut self) -> Checked<bool> {
        let Some(left) = self.driver.next_timeout() else { return Ok(false) };
        self.note(|| format!("timer after {left:?}"));
        self.tally.timers += 1;
        self.sim_mut().advance(left);
        self.turn()?;
        Ok(true)
    }

    fn pump(&mut self) -> Checked {
        self.driver.turn().map_err(|error| Failure(format!("turn: {error}")))
    }

    /// Another turn has something to do: part of a cluster is to be decompressed.
    pub fn is_due(&self) -> bool {
        self.driver.next_timeout() == Some(Duration::ZERO)
    }

    /// Pumps, takes completions, checks what must hold between steps.
    fn turn(&mut self) -> Checked {
        self.pump()?;
        self.see_faults();
        while let Some(done) = self.driver.next_completion() {
            self.completed(done)?;
        }
        self.pump()?;
        if self.session.trace {
            let (edges, format) = (&mut self.tally.edges, self.subject.form.format());
            let mut unknown = None;
            self.driver.drain_transitions(&mut |step| {
                let (from, to) = (step.transition.from, step.transition.to);
                if step.layer == 0 {
                    let count = edges.entry((format as u8, from as u8, to as u8)).or_default();
                    if *count == 0 && !table(format).contains(&(from, to)) {
                        unknown = Some((from, to));
                    }
                    *count += 1;
                }
            });
            if let Some((from, to)) = unknown {
                return fail(format!("no edge {from:?} -> {to:?}"));
            }
        }
        self.sweep()
    }

    /// It may meet what is bad, or change something after another one has.
    fn may_fail(&self, ask: Ask) -> bool {
        let halted = self.subject.bad.0 < self.subject.bad.1 && self.is_poisoned();
        self.subject.may_refuse(ask) || halted && ask.changes()
    }

    /// A device has no space for it.
    fn is_full(&self, ask: Ask, error: &Error) -> bool {
        self.subject.fills_up && ask.changes() && matches!(error.kind(), Some(ErrorKind::NoSpace))
    }

    fn see_faults(&mut self) {
        self.faulted |= self.driver.backend().failed() > self.failed_before;
        self.blind |= self.drops && self.sim().counters().failed(OpKind::Sync) > 0;
    }

    fn completed(&mut self, done: Completion) -> Checked {
        let Some(ticket) = self.tickets.remove(&done.user) else {
            return fail(format!("an answer that nobody waits for: {done:?}"));
        };
        self.note(|| format!("#{} ended: {:?}", done.user, done.result));
        let ok = done.result.is_ok();
        if ticket.cancelled != matches!(done.result, Err(Error::Cancelled)) && !self.faulted {
            return fail(format!("#{} cancelled: {}, ended: {:?}", done.user, ticket.cancelled, done.result));
        }
        if let Err(error) = &done.result
            && !self.faulted
            && !ticket.cancelled
            && !self.may_fail(ticket.ask)
            && !self.is_full(ticket.ask, error)
            && !is_occupied(ticket.ask, error)
        {
            return fail(format!("#{} {:?} failed without a fault: {error}", done.user, ticket.ask));
        }
        if ok {
            self.tally.done += 1
        } else {
            self.tally.failed += 1
        }
        self.tally.cancelled += u64::from(ticket.cancelled);
        for index in ticket.writes.into_iter().flatten() {
            let fua = match ticket.ask {
                Ask::Write { fua, .. } | Ask::Pack { fua, .. } | Ask::Zero { fua, .. } => fua,
                Ask::Empty => true,
                _ => false,
            };
            self.model.end(index, ok, fua);
        }
        if ok && ticket.ask.changes() && !ticket.ask.is_edit() {
            // what it changed is in none that was stored before
            self.maps.clone_from(&self.live_maps);
        }
        match ticket.ask {
            Ask::Read { offset, .. } if ok && !self.blind => {
                self.read_ended(&ticket, offset, done.kind.buffers(), done.user)
            }
            Ask::Flush | Ask::Quiesce if ok => {
                self.tidy = ticket.ask == Ask::Quiesce && ticket.alone && self.is_quiet(done.user);
                if self.tidy && !self.faulted {
                    self.maps_are_stored();
                }
                self.model.flushed(ticket.submitted);
                Ok(())
            }
            Ask::Resize { len } if ok => {
                // QED only grows: what another request has made larger stays so
                let least = if self.subject.form.format() == Format::Qed { self.model.len() } else { 0 };
                self.model.resize(len.max(least));
                // it is durable: only those in flight may still be found
                self.sizes = self.resizing().collect();
                Ok(())
            }
            Ask::Map { .. } => {
                // of a failed header nobody knows which directory it leads to
                match (ok, self.is_poisoned()) {
                    (true, _) => {
                        self.live_maps = self.next_maps.drain(..).next_back().unwrap_or_default();
                        self.maps_are_stored();
                    }
                    (false, true) => {}
                    (false, false) => drop(self.next_maps.pop()),
                }
                Ok(())
            }
            Ask::Keep | Ask::Apply { .. } | Ask::Drop { .. } if ok => {
                if let Some((kept, content)) = self.next.take() {
                    self.kept = kept;
                    if let Some(content) = content {
                        self.model.settle(&content);
                    }
                }
                Ok(())
            }
            // of a failed header nobody knows which list it leads to
            Ask::Keep | Ask::Apply { .. } | Ask::Drop { .. } => {
                self.next = self.next.take().filter(|_| self.is_poisoned());
                Ok(())
            }
            Ask::Close => self.closed(ticket.submitted, ok),
            _ => Ok(()),
        }
    }

    /// The list of snapshots, and what the guest sees if that is something else, when this was done.
    fn list_after(&self, ask: Ask) -> Checked<(Kept, Option<Arc<[u8]>>)> {
        let mut kept = self.kept.clone();
        let longer = self.subject.lists.iter().find(|list| list.len() == kept.len() + 1);
        match (ask, longer) {
            (Ask::Keep, Some(longer)) => Ok((longer.clone(), None)),
            (Ask::Apply { index }, _) if index < kept.len() => {
                let content = Arc::clone(&kept[index]);
                Ok((kept, Some(content)))
            }
            (Ask::Drop { index }, _) if index < kept.len() => {
                kept.remove(index);
                Ok((kept, None))
            }
            _ => fail(format!("{ask:?}, and nobody knows of such a snapshot")),
        }
    }

    /// After a power cut now, may there be so many snapshots?
    pub fn may_have_snapshots(&self, count: usize) -> bool {
        count == self.kept.len() || self.next.as_ref().is_some_and(|(kept, _)| kept.len() == count)
    }

    /// All that was noted is in the file.
    fn maps_are_stored(&mut self) {
        self.maps.clone_from(&self.live_maps);
        self.maps_used = false;
    }

    /// After a power cut now, may there be these bitmaps? One that is enabled may be in use if the guest has
    /// changed something.
    pub fn may_have_maps(&self, found: &[Map]) -> bool {
        let lists = self.next_maps.iter().chain([&self.maps, &self.live_maps]);
        lists.into_iter().any(|list| {
            let mut left = found.iter().peekable();
            let fits = list.iter().all(|map| {
                let there = left.next_if(|found| *found == map).is_some();
                there || self.maps_used && map.is_enabled()
            });
            fits && left.next().is_none()
        })
    }

    /// What else than the model says the guest may find after a power cut now: all of it.
    pub fn may_find(&self) -> Option<&[u8]> {
        self.next.as_ref()?.1.as_deref()
    }

    fn read_ended(&mut self, ticket: &Ticket, offset: u64, buffers: Option<&Buffers>, user: u64) -> Checked {
        let Some(bytes) = buffers.map(Buffers::to_vec) else {
            return fail("a read came back without its buffers");
        };
        let checked = self.model.check_bytes(offset, &bytes, View::Live(ticket.submitted));
        checked.map_err(|failure| Failure(format!("read #{user}: {failure}")))
    }

    /// Everything in flight ends: operations complete in the chooser's order, timers run out if nothing else
    /// happens.
    pub fn drain(&mut self, chooser: &mut dyn Chooser) -> Checked {
        for _ in 0..1_000_000 {
            if self.tickets.is_empty() && self.driver.backend().in_flight() == 0 {
                return Ok(());
            }
            if !self.step(chooser)? && !self.fire()? {
                return fail(format!("stuck: {:?} wait for nothing\n{}", self.tickets, self.describe()));
            }
        }
        fail("does not come to rest")
    }

    /// Closes the image and waits for it; false if the close itself failed (which only a fault excuses).
    pub fn close(&mut self) -> Checked<bool> {
        let before = self.tally.clean_closes;
        while !self.ask(Ask::Close)? {
            if !self.step(&mut Fifo)? && !self.fire()? {
                return fail("busy, and nothing is in flight");
            }
        }
        self.drain(&mut Fifo)?;
        Ok(self.tally.clean_closes > before)
    }
}

/// Compressed writes go only where nothing is.
fn is_occupied(ask: Ask, error: &Error) -> bool {
    matches!(ask, Ask::Pack { .. }) && matches!(error.kind(), Some(ErrorKind::Occupied { .. }))
}

/// The edges that a format allows.
fn table(format: Format) -> Edges {
    match format {
        Format::Raw => RAW_EDGES,
        Format::Qed => QED_EDGES,
        Format::Qcow2 => QCOW2_EDGES,
    }
}

fn driver(sim: Sim, session: &Session) -> Driver<Probe> {
    let config = Config::default().requests(session.requests).trace(session.trace);
    // cannot fail: every session has requests
    Driver::with_backend(Probe::new(sim), config).expect("a session without requests")
}
