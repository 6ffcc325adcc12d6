//! The exhaustive explorer in the test run.
//!
//! Checks: every scenario holds in every order and for all crash images up to the bound; a sample of them
//! also when any one operation fails, once and for ever; no scenario is cut short; a schedule replays.

use quod::Format;
use quod_fuzz::explore::{Bounds, Explored, explore, explore_faults, replay, scenario};
use quod_fuzz::schedule::Schedule;
use quod_fuzz::world::as_is;

const BOUNDS: Bounds = Bounds { states: 200_000, images: 256 };
/// Of qcow2, whose scenarios are many.
const FEWER: Bounds = Bounds { states: 100_000, images: 32 };

fn print(name: &str, out: &Explored) {
    let Explored { states, runs, ends, images, recovered, .. } = out;
    print!("{name:<32} {states:>8} states {runs:>8} runs {ends:>6} ends ");
    println!("{images:>9} images {recovered:>7} different");
}

/// Every scenario of a format, in every order.
fn all_hold(format: Format, bounds: Bounds) {
    for scenario in scenario::all().into_iter().filter(|scenario| scenario.format() == format) {
        // whoever wants space reads dozens of refcount blocks, in any order
        let many = scenario.name.contains("new-refcount-table");
        let bounds = if many { Bounds { states: 5000, ..bounds } } else { bounds };
        match explore(&scenario, None, as_is, bounds) {
            Ok(out) => {
                print(scenario.name, &out);
                assert!(
                    (out.complete || many) && out.states > 3 && out.ends > 0,
                    "{}: {out:?}",
                    scenario.name
                );
            }
            Err(found) => panic!("{}: {}\n{}", scenario.name, found.0, found.1),
        }
    }
}

#[test]
fn every_scenario_of_qed_holds_in_every_order() {
    all_hold(Format::Qed, BOUNDS);
}

#[test]
fn every_scenario_of_qcow2_holds_in_every_order() {
    all_hold(Format::Qcow2, FEWER);
}

fn hold_with_faults(names: &[&str], images: usize) {
    for scenario in scenario::all().into_iter().filter(|scenario| names.contains(&scenario.name)) {
        match explore_faults(&scenario, as_is, Bounds { states: 50_000, images }) {
            Ok(out) => {
                print(scenario.name, &out);
                assert!(out.complete, "{}: {out:?}", scenario.name);
            }
            Err(found) => panic!("{}: {}\n{}", scenario.name, found.0, found.1),
        }
    }
}

#[test]
fn some_scenarios_of_qed_hold_with_any_operation_failing() {
    hold_with_faults(
        &[
            "writer-and-flush",
            "copy-beside-reader",
            "close-in-flight",
            "first-write-fua",
            "unaligned-new-cluster",
            "second-table",
        ],
        64,
    );
}

#[test]
fn some_scenarios_of_qcow2_hold_with_any_operation_failing() {
    hold_with_faults(
        &[
            "qcow2-writer-and-flush",
            "qcow2-shared-table",
            "qcow2-discard-and-flush",
            "qcow2-new-refcount-block-at-once",
            "qcow2-compressed-shared",
            "qcow2-lazy-fua-and-close",
        ],
        16,
    );
}

#[test]
fn a_schedule_replays_and_a_scenario_must_exist() {
    let schedule =
        Schedule { run: "explore writer-and-flush".into(), choices: vec![0, 1, 0], ..Schedule::default() };
    let (story, outcome) = replay(&schedule, as_is);
    outcome.unwrap();
    assert!(story.iter().any(|line| line.contains("ended: Ok")), "{story:?}");
    let with_crash = Schedule { crash: Some(vec![4, 1, 1, 0]), ..schedule };
    replay(&with_crash, as_is).1.unwrap();
    let unknown = Schedule { run: "explore no-such".into(), ..Schedule::default() };
    assert!(replay(&unknown, as_is).1.is_err());
}

#[test]
fn every_scenario_can_be_prepared() {
    for scenario in scenario::all() {
        let prepared = scenario.prepare().unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
        let mut world = prepared.world(scenario.session(as_is));
        world.look().unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
    }
}
