//! `quod replay`: formats, options of fresh images, what is written where.

mod common;

use common::{Answer, qemu_img, quod};
use std::path::Path;

const TRACE: &str =
    "fio version 2 iolog\nx add\nx open\nx write 0 4096\nx write 1048576 65536\nx read 0 8192\n";

fn replay(folder: &Path, words: &str) -> Answer {
    std::fs::write(folder.join("trace"), TRACE).unwrap();
    let args: Vec<&str> = ["replay", "trace"].into_iter().chain(words.split_whitespace()).collect();
    quod(&args, folder)
}

#[test]
fn a_fresh_image_has_the_options_of_create() {
    let folder = tempfile::tempdir().unwrap();
    let answer =
        replay(folder.path(), "-f qed --image x -o size=10M,cluster_size=4k -o table_size=2 --json j.json");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout.contains("x (qed, 10 MiB)") && answer.stdout.contains("PASSED"), "{answer:?}");
    let info = qemu_img(&["info", "x"], folder.path());
    assert!(
        info.stdout.contains("virtual size: 10 MiB") && info.stdout.contains("cluster_size: 4096"),
        "{info:?}"
    );
    assert_eq!(qemu_img(&["check", "x"], folder.path()).code, Some(0));
    let json = std::fs::read_to_string(folder.path().join("j.json")).unwrap();
    assert!(json.starts_with("{\n") && json.contains("\"format\": \"qed\""), "{json}");
    // once more, on what is there now
    let answer = replay(folder.path(), "--image x --seed 2");
    assert!(answer.code == Some(0) && answer.stdout.contains("x (qed, 10 MiB)"), "{answer:?}");
    let answer = replay(folder.path(), "-f raw --quiet");
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""), "{answer:?}");
}

#[test]
fn what_cannot_be_played_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (words, why) in [
        ("-f bad", "Unknown driver 'bad'"),
        ("-f qed -o lazy_refcounts", "Invalid parameter 'lazy_refcounts'"),
        ("-f both -o foo=1", "Invalid parameter 'foo'"),
        ("-f both --image x", "several formats are played on fresh ones"),
        ("-f qed -o cluster_size=3000", "QED cluster size"),
        ("-f qcow2 -o cluster_size=3000", "Cluster size must be a power of two"),
        ("-f qed -o backing_file=x", "a disk of zeros"),
        ("-f qcow2 -o data_file=a/x", "a name without a folder"),
        ("-f qed -o size=1M", "the image has only 1048576"),
    ] {
        let answer = replay(folder.path(), words);
        assert!(answer.code == Some(1) && answer.stderr.contains(why), "{words}: {answer:?}");
    }
    assert!(!folder.path().join("x").exists());
}

#[test]
fn what_cannot_be_read_or_written_is_told_by_name_and_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("trace"), "fio version 3 iolog\n1 x bad\n").unwrap();
    common::prepare("qemu-img", &["create", "-q", "-f", "qed", "a.qed", "1M"], folder.path());
    for (words, why) in [
        ("nowhere", "nowhere: cannot read the trace: No such file or directory"),
        (".", ".: cannot read the trace: Is a directory"),
        ("trace", "trace: trace line 2: "),
        ("a.qed", "'a.qed' is an image (qed), and no trace; '--image a.qed' plays a trace on it"),
        ("--timeline no/t", "cannot write 'no/t.qed': No such file or directory"),
        ("-f qed --timeline no/t", "cannot write 'no/t': No such file or directory"),
        ("--json no/j", "cannot write 'no/j': No such file or directory"),
    ] {
        let args: Vec<&str> = ["replay"].into_iter().chain(words.split(' ')).collect();
        let answer = quod(&args, folder.path());
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(1), ""), "{words}: {answer:?}");
        assert!(answer.stderr.contains(why), "{words}: {answer:?}");
    }
}

#[test]
fn a_schedule_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        std::fs::write(folder.path().join("schedule"), text).unwrap();
        quod(&["replay", "--schedule", "schedule"], folder.path())
    };
    let answer = run("quod-schedule 1\nrun target ops\nchoices 0 0 3\n");
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), "passes\n"), "{answer:?}");
    // a disk that forgets: what happened, then why it is wrong
    let answer =
        run("quod-schedule 1\nrun target canary\nchoices 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 19\n");
    assert!(answer.code == Some(1) && answer.stdout.contains("Write { offset: 0"), "{answer:?}");
    assert!(answer.stderr.contains("replay: sector 0"), "{answer:?}");
    for (text, why) in [("", "the first line must be"), ("quod-schedule 1\nrun x\n", "no such run: x")] {
        let answer = run(text);
        assert!(answer.code == Some(1) && answer.stderr.contains(why), "{answer:?}");
    }
    let answer = quod(&["replay", "--schedule", "schedule", "-q"], folder.path());
    assert!(answer.code != Some(0) && answer.stderr.contains("cannot be used"), "{answer:?}");
}
