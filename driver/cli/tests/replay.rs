//! `quod replay`: formats, options of fresh images, what is written where.

mod common;

use common::{Answer, qemu_img, quod, run};
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
fn a_trace_comes_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let quod = env!("CARGO_BIN_EXE_quod");
    let answer = run(quod, &["replay", "-", "-f", "qed"], folder.path(), TRACE);
    assert!(answer.code == Some(0) && answer.stdout.starts_with("trace   stdin: 3 operations"), "{answer:?}");
    let answer = run(quod, &["replay", "-"], folder.path(), "");
    assert_eq!(
        (answer.code, answer.stderr.contains("-: trace line 1: empty")),
        (Some(1), true),
        "{answer:?}"
    );
    // what never ends, and is no trace
    let answer = common::quod(&["replay", "/dev/zero"], folder.path());
    assert!(
        answer.code == Some(1) && answer.stderr.contains("/dev/zero: trace line 1: longer"),
        "{answer:?}"
    );
    // a pipe with a name
    let fifo = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = std::thread::spawn(move || std::fs::write(fifo, TRACE));
    let answer = common::quod(&["replay", "fifo", "-f", "raw"], folder.path());
    writer.join().unwrap().unwrap();
    assert!(answer.code == Some(0) && answer.stdout.contains("fifo: 3 operations"), "{answer:?}");
}

#[test]
fn a_file_of_the_trace_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let text = "fio version 2 iolog\na add\nb add\na write 0 4096\nb wait 1000 0\nb write 0 512\nb sync\n";
    std::fs::write(folder.path().join("t"), text).unwrap();
    let play = |words: &str| {
        let args: Vec<&str> = ["replay", "t", "-f", "raw"].into_iter().chain(words.split(' ')).collect();
        quod(&args, folder.path())
    };
    let answer = play("--seed 1");
    assert!(answer.stdout.contains("file a; left out: b (2 operations)\n"), "{answer:?}");
    assert!(answer.stdout.contains("`wait` in microseconds since the one before\n"), "{answer:?}");
    let answer = play("--file b --wait-unit ms");
    assert!(answer.stdout.contains("t: 2 operations") && answer.stdout.contains("left out: a"), "{answer:?}");
    assert!(answer.stdout.contains("`wait` as a moment, in milliseconds"), "{answer:?}");
    let answer = play("--file c");
    assert!(answer.code == Some(1) && answer.stderr.contains("no operation of the file 'c'"), "{answer:?}");
    std::fs::write(folder.path().join("t"), format!("{text}b frob\n")).unwrap();
    let answer = play("--file b");
    assert!(answer.stderr.contains("t: trace line 8: bad action `frob`: `b frob`"), "{answer:?}");
}

#[test]
fn results_go_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let answer = replay(folder.path(), "--json -");
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(value.as_array().unwrap().len(), 2);
    assert!(answer.code == Some(0) && answer.stderr.contains("PASSED"), "{answer:?}");
    let answer = replay(folder.path(), "--json - -q -f raw");
    assert!(answer.stdout.starts_with("{\n") && answer.stderr.is_empty(), "{answer:?}");
    std::fs::write(folder.path().join("raw"), [0; 4096]).unwrap();
    let answer = quod(&["bench", "-c", "3", "-f", "raw", "--json", "-", "raw"], folder.path());
    let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(
        (value["done"].as_u64(), answer.stderr.contains("Run completed")),
        (Some(3), true),
        "{answer:?}"
    );
    // a device gets both timelines
    let answer = replay(folder.path(), "--timeline /dev/null");
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(!Path::new("/dev/null.qed").exists() && !Path::new("/dev/null.qcow2").exists());
    assert_eq!(replay(folder.path(), "--timeline t.json").code, Some(0));
    for name in ["t.qed.json", "t.qcow2.json"] {
        let text = std::fs::read(folder.path().join(name)).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok(), "{name}");
    }
    // what cannot be written is noticed before anything else is done
    for words in ["--json no/j", "--timeline no/t", "--json ."] {
        let answer = replay(folder.path(), &format!("{words} --image new"));
        let name = words.split(' ').nth(1).unwrap();
        assert!(answer.code == Some(1) && answer.stderr.contains(name), "{answer:?}");
        assert!(answer.stdout.is_empty() && !folder.path().join("new").exists(), "{answer:?}");
    }
    let answer = quod(&["bench", "--json", "no/j", "-f", "raw", "raw"], folder.path());
    assert!(answer.code == Some(1) && answer.stdout.is_empty(), "{answer:?}");
    let answer = replay(folder.path(), "--timeline -");
    assert!(answer.code == Some(1) && answer.stderr.contains("--timeline -"), "{answer:?}");
}
