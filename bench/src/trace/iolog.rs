//! fio's iolog, versions 2 and 3, in and out.
//!
//! Version 2: `FILE ACTION [OFFSET LENGTH]`. It carries no times but `wait` lines, whose OFFSET is a time:
//! see [`Waits`] for what it means. Operations between two waits are due at the same moment.
//!
//! Version 3: `TIMESTAMP FILE ACTION [OFFSET LENGTH]`, the time since the start in microseconds (fio's manual
//! omits the unit, its source measures microseconds). It knows no `wait`.
//!
//! A header in the middle begins another log: fio appends to a log that exists. Its times begin where the
//! last one ended. `sync_file_range` is skipped and counted: it tells the kernel to begin writing pages of
//! its cache, makes nothing durable, and reaches no disk as a request.
//!
//! Knows: the text of one line. Must never know: what becomes of a record.

use super::record::{Op, Record, TraceError};
use std::io::{self, BufRead, Read, Write};

/// Longest line, as in fio.
const LINE_MAX: usize = 4096;
/// Longest file name.
const NAME_MAX: usize = 255;
/// Bytes of a line that an error shows.
const SHOWN_MAX: usize = 60;
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

/// What the number of a `wait` line means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Waits {
    /// Microseconds since the `wait` before, as fio's manual has it: the clock of the trace is the sum of all
    /// waits so far. (fio drops waits below 100; here they count, or a trace of many small waits would run
    /// ahead of itself.)
    #[default]
    Micros,
    /// A moment, in milliseconds since the start, as fio (3.33) itself plays it.
    Millis,
}

/// What a trace says besides its operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extras {
    /// Headers: logs, one behind the other.
    pub logs: u64,
    /// `wait` lines.
    pub waits: u64,
    /// `sync_file_range` lines, which were skipped.
    pub ranges: u64,
}

/// Reads records one at a time.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    version: Version,
    waits: Waits,
    line: u64,
    /// The start of the log that the last header began.
    base_us: u64,
    clock_us: u64,
    /// The latest moment so far: in a log of several threads times go back a little.
    latest_us: u64,
    extras: Extras,
    files: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

enum Action {
    File,
    Skip,
    Wait(u64),
    Io(Op, u64, u64),
}

impl<R: BufRead> Reader<R> {
    /// Reads the header line.
    pub fn new(input: R) -> Result<Reader<R>, TraceError> {
        Reader::with_waits(input, Waits::default())
    }

    /// As [`Reader::new`], with what `wait` means.
    pub fn with_waits(input: R, waits: Waits) -> Result<Reader<R>, TraceError> {
        let mut reader = Reader {
            input,
            version: Version::V3,
            waits,
            line: 0,
            base_us: 0,
            clock_us: 0,
            latest_us: 0,
            extras: Extras::default(),
            files: Vec::new(),
            buffer: Vec::with_capacity(128),
        };
        if !reader.read_line()? {
            return Err(TraceError::line(
                1,
                "empty; expected `fio version 2 iolog` or `fio version 3 iolog`",
            ));
        }
        reader.header()?;
        Ok(reader)
    }

    /// Takes the line that begins a log.
    fn header(&mut self) -> Result<(), TraceError> {
        self.version = match self.buffer.trim_ascii() {
            b"fio version 2 iolog" => Version::V2,
            b"fio version 3 iolog" => Version::V3,
            other => {
                let what = "not `fio version 2 iolog` or `fio version 3 iolog`";
                return Err(TraceError::line(self.line, format!("{what}: {}", shown(other))));
            }
        };
        (self.base_us, self.clock_us) = (self.latest_us, self.latest_us);
        self.extras.logs += 1;
        Ok(())
    }

    /// The version that the last header names.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What it reads from.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// What there was besides operations, so far.
    pub fn extras(&self) -> Extras {
        self.extras
    }

    /// The name of a record's file.
    pub fn file_name(&self, file: u32) -> String {
        let name = self.files.get(file as usize).map_or(&b""[..], Vec::as_slice);
        String::from_utf8_lossy(name).into_owned()
    }

    /// The next operation, or None at the end. File actions and waits are taken in silence.
    pub fn next_record(&mut self) -> Result<Option<Record>, TraceError> {
        while self.read_line()? {
            let line = self.buffer.trim_ascii();
            if line.is_empty() {
                continue;
            }
            if line.starts_with(b"fio version ") {
                self.header()?;
                continue;
            }
            if let Some(record) = self.parse_line()? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Fills `buffer` with one line; false at the end.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        let limit = LINE_MAX as u64 + 1;
        let count = (&mut self.input).take(limit).read_until(b'\n', &mut self.buffer)?;
        if count == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.buffer.last() != Some(&b'\n') && count > LINE_MAX {
            let what = format!("longer than {LINE_MAX} bytes: {}", shown(&self.buffer));
            return Err(TraceError::line(self.line, what));
        }
        Ok(true)
    }

    fn parse_line(&mut self) -> Result<Option<Record>, TraceError> {
        let line = self.line;
        self.parse()
            .map_err(|what| TraceError::line(line, format!("{what}: {}", shown(self.buffer.trim_ascii()))))
    }

    fn parse(&mut self) -> Result<Option<Record>, String> {
        let mut words = self.buffer.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        if self.version == Version::V3 {
            let word = words.next().unwrap_or_default();
            let since = number(word).ok_or_else(|| bad("timestamp", word))?;
            self.clock_us = self.base_us.checked_add(since).ok_or("times overflow")?;
        }
        let name = words.next().unwrap_or_default();
        if name.len() > NAME_MAX {
            return Err(format!("file name longer than {NAME_MAX} bytes"));
        }
        let action = words.next().ok_or("no action")?;
        let (offset, len) = (words.next(), words.next());
        if words.next().is_some() {
            return Err("more words than an action has".into());
        }
        let action = parse_action(self.version, action, offset, len)?;
        let file = intern(&mut self.files, name).ok_or_else(|| format!("more than {FILES_MAX} files"))?;
        if let Action::Wait(time) = action {
            self.extras.waits += 1;
            self.clock_us = after(self.waits, time, self.base_us, self.clock_us).ok_or("waits overflow")?;
        }
        self.latest_us = self.latest_us.max(self.clock_us);
        match action {
            Action::File | Action::Wait(_) => Ok(None),
            Action::Skip => {
                self.extras.ranges += 1;
                Ok(None)
            }
            Action::Io(op, offset, len) => {
                Ok(Some(Record { at_us: self.clock_us, file, op, offset, len, line: self.line }))
            }
        }
    }
}

/// The clock behind a `wait`.
fn after(waits: Waits, time: u64, base_us: u64, clock_us: u64) -> Option<u64> {
    match waits {
        Waits::Micros => clock_us.checked_add(time),
        // a moment that has passed is waited for by nobody
        Waits::Millis => Some(clock_us.max(base_us.checked_add(time.checked_mul(1000)?)?)),
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
        b"sync_file_range" => return Ok(Action::Skip),
        // fio writes the offset of the operation before and a length here, and means nothing by them
        b"sync" | b"datasync" | b"syncfs" => return Ok(Action::Io(Op::Sync, 0, 0)),
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
    format!("bad {what} {}", shown(word))
}

/// The beginning of a text that somebody else wrote.
fn shown(text: &[u8]) -> String {
    let (start, more) = if text.len() > SHOWN_MAX { (&text[..SHOWN_MAX], "...") } else { (text, "") };
    format!("`{}{more}`", start.escape_ascii())
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
