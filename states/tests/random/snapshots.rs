//! Snapshots made, applied and deleted at random, between random writes, against a model of plain bytes.
//!
//! Checks: the disk and each snapshot hold what they held; a check finds nothing after a close, leaks
//! neither; a failure of any operation leaves the image with the old list or the new one; refcounts that
//! cannot say so many references refuse the whole; every edge of a snapshot is taken.
//!
//! Over: cluster sizes, refcount widths, version 2, extended L2, lazy refcounts, compressed clusters, sizes.

use quod_states::acb::edges::QCOW2_EDGES;
use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, Lack, Opening, Options, RequestKind, SnapshotAsk, SnapshotSelector, State};
use quod_states_tests::qcow2::{assert_sound, check, compress, header, qcow2_file};
use quod_states_tests::{Disk, Rng, request};

/// A snapshot as it shall be: its name, and what it holds.
type Kept = (u64, Vec<u8>);

struct Run {
    rng: Rng,
    disk: Disk,
    image: Image,
    options: Options,
    now: Vec<u8>,
    kept: Vec<Kept>,
    names: u64,
    narrow: bool,
    leaks: bool,
    /// Version 2 has no sizes of its own beside snapshots.
    resizes: bool,
}

fn create(rng: &mut Rng) -> CreateOptions<'static> {
    let extended_l2 = rng.below(5) == 0;
    let version = if !extended_l2 && rng.below(4) == 0 { 2 } else { 3 };
    let (bits, clusters) = match (extended_l2, rng.below(6)) {
        (true, _) => (14, 20),
        (_, 0) => (9, 700),
        (_, 1) => (12, 90),
        _ => (9 + rng.below(3), 80),
    };
    CreateOptions {
        size: clusters << bits,
        version,
        cluster_size: 1 << bits,
        refcount_bits: if version == 2 { 16 } else { 1 << rng.below(7) },
        lazy_refcounts: version == 3 && rng.below(4) == 0,
        extended_l2,
        ..CreateOptions::default()
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng(seed);
        let create = create(&mut rng);
        let mut now = vec![0; create.size as usize];
        let mut file = qcow2_file(&create);
        let clusters = create.size / u64::from(create.cluster_size);
        let options = Options::default()
            .cache_bytes(8192 << rng.below(6))
            .align(if create.cluster_size < 4096 { 512 } else { 4096 })
            .grow_step([0, 4096, 1 << 20][rng.below(3) as usize])
            .trace(true);
        if rng.below(3) == 0 && create.refcount_bits > 2 {
            let mut disk = Disk::new(file, None, options.align.into());
            let mut image = disk.open(options).unwrap().image;
            disk.run(
                &mut image,
                request(RequestKind::Write, 0, create.size, 1),
                vec![7; create.size as usize],
            );
            disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
            now.fill(7);
            file = disk.file.to_vec();
            compress(&mut file, &(0..clusters).step_by(3).collect::<Vec<_>>(), &mut now);
        }
        let mut disk = Disk::new(file, None, options.align.into());
        let image = disk.open(options).unwrap().image;
        let (narrow, resizes) = (create.refcount_bits < 8, version3(&create));
        Run { rng, disk, image, options, now, kept: Vec::new(), names: 0, narrow, leaks: false, resizes }
    }

    fn guest(&mut self) {
        let size = self.now.len() as u64;
        let start = self.rng.below(size / 512) * 512;
        let len = (512 * (1 + self.rng.below(40))).min(size - start);
        let range = start as usize..(start + len) as usize;
        let kind = match self.rng.below(5) {
            0 => RequestKind::WriteZeroes,
            1 if self.resizes => RequestKind::Discard,
            _ => RequestKind::Write,
        };
        let byte = self.rng.word() as u8;
        match kind {
            RequestKind::Write => self.now[range].fill(byte),
            RequestKind::WriteZeroes => self.now[range].fill(0),
            _ => {}
        }
        let bytes = if kind == RequestKind::Write { vec![byte; len as usize] } else { vec![] };
        self.disk.run(&mut self.image, request(kind, start, len, 1), bytes);
        if kind == RequestKind::Discard {
            // what of it is no whole cluster may stay
            self.now = self.read();
        }
    }

    fn read(&mut self) -> Vec<u8> {
        let size = self.image.virtual_size();
        self.disk.run(&mut self.image, request(RequestKind::Read, 0, size, 2), vec![0xcc; size as usize])
    }

    /// Asks, and gives what came of it.
    fn ask(&mut self, ask: SnapshotAsk) -> Result<(), Error> {
        self.image.plan_snapshot(ask);
        self.disk.try_run(&mut self.image, request(RequestKind::Snapshot, 0, 0, 3), vec![]).map(drop)
    }

    /// One of the three: which list there is when it was done.
    fn choose(&mut self) -> (SnapshotAsk, Vec<Kept>, Vec<u8>) {
        let (mut kept, mut now) = (self.kept.clone(), self.now.clone());
        let index = self.rng.below(kept.len().max(1) as u64) as usize;
        let name = |kept: &[Kept]| SnapshotSelector::Name(kept[index].0.to_string().into_bytes());
        match self.rng.below(if kept.len() > 5 { 2 } else { 4 }) {
            0 if !kept.is_empty() => {
                let which = name(&kept);
                now = kept[index].1.clone();
                (SnapshotAsk::Apply(which), kept, now)
            }
            1 if !kept.is_empty() => {
                let which = name(&kept);
                kept.remove(index);
                (SnapshotAsk::Delete(which), kept, now)
            }
            _ => {
                self.names += 1;
                kept.push((self.names, now.clone()));
                let name = self.names.to_string().into_bytes();
                (SnapshotAsk::Create { name, date_sec: 5, date_nsec: 6 }, kept, now)
            }
        }
    }

    fn snapshot(&mut self, fails: bool) {
        let (ask, kept, now) = self.choose();
        self.disk.fail = fails.then(|| (self.rng.below(40), 5));
        let result = self.ask(ask);
        self.disk.fail = None;
        match result {
            Ok(()) => (self.kept, self.now) = (kept, now),
            Err(Error::Unsupported(Lack::RefcountOverflow(_))) if self.narrow => {}
            Err(error) => {
                assert!(fails, "{error}");
                if self.image.poisoned().is_some() {
                    // of the header nobody knows whether it is in the file
                    self.image = self.disk.open(self.options).unwrap().image;
                    let listed = header(&self.disk.file).snapshots as usize;
                    if (listed, self.read()) == (kept.len(), now.clone()) {
                        (self.kept, self.now) = (kept, now);
                    }
                    assert_eq!(listed, self.kept.len());
                    // nothing was flushed
                    self.now = self.read();
                    // what it had to write before may have failed, too
                    self.leaks = true;
                }
            }
        }
    }

    fn resize(&mut self) {
        let cluster = header(&self.disk.file).cluster_size();
        let size = (1 + self.rng.below(100)) * cluster;
        self.disk.run(&mut self.image, request(RequestKind::Resize { size }, 0, 0, 1), vec![]);
        self.now.resize(size as usize, 0);
    }

    /// All of it, after a close.
    fn judge(&mut self, story: &str) {
        assert!(self.read() == self.now, "{story}: the disk");
        self.disk.run(&mut self.image, request(RequestKind::Close, 0, 0, 1), vec![]);
        match self.leaks {
            true => assert!(check(&mut self.disk.file.to_vec(), None).is_sound(), "{story}"),
            false => assert_sound(&self.disk.file, story),
        }
        assert_eq!(u64::from(header(&self.disk.file).snapshots), self.kept.len() as u64, "{story}");
        for (name, held) in self.kept.clone() {
            let which = SnapshotSelector::Name(name.to_string().into_bytes());
            let len = self.disk.file.len() as u64;
            let mut opening = Opening::of_snapshot(None, len, self.options.read_only(true), which);
            let opened = self.disk.finish(&mut opening);
            let mut image = opened.unwrap().image;
            let size = image.virtual_size();
            let read = request(RequestKind::Read, 0, size, 2);
            let found = self.disk.run(&mut image, read, vec![0xcc; size as usize]);
            assert!(found == held, "{story}: snapshot {name}");
        }
        self.image = self.disk.open(self.options).unwrap().image;
        assert!(self.read() == self.now, "{story}: opened again");
    }
}

fn version3(create: &CreateOptions<'_>) -> bool {
    create.version == 3
}

/// Edges of a snapshot that the image has taken.
fn taken(image: &Image) -> Vec<(State, State)> {
    let own = QCOW2_EDGES.iter().filter(|(from, to)| [*from, *to].contains(&State::Snapshot));
    own.copied().filter(|(from, to)| image.edge_counts().get(*from, *to) > 0).collect()
}

fn runs(seeds: std::ops::Range<u64>, fails: bool) {
    let mut edges = Vec::new();
    for seed in seeds {
        let mut run = Run::new(seed);
        for step in 0..24 {
            let story = format!("seed {seed} step {step}");
            match run.rng.below(8) {
                0..3 => run.guest(),
                3..6 => {
                    let fails = fails && run.rng.below(2) == 0;
                    run.snapshot(fails);
                }
                6 if run.resizes && !fails => run.resize(),
                _ => {
                    edges.extend(taken(&run.image));
                    if fails { run.image_only(&story) } else { run.judge(&story) }
                }
            }
        }
        edges.extend(taken(&run.image));
        run.judge(&format!("seed {seed}, at the end"));
    }
    edges.sort_unstable();
    edges.dedup();
    assert_eq!(edges.len(), 3, "{edges:?}");
}

impl Run {
    fn image_only(&mut self, story: &str) {
        assert!(self.read() == self.now, "{story}");
    }
}

#[test]
fn the_disk_and_its_snapshots_hold_what_they_held() {
    runs(0..400, false);
}

#[test]
fn a_failure_leaves_the_old_list_or_the_new_one() {
    runs(1000..1400, true);
}
