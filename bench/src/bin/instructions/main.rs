//! Instructions in user space of one request, by kind of path, counted by callgrind: each path is run twice,
//! with few and with many requests, and what the many cost more is theirs.
//!
//! ```text
//! instructions check bench/budgets    # more than 3 per cent over its budget: the path is named, exit code 1
//! instructions run ring read qcow2 20000    # one path, for a profiler
//! ```
//!
//! Knows: paths, valgrind's words. Must never know: what a path does (`core`, `ring`).

mod core;
mod fault;
mod ring;

use fault::Fault;
use std::io::Write;
use std::process::{Command, ExitCode};

/// Requests of the shorter run; the longer has eleven times as many.
const FEW: u64 = 1024;
/// Of a hundred of the budget: more is a failure.
const TOLERANCE: u64 = 3;

/// A path's budget: its line in the file.
struct Row {
    words: [String; 3],
    budget: u64,
}

fn rows(text: &str) -> Result<Vec<Row>, Fault> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(row).collect()
}

fn row(line: &str) -> Result<Row, Fault> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [place, work, format, budget] = words[..] else {
        return Err(format!("not a path and its budget: '{line}'").into());
    };
    let budget = budget.parse().map_err(|_| format!("not a number of instructions: '{line}'"))?;
    Ok(Row { words: [place, work, format].map(str::to_owned), budget })
}

/// What callgrind counts in a run of this very program.
fn counted(words: &[String; 3], count: u64) -> Result<u64, Fault> {
    let program = std::env::current_exe()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .arg("run")
        .args(words)
        .arg(count.to_string())
        .output()
        .map_err(|error| format!("valgrind is needed (apt install valgrind): {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let line = told.lines().find_map(|line| line.split("Collected :").nth(1));
    let total = line.and_then(|number| number.trim().parse().ok()).filter(|_| output.status.success());
    total.ok_or_else(|| format!("{} failed:\n{told}", words.join(" ")).into())
}

/// Instructions of one request.
fn cost(words: &[String; 3]) -> Result<u64, Fault> {
    let (few, many) = std::thread::scope(|scope| {
        let few = scope.spawn(|| counted(words, FEW).map_err(|fault| fault.to_string()));
        let many = counted(words, 11 * FEW);
        (few.join(), many)
    });
    let few = few.map_err(|_| "the shorter run has panicked")??;
    Ok(many?.saturating_sub(few) / (10 * FEW))
}

fn check(file: &str) -> Result<bool, Fault> {
    let mut good = true;
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    for Row { words, budget } in rows(&text)? {
        let cost = cost(&words)?;
        let over = cost * 100 > budget * (100 + TOLERANCE);
        good &= !over;
        let verdict = if over { ": OVER BUDGET" } else { "" };
        writeln!(std::io::stdout(), "{:<24} {cost:>6} of {budget}{verdict}", words.join(" "))?;
    }
    Ok(good)
}

fn run(place: &str, work: &str, format: &str, count: &str) -> Result<(), Fault> {
    let count = count.parse()?;
    match place {
        "core" => core::run(work, format, count),
        "ring" => ring::run(work, format, count),
        _ => Err(format!("no such place: {place}").into()),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check", file] => check(file),
        ["run", place, work, format, count] => run(place, work, format, count).map(|()| true),
        _ => Err("usage: instructions check FILE | run core|ring WORK FORMAT COUNT".into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            // there is nobody else to tell
            let _ = writeln!(std::io::stderr(), "instructions: {fault}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_budgets_is_read_and_its_faults_are_named() {
        let good = rows("# a comment\n\ncore read qed 500\n ring  write qcow2   1800 \n").unwrap();
        let words: Vec<String> = good.iter().map(|row| row.words.join(" ")).collect();
        assert_eq!(words, ["core read qed", "ring write qcow2"]);
        assert_eq!(good.iter().map(|row| row.budget).collect::<Vec<_>>(), [500, 1800]);
        for bad in ["core read 500", "core read qed many", "core read qed 5 6"] {
            let fault = rows(bad).err().map(|fault| fault.to_string());
            assert!(fault.is_some_and(|fault| fault.contains(bad)));
        }
    }

    #[test]
    fn each_path_of_the_budgets_does_what_it_says() {
        let text = include_str!("../../../budgets");
        let rows = rows(text).unwrap();
        assert!(rows.len() > 10);
        for Row { words: [place, work, format], .. } in rows {
            run(&place, &work, &format, "256")
                .unwrap_or_else(|fault| panic!("{place} {work} {format}: {fault}"));
        }
        assert!(run("ring", "nothing", "qed", "64").is_err() && run("core", "read", "raw", "64").is_err());
    }
}
