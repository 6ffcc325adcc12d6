//! QEMU's locks against the real thing, in both directions. Needs qemu-io and qemu-img: without them this
//! fails.

mod common;
use common::*;
use quod_backend::*;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const BUSY: Result<Output, Errno> = Err(Errno(libc::EAGAIN));
const DONE: Result<Output, Errno> = Ok(Output::Done);

fn lock(backend: &mut dyn Backend, file: FileId, mode: LockMode) -> Result<Output, Errno> {
    run(backend, Op::Lock { file, mode })
}

/// A qemu-io that has the image open. Leaves when dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, arguments: &[&str]) -> QemuIo {
        QemuIo::open_as("qcow2", path, arguments)
    }

    fn open_as(format: &str, path: &Path, arguments: &[&str]) -> QemuIo {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .args(["-f", format])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is needed");
        // once it answers it has taken its locks
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("1 MiB"), "qemu-io says {line:?}");
        QemuIo(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Did it work, and what did it complain about?
fn tool(program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn refused_by_lock((worked, complaint): (bool, String)) {
    assert!(!worked && complaint.contains("lock"), "worked: {worked}, complaint: {complaint:?}");
}

fn works((worked, complaint): (bool, String)) {
    assert!(worked, "{complaint}");
}

const WRITE: &[&str] = &["-f", "qcow2", "-c", "write 0 512"];
const READ: &[&str] = &["-r", "-f", "qcow2", "-c", "read 0 512"];
const INFO: &[&str] = &["info", "-f", "qcow2"];

/// Runs a test with every backend on an image of one MiB.
fn each(test: impl Fn(&mut dyn Backend, &Path)) {
    for mut backend in backends(8) {
        let dir = temp_dir();
        let path = dir.path().join("image");
        // a raw image would not do: whoever only reads one does not mind writers
        works(tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "size=1M"], &path));
        test(&mut *backend, &path);
    }
}

#[test]
fn qemu_that_writes_keeps_us_out() {
    each(|b, path| {
        let f = open(b, path, true, false);
        let qemu = QemuIo::open(path, &[]);
        assert_eq!(lock(b, f, LockMode::Write), BUSY);
        assert_eq!(lock(b, f, LockMode::Read), BUSY);
        drop(qemu);
        assert_eq!(lock(b, f, LockMode::Write), DONE);
    });
}

#[test]
fn qemu_that_reads_tolerates_our_reading() {
    each(|b, path| {
        let f = open(b, path, true, false);
        let qemu = QemuIo::open(path, &["-r"]);
        assert_eq!(lock(b, f, LockMode::Read), DONE);
        // a failed upgrade keeps what was held
        assert_eq!(lock(b, f, LockMode::Write), BUSY);
        drop(qemu);
        refused_by_lock(tool("qemu-io", WRITE, path));
        assert_eq!(lock(b, f, LockMode::Write), DONE);
    });
}

#[test]
fn our_writing_keeps_qemu_out() {
    each(|b, path| {
        let f = open(b, path, true, false);
        assert_eq!(lock(b, f, LockMode::Write), DONE);
        refused_by_lock(tool("qemu-io", WRITE, path));
        refused_by_lock(tool("qemu-io", READ, path));
        refused_by_lock(tool("qemu-img", INFO, path));
        assert_eq!(lock(b, f, LockMode::None), DONE);
        works(tool("qemu-io", WRITE, path));
    });
}

#[test]
fn who_writes_a_raw_file_is_tolerated_by_those_who_say_so() {
    each(|b, path| {
        std::fs::write(path, vec![0; 1 << 20]).unwrap();
        let f = open(b, path, false, false);
        let qemu = QemuIo::open_as("raw", path, &[]);
        assert_eq!(lock(b, f, LockMode::Read), BUSY);
        assert_eq!(lock(b, f, LockMode::Share), DONE);
        drop(qemu);
        works(tool("qemu-io", &["-f", "raw", "-c", "write 0 512"], path));
        // a writer of ours denies others to write, not to read
        let (g, h) = (open(b, path, true, false), open(b, path, false, false));
        assert_eq!(lock(b, g, LockMode::Write), DONE);
        assert_eq!(lock(b, f, LockMode::Share), DONE);
        assert_eq!(lock(b, h, LockMode::Share), DONE);
        assert_eq!(lock(b, h, LockMode::Read), BUSY);
    });
}

#[test]
fn our_reading_keeps_only_writers_out() {
    each(|b, path| {
        let f = open(b, path, false, false);
        assert_eq!(lock(b, f, LockMode::Read), DONE);
        works(tool("qemu-img", INFO, path));
        works(tool("qemu-io", READ, path));
        refused_by_lock(tool("qemu-io", WRITE, path));
        assert_eq!(lock(b, f, LockMode::Read), DONE);
    });
}

#[test]
fn downgrading_lets_readers_in() {
    each(|b, path| {
        let f = open(b, path, true, false);
        assert_eq!(lock(b, f, LockMode::Write), DONE);
        assert_eq!(lock(b, f, LockMode::Read), DONE);
        works(tool("qemu-img", INFO, path));
        refused_by_lock(tool("qemu-io", WRITE, path));
    });
}

#[test]
fn we_keep_each_other_out_and_close_gives_back() {
    each(|b, path| {
        let (f, g) = (open(b, path, true, false), open(b, path, true, true));
        assert_eq!(lock(b, f, LockMode::Read), DONE);
        assert_eq!(lock(b, g, LockMode::Read), DONE);
        assert_eq!(lock(b, g, LockMode::Write), BUSY);
        assert_eq!(run(b, Op::Close { file: f }), DONE);
        assert_eq!(lock(b, g, LockMode::Write), DONE);
        let f = open(b, path, true, false);
        assert_eq!(lock(b, f, LockMode::Read), BUSY);
        assert_eq!(run(b, Op::Close { file: g }), DONE);
        assert_eq!(lock(b, f, LockMode::Write), DONE);
    });
}

#[test]
fn dropping_a_backend_gives_its_locks_back_at_once() {
    let dir = temp_dir();
    let path = dir.path().join("image");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    for _ in 0..20 {
        for mut backend in backends(8) {
            let f = open(&mut *backend, &path, true, false);
            assert_eq!(lock(&mut *backend, f, LockMode::Write), DONE, "{}", backend.name());
        }
    }
}
