//! `quod dd` against `qemu-img dd`: the same words, exit codes and images; but `count` counts what is copied.

mod common;

use common::{bytes, make, must, qemu_img, quod, write};
use std::path::Path;

fn images(folder: &Path) {
    make(folder, &["raw", "base", "3M"]);
    make(folder, &["qcow2", "-b", "base", "-F", "raw", "top", "4M"]);
    make(folder, &["qed", "-b", "base", "-F", "raw", "qed", "3M"]);
    write(folder, "raw", "base", &["write -P 1 0 1M", "write -P 2 2M 300k"]);
    write(folder, "qcow2", "top", &["write -P 3 100k 200k", "write -z 1M 64k", "write -P 4 3500k 64k"]);
    write(folder, "qed", "qed", &["write -P 5 1900k 64k"]);
    std::fs::write(folder.join("odd"), [7; 70_001]).unwrap();
}

#[test]
fn parts_are_the_same() {
    let [ours, theirs] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let (ours, theirs) = (ours.path(), theirs.path());
    [ours, theirs].into_iter().for_each(images);
    for image in ["top", "qed", "base", "odd"] {
        for words in [
            "",
            "bs=1M",
            "bs=1M count=2",
            "bs=64k skip=3",
            "bs=3000 skip=7",
            "bs=1M count=0",
            "skip=1 count=100000",
            "bs=1M skip=20",
            "bs=2147483647",
            "bs=1M count=100",
        ] {
            for format in ["raw", "qcow2", "qed"] {
                let input = format!("if={image}");
                let mut args = vec!["dd", "-O", format];
                args.extend(words.split_whitespace());
                args.extend([input.as_str(), "of=out"]);
                let (said, wanted) = (quod(&args, ours), qemu_img(&args, theirs));
                assert_eq!((said.code, said.stdout), (wanted.code, wanted.stdout), "{args:?}");
                if wanted.code == Some(0) {
                    assert_eq!(said.stderr, wanted.stderr, "{args:?}");
                    let theirs = theirs.join("out").display().to_string();
                    // where runs of QED clusters end is part of what is strict
                    let strict = if format == "qed" { "-U" } else { "-s" };
                    must("qemu-img", &["compare", strict, "-f", format, "-F", format, "out", &theirs], ours);
                }
                let _ = std::fs::remove_file(ours.join("out"));
                let _ = std::fs::remove_file(theirs.join("out"));
            }
        }
    }
}

/// QEMU takes the number of blocks for the place to stop at, which its manual does not say.
#[test]
fn count_counts_what_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path);
    let args = ["dd", "bs=1k", "skip=100", "count=150", "if=top", "of=out"];
    assert_eq!(quod(&args, path).code, Some(0));
    assert_eq!(bytes(path, "out"), vec![3; 150 << 10]);
    assert_eq!(qemu_img(&args, path).code, Some(0));
    assert_eq!(bytes(path, "out").len(), 50 << 10, "QEMU 10.0.2");
    let args = ["dd", "bs=1M", "skip=3", "count=7", "if=top", "of=out"];
    assert_eq!(quod(&args, path).code, Some(0));
    assert_eq!(bytes(path, "out").len(), 1 << 20, "no more than there is");
}

#[test]
fn words_and_codes_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path);
    for words in [
        "",
        "if=top",
        "of=top",
        "if=top of=out bs=0",
        "if=top of=out bs=x",
        "if=top of=out bs=3G",
        "if=top of=out count=x",
        "if=top of=out skip=-1",
        "if=top of=out foo=1",
        "if=top of=out foo",
        "-O bad if=top of=out",
        "-f bad if=top of=out",
        "if=nowhere of=out",
        "if=top of=nowhere/out",
        "-U if=top of=out",
        "-f qcow2 if=top of=out",
        "--image-opts if=driver=qcow2,file.filename=top of=out",
    ] {
        let args: Vec<&str> = ["dd"].into_iter().chain(words.split_whitespace()).collect();
        assert_eq!(quod(&args, path), qemu_img(&args, path), "{words}");
    }
    let before = ["top", "base"].map(|name| bytes(path, name));
    for output in ["of=top", "of=base", "of=./base"] {
        let answer = quod(&["dd", "if=top", output], path);
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.stderr.contains("Failed to get \"write\" lock"), "{answer:?}");
    }
    assert_eq!(["top", "base"].map(|name| bytes(path, name)), before);
}
