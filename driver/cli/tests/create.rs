//! `quod create` against `qemu-img create`: the same words, the same bytes.

mod common;

use common::{Answer, qemu_img, quod};
use std::path::Path;

/// Both tools, each in a folder of its own that holds the same backing files.
fn both(args: &[&str]) -> (Answer, Answer, tempfile::TempDir, tempfile::TempDir) {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &theirs] {
        let folder = folder.path();
        common::prepare("qemu-img", &["create", "-q", "-f", "raw", "base.raw", "3M"], folder);
        common::prepare("qemu-img", &["create", "-q", "-f", "qed", "base.qed", "5M"], folder);
    }
    let words: Vec<&str> = ["create"].iter().chain(args).copied().collect();
    (quod(&words, ours.path()), qemu_img(&words, theirs.path()), ours, theirs)
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn images_are_the_same_byte_for_byte() {
    let cases = [
        "-f qed x 1M",
        "-f qed -o cluster_size=4k,table_size=2 x 10M",
        "-f qed -o cluster_size=1M -o table_size=1 x 64M",
        "-f qed -o size=7M x",
        "-f qed x 64T",
        "-f qed x 0",
        "-f qed x 1000",
        "-f qed x 1.5G",
        "-f qed -b base.raw -F raw x",
        "-f qed -b base.qed -F qed x",
        "-f qed -b base.qed -F qed x 9M",
        "-f qed -u -b nowhere -F raw x 2M",
        "-f qed -o backing_file=base.raw,backing_fmt=raw x",
        "-f qed -u -o backing_file=a,,b,backing_fmt=qed x 1M",
        "-f raw x 1M",
        "-f raw x 1000",
        "x 0x10000",
        "-q -f qed x 1M",
    ];
    for case in cases {
        let (ours, theirs, our_folder, their_folder) = both(&words(case));
        assert_eq!(ours, theirs, "{case}");
        let read = |folder: &Path| std::fs::read(folder.join("x")).unwrap();
        let (our_bytes, their_bytes) = (read(our_folder.path()), read(their_folder.path()));
        assert_eq!(our_bytes.len(), their_bytes.len(), "{case}");
        assert!(our_bytes == their_bytes, "{case}: the images differ");
    }
}

#[test]
fn refusals_are_the_same_words() {
    let cases = [
        "-f bad x 1M",
        "-f qed x",
        "-f qed",
        "-f qed -o foo=1 x 1M",
        "-f qed -o encryption=on x 1M",
        "-f raw -o foo=1 x 1M",
        "-f qed -o cluster_size=3000 x 1M",
        "-f qed -o cluster_size=128M x 1M",
        "-f qed -o cluster_size=abc x 1M",
        "-f qed -o table_size=3 x 1M",
        "-f qed -o table_size=32 x 1M",
        "-f qed -o cluster_size=8k, x 1M",
        "-f qed -o size=1M x 2M",
        "-f qed x 100T",
        "-f qed x 1x",
        "-f qed x 8E",
        "-f qed -b base.raw x",
        "-f qed -u -b nowhere x 1M",
        "-f qed -b nowhere -F raw x",
        "-f qed -b base.raw -F bad x",
        "-f qed -b x -F qed x",
        "-f raw -b base.raw -F raw x",
        "-f qed nowhere/x 1M",
    ];
    for case in cases {
        let (ours, theirs, ..) = both(&words(case));
        assert_eq!(theirs.code, Some(1), "{case}: {theirs:?}");
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn geometries_that_qemu_refuses_work() {
    // 4 MiB clusters: QEMU's limit wraps to 0 and it refuses every size
    let (ours, theirs, folder, _) = both(&words("-f qed -o cluster_size=4M x 100M"));
    assert_eq!((ours.code, theirs.code), (Some(0), Some(1)));
    write_and_read(folder.path());
    // tables of one cluster: QEMU makes the image and does not open it
    let (ours, theirs, folder, _) = both(&words("-f qed -o table_size=1 x 100M"));
    assert_eq!((ours.code, theirs.code), (Some(0), Some(0)));
    assert_eq!(qemu_img(&["check", "x"], folder.path()).code, Some(1));
    write_and_read(folder.path());
}

fn write_and_read(folder: &Path) {
    let args =
        ["-f", "qed", "-c", "write -P 5 9M 64k", "-c", "read -P 5 9M 64k", "-c", "read -P 0 0 9M", "x"];
    assert_eq!(common::quod_io(&args, folder, "").code, Some(0));
    assert_eq!(quod(&["check", "x"], folder).code, Some(0));
}

#[test]
fn raw_options_that_quod_does_not_do_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (option, name) in [("preallocation=full", "preallocation"), ("nocow=on", "nocow")] {
        let answer = quod(&["create", "-f", "raw", "-o", option, "x", "1M"], folder.path());
        assert_eq!(answer.code, Some(1));
        assert!(answer.stderr.contains(name), "{answer:?}");
    }
}

/// Folders "", "s" and "other", each with files of the same names; each file begins with another byte.
fn folders_of_namesakes() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut byte = 0;
    for sub in ["", "s", "other"] {
        let sub = folder.path().join(sub);
        std::fs::create_dir_all(&sub).unwrap();
        for name in ["b", "a:b", "file:b"] {
            byte += 1;
            std::fs::write(sub.join(name), vec![byte; 65536]).unwrap();
        }
    }
    folder
}

/// What both programs read from an image, by several paths from several folders.
fn both_read_the_same(folder: &Path, name: &str) {
    let whole = folder.join("s/i");
    let ways = [("", "s/i"), ("", "./s/i"), ("", whole.to_str().unwrap()), ("s", "i")];
    for (from, image) in ways.into_iter().chain([("other", "../s/i"), ("other", whole.to_str().unwrap())]) {
        let args = ["-r", "-f", "qcow2", "-c", "read -v 0 16", image];
        let (ours, theirs) =
            (common::quod_io(&args, &folder.join(from), ""), common::qemu_io(&args, &folder.join(from), ""));
        assert_eq!((ours.code, ours.stdout), (theirs.code, theirs.stdout), "{name} from '{from}' by {image}");
    }
}

/// The table of docs/compat.md.
#[test]
fn backing_names_lead_to_the_file_that_qemu_reads() {
    let folder = folders_of_namesakes();
    let whole = folder.path().join("other/b").display().to_string();
    let prefixed = format!("file:{whole}");
    for name in
        ["b", "./a:b", "../other/a:b", "file:b", "file:./b", "file:a:b", &whole, &prefixed, "a:b", "x:y"]
    {
        let args = ["create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", "s/i", "64k"];
        assert_eq!(quod(&args, folder.path()).code, Some(0));
        both_read_the_same(folder.path(), name);
    }
}

#[test]
fn names_of_data_files_lead_to_the_file_that_qemu_reads() {
    let folder = folders_of_namesakes();
    let whole = folder.path().join("other/b").display().to_string();
    let prefixed = format!("file:{whole}");
    for name in ["b", "./a:b", "file:b", "file:a:b", &whole, &prefixed, "s/b"] {
        let files = |program: fn(&[&str], &Path) -> Answer| {
            let option = format!("data_file={name},data_file_raw=on,preallocation=metadata");
            let answer =
                program(&["create", "-q", "-f", "qcow2", "-o", &option, "s/i", "64k"], folder.path());
            assert_eq!(answer.code, Some(0), "{answer:?}");
            std::fs::read(folder.path().join("s/i")).unwrap()
        };
        assert!(files(qemu_img) == files(quod), "{name}");
        folders_refill(folder.path());
        both_read_the_same(folder.path(), name);
    }
    // what is only beside the image is not taken for it, but told
    let args = ["create", "-q", "-f", "qcow2", "-o", "data_file=lost", "s/i", "64k"];
    assert_eq!(quod(&args, folder.path()).code, Some(0));
    std::fs::rename(folder.path().join("lost"), folder.path().join("s/lost")).unwrap();
    let answer = common::quod_io(&["-r", "-c", "read 0 1", "s/i"], folder.path(), "");
    assert!(answer.stderr.contains("'s/lost' is another file"), "{answer:?}");
    for name in ["x:y", "json:{}"] {
        let option = format!("data_file={name}");
        let args = ["create", "-q", "-f", "qcow2", "-o", &option, "s/i", "64k"];
        let answers = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
        assert_eq!((answers.0.code, answers.1.code), (Some(1), Some(1)), "{answers:?}");
    }
}

/// What making an image emptied.
fn folders_refill(folder: &Path) {
    for (n, name) in ["b", "a:b", "other/b", "s/b"].into_iter().enumerate() {
        std::fs::write(folder.join(name), vec![n as u8 + 20; 65536]).unwrap();
    }
}

#[test]
fn no_overlay_is_made_that_nobody_can_open() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("snap-12:30.raw"), vec![0; 65536]).unwrap();
    common::prepare("qemu-img", &["create", "-q", "-f", "qcow2", "base", "1M"], folder);
    common::prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "mid"], folder);
    std::fs::remove_file(folder.join("base")).unwrap();
    for (format, backing) in [("qcow2", "mid"), ("qed", "mid"), ("qcow2", "gone"), ("qed", "file:gone")] {
        refused_alike(folder, &["create", "-q", "-f", format, "-b", backing, "-F", "qcow2", "o"]);
        refused_alike(folder, &["create", "-q", "-f", format, "-b", backing, "-F", "qcow2", "o", "1M"]);
    }
    for format in ["qcow2", "qed"] {
        refused_alike(folder, &["create", "-q", "-f", format, "-b", "snap-12:30.raw", "-F", "raw", "o"]);
        let args = ["create", "-q", "-f", format, "-b", "./snap-12:30.raw", "-F", "raw", "o"];
        assert_eq!(quod(&args, folder).code, Some(0));
        std::fs::remove_file(folder.join("o")).unwrap();
    }
}

fn refused_alike(folder: &Path, args: &[&str]) {
    let (ours, theirs) = (quod(args, folder), qemu_img(args, folder));
    assert_eq!((ours.code, &ours), (Some(1), &theirs), "{args:?}");
    assert!(!folder.join("o").exists(), "{args:?}");
}

/// A limit of the length of files is an error, and neither a full device nor the end of the process.
#[test]
fn a_limit_of_the_length_of_files_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::File::create(folder.path().join("x")).unwrap().set_len(1 << 20).unwrap();
    let limited = |program: &str, words: &str| {
        let script = format!("ulimit -f 20; exec {program} {words}");
        common::run("sh", &["-c", &script], folder.path(), "")
    };
    let quod = env!("CARGO_BIN_EXE_quod");
    let (ours, theirs) = ("create -q -f raw y 1M", "y: The image size is too large for file format 'raw'\n");
    let answer = limited(quod, ours);
    assert_eq!((answer.code, answer.stderr), (Some(1), format!("quod: {theirs}")));
    for engine in ["threads", "io_uring"] {
        let answer = limited(quod, &format!("io -i {engine} -f raw -c 'write 0 512k' x"));
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(1), "write failed: File too large\n"));
    }
}
