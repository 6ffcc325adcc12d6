//! A format that was guessed to be raw: the warning, and what may not be written then, in every command that
//! writes, as QEMU's tools have it. And files of other formats, which are never guessed to be raw.

mod common;

use common::{Answer, bytes, folders, prepare, qemu_img, qemu_io, quod, quod_io};
use tempfile::TempDir;

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

/// Images of formats that quod does not read, each of 1 MiB of the byte 0x41, as qemu-img makes them; and
/// some that it does not make, by their signatures.
fn foreign_images() -> (TempDir, Vec<&'static str>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("src"), vec![0x41; 1 << 20]).unwrap();
    let mut formats = vec!["vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow"];
    for format in &formats {
        let args = ["convert", "-q", "-f", "raw", "-O", format, "src", format];
        prepare("qemu-img", &args, folder.path());
    }
    let flat = ["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "text.vmdk", "1M"];
    prepare("qemu-img", &flat, folder.path());
    std::fs::rename(folder.path().join("text.vmdk"), folder.path().join("vmdk-text")).unwrap();
    prepare(
        "qemu-img",
        &["create", "-q", "-f", "vpc", "-o", "subformat=fixed", "vpc-fixed", "1M"],
        folder.path(),
    );
    let luks = ["create", "-q", "-f", "luks", "--object", "secret,id=s,data=x"];
    let options = ["-o", "key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256"];
    prepare("qemu-img", &[&luks[..], &options[..], &["luks", "1M"]].concat(), folder.path());
    let script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";
    for (name, at, bytes) in [
        ("vmdk-cowd", 0, &b"COWD\x01\0\0\0"[..]),
        ("bochs", 0, b"Bochs Virtual HD Image\0"),
        ("cloop", 0, script),
        ("dmg", 8192 - 512, b"koly\0\0\0\x04\0\0\x02\0"),
    ] {
        let mut file = vec![0; 8192];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path().join(name), file).unwrap();
    }
    formats.extend(["vmdk-text", "vpc-fixed", "luks", "vmdk-cowd", "bochs", "cloop", "dmg"]);
    (folder, formats)
}

/// The lines that every image has: its name, format and sizes.
fn common_lines(answer: &Answer) -> Vec<&str> {
    let known = ["image:", "file format:", "virtual size:", "disk size:", "encrypted:"];
    let outer = answer.stdout.lines().filter(|line| !line.starts_with("     "));
    outer.filter(|line| known.iter().any(|start| line.trim_start().starts_with(start))).collect()
}

#[test]
fn info_says_what_a_file_of_another_format_is() {
    let (folder, files) = foreign_images();
    for file in files {
        let format = file.split('-').next().unwrap();
        let ours = quod(&["info", file], folder.path());
        assert_eq!(ours.code, Some(0), "{ours:?}");
        assert!(ours.stdout.contains(&format!("file format: {format}\n")), "{ours:?}");
        let json = quod(&["info", "--output=json", file], folder.path()).stdout;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["format"], format);
        let theirs = qemu_img(&["info", file], folder.path());
        // QEMU does not look for footers, and does not open what has a signature and nothing else
        if theirs.stdout.contains(&format!("file format: {format}\n")) {
            // the size of a text's disk is that of the files that it names
            let (ours, theirs) = (common_lines(&ours), common_lines(&theirs));
            let compared = if file == "vmdk-text" { 3 } else { ours.len() };
            assert_eq!(ours[..compared], theirs[..compared.min(theirs.len())], "{file}");
            if file == "vmdk-text" {
                continue;
            }
            let theirs = qemu_img(&["info", "--output=json", file], folder.path()).stdout;
            let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
            for field in ["children", "virtual-size", "actual-size", "filename", "encrypted"] {
                assert_eq!(json[field], theirs[field], "{file}: {field}");
            }
        }
        // the chain below it is not known
        let chain = quod(&["info", "--backing-chain", file], folder.path());
        assert_eq!((chain.code, chain.stdout.as_str()), (Some(1), ""), "{chain:?}");
        let raw = ["info", "-f", "raw", file];
        assert_eq!(quod(&raw, folder.path()), qemu_img(&raw, folder.path()), "{file}");
    }
    let luks = ["info", "luks"];
    assert_eq!(quod(&luks, folder.path()), qemu_img(&luks, folder.path()));
    let luks = ["info", "--output", "json", "luks"];
    assert_eq!(quod(&luks, folder.path()), qemu_img(&luks, folder.path()));
}

#[test]
fn files_of_other_formats_are_refused_by_name() {
    let (folder, files) = foreign_images();
    let path = folder.path();
    std::fs::write(path.join("trace"), "fio version 2 iolog\nx add\nx open\nx write 0 4096\n").unwrap();
    for file in files {
        let before = bytes(path, file);
        let name = format!("is a {} image", file.split('-').next().unwrap());
        let commands: [&[&str]; 9] = [
            &["io", "-c", "write 0 4k", file],
            &["io", "-r", "-c", "read 0 4k", file],
            &["resize", file, "8M"],
            &["resize", "--shrink", file, "4k"],
            &["map", file],
            &["check", file],
            &["check", "-r", "all", file],
            &["bench", "-w", "-c", "1", file],
            &["replay", "--image", file, "trace"],
        ];
        for args in commands {
            let answer = quod(args, path);
            assert_eq!(answer.code, Some(1), "{args:?}: {answer:?}");
            assert!(answer.stderr.contains(&name), "{args:?}: {answer:?}");
            assert!(bytes(path, file) == before, "{args:?} changed it");
        }
        // what somebody calls raw is raw
        prepare(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qed", "-b", file, "-F", "raw", "over", "1M"],
            path,
        );
        let read = format!("read -P {} 0 1", before[0]);
        assert_eq!(quod(&["io", "-r", "-c", &read, "over"], path).code, Some(0));
        // below an overlay that names no format, as old programs made them: the bit goes that says raw
        let mut overlay = bytes(path, "over");
        overlay[16] &= !4;
        std::fs::write(path.join("over"), overlay).unwrap();
        let answer = quod(&["io", "-r", "-c", &read, "over"], path);
        assert!(answer.code == Some(1) && answer.stderr.contains(&name), "{answer:?}");
        assert_eq!(quod(&["io", "-f", "raw", "-c", "write -P 9 0 1", file], path).code, Some(0));
        assert_eq!(bytes(path, file)[0], 9);
    }
}

/// Shorter than its header: no disk.
#[test]
fn what_is_left_of_an_image_is_not_raw() {
    let folder = tempfile::tempdir().unwrap();
    for (name, start) in [("qed", &b"QED\0"[..]), ("qcow2", b"QFI\xfb"), ("cut", b"QED\0\0\0\x01\0")] {
        std::fs::write(folder.path().join(name), start).unwrap();
        for args in
            [&["info", name][..], &["io", "-c", "write 0 1", name], &["resize", name, "1M"], &["check", name]]
        {
            let answer = quod(args, folder.path());
            assert_eq!(answer.code, Some(1), "{args:?}: {answer:?}");
            assert_eq!(bytes(folder.path(), name), start);
        }
    }
}
