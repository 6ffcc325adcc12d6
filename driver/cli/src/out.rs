//! What the command prints: the one file that writes to stdout and stderr.
//!
//! Knows: both streams, the name that the program was called by, what a failed write means for the
//! command. Must never know: what is said.
//! Invariants: nothing here panics; the first write to stdout that fails is the last, and the command ends
//! with an error then, after it has closed what it has open. But a pipe that nobody reads any more is no
//! error: the output goes nowhere and the command does what it was asked for, as in qemu-img.

use crate::words::errno::words;
use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why nobody gets what is said any more.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// The name that messages begin with.
static PROGRAM: OnceLock<String> = OnceLock::new();

/// Stdout is for data.
static ON_STDERR: AtomicBool = AtomicBool::new(false);

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

/// Prints on stdout, or where people are told.
pub fn say(text: Arguments) {
    // one write, not one for each part
    let text = text.to_string();
    if ON_STDERR.load(Ordering::Relaxed) {
        // as in `complain`
        let _ = io::stderr().lock().write_all(text.as_bytes());
    } else {
        write(text.as_bytes());
    }
}

/// From now on what is said goes to stderr: stdout is for data.
pub fn talk_on_stderr() {
    ON_STDERR.store(true, Ordering::Relaxed);
}

/// Prints bytes on stdout, whatever is said where.
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

/// Sets the name that messages begin with. The first call decides.
pub fn set_program(name: &str) {
    PROGRAM.get_or_init(|| name.to_string());
}

/// The name that messages begin with.
pub fn program() -> &'static str {
    PROGRAM.get().map_or("quod", String::as_str)
}

/// Called by the name `qemu-img`: what is said is what that says, and nothing more.
pub fn stands_in() -> bool {
    program() == "qemu-img"
}

/// Prints a message on stderr; the exit code of a failed command.
pub fn fail(text: impl Display) -> ExitCode {
    note(text);
    ExitCode::FAILURE
}

/// Prints a message on stderr.
pub fn note(text: impl Display) {
    complain(format_args!("{}: {text}", program()));
}

/// The end of the command, whose exit code is this if everything that it said has been written.
pub fn end(code: ExitCode) -> ExitCode {
    flush();
    match LOST.get() {
        Some(error) if has_failed() => fail(format_args!("standard output: {}", words(error))),
        _ => code,
    }
}

/// Stdout for code that wants a stream. It never fails: `end` tells.
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
