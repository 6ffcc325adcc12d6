//! What is printed about transfers, now or when they end: totals and rates, hex dumps, pattern checks.
//!
//! Knows: numbers, bytes, durations. Must never know: disks, commands.
//! Invariant: the text is qemu-io's, to the byte, because its tests compare it.

use super::bytes::gather;
use crate::words::sizes;
use quod::{Completion, describe};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// One finished transfer.
pub struct Transfer {
    /// `read`, `wrote` or `discard`.
    pub verb: &'static str,
    /// Bytes asked for, and done.
    pub bytes: u64,
    /// Guest offset.
    pub offset: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// For machines: one line of numbers.
    pub condensed: bool,
}

impl Transfer {
    /// Both lines, or the one of `-C`.
    pub fn text(&self) -> String {
        // a clock too coarse to see it would give infinite rates
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let (bytes_rate, ops_rate) = (self.bytes as f64 / seconds, 1.0 / seconds);
        if self.condensed {
            return format!("{},1,{},{bytes_rate:.3},{ops_rate:.3}\n", self.bytes, hours(self.elapsed));
        }
        let time = if self.elapsed.as_secs() >= 60 { hours(self.elapsed) } else { brief(self.elapsed) };
        format!(
            "{} {}/{} bytes at offset {}\n{}, 1 ops; {time} ({}/sec and {ops_rate:.4} ops/sec)\n",
            self.verb,
            self.bytes,
            self.bytes,
            self.offset,
            sizes::short(self.bytes as f64),
            sizes::short(bytes_rate),
        )
    }
}

fn hours(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}.{:02}", seconds % 60, time.subsec_millis() / 10)
}

fn brief(time: Duration) -> String {
    format!("{:02}.{:02} sec", time.as_secs(), time.subsec_millis() / 10)
}

/// Sixteen bytes a line: offset, hexadecimal, and what is printable.
pub fn dump(bytes: &[u8], offset: u64) -> String {
    let mut text = String::with_capacity(bytes.len() * 5);
    for (index, line) in bytes.chunks(16).enumerate() {
        // writing to a String cannot fail
        let _ = write!(text, "{:08x}:  ", offset + 16 * index as u64);
        for byte in line {
            let _ = write!(text, "{byte:02x} ");
        }
        text.push(' ');
        text.extend(line.iter().map(|&byte| if byte.is_ascii_alphanumeric() { byte as char } else { '.' }));
        text.push('\n');
    }
    text
}

/// The complaint if not all bytes are `pattern`; `offset` is where, counted as `read -P` counts.
pub fn mismatch(bytes: &[u8], pattern: u8, offset: u64) -> Option<String> {
    let good = bytes.iter().all(|&byte| byte == pattern);
    (!good).then(|| format!("Pattern verification failed at offset {offset}, {} bytes\n", bytes.len()))
}

/// `7/16 bytes allocated at offset 1.500 KiB`.
pub fn allocation(allocated: u64, count: u64, offset: u64) -> String {
    format!("{allocated}/{count} bytes allocated at offset {}\n", sizes::short(offset as f64))
}

/// One line of `map`.
pub fn map_line(length: u64, allocated: bool, offset: u64) -> String {
    let word = if allocated { "    allocated" } else { "not allocated" };
    let (long, at) = (sizes::short(length as f64), sizes::short(offset as f64));
    format!("{long} ({length:#x}) bytes {word} at offset {at} ({offset:#x})\n")
}

/// What is remembered of a started request.
pub struct Aio {
    /// `read` or `wrote`.
    pub verb: &'static str,
    /// What is said to have failed.
    pub failure: &'static str,
    /// Guest offset.
    pub offset: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// When it was started.
    pub start: Instant,
    /// `-q`
    pub quiet: bool,
    /// `-C`
    pub condensed: bool,
    /// `-v`
    pub dump: bool,
    /// `-P` of a read.
    pub pattern: Option<u8>,
}

/// What is printed when a request has ended.
pub fn outcome(memo: &Aio, done: &Completion) -> String {
    if let Err(error) = &done.result {
        return format!("{} failed: {}\n", memo.failure, describe(error.errno()));
    }
    let mut text = String::new();
    if memo.dump || memo.pattern.is_some() {
        let bytes = gather(done);
        if let Some(pattern) = memo.pattern {
            text += &mismatch(&bytes, pattern, memo.offset).unwrap_or_default();
        }
        if memo.dump && !memo.quiet {
            text += &dump(&bytes, memo.offset);
        }
    }
    if !memo.quiet {
        let elapsed = memo.start.elapsed();
        let Aio { verb, bytes, offset, condensed, .. } = *memo;
        text += &Transfer { verb, bytes, offset, elapsed, condensed }.text();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_read_as_qemu_io_prints_them() {
        let mut transfer = Transfer {
            verb: "wrote",
            bytes: 65536,
            offset: 0,
            elapsed: Duration::from_nanos(1_715_155),
            condensed: false,
        };
        let text = "wrote 65536/65536 bytes at offset 0\n64 KiB, 1 ops; 00.00 sec \
                    (36.440 MiB/sec and 583.0377 ops/sec)\n";
        assert_eq!(transfer.text(), text);
        transfer.elapsed = Duration::from_millis(1_321_380);
        transfer.bytes = 512;
        let text = "wrote 512/512 bytes at offset 0\n512 bytes, 1 ops; 0:22:01.38 \
                    (0.387474 bytes/sec and 0.0008 ops/sec)\n";
        assert_eq!(transfer.text(), text);
        transfer.condensed = true;
        transfer.elapsed = Duration::from_micros(2000);
        assert_eq!(transfer.text(), "512,1,0:00:00.00,256000.000,500.000\n");
    }

    #[test]
    fn dumps_read_as_qemu_io_prints_them() {
        let text = "bffffffb:  2a 2a 2a 2a 2a 41 7a 39 00 00 00 00 00 00 00 00  .....Az9........\n\
                    c000000b:  00 7f  ..\n";
        assert_eq!(dump(b"*****Az9\0\0\0\0\0\0\0\0\0\x7f", 0xbfff_fffb), text);
        assert_eq!(dump(&[], 0), "");
    }

    #[test]
    fn patterns_and_maps() {
        assert_eq!(mismatch(&[3; 10], 3, 1), None);
        let text = "Pattern verification failed at offset 1, 10 bytes\n";
        assert_eq!(mismatch(&[3; 10], 4, 1).as_deref(), Some(text));
        assert_eq!(allocation(0, 512, 1536), "0/512 bytes allocated at offset 1.500 KiB\n");
        let text = "64 KiB (0x10000) bytes     allocated at offset 0 bytes (0x0)\n";
        assert_eq!(map_line(65536, true, 0), text);
        let text = "960 KiB (0xf0000) bytes not allocated at offset 64 KiB (0x10000)\n";
        assert_eq!(map_line(0xf0000, false, 65536), text);
    }
}
