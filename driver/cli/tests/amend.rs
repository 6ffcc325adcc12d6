//! `quod amend` against `qemu-img amend`: the same words, exit codes and headers; but a disk is not cut
//! without a word.

mod common;

use common::{bytes, make, must, prepare, qemu_img, quod, write};
use std::path::Path;

const IMAGES: [(&str, &str); 5] = [
    ("new", ""),
    ("old", "compat=0.10"),
    ("small", "cluster_size=512"),
    ("lazy", "lazy_refcounts=on"),
    ("over", "compat=0.10,backing_file=base,backing_fmt=raw"),
];

fn images(folder: &Path) {
    make(folder, &["raw", "base", "1M"]);
    make(folder, &["qed", "qed", "1M"]);
    write(folder, "raw", "base", &["write -P 1 0 1M"]);
    for (name, options) in IMAGES {
        let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
        make(folder, &[&["qcow2"][..], &options, &[name, "1M"]].concat());
        write(folder, "qcow2", name, &["write -P 2 100k 70k"]);
    }
}

/// What the format is, and where nothing else differs.
fn facts(folder: &Path, name: &str) -> serde_json::Value {
    let mut value: serde_json::Value =
        serde_json::from_str(&must("qemu-img", &["info", "--output", "json", name], folder)).unwrap();
    for field in ["actual-size", "children"] {
        value.as_object_mut().unwrap().remove(field);
    }
    value
}

#[test]
fn words_codes_and_headers_are_the_same() {
    let folders = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [ours, theirs] = [&folders[0], &folders[1]].map(tempfile::TempDir::path);
    [ours, theirs].into_iter().for_each(images);
    for words in [
        "",
        "new",
        "-o compat=1.1 new",
        "-o compat=bad new",
        "-o foo=1 new",
        "-o cluster_size=4k new",
        "-o extended_l2=on new",
        "-o preallocation=full new",
        "-o lazy_refcounts=on old",
        "-o lazy_refcounts=maybe new",
        "-o lazy_refcounts=on new",
        "-o lazy_refcounts=off new",
        "-o compat=0.10 new",
        "-o compat=1.1 new",
        "-o compat=1.1,lazy_refcounts=on old",
        "-o compat=1.1 over",
        "-o compat=0.10 over",
        "-o compat=v3 over",
        "-o compat=0.10 small",
        "-o lazy_refcounts=off,size=2M lazy",
        "-o size=100 lazy",
        "-p -o size=3M lazy",
        "-q -o size=3M lazy",
        "-o backing_file=base,backing_fmt=raw new",
        "-o backing_fmt=raw new",
        "-o data_file_raw=on new",
        "-o size=2M qed",
        "-f raw -o size=2M base",
        "-o compat=1.1 nowhere",
        "-t bad -o size=5M new",
        "-f bad -o size=5M new",
        "-o , new",
        "-o size=2M new old",
        "--image-opts -o size=4M driver=qcow2,file.filename=lazy",
    ] {
        let args: Vec<&str> = ["amend"].into_iter().chain(words.split_whitespace()).collect();
        assert_eq!(quod(&args, ours), qemu_img(&args, theirs), "{words}");
        for (name, _) in IMAGES {
            assert_eq!(facts(ours, name), facts(theirs, name), "{words}: {name}");
            must("qemu-img", &["check", name], ours);
            must("qemu-img", &["compare", name, theirs.join(name).to_str().unwrap()], ours);
        }
    }
}

#[test]
fn a_disk_is_cut_only_if_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path);
    let before = bytes(path, "new");
    let refused = quod(&["amend", "-o", "size=512k", "new"], path);
    assert_eq!((refused.code, refused.stderr.contains("--shrink")), (Some(1), true), "{refused:?}");
    assert_eq!(bytes(path, "new"), before);
    assert_eq!(quod(&["amend", "--shrink", "-o", "size=512k", "new"], path).code, Some(0));
    assert_eq!(facts(path, "new")["virtual-size"], 512 << 10);
    must("qemu-img", &["check", "new"], path);
}

#[test]
fn what_version_2_has_not_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path);
    write(path, "qcow2", "new", &["write -z 512k 64k"]);
    make(path, &["qcow2", "-o", "extended_l2=on", "split", "1M"]);
    prepare("qemu-img", &["snapshot", "-c", "s", "lazy"], path);
    for name in ["new", "split", "lazy"] {
        let before = bytes(path, name);
        let refused = quod(&["amend", "-o", "compat=0.10", name], path);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert_eq!(bytes(path, name), before, "{name}");
    }
}
