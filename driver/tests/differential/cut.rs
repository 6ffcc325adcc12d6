//! Not closed: the driver goes away in the middle, as when its process is killed; or the file is copied under
//! it. QEMU finds no corruption and every flushed byte, and so do we.

use super::case::{Case, Geometry};
use super::independent::Reader;
use super::ours::{Op, Ours};
use super::qemu::{self, arg};
use super::seeds;
use quod::{AllowAll, Buffer, OpenOptions, Request};
use quod_tools::{self as tools, Session};
use std::path::{Path, PathBuf};

/// Guest bytes of the image, read by QEMU without writing to it.
fn read_by_qemu(image: &Path, size: usize) -> Vec<u8> {
    let raw = image.with_extension("read.raw");
    qemu::good("qemu-img", &["convert", "-U", "-f", "qed", "-O", "raw", arg(image), arg(&raw)]);
    let mut bytes = std::fs::read(&raw).unwrap();
    assert!(bytes.len() <= size);
    bytes.resize(size, 0);
    bytes
}

/// Each byte is as in one of the states that the disk may be in.
fn assert_one_of(bytes: &[u8], states: &[Vec<u8>], story: &str) {
    let wrong = (0..bytes.len()).find(|&at| states.iter().all(|state| state[at] != bytes[at]));
    assert!(wrong.is_none(), "{story}: byte {wrong:?} is neither old nor new");
}

/// A file as a cut left it: `states` are what the disk may hold, the last flushed state first.
fn judge_cut(case: &Case, cut: &Path, states: &[Vec<u8>], story: &str) {
    let counts = qemu::check(cut, false);
    assert!(counts.is_some_and(|counts| counts.corruptions == 0), "{story}: {counts:?}");
    let before = std::fs::read(cut).unwrap();
    let bytes = read_by_qemu(cut, states[0].len());
    assert_one_of(&bytes, states, &format!("{story}: QEMU reads"));
    let ours = tools::check(cut, None, None).unwrap();
    assert_eq!(Some((ours.corruptions, ours.leaks)), counts.map(|counts| (0, counts.leaks)), "{story}");
    let mut reading =
        Ours::open(cut, OpenOptions::new().open_gate(AllowAll), case_config(case), story).unwrap();
    reading.assert_holds(&bytes, "read-only after a cut");
    reading.close();
    assert!(std::fs::read(cut).unwrap() == before, "{story}: looking at it changed it");
    let theirs = cut.with_extension("theirs.qed");
    std::fs::copy(cut, &theirs).unwrap();
    qemu::io(&theirs, &[], &["flush".into()], story);
    assert!(read_by_qemu(&theirs, bytes.len()) == bytes, "{story}: QEMU's repair changed the disk");
    let options = OpenOptions::new().write(true).open_gate(AllowAll);
    let mut repaired = Ours::open(cut, options, case_config(case), story).unwrap();
    repaired.assert_holds(&bytes, "repaired by us");
    repaired.close();
    let reader = Reader::open(cut);
    assert!(!reader.need_check(), "{story}: closed and not clean");
    if before != std::fs::read(cut).unwrap() {
        let counts = qemu::check(cut, false);
        assert!(counts.is_some_and(|counts| counts.corruptions == 0), "{story}: repaired by us: {counts:?}");
        assert!(read_by_qemu(cut, bytes.len()) == bytes, "{story}: repaired by us");
    }
}

fn case_config(case: &Case) -> quod::Config {
    quod::Config::default().backend(case.backend)
}

/// Requests that change the disk's bytes and not its size.
fn wave(case: &mut Case, count: usize) -> Vec<Op> {
    case.wave(count).into_iter().filter(|op| !matches!(op, Op::Resize(_))).collect()
}

fn copied(case: &Case, name: &str) -> PathBuf {
    let copy = case.path(name);
    std::fs::copy(case.image(), &copy).unwrap();
    copy
}

fn cut(geometry: Geometry, seed: u64) {
    let mut case = Case::new(geometry, seed);
    let story = case.story.clone();
    let options = case.options().need_check_ms(60_000);
    let config = case.config();
    let mut ours = Ours::open(&case.image(), options, config, &story).unwrap();
    let mut model = case.model.clone();
    for _ in 0..3 {
        let ops = wave(&mut case, 16);
        ours.wave(&ops, &mut model, &mut case.random);
    }
    ours.one(Request::flush(0)).unwrap();
    let mut states = vec![model.clone()];
    let copy = copied(&case, "flushed.qed");
    if Reader::open(&copy).allocated() {
        assert!(Reader::open(&copy).need_check(), "{story}: open, written, and not marked");
    }
    judge_cut(&case, &copy, &states, &format!("{story}: copied after a flush"));
    for number in 0..2 {
        let ops: Vec<Op> = wave(&mut case, 16).into_iter().filter(|op| !matches!(op, Op::Flush)).collect();
        ours.wave(&ops, &mut model, &mut case.random);
        states.push(model.clone());
        let copy = copied(&case, "unflushed.qed");
        judge_cut(&case, &copy, &states, &format!("{story}: copied after unflushed wave {number}"));
    }
    // in the middle of a wave
    for op in wave(&mut case, 16) {
        if let Op::Write(at, bytes, _) = &op {
            let request = Request::write(*at as u64, Buffer::from(bytes.as_slice()), 0);
            if ours.driver.submit(ours.disk, request).is_ok() {
                op.apply(&mut model);
            }
        }
    }
    states.push(model);
    for _ in 0..case.random.below(4) {
        ours.driver.turn().unwrap();
    }
    drop(ours);
    judge_cut(&case, &case.image(), &states, &format!("{story}: dropped"));
}

#[test]
fn without_a_close_nothing_flushed_is_lost() {
    for seed in seeds(10) {
        let (cluster, table) = [(4096, 2), (64 << 10, 4)][(seed / 2 % 2) as usize];
        cut(Geometry { cluster, table, limit: 2 << 20, judged: true }, seed);
    }
}

/// The plainest story, in QEMU's words.
#[test]
fn qemu_reads_what_was_flushed_before_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("top.qed");
    tools::create(&path, &tools::CreateOptions::new(quod::Format::Qed, 8 << 20)).unwrap();
    let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
    session.write(1_000_000, &[0x5a; 100_000]).unwrap();
    session.flush().unwrap();
    session.write(4_000_000, &[0xa5; 100_000]).unwrap();
    drop(session);
    assert!(Reader::open(&path).need_check());
    let verdict = qemu::run("qemu-img", &["check", "-f", "qed", arg(&path)]);
    assert!([0, 3].contains(&verdict.code), "{verdict:?}");
    qemu::io(&path, &["-r"], &["read -P 0x5a 1000000 100000".into()], "read only");
    assert!(Reader::open(&path).need_check(), "a reader changed it");
    let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
    let report = session.info().unwrap().layers()[0].report.clone();
    assert!(report.is_some_and(|report| report.is_sound()));
    let mut bytes = vec![0; 100_000];
    session.read(1_000_000, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0x5a));
    session.close().unwrap();
    qemu::assert_clean(&path, "closed");
}
