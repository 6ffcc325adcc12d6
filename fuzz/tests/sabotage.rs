//! Each rule of docs/ordering.md that can be removed, removed: the proof must notice.
//!
//! Checks: without a rule the explorer or the simulator reports a violation, and its schedule, replayed,
//! fails again; with all rules in force the very same schedule passes.

use quod::states::Rule;
use quod::{Format, OpenOptions};
use quod_fuzz::explore::{Bounds, explore, replay, scenario};
use quod_fuzz::schedule::Schedule;
use quod_fuzz::sim;
use quod_fuzz::world::{Tweak, as_is};

const BOUNDS: Bounds = Bounds { states: 20_000, images: 128 };

/// The first violation that the explorer finds.
fn explored(format: Format, tweak: Tweak) -> Option<Schedule> {
    for scenario in scenario::all().into_iter().filter(|scenario| scenario.format() == format) {
        if let Err(found) = explore(&scenario, None, tweak, BOUNDS) {
            println!("{}\n{}", found.0, found.1);
            return Some(found.1);
        }
    }
    None
}

/// The first violation that the simulator finds, made small.
fn simulated(tweak: Tweak) -> Option<Schedule> {
    for seed in 0..400 {
        if let Err(found) = sim::seed(seed, tweak) {
            println!("{}", found.0);
            return Some(found.1);
        }
    }
    None
}

fn is_noticed(rule: Rule, tweak: Tweak, by_explorer: Option<Format>, by_simulator: bool) {
    if let Some(format) = by_explorer {
        let schedule =
            explored(format, tweak).unwrap_or_else(|| panic!("the explorer does not miss {rule:?}"));
        let again = std::panic::catch_unwind(|| replay(&schedule, tweak).1.is_err());
        assert!(again.unwrap_or(true), "{rule:?}: the schedule does not fail again");
        replay(&schedule, as_is)
            .1
            .unwrap_or_else(|failure| panic!("{rule:?}: with the rule in force: {failure}"));
    }
    if by_simulator {
        assert!(simulated(tweak).is_some(), "the simulator does not miss {rule:?}");
    }
}

#[test]
fn need_check_before_pointers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::MarkDirty as u32)
    }
    is_noticed(Rule::MarkDirty, tweak, Some(Format::Qed), false);
}

#[test]
fn data_before_pointers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::DataBeforePointer as u32)
    }
    is_noticed(Rule::DataBeforePointer, tweak, Some(Format::Qed), true);
}

#[test]
fn tables_durable_before_a_flush_ends() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::SyncTables as u32)
    }
    is_noticed(Rule::SyncTables, tweak, Some(Format::Qed), true);
}

#[test]
fn need_check_cleared_last() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ClearAfterSync as u32)
    }
    is_noticed(Rule::ClearAfterSync, tweak, Some(Format::Qed), false);
}

#[test]
fn one_allocation_of_a_cluster_at_a_time() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ClusterClaim as u32)
    }
    is_noticed(Rule::ClusterClaim, tweak, Some(Format::Qed), true);
}

#[test]
fn one_modifier_of_a_sector_at_a_time() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::SectorWait as u32)
    }
    is_noticed(Rule::SectorWait, tweak, Some(Format::Qed), true);
}
