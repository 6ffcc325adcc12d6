//! QED against QEMU, both ways: they write and we read, we write and they read, in turns on one image. Judges
//! are `qemu-img`, `qemu-io` (a missing program fails the test), a model of the guest's bytes, and a reader
//! of the format that shares no code with the driver.
//!
//! Every case follows from its seed; a failure's message begins with the seed. Each test takes a few seconds.
//! For a long soak, and to repeat one seed:
//!
//! ```text
//! QUOD_DIFFERENTIAL_SEEDS=2000 cargo test -p quod --test differential
//! QUOD_DIFFERENTIAL_FIRST=1234 QUOD_DIFFERENTIAL_SEEDS=1 cargo test -p quod --test differential
//! ```
//!
//! What QEMU cannot open is judged by the model and the independent reader alone: tables of one cluster (trap
//! Q1), and geometries whose largest size wraps around 64 bits there (trap Q2), 64 MiB clusters for one.
//! Images of 4 KiB clusters stay below 4095 clusters, where QEMU's check begins to see leaks that are none
//! (trap Q3).

#[path = "differential/case.rs"]
mod case;
#[path = "differential/cut.rs"]
mod cut;
#[path = "differential/independent.rs"]
mod independent;
#[path = "differential/ours.rs"]
mod ours;
#[path = "differential/qemu.rs"]
mod qemu;
#[path = "differential/random.rs"]
mod random;

use case::{Case, Geometry};
use independent::Reader;
use ours::Ours;
use qemu::arg;
use quod::{AllowAll, Error, ErrorKind, Format, OpenOptions, Request};
use quod_tools::{self as tools, CreateOptions, Session};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The seeds of this run: `count` of them unless the environment says otherwise.
fn seeds(count: u64) -> Range<u64> {
    let number =
        |name| std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")));
    let first = number("QUOD_DIFFERENTIAL_FIRST").unwrap_or(0);
    first..first + number("QUOD_DIFFERENTIAL_SEEDS").unwrap_or(count)
}

/// We open the image, run waves of requests, close it; then the judges look.
fn our_turn(case: &mut Case, waves: usize) {
    let (options, config) = (case.options(), case.config());
    let story = case.story.clone();
    let mut ours =
        Ours::open(&case.image(), options, config, &story).unwrap_or_else(|error| panic!("{story}: {error}"));
    let mut model = std::mem::take(&mut case.model);
    ours.assert_holds(&model, "before our turn");
    for _ in 0..waves {
        case.model.clone_from(&model);
        let count = 1 + case.random.below(32) as usize;
        let ops = case.wave(count);
        ours.wave(&ops, &mut model, &mut case.random);
        if case.random.one_in(8) {
            ours.one(Request::quiesce(0)).unwrap();
            assert!(!Reader::open(&case.image()).need_check(), "{story}: quiesced and not clean");
        }
    }
    ours.assert_holds(&model, "after our turn");
    let map = ours.map();
    ours.close();
    case.model = model;
    judge(case, "after our turn");
    if case.judged {
        assert_eq!(map, qemu::map(&case.image()), "{story}: our map as we left, theirs");
    }
}

/// QEMU writes.
fn their_turn(case: &mut Case, commands: usize) {
    let options = case.qemu_options();
    let commands = case.commands(commands);
    qemu::io(&case.image(), &options, &commands, &case.story);
    judge(case, "after their turn");
    let mut ours = Ours::open(
        &case.image(),
        OpenOptions::new().open_gate(AllowAll).direct(case.direct),
        case.config(),
        &case.story,
    )
    .unwrap();
    ours.assert_holds(&case.model, "after their turn");
    assert_eq!(ours.map(), qemu::map(&case.image()), "{}: map after their turn", case.story);
    ours.close();
}

/// All that can be said about an image that is closed.
fn judge(case: &Case, when: &str) {
    let (image, story) = (case.image(), format!("{}: {when}", case.story));
    let reader = Reader::open(&image);
    assert!(!reader.need_check() && reader.autoclear == 0, "{story}: not marked clean");
    reader.assert_clean(&story);
    let bytes = reader.disk(&case.below[..case.below.len().min(case.model.len())]);
    assert_eq!(bytes.len(), case.model.len(), "{story}: size");
    let wrong = (bytes != case.model).then(|| bytes.iter().zip(&case.model).position(|(a, b)| a != b));
    assert!(wrong.is_none(), "{story}: byte {wrong:?} differs, says the independent reader");
    let report = tools::check(&image, None, None).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{story}: {report:?}");
    if case.judged {
        qemu::assert_holds(&image, &case.model, &story);
        qemu::assert_clean(&image, &story);
        let counts = qemu::check(&image, false).unwrap();
        assert_eq!(
            (report.allocated_clusters, report.fragmented_clusters),
            (counts.allocated, counts.fragmented),
            "{story}"
        );
    }
}

fn turns(geometry: Geometry, seed: u64, rounds: usize) {
    let mut case = Case::new(geometry, seed);
    for _ in 0..rounds {
        our_turn(&mut case, 4);
        if case.judged {
            their_turn(&mut case, 24);
        }
    }
}

#[test]
fn clusters_of_4k_take_turns_with_qemu() {
    for seed in seeds(15) {
        let table = [2, 4, 16][(seed / 5 % 3) as usize];
        // three L2 tables with the smallest, and growth from one into the next
        turns(Geometry { cluster: 4096, table, limit: 9 << 20, judged: true }, seed, 2);
    }
}

#[test]
fn clusters_of_64k_take_turns_with_qemu() {
    for seed in seeds(15) {
        let table = [2, 4, 16][(seed / 5 % 3) as usize];
        turns(Geometry { cluster: 64 << 10, table, limit: 6 << 20, judged: true }, seed, 2);
    }
}

#[test]
fn large_clusters_take_turns_with_qemu() {
    for seed in seeds(10) {
        let (cluster, table) = [(1 << 20, 2), (4 << 20, 2), (1 << 20, 16)][(seed / 2 % 3) as usize];
        turns(Geometry { cluster, table, limit: 16 << 20, judged: true }, seed, 1);
    }
}

#[test]
fn geometries_that_qemu_cannot_open() {
    for seed in seeds(20) {
        let (cluster, table, limit) =
            [(4096, 1, 5 << 20), (64 << 10, 1, 6 << 20), (1 << 20, 1, 16 << 20), (2 << 20, 16, 16 << 20)]
                [(seed / 5 % 4) as usize];
        turns(Geometry { cluster, table, limit, judged: false }, seed, 2);
    }
}

#[test]
fn clusters_of_64m() {
    for seed in seeds(3) {
        let table = [16, 1, 4, 2][(seed % 4) as usize];
        turns(Geometry { cluster: 64 << 20, table, limit: 140 << 20, judged: false }, seed, 1);
    }
}

/// An image of two clusters over a raw backing file of `below` bytes 0xab.
fn over_raw(folder: &Path, size: u64, below: usize) -> PathBuf {
    std::fs::write(folder.join("base.raw"), vec![0xab; below]).unwrap();
    let backing = Some(("base.raw".to_string(), Some(Format::Raw)));
    let path = folder.join("top.qed");
    tools::create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qed, size) }).unwrap();
    path
}

/// QEMU 10.0.2 fails this: its write fills the rest of the cluster from the backing file.
#[test]
fn a_write_into_a_zero_cluster_leaves_zeros_around_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = over_raw(folder.path(), 128 << 10, 128 << 10);
    let mut model = vec![0xab; 128 << 10];
    model[64 << 10..].fill(0);
    model[70_000..70_100].fill(5);
    qemu::io(&path, &[], &["write -z 65536 65536".into()], "zero cluster");
    let mut session = Session::open(&path, OpenOptions::new().write(true).open_gate(AllowAll)).unwrap();
    session.write(70_000, &[5; 100]).unwrap();
    session.close().unwrap();
    qemu::assert_holds(&path, &model, "written by us");
    qemu::assert_clean(&path, "written by us");
}

/// Growth must not show what the backing file holds behind the old end. QEMU refuses it, and so do we.
#[test]
fn a_disk_does_not_grow_into_a_longer_backing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = over_raw(folder.path(), 64 << 10, 100_000);
    let theirs = qemu::run("qemu-io", &["-f", "qed", "-c", "truncate 128k", arg(&path)]);
    let text = format!("{}{}", theirs.stdout, theirs.stderr);
    assert!(text.contains("does not support requested flags"), "{text}");
    let mut session = Session::open(&path, OpenOptions::new().write(true).open_gate(AllowAll)).unwrap();
    match session.resize(128 << 10) {
        Err(Error::File { kind: ErrorKind::Unsupported(_), .. }) => session.close().unwrap(),
        other => {
            let mut bytes = vec![1; 64 << 10];
            session.read(64 << 10, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0), "{other:?} and the backing file shows");
        }
    }
    // as long as the disk, or shorter: nothing can show
    let path = over_raw(folder.path(), 128 << 10, 100_000);
    let mut session = Session::open(&path, OpenOptions::new().write(true).open_gate(AllowAll)).unwrap();
    session.write(100_001, &[7]).unwrap();
    session.resize(256 << 10).unwrap();
    session.close().unwrap();
    let mut model = vec![0; 256 << 10];
    model[..100_000].fill(0xab);
    model[100_001] = 7;
    qemu::assert_holds(&path, &model, "grown by us");
}
