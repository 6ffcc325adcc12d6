//! `quod snapshot` beside `qemu-img snapshot`: the same inputs through both; each program goes on with what
//! the other has made.
//!
//! Checks: texts and exit codes; lists but for dates; QEMU's check and its reading of disks and snapshots
//! that quod made, applied and deleted, over the matrix of create options, and the other way round; refcounts
//! that cannot say so many references; bitmaps, data files, other formats.

mod common;

use common::{Answer, bytes, make, prepare, qemu_img, quod, run, write};
use std::path::Path;

const QUOD: &str = env!("CARGO_BIN_EXE_quod");

/// Create options: clusters, refcounts, versions, tables.
const MATRIX: [&str; 13] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4k,refcount_bits=32",
    "cluster_size=2M",
    "extended_l2=on",
    "extended_l2=on,cluster_size=2M",
    "lazy_refcounts=on",
    "lazy_refcounts=on,cluster_size=512",
    "refcount_bits=4",
    "refcount_bits=8",
    "preallocation=metadata,cluster_size=4k",
];

fn image(folder: &Path, options: &str, name: &str) {
    let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
    make(folder, &[&["qcow2"], options, &[name, "4M"]].concat());
}

/// One step with either program.
fn step(program: &str, folder: &Path, action: &str, name: &str, file: &str) {
    let program = if program == "quod" { QUOD } else { program };
    prepare(program, &["snapshot", action, name, file], folder);
}

/// What the disk, and a snapshot, hold, as QEMU reads them.
fn held(folder: &Path, file: &str, snapshot: Option<&str>) -> Vec<u8> {
    let snapshot = snapshot.map(|name| format!("snapshot.name={name}"));
    let named: Vec<&str> = snapshot.iter().flat_map(|name| ["-l", name]).collect();
    let args = [&["convert", "-O", "raw"], named.as_slice(), &[file, "held"]].concat();
    prepare("qemu-img", &args, folder);
    bytes(folder, "held")
}

fn sound(folder: &Path, file: &str, story: &str) {
    let told = qemu_img(&["check", "-q", file], folder);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{story}: {told:?}");
    let told = quod(&["check", "-q", file], folder);
    assert_eq!(told.code, Some(0), "{story}: {told:?}");
}

/// A life of an image, each step of it by one program or the other.
fn life(folder: &Path, options: &str, programs: [&str; 6]) {
    let story = format!("{options} {programs:?}");
    let _ = std::fs::remove_file(folder.join("i"));
    image(folder, options, "i");
    write(folder, "qcow2", "i", &["write -P 1 0 1M", "write -P 2 2M 70k", "write -z 300k 200k"]);
    let first = held(folder, "i", None);
    step(programs[0], folder, "-c", "first", "i");
    sound(folder, "i", &story);
    write(folder, "qcow2", "i", &["write -P 3 100k 500k", "discard 2M 64k"]);
    let second = held(folder, "i", None);
    step(programs[1], folder, "-c", "second", "i");
    sound(folder, "i", &story);
    assert!(held(folder, "i", Some("first")) == first, "{story}");
    assert!(held(folder, "i", Some("second")) == second, "{story}");
    write(folder, "qcow2", "i", &["write -P 4 3M 300k", "write -P 5 0 4k"]);
    step(programs[2], folder, "-a", "first", "i");
    sound(folder, "i", &story);
    assert!(held(folder, "i", None) == first, "{story}");
    write(folder, "qcow2", "i", &["write -P 6 700k 100k"]);
    let third = held(folder, "i", None);
    step(programs[3], folder, "-d", "first", "i");
    sound(folder, "i", &story);
    assert!(held(folder, "i", Some("second")) == second && held(folder, "i", None) == third, "{story}");
    step(programs[4], folder, "-a", "second", "i");
    sound(folder, "i", &story);
    step(programs[5], folder, "-d", "second", "i");
    sound(folder, "i", &story);
    assert!(held(folder, "i", None) == second, "{story}");
    write(folder, "qcow2", "i", &["write -P 7 0 4M"]);
    sound(folder, "i", &story);
}

#[test]
fn each_program_goes_on_with_what_the_other_has_made() {
    let folder = tempfile::tempdir().unwrap();
    let (q, e) = ("quod", "qemu-img");
    for options in MATRIX {
        for programs in [[q; 6], [q, e, q, e, q, e], [e, q, e, q, e, q], [e, e, q, q, q, e]] {
            life(folder.path(), options, programs);
        }
    }
    // QEMU counts higher in between, and refuses
    life(folder.path(), "refcount_bits=2", [q; 6]);
}

#[test]
fn compressed_clusters_have_snapshots_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "r", "4M"]);
    write(folder, "raw", "r", &["write -P 1 0 1M", "write -P 2 2M 1M"]);
    for kind in ["zlib", "zstd"] {
        let options = format!("compression_type={kind},cluster_size=4k");
        prepare("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &options, "r", "c"], folder);
        step("quod", folder, "-c", "first", "c");
        write(folder, "qcow2", "c", &["write -P 3 500k 900k"]);
        sound(folder, "c", kind);
        assert!(held(folder, "c", Some("first")) == bytes(folder, "r"), "{kind}");
        step("quod", folder, "-a", "first", "c");
        step("quod", folder, "-d", "first", "c");
        sound(folder, "c", kind);
        assert!(held(folder, "c", None) == bytes(folder, "r"), "{kind}");
    }
}

/// Lists without what no two runs share: seconds.
fn without_dates(mut answer: Answer) -> Answer {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| word.matches('-').count() == 2 && word.len() == 10);
        match at {
            Some(at) => format!("{} {}\n", words[..at].join(" "), words[at + 2..].join(" ")),
            None => format!("{line}\n"),
        }
    };
    answer.stdout = answer.stdout.lines().map(line).collect();
    answer
}

#[test]
fn words_and_exit_codes_are_qemus() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        let folder = folder.path();
        image(folder, "", "q");
        make(folder, &["qcow2", "-o", "data_file=d.raw", "d", "1M"]);
        make(folder, &["qcow2", "b", "1M"]);
        prepare("qemu-img", &["bitmap", "--add", "b", "bits"], folder);
        prepare("qemu-img", &["snapshot", "-c", "kept", "b"], folder);
        make(folder, &["qed", "e", "1M"]);
        make(folder, &["raw", "r", "1M"]);
    }
    for args in [
        "q",
        "-l q",
        "-c one q",
        "-c one q",
        "-c 2 q",
        "-l q",
        "-a 1 q",
        "-a one q",
        "-a nope q",
        "-d nope q",
        "-d 1 q",
        "-d 2 q",
        "-d one q",
        "-l q",
        "-c new q",
        "-q -c quiet q",
        "-l q",
        "-U -l q",
        "-U -c x q",
        "-l -c x q",
        "-a x -d y q",
        "",
        "-l q q",
        "-l nofile",
        "-c x nofile",
        "-f foo -l q",
        "-f raw -l q",
        "-f raw -c x r",
        "-f raw -d x r",
        "-f raw -a x r",
        "-f raw -l r",
        "-c x r",
        "-l e",
        "-c x e",
        "-d x e",
        "-a x e",
        "-c x d",
        "-d x d",
        "-a x d",
        "-l d",
        "-a kept b",
        "-c more b",
        "-d kept b",
        "-l b",
        "-a nope b",
    ] {
        let args: Vec<&str> = ["snapshot"].into_iter().chain(args.split_whitespace()).collect();
        let ours = without_dates(quod(&args, folders[0].path()));
        let theirs = without_dates(qemu_img(&args, folders[1].path()));
        assert_eq!(ours, theirs, "{args:?}");
    }
    // bitmaps are as right as they were
    for folder in &folders {
        let told = qemu_img(&["info", "--output", "json", "b"], folder.path());
        assert!(told.stdout.contains("\"auto\"") && !told.stdout.contains("in-use"), "{told:?}");
        sound(folder.path(), "b", "bitmaps");
    }
}

#[test]
fn refcounts_that_cannot_say_it_refuse_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (bits, fits) in [(1, 0), (2, 2)] {
        image(folder, &format!("refcount_bits={bits}"), "n");
        write(folder, "qcow2", "n", &["write -P 1 0 64k"]);
        for n in 0..fits {
            step("quod", folder, "-c", &n.to_string(), "n");
        }
        let before = held(folder, "n", None);
        let ours = quod(&["snapshot", "-c", "more", "n"], folder);
        let why = format!("refcounts of {bits} bits cannot count so many");
        let told = format!("Could not create snapshot 'more': Invalid argument ({why})\n");
        assert_eq!((ours.code, ours.stderr), (Some(1), told));
        // QEMU leaves leaks
        sound(folder, "n", "refused");
        assert!(held(folder, "n", None) == before);
        std::fs::remove_file(folder.join("n")).unwrap();
    }
    // nothing is shared: it fits
    image(folder, "refcount_bits=1", "n");
    step("quod", folder, "-c", "empty", "n");
    write(folder, "qcow2", "n", &["write -P 1 0 64k"]);
    step("quod", folder, "-a", "empty", "n");
    sound(folder, "n", "empty");
}

#[test]
fn an_applied_snapshot_brings_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for size in ["8M", "2M"] {
        image(folder, "cluster_size=4k", "s");
        write(folder, "qcow2", "s", &["write -P 1 0 4M"]);
        let then = held(folder, "s", None);
        step("quod", folder, "-c", "first", "s");
        prepare(QUOD, &["resize", "-q", "--shrink", "s", size], folder);
        write(folder, "qcow2", "s", &["write -P 2 1M 1M"]);
        step("quod", folder, "-a", "first", "s");
        sound(folder, "s", size);
        assert!(held(folder, "s", None) == then, "{size}");
        let told = run(QUOD, &["info", "s"], folder, "").stdout;
        assert!(told.contains("virtual size: 4 MiB"), "{told}");
    }
}

#[test]
fn what_quod_has_not_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    image(folder, "", "q");
    let long = "x".repeat(256);
    for (args, told) in [
        (vec!["--image-opts", "-l", "file.filename=q"], "--image-opts: "),
        (vec!["--object", "secret,id=a,data=b", "-l", "q"], "--object: "),
        (vec!["-c", &long, "q"], "Could not create snapshot "),
    ] {
        let ours = quod(&[&["snapshot"], args.as_slice()].concat(), folder);
        assert!(ours.code == Some(1) && ours.stderr.starts_with(told), "{args:?}: {ours:?}");
    }
    sound(folder, "q", "refused");
}
