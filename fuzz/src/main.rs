//! The proof's command line: `sim`, `explore`, `nth`, `target`, `corpus`, `replay`.
//!
//! Knows: arguments and how to print. Must never know: what is checked.

use quod::{Format, State};
use quod_bench::contract::Failure;
use quod_fuzz::explore::Failing;
use quod_fuzz::schedule::Schedule;
use quod_fuzz::world::{Tally, as_is};
use quod_fuzz::{explore, sim, targets};
use quod_states::acb::edges::{QCOW2_EDGES, QED_EDGES};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: quod-fuzz sim --seeds N [--from S]
       quod-fuzz explore [SCENARIO] [--states N] [--images N] [--faults 1]
       quod-fuzz nth
       quod-fuzz target NAME [--seeds N] [--from S]
       quod-fuzz target NAME FILE...
       quod-fuzz corpus NAME FOLDER
       quod-fuzz replay FILE
replay prints what a schedule does, with its verdict. target runs a fuzz target on seeds, or on files; what it
finds is made smaller and put into a file. corpus writes what a fuzzer may start from.";

/// Runs to make an input smaller.
const MINIMISE_TRIES: usize = 3000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["sim", rest @ ..] => simulate(rest),
        ["explore", rest @ ..] => explore_all(rest),
        ["nth"] => [Format::Qed, Format::Qcow2].into_iter().try_for_each(|format| {
            quod_fuzz::nth::run(format, as_is).map(|report| println!("{}: {report:?}", format.name()))
        }),
        ["target", name, rest @ ..] => target(name, rest),
        ["corpus", name, folder] => corpus(name, folder),
        ["replay", file] => replay(file),
        _ => Err(Failure(USAGE.into())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn option(args: &[&str], name: &str, default: u64) -> Result<u64, Failure> {
    let Some(at) = args.iter().position(|arg| *arg == name) else { return Ok(default) };
    let value = args.get(at + 1).and_then(|text| text.parse().ok());
    value.ok_or_else(|| Failure(format!("{name} needs a number\n{USAGE}")))
}

fn simulate(args: &[&str]) -> Result<(), Failure> {
    let (seeds, from) = (option(args, "--seeds", 1000)?, option(args, "--from", 0)?);
    let (started, mut tally) = (Instant::now(), Tally::default());
    std::panic::set_hook(Box::new(|_| {}));
    for seed in from..from + seeds {
        match sim::seed(seed, as_is) {
            Ok(report) => tally.add(&report.tally),
            Err(found) => {
                let (failure, schedule) = *found;
                println!("{}", sim::shrunk(&schedule, as_is, 3000));
                return Err(failure);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s: {:.0} seeds/s", seeds as f64 / seconds);
    print_tally(&tally);
    Ok(())
}

fn print_tally(tally: &Tally) {
    let Tally { done, failed, cancelled, operations, faults, .. } = tally;
    let Tally { crashes, volatile, clean_closes, repairs, .. } = tally;
    println!("requests: {done} done, {failed} failed, {cancelled} of those cancelled");
    println!("operations: {operations}, {faults} made to fail");
    println!(
        "power cuts: {crashes}, {volatile} volatile units; clean closes: {clean_closes}; repairs: {repairs}"
    );
    println!("timers: {}; poisoned sessions: {}", tally.timers, tally.poisoned);
    let name = |index: u8| State::ALL.get(usize::from(index)).map_or("?", |state| state.name());
    for (format, table) in [(Format::Qed, QED_EDGES), (Format::Qcow2, QCOW2_EDGES)] {
        println!("{}:", format.name());
        for ((_, from, to), count) in tally.edges.iter().filter(|((of, ..), _)| *of == format as u8) {
            println!("  {count:>12}  {} -> {}", name(*from), name(*to));
        }
        let missing = tally.missing(format, table);
        let missing: Vec<String> = missing.iter().map(|(from, to)| format!("{from:?} -> {to:?}")).collect();
        let missing = if missing.is_empty() { "none".into() } else { missing.join(", ") };
        println!("  not taken: {missing}");
    }
}

fn explore_all(args: &[&str]) -> Result<(), Failure> {
    let (states, images) = (option(args, "--states", 1_000_000)?, option(args, "--images", 1024)?);
    let failing = if option(args, "--faults", 0)? > 0 { Failing::One } else { Failing::Nothing };
    let bounds = explore::Bounds { states: states as usize, images: images as usize };
    let name = args.first().filter(|name| !name.starts_with("--"));
    std::panic::set_hook(Box::new(|_| {}));
    let columns = "states     runs   ends    images  recovered    within  sampled  seconds";
    println!("{:<32}{columns}", "scenario");
    for scenario in explore::scenario::all() {
        if name.is_some_and(|name| *name != scenario.name) {
            continue;
        }
        let started = Instant::now();
        let out = explore::explore(&scenario, failing, as_is, bounds).map_err(|found| {
            println!("{}", found.1);
            found.0
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let (name, more) = (scenario.name, if out.complete { "" } else { " (bounded)" });
        let explore::Explored { states, runs, ends, images, recovered, within, sampled, .. } = out;
        print!("{name:<30}{states:>8}{runs:>9}{ends:>7}{images:>10}{recovered:>11}");
        println!("{within:>10}{sampled:>9}{seconds:>9.1}{more}");
    }
    Ok(())
}

fn replay(file: &str) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure(format!("{file}: {error}")))?;
    let schedule = Schedule::parse(&text).map_err(|failure| Failure(format!("{file}: {failure}")))?;
    let (story, outcome) = quod_fuzz::replay::replay(&schedule);
    story.iter().for_each(|line| println!("{line}"));
    outcome.map(|()| println!("passes"))
}

/// Seeds, or files.
fn target(name: &str, args: &[&str]) -> Result<(), Failure> {
    let target = targets::find(name)?;
    if args.first().is_some_and(|arg| !arg.starts_with("--")) {
        return args.iter().try_for_each(|file| {
            let input = std::fs::read(file).map_err(|error| Failure(format!("{file}: {error}")))?;
            target.run(&input).map_err(|failure| Failure(format!("{file}: {failure}")))
        });
    }
    let (seeds, from) = (option(args, "--seeds", 1000)?, option(args, "--from", 0)?);
    let started = Instant::now();
    std::panic::set_hook(Box::new(|_| {}));
    for seed in from..from + seeds {
        let input = target.input(seed);
        if target.run(&input).is_err() {
            let small = target.minimise(&input, MINIMISE_TRIES);
            let failure = target.run(&small).err().unwrap_or_else(|| Failure("fails only once".into()));
            let file = format!("{name}-{seed}.input");
            std::fs::write(&file, &small).map_err(|error| Failure(format!("{file}: {error}")))?;
            let len = small.len();
            return Err(Failure(format!("{failure}\nseed {seed}: its {len} bytes are in {file}")));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{name}: {seeds} seeds in {seconds:.1} s: {:.0} seeds/s", seeds as f64 / seconds);
    Ok(())
}

/// Writes what to start from into a folder.
fn corpus(name: &str, folder: &str) -> Result<(), Failure> {
    let folder = std::path::Path::new(folder);
    let failed = |error: std::io::Error| Failure(format!("{}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    for (name, bytes) in targets::find(name)?.corpus() {
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        std::fs::write(folder.join(name), bytes).map_err(failed)?;
    }
    Ok(())
}
