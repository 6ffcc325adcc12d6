//! Fuzz targets: each takes bytes and says whether everything that must hold does.
//!
//! libFuzzer's entry points (`fuzz/libfuzzer`), the smoke test, and `quod-fuzz target` run the same
//! functions. A target is either about bytes (a header, an image, a text) or about choices: then the bytes
//! are the answers of [`FuzzBytes`], and what it finds is a schedule that replays like any other.
//!
//! Knows: the list of targets, how inputs are made and made smaller. Must never know: what a target checks.
//! Invariant: an input is the whole run.

mod bytes;
mod checks;
pub mod corpus;
mod lives;
mod messages;
mod nbd;
mod texts;

use crate::schedule::{Recorder, Schedule, Told, shrink};
use crate::sim::panic_text;
use corpus::Corpus;
use quod_backend::sim::{Choice, Chooser, Script, Seeded};
use quod_bench::contract::{Checked, Failure, fail};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Longest input that is run.
const INPUT_MAX: usize = 4 << 20;
/// Making an input smaller takes no longer.
const MINIMISE: Duration = Duration::from_secs(60);

/// Answers questions from bytes: the remainder of one, of two if more than 256 answers are possible, or of
/// four; 0 past their end.
#[derive(Clone, Debug)]
pub struct FuzzBytes<'a> {
    bytes: &'a [u8],
}

impl<'a> FuzzBytes<'a> {
    /// These bytes.
    pub fn new(bytes: &'a [u8]) -> FuzzBytes<'a> {
        FuzzBytes { bytes }
    }
}

impl Chooser for FuzzBytes<'_> {
    fn choose(&mut self, _what: Choice, n: usize) -> usize {
        let width = match n {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        let (now, rest) = self.bytes.split_at(self.bytes.len().min(width));
        self.bytes = rest;
        now.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)) % n
    }
}

/// What a target is about. `bool`: write down what happens.
#[derive(Clone, Copy)]
enum Run {
    Bytes(fn(&[u8]) -> Checked),
    Choices(fn(&mut dyn Chooser, bool) -> Told),
}

/// See the module's header.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of libFuzzer's entry point.
    pub name: &'static str,
    run: Run,
    corpus: Corpus,
}

const fn bytes(name: &'static str, corpus: Corpus, run: fn(&[u8]) -> Checked) -> Target {
    Target { name, run: Run::Bytes(run), corpus }
}

const fn choices(name: &'static str, run: fn(&mut dyn Chooser, bool) -> Told) -> Target {
    Target { name, run: Run::Choices(run), corpus: Corpus::Choices }
}

/// All of them. [`CANARY`] fails; the others should not.
pub const TARGETS: [Target; 15] = [
    bytes("header", Corpus::Headers, bytes::header),
    bytes("entries", Corpus::Entries, bytes::entries),
    bytes("open", Corpus::Images, bytes::open),
    bytes("check", Corpus::Images, checks::check_and_repair),
    bytes("check_qemu", Corpus::Images, checks::same_verdict),
    choices("ops", lives::ops),
    choices("crash", lives::crash),
    choices("nth", lives::nth),
    choices("life", lives::life),
    choices("create", checks::create),
    bytes("schedule", Corpus::Schedules, texts::schedule),
    bytes("iolog", Corpus::Traces, texts::iolog),
    bytes("nbd_negotiation", Corpus::Negotiations, nbd::negotiation),
    bytes("nbd_requests", Corpus::Requests, nbd::requests),
    choices(CANARY, lives::canary),
];

/// The target that must be found to fail: a disk that forgets what it was made to keep.
pub const CANARY: &str = "canary";

/// The target of this name.
pub fn find(name: &str) -> Checked<&'static Target> {
    let names = || TARGETS.map(|target| target.name).join(", ");
    let found = TARGETS.iter().find(|target| target.name == name);
    found.ok_or_else(|| Failure(format!("no such target: {name}; there are {}", names())))
}

/// libFuzzer's way in.
///
/// # Panics
/// If the target fails, which is what libFuzzer looks for; the failure is printed first.
pub fn must(name: &str, input: &[u8]) {
    if let Err(failure) = find(name).and_then(|target| target.run(input)) {
        panic!("{failure}");
    }
}

impl Target {
    /// Runs an input; a panic in the code under test is a failure. That of a target about choices ends with
    /// its schedule.
    pub fn run(&self, input: &[u8]) -> Checked {
        if input.len() > INPUT_MAX {
            return Ok(());
        }
        match self.run {
            Run::Bytes(run) => guarded(|| run(input)),
            Run::Choices(run) => {
                let mut recorder = Recorder::new(FuzzBytes::new(input));
                let outcome = guarded(|| run(&mut recorder, false).map_err(|(failure, _)| failure));
                outcome.map_err(|failure| {
                    let (run, choices) = (format!("target {}", self.name), recorder.made);
                    let (_, told) = self.replay(&choices);
                    let schedule = Schedule { run, choices, crash: None, story: told };
                    Failure(format!("{failure}\n{schedule}"))
                })
            }
        }
    }

    /// Runs a schedule's choices; what happened comes first.
    pub fn replay(&self, choices: &[u32]) -> (Checked, Vec<String>) {
        let Run::Choices(run) = self.run else {
            return (fail(format!("the target {} is about bytes, not choices", self.name)), Vec::new());
        };
        let mut story = Vec::new();
        let outcome = guarded(|| {
            run(&mut Script::new(choices.to_vec()), true).map_err(|(failure, told)| {
                story = told;
                failure
            })
        });
        (outcome, story)
    }

    /// An input for a seed: the corpus, changed here and there.
    pub fn input(&self, seed: u64) -> Vec<u8> {
        self.corpus.input(&mut Seeded::new(seed.wrapping_mul(0xA076_1D64_78BD_642F)))
    }

    /// What to start from: a name for each, and its bytes.
    pub fn corpus(&self) -> Vec<(String, Vec<u8>)> {
        self.corpus.all()
    }

    /// A smaller input that still fails, found in at most `tries` runs and a minute.
    pub fn minimise(&self, input: &[u8], tries: usize) -> Vec<u8> {
        let (mut best, started) = (input.to_vec(), Instant::now());
        let mut fails = |candidate: &[u32]| {
            if started.elapsed() > MINIMISE {
                return false;
            }
            let candidate: Vec<u8> = candidate.iter().map(|byte| *byte as u8).collect();
            let fails = match self.run {
                Run::Bytes(run) => guarded(|| run(&candidate)),
                Run::Choices(run) => {
                    guarded(|| run(&mut FuzzBytes::new(&candidate), false).map_err(|(failure, _)| failure))
                }
            }
            .is_err();
            if fails {
                best = candidate;
            }
            fails
        };
        shrink(input.iter().map(|byte| u32::from(*byte)).collect(), tries, &mut fails);
        best
    }
}

fn guarded(run: impl FnOnce() -> Checked) -> Checked {
    let outcome = catch_unwind(AssertUnwindSafe(run));
    outcome.unwrap_or_else(|panic| fail(format!("panic: {}", panic_text(&*panic))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_answers() {
        let bytes = [7, 255, 1, 2, 9, 0, 0, 0, 1];
        let mut chooser = FuzzBytes::new(&bytes);
        let answers: Vec<usize> =
            [4, 256, 300, 70_000, 256, 9, 70_000].iter().map(|&n| chooser.choose(Choice::Other, n)).collect();
        assert_eq!(answers, [3, 255, 0x0201 % 300, 9, 1, 0, 0]);
    }
}
