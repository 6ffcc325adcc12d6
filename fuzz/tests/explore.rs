//! The exhaustive explorer in the test run.
//!
//! Checks: every scenario holds in every order and for all crash images up to the bound, and so it does when
//! any one operation fails, once or with all that follow; no scenario is cut short that could end; a schedule
//! replays; the tables of docs/proof.md are what came out (`UPDATE_DOCS=1` writes them anew).

use quod::Format;
use quod_fuzz::explore::scenario::Scenario;
use quod_fuzz::explore::{Bounds, Explored, Failing, explore, replay, scenario};
use quod_fuzz::schedule::Schedule;
use quod_fuzz::world::{Ask, as_is};
use quod_states::State;
use quod_states::acb::edges::{Edges, QCOW2_EDGES, QED_EDGES};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const BOUNDS: Bounds = Bounds { states: 200_000, images: 256 };
/// Of qcow2, whose scenarios are many.
const FEWER: Bounds = Bounds { states: 100_000, images: 32 };
/// Of snapshots, whose jobs write many clusters at once, and of qcow2 images that are made empty, which give
/// many back at once: bounded, most are explored to their end.
const SOME: Bounds = Bounds { states: 10_000, images: 16 };
/// With an operation that fails: `quod-fuzz explore --faults 1` goes further.
const FAILING: Bounds = Bounds { states: 30_000, images: 16 };

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

/// It is about making, applying or deleting a snapshot: a test of its own.
fn is_of_snapshots(scenario: &Scenario) -> bool {
    scenario.asks.iter().any(|ask| ask.is_snapshot())
}

/// It is about bitmaps: another one.
fn is_of_bitmaps(scenario: &Scenario) -> bool {
    scenario.warm.iter().chain(&scenario.asks).any(|ask| ask.is_edit() && !ask.is_snapshot())
}

/// How many edges were taken; none is left. Those of work on a snapshot are another test's.
fn edges_taken(edges: Edges, taken: &Explored, failing: &Explored) -> String {
    let edges: Vec<(State, State)> =
        edges.iter().copied().filter(|(from, to)| ![*from, *to].contains(&State::Snapshot)).collect();
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
    sum.within += out.within;
    for state in 0..State::COUNT {
        sum.edges[state] |= out.edges[state];
    }
}

/// A scenario in every order.
fn holds(scenario: &Scenario, failing: Failing, bounds: Bounds) -> Explored {
    match explore(scenario, failing, as_is, bounds) {
        Ok(out) => out,
        Err(found) => panic!("{}: {}\n{}", scenario.name, found.0, found.1),
    }
}

/// A row of the table: the scenario in every order, and with any operation failing.
fn row(scenario: &Scenario, bounds: [Bounds; 2]) -> (String, [Explored; 2]) {
    // so many reads that the cache has no room for all complete in too many orders
    let room = scenario.name == "qcow2-no-room" || scenario.name.ends_with("in-a-full-cache");
    let gives_back = scenario.name.starts_with("qcow2-") && scenario.asks.contains(&Ask::Empty);
    let (name, started) = (scenario.name, Instant::now());
    let mut row = format!("| {name} |");
    let outs = [Failing::Nothing, Failing::One].map(|failing| {
        let bounds = bounds[failing as usize];
        let bounds = match () {
            () if room => Bounds { states: 500, ..bounds },
            () if gives_back => SOME,
            () => bounds,
        };
        let out = holds(scenario, failing, bounds);
        assert!(out.states > 3 && out.ends > 0, "{name}: {out:?}");
        assert!(out.complete || room || failing == Failing::One, "{name} is cut short: {out:?}");
        let Explored { states, ends, images, recovered, .. } = out;
        let cut = if out.complete { "" } else { " (bounded)" };
        write!(row, " {states}{cut} | {ends} | {images} | {recovered} |").unwrap();
        out
    });
    println!("{name} {:.1} s", started.elapsed().as_secs_f64());
    (row, outs)
}

/// Every scenario of a format, on two threads.
fn all_hold(format: Format, bounds: [Bounds; 2]) {
    let own = |scenario: &Scenario| is_of_snapshots(scenario) || is_of_bitmaps(scenario);
    let mine = |scenario: &Scenario| scenario.format() == format && !own(scenario);
    let scenarios: Vec<Scenario> = scenario::all().into_iter().filter(mine).collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let at = next.fetch_add(1, Relaxed)
            && let Some(scenario) = scenarios.get(at)
        {
            rows.lock().unwrap().insert(at, row(scenario, bounds));
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let mut table = String::from("| scenario | states | ends | crash images | different ones ");
    table += "| states with a failure | ends | crash images | different ones |\n";
    table += "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    let (mut plain, mut failed) = (Explored::default(), Explored::default());
    for (row, outs) in rows.into_inner().unwrap().values() {
        table += row;
        table.push('\n');
        unite(&mut plain, &outs[0]);
        unite(&mut failed, &outs[1]);
    }
    let edges = if format == Format::Qed { QED_EDGES } else { QCOW2_EDGES };
    table += &edges_taken(edges, &plain, &failed);
    assert!(plain.within > 0, "no opening writes");
    let cuts = "images that power cuts within the openings of those leave";
    writeln!(table, "\nOpened too: {} {cuts}; with a failing operation {}.", plain.within, failed.within)
        .unwrap();
    assert_page(&format!("{format:?} scenarios"), &table);
}

#[test]
fn qed_holds_in_every_order_and_with_any_operation_failing() {
    all_hold(Format::Qed, [BOUNDS, FAILING]);
}

#[test]
fn qcow2_holds_in_every_order_and_with_any_operation_failing() {
    all_hold(Format::Qcow2, [FEWER, FAILING]);
}

#[test]
fn snapshots_hold_in_every_order_and_with_any_operation_failing() {
    let mut taken = Explored::default();
    let scenarios: Vec<Scenario> = scenario::all().into_iter().filter(is_of_snapshots).collect();
    assert!(scenarios.len() > 12, "{}", scenarios.len());
    for scenario in &scenarios {
        let outs = [Failing::Nothing, Failing::One].map(|failing| holds(scenario, failing, SOME));
        assert!(outs.iter().all(|out| out.states > 3 && out.ends > 0), "{}: {outs:?}", scenario.name);
        unite(&mut taken, &outs[0]);
    }
    let own = QCOW2_EDGES.iter().filter(|(from, to)| [*from, *to].contains(&State::Snapshot));
    let left: Vec<_> = own.filter(|edge| !taken.took(**edge)).collect();
    assert!(left.is_empty(), "no scenario takes {left:?}");
}

#[test]
fn bitmaps_hold_in_every_order_and_with_any_operation_failing() {
    let scenarios: Vec<Scenario> = scenario::all().into_iter().filter(is_of_bitmaps).collect();
    assert!(scenarios.len() > 10, "{}", scenarios.len());
    for scenario in &scenarios {
        let outs = [Failing::Nothing, Failing::One].map(|failing| holds(scenario, failing, SOME));
        assert!(outs.iter().all(|out| out.states > 3 && out.ends > 0), "{}: {outs:?}", scenario.name);
    }
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
    // the last alternative: the operation fails, and all that follow
    let choices = vec![u32::MAX, 0, 0];
    let failing = Schedule { run: "explore writer-and-flush failing".into(), choices, ..Schedule::default() };
    let (story, outcome) = replay(&failing, as_is);
    outcome.unwrap();
    assert!(story.iter().any(|line| line.contains("ended: Err")), "{story:?}");
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
