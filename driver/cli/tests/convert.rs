//! `quod convert` beside `qemu-img convert`: images that `qemu-img compare` and `check` judge, texts and exit
//! codes on the same inputs, and what is said when a target is too small or full.

mod common;

use common::{Answer, bytes, make, prepare, qemu_img, quod, write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn words<'a>(lead: &'a str, rest: &'a str) -> Vec<&'a str> {
    [lead].into_iter().chain(rest.split_whitespace()).collect()
}

fn convert(args: &str, folder: &Path) -> Answer {
    quod(&words("convert", args), folder)
}

/// Converts, and has QEMU judge the image that is the last word.
fn good(args: &str, source: &str, format: &str, folder: &Path) {
    let answer = convert(args, folder);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args}: {answer:?}");
    let target = args.split_whitespace().next_back().unwrap();
    judge(source, target, format, folder);
}

fn judge(source: &str, target: &str, format: &str, folder: &Path) {
    let told = qemu_img(&["compare", "-F", format, source, target], folder);
    assert_eq!(told.code, Some(0), "{source} {target}: {told:?}");
    if format != "raw" {
        let told = qemu_img(&["check", "-q", "-f", format, target], folder);
        assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{target}: {told:?}");
    }
}

/// Data, zeros in data, zero clusters and nothing; what a size that is no multiple of a cluster leaves, too.
fn sources(folder: &Path) -> [&'static str; 6] {
    let data = ["write -P 7 64k 900k", "write -P 0 300k 70k", "write -P 8 1500k 3k", "write -z 512k 128k"];
    make(folder, &["raw", "s.raw", "2564608"]);
    make(folder, &["qed", "s.qed", "2564608"]);
    make(folder, &["qcow2", "s.qcow2", "2564608"]);
    make(folder, &["qcow2", "-o", "cluster_size=512", "small.qcow2", "2564608"]);
    for (format, file) in [("raw", "s.raw"), ("qed", "s.qed"), ("qcow2", "s.qcow2"), ("qcow2", "small.qcow2")]
    {
        write(folder, format, file, &data);
        write(folder, format, file, &["write -P 9 2564096 512"]);
    }
    make(folder, &["qcow2", "-b", "s.qed", "-F", "qed", "top.qcow2", "3M"]);
    write(folder, "qcow2", "top.qcow2", &["write -P 3 100k 8k", "write -z 1M 64k", "write -P 4 2900k 1k"]);
    std::fs::write(folder.join("odd.raw"), [[5; 70_001].as_slice(), &[0; 9000], &[6; 1000]].concat())
        .unwrap();
    ["s.raw", "s.qed", "s.qcow2", "small.qcow2", "top.qcow2", "odd.raw"]
}

const TARGETS: [(&str, &str); 7] = [
    ("raw", ""),
    ("qed", ""),
    ("qed", "-o cluster_size=4k,table_size=2"),
    ("qcow2", ""),
    ("qcow2", "-o cluster_size=512"),
    ("qcow2", "-o cluster_size=2M,extended_l2=on"),
    ("qcow2", "-o preallocation=metadata,compat=0.10"),
];

#[test]
fn all_formats_into_all_formats() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for source in sources(folder) {
        for (format, options) in TARGETS {
            for more in ["", "-W -m 16", "-S 0", "-S 64k -m 1"] {
                good(&format!("-O {format} {options} {more} {source} target"), source, format, folder);
            }
        }
    }
}

#[test]
fn results_repeat_and_take_no_more_room_than_qemus() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "big", "96M"]);
    let data: Vec<String> =
        (0..90).map(|n| format!("write -P {} {}k {}k", n + 1, n * 1000, 300 + n)).collect();
    write(folder, "raw", "big", &data.iter().map(String::as_str).collect::<Vec<_>>());
    for (format, options) in [("qcow2", ""), ("qcow2", "-o cluster_size=4k"), ("qed", ""), ("raw", "")] {
        good(&format!("-O {format} {options} big first"), "big", format, folder);
        for _ in 0..4 {
            good(&format!("-O {format} {options} big again"), "big", format, folder);
            assert!(bytes(folder, "first") == bytes(folder, "again"), "{format} {options}");
        }
        let theirs = words("convert", "-O").into_iter().chain([format]).chain(options.split_whitespace());
        prepare("qemu-img", &theirs.chain(["big", "theirs"]).collect::<Vec<_>>(), folder);
        let room = |file: &str| std::fs::metadata(folder.join(file)).unwrap().blocks() * 512;
        let (ours, theirs) = (room("first"), room("theirs"));
        assert!(ours <= theirs + theirs / 50 + (64 << 10), "{format} {options}: {ours} {theirs}");
    }
}

#[test]
fn several_sources_lie_behind_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    let all = "odd.raw s.qed top.qcow2 odd.raw s.raw";
    prepare("qemu-img", &words("convert", &format!("-O raw {all} theirs")), folder);
    for (format, more) in [("raw", ""), ("qcow2", ""), ("qed", "-W"), ("qcow2", "-S 0")] {
        good(&format!("-O {format} {more} {all} ours"), "theirs", format, folder);
    }
    // one buffer for both: what it held before is not behind the end of a file that ends within a sector
    std::fs::write(folder.join("full.raw"), vec![7; 512 << 10]).unwrap();
    prepare("qemu-img", &words("convert", "-O raw full.raw odd.raw theirs"), folder);
    good("-m 1 full.raw odd.raw ours", "theirs", "raw", folder);
}

#[test]
fn over_a_backing_file_only_the_top_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    for (format, how) in [("qcow2", "-B s.qed -F qed"), ("qed", "-o backing_file=s.qed,backing_fmt=qed")] {
        good(&format!("-O {format} {how} top.qcow2 ours"), "top.qcow2", format, folder);
        let room = std::fs::metadata(folder.join("ours")).unwrap().len();
        assert!(room < 900 << 10, "{format}: {room}");
    }
    // a source without a backing file has zeros where it has nothing
    good("-O qcow2 -B s.qed -F qed odd.raw ours", "odd.raw", "qcow2", folder);
    make(folder, &["qcow2", "empty.qcow2", "3M"]);
    good("-O qcow2 -B s.qed -F qed empty.qcow2 ours", "empty.qcow2", "qcow2", folder);
}

#[test]
fn a_target_that_exists_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for source in sources(folder) {
        for format in ["raw", "qed", "qcow2"] {
            make(folder, &[format, "target", "4M"]);
            let old = if source == "odd.raw" { "write -P 77 0 78k" } else { "write -P 77 0 2564608" };
            write(folder, format, "target", &[old]);
            good(&format!("-n -O {format} {source} target"), source, format, folder);
            make(folder, &[format, "target", "4M"]);
            good(&format!("-n --target-is-zero -O {format} {source} target"), source, format, folder);
        }
    }
    make(folder, &["qcow2", "target", "1M"]);
    let before = bytes(folder, "target");
    let args = words("convert", "-n -O qcow2 s.raw target");
    let ours = quod(&args, folder);
    assert_eq!((&ours, ours.code), (&qemu_img(&args, folder), Some(1)));
    assert!(bytes(folder, "target") == before);
    // told to be zero, and is not: what was there stays there
    make(folder, &["raw", "target", "4M"]);
    write(folder, "raw", "target", &["write -P 77 0 3M"]);
    assert_eq!(convert("-n --target-is-zero s.raw target", folder).code, Some(0));
    assert_eq!(qemu_img(&["compare", "s.raw", "target"], folder).code, Some(1));
}

#[test]
fn refusals_have_qemus_words() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    for args in [
        "",
        "s.raw",
        "s.raw nowhere/x",
        "nowhere x",
        "-O bad s.raw x",
        "-f bad s.raw x",
        "-f qcow2 s.raw x",
        "-S 3 s.raw x",
        "-S 32M s.raw x",
        "-S foo s.raw x",
        "-m 0 s.raw x",
        "-m 17 s.raw x",
        "-m x s.raw x",
        "-n s.raw nothere",
        "--target-is-zero s.raw x",
        "-B s.raw -O qcow2 s.qcow2 x",
        "-B s.raw -F raw s.qcow2 x",
        "-O qcow2 -B s.raw -F raw s.raw s.qed x",
        "-O qcow2 -o foo=1 s.raw x",
        "-O qcow2 -o cluster_size=3 s.raw x",
        "-n -o cluster_size=4k s.raw s.qed",
        "-T foo s.raw x",
        "-t foo s.raw x",
        "-r foo s.raw x",
        "s.raw s.raw",
        "-O qcow2 s.qed s.qed",
    ] {
        let args = words("convert", args);
        let ours = quod(&args, folder);
        assert_eq!((&ours, ours.code), (&qemu_img(&args, folder), Some(1)), "{args:?}");
    }
    let _ = std::fs::remove_file(folder.join("x"));
    let before = bytes(folder, "s.qed");
    for (args, named) in [
        ("--object secret,id=a,data=b s.raw x", "--object: "),
        ("--image-opts file.filename=s.raw x", "--image-opts: "),
        ("-O qcow2 top.qcow2 s.qed", "s.qed: error while converting qcow2: Failed to get \"write\" lock"),
    ] {
        let ours = convert(args, folder);
        assert_eq!(ours.code, Some(1), "{args}: {ours:?}");
        assert!(ours.stderr.starts_with(named), "{args}: {ours:?}");
    }
    assert!(!folder.join("x").exists());
    assert!(bytes(folder, "s.qed") == before);
    make(folder, &["raw", "zeros", "1M"]);
    // QEMU looks at all tables before, to tell what part of the data is done
    let shown = convert("-p zeros x", folder).stdout;
    let ends = shown.ends_with("\r    (100.00/100%)\r    (100.00/100%)\r\n");
    assert!(shown.starts_with("    (0.00/100%)\r") && ends, "{shown:?}");
    for args in ["-p -q zeros x", "-q zeros x"] {
        let args = words("convert", args);
        assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{args:?}");
    }
}

/// A limit of a file's length stands for a full disk.
#[test]
fn what_fails_says_what_the_target_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sources(folder);
    for (file, format) in [("s.raw", "qed"), ("s.qcow2", "qcow2")] {
        let before = bytes(folder, file);
        let quod = env!("CARGO_BIN_EXE_quod");
        // sh counts in blocks of 512 bytes
        let script = format!("ulimit -f 1500; exec {quod} convert -S 0 -O {format} {file} full");
        let told = common::run("sh", &["-c", &script], folder, "");
        assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
        assert!(told.stderr.contains("error while writing at byte "), "{told:?}");
        assert!(told.stderr.contains(": File too large\n"), "{told:?}");
        assert!(told.stderr.contains("'full' is incomplete"), "{told:?}");
        assert!(bytes(folder, file) == before);
    }
    // an entry that leads behind the end: told, and rescued
    let mut image = bytes(folder, "s.qcow2");
    let entry = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = (entry(&image, entry(&image, 40) as usize) & !(1 << 63)) as usize;
    image[table + 64..table + 72].copy_from_slice(&(1u64 << 63 | 0x1_0001_0200).to_be_bytes());
    std::fs::write(folder.join("bad"), &image).unwrap();
    let told = convert("-O qed bad target", folder);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stderr.starts_with("error while reading block status at offset 524288: "), "{told:?}");
    assert!(told.stderr.contains("'target' is incomplete"), "{told:?}");
    let told = convert("--salvage -O raw bad target", folder);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("warning: error while reading offset 524288: "), "{told:?}");
    let (ours, whole) = (bytes(folder, "target"), bytes(folder, "s.raw"));
    assert!(ours[..512 << 10] == whole[..512 << 10] && ours[576 << 10..] == whole[576 << 10..]);
}

#[test]
fn the_rate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    sources(folder.path());
    let began = std::time::Instant::now();
    good("-r 1M -O qcow2 s.raw target", "s.raw", "qcow2", folder.path());
    assert!(began.elapsed().as_millis() > 500, "{:?}", began.elapsed());
}

#[test]
fn a_snapshot_is_copied_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (image, options) in [
        ("plain", ""),
        ("small", "cluster_size=512,refcount_bits=8"),
        ("old", "compat=0.10"),
        ("wide", "extended_l2=on"),
    ] {
        let made = [&["qcow2"][..], if options.is_empty() { &[] } else { &["-o", options] }, &[image, "1M"]];
        make(folder, &made.concat());
        let before = ["write -P 1 64k 300k", "write -z 100k 70k", "write -P 2 1020k 4k"];
        write(folder, "qcow2", image, &before);
        prepare("qemu-img", &["convert", "-O", "raw", image, "then"], folder);
        prepare("qemu-img", &["snapshot", "-c", "first", image], folder);
        write(folder, "qcow2", image, &["write -P 3 0 200k", "write -z 1000k 24k"]);
        prepare("qemu-img", &["snapshot", "-c", "1", image], folder);
        for which in
            ["1", "first", "snapshot.id=1", "snapshot.name=first", "snapshot.id=1,snapshot.name=first"]
        {
            good(&format!("-O qcow2 -l {which} {image} now"), "then", "qcow2", folder);
        }
        good(&format!("-l snapshot.name=1 {image} now"), image, "raw", folder);
    }
    // quod gives the disk of the snapshot, QEMU cuts it, or pads it with what lies there now
    make(folder, &["qcow2", "size", "1M"]);
    write(folder, "qcow2", "size", &["write -P 1 0 1M"]);
    prepare("qemu-img", &["convert", "-O", "raw", "size", "then"], folder);
    prepare("qemu-img", &["snapshot", "-c", "first", "size"], folder);
    for size in ["3M", "512k"] {
        prepare("qemu-img", &["resize", "-q", "--shrink", "size", size], folder);
        good("-l first size now", "then", "raw", folder);
        assert_eq!(std::fs::metadata(folder.join("now")).unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_snapshot_that_is_not_there_is_told_in_qemus_words() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "r", "1M"]);
    make(folder, &["qcow2", "q", "1M"]);
    prepare("qemu-img", &["snapshot", "-c", "a", "q"], folder);
    for words in [
        "-f raw -l a r now",
        "-l b q now",
        "-l snapshot.id=a q now",
        "-l snapshot.id=1,snapshot.name=b q now",
        "-l snapshot.foo=1 q now",
        "-l a q q now",
    ] {
        let args: Vec<&str> = ["convert"].into_iter().chain(words.split(' ')).collect();
        let (ours, theirs) = (quod(&args, folder), qemu_img(&args, folder));
        assert_eq!((ours.code, ours.stderr), (theirs.code, theirs.stderr), "{words}");
        assert!(!folder.join("now").exists(), "{words}");
    }
}
