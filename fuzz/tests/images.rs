//! The qcow2 images that the proof starts from are what they claim to be.
//!
//! Checks: quod's check and QEMU's find neither corruption nor leaks (but those that were made); quod and
//! QEMU read what the guest shall see, of the disk and of the snapshot; a repair takes leaks away and
//! nothing else. qemu-img must be installed.

use quod::Format;
use quod_backend::sim::{FileOptions, Sim};
use quod_bench::contract::payload;
use quod_fuzz::image::{self, Form, Part, Qcow2, Shape, Start};
use quod_fuzz::world::{Session, Subject, TOP, World};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("quod-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new folder");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn qemu(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).current_dir(dir).output();
    let output = output.expect("qemu-img must be installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What QEMU reads.
fn convert(dir: &Path, more: &[&str]) -> Vec<u8> {
    qemu(dir, &[&["convert", "-f", "qcow2", "-O", "raw"], more, &["top", "raw"]].concat());
    std::fs::read(dir.join("raw")).expect("qemu-img wrote it")
}

fn same(a: &[u8], b: &[u8], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
        panic!("{what}: {} and {} at {at:#x}", a[at], b[at]);
    }
}

fn examine(shape: &Shape, parts: &[Part], below: &[u8]) {
    let story = format!("{shape:?} {parts:?}");
    let start = image::start(shape, parts, below, 77).unwrap_or_else(|failure| panic!("{story}: {failure}"));
    let Start { bytes, content, snapshots, leaks } = start;
    let dir = Folder::new();
    std::fs::write(dir.0.join("top"), &bytes).expect("a file");
    std::fs::write(dir.0.join("base"), below).expect("a file");
    let mut sim = Sim::new();
    sim.insert_file(TOP, &bytes, FileOptions::default());
    sim.insert_file("base", below, FileOptions::default());

    let report = image::sound(&sim, TOP, &story).unwrap_or_else(|failure| panic!("{failure}"));
    let leaky = parts.iter().any(|part| matches!(part, Part::Leaks { .. }));
    assert_eq!((report.leaks > 0, report.leaks), (leaky, leaks), "{story}: {report:?}");
    let args = ["check", "-q", "-f", "qcow2", "top"];
    let output = Command::new("qemu-img").args(args).current_dir(&dir.0).output();
    let code = output.expect("qemu-img must be installed").status.code();
    assert_eq!(code, Some(if leaky { 3 } else { 0 }), "{story}: qemu-img check");
    same(&convert(&dir.0, &[]), &content, &story);
    for (held, number) in snapshots.iter().zip(1..) {
        let name = format!("before-{number}");
        same(&convert(&dir.0, &["-l", &name]), held, &format!("{name} of {story}"));
    }
    let tables = image::tables(&sim, TOP).unwrap();
    assert!(tables.len() >= 3 && tables.iter().all(|(from, to)| from < to), "{story}: {tables:?}");

    let (repaired, report) = image::repaired(&sim, TOP).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{story}: {report:?}");
    if !leaky {
        same(&repaired, &bytes, &format!("repair of {story}"));
    }
    sim.insert_file(TOP, &repaired, FileOptions::default());
    let session = Session { options: quod::OpenOptions::new(), requests: 4, trace: false };
    let subject = Subject { snapshots, ..Subject::new(shape.form) };
    World::new(sim, content, session, subject).look().unwrap_or_else(|failure| panic!("{story}: {failure}"));
}

fn shape(qcow2: Qcow2, clusters: u64, backing: bool) -> Shape {
    let cluster = u64::from(qcow2.cluster);
    let backing = backing.then(|| ("base".to_string(), Format::Raw));
    // the last cluster is not whole, if it can be
    Shape { form: Form::Qcow2(qcow2), size: clusters * cluster - cluster / 2 / 512 * 512, backing }
}

const KINDS: [Part; 5] = [
    Part::Data { first: 0, count: 3 },
    Part::Zero { first: 4, count: 2, keep: true },
    Part::Data { first: 39, count: 1 },
    Part::Compressed { first: 7, count: 9 },
    Part::Data { first: 8, count: 1 },
];
const ZEROS: Part = Part::Zero { first: 1, count: 3, keep: false };
const SHARED: [Part; 4] = [
    Part::Snapshot,
    Part::Data { first: 1, count: 1 },
    Part::Compressed { first: 2, count: 2 },
    Part::Zero { first: 7, count: 2, keep: false },
];

#[test]
fn images_of_all_kinds() {
    let below = payload::bytes(5, 0, 20_000);
    for cluster in [1024, 4096, 65536] {
        for refcount_bits in [2, 8, 16, 64] {
            let qcow2 = Qcow2 { refcount_bits, lazy_refcounts: refcount_bits == 8, ..Qcow2::new(cluster) };
            examine(&shape(qcow2, 40, false), &KINDS, &[]);
            examine(&shape(qcow2, 40, true), &[&KINDS[..], &[ZEROS]].concat(), &below);
            if refcount_bits > 2 {
                examine(&shape(qcow2, 40, true), &[&KINDS[..], &SHARED].concat(), &below);
            }
        }
        let old = Qcow2 { version: 2, ..Qcow2::new(cluster) };
        examine(&shape(old, 40, true), &[KINDS[0], KINDS[3], Part::Snapshot, KINDS[4]], &below);
    }
    examine(&shape(Qcow2 { refcount_bits: 1, ..Qcow2::new(512) }, 200, false), &[KINDS[0], KINDS[2]], &[]);
}

#[test]
fn subclusters_and_preallocation() {
    let below = payload::bytes(5, 0, 100_000);
    let extended = Qcow2 { extended_l2: true, ..Qcow2::new(16384) };
    let split = Part::Subclusters { at: 3, data: 0x00ff_000f, zero: 0xf000_0ff0 };
    let parts = [&KINDS[..], &[ZEROS, split, Part::Snapshot], &KINDS[..1], &[split]].concat();
    examine(&shape(extended, 40, true), &parts, &below);
    for (qcow2, backing) in [(extended, true), (Qcow2::new(512), false), (Qcow2::new(4096), false)] {
        let qcow2 = Qcow2 { preallocated: true, ..qcow2 };
        let clusters = shape(qcow2, 70, backing);
        examine(&clusters, &[], if backing { &below } else { &[] });
        examine(&clusters, &KINDS[..1], if backing { &below } else { &[] });
    }
}

#[test]
fn tables_that_are_nearly_full() {
    // a refcount block counts 64 clusters, the refcount table has 64 blocks
    let wide = Qcow2 { refcount_bits: 64, ..Qcow2::new(512) };
    for end in [60, 64, 65, 4095, 4096] {
        examine(&shape(wide, 100, false), &[KINDS[0], Part::Leaks { end }], &[]);
    }
    let filled = [Part::Data { first: 0, count: 54 }];
    examine(&shape(wide, 100, false), &filled, &[]);
}

/// Is this image of data, a snapshot and newer data well after `damage`, by the checks of a power cut?
fn after(damage: &dyn Fn(&Start, &mut Vec<u8>)) -> quod_bench::contract::Checked {
    let shape = shape(Qcow2::new(4096), 8, false);
    let start = image::start(&shape, &[KINDS[0], Part::Snapshot, KINDS[0]], &[], 77)?;
    let mut bytes = start.bytes.clone();
    damage(&start, &mut bytes);
    let mut sim = Sim::new();
    sim.insert_file(TOP, &bytes, FileOptions::default());
    image::survived(&sim, TOP)?;
    let session = Session { options: quod::OpenOptions::new(), requests: 4, trace: false };
    let subject = Subject { snapshots: start.snapshots.clone(), ..Subject::new(shape.form) };
    World::new(sim, start.content, session, subject).look()
}

fn flip(bytes: &mut [u8], what: &[u8]) {
    let at = bytes.windows(what.len()).position(|window| window == what).expect("it is there");
    bytes[at] ^= 0xff;
}

#[test]
fn damage_is_noticed() {
    after(&|_, _| {}).unwrap();
    let snapshot = after(&|start, bytes| flip(bytes, &start.snapshots[0][..512]));
    assert!(snapshot.unwrap_err().0.contains("snapshot"));
    assert!(after(&|start, bytes| flip(bytes, &start.content[..512])).is_err());
    // the third cluster counts all; a count that is too low is corruption, unless the dirty bit says so
    let low = |bytes: &mut Vec<u8>| bytes[2 * 4096 + 2 * 5 + 1] -= 1;
    assert!(after(&|_, bytes| low(bytes)).unwrap_err().0.contains("corruptions"));
    let marked = |_: &Start, bytes: &mut Vec<u8>| {
        low(bytes);
        bytes[79] |= 1;
    };
    after(&marked).unwrap();
}
