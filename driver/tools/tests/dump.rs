//! Metadata as text, and back.
//!
//! Checks:
//! * an image whose metadata was spoiled is the image that it was, byte for byte, when its text is put back;
//! * any image is told, and its own text changes nothing in it;
//! * any text is read or refused, and one that is refused changes nothing;
//! * a text of another image is refused, unless it is forced;
//! * a text that was cut down changes what it says, and nothing else.
//!
//! More seeds: `QUOD_DUMP_SEEDS=10000 cargo test -p quod-tools --test dump`.

use quod::{Format, OpenOptions};
use quod_tools::{CreateOptions, RestoreError, RestoreOptions, Session, TextFault, Unfit};
use quod_tools::{create, dump, restore, snapshot, snapshot_now};
use std::path::{Path, PathBuf};

/// A generator of numbers that a seed makes again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (self.0 >> 33) as usize % n
    }
}

fn seeds() -> u64 {
    std::env::var("QUOD_DUMP_SEEDS").map_or(60, |seeds| seeds.parse().unwrap())
}

fn text_of(path: &Path, format: Format) -> (String, u64) {
    let mut text = Vec::new();
    let faults = dump(path, Some(format), false, || false, &mut text).unwrap();
    (String::from_utf8(text).unwrap(), faults)
}

/// Images of many shapes, with data in them.
fn images(folder: &Path) -> Vec<(PathBuf, Format)> {
    let mut images = Vec::new();
    for name in
        ["usual.qcow2", "small.qcow2", "old.qcow2", "bits.qcow2", "wide.qcow2", "split.qcow2", "disk.qed"]
    {
        let format = if name == "disk.qed" { Format::Qed } else { Format::Qcow2 };
        let path = folder.join(name);
        let mut options = CreateOptions::new(format, 8 << 20);
        match name {
            "small.qcow2" => options.cluster_size = Some(512),
            "old.qcow2" => options.qcow2.version = 2,
            "bits.qcow2" => options.qcow2.refcount_bits = 1,
            "wide.qcow2" => options.qcow2.refcount_bits = 64,
            "split.qcow2" => options.qcow2.extended_l2 = true,
            _ => {}
        }
        create(&path, &options).unwrap();
        let open = || OpenOptions::new().write(true).format(Some(format));
        let mut session = Session::open(&path, open()).unwrap();
        for at in [0, 70_000, 3 << 20] {
            session.write(at, &[at as u8 | 1; 30_000]).unwrap();
        }
        session.close().unwrap();
        if name == "usual.qcow2" || name == "small.qcow2" {
            snapshot(&path, open(), snapshot_now("kept \"as it is\" # \u{e9}")).unwrap();
            let mut session = Session::open(&path, open()).unwrap();
            session.write(100_000, &[9; 5000]).unwrap();
            session.close().unwrap();
        }
        images.push((path, format));
    }
    images
}

/// The sections of a text: where they begin, and their bytes.
fn sections(text: &str) -> Vec<(usize, usize)> {
    let number = |words: &[&str], name: &str| {
        let place = words.iter().position(|word| *word == name)?;
        let word = words[place + 1];
        let (digits, radix) = word.strip_prefix("0x").map_or((word, 10), |digits| (digits, 16));
        Some(usize::from_str_radix(digits, radix).unwrap())
    };
    let lines = text.lines().filter(|line| !line.starts_with([' ', '#']) && line.contains(" at 0x"));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let entries = number(&words, "entries").unwrap_or(0);
            let bytes = match (number(&words, "length"), number(&words, "bits")) {
                (Some(bytes), _) => bytes,
                (None, Some(bits)) => entries * bits / 8,
                (None, None) => entries * 8 * number(&words, "words").unwrap_or(1),
            };
            (number(&words, "at").unwrap(), bytes)
        })
        .collect()
}

#[test]
fn spoiled_metadata_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    for (path, format) in images(folder.path()) {
        let sound = std::fs::read(&path).unwrap();
        let (text, faults) = text_of(&path, format);
        assert_eq!(faults, 0, "{text}");
        let sections = sections(&text);
        assert!(sections.len() >= 3, "{text}");
        for seed in 0..seeds() / 4 {
            let mut random = Random(seed);
            let mut bytes = sound.clone();
            for _ in 0..=random.below(4) {
                let (at, len) = sections[random.below(sections.len())];
                let from = at + random.below(len);
                let to = (from + 1 + random.below(300)).min(at + len);
                let fill = random.below(256) as u8;
                bytes[from..to].fill(fill);
            }
            std::fs::write(&path, &bytes).unwrap();
            let spoiled = bytes.iter().zip(&sound).filter(|(a, b)| a != b).count() as u64;
            // a header that says something else that makes sense is one of another disk
            let options = RestoreOptions { force: true, ..RestoreOptions::default() };
            let dry = RestoreOptions { dry_run: true, ..options };
            let found = restore(&path, &mut text.as_bytes(), dry).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "a dry run writes nothing");
            let done = restore(&path, &mut text.as_bytes(), options).unwrap();
            assert_eq!((done.bytes, done), (spoiled, found), "{} seed {seed}", path.display());
            assert!(std::fs::read(&path).unwrap() == sound, "{} seed {seed}", path.display());
            let again = restore(&path, &mut text.as_bytes(), options).unwrap();
            assert_eq!((again.bytes, again.places), (0, 0));
        }
        assert_eq!(text_of(&path, format), (text, 0));
    }
}

#[test]
fn any_image_is_told_and_its_own_text_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = 0;
    for (path, format) in images(folder.path()) {
        let sound = std::fs::read(&path).unwrap();
        let sections = sections(&text_of(&path, format).0);
        for seed in 0..seeds() {
            let mut random = Random(seed + 1000);
            let mut bytes = sound.clone();
            for _ in 0..=random.below(6) {
                let (at, len) = sections[random.below(sections.len())];
                let reach = len.min(1 + (1 << random.below(18)));
                let from = at + random.below(reach);
                bytes[from] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => bytes[from] ^ 1 << random.below(8),
                    _ => random.below(256) as u8,
                };
            }
            if random.below(4) == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            std::fs::write(&path, &bytes).unwrap();
            let (text, faults) = text_of(&path, format);
            let options = RestoreOptions { force: true, ..RestoreOptions::default() };
            let done = restore(&path, &mut text.as_bytes(), options);
            let done = done.unwrap_or_else(|error| panic!("{} seed {seed}: {error}\n{text}", path.display()));
            assert_eq!((done.bytes, done.places), (0, 0), "{} seed {seed}", path.display());
            told += u64::from(faults > 0);
        }
    }
    assert!(told > seeds(), "{told}: most damage is seen");
}

#[test]
fn any_text_is_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, 0);
    for (path, format) in images(folder.path()) {
        let sound = std::fs::read(&path).unwrap();
        let (text, _) = text_of(&path, format);
        for seed in 0..seeds() {
            let mut random = Random(seed + 2000);
            let mut bytes = text.clone().into_bytes();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                match random.below(4) {
                    0 => drop(bytes.drain(at..(at + random.below(40)).min(bytes.len()))),
                    1 => bytes[at] = random.below(256) as u8,
                    2 => bytes[at] = b"0123456789abcdefx \n\"#.+"[random.below(23)],
                    _ => {
                        let from = random.below(bytes.len());
                        let piece = bytes[from..(from + random.below(100)).min(bytes.len())].to_vec();
                        drop(bytes.splice(at..at, piece));
                    }
                }
            }
            match restore(&path, &mut bytes.as_slice(), RestoreOptions::default()) {
                Ok(_) => {
                    read += 1;
                    let now = std::fs::read(&path).unwrap();
                    assert_eq!(now.len(), sound.len(), "nothing lies behind the end");
                    std::fs::write(&path, &sound).unwrap();
                }
                Err(error) => {
                    refused += 1;
                    assert!(!matches!(error, RestoreError::Image(_)), "{error}");
                    assert!(std::fs::read(&path).unwrap() == sound, "seed {seed}: {error}");
                }
            }
        }
    }
    assert!(read > seeds() / 2 && refused > seeds() / 2, "{read} {refused}");
}

fn refusal(path: &Path, text: &str) -> RestoreError {
    let before = std::fs::read(path).unwrap();
    let error = restore(path, &mut text.as_bytes(), RestoreOptions::default()).unwrap_err();
    assert!(std::fs::read(path).unwrap() == before, "{error}");
    error
}

#[test]
fn a_text_that_makes_no_sense_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    let len = std::fs::metadata(&path).unwrap().len();
    let head = format!("quod dump 1\nformat qcow2\nlength {len}\n");
    let l1 = format!("{head}l1 active at 0x20000 entries 4\n");
    let block = format!("{head}refcount_block 0 at 0x20000 entries 8 bits 4 first 8\n");
    let fields = format!("{head}header at 0x0 length 72\n");
    for (text, line, why) in [
        (String::new(), 0, TextFault::NoDump),
        ("quod dump 2\n".into(), 1, TextFault::NoDump),
        ("quod dump 1\nformat raw\n".into(), 2, TextFault::Format),
        ("quod dump 1\nformat qed\nend\n".into(), 3, TextFault::Length),
        (head.clone(), 3, TextFault::CutOff),
        (format!("{head}  0 0x1\nend\n"), 4, TextFault::Outside),
        (format!("{head}l3 at 0x0 entries 1\nend\n"), 4, TextFault::Section),
        (format!("{head}l1 at 0x0\nend\n"), 4, TextFault::Section),
        (format!("{head}l1 at 0x0 entries 1 words 3\nend\n"), 4, TextFault::Section),
        (format!("{head}l1 at 0x30000 entries 99999\nend\n"), 4, TextFault::BeyondFile),
        (format!("{head}l1 at 0xffffffffffffffff entries 1\nend\n"), 4, TextFault::BeyondFile),
        (format!("{head}l1 at 0x0 entries 18446744073709551615\nend\n"), 4, TextFault::BeyondFile),
        (format!("{l1}  4 0x1\nend\n"), 5, TextFault::Beyond),
        (format!("{l1}  3..4 0x1\nend\n"), 5, TextFault::Beyond),
        (format!("{l1}  1 0x1\n  1 0x1\nend\n"), 6, TextFault::Order),
        (format!("{l1}  2..1 0x1\nend\n"), 5, TextFault::Entry),
        (format!("{l1}  1 1\nend\n"), 5, TextFault::Entry),
        (format!("{l1}  1 0x1 0x1\nend\n"), 5, TextFault::Entry),
        (format!("{l1}  1 0x10000000000000000\nend\n"), 5, TextFault::TooLarge),
        (format!("{l1}  1..2 0xffffffffffffffff +0x1\nend\n"), 5, TextFault::TooLarge),
        (format!("{l1}  1 \"\nend\n"), 5, TextFault::Words),
        (format!("{block}  7 1\nend\n"), 5, TextFault::Beyond),
        (format!("{block}  16 1\nend\n"), 5, TextFault::Beyond),
        (format!("{block}  8 16\nend\n"), 5, TextFault::TooLarge),
        (format!("{block}  8 0x1\nend\n"), 5, TextFault::Entry),
        (format!("{fields}  0x0 magic\nend\n"), 5, TextFault::Field),
        (format!("{fields}  0x44 size 0x0000000000000000\nend\n"), 5, TextFault::Beyond),
        (format!("{fields}  0x40 zeros 9\nend\n"), 5, TextFault::Beyond),
        (format!("{fields}  0x40 size 9\nend\n"), 5, TextFault::Field),
    ] {
        let found = refusal(&path, &text);
        assert!(
            matches!(found, RestoreError::Line(at, fault) if (at, fault) == (line, why)),
            "{text}: {found:?}"
        );
    }
    let long = format!("{head}# {}\nend\n", "x".repeat(600 << 10));
    assert!(matches!(refusal(&path, &long), RestoreError::Line(4, TextFault::TooLong)));
}

#[test]
fn a_text_of_another_image_is_refused_unless_it_is_forced() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, format, size| {
        let path = folder.path().join(name);
        create(&path, &CreateOptions::new(format, size)).unwrap();
        path
    };
    let (one, other) = (make("one", Format::Qcow2, 1 << 20), make("other", Format::Qcow2, 2 << 20));
    let qed = make("qed", Format::Qed, 1 << 20);
    let text = text_of(&one, Format::Qcow2).0;
    let found = refusal(&other, &text);
    assert!(matches!(found, RestoreError::Unfit(Unfit::Disk)), "{found:?}");
    let found = refusal(&qed, &text);
    assert!(matches!(found, RestoreError::Unfit(Unfit::Length { .. })), "{found:?}");
    let len = std::fs::metadata(&one).unwrap().len();
    std::fs::File::options().write(true).open(&qed).unwrap().set_len(len).unwrap();
    let found = refusal(&qed, &text);
    assert!(matches!(found, RestoreError::Unfit(Unfit::Format { .. })), "{found:?}");
    let force = RestoreOptions { force: true, ..RestoreOptions::default() };
    restore(&other, &mut text.as_bytes(), force).unwrap();
    assert!(std::fs::read(&other).unwrap() == std::fs::read(&one).unwrap());
}

#[test]
fn a_text_that_was_cut_down_changes_what_it_says_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    let mut want = std::fs::read(&path).unwrap();
    let text = format!(
        "quod dump 1\nformat qcow2\nlength {}\n# a person wrote this\n\
         l2 5 at 0x20010 entries 3\n  1 0x12 # two\n\
         refcount_block 0 at 0x20000 entries 16 bits 2 first 100\n  101..106 2\nend\n",
        want.len()
    );
    let done = restore(&path, &mut text.as_bytes(), RestoreOptions::default()).unwrap();
    assert_eq!(done.places, 1, "they lie close together");
    want[0x2001f] = 0x12;
    // of the first byte the lowest two bits stay, of the second the highest two
    want[0x20000] = want[0x20000] & 3 | 0b1010_1000;
    want[0x20001] = want[0x20001] & 0xc0 | 0b0010_1010;
    assert!(std::fs::read(&path).unwrap() == want);
}
