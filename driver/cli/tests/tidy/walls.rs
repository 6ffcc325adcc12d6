//! The walls between the rooms: who links whom, and that no imports run in a circle of files.
//!
//! Knows: packages, their manifests, their files. Must never know: what a file does.

use super::circles::Crate;
use super::scan::{has_word, lines};
use super::{none, read, tracked};
use std::collections::BTreeSet;

/// Folders whose files are the roots of crates of their own; in `tests`, folders with a `main.rs` too.
const ROOTS: [&str; 4] = ["tests", "benches", "examples", "fuzz_targets"];

/// The packages' folders.
fn packages(names: &[String]) -> Vec<&str> {
    names.iter().filter_map(|name| name.strip_suffix("/Cargo.toml")).collect()
}

/// The roots of a package's crates.
fn roots<'a>(package: &str, names: &'a [String]) -> Vec<&'a str> {
    let is_root = |name: &str| {
        let Some(rest) = name.strip_prefix(package).and_then(|rest| rest.strip_prefix('/')) else {
            return false;
        };
        match rest.split('/').collect::<Vec<&str>>().as_slice() {
            ["src", "lib.rs" | "main.rs"] | ["src", "bin", _] | ["src", "bin", _, "main.rs"] => true,
            [folder, _] | [folder, _, "main.rs"] => ROOTS.contains(folder) && rest.ends_with(".rs"),
            _ => false,
        }
    };
    names.iter().map(String::as_str).filter(|name| is_root(name)).collect()
}

fn crates(names: &[String]) -> Vec<(&str, Crate)> {
    let source = |name: &str| names.iter().any(|known| known == name).then(|| read(name)).flatten();
    let of = |package| roots(package, names).into_iter().map(move |root| (package, root));
    packages(names)
        .into_iter()
        .flat_map(of)
        .map(|(package, root)| (package, Crate::read(root, &source)))
        .collect()
}

#[test]
fn imports_do_not_run_in_circles() {
    let names = tracked();
    let crates = crates(&names);
    let mut wrong = Vec::new();
    for package in packages(&names) {
        let ours = crates.iter().filter(|(of, _)| *of == package).map(|(_, all)| all);
        // what several tests share is told once
        let told: BTreeSet<String> =
            ours.flat_map(|all| all.circles().into_iter().map(|circle| all.tell(&circle))).collect();
        wrong.extend(told.into_iter().map(|told| format!("{package}: {told}")));
    }
    none(&wrong);
}

#[test]
fn every_source_file_belongs_to_a_crate() {
    let names = tracked();
    let known: BTreeSet<String> =
        crates(&names).into_iter().flat_map(|(_, all)| all.files.into_iter()).collect();
    let dead = names.iter().filter(|name| name.ends_with(".rs") && !known.contains(*name));
    none(&dead.map(|name| format!("{name}: no crate has it as a module")).collect::<Vec<String>>());
}

/// The names of a manifest's dependencies, without those of tests.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end().trim_end_matches(']');
            // `[dependencies.name]`, `[target.'...'.dependencies.name]`
            if let Some((before, name)) = section.split_once("dependencies.")
                && !before.ends_with("dev-")
            {
                found.push(name);
            }
        } else if section.ends_with("dependencies") && !section.ends_with("dev-dependencies") {
            let end = line.find([' ', '.', '=']).unwrap_or(0);
            found.extend(Some(&line[..end]).filter(|name| !name.is_empty() && !name.starts_with('#')));
        }
    }
    found
}

/// The name that a manifest gives its package.
fn package_name(manifest: &str) -> Option<String> {
    let name = manifest.lines().find_map(|line| line.strip_prefix("name = \""))?;
    Some(name.trim_end_matches('"').to_string())
}

/// Nothing that an embedder links blocks, but `Driver::wait`.
fn blocks(name: &str, source: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, line) in lines(source).iter().enumerate().filter(|(_, line)| !line.in_test) {
        for word in ["BlockingFile", "blocking", "tools", "quod_tools"] {
            if has_word(&line.code, word) {
                wrong.push(format!("{name}:{}: `{word}` in the crate that never blocks", n + 1));
            }
        }
        for call in
            ["thread::sleep", "thread::park", "File::open", "File::create", "fs::read", "fs::metadata"]
        {
            if line.code.contains(call) {
                wrong.push(format!("{name}:{}: `{call}` blocks", n + 1));
            }
        }
    }
    wrong
}

#[test]
fn what_an_embedder_links_does_not_block() {
    let manifest = read("driver/Cargo.toml").expect("the package has a manifest");
    let ours: Vec<&str> =
        dependencies(&manifest).into_iter().filter(|name| name.starts_with("quod")).collect();
    assert_eq!(ours, ["quod-backend", "quod-states"], "what the driver links");
    let sources = tracked().into_iter().filter(|name| {
        name.starts_with("driver/src/") && name.ends_with(".rs") && !name.ends_with("/tests.rs")
    });
    none(&sources.flat_map(|name| blocks(&name, &read(&name).unwrap_or_default())).collect::<Vec<String>>());
}

/// What C embeds is the face of the driver, and of what blocks the making of an image.
#[test]
fn the_c_interface_links_the_face_alone() {
    let manifest = read("driver/capi/Cargo.toml").expect("the package has a manifest");
    assert_eq!(dependencies(&manifest), ["libc", "quod", "quod-tools"]);
    let hidden = ["LOCK_PATIENCE", "LOCK_RETRY", "describe", "with_backend", "backend_mut", "from_core"];
    for name in tracked().iter().filter(|name| name.starts_with("driver/capi/src/")) {
        for line in lines(&read(name).unwrap_or_default()) {
            let found = hidden.iter().find(|word| has_word(&line.code, word));
            assert_eq!(found, None, "{name}: what is promised to nobody");
            let blocks = has_word(&line.code, "quod_tools") && !name.ends_with("/create.rs");
            assert!(!blocks, "{name}: what blocks is for one call alone");
        }
    }
}

/// The backend stands alone: what moves bytes knows no image, and may be taken without one.
#[test]
fn the_backend_links_no_package_of_the_tree() {
    let names = tracked();
    let manifests = packages(&names).into_iter().filter_map(|package| read(&format!("{package}/Cargo.toml")));
    let ours: Vec<String> = manifests.filter_map(|manifest| package_name(&manifest)).collect();
    assert!(ours.len() > 5 && ours.iter().any(|name| name == "quod-backend"), "{ours:?}");
    let manifest = read("backend/Cargo.toml").expect("the package has a manifest");
    // what its tests link, too
    let manifest = manifest.replace("dev-dependencies", "dependencies");
    let linked = dependencies(&manifest);
    assert!(linked.contains(&"libc") && linked.contains(&"tempfile"), "{linked:?}");
    let wrong = linked.iter().filter(|name| ours.iter().any(|package| package == *name));
    none(&wrong.map(|name| format!("backend links {name}")).collect::<Vec<String>>());
}

/// Files that give a machine the bytes of a table: the driver, the tools' blocking file, and the embedder in
/// memory that everything else shares. Tests beside these answer by hand what an embedder must not.
const EMBEDDERS: [&str; 3] =
    ["driver/src/engine/translate.rs", "driver/tools/src/host.rs", "states/memory/src/plain.rs"];

/// Answers a machine by hand.
fn embeds(name: &str, source: &str) -> Vec<String> {
    let lines = lines(source);
    let answers = lines.iter().enumerate().filter(|(_, line)| line.code.contains("Outcome::Table("));
    answers.map(|(n, _)| format!("{name}:{}: one more embedder; quod-memory is one", n + 1)).collect()
}

#[test]
fn one_embedder_in_memory_is_shared() {
    let manifest = read("states/memory/Cargo.toml").expect("the package has a manifest");
    assert_eq!(dependencies(&manifest), ["quod-states"], "what the embedder in memory links");
    let ours = |name: &String| {
        name.ends_with(".rs")
            && !name.starts_with("states/src/")
            && !name.starts_with("states/tests/")
            && !name.starts_with("driver/cli/tests/")
            && !EMBEDDERS.contains(&name.as_str())
    };
    let shared = ["disk.rs", "qcow2.rs"].map(|name| format!("states/tests/common/src/{name}"));
    let sources = tracked().into_iter().filter(ours).chain(shared);
    none(&sources.flat_map(|name| embeds(&name, &read(&name).unwrap_or_default())).collect::<Vec<String>>());
    for name in EMBEDDERS {
        assert!(!embeds(name, &read(name).unwrap_or_default()).is_empty(), "{name} embeds nothing");
    }
}

/// A server is an embedder: what it needs of the driver every embedder may have. The protocol is nobody's.
#[test]
fn what_serves_uses_the_public_face() {
    let ours = |package: &str| {
        let manifest = read(&format!("{package}/Cargo.toml")).expect("the package has a manifest");
        let linked = dependencies(&manifest);
        linked.into_iter().filter(|name| name.starts_with("quod")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(ours("driver/serve"), ["quod", "quod-door", "quod-nbd"], "what a server links");
    assert_eq!(ours("driver/serve/door"), ["quod"], "what all servers share");
    assert_eq!(ours("driver/serve/fuse"), ["quod", "quod-door"], "what a mount links");
    assert_eq!(ours("driver/serve/nbd"), [""; 0], "what the protocol links");
    for package in ["driver/serve", "driver/serve/nbd", "driver/serve/door", "driver/serve/fuse"] {
        let root = read(&format!("{package}/src/lib.rs")).expect("the crate has a root");
        assert!(root.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{package}");
    }
    let root = read("driver/serve/nbd/src/lib.rs").expect("the crate has a root");
    assert!(root.lines().any(|line| line == "#![no_std]"));
}

#[test]
fn the_command_links_no_proof() {
    for package in ["driver/cli", "driver/tools", "bench"] {
        let manifest = read(&format!("{package}/Cargo.toml")).expect("the package has a manifest");
        let linked = dependencies(&manifest);
        assert!(linked.contains(&"quod"), "{package}: {linked:?}");
        assert!(!linked.contains(&"quod-fuzz"), "{package} links the proof");
    }
}

mod samples {
    use super::*;
    use std::collections::HashMap;

    /// The circles of a small crate, by the names of its files.
    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let sources: HashMap<&str, &str> = files.iter().copied().collect();
        let source = |name: &str| sources.get(name).map(|text| text.to_string());
        let all = Crate::read("p/src/lib.rs", &source);
        assert_eq!(all.files.len(), files.len(), "all files are found");
        let names = |circle: Vec<usize>| {
            let told = all.tell(&circle);
            assert!(told.contains(" is in p/src/"), "{told}");
            circle
                .iter()
                .map(|file| all.files[*file].trim_start_matches("p/src/"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        all.circles().into_iter().map(names).collect()
    }

    const LIB: (&str, &str) = ("p/src/lib.rs", "mod a;\nmod b;\npub use a::A;\n");

    fn two(a: &str, b: &str) -> Vec<String> {
        circles(&[LIB, ("p/src/a.rs", a), ("p/src/b.rs", b)])
    }

    #[test]
    fn circles_are_found_however_they_import() {
        for a in [
            "use crate::b::B;\npub struct A(B);",
            "use super::b::{B, C};\npub struct A;",
            "pub struct A;\nfn f() { crate::b::g() }",
            "use crate::b;\npub struct A;\nfn f() { b::g() }",
            "use super::b as other;\npub struct A;\nfn f() -> Option<other::B> { None }",
            "use super::{b::{self}};\npub struct A;\nfn f() { b::g() }",
            "pub struct A;\nimpl From<crate::b::B> for A {}",
            "pub use crate::b::B;\npub struct A(B);",
            "use crate::b::*;\npub struct A;",
            "pub struct A;\nfn f() { said!() }",
            "mod inner { use crate::b::B; }\npub struct A;",
            "mod inner { use super::super::b::B; }\npub struct A;",
        ] {
            let b = "macro_rules! said { () => {} }\npub struct B;\npub fn g() { crate::A }";
            assert_eq!(two(a, &b.replace("crate::A ", "crate::a::A ")), ["a.rs b.rs"], "{a}");
            // over the name that the root passes on
            assert_eq!(two(a, &b.replace("{ crate", "-> crate").replace(" }", ";")), ["a.rs b.rs"], "{a}");
        }
    }

    #[test]
    fn what_is_no_circle_passes() {
        let b = "use crate::a::A;\npub struct B(A);";
        for a in [
            "pub struct A;",
            "pub struct A; // crate::b::B",
            "pub struct A;\nconst TEXT: &str = \"crate::b::B\";",
            "pub struct A;\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}\n",
            "pub struct A;\n#[cfg(test)]\nuse crate::b::B;\n",
            "pub struct A;\nuse std::b::B;\nfn f() { other::b::g() }",
            // a module is imported, and nothing in it
            "use crate::b;\npub struct A;",
            "pub(in crate::b) struct A;",
        ] {
            assert_eq!(two(a, b), [""; 0], "{a}");
        }
    }

    #[test]
    fn parents_and_children() {
        let lib = ("p/src/lib.rs", "mod room;");
        let child = ("p/src/room/child.rs", "use super::Shared;\npub struct Child(Shared);");
        let files = |parent: &'static str| [lib, ("p/src/room/mod.rs", parent), child];
        // a parent may pass on what its children make, and they may use what it has
        assert_eq!(circles(&files("mod child;\npub use child::Child;\npub struct Shared;")), [""; 0]);
        let uses = "mod child;\npub use child::Child;\npub struct Shared;\npub struct Room(Child);";
        assert_eq!(circles(&files(uses)), ["room/mod.rs room/child.rs"]);
        let calls = "mod child;\npub struct Shared;\nfn f() { child::g() }";
        assert_eq!(circles(&files(calls)), ["room/mod.rs room/child.rs"]);
        let split = [
            ("p/src/lib.rs", "mod room;"),
            ("p/src/room.rs", "mod one;\nmod other;\npub use one::One;\npub use other::Other;"),
            ("p/src/room/one.rs", "use super::Other;\npub struct One(Other);"),
            ("p/src/room/other.rs", "pub struct Other(Option<crate::room::One>);"),
        ];
        assert_eq!(circles(&split), ["room/one.rs room/other.rs"]);
    }

    #[test]
    fn files_that_lie_elsewhere_are_found_behind_other_attributes() {
        let lib = (
            "p/src/lib.rs",
            "#[path = \"../far/a.rs\"]\n#[allow(dead_code, reason = \"x\")]\nmod a;\nmod b;",
        );
        let files = |a| [lib, ("p/far/a.rs", a), ("p/src/b.rs", "use super::a::A;\npub struct B(A);")];
        assert_eq!(circles(&files("pub struct A;")), [""; 0]);
        assert_eq!(circles(&files("pub struct A(super::b::B);")), ["p/far/a.rs b.rs"]);
    }

    #[test]
    fn longer_circles_are_one() {
        let lib = ("p/src/lib.rs", "mod a;\nmod b;\nmod c;\nmod d;");
        let files = [
            lib,
            ("p/src/a.rs", "use crate::b::B;\npub struct A;"),
            ("p/src/b.rs", "use crate::c::C;\npub struct B;"),
            ("p/src/c.rs", "use crate::a::A;\npub struct C;"),
            ("p/src/d.rs", "use crate::a::A;"),
        ];
        assert_eq!(circles(&files), ["a.rs b.rs c.rs"]);
    }

    #[test]
    fn manifests_are_read() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\n# why\na.workspace = true\n\
                        b = { path = \"b\" }\n\n\
                        [target.'cfg(unix)'.dependencies]\nc = \"1\"\n\n[dependencies.d]\npath = \"d\"\n\n\
                        [dev-dependencies]\ne = \"1\"\n\n[build-dependencies]\nf = \"1\"\n";
        assert_eq!(dependencies(manifest), ["a", "b", "c", "d", "f"]);
    }

    #[test]
    fn what_blocks_is_found() {
        for bad in [
            "fn f() { File::open(PATH) }",
            "fn f() { std::fs::read(PATH) }",
            "fn f() { std::thread::sleep(TIME) }",
            "use quod_backend::blocking::BlockingFile;",
            "pub mod tools;",
            "use quod_tools::create;",
        ] {
            assert!(!blocks("driver/src/x.rs", bad).is_empty(), "{bad}");
        }
        for good in [
            "// File::open(x)",
            "#[cfg(test)]\nmod tests {\n    fn f() { File::open(x) }\n}",
            "struct FileId;",
        ] {
            assert_eq!(blocks("driver/src/x.rs", good), [""; 0], "{good}");
        }
    }
}
