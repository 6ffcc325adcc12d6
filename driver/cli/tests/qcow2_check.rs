//! `quod check` against `qemu-img check` on damaged qcow2 images: the same verdicts, counts and texts with every
//! `-r`, and images that are as sound afterwards.

mod common;

use common::{Answer, prepare, qemu_img, quod};
use std::path::Path;
use tempfile::TempDir;

const COPIED: u64 = 1 << 63;

/// Where things lie in an image whose first L2 table is in use.
struct Places {
    l1: usize,
    l2: usize,
    reftable: usize,
    block: usize,
}

fn long(file: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(file[at..at + 8].try_into().unwrap())
}

fn put(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn flip(file: &mut [u8], at: usize, bits: u64) {
    put(file, at, long(file, at) ^ bits);
}

type Damage = fn(&mut [u8], &Places);

const DAMAGES: [(&str, Damage); 22] = [
    ("nothing", |_, _| {}),
    ("a leak", |f, p| put(f, p.l2, 0)),
    ("an L2 table lost", |f, p| put(f, p.l1, 0)),
    ("refcount zero in use", |f, p| f[p.block + 11] = 0),
    ("refcount too high", |f, p| f[p.block + 11] = 2),
    ("copied flags", |f, p| {
        flip(f, p.l1, COPIED);
        flip(f, p.l2, COPIED);
    }),
    ("the corrupt bit", |f, _| f[79] |= 2),
    ("the corrupt bit and a leak", |f, p| {
        f[79] |= 2;
        put(f, p.l2, 0);
    }),
    ("the dirty bit", |f, _| f[79] |= 1),
    ("the dirty bit, refcounts behind", |f, p| {
        f[79] |= 1;
        f[p.block + 8..p.block + 14].fill(0);
    }),
    ("data unaligned", |f, p| flip(f, p.l2, 512)),
    ("data beyond the end", |f, p| put(f, p.l2, COPIED | 1 << 40)),
    ("L2 table beyond the end", |f, p| put(f, p.l1, COPIED | 1 << 40)),
    ("L1 table beyond the end", |f, _| put(f, 40, 1 << 40)),
    ("L1 table in the header", |f, _| put(f, 40, 0)),
    ("two entries for one cluster", |f, p| put(f, p.l2, long(f, p.l2 + 8))),
    ("reserved bits", |f, p| flip(f, p.l2, 2)),
    ("data in the refcount block", |f, p| put(f, p.l2, COPIED | p.block as u64)),
    ("no refcount block", |f, p| put(f, p.reftable, 0)),
    ("refcount block beyond the end", |f, p| put(f, p.reftable + 8, 1 << 21)),
    ("refcount table beyond the end", |f, _| put(f, 48, 1 << 40)),
    ("no refcount table", |f, _| f[56..60].fill(0)),
];

fn image() -> (TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "x", "16M"], folder.path());
    let args = ["-f", "qcow2", "-c", "write 0 1M", "-c", "write -z 2M 64k", "-c", "write 4M 64k", "x"];
    prepare("qemu-io", &args, folder.path());
    let bytes = std::fs::read(folder.path().join("x")).unwrap();
    (folder, bytes)
}

/// Without what was found in detail.
fn outcome(mut answer: Answer) -> Answer {
    const DETAILS: [&str; 4] = ["ERROR", "Leaked cluster", "Repairing", "Rebuilding"];
    let lines = answer.stderr.lines().filter(|line| !DETAILS.iter().any(|start| line.starts_with(start)));
    answer.stderr = lines.map(|line| format!("{line}\n")).collect();
    answer
}

fn same(args: &[&str], folder: &Path, bytes: &[u8], name: &str) {
    let file = folder.join("x");
    std::fs::write(&file, bytes).unwrap();
    let theirs = outcome(qemu_img(args, folder));
    let their_rest = qemu_img(&["check", "x"], folder);
    std::fs::write(&file, bytes).unwrap();
    let ours = outcome(quod(args, folder));
    assert_eq!(ours, theirs, "{name}: {args:?}");
    if !args.contains(&"-r") {
        assert!(std::fs::read(&file).unwrap() == bytes, "{name}: a check changed the image");
    }
    assert_eq!(qemu_img(&["check", "x"], folder), their_rest, "{name}, after {args:?}");
}

#[test]
fn damaged_images() {
    let (folder, bytes) = image();
    let (l1, reftable) = (long(&bytes, 40) as usize, long(&bytes, 48) as usize);
    let offset = |at| (long(&bytes, at) & !COPIED) as usize;
    let places = Places { l1, l2: offset(l1), reftable, block: offset(reftable) };
    for (name, damage) in DAMAGES {
        let mut bytes = bytes.clone();
        damage(&mut bytes, &places);
        for output in ["human", "json"] {
            for repair in [None, Some("leaks"), Some("all")] {
                let mut args = vec!["check", "--output", output, "x"];
                args.extend(repair.iter().flat_map(|what| ["-r", what]));
                same(&args, folder.path(), &bytes, name);
            }
        }
    }
}

#[test]
fn a_repaired_image_is_written_again() {
    let (folder, mut bytes) = image();
    bytes[79] |= 3;
    let entry = long(&bytes, 40) as usize;
    flip(&mut bytes, entry, COPIED);
    std::fs::write(folder.path().join("x"), &bytes).unwrap();
    let write = ["-f", "qcow2", "-c", "write 8M 64k", "x"];
    assert_ne!(common::qemu_io(&write, folder.path(), "").code, Some(0), "it is marked corrupt");
    let answer = quod(&["check", "-q", "-r", "all", "x"], folder.path());
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""));
    assert_eq!(common::qemu_io(&write, folder.path(), "").code, Some(0));
    assert_eq!(qemu_img(&["check", "x"], folder.path()).code, Some(0));
}

#[test]
fn options_and_formats() {
    let (folder, bytes) = image();
    for args in [
        &["check", "-U", "-r", "all", "x"][..],
        &["check", "-r", "some", "x"],
        &["check", "-f", "qed", "x"],
        &["check", "-f", "raw", "-r", "all", "x"],
        &["check", "-U", "x"],
        &["check", "-r", "all", "nowhere"],
    ] {
        same(args, folder.path(), &bytes, "as it is");
    }
}
