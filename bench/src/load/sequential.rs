//! A load as `qemu-img bench` makes it: requests of one size at a steady stride, a fixed number in flight;
//! and in a random order, and reads and writes mixed, which that does not.
//!
//! As lean as it can be, since it is the ruler: buffers are made once and travel round through the
//! completions; nothing is allocated per request, and nothing looks at latencies that nobody asked for.
//!
//! Knows: the driver's public face. Must never know: image formats, files.

use crate::load::order::{Next, Order, Places, Sequence};
use crate::load::registered::{register, take_back};
use crate::measure::histogram::Latencies;
use crate::measure::usage::cpu_time;
use quod::{Buffer, Buffers, CompletionKind, DiskId, Driver, Error, Refusal, Request};
use quod_backend::Backend;
use quod_tools::FirstSector;
use std::time::{Duration, Instant};

/// Flushes in flight at once, at most (without draining they overtake nobody and pile up).
pub const FLUSHES_MAX: u32 = 16;

/// What to do. The numbers are taken as they are; the command line checks them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Requests.
    pub count: u64,
    /// In flight at once.
    pub depth: u32,
    /// Bytes of each.
    pub size: usize,
    /// From one to the next, bytes.
    pub step: u64,
    /// Of the first.
    pub offset: u64,
    /// One step on from request to request, or anywhere.
    pub order: Order,
    /// Of the chances in an order or a mix.
    pub seed: u64,
    /// Requests of a hundred that read; the others write.
    pub reads: u32,
    /// Every byte of what is written.
    pub pattern: u8,
    /// Every write is durable before it completes.
    pub fua: bool,
    /// A flush after this many requests, of a mix after this many writes; 0: none.
    pub flush_interval: u64,
    /// Wait until nothing is in flight before a flush.
    pub drain: bool,
    /// Flush once more behind the last request, and let that count.
    pub final_flush: bool,
    /// The buffers are registered with the driver ([`Driver::register_memory`]).
    pub registered: bool,
}

impl Default for Load {
    /// As `qemu-img bench` if nothing is said: 75,000 reads of 4 KiB one behind the other, 64 in flight.
    fn default() -> Load {
        Load {
            count: 75_000,
            depth: 64,
            size: 4096,
            step: 4096,
            offset: 0,
            order: Order::Steps,
            seed: 1,
            reads: 100,
            pattern: 0,
            fua: false,
            flush_interval: 0,
            drain: true,
            final_flush: false,
            registered: false,
        }
    }
}

impl Load {
    /// It reads and writes.
    pub fn is_mix(&self) -> bool {
        (1..100).contains(&self.reads)
    }

    /// It changes the image.
    pub fn writes(&self) -> bool {
        self.reads < 100
    }
}

/// What came of it.
#[derive(Debug)]
pub struct LoadOutcome {
    /// From the first submission to the last completion. Flushes after the last request are not included, as
    /// in QEMU, but with [`Load::final_flush`].
    pub elapsed: Duration,
    /// Processor time in between, worker threads included.
    pub cpu: Duration,
    /// Of each read, from submission to completion; like the next two empty if the driver does
    /// not measure ([`quod::Config::timing`]).
    pub reads: Latencies,
    /// Of each write.
    pub writes: Latencies,
    /// Of each flush.
    pub flushes: Latencies,
    /// Requests that were done: all, unless somebody stopped the run.
    pub done: u64,
    /// How many of them read.
    pub done_reads: u64,
    /// Flushes that were done, not counted as requests.
    pub done_flushes: u64,
}

struct Run<'a, B: Backend> {
    driver: &'a mut Driver<B>,
    disk: DiskId,
    load: &'a Load,
    first: Option<FirstSector>,
    stops: &'a dyn Fn() -> bool,
    places: Places,
    /// A request that was refused as busy.
    refused: Option<Next>,
    /// Buffers of reads, and of writes: these keep their pattern.
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    /// Writes of a mix since its last flush.
    unflushed: u64,
    /// Requests that have not completed, those in flight included.
    left: u64,
    in_flight: u64,
    flushes_in_flight: u32,
    /// Flushes that wait until one of those, or a request, has ended.
    flushes_owed: u64,
    /// A drained queue waits for this flush.
    in_flush: bool,
    halted: bool,
    /// Requests that are not sent because of that.
    cut: u64,
    outcome: LoadOutcome,
}

/// Runs a load on an open disk that is idle. The driver must take `depth` requests and
/// [`FLUSHES_MAX`] besides.
pub fn run<B: Backend>(driver: &mut Driver<B>, disk: DiskId, load: &Load) -> Result<LoadOutcome, Error> {
    run_guarded(driver, disk, load, None, &|| false)
}

/// As [`run`], on a disk that may have been guessed to be raw. `stops` is asked whether to send no more; what
/// is in flight ends then, and nothing is flushed.
pub fn run_guarded<B: Backend>(
    driver: &mut Driver<B>,
    disk: DiskId,
    load: &Load,
    first: Option<FirstSector>,
    stops: &dyn Fn() -> bool,
) -> Result<LoadOutcome, Error> {
    let image_size = driver.disk_info(disk).ok_or(Error::Closed)?.virtual_size();
    let sequence = Sequence {
        order: load.order,
        offset: load.offset,
        step: load.step,
        size: load.size as u64,
        reads: load.reads,
        seed: load.seed,
    };
    let places = Places::new(sequence, image_size);
    let places = places.ok_or(Error::Misuse("the image has no room for one of the random requests"))?;
    let depth = u64::from(load.depth).min(load.count) as usize;
    let made = |wanted: bool| -> Vec<Buffer> {
        let count = if wanted { depth } else { 0 };
        (0..count).map(|_| Buffer::zeroed(load.size)).collect()
    };
    let mut writable = made(load.writes());
    writable.iter_mut().for_each(|buffer| buffer.as_mut_slice().fill(load.pattern));
    let (mut readable, mut regions) = (made(load.reads > 0), Vec::new());
    if load.registered {
        register(driver, &mut readable, &mut regions)?;
        register(driver, &mut writable, &mut regions)?;
    }
    let mut run = Run {
        driver,
        disk,
        load,
        first,
        stops,
        places,
        refused: None,
        readable,
        writable,
        unflushed: 0,
        left: load.count,
        in_flight: 0,
        flushes_in_flight: 0,
        flushes_owed: 0,
        in_flush: false,
        halted: false,
        cut: 0,
        outcome: LoadOutcome::new(),
    };
    let (began, cpu) = (Instant::now(), cpu_time());
    run.fill()?;
    while run.left > 0 {
        run.look();
        run.turn()?;
    }
    if load.final_flush && !run.halted {
        run.flush()?;
        run.finish_flushes()?;
    }
    let (elapsed, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
    run.finish_flushes()?;
    take_back(run.driver, &mut regions)?;
    Ok(LoadOutcome { elapsed, cpu, done: load.count - run.cut, ..run.outcome })
}

impl LoadOutcome {
    /// Of all reads and writes.
    pub fn requests(&self) -> Latencies {
        let mut all = self.reads.clone();
        all.add(&self.writes);
        all
    }

    fn new() -> LoadOutcome {
        LoadOutcome {
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            reads: Latencies::new(),
            writes: Latencies::new(),
            flushes: Latencies::new(),
            done: 0,
            done_reads: 0,
            done_flushes: 0,
        }
    }
}

impl<B: Backend> Run<'_, B> {
    /// Sends no more if somebody wants it so.
    fn look(&mut self) {
        if !self.halted && (self.stops)() {
            self.cut = self.left - self.in_flight;
            self.left = self.in_flight;
            self.halted = true;
        }
    }

    fn turn(&mut self) -> Result<(), Error> {
        self.driver.wait(None)?;
        while let Some(done) = self.driver.next_completion() {
            done.result?;
            match done.kind {
                CompletionKind::Flush => {
                    self.outcome.done_flushes += 1;
                    if let Some(latency) = done.latency {
                        self.outcome.flushes.record(latency);
                    }
                    self.flushes_in_flight -= 1;
                    if self.in_flush {
                        self.in_flush = false;
                        self.fill()?;
                    }
                }
                CompletionKind::Read(buffers) => {
                    self.outcome.done_reads += 1;
                    if let Some(latency) = done.latency {
                        self.outcome.reads.record(latency);
                    }
                    self.readable.extend(buffers.into_owned());
                    self.finish_one()?;
                }
                other => {
                    if let Some(latency) = done.latency {
                        self.outcome.writes.record(latency);
                    }
                    self.writable.extend(other.into_buffers().and_then(Buffers::into_owned));
                    self.finish_one()?;
                }
            }
        }
        self.send_flushes()
    }

    /// One read or write ended: is it time for a flush, or for the next?
    fn finish_one(&mut self) -> Result<(), Error> {
        let unsent = self.left - self.in_flight;
        self.left -= 1;
        self.in_flight -= 1;
        // here too: requests that end in the call that made them keep this loop busy for ever
        self.look();
        if self.halted {
            return Ok(());
        }
        let interval = self.load.flush_interval;
        if interval > 0 && !self.load.is_mix() && unsent.is_multiple_of(interval) {
            if self.load.drain {
                if self.in_flight == 0 {
                    self.in_flush = true;
                    self.flush()?;
                }
                return Ok(());
            }
            self.flush()?;
        }
        self.fill()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.flushes_owed += 1;
        self.send_flushes()
    }

    fn send_flushes(&mut self) -> Result<(), Error> {
        while self.flushes_owed > 0 && self.flushes_in_flight < FLUSHES_MAX {
            match self.driver.submit(self.disk, Request::flush(0)) {
                Ok(()) => {}
                Err(rejected) if rejected.reason == Refusal::Busy && self.in_flight > 0 => break,
                Err(rejected) => return Err(rejected.reason.into()),
            }
            self.flushes_owed -= 1;
            self.flushes_in_flight += 1;
        }
        Ok(())
    }

    fn finish_flushes(&mut self) -> Result<(), Error> {
        while self.flushes_in_flight > 0 || self.flushes_owed > 0 {
            self.turn()?;
        }
        Ok(())
    }

    /// Is it time for a flush of a mix, and must the next request wait for it?
    fn flush_mix(&mut self) -> Result<bool, Error> {
        if !self.load.is_mix() || self.load.flush_interval == 0 || self.unflushed < self.load.flush_interval {
            return Ok(self.in_flush);
        }
        if self.load.drain && self.in_flight > 0 {
            return Ok(true);
        }
        self.unflushed = 0;
        self.in_flush = self.load.drain;
        self.flush()?;
        Ok(self.in_flush)
    }

    /// Fills the queue up to its depth.
    fn fill(&mut self) -> Result<(), Error> {
        while self.left > self.in_flight && self.in_flight < u64::from(self.load.depth) {
            if self.flush_mix()? {
                return Ok(());
            }
            let next = self.refused.take().unwrap_or_else(|| self.places.draw());
            let buffers = if next.reads { &mut self.readable } else { &mut self.writable };
            // as many of each kind as may be in flight of both
            let Some(buffer) = buffers.pop() else { return Err(Error::Misuse("a buffer did not come back")) };
            let request = match next.reads {
                true => Request::read(next.offset, buffer, 0),
                false if self.load.fua => Request::write(next.offset, buffer, 0).fua(),
                false => Request::write(next.offset, buffer, 0),
            };
            self.first.as_mut().map_or(Ok(()), |first| first.admit(&request))?;
            match self.driver.submit(self.disk, request) {
                Ok(()) => {}
                // requests of many extents take many control blocks: go on when one ended
                Err(rejected) if rejected.reason == Refusal::Busy && self.in_flight > 0 => {
                    let back = rejected.request.kind.into_buffers().and_then(Buffers::into_owned);
                    let buffers = if next.reads { &mut self.readable } else { &mut self.writable };
                    buffers.extend(back);
                    self.refused = Some(next);
                    return Ok(());
                }
                Err(rejected) => return Err(rejected.reason.into()),
            }
            self.in_flight += 1;
            self.unflushed += u64::from(!next.reads);
        }
        Ok(())
    }
}
