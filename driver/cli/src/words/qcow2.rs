//! What `quod info` says of qcow2 images only: snapshots, bitmaps and the features of the header.
//!
//! Knows: how qemu-img prints them. Must never know: where they lie in the file.

use crate::words::{json, luks, sizes};
use quod::Compression;
use quod_tools::{Bitmap, ImageInfo, Qcow2Info, Snapshot};
use serde_json::{Map, Value, json};

const NANOS: u64 = 1_000_000_000;

/// The format-specific fields, in the order in which qemu-img prints them.
pub fn specific(image: &ImageInfo, facts: &Qcow2Info) -> Value {
    let info = &image.info;
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    let compression = match info.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    add("compat", if info.version < 3 { "0.10" } else { "1.1" }.into());
    add("compression-type", compression.into());
    if info.version >= 3 {
        add("lazy-refcounts", facts.lazy_refcounts.into());
    }
    if !facts.bitmaps.is_empty() {
        add("bitmaps", facts.bitmaps.iter().map(bitmap).collect());
    }
    add("refcount-bits", facts.refcount_bits.into());
    if let Some(name) = &facts.data_file_name {
        add("data-file", text(name).into());
    }
    match (facts.encryption, &facts.luks) {
        (Some(_), Some(luks)) => drop(add("encrypt", luks::luks(luks, Some("luks")))),
        (Some(_), None) => drop(add("encrypt", json!({"format": "aes"}))),
        (None, _) => {}
    }
    if info.data_file.is_some() {
        add("data-file-raw", info.data_file_raw.into());
    }
    if info.version >= 3 {
        add("corrupt", facts.corrupt.into());
        add("extended-l2", facts.extended_l2.into());
    }
    Value::Object(fields)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bitmap(bitmap: &Bitmap) -> Value {
    let flags = [("in-use", bitmap.in_use()), ("auto", bitmap.auto())];
    let flags: Vec<&str> = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect();
    json!({"flags": flags, "name": text(&bitmap.name), "granularity": 1u64 << bitmap.granularity_bits})
}

/// A snapshot in JSON.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    if let Some(count) = snapshot.icount() {
        add("icount", count.into());
    }
    add("vm-clock-nsec", (snapshot.vm_clock_nsec % NANOS).into());
    add("name", text(&snapshot.name).into());
    add("date-sec", snapshot.date_sec.into());
    add("date-nsec", snapshot.date_nsec.into());
    add("vm-clock-sec", (snapshot.vm_clock_nsec / NANOS).into());
    add("id", text(&snapshot.id).into());
    add("vm-state-size", snapshot.vm_state_size().into());
    Value::Object(fields)
}

/// The lines about snapshots and features.
pub fn human(image: &ImageInfo, facts: &Qcow2Info) -> Vec<String> {
    let mut lines = snapshots(&facts.snapshots);
    lines.extend(features(image, facts));
    lines
}

/// The list of snapshots; nothing if there are none.
pub fn snapshots(all: &[Snapshot]) -> Vec<String> {
    let mut lines = Vec::new();
    if !all.is_empty() {
        let row = |id: &str, tag: &str, size: &str, date: &str, clock: &str, count: &str| {
            format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {count:>10}")
        };
        lines.push("Snapshot list:".into());
        lines.push(row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"));
        for one in all {
            let (id, tag, size) = (text(&one.id), text(&one.name), sizes::rounded(one.vm_state_size()));
            let count = one.icount().map_or("--".into(), |count| count.to_string());
            lines.push(row(&id, &tag, &size, &date(one.date_sec), &clock(one.vm_clock_nsec), &count));
        }
    }
    lines
}

/// The lines about features alone.
pub fn features(image: &ImageInfo, facts: &Qcow2Info) -> Vec<String> {
    let mut lines = vec!["Format specific information:".into()];
    json::nested(&specific(image, facts), 1, &mut lines);
    lines
}

fn clock(nanos: u64) -> String {
    let seconds = nanos / NANOS;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:04}:{minutes:02}:{:02}.{:03}", seconds % 60, nanos % NANOS / 1_000_000)
}

/// Date and time of day, UTC (QEMU: local time).
fn date(seconds: u32) -> String {
    let (days, second) = (i64::from(seconds / 86_400), seconds % 86_400);
    // days are counted from 0000-03-01, so that the leap day ends a year
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let (month, day) = ((shifted + 2) % 12 + 1, day - (153 * shifted + 2) / 5 + 1);
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_clocks() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_795_369_371), "2026-11-22 17:42:51");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15");
        assert_eq!(clock(3_723_004_000_000), "0001:02:03.004");
    }
}
