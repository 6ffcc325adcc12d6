//! `quod info`, `check` and `map` against `qemu-img`: the same text and the same JSON on the same files; and
//! what both say while somebody else has a file.

mod common;

use common::{prepare, qemu_img, quod};
use std::path::Path;

/// A chain top.qed -> mid.qed -> base.raw with data, zeros and holes in every layer, and images with faults.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let create = |args: &[&str]| prepare("qemu-img", &[&["create", "-q", "-f"], args].concat(), path);
    let write = |format: &str, file: &str, commands: &[&str]| {
        let mut args = vec!["-f", format];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(file);
        prepare("qemu-io", &args, path);
    };
    create(&["raw", "base.raw", "1M"]);
    create(&["qed", "-b", "base.raw", "-F", "raw", "mid.qed", "2M"]);
    create(&["qed", "-b", "mid.qed", "-F", "qed", "top.qed", "3M"]);
    create(&["qed", "empty.qed", "1M"]);
    create(&["qed", "-u", "-b", "nowhere", "-F", "raw", "orphan.qed", "1M"]);
    create(&["qed", "-o", "cluster_size=4k,table_size=2", "small.qed", "20M"]);
    write("raw", "base.raw", &["write 128k 4k", "write 512k 100k"]);
    write("qed", "mid.qed", &["write 64k 64k", "write 1M 256k"]);
    write("qed", "top.qed", &["write 0 1k", "write -z 1M 64k", "write 2M 192k"]);
    write("qed", "small.qed", &["write 1M 64k", "write 0 12k", "write 2M 4k", "write 2056k 4k"]);
    std::fs::copy(path.join("top.qed"), path.join("leak.qed")).unwrap();
    let leak = std::fs::OpenOptions::new().write(true).open(path.join("leak.qed")).unwrap();
    leak.set_len(leak.metadata().unwrap().len() + 200 * 1024).unwrap();
    damage(path);
    folder
}

/// bad.qed: an L2 entry beyond the file, one that repeats a cluster, an L1 entry that is no offset.
fn damage(folder: &Path) {
    let mut bytes = std::fs::read(folder.join("top.qed")).unwrap();
    let entry = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = entry(&bytes, 0x10000) as usize;
    let first = entry(&bytes, table);
    bytes[table + 40..table + 48].copy_from_slice(&0x9000_0000u64.to_le_bytes());
    bytes[0x10008..0x10010].copy_from_slice(&0x123u64.to_le_bytes());
    std::fs::write(folder.join("fixable.qed"), &bytes).unwrap();
    bytes[table + 48..table + 56].copy_from_slice(&first.to_le_bytes());
    std::fs::write(folder.join("bad.qed"), &bytes).unwrap();
    std::fs::write(folder.join("noise"), [7; 70000]).unwrap();
}

fn same(command: &str, folder: &Path) {
    let args: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{command}");
}

const FILES: [&str; 8] =
    ["top.qed", "mid.qed", "base.raw", "empty.qed", "small.qed", "leak.qed", "noise", "./top.qed"];

#[test]
fn info_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in ["", "--output=json", "--backing-chain", "--backing-chain --output json", "-U"] {
            same(&format!("info {options} {file}"), folder.path());
        }
    }
    for command in
        ["info nowhere", "info orphan.qed", "info --backing-chain orphan.qed", "info -f bad top.qed"]
    {
        same(command, folder.path());
    }
    same("info -f raw --output json top.qed", folder.path());
}

#[test]
fn an_image_is_named_by_options() {
    let folder = images();
    for command in ["info", "check", "map --output json"] {
        for options in [
            "driver=qed,file.filename=top.qed",
            "driver=qed,file.driver=file,file.filename=top.qed",
            "driver=bad,file.filename=top.qed",
            "driver=qed",
        ] {
            same(&format!("{command} --image-opts {options}"), folder.path());
        }
        same(&format!("{command} --image-opts -f qed driver=qed,file.filename=top.qed"), folder.path());
        let refused = quod(
            &[&command.split(' ').collect::<Vec<_>>()[..], &["--object", "secret,id=x", "top.qed"]].concat(),
            folder.path(),
        );
        assert!(refused.code == Some(1) && refused.stderr.contains("--object"), "{refused:?}");
    }
}

#[test]
fn check_is_the_same() {
    let folder = images();
    for file in FILES.into_iter().chain(["bad.qed", "fixable.qed", "nowhere"]) {
        for options in ["", "--output=json", "-q", "-f qed -U"] {
            if file == "noise" || file == "base.raw" {
                same(&format!("check {} {file}", options.replace("qed", "raw")), folder.path());
            } else {
                same(&format!("check {options} {file}"), folder.path());
            }
        }
    }
    same("check -r bad top.qed", folder.path());
}

#[test]
fn repair_is_the_same() {
    for what in ["leaks", "all"] {
        for output in ["human", "json"] {
            for file in ["fixable.qed", "bad.qed", "top.qed"] {
                let (ours, theirs) = (images(), images());
                let args = ["check", "-r", what, "--output", output, file];
                let (ours_said, theirs_said) = (quod(&args, ours.path()), qemu_img(&args, theirs.path()));
                assert_eq!(ours_said, theirs_said, "{args:?}");
                let after = ["check", file];
                assert_eq!(qemu_img(&after, ours.path()), qemu_img(&after, theirs.path()), "{args:?}");
            }
        }
    }
}

#[test]
fn map_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in ["", "--output=json", "-U --start-offset 1M --max-length 100k --output json"] {
            same(&format!("map {options} {file}"), folder.path());
        }
    }
    for command in [
        "map --start-offset 100 --max-length 1 --output json top.qed",
        "map --max-length 0 --output json top.qed",
        "map --start-offset 8M top.qed",
        "map --start-offset x top.qed",
        "map --max-length x top.qed",
        "map --start-offset -1 top.qed",
        "map nowhere",
        "map orphan.qed",
        "map -f bad top.qed",
    ] {
        same(command, folder.path());
    }
}

#[test]
fn leaks_that_qemu_leaves_are_repaired() {
    let folder = images();
    let repair = quod(&["check", "-r", "leaks", "leak.qed"], folder.path());
    assert_eq!(repair.code, Some(0), "{repair:?}");
    assert!(repair.stdout.contains("    3 leaked clusters\n"), "{repair:?}");
    same("check leak.qed", folder.path());
    same("check --output json leak.qed", folder.path());
}

/// A program that has an image open for writing, as a virtual machine has.
struct Writer(std::process::Child);

impl Writer {
    fn open(folder: &Path, args: &[&str]) -> Writer {
        use std::io::{BufRead, Write};
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_quod"))
            .arg("io")
            .args(args)
            .current_dir(folder)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // when it answers it has its locks
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("MiB"), "{line}");
        Writer(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Each file has its own lock, and its own word about it.
#[test]
fn locks_of_a_data_file_are_taken_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let data = path.join("d");
    let option = format!("data_file={}", data.display());
    for name in ["one", "two"] {
        common::prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &option, name, "1M"], path);
    }
    let writer = Writer::open(path, &["-f", "qcow2", "one"]);
    let named = "data-file.driver=file,data-file.filename=d";
    for (image, options, opens) in [
        ("two", "", false),
        ("two", named, false),
        ("two", &format!("{named},data-file.locking=auto,file.locking=off"), false),
        ("two", &format!("{named},data-file.locking=off"), true),
        ("one", &format!("{named},data-file.locking=off"), false),
        ("one", &format!("{named},data-file.locking=off,file.locking=off"), true),
    ] {
        let options = format!("driver=qcow2,file.filename={image},{options}");
        let args = ["--image-opts", options.trim_end_matches(','), "-c", "read 0 4k"];
        let (ours, theirs) = (common::quod_io(&args, path, ""), common::qemu_io(&args, path, ""));
        assert_eq!([ours.code, theirs.code], [Some(i32::from(!opens)); 2], "{options}: {ours:?}");
        assert!(opens || ours.stderr.contains("lock"), "{options}: {ours:?}");
    }
    drop(writer);
}

#[test]
fn a_raw_disk_that_is_written_is_looked_at_and_read() {
    let folder = images();
    let path = folder.path();
    let writer = Writer::open(path, &["-f", "raw", "base.raw"]);
    for command in
        ["info base.raw", "info -f raw base.raw", "map base.raw", "map --output json -f raw base.raw"]
    {
        same(command, path);
    }
    same("map top.qed", path);
    for (format, file) in [("raw", "base.raw"), ("qed", "top.qed")] {
        let read = ["-r", "-f", format, "-c", "read 128k 4k", file];
        assert_eq!(common::quod_io(&read, path, ""), common::qemu_io(&read, path, ""));
    }
    drop(writer);
    let writer = Writer::open(path, &["-f", "qed", "small.qed"]);
    for command in ["info", "map"] {
        let answers = [quod, qemu_img].map(|tool| tool(&[command, "small.qed"], path));
        assert!(answers.iter().all(|answer| answer.stderr.contains("Failed to get")), "{answers:?}");
    }
    drop(writer);
}

#[test]
fn who_was_killed_keeps_nobody_out() {
    let folder = images();
    for _ in 0..5 {
        let mut writer = Writer::open(folder.path(), &["-f", "qed", "small.qed"]);
        writer.0.kill().unwrap();
        drop(writer);
        assert_eq!(quod(&["check", "-q", "small.qed"], folder.path()).code, Some(0));
    }
}
