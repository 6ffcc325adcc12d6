//! `quod io` against `qemu-io`: the same words on the same commands, and the same disk afterwards.

mod common;

use common::{prepare, qemu_io, quod_io};
use std::path::Path;

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "1M"], path);
    prepare("qemu-io", &["-f", "raw", "-c", "write -P 9 100k 200k", "base.raw"], path);
    prepare("qemu-img", &["create", "-q", "-f", "qed", "x.qed", "1M"], path);
    prepare(
        "qemu-img",
        &["create", "-q", "-f", "qed", "-b", "base.raw", "-F", "raw", "over.qed", "2M"],
        path,
    );
    std::fs::write(path.join("source"), b"quod ").unwrap();
    std::fs::write(path.join("nothing"), b"").unwrap();
    folder
}

/// Both tools with the same words, each on files of its own; the disks are compared by qemu-img.
fn same(args: &[&str], stdin: &str) {
    let (ours, theirs) = (fresh(), fresh());
    let we = quod_io(args, ours.path(), stdin);
    let they = qemu_io(args, theirs.path(), stdin);
    assert_eq!(we, they, "{args:?} {stdin:?}");
    for (format, file) in [("qed", "x.qed"), ("qed", "over.qed"), ("raw", "base.raw")] {
        let (one, other) = (ours.path().join(file), theirs.path().join(file));
        compare(format, &one, &other);
    }
}

fn compare(format: &str, one: &Path, other: &Path) {
    let paths = [one, other].map(|path| path.to_str().unwrap());
    prepare("qemu-img", &["compare", "-q", "-f", format, "-F", format, paths[0], paths[1]], Path::new("/"));
    if format == "qed" {
        prepare("qemu-img", &["check", "-q", "-f", format, paths[0]], Path::new("/"));
    }
}

fn same_commands(image: &[&str], commands: &[&str]) {
    let mut args = vec![];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.extend(image);
    same(&args, "");
}

const X: &[&str] = &["-f", "qed", "x.qed"];

#[test]
fn transfers() {
    same_commands(
        X,
        &["write 0 64k", "read -P 0xcd 0 64k", "read -v 65530 16", "read -C 0 64", "read -qv 0 4"],
    );
    same_commands(X, &["write -P 0x41 5 20", "read -v 0 40", "read -v 1M 0", "write 0 0", "write -q 70k 1"]);
    same_commands(
        X,
        &["read -P 1 0 4k", "read -P 1 -q 0 512", "read -P 0 -s 4 -l 8 0 512", "read -P 1 -s 1 -l 10 0 512"],
    );
    same_commands(
        X,
        &["writev -P 5 1000 1k 3k 5", "readv -v 990 16 16", "readv -P 5 1000 4k", "writev -f 0 512"],
    );
    same_commands(
        X,
        &["write -z 0 300k", "write -zu 100k 64k", "write -f 3 3", "write -s source 7 23", "read -v 0 32"],
    );
    same_commands(
        &["-f", "qed", "over.qed"],
        &["write 0 1k", "write -P 3 299k 2k", "read -P 9 110k 4k", "map"],
    );
    same_commands(
        &["-f", "qed", "-t", "none", "over.qed"],
        &["write 1 511", "write -P 3 299k 2k", "read -P 9 110k 4k"],
    );
    same_commands(
        &["-f", "raw", "base.raw"],
        &["write 0 1k", "write -z 150k 1k", "read -v 151k 16", "map", "info"],
    );
}

#[test]
fn refused_transfers() {
    for command in [
        "write",
        "write 0",
        "write 0 512 3",
        "write -P",
        "write -P x 0 512",
        "write -P 256 0 512",
        "write -x 0 512",
        "write 0 x",
        "write x 512",
        "write -z -P 1 0 512",
        "write -u 0 512",
        "write -n 0 512",
        "write -zn 0 64k",
        "write -c 0 64k",
        "write -b 0 512",
        "write -b 1 512",
        "write -bz 0 512",
        "write -cf 0 64k",
        "write -s nowhere 0 512",
        "write -s nothing 0 512",
        "write -s source -P 3 0 512",
        "write 2M 512",
        "write 1048064 1k",
        "write 0 8E",
        "write -z 0 3G",
        "write 8191P 1",
        "read -l 12 0 512",
        "read -s 1 0 512",
        "read -P 1 -s 500 -l 100 0 512",
        "read -b 0 512",
        "read -b 512 1",
        "read -a 0 512",
        "read 0 -5",
        "read 0 2147483137",
        "read 2M 1",
        "readv 0",
        "readv 0 x",
        "readv 0 2G 2G",
        "readv 2M 1k",
        "readv 0 2147483136 2147483136",
        "writev 0 512 x",
        "writev 2M 512",
        "aio_read 0",
        "aio_read 0 x",
        "aio_write -z 0 512 512",
        "aio_write -u 0 512",
        "aio_write 2M 1k",
        "aio_read 2M 1k",
        "aio_read -i 0 512",
        "aio_write -i 0 512",
        "discard",
        "discard 0 x",
        "discard 2M 1",
        "discard 0 4G",
        "-c",
        "foo",
        "wait",
    ] {
        same_commands(X, &[command, "length"]);
    }
}

#[test]
fn other_commands() {
    same_commands(
        X,
        &["length", "info", "map", "alloc 0", "alloc 100", "alloc 1.5k 1M", "alloc 16M", "alloc 0x10 8E"],
    );
    same_commands(
        X,
        &["write 128k 100k", "map", "alloc 0 1M", "truncate 3M", "length", "map", "write 2M 1k", "map"],
    );
    same_commands(
        X,
        &["truncate 512k", "truncate 1000", "truncate -m full 4M", "truncate -m bad 4M", "truncate x"],
    );
    same_commands(
        X,
        &["flush", "flush 1", "discard 0 64k", "discard -q 0 1", "discard -C 0 64k", "sleep 1", "sleep x"],
    );
    same_commands(
        X,
        &["close", "length", "write 0 1", "open -o driver=qed,file.filename=x.qed", "length", "open a"],
    );
    same_commands(
        &[],
        &["open -r x.qed", "write 0 1", "close", "open -x a", "open a b", "open nowhere", "open"],
    );
    same_commands(&[], &["open -t bad x.qed", "open -d bad x.qed", "length", "quit", "length"]);
    same_commands(X, &["reopen -r", "write 0 1", "reopen -w", "write 0 1", "reopen -r -w", "reopen -c bad"]);
    same_commands(X, &["reopen -x", "reopen -c none", "break a b", "resume x", "help foo", "q"]);
    same_commands(X, &["", "  length ", "l", "r 0 512", "w 0 512", "f", "d 0 512", "i", "t 1M", "a 0", "m"]);
    same_commands(
        &["-r", "-f", "qed", "x.qed"],
        &["write 0 1", "truncate 2M", "discard 0 1", "aio_write 0 1", "flush"],
    );
    same_commands(&["-s", "-f", "qed", "x.qed"], &["write 0 100k", "read -P 0xcd 0 100k", "length"]);
    same_commands(&["-C", "-f", "qed", "over.qed"], &["read -P 9 110k 4k", "map"]);
}

#[test]
fn tool_options() {
    for words in [
        "-f bad -c length x.qed",
        "-f qed -c length nowhere",
        "-f qed base.raw",
        "-t bad x.qed",
        "-d bad x.qed",
        "-i bad x.qed",
        "-k -f qed -c length x.qed",
        "-k -n -f qed -c length x.qed",
        "-U -f qed -c length x.qed",
        "-U -r -f qed -c length x.qed",
        "-rf qed -clength x.qed",
        "--cache=none -c length x.qed",
        "--image-opts -c length driver=qed,file.driver=file,file.filename=x.qed",
        "--image-opts -c length driver=qed,file.filename=x.qed,foo=1",
        "--image-opts -c length driver=qed,file.filename=x.qed,file.foo=1",
        "--image-opts -f qed -c length driver=qed,file.filename=x.qed",
        "-c length base.raw",
        "--image-opts -c length file.filename=x.qed",
        "-d unmap -f raw -c discard base.raw",
    ] {
        same(&words.split_whitespace().collect::<Vec<_>>(), "");
    }
}

#[test]
fn commands_from_stdin() {
    same(X, "length\nread 0 512\nquit\nlength\n");
    same(X, "length\n\n  \nfoo\nread 0 512");
    same(&[], "open x.qed\nwrite -P 3 0 1k\nclose\nlength\n");
    same(X, "");
}

#[test]
fn started_requests_are_reported_when_they_end() {
    for flush in [&["aio_flush"][..], &["sleep 200"], &["close"], &[]] {
        let mut commands = vec!["aio_write -P 7 1000 1k 1k"];
        commands.extend(flush);
        same_commands(X, &commands);
    }
    same_commands(
        X,
        &["aio_write -zP 3 0 512", "aio_flush", "aio_read -P 1 -v 0 4", "aio_flush", "aio_write -q 0 1"],
    );
    // many at once: reported each, in some order, none lost
    let folder = fresh();
    let commands: Vec<String> = (0..200).map(|n| format!("aio_write -P {} {}k 1k", n % 256, n * 5)).collect();
    let mut args = vec![];
    args.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
    args.extend(["-f", "qed", "x.qed"]);
    let answer = quod_io(&args, folder.path(), "");
    assert_eq!(answer.code, Some(0));
    for n in 0..200 {
        let line = format!("wrote 1024/1024 bytes at offset {}\n", n * 5120);
        assert_eq!(answer.stdout.matches(&line).count(), 1, "{line}");
        let read = format!("read -P {} {}k 1k", n % 256, n * 5);
        prepare("qemu-io", &["-r", "-f", "qed", "-c", &read, "x.qed"], folder.path());
    }
}

#[test]
fn called_by_the_other_name_it_answers_by_it() {
    let folder = fresh();
    let link = folder.path().join("qemu-io");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_quod"), &link).unwrap();
    let link = link.to_str().unwrap();
    let ours = common::run(link, &["-f", "qed", "nowhere"], folder.path(), "");
    let theirs = common::run("qemu-io", &["-f", "qed", "nowhere"], folder.path(), "");
    assert_eq!(ours, theirs);
}

#[test]
fn two_writers_refuse_each_other() {
    let folder = fresh();
    for tool in ["qemu-io", env!("CARGO_BIN_EXE_quod")] {
        let words: &[&str] = if tool == "qemu-io" { &[] } else { &["io"] };
        let mut holder = std::process::Command::new(tool)
            .args(words)
            .args(["-f", "qed", "-c", "write 0 1", "-c", "sleep 3000", "x.qed"])
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700));
        let args = ["-f", "qed", "-c", "length", "x.qed"];
        let (ours, theirs) = (quod_io(&args, folder.path(), ""), qemu_io(&args, folder.path(), ""));
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(ours, theirs);
        assert!(ours.stderr.contains("lock"), "{ours:?}");
    }
}

#[test]
fn unaligned_zeros_past_the_page_cache() {
    let commands = [
        "write -P 10 0 128k",
        "write -z 512 1024",
        "write -P 11 131072 1536",
        "write -z 1024 131072",
        "read -P 10 0 512",
        "read -P 0 512 512",
        "read -P 0 1024 131072",
        "read -P 11 132096 512",
    ];
    same_commands(&["-n", "-f", "qed", "x.qed"], &commands);
    same_commands(&["-n", "-f", "qed", "over.qed"], &commands);
}

/// A raw file that ends within a sector: what is read, what is refused, and how long the file is afterwards.
#[test]
fn the_last_sector_of_a_raw_file() {
    let writes = [
        "write -P 66 1000 20",
        "write -P 66 512 512",
        "write -P 66 512 100",
        "write -P 66 1010 4",
        "write -z 512 512",
        "write -z 1010 4",
        "discard 512 512",
        "write -P 66 1020 10",
    ];
    for length in [1, 1000] {
        for write in writes {
            let folder = tempfile::tempdir().unwrap();
            let run = |tool: fn(&[&str], &Path, &str) -> common::Answer| {
                let file = folder.path().join("x");
                std::fs::write(&file, vec![b'a'; length]).unwrap();
                let reads = ["-c", "length", "-c", "read -v 512 512", "-c", "read 512 513"];
                let mut args = vec!["-f", "raw"];
                args.extend(reads);
                args.extend(["-c", write]);
                args.extend(reads);
                args.push("x");
                (tool(&args, folder.path(), ""), std::fs::read(&file).unwrap())
            };
            let (ours, theirs) = (run(quod_io), run(qemu_io));
            assert_eq!(ours.0, theirs.0, "{write} of {length} bytes");
            assert!(ours.1 == theirs.1, "{write} of {length} bytes: {} {}", ours.1.len(), theirs.1.len());
        }
    }
}
