//! Keeps documents in step with the code they describe.
//!
//! Checks: docs/states.md is what the edge tables generate: a small diagram a family of states, all edges in
//! a table, none that is not in the format's; docs/ordering.md has a heading for each ordering rule of QED
//! and qcow2 and names each rule that a test can remove. And that these checks can fail.
//!
//! A stale docs/states.md is written anew by `UPDATE_DOCS=1 cargo test -p quod-states --test image docs`.

use quod_states::Format;
use quod_states::State::{self, *};
use quod_states::acb::edges::{Edges, QCOW2_EDGES, QED_EDGES, RAW_EDGES};
use std::fmt::Write;
use std::path::PathBuf;

const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p quod-states --test image docs";

const INTRODUCTION: &str = "\
Generated from the edge tables in `states/src/acb/edges.rs`; do not edit. A test compares this page with the
tables. To write it anew:

    UPDATE_DOCS=1 cargo test -p quod-states --test image docs

A control block (acb) carries one extent of one request. Its state says what it waits for. `set_state` and
`set_state_through` are its only assignments; debug builds check each one against the table of the image's
format. [architecture.md](architecture.md) tells the life of an allocating write in these terms.

Of each format first a diagram a family: a few states, and every edge among them, whichever request takes it.
Then the table of all edges. In the diagrams `[*]` is `Free`: the slot before and after its use.
";

/// States that a reader wants to see together, and the edges among them.
struct Family {
    name: &'static str,
    says: &'static str,
    /// The first is what makes the family: a format without it has no such diagram.
    states: &'static [State],
}

const FAMILIES: &[Family] = &[
    Family {
        name: "read",
        says: "A read goes on extent by extent: each is looked up, then read where it is. Where there \
               is no data, it is zeros.",
        states: &[ReadData, Free, FindCluster, ReadL2, ReadBacking, ReadCompressed, Done],
    },
    Family {
        name: "write in place",
        says: "The cluster is there. Sectors that the guest's bytes only partly cover are read first; a \
               FUA ends with a sync.",
        states: &[ReadModify, Free, FindCluster, WriteData, SyncData, Done],
    },
    Family {
        name: "allocating write",
        says: "Space for a table, space for the clusters and their counts, what surrounds the guest's \
               bytes, then all of it is written.",
        states: &[CopyOnWrite, FindCluster, AllocL2, GrowFile, AllocRefcount, ReadModify, WriteData, Done],
    },
    Family {
        name: "compressed write",
        says: "A cluster that holds nothing is compressed by the embedder, gets its place when those that \
               were asked for before have theirs, and is written.",
        states: &[Compress, Free, FindCluster, WaitTurn, AllocL2, GrowFile, AllocRefcount, WriteData, Done],
    },
    Family {
        name: "discard and write-zeroes",
        says: "Entries change in memory alone, in a table that nobody shares; what has to keep its \
               place is zeroed in the file.",
        states: &[ZeroData, Free, FindCluster, AllocL2, AllocRefcount, SyncData, Done],
    },
    Family {
        name: "flush",
        says: "A flush shows the phases of the round that it waits for.",
        states: &[SyncData, Free, ClearAutoclear, MarkDirty, UpdateL2, SyncTables, Done],
    },
    Family {
        name: "waits",
        says: "Whoever waited before it wrote anything looks its cluster up again.",
        states: &[
            WaitSector,
            FindCluster,
            ReadL2,
            WaitCluster,
            WaitSlot,
            GrowFile,
            AllocL2,
            AllocRefcount,
            ClearAutoclear,
        ],
    },
    Family {
        name: "job",
        says: "A close, or another size of the disk: alone if it has to be, then range by range, durable \
               before it is answered.",
        states: &[WaitRequests, Free, ClearAutoclear, FindCluster, SyncData, SyncTables, Resize, Done],
    },
    Family {
        name: "snapshot",
        says: "What the image has in memory is written first; then the list and what it counts, beside the \
               image, and one write of the header makes them the image's.",
        states: &[Snapshot, SyncData, SyncTables, Done],
    },
];

/// More edges than this nobody can read.
const DRAWN: usize = 25;

const FORMATS: [(Format, Edges); 3] =
    [(Format::Qed, QED_EDGES), (Format::Raw, RAW_EDGES), (Format::Qcow2, QCOW2_EDGES)];

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

fn diagram(format: Format, edges: Edges, family: &Family) -> String {
    let inside = |state: &State| family.states.contains(state);
    if !edges.iter().any(|edge| edge.0 == family.states[0]) {
        return String::new();
    }
    let (name, says) = (family.name, family.says);
    let mut text = format!("\n### {}: {name}\n\n{says}\n\n```mermaid\nstateDiagram-v2\n", format.name());
    for (from, to) in edges.iter().filter(|edge| inside(&edge.0) && inside(&edge.1)) {
        writeln!(text, "    {} --> {}", node(*from), node(*to)).unwrap();
    }
    text + "```\n"
}

fn section(format: Format, edges: Edges) -> String {
    let mut text = format!("\n## {}\n", format.name());
    for family in FAMILIES {
        text += &diagram(format, edges, family);
    }
    write!(text, "\n### {}: all edges\n\n| state | waits for | next |\n| --- | --- | --- |\n", format.name())
        .unwrap();
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
    for (format, edges) in FORMATS {
        text += &section(format, edges);
    }
    text
}

type Edge<'a> = (&'a str, &'a str);

/// Of one part of the page: what its diagram draws, and what its table says.
fn drawn_and_told(part: &str) -> (Vec<Edge<'_>>, Vec<Edge<'_>>) {
    let state = |node| if node == "[*]" { "Free" } else { node };
    let drawn = part.lines().filter_map(|line| line.trim().split_once(" --> "));
    let told = part.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let (from, next) = (cells.next()?.trim_matches('`'), cells.nth(1)?);
        Some(next.split(", ").map(move |to| (from, to)))
    });
    (drawn.map(|(from, to)| (state(from), state(to))).collect(), told.flatten().collect())
}

/// What is wrong with a page of states.
fn wrong(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (format, edges) in FORMATS {
        let name = format.name();
        let section = page.split("\n## ").find(|section| section.lines().next() == Some(name)).unwrap_or("");
        let edges: Vec<Edge> = edges.iter().map(|edge| (edge.0.name(), edge.1.name())).collect();
        let (all_drawn, told) = drawn_and_told(section);
        for part in section.split("\n### ").skip(1) {
            let (title, drawn) = (part.lines().next().unwrap_or(""), drawn_and_told(part).0);
            if drawn.len() > DRAWN {
                wrong.push(format!("{title}: {} edges, which nobody can read", drawn.len()));
            }
            let strange = drawn.iter().filter(|edge| !edges.contains(edge));
            wrong.extend(strange.map(|edge| format!("{title}: draws {edge:?}, which is no edge")));
        }
        for edge in &edges {
            if !told.contains(edge) {
                wrong.push(format!("{name}: the table lacks {edge:?}"));
            }
            for state in [edge.0, edge.1] {
                if !all_drawn.iter().any(|drawn| drawn.0 == state || drawn.1 == state) {
                    wrong.push(format!("{name}: {state} is in no family"));
                }
            }
            if !all_drawn.contains(edge) {
                wrong.push(format!("{name}: no diagram has {edge:?}"));
            }
        }
        let strange = told.iter().filter(|edge| !edges.contains(edge));
        wrong.extend(strange.map(|edge| format!("{name}: the table has {edge:?}, which is no edge")));
    }
    wrong
}

#[test]
fn tables_and_diagrams_have_the_edges_of_their_format() {
    let wrong = wrong(&generate());
    assert!(wrong.is_empty(), "docs/states.md:\n{}", wrong.join("\n"));
    let families = generate().lines().filter(|line| line.starts_with("### ")).count();
    assert!(families > 2 * FAMILIES.len(), "the diagrams were not found");
}

#[test]
fn a_page_with_other_edges_is_noticed() {
    let page = generate();
    let many = "    ReadL2 --> FindCluster\n".repeat(DRAWN);
    for (what, instead, complaint) in [
        ("| WriteData, Done |", "| Done |", "qed: the table lacks (\"CopyOnWrite\", \"WriteData\")"),
        (
            "| WriteData, Done |",
            "| WriteData, ReadL2 |",
            "the table has (\"CopyOnWrite\", \"ReadL2\"), which",
        ),
        ("--> ReadBacking\n", "--> ReadModify\n    ReadL2 --> ReadBacking\n", "which is no edge"),
        ("    WaitSlot --> FindCluster\n", "", "no diagram has (\"WaitSlot\", \"FindCluster\")"),
        ("    ReadL2 --> FindCluster\n", many.as_str(), "which nobody can read"),
        ("WaitSlot\n", "WaitCluster\n", "qed: no diagram has (\"FindCluster\", \"WaitSlot\")"),
    ] {
        assert!(page.contains(what), "{what}");
        let wrong = wrong(&page.replace(what, instead));
        assert!(wrong.iter().any(|line| line.contains(complaint)), "{complaint}: {wrong:?}");
    }
    let without: String = page.split_inclusive('\n').filter(|line| !line.contains("WaitSlot")).collect();
    assert!(wrong(&without).iter().any(|line| line == "qed: WaitSlot is in no family"));
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
    for (_, edges) in FORMATS {
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
    lines.filter(|line| line.contains(" = 1")).filter_map(|line| line.split(' ').next()).collect()
}

/// Labels of the rules: QED's, then qcow2's.
fn labels() -> impl Iterator<Item = String> {
    let qcow2 = (1..=6).chain(9..=15).chain(17..=20);
    (1..=12).map(|number| format!("QE{number}")).chain(qcow2.map(|number| format!("QC{number}")))
}

/// Rules without a heading, and switches that no rule names.
fn untold(page: &str) -> Vec<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix("### ")?.split_once(": "));
    let told: Vec<&str> = headings.flat_map(|(labels, _)| labels.split(", ")).collect();
    let named = |rule: &str| {
        let items = page.split("\n* **Switch:** ").skip(1).filter_map(|item| item.split("\n* **").next());
        items.into_iter().any(|item| item.contains(&format!("`{rule}`")))
    };
    let rules = variants(include_str!("../../src/rule.rs"), "Rule");
    assert!(rules.len() >= 6, "the variants of Rule were not found");
    let mut untold: Vec<String> = labels().filter(|label| !told.contains(&label.as_str())).collect();
    untold.extend(rules.into_iter().filter(|rule| !named(rule)).map(String::from));
    untold
}

#[test]
fn every_ordering_rule_has_its_heading() {
    let page = read("ordering.md");
    assert_eq!(untold(&page), [""; 0], "docs/ordering.md has no heading, or no switch, for them");
    assert_eq!(untold(&page.replace("### QE7: ", "### QE70: ")), ["QE7"]);
    assert_eq!(untold(&page.replace("### QC14, QC15: ", "### QC14: ")), ["QC15"]);
    assert_eq!(untold(&page.replace("* **Switch:** `LinkLast`\n", "* **Switch:** `Other`\n")), ["LinkLast"]);
}
