//! Each rule of docs/ordering.md, each wait and each pin, removed: the proof must notice.
//!
//! Checks: without a rule the explorer reports a violation, and the schedule that it prints, replayed, fails
//! again; with all rules in force the very same schedule passes. Where the table says so, the seeded
//! simulation reports a violation, too.

use quod_fuzz::explore::{Bounds, Failing, explore, replay, scenario};
use quod_fuzz::schedule::Schedule;
use quod_fuzz::sim;
use quod_fuzz::world::{Tweak, as_is};
use quod_states::Rule;

const BOUNDS: Bounds = Bounds { states: 20_000, images: 64 };
/// Seeds that a rule may need.
const SEEDS: u64 = 400;

/// What must notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Explorer,
    /// When any operation may fail.
    ExplorerWithFaults,
    ExplorerAndSimulator,
}

/// The first violation that the explorer finds in the scenarios whose names begin so.
fn explored(names: &str, by: By, tweak: Tweak) -> Option<Schedule> {
    let all = scenario::all().into_iter().filter(|scenario| scenario.name.starts_with(names));
    for scenario in all {
        let failing = if by == By::ExplorerWithFaults { Failing::One } else { Failing::Nothing };
        if let Err(found) = explore(&scenario, failing, tweak, BOUNDS) {
            println!("{}\n{}", found.0, found.1);
            return Some(found.1);
        }
    }
    None
}

/// The first violation that the simulator finds.
fn simulated(tweak: Tweak) -> bool {
    (0..SEEDS).any(|seed| sim::seed(seed, tweak).inspect_err(|found| println!("{}", found.0)).is_err())
}

fn is_noticed(rule: Rule, names: &str, by: By, tweak: Tweak) {
    let found = explored(names, by, tweak);
    let schedule = found.unwrap_or_else(|| panic!("the explorer does not miss {rule:?}"));
    let printed = Schedule::parse(&schedule.to_string()).unwrap();
    let again = std::panic::catch_unwind(|| replay(&printed, tweak).1.is_err());
    assert!(again.unwrap_or(true), "{rule:?}: the schedule does not fail again");
    let (_, kept) = replay(&printed, as_is);
    kept.unwrap_or_else(|failure| panic!("{rule:?}: with the rule in force: {failure}"));
    if by == By::ExplorerAndSimulator {
        assert!(simulated(tweak), "the simulator does not miss {rule:?}");
    }
}

/// A line is a test: its name, the rule, the scenarios, and what notices.
macro_rules! noticed {
    ($(fn $name:ident() $rule:ident $names:literal $by:ident)+) => {
        $(
            #[test]
            fn $name() {
                is_noticed(Rule::$rule, $names, By::$by, |options| options.sabotage(Rule::$rule as u128));
            }
        )+
    };
}

// rules of QED, and those of qcow2 that are the same
noticed! {
    fn need_check_before_pointers() MarkDirty "two-writers" Explorer
    fn a_new_table_before_its_pointer() NewTableBeforeL1 "two-new-tables" Explorer
    fn data_before_pointers() DataBeforePointer "two-writers" ExplorerAndSimulator
    fn the_length_before_pointers() LengthBeforePointer "second-table" Explorer
    fn the_bit_before_the_file_grows() BitBeforeGrowth "two-writers" Explorer
    fn the_cut_before_the_bit_is_cleared() CutBeforeClear "two-quiesces" Explorer
    fn a_cut_is_durable_first() RepairDurably "dirty-with-space-ahead" Explorer
    fn need_check_cleared_last() ClearAfterSync "close-in-flight" ExplorerAndSimulator
    fn need_check_cleared_durably() ClearedBeforeClosed "two-quiesces" Explorer
    fn an_emptied_file_is_cut_last() ClearAfterSync "empty" Explorer
    fn a_dirty_image_is_checked_first() CheckBeforeUse "dirty-with-a-dangling" ExplorerAndSimulator
    fn a_repair_of_late_counts_is_durable_first() RepairDurably "qcow2-lazy-shared" Explorer
    fn a_repair_is_durable_first() RepairDurably "dirty-with-a-dangling" Explorer
    fn a_partial_cluster_is_not_used() WholeClusters "partial-last-cluster" Explorer
    fn a_dangling_pointer_stays_dead() DanglingStaysDead "dangling-entry" Explorer
    fn tables_durable_before_a_flush_ends() SyncTables "two-writers" ExplorerAndSimulator
    fn neighbours_are_written_too() Neighbours "neighbours" Explorer
    fn clusters_do_not_become_zero_entries() KeptClusters "one-acb-zeroes" ExplorerAndSimulator
    fn unknown_header_bytes_stay() HeaderBytes "unknown-header-bytes" ExplorerAndSimulator
    fn backing_names_stay() HeaderBytes "two-writers-one-cluster-backed" Explorer
    fn autoclear_bits_first() AutoclearFirst "unknown-autoclear-bits" Explorer
    fn a_sync_covers_what_was_before_it() CoveredBefore "qcow2-lazy-reuse-as-table" Explorer
    fn nothing_after_a_failure() Poison "writer-and-flush" ExplorerWithFaults
}

// rules of qcow2
noticed! {
    fn counts_before_pointers() RefcountBeforePointer "qcow2-writer" ExplorerAndSimulator
    fn an_empty_table_before_its_pointer() NewTableBeforeL1 "qcow2-two-new-tables" Explorer
    fn a_copied_table_before_its_pointer() TableBeforeL1 "qcow2-shared" Explorer
    fn data_before_entries() DataBeforePointer "qcow2-writer" Explorer
    fn counts_go_down_after_the_pointer_is_gone() FreeAfterRemoval "qcow2-discard" ExplorerAndSimulator
    fn tables_of_an_emptied_image_are_free_last() FreeAfterRemoval "qcow2-empty" Explorer
    fn clusters_are_used_again_after_their_readers() ReuseAfterReaders "qcow2-reuse" Explorer
    fn holes_after_the_pointer_is_gone() PunchAfterRemoval "qcow2-compressed-rewrite" Explorer
    fn the_free_end_is_cleared_first() ClearBeforeUse "qcow2-free-end" Explorer
    fn clusters_of_a_device_are_covered() CoverStale "qcow2-device-part-and-whole" Explorer
    fn holes_before_pointers_to_the_new_use() HoleBeforePointer "qcow2-lazy-reuse-as-table" Explorer
    fn refcount_blocks_before_their_entries() BlockBeforeReftable "qcow2-new-refcount-block" Explorer
    fn a_refcount_table_before_the_header() ReftableBeforeHeader "qcow2-new-refcount-table" Explorer
    fn an_old_refcount_table_is_free_last() SwitchBeforeFree "qcow2-new-refcount-table" Explorer
    fn an_l1_table_before_the_header() L1BeforeHeader "qcow2-grow-moves-the-table" Explorer
    fn an_old_l1_table_is_free_last() SwitchBeforeFree "qcow2-grow-moves-the-table" Explorer
    fn the_dirty_bit_before_late_counts() MarkDirty "qcow2-lazy" Explorer
    fn the_dirty_bit_is_cleared_last() ClearAfterSync "qcow2-lazy" Explorer
    fn the_dirty_bit_is_cleared_durably() ClearedBeforeClosed "qcow2-lazy-quiesce" Explorer
    fn late_counts_are_made_first() CheckBeforeUse "qcow2-dirty-without-counts" Explorer
    fn repaired_counts_are_durable_first() RepairDurably "qcow2-dirty-without-counts" Explorer
    fn dropped_entries_before_what_takes_their_place() DropBeforePlace "qcow2-dirty-with-a-dangling" Explorer
    fn each_compressed_cluster_is_counted() PackedCounted "qcow2-pack-two" ExplorerAndSimulator
    fn nothing_is_packed_where_all_went() PackedClosed "qcow2-pack-after-all-went" Explorer
    fn unknown_extensions_stay() HeaderBytes "qcow2-unknown-header-bytes" Explorer
    fn unknown_bits_are_cleared_first() AutoclearFirst "qcow2-unknown-autoclear-bits" Explorer
    fn a_new_list_is_durable_before_the_header() SnapshotBeforeHeader "qcow2-snapshot-made" Explorer
    fn an_old_list_is_free_last() SnapshotBeforeFree "qcow2-snapshot-deleted" Explorer
    fn a_new_directory_is_durable_before_the_header() SnapshotBeforeHeader "qcow2-bitmap-merged" Explorer
    fn an_old_directory_is_free_last() SnapshotBeforeFree "qcow2-bitmap-merged-and-removed" Explorer
    fn bitmaps_are_in_use_first() InUseFirst "qcow2-bitmap-kept-up-in-place" Explorer
    fn a_long_header_changes_in_steps() HeaderSteps "qcow2-bitmap-added-over-a-backing-file" Explorer
    fn the_range_before_the_size() RangeBeforeSize "qcow2-grow-over-the-backing" Explorer
    fn nothing_shared_is_written_in_place() CopiedOnly "qcow2-shared" ExplorerAndSimulator
    fn entries_durable_before_a_flush_ends() SyncTables "qcow2-writer" Explorer
    fn what_was_answered_is_committed() CommitAfterCorruption "qcow2-bad-entry" Explorer
    fn counts_do_not_follow_a_failure() Poison "qcow2-writer-and-flush" ExplorerWithFaults
}

// rules between requests
noticed! {
    fn one_allocation_of_a_cluster_at_a_time() ClusterClaim "two-writers" ExplorerAndSimulator
    fn one_modifier_of_a_sector_at_a_time() SectorWait "sector-writers" ExplorerAndSimulator
    fn a_cluster_is_linked_last() LinkLast "copy-beside-reader" ExplorerAndSimulator
    fn who_was_woken_looks_again() LookAgain "two-writers" ExplorerAndSimulator
}

// waits
noticed! {
    fn a_slice_is_used_when_it_is_loaded() WaitReadL2 "two-writers" ExplorerAndSimulator
    fn a_slot_in_use_is_not_taken() WaitSlot "cache-pressure" Explorer
    fn a_close_waits_for_requests() WaitRequests "close-in-flight" ExplorerAndSimulator
    fn a_smaller_disk_waits_for_requests() WaitRequests "qcow2-shrink-and-grow" Explorer
    fn space_is_used_when_the_file_has_grown() WaitGrowFile "two-writers" ExplorerAndSimulator
    fn a_table_is_changed_when_it_is_copied() WaitAllocL2 "qcow2-shared-table-two-writers" Explorer
    fn an_l1_table_is_used_when_it_is_copied() WaitAllocL2 "qcow2-grow-moves-the-table" Explorer
    fn counts_are_used_when_they_are_loaded() WaitAllocRefcount "qcow2-writer" ExplorerAndSimulator
    fn the_sync_waits_for_the_header() WaitMarkDirty "qcow2-lazy" Explorer
    fn the_sync_waits_for_counts() WaitMarkDirty "qcow2-writer-and-flush" Explorer
    fn the_tables_wait_for_the_sync() WaitSyncData "two-writers" ExplorerAndSimulator
    fn the_next_round_waits_for_the_tables() WaitUpdateL2 "two-writers" ExplorerAndSimulator
    fn the_answer_waits_for_the_size() WaitResize "qcow2-shrink" ExplorerAndSimulator
    fn an_acb_waits_for_all_of_its_reads() WaitAllParts "copy-beside-reader" ExplorerAndSimulator
    fn a_modifier_waits_for_all_of_its_reads() WaitAllParts "sector-writers" Explorer
}

// pins
noticed! {
    fn a_slice_stays_until_the_link() PinLink "cache-pressure" Explorer
    fn a_slice_stays_while_clusters_are_counted() PinCount "qcow2-new-cluster-in-a-full-cache" Explorer
    fn an_l1_slice_stays_while_a_table_is_counted() PinL1 "qcow2-new-table-in-a-full-cache" Explorer
    fn an_l1_slice_stays_while_a_table_is_copied() PinCopy "qcow2-copy-in-a-full-cache" Explorer
    fn a_slot_that_is_loaded_is_not_taken() LoadingSlot "cache-pressure" Explorer
    fn a_slot_that_is_written_is_not_taken() WritingSlot "cache-pressure" Explorer
    fn a_snapshot_leaves_young_changes_out() YoungChanges "zeroes-over-all-kinds" Explorer
    fn a_shared_table_is_copied() SharedTable "qcow2-shared-table" ExplorerAndSimulator
    fn a_hole_is_there_before_its_reuse() PunchedFirst "qcow2-discard-and-reuse" ExplorerAndSimulator
    fn what_was_not_punched_is_not_used() UnpunchedStays "qcow2-discard-old" ExplorerWithFaults
    fn nobody_comes_in_while_the_l1_table_moves() Exclusive "qcow2-grow-moves-an-empty-table" Explorer
    fn free_clusters_are_found_once() HeldOnce "qcow2-discard-and-reuse" Explorer
}
