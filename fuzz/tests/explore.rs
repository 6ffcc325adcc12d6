//! The exhaustive explorer in the test run.
//!
//! Checks: every scenario holds in every order and for all crash images up to the bound; a sample of them
//! also when any one operation fails, once and for ever; no scenario is cut short; a schedule replays; the
//! tables of docs/proof.md are what came out (`UPDATE_DOCS=1` writes them anew).

use quod::Format;
use quod::states::State;
use quod::states::state::{Edges, QCOW2_EDGES, QED_EDGES};
use quod_fuzz::explore::{Bounds, Explored, explore, explore_faults, replay, scenario};
use quod_fuzz::schedule::Schedule;
use quod_fuzz::world::as_is;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

const BOUNDS: Bounds = Bounds { states: 200_000, images: 256 };
/// Of qcow2, whose scenarios are many.
const FEWER: Bounds = Bounds { states: 100_000, images: 32 };

fn print(name: &str, out: &Explored) {
    let Explored { states, runs, ends, images, recovered, .. } = out;
    print!("{name:<32} {states:>8} states {runs:>8} runs {ends:>6} ends ");
    println!("{images:>9} images {recovered:>7} different");
}

/// One writes the page at a time.
static PAGE: Mutex<()> = Mutex::new(());

/// The table between its marks in docs/proof.md is this one.
fn assert_page(name: &str, table: &str) {
    let _one = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/proof.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = page.split_once(&begin).expect("the page has the mark");
    let (old, after) = rest.split_once(&end).expect("and its end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{begin}{table}{end}{after}")).unwrap();
    } else {
        assert!(old == table, "docs/proof.md is stale: UPDATE_DOCS=1 cargo test -p quod-fuzz --test explore");
    }
}

/// How many edges were taken; none is left.
fn edges_taken(edges: Edges, taken: &Explored, failing: &Explored) -> String {
    let plain = edges.iter().filter(|edge| taken.took(**edge)).count();
    let more = edges.iter().filter(|edge| !taken.took(**edge) && failing.took(**edge)).count();
    let list: Vec<String> = edges
        .iter()
        .filter(|edge| !taken.took(**edge) && !failing.took(**edge))
        .map(|(from, to)| format!("{} to {}", from.name(), to.name()))
        .collect();
    assert!(list.is_empty(), "no scenario takes {}", list.join(", "));
    let all = edges.len();
    format!("\n{plain} of {all} edges are taken; with a failing operation {more} more.\n")
}

fn unite(sum: &mut Explored, out: &Explored) {
    for state in 0..State::COUNT {
        sum.edges[state] |= out.edges[state];
    }
}

/// Every scenario of a format, in every order.
fn all_hold(format: Format, bounds: Bounds, failing: &Explored) {
    let mut table = String::from("| scenario | states | runs | ends | crash images | different ones |\n");
    table += "| --- | --- | --- | --- | --- | --- |\n";
    let mut sum = Explored::default();
    for scenario in scenario::all().into_iter().filter(|scenario| scenario.format() == format) {
        // whoever wants space reads dozens of refcount blocks, in any order
        let many = scenario.name.contains("new-refcount-table");
        // so many reads that the cache has no room for all complete in too many orders
        let room = scenario.name == "qcow2-no-room" || scenario.name.ends_with("in-a-full-cache");
        let bounds = match (many, room) {
            (true, _) => Bounds { states: 5000, ..bounds },
            (_, true) => Bounds { states: 500, ..bounds },
            _ => bounds,
        };
        match explore(&scenario, None, as_is, bounds) {
            Ok(out) => {
                print(scenario.name, &out);
                unite(&mut sum, &out);
                let Explored { states, runs, ends, images, recovered, .. } = out;
                let cut = if out.complete { "" } else { " (bounded)" };
                let name = scenario.name;
                writeln!(table, "| {name}{cut} | {states} | {runs} | {ends} | {images} | {recovered} |")
                    .unwrap();
                assert!(
                    (out.complete || many || room) && out.states > 3 && out.ends > 0,
                    "{}: {out:?}",
                    scenario.name
                );
            }
            Err(found) => panic!("{}: {}\n{}", scenario.name, found.0, found.1),
        }
    }
    let edges = if format == Format::Qed { QED_EDGES } else { QCOW2_EDGES };
    table += &edges_taken(edges, &sum, failing);
    assert_page(&format!("{format:?} scenarios"), &table);
}

fn hold_with_faults(names: &[&str], images: usize) -> Explored {
    let mut sum = Explored::default();
    for scenario in scenario::all().into_iter().filter(|scenario| names.contains(&scenario.name)) {
        match explore_faults(&scenario, as_is, Bounds { states: 50_000, images }) {
            Ok(out) => {
                print(scenario.name, &out);
                unite(&mut sum, &out);
                assert!(out.complete, "{}: {out:?}", scenario.name);
            }
            Err(found) => panic!("{}: {}\n{}", scenario.name, found.0, found.1),
        }
    }
    sum
}

#[test]
fn qed_holds_in_every_order_and_with_any_operation_failing() {
    let failing = hold_with_faults(
        &[
            "writer-and-flush",
            "copy-beside-reader",
            "close-in-flight",
            "first-write-fua",
            "unaligned-new-cluster",
            "second-table",
            "fua-and-flush",
        ],
        64,
    );
    all_hold(Format::Qed, BOUNDS, &failing);
}

#[test]
fn qcow2_holds_in_every_order_and_with_any_operation_failing() {
    let failing = hold_with_faults(
        &[
            "qcow2-writer-and-flush",
            "qcow2-shared-table",
            "qcow2-discard-and-flush",
            "qcow2-new-refcount-block-at-once",
            "qcow2-compressed-shared",
            "qcow2-lazy-fua-and-close",
            "qcow2-fua-and-flush",
            "qcow2-unaligned-new-cluster",
            "qcow2-copy-beside-reader",
            "qcow2-close-in-flight",
            "qcow2-second-cluster",
        ],
        16,
    );
    all_hold(Format::Qcow2, FEWER, &failing);
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
        if prepared.is_marked() {
            continue;
        }
        let mut world = prepared.world(scenario.session(as_is));
        world.look().unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
    }
}
