//! fio's io_uring engine, registered files and buffers: what the kernel and the device do without a format.
//!
//! Knows: its options and its JSON. Must never know: how a process is measured.

use crate::feed::{PATTERN, SEED};
use crate::task::{Outcome, Tail};
use crate::workload::Load;
use serde_json::Value;
use std::path::Path;

/// The words of one run. `len` is that of the image; a mix alone draws its places, as the other engines do.
pub fn command(load: &Load, image: &Path, len: u64, latency: bool) -> Vec<String> {
    let mut words: Vec<String> = [
        "fio",
        "--name=limit",
        "--output-format=json",
        "--ioengine=io_uring",
        "--registerfiles=1",
        "--fixedbufs=1",
        "--direct=1",
        "--thread=1",
        "--norandommap=1",
        "--randrepeat=1",
        "--invalidate=0",
        "--allow_file_create=0",
        "--fallocate=none",
        // no thread beside it that reads the device's counters
        "--disk_util=0",
    ]
    .map(String::from)
    .into();
    let mut say = |name: &str, value: String| words.push(format!("--{name}={value}"));
    let (depth, size) = (load.depth, load.size);
    // several at once, as every engine here submits: one system call for as many as have ended
    say("iodepth", depth.to_string());
    say("iodepth_batch_submit", depth.to_string());
    say("iodepth_batch_complete_min", "1".to_owned());
    say("iodepth_batch_complete_max", depth.to_string());
    let scattered = load.is_scattered();
    let kind = match (load.is_mix(), load.writes()) {
        (true, _) => "rw",
        (_, true) => "write",
        (_, false) => "read",
    };
    let gap = load.step.saturating_sub(size) >> 10;
    say(
        "rw",
        match (scattered, gap) {
            (true, _) => format!("rand{kind}"),
            (false, 0) => kind.to_owned(),
            (false, gap) => format!("{kind}:{gap}k"),
        },
    );
    if load.is_mix() {
        say("rwmixread", load.reads.to_string());
    }
    if load.flush_every > 0 {
        say("fdatasync", load.flush_every.to_string());
    }
    if load.writes() {
        say("end_fsync", "1".to_owned());
        say("buffer_pattern", format!("0x{PATTERN:x}"));
    }
    if latency {
        // from submission to completion: what is done inside the submission counts
        say("lat_percentiles", "1".to_owned());
        say("percentile_list", "50:99:99.9".to_owned());
    } else {
        // no clock for a request
        say("gtod_reduce", "1".to_owned());
    }
    say("bs", size.to_string());
    say("size", len.to_string());
    say("io_size", (load.count * size).to_string());
    say("randseed", SEED.to_string());
    say("filename", image.display().to_string());
    words
}

/// What its JSON says.
pub fn outcome(stdout: &str) -> Option<Outcome> {
    let begin = stdout.find('{')?;
    let value: Value = serde_json::from_str(&stdout[begin..]).ok()?;
    let job = value["jobs"].get(0)?;
    let seconds = ["read", "write"].map(|kind| job[kind]["runtime"].as_f64().unwrap_or(0.0) / 1e3);
    // of a mix the reads, which are most of it
    let tail = ["read", "write"].into_iter().find_map(|kind| {
        let at = |name: &str| Some(job[kind]["lat_ns"]["percentile"][name].as_f64()? / 1e3);
        Some(Tail { p50: at("50.000000")?, p99: at("99.000000")?, p999: at("99.900000")? })
    });
    Some(Outcome { seconds: seconds[0].max(seconds[1]), tail, ..Outcome::default() })
}
