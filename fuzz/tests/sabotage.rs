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

/// The first violation that the explorer finds in the scenarios whose names begin so; nothing: all of QED.
fn explored(names: &str, tweak: Tweak) -> Option<Schedule> {
    let format = if names.is_empty() { Format::Qed } else { Format::Qcow2 };
    let all = scenario::all().into_iter().filter(|scenario| scenario.format() == format);
    for scenario in all.filter(|scenario| scenario.name.starts_with(names)) {
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

fn is_noticed(rule: Rule, tweak: Tweak, names: &str, by_simulator: bool) {
    let schedule = explored(names, tweak).unwrap_or_else(|| panic!("the explorer does not miss {rule:?}"));
    let again = std::panic::catch_unwind(|| replay(&schedule, tweak).1.is_err());
    assert!(again.unwrap_or(true), "{rule:?}: the schedule does not fail again");
    replay(&schedule, as_is)
        .1
        .unwrap_or_else(|failure| panic!("{rule:?}: with the rule in force: {failure}"));
    if by_simulator {
        assert!(simulated(tweak).is_some(), "the simulator does not miss {rule:?}");
    }
}

#[test]
fn need_check_before_pointers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::MarkDirty as u32)
    }
    is_noticed(Rule::MarkDirty, tweak, "", false);
}

#[test]
fn data_before_pointers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::DataBeforePointer as u32)
    }
    is_noticed(Rule::DataBeforePointer, tweak, "", true);
}

#[test]
fn tables_durable_before_a_flush_ends() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::SyncTables as u32)
    }
    is_noticed(Rule::SyncTables, tweak, "", true);
}

#[test]
fn need_check_cleared_last() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ClearAfterSync as u32)
    }
    is_noticed(Rule::ClearAfterSync, tweak, "", false);
}

#[test]
fn one_allocation_of_a_cluster_at_a_time() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ClusterClaim as u32)
    }
    is_noticed(Rule::ClusterClaim, tweak, "", true);
}

#[test]
fn one_modifier_of_a_sector_at_a_time() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::SectorWait as u32)
    }
    is_noticed(Rule::SectorWait, tweak, "", true);
}

#[test]
fn counts_before_pointers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::RefcountBeforePointer as u32)
    }
    is_noticed(Rule::RefcountBeforePointer, tweak, "qcow2-writer", true);
}

#[test]
fn counts_go_down_after_the_pointer_is_gone() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::FreeAfterRemoval as u32)
    }
    is_noticed(Rule::FreeAfterRemoval, tweak, "qcow2-discard", true);
}

#[test]
fn clusters_are_used_again_after_their_readers() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ReuseAfterReaders as u32)
    }
    is_noticed(Rule::ReuseAfterReaders, tweak, "qcow2-reuse", false);
}

#[test]
fn refcount_blocks_before_their_entries() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::BlockBeforeReftable as u32)
    }
    is_noticed(Rule::BlockBeforeReftable, tweak, "qcow2-new-refcount-block", false);
}

#[test]
fn a_refcount_table_before_the_header() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ReftableBeforeHeader as u32)
    }
    is_noticed(Rule::ReftableBeforeHeader, tweak, "qcow2-new-refcount-table", false);
}

#[test]
fn nothing_shared_is_written_in_place() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::CopiedOnly as u32)
    }
    is_noticed(Rule::CopiedOnly, tweak, "qcow2-shared", true);
}

#[test]
fn a_copied_table_before_its_pointer() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::TableBeforeL1 as u32)
    }
    is_noticed(Rule::TableBeforeL1, tweak, "qcow2-shared", false);
}

#[test]
fn the_dirty_bit_before_late_counts() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::MarkDirty as u32)
    }
    is_noticed(Rule::MarkDirty, tweak, "qcow2-lazy", false);
}

#[test]
fn the_dirty_bit_is_cleared_last() {
    fn tweak(options: OpenOptions) -> OpenOptions {
        options.sabotage(Rule::ClearAfterSync as u32)
    }
    is_noticed(Rule::ClearAfterSync, tweak, "qcow2-lazy", false);
}
