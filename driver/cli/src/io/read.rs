//! `read` and `readv`.
//!
//! Knows: their flags, the order in which qemu-io looks at them. Must never know: how bytes are read.

use super::arguments::{BYTES_MAX, Common, sectors, vector};
use super::bytes::{buffers, gather};
use super::report::{self, Transfer};
use super::tool::{Failed, Tool};
use quod::Request;
use std::time::Instant;

/// What both commands can be asked.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// What writing commands can be asked, too.
    pub common: Common,
    /// `-v`
    pub dump: bool,
    skip: Option<u64>,
    length: Option<u64>,
}

/// Reads flags: all that `letters` allows.
pub fn flags(tool: &mut Tool, words: &[String], letters: &str) -> Result<(Flags, Vec<String>), Failed> {
    let mut flags = Flags::default();
    let operands = tool.options(words, letters, |tool, letter, value| {
        match letter {
            'v' => flags.dump = true,
            's' => flags.skip = Some(tool.number(&value)?),
            'l' => flags.length = Some(tool.number(&value)?),
            _ => flags.common.take(tool, letter, &value)?,
        }
        Ok(())
    })?;
    Ok((flags, operands))
}

/// `read off len`
pub fn read(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = flags(tool, words, "bCl:pP:qrs:v")?;
    let [offset, length] = operands.as_slice() else { return Err(tool.usage("read")) };
    let offset = tool.number(offset)?;
    let count = tool.number(length)?;
    if count > BYTES_MAX {
        return Err(tool.refuse(&format!("length cannot exceed {BYTES_MAX}, given {length}")));
    }
    if flags.common.pattern.is_none() && (flags.length.is_some() || flags.skip.is_some()) {
        return Err(tool.usage("read"));
    }
    let skip = flags.skip.unwrap_or(0);
    let length = flags.length.unwrap_or(count.saturating_sub(skip));
    if skip.checked_add(length).is_none_or(|end| end > count) {
        return Err(tool.refuse("pattern verification range exceeds end of read data"));
    }
    if flags.common.state {
        sectors(tool, offset, "offset")?;
        sectors(tool, count, "count")?;
    }
    let start = Instant::now();
    let bytes = match flags.common.state {
        true => fetch_state(tool, offset, count),
        false => fetch(tool, offset, &[count]),
    };
    let bytes = bytes.map_err(|errno| tool.failed("read", errno))?;
    let elapsed = start.elapsed();
    let range = skip as usize..(skip + length) as usize;
    let wrong =
        flags.common.pattern.and_then(|pattern| report::mismatch(&bytes[range], pattern, offset + skip));
    finish(tool, &flags, offset, &bytes, elapsed, wrong)
}

/// `readv off len...`
pub fn readv(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = flags(tool, words, "CP:qrv")?;
    let (Some(offset), Some(lengths)) = (operands.first(), operands.get(1..).filter(|some| !some.is_empty()))
    else {
        return Err(tool.usage("readv"));
    };
    let offset = tool.number(offset)?;
    let lengths = vector(tool, lengths)?;
    let start = Instant::now();
    let bytes = fetch(tool, offset, &lengths).map_err(|errno| tool.failed("readv", errno))?;
    let elapsed = start.elapsed();
    let wrong = flags.common.pattern.and_then(|pattern| report::mismatch(&bytes, pattern, offset));
    finish(tool, &flags, offset, &bytes, elapsed, wrong)
}

fn finish(
    tool: &mut Tool,
    flags: &Flags,
    offset: u64,
    bytes: &[u8],
    elapsed: std::time::Duration,
    wrong: Option<String>,
) -> Result<(), Failed> {
    if let Some(text) = &wrong {
        tool.say(text);
    }
    if !flags.common.quiet {
        if flags.dump {
            tool.say(&report::dump(bytes, offset));
        }
        let bytes = bytes.len() as u64;
        let transfer = Transfer { verb: "read", bytes, offset, elapsed, condensed: flags.common.condensed };
        tool.say(&transfer.text());
    }
    if wrong.is_some() { Err(Failed) } else { Ok(()) }
}

fn fetch(tool: &mut Tool, offset: u64, lengths: &[u64]) -> Result<Vec<u8>, i32> {
    let total = lengths.iter().sum();
    let target = tool.target.as_ref().ok_or(libc::EBADF)?;
    target.check_range(offset, total)?;
    let copy = (target.mode.copy_on_read || target.mode.filters.copy_on_read) && !target.mode.read_only;
    if total == 0 {
        return Ok(Vec::new());
    }
    if copy {
        tool.with(|target| target.populate(offset, total))?;
    }
    let done = tool.run(|user| Request::read(offset, buffers(lengths), user))?;
    Ok(gather(&done))
}

/// Bytes of the VM state.
fn fetch_state(tool: &mut Tool, offset: u64, count: u64) -> Result<Vec<u8>, i32> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let done = tool.run(|user| Request::read_state(offset, buffers(&[count]), user))?;
    Ok(gather(&done))
}
