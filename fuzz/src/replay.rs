//! Replays a schedule, whoever found it: the simulator, the explorer, a fuzz target.
//!
//! Knows: the names of runs. Must never know: what a run does.

use crate::schedule::Schedule;
use crate::world::as_is;
use crate::{explore, sim, targets};
use quod_bench::contract::{Checked, fail};

/// Runs it, and tells what happened; the verdict is the second part.
pub fn replay(schedule: &Schedule) -> (Vec<String>, Checked) {
    match schedule.run.split_once(' ').unwrap_or((&schedule.run, "")) {
        ("sim", "") => match sim::replay(&schedule.choices, as_is) {
            Ok(_) => (Vec::new(), Ok(())),
            Err((failure, story)) => (story, Err(failure)),
        },
        ("explore", _) => explore::replay(schedule, as_is),
        ("target", name) => match targets::find(name) {
            Ok(target) => {
                let (outcome, story) = target.replay(&schedule.choices);
                (story, outcome)
            }
            Err(failure) => (Vec::new(), Err(failure)),
        },
        _ => (Vec::new(), fail(format!("no such run: {}", schedule.run))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs() {
        let run = |run: &str| replay(&Schedule { run: run.into(), ..Schedule::default() }).1;
        for name in ["sim", "target ops", "target create"] {
            run(name).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        }
        for name in ["", "simulation", "explore", "explore what", "target", "target what", "target header"] {
            assert!(run(name).is_err(), "{name}");
        }
    }
}
