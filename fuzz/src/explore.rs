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
pub mod scenario;

use crate::nth;
use crate::probe::hash_words;
use crate::schedule::Schedule;
use crate::sim::panic_text;
use crate::world::{Tweak, World};
use crate::{Checked, Failure, fail};
use crash::Images;
use quod::states::State;
use quod_backend::sim::{Choice, Chooser, Fault, Fifo, Script, Seeded, Sim, pick};
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

/// The `n`-th operation fails, in one of the ways of [`nth::faults`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fails {
    /// Counted from 0, in order of completion.
    pub n: u64,
    /// Index of the way.
    pub how: usize,
}

impl Fails {
    fn fault(self) -> Option<Fault> {
        nth::faults(self.n).into_iter().nth(self.how)
    }
}

/// What was explored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Runs from the beginning.
    pub runs: usize,
    /// Different ends.
    pub ends: usize,
    /// Crash images that were looked at, and how many different ones were recovered.
    pub images: usize,
    /// Of those, the different ones: recovered and read whole.
    pub recovered: usize,
    /// States with more images than the bound.
    pub sampled: usize,
    /// No bound on states was met.
    pub complete: bool,
    /// An operation was made to fail in some run.
    pub failed: bool,
    /// Edges of the state table that were taken: for each state, as bits.
    pub edges: [u32; State::COUNT],
}

impl Explored {
    /// The edges that this world has taken, too.
    fn add_edges(&mut self, world: &World) {
        for (_, from, to) in world.tally.edges.keys() {
            self.edges[usize::from(*from)] |= 1 << to;
        }
    }

    /// Was this edge taken?
    pub fn took(&self, (from, to): (State, State)) -> bool {
        self.edges[from as usize] & 1 << to as u32 != 0
    }
}

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

/// Answers the next question about order, passes others on.
struct Ordered<'a> {
    index: usize,
    others: &'a mut dyn Chooser,
}

impl Chooser for Ordered<'_> {
    fn choose(&mut self, what: Choice, n: usize) -> usize {
        if what == Choice::NextCompletion { self.index } else { self.others.choose(what, n) }
    }
}

/// One action of the chooser's choice: an operation completes, the next request is made, a timer runs out.
/// False: none.
fn act(
    world: &mut World,
    scenario: &Scenario,
    asked: &mut usize,
    chooser: &mut dyn Chooser,
) -> Checked<bool> {
    let steps = world.sim().steppable();
    let next = scenario.asks.get(*asked).filter(|_| world.is_open());
    let timer = scenario.timers && world.timeout().is_some() || world.is_due();
    let n = steps + usize::from(next.is_some()) + usize::from(timer);
    if n == 0 {
        return Ok(false);
    }
    let index = pick(chooser, Choice::Workload, n);
    if index < steps {
        world.step(&mut Ordered { index, others: chooser })?;
    } else if let (Some(ask), true) = (next, index == steps) {
        *asked += usize::from(world.ask(*ask)?);
    } else {
        world.fire()?;
    }
    Ok(true)
}

/// A world at the scenario's start.
fn start(
    scenario: &Scenario,
    prepared: &Prepared,
    fault: &Option<Fault>,
    tweak: Tweak,
) -> Checked<(World, usize)> {
    let mut world = prepared.world(scenario.session(tweak));
    if !world.open(&mut Fifo)? {
        return fail("the scenario's image does not open");
    }
    for ask in &scenario.warm {
        if !world.ask(*ask)? {
            return fail("the scenario asks more than the driver takes");
        }
        world.drain(&mut Fifo)?;
    }
    world.watch();
    world.arm(fault.clone());
    for ask in &scenario.asks[..scenario.at_once] {
        if !world.ask(*ask)? {
            return fail("the scenario asks more than the driver takes");
        }
    }
    Ok((world, scenario.at_once))
}

fn endless(world: &World) -> Checked {
    fail(format!("a run of {ACTIONS} actions does not end:\n{}", world.describe()))
}

/// At rest: read whole, close, and everything that a close promises.
fn finish(world: &mut World, asked: usize, scenario: &Scenario) -> Checked {
    if world.in_flight() > 0 {
        return fail(format!("requests wait for nothing:\n{}", world.describe()));
    }
    debug_assert!(asked == scenario.asks.len() || !world.is_open());
    if world.is_open() {
        world.read_now()?;
        world.close()?;
    }
    Ok(())
}

struct Search<'a> {
    scenario: &'a Scenario,
    prepared: &'a Prepared,
    fault: Option<Fault>,
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
        let known = chooser.path.len();
        let (mut world, mut asked) = start(self.scenario, self.prepared, &self.fault, self.tweak)?;
        for actions in 0..ACTIONS {
            if chooser.at >= known {
                self.out.add_edges(&world);
                let digest = hash_words(world.digest(), [asked as u64]);
                if !self.seen.insert(digest) {
                    return Ok(());
                }
                self.out.states += 1;
                self.crash = Some(vec![actions]);
                self.images.judge(&world, self.bounds.images, &mut self.out, &mut self.crash)?;
                self.crash = None;
            }
            if !act(&mut world, self.scenario, &mut asked, chooser)? {
                self.out.ends += 1;
                self.out.failed |= world.has_failed();
                let outcome = finish(&mut world, asked, self.scenario);
                self.out.add_edges(&world);
                return outcome;
            }
            self.out.failed |= world.has_failed();
        }
        endless(&world)
    }
}

/// Explores a scenario; a violation comes back as a schedule.
pub fn explore(
    scenario: &Scenario,
    fails: Option<Fails>,
    tweak: Tweak,
    bounds: Bounds,
) -> Result<Explored, Box<(Failure, Schedule)>> {
    let fault = fails.and_then(Fails::fault);
    let prepared = scenario.prepare().map_err(|failure| {
        let run = format!("explore {}", scenario.name);
        Box::new((failure, Schedule { run, ..Schedule::default() }))
    })?;
    let mut search = Search {
        scenario,
        prepared: &prepared,
        fault,
        tweak,
        bounds,
        seen: HashSet::new(),
        images: Images::new(scenario, &prepared),
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
            let choices = chooser.choices();
            let more = fails.map(|fails| format!(" {} {}", fails.n, fails.how)).unwrap_or_default();
            let run = format!("explore {}{more}", scenario.name);
            let (crash, fault) = (search.crash.take(), search.fault);
            let story = story(scenario, &choices, crash.as_deref(), fault, tweak);
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

/// As [`explore`], with the n-th operation failing once or for ever, for every n until none fails any more.
pub fn explore_faults(
    scenario: &Scenario,
    tweak: Tweak,
    bounds: Bounds,
) -> Result<Explored, Box<(Failure, Schedule)>> {
    let mut sum = Explored { complete: true, ..Explored::default() };
    for n in 0.. {
        let mut any = false;
        for how in 0..nth::faults(n).len() {
            let out = explore(scenario, Some(Fails { n, how }), tweak, bounds)?;
            any |= out.failed;
            sum.states += out.states;
            sum.runs += out.runs;
            sum.ends += out.ends;
            sum.images += out.images;
            sum.recovered += out.recovered;
            sum.sampled += out.sampled;
            sum.complete &= out.complete;
            for (sum, edges) in sum.edges.iter_mut().zip(out.edges) {
                *sum |= edges;
            }
        }
        if !any {
            break;
        }
    }
    Ok(sum)
}

/// What a path does, for a person.
fn story(
    scenario: &Scenario,
    choices: &[u32],
    crash: Option<&[u32]>,
    fault: Option<Fault>,
    tweak: Tweak,
) -> Vec<String> {
    let told = catch_unwind(AssertUnwindSafe(|| tell(scenario, choices, crash, fault, tweak)));
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
    fault: Option<Fault>,
    tweak: Tweak,
) -> (Vec<String>, Checked) {
    let started = scenario.prepare().and_then(|prepared| start(scenario, &prepared, &fault, tweak));
    let (mut world, mut asked) = match started {
        Ok(started) => started,
        Err(failure) => return (Vec::new(), Err(failure)),
    };
    world.tell();
    let mut script = Script::new(choices.to_vec());
    let most = crash.and_then(|crash| crash.first()).map_or(u32::MAX, |actions| *actions);
    let acts = catch_unwind(AssertUnwindSafe(|| {
        for actions in 0..most {
            if actions >= ACTIONS {
                return endless(&world);
            }
            if !act(&mut world, scenario, &mut asked, &mut script)? {
                break;
            }
        }
        Ok(())
    }));
    let mut story = world.told().to_vec();
    let acts = acts.unwrap_or_else(|panic| fail(format!("panic: {}", panic_text(&*panic))));
    let outcome = match (acts, crash) {
        (Err(failure), _) => Err(failure),
        (Ok(()), None) => finish(&mut world, asked, scenario),
        (Ok(()), Some(crash)) => {
            let versions = crash.get(1..).unwrap_or_default();
            story.push(crash::describe(&world, versions));
            crash::judge_one(&world, scenario, versions)
        }
    };
    (story, outcome)
}

/// Runs a schedule of the explorer: "explore", the scenario's name, and the numbers of [`Fails`] if something
/// fails.
pub fn replay(schedule: &Schedule, tweak: Tweak) -> (Vec<String>, Checked) {
    let words: Vec<&str> = schedule.run.split(' ').collect();
    let (name, fault) = match words.as_slice() {
        ["explore", name] => (*name, None),
        ["explore", name, n, how] => match (n.parse(), how.parse()) {
            (Ok(n), Ok(how)) => (*name, Fails { n, how }.fault()),
            _ => return (Vec::new(), fail("which operation fails, and how, are two numbers")),
        },
        _ => return (Vec::new(), fail(format!("not a run of the explorer: {}", schedule.run))),
    };
    match scenario::all().into_iter().find(|scenario| scenario.name == name) {
        Some(scenario) => tell(&scenario, &schedule.choices, schedule.crash.as_deref(), fault, tweak),
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
        let (mut world, mut asked) = start(scenario, &prepared, &None, crate::world::as_is)?;
        let (mut order, mut survivors) = (Seeded::new(1), Seeded::new(2));
        for actions in 0..1000 {
            let due = |at: usize| at * images / (length + 1) != (at + 1) * images / (length + 1);
            if sampling && due(actions) {
                let image = world.sim().crash(&mut survivors);
                judge(&image, &|bytes| crash::allowed(&world, bytes));
            }
            if !act(&mut world, scenario, &mut asked, &mut order)? {
                length = actions;
                break;
            }
        }
    }
    Ok(())
}
