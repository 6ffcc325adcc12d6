//! `quod rebase` against `qemu-img rebase`: the same words and exit codes; the disk reads as before, its
//! header names what was asked for, and qemu-img finds nothing wrong.

mod common;

use common::{bytes, make, must, prepare, qemu_img, quod, run, write};
use std::path::Path;

const SHAPES: [(&str, &str); 8] = [
    ("qcow2", ""),
    ("qcow2", "compat=0.10"),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=2M,extended_l2=on"),
    ("qcow2", "extended_l2=on"),
    ("qcow2", "lazy_refcounts=on,refcount_bits=64"),
    ("qed", ""),
    ("qed", "cluster_size=4k,table_size=2"),
];

/// Backing files of several sizes and formats, and an overlay of each shape over `old`, whose backing file is
/// `deep`.
fn images(folder: &Path, (format, options): (&str, &str)) {
    make(folder, &["raw", "deep", "3M"]);
    make(folder, &["qcow2", "-b", "deep", "-F", "raw", "old", "4M"]);
    make(folder, &["qcow2", "short", "1M"]);
    make(folder, &["raw", "long", "6M"]);
    make(folder, &["qcow2", "-b", "deep", "-F", "raw", "sister", "5M"]);
    write(folder, "raw", "deep", &["write -P 1 0 1M", "write -P 2 2M 300k"]);
    write(folder, "qcow2", "old", &["write -P 3 128k 64k", "write -P 4 1900k 20k", "write -z 64k 64k"]);
    write(folder, "qcow2", "short", &["write -P 1 0 1M", "write -P 3 130k 4k"]);
    write(folder, "raw", "long", &["write -P 1 0 700k", "write -P 2 2M 300k", "write -P 5 3500k 1M"]);
    write(folder, "qcow2", "sister", &["write -P 9 128k 64k", "write -P 9 4M 64k"]);
    let mut args = vec![format, "-b", "old", "-F", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend(["top", "5M"]);
    make(folder, &args);
    write(folder, format, "top", &["write -P 6 200k 5k", "write -P 7 2100k 64k", "write -z 2M 64k"]);
    prepare("qemu-img", &["convert", "-O", "raw", "top", "before"], folder);
}

fn info(folder: &Path, name: &str) -> serde_json::Value {
    serde_json::from_str(&must("qemu-img", &["info", "-U", "--output", "json", name], folder)).unwrap()
}

#[test]
fn the_disk_reads_as_before_over_any_backing_file() {
    for shape in SHAPES {
        for new in ["-b deep -F raw", "-b short -F qcow2", "-b long -F raw", "-b sister -F qcow2", "-b"] {
            let mut words: Vec<&str> = new.split(' ').collect();
            if new == "-b" {
                words.push("");
            }
            let [ours, theirs] = [(), ()].map(|()| tempfile::tempdir().unwrap());
            let (ours, theirs) = (ours.path(), theirs.path());
            [ours, theirs].into_iter().for_each(|folder| images(folder, shape));
            let args = [&["rebase"], &words[..], &["top"]].concat();
            let (said, wanted) = (quod(&args, ours), qemu_img(&args, theirs));
            assert_eq!(said, wanted, "{shape:?} {new}");
            assert_eq!(said.code, Some(0), "{shape:?} {new}: {said:?}");
            must("qemu-img", &["compare", "top", "before"], ours);
            must("qemu-img", &["check", "top"], ours);
            let (found, wanted) = (info(ours, "top"), info(theirs, "top"));
            for field in ["backing-filename", "backing-filename-format", "virtual-size", "format"] {
                assert_eq!(found[field], wanted[field], "{shape:?} {new} {field}");
            }
            // and back, by name alone: a header that was changed is changed again
            let back = ["rebase", "-u", "-b", "old", "-F", "qcow2", "top"];
            assert_eq!(quod(&back, ours), qemu_img(&back, theirs), "{shape:?} {new}");
            must("qemu-img", &["compare", "top", "before"], ours);
            assert_eq!(info(ours, "top")["backing-filename"], "old");
        }
    }
}

/// `-c`: what is written is compressed, but where a cluster has bytes already.
#[test]
fn what_is_written_can_be_compressed() {
    for shape in SHAPES.into_iter().filter(|(format, _)| *format == "qcow2") {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        images(folder, shape);
        let answer = quod(&["rebase", "-c", "-b", "", "top"], folder);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{shape:?}");
        must("qemu-img", &["compare", "top", "before"], folder);
        let checked = must("qemu-img", &["check", "--output", "json", "top"], folder);
        let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
        let (all, compressed) = (&checked["allocated-clusters"], &checked["compressed-clusters"]);
        let plain = all.as_u64().unwrap() - compressed.as_u64().unwrap_or(0);
        // two runs of the image's own, of 5 and 64 KiB; one cluster of zeros
        let cluster = info(folder, "top")["cluster-size"].as_u64().unwrap();
        assert!(plain <= 2 + (69 << 10) / cluster + 1, "{shape:?}: {checked}");
        // each of the largest clusters has something of its own
        let some = compressed.as_u64().is_some_and(|count| count > 0);
        assert!(some || cluster == 2 << 20, "{shape:?}: {checked}");
    }
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &["raw", "raw", "1M"]);
    make(folder.path(), &["qed", "qed", "1M"]);
    for format in ["raw", "qed"] {
        let args = ["rebase", "-c", "-f", format, "-b", "", format];
        let (said, wanted) = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
        assert!(said == wanted && said.code == Some(1), "{said:?} {wanted:?}");
    }
}

/// A header may name a format that only another program opens.
#[test]
fn the_backing_format_may_be_one_that_quod_has_not() {
    let folders = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [ours, theirs] = [&folders[0], &folders[1]].map(tempfile::TempDir::path);
    for folder in [ours, theirs] {
        make(folder, &["qcow2", "a", "1M"]);
        make(folder, &["qed", "b", "1M"]);
    }
    for image in ["a", "b"] {
        for format in ["host_device", "vmdk", "nbd", "foo", ""] {
            let args = ["rebase", "-u", "-b", "/some/file", "-F", format, image];
            assert_eq!(quod(&args, ours), qemu_img(&args, theirs), "{args:?}");
            let told = |folder| {
                let found = info(folder, image);
                [found["backing-filename"].clone(), found["backing-filename-format"].clone()]
            };
            assert_eq!(told(ours), told(theirs), "{args:?}");
        }
        let args = ["rebase", "-b", "/some/file", "-F", "vmdk", image];
        assert_eq!(quod(&args, ours).code, Some(1));
    }
}

#[test]
fn words_and_codes_are_the_same() {
    let folders = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [ours, theirs] = [&folders[0], &folders[1]].map(tempfile::TempDir::path);
    for folder in [ours, theirs] {
        images(folder, SHAPES[0]);
        make(folder, &["qed", "-b", "old", "-F", "qcow2", "top.qed", "5M"]);
    }
    let long = "x".repeat(1100);
    for words in [
        "",
        "a b",
        "top",
        "-b old top",
        "-u -b old top",
        "-b nowhere -F qcow2 top",
        "-b deep -F bad top",
        "-u -b deep -F bad top",
        "-b deep -F raw nowhere",
        "-f bad -b deep -F raw top",
        "-t bad -b deep -F raw top",
        "-T bad -b deep -F raw top",
        "-u -b deep -F raw long",
        "-f raw -b deep -F raw long",
        &format!("-u -b {long} -F raw top"),
        &format!("-u -b {long} -F raw top.qed"),
        "--image-opts -f qcow2 -b deep -F raw top",
        "-u -b nowhere -F raw top",
        "-u top",
        "-u -b old -F qcow2 --image-opts driver=qcow2,file.filename=top",
        "-q -t none -T none -b deep -F raw top",
        "-u -b nowhere -F raw top.qed",
        "-u top.qed",
        "-u -b old -F qcow2 top.qed",
    ] {
        let args: Vec<&str> = ["rebase"].into_iter().chain(words.split_whitespace()).collect();
        assert_eq!(quod(&args, ours), qemu_img(&args, theirs), "{words}");
        for top in ["top", "top.qed"] {
            let names = [ours, theirs].map(|folder| info(folder, top)["backing-filename"].clone());
            assert_eq!(names[0], names[1], "{words}");
        }
    }
    must("qemu-img", &["compare", "top", "before"], ours);
    let progress =
        run(env!("CARGO_BIN_EXE_quod"), &["rebase", "-p", "-b", "old", "-F", "qcow2", "top"], ours, "");
    assert!(progress.stdout.ends_with("(100.00/100%)\r\n"), "{progress:?}");
    let itself = quod(&["rebase", "-b", "top", "-F", "qcow2", "top"], ours);
    assert_eq!(itself.code, Some(1));
    assert!(itself.stderr.starts_with("Could not open new backing file 'top': "), "{itself:?}");
    let refused = quod(&["rebase", "--object", "x", "-b", "old", "-F", "qcow2", "top"], ours);
    assert!(refused.code == Some(1) && refused.stderr.contains("--object"), "{refused:?}");
}

#[test]
fn snapshots_keep_what_they_hold_unless_it_is_forced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    images(path, SHAPES[0]);
    prepare("qemu-img", &["snapshot", "-c", "s", "top"], path);
    let before = bytes(path, "top");
    let args = ["rebase", "-b", "long", "-F", "raw", "top"];
    let refused = quod(&args, path);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.starts_with("'top' has internal snapshots"), "{refused:?}");
    assert_eq!(bytes(path, "top"), before);
    assert_eq!(quod(&[&args[..], &["--force"]].concat(), path).code, Some(0));
    must("qemu-img", &["compare", "top", "before"], path);
}

/// An overlay that cannot be written keeps its backing file, and its disk.
#[test]
fn a_full_disk_leaves_the_old_backing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("small")).unwrap();
    must("mount", &["-t", "tmpfs", "-o", "size=1M", "none", "small"], path);
    make(path, &["raw", "base", "4M"]);
    write(path, "raw", "base", &["write -P 1 0 3M"]);
    make(path, &["qcow2", "-b", "../base", "-F", "raw", "small/top", "4M"]);
    let answer = quod(&["rebase", "-b", "", "small/top"], path);
    let read = run("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 1 0 3M", "small/top"], path, "");
    let name = info(path, "small/top")["backing-filename"].clone();
    must("umount", &["small"], path);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.stderr.contains("has its old backing file"), "{answer:?}");
    assert!(read.code == Some(0) && !read.stdout.contains("failed"), "{read:?}");
    assert_eq!(name, "../base");
}
