//! `aio_read`, `aio_write` and `aio_flush`: requests that are started and not waited for.
//!
//! Knows: their flags, what is remembered of them. Must never know: when they end.

use super::arguments::vector;
use super::bytes::{buffers, durable, fill, zeroes};
use super::report::Aio;
use super::tool::{Failed, Tool};
use super::{read, write};
use quod::{Request, describe};
use std::time::Instant;

/// `aio_read off len...`
pub fn read(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = read::flags(tool, words, "CP:iqrv")?;
    if flags.common.invalid {
        tool.say("injecting invalid read request\n");
        return Ok(());
    }
    let (Some(offset), Some(lengths)) = (operands.first(), operands.get(1..).filter(|some| !some.is_empty()))
    else {
        return Err(tool.usage("aio_read"));
    };
    let offset = tool.number(offset)?;
    let lengths = vector(tool, lengths)?;
    let memo = Aio {
        verb: "read",
        failure: "readv",
        offset,
        bytes: lengths.iter().sum(),
        start: Instant::now(),
        quiet: flags.common.quiet,
        condensed: flags.common.condensed,
        dump: flags.dump,
        pattern: flags.common.pattern,
    };
    start(tool, memo, |user| Request::read(offset, buffers(&lengths), user));
    Ok(())
}

/// `aio_write off len...`
pub fn write(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let (flags, operands) = write::flags(tool, words, "CfiP:qruz")?;
    if flags.common.invalid {
        tool.say("injecting invalid write request\n");
        return Ok(());
    }
    let (Some(offset), Some(lengths)) = (operands.first(), operands.get(1..).filter(|some| !some.is_empty()))
    else {
        return Err(tool.usage("aio_write"));
    };
    if flags.zero && lengths.len() != 1 {
        return Err(tool.refuse("-z supports only a single length parameter"));
    }
    if flags.unmap && !flags.zero {
        return Err(tool.refuse("-u requires -z to be specified"));
    }
    let offset = tool.number(offset)?;
    let lengths = vector(tool, lengths)?;
    let bytes: u64 = lengths.iter().sum();
    let memo = Aio {
        verb: "wrote",
        failure: "aio_write",
        offset,
        bytes,
        start: Instant::now(),
        quiet: flags.common.quiet,
        condensed: flags.common.condensed,
        dump: false,
        pattern: None,
    };
    let mode = tool.target.as_ref().map(|target| target.mode.clone()).unwrap_or_default();
    let (fua, unmap) = (flags.fua || mode.writethrough, flags.unmap && !mode.keep_discarded);
    let pattern = flags.common.pattern.unwrap_or(0xcd);
    let detected = mode.detect_zeroes.filter(|_| !flags.zero && pattern == 0);
    let unmap = detected.unwrap_or(unmap);
    start(tool, memo, |user| match flags.zero || detected.is_some() {
        true => durable(zeroes(offset, bytes, unmap, user), fua),
        false => {
            let contents = vec![pattern; bytes as usize];
            durable(Request::write(offset, fill(&lengths, &contents), user), fua)
        }
    });
    Ok(())
}

/// Starts a request. What cannot even start fails as if it had.
fn start(tool: &mut Tool, memo: Aio, request: impl FnOnce(u64) -> Request) {
    let failure = memo.failure;
    let (offset, bytes) = (memo.offset, memo.bytes);
    let in_range = match tool.target.as_ref() {
        Some(target) => target.check_range(offset, bytes),
        None => Err(libc::EBADF),
    };
    let result = match in_range {
        Ok(()) => tool.with(|target| target.start(request, memo)),
        Err(errno) => Err(errno),
    };
    if let Err(errno) = result {
        tool.late += &format!("{failure} failed: {}\n", describe(errno));
    }
}

/// `aio_flush`
pub fn flush(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    tool.with(|target| target.wait_all()).map_err(|errno| tool.failed("aio_flush", errno))
}
