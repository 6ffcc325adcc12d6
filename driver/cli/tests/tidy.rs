//! The tree's own limits, checked on every file that git tracks.
//!
//! Checks:
//! * files: at most 700 lines; functions: at most 70; lines: at most 110 columns;
//! * every source file starts with a `//!` header;
//! * no `unwrap()`, no `expect()` outside tests, unless a comment on the same line or the line before it says
//!   `cannot fail:` and why; no macros or words in comments for what is still to be done;
//! * comments call no request, thread or want a person;
//! * `print!` and its like, which panic if nobody reads, only where [`PRINTS`] allows them;
//! * `unsafe` only where [`UNSAFE`] allows it;
//! * the top level holds what the plan of the house names and nothing more;
//! * the floors of driver/src: no import leads up ([`floors`]);
//! * no path of one person's machine;
//! * faults are types (`tidy/faults.rs`): no text of an error is parsed or compared;
//! * findings/: what other software does is shown without the project's, in a folder that goes away again;
//! * states/ depends on `slab` and `bitflags` alone, without their features, and is `no_std` without
//!   `unsafe`: with neither the standard library nor unsafe code there is no way to do I/O;
//! * the walls between the rooms (`tidy/walls.rs`): what an embedder links does not block, the command links
//!   no proof, no imports run in a circle of files, and every file belongs to a crate;
//! * what an embedder links (`tidy/links.rs`): few crates, no C where no feature wants it, no switches of the
//!   proof, and nothing that wants a newer compiler than `rust-version` says.
//!
//! "Tests" are the folders tests/, benches/ and fuzz/ (the proof: a panic there is a finding), files
//! `tests.rs`, and `#[cfg(test)]` items. The last tests below feed each scanner bad samples.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/faults.rs"]
mod faults;
#[path = "tidy/floors.rs"]
mod floors;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/machine.rs"]
mod machine;
#[path = "tidy/modules.rs"]
mod modules;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/walls.rs"]
mod walls;

use scan::{Line, functions, has_word, lines};
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 110;
/// What a comment says that proves why an `unwrap()` or `expect()` never panics.
const PROOF: &str = "cannot fail:";
/// Files and folders that may have `unsafe` code.
const UNSAFE: [&str; 24] = [
    // system calls and memory that the kernel writes to
    "backend/",
    // guest buffers as scatter lists
    "driver/src/memory/buffers.rs",
    // memory that stays where it is, somebody promises
    "driver/src/registered.rs",
    // what C sees, and what it points to: layouts, calls, the way in, errors, structs that grow, gates
    "driver/capi/src/types.rs",
    "driver/capi/src/create.rs",
    "driver/capi/src/disk.rs",
    "driver/capi/src/door.rs",
    "driver/capi/src/driver.rs",
    "driver/capi/src/error.rs",
    "driver/capi/src/gate.rs",
    "driver/capi/src/request.rs",
    "driver/capi/src/sized.rs",
    "driver/capi/src/stats.rs",
    // epoll(7) without a library: what the example is about
    "driver/examples/epoll_loop.rs",
    // addresses of a guest's memory
    "driver/examples/guest_memory.rs",
    "driver/serve/vhost/src/memory.rs",
    // a descriptor registered with tokio
    "driver/examples/tokio_loop.rs",
    // buffers that are registered
    "bench/src/load/registered.rs",
    // getrusage(2)
    "bench/src/measure/usage.rs",
    // segments given to a bare backend
    "bench/benches/io.rs",
    // seccomp(2), poll(2)
    "driver/tests/system_calls.rs",
    // lseek(2) for holes
    "driver/tests/differential/ours.rs",
    // allocators that count
    "driver/tests/allocations.rs",
    "bench/tests/no_alloc.rs",
];
/// Programs whose output only their authors read. The command has `out.rs`.
const PRINTS: [&str; 1] = ["driver/examples/"];
const PRINTING: [&str; 5] = ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("];
const TOP_LEVEL: [&str; 14] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "backend",
    "bench",
    "docs",
    "driver",
    "findings",
    "fuzz",
    "states",
    "rust-toolchain.toml",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(top()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {problem}");
    String::from_utf8(output.stdout).expect("names are UTF-8")
}

/// The names of all tracked files that exist.
fn tracked() -> Vec<String> {
    let names = output("git", &["ls-files", "-z"]);
    let names = names.split('\0').filter(|name| !name.is_empty() && top().join(name).is_file());
    let names: Vec<String> = names.map(String::from).collect();
    assert!(names.len() > 100, "this is not the whole tree: {} files", names.len());
    names
}

fn read(name: &str) -> Option<String> {
    String::from_utf8(std::fs::read(top().join(name)).expect("a tracked file can be read")).ok()
}

fn is_test(name: &str) -> bool {
    name.starts_with("fuzz/")
        || name.ends_with("/tests.rs")
        || name.split('/').any(|part| part == "tests" || part == "benches")
}

/// What is wrong with one source file.
fn inspect(name: &str, source: &str) -> Vec<String> {
    let lines = lines(source);
    let mut wrong = Vec::new();
    let count = source.lines().count();
    if count > FILE_LINES_MAX && !is_test(name) {
        wrong.push(format!("{name}: {count} lines, more than {FILE_LINES_MAX}"));
    }
    if !source.starts_with("//!") {
        wrong.push(format!("{name}:1: no `//!` header"));
    }
    for function in functions(&lines) {
        let exempt = is_test(name) || lines[function.first].in_test;
        if function.line_count() > FUNCTION_LINES_MAX && !exempt {
            let (line, count) = (function.first + 1, function.line_count());
            wrong.push(format!(
                "{name}:{line}: fn {} has {count} lines, more than {FUNCTION_LINES_MAX}",
                function.name
            ));
        }
    }
    wrong.extend(wide(name, source));
    wrong.extend(words(name, &lines));
    wrong
}

fn wide(name: &str, text: &str) -> Vec<String> {
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS_MAX);
    wide.map(|(n, _)| format!("{name}:{}: more than {COLUMNS_MAX} columns", n + 1)).collect()
}

/// Words that must not stand in code, or not in a comment.
fn words(name: &str, lines: &[Line]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let mut say = |what: &str| wrong.push(format!("{name}:{}: {what}", n + 1));
        let panics = [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err("];
        let proved = line.comment.contains(PROOF) || n > 0 && lines[n - 1].comment.contains(PROOF);
        if panics.iter().any(|call| line.code.contains(call)) && !line.in_test && !is_test(name) && !proved {
            say("unwrap or expect without a proof");
        }
        if line.code.contains("todo!(") || line.code.contains("unimplemented!(") {
            say("unfinished code");
        }
        if has_word(&line.comment, "TODO") || has_word(&line.comment, "FIXME") {
            say("unfinished, says its comment");
        }
        if line.comment.contains("those who") {
            say("`those who` are people: a request, a thread, a want is what it is, or `those that`");
        }
        let prints = PRINTING.iter().any(|print| calls(&line.code, print));
        if prints && !line.in_test && !is_test(name) && !PRINTS.iter().any(|place| name.starts_with(place)) {
            say("prints by a macro that panics");
        }
        if has_word(&line.code, "unsafe") && !UNSAFE.iter().any(|place| name.starts_with(place)) {
            say("unsafe outside the rooms that may have it");
        }
    }
    wrong
}

/// Is the macro called? `eprint!(` is no call of `print!(`.
fn calls(code: &str, call: &str) -> bool {
    let whole = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(call).any(|(at, _)| whole(at))
}

/// Paths that only one machine has. Spelled in two halves, so that this file does not hold them.
fn machine_paths(name: &str, text: &str) -> Vec<String> {
    let folders = [("/ho", "me/"), ("/ro", "ot/"), ("/wo", "rk/"), ("/Us", "ers/"), ("/tmp/tar", "get")];
    let mut wrong = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for (first, second) in folders {
            let path = format!("{first}{second}");
            let starts = |at: usize| {
                let before = line[..at].chars().next_back();
                // a part of a longer path or word is another folder
                before.is_none_or(|c| !c.is_alphanumeric() && !"_-./}".contains(c))
            };
            if line.match_indices(&path).any(|(at, _)| starts(at)) {
                wrong.push(format!("{name}:{}: a path of one machine: {path}", n + 1));
            }
        }
    }
    wrong
}

fn top_level(names: &[&str]) -> Vec<String> {
    let firsts = names.iter().filter_map(|name| name.split('/').next());
    let mut wrong: Vec<String> = firsts
        .filter(|first| !first.starts_with('.') && !TOP_LEVEL.contains(first))
        .map(|first| format!("{first}: not a name of the top level"))
        .collect();
    wrong.dedup();
    wrong
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn sources_keep_the_limits() {
    let names = tracked().into_iter().filter(|name| name.ends_with(".rs"));
    let wrong: Vec<String> =
        names.filter_map(|name| read(&name).map(|source| inspect(&name, &source))).flatten().collect();
    none(&wrong);
}

#[test]
fn the_driver_imports_down_its_floors() {
    let names = tracked().into_iter().filter(|name| name.starts_with("driver/src/") && name.ends_with(".rs"));
    let wrong = names.filter_map(|name| read(&name).map(|source| floors::imports(&name, &source)));
    none(&wrong.flatten().collect::<Vec<String>>());
}

#[test]
fn the_top_level_is_the_plan_of_the_house() {
    let names = tracked();
    none(&top_level(&names.iter().map(String::as_str).collect::<Vec<&str>>()));
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let texts = tracked().into_iter().filter_map(|name| read(&name).map(|text| (name, text)));
    none(&texts.flat_map(|(name, text)| machine_paths(&name, &text)).collect::<Vec<String>>());
}

/// What is wrong with one script of findings/.
fn finding(name: &str, text: &str, executable: bool) -> Vec<String> {
    let has = |line: &str| text.lines().any(|other| other.trim() == line);
    let header = text.lines().skip(1).take_while(|line| line.starts_with('#')).count();
    let rules = [
        (executable, "not executable"),
        (text.starts_with("#!/usr/bin/env bash\n"), "not a script of bash"),
        (has("set -euo pipefail"), "no `set -euo pipefail`"),
        (text.contains("$(mktemp -d)"), "no folder of its own by `mktemp -d`"),
        (text.contains("trap "), "no trap that removes its folder"),
        (header >= 5, "no header that says versions, what one would guess and what happens"),
        (!text.to_lowercase().contains("quod"), "names this project"),
    ];
    let wrong = rules.iter().filter(|(good, _)| !good);
    wrong.map(|(_, what)| format!("{name}: {what}")).collect()
}

#[test]
fn findings_stand_alone() {
    use std::os::unix::fs::PermissionsExt;
    let names = tracked().into_iter().filter(|name| name.starts_with("findings/") && name.ends_with(".sh"));
    let list = read("findings/README.md").expect("findings/ has a list");
    let mut wrong = Vec::new();
    for name in names {
        let mode = std::fs::metadata(top().join(&name)).expect("a tracked file").permissions().mode();
        wrong.extend(finding(&name, &read(&name).unwrap_or_default(), mode & 0o111 == 0o111));
        if !list.contains(&format!("`{}`", name.trim_start_matches("findings/"))) {
            wrong.push(format!("{name}: not in findings/README.md"));
        }
    }
    none(&wrong);
}

#[test]
fn the_states_can_do_no_io() {
    let root = read("states/src/lib.rs").expect("the crate has a root");
    assert!(root.lines().any(|line| line == "#![no_std]"));
    assert!(root.lines().any(|line| line == "#![forbid(unsafe_code)]"));
    for name in tracked().iter().filter(|name| name.starts_with("states/src/")) {
        for (n, line) in lines(&read(name).unwrap_or_default()).iter().enumerate() {
            let std = line.code.contains("extern crate") && !line.code.contains("extern crate alloc;");
            assert!(!std || line.in_test, "{name}:{}: only alloc may be linked", n + 1);
        }
    }
    // name, version and features of everything that a normal build links or runs
    let edges = ["tree", "-p", "quod-states", "-e", "normal,build", "--prefix", "none", "--offline"];
    let tree = output(env!("CARGO"), &[&edges[..], &["--format", "{p}|{f}"]].concat());
    let mut crates: Vec<(&str, &str)> =
        tree.lines().filter_map(|line| line.split_once('|')).map(|(p, f)| (first_word(p), f)).collect();
    crates.sort_unstable();
    assert_eq!(crates, [("bitflags", ""), ("quod-states", ""), ("slab", "")], "crate and features");
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or("")
}

fn assertions(source: &str) -> Vec<usize> {
    let lines = lines(source);
    let functions = functions(&lines).into_iter().filter(|function| !lines[function.first].in_test);
    functions
        .map(|function| {
            let body = &lines[function.first..=function.last];
            body.iter().map(|line| line.code.matches("assert").count()).sum()
        })
        .collect()
}

mod samples {
    //! Each scanner must find what it looks for, and leave alone what only looks like it.

    use super::*;

    const HEADER: &str = "//! A header.\n";

    fn found(name: &str, body: &str) -> Vec<String> {
        inspect(name, &format!("{HEADER}{body}"))
    }

    #[test]
    fn good_code_passes() {
        let body = r##"
/// A "quote, an 'apostrophe', a brace { in a comment: .unwrap() is a word here.
fn f<'a>(text: &'a str) -> char {
    let raw = r#"a } brace, "quoted", .unwrap() in a raw string"#;
    let escaped = "a \" and a } and // no comment";
    let brace = '{'; // unsafe, in a comment
    // cannot fail: the sample is not empty
    let first = text.chars().next().unwrap();
    /* a /* nested */ block } */
    let unsafe_name = b'\'';
    first.max(brace)
}
"##;
        assert_eq!(found("driver/src/good.rs", body), [""; 0]);
    }

    #[test]
    fn bad_words_are_found() {
        for bad in [
            "fn f() { g().unwrap(); }",
            "fn f() { g().expect(\"\"); }",
            "fn f() { todo!() }",
            "fn f() { unimplemented!() }",
            "// TODO: later",
            "/// FIXME",
            "/// Wakes those who wait for it.",
            "fn f() { unsafe { g() } }",
            "unsafe fn f() {}",
            "fn f() { println!(); }",
            "fn f() { std::eprint!(\"\"); }",
            "fn f() { g(dbg!(1)); }",
            "fn f() { let s = \"//\"; g().unwrap(); }",
            "fn f<'a>(s: &'a str) { g('\"'); h().unwrap(); }",
        ] {
            assert_eq!(found("driver/src/bad.rs", bad).len(), 1, "{bad}");
        }
        assert!(found("backend/src/good.rs", "fn f() { unsafe { g() } }").is_empty());
        assert!(found("driver/tests/good.rs", "fn f() { g().unwrap(); }").is_empty());
        for good in ["fn f() { my_print!(); }", "fn f() { complain!(\"\"); }", "// println!()"] {
            assert!(found("driver/src/good.rs", good).is_empty(), "{good}");
        }
        assert!(found("driver/examples/good.rs", "fn f() { println!(); }").is_empty());
        assert_eq!(inspect("driver/src/bad.rs", "fn f() {}\n").len(), 1, "no header");
    }

    #[test]
    fn test_code_inside_a_file_is_told_from_the_rest() {
        let body = "#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}\n";
        assert!(found("driver/src/a.rs", body).is_empty());
        assert_eq!(found("driver/src/a.rs", &format!("{body}fn f() {{ g().unwrap(); }}\n")).len(), 1);
        let outside = "#[cfg(test)]\nmod tests;\nfn f() {\n    g().unwrap();\n}\n";
        assert_eq!(found("driver/src/a.rs", outside).len(), 1);
    }

    #[test]
    fn sizes_are_counted() {
        let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        assert!(found("driver/src/a.rs", &function(FUNCTION_LINES_MAX)).is_empty());
        assert_eq!(found("driver/src/a.rs", &function(FUNCTION_LINES_MAX + 1)).len(), 1);
        assert!(found("driver/tests/a.rs", &function(FUNCTION_LINES_MAX + 1)).is_empty());
        assert!(found("driver/src/a.rs", &"\n".repeat(FILE_LINES_MAX - 1)).is_empty());
        assert_eq!(found("driver/src/a.rs", &"\n".repeat(FILE_LINES_MAX)).len(), 1);
        assert!(found("driver/tests/a.rs", &format!("// {}", "ä".repeat(COLUMNS_MAX - 3))).is_empty());
        assert_eq!(found("driver/tests/a.rs", &format!("// {}", "a".repeat(COLUMNS_MAX - 2))).len(), 1);
    }

    #[test]
    fn functions_are_found_with_their_bodies() {
        let source =
            "trait T {\n    fn f(&self);\n    fn g(a: [u8; 2]) -> fn(u8) {\n        h(|| { 1 })\n    }\n}\n";
        let found = functions(&lines(source));
        let summary: Vec<(&str, usize)> = found.iter().map(|f| (f.name.as_str(), f.line_count())).collect();
        assert_eq!(summary, [("g", 3)]);
        assert_eq!(
            assertions("fn f() {\n    assert!(a);\n    debug_assert_eq!(a, b);\n}\nfn g() {}\n"),
            [2, 0]
        );
    }

    #[test]
    fn findings_are_looked_at() {
        let good = "#!/usr/bin/env bash\n# a\n# b\n# c\n# d\n# e\nset -euo pipefail\n\
                    dir=$(mktemp -d)\ntrap 'rm -rf \"$dir\"' EXIT\n";
        assert_eq!(finding("findings/a.sh", good, true), [""; 0]);
        assert_eq!(finding("findings/a.sh", good, false).len(), 1);
        for (from, to) in [
            ("bash", "sh"),
            ("set -euo pipefail", "set -e"),
            ("mktemp -d", "pwd"),
            ("trap", "#"),
            ("# c\n", "\n"),
            ("# e", "# a Quod image"),
        ] {
            assert_eq!(finding("findings/a.sh", &good.replacen(from, to, 1), true).len(), 1, "{to}");
        }
    }

    #[test]
    fn paths_and_names_are_found() {
        for path in [concat!("/ho", "me/a"), concat!("see /ro", "ot/x"), concat!("\"/wo", "rk/main\"")] {
            assert_eq!(machine_paths("a.md", path).len(), 1, "{path}");
        }
        assert!(machine_paths("a.md", concat!("driver/wo", "rk/a and $x/ho", "me/b")).is_empty());
        assert_eq!(top_level(&["src/a.rs", "docs/b.md", ".ci/run"]).len(), 1);
    }
}
