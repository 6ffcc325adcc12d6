//! `quod measure` beside `qemu-img measure --size`, and beside what `quod create` then makes.

mod common;

use common::{make, prepare, qemu_img, quod, write};

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

/// A copy takes what is data, in the target's clusters.
#[test]
fn the_numbers_of_a_copy_are_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "raw", "5M"]);
    make(folder, &["qcow2", "base", "4M"]);
    make(folder, &["qcow2", "-b", "base", "-F", "qcow2", "top", "6M"]);
    make(folder, &["qed", "-o", "cluster_size=4k", "qed", "4M"]);
    make(folder, &["qcow2", "-o", "compat=0.10", "old", "3M"]);
    write(folder, "raw", "raw", &["write 100k 3k", "write 3M 1k"]);
    write(folder, "qcow2", "base", &["write 0 1M", "write -z 2M 64k"]);
    write(folder, "qcow2", "top", &["write -P 1 128k 4k", "write 5M 200k"]);
    write(folder, "qed", "qed", &["write 4k 4k", "write 2M 12k"]);
    write(folder, "qcow2", "old", &["write 60k 10k"]);
    for granularity in ["64k", "512"] {
        let args = ["bitmap", "--add", "-g", granularity, "top", &format!("b{granularity}")];
        prepare("qemu-img", &args, folder);
    }
    for image in ["raw", "base", "top", "qed", "old"] {
        for form in FORMS.into_iter().chain(["backing_file=base,backing_fmt=qcow2", "cluster_size=4k"]) {
            for output in ["human", "json"] {
                let args = ["measure", "-O", "qcow2", "-o", form, "--output", output, image];
                assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{args:?}");
            }
        }
        let args = ["measure", image];
        assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{args:?}");
    }
    for words in [
        "-O qcow2",
        "-O bad top",
        "-O qcow2 --size 1G top",
        "-O qcow2 top base",
        "-O qcow2 -f bad top",
        "-O qcow2 nowhere",
        "-f raw --size 1G",
        "--size x",
        "--size -1",
        "-O qcow2 --image-opts driver=qcow2,file.filename=top",
        "-O qcow2 -f qcow2 -U top",
    ] {
        let args: Vec<&str> = ["measure"].into_iter().chain(words.split_whitespace()).collect();
        assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{args:?}");
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
