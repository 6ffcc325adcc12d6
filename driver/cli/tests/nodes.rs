//! Images that are described, beside qemu-io: `json:`, the filter copy-on-read, blkdebug around and above them.
//!
//! Checks: the same texts and the same maps afterwards; blocks of 4 KiB under clusters of 2 KiB; an error where
//! copy-on-read would write again what is there; what has no meaning for quod is refused by name.

mod common;

use common::{make, must, qemu_io, quod, quod_io, write};
use std::path::Path;

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path, &["qcow2", "base", "4M"]);
    write(path, "qcow2", "base", &["write -P 5 1M 1M"]);
    make(path, &["qcow2", "-b", "base", "-F", "qcow2", "top", "4M"]);
    write(path, "qcow2", "top", &["write -z -u 1M 64k"]);
    make(path, &["qcow2", "-o", "cluster_size=2k", "small", "1M"]);
    make(path, &["qed", "-o", "cluster_size=64k", "qed", "1M"]);
    std::fs::write(path.join("rules"), "[inject-error]\nevent = \"cor_write\"\nsector = \"2048\"\n").unwrap();
    folder
}

/// Both with the same commands: the same answers, and the same maps.
fn same(commands: &[&str]) {
    let (ours, theirs) = (fresh(), fresh());
    let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    assert_eq!(quod_io(&args, ours.path(), ""), qemu_io(&args, theirs.path(), ""), "{commands:?}");
    let map = |folder: &Path, file| {
        let text = must("qemu-img", &["map", "--output=json", file], folder);
        text.lines().map(|line| line.split(", \"offset\"").next().unwrap().to_string()).collect::<Vec<_>>()
    };
    for file in ["top", "small", "qed"] {
        assert_eq!(map(ours.path(), file), map(theirs.path(), file), "{commands:?}");
    }
}

#[test]
fn filters_do_what_qemus_do() {
    let rules =
        "open -o driver=copy-on-read,file.driver=blkdebug,file.config=rules,file.image.driver=qcow2 top";
    same(&[rules, "read -P 0 1M 64k", "read -P 5 1088k 64k"]);
    same(&["open -C -o driver=blkdebug,config=rules,image.driver=qcow2 top", "read -P 0 1M 128k"]);
    same(&["open -o driver=copy-on-read,file.driver=qcow2 top", "read -P 5 1200k 4k"]);
    same(&["open -r -o driver=copy-on-read,file.driver=qcow2 top"]);
    for align in ["512", "4k"] {
        let small = format!("open -o driver=qcow2,file.align={align} blkdebug::small");
        same(&[&small, "write -P 3 0 512", "read -P 3 0 512", "read -P 0 512 1536", "write -z 100k 700"]);
        let qed = format!("open -o driver=qed,file.align={align} blkdebug::qed");
        same(&[&qed, "write -P 3 512 1k", "write -z 1k 128k", "read -P 3 512 512", "read -P 0 1k 128k"]);
    }
    same(&["open json:{'driver':'qcow2','file':{'filename':'top'},'backing':null}", "read -P 0 2M 64k"]);
}

#[test]
fn what_has_no_meaning_is_refused_by_name() {
    let folder = fresh();
    for words in [
        "open -o driver=qcow2,file.driver=blkdebug,file.inject-error.0.event=l2_load,file.image.filename=top",
        "open -o driver=qcow2 blkdebug:rules:top",
        "open -o driver=blkdebug,image.driver=qcow2,foo=1 top",
        "open json:{]",
        "open blkdebug:top",
    ] {
        let answer = quod_io(&["-c", words], folder.path(), "");
        assert!(answer.code == Some(1) && answer.stderr.contains("can't open"), "{words}: {answer:?}");
    }
    let answer = quod(&["info", "json:{'driver':'qcow2','file.filename':'top'}"], folder.path());
    assert!(answer.code == Some(0) && answer.stdout.contains("file format: qcow2"), "{answer:?}");
}
