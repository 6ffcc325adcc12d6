//! Keeps documents in step with the code they describe.
//!
//! Checks: docs/states.md is what the edge tables generate; docs/ordering.md has a row for each ordering rule
//! of QED and names each rule that a test can remove.
//!
//! A stale docs/states.md is written anew by `UPDATE_DOCS=1 cargo test -p quod-states --test image docs`.

use quod_states::acb::edges::{Edges, QCOW2_EDGES, QED_EDGES, RAW_EDGES};
use quod_states::{Format, State};
use std::fmt::Write;
use std::path::PathBuf;

const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p quod-states --test image docs";

const INTRODUCTION: &str = "\
Generated from the edge tables in `states/src/acb/edges.rs`; do not edit. A test compares this page with the
tables. To write it anew:

    UPDATE_DOCS=1 cargo test -p quod-states --test image docs

A control block (acb) carries one extent of one request. Its state says what it waits for. `set_state` and
`set_state_through` are its only assignments; debug builds check each one against the table of the image's
format. In the
diagrams `[*]` is `Free`: the slot before and after its use. [architecture.md](architecture.md) tells the life
of an allocating write in these terms.
";

fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

fn read(name: &str) -> String {
    // a checkout may have changed the ends of lines
    std::fs::read_to_string(document(name)).unwrap_or_default().replace("\r\n", "\n")
}

fn node(state: State) -> &'static str {
    if state == State::Free { "[*]" } else { state.name() }
}

fn successors(edges: Edges, from: State) -> Vec<State> {
    edges.iter().filter(|edge| edge.0 == from).map(|edge| edge.1).collect()
}

fn section(format: Format, edges: Edges) -> String {
    let mut text = format!("\n## {}\n\n```mermaid\nstateDiagram-v2\n", format.name());
    for (from, to) in edges {
        writeln!(text, "    {} --> {}", node(*from), node(*to)).unwrap();
    }
    text += "```\n\n| state | waits for | next |\n| --- | --- | --- |\n";
    for state in State::ALL {
        let next: Vec<&str> = successors(edges, *state).into_iter().map(State::name).collect();
        if next.is_empty() {
            continue;
        }
        let waits_for = state.waits_for().trim();
        let what = waits_for.strip_prefix("waits for ").unwrap_or(waits_for);
        writeln!(text, "| `{}` | {what} | {} |", state.name(), next.join(", ")).unwrap();
    }
    text
}

fn generate() -> String {
    let mut text = format!("# States\n\n{INTRODUCTION}");
    for (format, edges) in [(Format::Qed, QED_EDGES), (Format::Raw, RAW_EDGES), (Format::Qcow2, QCOW2_EDGES)]
    {
        text += &section(format, edges);
    }
    text
}

#[test]
fn the_page_of_states_is_generated_from_the_edge_tables() {
    let wanted = generate();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(document("states.md"), &wanted).expect("docs/ can be written");
    }
    let found = read("states.md");
    let differs = wanted.lines().zip(found.lines()).position(|(wanted, found)| wanted != found);
    let line = differs.unwrap_or_else(|| wanted.lines().count().min(found.lines().count())) + 1;
    assert!(wanted == found, "docs/states.md is stale at line {line}; update it with: {UPDATE}");
}

#[test]
fn the_page_has_every_edge_table() {
    let tables = include_str!("../../src/acb/edges.rs").matches("_EDGES: Edges =").count();
    let sections = generate().lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(tables, sections, "an edge table without a section: add it to `generate`");
}

#[test]
fn a_change_of_an_edge_changes_the_page() {
    let without_last = &QED_EDGES[..QED_EDGES.len() - 1];
    assert_ne!(section(Format::Qed, QED_EDGES), section(Format::Qed, without_last));
}

/// Every state of a format can be reached from `Free`, and `Free` from every state.
#[test]
fn every_state_of_a_format_leads_from_free_to_free() {
    for edges in [QED_EDGES, RAW_EDGES, QCOW2_EDGES] {
        for state in State::ALL {
            let enters = edges.iter().any(|edge| edge.1 == *state);
            let leaves = edges.iter().any(|edge| edge.0 == *state);
            assert_eq!(enters, leaves, "{state:?} is a dead end, or nothing leads to it");
            assert_eq!(enters, reaches(edges, State::Free, *state), "{state:?} cannot be reached");
            assert_eq!(enters, reaches(edges, *state, State::Free), "nothing leads out of {state:?}");
        }
    }
}

/// By one edge at least.
fn reaches(edges: Edges, from: State, to: State) -> bool {
    let (mut seen, mut next) = (Vec::new(), successors(edges, from));
    while let Some(state) = next.pop() {
        if state == to {
            return true;
        }
        if !seen.contains(&state) {
            seen.push(state);
            next.extend(successors(edges, state));
        }
    }
    false
}

/// The variants of an enum, from its source: the compiler does not list them.
fn variants<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let body = source.split_once(&format!("pub enum {name} {{")).and_then(|(_, rest)| rest.split_once("\n}"));
    let lines = body.map_or("", |(body, _)| body).lines().map(str::trim);
    lines.filter(|line| line.contains(" = ")).filter_map(|line| line.split(' ').next()).collect()
}

#[test]
fn every_ordering_rule_has_its_row() {
    let text = read("ordering.md");
    let has_row = |label: &str| text.lines().any(|line| line.starts_with(&format!("| {label} |")));
    for number in 1..=12 {
        assert!(has_row(&format!("QE{number}")), "docs/ordering.md has no row for QE{number}");
    }
    let rules = variants(include_str!("../../src/rule.rs"), "Rule");
    assert!(rules.len() >= 6, "the variants of Rule were not found");
    for rule in rules {
        let in_row = text.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{rule}`")));
        assert!(in_row, "docs/ordering.md does not say which test misses the rule {rule}");
    }
}
