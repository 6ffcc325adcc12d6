//! The loop of the README, word for word: a test compares them, and runs it some hundred times.
//!
//! `cargo run -p quod --example readme`
#![allow(missing_docs, reason = "as short as the README shows it")]

use quod::{Buffer, CompletionKind, Config, Driver, Format, OpenOptions, Request};
use quod_tools::CreateOptions;

pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("quod-readme-{}.qed", std::process::id()));
    quod_tools::create(&path, &CreateOptions::new(Format::Qed, 1 << 30))?; // blocks; the driver does not

    let (mut poll, mut events) = (mio::Poll::new()?, mio::Events::with_capacity(16));
    let mut driver = Driver::new(Config::default())?;
    poll.registry().register(&mut driver, mio::Token(0), mio::Interest::READABLE)?;
    let disk = driver.open(&path, OpenOptions::new().write(true))?; // completes as an event
    'events: loop {
        driver.turn()?; // hands over what was submitted, takes what finished
        while let Some(done) = driver.next_completion() {
            done.result?;
            let next = match done.kind {
                CompletionKind::Opened => Request::write(4096, Buffer::from(&b"some bytes"[..]), 1),
                CompletionKind::Write(_) => Request::flush(2),
                CompletionKind::Flush => Request::close(3),
                _ => break 'events,
            };
            driver.submit(disk, next)?; // Busy: bounded, never blocks
        }
        // beside the loop's other sources
        match poll.poll(&mut events, driver.next_timeout()) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {} // no failure: turn again
            polled => polled?,
        }
    }
    Ok(std::fs::remove_file(path)?)
}
