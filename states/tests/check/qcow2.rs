//! The check of a qcow2 image finds and repairs what `qemu-img check` does.
//!
//! Checks: verdict and every count, without repair, with leaks and with all repaired, on images of qemu-img
//! and qemu-io that were damaged byte by byte: flags, refcounts, offsets, reserved bits, subclusters,
//! compressed data, snapshots, bitmaps, refcount table and blocks. What was repaired is clean for qemu-img.
//! qemu-img and qemu-io must be installed.

use quod_states::fault::{ClusterFault, WalkFault};
use quod_states::qcow2::{Check, Finding, Header, Purpose};
use quod_states::{Error, Fault, IoOp, Machine, Outcome, Repair, Report};
use quod_states_tests::files::Folder;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn run(dir: &Path, program: &str, args: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// Creates an image and fills it with qemu-io commands; the file's bytes.
fn image(options: &str, size: &str, commands: &[&str]) -> Vec<u8> {
    let dir = Folder::create();
    let args = ["create", "-q", "-f", "qcow2", "-o", options, "image", size];
    assert_eq!(run(dir.path(), "qemu-img", &args), (0, String::new()));
    for command in commands {
        let mut words = command.split(' ');
        let (code, text) = match words.next() {
            Some("snapshot") => {
                run(dir.path(), "qemu-img", &["snapshot", "-c", words.next().unwrap(), "image"])
            }
            Some("bitmap") => {
                run(dir.path(), "qemu-img", &["bitmap", "--add", "image", words.next().unwrap()])
            }
            _ => run(dir.path(), "qemu-io", &["-f", "qcow2", "-c", command, "image"]),
        };
        assert_eq!(code, 0, "{command}: {text}");
    }
    std::fs::read(dir.path().join("image")).expect("the image")
}

/// Verdict as qemu-img's exit code, report, end of the image; were entries dropped that led beyond its end?
fn check(path: &Path, repair: Option<Repair>) -> (i32, Report, u64, bool) {
    let file = File::options().read(true).write(true).open(path).expect("the image");
    let len = file.metadata().expect("its length").len();
    let read = |offset, len: usize| {
        let mut bytes = vec![0; len];
        let mut got = 0;
        while let Ok(n @ 1..) = file.read_at(&mut bytes[got..], offset + got as u64) {
            got += n;
        }
        bytes
    };
    let failed = (1, Report::default(), 0, false);
    let Ok(header) = Header::parse(&read(0, 2 << 20), Purpose::Check) else { return failed };
    let mut check = Check::new(header, len, repair);
    while let Some(io) = check.poll_io() {
        let bytes;
        let outcome = match io.op {
            IoOp::ReadTable { offset, len } => {
                bytes = read(offset, len as usize);
                Outcome::Table(&bytes)
            }
            IoOp::WriteTable { offset, len } => {
                let mut bytes = vec![0; len as usize];
                check.encode(io.id, &mut bytes);
                file.write_all_at(&bytes, offset).expect("a write");
                Outcome::Done
            }
            IoOp::SetLen { len } => file.set_len(len).map_or(Outcome::Failed(27), |()| Outcome::Done),
            _ => Outcome::Done,
        };
        check.handle_completion(io.id, outcome);
    }
    let Ok(report) = check.poll_result().expect("the check ends") else { return failed };
    let mut findings = std::iter::from_fn(|| check.poll_finding());
    let dropped = findings.any(|finding| matches!(finding, Finding::Dropped { .. }));
    let verdict = match &report {
        report if report.check_errors > 0 => 1,
        report if report.corruptions > 0 => 2,
        report if report.leaks > 0 => 3,
        _ => 0,
    };
    (verdict, report, check.image_end(), dropped)
}

/// A number of qemu-img's JSON; missing ones are zero.
fn number(json: &str, key: &str) -> u64 {
    let Some((_, rest)) = json.split_once(&format!("\"{key}\": ")) else { return 0 };
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

const MODES: [(Option<Repair>, &str); 3] =
    [(None, "none"), (Some(Repair::Leaks), "leaks"), (Some(Repair::All), "all")];

/// What qemu-img does not look for, and nobody could write to.
fn is_hidden(problem: &Error) -> bool {
    match problem {
        Error::Corrupt(Fault::Cluster { why, .. }) => *why == ClusterFault::Metadata,
        Error::Corrupt(Fault::L2Walk { why, .. }) => {
            matches!(why, WalkFault::CompressedBeyond | WalkFault::ZeroInVersion2 | WalkFault::ZeroInExtended)
        }
        _ => false,
    }
}

/// Both checks in every mode; the differences.
fn compare(name: &str, file: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (repair, mode) in MODES {
        let dir = Folder::create();
        std::fs::write(dir.path().join("image"), file).expect("a file");
        let mut args = vec!["check", "--output=json", "-f", "qcow2"];
        if repair.is_some() {
            args.extend(["-r", mode]);
        }
        args.push("image");
        let (code, json) = run(dir.path(), "qemu-img", &args);
        std::fs::write(dir.path().join("ours"), file).expect("a file");
        let (verdict, report, end, dropped) = check(&dir.path().join("ours"), repair);
        if verdict == 2 && code != 2 && report.problems.iter().all(is_hidden) {
            continue;
        }
        let mut same = |what: &str, ours: u64, theirs: u64| {
            if ours != theirs {
                wrong.push(format!("{name}, repair {mode}: {what} {ours}, qemu-img {theirs}"));
            }
        };
        // qemu-img's guard against overlaps keeps it from some repairs: it gives up where there is more to do
        // and it leaves entries that lead beyond the end
        let more = dropped || verdict != 1 && code == 1 && repair == Some(Repair::All);
        if !more {
            same("verdict", verdict as u64, code as u64);
        }
        if code == 1 && !more || verdict == 1 {
            continue;
        }
        for (key, count) in [
            ("corruptions", report.corruptions),
            ("leaks", report.leaks),
            ("corruptions-fixed", report.corruptions_fixed),
            ("leaks-fixed", report.leaks_fixed),
            ("total-clusters", report.total_clusters),
            ("allocated-clusters", report.allocated_clusters),
            ("fragmented-clusters", report.fragmented_clusters),
            ("compressed-clusters", report.compressed_clusters),
            ("image-end-offset", end),
        ] {
            if !more {
                same(key, count, number(&json, key));
            }
        }
        // what qemu-img finds afterwards is what we left
        let (after, _) = run(dir.path(), "qemu-img", &["check", "-f", "qcow2", "ours"]);
        same("verdict", verdict as u64, after as u64);
    }
    wrong
}

fn all_same(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

fn long(file: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(file[at..at + 8].try_into().expect("8 bytes"))
}

fn put(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Puts at `to` what is made of the word at `from`.
fn map(file: &mut [u8], to: usize, from: usize, change: impl Fn(u64) -> u64) {
    let value = change(long(file, from));
    put(file, to, value);
}

/// Where things lie in an image whose first L2 table is in use.
struct Places {
    l1: usize,
    l2: usize,
    reftable: usize,
    block: usize,
}

fn places(file: &[u8]) -> Places {
    let l1 = long(file, 40) as usize;
    let reftable = long(file, 48) as usize;
    let offset = |at| (long(file, at) & 0x00ff_ffff_ffff_fe00) as usize;
    Places { l1, l2: offset(l1), reftable, block: offset(reftable) }
}

type Damage = (&'static str, fn(&mut Vec<u8>, &Places));

const COPIED: u64 = 1 << 63;

/// For images with 8-byte entries whose first clusters are normal data, and 16-bit refcounts.
const DAMAGES: [Damage; 27] = [
    ("nothing", |_, _| {}),
    ("L1 copied flag", |f, p| map(f, p.l1, p.l1, |entry| entry ^ COPIED)),
    ("L2 copied flag", |f, p| map(f, p.l2, p.l2, |entry| entry ^ COPIED)),
    ("two copied flags", |f, p| {
        map(f, p.l2, p.l2, |entry| entry ^ COPIED);
        map(f, p.l2 + 8, p.l2 + 8, |entry| entry ^ COPIED);
    }),
    ("entry lost: a leak", |f, p| put(f, p.l2, 0)),
    ("L2 table lost", |f, p| put(f, p.l1, 0)),
    ("refcount too high", |f, p| f[p.block + 11] += 1),
    ("refcount zero: rebuild", |f, p| f[p.block + 11] = 0),
    ("refcounts of metadata zero", |f, p| f[p.block..p.block + 8].fill(0)),
    ("two entries for one cluster", |f, p| map(f, p.l2, p.l2 + 8, |entry| entry)),
    ("both with the refcount they need", |f, p| {
        map(f, p.l2, p.l2 + 8, |entry| entry);
        let cluster = (long(f, p.l2) & 0xffff_ffff) >> u32::from(f[23]);
        f[p.block + cluster as usize * 2 + 1] = 2;
    }),
    ("data unaligned", |f, p| map(f, p.l2, p.l2, |entry| entry + 512)),
    ("zero cluster unaligned", |f, p| map(f, p.l2, p.l2, |entry| entry + 513)),
    ("data beyond the end", |f, p| put(f, p.l2, COPIED | 1 << 40)),
    ("L2 table beyond the end", |f, p| put(f, p.l1, COPIED | 1 << 40)),
    ("L2 reserved bits", |f, p| map(f, p.l2, p.l2, |entry| entry | 1 << 56 | 2)),
    ("L1 reserved bits", |f, p| map(f, p.l1, p.l1, |entry| entry | 1 << 58)),
    ("compressed with copied flag", |f, p| map(f, p.l2, p.l2, |entry| entry | 1 << 62)),
    ("data in the header", |f, p| put(f, p.l2, COPIED | 1)),
    ("data in the refcount block", |f, p| put(f, p.l2, COPIED | p.block as u64)),
    ("no refcount block", |f, p| put(f, p.reftable, 0)),
    ("refcount block reserved bits", |f, p| map(f, p.reftable, p.reftable, |entry| entry | 1)),
    ("one block twice", |f, p| map(f, p.reftable + 8, p.reftable, |entry| entry)),
    ("one block twice, far away", |f, p| map(f, p.reftable + 80, p.reftable, |entry| entry)),
    ("block beyond the end", |f, p| put(f, p.reftable + 8, 1 << 21)),
    ("dirty", |f, _| f[79] |= 1),
    ("corrupt and a leak", |f, p| {
        f[79] |= 2;
        put(f, p.l2, 0);
    }),
];

fn damaged(name: &str, file: &[u8], damages: &[Damage]) -> Vec<String> {
    let places = places(file);
    let mut wrong = Vec::new();
    for (damage, change) in damages {
        let mut file = file.to_vec();
        change(&mut file, &places);
        wrong.extend(compare(&format!("{name}, {damage}"), &file));
    }
    wrong
}

#[test]
fn plain_images() {
    let commands =
        ["write 0 1M", "write -z 2M 128k", "write -c 3M 64k", "write -c 3136k 64k", "discard 256k 64k"];
    all_same(damaged("64 KiB clusters", &image("cluster_size=64k", "64M", &commands), &DAMAGES));
    let commands = ["write 0 64k", "write 1M 3k", "write -c 2M 512"];
    all_same(damaged("512 byte clusters", &image("cluster_size=512", "4M", &commands), &DAMAGES));
}

#[test]
fn snapshots_and_version_2() {
    let commands = ["write 0 256k", "snapshot one", "write 128k 256k", "snapshot two", "write 0 64k"];
    all_same(damaged("snapshots", &image("cluster_size=64k", "64M", &commands), &DAMAGES));
    let commands = ["write 0 256k", "snapshot one", "write 128k 8k"];
    let old = image("compat=0.10,cluster_size=4k", "16M", &commands);
    // the bits of the last two do not exist in version 2
    all_same(damaged("version 2", &old, &DAMAGES[..25]));
    let table = long(&old, 64) as usize;
    for (name, at, value) in [("unaligned L1", 6, 1), ("L1 too large", 8, 0xff), ("extra data", 36, 1)] {
        let mut file = old.clone();
        file[table + at] ^= value;
        all_same(compare(&format!("version 2, snapshot with {name}"), &file));
    }
}

#[test]
fn refcount_widths() {
    let elsewhere =
        |name: &str| !name.contains("refcount") || name.contains("block") || name.contains("metadata");
    let damages: Vec<Damage> = DAMAGES.into_iter().filter(|(name, _)| elsewhere(name)).collect();
    for bits in [1, 2, 4, 8, 32, 64] {
        let options = format!("cluster_size=4k,refcount_bits={bits}");
        let file = image(&options, "16M", &["write 0 256k", "write 8M 12k"]);
        all_same(damaged(&format!("{bits} bits"), &file, &damages));
    }
}

#[test]
fn extended_entries() {
    let commands = ["write 0 96k", "write -z 130k 6k", "write 256k 2k", "write -c 512k 64k"];
    let file = image("extended_l2=on,cluster_size=64k", "64M", &commands);
    let damages: [Damage; 9] = [
        ("nothing", |_, _| {}),
        ("allocated and zero", |f, p| put(f, p.l2 + 8, 1 << 32 | 1)),
        ("allocated without a cluster", |f, p| put(f, p.l2, 0)),
        ("zero bits without a cluster", |f, p| put(f, p.l2 + 40, 1 << 40)),
        ("unaligned with data", |f, p| map(f, p.l2, p.l2, |entry| entry + 512)),
        ("unaligned without data", |f, p| {
            map(f, p.l2, p.l2, |entry| entry + 512);
            put(f, p.l2 + 8, 0xff << 32);
        }),
        ("copied flag", |f, p| map(f, p.l2, p.l2, |entry| entry ^ COPIED)),
        ("compressed with bits", |f, p| put(f, p.l2 + 8 * 16 + 8, 1)),
        ("no refcount block", |f, p| put(f, p.reftable, 0)),
    ];
    all_same(damaged("extended", &file, &damages));
}

#[test]
fn bitmaps() {
    let file = image("cluster_size=64k", "64M", &["write 0 128k", "bitmap first", "bitmap second"]);
    all_same(damaged("bitmaps", &file, &DAMAGES[..12]));
}

#[test]
fn preallocated_images() {
    all_same(damaged("falloc", &image("cluster_size=64k,preallocation=falloc", "4M", &[]), &DAMAGES));
    all_same(damaged("metadata", &image("cluster_size=256k,preallocation=metadata", "8M", &[]), &DAMAGES));
}

/// Damage at random places of the tables, from a fixed seed.
#[test]
fn random_damage() {
    let commands = ["write 0 40k", "snapshot one", "write 16k 8k", "write -z 100k 8k", "write -c 200k 4k"];
    let clean = image("cluster_size=4k,refcount_bits=4", "4M", &commands);
    let places = places(&clean);
    let tables = [places.l1, places.l2, places.reftable, places.block, long(&clean, 64) as usize];
    let mut seed = 1u64;
    let mut below = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let mut wrong = Vec::new();
    for round in 0..80 {
        let mut file = clean.clone();
        let mut name = format!("round {round}");
        for _ in 0..=below(3) {
            let table = below(5);
            // not the lengths of the snapshot's names: with a table beyond the end of the file qemu-img
            // frees the table itself as a leak and punches a hole in its place
            let word = if table == 4 { [0, 2, 3, 4][below(4) as usize] } else { below(12) as usize };
            let at = tables[table as usize] + word * 8;
            let value = match below(4) {
                0 => 0,
                1 => long(&file, at) ^ 1 << below(64),
                2 => COPIED | below(40) << 12,
                _ => long(&file, at) ^ (1 + below(15)) << 12,
            };
            put(&mut file, at, value);
            name += &format!(", {at:#x} = {value:#x}");
        }
        wrong.extend(compare(&name, &file));
    }
    all_same(wrong);
}
