//! The seeded simulation in the test run.
//!
//! Checks: five thousand seeds hold (mixed requests, faults, power cuts, reopenings); each of them, run
//! twice, is the same run, digest by digest; almost every edge of both tables is taken; shortened and
//! changed schedules still run.

use quod::Format;
use quod_fuzz::schedule::Schedule;
use quod_fuzz::sim;
use quod_fuzz::world::{Tally, as_is};
use quod_states::acb::edges::{QCOW2_EDGES, QED_EDGES};

/// Runs seeds on two threads, adds up what they covered.
fn run(seeds: std::ops::Range<u64>) -> Tally {
    let half = seeds.start + (seeds.end - seeds.start) / 2;
    let part = |range: std::ops::Range<u64>| {
        let mut tally = Tally::default();
        for seed in range {
            match sim::seed(seed, as_is) {
                Ok(report) => {
                    assert_eq!(Some(&report), sim::seed(seed, as_is).ok().as_ref(), "seed {seed}");
                    tally.add(&report.tally);
                }
                Err(found) => panic!("{}\n{}", found.0, sim::shrunk(&found.1, as_is, 1000)),
            }
        }
        tally
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(move || part(half..seeds.end));
        let mut tally = part(seeds.start..half);
        match other.join() {
            Ok(more) => tally.add(&more),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        tally
    })
}

#[test]
fn five_thousand_seeds_hold_and_each_is_one_run() {
    let tally = run(0..5000);
    assert!(tally.cancelled > 500, "{tally:?}");
    assert!(tally.crashes > 5000 && tally.clean_closes > 5000 && tally.repairs > 1500, "{tally:?}");
    assert!(
        tally.faults > 2500 && tally.failed > 5000 && tally.poisoned > 250 && tally.timers > 5000,
        "{tally:?}"
    );
    let missing = tally.missing(Format::Qed, QED_EDGES);
    assert!(missing.len() <= 2, "edges that no seed takes: {missing:?}");
    let missing = tally.missing(Format::Qcow2, QCOW2_EDGES);
    assert!(missing.len() <= 8, "edges of qcow2 that no seed takes: {missing:?}");
}

#[test]
fn any_list_of_numbers_is_a_run() {
    let long: Vec<u32> = (0..3000).map(|n: u32| n.wrapping_mul(2_654_435_761) >> 20).collect();
    for choices in [vec![], vec![u32::MAX; 400], long.clone(), long[100..].to_vec(), long[333..900].to_vec()]
    {
        if let Err((failure, story)) = sim::replay(&choices, as_is) {
            let schedule = Schedule { run: "sim".into(), choices, story, ..Schedule::default() };
            panic!("{failure}\n{schedule}");
        }
    }
}

#[test]
fn any_operation_may_fail_once_or_for_ever() {
    for (format, operations) in [(Format::Qed, 30), (Format::Qcow2, 200)] {
        let report = quod_fuzz::nth::run(format, as_is).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.operations > operations && report.runs > 20 * operations, "{report:?}");
    }
}
