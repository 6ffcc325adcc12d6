//! The walls inside the machine of `states/`: what an import does not show.
//!
//! Checks:
//! * `impl Image` stands under `states/src/image/` alone, and no files there call each other in a ring
//!   through the image's methods;
//! * one file asks which format an image has;
//! * parts of the machine name neither the image nor its layout;
//! * what starts by itself is started by one file, at the end of a mutator;
//! * the general paths have no branch for one job on the whole image;
//! * assertions a function, on average, are [`ASSERTIONS_MIN`] hundredths at least.
//!
//! That number may only rise.

use super::scan::{has_word, lines};
use super::{assertions, is_test, none, read, tracked};
use std::collections::{BTreeMap, BTreeSet};

/// Assertions in a hundred functions of `states/src/`.
const ASSERTIONS_MIN: usize = 100;
const IMAGE: &str = "states/src/image/";
const FORMAT: &str = "states/src/image/format.rs";
/// Parts that are values of their own.
const PARTS: [&str; 8] = [
    "states/src/acb/",
    "states/src/base/",
    "states/src/commit/",
    "states/src/fault/",
    "states/src/space/",
    "states/src/tables/",
    "states/src/health.rs",
    "states/src/outbox.rs",
];

/// What starts by itself, and the file that starts it; that it may be due others say by a bit.
const STARTS: [&str; 11] = [
    "see_to_due",
    "see_to_rounds",
    "next_round",
    "count_down",
    "look_on",
    "punch_dead",
    "more_space",
    "feed",
    "wake_slots",
    "show",
    "write_tables",
];
const SETTLE: &str = "states/src/image/settle.rs";
/// It goes on with the tables that it writes; and it alone is a face, whose mutators end with `settle`.
const ROUND: &str = "states/src/image/round.rs";
const FACE: &str = "states/src/image/face.rs";
/// Files that every request goes through; in these of them, each kind of request and each state is named once
/// in a `match` of all.
const PATHS: [&str; 5] = [FACE, "states/src/image/advance.rs", SETTLE, ROUND, "states/src/image/run/"];
const MATCHES: [&str; 3] = [FACE, "states/src/image/advance.rs", "states/src/image/run/find.rs"];

/// Names and sources of the machine's files.
fn sources() -> Vec<(String, String)> {
    let ours = |name: &String| name.starts_with("states/src/") && name.ends_with(".rs") && !is_test(name);
    tracked().into_iter().filter(ours).map(|name| (name.clone(), read(&name).unwrap_or_default())).collect()
}

/// Code outside comments, texts and tests.
fn code(source: &str) -> Vec<String> {
    lines(source).into_iter().filter(|line| !line.in_test).map(|line| line.code).collect()
}

/// Methods that the `impl Image` blocks of a file define.
fn methods(code: &[String]) -> Vec<String> {
    let (mut inside, mut found) = (false, Vec::new());
    for line in code {
        match line.as_str() {
            "impl Image {" => inside = true,
            "}" => inside = false,
            line if inside && line.starts_with("    ") && !line.starts_with("     ") => {
                let name = line.split_once("fn ").and_then(|(_, rest)| rest.split(['(', '<']).next());
                found.extend(name.map(String::from));
            }
            _ => {}
        }
    }
    found
}

/// Methods that are called on the image itself.
fn calls(code: &[String]) -> BTreeSet<String> {
    let text = code.join("\n");
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for owner in ["self", "image"] {
        for (at, _) in text.match_indices(owner) {
            let before = text[..at].chars().next_back();
            let Some(rest) = text[at + owner.len()..].trim_start().strip_prefix('.') else { continue };
            let name: String = rest.trim_start().chars().take_while(|c| word(*c)).collect();
            let call = rest.trim_start()[name.len()..].starts_with('(');
            if call && !before.is_some_and(|c| word(c) || c == '.') {
                found.insert(name);
            }
        }
    }
    found
}

/// The files of the biggest ring.
fn ring(files: &[(String, String)]) -> BTreeSet<&str> {
    let coded: Vec<(&str, Vec<String>)> =
        files.iter().map(|(name, source)| (name.as_str(), code(source))).collect();
    let home = |(name, code): &(&'_ str, Vec<String>)| -> Vec<(String, String)> {
        methods(code).into_iter().map(|method| (method, (*name).to_string())).collect()
    };
    let homes: BTreeMap<String, String> = coded.iter().flat_map(home).collect();
    let next: BTreeMap<&str, BTreeSet<&str>> = coded
        .iter()
        .map(|(name, code)| {
            let called = calls(code);
            let to = called.iter().filter_map(|call| homes.get(call)).filter(|to| to.as_str() != *name);
            let to = to.filter_map(|to| coded.iter().map(|(name, _)| *name).find(|name| name == to));
            (*name, to.collect())
        })
        .collect();
    let reach = |from: &str| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(at) = left.pop() {
            for to in next.get(at).into_iter().flatten() {
                if seen.insert(*to) {
                    left.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|name| (*name, reach(name))).collect();
    let rings = reached.iter().map(|(name, all)| {
        all.iter().filter(|other| reached[*other].contains(name)).copied().collect::<BTreeSet<&str>>()
    });
    rings.max_by_key(BTreeSet::len).unwrap_or_default()
}

#[test]
fn the_machine_is_no_hall() {
    let files = sources();
    let outside = files.iter().filter(|(name, _)| !name.starts_with(IMAGE));
    let wrong = outside.filter(|(_, source)| code(source).iter().any(|line| line.starts_with("impl Image")));
    none(&wrong.map(|(name, _)| format!("{name}: impl Image outside {IMAGE}")).collect::<Vec<String>>());
    let image: Vec<(String, String)> =
        files.into_iter().filter(|(name, _)| name.starts_with(IMAGE)).collect();
    let ring = ring(&image);
    assert!(ring.is_empty(), "files call each other in a ring: {ring:?}");
}

/// Lines that ask which format it is.
fn asks(name: &str, source: &str) -> Vec<String> {
    let variants = ["Layout::Raw", "Layout::Qed", "Layout::Qcow2"];
    let asking =
        code(source).into_iter().filter(|line| variants.iter().any(|variant| line.contains(variant)));
    asking.map(|line| format!("{name}: {}", line.trim())).collect()
}

#[test]
fn one_file_asks_for_the_format() {
    let files = sources();
    let (format, others): (Vec<_>, Vec<_>) = files.iter().partition(|(name, _)| name == FORMAT);
    none(&others.iter().flat_map(|(name, source)| asks(name, source)).collect::<Vec<String>>());
    assert!(format.iter().any(|(name, source)| !asks(name, source).is_empty()), "{FORMAT} asks nothing");
}

fn names_the_image(name: &str, source: &str) -> Vec<String> {
    // one of the gates of 2010 has the name
    let names = |line: &String| has_word(&line.replace("AllocationGate::Image", ""), "Image");
    let naming = code(source).into_iter().filter(|line| names(line) || has_word(line, "Layout"));
    naming.map(|line| format!("{name}: {}", line.trim())).collect()
}

#[test]
fn parts_know_no_image() {
    let files = sources();
    for part in PARTS {
        assert!(files.iter().any(|(name, _)| name.starts_with(part)), "{part} is not there");
    }
    let parts = files.iter().filter(|(name, _)| PARTS.iter().any(|part| name.starts_with(part)));
    none(&parts.flat_map(|(name, source)| names_the_image(name, source)).collect::<Vec<String>>());
}

/// Calls of what starts by itself, where it may not be called.
fn starts(name: &str, source: &str) -> Vec<String> {
    let may = |method: &str| match method {
        "settle" => name == FACE,
        "write_tables" => name == SETTLE || name == ROUND,
        _ => name == SETTLE,
    };
    let code = code(source);
    let calls = |method: &&str| code.iter().any(|line| line.contains(&format!(".{method}(")));
    let wrong = STARTS.iter().copied().chain(["settle"]).filter(|method| !may(method)).filter(calls);
    wrong.map(|method| format!("{name}: calls `{method}`, which {SETTLE} has to start")).collect()
}

#[test]
fn one_file_starts_what_starts_by_itself() {
    let files = sources();
    none(&files.iter().flat_map(|(name, source)| starts(name, source)).collect::<Vec<String>>());
    let settle = files.iter().find(|(name, _)| name == SETTLE).map(|(_, source)| source.as_str());
    let called = starts("another file", settle.unwrap_or_default());
    assert_eq!(called.len(), STARTS.len(), "{SETTLE} starts all of it: {called:#?}");
}

/// Lines of a general path that know one job: a change of size.
fn branches(name: &str, source: &str) -> Vec<String> {
    let known = |line: &String| {
        let listed = line.contains("=>") || line.trim_start().starts_with('|');
        let whole = listed && !has_word(line, "if") && MATCHES.contains(&name);
        let line =
            if whole { line.replace("Kind::Resize", "").replace("State::Resize", "") } else { line.clone() };
        // a question that the format answers
        line.replace("layout.admit_resize(", "").to_lowercase().contains("resiz")
    };
    let wrong = code(source).into_iter().filter(known);
    wrong.map(|line| format!("{name}: a job's own branch: {}", line.trim())).collect()
}

#[test]
fn general_paths_know_no_job() {
    let files = sources();
    let of = |path: &&str| files.iter().any(|(name, _)| name.starts_with(path));
    assert!(PATHS.iter().chain(&MATCHES).all(of), "the paths are there");
    let general = files.iter().filter(|(name, _)| PATHS.iter().any(|path| name.starts_with(path)));
    none(&general.flat_map(|(name, source)| branches(name, source)).collect::<Vec<String>>());
}

#[test]
fn assertions_per_function_only_rise() {
    let mut counts: Vec<usize> = sources().iter().flat_map(|(_, source)| assertions(source)).collect();
    counts.sort_unstable();
    let (functions, total): (usize, usize) = (counts.len(), counts.iter().sum());
    println!("states/: {functions} functions, {total} assertions, median {}", counts[functions / 2]);
    let found = total * 100 / functions;
    assert!(found >= ASSERTIONS_MIN, "{found} assertions in a hundred functions, {ASSERTIONS_MIN} at least");
    assert!(found < ASSERTIONS_MIN + 5, "{found} assertions in a hundred functions: raise ASSERTIONS_MIN");
}

mod samples {
    use super::*;

    fn file(name: &str, method: &str, call: &str) -> (String, String) {
        let source = format!("impl Image {{\n    fn {method}(&mut self) {{\n        {call}\n    }}\n}}\n");
        (name.to_string(), source)
    }

    #[test]
    fn a_ring_is_found_through_methods() {
        let b = file("b", "second", "self\n            .third();");
        let c = file("c", "third", "image.first();");
        let away = file("d", "fourth", "self.first();");
        let closed = [file("a", "first", "self.second();"), b.clone(), c.clone(), away.clone()];
        assert_eq!(ring(&closed), BTreeSet::from(["a", "b", "c"]));
        for open in ["self.part.second();", "// self.second();", "other_self.second();", "self.second;"] {
            assert!(
                ring(&[file("a", "first", open), b.clone(), c.clone(), away.clone()]).is_empty(),
                "{open}"
            );
        }
    }

    #[test]
    fn questions_for_the_format_are_found() {
        assert_eq!(asks("a", "fn f() { matches!(layout, Layout::Raw) }\n").len(), 1);
        assert_eq!(asks("a", "// Layout::Raw\nfn f() { Layout::raw() }\n"), [""; 0]);
    }

    #[test]
    fn parts_that_name_the_image_are_found() {
        assert_eq!(names_the_image("a", "fn f(image: &Image) {}\n").len(), 1);
        assert_eq!(names_the_image("a", "use super::Layout;\n").len(), 1);
        assert_eq!(names_the_image("a", "//! An Image.\nfn f(image: &ImageInfo) {}\n"), [""; 0]);
    }

    #[test]
    fn starts_outside_settle_are_found() {
        for (name, call) in [
            (FACE, "self.next_round()"),
            (FACE, "self.write_tables()"),
            (ROUND, "self.commit.show(&mut self.requests, true)"),
            (ROUND, "self.next_round()"),
            (SETTLE, "self.settle()"),
            ("states/src/acb/waits.rs", "self.wake_slots(requests)"),
        ] {
            assert_eq!(starts(name, &format!("fn f() {{ {call} }}\n")).len(), 1, "{name}: {call}");
        }
        for (name, good) in [
            (SETTLE, "self.next_round(); self.feed()"),
            (ROUND, "self.write_tables()"),
            (FACE, "self.settle()"),
            (FACE, "self.outbox.due |= Due::ROUND; // self.next_round()"),
            ("a", "self.next_rounds(); next_round(); self.shown()"),
        ] {
            assert_eq!(starts(name, &format!("fn f() {{ {good} }}\n")), [""; 0], "{name}: {good}");
        }
    }

    #[test]
    fn branches_for_one_job_are_found() {
        let run = "states/src/image/run/write.rs";
        for (name, line) in [
            (FACE, "if self.resizing.is_some() {}"),
            (FACE, "if kind == Kind::Resize {}"),
            (FACE, "Kind::Close if self.jobs.resizing() => {}"),
            (run, "Kind::Close | Kind::Resize => {}"),
            (run, "self.resize_run(a)"),
        ] {
            assert_eq!(branches(name, &format!("fn f() {{\n{line}\n}}\n")).len(), 1, "{name}: {line}");
        }
        for (name, line) in [
            (FACE, "Kind::Close | Kind::Resize => self.start_job(a),"),
            (FACE, "self.layout.admit_resize(counted)"),
            (run, "// a resize"),
        ] {
            assert_eq!(branches(name, &format!("fn f() {{\n{line}\n}}\n")), [""; 0], "{name}: {line}");
        }
    }
}
