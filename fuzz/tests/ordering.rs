//! docs/ordering.md against the code.
//!
//! Checks: each switch stands in a rule; each rule has all its items, and names a switch, or says why
//! there is none; each test that a rule names exists; each file that it names exists, and holds what
//! the rule says is there; each test of sabotage.rs stands in a rule of its switch; each state in which
//! something is waited for has a rule; no line is wider than a screen. And that each of these checks
//! can fail.

use quod::State;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The labels of a rule's items, in their order; where there are several, the section decides.
const ITEMS: [&[&str]; 5] = [
    &["Rule", "Of what, until when"],
    &["Why a power cut is harmless", "Why", "What goes wrong without"],
    &["Where"],
    &["Switch"],
    &["Test"],
];
const WIDTH: usize = 140;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().replace("\r\n", "\n")
}

/// A heading of the third level, and the items below it.
#[derive(Debug)]
struct Rule {
    name: String,
    /// Label and text.
    items: Vec<(String, String)>,
}

impl Rule {
    fn text(&self, label: &str) -> &str {
        self.items.iter().find(|item| item.0 == label).map_or("", |item| &item.1)
    }

    fn places(&self) -> &str {
        self.text("Where")
    }

    fn switch(&self) -> &str {
        self.text("Switch")
    }

    fn tests(&self) -> &str {
        self.text("Test")
    }

    fn is_whole(&self) -> bool {
        let fits = |(item, labels): (&(String, String), &&[&str])| {
            labels.contains(&item.0.as_str()) && !item.1.is_empty()
        };
        self.items.len() == ITEMS.len() && self.items.iter().zip(&ITEMS).all(fits)
    }
}

fn rules_of(page: &str) -> Vec<Rule> {
    let (mut found, mut inside) = (Vec::<Rule>::new(), false);
    for line in page.lines() {
        if line.starts_with('#') {
            inside = false;
            if let Some(name) = line.strip_prefix("### ") {
                found.push(Rule { name: name.to_string(), items: Vec::new() });
                inside = true;
            }
        }
        let Some(rule) = found.last_mut().filter(|_| inside) else { continue };
        if let Some((label, text)) = line.strip_prefix("* **").and_then(|item| item.split_once(":**")) {
            rule.items.push((label.to_string(), text.trim().to_string()));
        } else if let (Some(more), Some(item)) = (line.strip_prefix("  "), rule.items.last_mut()) {
            item.1 = format!("{} {}", item.1, more.trim());
        }
    }
    found
}

/// What stands in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn switches() -> Vec<String> {
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

/// Path and text of each source in the tree.
type Sources = Vec<(String, String)>;

fn sources() -> Sources {
    fn collect(folder: &Path, sources: &mut Sources) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                collect(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = read(&path);
                sources.push((path.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    let mut sources = Vec::new();
    for folder in ["states", "backend", "driver", "fuzz", "bench"] {
        collect(&root().join(folder), &mut sources);
    }
    sources
}

/// All names of functions in the tree.
fn functions(sources: &Sources) -> BTreeSet<String> {
    let after_fn = sources.iter().flat_map(|(_, text)| text.split("fn ").skip(1));
    after_fn.filter_map(|text| text.split(['(', '<']).next().map(String::from)).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// What "Where" names that is not there: a file is meant by the end of its path, and the words behind it
/// stand in one of the files before them.
fn missing(places: &str, sources: &Sources) -> Vec<String> {
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    for place in quoted(places) {
        if place.ends_with(".rs") {
            let end = format!("/{place}");
            let named: Vec<_> = sources.iter().filter(|(path, _)| path.ends_with(&end)).collect();
            if named.is_empty() {
                missing.push(place.to_string());
            }
            files.extend(named);
            continue;
        }
        let holds = |word: &str| files.iter().any(|(_, text)| words(text).any(|found| found == word));
        missing.extend(words(place).filter(|word| !holds(word)).map(String::from));
    }
    if files.is_empty() && missing.is_empty() && !places.starts_with("as Q") {
        missing.push("a file".to_string());
    }
    missing
}

/// What is wrong with the rule itself.
fn wrong_rule(rule: &Rule, switches: &[String], names: &BTreeSet<String>, sources: &Sources) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = &rule.name;
    if !rule.is_whole() {
        let labels: Vec<_> = rule.items.iter().map(|item| &item.0).collect();
        wrong.push(format!("{name}: its items are {labels:?}"));
    }
    let known = quoted(rule.switch()).any(|switch| switches.iter().any(|known| known == switch));
    let reason = rule.switch().strip_prefix("none: ").is_some_and(|reason| reason.len() > 20);
    if !known && !reason {
        wrong.push(format!("{name}: neither a switch nor a reason: {:?}", rule.switch()));
    }
    if quoted(rule.tests()).next().is_none() {
        wrong.push(format!("{name}: no test"));
    }
    for test in quoted(rule.tests()) {
        let exists = if test.contains('/') { root().join(test).exists() } else { names.contains(test) };
        if !exists {
            wrong.push(format!("{name}: there is no {test}"));
        }
    }
    wrong.extend(missing(rule.places(), sources).iter().map(|place| format!("{name}: where is {place}?")));
    wrong
}

/// What is wrong with the page.
fn wrong(page: &str, sources: &Sources) -> Vec<String> {
    let (rules, switches, names) = (rules_of(page), switches(), functions(sources));
    let mut wrong = Vec::new();
    for switch in &switches {
        if !rules.iter().any(|rule| quoted(rule.switch()).any(|named| named == switch)) {
            wrong.push(format!("no rule has the switch {switch}"));
        }
    }
    for rule in &rules {
        wrong.extend(wrong_rule(rule, &switches, &names, sources));
    }
    // names this long are those of tests
    for name in page.lines().flat_map(quoted).filter(|name| name.matches('_').count() > 3) {
        if !names.contains(name) {
            wrong.push(format!("there is no {name}"));
        }
    }
    for (test, switch) in sabotages() {
        let of_switch = |rule: &&Rule| quoted(rule.switch()).any(|named| named == switch);
        if !rules.iter().filter(of_switch).any(|rule| quoted(rule.tests()).any(|name| name == test)) {
            wrong.push(format!("no rule of {switch} names its test {test}"));
        }
    }
    for state in State::ALL.iter().filter(|state| !state.waits_for().trim().starts_with("waits for nothing"))
    {
        if !rules.iter().any(|rule| quoted(&rule.name).any(|name| name == state.name())) {
            wrong.push(format!("no rule tells what {} waits for", state.name()));
        }
    }
    for line in page.lines().filter(|line| line.chars().count() > WIDTH) {
        wrong.push(format!("a line is too wide: {line}"));
    }
    wrong
}

#[test]
fn the_page_of_ordering_is_true() {
    let page = read(&root().join("docs/ordering.md"));
    assert!(rules_of(&page).len() > 50 && switches().len() > 50 && sabotages().len() > 60);
    let wrong = wrong(&page, &sources());
    assert!(wrong.is_empty(), "docs/ordering.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_page_that_is_not_true_is_noticed() {
    let (page, sources) = (read(&root().join("docs/ordering.md")), sources());
    for (what, instead, complaint) in [
        ("* **Switch:** `LinkLast`\n", "* **Switch:** -\n", "no rule has the switch LinkLast"),
        ("* **Switch:** `LinkLast`\n", "* **Switch:** `Nothing`\n", "neither a switch nor a reason"),
        ("* **Switch:** `LinkLast`\n", "", "its items are"),
        ("### link last", "## link last", "no rule has the switch LinkLast"),
        ("* **Test:** `who_was_woken_looks_again`; `states/tests/random/qed.rs`", "* **Test:** -", "no test"),
        ("`a_cluster_is_linked_last`", "`no_such_test`", "there is no no_such_test"),
        ("`a_cluster_is_linked_last`", "", "no rule of LinkLast names its test a_cluster_is_linked_last"),
        ("`driver/tests/qcow2_write.rs`", "`driver/tests/qcow3.rs`", "there is no driver/tests/qcow3.rs"),
        ("* **Where:** `find.rs`:", "* **Where:** `nowhere.rs`:", "where is nowhere.rs?"),
        ("`Append::new`", "`Space::no_such_function`", "where is no_such_function?"),
        ("* **Where:** `qcow2/check/beyond.rs`", "* **Where:** somewhere", "where is a file?"),
        ("### `GrowFile`", "### growth", "no rule tells what GrowFile waits for"),
        ("# Ordering", &format!("# {}", "Ordering ".repeat(20)), "a line is too wide"),
        ("# Ordering", "# Ordering, see `a_test_that_nobody_wrote`", "there is no a_test_that_nobody_wrote"),
    ] {
        assert!(page.contains(what), "{what}");
        let wrong = wrong(&page.replace(what, instead), &sources);
        assert!(wrong.iter().any(|line| line.contains(complaint)), "{complaint}: {wrong:?}");
    }
}
