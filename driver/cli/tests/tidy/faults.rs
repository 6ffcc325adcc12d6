//! Facts travel as types: no text of an error or a fault is parsed or compared, and prose is made at the
//! edge.
//!
//! Checks:
//! * what chooses a user's words for a fault takes no text apart and compares none ([`EDGES`]);
//! * the prose of a fault is asked for there alone, and where it is made;
//! * no error has a text as a field, but for misuse by the caller ([`TYPES`]).

use super::scan::{Line, lines};
use super::{is_test, read, tracked};

/// Where faults become a user's words.
const EDGES: [&str; 3] = [
    "driver/cli/src/words/failure.rs",
    "driver/cli/src/cmd/check/finding.rs",
    "driver/tools/src/dump/words.rs",
];
/// Where they have words of their own.
const PROSE: &str = "states/src/fault/";
/// Where errors are types.
const TYPES: [&str; 5] = [
    "states/src/error.rs",
    "states/src/fault/mod.rs",
    "states/src/qcow2/check/finding.rs",
    "driver/src/error.rs",
    "driver/src/error/op.rs",
];
/// What takes a text apart, or looks into it.
const PARSERS: [&str; 18] = [
    "starts_with(",
    "ends_with(",
    "strip_prefix(",
    "strip_suffix(",
    "trim_start_matches(",
    "trim_end_matches(",
    ".contains(\"",
    ".find(\"",
    ".rfind(\"",
    ".matches(",
    ".split(",
    ".splitn(",
    ".rsplit(",
    "split_once(",
    "rsplit_once(",
    ".chars(",
    ".bytes(",
    ".parse",
];

/// A text is compared: with `==`, or as a pattern.
fn compares(code: &str) -> bool {
    let plain: String = code.split_whitespace().collect();
    let signs = ["==\"", "!=\"", "\"==", "\"!=", "\"=>", "\"|\"", "Some(\"\")=>", "eq(\"", "Some(\"\"))"];
    signs.iter().any(|sign| plain.contains(sign))
}

/// What a file whose errors are types, or that gives them words, does wrong.
fn inspect(name: &str, lines: &[Line]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| !line.in_test) {
        let (at, code) = (format!("{name}:{}", n + 1), line.code.as_str());
        if EDGES.contains(&name) {
            let parser = PARSERS.iter().find(|parser| code.contains(**parser));
            wrong.extend(parser.map(|parser| format!("{at}: `{parser}` takes a text apart")));
            if compares(code) {
                wrong.push(format!("{at}: a text is compared"));
            }
        }
        if code.contains(".prose()") && !EDGES.contains(&name) && !name.starts_with(PROSE) {
            wrong.push(format!("{at}: prose is made at the edge"));
        }
        let field = code.trim().trim_end_matches(',');
        let text = field.ends_with(": String") || field.ends_with(": &'static str");
        if TYPES.contains(&name) && text && field.starts_with("what") {
            wrong.push(format!("{at}: a text in an error"));
        }
    }
    wrong
}

#[test]
fn faults_are_types() {
    let names: Vec<String> = tracked();
    for name in EDGES.iter().chain(&TYPES) {
        assert!(names.iter().any(|known| known == name), "{name} is not there any more");
    }
    let sources = names.iter().filter(|name| name.ends_with(".rs") && !is_test(name));
    let wrong: Vec<String> = sources
        .filter_map(|name| Some((name, read(name)?)))
        .flat_map(|(name, source)| inspect(name, &lines(&source)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_text_that_is_parsed_is_found() {
    let found = |name: &str, code: &str| inspect(name, &lines(code)).len();
    for bad in [
        "Error::Corrupt { place, .. } if place.starts_with(\"qcow2 \") => 1,",
        "let name = what.split('\"').nth(1)?;",
        "if what == \"overlaps an L2 table\" {}",
        "Some(\"overlaps an L2 table\") => 2,",
        "\"magic\" | \"size\" => 3,",
        "let large = what.ends_with(\"too large\");",
        "match text.find(\" (os error\") {}",
    ] {
        assert_eq!(found(EDGES[0], bad), 1, "{bad}");
        assert_eq!(found("driver/src/config.rs", bad), 0, "{bad}");
        assert_eq!(found(EDGES[0], &format!("#[cfg(test)]\nmod tests {{\n{bad}\n}}")), 0, "{bad}");
    }
    assert_eq!(found("bench/src/main.rs", "let (place, _) = fault.prose();"), 1);
    assert_eq!(found(EDGES[1], "let (place, _) = fault.prose();"), 0);
    assert_eq!(found(TYPES[0], "        what: &'static str,"), 1);
    assert_eq!(found(EDGES[0], "QedFault::Magic => Some(\"Image not in QED format\"),"), 0);
}
