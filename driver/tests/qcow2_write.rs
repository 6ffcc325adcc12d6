//! qcow2 images written by QEMU and by us in turns; after each turn `qemu-img check` finds nothing,
//! `convert` gives the model's bytes, `map` is what we say, and snapshots hold what they held.
//!
//! Checks:
//! * the matrix of create options, alone and over backing files of each format;
//! * unaligned writes, write-zeroes with and without unmap, discards, FUA, in waves of many at once;
//! * compressed clusters and clusters shared with snapshots are rewritten, their neighbours kept;
//! * persistent bitmaps never look valid after a writable opening.
//!
//! Every case follows from its seed; `QUOD_DIFFERENTIAL_SEEDS` and `QUOD_DIFFERENTIAL_FIRST` as in
//! `differential.rs`.

#[path = "differential/ours.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod ours;
#[path = "differential/qcow2.rs"]
mod qcow2;
#[path = "differential/qemu.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod qemu;
#[path = "differential/random.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod random;

use ours::{Apart, Op, Ours};
use qcow2::{OPTIONS, cluster_of, create, expected, plain, prose, scribble};
use qemu::{arg, good};
use quod::{AllowAll, BackendKind, Config, OpenOptions, Policy, Request};
use quod_tools::Session;
use random::Random;
use std::ops::Range;
use std::path::{Path, PathBuf};

fn seeds(count: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let first = number("QUOD_DIFFERENTIAL_FIRST").unwrap_or(0);
    first..first + number("QUOD_DIFFERENTIAL_SEEDS").unwrap_or(count)
}

/// An image in turns.
struct Case {
    image: PathBuf,
    options: String,
    random: Random,
    model: Vec<u8>,
    /// What the snapshot holds, if there is one.
    snapshot: Option<Vec<u8>>,
    backed: bool,
    story: String,
}

impl Case {
    fn cluster(&self) -> usize {
        cluster_of(&self.options) as usize
    }

    fn subcluster(&self) -> usize {
        if self.options.contains("extended_l2") { self.cluster() / 32 } else { self.cluster() }
    }

    fn some_range(&mut self) -> Range<usize> {
        let (size, cluster) = (self.model.len(), self.cluster());
        let unit = self.random.pick(&[1, 512, 512, 4096, self.subcluster(), cluster, cluster]);
        let start = self.random.below(size as u64) as usize / unit * unit;
        let len = match self.random.below(5) {
            0 => 1 + self.random.below(600) as usize,
            1 => 512 * (1 + self.random.below(16) as usize),
            2 => cluster - start % cluster,
            3 => unit * (1 + self.random.below(4) as usize),
            _ => 1 + self.random.below((3 * cluster).min(200_000) as u64) as usize,
        };
        start..size.min(start + len)
    }

    fn wave(&mut self, count: usize) -> Vec<Op> {
        let mut apart = Apart::default();
        let mut ops = Vec::new();
        for _ in 0..count {
            let range = self.some_range();
            let op = match self.random.below(12) {
                0 | 1 => Op::Zero(range, self.random.one_in(2)),
                2 => Op::Flush,
                3..=5 => Op::Read(range),
                _ => Op::Write(range.start, self.random.bytes(range.len()), self.random.one_in(16)),
            };
            if apart.add(&op.changes()) {
                ops.push(op);
            }
        }
        ops
    }

    /// A discard gives whole clusters up, and they read as zeros; version 2 over a backing file cannot.
    fn discard(&mut self, ours: &mut Ours) {
        let (range, cluster, size) = (self.some_range(), self.cluster(), self.model.len());
        ours.one(Request::discard(range.start as u64, range.len() as u64, 0)).unwrap();
        let start = range.start.next_multiple_of(cluster);
        let end = if range.end == size { size } else { range.end / cluster * cluster };
        let raw = self.options.contains("data_file_raw=on");
        if start < end && !raw && !(self.backed && self.options.contains("0.10")) {
            self.model[start..end].fill(0);
        }
    }

    fn open(&mut self) -> Ours {
        let random = &mut self.random;
        let options = OpenOptions::new()
            .write(true)
            .open_gate(AllowAll)
            .direct(random.one_in(2))
            .policy(random.pick(&[Policy::Writeback, Policy::Writethrough]))
            .cache_bytes(random.pick(&[64 << 10, 32 << 20]))
            .grow_step(random.pick(&[4096, 1 << 20, 64 << 20]))
            .allocate_ahead(random.one_in(2))
            .commit_ms(random.pick(&[1, 20, 1000]))
            .acbs(random.pick(&[1, 4, 256]));
        let backend = random.pick(&[BackendKind::Uring, BackendKind::Threads]);
        let config = Config::default().backend(backend).queue_depth(random.pick(&[2, 256]));
        Ours::open(&self.image, options, config, &self.story)
            .unwrap_or_else(|error| panic!("{}: {error}", self.story))
    }

    fn our_turn(&mut self, waves: usize) {
        let mut ours = self.open();
        ours.assert_holds(&self.model, "before our turn");
        for _ in 0..waves {
            let count = 1 + self.random.below(32) as usize;
            let ops = self.wave(count);
            let mut model = std::mem::take(&mut self.model);
            ours.wave(&ops, &mut model, &mut self.random);
            self.model = model;
            if self.random.one_in(2) {
                self.discard(&mut ours);
            }
            if self.random.one_in(8) {
                ours.one(Request::quiesce(0)).unwrap();
            }
        }
        ours.assert_holds(&self.model, "after our turn");
        let map = plain(ours.map());
        ours.close();
        self.judge("after our turn");
        let theirs = plain(qemu::map_as("qcow2", &self.image));
        let differ = map.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs);
        assert!(map == theirs, "{}: map: ours and theirs {differ:?}", self.story);
    }

    fn judge(&self, when: &str) {
        let story = format!("{}: {when}", self.story);
        let check = qemu::run("qemu-img", &["check", "-f", "qcow2", arg(&self.image)]);
        assert!(check.code == 0, "{story}: {}{}", last(&check.stdout), last(&check.stderr));
        let bytes = expected(&self.image, "qcow2");
        let wrong = (bytes != self.model).then(|| bytes.iter().zip(&self.model).position(|(a, b)| a != b));
        assert!(wrong.is_none(), "{story}: byte {wrong:?} differs, says qemu-img convert");
        if let Some(snapshot) = &self.snapshot {
            let raw = self.image.with_extension("snapshot.raw");
            good("qemu-img", &["convert", "-l", "before", "-O", "raw", arg(&self.image), arg(&raw)]);
            let bytes = std::fs::read(&raw).unwrap();
            let wrong = bytes.iter().zip(snapshot).position(|(a, b)| a != b);
            assert!(wrong.is_none(), "{story}: byte {wrong:?} of the snapshot differs");
        }
    }

    fn their_turn(&mut self) {
        scribble_again(&self.image, &self.options, self.model.len() as u64, &mut self.random);
        self.model = expected(&self.image, "qcow2");
        self.judge("after their turn");
    }
}

/// The end of a long text.
fn last(text: &str) -> String {
    text.chars().rev().take(1500).collect::<Vec<_>>().into_iter().rev().collect()
}

fn scribble_again(image: &Path, options: &str, size: u64, random: &mut Random) {
    let cluster = cluster_of(options);
    let mut args: Vec<String> = vec!["-f".into(), "qcow2".into()];
    for _ in 0..12 {
        let start = random.below(size - 512) / 512 * 512;
        let len = (1 + random.below(200)) * 512;
        let len = len.min(size - start);
        let whole = random.below(size / cluster) * cluster;
        let command = match random.below(6) {
            0 => format!("write -z {start} {len}"),
            1 => format!("discard {whole} {cluster}"),
            2 if cluster > 512 => format!("write -c -P 7 {whole} {cluster}"),
            _ => format!("write -P {} {start} {len}", 1 + random.below(255)),
        };
        args.extend(["-c".into(), command]);
    }
    args.push(arg(image).into());
    // what QEMU refuses (compressed over allocated) leaves the image as it is
    qemu::run("qemu-io", &args.iter().map(String::as_str).collect::<Vec<_>>());
}

fn turns(folder: &Path, options: &str, backing: Option<(&str, &str)>, size: u64, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 77);
    let image = folder.join("image.qcow2");
    let _ = std::fs::remove_file(&image);
    let story = format!("seed {seed}: {options} over {backing:?}, {size} bytes");
    create(&image, options, size, backing);
    // counts of one or two bits do not reach for a snapshot of compressed clusters
    let narrow = options.split(',').any(|option| ["refcount_bits=1", "refcount_bits=2"].contains(&option));
    let snapshot = !narrow && cluster_of(options) > 512 && random.one_in(2);
    let mut case = Case {
        options: options.into(),
        random,
        model: Vec::new(),
        snapshot: None,
        backed: backing.is_some(),
        story,
        image,
    };
    scribble_again(&case.image, options, size, &mut case.random);
    case.model = expected(&case.image, "qcow2");
    if snapshot {
        good("qemu-img", &["snapshot", "-c", "before", arg(&case.image)]);
        case.snapshot = Some(case.model.clone());
    }
    case.our_turn(3);
    case.their_turn();
    case.our_turn(2);
}

#[test]
fn the_matrix_in_turns_with_qemu() {
    let folder = tempfile::tempdir().unwrap();
    for seed in seeds(40) {
        let options = OPTIONS[(seed % 20) as usize];
        let large = cluster_of(options) >= 1 << 20;
        let size = if large { 12 << 20 } else { 3 << 20 } + seed % 3 * 4608;
        turns(folder.path(), options, None, size, seed);
    }
}

#[test]
fn overlays_in_turns_with_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = [
        "compat=0.10",
        "cluster_size=4k",
        "cluster_size=16k,extended_l2=on",
        "extended_l2=on",
        "cluster_size=512",
    ];
    for seed in seeds(18) {
        let mut random = Random(seed);
        let (format, below) = (
            ["raw", "qed", "qcow2"][(seed % 3) as usize],
            [1 << 20, 2_000_384, 5 << 20][(seed / 3 % 3) as usize],
        );
        let (raw, base) = (folder.path().join("source.raw"), folder.path().join("base"));
        std::fs::write(&raw, prose(below, &mut random)).unwrap();
        let compress = if format == "qcow2" { &["-c"][..] } else { &[] };
        good(
            "qemu-img",
            &[&["convert", "-f", "raw", "-O", format], compress, &[arg(&raw), arg(&base)]].concat(),
        );
        let options = matrix[(seed % 5) as usize];
        turns(folder.path(), options, Some((arg(&base), format)), 3 << 20, seed);
    }
}

/// Rewriting compressed clusters and clusters that a snapshot shares: half of the writes touch nothing else.
#[test]
fn compressed_and_shared_clusters_are_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, options) in
        ["", "compression_type=zstd", "cluster_size=2M", "cluster_size=4k", "extended_l2=on"]
            .into_iter()
            .enumerate()
    {
        let (raw, image) = (folder.path().join("raw"), folder.path().join("image.qcow2"));
        let mut random = Random(seed as u64);
        let model = prose(4 << 20, &mut random);
        std::fs::write(&raw, &model).unwrap();
        let mut args = vec!["convert", "-c", "-f", "raw", "-O", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([arg(&raw), arg(&image)]);
        good("qemu-img", &args);
        good("qemu-img", &["snapshot", "-c", "before", arg(&image)]);
        let options = if options.is_empty() { "compat=1.1" } else { options };
        let story = format!("rewritten, {options}");
        let snapshot = Some(model.clone());
        let options = options.into();
        let mut case = Case { image, options, random, model, snapshot, backed: false, story };
        case.our_turn(4);
        case.our_turn(4);
    }
}

#[test]
fn bitmaps_are_in_use_while_we_write_and_right_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    create(&image, "compat=1.1", 4 << 20, None);
    good("qemu-img", &["bitmap", "--add", arg(&image), "changes"]);
    let info = good("qemu-img", &["info", arg(&image)]);
    assert!(info.contains("changes"), "{info}");
    let facts = |image: &Path| std::fs::metadata(image).map(|facts| (facts.modified().unwrap(), facts.len()));
    let (before, touched) = (std::fs::read(&image).unwrap(), facts(&image).unwrap());
    // whoever changes nothing leaves the file alone, though it may be written
    for write in [false, true] {
        let mut session = Session::open(&image, OpenOptions::new().write(write)).unwrap();
        let disk = session.disk();
        assert!(session.driver().keeps_bitmaps(disk) == write);
        session.read(0, &mut [1; 4096]).unwrap();
        session.flush().unwrap();
        session.quiesce().unwrap();
        session.close().unwrap();
        assert!(before == std::fs::read(&image).unwrap(), "write {write}");
        assert_eq!(facts(&image).unwrap(), touched, "write {write}");
    }
    let mut session = Session::open(&image, OpenOptions::new().write(true)).unwrap();
    let bitmaps = session.info().unwrap().layers()[0].info.bitmaps.clone().expect("the opening says so");
    assert_eq!((bitmaps.valid, bitmaps.names, bitmaps.dropped), (1, vec![b"changes".to_vec()], false));
    assert!(bitmaps.kept);
    let flags = || good("qemu-img", &["info", "-U", arg(&image)]).contains("in-use");
    session.write(0, &[1; 512]).unwrap();
    assert!(flags(), "whoever finds the file now does not trust it");
    session.quiesce().unwrap();
    assert!(!flags());
    session.write(1 << 20, &[1; 512]).unwrap();
    assert!(flags());
    let disk = session.disk();
    assert!(session.driver().keeps_bitmaps(disk));
    session.close().unwrap();
    let info = good("qemu-img", &["info", arg(&image)]);
    assert!(info.contains("changes") && !info.contains("in-use"), "{info}");
    let bits = |image: &Path| quod_tools::bitmap_bits(image, None, b"changes", false).unwrap().bits;
    assert_eq!(bits(&image)[..3], [1, 0, 1]);
    good("qemu-img", &["check", "-q", arg(&image)]);
    // one that was not stored can only be removed
    let mut session = Session::open(&image, OpenOptions::new().write(true)).unwrap();
    session.write(2 << 20, &[1; 512]).unwrap();
    session.flush().unwrap();
    drop(session);
    assert!(flags());
    let session = Session::open(&image, OpenOptions::new().write(true)).unwrap();
    assert!(session.info().unwrap().layers()[0].info.bitmaps.is_none());
    session.close().unwrap();
    good("qemu-img", &["bitmap", "--remove", arg(&image), "changes"]);
}

#[test]
fn a_disk_of_another_size_has_no_valid_bitmaps() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    create(&image, "compat=1.1", 4 << 20, None);
    good("qemu-img", &["bitmap", "--add", arg(&image), "changes"]);
    for size in [5 << 20, 3 << 20] {
        let mut session = Session::open(&image, OpenOptions::new().write(true)).unwrap();
        session.write(0, &[1; 512]).unwrap();
        session.resize(size).unwrap();
        session.write(0, &[2; 512]).unwrap();
        session.close().unwrap();
        let info = good("qemu-img", &["info", arg(&image)]);
        assert!(!info.contains("changes"), "{info}");
    }
}

/// An image that may be written, of every kind, and nobody writes: not a byte of it changes.
#[test]
fn an_image_that_is_only_opened_for_writing_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for (format, options) in
        [("qcow2", "lazy_refcounts=on"), ("qcow2", "compat=0.10"), ("qcow2", "extended_l2=on"), ("qed", "")]
    {
        let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        good("qemu-img", &[&["create", "-q", "-f", format], options, &[arg(&image), "4M"]].concat());
        good("qemu-io", &["-f", format, "-c", "write -P 1 0 1M", arg(&image)]);
        let mut file = std::fs::read(&image).unwrap();
        file[if format == "qed" { 32 } else { 88 }] |= if file[7] == 2 { 0 } else { 0x40 };
        std::fs::write(&image, &file).unwrap();
        let mut session = Session::open(&image, OpenOptions::new().write(true)).unwrap();
        session.read(0, &mut [0; 4096]).unwrap();
        session.flush().unwrap();
        session.close().unwrap();
        assert!(file == std::fs::read(&image).unwrap(), "{format} {options:?}");
    }
}

/// Fills QEMU's images to their last cluster and empties them: refcount tables grow, space comes back.
#[test]
fn small_clusters_fill_and_empty() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    for (n, options) in [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=1k,refcount_bits=1",
        "cluster_size=512,compat=0.10",
    ]
    .into_iter()
    .enumerate()
    {
        let _ = std::fs::remove_file(&image);
        create(&image, options, 8 << 20, None);
        let mut model = vec![0; 8 << 20];
        for round in 0..3u64 {
            let mut random = Random(n as u64 * 10 + round);
            let options = OpenOptions::new().write(true).grow_step(random.pick(&[4096, 1 << 20]));
            let mut ours = Ours::open(&image, options, Config::default(), "fill").unwrap();
            let ops: Vec<Op> =
                (0..(8 << 20) / 65536).map(|n| Op::Write(n * 65536, random.bytes(65536), false)).collect();
            for ops in ops.chunks(60) {
                ours.wave(ops, &mut model, &mut random);
            }
            ours.one(Request::flush(0)).unwrap();
            ours.one(Request::discard(1 << 20, 6 << 20, 0)).unwrap();
            model[1 << 20..7 << 20].fill(0);
            ours.close();
            let check = qemu::run("qemu-img", &["check", "-f", "qcow2", arg(&image)]);
            assert!(check.code == 0, "round {round}: {}", last(&check.stdout));
            assert!(expected(&image, "qcow2") == model, "round {round}");
        }
    }
    scribble(&image, "cluster_size=512,compat=0.10", 8 << 20, &mut Random(1));
}

/// Sizes up and down: the L1 table moves, what goes is given up, what comes to light is zeros; also where the
/// backing file is longer than the disk.
#[test]
fn sizes_change_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("raw"), folder.path().join("image.qcow2"));
    std::fs::write(&raw, prose(3 << 20, &mut Random(4))).unwrap();
    let backing = [None, Some((arg(&raw), "raw"))];
    let matrix = ["cluster_size=512", "compat=0.10,cluster_size=4k", "extended_l2=on", "lazy_refcounts=on"];
    for (n, (options, backing)) in
        matrix.into_iter().flat_map(|options| backing.map(|backing| (options, backing))).enumerate()
    {
        let story = format!("{options} over {backing:?}");
        let _ = std::fs::remove_file(&image);
        create(&image, options, 1_000_448, backing);
        let mut model = expected(&image, "qcow2");
        let mut random = Random(n as u64);
        let open = || {
            let options = OpenOptions::new().write(true).open_gate(AllowAll);
            Ours::open(&image, options, Config::default(), &story).unwrap()
        };
        let mut ours = open();
        for size in [1_000_960, 2_500_096, 40 << 20, 9_000_448, 700_416, 700_928, 2_000_384, 41 << 20] {
            let start = random.below(model.len() as u64 - 5000) as usize;
            ours.wave(&[Op::Write(start, random.bytes(5000), false)], &mut model, &mut random);
            if size < model.len() {
                let done = ours.one(Request::resize(size as u64, 0));
                assert!(done.is_ok(), "{story}: to {size}: {done:?}");
                model.truncate(size);
            } else {
                ours.wave(&[Op::Resize(size)], &mut model, &mut random);
            }
            ours.assert_holds(&model, &format!("resized to {size}"));
            if random.one_in(2) {
                ours.close();
                let check = qemu::run("qemu-img", &["check", "-f", "qcow2", arg(&image)]);
                assert!(check.code == 0, "{story}: to {size}: {}", last(&check.stdout));
                assert!(expected(&image, "qcow2") == model, "{story}: to {size}, says qemu-img convert");
                ours = open();
            }
        }
        ours.close();
        let check = qemu::run("qemu-img", &["check", "-f", "qcow2", arg(&image)]);
        assert!(check.code == 0, "{story}: {}", last(&check.stdout));
        assert!(expected(&image, "qcow2") == model, "{story}: says qemu-img convert");
    }
}

/// Guest data in another file, also one that is a raw image by itself.
#[test]
fn data_files_in_turns_with_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.raw");
    for seed in seeds(12) {
        let raw = seed % 3 == 0;
        let cluster = ["64k", "4k", "16k,extended_l2=on"][(seed / 3 % 3) as usize];
        let options = format!("data_file={},data_file_raw={raw},cluster_size={cluster}", arg(&data));
        let options = options.replace("=true", "=on").replace("=false", "=off");
        let _ = std::fs::remove_file(&data);
        let (image, size) = (folder.path().join("image.qcow2"), 3 << 20);
        let _ = std::fs::remove_file(&image);
        create(&image, &options, size, None);
        let story = format!("seed {seed}: {options}");
        let (random, model) = (Random(seed), vec![0; size as usize]);
        let mut case = Case { image, options, random, model, snapshot: None, backed: false, story };
        for _ in 0..2 {
            case.our_turn(3);
            if raw {
                let bytes = std::fs::read(&data).unwrap();
                let wrong = bytes.iter().zip(&case.model).position(|(a, b)| a != b);
                assert!(wrong.is_none(), "{}: byte {wrong:?} of the data file", case.story);
            }
            case.their_turn();
        }
    }
}

/// What was freed before the image was opened is found and used: each round writes 8 MiB, and the file
/// grows by what the first wave takes before anything was found, 1 MiB and its tables.
#[test]
fn space_that_was_free_before_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512"] {
        let _ = std::fs::remove_file(&image);
        create(&image, options, 64 << 20, None);
        let mut model = vec![0; 64 << 20];
        let mut random = Random(5);
        let mut longest = 0;
        for round in 0..6 {
            let open = OpenOptions::new().write(true).grow_step(8 << 20);
            let mut ours = Ours::open(&image, open, Config::default(), options).unwrap();
            for part in 0..8usize {
                let ops: Vec<Op> =
                    (0..8).map(|n| Op::Write((part * 8 + n) << 17, random.bytes(128 << 10), false)).collect();
                ours.wave(&ops, &mut model, &mut random);
                ours.one(Request::flush(0)).unwrap();
            }
            // the last cluster stays, so that the file does not just get shorter
            ours.one(Request::discard(0, 7 << 20, 0)).unwrap();
            model[..7 << 20].fill(0);
            ours.close();
            let len = std::fs::metadata(&image).unwrap().len();
            assert!(round == 0 || len < longest + (3 << 20), "{options}: {len} bytes, {longest} before");
            longest = longest.max(len);
        }
        let check = qemu::run("qemu-img", &["check", "-f", "qcow2", arg(&image)]);
        assert!(check.code == 0, "{options}: {}", last(&check.stdout));
        assert!(expected(&image, "qcow2") == model, "{options}");
    }
}
