//! qcow2-rs on tokio-uring: one thread, as many tasks as requests in flight.
//!
//! Knows: qcow2-rs's public face. Must never know: the other engines.

use crate::feed::{Feed, Next, PATTERN, Step};
use crate::task::{Outcome, Tail, Task};
use crate::workload::Work;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Error;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::uring::Qcow2IoUring;
use qcow2_rs::utils::qcow2_setup_dev_uring;
use quod_bench::measure::histogram::Latencies;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

type Device = Qcow2Dev<Qcow2IoUring>;
type Round = Result<(Latencies, bool), String>;

/// Blocks, and the smallest slices of tables, of 4 KiB: what O_DIRECT asks for.
const BLOCK_BITS: u8 = 12;

fn told(error: Qcow2Error) -> String {
    format!("{error:?}")
}

/// Runs a task.
pub fn run(task: &Task) -> Result<Outcome, String> {
    let depth = match task.work {
        Work::Load(load) => load.depth,
        Work::Discard { depth, .. } | Work::Trace { depth, .. } => depth,
    };
    let mut runtime = tokio_uring::builder();
    runtime.entries((2 * depth).max(256).next_power_of_two());
    runtime.start(async { serve_all(task, depth).await })
}

async fn serve_all(task: &Task, depth: u32) -> Result<Outcome, String> {
    let cache = task.cache.map(|bytes| (BLOCK_BITS, bytes as usize));
    let params = Qcow2DevParams::new(BLOCK_BITS, None, cache, !task.work.writes(), true);
    let device = Rc::new(qcow2_setup_dev_uring(&task.image, &params).await.map_err(told)?);
    let feed = Rc::new(RefCell::new(Feed::new(&task.work, device.info.virtual_size())?));
    let mut all = Latencies::new();
    let began = Instant::now();
    loop {
        let start = |_| tokio_uring::spawn(serve(device.clone(), feed.clone(), task.latency));
        let rounds: Vec<_> = (0..depth).map(start).collect();
        let mut drain = false;
        for round in rounds {
            let (latencies, more) = round.await.map_err(|error| error.to_string())??;
            all.add(&latencies);
            drain |= more;
        }
        if !drain {
            break;
        }
        flush(&device).await?;
    }
    if task.work.writes() {
        flush(&device).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Outcome { seconds, tail: Tail::of(&all), ..Outcome::default() })
}

async fn serve(device: Rc<Device>, feed: Rc<RefCell<Feed>>, latency: bool) -> Round {
    let mut latencies = Latencies::new();
    let mut buffer = Qcow2IoBuf::<u8>::new(4096);
    loop {
        let next = feed.borrow_mut().next();
        let step = match next {
            Next::Step(step) => step,
            Next::Drain => return Ok((latencies, true)),
            Next::End => return Ok((latencies, false)),
        };
        let began = latency.then(Instant::now);
        match step {
            Step::Read { offset, len } => {
                sized(&mut buffer, len);
                device.read_at(&mut buffer, offset).await.map_err(told)?;
            }
            Step::Write { offset, len } => {
                sized(&mut buffer, len);
                device.write_at(&buffer, offset).await.map_err(told)?;
            }
            // there is none: left out
            Step::Discard { .. } => {}
            Step::Flush => flush(&device).await?,
        }
        if let Some(began) = began {
            latencies.record(began.elapsed());
        }
    }
}

/// A buffer of this length.
fn sized(buffer: &mut Qcow2IoBuf<u8>, len: usize) {
    if buffer.len() != len {
        *buffer = Qcow2IoBuf::new(len);
        buffer.fill(PATTERN);
    }
}

/// Tables, and then whatever the device has in its cache.
async fn flush(device: &Device) -> Result<(), String> {
    device.flush_meta().await.map_err(told)?;
    device.fsync_range(0, device.info.virtual_size() as usize).await.map_err(told)
}
