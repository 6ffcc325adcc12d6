//! The first sector of an image: all that a program needs that has no loop of its own.
//!
//! `cargo run -p quod --example hello -- disk.qcow2`
#![allow(missing_docs, reason = "as short as it can be")]

use quod::{Buffer, CompletionKind, Config, Driver, OpenOptions, Request};

pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: hello IMAGE")?;
    let mut driver = Driver::new(Config::default())?;
    let disk = driver.open(path, OpenOptions::new())?;
    loop {
        driver.wait(None)?; // a loop of its own would call `turn` when the descriptor is readable
        while let Some(done) = driver.next_completion() {
            done.result?;
            let CompletionKind::Read(bytes) = done.kind else {
                driver.submit(disk, Request::read(0, Buffer::zeroed(512), 1))?;
                continue;
            };
            let bytes = bytes.into_owned().ok_or("the buffer comes back")?;
            println!("{}", String::from_utf8_lossy(bytes.as_slice()).trim_end_matches('\0'));
            return Ok(());
        }
    }
}
