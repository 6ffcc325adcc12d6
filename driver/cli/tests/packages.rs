//! The packages as a registry would have them: a crate outside the tree builds from them, opens images,
//! reads and writes, in every kind of loop that the examples show, and with decoders left out; and the
//! command has all that it is built of.
//!
//! Knows: cargo, the packages' names, what the examples do to an image. Must never know: the sources.

mod common;

use common::{prepare, qemu_img};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: [&str; 13] = [
    "quod-states",
    "quod-backend",
    "quod",
    "quod-tools",
    "quod-capi",
    "quod-nbd",
    "quod-door",
    "quod-serve",
    "quod-mount",
    "quod-vhost",
    "quod-memory",
    "quod-bench",
    "quod-cli",
];
/// Those that an embedder may ask for, and their parts.
const EMBEDDED: usize = 4;
/// What every package has beside its sources.
const TEXTS: [&str; 5] = ["Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];
/// What every manifest says.
const KEYS: [&str; 7] =
    ["description", "license", "readme", "keywords", "categories", "rust-version", "version"];
/// The crate outside, but for where the packages are.
const MANIFEST: &str = r#"[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[workspace]

[profile.dev]
debug = false

[features]
deflate = ["quod/deflate"]

[dependencies]
libc = "0.2"
mio = { version = "1", default-features = false, features = ["os-poll"] }
quod = { version = "0.1", default-features = false, features = ["mio"] }
quod-tools = { version = "0.1", default-features = false }
tokio = { version = "1", features = ["macros", "net", "rt", "sync", "time"] }
vm-memory = { version = "0.18", features = ["backend-mmap"] }
"#;
/// What measures, which is no embedder's.
const MEASURING: [&str; 2] = ["quod-memory", "quod-bench"];
/// The programs of the crate outside: the examples, word for word.
const PROGRAMS: [&str; 5] = ["hello", "mio_loop", "epoll_loop", "tokio_loop", "guest_memory"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs cargo in a folder, without a network.
fn cargo(folder: &Path, arguments: &[&str]) -> String {
    cargo_into(&build(), folder, arguments)
}

/// The same, with a place for what it makes.
fn cargo_into(target: &Path, folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--offline")
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(folder)
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

/// What was compiled stays for the next run.
fn build() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages")
}

/// Where the tree itself is built.
fn tree() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("..")
}

/// Packs the packages and unpacks them into a folder.
fn unpack(to: &Path) {
    let packed = build().join("package");
    fs::remove_dir_all(&packed).ok();
    let mut arguments = vec!["package", "--quiet", "--no-verify", "--allow-dirty"];
    arguments.extend(PACKAGES.iter().flat_map(|name| ["-p", name]));
    cargo(&top(), &arguments);
    fs::create_dir_all(to).unwrap();
    for name in PACKAGES {
        let archive = packed.join(format!("{name}-{}.crate", env!("CARGO_PKG_VERSION")));
        let folder = to.join(name);
        fs::create_dir(&folder).unwrap();
        let (archive, folder) = (archive.to_str().unwrap(), folder.to_str().unwrap());
        prepare("tar", &["-xzf", archive, "--strip-components", "1", "-C", folder], to);
    }
}

/// What is missing in an unpacked package, or should not be there.
fn faults(folder: &Path) -> Vec<String> {
    let name = folder.file_name().unwrap().to_string_lossy();
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let package = manifest.split("\n[").find(|part| part.starts_with("package]")).unwrap_or("");
    let texts = TEXTS.iter().filter(|text| fs::read(folder.join(text)).map_or(0, |text| text.len()) < 200);
    let mut wrong: Vec<String> = texts.map(|text| format!("{name} lacks {text}")).collect();
    let has = |key: &str| package.lines().any(|line| line.starts_with(&format!("{key} = ")));
    wrong.extend(KEYS.iter().filter(|key| !has(key)).map(|key| format!("{name} does not say its {key}")));
    // what is meant to be nobody's is not asked of a registry
    for line in manifest.lines() {
        let proof =
            line.contains("quod-fuzz") || line.contains("quod-memory") && !MEASURING.contains(&&*name);
        if proof || line.starts_with("path = \"../") {
            wrong.push(format!("{name}: {line}"));
        }
    }
    wrong
}

/// Where the first packages of the list are.
fn patches(packages: &Path, most: usize) -> String {
    let patch = |name: &&str| format!("{name} = {{ path = \"{}\" }}\n", packages.join(name).display());
    PACKAGES.iter().take(most).map(patch).collect()
}

/// A crate that depends on the packages, and not on the tree.
fn outside(folder: &Path, packages: &Path) {
    let patches = patches(packages, EMBEDDED);
    let manifest = format!("{MANIFEST}\n[patch.crates-io]\n{patches}");
    let programs = folder.join("src/bin");
    fs::create_dir_all(&programs).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // the versions that are here
    fs::copy(top().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    for name in PROGRAMS.map(|name| format!("{name}.rs")) {
        fs::copy(top().join("driver/examples").join(&name), programs.join(&name)).unwrap();
    }
}

/// A program of the crate outside on an image: what it says, and the end of what it complains of.
fn ask(program: &str, image: &Path) -> Result<String, String> {
    let output = Command::new(build().join("debug").join(program)).arg(image).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn a_crate_outside_the_tree_builds_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // the same in every run, so that nothing is compiled for another path
    let packages = build().join("unpacked");
    fs::remove_dir_all(&packages).ok();
    unpack(&packages);
    let wrong: Vec<String> = PACKAGES.iter().flat_map(|name| faults(&packages.join(name))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    let text = "an image read by a crate outside";
    let mut bytes = vec![0; 2 << 20];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    fs::write(folder.join("plain"), bytes).unwrap();
    for (name, options) in
        [("qcow2", &[][..]), ("deflate", &["-c"]), ("zstd", &["-c", "-o", "compression_type=zstd"])]
    {
        let convert = [&["convert", "-f", "raw", "-O", "qcow2"], options, &["plain", name]].concat();
        assert_eq!(qemu_img(&convert, folder).code, Some(0), "{convert:?}");
    }
    let image = |name: &str| folder.join(name);

    let crate_folder = folder.join("outside");
    outside(&crate_folder, &packages);
    let hello = fs::read_to_string(crate_folder.join("src/bin/hello.rs")).unwrap();
    assert!(hello.lines().count() <= 25, "a first read is longer than it need be");
    cargo(&crate_folder, &["build", "--quiet", "--bin", "hello"]);
    for name in ["plain", "qcow2"] {
        assert_eq!(ask("hello", &image(name)).as_deref(), Ok(text), "{name}");
    }
    for name in ["deflate", "zstd"] {
        let refusal = ask("hello", &image(name)).unwrap_err();
        assert!(refusal.contains(&format!("Decoder({})", capital(name))), "{name}: {refusal}");
    }

    cargo(&crate_folder, &["build", "--quiet", "--bins", "--features", "deflate"]);
    assert_eq!(ask("hello", &image("deflate")).as_deref(), Ok(text));
    assert!(ask("hello", &image("zstd")).is_err());
    for program in PROGRAMS {
        assert!(ask(program, &image("qcow2")).is_ok(), "{program}: {:?}", ask(program, &image("qcow2")));
    }
    let check = qemu_img(&["check", "qcow2"], folder);
    assert_eq!(check.code, Some(0), "{check:?}");

    let command = packages.join("quod-cli");
    let sources = format!("\n[workspace]\n\n[patch.crates-io]\n{}", patches(&packages, PACKAGES.len() - 1));
    let manifest = fs::read_to_string(command.join("Cargo.toml")).unwrap();
    fs::write(command.join("Cargo.toml"), manifest + &sources).unwrap();
    fs::copy(top().join("Cargo.lock"), command.join("Cargo.lock")).unwrap();
    // the libraries of others were checked with the tree
    cargo_into(&tree(), &command, &["check", "--quiet"]);
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
