//! `quod measure` beside `qemu-img measure --size`, and beside what `quod create` then makes.

mod common;

use common::{qemu_img, quod};

const FORMS: [&str; 6] = [
    "cluster_size=64k",
    "cluster_size=2M",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=64k,refcount_bits=1",
    "compat=0.10",
    "preallocation=full",
];

#[test]
fn the_numbers_are_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for size in ["1", "1M", "100000000", "10G", "3T"] {
        for form in FORMS {
            for output in ["human", "json"] {
                let args = ["measure", "-O", "qcow2", "-o", form, "--output", output, "--size", size];
                let (ours, theirs) = (quod(&args, folder), qemu_img(&args, folder));
                assert_eq!((ours.code, &ours.stdout), (Some(0), &theirs.stdout), "{args:?}: {ours:?}");
            }
        }
        let args = ["measure", "-O", "raw", "--size", size];
        assert_eq!(quod(&args, folder).stdout, qemu_img(&args, folder).stdout, "{size}");
    }
}

/// With small clusters refcount tables move as the image grows, which QEMU's number leaves out.
#[test]
fn small_clusters_take_a_little_more() {
    let folder = tempfile::tempdir().unwrap();
    let full = |answer: common::Answer| {
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        value["fully-allocated"].as_u64().unwrap()
    };
    for (form, size) in [("cluster_size=4k", "10G"), ("cluster_size=512", "1G"), ("cluster_size=4k", "1M")] {
        let args = ["measure", "-O", "qcow2", "-o", form, "--output", "json", "--size", size];
        let (ours, theirs) = (full(quod(&args, folder.path())), full(qemu_img(&args, folder.path())));
        assert!(theirs <= ours && ours - theirs <= theirs / 1000, "{form} {size}: {ours} {theirs}");
    }
}

/// QEMU has no number for QED.
#[test]
fn the_numbers_are_what_an_image_takes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let numbers = |format: &str, form: &str| {
        let answer =
            quod(&["measure", "-O", format, "-o", form, "--output", "json", "--size", "50M"], folder);
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        (value["required"].as_u64().unwrap(), value["fully-allocated"].as_u64().unwrap())
    };
    let (_, full) = numbers("qcow2", "cluster_size=512");
    let args = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", "a", "50M"];
    assert_eq!(quod(&args, folder).code, Some(0));
    assert_eq!(std::fs::metadata(folder.join("a")).unwrap().len(), full);
    for form in ["cluster_size=64k", "cluster_size=4k,table_size=2"] {
        let (required, full) = numbers("qed", form);
        assert_eq!(quod(&["create", "-q", "-f", "qed", "-o", form, "b", "50M"], folder).code, Some(0));
        let fill = quod(&["io", "-f", "qed", "-c", "write -q 0 50M", "b"], folder);
        assert_eq!(fill.code, Some(0), "{fill:?}");
        assert_eq!(std::fs::metadata(folder.join("b")).unwrap().len(), full, "{form}");
        assert!(required < 1 << 20, "{required}");
    }
    let refused = quod(&["measure", "-O", "qed", "-o", "cluster_size=3000", "--size", "1M"], folder);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
}
