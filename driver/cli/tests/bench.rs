//! `quod bench`: what it can do beside what qemu-img bench does, and that it says no more unless asked.

mod common;

use common::{Answer, prepare, quod};
use serde_json::Value;
use std::path::Path;

fn bench(folder: &Path, words: &str) -> Answer {
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x", "16M"], folder);
    let args: Vec<&str> = ["bench"].into_iter().chain(words.split_whitespace()).chain(["x"]).collect();
    let answer = quod(&args, folder);
    prepare("qemu-img", &["check", "-q", "x"], folder);
    answer
}

fn figures(folder: &Path, words: &str) -> Value {
    let answer = bench(folder, &format!("-f qcow2 -d 8 --json - {words}"));
    assert_eq!(answer.code, Some(0), "{words}: {answer:?}");
    serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{words}: {error}: {answer:?}"))
}

#[test]
fn latencies_are_told_if_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let plain = figures(folder.path(), "-w -c 64 --flush-interval 8");
    for name in ["latency", "read_latency", "write_latency", "flush_latency"] {
        assert!(plain[name].is_null(), "{name}: {plain}");
    }
    let timed = figures(folder.path(), "-w -c 64 --flush-interval 8 --latency");
    assert_eq!(timed["write_latency"]["count"], 64, "{timed}");
    assert_eq!(timed["flush_latency"]["count"], timed["done_flushes"], "{timed}");
    let percentile = |name: &str| timed["latency"][name].as_f64().unwrap();
    assert!(percentile("p50_us") > 0.0 && percentile("p50_us") <= percentile("p99_us"), "{timed}");
    assert!(percentile("p99_us") <= percentile("p999_us"), "{timed}");
    let answer = bench(folder.path(), "-c 64 --latency");
    assert!(answer.stdout.contains("Read latency") && !answer.stdout.contains("Write latency"), "{answer:?}");
    assert!(!bench(folder.path(), "-c 64").stdout.contains("latency"));
}

#[test]
fn a_random_mix_is_made_again_by_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &str| {
        let value = figures(folder.path(), &format!("-w -c 500 --random --reads 70 --pattern 7 {words}"));
        assert_eq!((value["done"].as_u64(), value["reads_percent"].as_u64()), (Some(500), Some(70)));
        let reads = value["done_reads"].as_u64().unwrap();
        assert!((300..400).contains(&reads), "{value}");
        prepare("qemu-img", &["convert", "-O", "raw", "x", "raw"], folder.path());
        (reads, std::fs::read(folder.path().join("raw")).unwrap())
    };
    let first = run("--seed 5");
    assert!(run("--seed 5 --flush-interval 4 --no-drain") == first, "flushes change no request");
    assert!(run("--seed 6") != first);
    let told = bench(folder.path(), "-w -c 8 --random --reads 70 --seed 5 --flush-interval 2 --final-flush");
    for line in [
        "Sending 8 mixed requests",
        "At random places, seed 5",
        "70 of 100 requests read, seed 5",
        "Sending flush every 2 writes",
        "Sending a flush at the end",
    ] {
        assert!(told.stdout.contains(line), "{line}: {told:?}");
    }
}

#[test]
fn the_flush_at_the_end_is_one() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(figures(folder.path(), "-w -c 64 --final-flush")["done_flushes"], 1);
    // nothing to flush, and nothing that may be flushed
    assert_eq!(figures(folder.path(), "-c 64 --final-flush")["done_flushes"], 0);
    assert_eq!(figures(folder.path(), "-w -t unsafe -c 64 --final-flush")["done_flushes"], 0);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (words, what) in [
        ("--reads 70", "--write"),
        ("-w --reads 100", "Invalid percentage of reads specified. Must be between 0 and 99."),
        ("-w --reads x", "Invalid percentage of reads specified: 'x'."),
        ("--seed x --random", "--seed"),
        ("--random -o 16M", "no room for one of the random requests"),
    ] {
        let answer = bench(folder.path(), words);
        assert_eq!(answer.code, Some(1), "{words}: {answer:?}");
        assert!(answer.stderr.contains(what), "{words}: {answer:?}");
    }
}
