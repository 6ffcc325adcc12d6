//! Output that cannot be written: a pipe that nobody reads any more, a full device, of every subcommand.

mod common;

use common::prepare;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Everything that prints, in the way it is asked for.
const ALL: &[&[&str]] = &[
    &["--help"],
    &["--version"],
    &["bench", "--help"],
    &["create", "-f", "qcow2", "-o", "help"],
    &["create", "-f", "qcow2", "new", "1M"],
    &["info", "x"],
    &["info", "--output=json", "x"],
    &["info", "--backing-chain", "x"],
    &["check", "x"],
    &["check", "--output=json", "x"],
    &["check", "-r", "all", "x"],
    &["map", "x"],
    &["map", "--output=json", "x"],
    &["resize", "x", "+1M"],
    &["io", "-h"],
    &["io", "-V"],
    &["io", "-c", "help", "-c", "read -v 0 64k", "x"],
    &["io", "-c", "write 0 64k", "x"],
    &["io", "x"],
    &["bench", "-c", "9", "x"],
    &["bench", "-w", "-c", "9", "x"],
    &["replay", "-f", "qed", "trace"],
    &["replay", "trace"],
];

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("trace", "fio version 2 iolog\nx add\nx open\nx write 0 4096\n");
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x", "4M"], folder.path());
    prepare("qemu-io", &["-c", "write 0 64k", "-c", "write 1M 64k", "x"], folder.path());
    folder
}

fn run(args: &[&str], folder: &Path, stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quod"));
    let command = command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Stdio::from(writer)
}

fn full() -> Stdio {
    Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap())
}

#[test]
fn nobody_has_to_read_what_a_command_says() {
    let folder = folder();
    for args in ALL {
        let answer = run(args, folder.path(), closed(), Stdio::piped());
        let text = String::from_utf8_lossy(&answer.stderr);
        assert_eq!((answer.status.code(), text.as_ref()), (Some(0), ""), "{args:?}");
        prepare("qemu-img", &["check", "-q", "x"], folder.path());
    }
}

#[test]
fn a_full_stdout_is_an_error_of_every_command() {
    let folder = folder();
    for args in ALL {
        let answer = run(args, folder.path(), full(), Stdio::piped());
        let text = String::from_utf8_lossy(&answer.stderr);
        let told = (answer.status.code(), text.as_ref());
        assert_eq!(told, (Some(1), "quod: standard output: No space left on device\n"), "{args:?}");
        prepare("qemu-img", &["check", "-q", "x"], folder.path());
    }
}

#[test]
fn nobody_has_to_read_what_goes_wrong() {
    let folder = folder();
    for args in [
        &["info", "missing"][..],
        &["bench", "missing"],
        &["--bad"],
        &["io", "-c", "bad", "x"],
        &["io", "-c", "write -s missing 0 1k", "x"],
        &["io", "-c", "length", "-z"],
        &["replay", "missing"],
        &["check", "-r", "all", "missing"],
    ] {
        for stderr in [closed(), full()] {
            assert_eq!(run(args, folder.path(), Stdio::piped(), stderr).status.code(), Some(1), "{args:?}");
        }
    }
}
