//! `growth`: how the cost of a read grows with the image, the depth, the disks of a driver and the chain.
//!
//! Each point is a process of its own; the points take turns, run after run, so that whatever the machine
//! does meanwhile meets all of them.
//!
//! Knows: the command line, the order of runs. Must never know: what a point does.

mod axis;
mod child;
mod make;
mod measured;
mod plot;
mod task;

use axis::{Axis, Outcome};
use clap::Parser;
use make::Images;
use measured::Measured;
use serde_json::json;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// How the cost of quod's reads grows
#[derive(Parser, Debug)]
struct Args {
    /// Folder on the file system under test; `growth` is made in it, and removed at the end
    #[arg(long)]
    dir: PathBuf,
    /// Runs of each point; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// 4 KiB reads of each run
    #[arg(long, default_value_t = 200_000)]
    count: u64,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the plots into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let done = match words.as_slice() {
        [_, word, task] if word == "child" => child::run(task).and_then(|told| say(&told)),
        _ => growth(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            let _ = writeln!(io::stderr(), "growth: {what}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<(), String> {
    writeln!(io::stdout(), "{text}").map_err(|error| format!("standard output: {error}"))
}

fn growth(args: &Args) -> Result<(), String> {
    let images = Images::new(&args.dir.join("growth"))?;
    let mut all: Vec<Measured> = Vec::new();
    for point in axis::points() {
        let _ = writeln!(io::stderr(), "{}: {} {}", point.axis.name(), point.at, point.format.name());
        images.prepare(&point)?;
        all.push(Measured { point, runs: Vec::new() });
    }
    for run in 1..=args.runs {
        let _ = writeln!(io::stderr(), "run {run} of {}", args.runs);
        for measured in &mut all {
            let task = images.task(&measured.point, args.count);
            measured.runs.push(run_child(&task)?);
        }
    }
    for axis in Axis::ALL {
        say(&table(axis, &all))?;
    }
    if let Some(path) = &args.json {
        let rows: Vec<_> = all.iter().map(row).collect();
        let text = serde_json::to_string_pretty(&json!({ "points": rows })).map_err(|e| e.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match &args.svg {
        Some(path) => plot::draw(path, &all).map_err(|error| format!("{}: {error}", path.display())),
        None => Ok(()),
    }
}

fn run_child(task: &str) -> Result<Outcome, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(own).args(["child", task]).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn row(measured: &Measured) -> serde_json::Value {
    let point = &measured.point;
    json!({
        "axis": point.axis.name(),
        "at": point.at,
        "format": point.format.name(),
        "runs": measured.runs,
    })
}

/// A line a point: thousands of reads a second, processor time of one, memory of a disk.
fn table(axis: Axis, all: &[Measured]) -> String {
    let title = axis.title();
    let mut text = format!("\n| {title} | format | 1000 reads/s | us of processor time | KiB a disk |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for measured in all.iter().filter(|measured| measured.point.axis == axis) {
        let (low, median, high) = measured.spread(|run| run.iops / 1e3);
        let (least, cpu, most) = measured.spread(|run| run.cpu_us);
        let (_, open, _) = measured.spread(|run| run.open_kib);
        let (_, read, _) = measured.spread(|run| run.read_kib);
        // of one disk there is nothing to tell it from what the driver takes
        let open =
            if axis == Axis::Disks && measured.point.at > 1 { format!("{open:.0}, ") } else { String::new() };
        let at = axis.label(measured.point.at);
        let format = measured.point.format.name();
        text.push_str(&format!("| {at} | {format} | {median:.0} ({low:.0}-{high:.0}) | "));
        text.push_str(&format!("{cpu:.2} ({least:.2}-{most:.2}) | {open}{read:.0} |\n"));
    }
    text
}
