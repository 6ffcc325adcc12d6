//! Images that are described, beside qemu-io: `json:`, the filters copy-on-read and compress, blkdebug around
//! and above them.
//!
//! Checks: the same texts and the same maps afterwards; blocks of 4 KiB under clusters of 2 KiB; an error
//! where copy-on-read would write again what is there; what has no meaning is refused by name; a name in an
//! image's header is never a description.

mod common;

use common::{make, must, qemu_io, quod, quod_io, write};
use std::path::Path;

fn fresh() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path, &["qcow2", "base", "4M"]);
    write(path, "qcow2", "base", &["write -P 5 1M 1M"]);
    make(path, &["qcow2", "-b", "base", "-F", "qcow2", "top", "4M"]);
    write(path, "qcow2", "top", &["write -z -u 1M 64k"]);
    make(path, &["qcow2", "-o", "cluster_size=2k", "small", "1M"]);
    make(path, &["qed", "-o", "cluster_size=64k", "qed", "1M"]);
    std::fs::write(path.join("rules"), "[inject-error]\nevent = \"cor_write\"\nsector = \"2048\"\n").unwrap();
    folder
}

/// Both with the same commands: the same answers, and the same maps.
fn same(commands: &[&str]) {
    let (ours, theirs) = (fresh(), fresh());
    let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    assert_eq!(quod_io(&args, ours.path(), ""), qemu_io(&args, theirs.path(), ""), "{commands:?}");
    let map = |folder: &Path, file| {
        let text = must("qemu-img", &["map", "--output=json", file], folder);
        text.lines().map(|line| line.split(", \"offset\"").next().unwrap().to_string()).collect::<Vec<_>>()
    };
    for file in ["top", "small"] {
        assert_eq!(map(ours.path(), file), map(theirs.path(), file), "{commands:?}");
    }
    // which clusters of QED become zero clusters differs on purpose: what they read as does not
    let other = theirs.path().join("qed").display().to_string();
    must("qemu-img", &["compare", "-q", "-f", "qed", "-F", "qed", "qed", &other], ours.path());
    for file in ["small", "qed"] {
        must("qemu-img", &["check", "-q", file], ours.path());
    }
}

#[test]
fn filters_do_what_qemus_do() {
    let rules =
        "open -o driver=copy-on-read,file.driver=blkdebug,file.config=rules,file.image.driver=qcow2 top";
    same(&[rules, "read -P 0 1M 64k", "read -P 5 1088k 64k"]);
    same(&["open -C -o driver=blkdebug,config=rules,image.driver=qcow2 top", "read -P 0 1M 128k"]);
    same(&["open -o driver=copy-on-read,file.driver=qcow2 top", "read -P 5 1200k 4k"]);
    same(&["open -r -o driver=copy-on-read,file.driver=qcow2 top"]);
    for align in ["512", "4k"] {
        let small = format!("open -o driver=qcow2,file.align={align} blkdebug::small");
        same(&[&small, "write -P 3 0 512", "read -P 3 0 512", "read -P 0 512 1536", "write -z 100k 700"]);
        let qed = format!("open -o driver=qed,file.align={align} blkdebug::qed");
        same(&[&qed, "write -P 3 512 1k", "write -z 1k 128k", "read -P 3 512 512", "read -P 0 1k 128k"]);
    }
    // what is written is compressed, with what is around it in the cluster; not over what is there
    let packed = "open -o driver=compress,file.driver=qcow2,file.file.filename=top";
    same(&[
        packed,
        "write -P 7 1100k 80k",
        "read -P 5 1088k 12k",
        "read -P 7 1100k 80k",
        "read -P 5 1180k 4k",
    ]);
    same(&[packed, "write -P 7 1100k 1k", "write -P 8 1110k 1k", "write -P 8 3M 1k", "read -P 7 1100k 1k"]);
    // blocks that are larger than clusters
    same(&["open -o driver=qcow2,file.align=4k blkdebug::small", "write -P 3 2k 2k", "read -P 3 2k 2k"]);
    same(&["open json:{'driver':'qcow2','file':{'filename':'top'},'backing':null}", "read -P 0 2M 64k"]);
}

#[test]
fn what_has_no_meaning_is_refused_by_name() {
    let folder = fresh();
    for words in [
        "open -o driver=qcow2,file.driver=blkdebug,file.inject-error.0.event=l2_load,file.image.filename=top",
        "open -o driver=qcow2 blkdebug:rules:top",
        "open -o driver=blkdebug,image.driver=qcow2,foo=1 top",
        "open json:{]",
        "open blkdebug:top",
    ] {
        let answer = quod_io(&["-c", words], folder.path(), "");
        assert!(answer.code == Some(1) && answer.stderr.contains("can't open"), "{words}: {answer:?}");
    }
    let answer = quod(&["info", "json:{'driver':'qcow2','file.filename':'top'}"], folder.path());
    assert!(answer.code == Some(0) && answer.stdout.contains("file format: qcow2"), "{answer:?}");
}

/// A description is the user's own word: one in an image's header opens no file, whatever it describes.
#[test]
fn a_name_in_a_header_is_no_description() {
    let folder = fresh();
    let path = folder.path();
    std::fs::write(path.join("secret"), vec![0x5e; 1 << 20]).unwrap();
    for name in [
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"secret\"}}",
        "json:{\"driver\":\"raw\",\"file.filename\":\"secret\"}",
        "json:{\"driver\":\"file\",\"filename\":\"secret\"}",
        "blkdebug::secret",
        "blkdebug:secret:secret",
        "copy-on-read:secret",
    ] {
        for format in ["qcow2", "qed"] {
            make(path, &[format, "image", "1M"]);
            must("qemu-img", &["rebase", "-u", "-f", format, "-b", name, "-F", "raw", "image"], path);
            let before = std::fs::read(path.join("image")).unwrap();
            let described = format!("json:{{'driver':'{format}','file':{{'filename':'image'}}}}");
            for image in ["image", described.as_str(), "blkdebug::image"] {
                let commands: [&[&str]; 9] = [
                    &["commit", image],
                    &["io", "-r", "-c", "read -v 0 512", image],
                    &["io", "-c", "write 0 512", image],
                    &["convert", "-O", "raw", image, "copy"],
                    &["compare", image, "secret"],
                    &["map", image],
                    &["measure", "-O", "raw", image],
                    &["rebase", "-b", "base", "-F", "qcow2", image],
                    &["dd", &format!("if={image}"), "of=copy"],
                ];
                for command in commands {
                    let answer = quod(command, path);
                    let told = format!("{command:?} {name}: {answer:?}");
                    assert!(answer.code != Some(0), "{told}");
                    assert!(!answer.stdout.contains("5e 5e"), "{told}");
                    assert!(!path.join("copy").exists(), "{told}");
                }
            }
            assert_eq!(std::fs::read(path.join("image")).unwrap(), before);
            assert_eq!(std::fs::read(path.join("secret")).unwrap(), [0x5e; 1 << 20]);
        }
    }
    // as a data file it is a file's name, and that file is not there
    make(path, &["qcow2", "-o", "data_file=some_name,data_file_raw=on", "data", "1M"]);
    let mut bytes = std::fs::read(path.join("data")).unwrap();
    let at = bytes.windows(9).position(|name| name == b"some_name").unwrap();
    bytes[at..at + 9].copy_from_slice(b"json:{aa}");
    std::fs::write(path.join("data"), bytes).unwrap();
    let answer = quod_io(&["-r", "-c", "read 0 512", "data"], path, "");
    assert!(answer.code == Some(1) && answer.stderr.contains("No such file"), "{answer:?}");
}
