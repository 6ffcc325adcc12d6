//! The judges: `qemu-img` and `qemu-io` as installed. A missing program fails the test that needs it.

use std::path::Path;
use std::process::{Command, Output};

/// What a program said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end; panics if it is not installed or was killed.
pub fn run(program: &str, args: &[&str]) -> Verdict {
    let output: Output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install QEMU's tools"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let code = code.unwrap_or_else(|| panic!("{program} {args:?} was killed: {stdout}{stderr}"));
    Verdict { code, stdout, stderr }
}

/// As `run`; panics if it fails.
pub fn good(program: &str, args: &[&str]) -> String {
    let verdict = run(program, args);
    assert!(verdict.code == 0, "{program} {args:?}: {verdict:?}");
    verdict.stdout
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The counts of `qemu-img check`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub code: i32,
    pub corruptions: u64,
    pub leaks: u64,
    pub corruptions_fixed: u64,
    pub allocated: u64,
    pub fragmented: u64,
}

/// `qemu-img check`, with `-r all` if asked; None if it could not open or check the image.
pub fn check(image: &Path, repair: bool) -> Option<Counts> {
    let mut args = vec!["check", "-f", "qed", "--output=json"];
    if repair {
        args.extend(["-r", "all"]);
    }
    args.push(arg(image));
    let verdict = run("qemu-img", &args);
    if verdict.code == 1 || !verdict.stdout.contains("check-errors") {
        return None;
    }
    let count = |name| number(&verdict.stdout, name).unwrap_or(0);
    Some(Counts {
        code: verdict.code,
        corruptions: count("corruptions"),
        leaks: count("leaks"),
        corruptions_fixed: count("corruptions-fixed"),
        allocated: count("allocated-clusters"),
        fragmented: count("fragmented-clusters"),
    })
}

/// The number behind `"name": ` in JSON.
fn number(json: &str, name: &str) -> Option<u64> {
    let key = format!("\"{name}\": ");
    let rest = &json[json.find(&key)? + key.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Is `"name": true` there?
fn truth(json: &str, name: &str) -> bool {
    json.contains(&format!("\"{name}\": true"))
}

/// A run of `qemu-img map`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Run {
    pub start: u64,
    pub length: u64,
    pub depth: u64,
    pub present: bool,
    pub zero: bool,
    pub data: bool,
    pub compressed: bool,
    pub offset: Option<u64>,
}

/// `qemu-img map --output=json` of a QED image.
pub fn map(image: &Path) -> Vec<Run> {
    map_as("qed", image)
}

/// `qemu-img map --output=json`.
pub fn map_as(format: &str, image: &Path) -> Vec<Run> {
    let json = good("qemu-img", &["map", "-f", format, "--output=json", arg(image)]);
    let run = |line: &str| Run {
        start: number(line, "start").expect("start"),
        length: number(line, "length").expect("length"),
        depth: number(line, "depth").expect("depth"),
        present: truth(line, "present"),
        zero: truth(line, "zero"),
        data: truth(line, "data"),
        compressed: truth(line, "compressed"),
        offset: number(line, "offset"),
    };
    json.lines().filter(|line| line.contains("\"start\"")).map(run).collect()
}

/// Neither corruption nor leak, says `qemu-img check`.
pub fn assert_clean(image: &Path, story: &str) {
    let counts = check(image, false);
    assert!(
        counts.is_some_and(|counts| (counts.code, counts.corruptions, counts.leaks) == (0, 0, 0)),
        "{story}: qemu-img check: {counts:?}"
    );
}

/// The guest disk of the image is exactly these bytes, says `qemu-img compare`.
pub fn assert_holds(image: &Path, bytes: &[u8], story: &str) {
    let copy = image.with_extension("expected.raw");
    std::fs::write(&copy, bytes).unwrap();
    let verdict = run("qemu-img", &["compare", "-f", "qed", "-F", "raw", arg(image), arg(&copy)]);
    assert!(verdict.code == 0, "{story}: qemu-img compare: {verdict:?}");
    std::fs::remove_file(copy).unwrap();
}

/// One `qemu-io` process with these commands; every one of them must succeed.
pub fn io(image: &Path, options: &[&str], commands: &[String], story: &str) {
    let mut args = vec!["-f", "qed"];
    args.extend(options);
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(arg(image));
    let verdict = run("qemu-io", &args);
    let text = format!("{}{}", verdict.stdout, verdict.stderr);
    let bad =
        ["failed", "error", "invalid", "not ", "cannot", "Could"].iter().any(|word| text.contains(word));
    assert!(verdict.code == 0 && !bad, "{story}: qemu-io {args:?}:\n{text}");
}
