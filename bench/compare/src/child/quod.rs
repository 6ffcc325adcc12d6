//! quod, through its library: loads by the ruler that `quod bench` has, anything else by a loop as small.
//!
//! Knows: the driver's public face. Must never know: the other engines.

use crate::engine::Maker;
use crate::feed::{Feed, Next, PATTERN, SEED, Step};
use crate::setting::Format;
use crate::task::{Outcome, Tail, Task};
use crate::workload::{Load, Work};
use quod::{AllowAll, BackendKind, Buffer, Config, OpenOptions, Policy, Refusal, Request};
use quod_bench::load::order::Order;
use quod_bench::load::sequential::{self, FLUSHES_MAX};
use quod_bench::measure::histogram::Latencies;
use quod_bench::report::Hold;
use quod_tools::Session;
use std::time::Instant;

fn open(task: &Task, depth: u32) -> Result<Session, String> {
    let format = match task.format {
        Format::Raw => quod::Format::Raw,
        Format::Qed => quod::Format::Qed,
        Format::Qcow2 => quod::Format::Qcow2,
    };
    let policy = match task.maker {
        Maker::QuodWritethrough => Policy::Writethrough,
        _ => Policy::Writeback,
    };
    let backend = match task.maker {
        Maker::QuodThreads => BackendKind::Threads,
        _ => BackendKind::Uring,
    };
    let open = OpenOptions::new().write(task.work.writes()).direct(true).format(Some(format)).policy(policy);
    let open = open.open_gate(AllowAll).acbs(depth.saturating_mul(2).max(256));
    let open = match task.cache {
        Some(cache) => open.cache_bytes(cache),
        None => open,
    };
    let config = Config::default().backend(backend).requests(depth + FLUSHES_MAX);
    let config = config.timing(task.latency);
    Session::with_config(&task.image, open, config).map_err(|error| error.to_string())
}

/// Runs a task.
pub fn run(task: &Task) -> Result<Outcome, String> {
    let depth = match task.work {
        Work::Load(load) => load.depth,
        Work::Discard { depth, .. } | Work::Trace { depth, .. } => depth,
    };
    let mut session = open(task, depth)?;
    session.driver().reset_hold();
    let (seconds, tail) = match task.work {
        Work::Load(load) => run_load(&mut session, &load, registers(task.maker))?,
        work => run_steps(&mut session, &work, depth)?,
    };
    let hold = Hold::of(session.driver().hold());
    session.close().map_err(|error| error.to_string())?;
    let (hold_own, hold_kernel) = match task.latency {
        true => (Some(hold.own.max_us), Some(hold.syscall.max_us)),
        false => (None, None),
    };
    Ok(Outcome { seconds, tail, hold_own, hold_kernel })
}

/// Its buffers are registered: by the ring alone, threads know nothing of the kind.
fn registers(maker: Maker) -> bool {
    matches!(maker, Maker::Quod | Maker::QuodWritethrough)
}

fn run_load(session: &mut Session, load: &Load, registered: bool) -> Result<(f64, Option<Tail>), String> {
    let disk = session.disk();
    let ours = sequential::Load {
        count: load.count,
        depth: load.depth,
        size: load.size as usize,
        step: load.step,
        order: if load.random { Order::Random } else { Order::Steps },
        seed: SEED,
        reads: load.reads,
        pattern: PATTERN,
        flush_interval: load.flush_every,
        drain: load.drain,
        final_flush: load.writes(),
        registered,
        ..sequential::Load::default()
    };
    let outcome = sequential::run(session.driver(), disk, &ours).map_err(|error| error.to_string())?;
    Ok((outcome.elapsed.as_secs_f64(), Tail::of(&outcome.requests())))
}

fn run_steps(session: &mut Session, work: &Work, depth: u32) -> Result<(f64, Option<Tail>), String> {
    let size = session.info().ok_or("the disk is closed")?.virtual_size();
    let mut feed = Feed::new(work, size)?;
    let (disk, driver) = (session.disk(), session.driver());
    let (mut in_flight, mut ended, mut refused) = (0, false, None);
    let mut latencies = Latencies::new();
    let began = Instant::now();
    while !ended || in_flight > 0 {
        while in_flight < depth && !ended {
            let request = match refused.take() {
                Some(request) => request,
                None => match feed.next() {
                    Next::Step(step) => request(step),
                    Next::Drain => Request::flush(0),
                    Next::End => {
                        ended = true;
                        break;
                    }
                },
            };
            match driver.submit(disk, request) {
                Ok(()) => in_flight += 1,
                Err(rejected) if rejected.reason == Refusal::Busy && in_flight > 0 => {
                    refused = Some(rejected.request);
                    break;
                }
                Err(rejected) => return Err(rejected.to_string()),
            }
        }
        if in_flight == 0 {
            break;
        }
        driver.wait(None).map_err(|error| error.to_string())?;
        while let Some(done) = driver.next_completion() {
            done.result.map_err(|error| error.to_string())?;
            in_flight -= 1;
            if let Some(latency) = done.latency {
                latencies.record(latency);
            }
        }
    }
    session.flush().map_err(|error| error.to_string())?;
    Ok((began.elapsed().as_secs_f64(), Tail::of(&latencies)))
}

fn request(step: Step) -> Request {
    match step {
        Step::Read { offset, len } => Request::read(offset, Buffer::zeroed(len), 0),
        Step::Write { offset, len } => {
            let mut buffer = Buffer::zeroed(len);
            buffer.as_mut_slice().fill(PATTERN);
            Request::write(offset, buffer, 0)
        }
        Step::Discard { offset, len } => Request::discard(offset, len, 0),
        Step::Flush => Request::flush(0),
    }
}
