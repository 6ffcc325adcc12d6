//! What takes its time: quiescing and resizing, as values that are looked at in each turn.
//!
//! Knows: the driver's face, what a door may be asked. Must never know: sockets.
//!
//! Invariants: an image is in one operation at most; a door that is held is let go again, whatever happens:
//! by resume, by time, by the end of the connection if that was asked for, by an error, by the server's end;
//! whoever asked is answered once.

use crate::door::{Door, Shown};
use crate::request::{Class, Command, Refused};
use quod::{DiskId, Error, Refusal, Request};
use serde_json::{Value, json};
use slab::Slab;
use std::time::{Duration, Instant};

/// The highest bit of a request's `user` value says that it is the control's.
const OWN: u64 = 1 << 63;

/// Whom the answer is for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Asker {
    pub client: usize,
    /// Of the client, which may have gone.
    pub serial: u64,
    pub id: Option<Value>,
}

/// An answer.
pub(crate) type Answer = (Asker, Result<Value, Refused>);

/// How far a quiesce is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Requests that the driver has are waited for.
    Drains,
    /// The driver makes the files consistent: so many are left.
    Writes(usize),
    Quiet(Instant),
    /// It is over, and waits for what the driver still has of it.
    Over(usize),
}

#[derive(Debug)]
struct Quiesce {
    disks: Vec<DiskId>,
    stage: Stage,
    until: Instant,
    /// Until it is answered.
    asker: Option<Asker>,
    /// The connection that it ends with.
    tied: Option<u64>,
    failed: Option<String>,
}

#[derive(Debug)]
struct Resize {
    disk: DiskId,
    size: u64,
    /// The driver has it.
    begun: bool,
    /// Until it is answered.
    asker: Option<Asker>,
}

#[derive(Debug)]
enum Operation {
    Quiesce(Quiesce),
    Resize(Resize),
}

impl Operation {
    fn has(&self, disk: DiskId) -> bool {
        match self {
            Operation::Quiesce(quiesce) => quiesce.disks.contains(&disk),
            Operation::Resize(resize) => resize.disk == disk,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    slots: Slab<Operation>,
    pub answers: Vec<Answer>,
    /// Nothing new begins.
    ending: bool,
}

/// A completion's `user` value that belongs to an operation.
pub(crate) fn is_own(user: u64) -> bool {
    user & OWN != 0
}

/// The images that are meant; all of them if none is named and `all`.
fn find(door: &dyn Door, name: Option<&str>, all: bool) -> Result<Vec<Shown>, Refused> {
    let shown = door.shown();
    let Some(name) = name else {
        if all || shown.len() == 1 {
            return Ok(shown);
        }
        let text = "there are several images: name one (\"image\")";
        return Err(Refused::new(Class::DeviceNotFound, text));
    };
    match shown.into_iter().find(|shown| shown.name == name) {
        Some(shown) => Ok(vec![shown]),
        None => Err(Refused::new(Class::DeviceNotFound, format!("there is no image '{name}'"))),
    }
}

impl Operations {
    /// Nothing is under way, and nobody is held.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The image is quiesced.
    pub fn is_quiet(&self, disk: DiskId) -> bool {
        let quiet =
            |quiesce: &Quiesce| matches!(quiesce.stage, Stage::Quiet(_)) && quiesce.disks.contains(&disk);
        self.slots.iter().any(|(_, slot)| matches!(slot, Operation::Quiesce(quiesce) if quiet(quiesce)))
    }

    /// When it must be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        let times = self.slots.iter().filter_map(|(_, slot)| match slot {
            Operation::Quiesce(Quiesce { stage: Stage::Over(_), .. }) | Operation::Resize(_) => None,
            Operation::Quiesce(quiesce) => Some(quiesce.until),
        });
        times.min()
    }

    /// Begins, or answers at once.
    pub fn begin(&mut self, command: Command, asker: Asker, door: &mut dyn Door) {
        let now = Instant::now();
        let begun = match command {
            _ if self.ending => Err(Refused::new(Class::Ending, "the server is ending")),
            Command::Quiesce { image, most, tied } => {
                self.quiesce(image.as_deref(), now + most, tied, &asker, door)
            }
            Command::Resize { image, size, shrink } => {
                self.resize(image.as_deref(), size, shrink, &asker, door)
            }
            Command::Resume { image } => self.resume(image.as_deref(), door).map(Some),
            Command::Stats | Command::Stop => {
                debug_assert!(false, "they take no time");
                Ok(None)
            }
        };
        match begun {
            Ok(None) => {}
            Ok(Some(value)) => self.answers.push((asker, Ok(value))),
            Err(refused) => self.answers.push((asker, Err(refused))),
        }
    }

    fn refuse_busy(&self, shown: &[Shown]) -> Result<(), Refused> {
        let is_busy = |shown: &&Shown| self.slots.iter().any(|(_, slot)| slot.has(shown.disk));
        match shown.iter().find(is_busy) {
            None => Ok(()),
            Some(shown) => {
                let name = &shown.name;
                let text = format!("the image '{name}' is quiesced, or being quiesced or resized");
                Err(Refused::new(Class::Busy, text))
            }
        }
    }

    fn quiesce(
        &mut self,
        image: Option<&str>,
        until: Instant,
        tied: bool,
        asker: &Asker,
        door: &mut dyn Door,
    ) -> Result<Option<Value>, Refused> {
        let shown = find(door, image, true)?;
        self.refuse_busy(&shown)?;
        let disks: Vec<DiskId> = shown.iter().map(|shown| shown.disk).collect();
        for disk in &disks {
            door.hold(*disk, true);
        }
        tracing::info!("quiescing {} image(s)", disks.len());
        let tied = tied.then_some(asker.serial);
        let (stage, asker) = (Stage::Drains, Some(asker.clone()));
        self.slots.insert(Operation::Quiesce(Quiesce { disks, stage, until, asker, tied, failed: None }));
        Ok(None)
    }

    fn resize(
        &mut self,
        image: Option<&str>,
        size: u64,
        shrink: bool,
        asker: &Asker,
        door: &mut dyn Door,
    ) -> Result<Option<Value>, Refused> {
        let shown = find(door, image, false)?;
        self.refuse_busy(&shown)?;
        let disk = shown[0].disk;
        let now = door.driver().disk_info(disk).map_or(0, quod::DiskInfo::virtual_size);
        if size < now && !shrink {
            let text = format!("the disk has {now} bytes; \"shrink\": true gives up what lies behind {size}");
            return Err(Refused::new(Class::Invalid, text));
        }
        let asker = Some(asker.clone());
        self.slots.insert(Operation::Resize(Resize { disk, size, begun: false, asker }));
        Ok(None)
    }

    /// Ends what is quiesced; how long the shortest of them was.
    fn resume(&mut self, image: Option<&str>, door: &mut dyn Door) -> Result<Value, Refused> {
        let shown = find(door, image, true)?;
        let mut quiet: Option<Duration> = None;
        for (_, slot) in &mut self.slots {
            let Operation::Quiesce(quiesce) = slot else { continue };
            if matches!(quiesce.stage, Stage::Over(_)) {
                continue;
            }
            for disk in shown.iter().map(|shown| shown.disk).filter(|disk| quiesce.disks.contains(disk)) {
                let time = match quiesce.stage {
                    Stage::Quiet(since) => since.elapsed(),
                    _ => Duration::ZERO,
                };
                quiet = Some(quiet.map_or(time, |least| least.min(time)));
                door.hold(disk, false);
            }
            let meant = |disk: &DiskId| shown.iter().any(|shown| shown.disk == *disk);
            if matches!(quiesce.stage, Stage::Quiet(_)) {
                quiesce.disks.retain(|disk| !meant(disk));
                if quiesce.disks.is_empty() {
                    quiesce.stage = Stage::Over(0);
                }
            } else if quiesce.disks.iter().any(meant) {
                // one that was not quiet yet has failed as a whole
                let text = "it was resumed before it was quiesced";
                let answer = quiesce.end(door).map(|asker| (asker, Err(Refused::new(Class::Failed, text))));
                self.answers.extend(answer);
            }
        }
        self.slots.retain(|_, slot| !is_over(slot));
        match quiet {
            Some(time) => Ok(json!({ "quiesced_seconds": time.as_secs_f64() })),
            None => Err(Refused::new(Class::NotQuiesced, "it is not quiesced, or not any more")),
        }
    }

    /// Goes on with what can go on.
    pub fn advance(&mut self, door: &mut dyn Door) {
        let now = Instant::now();
        for (index, slot) in &mut self.slots {
            let user = OWN | index as u64;
            match slot {
                Operation::Quiesce(quiesce) => {
                    if !matches!(quiesce.stage, Stage::Over(_)) && quiesce.until <= now {
                        tracing::warn!("quiesced for as long as was asked for: requests go on");
                        let text = "it took longer than the timeout";
                        let refused = Refused::new(Class::Failed, text);
                        self.answers.extend(quiesce.end(door).map(|asker| (asker, Err(refused))));
                    }
                    quiesce.drained(door, user);
                    self.answers.extend(quiesce.answer(door, now));
                }
                Operation::Resize(resize) if !resize.begun => {
                    match door.driver().submit(resize.disk, Request::resize(resize.size, user)) {
                        Ok(()) => resize.begun = true,
                        // after the next completion
                        Err(rejected) if rejected.reason == Refusal::Busy => {}
                        Err(rejected) => {
                            let refused = Refused::new(Class::Failed, Error::from(rejected).to_string());
                            self.answers.extend(resize.asker.take().map(|asker| (asker, Err(refused))));
                        }
                    }
                }
                Operation::Resize(_) => {}
            }
        }
        self.slots.retain(|_, slot| !is_over(slot));
    }

    /// Something of it has ended in the driver.
    pub fn ended(&mut self, user: u64, result: Result<(), Error>, door: &mut dyn Door) {
        let index = (user & !OWN) as usize;
        match self.slots.get_mut(index) {
            Some(Operation::Quiesce(quiesce)) => quiesce.one_ended(result),
            Some(Operation::Resize(resize)) => {
                let size = resize.size;
                let answer = match result {
                    Ok(()) => {
                        tracing::info!("resized to {size} bytes");
                        door.resized(resize.disk);
                        Ok(json!({ "size": size }))
                    }
                    Err(error) => Err(Refused::new(Class::Failed, error.to_string())),
                };
                self.answers.extend(resize.asker.take().map(|asker| (asker, answer)));
            }
            None => debug_assert!(false, "an operation stays until all of it has ended"),
        }
    }

    /// A connection has ended: what is tied to it, too.
    pub fn connection_ended(&mut self, serial: u64, door: &mut dyn Door) {
        for (_, slot) in &mut self.slots {
            if let Operation::Quiesce(quiesce) = slot
                && quiesce.tied == Some(serial)
            {
                tracing::warn!("whoever quiesced has gone: requests go on");
                quiesce.end(door);
            }
        }
        self.slots.retain(|_, slot| !is_over(slot));
    }

    /// The server is ending: nobody is held any more.
    pub fn end(&mut self, door: &mut dyn Door) {
        self.ending = true;
        for (_, slot) in &mut self.slots {
            if let Operation::Quiesce(quiesce) = slot {
                let refused = Refused::new(Class::Ending, "the server is ending");
                self.answers.extend(quiesce.end(door).map(|asker| (asker, Err(refused))));
            }
        }
        self.slots.retain(|_, slot| !is_over(slot));
    }
}

/// Nothing is left of it.
fn is_over(slot: &Operation) -> bool {
    match slot {
        Operation::Quiesce(quiesce) => quiesce.stage == Stage::Over(0),
        Operation::Resize(resize) => resize.asker.is_none(),
    }
}

impl Quiesce {
    /// Lets the clients go on; whoever is still to be answered.
    fn end(&mut self, door: &mut dyn Door) -> Option<Asker> {
        let left = match self.stage {
            Stage::Writes(left) => left,
            Stage::Drains | Stage::Quiet(_) => 0,
            Stage::Over(_) => return None,
        };
        for disk in &self.disks {
            door.hold(*disk, false);
        }
        self.stage = Stage::Over(left);
        self.asker.take()
    }

    /// If the driver has nothing any more it is asked to make the files consistent.
    fn drained(&mut self, door: &mut dyn Door, user: u64) {
        let driver = door.driver();
        if self.stage != Stage::Drains || self.disks.iter().any(|disk| driver.outstanding(*disk) > 0) {
            return;
        }
        let mut left = 0;
        for disk in &self.disks {
            match driver.submit(*disk, Request::quiesce(user)) {
                Ok(()) => left += 1,
                Err(rejected) => {
                    self.failed.get_or_insert(Error::from(rejected).to_string());
                }
            }
        }
        self.stage = Stage::Writes(left);
    }

    fn one_ended(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error.to_string());
        }
        match &mut self.stage {
            Stage::Writes(left) | Stage::Over(left) => *left -= 1,
            Stage::Drains | Stage::Quiet(_) => debug_assert!(false, "nothing was handed over"),
        }
    }

    /// All files are consistent, or one cannot be.
    fn answer(&mut self, door: &mut dyn Door, now: Instant) -> Option<Answer> {
        if self.stage != Stage::Writes(0) {
            return None;
        }
        if let Some(text) = self.failed.take() {
            return self.end(door).map(|asker| (asker, Err(Refused::new(Class::Failed, text))));
        }
        self.stage = Stage::Quiet(now);
        let seconds = self.until.saturating_duration_since(now).as_secs_f64();
        self.asker.take().map(|asker| (asker, Ok(json!({ "seconds_left": seconds }))))
    }
}
