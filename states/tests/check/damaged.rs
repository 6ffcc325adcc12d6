//! Images that were damaged, and repaired: the check and the machine agree on what is corrupt.
//!
//! Checks, of small images of many shapes that get random damage (entries, counts, headers that point at each
//! other, ends that are cut off), and mostly a repair: where the check calls an image sound, any series of
//! reads, writes, zeroes, discards, flushes, closings and openings ends well; nothing is marked corrupt; no
//! guest byte changes that was not written, no byte of a snapshot, no byte of metadata behind the guest's
//! back; the check goes on to call it sound. So what the machine refuses, the check reports.
//!
//! QUOD_RANDOM_FIRST and QUOD_RANDOM_SEEDS choose the seeds.

use quod_states::fault::{L1Fault, WalkFault};
use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Fault, Flags, Image, Options, Repair, Report, Request, RequestKind};
use quod_states_tests::qcow2::{compress, header, of_snapshot, qcow2_file, snapshot, try_check};
use quod_states_tests::{Disk, Rng, request};

/// A valid image and what its guest sees.
struct Shape {
    create: CreateOptions<'static>,
    backing: Option<Vec<u8>>,
    compressed: bool,
    snapshot: bool,
}

fn shape(rng: &mut Rng) -> Shape {
    let kind = rng.below(10);
    let (extended_l2, data_file) = (kind == 0, kind == 1);
    let version = if kind == 2 || kind == 3 { 2 } else { 3 };
    let bits = if extended_l2 { 14 } else { 9 + 3 * rng.below(2) };
    let clusters = if bits == 9 { 150 + rng.below(200) } else { 20 + rng.below(20) };
    let size = clusters << bits;
    let backing = (kind == 4 || kind == 2).then(|| vec![0xb5; (size / 2) as usize]);
    let wide = rng.below(3) > 0;
    let create = CreateOptions {
        size,
        version,
        cluster_size: 1 << bits,
        refcount_bits: if version == 2 || wide { 16 } else { 1 << rng.below(7) },
        lazy_refcounts: version == 3 && rng.below(6) == 0,
        extended_l2,
        backing: backing.as_ref().map(|_| &b"base"[..]),
        backing_format: backing.as_ref().map(|_| &b"raw"[..]),
        data_file: data_file.then_some(b"data"),
        ..CreateOptions::default()
    };
    let narrow = create.refcount_bits == 1;
    let compressed = !data_file && !narrow && rng.below(2) == 0;
    Shape { create, backing, compressed, snapshot: !data_file && !narrow && rng.below(3) == 0 }
}

fn options(rng: &mut Rng) -> Options {
    Options::default()
        .cache_bytes(8192 << rng.below(6))
        .align([1, 512][rng.below(2) as usize])
        .grow_step([0, 4096, 1 << 20][rng.below(3) as usize])
}

/// What a guest sees, or why not.
fn contents(disk: &mut Disk) -> Result<Vec<u8>, Error> {
    let mut image = disk.open(Options::default().read_only(true))?.image;
    let size = image.virtual_size();
    disk.try_run(&mut image, request(RequestKind::Read, 0, size, 0), vec![0xcc; size as usize])
}

/// Requests against plain bytes.
struct Guest {
    rng: Rng,
    disk: Disk,
    model: Vec<u8>,
    cluster: u64,
    /// Version 2 over a backing file cannot discard, nor can what must stay a raw image.
    keeps_discarded: bool,
    user: u8,
}

impl Guest {
    fn pick(&mut self) -> Request {
        let (rng, size, cluster) = (&mut self.rng, self.model.len() as u64, self.cluster);
        let start = rng.below(size);
        let (start, len) = match rng.below(3) {
            0 => (start, 1 + rng.below(900)),
            1 => (start - start % cluster, cluster * (1 + rng.below(5))),
            _ => (start & !511, 512 * (1 + rng.below(9))),
        };
        let kind = match rng.below(12) {
            0 | 1 => RequestKind::WriteZeroes,
            2 | 3 => RequestKind::Discard,
            4 | 5 => RequestKind::Read,
            6 => RequestKind::Flush,
            _ => RequestKind::Write,
        };
        let mut flags = Flags::empty();
        flags.set(Flags::MAY_UNMAP, kind == RequestKind::WriteZeroes && rng.below(2) == 0);
        match kind {
            RequestKind::Flush => request(kind, 0, 0, 0),
            _ => Request { kind, offset: start, len: len.min(size - start), flags, user: 0 },
        }
    }

    /// One request from start to end, and what it has to give.
    fn one(&mut self, image: &mut Image) -> Result<(), String> {
        let wanted = self.pick();
        let range = wanted.offset as usize..(wanted.offset + wanted.len) as usize;
        let size = self.model.len() as u64;
        self.user = self.user.wrapping_add(1).max(1);
        let buffer = vec![self.user; if wanted.kind == RequestKind::Write { range.len() } else { 0 }];
        let buffer = if wanted.kind == RequestKind::Read { vec![0xcc; range.len()] } else { buffer };
        let story = |what: String| format!("{:?} {range:?}: {what}", wanted.kind);
        let read = self.disk.try_run(image, wanted, buffer).map_err(|error| story(error.to_string()))?;
        match wanted.kind {
            RequestKind::Read if read != self.model[range.clone()] => {
                return Err(story("wrong bytes".into()));
            }
            RequestKind::Write => self.model[range].fill(self.user),
            RequestKind::WriteZeroes => self.model[range].fill(0),
            RequestKind::Discard if !self.keeps_discarded => {
                let first = wanted.offset.next_multiple_of(self.cluster);
                let end = range.end as u64;
                let last = if end == size { size } else { end - end % self.cluster };
                if first < last {
                    self.model[first as usize..last as usize].fill(0);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An opening, some requests, and mostly a closing.
    fn session(&mut self, options: Options, count: u64) -> Result<(), String> {
        let mut image = self.disk.open(options).map_err(|error| format!("open: {error}"))?.image;
        for _ in 0..count {
            self.one(&mut image)?;
        }
        let last = if self.rng.below(8) == 0 { RequestKind::Quiesce } else { RequestKind::Close };
        let closed = self.disk.try_run(&mut image, request(last, 0, 0, 0), vec![]);
        closed.map(drop).map_err(|error| format!("close: {error}"))
    }
}

/// Only flags that are missing: a cluster is its entry's alone, and the entry does not say so. It was shared
/// when the image was opened, and with a snapshot or compressed data nobody knows with whom.
fn only_missing_flags(report: &Report) -> bool {
    let missing = |error: &Error| {
        let (entry, flag) = match error {
            Error::Corrupt(Fault::L1Entry { entry, why, .. }) => (*entry, *why == L1Fault::Copied),
            Error::Corrupt(Fault::L2Walk { entry, why, .. }) => (*entry, *why == WalkFault::Copied),
            _ => return false,
        };
        flag && entry >> 63 == 0
    };
    report.check_errors == 0
        && report.corruptions <= report.problems.len() as u64
        && report.problems.iter().all(missing)
}

/// What a seed found wrong.
fn run(seed: u64) -> Result<bool, String> {
    let mut rng = Rng(seed ^ 0xdaa6);
    let shape = shape(&mut rng);
    let mut disk = base(&mut rng, &shape);
    let mut story = format!("{:?} compressed {} snapshot {}", shape.create, shape.compressed, shape.snapshot);
    for _ in 0..1 + rng.below(3) {
        story += &format!("; {}", super::damage::damage(&mut disk.file, &mut rng));
    }
    judge(disk, rng).map_err(|what| format!("seed {seed}: {what}\n{story}"))
}

/// The image that is damaged.
fn base(rng: &mut Rng, shape: &Shape) -> Disk {
    let create = &shape.create;
    let mut disk = Disk::new(qcow2_file(create), shape.backing.clone(), 1);
    disk.data = create.data_file.map(|_| Vec::new());
    let model = contents(&mut disk).unwrap();
    let keeps_discarded = create.version == 2 && shape.backing.is_some();
    let cluster = create.cluster_size.into();
    let mut guest = Guest { rng: Rng(rng.word()), disk, model, cluster, keeps_discarded, user: 0 };
    guest.session(Options::default(), 25).unwrap();
    let Guest { mut disk, mut model, .. } = guest;
    if shape.compressed {
        let clusters: Vec<u64> = (0..create.size / cluster).filter(|_| rng.below(4) == 0).collect();
        compress(&mut disk.file, &clusters, &mut model);
    }
    if shape.snapshot {
        snapshot(&mut disk.file);
        assert_eq!(contents(&mut disk).unwrap(), model);
    }
    disk
}

/// Mostly repairs; if the image is sound then, it is used. Was it?
fn judge(mut disk: Disk, mut rng: Rng) -> Result<bool, String> {
    if rng.below(4) > 0 && try_check(&mut disk.file, Some(Repair::All)).is_err() {
        return Ok(false);
    }
    let before = match try_check(&mut disk.file, None) {
        Ok(report) if report.is_sound() => report,
        _ => return Ok(false),
    };
    let now = header(&disk.file);
    if now.guest_size() == 0 || now.guest_size() > 8 << 20 || now.is_corrupt() {
        return Ok(false);
    }
    // a header of version 2 has no data file
    disk.data = now.has_data_file().then(|| disk.data.take().unwrap_or_default());
    let (cluster, sound) = (now.cluster_size(), "the check calls it sound, but");
    let options = options(&mut rng);
    disk.align = options.align.into();
    // headers are judged when they are read, by the check too; the rest of what is refused then is not
    if let Err(error) = disk.open(options)
        && matches!(error, Error::Unsupported(_) | Error::Misuse(_))
    {
        return Ok(false);
    }
    let model = contents(&mut disk).map_err(|error| format!("{sound} it is not read: {error}"))?;
    let kept = snapshot_of(&disk)?;
    let keeps_discarded = now.version == 2 && disk.backing.is_some() || now.data_file_raw();
    let mut guest = Guest { rng, disk, model, cluster, keeps_discarded, user: 100 };
    for n in 0..3 {
        guest.session(options, 30).map_err(|what| format!("{sound} session {n}: {what}"))?;
        let after = try_check(&mut guest.disk.file, None).map_err(|error| format!("check {n}: {error}"))?;
        let others = now.snapshots > 0 || before.compressed_clusters > 0;
        let shared = others && only_missing_flags(&after);
        if !after.is_sound() && !shared {
            return Err(format!("{sound} after session {n}: {after:?}"));
        }
        if contents(&mut guest.disk) != Ok(guest.model.clone()) {
            return Err(format!("{sound} after session {n} other bytes are read"));
        }
        if kept != snapshot_of(&guest.disk)? {
            return Err(format!("{sound} after session {n} the snapshot is another"));
        }
    }
    Ok(true)
}

/// What the first snapshot holds, if that can be read.
fn snapshot_of(disk: &Disk) -> Result<Option<Vec<u8>>, String> {
    if header(&disk.file).snapshots != 1 {
        return Ok(None);
    }
    let mut copy = Disk::new(of_snapshot(&disk.file), disk.backing.clone(), 1);
    if header(&copy.file).guest_size() > 8 << 20 {
        return Ok(None);
    }
    Ok(contents(&mut copy).ok())
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("QUOD_RANDOM_FIRST").unwrap_or(0);
    first..first + number("QUOD_RANDOM_SEEDS").unwrap_or(120)
}

#[test]
fn what_the_check_calls_sound_can_be_used() {
    let (mut used, mut wrong) = (0, Vec::new());
    let count = seeds().end - seeds().start;
    for seed in seeds() {
        let ended =
            std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| Err(format!("seed {seed} panics")));
        match ended {
            Ok(sound) => used += u64::from(sound),
            Err(what) => wrong.push(what),
        }
    }
    wrong.iter().take(10).for_each(|what| eprintln!("{what}\n"));
    assert!(wrong.is_empty(), "{} of {count} seeds, {used} used", wrong.len());
    assert!(used * 4 > count, "{used} of {count} images were sound");
}
