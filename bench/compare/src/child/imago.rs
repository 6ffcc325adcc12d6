//! imago: its asynchronous face on one thread, as many tasks as requests in flight; and the same image shared
//! by as many threads.
//!
//! Its file driver makes blocking calls inside the futures: on one thread one request is in flight.
//!
//! Knows: imago's public face. Must never know: the other engines.

use crate::engine::Maker;
use crate::feed::{Feed, Next, PATTERN, Step};
use crate::setting::Format;
use crate::task::{Outcome, Tail, Task};
use crate::workload::Work;
use futures::executor::block_on;
use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};
use quod_bench::measure::histogram::Latencies;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

async fn open(task: &Task) -> io::Result<FormatAccess<File>> {
    let storage = StorageOpenOptions::new().direct(true).write(task.work.writes());
    let gate = PermissiveImplicitOpenGate::default();
    let write = task.work.writes();
    match task.format {
        Format::Raw => {
            let builder = Raw::<File>::builder_path(&task.image).storage_open_options(storage).write(write);
            Ok(FormatAccess::new(builder.open(gate).await?))
        }
        Format::Qcow2 => {
            let builder = Qcow2::<File>::builder_path(&task.image).storage_open_options(storage);
            Ok(FormatAccess::new(builder.write(write).open(gate).await?))
        }
        Format::Qed => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Runs a task.
pub fn run(task: &Task) -> Result<Outcome, String> {
    let told = |error: io::Error| error.to_string();
    let access = block_on(open(task)).map_err(told)?;
    let feed = Mutex::new(Feed::new(&task.work, access.size())?);
    let depth = match task.work {
        Work::Load(load) => load.depth,
        Work::Discard { depth, .. } | Work::Trace { depth, .. } => depth,
    };
    let latency = task.latency;
    let began = Instant::now();
    let mut all = Latencies::new();
    loop {
        let rounds = match task.maker {
            Maker::ImagoPool => on_threads(&access, &feed, depth, latency),
            _ => block_on(futures::future::join_all((0..depth).map(|_| serve(&access, &feed, latency)))),
        };
        let mut drain = false;
        for round in rounds {
            let (latencies, more) = round.map_err(told)?;
            all.add(&latencies);
            drain |= more;
        }
        if !drain {
            break;
        }
        block_on(flush(&access)).map_err(told)?;
    }
    if task.work.writes() {
        block_on(flush(&access)).map_err(told)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Outcome { seconds, tail: Tail::of(&all), ..Outcome::default() })
}

type Round = io::Result<(Latencies, bool)>;

fn on_threads(access: &FormatAccess<File>, feed: &Mutex<Feed>, depth: u32, latency: bool) -> Vec<Round> {
    std::thread::scope(|scope| {
        let start = |_| scope.spawn(move || block_on(serve(access, feed, latency)));
        let threads: Vec<_> = (0..depth).map(start).collect();
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Round>| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        };
        threads.into_iter().map(ended).collect()
    })
}

/// Serves one request after the other, until there is none or all must end first (`true`).
async fn serve(access: &FormatAccess<File>, feed: &Mutex<Feed>, latency: bool) -> Round {
    let mut latencies = Latencies::new();
    let mut buffer = IoBuffer::new(4096, 4096)?;
    loop {
        let next = feed.lock().unwrap_or_else(PoisonError::into_inner).next();
        let step = match next {
            Next::Step(step) => step,
            Next::Drain => return Ok((latencies, true)),
            Next::End => return Ok((latencies, false)),
        };
        let began = latency.then(Instant::now);
        match step {
            Step::Read { offset, len } => {
                sized(&mut buffer, len)?;
                access.read(&mut buffer, offset).await?;
            }
            Step::Write { offset, len } => {
                sized(&mut buffer, len)?;
                access.write(&buffer, offset).await?;
            }
            // takes the image for itself: left out
            Step::Discard { .. } => {}
            Step::Flush => flush(access).await?,
        }
        if let Some(began) = began {
            latencies.record(began.elapsed());
        }
    }
}

/// A buffer of this length.
fn sized(buffer: &mut IoBuffer, len: usize) -> io::Result<()> {
    if buffer.len() != len {
        *buffer = IoBuffer::new(len, 4096)?;
        buffer.as_mut().into_slice().fill(PATTERN);
    }
    Ok(())
}

async fn flush(access: &FormatAccess<File>) -> io::Result<()> {
    access.flush().await?;
    access.sync().await
}
