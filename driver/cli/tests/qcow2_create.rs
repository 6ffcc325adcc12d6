//! `quod create -f qcow2` against `qemu-img create`: the same words, the same bytes in the image and its data
//! file.

mod common;

use common::{Answer, qemu_img, quod};
use std::path::Path;
use tempfile::TempDir;

/// Both tools, each in a folder of its own that holds the same backing files.
fn both(case: &str) -> (Answer, Answer, TempDir, TempDir) {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &theirs] {
        let folder = folder.path();
        common::prepare("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "3M"], folder);
        common::prepare("qemu-img", &["create", "-q", "-f", "qcow2", "base.qcow2", "5M"], folder);
    }
    let args: Vec<&str> = ["create", "-f", "qcow2"].into_iter().chain(case.split_whitespace()).collect();
    (quod(&args, ours.path()), qemu_img(&args, theirs.path()), ours, theirs)
}

fn same_file(name: &str, ours: &TempDir, theirs: &TempDir, case: &str) {
    let read = |folder: &Path| std::fs::read(folder.join(name));
    match (read(ours.path()), read(theirs.path())) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{case}: length of {name}");
            assert!(ours == theirs, "{case}: {name} differs");
        }
        (ours, theirs) => assert_eq!(ours.is_err(), theirs.is_err(), "{case}: {name}"),
    }
}

fn same(case: &str) {
    let (our_answer, their_answer, ours, theirs) = both(case);
    assert_eq!(our_answer, their_answer, "{case}");
    assert_eq!(their_answer.code, Some(0), "{case}: {their_answer:?}");
    same_file("x", &ours, &theirs, case);
    same_file("d", &ours, &theirs, case);
}

#[test]
fn words_and_bytes() {
    for case in [
        "x 1M",
        "x 0",
        "x 1000",
        "x 1.5G",
        "x 64T",
        "-q x 1M",
        "-o size=7M x",
        "-o compat=v3 x 1M",
        "-o compat=1.1,lazy_refcounts=yes,refcount_bits=0x10 x 1M",
        "-o compat=0.10 x 1M",
        "-o compat=v2,cluster_size=1k x 40M",
        "-o lazy_refcounts,extended_l2=true -o compression_type=zstd x 1M",
        "-o lazy_refcounts=on,lazy_refcounts=off x 1M",
        "-o data_file=d x 1M",
        "-o data_file=d,data_file_raw=on x 70M",
        "-b base.raw -F raw x",
        "-b base.qcow2 -F qcow2 x",
        "-b base.qcow2 -F qcow2 x 9M",
        "-u -b nowhere -F raw x 2M",
        "-b base.raw -F raw -o cluster_size=512 x",
        "-b base.raw -F raw -o extended_l2=on,preallocation=metadata x",
        "-o backing_file=base.raw,backing_fmt=raw x",
        "-u -o backing_file=a,,b,backing_fmt=qcow2 x 1M",
    ] {
        same(case);
    }
}

#[test]
fn the_matrix() {
    for (cluster, size) in [("512", "1000k"), ("4k", "9M"), ("64k", "33M"), ("2M", "20M")] {
        for bits in [1, 16, 64] {
            for mode in ["off", "metadata", "falloc", "full"] {
                let options = format!("cluster_size={cluster},refcount_bits={bits},preallocation={mode}");
                same(&format!("-o {options} x {size}"));
            }
        }
    }
    for options in
        ["extended_l2=on", "compat=0.10,cluster_size=8k", "data_file=d", "data_file=d,data_file_raw=on"]
    {
        for mode in ["off", "metadata", "falloc", "full"] {
            same(&format!("-o {options},preallocation={mode} x 5M"));
        }
    }
}

#[test]
fn preallocated_space_is_taken() {
    let on_disk = |folder: &TempDir, name: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(folder.path().join(name)).unwrap().blocks() * 512
    };
    for mode in ["falloc", "full"] {
        let (_, _, ours, _) = both(&format!("-o preallocation={mode} x 8M"));
        assert!(on_disk(&ours, "x") >= 8 << 20, "{mode}");
        let (_, _, ours, _) = both(&format!("-o preallocation={mode},data_file=d x 8M"));
        assert!(on_disk(&ours, "d") >= 8 << 20 && on_disk(&ours, "x") < 1 << 20, "{mode}");
    }
}

#[test]
fn refusals_are_the_same_words() {
    let long = "n".repeat(600);
    let longer = "n".repeat(1030);
    for case in [
        "x",
        "x 8E",
        "x 7E",
        "nowhere/x 1M",
        "-o foo=1 x 1M",
        "-o cluster_size=3000 x 1M",
        "-o cluster_size=256 x 1M",
        "-o cluster_size=4M x 1M",
        "-o cluster_size=-5 x 1M",
        "-o cluster_size=abc x 1M",
        "-o cluster_size=8k, x 1M",
        "-o cluster_size=512 x 1P",
        "-o size=1M x 2M",
        "-o compat=v4 x 1M",
        "-o compat= x 1M",
        "-o preallocation=some x 1M",
        "-o preallocation=some,compat=v5,compression_type=a,cluster_size=5 x 1M",
        "-o compression_type=lzo x 1M",
        "-o compression_type=zstd,compat=v2 x 1M",
        "-o lazy_refcounts=maybe x 1M",
        "-o lazy_refcounts=on,compat=0.10 x 1M",
        "-o refcount_bits=3 x 1M",
        "-o refcount_bits=0 x 1M",
        "-o refcount_bits=128 x 1M",
        "-o refcount_bits=-1 x 1M",
        "-o refcount_bits=16k x 1M",
        "-o refcount_bits=99999999999999999999 x 1M",
        "-o refcount_bits=8,compat=v2 x 1M",
        "-o extended_l2=on,cluster_size=8k x 1M",
        "-o extended_l2=on,compat=v2 x 1M",
        "-o data_file_raw=on x 1M",
        "-o data_file=d,compat=v2 x 1M",
        "-o data_file=d,data_file_raw=on,backing_file=base.raw,backing_fmt=raw x",
        "-b base.raw -F raw -o preallocation=metadata x",
        "-b base.raw x",
        "-o backing_fmt=raw x 1M",
        "-b nowhere -F raw x",
        "-b base.raw -F bad x",
        "-b x -F qcow2 x",
        &format!("-o cluster_size=512 -u -b {long} -F raw x 1M"),
        &format!("-u -b {longer} -F raw x 1M"),
    ] {
        let (our_answer, their_answer, ours, _) = both(case);
        assert_eq!(their_answer.code, Some(1), "{case}: {their_answer:?}");
        assert_eq!(our_answer, their_answer, "{case}");
        assert!(!ours.path().join("x").exists(), "{case}");
    }
}

#[test]
fn extents_are_hinted_at_as_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    for (hint, code) in [("extent_size_hint=0", 0), ("extent_size_hint=5G", 1)] {
        for format in ["raw", "qed", "qcow2"] {
            let args = ["create", "-f", format, "-o", hint, "x", "1M"];
            let (ours, theirs) = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
            assert_eq!((&ours, ours.code), (&theirs, Some(code)), "{format} {hint}");
        }
    }
}

#[test]
fn what_quod_does_not_do_is_refused_by_name() {
    for option in ["encryption=on", "encrypt.format=luks", "nocow=on"] {
        let (answer, _, folder, _) = both(&format!("-o {option} x 1M"));
        let name = option.split('=').next().unwrap();
        assert_eq!(answer.code, Some(1), "{option}");
        assert!(answer.stderr.contains(&format!("'{name}'")), "{answer:?}");
        assert!(!folder.path().join("x").exists());
    }
    // what they list is what qemu-img lists, without these
    let (ours, theirs, ..) = both("-o help");
    let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    let (ours, theirs) = (lines(&ours.stdout), lines(&theirs.stdout));
    let theirs: Vec<String> = theirs.into_iter().filter(|line| !line.contains("  encrypt")).collect();
    assert_eq!(ours, theirs[..ours.len()]);
    assert_eq!(ours.len(), 13);
}

#[test]
fn a_failure_leaves_what_was_there_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let there = |name: &str| folder.path().join(name);
    std::fs::write(there("x"), "precious").unwrap();
    // qemu-img deletes the file here
    let answer = quod(&["create", "-f", "qcow2", "-o", "refcount_bits=3", "x", "1M"], folder.path());
    assert_eq!(answer.code, Some(1));
    let answer = quod(&["create", "-f", "qcow2", "-o", "data_file=x", "x", "1M"], folder.path());
    assert_eq!(answer.code, Some(1));
    assert_eq!(std::fs::read(there("x")).unwrap(), b"precious");
    let answer = quod(&["create", "-f", "qcow2", "-o", "data_file=no/d", "y", "1M"], folder.path());
    assert!(answer.code == Some(1) && answer.stderr.contains("Could not create 'no/d'"), "{answer:?}");
    assert!(!there("y").exists());
}
