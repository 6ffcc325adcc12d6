//! qcow2 images on the command line: `quod info`, `map`, `check` and `io -r` against QEMU's tools.

mod common;

use common::{prepare, qemu_img, qemu_io, quod, quod_io};
use std::path::Path;

const FILES: [&str; 9] = ["plain", "old", "tiny", "zstd", "lazy", "over", "marked", "./plain", "packed"];

fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let create = |options: &str, more: &[&str]| {
        prepare("qemu-img", &[&["create", "-q", "-f", "qcow2", "-o", options], more].concat(), path);
    };
    create("compat=1.1", &["plain", "3M"]);
    create("compat=0.10", &["old", "20M"]);
    create("cluster_size=512,refcount_bits=1", &["tiny", "1M"]);
    create("compression_type=zstd,cluster_size=2M", &["zstd", "16M"]);
    create("lazy_refcounts=on,extended_l2=on,cluster_size=32k,refcount_bits=64", &["lazy", "2M"]);
    let write = |file: &str, commands: &[&str]| {
        let mut args = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(file);
        prepare("qemu-io", &args, path);
    };
    write("plain", &["write -P 7 0 192k", "write -z 256k 64k", "write -c -P 9 1M 64k", "write 2M 256k"]);
    write("old", &["write -P 3 64k 1M"]);
    write("zstd", &["write -c -P 5 2M 2M"]);
    create("compat=1.1", &["-b", "plain", "-F", "qcow2", "over", "4M"]);
    write("over", &["write -P 2 64k 64k", "write -z 512k 64k"]);
    create("cluster_size=4k", &["marked", "1M"]);
    prepare("qemu-img", &["bitmap", "--add", "-g", "4096", "marked", "map"], path);
    prepare("qemu-img", &["bitmap", "--add", "--disable", "marked", "other"], path);
    let packed = ["convert", "-c", "-f", "qcow2", "-O", "qcow2", "old", "packed"];
    prepare("qemu-img", &packed, path);
    folder
}

fn same(command: &str, folder: &Path) {
    let args: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(quod(&args, folder), qemu_img(&args, folder), "{command}");
}

#[test]
fn info_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in
            ["", "--output=json", "--backing-chain", "--backing-chain --output json", "-f qcow2 -U"]
        {
            same(&format!("info {options} {file}"), folder.path());
        }
    }
    prepare("qemu-img", &["snapshot", "-c", "first", "plain"], folder.path());
    prepare("qemu-img", &["snapshot", "-c", "a second", "plain"], folder.path());
    same("info --output json plain", folder.path());
}

/// All that an image may say of itself: a data file, also one that is not there; encryption; bitmaps and a
/// backing file beside them; a backing format that quod does not read.
#[test]
fn info_of_what_is_seldom_is_the_same() {
    let folder = images();
    let path = folder.path();
    let secret = ["--object", "secret,id=s,data=x"];
    let create = |options: &str, more: &[&str]| {
        let args = [&["create", "-q", "-f", "qcow2"], &secret[..], &["-o", options], more].concat();
        prepare("qemu-img", &args, path);
    };
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    create("data_file=d.raw,data_file_raw=on", &["rawdata", "1M"]);
    create("data_file=d2", &["data", "1M"]);
    create("encrypt.format=aes,encrypt.key-secret=s", &["aes", "1M"]);
    create(luks, &["luks", "1M"]);
    create(&format!("{luks},compat=0.10,encrypt.cipher-alg=twofish-128"), &["luks2", "1M"]);
    let all = format!("{luks},data_file=d3,extended_l2=on,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv");
    create(&format!("{all},encrypt.ivgen-hash-alg=sha256"), &["-b", "plain", "-F", "qcow2", "all", "1M"]);
    let node = "driver=qcow2,file.filename=all,encrypt.format=luks,encrypt.key-secret=s";
    prepare("qemu-img", &[&["bitmap", "--add"], &secret[..], &["--image-opts", node, "b"]].concat(), path);
    create("compat=1.1", &["foreign", "1M"]);
    prepare("qemu-img", &["rebase", "-u", "-b", "plain", "-F", "vmdk", "foreign"], path);
    create("compat=1.1", &["file", "1M"]);
    prepare("qemu-img", &["rebase", "-u", "-b", "plain", "-F", "file", "file"], path);
    for there in [true, false] {
        for file in ["rawdata", "data", "aes", "luks", "luks2", "all", "foreign", "file"] {
            for options in ["", "--output=json"] {
                same(&format!("info {options} {file}"), path);
            }
        }
        if there {
            ["d.raw", "d2", "d3"].iter().for_each(|data| std::fs::remove_file(path.join(data)).unwrap());
        }
    }
    // nobody reads what is encrypted as plain data
    for file in ["aes", "luks", "all"] {
        for args in [&["io", "-r", "-c", "read 0 1", file][..], &["map", file], &["check", file]] {
            let answer = quod(args, path);
            assert!(answer.code == Some(1) && answer.stderr.contains("encryption"), "{args:?}: {answer:?}");
        }
    }
}

/// Entries of the snapshot table that older programs wrote have no count of instructions.
#[test]
fn info_of_old_snapshots_is_the_same() {
    let folder = images();
    let path = folder.path().join("plain");
    prepare("qemu-img", &["snapshot", "-c", "one", "plain"], folder.path());
    let without_dates = |answer: common::Answer| {
        // quod says the time in UTC
        let lines = answer.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|words| words.first() != Some(&"1") || words.len() < 7).count()
    };
    let mut image = std::fs::read(&path).unwrap();
    let at = u64::from_be_bytes(image[64..72].try_into().unwrap()) as usize;
    assert_eq!(image[at + 39], 24, "what qemu-img writes");
    let names = image[at + 64..at + 64 + 4].to_vec();
    image[at + 39] = 16;
    image[at + 56..at + 60].copy_from_slice(&names);
    image[at + 60..at + 68].fill(0);
    std::fs::write(&path, &image).unwrap();
    let (ours, theirs) =
        (quod(&["info", "plain"], folder.path()), qemu_img(&["info", "plain"], folder.path()));
    assert!(ours.stdout.lines().any(|line| line.ends_with("         --")), "{ours:?}");
    assert_eq!(without_dates(ours), without_dates(theirs));
    same("info --output json plain", folder.path());
}

/// A chain is shown whole or not at all.
#[test]
fn chains_are_followed_through_descriptions() {
    let folder = images();
    let path = folder.path();
    let create =
        |args: &[&str]| prepare("qemu-img", &[&["create", "-q", "-f", "qcow2"], args].concat(), path);
    create(&["-b", "over", "-F", "qcow2", "top"]);
    let mid = path.join("over").display().to_string();
    for (format, name, followed) in [
        (
            "qcow2",
            format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{mid}"}}}}"#),
            true,
        ),
        ("qcow2", r#"json:{"driver":"qcow2","file.filename":"over"}"#.into(), true),
        ("qcow2", r#"json:{"file":{"driver":"file","filename":"over","locking":"auto"}}"#.into(), true),
        ("raw", r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"over"}}"#.into(), true),
        ("raw", r#"json:{"driver":"file","filename":"over"}"#.into(), false),
        ("vmdk", "over".into(), false),
        ("qcow2", "nbd://127.0.0.1:1/x".into(), false),
        (
            "qcow2",
            r#"json:{"driver":"qcow2","file":{"driver":"nbd","host":"127.0.0.1","port":"1"}}"#.into(),
            false,
        ),
        ("qcow2", r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"top"}}"#.into(), false),
    ] {
        prepare("qemu-img", &["rebase", "-u", "-F", format, "-b", &name, "top"], path);
        for output in ["human", "json"] {
            let args = ["info", "--backing-chain", "--output", output, "top"];
            let (ours, theirs) = (quod(&args, path), qemu_img(&args, path));
            assert_eq!((ours.code, &ours.stdout), (theirs.code, &theirs.stdout), "{name}: {ours:?}");
            assert_eq!(ours.code == Some(0), followed, "{name}");
        }
        same("info top", path);
    }
}

#[test]
fn check_is_the_same() {
    let folder = images();
    for file in FILES {
        for options in ["", "--output=json", "-q", "-f qcow2 -U"] {
            same(&format!("check {options} {file}"), folder.path());
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
}

/// Images whose files are sparse, whose data is elsewhere, or whose clusters are split.
fn odd_images(folder: &Path) -> [&'static str; 10] {
    let create = |options: &str, more: &[&str]| {
        prepare("qemu-img", &[&["create", "-q", "-f", "qcow2", "-o", options], more].concat(), folder);
    };
    let write = |file: &str, commands: &[String]| {
        let mut args = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
        args.push(file);
        prepare("qemu-io", &args, folder);
    };
    let words = |text: &str| text.split(", ").map(String::from).collect::<Vec<_>>();
    create("preallocation=metadata", &["empty", "4M"]);
    create("preallocation=metadata,cluster_size=4k", &["prepared", "4M"]);
    write("prepared", &words("write 1M 64k, write -z 2M 128k, write 3000k 12k, write -z -u 3M 8k"));
    create("preallocation=falloc", &["reserved", "4M"]);
    // clusters of data that are holes in the file, as imago's are
    create("cluster_size=64k", &["full", "4M"]);
    write("full", &words("write -P 0 0 4M, write 1M 64k, write 1200k 4k, write -P 0 1216k 60k"));
    prepare("cp", &["--sparse=always", "full", "sparse"], folder);
    create("data_file=d1", &["data", "4M"]);
    write("data", &words("write 64k 64k, write 1M 128k, write -z 2M 64k, write -P 0 3M 64k"));
    create("data_file=d2,data_file_raw=on,preallocation=metadata", &["rawdata", "4M"]);
    write("rawdata", &words("write 64k 64k, write -z 2M 64k"));
    create("data_file=d3,extended_l2=on", &["-b", "full", "-F", "qcow2", "splitdata", "4M"]);
    // subclusters at random
    create("extended_l2=on,cluster_size=64k", &["split", "2M"]);
    create("extended_l2=on,cluster_size=32k", &["-b", "split", "-F", "qcow2", "splitover", "3M"]);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for file in ["split", "splitover", "splitdata"] {
        let commands = (0..60).map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let (at, len) = (seed / 8 % 1900, 1 + seed / 16384 % 40);
            match seed % 8 {
                0..4 => format!("write {at}k {len}k"),
                4 => format!("write -z {at}k {len}k"),
                5 => format!("write -z -u {at}k {}k", len * 4),
                6 => format!("discard {at}k {}k", len * 4),
                _ => format!("write {at}k 2k"),
            }
        });
        write(file, &commands.collect::<Vec<_>>());
    }
    ["empty", "prepared", "reserved", "full", "sparse", "data", "rawdata", "split", "splitover", "splitdata"]
}

#[test]
fn map_of_what_is_seldom_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for file in odd_images(folder.path()) {
        for options in ["", "--output=json", "--start-offset 70k --max-length 2000k --output json"] {
            same(&format!("map {options} {file}"), folder.path());
        }
    }
    let zeros = quod(&["map", "--output=json", "sparse"], folder.path()).stdout;
    assert!(zeros.contains("\"zero\": true, \"data\": true"), "the file system has no holes: {zeros}");
}

/// What was read before a bad entry is told, and then what is wrong. QEMU keeps the last run to itself.
#[test]
fn map_ends_at_a_bad_entry() {
    let folder = images();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "bad", "4M"], folder.path());
    let writes = ["-c", "write 0 64k", "-c", "write -z 64k 64k", "-c", "write 2M 64k", "bad"];
    prepare("qemu-io", &writes, folder.path());
    let path = folder.path().join("bad");
    let mut image = std::fs::read(&path).unwrap();
    let long = |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let l1 = long(&image, 40) as usize;
    let l2 = (long(&image, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    image[l2 + 8 * 32..l2 + 8 * 33].copy_from_slice(&0x8000_0000_0005_1200u64.to_be_bytes());
    std::fs::write(&path, image).unwrap();
    for output in ["human", "json"] {
        let args = ["map", "--output", output, "bad"];
        let (ours, theirs) = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
        assert_eq!((ours.code, theirs.code), (Some(1), Some(1)), "{ours:?} {theirs:?}");
        assert!(ours.stderr.contains("guest offset"), "{ours:?}");
        let (said, less) = (ours.stdout.trim_end(), theirs.stdout.trim_end());
        assert!(said.starts_with(less) && said.len() >= less.len(), "{ours:?} {theirs:?}");
        assert!(output == "human" || said.matches("start").count() == 3, "{ours:?}");
        assert!(!said.ends_with(']'), "{ours:?}");
    }
}

#[test]
fn reading_is_the_same() {
    let folder = images();
    for (file, commands) in [
        ("old", ["info", "length", "read -P 3 64k 1M", "read -P 0 2M 1M"]),
        ("lazy", ["info", "length", "read -P 0 0 2M", "alloc 0 1M"]),
        ("plain", ["read -P 7 100 100000", "read -P 9 1M 64k", "read -P 0 256k 64k", "read -v 65530 32"]),
        ("zstd", ["read -P 5 2M 2M", "read -P 0 0 2M", "read -P 5 3000001 77", "read 15M 2M"]),
        ("over", ["read -P 2 64k 64k", "read -P 7 128k 64k", "read -P 9 1M 64k", "read -P 0 3M 1M"]),
    ] {
        let mut args = vec!["-r", "-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(file);
        let ours = quod_io(&args, folder.path(), "");
        let theirs = qemu_io(&args, folder.path(), "");
        let plain = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.contains(" ops; "));
            lines.map(String::from).collect()
        };
        assert_eq!(plain(&ours.stdout), plain(&theirs.stdout), "{file}");
        assert_eq!(ours.code, theirs.code, "{file}");
    }
}

/// Name, offset in the header, new bytes.
const BROKEN: [(&str, usize, &[u8]); 26] = [
    ("magic", 0, b"QFJ"),
    ("version", 4, &[0, 0, 0, 9]),
    ("cluster of 256 bytes", 20, &[0, 0, 0, 8]),
    ("cluster of 4 MiB", 20, &[0, 0, 0, 22]),
    ("short header", 100, &[0, 0, 0, 96]),
    ("long header", 100, &[0, 1, 0, 8]),
    ("backing name outside", 8, &[0, 0, 0, 0, 0, 1, 0, 1]),
    ("backing name too long", 16, &[0, 0, 7, 0]),
    ("compression of no kind", 104, &[7]),
    ("compression without its bit", 104, &[1]),
    ("the bit without compression", 72, &[0, 0, 0, 0, 0, 0, 0, 8]),
    ("an unknown bit", 72, &[0, 0, 1, 0, 0, 0, 0, 0]),
    ("two unknown bits", 72, &[0, 0, 2, 0, 0, 0, 0, 0x20]),
    ("an unknown bit with a known one", 72, &[0, 0, 0, 0, 0, 0, 1, 1]),
    ("refcounts of 128 bits", 96, &[0, 0, 0, 7]),
    ("no refcount table", 56, &[0, 0, 0, 0]),
    ("refcount table too large", 56, &[0, 0x10, 0, 0]),
    ("refcount table unaligned", 48, &[0, 0, 0, 0, 0, 0, 0, 100]),
    ("refcount table beyond", 48, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    ("too many snapshots", 60, &[0, 2, 0, 0]),
    ("snapshots unaligned", 60, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 77]),
    ("L1 table too large", 36, &[0, 0x50, 0, 0]),
    ("L1 table unaligned", 40, &[0, 0, 0, 0, 0, 0, 0, 77]),
    ("L1 table too small", 36, &[0, 0, 0, 0]),
    ("disk too large", 24, &[0x40, 0, 0, 0, 0, 0, 0, 0]),
    ("extension too long", 116, &[0, 0x10, 0, 0]),
];

#[test]
fn broken_headers_are_refused_in_the_same_words() {
    let folder = images();
    let clean = std::fs::read(folder.path().join("over")).unwrap();
    for (name, at, bytes) in BROKEN {
        let mut image = clean.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path().join("over"), &image).unwrap();
        let args = ["-r", "-f", "qcow2", "-c", "length", "over"];
        let theirs = qemu_io(&args, folder.path(), "");
        assert_eq!(theirs.code, Some(1), "{name}: {theirs:?}");
        assert_eq!(quod_io(&args, folder.path(), ""), theirs, "{name}");
        // info says more, behind the same words
        let args = ["info", "-f", "qcow2", "over"];
        let (ours, theirs) = (quod(&args, folder.path()), qemu_img(&args, folder.path()));
        assert!(ours.stderr.starts_with(theirs.stderr.trim_end()), "{name}: {ours:?}, {theirs:?}");
    }
}

#[test]
fn bench_reads() {
    let folder = images();
    let answer = quod(&["bench", "-c", "500", "-d", "8", "-s", "4096", "packed"], folder.path());
    assert_eq!(answer.code, Some(0), "{answer:?}");
}
