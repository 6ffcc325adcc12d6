//! Checks: include/quod.h is what the sources say, and says to C and C++ what it should.
//!
//! A stale header is written anew by `UPDATE_DOCS=1 cargo test -p quod-capi --test header`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The files with what C sees, in the order in which it is told.
const SOURCES: [&str; 8] =
    ["types.rs", "door.rs", "error.rs", "create.rs", "driver.rs", "disk.rs", "request.rs", "stats.rs"];
const UPDATE: &str = "UPDATE_DOCS=1 cargo test -p quod-capi --test header";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).unwrap();
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |all, name| {
        all.with_src(folder().join("src").join(name))
    });
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    plain(&String::from_utf8(text).unwrap())
}

/// What Rust calls safety: in C all is so, and what every function asks of a driver goes without saying.
fn plain(text: &str) -> String {
    let driver = " * `driver` is NULL, or was made by `quod_driver_new` and not freed";
    let nothing_more = format!(" *\n * # Safety\n{driver}.\n");
    let more = format!(" * # Safety\n{driver}; ");
    text.replace(&nothing_more, "")
        .replace(&more, " * Yours to promise: ")
        .replace(" * # Safety\n * ", " * Yours to promise: ")
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path = folder().join("include/quod.h");
    let wanted = generated();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let line = found.lines().zip(wanted.lines()).take_while(|(found, wanted)| found == wanted).count() + 1;
    assert!(found == wanted, "include/quod.h is stale at line {line}; write it anew: {UPDATE}");
}

/// The names of functions, in the order of the alphabet.
fn functions(text: &str, before: &str) -> Vec<String> {
    let starts = text.match_indices(before).map(|(at, _)| &text[at + before.len()..]);
    let mut names: Vec<String> = starts
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| name.starts_with("quod_"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_exported_function_is_in_the_header_and_says_who_may_call() {
    let sources = SOURCES.map(|name| std::fs::read_to_string(folder().join("src").join(name)).unwrap());
    let exported: Vec<String> = sources.iter().flat_map(|text| functions(text, "extern \"C\" fn ")).collect();
    let header = generated();
    for name in &exported {
        let declared = |line: &&str| !line.starts_with(" *") && line.contains(&format!("{name}("));
        assert_eq!(header.lines().filter(declared).count(), 1, "{name}");
    }
    let marked: usize = sources.iter().map(|text| text.matches("#[unsafe(no_mangle)]").count()).sum();
    assert_eq!((exported.len(), marked), (34, 34), "{exported:?}");
    // each begins with a comment, and none of Rust's marks is left in one
    for mark in ["::", "[`", "`]", "Option<", "unsafe ", "# "] {
        let comments = header.lines().filter(|line| line.trim_start().starts_with('*'));
        assert_eq!(comments.filter(|line| line.contains(mark)).count(), 0, "{mark}");
    }
}

/// The version in the header is that of the package.
#[test]
fn the_version_is_the_package_s() {
    let header = generated();
    let parts = env!("CARGO_PKG_VERSION").split('.').zip(["MAJOR", "MINOR", "PATCH"]);
    for (number, name) in parts {
        let line = format!("#define QUOD_VERSION_{name} {number}\n");
        assert!(header.contains(&line), "{line}");
    }
}

/// Compiles nothing but the header.
fn compiles(compiler: &str, arguments: &[&str]) {
    let header = folder().join("include/quod.h");
    let strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"];
    let output = Command::new(compiler).args(arguments).args(strict).arg(header).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler} {arguments:?}: {told}");
}

#[test]
fn the_header_is_strict_c_and_cpp() {
    for standard in ["-std=c99", "-std=c11", "-std=c17"] {
        compiles("gcc", &["-x", "c", standard, "-Wstrict-prototypes", "-Wundef"]);
    }
    for standard in ["-std=c++11", "-std=c++20"] {
        compiles("g++", &["-x", "c++", standard]);
    }
}
