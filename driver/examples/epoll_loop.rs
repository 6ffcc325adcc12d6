//! Embedding in a bare epoll loop: no runtime, no mio, only `AsFd` and `next_timeout`.
//!
//! `cargo run -p quod --example epoll_loop -- disk.img`

use quod::{Buffer, CompletionKind, Config, DiskId, Driver, OpenOptions, Request};
use std::error::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

type Answer<T> = Result<T, Box<dyn Error>>;

const TEXT: &[u8] = b"written, read and flushed from a bare epoll loop";

fn epoll(watched: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else owns it.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: `event` outlives the call.
    let result = unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, watched.as_raw_fd(), &mut event) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(epoll) }
}

fn sleep(epoll: &OwnedFd, timeout: Option<Duration>) -> std::io::Result<()> {
    // rounded up, so that a timer is due when we wake
    let millis = timeout.map_or(-1, |time| time.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    // SAFETY: the array has the length that is passed and outlives the call.
    let result = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 4, millis) };
    match std::io::Error::last_os_error() {
        error if result < 0 && error.kind() != std::io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

fn submit(driver: &mut Driver, disk: DiskId, request: Request) -> Answer<()> {
    driver.submit(disk, request).map_err(|rejected| rejected.reason.into())
}

/// The event loop.
pub fn run(path: &Path) -> Answer<()> {
    let mut driver = Driver::new(Config::default())?;
    let epoll = epoll(driver.as_fd())?;
    let disk = driver.open(path, OpenOptions::new().write(true))?;
    loop {
        driver.turn()?;
        while let Some(done) = driver.next_completion() {
            done.result?;
            match done.kind {
                CompletionKind::Opened => {
                    submit(&mut driver, disk, Request::write(100, Buffer::from(TEXT), 0))?
                }
                CompletionKind::Write(_) => {
                    submit(&mut driver, disk, Request::read(100, Buffer::zeroed(TEXT.len()), 0))?;
                }
                CompletionKind::Read(buffers) => {
                    let buffer = buffers.into_owned().ok_or("the buffer comes back")?;
                    if buffer.as_slice() != TEXT {
                        return Err("it reads back differently".into());
                    }
                    submit(&mut driver, disk, Request::flush(0))?;
                }
                CompletionKind::Flush => submit(&mut driver, disk, Request::close(0))?,
                CompletionKind::Close => return Ok(()),
                _ => {}
            }
        }
        sleep(&epoll, driver.next_timeout())?;
    }
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() -> Answer<()> {
    let path =
        std::env::args_os().nth(1).ok_or("usage: epoll_loop IMAGE (a few bytes of it are overwritten)")?;
    run(Path::new(&path))
}
