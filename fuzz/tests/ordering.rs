//! docs/ordering.md against the code.
//!
//! Checks: each switch stands in a row; each row names a switch, or says why there is none; each test that a
//! row names exists; each test of sabotage.rs stands in a row of its switch; each state in which something is
//! waited for has a row. And that each of these checks can fail.

use quod::State;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n")
}

/// A row of a table that has a column for switches.
#[derive(Debug)]
struct Row {
    name: String,
    switch: String,
    tests: String,
}

fn rows(page: &str) -> Vec<Row> {
    let (mut rows, mut columns) = (Vec::new(), None);
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let column = |name: &str| cells.iter().position(|cell| *cell == name);
        if !line.starts_with('|') {
            columns = None;
        } else if let (Some(switch), Some(tests)) = (column("switch"), column("test")) {
            columns = Some((switch, tests));
        } else if let (Some((switch, tests)), false) = (columns, cells[0].starts_with("---")) {
            let cell = |at: usize| cells.get(at).copied().unwrap_or_default().to_string();
            rows.push(Row { name: cell(0), switch: cell(switch), tests: cell(tests) });
        }
    }
    rows
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn rules() -> Vec<String> {
    let source = read(&root().join("states/src/rule.rs"));
    let lines = source.lines().map(str::trim).filter_map(|line| line.split_once(" = 1"));
    lines.map(|(name, _)| name.to_string()).collect()
}

/// Test and rule of each line of the tables in sabotage.rs.
fn sabotages() -> Vec<(String, String)> {
    let source = read(&root().join("fuzz/tests/sabotage.rs"));
    let line = |line: &str| {
        let (name, rest) = line.trim().strip_prefix("fn ")?.split_once("() ")?;
        let rule = rest.split(' ').next()?;
        rest.contains('"').then(|| (name.to_string(), rule.to_string()))
    };
    source.lines().filter_map(line).collect()
}

/// All names of functions in the tree.
fn functions() -> BTreeSet<String> {
    fn collect(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                collect(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = read(&path);
                let after_fn = source.split("fn ").skip(1);
                let name = |text: &str| text.split(['(', '<']).next().map(String::from);
                names.extend(after_fn.filter_map(name));
            }
        }
    }
    let mut names = BTreeSet::new();
    for folder in ["states", "backend", "driver", "fuzz", "bench"] {
        collect(&root().join(folder), &mut names);
    }
    names
}

/// What is wrong with the page.
fn wrong(page: &str) -> Vec<String> {
    let (rows, rules, names) = (rows(page), rules(), functions());
    let mut wrong = Vec::new();
    for rule in &rules {
        if !rows.iter().any(|row| quoted(&row.switch).any(|switch| switch == rule)) {
            wrong.push(format!("no row has the switch {rule}"));
        }
    }
    for row in &rows {
        let switches = quoted(&row.switch).filter(|switch| rules.iter().any(|rule| rule == switch)).count();
        let reason = row.switch.strip_prefix("none: ").is_some_and(|reason| reason.len() > 20);
        if switches == 0 && !reason {
            wrong.push(format!("{}: neither a switch nor a reason: {:?}", row.name, row.switch));
        }
        if quoted(&row.tests).next().is_none() {
            wrong.push(format!("{}: no test", row.name));
        }
        for test in quoted(&row.tests) {
            let exists = if test.contains('/') { root().join(test).exists() } else { names.contains(test) };
            if !exists {
                wrong.push(format!("{}: there is no {test}", row.name));
            }
        }
    }
    // names this long are those of tests
    for name in page.lines().flat_map(quoted).filter(|name| name.matches('_').count() > 3) {
        if !names.contains(name) {
            wrong.push(format!("there is no {name}"));
        }
    }
    for (test, rule) in sabotages() {
        let names = |row: &&Row| quoted(&row.switch).any(|switch| switch == rule);
        if !rows.iter().filter(names).any(|row| quoted(&row.tests).any(|name| name == test)) {
            wrong.push(format!("no row of {rule} names its test {test}"));
        }
    }
    for state in State::ALL.iter().filter(|state| !state.waits_for().trim().starts_with("waits for nothing"))
    {
        if !rows.iter().any(|row| quoted(&row.name).any(|name| name == state.name())) {
            wrong.push(format!("no row tells what {} waits for", state.name()));
        }
    }
    wrong
}

#[test]
fn the_page_of_ordering_is_true() {
    let page = read(&root().join("docs/ordering.md"));
    assert!(rows(&page).len() > 50 && rules().len() > 50 && sabotages().len() > 60);
    let wrong = wrong(&page);
    assert!(wrong.is_empty(), "docs/ordering.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_page_that_is_not_true_is_noticed() {
    let page = read(&root().join("docs/ordering.md"));
    for (what, instead, complaint) in [
        ("| `LinkLast` |", "| - |", "no row has the switch LinkLast"),
        ("| `LinkLast` |", "| `Nothing` |", "neither a switch nor a reason"),
        ("`a_cluster_is_linked_last`", "`no_such_test`", "there is no no_such_test"),
        ("`a_cluster_is_linked_last`", "", "no row of LinkLast names its test a_cluster_is_linked_last"),
        ("`driver/tests/qcow2_write.rs` |", "`driver/tests/qcow3.rs` |", "there is no driver/tests/qcow3.rs"),
        ("| `GrowFile` |", "| growth |", "no row tells what GrowFile waits for"),
    ] {
        assert!(page.contains(what), "{what}");
        let wrong = wrong(&page.replace(what, instead));
        assert!(wrong.iter().any(|line| line.contains(complaint)), "{complaint}: {wrong:?}");
    }
}
