//! `quod bitmap` beside `qemu-img bitmap`: the same inputs through both; each program goes on with what the
//! other has made.
//!
//! Checks: texts and exit codes; lists and bits, read by a small parser of the test's own and by qemu-nbd;
//! QEMU's check of what quod leaves, over the matrix of create options; bits that QEMU has kept up, merged
//! and cleared by either program; what lies beside bitmaps stays what it is.

mod common;

use common::{Answer, bytes, make, must, prepare, qemu_img, quod, write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const QUOD: &str = env!("CARGO_BIN_EXE_quod");

/// Create options: clusters, refcounts, tables, data files.
const MATRIX: [&str; 11] = [
    "",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=1k",
    "cluster_size=4k,refcount_bits=32",
    "cluster_size=8k",
    "cluster_size=2M",
    "extended_l2=on",
    "lazy_refcounts=on,cluster_size=512",
    "refcount_bits=1",
    "data_file=data.raw,data_file_raw=on",
];

fn word(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A bitmap as it stands in a file: name, flags, power of two of its granularity, bits.
type Bitmap = (String, u64, u8, Vec<u8>);

/// All bitmaps of a file.
fn bitmaps(folder: &Path, file: &str) -> Vec<Bitmap> {
    let file = bytes(folder, file);
    let (cluster, size) = (1 << word(&file, 20, 4), word(&file, 24, 8));
    let (mut at, mut found) = (word(&file, 100, 4) as usize, Vec::new());
    while word(&file, at, 4) != 0x2385_2875 {
        if word(&file, at, 4) == 0 {
            assert_eq!(word(&file, 88, 8) & 1, 0, "a bit for bitmaps, and no bitmaps");
            return found;
        }
        at += 8 + (word(&file, at + 4, 4) as usize).next_multiple_of(8);
    }
    assert_eq!(word(&file, 88, 8) & 1, 1, "bitmaps, and no bit for them");
    let (count, len) = (word(&file, at + 8, 4), word(&file, at + 16, 8) as usize);
    let directory = &file[word(&file, at + 24, 8) as usize..][..len];
    let mut at = 0;
    while at < len {
        let granularity = directory[at + 17];
        let name = &directory[at + 24..][..word(directory, at + 18, 2) as usize];
        let mut bits = vec![0; size.div_ceil(1 << granularity).div_ceil(8) as usize];
        let (table, entries) = (word(directory, at, 8) as usize, word(directory, at + 8, 4) as usize);
        assert_eq!(entries, bits.len().div_ceil(cluster));
        for (n, bits) in bits.chunks_mut(cluster).enumerate() {
            match word(&file, table + n * 8, 8) as usize {
                all @ 0..=1 => bits.fill(if all == 1 { 0xff } else { 0 }),
                host => bits.copy_from_slice(&file[host..][..bits.len()]),
            }
        }
        found.push((
            String::from_utf8_lossy(name).into_owned(),
            word(directory, at + 12, 4),
            granularity,
            bits,
        ));
        at += (24 + name.len()).next_multiple_of(8);
    }
    assert_eq!((at, found.len() as u64), (len, count));
    found
}

fn step(program: &str, folder: &Path, args: &[&str]) {
    let program = if program == "quod" { QUOD } else { program };
    prepare(program, &[&["bitmap"], args].concat(), folder);
}

fn sound(folder: &Path, file: &str, story: &str) {
    let told = qemu_img(&["check", "-q", file], folder);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), ""), "{story}: {told:?}");
    let told = quod(&["check", "-q", file], folder);
    assert_eq!(told.code, Some(0), "{story}: {told:?}");
}

/// One step by a program in each of two folders, and their bitmaps are the same.
fn both(folders: [&Path; 2], programs: [&str; 2], story: &str, args: &[&str]) {
    for (folder, program) in folders.iter().zip(programs) {
        step(program, folder, args);
        sound(folder, "i", story);
    }
    assert_eq!(bitmaps(folders[0], "i"), bitmaps(folders[1], "i"), "{story}: {args:?}");
    let facts = folders.map(|folder| qemu_img(&["info", "i"], folder).stdout);
    let list = |facts: &str| {
        facts.split("bitmaps:").nth(1).map(|rest| rest.split("refcount").next().map(String::from))
    };
    assert_eq!(list(&facts[0]), list(&facts[1]), "{story}");
    let ours = quod(&["info", "i"], folders[0]).stdout;
    assert_eq!(list(&facts[0]), list(&ours), "{story}");
}

/// A life of an image: by quod and QEMU in turns, beside QEMU's alone.
fn life(options: &str, ours: [&str; 2]) {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let folders = [folders[0].path(), folders[1].path()];
    let backed = !options.contains("data_file");
    for folder in folders {
        make(folder, &["qcow2", "base-of-a-long-name", "4M"]);
        let args = ["create", "-q", "-f", "qcow2", "-b", "base-of-a-long-name", "-F", "qcow2"];
        let plain = ["create", "-q", "-f", "qcow2"];
        let args = if backed { &args[..] } else { &plain[..] };
        let named = if options.is_empty() { vec![] } else { vec!["-o", options] };
        prepare("qemu-img", &[args, &named, &["i", "3000k"]].concat(), folder);
        write(folder, "qcow2", "i", &["write -P 1 0 1M"]);
    }
    let mut turn = 0;
    let mut then = |args: &[&str]| {
        turn += 1;
        both(folders, [ours[turn % 2], "qemu-img"], &format!("{options} {ours:?}"), args);
    };
    then(&["--add", "i", "first"]);
    then(&["--add", "-g", "4k", "i", "second"]);
    // both keep them up
    let written = |commands: &[&str]| {
        let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let ours = if ours[0] == "quod" { [QUOD, "io"].as_slice() } else { &["qemu-io"] };
        for (folder, program) in folders.iter().zip([ours, &["qemu-io"]]) {
            let args = [&program[1..], &["-f", "qcow2"], args.as_slice(), &["i"]].concat();
            prepare(program[0], &args, folder);
        }
        assert_eq!(bitmaps(folders[0], "i"), bitmaps(folders[1], "i"), "{options}: {commands:?}");
    };
    written(&["write -P 2 100k 5k", "write -P 3 2900k 4k", "discard 1M 64k", "write -z 600k 1k"]);
    then(&["--disable", "i", "first"]);
    written(&["write -P 4 1700k 1k"]);
    then(&["--add", "-g", "512", "--merge", "second", "i", "third"]);
    then(&["--merge", "third", "--merge", "second", "i", "first"]);
    then(&["--clear", "--enable", "i", "second"]);
    written(&["write -P 5 2M 300k"]);
    then(&["--merge", "first", "--disable", "i", "second"]);
    then(&["--remove", "i", "first"]);
    then(&["--merge", "second", "i", "third"]);
    for folder in folders {
        prepare("qemu-img", &["snapshot", "-c", "kept", "i"], folder);
    }
    then(&["--remove", "i", "third"]);
    then(&["--merge", "second", "i", "second"]);
    then(&["--remove", "i", "second"]);
    assert!(bitmaps(folders[0], "i").is_empty());
    let told = qemu_img(&["compare", "i", folders[1].join("i").to_str().unwrap()], folders[0]);
    assert_eq!(told.code, Some(0), "{options}: {told:?}");
    let names = qemu_img(&["info", "i"], folders[0]).stdout;
    assert_eq!(names.contains("base-of-a-long-name"), backed, "{names}");
    written(&["write -P 7 0 2M"]);
    sound(folders[0], "i", options);
}

#[test]
fn each_program_goes_on_with_what_the_other_has_made() {
    for options in MATRIX {
        // a snapshot needs counts above one, and no data file
        if ["refcount_bits=1", "data_file=data.raw,data_file_raw=on"].contains(&options) {
            continue;
        }
        life(options, ["quod"; 2]);
    }
    for ours in [["quod", "qemu-img"], ["qemu-img", "quod"]] {
        life("", ours);
    }
    life("cluster_size=512", ["quod", "qemu-img"]);
}

#[test]
fn bitmaps_are_where_no_snapshots_can_be() {
    for options in ["refcount_bits=1", "data_file=data.raw,data_file_raw=on"] {
        assert!(MATRIX.contains(&options));
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(folder, &["qcow2", "-o", options, "i", "4M"]);
        step("quod", folder, &["--add", "i", "a"]);
        write(folder, "qcow2", "i", &["write -P 1 0 1M"]);
        step("quod", folder, &["--add", "--merge", "a", "i", "b"]);
        sound(folder, "i", options);
        let found = bitmaps(folder, "i");
        assert_eq!((found.len(), &found[0].3[..3]), (2, &[0xff, 0xff, 0][..]), "{options}");
        assert_eq!(found[0].3, found[1].3);
        step("quod", folder, &["--remove", "i", "a"]);
        step("quod", folder, &["--remove", "i", "b"]);
        write(folder, "qcow2", "i", &["read -P 1 0 1M"]);
        sound(folder, "i", options);
    }
}

/// What qemu-nbd says of a bitmap: dirty ranges.
fn exported(folder: &Path, file: &str, name: &str) -> String {
    let socket = folder.join("socket");
    let _ = std::fs::remove_file(&socket);
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", name, "-k", socket.to_str().unwrap(), file])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-nbd must be installed for these tests");
    let began = Instant::now();
    while !socket.exists() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    let told = must("nbdinfo", &[&map, &format!("nbd+unix:///?socket={}", socket.display())], folder);
    assert!(server.wait().unwrap().success());
    let ranges = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    ranges.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_server_of_qemus_exports_what_quod_has_merged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["qcow2", "i", "1M"]);
    step("quod", folder, &["--add", "i", "kept"]);
    write(folder, "qcow2", "i", &["write 64k 1k", "write 512k 128k"]);
    step("quod", folder, &["--add", "-g", "128k", "--disable", "--merge", "kept", "i", "coarse"]);
    let told = exported(folder, "i", "coarse");
    let expected = "0 131072 1 dirty\n131072 393216 0 clean\n524288 131072 1 dirty\n655360 393216 0 clean\n";
    assert_eq!(told, expected);
}

/// Names of nodes, which differ each time, and what quod says instead: the file.
fn without_nodes(mut answer: Answer) -> Answer {
    let words = |line: &str| {
        let word = |word: &str| match word.trim_matches(['\'', ':']) {
            name if name.starts_with("#block") => word.replace(name, "NODE"),
            "r" | "e" | "v" | "q" | "big" if line.contains("ersist") && !line.contains("WARNING") => {
                word.replace(word.trim_matches(['\'', ':']), "NODE")
            }
            _ => word.to_string(),
        };
        line.split(' ').map(word).collect::<Vec<_>>().join(" ")
    };
    // a reader that a writer keeps out
    answer.stderr = answer.stderr.replace("shared \"write\" lock", "\"read\" lock");
    answer.stderr = answer.stderr.lines().map(|line| words(line) + "\n").collect();
    answer
}

/// The first bitmap of the directory is in use, as after a crash.
fn crashed(folder: &Path, file: &str) {
    let mut bytes = bytes(folder, file);
    let found = bytes.windows(8).position(|bytes| bytes == [0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]).unwrap();
    let directory = word(&bytes, found + 24, 8) as usize;
    bytes[directory + 15] |= 1;
    std::fs::write(folder.join(file), bytes).unwrap();
}

fn images(folder: &Path) {
    make(folder, &["qcow2", "q", "1M"]);
    make(folder, &["qcow2", "-o", "compat=0.10", "v", "1M"]);
    make(folder, &["qcow2", "big", "64T"]);
    make(folder, &["qcow2", "u", "1M"]);
    make(folder, &["qcow2", "s", "2M"]);
    make(folder, &["qed", "e", "1M"]);
    make(folder, &["raw", "r", "1M"]);
    for (file, name) in [("u", "crashed"), ("u", "sound"), ("s", "other"), ("q", "there")] {
        prepare("qemu-img", &["bitmap", "--add", file, name], folder);
    }
    crashed(folder, "u");
}

#[test]
fn words_and_exit_codes_are_qemus() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    folders.iter().for_each(|folder| images(folder.path()));
    let long = "x".repeat(1024);
    for args in [
        "",
        "q",
        "q b",
        "--add q",
        "--add q b c",
        "--add q b",
        "--add q b",
        "--add -g 100 q c",
        "--add -g 256 q c",
        "--add -g 4G q c",
        "--add -g 1.5k q c",
        "--add -g 0 q c",
        "--add -g xx q d",
        "--add -g -1 q d",
        "--add -g 2G q coarse",
        "--add --disable q d",
        "--disable q d",
        "--enable --disable q b",
        "--remove q nope",
        "--clear q nope",
        "--enable q nope",
        "--disable q nope",
        "--merge nope q b",
        "--merge b q b",
        "--merge c q nope",
        "--merge nope q nope",
        "--add --remove q e",
        "--add --add q e",
        "--remove --add --clear --merge b --disable q e",
        "--merge b --add q f",
        "-g 64k --clear q b",
        "--clear -g 4k",
        "-b q --clear q b",
        "-F raw --clear q b",
        "--clear -F x -b y -g 4k n b",
        "-b nofile -F qcow2 --merge b q b",
        "-b nofile --merge b q b",
        "-F qcow2 --merge b q c",
        "-b s --merge other q b",
        "-b s -F qcow2 --merge other q b",
        "-b s --merge nope q b",
        "-b q --merge b q c",
        "-b r -F raw --merge b q c",
        "-b s -F bla --merge other q c",
        "--remove --merge c -b nofile q b",
        "--clear nofile b",
        "--add r b",
        "--add -f raw r b",
        "-f raw --remove r b",
        "--add e b",
        "--clear e b",
        "--add v b",
        "--clear v b",
        "--add -g 511 v b",
        "--add -f foo q b",
        "-f qcow2 --clear r c",
        "--add -g 32k big b",
        "--add -g 8k big b8",
        "--add -g 512 big b",
        "--clear u crashed",
        "--enable u crashed",
        "--disable u crashed",
        "--merge crashed u sound",
        "--merge sound u crashed",
        "--add u crashed",
        "--merge crashed u crashed",
        "--remove u crashed",
        "--merge sound u sound",
        "--image-opts --add driver=qcow2,file.filename=q opts",
        "-f qcow2 --image-opts --add q b",
        "--add=5 q b",
        "--bogus q b",
        "--add -U q b",
        "--merge",
    ] {
        let args: Vec<&str> = ["bitmap"].into_iter().chain(args.split_whitespace()).collect();
        same(&folders, &args);
    }
    for args in [["--add", "q", ""], ["--clear", "q", ""], ["--add", "q", &long], ["--clear", "q", &long]] {
        same(&folders, &[&["bitmap"], args.as_slice()].concat());
    }
    for args in [["--merge", "", "q", "b"], ["--add", "-g", "", "q"]] {
        same(&folders, &[&["bitmap"], args.as_slice()].concat());
    }
    for file in ["q", "big", "u", "s"] {
        assert_eq!(bitmaps(folders[0].path(), file), bitmaps(folders[1].path(), file), "{file}");
        sound(folders[0].path(), file, "words");
    }
}

fn same(folders: &[tempfile::TempDir; 2], args: &[&str]) {
    let ours = without_nodes(quod(args, folders[0].path()));
    let theirs = without_nodes(qemu_img(args, folders[1].path()));
    // what clap says of words that it does not know is its own
    if theirs.stderr.starts_with("qemu-img bitmap: ") || theirs.stderr.contains("requires an argument") {
        return assert_eq!(
            ours.code.is_some_and(|code| code != 0),
            theirs.code == Some(1),
            "{args:?}: {ours:?}"
        );
    }
    assert_eq!(ours, theirs, "{args:?}");
}

/// An image that a program without bitmaps has written: what it had is nobody's.
#[test]
fn stale_bitmaps_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["qcow2", "i", "1M"]);
    step("qemu-img", folder, &["--add", "i", "old"]);
    let mut file = bytes(folder, "i");
    file[88..96].fill(0);
    std::fs::write(folder.join("i"), file).unwrap();
    assert_eq!(quod(&["bitmap", "--clear", "i", "old"], folder).code, Some(1));
    step("quod", folder, &["--add", "i", "new"]);
    let names: Vec<String> = bitmaps(folder, "i").into_iter().map(|bitmap| bitmap.0).collect();
    assert_eq!(names, ["new"]);
    // as QEMU leaves it: leaks
    assert_eq!(qemu_img(&["check", "-q", "i"], folder).code, Some(3));
    prepare(QUOD, &["check", "-q", "-r", "leaks", "i"], folder);
    sound(folder, "i", "stale");
}

#[test]
fn what_lies_is_refused_and_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["qcow2", "i", "1M"]);
    step("qemu-img", folder, &["--add", "i", "b"]);
    write(folder, "qcow2", "i", &["write 0 64k"]);
    let good = bytes(folder, "i");
    let found = good.windows(8).position(|bytes| bytes == [0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]).unwrap();
    let directory = word(&good, found + 24, 8) as usize;
    let table = word(&good, directory, 8) as usize;
    let beyond = 1u64 << 40;
    for (at, value, story) in [
        (table, beyond, "bits beyond the end"),
        (table, 0x10000, "bits on the refcount table"),
        (table, 3, "reserved bits"),
        (directory, beyond, "a table beyond the end"),
        (directory, 0x10000, "a table on the refcount table"),
        (directory + 8, 2 << 32 | 2, "a table of two entries"),
        (directory + 8, 1 << 32 | 8, "flags that nobody knows"),
    ] {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(folder.join("i"), &bad).unwrap();
        for args in [["--merge", "b"].as_slice(), &["--clear"], &["--remove"]] {
            // what is given up is no longer than the table says
            if story.contains("two entries") && args != ["--merge", "b"] {
                continue;
            }
            let told = quod(&[&["bitmap"], args, &["i", "b"]].concat(), folder);
            assert_eq!(told.code, Some(1), "{story}, {args:?}: {told:?}");
            assert!(bytes(folder, "i")[..64 << 10] == bad[..64 << 10], "{story}, {args:?}");
        }
    }
}

/// A source whose bitmaps are copied, beside QEMU.
#[test]
fn a_conversion_carries_bitmaps_over() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in folders.iter().map(|folder| folder.path()) {
        images(folder);
        step("qemu-img", folder, &["--add", "-g", "4k", "q", "fine"]);
        write(folder, "qcow2", "q", &["write 100k 100k", "write 1000k 4k"]);
        step("qemu-img", folder, &["--disable", "q", "fine"]);
    }
    let clusters = ["", "-o cluster_size=512", "-o cluster_size=2M", "-c"];
    for (n, options) in clusters.into_iter().enumerate() {
        let target = format!("t{n}");
        let args = format!("convert --bitmaps {options} -O qcow2 q {target}");
        let args: Vec<&str> = args.split_whitespace().collect();
        same(&folders, &args);
        // in the order of a list in memory, which is not that of the file
        let sorted = |folder: &Path| {
            let mut found = bitmaps(folder, &target);
            found.sort();
            found
        };
        let found = sorted(folders[0].path());
        assert_eq!((found.len(), found == sorted(folders[1].path())), (2, true), "{options}: {found:?}");
        sound(folders[0].path(), &target, options);
        let told = qemu_img(&["compare", "q", &target], folders[0].path());
        assert_eq!(told.code, Some(0), "{options}: {told:?}");
    }
    for args in [
        "--bitmaps -O raw q x",
        "--bitmaps -O qed q x",
        "--bitmaps -O qcow2 -f raw r x",
        "--bitmaps -O qcow2 e x",
        "--bitmaps -O qcow2 -o compat=0.10 q y",
        "--bitmaps -O qcow2 v z",
        "--skip-broken-bitmaps -O qcow2 q x",
        "--bitmaps -O qcow2 u w",
        "--bitmaps --skip-broken-bitmaps -O qcow2 u w",
        "--bitmaps -O qcow2 q q x",
    ] {
        let args: Vec<&str> = ["convert"].into_iter().chain(args.split_whitespace()).collect();
        same(&folders, &args);
    }
    assert_eq!(bitmaps(folders[0].path(), "w"), bitmaps(folders[1].path(), "w"));
}
