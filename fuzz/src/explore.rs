//! The exhaustive explorer: every order of completion of a small scenario, and every image that a power cut
//! may leave.
//!
//! Depth first. A run follows a prefix of choices and then always takes the first alternative; the next run
//! changes the last choice that has another one. A run stops at a state that was seen (a digest of machines,
//! disk and promises), so that each state is expanded once. Runs start from the beginning: requests in flight
//! are never copied.
//!
//! At every new state: the machines' sweep (the world does it), the header rule QE1/QE5, and the crash
//! images: all of them up to [`Bounds::images`], beyond that none, all, each one missing, each one kept,
//! tables only, data only, and a sample. An image is recovered once, however many states lead to it, and
//! judged once for each set of promises.
//!
//! Knows: scenarios, digests. Must never know: how the driver works.

mod crash;
mod cuts;
mod explored;
mod play;
pub mod scenario;

pub use explored::Explored;
pub use play::Failing;

use crate::schedule::{Schedule, shrink};
use crate::sim::panic_text;
use crate::world::{Tweak, World};
use crash::Images;
use play::Play;
use quod_backend::sim::{Choice, Chooser, Script, Seeded, Sim};
use quod_bench::contract::{Checked, Failure, fail};
use scenario::{Prepared, Scenario};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// States of a scenario.
    pub states: usize,
    /// Crash images of a state, when there are more: the sample.
    pub images: usize,
}

/// A run has fewer actions; one that does not is going round in circles.
const ACTIONS: u32 = 2000;
/// Power cuts within an opening that a replay looks at.
const WITHIN: usize = 256;
/// Runs to make a schedule smaller.
const SHRINKING: usize = 200;

/// Follows a prefix, then takes first alternatives.
struct Exhaustive {
    path: Vec<(u32, u32)>,
    at: usize,
}

impl Chooser for Exhaustive {
    fn choose(&mut self, _what: Choice, n: usize) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, n as u32));
        }
        let (index, of) = self.path[self.at];
        assert_eq!(of as usize, n, "the run does not repeat itself");
        self.at += 1;
        index as usize
    }
}

impl Exhaustive {
    /// To the next path; false: there is none.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((index, n)) = self.path.pop() {
            if index + 1 < n {
                self.path.push((index + 1, n));
                return true;
            }
        }
        false
    }

    fn choices(&self) -> Vec<u32> {
        self.path.iter().map(|(index, _)| *index).collect()
    }
}

fn endless(world: &World) -> Checked {
    fail(format!("a run of {ACTIONS} actions does not end:\n{}", world.describe()))
}

struct Search<'a> {
    scenario: &'a Scenario,
    prepared: &'a Prepared,
    failing: Failing,
    tweak: Tweak,
    bounds: Bounds,
    seen: HashSet<u128>,
    images: Images,
    out: Explored,
    /// The crash image that was judged last.
    crash: Option<Vec<u32>>,
}

impl Search<'_> {
    /// One run along the chooser's path.
    fn run(&mut self, chooser: &mut Exhaustive) -> Checked {
        if self.scenario.cut_first && self.out.runs == 1 {
            self.images.judge_first(self.prepared, self.bounds.images, &mut self.out)?;
        }
        let known = chooser.path.len();
        let mut play = Play::start(self.scenario, self.prepared, self.failing, self.tweak)?;
        for actions in 0..ACTIONS {
            if chooser.at >= known {
                self.out.add_edges(&play.world);
                if !self.seen.insert(play.digest()) {
                    return Ok(());
                }
                self.out.states += 1;
                self.crash = Some(vec![actions]);
                self.images.judge(&play.world, self.bounds.images, &mut self.out, &mut self.crash)?;
                self.crash = None;
            }
            if !play.act(chooser)? {
                self.out.ends += 1;
                let outcome = play.finish();
                self.out.add_edges(&play.world);
                return outcome;
            }
        }
        endless(&play.world)
    }
}

/// Explores a scenario; a violation comes back as a schedule.
pub fn explore(
    scenario: &Scenario,
    failing: Failing,
    tweak: Tweak,
    bounds: Bounds,
) -> Result<Explored, Box<(Failure, Schedule)>> {
    let run = match failing {
        Failing::Nothing => format!("explore {}", scenario.name),
        Failing::One => format!("explore {} failing", scenario.name),
    };
    let prepared = scenario
        .prepare()
        .map_err(|failure| Box::new((failure, Schedule { run: run.clone(), ..Schedule::default() })))?;
    let mut search = Search {
        scenario,
        prepared: &prepared,
        failing,
        tweak,
        bounds,
        seen: HashSet::new(),
        images: Images::new(scenario, &prepared, scenario.session(tweak)),
        out: Explored { complete: true, ..Explored::default() },
        crash: None,
    };
    let mut chooser = Exhaustive { path: Vec::new(), at: 0 };
    loop {
        search.out.runs += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| search.run(&mut chooser)));
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(panic) => Some(Failure(format!("panic: {}", panic_text(&*panic)))),
        };
        if let Some(failure) = failure {
            let (choices, crash) = smaller(scenario, chooser.choices(), search.crash.take(), failing, tweak);
            let story = story(scenario, &choices, crash.as_deref(), failing, tweak);
            return Err(Box::new((failure, Schedule { run, choices, crash, story })));
        }
        if search.out.states >= bounds.states {
            search.out.complete = false;
            return Ok(search.out);
        }
        if !chooser.next() {
            return Ok(search.out);
        }
    }
}

/// A path that still fails: fewer choices, fewer sectors that survive.
fn smaller(
    scenario: &Scenario,
    choices: Vec<u32>,
    mut crash: Option<Vec<u32>>,
    failing: Failing,
    tweak: Tweak,
) -> (Vec<u32>, Option<Vec<u32>>) {
    let fails = |choices: &[u32], crash: Option<&[u32]>| {
        let told = catch_unwind(AssertUnwindSafe(|| tell(scenario, choices, crash, failing, tweak)));
        told.map_or(true, |(_, outcome)| outcome.is_err())
    };
    // a failure that does not come again is told as it was found
    if !fails(&choices, crash.as_deref()) {
        return (choices, crash);
    }
    let choices = shrink(choices, SHRINKING, &mut |choices| fails(choices, crash.as_deref()));
    for index in 1..crash.as_ref().map_or(0, Vec::len) {
        let Some(versions) = &mut crash else { break };
        let kept = std::mem::take(&mut versions[index]);
        if kept != 0 && !fails(&choices, crash.as_deref()) {
            crash.iter_mut().for_each(|versions| versions[index] = kept);
        }
    }
    (choices, crash)
}

/// What a path does, for a person.
fn story(
    scenario: &Scenario,
    choices: &[u32],
    crash: Option<&[u32]>,
    failing: Failing,
    tweak: Tweak,
) -> Vec<String> {
    let told = catch_unwind(AssertUnwindSafe(|| tell(scenario, choices, crash, failing, tweak)));
    match told {
        Ok((mut story, outcome)) => {
            story.extend(outcome.err().map(|failure| failure.0));
            story
        }
        Err(panic) => vec![format!("panic: {}", panic_text(&*panic))],
    }
}

fn tell(
    scenario: &Scenario,
    choices: &[u32],
    crash: Option<&[u32]>,
    failing: Failing,
    tweak: Tweak,
) -> (Vec<String>, Checked) {
    let started = scenario
        .prepare()
        .and_then(|prepared| Ok((Play::start(scenario, &prepared, failing, tweak)?, prepared)));
    let (mut play, prepared) = match started {
        Ok(started) => started,
        Err(failure) => return (Vec::new(), Err(failure)),
    };
    if scenario.cut_first {
        let mut images = Images::new(scenario, &prepared, play.world.session());
        let first = images.judge_first(&prepared, WITHIN, &mut Explored::default());
        if first.is_err() {
            return (vec!["within the first opening".into()], first);
        }
    }
    play.world.tell();
    let mut script = Script::new(choices.to_vec());
    let most = crash.and_then(|crash| crash.first()).copied();
    let acts = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..most.unwrap_or(ACTIONS) {
            if !play.act(&mut script)? {
                return Ok(());
            }
        }
        if most.is_some() { Ok(()) } else { endless(&play.world) }
    }));
    let mut story = play.world.told().to_vec();
    let acts = acts.unwrap_or_else(|panic| fail(format!("panic: {}", panic_text(&*panic))));
    let outcome = match (acts, crash) {
        (Err(failure), _) => Err(failure),
        (Ok(()), None) => play.finish(),
        (Ok(()), Some(crash)) => {
            let versions = crash.get(1..).unwrap_or_default();
            story.push(cuts::describe(&play.world.sim().crash_plan(), versions));
            crash::judge_one(&play.world, scenario, &prepared, versions, WITHIN)
        }
    };
    (story, outcome)
}

/// Runs a schedule of the explorer: "explore", the scenario's name, and "failing" if operations may fail.
pub fn replay(schedule: &Schedule, tweak: Tweak) -> (Vec<String>, Checked) {
    let words: Vec<&str> = schedule.run.split(' ').collect();
    let (name, failing) = match words.as_slice() {
        ["explore", name] => (*name, Failing::Nothing),
        ["explore", name, "failing"] => (*name, Failing::One),
        _ => return (Vec::new(), fail(format!("not a run of the explorer: {}", schedule.run))),
    };
    match scenario::all().into_iter().find(|scenario| scenario.name == name) {
        Some(scenario) => tell(&scenario, &schedule.choices, schedule.crash.as_deref(), failing, tweak),
        None => (Vec::new(), fail(format!("no such scenario: {name}"))),
    }
}

/// May the guest find these bytes?
pub type Allowed<'a> = &'a dyn Fn(&[u8]) -> Checked;

/// A few crash images of a scenario for another judge, the same ones each time: of one run, in an order that
/// a seed chooses, moments spread over it.
pub fn crash_samples(
    scenario: &Scenario,
    images: usize,
    judge: &mut dyn FnMut(&Sim, Allowed<'_>),
) -> Checked {
    let prepared = scenario.prepare()?;
    let mut length = 0;
    for sampling in [false, true] {
        let mut play = Play::start(scenario, &prepared, Failing::Nothing, crate::world::as_is)?;
        let (mut order, mut survivors) = (Seeded::new(1), Seeded::new(2));
        for actions in 0..1000 {
            let due = |at: usize| at * images / (length + 1) != (at + 1) * images / (length + 1);
            if sampling && due(actions) {
                let image = play.world.sim().crash(&mut survivors);
                judge(&image, &|bytes| crash::allowed(&play.world, bytes));
            }
            if !play.act(&mut order)? {
                length = actions;
                break;
            }
        }
    }
    Ok(())
}
