//! `compare`: quod beside other programs and libraries on the same work, in one run; one table.
//!
//! Each engine is a process of its own. The engines take turns, A B C A B C, so that whatever the machine
//! does meanwhile meets all of them.
//!
//! Knows: the command line, the order of runs. Must never know: how an engine is called.

mod child;
mod engine;
mod feed;
mod image;
mod measure;
mod plot;
mod program;
mod runner;
mod setting;
mod table;
mod task;
mod versions;
mod workload;

use clap::Parser;
use engine::{Engine, Maker};
use program::qemu::MOVERS;
use runner::{Figures, How, Idle, Runner};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{Figure, Row, Section};
use workload::Workload;

/// quod beside other programs on the same work
#[derive(Parser, Debug)]
struct Args {
    /// Folder on the file system under test; `compare` is made in it, and removed at the end
    #[arg(long)]
    dir: PathBuf,
    /// Runs of each engine on each work; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only these works
    #[arg(long, value_delimiter = ',', value_name = "WORK")]
    only: Vec<String>,
    /// Only these engines: `quod`, or `quod:qcow2`
    #[arg(long, value_delimiter = ',', value_name = "ENGINE")]
    engines: Vec<String>,
    /// A tenth of the requests, one run: does everything work?
    #[arg(long)]
    quick: bool,
    /// Instructions in user space a request too, by callgrind
    #[arg(long)]
    instructions: bool,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots into this folder
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let done = match words.as_slice() {
        [_, word, task] if word == "child" => child::run(task).and_then(|told| say(&told)),
        _ => compare(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            note(&format!("compare: {what}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells a result.
fn say(text: &str) -> Result<(), String> {
    writeln!(io::stdout(), "{text}").map_err(|error| format!("standard output: {error}"))
}

/// Tells what is going on; whether anybody reads it does not matter.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The works and engines that are meant; a word that means nothing is an error.
fn chosen(args: &Args) -> Result<(Vec<Workload>, Vec<Engine>), String> {
    let works: Vec<Workload> = workload::all().collect();
    for word in &args.only {
        if !works.iter().any(|work| work.name == word) {
            let names: Vec<&str> = works.iter().map(|work| work.name).collect();
            return Err(format!("'{word}' is no work: {}", names.join(", ")));
        }
    }
    for word in &args.engines {
        if !engine::ALL.iter().any(|engine| engine.is_meant(word)) {
            let names: Vec<String> =
                engine::ALL.iter().map(|engine| engine.name().replace(' ', ":")).collect();
            return Err(format!("'{word}' is no engine: {}", names.join(", ")));
        }
    }
    let works = works
        .into_iter()
        .filter(|work| args.only.is_empty() || args.only.iter().any(|word| word == work.name));
    let works = works.map(|work| Workload {
        work: if args.quick { work.work.with_count((work.work.count() / 10).max(200)) } else { work.work },
        ..work
    });
    let engines = engine::ALL
        .into_iter()
        .filter(|engine| args.engines.is_empty() || args.engines.iter().any(|word| engine.is_meant(word)));
    Ok((works.collect(), engines.collect()))
}

fn compare(args: &Args) -> Result<(), String> {
    let (works, engines) = chosen(args)?;
    let folder = args.dir.join("compare");
    let images = image::Images::new(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let runner = Runner::new(images.clone(), &folder)?;
    let versions = versions::all();
    say(&format!(
        "{}\n",
        versions.iter().map(|line| format!("* {line}")).collect::<Vec<String>>().join("\n")
    ))?;
    let runs = if args.quick { 1 } else { args.runs };
    let mut sections = Vec::new();
    for workload in works {
        note(&format!("{}: {}", workload.name, workload.title));
        let section = measure_all(&runner, workload, &engines, runs, args.instructions);
        say(&section.markdown())?;
        sections.push(section);
    }
    say(&table::short(&sections, Figure::Speed))?;
    say(&table::short(&sections, Figure::Cpu))?;
    images.remove().map_err(|error| format!("{}: {error}", folder.display()))?;
    if let Some(path) = &args.json {
        let works: Vec<serde_json::Value> = sections.iter().map(Section::json).collect();
        let value = json!({ "versions": versions, "runs": runs, "works": works });
        std::fs::write(path, format!("{value:#}\n"))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    args.svg.as_deref().map_or(Ok(()), |folder| draw(folder, &sections))
}

/// One engine in the rounds of a work.
struct Entry {
    engine: Engine,
    /// Of qemu-img who moves bytes; of others one that means nothing.
    movers: Vec<&'static str>,
    idle: Idle,
    runs: Vec<Vec<Figures>>,
}

fn measure_all(runner: &Runner, workload: Workload, engines: &[Engine], runs: u32, grind: bool) -> Section {
    let mut missing = BTreeSet::new();
    let mut entries = Vec::new();
    for &engine in engines {
        match engine.does(&workload) {
            Ok(false) => {}
            Err(why) => {
                missing.insert(why.to_owned());
            }
            Ok(true) => {
                let how = How { engine, workload: &workload, mover: MOVERS[0], latency: false };
                match runner.idle(&how) {
                    Ok(idle) => {
                        let movers = if engine.maker == Maker::Qemu { MOVERS.to_vec() } else { vec![""] };
                        entries.push(Entry { engine, runs: vec![Vec::new(); movers.len()], movers, idle });
                    }
                    Err(why) => {
                        note(&format!("{}: {why}", engine.name()));
                        missing.insert(format!("{}, whose run failed", engine.name()));
                    }
                }
            }
        }
    }
    for round in 0..runs {
        for entry in &mut entries {
            // all of qemu-img's ways in the first round, then the one that was the best
            let best = best(&entry.runs);
            for (index, mover) in entry.movers.iter().enumerate() {
                if round > 0 && best != Some(index) {
                    continue;
                }
                let how = How { engine: entry.engine, workload: &workload, mover, latency: false };
                match runner.run(&how, &entry.idle) {
                    Ok(figures) => entry.runs[index].push(figures),
                    Err(why) => {
                        note(&format!("{} {mover}: {why}", entry.engine.name()));
                        missing.insert(format!("{} {mover}, whose run failed", entry.engine.name()));
                    }
                }
            }
        }
    }
    let rows = entries.iter().filter_map(|entry| row(runner, &workload, entry, grind)).collect();
    let notes: BTreeSet<&str> = entries.iter().filter_map(|entry| entry.engine.note(&workload)).collect();
    let notes = notes.into_iter().map(str::to_owned).collect();
    Section { workload, rows, missing: missing.into_iter().collect(), notes }
}

/// Which of the ways took the shortest time.
fn best(runs: &[Vec<Figures>]) -> Option<usize> {
    let shortest = |runs: &[Figures]| runs.iter().map(|run| run.seconds).min_by(f64::total_cmp);
    let ways = runs.iter().enumerate().filter_map(|(index, runs)| Some((index, shortest(runs)?)));
    ways.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
}

/// The row of an engine, with what takes runs of its own: percentiles and the hold, and instructions.
fn row(runner: &Runner, workload: &Workload, entry: &Entry, grind: bool) -> Option<Row> {
    let index = best(&entry.runs)?;
    let (engine, mover) = (entry.engine, entry.movers[index]);
    let mut row = Row::of(engine, workload, &entry.runs[index])?;
    row.mover = (engine.maker == Maker::Qemu).then(|| mover.to_owned());
    let how = How { engine, workload, mover, latency: true };
    if engine.maker != Maker::Qemu {
        let timed = runner.run(&how, &entry.idle).ok();
        (row.tail, row.hold) = timed.map_or((None, None), |figures| (figures.tail, figures.hold));
    }
    if grind {
        let counted = runner.instructions(&How { latency: false, ..how });
        row.instructions = counted.inspect_err(|why| note(&format!("{}: {why}", engine.name()))).ok();
    }
    Some(row)
}

/// A plot of speeds and one of processor time for each group of works.
fn draw(folder: &Path, sections: &[Section]) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for (name, works) in workload::GROUPS {
        let is_in = |section: &&Section| works.iter().any(|work| work.name == section.workload.name);
        let group: Vec<&Section> = sections.iter().filter(is_in).collect();
        for (end, figure) in [("", Figure::Speed), ("-cpu", Figure::Cpu)] {
            let path = folder.join(format!("{name}{end}.svg"));
            if !group.is_empty() {
                plot::draw(&path, &group, figure).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
    }
    Ok(())
}
