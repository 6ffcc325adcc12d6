//! Schedules: the choices of a run as text that can be replayed, and their shrinking.
//!
//! ```text
//! quod-schedule 1
//! run sim
//! choices 3 0 1 0 0 7
//! crash 0 1 1
//! # what happened, for a person
//! ```
//!
//! Choices past the end are 0, the plain alternative, and too large ones mean the last, so every prefix is a
//! schedule.
//!
//! Knows: numbers, and the names of runs. Must never know: what a choice means.

use quod_backend::sim::{Choice, Chooser};
use quod_bench::contract::{Checked, Failure, fail};
use std::fmt;

/// A failure, and what happened until then.
pub type Told<T = ()> = Result<T, (Failure, Vec<String>)>;

/// A run that can be repeated.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// "sim", or "explore" and a scenario's name.
    pub run: String,
    /// Answers, in order.
    pub choices: Vec<u32>,
    /// The explorer's crash: after so many actions, then a version a candidate.
    pub crash: Option<Vec<u32>>,
    /// What happened.
    pub story: Vec<String>,
}

fn numbers(text: &str) -> Checked<Vec<u32>> {
    let number = |word: &str| word.parse().map_err(|_| Failure(format!("not a number: {word}")));
    text.split_whitespace().map(number).collect()
}

impl Schedule {
    /// Reads the text form.
    pub fn parse(text: &str) -> Checked<Schedule> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        if lines.next() != Some("quod-schedule 1") {
            return fail("the first line must be: quod-schedule 1");
        }
        let mut schedule = Schedule::default();
        for line in lines {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("run", name) => schedule.run = name.to_string(),
                ("choices", rest) => schedule.choices.extend(numbers(rest)?),
                ("crash", rest) => schedule.crash = Some(numbers(rest)?),
                (word, _) => return fail(format!("no such line: {word}")),
            }
        }
        Ok(schedule)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "quod-schedule 1\nrun {}", self.run)?;
        let words = |numbers: &[u32]| numbers.iter().map(|n| format!(" {n}")).collect::<String>();
        for line in self.choices.chunks(32) {
            writeln!(f, "choices{}", words(line))?;
        }
        if let Some(crash) = &self.crash {
            writeln!(f, "crash{}", words(crash))?;
        }
        for line in self.story.iter().flat_map(|text| text.lines()) {
            writeln!(f, "# {line}")?;
        }
        Ok(())
    }
}

/// Writes down what another chooser answers.
pub struct Recorder<C> {
    inner: C,
    /// The answers so far.
    pub made: Vec<u32>,
}

impl<C: Chooser> Recorder<C> {
    /// Of this chooser.
    pub fn new(inner: C) -> Recorder<C> {
        Recorder { inner, made: Vec::new() }
    }
}

impl<C: Chooser> Chooser for Recorder<C> {
    fn choose(&mut self, what: Choice, n: usize) -> usize {
        let index = self.inner.choose(what, n);
        self.made.push(index as u32);
        index
    }
}

/// Makes a failing list of choices smaller while `fails` says that it still fails: cuts the tail, takes
/// pieces out, zeroes pieces. At most `tries` runs.
pub fn shrink(mut choices: Vec<u32>, mut tries: usize, fails: &mut dyn FnMut(&[u32]) -> bool) -> Vec<u32> {
    let mut attempt = |candidate: Vec<u32>, best: &mut Vec<u32>, tries: &mut usize| {
        if *tries == 0 || candidate == *best {
            return false;
        }
        *tries -= 1;
        let smaller = fails(&candidate);
        if smaller {
            *best = candidate;
        }
        smaller
    };
    let mut size = choices.len().max(2) / 2;
    while size > 0 && tries > 0 {
        let before = choices.clone();
        while choices.len() >= size
            && attempt(choices[..choices.len() - size].to_vec(), &mut choices, &mut tries)
        {}
        let mut at = 0;
        while at < choices.len() && tries > 0 {
            let end = (at + size).min(choices.len());
            let without = [&choices[..at], &choices[end..]].concat();
            let mut zeroed = choices.clone();
            zeroed[at..end].fill(0);
            if !attempt(without, &mut choices, &mut tries) {
                attempt(zeroed, &mut choices, &mut tries);
                at += size;
            }
        }
        if size == 1 && before == choices {
            break;
        }
        size = if size == 1 { 1 } else { size / 2 };
    }
    while choices.last() == Some(&0) {
        choices.pop();
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_schedule_are_the_same() {
        let schedule = Schedule {
            run: "explore two-writers".into(),
            choices: (0..70).collect(),
            crash: Some(vec![0, 2, 1]),
            story: vec![],
        };
        assert_eq!(Schedule::parse(&schedule.to_string()).unwrap(), schedule);
        let told = Schedule { story: vec!["a\nb".into()], ..schedule.clone() };
        assert_eq!(Schedule::parse(&told.to_string()).unwrap(), schedule);
        for bad in ["", "quod-schedule 2", "quod-schedule 1\nchoices x", "quod-schedule 1\nwhat 1"] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shrinking_keeps_what_matters() {
        let choices: Vec<u32> = (0..200).map(|n| n % 7).collect();
        let small = shrink(choices, 5000, &mut |list| list.iter().filter(|&&n| n == 6).count() >= 3);
        assert_eq!(small, [6, 6, 6]);
    }
}
