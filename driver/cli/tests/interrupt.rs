//! Signals that ask a command to end: what is written is whole, what is temporary goes, what is known is
//! told.

mod common;

use common::{prepare, qemu_img};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn quod(args: &[&str], folder: &Path) -> Command {
    // whoever runs the tests may ignore signals (nohup, a shell's background): the command begins without
    // that
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_quod")]);
    command.args(args).current_dir(folder).env("TMPDIR", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for a line of stdout, answers the rest.
fn until_line(child: &mut Child, wanted: &str) -> BufReader<std::process::ChildStdout> {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains(wanted) {
        line.clear();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "it ended before it said {wanted}");
    }
    stdout
}

fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ended_by(output: &Output, signal: Signal, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(signal.as_raw()), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_bench_reports_what_it_has_done() {
    let folder = tempfile::tempdir().unwrap();
    for (args, signal, words) in [
        (&["bench", "-w", "-c", "2000000000"][..], Signal::INT, "the image is closed cleanly"),
        (&["bench", "-c", "2000000000", "--json", "j"], Signal::TERM, "the image was only read"),
    ] {
        prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x", "64M"], folder.path());
        let mut child = quod(&[args, &["-f", "qcow2", "x"]].concat(), folder.path()).spawn().unwrap();
        let mut stdout = until_line(&mut child, "Sending 2000000000");
        std::thread::sleep(Duration::from_millis(20));
        send(&child, signal);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        ended_by(&child.wait_with_output().unwrap(), signal, words);
        assert!(rest.contains("Run interrupted after") && rest.contains("Closed in"), "{rest}");
        assert_eq!(qemu_img(&["check", "-q", "x"], folder.path()).code, Some(0));
    }
    let text = std::fs::read_to_string(folder.path().join("j")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value["done"].as_u64().unwrap() < value["count"].as_u64().unwrap(), "{text}");
}

#[test]
fn a_conversion_tells_what_its_target_is() {
    let folder = tempfile::tempdir().unwrap();
    let source = vec![7; 8 << 20];
    std::fs::write(folder.path().join("r"), &source).unwrap();
    let args = ["convert", "-f", "raw", "-O", "qcow2", "-r", "1k", "r", "x"];
    let child = quod(&args, folder.path()).spawn().unwrap();
    until(|| folder.path().join("x").exists());
    std::thread::sleep(Duration::from_millis(50));
    send(&child, Signal::INT);
    ended_by(&child.wait_with_output().unwrap(), Signal::INT, "'x' is incomplete");
    assert_eq!(qemu_img(&["check", "-q", "x"], folder.path()).code, Some(0));
    assert!(std::fs::read(folder.path().join("r")).unwrap() == source);
}

#[test]
fn a_commit_leaves_the_overlay_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "raw", "b", "1M"], path);
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "b", "-F", "raw", "x", "8M"], path);
    prepare("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 8M", "x"], path);
    let overlay = std::fs::read(path.join("x")).unwrap();
    let child = quod(&["commit", "-r", "1k", "x"], path).spawn().unwrap();
    // the backing file gets the size of the disk first
    until(|| std::fs::metadata(path.join("b")).unwrap().len() == 8 << 20);
    std::thread::sleep(Duration::from_millis(50));
    send(&child, Signal::INT);
    ended_by(&child.wait_with_output().unwrap(), Signal::INT, "'x' is unchanged");
    assert!(std::fs::read(path.join("x")).unwrap() == overlay);
    prepare("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 7 0 8M", "x"], path);
}

#[test]
fn a_replay_removes_its_image() {
    let folder = tempfile::tempdir().unwrap();
    // it would take a day
    let text = "fio version 3 iolog\n0 d write 0 4096\n86400000000 d write 4096 4096\n";
    std::fs::write(folder.path().join("trace"), text).unwrap();
    let temporary = || {
        let names = std::fs::read_dir(folder.path()).unwrap();
        names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with("quod-")).count()
    };
    let args = ["replay", "trace", "--speed", "real", "--json", "j"];
    let child = quod(&args, folder.path()).spawn().unwrap();
    until(|| temporary() == 1);
    std::thread::sleep(Duration::from_millis(50));
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    ended_by(&output, Signal::INT, "quod: replay: interrupted; the temporary image is removed");
    assert!(String::from_utf8_lossy(&output.stdout).contains("INTERRUPTED in the phase"));
    assert_eq!(temporary(), 0);
    let text = std::fs::read_to_string(folder.path().join("j")).unwrap();
    assert!(text.contains("\"interrupted\": \"replay\""), "{text}");
    // an image that has a name stays
    let child = quod(&[&args[..], &["--image", "x"]].concat(), folder.path()).spawn().unwrap();
    until(|| is_written(folder.path()));
    send(&child, Signal::TERM);
    ended_by(&child.wait_with_output().unwrap(), Signal::TERM, "'x' is closed cleanly");
    assert_eq!(qemu_img(&["check", "-q", "x"], folder.path()).code, Some(0));
}

#[test]
fn commands_of_io_end_with_a_closed_image() {
    let folder = tempfile::tempdir().unwrap();
    prepare("qemu-img", &["create", "-q", "-f", "qed", "x", "64M"], folder.path());
    let mut command =
        quod(&["io", "-c", "write 0 64k", "-c", "sleep 86400000", "-c", "write 1M 64k", "x"], folder.path());
    let child = command.spawn().unwrap();
    until(|| is_written(folder.path()));
    std::thread::sleep(Duration::from_millis(20));
    send(&child, Signal::INT);
    ended_by(&child.wait_with_output().unwrap(), Signal::INT, "interrupted; the image is closed cleanly");
    let check = qemu_img(&["check", "x"], folder.path());
    assert!(check.code == Some(0) && check.stdout.contains("1/1024"), "{check:?}");
    // waiting for a line
    let mut command = quod(&["io", "x"], folder.path());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut prompt = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    send(&child, Signal::TERM);
    let input = child.stdin.take();
    ended_by(&child.wait_with_output().unwrap(), Signal::TERM, "interrupted; the image is closed cleanly");
    drop(input);
}

/// Is there more in the QED image than its header and its L1 table?
fn is_written(folder: &Path) -> bool {
    folder.join("x").metadata().is_ok_and(|found| found.len() > 65536 + 4 * 65536)
}

#[test]
fn half_an_image_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    let args = ["create", "-f", "qcow2", "-o", "preallocation=full", "x", "64G"];
    let child = quod(&args, folder.path()).spawn().unwrap();
    until(|| file.metadata().is_ok_and(|found| found.len() > 0));
    send(&child, Signal::INT);
    ended_by(&child.wait_with_output().unwrap(), Signal::INT, "x: interrupted; what was made is removed");
    assert!(!file.exists());
}

/// Does it look at this signal?
fn catches(child: &Child, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
}

#[test]
fn the_second_signal_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    // opening a pipe that nobody reads never ends
    assert!(Command::new("mkfifo").arg(folder.path().join("fifo")).status().unwrap().success());
    let mut child = quod(&["replay", "-q", "--timeline", "fifo"], folder.path()).spawn().unwrap();
    until(|| catches(&child, Signal::INT));
    send(&child, Signal::INT);
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    send(&child, Signal::INT);
    ended_by(&child.wait_with_output().unwrap(), Signal::INT, "");
}

#[test]
fn io_raises_what_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    for number in [1, 2, 9, 15] {
        let output = quod(&["io", "-c", &format!("sigraise {number}")], folder.path()).output().unwrap();
        assert_eq!((output.status.signal(), output.stderr.len()), (Some(number), 0));
    }
}

#[test]
fn what_was_ignored_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x", "1M"], folder.path());
    let script = "trap '' HUP INT; exec \"$0\" bench -c 300000 -f qcow2 x";
    let mut command = Command::new("sh");
    let command = command.args(["-c", script, env!("CARGO_BIN_EXE_quod")]).current_dir(folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = until_line(&mut child, "Sending");
    send(&child, Signal::HUP);
    send(&child, Signal::INT);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success() && rest.contains("Run completed"), "{rest}");
}

#[test]
fn a_repair_ends_where_it_is() {
    use quod::Error;
    use quod_tools::{Checker, CreateOptions, Preallocation, Qcow2Options, Repair, create_until};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    for format in ["qed", "qcow2"] {
        prepare("qemu-img", &["create", "-q", "-f", format, "x", "1M"], folder.path());
        let before = std::fs::read(&path).unwrap();
        let checker = Checker::open(&path, None, Some(Repair::All), true).unwrap().until(|| true);
        assert_eq!(checker.run(), Err(Error::Cancelled));
        assert!(std::fs::read(&path).unwrap() == before, "{format}");
    }
    // both files of a new image go
    let qcow2 = Qcow2Options {
        data_file: Some(folder.path().join("data").display().to_string()),
        preallocation: Preallocation::Full,
        ..Qcow2Options::default()
    };
    let options = CreateOptions { qcow2, ..CreateOptions::new(quod::Format::Qcow2, 4 << 20) };
    assert_eq!(create_until(&path, &options, || true), Err(Error::Cancelled));
    assert!(!path.exists() && !folder.path().join("data").exists());
}
