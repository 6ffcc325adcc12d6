//! The loop that plays: fills the queue in the order of the trace, reaps, verifies.
//!
//! Knows: what is in flight, what is due. Must never know: what comes after the trace.

use super::error::ReplayError;
use super::observer::Observer;
use super::options::{Options, Speed, TRANSFER_MAX};
use super::pool::BufferPool;
use super::tally::Tally;
use crate::contract::blocks::{Change, Model, Ticket};
use crate::contract::payload::{self, BLOCK};
use crate::contract::verdict::Verdict;
use crate::measure::dwell::Dwell;
use crate::measure::timeline::Timeline;
use crate::measure::usage::cpu_time;
use crate::report::ReplayReport;
use crate::trace::{self, Op, Reader, Record, Source, Summary};
use quod::{Buffer, Buffers, Completion, Refusal, Request};
use quod_tools::Session;
use std::io::BufRead;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What came of playing.
pub struct Played {
    pub report: ReplayReport,
    pub verdict: Verdict,
    /// The observer stopped it.
    pub interrupted: bool,
}

/// Longest sleep while nothing is in flight: whether to stop is asked before each.
const NAP: Duration = Duration::from_millis(100);

/// An operation in flight.
struct Flight {
    record: Record,
    due: Duration,
    /// None: a flush, which the model does not see.
    ticket: Option<Ticket>,
}

struct Player<'a> {
    session: &'a mut Session,
    model: &'a mut Model,
    input: Reader<Box<dyn BufRead + 'a>>,
    summary: &'a Summary,
    /// Read, not yet submitted.
    head: Option<Record>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    pool: BufferPool,
    registered: bool,
    seed: u64,
    /// Times as fast; None: no times.
    factor: Option<f64>,
    began: Instant,
    tally: Tally,
    verdict: Verdict,
    dwell: Dwell,
    timeline: Option<Timeline>,
    done: u64,
    stopped: bool,
}

/// Why the queue is not filled further.
enum Stop {
    /// Something in flight must end first.
    Blocked,
    /// The head is due only then.
    Until(Duration),
    /// The trace is over.
    End,
}

/// Plays a trace to its end.
pub fn play(
    session: &mut Session,
    model: &mut Model,
    source: &Source,
    summary: &Summary,
    options: &Options,
    timeline: Option<Timeline>,
    observer: &mut dyn Observer,
) -> Result<Played, ReplayError> {
    let depth = options.depth.max(1) as usize;
    let mut player = Player {
        session,
        model,
        input: source.open(summary.waits)?,
        summary,
        head: None,
        flights: (0..depth).map(|_| None).collect(),
        free: (0..depth).rev().collect(),
        pool: BufferPool::default(),
        registered: options.registered,
        seed: options.seed,
        factor: match options.speed {
            Speed::Max => None,
            Speed::Times(factor) => Some(factor),
        },
        began: Instant::now(),
        tally: Tally::new(),
        verdict: Verdict::default(),
        dwell: Dwell::default(),
        timeline,
        done: 0,
        stopped: false,
    };
    player.session.driver().reset_hold();
    let cpu = cpu_time();
    player.play(observer)?;
    let (elapsed, cpu) = (player.began.elapsed(), cpu_time().saturating_sub(cpu));
    player.follow();
    std::mem::take(&mut player.pool).end(player.session.driver())?;
    if let (Some(timeline), Some(path)) = (player.timeline, &options.timeline) {
        timeline.finish().map_err(|error| ReplayError::Timeline(path.clone(), error))?;
    }
    let mut report = player.tally.report(options, elapsed, cpu);
    report.states = player.dwell.rows();
    Ok(Played { report, verdict: player.verdict, interrupted: player.stopped })
}

/// The blocks of a record. Its range lies on the 512-byte grid: the trace was examined.
fn blocks(record: &Record) -> Range<u64> {
    let first = record.offset / BLOCK as u64;
    first..first + record.len / BLOCK as u64
}

impl Player<'_> {
    fn play(&mut self, observer: &mut dyn Observer) -> Result<(), ReplayError> {
        loop {
            self.stopped = self.stopped || observer.stops();
            let stop = if self.stopped { Stop::End } else { self.fill()? };
            let idle = self.free.len() == self.flights.len();
            let due = match stop {
                Stop::End if idle => return Ok(()),
                Stop::End | Stop::Blocked => None,
                Stop::Until(due) => Some(due.saturating_sub(self.began.elapsed())),
            };
            let driver = self.session.driver();
            let mut timeout = due;
            if idle {
                timeout = due.into_iter().chain(driver.next_timeout()).min().map(|time| time.min(NAP));
                if timeout.is_none() {
                    // nothing will ever happen: the driver refuses though nothing is in flight
                    return Err(ReplayError::Driver(quod::Error::Busy));
                }
            }
            driver.wait(timeout)?;
            while let Some(done) = self.session.driver().next_completion() {
                self.complete(done)?;
            }
            self.follow();
            observer.progress(self.done);
        }
    }

    fn fill(&mut self) -> Result<Stop, ReplayError> {
        loop {
            if self.head.is_none() {
                self.head = self.next_record()?;
            }
            let Some(record) = self.head else { return Ok(Stop::End) };
            let now = self.began.elapsed();
            let due = self.due(&record);
            if due > now {
                return Ok(Stop::Until(due));
            }
            if self.free.is_empty() || self.waits(&record) || !self.submit(record, due, now)? {
                return Ok(Stop::Blocked);
            }
            self.head = None;
        }
    }

    /// The next operation on the file that is played.
    fn next_record(&mut self) -> Result<Option<Record>, ReplayError> {
        while let Some(record) = self.input.next_record()? {
            if record.file != self.summary.file {
                continue;
            }
            // it was examined, but perhaps somebody has written to it since
            trace::check(&record, TRANSFER_MAX)?;
            if record.offset + record.len > self.summary.max_extent {
                return Err(
                    trace::TraceError::line(record.line, "reaches further than it did a moment ago").into()
                );
            }
            return Ok(Some(record));
        }
        Ok(None)
    }

    fn due(&self, record: &Record) -> Duration {
        match self.factor {
            // the longest trace at the lowest speed is still a finite number of seconds, but not always a
            // Duration
            Some(factor) => {
                Duration::try_from_secs_f64(record.at_us as f64 / 1e6 / factor).unwrap_or(Duration::MAX)
            }
            None => Duration::ZERO,
        }
    }

    fn waits(&self, record: &Record) -> bool {
        record.op != Op::Sync && self.model.conflicts(&blocks(record), record.op.changes())
    }

    /// False: the driver is busy, the record stays at the head.
    fn submit(&mut self, record: Record, due: Duration, now: Duration) -> Result<bool, ReplayError> {
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let (request, ticket) = self.request(&record, slot as u64)?;
        match self.session.submit(request) {
            Ok(()) => {
                if self.factor.is_some() {
                    self.tally.submitted(due, now);
                }
                self.flights[slot] = Some(Flight { record, due, ticket });
                Ok(true)
            }
            Err(rejected) => {
                self.free.push(slot);
                if let Some(ticket) = ticket {
                    self.model.cancel(ticket);
                }
                if let Some(Buffers::Owned(buffer)) = rejected.request.kind.into_buffers() {
                    self.pool.give(buffer, self.session.driver())?;
                }
                match rejected.reason {
                    Refusal::Busy => Ok(false),
                    Refusal::Error(error) => {
                        self.done += 1;
                        self.failed(&record, &error);
                        Ok(true)
                    }
                }
            }
        }
    }

    fn buffer(&mut self, len: usize) -> Result<Buffer, ReplayError> {
        match self.registered {
            true => Ok(self.pool.take_registered(len, self.session.driver())?),
            false => Ok(self.pool.take(len)),
        }
    }

    fn request(&mut self, record: &Record, user: u64) -> Result<(Request, Option<Ticket>), ReplayError> {
        let (blocks, offset) = (blocks(record), record.offset);
        Ok(match record.op {
            Op::Read => {
                let mut buffer = self.buffer(record.len as usize)?;
                payload::poison(buffer.as_mut_slice());
                (Request::read(offset, buffer, user), Some(self.model.begin_read(blocks)))
            }
            Op::Write => {
                let mut buffer = self.buffer(record.len as usize)?;
                let first = blocks.start;
                let (ticket, version) = self.model.begin_change(blocks, Change::Write);
                payload::fill_labelled(buffer.as_mut_slice(), self.seed, first, version);
                (Request::write(offset, buffer, user), Some(ticket))
            }
            Op::Trim => {
                let (ticket, _) = self.model.begin_change(blocks, Change::Discard);
                (Request::discard(offset, record.len, user), Some(ticket))
            }
            Op::Sync => (Request::flush(user), None),
        })
    }

    fn complete(&mut self, done: Completion) -> Result<(), ReplayError> {
        let slot = done.user as usize;
        let Some(Flight { record, due, ticket }) = self.flights.get_mut(slot).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(slot);
        self.done += 1;
        let succeeded = done.result.is_ok();
        match (record.op, ticket) {
            (Op::Read, Some(ticket)) => match (done.kind.buffers(), succeeded) {
                (Some(Buffers::Owned(buffer)), true) => {
                    self.verdict.add(self.model.finish_read(ticket, buffer.as_slice()));
                }
                _ => self.model.cancel(ticket),
            },
            (_, Some(ticket)) => self.model.finish_change(ticket, succeeded),
            (_, None) => {}
        }
        if let Some(Buffers::Owned(buffer)) = done.kind.into_buffers() {
            self.pool.give(buffer, self.session.driver())?;
        }
        match done.result {
            Ok(()) => self.tally.completed(record.op, record.len, done.met, done.latency.unwrap_or_default()),
            Err(error) => self.failed(&record, &error),
        }
        if self.factor.is_some() {
            self.tally.responded(self.began.elapsed().saturating_sub(due));
        }
        Ok(())
    }

    fn failed(&mut self, record: &Record, error: &quod::Error) {
        let Record { line, op, offset, len, .. } = record;
        self.tally.failed(|| format!("line {line}, {op:?} of {len} bytes at {offset:#x}: {error}"));
    }

    /// Takes the transitions since the last time.
    fn follow(&mut self) {
        let (dwell, timeline) = (&mut self.dwell, &mut self.timeline);
        self.session.driver().drain_transitions(&mut |timed| {
            if let Some(slice) = dwell.transition(timed)
                && let Some(timeline) = timeline
            {
                timeline.slice(&slice);
            }
        });
    }
}
