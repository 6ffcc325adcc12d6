//! Reads a disk at rest and compares it with the model, unless the observer stops it.
//!
//! Knows: reads. Must never know: how the disk came to be.

use super::observer::Observer;
use super::pool::BufferPool;
use crate::contract::blocks::Model;
use crate::contract::payload::{self, BLOCK};
use crate::contract::verdict::Verdict;
use quod::{Buffers, Error, Refusal, Request};
use quod_tools::Session;
use std::ops::Range;

/// Blocks of one read.
const RUN: u64 = (1 << 20) / BLOCK as u64;
/// Reads in flight: enough for the device, and bounded in memory.
const DEPTH_MAX: u32 = 16;

/// Reads what was touched.
pub fn touched(
    session: &mut Session,
    model: &Model,
    depth: u32,
    observer: &mut dyn Observer,
) -> Result<Option<Verdict>, Error> {
    let mut at = 0;
    scan(session, model, depth, observer, || {
        let run = model.next_touched(at, RUN)?;
        at = run.end;
        Some(run)
    })
}

/// Reads everything.
pub fn whole(
    session: &mut Session,
    model: &Model,
    depth: u32,
    observer: &mut dyn Observer,
) -> Result<Option<Verdict>, Error> {
    let mut at = 0;
    scan(session, model, depth, observer, || {
        let run = at..model.blocks().min(at + RUN);
        at = run.end;
        (!run.is_empty()).then_some(run)
    })
}

fn scan(
    session: &mut Session,
    model: &Model,
    depth: u32,
    observer: &mut dyn Observer,
    mut next: impl FnMut() -> Option<Range<u64>>,
) -> Result<Option<Verdict>, Error> {
    let (mut pool, mut verdict) = (BufferPool::default(), Verdict::default());
    let (disk, driver) = (session.disk(), session.driver());
    let mut in_flight = 0;
    let mut pending = next();
    let mut stopped = false;
    loop {
        stopped = stopped || observer.stops();
        if stopped {
            pending = None;
        }
        while in_flight < depth.min(DEPTH_MAX)
            && let Some(run) = pending.take()
        {
            let mut buffer = pool.take((run.end - run.start) as usize * BLOCK);
            payload::poison(buffer.as_mut_slice());
            match driver.submit(disk, Request::read(run.start * BLOCK as u64, buffer, run.start)) {
                Ok(()) => {
                    in_flight += 1;
                    pending = next();
                }
                // a read of many extents takes many control blocks: go on when one ended
                Err(rejected) if rejected.reason == Refusal::Busy && in_flight > 0 => {
                    if let Some(Buffers::Owned(buffer)) = rejected.request.kind.into_buffers() {
                        pool.give(buffer, driver)?;
                    }
                    pending = Some(run);
                    break;
                }
                Err(rejected) => return Err(rejected.reason.into()),
            }
        }
        if in_flight == 0 {
            return Ok((!stopped).then_some(verdict));
        }
        driver.wait(None)?;
        while let Some(done) = driver.next_completion() {
            in_flight -= 1;
            done.result?;
            if let Some(Buffers::Owned(buffer)) = done.kind.into_buffers() {
                model.verify(done.user, buffer.as_slice(), &mut verdict);
                observer.progress(done.user);
                pool.give(buffer, driver)?;
            }
        }
        // nobody wants the transitions of a scan
        driver.drain_transitions(&mut |_| ());
    }
}
