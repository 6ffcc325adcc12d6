//! What the command prints: the one file that writes to stdout and stderr.
//!
//! Knows: both streams, what a failed write means for the command. Must never know: what is said.
//! Invariants: nothing here panics; the first write to stdout that fails is the last, and the command ends
//! with an error then, after it has closed what it has open. But a pipe that nobody reads any more is no
//! error: the output goes nowhere and the command does what it was asked for, as in qemu-img.

use crate::failure::{fail, strerror};
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Why nobody gets what is said any more.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// As `print!`.
macro_rules! say {
    ($($text:tt)*) => { $crate::out::say(format_args!($($text)*)) };
}

/// As `println!`.
macro_rules! sayln {
    () => { $crate::out::say(format_args!("\n")) };
    ($($text:tt)*) => { $crate::out::say(format_args!("{}\n", format_args!($($text)*))) };
}

/// As `eprintln!`.
macro_rules! complain {
    ($($text:tt)*) => { $crate::out::complain(format_args!($($text)*)) };
}

/// Prints on stdout.
pub fn say(text: Arguments) {
    match text.as_str() {
        Some(text) => write(text.as_bytes()),
        // one write, not one for each part
        None => write(text.to_string().as_bytes()),
    }
}

/// Prints bytes on stdout.
pub fn write(bytes: &[u8]) {
    if !is_lost() {
        keep(io::stdout().lock().write_all(bytes));
    }
}

/// What was said appears, with a last line that does not end too.
pub fn flush() {
    if !is_lost() {
        keep(io::stdout().lock().flush());
    }
}

fn is_lost() -> bool {
    LOST.get().is_some()
}

/// Will the command end with an error because its output could not be written? A long one ends early then.
pub fn has_failed() -> bool {
    LOST.get().is_some_and(|error| error.kind() != ErrorKind::BrokenPipe)
}

/// Takes the outcome of a write to stdout that somebody else made.
pub fn keep(written: io::Result<()>) {
    if let Err(error) = written {
        LOST.get_or_init(|| error);
    }
}

/// Prints a line on stderr. If that fails there is nobody to tell, and the exit code still says it.
pub fn complain(text: Arguments) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// The end of the command, whose exit code is this if everything that it said has been written.
pub fn end(code: ExitCode) -> ExitCode {
    flush();
    match LOST.get() {
        Some(error) if has_failed() => {
            let why = error.raw_os_error().map_or_else(|| error.to_string(), strerror);
            fail(format_args!("standard output: {why}"))
        }
        _ => code,
    }
}

/// Stdout for those who want a stream. It never fails: `end` tells.
pub struct Stream;

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        flush();
        Ok(())
    }
}
