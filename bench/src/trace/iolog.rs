//! fio's iolog, versions 2 and 3, in and out.
//!
//! Version 2: `FILE ACTION [OFFSET LENGTH]`. It carries no times but `wait` lines, whose OFFSET is a number
//! of microseconds. fio's manual calls it relative to the previous `wait`; so the clock of the trace is the
//! sum of all waits so far, and the operations between two waits are due at the same moment. (fio drops waits
//! below 100; here they count, or a trace of many small waits would run ahead of itself.)
//!
//! Version 3: `TIMESTAMP FILE ACTION [OFFSET LENGTH]`, the time since the start in microseconds (fio's manual
//! omits the unit, its source measures microseconds). It knows no `wait`.
//!
//! Knows: the text of one line. Must never know: what becomes of a record.

use super::{Error, Op, Record};
use std::io::{self, BufRead, Read, Write};

/// Longest line, as in fio.
const LINE_MAX: usize = 4096;
/// Longest file name.
const NAME_MAX: usize = 255;
/// Most different files of one trace.
const FILES_MAX: usize = 1024;

/// Versions of the format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// Without times, with `wait`.
    V2,
    /// With times.
    V3,
}

/// Reads records one at a time.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    version: Version,
    line: u64,
    clock_us: u64,
    files: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

enum Action {
    File,
    Wait(u64),
    Io(Op, u64, u64),
}

impl<R: BufRead> Reader<R> {
    /// Reads the header line.
    pub fn new(input: R) -> Result<Reader<R>, Error> {
        let (files, buffer) = (Vec::new(), Vec::with_capacity(128));
        let mut reader = Reader { input, version: Version::V3, line: 0, clock_us: 0, files, buffer };
        if !reader.read_line()? {
            return Err(Error::line(1, "empty; expected `fio version 2 iolog` or `fio version 3 iolog`"));
        }
        reader.version = match reader.buffer.trim_ascii() {
            b"fio version 2 iolog" => Version::V2,
            b"fio version 3 iolog" => Version::V3,
            _ => return Err(Error::line(1, "not `fio version 2 iolog` or `fio version 3 iolog`")),
        };
        Ok(reader)
    }

    /// The version that the header names.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The next operation, or None at the end. File actions and waits are taken in silence.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        while self.read_line()? {
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            if let Some(record) = self.parse_line()? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Fills `buffer` with one line; false at the end.
    fn read_line(&mut self) -> Result<bool, Error> {
        self.buffer.clear();
        let limit = LINE_MAX as u64 + 1;
        let count = (&mut self.input).take(limit).read_until(b'\n', &mut self.buffer)?;
        if count == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.buffer.last() != Some(&b'\n') && count > LINE_MAX {
            return Err(Error::line(self.line, format!("longer than {LINE_MAX} bytes")));
        }
        Ok(true)
    }

    fn parse_line(&mut self) -> Result<Option<Record>, Error> {
        let line = self.line;
        let fail = |what: String| Error::Line { line, what };
        let mut words = self.buffer.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        if self.version == Version::V3 {
            let word = words.next().unwrap_or_default();
            self.clock_us = number(word).ok_or_else(|| fail(bad("timestamp", word)))?;
        }
        let name = words.next().unwrap_or_default();
        if name.len() > NAME_MAX {
            return Err(fail(format!("file name longer than {NAME_MAX} bytes")));
        }
        let action = words.next().ok_or_else(|| fail("no action".into()))?;
        let (offset, len) = (words.next(), words.next());
        if words.next().is_some() {
            return Err(fail("more words than an action has".into()));
        }
        let action = parse_action(self.version, action, offset, len).map_err(fail)?;
        let file =
            intern(&mut self.files, name).ok_or_else(|| fail(format!("more than {FILES_MAX} files")))?;
        match action {
            Action::File => Ok(None),
            Action::Wait(us) => {
                self.clock_us = self.clock_us.checked_add(us).ok_or_else(|| fail("waits overflow".into()))?;
                Ok(None)
            }
            Action::Io(op, offset, len) => {
                Ok(Some(Record { at_us: self.clock_us, file, op, offset, len, line: self.line }))
            }
        }
    }
}

fn parse_action(
    version: Version,
    action: &[u8],
    offset: Option<&[u8]>,
    len: Option<&[u8]>,
) -> Result<Action, String> {
    let op = match action {
        b"add" | b"open" | b"close" if offset.is_none() => return Ok(Action::File),
        b"add" | b"open" | b"close" => return Err("a file action takes no numbers".into()),
        b"wait" if version == Version::V3 => return Err("`wait` does not exist in version 3".into()),
        b"wait" => {
            let word = offset.ok_or("`wait` without a time")?;
            return number(word).map(Action::Wait).ok_or_else(|| bad("time", word));
        }
        b"read" => Op::Read,
        b"write" => Op::Write,
        b"trim" => Op::Trim,
        // fio writes an offset and a length here, and means nothing by them
        b"sync" | b"datasync" => return Ok(Action::Io(Op::Sync, 0, 0)),
        _ => return Err(bad("action", action)),
    };
    let (offset, len) = (offset.ok_or("no offset")?, len.ok_or("no length")?);
    let start = number(offset).ok_or_else(|| bad("offset", offset))?;
    let count = number(len).ok_or_else(|| bad("length", len))?;
    let end = start.checked_add(count).ok_or("offset + length overflows")?;
    if end > i64::MAX as u64 {
        return Err("ends beyond 2^63".into());
    }
    Ok(Action::Io(op, start, count))
}

fn intern(files: &mut Vec<Vec<u8>>, name: &[u8]) -> Option<u32> {
    if let Some(index) = files.iter().position(|known| known == name) {
        return u32::try_from(index).ok();
    }
    if files.len() == FILES_MAX {
        return None;
    }
    files.push(name.to_vec());
    u32::try_from(files.len() - 1).ok()
}

/// Decimal digits only: no sign, no blank, no overflow.
fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    word.iter().try_fold(0u64, |sum, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

fn bad(what: &str, word: &[u8]) -> String {
    let shown = &word[..word.len().min(40)];
    format!("bad {what} `{}`", shown.escape_ascii())
}

/// Writes records, so that a trace can be handed back to fio.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    version: Version,
    name: String,
    clock_us: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header. `name` is the one file that all records belong to.
    pub fn new(mut output: W, version: Version, name: &str) -> io::Result<Writer<W>> {
        let mut writer = match version {
            Version::V2 => {
                output.write_all(b"fio version 2 iolog\n")?;
                Writer { output, version, name: name.to_owned(), clock_us: 0 }
            }
            Version::V3 => {
                output.write_all(b"fio version 3 iolog\n")?;
                Writer { output, version, name: name.to_owned(), clock_us: 0 }
            }
        };
        writer.file_action("add")?;
        writer.file_action("open")?;
        Ok(writer)
    }

    fn file_action(&mut self, action: &str) -> io::Result<()> {
        match self.version {
            Version::V2 => writeln!(self.output, "{} {action}", self.name),
            Version::V3 => writeln!(self.output, "{} {} {action}", self.clock_us, self.name),
        }
    }

    /// Writes one record. In version 2 times must not decrease (an earlier one counts as now).
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let wait_us = record.at_us.saturating_sub(self.clock_us);
        self.clock_us = record.at_us;
        let op = match record.op {
            Op::Read => "read",
            Op::Write => "write",
            Op::Trim => "trim",
            Op::Sync => "sync",
        };
        let (name, offset, len) = (&self.name, record.offset, record.len);
        match self.version {
            Version::V2 if wait_us > 0 => {
                writeln!(self.output, "{name} wait {wait_us} 0\n{name} {op} {offset} {len}")
            }
            Version::V2 => writeln!(self.output, "{name} {op} {offset} {len}"),
            Version::V3 => writeln!(self.output, "{} {name} {op} {offset} {len}", record.at_us),
        }
    }

    /// Writes the end of the trace.
    pub fn finish(mut self) -> io::Result<W> {
        self.file_action("close")?;
        self.output.flush()?;
        Ok(self.output)
    }
}
