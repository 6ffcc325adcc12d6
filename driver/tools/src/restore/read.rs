//! The text of a dump, read: sections and their lines, each checked before it becomes part of the plan.
//!
//! Knows: the text's form, where its words lead in the file. Must never know: what entries mean.
//!
//! Invariants:
//! * a line is at most [`LINE_MAX`] bytes, so whatever the text is, memory is bounded;
//! * nothing lies outside its section, and no section outside the file's length as the text says it;
//! * indexes of a section ascend, so that its lines do no more work than the section is long.

use super::error::{RestoreError, TextFault};
use super::line::{Value, words};
use super::plan::Plan;
use crate::dump::FIRST_LINE;
use crate::host::Host;
use quod::Format;
use quod_states::qcow2::refcount::BlockShape;
use std::io::{BufRead, Read};

/// Bytes of a line: a name of 65535 bytes, each as an escape.
const LINE_MAX: u64 = 512 << 10;
/// Bytes of a section: an L1 table of QED with the largest clusters.
const SECTION_MAX: u64 = 1 << 30;

/// Where the lines of a section lead.
enum Section {
    /// Bytes.
    Fields { at: u64, len: u64 },
    /// Entries of so many words.
    Entries { at: u64, entries: u64, words: u64, next: u64 },
    /// Refcounts from this cluster on.
    Counts { at: u64, entries: u64, shape: BlockShape, first: u64, next: u64 },
}

/// The lines of a text.
struct Lines<'a> {
    from: &'a mut dyn BufRead,
    /// The line that was read last, from 1.
    number: u64,
    line: Vec<u8>,
}

impl Lines<'_> {
    /// The next line's words and whether it is indented, comments left out. None: there are no more.
    fn next(&mut self) -> Result<Option<(bool, Vec<Value>)>, RestoreError> {
        loop {
            self.line.clear();
            let mut limited = (&mut *self.from).take(LINE_MAX + 1);
            let read = limited.read_until(b'\n', &mut self.line).map_err(RestoreError::Text)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if read as u64 > LINE_MAX {
                return Err(self.fault(TextFault::TooLong));
            }
            let line = std::str::from_utf8(&self.line).map_err(|_| self.fault(TextFault::Words))?;
            let line = line.trim_end();
            let words = words(line).ok_or_else(|| self.fault(TextFault::Words))?;
            if !words.is_empty() {
                return Ok(Some((line.starts_with([' ', '\t']), words)));
            }
        }
    }

    fn fault(&self, why: TextFault) -> RestoreError {
        RestoreError::Line(self.number, why)
    }

    /// A line `name VALUE`.
    fn named(&mut self, name: &str, why: TextFault) -> Result<Value, RestoreError> {
        let line = self.next()?;
        match line.as_ref().map(|(_, words)| words.as_slice()) {
            Some([Value::Word(word), value]) if word == name => Ok(value.clone()),
            _ => Err(self.fault(why)),
        }
    }
}

/// Reads a text into a plan; its format. `fits` is asked when format and length are known.
pub(super) fn read(
    from: &mut dyn BufRead,
    plan: &mut Plan,
    fits: impl FnOnce(&mut Host, Format, u64) -> Result<(), RestoreError>,
) -> Result<Format, RestoreError> {
    let mut lines = Lines { from, number: 0, line: Vec::new() };
    let first = lines.next()?;
    if first != words(FIRST_LINE).map(|words| (false, words)) {
        return Err(lines.fault(TextFault::NoDump));
    }
    let format = match lines.named("format", TextFault::Format)? {
        Value::Word(name) if name == "qed" => Format::Qed,
        Value::Word(name) if name == "qcow2" => Format::Qcow2,
        _ => return Err(lines.fault(TextFault::Format)),
    };
    let Value::Decimal(length) = lines.named("length", TextFault::Length)? else {
        return Err(lines.fault(TextFault::Length));
    };
    fits(plan.host(), format, length)?;
    let mut section = None;
    loop {
        let Some((indented, words)) = lines.next()? else { return Err(lines.fault(TextFault::CutOff)) };
        if !indented && words == [Value::Word("end".into())] {
            return Ok(format);
        }
        if !indented {
            section = Some(begin(&words, length).map_err(|why| lines.fault(why))?);
            continue;
        }
        let Some(section) = &mut section else { return Err(lines.fault(TextFault::Outside)) };
        match section {
            Section::Fields { at, len } => field(plan, &lines, &words, (*at, *len), format)?,
            Section::Entries { at, entries, words: width, next } => {
                entry(plan, &lines, &words, (*at, *entries, *width, next), format)?;
            }
            Section::Counts { at, entries, shape, first, next } => {
                count(plan, &lines, &words, (*at, *entries, *shape, *first, next))?;
            }
        }
    }
}

/// A number that fits 64 bits.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Decimal(number) => Some(*number),
        Value::Number(bytes) => {
            let zeros = bytes.len().saturating_sub(8);
            let fits = bytes[..zeros].iter().all(|byte| *byte == 0);
            fits.then(|| bytes[zeros..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        }
        _ => None,
    }
}

/// The first line of a section: its kind, whose it is, and `NAME NUMBER` as often as it takes.
fn begin(words: &[Value], length: u64) -> Result<Section, TextFault> {
    let bad = TextFault::Section;
    let Some(Value::Word(kind)) = words.first() else { return Err(bad) };
    let given = |name: &str| {
        let place = words.iter().position(|word| matches!(word, Value::Word(word) if word == name))?;
        number(words.get(place + 1)?)
    };
    let at = given("at").ok_or(bad)?;
    let (section, bytes) = match kind.as_str() {
        "header" | "snapshot" | "bitmap" => {
            let len = given("length").ok_or(bad)?;
            (Section::Fields { at, len }, len)
        }
        "l1" | "l2" | "refcount_table" | "bitmap_table" => {
            let (entries, words) = (given("entries").ok_or(bad)?, given("words").unwrap_or(1));
            if !(1..=2).contains(&words) {
                return Err(bad);
            }
            (Section::Entries { at, entries, words, next: 0 }, entries.saturating_mul(8 * words))
        }
        "refcount_block" => {
            let (entries, first) = (given("entries").ok_or(bad)?, given("first").ok_or(bad)?);
            let bits = given("bits").filter(|bits| bits.is_power_of_two() && *bits <= 64).ok_or(bad)?;
            // which cluster a block begins with matters to nobody here: the smallest size of clusters will do
            let shape = BlockShape { cluster_bits: 9, order: bits.trailing_zeros() };
            if first.checked_add(entries).is_none() {
                return Err(bad);
            }
            let bytes = entries.saturating_mul(bits).div_ceil(8);
            (Section::Counts { at, entries, shape, first, next: first }, bytes)
        }
        _ => return Err(bad),
    };
    match at.checked_add(bytes) {
        // of a table that lies beyond the end of the file there is nothing
        _ if bytes == 0 => Ok(section),
        Some(end) if end <= length && bytes <= SECTION_MAX => Ok(section),
        _ => Err(TextFault::BeyondFile),
    }
}

/// `OFFSET NAME VALUE`.
fn field(
    plan: &mut Plan,
    lines: &Lines<'_>,
    words: &[Value],
    (begin, len): (u64, u64),
    format: Format,
) -> Result<(), RestoreError> {
    let fault = |why| Err(lines.fault(why));
    let [at @ Value::Number(_), Value::Word(name), value] = words else { return fault(TextFault::Field) };
    let Some(within) = number(at).and_then(|at| at.checked_sub(begin)) else {
        return fault(TextFault::Beyond);
    };
    let (bytes, count) = match value {
        Value::Decimal(zeros) if name == "zeros" => (Vec::new(), *zeros),
        Value::Number(bytes) => {
            let mut bytes = bytes.clone();
            if format == Format::Qed {
                bytes.reverse();
            }
            let count = bytes.len() as u64;
            (bytes, count)
        }
        Value::Bytes(bytes) => (bytes.clone(), bytes.len() as u64),
        _ => return fault(TextFault::Field),
    };
    if within.checked_add(count).is_none_or(|end| end > len) {
        return fault(TextFault::Beyond);
    }
    plan.change(begin + within, count, |done, to| {
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        match bytes.get(done..done.saturating_add(to.len())) {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0),
        }
    })
}

/// The indexes that a line is about, which are within these and behind those before; how many.
fn indexes(word: &Value, first: u64, entries: u64, next: &mut u64) -> Result<(u64, u64), TextFault> {
    let (from, to) = match word {
        Value::Decimal(index) => (*index, *index),
        Value::Range(from, to) if from <= to => (*from, *to),
        _ => return Err(TextFault::Entry),
    };
    if from < first || to - first >= entries {
        return Err(TextFault::Beyond);
    }
    if from < *next {
        return Err(TextFault::Order);
    }
    // less than `first + entries`, which fits
    *next = to + 1;
    Ok((from - first, to - from + 1))
}

/// `INDEX[..INDEX] VALUE [VALUE] [+STEP]`.
fn entry(
    plan: &mut Plan,
    lines: &Lines<'_>,
    words: &[Value],
    (at, entries, width, next): (u64, u64, u64, &mut u64),
    format: Format,
) -> Result<(), RestoreError> {
    let fault = |why| lines.fault(why);
    let bad = || fault(TextFault::Entry);
    let (index, values) = words.split_first().ok_or_else(bad)?;
    let (values, step) = match values.split_last() {
        Some((Value::Step(step), values)) => (values, *step),
        _ => (values, 0),
    };
    if values.len() as u64 != width {
        return Err(bad());
    }
    let value = |n: usize| match values.get(n) {
        Some(value @ Value::Number(_)) => number(value).ok_or_else(|| fault(TextFault::TooLarge)),
        Some(_) => Err(bad()),
        None => Ok(0),
    };
    let (first, second) = (value(0)?, value(1)?);
    let (index, count) = indexes(index, 0, entries, next).map_err(fault)?;
    if step.checked_mul(count - 1).and_then(|far| first.checked_add(far)).is_none() {
        return Err(fault(TextFault::TooLarge));
    }
    // windows begin at multiples of 16, and tables at multiples of 512, unless the text says otherwise
    let bytes_of = |place: u64| {
        let (entry, word) = (place / (8 * width), place / 8 % width);
        let value = if word == 1 { second } else { first + step * entry };
        let bytes = if format == Format::Qed { value.to_le_bytes() } else { value.to_be_bytes() };
        bytes[(place % 8) as usize]
    };
    plan.change(at + index * 8 * width, count * 8 * width, |done, to| {
        (done..).zip(to).for_each(|(place, byte)| *byte = bytes_of(place));
    })
}

/// `CLUSTER[..CLUSTER] COUNT`.
fn count(
    plan: &mut Plan,
    lines: &Lines<'_>,
    words: &[Value],
    (at, entries, shape, first, next): (u64, u64, BlockShape, u64, &mut u64),
) -> Result<(), RestoreError> {
    let fault = |why| lines.fault(why);
    let [index, Value::Decimal(count)] = words else { return Err(fault(TextFault::Entry)) };
    if *count > shape.max() {
        return Err(fault(TextFault::TooLarge));
    }
    let (index, many) = indexes(index, first, entries, next).map_err(fault)?;
    let bits = u64::from(shape.bits());
    let (begin, end) = (index * bits, (index + many) * bits);
    let (from, to) = (begin / 8, end.div_ceil(8));
    plan.change(at + from, to - from, |done, bytes| {
        // bits of this piece, and of the line, in bits of the block
        let piece = (from + done) * 8;
        let stop = end.min(piece + bytes.len() as u64 * 8);
        let mut bit = begin.max(piece);
        if bits >= 8 {
            let value = count.to_be_bytes();
            let width = (bits / 8) as usize;
            for (n, byte) in bytes.iter_mut().enumerate() {
                let within = ((piece / 8 + n as u64) % width as u64) as usize;
                *byte = value[8 - width + within];
            }
            return;
        }
        while bit < stop {
            shape.set(bytes, (bit - piece) / bits, *count);
            bit += bits;
        }
    })
}
