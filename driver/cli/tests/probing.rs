//! A format that was guessed to be raw: the warning, and what may not be written then, in every command that
//! writes, as QEMU's tools have it.

mod common;

use common::{Answer, prepare, qemu_img, qemu_io, quod, quod_io};
use std::path::Path;
use tempfile::TempDir;

/// Two folders with the same images.
fn folders() -> [TempDir; 2] {
    [(), ()].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        for (format, file) in [("raw", "r"), ("qed", "q")] {
            prepare("qemu-img", &["create", "-q", "-f", format, file, "1M"], folder.path());
            let args = ["-f", format, "-c", "write -P 7 64k 128k", "-c", "write -P 8 1020k 4k", file];
            prepare("qemu-io", &args, folder.path());
        }
        folder
    })
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}

#[test]
fn a_guessed_format_is_not_written_into_being() {
    let [ours, theirs] = folders();
    for folder in [&ours, &theirs] {
        for (file, start) in [("qed", &b"QED\0"[..]), ("qfi", b"QFI\xfb\0\0\0\x03"), ("text", b"text")] {
            std::fs::write(folder.path().join(file), start).unwrap();
        }
    }
    let write = |file: &str, more: &str| format!("write -s {file} 0 {more}");
    for (args, commands) in [
        (&["r"][..], &[write("qed", "512"), write("qfi", "8"), write("text", "4k"), write("qfi", "1M")][..]),
        (&["r"], &["write -P 0x51 0 1".into(), "write 512 512".into(), "write -z 0 64k".into()]),
        (&["r"], &["aio_write -P 3 0 512".into(), "aio_flush".into(), "writev -P 0x51 0 1 511".into()]),
        (&["-f", "raw", "r"], &[write("qfi", "512"), write("text", "512")]),
        (&["-r", "r"], &["read 0 512".into()]),
        (&["--image-opts", "file.filename=r"], &[write("qed", "512")]),
        (&["--image-opts", "driver=raw,file.filename=r"], &["read 0 512".into()]),
    ] {
        let words: Vec<&str> = commands
            .iter()
            .flat_map(|command| ["-c", command.as_str()])
            .chain(args.iter().copied())
            .collect();
        let (our_answer, their_answer) =
            (quod_io(&words, ours.path(), ""), qemu_io(&words, theirs.path(), ""));
        assert_eq!(our_answer, their_answer, "{words:?}");
        assert!(bytes(ours.path(), "r") == bytes(theirs.path(), "r"), "{words:?}");
    }
    // what is made of the sector in pieces counts, not the single write
    let pieces = ["write -z 0 512", "write -P 0x51 0 1", "write -P 0x45 1 1", "write -P 0x44 2 1"];
    let words: Vec<&str> = pieces.iter().flat_map(|command| ["-c", command]).chain(["r"]).collect();
    let answer = quod_io(&words, ours.path(), "");
    assert!(answer.stdout.ends_with("write failed: Operation not permitted\n"), "{answer:?}");
}

#[test]
fn every_command_that_writes_warns() {
    let [ours, theirs] = folders();
    let warning = |answer: &Answer| {
        let lines = answer.stderr.lines().take_while(|line| line.starts_with(['W', ' ']));
        lines.map(String::from).collect::<Vec<_>>()
    };
    for args in [
        &["bench", "-w", "-c", "8", "r"][..],
        &["bench", "-w", "-c", "8", "-f", "raw", "r"],
        &["bench", "-c", "8", "r"],
        &["check", "-r", "all", "r"],
        &["check", "r"],
        &["resize", "r", "2M"],
    ] {
        let (our_answer, their_answer) = (quod(args, ours.path()), qemu_img(args, theirs.path()));
        assert_eq!(our_answer.code, their_answer.code, "{args:?}: {our_answer:?}");
        assert_eq!(warning(&our_answer), warning(&their_answer), "{args:?}");
    }
    std::fs::write(ours.path().join("trace"), "fio version 2 iolog\nx add\nx open\nx write 0 4096\n")
        .unwrap();
    for (args, lines) in
        [(&["replay", "--image", "r", "trace"][..], 3), (&["replay", "--image", "q", "trace"], 0)]
    {
        let answer = quod(args, ours.path());
        assert_eq!((answer.code, warning(&answer).len()), (Some(0), lines), "{args:?}: {answer:?}");
    }
}
