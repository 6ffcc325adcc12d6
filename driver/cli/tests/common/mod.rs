//! The two tools on the same arguments: quod, and the installed QEMU as the judge.
//!
//! Knows: processes and their output. Must never know: images.
#![allow(dead_code, reason = "every test file takes what it needs")]

pub mod server;

use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What a process left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program in a folder. A program that is not there is a failure.
pub fn run(program: &str, args: &[&str], folder: &Path, stdin: &str) -> Answer {
    let input = folder.join(".stdin");
    std::fs::write(&input, stdin).unwrap();
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::from(std::fs::File::open(&input).unwrap()))
        .output()
        .unwrap_or_else(|error| panic!("{program} must be installed for these tests: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Answer { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs quod.
pub fn quod(args: &[&str], folder: &Path) -> Answer {
    run(env!("CARGO_BIN_EXE_quod"), args, folder, "").without_names()
}

/// Runs qemu-img.
pub fn qemu_img(args: &[&str], folder: &Path) -> Answer {
    run("qemu-img", args, folder, "").without_names()
}

/// Runs `quod io`, times taken out.
pub fn quod_io(args: &[&str], folder: &Path, stdin: &str) -> Answer {
    let words: Vec<&str> = ["io"].iter().chain(args).copied().collect();
    run(env!("CARGO_BIN_EXE_quod"), &words, folder, stdin).without_names().without_times()
}

/// Runs qemu-io, times taken out.
pub fn qemu_io(args: &[&str], folder: &Path, stdin: &str) -> Answer {
    run("qemu-io", args, folder, stdin).without_names().without_times()
}

/// A program that must succeed; what it said.
pub fn must(program: &str, args: &[&str], folder: &Path) -> String {
    let answer = run(program, args, folder, "");
    assert_eq!(answer.code, Some(0), "{program} {args:?}: {answer:?}");
    answer.stdout
}

/// Blocks of commands of a page of docs/ that begin so, as they stand there: a line a command.
pub fn documented(page: &str, beginning: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = std::fs::read_to_string(path).unwrap().replace("\\\n", "");
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = |block: &str| block.lines().map(str::to_string).collect();
    blocks.filter(|block| block.starts_with(beginning)).map(lines).collect()
}

/// A line of a shell, in which `quod` is the command of this tree.
pub fn shell(line: &str, folder: &Path) -> Command {
    let own = Path::new(env!("CARGO_BIN_EXE_quod")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder).env("PATH", format!("{}:{path}", own.display()));
    command
}

/// Prepares something with a QEMU tool.
pub fn prepare(program: &str, args: &[&str], folder: &Path) {
    must(program, args, folder);
}

/// Makes an image with qemu-img: format, options, name, size.
pub fn make(folder: &Path, args: &[&str]) {
    prepare("qemu-img", &[&["create", "-q", "-f"], args].concat(), folder);
}

/// Writes to an image with qemu-io.
pub fn write(folder: &Path, format: &str, file: &str, commands: &[&str]) {
    let mut args = vec!["-f", format];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    prepare("qemu-io", &[args.as_slice(), &[file]].concat(), folder);
}

impl Answer {
    fn without_names(mut self) -> Answer {
        for name in ["qemu-img: ", "qemu-io: ", "quod: "] {
            self.stderr = self.stderr.replace(name, "");
        }
        // a hint about another program's help
        let lines = self.stderr.lines().filter(|line| !line.starts_with("Try 'qemu-img "));
        self.stderr = lines.map(|line| format!("{line}\n")).collect();
        self
    }

    fn without_times(mut self) -> Answer {
        self.stdout = self.stdout.split_inclusive('\n').map(without_time).collect();
        self
    }
}

/// `64 KiB, 1 ops; <anything>` and `65536,1,<anything>` lose what no two runs share.
fn without_time(line: &str) -> String {
    if let Some((kept, _)) = line.split_once(" ops; ") {
        return format!("{kept} ops\n");
    }
    match line.split_once(",1,") {
        Some((bytes, _)) if bytes.bytes().all(|byte| byte.is_ascii_digit()) => format!("{bytes},1\n"),
        _ => line.to_string(),
    }
}

/// Two folders with the same images, raw and QED: for the two tools to change alike.
pub fn folders() -> [TempDir; 2] {
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

/// What a file of a folder holds.
pub fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}
