//! `quod resize` against `qemu-img resize`: the same words, the same images.

mod common;

use common::{Answer, bytes, folders, make, must, qemu_img, qemu_io, quod, write};
use tempfile::TempDir;

fn same(command: &str, [ours, theirs]: &[TempDir; 2]) -> Answer {
    let args: Vec<&str> = ["resize"].into_iter().chain(command.split_whitespace()).collect();
    let (our_answer, their_answer) = (quod(&args, ours.path()), qemu_img(&args, theirs.path()));
    assert_eq!(our_answer, their_answer, "{command}");
    our_answer
}

#[test]
fn raw_and_qed() {
    let folders = folders();
    let (ours, theirs) = (folders[0].path(), folders[1].path());
    for command in [
        "-f raw r 2M",
        "-f raw r +1M",
        "-f raw --shrink r -1M",
        "-f raw r 2M",
        "r 5M",
        "r +1M",
        "-q -f raw r 6M",
        "-f raw --preallocation=off r 7M",
        "-f raw --shrink r 1001",
        "-f raw r +0",
        "q 2M",
        "q +512",
        "-f qed q 1.5G",
        "-f qed q 1.5G",
    ] {
        assert_eq!(same(command, &folders).code, Some(0), "{command}");
        assert!(bytes(ours, "r") == bytes(theirs, "r"), "{command}");
        let info = |file| quod(&["info", "--output", "json", "-f", "qed", file], ours);
        let their_info = |file| qemu_img(&["info", "--output", "json", "-f", "qed", file], theirs);
        let size = |text: &str| {
            let start = text.find("\"virtual-size\"").unwrap();
            text[start..].lines().next().unwrap().to_string()
        };
        assert_eq!(size(&info("q").stdout), size(&their_info("q").stdout), "{command}");
    }
    let read =
        ["-f", "qed", "-c", "read -P 7 64k 128k", "-c", "read -P 8 1020k 4k", "-c", "read -P 0 1M 1M", "q"];
    let answer = qemu_io(&read, ours, "");
    assert!(answer.code == Some(0) && !answer.stdout.contains("verification failed"), "{answer:?}");
    assert_eq!(qemu_img(&["check", "q"], ours).code, Some(0));
}

#[test]
fn what_is_new_has_its_space_from_the_start() {
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "compat=0.10"),
        ("qcow2", "lazy_refcounts=on"),
    ] {
        for mode in ["metadata", "falloc", "full"] {
            let folders = [(), ()].map(|()| tempfile::tempdir().unwrap());
            let [ours, theirs] = [&folders[0], &folders[1]].map(TempDir::path);
            for folder in [ours, theirs] {
                let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
                make(folder, &[&[format][..], &options, &["i", "1000k"]].concat());
                write(folder, format, "i", &["write -P 3 900k 100k"]);
            }
            let command = format!("-f {format} --preallocation={mode} i 5M");
            let answer = same(&command, &folders);
            if answer.code != Some(0) {
                assert_eq!((format, mode), ("raw", "metadata"));
                continue;
            }
            must(
                "qemu-img",
                &["compare", "-f", format, "-F", format, "i", theirs.join("i").to_str().unwrap()],
                ours,
            );
            let facts = |folder, command: &[&str]| -> serde_json::Value {
                let args = [command, &["--output", "json", "-f", format, "i"]].concat();
                serde_json::from_str(&must("qemu-img", &args, folder)).unwrap()
            };
            if format == "qcow2" {
                let allocated = |folder| facts(folder, &["check"])["allocated-clusters"].clone();
                assert_eq!(allocated(ours), allocated(theirs), "{options} {mode}");
            }
            let space = facts(ours, &["info"])["actual-size"].as_u64().unwrap();
            // of each new cluster a sector is written: of one of 4 KiB that is all
            let all = mode != "metadata" || options.contains("cluster_size=4k");
            assert_eq!(space > 4 << 20, all, "{format} {options} {mode}: {space}");
        }
    }
}

#[test]
fn refusals_are_the_same_words() {
    let folders = folders();
    for command in [
        "-f raw r -1k",
        "-f raw r 1000",
        "-f raw r 0",
        "-f raw r -100G",
        "-f raw --shrink r -100G",
        "-f raw r 8E",
        "-f raw r +8E",
        "-f raw r 7E",
        "-f raw r abc",
        "-f raw r +",
        "-f raw r",
        "-f raw --preallocation=bad r 7M",
        "-f raw --preallocation=full --shrink r 1k",
        "q -512k",
        "--shrink q -512k",
        "q +100T",
        "q +1000",
        "--preallocation=falloc q 7M",
        "--preallocation=metadata -f raw r 7M",
        "--image-opts driver=bad,file.filename=r 1M",
        "--image-opts -f raw r 1M",
        "-f bad q 2M",
        "nowhere 2M",
        "-f qed r 1M",
        "",
    ] {
        assert_eq!(same(command, &folders).code, Some(1), "{command}");
    }
    for file in ["r", "q"] {
        assert!(bytes(folders[0].path(), file) == bytes(folders[1].path(), file), "{file}");
    }
}
