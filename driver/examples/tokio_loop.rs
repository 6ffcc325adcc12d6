//! Embedding in tokio: the driver in one task of a current-thread runtime, others ask it by messages.
//!
//! `cargo run -p quod --example tokio_loop -- disk.img`

use quod::{Buffer, Buffers, Completion, CompletionKind, Config, DiskId, Driver, OpenOptions, Request};
use std::error::Error;
use std::os::fd::AsFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

type Answer<T> = Result<T, Box<dyn Error>>;

const TEXT: &[u8] = b"written and read back under tokio";

/// A request, and where its completion goes.
type Job = (Request, oneshot::Sender<Completion>);

/// A disk for the tasks of a runtime.
struct Handle(mpsc::Sender<Job>);

impl Handle {
    /// Waits for a request's end; dropping the future leaves the request alone.
    async fn ask(&self, request: Request) -> Answer<Completion> {
        let (answer, answered) = oneshot::channel();
        self.0.send((request, answer)).await.map_err(|_| "the driver's task has ended")?;
        let done = answered.await?;
        done.result.clone()?;
        Ok(done)
    }
}

/// The task that owns the driver: it may not move to another thread.
async fn serve(mut driver: Driver, disk: DiskId, most: usize, mut jobs: mpsc::Receiver<Job>) -> Answer<()> {
    // a descriptor of our own for tokio: the same eventfd, so that the driver stays free to be changed
    // SAFETY: an owned descriptor is open, and the same one, until it is dropped.
    let ready = unsafe { AsyncFd::register(driver.as_fd().try_clone_to_owned()?) }?;
    let mut waiting: Vec<Option<oneshot::Sender<Completion>>> = (0..most).map(|_| None).collect();
    let mut open = false;
    loop {
        driver.turn()?;
        while let Some(done) = driver.next_completion() {
            match done.kind {
                CompletionKind::Opened => {
                    done.result?;
                    open = true;
                }
                CompletionKind::Close => return Ok(()),
                _ => {
                    if let Some(answer) = waiting[done.user as usize].take() {
                        answer.send(done).ok(); // whoever asked may have gone
                    }
                }
            }
        }
        let slot = waiting.iter().position(Option::is_none).filter(|_| open);
        let timeout = driver.next_timeout();
        tokio::select! {
            guard = ready.readable() => guard?.clear_ready(), // `turn` empties the eventfd
            () = tokio::time::sleep(timeout.unwrap_or_default()), if timeout.is_some() => {}
            job = jobs.recv(), if slot.is_some() => match (job, slot) {
                (Some((request, answer)), Some(slot)) => {
                    waiting[slot] = Some(answer);
                    driver.submit(disk, Request { user: slot as u64, ..request })?;
                }
                _ => {
                    driver.submit(disk, Request::close(0))?;
                    open = false;
                }
            },
        }
    }
}

async fn guest(disk: Handle) -> Answer<()> {
    disk.ask(Request::write(5000, Buffer::from(TEXT), 0)).await?;
    let reads = [0, 1, 2].map(|_| disk.ask(Request::read(5000, Buffer::zeroed(TEXT.len()), 0)));
    for read in reads {
        let buffer =
            read.await?.kind.into_buffers().and_then(Buffers::into_owned).ok_or("the buffer comes back")?;
        if buffer.as_slice() != TEXT {
            return Err("it reads back differently".into());
        }
    }
    disk.ask(Request::flush(0)).await?;
    Ok(())
}

/// The runtime and its two tasks.
pub fn run(path: &Path) -> Answer<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let config = Config::default();
    let most = config.requests as usize;
    let mut driver = Driver::new(config)?;
    let disk = driver.open(path, OpenOptions::new().write(true))?;
    let (ask, jobs) = mpsc::channel(most);
    runtime.block_on(async {
        let (served, asked) = tokio::join!(serve(driver, disk, most, jobs), guest(Handle(ask)));
        asked.and(served)
    })
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() -> Answer<()> {
    let path =
        std::env::args_os().nth(1).ok_or("usage: tokio_loop IMAGE (a few bytes of it are overwritten)")?;
    run(Path::new(&path))
}
