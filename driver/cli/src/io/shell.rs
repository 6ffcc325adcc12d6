//! The tool's state: the open image, buffered output, and the way from a line to a command.
//!
//! Knows: lines, commands, what to print when. Must never know: flags of a command.
//! Invariant: output appears in the order in which things ended; complaints of the tool itself go to stderr.

use super::aio::{self, Aio};
use super::commands::{self, Command};
use super::target::Target;
use crate::out::{Stream, program};
use crate::words::errno::strerror;
use crate::words::getopt::{Found, Spec};
use crate::words::sizes::SizeError;
use crate::words::{getopt, sizes};
use quod::{Completion, Error, Request};
use std::io::{BufWriter, IsTerminal, Write};

/// A command failed; what there was to say about it has been said.
#[derive(Debug)]
pub struct Failed;

/// Bytes of one request at most: what fits an int, whole sectors.
pub const BYTES_MAX: u64 = 2_147_483_136;

/// The tool.
pub struct Tool {
    /// The open image.
    pub engine: Option<Target<Aio>>,
    /// Said when something has ended next: requests that could not start fail as those that did.
    pub late: String,
    /// `quit` was typed.
    pub leaving: bool,
    out: BufWriter<Stream>,
    terminal: bool,
}

impl Tool {
    /// A tool without an image.
    pub fn new() -> Tool {
        let terminal = std::io::stdout().is_terminal();
        // as much as C's stdio keeps back for a pipe, so that both outputs mix as the other tool's do
        Tool {
            engine: None,
            late: String::new(),
            leaving: false,
            out: BufWriter::with_capacity(4096, Stream),
            terminal,
        }
    }

    /// Prints on stdout.
    pub fn say(&mut self, text: &str) {
        // never fails: the end of the program tells
        let _ = self.out.write_all(text.as_bytes());
        if self.terminal {
            self.show();
        }
    }

    /// Everything said so far appears.
    pub fn show(&mut self) {
        let _ = self.out.flush();
    }

    /// Says why a command does not do what was asked, on stdout.
    pub fn refuse(&mut self, text: &str) -> Failed {
        self.say(&format!("{text}\n"));
        Failed
    }

    /// As `refuse`, on stderr and with the program's name.
    pub fn complain(&mut self, text: &str) -> Failed {
        complain!("{}: {text}", program());
        Failed
    }

    /// Says that an operation failed, on stdout.
    pub fn failed(&mut self, what: &str, errno: i32) -> Failed {
        self.refuse(&format!("{what} failed: {}", strerror(errno)))
    }

    /// Runs one line.
    pub fn line(&mut self, line: &str) -> Result<(), Failed> {
        let words: Vec<String> =
            line.split([' ', '\t']).filter(|word| !word.is_empty()).map(String::from).collect();
        let Some(name) = words.first() else { return Ok(()) };
        let Some(command) = commands::find(name) else {
            complain!("command \"{name}\" not found");
            return Err(Failed);
        };
        if !command.closed && self.engine.is_none() {
            complain!("no file open, try 'help open'");
            return Err(Failed);
        }
        if let Some(text) = commands::bad_count(command, name, words.len() - 1) {
            complain!("{text}");
            return Err(Failed);
        }
        if command.writes && self.engine.as_ref().is_some_and(|engine| engine.mode.read_only) {
            return Err(self.complain("Block node is read-only"));
        }
        (command.run)(self, &words)
    }

    /// Prints how a command is used.
    pub fn usage(&mut self, name: &str) -> Failed {
        let text = commands::find(name).map(|command: &Command| command.usage(command.name));
        self.say(&text.unwrap_or_default());
        Failed
    }

    /// Sorts a command's words into options and operands.
    pub fn sort(words: &[String], letters: &str) -> (Vec<Found>, Vec<String>) {
        getopt::sort(words.get(1..).unwrap_or_default(), &Spec { letters, names: &[] })
    }

    /// An option that the command does not have.
    pub fn bad_option(&mut self, words: &[String], text: &str) -> Failed {
        let name = words.first().map_or("", String::as_str);
        complain!("{name}: {text}");
        self.usage(name)
    }

    /// A number with units.
    pub fn number(&mut self, text: &str) -> Result<u64, Failed> {
        sizes::parse(text).map_err(|error| {
            let what = match error {
                SizeError::NotANumber => "non-numeric argument, or extraneous/unrecognized suffix",
                SizeError::OutOfRange => "argument too large",
            };
            self.refuse(&format!("Parsing error: {what} -- {text}"))
        })
    }

    /// A byte to fill with or to look for.
    pub fn pattern(&mut self, text: &str) -> Result<u8, Failed> {
        let value = c_integer(text).and_then(|value| u8::try_from(value).ok());
        value.ok_or_else(|| self.refuse(&format!("{text} is not a valid pattern byte")))
    }

    /// Runs a request to its end and prints what others have ended meanwhile. The error number if it failed.
    pub fn run(&mut self, request: impl FnOnce(u64) -> Request) -> Result<Completion, i32> {
        self.with(|engine| engine.run(request))
    }

    /// Does something with the open image and prints what has ended meanwhile. The error number if it failed.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut Target<Aio>) -> Result<R, Error>) -> Result<R, i32> {
        let Some(engine) = self.engine.as_mut() else { return Err(libc::EBADF) };
        let result = work(engine).map_err(|error| error.errno());
        let finished = engine.take_finished();
        self.print_finished(finished);
        result
    }

    /// Prints what has ended.
    pub fn print_finished(&mut self, finished: Vec<(Aio, Completion)>) {
        let late = std::mem::take(&mut self.late);
        self.say(&late);
        for (memo, done) in finished {
            let text = aio::outcome(&memo, &done);
            self.say(&text);
        }
    }

    /// Closes the image, if one is open, after everything that was started.
    pub fn close(&mut self) -> Result<(), Failed> {
        let Some(engine) = self.engine.take() else { return Ok(()) };
        let (finished, result) = engine.close();
        self.print_finished(finished);
        result.map_err(|error| self.complain(&error.to_string()))
    }
}

/// A number as C's strtol reads it: 0x hexadecimal, 0 octal, nothing behind it.
pub fn c_integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let value = match lower.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None if lower.starts_with('0') && lower.len() > 1 => i64::from_str_radix(&lower, 8),
        None if lower.starts_with(['+', '-']) => return None,
        None => lower.parse(),
    };
    value.ok().map(|value| if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_c_reads_them() {
        assert_eq!(["0x55", "010", "-1", "7", "0", "+3"].map(c_integer), [85, 8, -1, 7, 0, 3].map(Some));
        assert_eq!(["", "x", "5k", "1.5", "--", "08", "0x", "++1"].map(c_integer), [None; 8]);
    }
}
