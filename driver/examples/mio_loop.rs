//! Embedding in a mio loop: open an image, write, read back, flush, close, all as events beside a timer of
//! our own.
//!
//! `cargo run -p quod --example mio_loop -- disk.img`

use mio::{Events, Interest, Poll, Token};
use quod::{Buffer, Completion, CompletionKind, Config, DiskId, Driver, OpenOptions, Request};
use std::error::Error;
use std::path::Path;

type Answer<T> = Result<T, Box<dyn Error>>;

const DISK: Token = Token(0);
const BLOCKS: u64 = 16;
const BLOCK: u64 = 64 << 10;

/// What the guest does: writes every block at once, reads them all at once, flushes, closes.
struct Guest {
    disk: DiskId,
    waiting_for: u64,
}

impl Guest {
    fn completed(&mut self, driver: &mut Driver, done: Completion) -> Answer<bool> {
        done.result?;
        match done.kind {
            CompletionKind::Opened => self.each_block(driver, |block| {
                let buffer = Buffer::from(&[block as u8 + 1; BLOCK as usize][..]);
                Request::write(block * BLOCK, buffer, block)
            })?,
            CompletionKind::Write(_) if self.last() => self.each_block(driver, |block| {
                Request::read(block * BLOCK, Buffer::zeroed(BLOCK as usize), block)
            })?,
            CompletionKind::Read(buffers) => {
                let buffer = buffers.into_owned().ok_or("the buffer comes back")?;
                if buffer.as_slice().iter().any(|&byte| byte != done.user as u8 + 1) {
                    return Err(format!("block {} reads back differently", done.user).into());
                }
                if self.last() {
                    driver.submit(self.disk, Request::flush(0))?;
                }
            }
            CompletionKind::Flush => {
                driver.submit(self.disk, Request::close(0))?;
            }
            CompletionKind::Close => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    fn each_block(&mut self, driver: &mut Driver, request: impl Fn(u64) -> Request) -> Answer<()> {
        for block in 0..BLOCKS {
            driver.submit(self.disk, request(block))?;
        }
        self.waiting_for = BLOCKS;
        Ok(())
    }

    fn last(&mut self) -> bool {
        self.waiting_for -= 1;
        self.waiting_for == 0
    }
}

/// The event loop.
pub fn run(path: &Path) -> Answer<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    let mut driver = Driver::new(Config::default())?;
    poll.registry().register(&mut driver, DISK, Interest::READABLE)?;

    let disk = driver.open(path, OpenOptions::new().write(true))?;
    let mut guest = Guest { disk, waiting_for: 0 };
    loop {
        // A wake is a hint: turn on every pass, whatever woke us; it never blocks.
        driver.turn()?;
        while let Some(done) = driver.next_completion() {
            if guest.completed(&mut driver, done)? {
                poll.registry().deregister(&mut driver)?;
                return Ok(());
            }
        }
        // Zero when something was just submitted, otherwise until the next timer.
        match poll.poll(&mut events, driver.next_timeout()) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => result?,
        }
        // events of other sources would be served here
    }
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() -> Answer<()> {
    let path =
        std::env::args_os().nth(1).ok_or("usage: mio_loop IMAGE (its first mebibyte is overwritten)")?;
    run(Path::new(&path))
}
