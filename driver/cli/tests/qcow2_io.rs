//! `quod io` against `qemu-io` on qcow2 and raw images: discards, options of an opening, copy-on-read,
//! `reopen`, `sigraise`. And what is said of bitmaps by whatever changes an image.

mod common;

use common::{prepare, qemu_img, qemu_io, quod, quod_io};
use std::path::Path;

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x.qcow2", "4M"], path);
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "4M"], path);
    prepare(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "lazy.qcow2", "4M"],
        path,
    );
    prepare("qemu-img", &["create", "-q", "-f", "raw", "x.raw", "4M"], path);
    let over = ["create", "-q", "-f", "qcow2", "-b", "x.qcow2", "-F", "qcow2", "over.qcow2", "4M"];
    prepare("qemu-img", &over, path);
    folder
}

/// Both tools with the same words, each on files of its own; then the same contents, and nothing to repair.
fn same(args: &[&str]) {
    let (ours, theirs) = (fresh(), fresh());
    let we = quod_io(args, ours.path(), "");
    let they = qemu_io(args, theirs.path(), "");
    assert_eq!(we, they, "{args:?}");
    for name in ["x.qcow2", "old.qcow2", "lazy.qcow2", "over.qcow2", "x.raw"] {
        let (one, other) = (ours.path().join(name), theirs.path().join(name));
        let paths = [&one, &other].map(|path| path.to_str().unwrap());
        prepare("qemu-img", &["compare", "-q", paths[0], paths[1]], Path::new("/"));
        if name != "x.raw" {
            prepare("qemu-img", &["check", "-q", paths[0]], Path::new("/"));
        }
    }
}

fn same_commands(image: &[&str], commands: &[&str]) {
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    args.extend(image);
    same(&args);
}

const X: &[&str] = &["-f", "qcow2", "x.qcow2"];

#[test]
fn discards_reach_the_image_unless_told_otherwise() {
    let commands = ["write -P 7 0 1M", "discard 64k 128k", "discard 300k 100k", "map", "read -P 0 64k 128k"];
    same_commands(X, &commands);
    same_commands(&["-d", "ignore", "-f", "qcow2", "x.qcow2"], &commands);
    same_commands(&["-d", "unmap", "-f", "qcow2", "old.qcow2"], &commands);
    same_commands(&["-f", "qcow2", "over.qcow2"], &commands);
    same_commands(&["-f", "raw", "x.raw"], &commands);
    same_commands(&["-d", "ignore", "-f", "raw", "x.raw"], &commands);
    same_commands(
        X,
        &[
            "write 0 1M",
            "write -z -u 0 128k",
            "write -z 256k 128k",
            "map",
            "reopen -o discard=ignore",
            "discard 512k 64k",
            "read 512k 64k",
        ],
    );
    same_commands(X, &["write 0 1M", "aio_write -z -u 0 128k", "aio_flush", "map"]);
}

#[test]
fn options_of_an_opening() {
    for options in [
        "driver=qcow2",
        "cache-size=1.25M,l2-cache-size=1M,refcount-cache-size=0.25M",
        "cache-size=1M,l2-cache-size=2M",
        "cache-size=1M,refcount-cache-size=2M",
        "cache-size=0",
        "cache-size=x",
        "l2-cache-size=1M,refcount-cache-size=0.25M",
        "l2-cache-entry-size=256",
        "l2-cache-entry-size=16k",
        "l2-cache-entry-size=128k",
        "refcount-cache-size=256T",
        "cache-clean-interval=-1",
        "cache-clean-interval=5",
        "lazy-refcounts=42",
        "lazy-refcounts=on",
        "pass-discard-request=off,pass-discard-snapshot=on,pass-discard-other=on",
        "overlap-check=all",
        "overlap-check=blubb",
        "overlap-check=constant,overlap-check.template=all",
        "overlap-check.template=none,overlap-check.main-header=on",
        "overlap-check.main-header=3",
        "cache.direct=maybe",
        "driver=raw,l2-cache-size=1M",
        "foo=1",
        "driver=qcow2,foo=1",
        "file.foo=1",
        "detect-zeroes=on",
        "detect-zeroes=unmap",
        "detect-zeroes=unmap,discard=ignore",
        "detect-zeroes=bad",
    ] {
        let open = format!("open -o {options} x.qcow2");
        same_commands(&[], &[&open, "length", "write 0 64k", "discard 0 64k"]);
    }
    same_commands(
        &[],
        &["open -o lazy-refcounts=on old.qcow2", "open -o driver=qcow2 -o discard=off x.qcow2"],
    );
    same_commands(&[], &["open -r -o driver=raw x.qcow2", "read -v 0 16", "write 0 1"]);
    same_commands(&[], &["open -o driver=qcow2", "open -o foo=1 nowhere", "open -o driver=qcow2 nowhere"]);
}

#[test]
fn zeros_are_detected_where_that_is_asked_for() {
    for mode in ["off", "on", "unmap"] {
        let open = format!("open -o detect-zeroes={mode} x.qcow2");
        same_commands(
            &[],
            &[
                &open,
                "write 0 256k",
                "write -P 0 0 128k",
                "write -P 0 1M 64k",
                "aio_write -P 0 128k 64k",
                "aio_flush",
                "map",
            ],
        );
    }
}

#[test]
fn copy_on_read_takes_whole_units() {
    for options in ["compat=1.1", "extended_l2=on", "cluster_size=4k"] {
        let (ours, theirs) = (fresh(), fresh());
        let args = ["-C", "-f", "qcow2", "-c", "read 30k 1k", "-c", "read 1M 70k", "-c", "map", "top.qcow2"];
        let [we, they] = [&ours, &theirs].map(|folder| {
            prepare("qemu-io", &["-f", "qcow2", "-c", "write 0 2M", "x.qcow2"], folder.path());
            let top =
                ["create", "-q", "-f", "qcow2", "-o", options, "-b", "x.qcow2", "-F", "qcow2", "top.qcow2"];
            prepare("qemu-img", &top, folder.path());
            let tool = if std::ptr::eq(folder, &ours) { quod_io } else { qemu_io };
            tool(&args, folder.path(), "")
        });
        assert_eq!(we, they, "{options}");
    }
    same(&["-C", "-r", "-f", "qcow2", "-c", "length", "over.qcow2"]);
}

#[test]
fn postponed_refcounts_are_not_switched_off() {
    let folder = fresh();
    let answer = quod_io(&["-c", "open -o lazy-refcounts=off lazy.qcow2"], folder.path(), "");
    assert!(answer.stderr.contains("lazy-refcounts=off is not supported"), "{answer:?}");
    let answer = quod_io(&["-c", "open -o discard-no-unref=on x.qcow2"], folder.path(), "");
    assert!(answer.stderr.contains("discard-no-unref=on is not supported"), "{answer:?}");
}

#[test]
fn reopen_takes_options() {
    let commands = |options: &str| format!("reopen -o {options}");
    for options in [
        "lazy-refcounts=on,pass-discard-request=on",
        "overlap-check=cached",
        "overlap-check=blubb",
        "cache-size=1M,l2-cache-size=2M",
        "l2-cache-entry-size=4k",
        "driver=qcow2",
        "driver=raw",
        "file.driver=file",
        "file.driver=qcow2",
        "node-name=foo",
        "read-only=foo",
        "cache.no-flush=bar",
        "auto-read-only=qux",
    ] {
        same_commands(X, &["write 0 64k", &commands(options), "write 64k 64k", "read 0 128k"]);
    }
    same_commands(X, &["reopen -o cache-size=1M", "reopen -o l2-cache-size=512k,refcount-cache-size=128k"]);
    same_commands(X, &["reopen -r -o read-only=on", "reopen -c none -o cache.direct=on", "write 0 1"]);
    let over = &["-f", "qcow2", "over.qcow2"];
    same_commands(over, &["reopen -o backing.driver=qcow2", "reopen -o backing.driver=file", "length"]);
}

/// What is wrong with an image is said once, when it is met.
#[test]
fn corruption_is_told_where_it_is_met() {
    let damage = |folder: &Path| {
        let options = "refcount_bits=64,cluster_size=1k";
        prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a", "1M"], folder);
        let commands = ["-c", "write 0 124k", "-c", "discard 121k 1k", "-c", "discard 123k 1k"];
        prepare("qemu-io", &[&commands[..], &["a"]].concat(), folder);
        let mut bytes = std::fs::read(folder.join("a")).unwrap();
        let at = |bytes: &[u8], field: usize| {
            u64::from_be_bytes(bytes[field..field + 8].try_into().unwrap()) as usize
        };
        let (l1, reftable) = (at(&bytes, 40), at(&bytes, 48));
        bytes[reftable + 14] |= 6;
        std::fs::write(folder.join("counts"), &bytes).unwrap();
        bytes[reftable + 14] &= !6;
        bytes[l1 + 6] |= 2;
        std::fs::write(folder.join("table"), &bytes).unwrap();
    };
    let (ours, theirs) = (fresh(), fresh());
    damage(ours.path());
    damage(theirs.path());
    for args in [
        &["-c", "write 121k 3k", "counts"][..],
        &["-r", "-c", "read 0 1k", "-c", "read 0 1k", "table"],
        &["-c", "read 0 1k", "table"],
    ] {
        let (we, they) = (quod_io(args, ours.path(), ""), qemu_io(args, theirs.path(), ""));
        assert!(we == they && we.stderr.contains("orrupt: "), "{args:?}: {we:?} {they:?}");
    }
}

#[test]
fn a_signal_ends_the_tool() {
    // the kernel lets go of an io_uring's files, and their locks, some time after the process is gone
    let image = &["-i", "threads", "-f", "qcow2", "x.qcow2"];
    same_commands(image, &["write -f 0 64k", "sigraise 9", "write 64k 64k"]);
    same(&["-c", "sigraise 66", "-c", "sigraise x", "-c", "sigraise", "-c", "sigraise 0", "x.qcow2"]);
}

/// What changes an image with bitmaps names them first; what only reads says nothing, and leaves them valid.
#[test]
fn bitmaps_are_named_before_they_are_made_inconsistent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x.qcow2", "4M"], path);
    prepare("qemu-img", &["bitmap", "--add", "x.qcow2", "monday"], path);
    prepare("qemu-img", &["bitmap", "--add", "x.qcow2", "week \"7\""], path);
    let image = std::fs::read(path.join("x.qcow2")).unwrap();
    let line = |op: &str| {
        format!("fio version 2 iolog\n/dev/x add\n/dev/x open\n/dev/x {op} 0 4096\n/dev/x close\n")
    };
    std::fs::write(path.join("reads"), line("read")).unwrap();
    std::fs::write(path.join("writes"), line("write")).unwrap();
    let io = |command| ["io", "-c", "read 0 512", "-c", command, "x.qcow2"];
    let warning = "warning: 'x.qcow2': changing the image makes the persistent bitmaps \"monday\", \
                   \"week \\\"7\\\"\" inconsistent\n";
    let cases: [(&[&str], bool); 11] = [
        (&io("read 0 64k"), false),
        (&io("flush"), false),
        (&["bench", "-c", "1", "x.qcow2"], false),
        (&["replay", "-q", "--image", "x.qcow2", "reads"], false),
        (&io("write 0 512"), true),
        (&io("discard 0 64k"), true),
        (&io("truncate 5M"), true),
        (&io("aio_write 0 512"), true),
        (&["resize", "-q", "x.qcow2", "5M"], true),
        (&["bench", "-w", "-c", "1", "x.qcow2"], true),
        (&["replay", "-q", "--image", "x.qcow2", "writes"], true),
    ];
    for (words, changes) in cases {
        std::fs::write(path.join("x.qcow2"), &image).unwrap();
        let answer = quod(words, path);
        assert_eq!(answer.code, Some(0), "{words:?}: {answer:?}");
        assert_eq!(answer.stderr, if changes { warning } else { "" }, "{words:?}");
        let unchanged = std::fs::read(path.join("x.qcow2")).unwrap() == image;
        let info = qemu_img(&["info", "x.qcow2"], path);
        let inconsistent = info.stderr.contains("inconsistent");
        assert_eq!((unchanged, inconsistent), (!changes, changes), "{words:?}: {info:?}");
    }
    // what is gone is not named again
    assert_eq!(quod(&["resize", "-q", "x.qcow2", "6M"], path).stderr, "");
}

#[test]
fn the_vm_state_is_written_and_read_behind_the_disk() {
    for image in ["x.qcow2", "old.qcow2", "lazy.qcow2", "over.qcow2"] {
        same_commands(
            &["-f", "qcow2", image],
            &[
                "read -b 0 64k",
                "write -P 1 0 64k",
                "write -b -P 7 512 100k",
                "read -b -P 7 512 100k",
                "read -b -P 0 0 512",
                "read -b -P 0 1M 64k",
                "write -b -P 8 1G 64k",
                "read -b -P 8 1G 64k",
                "read -b -v 1G 512",
                "read -P 1 0 64k",
                "write -b 0 0",
                "read -b 0 0",
                "read -b 100T 512",
                "write -b 1 512",
                "write -b 0 100",
                "read -b 0 100",
                "write -b -z 0 512",
                "write -b -f 0 512",
                "length",
            ],
        );
    }
    same_commands(&["-f", "raw", "x.raw"], &["write -b 0 512", "read -b 0 512"]);
}

/// What one program writes the other one reads, in the disk's own tables and in a snapshot's.
#[test]
fn a_vm_state_changes_hands() {
    let folder = fresh();
    let path = folder.path();
    let write = |pattern: &str| format!("write -b -P {pattern} 0 300k");
    let read = |pattern: &str| format!("read -b -P {pattern} 0 300k");
    type Io = fn(&[&str], &Path, &str) -> common::Answer;
    let both: [Io; 2] = [quod_io, qemu_io];
    for (writer, reader) in [(both[0], both[1]), (both[1], both[0])] {
        let run = |tool: fn(&[&str], &Path, &str) -> common::Answer, command: &str| {
            let answer = tool(&["-f", "qcow2", "-c", command, "x.qcow2"], path, "");
            assert_eq!(answer.code, Some(0), "{command}: {answer:?}");
            assert!(!answer.stdout.contains("failed"), "{command}: {answer:?}");
        };
        run(writer, &write("5"));
        run(reader, &read("5"));
        assert_eq!(quod(&["snapshot", "-c", "state", "x.qcow2"], path).code, Some(0));
        run(writer, &write("6"));
        run(reader, &read("6"));
        assert_eq!(qemu_img(&["snapshot", "-a", "state", "x.qcow2"], path).code, Some(0));
        run(writer, &read("5"));
        run(reader, &read("5"));
        assert_eq!(quod(&["snapshot", "-d", "state", "x.qcow2"], path).code, Some(0));
        let answer = qemu_img(&["check", "-f", "qcow2", "x.qcow2"], path);
        assert_eq!(answer.code, Some(0), "{answer:?}");
    }
}
