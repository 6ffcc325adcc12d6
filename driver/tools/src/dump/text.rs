//! How metadata is told as text: sections, fields, runs of entries, and what is said behind them.
//!
//! Knows: the text's form, which `restore` reads. Must never know: what formats mean.
//!
//! Invariants:
//! * a line says all that `restore` needs before its first `#`; what stands behind it is for people;
//! * the same bytes make the same text;
//! * entries of one kind in a row are one line, however many they are.

use std::fmt::Write as _;
use std::io::{self, Write};

/// What is the matter with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// This.
    Says(&'static str),
    /// Its cluster has this refcount, which does not fit.
    Count(u64),
}

/// What is said of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct About {
    pub(crate) what: &'static str,
    pub(crate) damage: Option<Damage>,
}

/// Bytes as a line tells them.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A number of as many bytes, the highest first.
    Big(&'a [u8]),
    /// The same, the lowest first.
    Little(&'a [u8]),
    /// A text, or what should be one.
    Text(&'a [u8]),
    /// Any bytes.
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

/// The text, on its way.
pub(crate) struct Text<'a> {
    to: &'a mut dyn Write,
    /// How often it says that something is wrong.
    pub(crate) faults: u64,
    line: String,
}

impl<'a> Text<'a> {
    pub(crate) fn new(to: &'a mut dyn Write) -> Text<'a> {
        Text { to, faults: 0, line: String::new() }
    }

    /// A line as it stands.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.to, "{line}")
    }

    /// A line for people.
    pub(crate) fn remark(&mut self, remark: &str) -> io::Result<()> {
        writeln!(self.to, "# {remark}")
    }

    /// A line for people: something is wrong.
    pub(crate) fn fault(&mut self, what: &str) -> io::Result<()> {
        self.faults += 1;
        writeln!(self.to, "# ! {what}")
    }

    /// A field at this offset of the file.
    pub(crate) fn field(&mut self, at: u64, name: &str, value: Value<'_>) -> io::Result<()> {
        self.field_with(at, name, value, "", None)
    }

    /// A field, and what is said of it.
    pub(crate) fn field_with(
        &mut self,
        at: u64,
        name: &str,
        value: Value<'_>,
        what: &str,
        wrong: Option<&str>,
    ) -> io::Result<()> {
        self.line.clear();
        push(&mut self.line, format_args!("  {at:#x} {name} "));
        value.push(&mut self.line);
        match wrong {
            Some(wrong) => {
                self.faults += 1;
                let gap = if what.is_empty() { "" } else { ": " };
                push(&mut self.line, format_args!("  # ! {what}{gap}{wrong}"));
            }
            None if what.is_empty() => {}
            None => push(&mut self.line, format_args!("  # {what}")),
        }
        writeln!(self.to, "{}", self.line)
    }

    /// Bytes of which nothing is known: rows of them, runs of zeros in one line.
    pub(crate) fn rest(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut at, mut zeros) = (at, 0);
        for row in bytes.chunks(ROW) {
            if row.iter().all(|byte| *byte == 0) {
                zeros += row.len() as u64;
                continue;
            }
            at = self.zeros(at, &mut zeros)?;
            self.field(at, "bytes", Value::Bytes(row))?;
            at += row.len() as u64;
        }
        self.zeros(at, &mut zeros).map(drop)
    }

    fn zeros(&mut self, at: u64, zeros: &mut u64) -> io::Result<u64> {
        if *zeros > 0 {
            self.field(at, "zeros", Value::Zeros(*zeros))?;
        }
        Ok(at + std::mem::take(zeros))
    }
}

/// Bytes of a row of which nothing is known.
const ROW: usize = 32;

/// Appends to a line.
fn push(line: &mut String, text: std::fmt::Arguments<'_>) {
    // a string takes all that there is memory for
    let _ = line.write_fmt(text);
}

impl Value<'_> {
    fn push(self, line: &mut String) {
        let hex = |line: &mut String, byte: &u8| push(line, format_args!("{byte:02x}"));
        match self {
            Value::Big(bytes) => {
                line.push_str("0x");
                bytes.iter().for_each(|byte| hex(line, byte));
            }
            Value::Little(bytes) => {
                line.push_str("0x");
                bytes.iter().rev().for_each(|byte| hex(line, byte));
            }
            Value::Bytes(bytes) => {
                line.push_str("hex:");
                bytes.iter().for_each(|byte| hex(line, byte));
            }
            Value::Text(bytes) => {
                line.push('"');
                for byte in bytes {
                    match byte {
                        b'"' | b'\\' => push(line, format_args!("\\{}", char::from(*byte))),
                        b' '..=b'~' => line.push(char::from(*byte)),
                        _ => push(line, format_args!("\\x{byte:02x}")),
                    }
                }
                line.push('"');
            }
            Value::Zeros(count) => push(line, format_args!("{count}")),
        }
    }
}

/// Entries of a table, as they come: what can be one line is one.
pub(crate) struct Runs {
    /// How far one entry's value is behind that of the one before, where a run of them is told as one.
    unit: u64,
    /// Values are told as decimals.
    decimal: bool,
    run: Option<Run>,
}

/// Entries in a row.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    count: u64,
    value: u64,
    second: Option<u64>,
    step: u64,
    about: About,
}

impl Runs {
    /// Entries that lead to clusters of this many bytes.
    pub(crate) fn of_entries(unit: u64) -> Runs {
        Runs { unit, decimal: false, run: None }
    }

    /// Refcounts.
    pub(crate) fn of_counts() -> Runs {
        Runs { unit: 0, decimal: true, run: None }
    }

    /// The next entry; `second` is the second word of an extended one.
    pub(crate) fn push(
        &mut self,
        text: &mut Text<'_>,
        index: u64,
        value: u64,
        second: Option<u64>,
        about: About,
    ) -> io::Result<()> {
        if let Some(run) = &mut self.run
            && run.about == about
            && run.second == second
            && run.first + run.count == index
        {
            let step = if run.count == 1 { value.wrapping_sub(run.value) } else { run.step };
            let next = run.value.wrapping_add(step.wrapping_mul(run.count));
            if (step == 0 || step == self.unit) && value == next && value >= run.value {
                (run.step, run.count) = (step, run.count + 1);
                return Ok(());
            }
        }
        self.end(text)?;
        self.run = Some(Run { first: index, count: 1, value, second, step: 0, about });
        Ok(())
    }

    /// There are no more.
    pub(crate) fn end(&mut self, text: &mut Text<'_>) -> io::Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let line = &mut text.line;
        line.clear();
        push(line, format_args!("  {}", run.first));
        if run.count > 1 {
            push(line, format_args!("..{}", run.first + run.count - 1));
        }
        match (self.decimal, run.value) {
            (true, value) => push(line, format_args!(" {value}")),
            (false, 0) => line.push_str(" 0x0"),
            (false, value) => push(line, format_args!(" {value:#018x}")),
        }
        if let Some(second) = run.second {
            push(line, format_args!(" {second:#018x}"));
        }
        if run.step != 0 {
            push(line, format_args!(" +{:#x}", run.step));
        }
        let About { what, damage } = run.about;
        let gap = if what.is_empty() { "" } else { ": " };
        match damage {
            Some(Damage::Says(wrong)) => push(line, format_args!("  # ! {what}{gap}{wrong}")),
            Some(Damage::Count(count)) => {
                push(line, format_args!("  # ! {what}{gap}its refcount is {count}"))
            }
            None if what.is_empty() => {}
            None => push(line, format_args!("  # {what}")),
        }
        text.faults += if damage.is_some() { run.count } else { 0 };
        writeln!(text.to, "{}", text.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tell: impl Fn(&mut Text<'_>) -> io::Result<()>) -> (String, u64) {
        let mut bytes = Vec::new();
        let mut text = Text::new(&mut bytes);
        tell(&mut text).unwrap();
        let faults = text.faults;
        (String::from_utf8(bytes).unwrap(), faults)
    }

    #[test]
    fn values_have_one_form_each() {
        let (text, _) = told(|text| {
            text.field(16, "version", Value::Big(&[0, 0, 0, 3]))?;
            text.field(20, "magic", Value::Little(&[1, 2]))?;
            text.field_with(24, "name", Value::Text(b"a\"\\\n\xff#"), "odd", None)?;
            text.field_with(30, "x", Value::Bytes(&[0xab]), "", Some("bad"))?;
            text.rest(64, &[[0; 64], [0; 64]].concat())?;
            text.rest(0, &[&[0; 32][..], &[1], &[0; 40]].concat())
        });
        let want = "  0x10 version 0x00000003\n  0x14 magic 0x0201\n  \
                    0x18 name \"a\\\"\\\\\\x0a\\xff#\"  # odd\n  \
                    0x1e x hex:ab  # ! bad\n  0x40 zeros 128\n  0x0 zeros 32\n  0x20 bytes hex:01\
                    00000000000000000000000000000000000000000000000000000000000000\n  0x40 zeros 9\n";
        assert_eq!(text, want);
    }

    #[test]
    fn entries_in_a_row_are_one_line() {
        let data = About { what: "data", damage: None };
        let bad = About { what: "data", damage: Some(Damage::Count(0)) };
        let (text, faults) = told(|text| {
            let mut runs = Runs::of_entries(0x10000);
            for (index, value, about) in [
                (0, 0, About::default()),
                (1, 0, About::default()),
                (2, 0x50000, data),
                (3, 0x60000, data),
                (4, 0x70000, data),
                (5, 0x90000, data),
                (6, 0xa0000, bad),
                (7, 0xb0000, bad),
                (9, u64::MAX, About::default()),
                (10, 0xffff, About::default()),
            ] {
                runs.push(text, index, value, None, about)?;
            }
            runs.end(text)
        });
        let want = "  0..1 0x0\n  2..4 0x0000000000050000 +0x10000  # data\n  \
                    5 0x0000000000090000  # data\n  \
                    6..7 0x00000000000a0000 +0x10000  # ! data: its refcount is 0\n  9 0xffffffffffffffff\n  \
                    10 0x000000000000ffff\n";
        assert_eq!((text.as_str(), faults), (want, 2));
    }
}
