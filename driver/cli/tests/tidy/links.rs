//! What an embedder links: how many crates, with which compiler and how old a one, and none of the proof's
//! switches; and what it sees of them.
//!
//! Knows: packages, features, Cargo's tree of them, the roots of the libraries. Must never know: what a crate
//! does.

use super::{first_word, output, read};
use serde_json::json;

/// Crates that the library is made of, itself included: all formats, in Rust alone.
const CRATES_MOST: usize = 16;
/// Packages that somebody may depend on.
const PUBLISHED: [&str; 10] = [
    "quod-states",
    "quod-backend",
    "quod",
    "quod-tools",
    "quod-capi",
    "quod-door",
    "quod-serve",
    "quod-mount",
    "quod-vhost",
    "quod-cli",
];

fn tree(package: &str, more: &[&str]) -> Vec<String> {
    let common = ["tree", "--offline", "--prefix", "none", "-p", package];
    let tree = output(env!("CARGO"), &[&common[..], more].concat());
    let mut lines: Vec<String> = tree.lines().map(String::from).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

#[test]
fn the_library_is_few_crates_and_no_c() {
    let features = ["--no-default-features", "--features", "deflate,mio", "-e", "normal,build"];
    let crates = tree("quod", &features);
    let compilers = |name: &&str| ["cc", "cmake", "pkg-config", "bindgen"].contains(name);
    assert_eq!(crates.iter().map(|line| first_word(line)).find(compilers), None, "{crates:#?}");
    let features = ["--no-default-features", "--features", "deflate,mio", "-e", "normal"];
    let crates = tree("quod", &features);
    assert!(crates.len() > 5 && crates.len() <= CRATES_MOST, "{} crates: {crates:#?}", crates.len());
}

#[test]
fn the_default_decoders_are_where_the_features_say() {
    let named = |features: &[&str]| {
        let tree = tree("quod", &[features, &["-e", "normal"]].concat());
        ["flate2", "libdeflater", "zstd", "mio"].map(|name| tree.iter().any(|line| first_word(line) == name))
    };
    assert_eq!(named(&[]), [true; 4]);
    assert_eq!(named(&["--no-default-features"]), [false; 4]);
    assert_eq!(named(&["--no-default-features", "--features", "zstd"]), [false, false, true, false]);
}

#[test]
fn no_user_s_build_can_remove_a_rule() {
    for package in PUBLISHED {
        // without `dev`: what a user builds
        let tree = tree(package, &["-e", "features,normal,build"]);
        let switches: Vec<&String> = tree.iter().filter(|line| line.contains("\"sabotage\"")).collect();
        assert!(!tree.is_empty() && switches.is_empty(), "{package}: {switches:?}");
    }
    // the reader sees it where it is
    let proof = tree("quod-fuzz", &["-e", "features,all"]);
    assert!(proof.iter().any(|line| line.contains("\"sabotage\"")), "{proof:#?}");
}

/// What a root passes on beside names that are told one by one, each once, under a module of its own.
fn loose_in_face(root: &str, modules: &[&str]) -> Vec<String> {
    let mut wrong: Vec<String> = root
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .filter(|module| !modules.contains(module))
        .map(|module| format!("the whole module {module}"))
        .collect();
    let mut names: Vec<&str> = root
        .split("\npub use ")
        .skip(1)
        .filter_map(|rest| rest.split_once(';'))
        .flat_map(|(list, _)| list.split(['{', '}', ',']))
        .filter_map(|path| path.split("::").last()?.split_whitespace().last())
        .collect();
    names.sort_unstable();
    wrong.extend(names.windows(2).filter(|two| two[0] == two[1]).map(|two| format!("{} twice", two[0])));
    wrong.extend(names.iter().filter(|name| ["*", "self"].contains(name)).map(|name| format!("`{name}`")));
    wrong
}

#[test]
fn the_face_of_a_library_is_a_list_of_names() {
    for (name, modules) in [
        ("driver/src/lib.rs", &["fault"][..]),
        ("driver/src/fault.rs", &[]),
        ("driver/tools/src/lib.rs", &[]),
    ] {
        let root = read(name).expect("UTF-8");
        assert!(root.contains("\npub use "), "{name}");
        assert_eq!(loose_in_face(&root, modules), [""; 0], "{name}");
    }
    // it sees what is loose
    let root =
        "mod a;\npub mod b;\npub mod c;\n\npub use a::{A, B as C};\npub use b::*;\npub use c::{self, C};\n";
    assert_eq!(loose_in_face(root, &["b"]), ["the whole module c", "C twice", "`*`", "`self`"]);
}

/// A compiler's release. What says nothing runs on all.
fn release(package: &serde_json::Value) -> (u32, u32) {
    let Some(text) = package["rust_version"].as_str() else { return (0, 0) };
    let mut numbers = text.split('.').map(|number| number.parse::<u32>().expect("a release"));
    (numbers.next().expect("its first number"), numbers.next().unwrap_or(0))
}

/// Packages of Cargo's metadata that ask for a newer compiler than those of this workspace do.
fn too_new(metadata: &serde_json::Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().expect("packages");
    let ours = packages.iter().filter(|package| package["source"].is_null()).map(release).min();
    let ours = ours.expect("this workspace");
    let newer = packages.iter().filter(|package| release(package) > ours);
    newer.map(|package| format!("{} {}", package["name"], package["rust_version"])).collect()
}

/// That the sources themselves are as old as they say is clippy's (`incompatible_msrv`).
#[test]
fn nothing_asks_for_a_newer_compiler_than_rust_version_says() {
    let host = output("rustc", &["-vV"]);
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("where it runs");
    let metadata = ["metadata", "--offline", "--format-version", "1", "--filter-platform", host];
    let metadata = serde_json::from_str(&output(env!("CARGO"), &metadata)).expect("JSON");
    assert_eq!(too_new(&metadata), [""; 0]);
    // it sees what is newer
    let package = |name: &str, source: Option<&str>, version: Option<&str>| {
        let (name, source, version) = (json!(name), json!(source), json!(version));
        json!({ "name": name, "source": source, "rust_version": version })
    };
    let packages = [
        package("ours", None, Some("1.90")),
        package("old", Some("registry"), Some("1.9.1")),
        package("silent", Some("registry"), None),
        package("same", Some("registry"), Some("1.90.0")),
        package("new", Some("registry"), Some("1.91")),
    ];
    assert_eq!(too_new(&json!({ "packages": packages })), ["\"new\" \"1.91\""]);
}
