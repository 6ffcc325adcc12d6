//! QED images that lie: every header field, every kind of table entry, truncated files. Where QEMU has no
//! known trap (Q1, Q4), its tools must come to the same verdict.

use crate::judge::{ends, exit_code, names_its_file, told};
use crate::qemu::{self, arg};
use quod::{Config, Error, ErrorKind, Fault, Format, OpenOptions, SameDirectory};
use quod_tools::{self as tools, CheckReport, Repair, Session};
use std::path::{Path, PathBuf};

pub const CLUSTER: usize = 4096;
/// Two L2 tables of two clusters map it.
pub const SIZE: usize = 8 << 20;
/// In clusters: two of header, L1, both L2 tables, six of data.
pub const L1: usize = 2 * CLUSTER;
pub const L2A: usize = 4 * CLUSTER;
pub const L2B: usize = 6 * CLUSTER;
pub const DATA: usize = 8 * CLUSTER;
pub const END: usize = 14 * CLUSTER;
/// Guest clusters that hold data, in the order of the data in the file.
pub const FILLED: [usize; 6] = [0, 1, 2, 1023, 1024, 2047];
pub const ZERO: usize = 5;

/// An image's bytes, to be spoiled.
#[derive(Clone)]
pub struct Sample(pub Vec<u8>);

impl Sample {
    /// A sound image, clean, without backing file, whose every byte is known.
    pub fn new() -> Sample {
        let mut sample = Sample(vec![0; END]);
        sample.0[..4].copy_from_slice(b"QED\0");
        sample.word(4, CLUSTER as u32);
        sample.word(8, 2);
        sample.word(12, 2);
        sample.long(40, L1 as u64);
        sample.long(48, SIZE as u64);
        sample.long(L1, L2A as u64);
        sample.long(L1 + 8, L2B as u64);
        for (number, guest) in FILLED.into_iter().enumerate() {
            let table = if guest < 1024 { L2A } else { L2B };
            sample.long(table + guest % 1024 * 8, (DATA + number * CLUSTER) as u64);
            sample.0[DATA + number * CLUSTER..][..CLUSTER].fill(filling(number));
        }
        sample.long(L2A + ZERO * 8, 1);
        sample
    }

    pub fn word(&mut self, at: usize, value: u32) -> &mut Sample {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub fn long(&mut self, at: usize, value: u64) -> &mut Sample {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Sample {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn set(&mut self, at: usize, width: usize, value: u64) -> &mut Sample {
        if width == 4 { self.word(at, value as u32) } else { self.long(at, value) }
    }

    /// With a backing name behind the fields.
    pub fn backed(name: &[u8], features: u64) -> Sample {
        let mut sample = Sample::new();
        sample.long(16, features | 1).word(56, 64).word(60, name.len() as u32).put(64, name);
        sample
    }
}

fn filling(number: usize) -> u8 {
    0x11 + number as u8
}

pub fn guest_model() -> Vec<u8> {
    let mut model = vec![0; SIZE];
    for (number, guest) in FILLED.into_iter().enumerate() {
        model[guest * CLUSTER..][..CLUSTER].fill(filling(number));
    }
    model
}

pub fn options() -> OpenOptions {
    OpenOptions::new()
        .format(Some(Format::Qed))
        .open_gate(SameDirectory)
        .cache_bytes(64 << 10)
        .grow_step(4096)
}

fn config() -> Config {
    Config::default().requests(8).queue_depth(8)
}

pub fn opened(path: &Path, options: OpenOptions) -> Result<Session, Error> {
    let session = Session::with_config(path, options, config());
    if let Err(error) = &session {
        names_its_file(path, error);
    }
    session
}

/// What became of an image.
pub struct Story {
    /// Opening it read-only.
    pub open: Result<(), Error>,
    /// The disk, and the guest clusters that could not be read.
    pub disk: Vec<u8>,
    pub bad: Vec<(usize, Error)>,
    pub check: Result<CheckReport, Error>,
    pub repair: Result<CheckReport, Error>,
    /// Opening it for writing, and whether all writes succeeded.
    pub write: Result<bool, Error>,
}

/// Reads all of the disk, cluster by cluster where more at once fails.
fn read_all(path: &Path, session: &mut Session, story: &mut Story) {
    const STEP: usize = 1 << 20;
    let size = session.info().unwrap().virtual_size().min(16 << 20) as usize;
    story.disk = vec![0xee; size];
    for at in (0..size).step_by(STEP) {
        let end = size.min(at + STEP);
        if session.read(at as u64, &mut story.disk[at..end]).is_ok() {
            continue;
        }
        for at in (at..end).step_by(CLUSTER) {
            let end = end.min(at + CLUSTER);
            if let Err(error) = session.read(at as u64, &mut story.disk[at..end]) {
                names_its_file(path, &error);
                story.bad.push((at / CLUSTER, error));
            }
        }
    }
    let mut at = 0;
    while at < size as u64 {
        // a map that fails says so for the entry at hand
        let step = session.map(0, at, size as u64 - at).map_or(CLUSTER as u64, |extent| extent.len);
        assert!(step > 0);
        at += step;
    }
}

/// Writes here and there, over what is allocated and what is not; false if something failed. A sound image
/// gives back what was written.
fn write_some(path: &Path, mut session: Session, sound: bool) -> bool {
    let size = session.info().unwrap().virtual_size();
    let good = |result: Result<(), Error>| result.map_err(|error| names_its_file(path, &error)).is_ok();
    let mut all = true;
    for guest in [0, 1, 3, ZERO, 700, 1023, 1024, 1500, 2047] {
        let at = (guest * CLUSTER + 100) as u64;
        if at + 5000 > size {
            continue;
        }
        let written = good(session.write(at, &[0x77; 5000]));
        let mut back = [0; 5000];
        if good(session.read(at, &mut back)) && written && sound {
            assert!(back.iter().all(|&byte| byte == 0x77), "{}: lost a write", path.display());
        }
        all &= written;
    }
    if size > 20_000 {
        all &= good(session.write_zeroes(2048, 9000, true));
        all &= good(session.discard(0, 4096));
        all &= good(session.write(size - 512, &[0x78; 512]));
    }
    all &= good(session.flush());
    all &= good(session.quiesce());
    all & good(session.close())
}

/// Everything that can be done to an image. The image itself is left as it was.
pub fn exercise(path: &Path) -> Story {
    let before = std::fs::read(path).unwrap();
    let mut story = Story {
        open: Ok(()),
        disk: Vec::new(),
        bad: Vec::new(),
        check: tools::check(path, Some(Format::Qed), None),
        repair: Err(Error::Busy),
        write: Err(Error::Busy),
    };
    match opened(path, options()) {
        Ok(mut session) => {
            read_all(path, &mut session, &mut story);
            session.close().unwrap();
        }
        Err(error) => story.open = Err(error),
    }
    let _ = tools::info(path, None, false);
    let _ = tools::probe(path);
    told(path, Format::Qed);
    assert!(std::fs::read(path).unwrap() == before, "{}: readers changed it", path.display());
    story.check.as_ref().err().inspect(|error| names_its_file(path, error));
    let copy = |name: &str| {
        let copy = path.with_extension(name);
        std::fs::write(&copy, &before).unwrap();
        copy
    };
    let written = copy("written.qed");
    let sound = story.check.as_ref().is_ok_and(CheckReport::is_sound);
    story.write = opened(&written, options().write(true)).map(|session| write_some(&written, session, sound));
    assert!(!sound || story.write != Ok(false), "{}: sound, and cannot be written", path.display());
    let _ = tools::set_backing(copy("renamed.qed"), Some(("another.raw", Some(Format::Raw))));
    let repaired = copy("repaired.qed");
    story.repair = tools::check(&repaired, Some(Format::Qed), Some(Repair::All));
    if let Ok(report) = &story.repair {
        let again = tools::check(&repaired, Some(Format::Qed), None).unwrap();
        assert_eq!(again.corruptions, report.corruptions, "{}: a repair does not last", path.display());
        let need_check = std::fs::read(&repaired).unwrap()[16] & 2 != 0;
        assert!(!(need_check && again.is_sound()), "{}: sound, and marked", path.display());
    }
    story
}

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, sample: &Sample) -> PathBuf {
        std::fs::write(self.path(name), &sample.0).unwrap();
        self.path(name)
    }

    pub fn exercised(&self, name: &str, sample: &Sample, story: &str) -> (PathBuf, Story) {
        let path = self.put(name, sample);
        let inner = path.clone();
        (path, ends(story, move || exercise(&inner)))
    }
}

/// QEMU's check comes to our verdict, before and after its own repair.
pub fn same_verdict(path: &Path, story: &str, ours: &Story) {
    let theirs = qemu::check(path, false);
    assert_eq!(
        exit_code(&ours.check),
        theirs.map_or(1, |counts| counts.code),
        "{story}: {theirs:?} {:?}",
        ours.check
    );
    let (Ok(report), Some(counts)) = (&ours.check, theirs) else { return };
    assert_eq!(
        (report.corruptions, report.leaks, report.allocated_clusters, report.fragmented_clusters),
        (counts.corruptions, counts.leaks, counts.allocated, counts.fragmented),
        "{story}"
    );
    let repaired = path.with_extension("theirs.qed");
    std::fs::copy(path, &repaired).unwrap();
    let counts = qemu::check(&repaired, true);
    let (Ok(report), Some(counts)) = (&ours.repair, counts) else { panic!("{story}: {:?}", ours.repair) };
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (counts.corruptions, counts.corruptions_fixed),
        "{story}: repair"
    );
}

/// How an image with a spoiled header must be met.
pub enum Expect {
    /// Refused, in these words; and by QEMU.
    Refused(&'static str),
    /// Refused by us alone: a trap of QEMU's.
    OursAlone(&'static str),
    /// Opened, by both.
    Opens,
    /// Opened by us alone: a trap of QEMU's.
    OpensHere,
}

const MAX: u64 = u64::MAX;

/// Header fields: name, place, width, value.
#[rustfmt::skip]
pub const FIELDS: &[(&str, usize, usize, u64, Expect)] = {
    use Expect::{Opens, OpensHere, OursAlone, Refused};
    &[
        ("magic", 0, 4, 0, Refused("field magic")),
        ("magic", 0, 4, 0x0144_4551, Refused("field magic")),
        ("cluster_size", 4, 4, 0, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 1, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 2048, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 4095, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 6144, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 1 << 27, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 1 << 31, Refused("field cluster_size")),
        ("cluster_size", 4, 4, u32::MAX as u64, Refused("field cluster_size")),
        ("cluster_size", 4, 4, 8192, Refused("field l1_table_offset")),
        ("cluster_size", 4, 4, 1 << 26, Refused("field l1_table_offset")),
        ("table_size", 8, 4, 0, Refused("field table_size")),
        ("table_size", 8, 4, 3, Refused("field table_size")),
        ("table_size", 8, 4, 32, Refused("field table_size")),
        ("table_size", 8, 4, 1 << 31, Refused("field table_size")),
        ("table_size", 8, 4, u32::MAX as u64, Refused("field table_size")),
        ("table_size", 8, 4, 16, Refused("field l1_table_offset")),
        ("table_size", 8, 4, 4, Opens),
        ("table_size (Q1)", 8, 4, 1, OpensHere),
        ("header_size (Q4)", 12, 4, 0, OursAlone("field header_size")),
        ("header_size", 12, 4, 1, Opens),
        ("header_size", 12, 4, 3, Refused("field l1_table_offset")),
        ("header_size", 12, 4, 1 << 20, Refused("field header_size")),
        ("header_size", 12, 4, u32::MAX as u64, Refused("field header_size")),
        ("features", 16, 8, 8, Refused("unknown bits 0x8")),
        ("features", 16, 8, 1 << 63, Refused("unknown bits 0x8000000000000000")),
        ("features", 16, 8, MAX, Refused("unknown bits 0xfffffffffffffff8")),
        ("features: need check", 16, 8, 2, Opens),
        ("features: no probe", 16, 8, 4, Opens),
        ("features: an empty backing name", 16, 8, 5, Opens),
        ("compat_features", 24, 8, MAX, Opens),
        ("autoclear_features", 32, 8, MAX, Opens),
        ("l1_table_offset", 40, 8, 0, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, 1, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, 4096, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, L1 as u64 + 512, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, DATA as u64, Opens),
        ("l1_table_offset", 40, 8, (END - 2 * CLUSTER) as u64, Opens),
        ("l1_table_offset", 40, 8, (END - CLUSTER) as u64, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, END as u64, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, 1 << 40, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, 1 << 63, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, MAX - 4095, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, MAX - 8191, Refused("field l1_table_offset")),
        ("l1_table_offset", 40, 8, MAX, Refused("field l1_table_offset")),
        ("image_size", 48, 8, 0, Opens),
        ("image_size", 48, 8, 1, Refused("field image_size")),
        ("image_size", 48, 8, 511, Refused("field image_size")),
        ("image_size", 48, 8, 512, Opens),
        ("image_size", 48, 8, 4 << 30, Opens),
        ("image_size", 48, 8, (4 << 30) + 512, Refused("field image_size")),
        ("image_size", 48, 8, 1 << 63, Refused("field image_size")),
        ("image_size", 48, 8, MAX - 511, Refused("field image_size")),
        ("image_size", 48, 8, MAX, Refused("field image_size")),
        ("backing_filename_offset", 56, 4, u32::MAX as u64, Opens),
        ("backing_filename_size", 60, 4, u32::MAX as u64, Opens),
    ]
};

#[test]
fn every_header_field_is_judged_and_named() {
    use Expect::{Opens, OpensHere, OursAlone, Refused};
    let folder = Folder::new();
    for (field, at, width, value, expect) in FIELDS {
        let story = format!("{field} = {value:#x}");
        let mut sample = Sample::new();
        sample.set(*at, *width, *value);
        let (path, ours) = folder.exercised("image.qed", &sample, &story);
        let theirs = qemu::run("qemu-img", &["info", "-f", "qed", arg(&path)]).code == 0;
        let (words, judge) = match expect {
            Refused(words) => (Some(words), !theirs),
            OursAlone(words) => (Some(words), true),
            Opens => (None, theirs),
            OpensHere => (None, !theirs),
        };
        assert!(judge, "{story}: QEMU opens it: {theirs}");
        match (words, &ours.open) {
            (None, result) => assert_eq!(result, &Ok(()), "{story}"),
            (Some(words), Err(error)) => {
                assert!(error.to_string().contains(words), "{story}: {error}");
                assert_eq!(
                    ours.write.as_ref().err().map(|e| e.to_string().contains(words)),
                    Some(true),
                    "{story}"
                );
                assert!(ours.check.is_err() && ours.repair.is_err(), "{story}");
            }
            (Some(_), Ok(())) => panic!("{story}: opened"),
        }
        if theirs && !matches!(expect, OursAlone(_)) {
            same_verdict(&path, &story, &ours);
        }
    }
}

#[test]
fn backing_fields_are_judged_and_named() {
    let folder = Folder::new();
    let max = u32::MAX;
    #[rustfmt::skip]
    let cases: &[(u32, u32, Option<&str>)] = &[
        (64, 4096, Some("field backing_filename_size")),
        (64, max, Some("field backing_filename_size")),
        (max, max, Some("field backing_filename_size")),
        (max, 1, Some("field backing_filename_offset")),
        (8191, 2, Some("field backing_filename_offset")),
        (8192, 1, Some("field backing_filename_offset")),
        (8000, 1023, Some("field backing_filename_offset")),
        (8192, 0, None),
        (0, 0, None),
    ];
    for &(offset, size, words) in cases {
        let story = format!("backing name at {offset:#x} of {size:#x} bytes");
        let mut sample = Sample::new();
        sample.long(16, 1).word(56, offset).word(60, size);
        let (path, ours) = folder.exercised("image.qed", &sample, &story);
        let theirs = qemu::run("qemu-img", &["info", "-f", "qed", arg(&path)]).code == 0;
        assert_eq!(theirs, words.is_none(), "{story}: QEMU's verdict");
        match (words, &ours.open) {
            (None, Ok(())) => assert!(ours.disk == guest_model(), "{story}"),
            (Some(words), Err(error)) => assert!(error.to_string().contains(words), "{story}: {error}"),
            (_, result) => panic!("{story}: {result:?}"),
        }
    }
}

/// A bad entry spoils what it maps and nothing else.
#[test]
fn table_entries_are_judged_and_named() {
    let beyond: &[(&str, u64)] = &[
        ("unaligned", (DATA + 512) as u64),
        ("one", 1),
        ("into the header", CLUSTER as u64),
        ("at the end", END as u64),
        ("far away", 1 << 40),
        ("signed edge", (1 << 63) - CLUSTER as u64),
        ("sign", 1 << 63),
        ("last cluster", u64::MAX - 4095),
        ("all ones", u64::MAX),
    ];
    let folder = Folder::new();
    let model = guest_model();
    for &(what, value) in beyond.iter().chain(&[("half a table", (END - CLUSTER) as u64)]) {
        let story = format!("L1[1] {what}");
        let mut sample = Sample::new();
        sample.long(L1 + 8, value);
        let (path, ours) = folder.exercised("image.qed", &sample, &story);
        let named = |error: &Error| match error {
            Error::File { kind: ErrorKind::Corrupt(Fault::L1Entry { index, entry, .. }), .. } => {
                (*index, *entry) == (1, value)
            }
            _ => false,
        };
        assert!(ours.bad.len() == 1024 && ours.bad.iter().all(|(_, error)| named(error)), "{story}");
        assert!(ours.disk[..SIZE / 2] == model[..SIZE / 2], "{story}: the other table");
        same_verdict(&path, &story, &ours);
    }
    for &(what, value) in beyond.iter().filter(|(what, _)| *what != "one") {
        let story = format!("L2[1] {what}");
        let mut sample = Sample::new();
        sample.long(L2A + 8, value);
        let (path, ours) = folder.exercised("image.qed", &sample, &story);
        let [(1, Error::File { kind: ErrorKind::Corrupt(Fault::Pointer { cluster: 1, host: v, .. }), .. })] =
            &ours.bad[..]
        else {
            panic!("{story}: {:?}", ours.bad)
        };
        assert_eq!(*v, value, "{story}");
        let mut expected = model.clone();
        expected[CLUSTER..2 * CLUSTER].copy_from_slice(&ours.disk[CLUSTER..2 * CLUSTER]);
        assert!(ours.disk == expected, "{story}: other clusters");
        same_verdict(&path, &story, &ours);
    }
}

/// References to what something else owns: QEMU counts them alike, and nothing but a check can know.
#[test]
fn double_references_are_counted_as_qemu_counts_them() {
    let folder = Folder::new();
    let places: &[(&str, usize)] = &[
        ("L1", L1),
        ("the second half of L1", L1 + CLUSTER),
        ("the first L2", L2A),
        ("the second L2", L2B),
        ("data", DATA),
        ("the last data", END - CLUSTER),
    ];
    let entries: &[(&str, usize)] = &[
        ("L1[0]", L1),
        ("L1[1]", L1 + 8),
        ("L1[7]", L1 + 56),
        ("L2[0]", L2A),
        ("L2[9]", L2A + 72),
        ("L2[1024]", L2B),
    ];
    for features in [0, 2] {
        for (place, offset) in places {
            for (entry, at) in entries {
                let story = format!("{entry} -> {place}, features {features}");
                let mut sample = Sample::new();
                sample.long(16, features).long(*at, *offset as u64);
                let (path, ours) = folder.exercised("image.qed", &sample, &story);
                assert_eq!(ours.open, Ok(()), "{story}");
                same_verdict(&path, &story, &ours);
            }
        }
    }
}

/// The bit stays while the image is damaged (Q7), goes when it is sound; and only for a writer.
#[test]
fn need_check_and_autoclear_bits_change_hands_only_for_writers() {
    let folder = Folder::new();
    let field = |path: &Path, at: usize| {
        u64::from_le_bytes(std::fs::read(path).unwrap()[at..at + 8].try_into().unwrap())
    };
    let visit = |path: &Path, write: bool| {
        let session = opened(path, options().write(write)).unwrap();
        let report = session.info().unwrap().layers()[0].report.clone();
        session.close().unwrap();
        report
    };
    // bad: an entry that the check can drop; double: damage that it cannot repair
    for (name, spoil, lasting) in [
        ("sound", None, false),
        ("bad", Some((L2A + 8, 1u64 << 40)), false),
        ("double", Some((L2A + 8, DATA as u64)), true),
    ] {
        let mut sample = Sample::new();
        sample.long(16, 2).long(24, 0x55).long(32, 0xff00);
        if let Some((at, value)) = spoil {
            sample.long(at, value);
        }
        let path = folder.put("image.qed", &sample);
        assert_eq!(visit(&path, false), None);
        assert!(std::fs::read(&path).unwrap() == sample.0, "{name}: a reader changed it");
        let report = visit(&path, true).expect("a dirty image is checked");
        assert_eq!(report.is_sound(), !lasting, "{name}: {report:?}");
        assert_eq!(field(&path, 16), if lasting { 2 } else { 0 }, "{name}: features");
        assert_eq!((field(&path, 24), field(&path, 32)), (0x55, 0), "{name}: other bits");
        if lasting {
            assert!(visit(&path, true).is_some_and(|report| report.corruptions == 1), "{name}: again");
        } else {
            assert_eq!(visit(&path, true), None, "{name}: checked once");
            let counts = qemu::check(&path, false).unwrap();
            assert_eq!((counts.corruptions, counts.code % 3), (0, 0), "{name}: {counts:?}");
        }
    }
    // clean, with autoclear bits: a tool's look leaves them alone too, and so does whoever writes nothing
    let mut sample = Sample::new();
    sample.long(32, 1);
    let path = folder.put("image.qed", &sample);
    tools::check(&path, None, None).unwrap();
    tools::info(&path, None, false).unwrap();
    visit(&path, true);
    assert_eq!(field(&path, 32), 1);
    let mut session = opened(&path, options().write(true)).unwrap();
    session.write(0, &[1]).unwrap();
    assert_eq!(field(&path, 32), 0);
    session.close().unwrap();
    let path = folder.put("image.qed", &sample);
    tools::set_backing(&path, None).unwrap();
    assert_eq!(field(&path, 32), 0);
}

#[test]
fn truncated_files_give_errors_or_what_is_left() {
    let folder = Folder::new();
    let mut lengths: Vec<usize> = (0..=64).collect();
    for edge in (0..=END).step_by(CLUSTER).chain([512, 1024, L1 + 100, L2A + 2000, L2B + 4104, DATA + 777]) {
        lengths.extend([edge.saturating_sub(1), edge, edge + 1, edge + 2048]);
    }
    lengths.sort_unstable();
    lengths.dedup();
    let model = guest_model();
    for features in [0, 2] {
        for &length in lengths.iter().filter(|&&length| length < END && (features == 0 || length > 64)) {
            let story = format!("{length} bytes, features {features}");
            let mut sample = Sample::new();
            sample.long(16, features).0.truncate(length);
            let (path, ours) = folder.exercised("image.qed", &sample, &story);
            let theirs = qemu::run("qemu-img", &["info", "-f", "qed", arg(&path)]).code == 0;
            // QEMU takes a file's length as a multiple of 512
            let even = length.is_multiple_of(512);
            assert!(!even || ours.open.is_ok() == theirs, "{story}: {:?}", ours.open);
            if length < L2A {
                assert!(
                    matches!(ours.open, Err(Error::File { kind: ErrorKind::Corrupt(_), .. })),
                    "{story}: {:?}",
                    ours.open
                );
                continue;
            }
            if even {
                same_verdict(&path, &story, &ours);
            }
            // what can be read is right
            for (number, guest) in FILLED.into_iter().enumerate() {
                let bytes = &ours.disk[guest * CLUSTER..][..CLUSTER];
                let bad = ours.bad.iter().any(|(cluster, _)| *cluster == guest);
                let there = DATA + (number + 1) * CLUSTER <= length;
                assert_eq!(bad, !there, "{story}: guest cluster {guest}");
                assert!(
                    bad || bytes == &model[guest * CLUSTER..][..CLUSTER],
                    "{story}: guest cluster {guest}"
                );
            }
        }
    }
    // unasked, what is too short for a header is no raw disk either
    std::fs::write(folder.path("short"), b"QED\0").unwrap();
    let refused = Session::open(folder.path("short"), OpenOptions::new()).map(|_| ());
    assert!(
        matches!(refused, Err(Error::File { kind: ErrorKind::Corrupt(Fault::QedHeader { .. }), .. })),
        "{refused:?}"
    );
}
