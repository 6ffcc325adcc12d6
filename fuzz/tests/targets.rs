//! A short smoke of every fuzz target, on seeds, with a stable toolchain.
//!
//! Checks: every target holds on some hundred inputs and on its whole corpus; the canary is found, and its
//! minimised input, and its schedule, fail again; new images of the corpus are byte for byte what qemu-img
//! makes (which must be installed).

use quod_fuzz::schedule::Schedule;
use quod_fuzz::targets::{CANARY, TARGETS, Target, corpus, find};
use std::process::Command;

/// Inputs of a target: those that run the whole driver, or another program, take longest.
fn seeds(target: &Target) -> u64 {
    match target.name {
        "check_qemu" => 60,
        "schedule" => 100,
        "ops" | "crash" | "nth" | "life" => 200,
        _ => 1000,
    }
}

fn smoke(target: &Target) {
    for seed in 0..seeds(target) {
        let input = target.input(seed);
        if target.run(&input).is_err() {
            let small = target.minimise(&input, 500);
            let failure = target.run(&small).expect_err("it has just failed");
            panic!("{}, seed {seed}: {failure}\n{}", target.name, small.escape_ascii());
        }
    }
}

#[test]
fn every_target_holds() {
    std::thread::scope(|scope| {
        let targets = || TARGETS.iter().filter(|target| target.name != CANARY);
        scope.spawn(move || targets().skip(1).step_by(2).for_each(smoke));
        targets().step_by(2).for_each(smoke);
    });
}

#[test]
fn every_target_holds_on_its_corpus() {
    for target in TARGETS.iter().filter(|target| ![CANARY, "check_qemu"].contains(&target.name)) {
        let corpus = target.corpus();
        assert!(!corpus.is_empty(), "{}", target.name);
        for (name, input) in corpus {
            target.run(&input).unwrap_or_else(|failure| panic!("{}, {name}: {failure}", target.name));
        }
    }
}

#[test]
fn the_canary_is_found() {
    let canary = find(CANARY).unwrap();
    let input = (0..100).map(|seed| canary.input(seed)).find(|input| canary.run(input).is_err());
    let small = canary.minimise(&input.expect("the canary sings"), 1000);
    assert!(small.len() < 100, "{} bytes", small.len());
    let failure = canary.run(&small).expect_err("what was minimised fails");
    let (_, text) = failure.0.split_once('\n').expect("a schedule");
    let schedule = Schedule::parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let (story, outcome) = quod_fuzz::replay::replay(&schedule);
    assert!(outcome.is_err() && story.iter().any(|line| line.contains("Write")), "{schedule}");
    // nothing is found where nothing is
    canary.run(&[]).expect("without requests nothing is forgotten");
}

#[test]
fn the_corpus_is_what_qemu_img_makes() {
    let dir = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for made in corpus::created().iter().filter(|made| !made.partial) {
        let mut command = Command::new("qemu-img");
        command.current_dir(dir.path()).args(["create", "-q", "-u", "-f", made.format.name()]);
        command.args(["-o", &made.options]);
        if made.backed {
            command.args(["-b", corpus::BASE, "-F", "raw"]);
        }
        let status = command.args(["image", &corpus::SIZE.to_string()]).status();
        assert!(status.expect("qemu-img must be installed").success(), "{made:?}");
        let bytes = std::fs::read(dir.path().join("image")).unwrap();
        let same = bytes == made.bytes;
        assert!(same, "{:?} {}: {} and {} bytes", made.format, made.options, bytes.len(), made.bytes.len());
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}
