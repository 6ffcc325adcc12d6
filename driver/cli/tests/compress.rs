//! `quod convert -c` and `write -c` of `quod io` beside QEMU's: images that qemu-img's `compare`, `check` and
//! `map` judge, texts and exit codes of what is refused, results that repeat.

mod common;

use common::{Answer, bytes, make, must, prepare, qemu_img, qemu_io, quod, quod_io, write};
use std::path::Path;

fn words<'a>(lead: &'a str, rest: &'a str) -> Vec<&'a str> {
    [lead].into_iter().chain(rest.split_whitespace()).collect()
}

/// Converts, and has QEMU judge the image that is the last word. All of its data is compressed, but noise.
fn good(args: &str, source: &str, folder: &Path) {
    let answer = quod(&words("convert", args), folder);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args}: {answer:?}");
    let target = args.split_whitespace().next_back().unwrap();
    let told = qemu_img(&["compare", "-F", "qcow2", source, target], folder);
    assert_eq!(told.code, Some(0), "{args}: {told:?}");
    let told = qemu_img(&["check", "-q", "-f", "qcow2", target], folder);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{args}: {told:?}");
    let map = |program: &str| must(program, &["map", "--output=json", target], folder);
    assert_eq!(map("qemu-img"), map(env!("CARGO_BIN_EXE_quod")), "{args}");
}

/// Text, noise and zeros, in clusters of any size; a size that is no multiple of one.
fn contents(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..len)
        .map(|at| match at >> 14 & 15 {
            0..=2 => noise(),
            3..=6 => 0,
            _ => b"what a compressor finds again and again, "[at % 41] ^ (at >> 10) as u8 & 3,
        })
        .collect()
}

fn sources(folder: &Path) -> [&'static str; 4] {
    std::fs::write(folder.join("s.raw"), contents(5_000_192)).unwrap();
    prepare("qemu-img", &["convert", "-f", "raw", "-O", "qed", "s.raw", "s.qed"], folder);
    prepare("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "s.raw", "s.qcow2"], folder);
    make(folder, &["qcow2", "-b", "s.qed", "-F", "qed", "top.qcow2", "6M"]);
    write(folder, "qcow2", "top.qcow2", &["write -P 3 100k 8k", "write -z 1M 64k", "write -P 4 5900k 1k"]);
    ["s.raw", "s.qed", "s.qcow2", "top.qcow2"]
}

#[test]
fn every_source_into_every_kind_of_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for source in sources(folder) {
        for options in [
            "",
            "-o compression_type=zstd",
            "-o cluster_size=4k",
            "-o cluster_size=512,refcount_bits=1",
            "-o cluster_size=2M,compression_type=zstd",
            "-o compat=0.10",
            "-o extended_l2=on,lazy_refcounts=on,refcount_bits=64",
        ] {
            for more in ["", "-W -m 16", "-S 0 -m 1"] {
                good(&format!("-c -O qcow2 {options} {more} {source} target"), source, folder);
            }
        }
    }
    good("-c -O qcow2 -t none s.raw target", "s.raw", folder);
}

#[test]
fn results_repeat_and_are_smaller_than_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    for (options, more) in [("", ""), ("-o cluster_size=4k", "-m 16"), ("-o compression_type=zstd", "")] {
        good(&format!("-c -O qcow2 {options} {more} s.raw first"), "s.raw", folder);
        for _ in 0..3 {
            good(&format!("-c -O qcow2 {options} {more} s.raw again"), "s.raw", folder);
            assert!(bytes(folder, "first") == bytes(folder, "again"), "{options}");
        }
        prepare("qemu-img", &words("convert", &format!("-c -O qcow2 {options} s.raw theirs")), folder);
        let [ours, theirs] = ["first", "theirs"].map(|file| bytes(folder, file).len());
        // ours ends with a cluster
        assert!(ours <= theirs.next_multiple_of(1 << 16) + theirs / 50, "{options}: {ours} {theirs}");
    }
}

#[test]
fn sources_meet_within_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("odd.raw"), contents(170_001)).unwrap();
    std::fs::write(folder.join("bit.raw"), contents(1024)).unwrap();
    let all = "odd.raw bit.raw bit.raw odd.raw";
    prepare("qemu-img", &words("convert", &format!("-O raw {all} theirs")), folder);
    for more in ["", "-W", "-S 0", "-o cluster_size=2M"] {
        good(&format!("-c -O qcow2 {more} {all} ours"), "theirs", folder);
    }
}

#[test]
fn over_a_backing_file_and_into_an_image_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    good("-c -O qcow2 -B s.qed -F qed top.qcow2 over", "top.qcow2", folder);
    for how in ["", "--target-is-zero"] {
        make(folder, &["qcow2", "there", "5000192"]);
        good(&format!("-c -n {how} -O qcow2 s.raw there"), "s.raw", folder);
    }
    // what is allocated is not compressed over
    write(folder, "qcow2", "there", &["write -P 1 0 64k"]);
    let both = |args: &str| [quod, qemu_img].map(|run| run(&words("convert", args), folder));
    let [ours, theirs] = both("-c -n -O qcow2 s.raw there");
    assert_eq!((ours.code, theirs.code), (Some(1), Some(1)));
    let text = "error while writing at byte 0: Input/output error";
    assert!(ours.stderr.contains(text) && theirs.stderr.contains(text), "{ours:?} {theirs:?}");
}

#[test]
fn formats_without_it_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    for args in ["-c -O raw s.raw x", "-c -O qed s.raw x", "-c -O qcow2 -o preallocation=metadata s.raw x"] {
        let [ours, theirs] = [quod, qemu_img].map(|run| run(&words("convert", args), folder));
        let line = |answer: &Answer| answer.stderr.lines().next().unwrap_or_default().to_string();
        let lines = [line(&ours).replace("quod: ", ""), line(&theirs).replace("qemu-img: ", "")];
        assert_eq!((ours.code, &lines[0]), (theirs.code, &lines[1]), "{args}");
    }
    // QEMU makes an image first
    let answer = quod(&words("convert", "-c -O qcow2 -o data_file=d s.raw y"), folder);
    assert!(answer.code == Some(1) && answer.stderr.contains("external data file"), "{answer:?}");
    assert!(!folder.join("y").exists());
}

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for (options, name) in [
        ("cluster_size=64k", "x.qcow2"),
        ("compression_type=zstd", "zstd.qcow2"),
        ("extended_l2=on", "split.qcow2"),
        ("data_file=d,data_file_raw=on", "file.qcow2"),
    ] {
        make(path, &["qcow2", "-o", options, name, "1100288"]);
    }
    for format in ["raw", "qed"] {
        make(path, &[format, format, "1100288"]);
    }
    folder
}

/// Both with the same words: the same answers, and the same disk.
fn same(format: &str, image: &str, commands: &[&str]) {
    let (ours, theirs) = (fresh(), fresh());
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    args.extend(["-f", format, image]);
    let (we, they) = (quod_io(&args, ours.path(), ""), qemu_io(&args, theirs.path(), ""));
    assert_eq!(we, they, "{image} {commands:?}");
    if image == "file.qcow2" {
        // its data file is named from the working directory
        return;
    }
    let paths = [&ours, &theirs].map(|folder| folder.path().join(image).display().to_string());
    prepare("qemu-img", &["compare", "-q", "-f", format, "-F", format, &paths[0], &paths[1]], Path::new("/"));
    if format == "qcow2" {
        prepare("qemu-img", &["check", "-q", &paths[0]], Path::new("/"));
    }
}

#[test]
fn the_shell_answers_as_qemu_io() {
    for image in ["x.qcow2", "zstd.qcow2", "split.qcow2"] {
        let rewrite = ["write -c -P 7 64k 64k", "read -P 7 64k 64k", "map", "write -P 8 70k 4k", "map"];
        same("qcow2", image, &rewrite);
        let again = ["write -c 0 256k", "read -P 0xcd 0 256k", "discard 64k 64k", "write -c 64k 64k"];
        same("qcow2", image, &again);
        // parts, but the disk's last; over what is there
        let parts = ["write -c 0 32k", "write -c 32k 64k", "write -c 0 96k", "write -c 1M 51712", "map"];
        same("qcow2", image, &parts);
        let over = ["write 0 64k", "write -c 0 64k", "write -c 64k 64k", "write -c 64k 64k", "write -c 0 0"];
        same("qcow2", image, &over);
        let zeros = ["write -z 0 64k", "write -c -P 5 0 64k", "write 64k 64k", "write -z 64k 64k"];
        same("qcow2", image, &zeros);
        let flags = ["write -c -P 1 512 512", "write -c 1 1", "write -c -z 0 4k", "write -c -f 0 64k"];
        same("qcow2", image, &flags);
        same("qcow2", image, &["write -c 0 2M", "write -c 2M 64k", "write -c -n 0 64k"]);
    }
    for (format, image) in [("raw", "raw"), ("qed", "qed"), ("qcow2", "file.qcow2")] {
        same(format, image, &["write -c -P 7 64k 64k", "read 64k 64k"]);
    }
}

/// Of two clusters whose second is allocated QEMU writes the first and fails; we write neither.
#[test]
fn several_clusters_are_written_or_none() {
    let (ours, theirs) = (fresh(), fresh());
    let commands = ["write -P 1 64k 64k", "write -c -P 2 0 128k", "map"];
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    args.extend(["-f", "qcow2", "x.qcow2"]);
    let (we, they) = (quod_io(&args, ours.path(), ""), qemu_io(&args, theirs.path(), ""));
    assert_eq!((we.code, we.stderr), (they.code, they.stderr));
    let written = |answer: &str| answer.contains("128 KiB (0x20000) bytes     allocated at offset 0 bytes");
    assert!(!written(&we.stdout) && written(&they.stdout), "{} {}", we.stdout, they.stdout);
}
