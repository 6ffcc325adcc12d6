//! A load as `qemu-img bench` makes it: requests of one size at a steady stride, a fixed number in flight.
//!
//! As lean as it can be, since it is the ruler: buffers are made once and travel round through the
//! completions; nothing is allocated per request.
//!
//! Knows: the driver's public face. Must never know: image formats, files.

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
    /// Write instead of read.
    pub write: bool,
    /// Every byte of what is written.
    pub pattern: u8,
    /// Every write is durable before it completes.
    pub fua: bool,
    /// A flush after this many requests; 0: none.
    pub flush_interval: u64,
    /// Wait until nothing is in flight before a flush.
    pub drain: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct LoadOutcome {
    /// From the first submission to the last completion (flushes after the last request not included, as in
    /// QEMU).
    pub elapsed: Duration,
    /// Processor time in between, worker threads included.
    pub cpu: Duration,
    /// Of each read or write, from submission to completion.
    pub latencies: Latencies,
    /// Of each flush.
    pub flushes: Latencies,
    /// Requests that were done: all, unless somebody stopped the run.
    pub done: u64,
}

struct Run<'a, B: Backend> {
    driver: &'a mut Driver<B>,
    disk: DiskId,
    load: &'a Load,
    first: Option<FirstSector>,
    stops: &'a dyn Fn() -> bool,
    image_size: u64,
    buffers: Vec<Buffer>,
    offset: u64,
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
    latencies: Latencies,
    flushes: Latencies,
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
    let depth = u64::from(load.depth).min(load.count) as usize;
    let mut buffers: Vec<Buffer> = (0..depth).map(|_| Buffer::zeroed(load.size)).collect();
    if load.write {
        buffers.iter_mut().for_each(|buffer| buffer.as_mut_slice().fill(load.pattern));
    }
    let mut run = Run {
        driver,
        disk,
        load,
        first,
        stops,
        image_size,
        buffers,
        offset: load.offset,
        left: load.count,
        in_flight: 0,
        flushes_in_flight: 0,
        flushes_owed: 0,
        in_flush: false,
        halted: false,
        cut: 0,
        latencies: Latencies::new(),
        flushes: Latencies::new(),
    };
    let (began, cpu) = (Instant::now(), cpu_time());
    run.fill()?;
    while run.left > 0 {
        run.look();
        run.turn()?;
    }
    let (elapsed, cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
    while run.flushes_in_flight > 0 || run.flushes_owed > 0 {
        run.turn()?;
    }
    Ok(LoadOutcome {
        elapsed,
        cpu,
        latencies: run.latencies,
        flushes: run.flushes,
        done: load.count - run.cut,
    })
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
        let timeout = self.driver.next_timeout();
        self.driver.wait(timeout)?;
        while let Some(done) = self.driver.next_completion() {
            done.result?;
            match done.kind {
                CompletionKind::Flush => {
                    self.flushes.record(done.latency);
                    self.flushes_in_flight -= 1;
                    if self.in_flush {
                        self.in_flush = false;
                        self.fill()?;
                    }
                }
                other => {
                    self.latencies.record(done.latency);
                    self.keep(other.into_buffers());
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
        if self.load.flush_interval > 0 && unsent.is_multiple_of(self.load.flush_interval) {
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

    fn keep(&mut self, buffers: Option<Buffers>) {
        self.buffers.extend(buffers.and_then(Buffers::into_owned));
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

    /// Fills the queue up to its depth.
    fn fill(&mut self) -> Result<(), Error> {
        while self.left > self.in_flight
            && self.in_flight < u64::from(self.load.depth)
            && let Some(buffer) = self.buffers.pop()
        {
            let request = match self.load.write {
                true if self.load.fua => Request::write(self.offset, buffer, 0).fua(),
                true => Request::write(self.offset, buffer, 0),
                false => Request::read(self.offset, buffer, 0),
            };
            self.first.as_mut().map_or(Ok(()), |first| first.admit(&request))?;
            match self.driver.submit(self.disk, request) {
                Ok(()) => {}
                // requests of many extents take many control blocks: go on when one ended
                Err(rejected) if rejected.reason == Refusal::Busy && self.in_flight > 0 => {
                    self.keep(rejected.request.kind.into_buffers());
                    return Ok(());
                }
                Err(rejected) => return Err(rejected.reason.into()),
            }
            self.in_flight += 1;
            self.offset = next_offset(self.offset, self.load.step, self.image_size);
        }
        Ok(())
    }
}

/// As QEMU goes on: modulo the size of the image, whatever fits there (a request across the end fails).
fn next_offset(offset: u64, step: u64, image_size: u64) -> u64 {
    if image_size <= step { 0 } else { (offset + step) % image_size }
}

#[cfg(test)]
mod tests {
    use super::next_offset;

    #[test]
    fn offsets_wrap_as_in_qemu() {
        let mib = |n: u64| n << 20;
        let walk = |start, step| {
            std::iter::successors(Some(start), move |at| Some(next_offset(*at, step, mib(16)))).take(6)
        };
        let expected = [3, 15, 11, 7, 3, 15].map(mib);
        assert!(walk(mib(3), mib(12)).eq(expected));
        assert!(walk(0, mib(4)).eq([0, 4, 8, 12, 0, 4].map(mib)));
        assert!(walk(0, mib(16)).eq([0; 6]));
    }
}
