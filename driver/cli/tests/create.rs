//! `quod create` against `qemu-img create`: the same words, the same bytes.

mod common;

use common::{Answer, qemu_img, quod};
use std::path::Path;

/// Both tools, each in a folder of its own that holds the same backing files.
fn both(args: &[&str]) -> (Answer, Answer, tempfile::TempDir, tempfile::TempDir) {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &theirs] {
        let folder = folder.path();
        common::prepare("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "3M"], folder);
        common::prepare("qemu-img", &["create", "-q", "-f", "qed", "base.qed", "5M"], folder);
    }
    let words: Vec<&str> = ["create"].iter().chain(args).copied().collect();
    (quod(&words, ours.path()), qemu_img(&words, theirs.path()), ours, theirs)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn images_are_the_same_byte_for_byte() {
    let cases = [
        "-f qed x 1M",
        "-f qed -o cluster_size=4k,table_size=2 x 10M",
        "-f qed -o cluster_size=1M -o table_size=1 x 64M",
        "-f qed -o size=7M x",
        "-f qed x 64T",
        "-f qed x 0",
        "-f qed x 1000",
        "-f qed x 1.5G",
        "-f qed -b base.raw -F raw x",
        "-f qed -b base.qed -F qed x",
        "-f qed -b base.qed -F qed x 9M",
        "-f qed -u -b nowhere -F raw x 2M",
        "-f qed -o backing_file=base.raw,backing_fmt=raw x",
        "-f qed -u -o backing_file=a,,b,backing_fmt=qed x 1M",
        "-f raw x 1M",
        "-f raw x 1000",
        "x 0x10000",
        "-q -f qed x 1M",
    ];
    for case in cases {
        let (ours, theirs, our_folder, their_folder) = both(&words(case));
        assert_eq!(ours, theirs, "{case}");
        let read = |folder: &Path| std::fs::read(folder.join("x")).unwrap();
        let (our_bytes, their_bytes) = (read(our_folder.path()), read(their_folder.path()));
        assert_eq!(our_bytes.len(), their_bytes.len(), "{case}");
        assert!(our_bytes == their_bytes, "{case}: the images differ");
    }
}

#[test]
fn refusals_are_the_same_words() {
    let cases = [
        "-f bad x 1M",
        "-f qed x",
        "-f qed",
        "-f qed -o foo=1 x 1M",
        "-f qed -o encryption=on x 1M",
        "-f raw -o foo=1 x 1M",
        "-f qed -o cluster_size=3000 x 1M",
        "-f qed -o cluster_size=128M x 1M",
        "-f qed -o cluster_size=abc x 1M",
        "-f qed -o table_size=3 x 1M",
        "-f qed -o table_size=32 x 1M",
        "-f qed -o cluster_size=8k, x 1M",
        "-f qed -o size=1M x 2M",
        "-f qed x 100T",
        "-f qed x 1x",
        "-f qed x 8E",
        "-f qed -b base.raw x",
        "-f qed -u -b nowhere x 1M",
        "-f qed -b nowhere -F raw x",
        "-f qed -b base.raw -F bad x",
        "-f qed -b x -F qed x",
        "-f raw -b base.raw -F raw x",
        "-f qed nowhere/x 1M",
    ];
    for case in cases {
        let (ours, theirs, ..) = both(&words(case));
        assert_eq!(theirs.code, Some(1), "{case}: {theirs:?}");
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn geometries_that_qemu_refuses_work() {
    // 4 MiB clusters: QEMU's limit wraps to 0 and it refuses every size
    let (ours, theirs, folder, _) = both(&words("-f qed -o cluster_size=4M x 100M"));
    assert_eq!((ours.code, theirs.code), (Some(0), Some(1)));
    write_and_read(folder.path());
    // tables of one cluster: QEMU makes the image and does not open it
    let (ours, theirs, folder, _) = both(&words("-f qed -o table_size=1 x 100M"));
    assert_eq!((ours.code, theirs.code), (Some(0), Some(0)));
    assert_eq!(qemu_img(&["check", "x"], folder.path()).code, Some(1));
    write_and_read(folder.path());
}

fn write_and_read(folder: &Path) {
    let args =
        ["-f", "qed", "-c", "write -P 5 9M 64k", "-c", "read -P 5 9M 64k", "-c", "read -P 0 0 9M", "x"];
    assert_eq!(common::quod_io(&args, folder, "").code, Some(0));
    assert_eq!(quod(&["check", "x"], folder).code, Some(0));
}

#[test]
fn raw_options_that_quod_does_not_do_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (option, name) in [("preallocation=full", "preallocation"), ("nocow=on", "nocow")] {
        let answer = quod(&["create", "-f", "raw", "-o", option, "x", "1M"], folder.path());
        assert_eq!(answer.code, Some(1));
        assert!(answer.stderr.contains(name), "{answer:?}");
    }
}
