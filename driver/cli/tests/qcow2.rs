//! qcow2 images on the command line: `quod info`, `map`, `check` and `io -r` against QEMU's tools.

mod common;

use common::{prepare, qemu_img, qemu_io, quod, quod_io};
use std::path::Path;

const FILES: [&str; 9] = ["plain", "old", "tiny", "zstd", "lazy", "over", "marked", "./plain", "packed"];

fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let create = |options: &str, more: &[&str]| {
        prepare("qemu-img", &[&["create", "-q", "-f", "qcow2", "-o", options], more].concat(), path);
    };
    create("compat=1.1", &["plain", "3M"]);
    create("compat=0.10", &["old", "20M"]);
    create("cluster_size=512,refcount_bits=1", &["tiny", "1M"]);
    create("compression_type=zstd,cluster_size=2M", &["zstd", "16M"]);
    create("lazy_refcounts=on,extended_l2=on,cluster_size=32k,refcount_bits=64", &["lazy", "2M"]);
    let write = |file: &str, commands: &[&str]| {
        let mut args = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(file);
        prepare("qemu-io", &args, path);
    };
    write("plain", &["write -P 7 0 192k", "write -z 256k 64k", "write -c -P 9 1M 64k", "write 2M 256k"]);
    write("old", &["write -P 3 64k 1M"]);
    write("zstd", &["write -c -P 5 2M 2M"]);
    create("compat=1.1", &["-b", "plain", "-F", "qcow2", "over", "4M"]);
    write("over", &["write -P 2 64k 64k", "write -z 512k 64k"]);
    create("cluster_size=4k", &["marked", "1M"]);
    prepare("qemu-img", &["bitmap", "--add", "-g", "4096", "marked", "map"], path);
    prepare("qemu-img", &["bitmap", "--add", "--disable", "marked", "other"], path);
    let packed = ["convert", "-c", "-f", "qcow2", "-O", "qcow2", "old", "packed"];
    prepare("qemu-img", &packed, path);
    folder
}

fn same(command: &str, folder: &Path) {
    let args: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{command}");
}

#[test]
fn info_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in
            ["", "--output=json", "--backing-chain", "--backing-chain --output json", "-f qcow2 -U"]
        {
            same(&format!("info {options} {file}"), folder.path());
        }
    }
    prepare("qemu-img", &["snapshot", "-c", "first", "plain"], folder.path());
    prepare("qemu-img", &["snapshot", "-c", "a second", "plain"], folder.path());
    same("info --output json plain", folder.path());
}

#[test]
fn check_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in ["", "--output=json", "-q", "-f qcow2 -U"] {
            same(&format!("check {options} {file}"), folder.path());
        }
    }
}

#[test]
fn map_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in ["", "--output=json", "-U --start-offset 1M --max-length 100k --output json"] {
            same(&format!("map {options} {file}"), folder.path());
        }
    }
}

#[test]
fn reading_is_the_same() {
    let folder = images();
    for (file, commands) in [
        ("old", ["info", "length", "read -P 3 64k 1M", "read -P 0 2M 1M"]),
        ("lazy", ["info", "length", "read -P 0 0 2M", "alloc 0 1M"]),
        ("plain", ["read -P 7 100 100000", "read -P 9 1M 64k", "read -P 0 256k 64k", "read -v 65530 32"]),
        ("zstd", ["read -P 5 2M 2M", "read -P 0 0 2M", "read -P 5 3000001 77", "read 15M 2M"]),
        ("over", ["read -P 2 64k 64k", "read -P 7 128k 64k", "read -P 9 1M 64k", "read -P 0 3M 1M"]),
    ] {
        let mut args = vec!["-r", "-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(file);
        let ours = quod_io(&args, folder.path(), "");
        let theirs = qemu_io(&args, folder.path(), "");
        let plain = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.contains(" ops; "));
            lines.map(String::from).collect()
        };
        assert_eq!(plain(&ours.stdout), plain(&theirs.stdout), "{file}");
        assert_eq!(ours.code, theirs.code, "{file}");
    }
}

/// Name, offset in the header, new bytes.
const BROKEN: [(&str, usize, &[u8]); 26] = [
    ("magic", 0, b"QFJ"),
    ("version", 4, &[0, 0, 0, 9]),
    ("cluster of 256 bytes", 20, &[0, 0, 0, 8]),
    ("cluster of 4 MiB", 20, &[0, 0, 0, 22]),
    ("short header", 100, &[0, 0, 0, 96]),
    ("long header", 100, &[0, 1, 0, 8]),
    ("backing name outside", 8, &[0, 0, 0, 0, 0, 1, 0, 1]),
    ("backing name too long", 16, &[0, 0, 7, 0]),
    ("compression of no kind", 104, &[7]),
    ("compression without its bit", 104, &[1]),
    ("the bit without compression", 72, &[0, 0, 0, 0, 0, 0, 0, 8]),
    ("an unknown bit", 72, &[0, 0, 1, 0, 0, 0, 0, 0]),
    ("two unknown bits", 72, &[0, 0, 2, 0, 0, 0, 0, 0x20]),
    ("an unknown bit with a known one", 72, &[0, 0, 0, 0, 0, 0, 1, 1]),
    ("refcounts of 128 bits", 96, &[0, 0, 0, 7]),
    ("no refcount table", 56, &[0, 0, 0, 0]),
    ("refcount table too large", 56, &[0, 0x10, 0, 0]),
    ("refcount table unaligned", 48, &[0, 0, 0, 0, 0, 0, 0, 100]),
    ("refcount table beyond", 48, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    ("too many snapshots", 60, &[0, 2, 0, 0]),
    ("snapshots unaligned", 60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 77]),
    ("L1 table too large", 36, &[0, 0x50, 0, 0]),
    ("L1 table unaligned", 40, &[0, 0, 0, 0, 0, 0, 0, 77]),
    ("L1 table too small", 36, &[0, 0, 0, 0]),
    ("disk too large", 24, &[0x40, 0, 0, 0, 0, 0, 0, 0]),
    ("extension too long", 116, &[0, 0x10, 0, 0]),
];

#[test]
fn broken_headers_are_refused_in_the_same_words() {
    let folder = images();
    let clean = std::fs::read(folder.path().join("over")).unwrap();
    for (name, at, bytes) in BROKEN {
        let mut image = clean.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path().join("over"), &image).unwrap();
        let args = ["-r", "-f", "qcow2", "-c", "length", "over"];
        let theirs = qemu_io(&args, folder.path(), "");
        assert_eq!(theirs.code, Some(1), "{name}: {theirs:?}");
        assert_eq!(quod_io(&args, folder.path(), ""), theirs, "{name}");
        // info says more, behind the same words
        let args = ["info", "-f", "qcow2", "over"];
        let (ours, theirs) = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
        assert!(ours.stderr.starts_with(theirs.stderr.trim_end()), "{name}: {ours:?}, {theirs:?}");
    }
}

#[test]
fn bench_reads() {
    let folder = images();
    let answer = quod(&["bench", "-c", "500", "-d", "8", "-s", "4096", "packed"], folder.path());
    assert_eq!(answer.code, Some(0), "{answer:?}");
}
