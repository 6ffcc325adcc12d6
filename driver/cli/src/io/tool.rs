//! The tool's state: the open image and buffered output.
//!
//! Knows: the open image, what to print when. Must never know: which commands there are.
//! Invariant: output appears in the order in which things ended; complaints of the tool itself go to stderr.

use super::report::{Aio, outcome};
use super::target::Target;
use crate::out::{Stream, program};
use crate::words::failure::met_corruption;
use crate::words::getopt::{Found, Spec};
use crate::words::numbers::c_integer;
use crate::words::sizes::SizeError;
use crate::words::{getopt, sizes};
use quod::{Completion, Error, Request, describe};
use std::io::{BufWriter, IsTerminal, Write};

/// A command failed; what there was to say about it has been said.
#[derive(Debug)]
pub struct Failed;

/// The tool.
pub struct Tool {
    /// The open image.
    pub target: Option<Target<Aio>>,
    /// Said when something has ended next: requests that could not start fail as those that did.
    pub late: String,
    /// The command of this name was not used as it must be.
    pub misused: Option<String>,
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
            target: None,
            late: String::new(),
            misused: None,
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
        self.refuse(&format!("{what} failed: {}", describe(errno)))
    }

    /// The command was not used as it must be: how it is used will be said last.
    pub fn usage(&mut self, name: &str) -> Failed {
        self.misused = Some(name.to_string());
        Failed
    }

    /// Gives `take` a command's options, each with its value, in the order in which they stand; ends with the
    /// first that is wrong. The operands.
    pub fn options(
        &mut self,
        words: &[String],
        letters: &str,
        mut take: impl FnMut(&mut Tool, char, String) -> Result<(), Failed>,
    ) -> Result<Vec<String>, Failed> {
        let (name, rest) = words.split_first().map_or(("", words), |(name, rest)| (name.as_str(), rest));
        let (found, operands) = getopt::sort(rest, &Spec { letters, names: &[] });
        for item in found {
            match item {
                Found::Option(letter, value) => take(self, letter, value)?,
                Found::Bad(text) => {
                    complain!("{name}: {text}");
                    return Err(self.usage(name));
                }
            }
        }
        Ok(operands)
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
        self.with(|target| target.run(request))
    }

    /// Does something with the open image and prints what has ended meanwhile. The error number if it failed.
    pub fn with<R>(&mut self, work: impl FnOnce(&mut Target<Aio>) -> Result<R, Error>) -> Result<R, i32> {
        let Some(target) = self.target.as_mut() else { return Err(libc::EBADF) };
        let result = work(target);
        if let Err(error) = &result
            && let Some(text) = met_corruption(error, !target.mode.read_only)
            && !std::mem::replace(&mut target.told_corrupt, true)
        {
            complain!("{text}");
        }
        let result = result.map_err(|error| error.errno());
        let finished = target.take_finished();
        self.print_finished(finished);
        result
    }

    /// Prints what has ended.
    pub fn print_finished(&mut self, finished: Vec<(Aio, Completion)>) {
        let late = std::mem::take(&mut self.late);
        self.say(&late);
        for (memo, done) in finished {
            let text = outcome(&memo, &done);
            self.say(&text);
        }
    }

    /// Closes the image, if one is open, after everything that was started.
    pub fn close(&mut self) -> Result<(), Failed> {
        let Some(target) = self.target.take() else { return Ok(()) };
        let (finished, result) = target.close();
        self.print_finished(finished);
        result.map_err(|error| self.complain(&error.to_string()))
    }
}
