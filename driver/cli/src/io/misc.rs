//! Commands that move no bytes: flush, discard, truncate, length, info, map, alloc, sleep, sigraise.
//!
//! Knows: their arguments and texts. Must never know: how they are done.

use super::arguments::{BYTES_MAX, Common};
use super::report::{self, Transfer};
use super::tool::{Failed, Tool};
use crate::interrupt;
use crate::words::failure::resize_rule;
use crate::words::numbers::c_integer;
use crate::words::{format, qcow2, sizes};
use quod::{DiskInfo, Format, Request, Status, describe};
use quod_tools as tools;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// C's NSIG.
const SIGNALS: i32 = 65;

/// `flush`
pub fn flush(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    if tool.target.as_ref().is_some_and(|target| target.mode.unsafe_cache || target.mode.read_only) {
        return Ok(());
    }
    tool.run(Request::flush).map(drop).map_err(|errno| tool.failed("flush", errno))
}

/// `discard off len`
pub fn discard(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let mut common = Common::default();
    let operands = tool.options(words, "Cq", |tool, letter, value| common.take(tool, letter, &value))?;
    let [offset, length] = operands.as_slice() else { return Err(tool.usage("discard")) };
    let offset = tool.number(offset)?;
    let bytes = tool.number(length)?;
    if bytes > BYTES_MAX {
        return Err(tool.refuse(&format!("length cannot exceed {BYTES_MAX}, given {length}")));
    }
    let start = Instant::now();
    let target = tool.target.as_ref().ok_or(Failed)?;
    // unless the image was opened with discard=ignore, which makes it a wish that is not granted
    let reaches_image = !target.mode.keep_discarded && bytes > 0;
    let result = match target.check_range(offset, bytes) {
        Ok(()) if reaches_image => tool.run(|user| Request::discard(offset, bytes, user)).map(drop),
        other => other,
    };
    result.map_err(|errno| tool.failed("discard", errno))?;
    if !common.quiet {
        let (elapsed, condensed) = (start.elapsed(), common.condensed);
        tool.say(&Transfer { verb: "discard", bytes, offset, elapsed, condensed }.text());
    }
    Ok(())
}

/// `truncate off`
pub fn truncate(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let mut preallocation = "off".to_string();
    let operands = tool.options(words, "m:", |_, _, value| {
        preallocation = value;
        Ok(())
    })?;
    match preallocation.as_str() {
        "off" | "metadata" | "falloc" | "full" => {}
        other => return Err(tool.complain(&format!("Invalid preallocation mode '{other}'"))),
    }
    let Some(length) = operands.first() else { return Err(tool.usage("truncate")) };
    let length = tool.number(length)?;
    if preallocation != "off" {
        return Err(tool.complain(&format!("Unsupported preallocation mode '{preallocation}'")));
    }
    let target = tool.target.as_ref().ok_or(Failed)?;
    let format = target.info().map_or(Format::Raw, |info| info.format());
    if let Some(text) = resize_rule(format, target.size(), length) {
        return Err(tool.complain(text));
    }
    tool.with(|target| target.resize(length)).map_err(|errno| {
        let text = match errno {
            libc::EINVAL => "Invalid image size specified".to_string(),
            other => format!("Could not resize the image: {}", describe(other)),
        };
        tool.complain(&text)
    })
}

/// `length`
pub fn length(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    let size = tool.target.as_ref().map_or(0, |target| target.size());
    tool.say(&format!("{}\n", sizes::short(size as f64)));
    Ok(())
}

/// `info`
pub fn info(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    let target = tool.target.as_ref().ok_or(Failed)?;
    let (format, cluster, file) = target
        .info()
        .map(DiskInfo::image)
        .map(|top| (top.info.format, top.info.cluster_size, top.path.clone()))
        .ok_or(Failed)?;
    // the driver has no word for these; what another program changes meanwhile does not matter here
    let image = match format {
        Format::Qcow2 => tools::info(&file, Some(format), true).ok(),
        Format::Raw | Format::Qed => None,
    };
    let facts = image.as_ref().and_then(|image| image.qcow2.as_deref().map(|facts| (image, facts)));
    let state = sizes::short(facts.map_or(0, |(_, facts)| facts.vm_state_offset) as f64);
    let (name, cluster) = (format::name(format), sizes::short(f64::from(cluster)));
    tool.say(&format!("format name: {name}\ncluster size: {cluster}\nvm state offset: {state}\n"));
    for line in facts.into_iter().flat_map(|(image, facts)| qcow2::features(image, facts)) {
        tool.say(&format!("{line}\n"));
    }
    Ok(())
}

/// The first run of a range in the top layer: its length, and whether it is allocated there.
fn allocated(tool: &mut Tool, offset: u64, len: u64) -> Result<(u64, bool), i32> {
    let target = tool.target.as_ref().ok_or(libc::EBADF)?;
    if target.info().is_some_and(|info| info.format() == Format::Raw) {
        return Ok((len, true));
    }
    let extent = tool.with(|target| target.map(offset, len))?;
    Ok((extent.len.min(len), extent.status != Status::Unallocated))
}

/// `map`
pub fn map(tool: &mut Tool, _words: &[String]) -> Result<(), Failed> {
    let size = tool.target.as_ref().map_or(0, |target| target.size());
    let (mut at, mut begin) = (0, 0);
    let mut kind = None;
    while at < size {
        let (len, is_allocated) = allocated(tool, at, size - at).map_err(|errno| {
            tool.complain(&format!("Failed to get allocation status: {}", describe(errno)))
        })?;
        if let Some(before) = kind.filter(|&before| before != is_allocated) {
            tool.say(&report::map_line(at - begin, before, begin));
            begin = at;
        }
        kind = Some(is_allocated);
        at += len.max(1);
    }
    if let Some(last) = kind {
        tool.say(&report::map_line(size - begin, last, begin));
    }
    Ok(())
}

/// `alloc offset [count]`
pub fn alloc(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let offset = tool.number(words.get(1).map_or("", String::as_str))?;
    let wanted = match words.get(2) {
        Some(text) => tool.number(text)?,
        None => 512,
    };
    let size = tool.target.as_ref().map_or(0, |target| target.size());
    let count = wanted.min(size.saturating_sub(offset));
    let (mut at, mut sum) = (0, 0);
    while at < count {
        let (len, is_allocated) = allocated(tool, offset + at, count - at)
            .map_err(|errno| tool.complain(&format!("is_allocated failed: {}", describe(errno))))?;
        sum += if is_allocated { len } else { 0 };
        at += len.max(1);
    }
    tool.say(&report::allocation(sum, count, offset));
    Ok(())
}

/// `sigraise signal`: ends without closing anything, if the signal does so.
pub fn sigraise(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let text = words.get(1).map_or("", String::as_str);
    let number = tool.number(text)?;
    let signal = i32::try_from(number).ok().filter(|&number| number <= SIGNALS);
    let Some(number) = signal else {
        return Err(tool.refuse(&format!("signal argument '{text}' is too large to be a valid signal")));
    };
    if tool.target.is_some() {
        // what was started has reached the host, as with `abort`
        let _ = tool.with(|target| target.turn());
    }
    tool.show();
    if interrupt::watches(number) {
        interrupt::raise(number);
    }
    if let Some(signal) = Signal::from_named_raw(number) {
        // a process may signal itself
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
    Ok(())
}

/// `sleep ms`: requests that were started go on and are reported meanwhile.
pub fn sleep(tool: &mut Tool, words: &[String]) -> Result<(), Failed> {
    let text = words.get(1).map_or("", String::as_str);
    let Some(ms) = c_integer(text).and_then(|ms| u64::try_from(ms).ok()) else {
        return Err(tool.refuse(&format!("{text} is not a valid number")));
    };
    let end = Instant::now() + Duration::from_millis(ms.min(u64::from(u32::MAX)));
    loop {
        if tool.target.is_some() && tool.with(|target| target.turn()).is_err() {
            return Err(Failed);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt::asked() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
}
