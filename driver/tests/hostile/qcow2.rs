//! The judge of hostile qcow2 images: what is done to each of them, and what must come of it.

use crate::judge::{Row, ends, names_its_file, report, told, words};
use crate::qcow2_sample::{Base, Image, Sample};
use crate::qemu::{self, arg};
use crate::{qcow2_entries, qcow2_headers};
use quod::{Config, Error, ErrorKind, Format, Named, OpenOptions};
use quod_tools::{self as tools, CheckReport, Repair, Session};
use std::path::PathBuf;

/// More of a disk is not read.
const READ_MAX: usize = 40 << 20;

pub fn images() -> Vec<Image> {
    let mut list = Vec::new();
    qcow2_headers::add_all(&mut list);
    qcow2_entries::add_all(&mut list);
    list
}

/// An image while it is judged.
struct Case {
    folder: tempfile::TempDir,
    sample: Sample,
    story: String,
}

/// What a disk reads as: bytes, and the clusters that cannot be read.
#[derive(Clone, Default)]
struct Disk {
    bytes: Vec<u8>,
    bad: Vec<(usize, Error)>,
}

/// What came of writing.
struct Written {
    /// The first error of a request.
    error: Option<Error>,
    /// The disk as it should be.
    bytes: Vec<u8>,
    /// Clusters that requests were about, and those of them whose contents are certain.
    touched: Vec<usize>,
    certain: bool,
    /// Touched ones that may hold the old or the new.
    unsure: Vec<usize>,
}

fn options() -> OpenOptions {
    // every file of the image's folder, where some names lead from the working directory for QEMU
    let gate = |named: &Named<'_>| named.beside().or_else(|| named.path());
    OpenOptions::new().format(Some(Format::Qcow2)).open_gate_fn(gate).cache_bytes(64 << 10).grow_step(4096)
}

fn config() -> Config {
    Config::default().requests(8).queue_depth(8).decompressors(0)
}

impl Case {
    fn path(&self) -> PathBuf {
        self.folder.path().join("image.qcow2")
    }

    /// The files as they were.
    fn reset(&self) {
        std::fs::write(self.path(), &self.sample.bytes).unwrap();
        for name in ["base.raw", "data.raw"] {
            std::fs::write(self.folder.path().join(name), vec![0xab; 5 * self.sample.cluster]).unwrap();
        }
    }

    fn open(&self, write: bool) -> Result<Session, Error> {
        let session = Session::with_config(self.path(), options().write(write), config());
        session.inspect_err(|error| names_its_file(&self.path(), error))
    }

    fn read(&self, session: &mut Session) -> Disk {
        let (unit, size) = (self.sample.cluster, session.info().unwrap().virtual_size());
        let len = size.min(READ_MAX as u64) as usize;
        let mut disk = Disk { bytes: vec![0xee; len], bad: Vec::new() };
        for start in (0..len).step_by(1 << 20) {
            let end = len.min(start + (1 << 20));
            if session.read(start as u64, &mut disk.bytes[start..end]).is_ok() {
                continue;
            }
            for at in (start..end).step_by(unit) {
                if let Err(error) = session.read(at as u64, &mut disk.bytes[at..end.min(at + unit)]) {
                    names_its_file(&self.path(), &error);
                    disk.bad.push((at / unit, error));
                }
            }
        }
        if size > len as u64 {
            let last = session.read(size - 512, &mut [0; 512]);
            let _ = last.inspect_err(|error| names_its_file(&self.path(), error));
        }
        let mut at = 0;
        while at < len as u64 {
            let step = session.map(0, at, len as u64 - at).map_or(unit as u64, |extent| extent.len);
            assert!(step > 0, "{}", self.story);
            at += step;
        }
        disk
    }

    /// Opens it read-only, and reads all.
    fn look(&self) -> Result<Disk, Error> {
        let mut session = self.open(false)?;
        let disk = self.read(&mut session);
        session.close().unwrap();
        Ok(disk)
    }

    fn check(&self, repair: Option<Repair>) -> Result<CheckReport, Error> {
        let result = tools::check(self.path(), Some(Format::Qcow2), repair);
        result.inspect_err(|error| names_its_file(&self.path(), error))
    }

    /// Corruptions that `qemu-img check` finds, if it can.
    fn their_corruptions(&self) -> Option<u64> {
        let verdict = qemu::run("qemu-img", &["check", "-f", "qcow2", "--output=json", arg(&self.path())]);
        if !verdict.stdout.contains("check-errors") {
            return None;
        }
        let text = verdict.stdout.split("\"corruptions\": ").nth(1).unwrap_or("0");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse().ok()
    }

    /// Writes, in place and into new space, discards, zeroes, flushes; closes.
    fn write(&self, mut session: Session, before: &Disk) -> Written {
        let (unit, per) = (self.sample.cluster as u64, self.sample.per() as u64);
        let size = session.info().unwrap().virtual_size();
        let bytes = before.bytes.clone();
        let mut written =
            Written { error: None, bytes, touched: Vec::new(), certain: true, unsure: Vec::new() };
        type Op = (&'static str, u64, u64, u8);
        let ops: [Op; 21] = [
            ("write", 100, 5000, 0x71),
            ("write", 20 * unit, 16 * unit, 0x72),
            ("write", 36 * unit, 48 * unit, 0x73),
            ("write", SMALL_AT * unit + 10, 100, 0x74),
            ("flush", 0, 0, 0),
            ("discard", 2 * unit, unit, 0),
            ("zero", (per - 1) * unit, unit, 0),
            ("write", per * unit, 512, 0x75),
            ("flush", 0, 0, 0),
            ("write", 100 * unit, 32 * unit, 0x76),
            ("flush", 0, 0, 0),
            ("discard", 20 * unit, 24 * unit, 0),
            ("flush", 0, 0, 0),
            ("write", 140 * unit, 16 * unit, 0x78),
            ("flush", 0, 0, 0),
            ("write", (per + 8) * unit, 8 * unit, 0x79),
            ("zero", 6 * unit + 7, 600, 0),
            ("write", 160 * unit, 64 * unit, 0x7a),
            ("flush", 0, 0, 0),
            ("write", size.saturating_sub(512), 512, 0x7b),
            ("quiesce", 0, 0, 0),
        ];
        for (kind, at, len, byte) in ops {
            if at.checked_add(len).is_none_or(|end| end > size) {
                continue;
            }
            let result = match kind {
                "write" => session.write(at, &vec![byte; len as usize]),
                "zero" => session.write_zeroes(at, len, true),
                "discard" => session.discard(at, len),
                "flush" => session.flush(),
                _ => session.quiesce(),
            };
            written.note(self, (kind, at, len, byte), result);
        }
        let closed = session.close();
        written.note(self, ("close", 0, 0, 0), closed);
        written
    }

    /// The disk is as it should be after that.
    fn compare(&self, before: &Disk, written: &Written, after: &Disk, what: &str) {
        let unit = self.sample.cluster;
        let bad = |disk: &Disk, n: usize| disk.bad.iter().any(|(cluster, _)| *cluster == n);
        for (n, (now, should)) in after.bytes.chunks(unit).zip(written.bytes.chunks(unit)).enumerate() {
            let touched = written.touched.contains(&n);
            let sure = !written.unsure.contains(&n) && written.certain;
            if touched && !sure || bad(before, n) && !touched || self.sample.unknown.contains(&n) {
                continue;
            }
            let story = &self.story;
            assert!(!bad(after, n), "{story}: {what}: guest cluster {n} cannot be read: {:?}", after.bad);
            let at = now.iter().zip(should).position(|(now, should)| now != should);
            assert!(at.is_none(), "{story}: {what}: guest cluster {n}, touched {touched}, byte {at:?}");
        }
    }
}

/// The first compressed cluster.
const SMALL_AT: u64 = crate::qcow2_sample::SMALL[0] as u64;

impl Written {
    fn note(&mut self, case: &Case, op: (&str, u64, u64, u8), result: Result<(), Error>) {
        let (kind, at, len, byte) = op;
        let unit = case.sample.cluster as u64;
        if let Err(error) = result {
            names_its_file(&case.path(), &error);
            assert!(
                self.error.is_some() || !matches!(error, Error::File { kind: ErrorKind::Poisoned, .. }),
                "{}",
                case.story
            );
            // the first error tells the place; after it nothing that was written is certain
            self.certain = false;
            self.error.get_or_insert(error);
        }
        if len == 0 {
            return;
        }
        let clusters = (at / unit) as usize..(at + len).div_ceil(unit) as usize;
        if kind == "discard" {
            self.unsure.extend(clusters.clone());
        } else if let Some(bytes) = self.bytes.get_mut(at as usize..(at + len) as usize) {
            bytes.fill(byte);
        }
        self.touched.extend(clusters);
    }
}

/// Everything that can be done to an image, and what must come of it.
pub fn judge(image: &Image) -> Row {
    let mut sample = Sample::new(image.base);
    (image.spoil)(&mut sample);
    let case = Case { folder: tempfile::tempdir().unwrap(), sample, story: image.name.clone() };
    let outcomes = ends(&image.name, move || judge_case(&case));
    Row { name: image.name.clone(), about: image.about.clone(), outcomes }
}

fn judge_case(case: &Case) -> [String; 5] {
    case.reset();
    let looked = case.look();
    let read = match &looked {
        Err(_) => "-".to_string(),
        Ok(disk) => judge_read(case, disk),
    };
    let check = case.check(None);
    let _ = tools::info(case.path(), None, false);
    let _ = tools::probe(case.path());
    told(&case.path(), Format::Qcow2);
    let unchanged = std::fs::read(case.path()).unwrap() == case.sample.bytes;
    assert!(unchanged, "{}: readers changed it", case.story);
    // a chain that leads back is nothing for them
    let theirs = looked.as_ref().ok().and_then(|_| case.their_corruptions());
    let before = looked.clone().unwrap_or_default();
    let write = match case.open(true) {
        Err(error) => words(&error),
        Ok(session) => judge_write(case, session, &before, check.as_ref().ok(), theirs),
    };
    case.reset();
    let repair = case.check(Some(Repair::All));
    if let Ok(fixed) = &repair {
        judge_repair(case, fixed, looked.as_ref().ok());
    }
    let open = looked.as_ref().map_or_else(words, |_| "opens".to_string());
    [open, read, write, report(&check), report(&repair)]
}

/// What can be read is right.
fn judge_read(case: &Case, disk: &Disk) -> String {
    let (model, unit) = (case.sample.model(), case.sample.cluster);
    for (n, (now, should)) in disk.bytes.chunks(unit).zip(model.chunks(unit)).enumerate() {
        let bad = disk.bad.iter().any(|(cluster, _)| *cluster == n);
        if !case.sample.other && !bad && !case.sample.unknown.contains(&n) {
            assert!(now == &should[..now.len()], "{}: guest cluster {n} reads as something else", case.story);
        }
    }
    match &disk.bad[..] {
        [] => "all".to_string(),
        bad => format!("{} clusters not: {}", bad.len(), words(&bad[0].1)),
    }
}

fn judge_write(
    case: &Case,
    session: Session,
    before: &Disk,
    check: Option<&CheckReport>,
    theirs: Option<u64>,
) -> String {
    let written = case.write(session, before);
    let after = case.look().unwrap_or_else(|error| panic!("{}: written: {error}", case.story));
    if !case.sample.uncounted {
        case.compare(before, &written, &after, "written");
    }
    let sound = check.is_some_and(CheckReport::is_sound) && before.bad.is_empty();
    let error = &written.error;
    assert!(!sound || error.is_none(), "{}: sound, and cannot be written: {error:?}", case.story);
    let more = |before: Option<u64>, after: Option<u64>| before.zip(after).is_some_and(|(b, a)| a > b);
    let crossed = case.sample.crossed;
    let now = case.their_corruptions();
    assert!(crossed || !more(theirs, now), "{}: {theirs:?} corruptions, {now:?} after writes", case.story);
    let (was, now) = (check.map(|report| report.corruptions), case.check(None).ok());
    let now = now.map(|report| report.corruptions);
    assert!(crossed || !more(was, now), "{}: {was:?} corruptions, {now:?} after writes, we say", case.story);
    error.as_ref().map_or("all".to_string(), words)
}

/// A repair lasts; what it leaves sound stays so when it is written.
fn judge_repair(case: &Case, fixed: &CheckReport, before: Option<&Disk>) {
    let story = &case.story;
    let again = case.check(None).unwrap_or_else(|error| panic!("{story}: repaired: {error}"));
    let lasts = again.corruptions == fixed.corruptions || case.sample.crossed;
    assert!(lasts, "{story}: {fixed:?}, then {again:?}: a repair does not last");
    let Some(before) = before.filter(|_| fixed.is_sound()) else { return };
    let now = case.look().unwrap_or_else(|error| panic!("{story}: repaired: {error}"));
    let nothing = Written {
        error: None,
        bytes: before.bytes.clone(),
        touched: Vec::new(),
        certain: true,
        unsure: Vec::new(),
    };
    case.compare(before, &nothing, &now, "repaired");
    let session = case.open(true).unwrap_or_else(|error| panic!("{story}: repaired: {error}"));
    let written = case.write(session, &now);
    // a data entry that leads to a table is counted, not changed, by a repair
    let good = written.error.is_none() || case.sample.crossed || !now.bad.is_empty();
    assert!(good, "{story}: repaired, and written: {:?}", written.error);
    case.compare(&now, &written, &case.look().unwrap(), "repaired and written");
    let theirs = case.their_corruptions();
    let good = case.sample.crossed || theirs.is_none_or(|count| count == 0);
    assert!(good, "{story}: repaired and written: {theirs:?}");
    let ours = case.check(None).unwrap();
    assert!(ours.is_sound() || case.sample.crossed, "{story}: repaired and written: {ours:?}");
}

/// Not a test of images: the sound ones are sound, and the judge finds nothing.
#[test]
fn the_images_are_sound_before_they_are_spoiled() {
    for base in [Base::Plain, Base::Version2, Base::Extended, Base::Zstd, Base::Snapshot, Base::Bitmap] {
        let image = Image {
            name: format!("{base:?}"),
            about: String::new(),
            base,
            spoil: Box::new(|_: &mut Sample| {}),
        };
        let row = judge(&image);
        assert_eq!(row.outcomes, ["opens", "all", "all", "sound", "sound"], "{base:?}");
    }
}
