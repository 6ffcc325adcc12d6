//! `write` and `writev`.
//!
//! Knows: their flags, the order in which qemu-io looks at them. Must never know: how bytes are written.

use super::arguments::{BYTES_MAX, Common, sectors, vector};
use super::bytes::{durable, fill, zeroes};
use super::report::Transfer;
use super::tool::{Failed, Tool};
use quod::{Buffer, Request, Status, describe};
use std::time::{Duration, Instant};

/// What is written if nothing else is said.
const FILL: u8 = 0xcd;

/// What the writing commands can be asked.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// What reading commands can be asked, too.
    pub common: Common,
    /// `-f`
    pub fua: bool,
    /// `-z`
    pub zero: bool,
    /// `-u`
    pub unmap: bool,
    compressed: bool,
    no_fallback: bool,
    source: Option<String>,
}

/// Reads flags: all that `letters` allows.
pub fn flags(tool: &mut Tool, words: &[String], letters: &str) -> Result<(Flags, Vec<String>), Failed> {
    let mut flags = Flags::default();
    let operands = tool.options(words, letters, |tool, letter, value| {
        match letter {
            'f' => flags.fua = true,
            'z' => flags.zero = true,
            'u' => flags.unmap = true,
            'c' => flags.compressed = true,
            'n' => flags.no_fallback = true,
            's' => flags.source = Some(value),
            _ => flags.common.take(tool, letter, &value)?,
        }
        Ok(())
    })?;
    Ok((flags, operands))
}

/// `write off len`
pub fn write(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = flags(tool, words, "bcCfnpP:qrs:uz")?;
    let [offset, length] = operands.as_slice() else { return Err(tool.usage("write")) };
    if let Some(text) = contradiction(&flags) {
        return Err(tool.refuse(text));
    }
    let offset = tool.number(offset)?;
    let count = tool.number(length)?;
    if count > BYTES_MAX && !flags.no_fallback {
        let hint = if flags.zero { " without -n" } else { "" };
        return Err(tool.refuse(&format!("length cannot exceed {BYTES_MAX}{hint}, given {length}")));
    }
    if flags.common.state || flags.compressed {
        sectors(tool, offset, "offset")?;
        sectors(tool, count, "count")?;
    }
    let bytes = if flags.zero { Vec::new() } else { contents(tool, &flags, count)? };
    let start = Instant::now();
    let result = if flags.common.state {
        store_state(tool, offset, bytes)
    } else if flags.zero {
        write_zeroes(tool, &flags, offset, count)
    } else if flags.compressed {
        compress(tool, offset, &bytes)
    } else {
        store(tool, offset, &[count], bytes, flags.fua)
    };
    result.map_err(|errno| tool.failed("write", errno))?;
    finish(tool, &flags, offset, count, start.elapsed());
    Ok(())
}

/// `writev off len...`
pub fn writev(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = flags(tool, words, "CfqrP:")?;
    let (Some(offset), Some(lengths)) = (operands.first(), operands.get(1..).filter(|some| !some.is_empty()))
    else {
        return Err(tool.usage("writev"));
    };
    let offset = tool.number(offset)?;
    let lengths = vector(tool, lengths)?;
    let total: u64 = lengths.iter().sum();
    let bytes = vec![flags.common.pattern.unwrap_or(FILL); total as usize];
    let start = Instant::now();
    store(tool, offset, &lengths, bytes, flags.fua).map_err(|errno| tool.failed("writev", errno))?;
    finish(tool, &flags, offset, total, start.elapsed());
    Ok(())
}

fn contradiction(flags: &Flags) -> Option<&'static str> {
    let sources = usize::from(flags.zero)
        + usize::from(flags.common.pattern.is_some())
        + usize::from(flags.source.is_some());
    if flags.common.state && flags.zero {
        return Some("-b and -z cannot be specified at the same time");
    }
    if flags.fua && (flags.common.state || flags.compressed) {
        return Some("-f and -b or -c cannot be specified at the same time");
    }
    if flags.no_fallback && !flags.zero {
        return Some("-n requires -z to be specified");
    }
    if flags.unmap && !flags.zero {
        return Some("-u requires -z to be specified");
    }
    (sources > 1).then_some("Only one of -z, -P, and -s can be specified at the same time")
}

/// The bytes of `write`: a file over and over, or a pattern.
fn contents(tool: &mut Tool, flags: &Flags, count: u64) -> Result<Vec<u8>, Failed> {
    let Some(name) = &flags.source else {
        return Ok(vec![flags.common.pattern.unwrap_or(FILL); count as usize]);
    };
    let source = match std::fs::read(name) {
        Ok(source) => source,
        Err(error) => {
            tool.show();
            complain!("{name}: {}", describe(error.raw_os_error().unwrap_or(libc::EIO)));
            return Err(Failed);
        }
    };
    if source.is_empty() {
        complain!("{name}: file is empty");
        return Err(Failed);
    }
    Ok(source.iter().copied().cycle().take(count as usize).collect())
}

fn finish(tool: &mut Tool, flags: &Flags, offset: u64, bytes: u64, elapsed: Duration) {
    if !flags.common.quiet {
        let transfer = Transfer { verb: "wrote", bytes, offset, elapsed, condensed: flags.common.condensed };
        tool.say(&transfer.text());
    }
}

fn store(tool: &mut Tool, offset: u64, lengths: &[u64], bytes: Vec<u8>, fua: bool) -> Result<(), i32> {
    let target = tool.target.as_ref().ok_or(libc::EBADF)?;
    target.check_range(offset, bytes.len() as u64)?;
    let fua = fua || target.mode.writethrough;
    if bytes.is_empty() {
        return Ok(());
    }
    if target.mode.filters.compress {
        return store_compressed(tool, offset, &bytes);
    }
    if let Some(unmap) = target.mode.detect_zeroes.filter(|_| bytes.iter().all(|&byte| byte == 0)) {
        let len = bytes.len() as u64;
        return tool.run(|user| durable(zeroes(offset, len, unmap, user), fua)).map(drop);
    }
    let buffers = fill(lengths, &bytes);
    tool.run(|user| durable(Request::write(offset, buffers, user), fua)).map(drop)
}

/// The clusters that the bytes lie in, with what they read as around them.
fn store_compressed(tool: &mut Tool, offset: u64, bytes: &[u8]) -> Result<(), i32> {
    let target = tool.target.as_ref().ok_or(libc::EBADF)?;
    let cluster = target.compressed_cluster().ok_or(libc::ENOTSUP)?;
    let start = offset - offset % cluster;
    let end = (offset + bytes.len() as u64).next_multiple_of(cluster).min(target.size());
    let mut whole = vec![0; (end - start) as usize];
    if (end - start) as usize > bytes.len() {
        let len = whole.len();
        let read = tool.run(|user| Request::read(start, Buffer::zeroed(len), user))?;
        if let Some(around) = read.kind.buffers() {
            around.copy_to(&mut whole);
        }
    }
    let within = (offset - start) as usize;
    whole[within..within + bytes.len()].copy_from_slice(bytes);
    compress(tool, start, &whole)
}

/// Whole clusters, where nothing is: all of them, or none.
fn compress(tool: &mut Tool, offset: u64, bytes: &[u8]) -> Result<(), i32> {
    let target = tool.target.as_mut().ok_or(libc::EBADF)?;
    let end = offset + bytes.len() as u64;
    target.check_range(offset, bytes.len() as u64)?;
    let cluster = target.compressed_cluster().ok_or(libc::ENOTSUP)?;
    if !offset.is_multiple_of(cluster) || !end.is_multiple_of(cluster) && end != target.size() {
        return Err(libc::EINVAL);
    }
    let fua = target.mode.writethrough;
    let mut at = offset;
    while at < end {
        let run = target.map(at, end - at).map_err(|error| error.errno())?;
        let free = matches!(run.status, Status::Unallocated | Status::Zero) && run.host.is_none();
        if !free {
            return Err(libc::EIO);
        }
        at += run.len.max(1);
    }
    for (n, bytes) in bytes.chunks(cluster as usize).enumerate() {
        let at = offset + n as u64 * cluster;
        tool.run(|user| durable(Request::write_compressed(at, Buffer::from(bytes), user), fua))?;
    }
    Ok(())
}

fn write_zeroes(tool: &mut Tool, flags: &Flags, offset: u64, len: u64) -> Result<(), i32> {
    let target = tool.target.as_ref().ok_or(libc::EBADF)?;
    target.check_range(offset, len)?;
    if flags.no_fallback && !target.zeros_cost_nothing(offset, len) {
        return Err(libc::ENOTSUP);
    }
    let (fua, unmap) = (flags.fua || target.mode.writethrough, flags.unmap && !target.mode.keep_discarded);
    if len == 0 {
        return Ok(());
    }
    tool.run(|user| durable(zeroes(offset, len, unmap, user), fua)).map(drop)
}

/// Bytes of the VM state.
fn store_state(tool: &mut Tool, offset: u64, bytes: Vec<u8>) -> Result<(), i32> {
    if bytes.is_empty() {
        return Ok(());
    }
    let len = bytes.len() as u64;
    let end = offset.checked_add(len).ok_or(libc::EFBIG)?;
    let grown = tool.run(|user| Request::grow_state(end, user));
    // it is more than the table that leads there may map
    grown.map_err(|errno| if errno == libc::EINVAL { libc::EFBIG } else { errno })?;
    tool.run(|user| Request::write_state(offset, fill(&[len], &bytes), user)).map(drop)
}
