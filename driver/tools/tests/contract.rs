//! What the tools leave on a disk is what the contract between a disk and its guest allows: images that were
//! made and written, copied to another format, grown, left without closing and repaired; and what `map` says.

#[path = "../../tests/differential/random.rs"]
#[allow(dead_code, reason = "shared with the differential tests")]
mod random;

use quod::{AllowAll, Buffer, Format, OpenOptions, Request};
use quod_bench::contract::exact::{Fill, Model, View};
use quod_bench::contract::payload;
use quod_tools::{self as tools, CreateOptions, Mapper, Qcow2Options, Repair, Session};
use random::Random;
use std::path::{Path, PathBuf};

const SIZE: u64 = 1 << 20;
const GROWN: u64 = SIZE + 333 * 512;
/// Bytes of the backing file: less than the disk.
const BACKED: u64 = 300 * 1024;

/// An image on the host, and what it must hold.
struct Disk {
    path: PathBuf,
    format: Format,
    model: Model,
    random: Random,
    /// Payload of the next write.
    next: u64,
}

fn options(format: Format, size: u64) -> CreateOptions {
    let cluster_size = (format != Format::Raw).then_some(4096);
    let table_size = (format == Format::Qed).then_some(1);
    CreateOptions { cluster_size, table_size, ..CreateOptions::new(format, size) }
}

/// The kinds of image: name, format, over a backing file, qcow2's own options.
fn kinds() -> Vec<(&'static str, Format, bool, Qcow2Options)> {
    let plain = Qcow2Options::default;
    vec![
        ("raw", Format::Raw, false, plain()),
        ("qed", Format::Qed, false, plain()),
        ("qed over raw", Format::Qed, true, plain()),
        ("qcow2", Format::Qcow2, false, plain()),
        ("qcow2 over raw", Format::Qcow2, true, plain()),
        ("old qcow2", Format::Qcow2, true, Qcow2Options { version: 2, ..plain() }),
        ("lazy qcow2", Format::Qcow2, false, Qcow2Options { lazy_refcounts: true, ..plain() }),
        ("qcow2 with subclusters", Format::Qcow2, true, Qcow2Options { extended_l2: true, ..plain() }),
    ]
}

/// A fresh image of each kind.
fn disks(folder: &Path, seed: u64) -> Vec<Disk> {
    let base = payload::bytes(1, 0, BACKED);
    std::fs::write(folder.join("base"), &base).unwrap();
    let made = |(name, format, backed, qcow2): (&str, Format, bool, Qcow2Options)| {
        let path = folder.join(name);
        let backing = backed.then(|| ("base".to_string(), Some(Format::Raw)));
        let cluster_size = if qcow2.extended_l2 { Some(16384) } else { options(format, SIZE).cluster_size };
        tools::create(&path, &CreateOptions { backing, qcow2, cluster_size, ..options(format, SIZE) })
            .unwrap();
        let mut content = vec![0; SIZE as usize];
        if backed {
            content[..base.len()].copy_from_slice(&base);
        }
        Disk { path, format, model: Model::new(content), random: Random(seed), next: 2 }
    };
    kinds().into_iter().map(made).collect()
}

impl Disk {
    fn open(&self, write: bool) -> Session {
        let options = OpenOptions::new().write(write).format(Some(self.format)).open_gate(AllowAll);
        Session::open(&self.path, options).unwrap()
    }

    /// Changes at random places, reads between them.
    fn scribble(&mut self, session: &mut Session, steps: usize) {
        for _ in 0..steps {
            let size = self.model.len();
            let start = self.random.below(size - 1);
            let len = 1 + self.random.below((size - start).min(20_000));
            let (end, fua) = (start + len, self.random.below(4) == 0);
            let kind = self.random.below(8);
            let (fill, optional) = match kind {
                0 | 1 => (Fill::Zero, false),
                2 => (Fill::Zero, true),
                3 => {
                    let since = self.model.tick();
                    session.flush().unwrap();
                    self.model.flushed(since);
                    continue;
                }
                4 => {
                    self.read(session, start, end);
                    continue;
                }
                _ => {
                    self.next += 1;
                    (Fill::Data(self.next), false)
                }
            };
            let index = self.model.submit(start, end, fill, optional);
            let bytes = payload::bytes(self.next, start, end);
            let done = match fill {
                Fill::Zero if optional => session.discard(start, len),
                Fill::Zero if fua => session.run(Request::write_zeroes(start, len, 0).fua()).map(drop),
                Fill::Zero => session.write_zeroes(start, len, kind == 0),
                Fill::Data(_) if fua => {
                    session.run(Request::write(start, Buffer::from(&bytes[..]), 0).fua()).map(drop)
                }
                Fill::Data(_) => session.write(start, &bytes),
            };
            done.unwrap();
            self.model.end(index, true, fua && !optional);
        }
    }

    fn read(&mut self, session: &mut Session, start: u64, end: u64) {
        let since = self.model.tick();
        let mut bytes = vec![0xaa; (end - start) as usize];
        session.read(start, &mut bytes).unwrap();
        self.allows(&bytes, start, View::Live(since));
    }

    fn allows(&self, bytes: &[u8], start: u64, view: View) {
        if let Err(failure) = self.model.check_bytes(start, bytes, view) {
            panic!("{}: {failure}", self.path.display());
        }
    }

    /// All that the image holds, opened anew.
    fn content(&self) -> Vec<u8> {
        let mut session = self.open(false);
        let mut bytes = vec![0xaa; session.info().unwrap().virtual_size() as usize];
        session.read(0, &mut bytes).unwrap();
        session.close().unwrap();
        bytes
    }

    /// The check finds nothing; a raw image has none.
    fn is_sound(&self) {
        if self.format != Format::Raw {
            let report = tools::check(&self.path, Some(self.format), None).unwrap();
            assert!(report.is_sound() && report.leaks == 0, "{}: {report:?}", self.path.display());
        }
    }

    /// Written, and closed.
    fn lives(&mut self, steps: usize) {
        let mut session = self.open(true);
        self.scribble(&mut session, steps);
        session.close().unwrap();
    }
}

#[test]
fn what_was_written_is_there_when_the_image_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    for mut disk in disks(folder.path(), 7) {
        for _ in 0..3 {
            disk.lives(120);
            let since = disk.model.tick();
            disk.allows(&disk.content(), 0, View::Live(since));
            disk.is_sound();
        }
    }
}

#[test]
fn a_copy_in_another_format_holds_what_the_original_held() {
    let folder = tempfile::tempdir().unwrap();
    for mut disk in disks(folder.path(), 11) {
        disk.lives(150);
        let content = disk.content();
        let since = disk.model.tick();
        for to in [Format::Raw, Format::Qed, Format::Qcow2] {
            let path = folder.path().join("copy");
            tools::create(&path, &options(to, SIZE)).unwrap();
            let copy = Disk { path, format: to, model: disk.model.clone(), random: Random(1), next: 0 };
            let mut session = copy.open(true);
            for (at, bytes) in (0..).step_by(8192).zip(content.chunks(8192)) {
                if bytes.iter().any(|&byte| byte != 0) {
                    session.write(at, bytes).unwrap();
                }
            }
            session.close().unwrap();
            copy.allows(&copy.content(), 0, View::Live(since));
            copy.is_sound();
        }
    }
}

#[test]
fn an_image_that_nobody_closed_holds_what_was_flushed_and_its_repair_changes_none_of_it() {
    let folder = tempfile::tempdir().unwrap();
    for mut disk in disks(folder.path(), 13) {
        for _ in 0..3 {
            let mut session = disk.open(true);
            disk.scribble(&mut session, 100);
            drop(session);
            let before = disk.content();
            disk.allows(&before, 0, View::Crash);
            if disk.format != Format::Raw {
                tools::check(&disk.path, Some(disk.format), Some(Repair::All)).unwrap();
            }
            disk.is_sound();
            let after = disk.content();
            assert!(before == after, "{}: the repair changed the disk", disk.path.display());
            disk.model.settle(&after);
        }
    }
}

#[test]
fn a_disk_that_has_grown_has_zeros_there() {
    let folder = tempfile::tempdir().unwrap();
    for mut disk in disks(folder.path(), 17) {
        disk.lives(60);
        let mut session = disk.open(true);
        session.resize(GROWN).unwrap();
        disk.model.resize(GROWN);
        disk.scribble(&mut session, 60);
        session.close().unwrap();
        let since = disk.model.tick();
        let content = disk.content();
        assert_eq!(content.len() as u64, GROWN);
        disk.allows(&content, 0, View::Live(since));
        disk.is_sound();
    }
}

#[test]
fn what_is_mapped_as_zeros_may_be_zeros() {
    let folder = tempfile::tempdir().unwrap();
    for mut disk in disks(folder.path(), 19) {
        disk.lives(100);
        let since = disk.model.tick();
        let options = OpenOptions::new().format(Some(disk.format)).open_gate(AllowAll);
        let mut mapper = Mapper::open(&disk.path, options).unwrap();
        let mut end = 0;
        let mut runs = Vec::new();
        mapper
            .runs(0, SIZE, &mut |_, run| {
                runs.push(run.clone());
                true
            })
            .unwrap();
        for run in runs {
            assert_eq!(run.start, end, "{}: runs without gaps", disk.path.display());
            end += run.length;
            if run.zero {
                disk.allows(&vec![0; run.length as usize], run.start, View::Live(since));
            }
        }
        assert_eq!(end, SIZE);
    }
}
