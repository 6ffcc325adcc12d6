//! A scenario in progress: what may happen next, and making it happen.
//!
//! Knows: operations in flight, the next request, timers, how an operation may fail. Must never know: who
//! chooses, what was seen before.
//! Invariant: what may happen is the same list, in the same order, whenever a state is reached.

use super::scenario::{Prepared, Scenario};
use crate::nth;
use crate::world::{Tweak, World};
use quod_backend::sim::{Choice, Chooser, Fault, Fifo, pick};
use quod_bench::contract::hash::hash_words;
use quod_bench::contract::{Checked, fail};

/// What may fail in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Failing {
    /// Nothing.
    #[default]
    Nothing,
    /// Any one operation, in each of its ways ([`nth::ways`]), once or with all that follow.
    One,
}

/// What has failed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failed {
    Nothing,
    Once,
    ForEver,
}

/// A write of more sectors stops only at some of them.
const STOPS: usize = 8;

/// Answers the next question about order, passes others on.
struct Ordered<'a> {
    index: usize,
    others: &'a mut dyn Chooser,
}

impl Chooser for Ordered<'_> {
    fn choose(&mut self, what: Choice, n: usize) -> usize {
        match what {
            Choice::NextCompletion => self.index,
            Choice::Torn if n > STOPS => pick(self.others, what, STOPS) * (n - 1) / (STOPS - 1),
            _ => self.others.choose(what, n),
        }
    }
}

/// See the module's header.
pub struct Play<'a> {
    pub world: World,
    scenario: &'a Scenario,
    asked: usize,
    failing: Failing,
    failed: Failed,
}

impl<'a> Play<'a> {
    /// A world at the scenario's start.
    pub fn start(
        scenario: &'a Scenario,
        prepared: &Prepared,
        failing: Failing,
        tweak: Tweak,
    ) -> Checked<Play<'a>> {
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
        for ask in &scenario.asks[..scenario.at_once] {
            if !world.ask(*ask)? {
                return fail("the scenario asks more than the driver takes");
            }
        }
        Ok(Play { world, scenario, asked: scenario.at_once, failing, failed: Failed::Nothing })
    }

    /// Of everything that decides the future.
    pub fn digest(&self) -> u128 {
        hash_words(self.world.digest(), [self.asked as u64, self.failed as u64])
    }

    /// One action of the chooser's choice: an operation completes, the next request is made, a timer runs
    /// out, or an operation fails. False: none.
    pub fn act(&mut self, chooser: &mut dyn Chooser) -> Checked<bool> {
        let world = &mut self.world;
        let steps = world.sim().steppable();
        let next = self.scenario.asks.get(self.asked).filter(|_| world.is_open());
        let timer = self.scenario.timers && world.timeout().is_some() || world.is_due();
        let plain = steps + usize::from(next.is_some()) + usize::from(timer);
        if plain == 0 {
            return Ok(false);
        }
        let faults = self.faults();
        let index = pick(chooser, Choice::Workload, plain + faults.len());
        if let Some((index, fault)) = index.checked_sub(plain).and_then(|at| faults.into_iter().nth(at)) {
            self.fail(index, fault, chooser)?;
        } else if index < steps {
            self.world.step(&mut Ordered { index, others: chooser })?;
        } else if let (Some(ask), true) = (next, index == steps) {
            self.asked += usize::from(self.world.ask(*ask)?);
        } else {
            self.world.fire()?;
        }
        Ok(true)
    }

    /// Which operations may fail now, by their index, and how.
    fn faults(&self) -> Vec<(usize, Fault)> {
        if self.failing == Failing::Nothing || self.failed != Failed::Nothing {
            return Vec::new();
        }
        let sim = self.world.sim();
        let ways = |(index, kind)| nth::ways(kind).into_iter().map(move |fault| (index, fault));
        sim.pending().take(sim.steppable()).map(|op| op.kind).enumerate().flat_map(ways).collect()
    }

    fn fail(&mut self, index: usize, fault: Fault, chooser: &mut dyn Chooser) -> Checked {
        let once = fault.is_once();
        self.failed = if once { Failed::Once } else { Failed::ForEver };
        self.world.arm(Some(fault));
        let stepped = self.world.step(&mut Ordered { index, others: chooser });
        if once {
            self.world.arm(None);
        }
        stepped.map(drop)
    }

    /// At rest: read whole, close, and everything that a close promises.
    pub fn finish(&mut self) -> Checked {
        let world = &mut self.world;
        if world.in_flight() > 0 {
            return fail(format!("requests wait for nothing:\n{}", world.describe()));
        }
        debug_assert!(self.asked == self.scenario.asks.len() || !world.is_open());
        if world.is_open() {
            world.read_now()?;
            world.close()?;
        }
        Ok(())
    }
}
