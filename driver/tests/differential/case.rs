//! One line of the matrix: an image with its chain, how we open it, how QEMU opens it; and what is done to
//! it.

use super::independent::Reader;
use super::ours::{Apart, Op};
use super::qemu::{self, arg};
use super::random::Random;
use quod::{AllocationGate, AllowAll, BackendKind, Config, Format, OpenOptions, Policy};
use quod_tools::{self as tools, CreateOptions};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What lies below the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chain {
    Alone,
    /// A raw file, named as raw: it begins with QED's magic and must not be probed.
    RawNamed,
    /// A raw file that readers find out about.
    RawProbed,
    Qed,
    /// Raw, QED, and the image.
    Three,
}

const CHAINS: [Chain; 5] = [Chain::Alone, Chain::RawNamed, Chain::RawProbed, Chain::Qed, Chain::Three];

/// See the module's header.
pub struct Case {
    pub folder: tempfile::TempDir,
    pub random: Random,
    pub cluster: usize,
    pub table: u32,
    pub chain: Chain,
    pub direct: bool,
    pub policy: Policy,
    pub backend: BackendKind,
    /// QEMU can open this geometry.
    pub judged: bool,
    pub size_limit: usize,
    /// Guest bytes of the backing file; 0 without one.
    pub below: Vec<u8>,
    pub model: Vec<u8>,
    pub story: String,
}

/// Sizes that the matrix needs of a geometry.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub cluster: usize,
    pub table: u32,
    /// Guest bytes at most.
    pub limit: usize,
    pub judged: bool,
}

impl Case {
    /// The seed decides everything; consecutive seeds walk through the chains, and through the ways to open.
    pub fn new(geometry: Geometry, seed: u64) -> Case {
        let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1) ^ geometry.cluster as u64);
        let chain = CHAINS[(seed % 5) as usize];
        let Geometry { cluster, table, limit, judged } = geometry;
        let direct = seed.is_multiple_of(2);
        let policy = if seed % 3 == 1 { Policy::Writethrough } else { Policy::Writeback };
        let backend = if seed % 4 < 2 { BackendKind::Auto } else { BackendKind::Threads };
        let size = (limit / 2 + random.below(limit as u64 / 2) as usize) / 512 * 512;
        let story = format!(
            "seed {seed}: clusters {cluster} table {table} {chain:?} direct {direct} {policy:?} {backend:?}"
        );
        let mut case = Case {
            folder: tempfile::tempdir().unwrap(),
            random,
            cluster,
            table,
            chain,
            direct,
            policy,
            backend,
            judged,
            size_limit: limit,
            below: Vec::new(),
            model: Vec::new(),
            story,
        };
        case.build(size);
        case
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.path("top.qed")
    }

    /// A length around `size`: shorter or longer, rarely the same.
    fn around(&mut self, size: usize) -> usize {
        match self.random.below(4) {
            0 => size,
            1 => size + 1 + self.random.below(size as u64 / 4) as usize,
            _ => size / 4 + self.random.below(size as u64 / 2) as usize,
        }
    }

    fn raw_base(&mut self, len: usize, magic: bool) -> Vec<u8> {
        let mut bytes = self.random.bytes(len);
        if magic {
            bytes[..4].copy_from_slice(b"QED\0");
        }
        std::fs::write(self.path("base.raw"), &bytes).unwrap();
        bytes
    }

    fn build(&mut self, size: usize) {
        let len = self.around(size);
        let backing = match self.chain {
            Chain::Alone => None,
            Chain::RawNamed => {
                self.below = self.raw_base(len, true);
                Some(("base.raw", Some(Format::Raw)))
            }
            Chain::RawProbed => {
                self.below = self.raw_base(len, false);
                Some(("base.raw", None))
            }
            Chain::Qed | Chain::Three => {
                let raw = (self.chain == Chain::Three).then(|| {
                    let len = self.around(size);
                    self.raw_base(len, true)
                });
                self.middle(len / 512 * 512, raw.as_deref());
                Some(("middle.qed", None))
            }
        };
        let image = self.image();
        self.create(&image, self.cluster, self.table, size, backing);
        self.model = self.below.clone();
        self.model.resize(size, 0);
    }

    /// A QED image below the image, with other clusters than it, that we filled.
    fn middle(&mut self, size: usize, raw: Option<&[u8]>) {
        let path = self.path("middle.qed");
        let backing = raw.map(|_| ("base.raw", Some(Format::Raw)));
        let cluster = self.random.pick(&[4096, 65536]);
        self.create(&path, cluster, 2, size, backing);
        let mut model = raw.unwrap_or_default().to_vec();
        model.resize(size, 0);
        let mut session =
            tools::Session::open(&path, OpenOptions::new().write(true).open_gate(AllowAll)).unwrap();
        for _ in 0..10 {
            let range = some_range(&mut self.random, size, cluster, 3 * cluster);
            if self.random.one_in(4) {
                session.write_zeroes(range.start as u64, range.len() as u64, false).unwrap();
                model[range].fill(0);
            } else {
                let bytes = self.random.bytes(range.len());
                session.write(range.start as u64, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
        session.close().unwrap();
        self.below = model;
    }

    /// By us or by QEMU.
    fn create(
        &mut self,
        path: &Path,
        cluster: usize,
        table: u32,
        size: usize,
        backing: Option<(&str, Option<Format>)>,
    ) {
        let named = !matches!(backing, Some((_, None)));
        if self.judged && named && self.random.one_in(2) {
            let options = format!("cluster_size={cluster},table_size={table}");
            let size = size.to_string();
            let mut args = vec!["create", "-q", "-f", "qed", "-o", &options];
            if let Some((name, _)) = backing {
                args.extend(["-b", name, "-F", "raw"]);
            }
            args.extend([arg(path), &size]);
            qemu::good("qemu-img", &args);
        } else {
            let options = CreateOptions {
                cluster_size: Some(cluster as u32),
                table_size: Some(table),
                backing: backing.map(|(name, format)| (name.to_string(), format)),
                ..CreateOptions::new(Format::Qed, size as u64)
            };
            tools::create(path, &options).unwrap();
        }
    }

    /// How we open the image this time.
    pub fn options(&mut self) -> OpenOptions {
        let random = &mut self.random;
        OpenOptions::new()
            .write(true)
            .open_gate(AllowAll)
            .format(random.pick(&[None, Some(Format::Qed)]))
            .direct(self.direct)
            .backing_direct(random.pick(&[None, Some(false), Some(true)]))
            .policy(self.policy)
            .allocation_gate(random.pick(&[
                AllocationGate::Cluster,
                AllocationGate::Cluster,
                AllocationGate::Table,
                AllocationGate::NewTable,
                AllocationGate::Image,
            ]))
            .cache_bytes(random.pick(&[64 << 10, 32 << 20]))
            .grow_step(random.pick(&[4096, 1 << 20, 64 << 20]))
            .allocate_ahead(random.one_in(2))
            .commit_ms(random.pick(&[1, 20, 1000]))
            .need_check_ms(random.pick(&[1, 30, 5000]))
            .acbs(random.pick(&[1, 4, 256]))
    }

    pub fn config(&mut self) -> Config {
        Config::default()
            .backend(self.backend)
            .queue_depth(self.random.pick(&[2, 16, 256]))
            .requests(self.random.pick(&[4, 32, 128]))
    }

    /// How QEMU opens it.
    pub fn qemu_options(&mut self) -> Vec<&'static str> {
        let cache = match (self.direct, self.policy) {
            (true, Policy::Writeback) => "none",
            (true, Policy::Writethrough) => "directsync",
            (false, Policy::Writeback) => "writeback",
            (false, Policy::Writethrough) => "writethrough",
        };
        vec!["-t", cache]
    }

    /// A longer disk is possible: where the backing file is longer than the disk, growth would show it.
    pub fn can_grow(&self) -> bool {
        self.below.len() <= self.model.len() && self.model.len() + 512 <= self.size_limit
    }

    fn grown(&mut self) -> usize {
        let room = (self.size_limit - self.model.len()) / 512;
        self.model.len() + 512 * (1 + self.random.below(room.min(4 * self.cluster / 512) as u64)) as usize
    }

    fn some_range(&mut self) -> Range<usize> {
        let most = (5 * self.cluster / 2).min(160 << 10).min(self.model.len());
        some_range(&mut self.random, self.model.len(), self.cluster, most)
    }

    /// Requests that run together.
    pub fn wave(&mut self, count: usize) -> Vec<Op> {
        let mut apart = Apart::default();
        let mut ops = Vec::new();
        for _ in 0..count {
            let range = self.some_range();
            let op = match self.random.below(16) {
                0 | 1 => Op::Zero(range, self.random.one_in(2)),
                2 => Op::Discard(range),
                3 => Op::Flush,
                4..=7 => Op::Read(range),
                _ => Op::Write(range.start, self.random.bytes(range.len()), self.random.one_in(16)),
            };
            if apart.add(&op.changes()) {
                ops.push(op);
            }
        }
        if self.can_grow() && self.random.one_in(4) {
            let at = self.random.below(ops.len() as u64 + 1) as usize;
            let size = self.grown();
            ops.insert(at, Op::Resize(size));
        }
        ops
    }

    /// Clusters with a zero entry over a backing file.
    fn zero_clusters(&self) -> BTreeSet<usize> {
        let reader = Reader::open(&self.image());
        let clusters = if self.chain == Chain::Alone { 0 } else { self.model.len().div_ceil(self.cluster) };
        (0..clusters).filter(|&cluster| reader.lookup(cluster as u64) == 1).collect()
    }

    /// QEMU fills what it does not write of a zero cluster from the backing file, not with zeros (seen with
    /// 10.0.2): such clusters are written whole.
    fn widened(&self, range: Range<usize>, zeroed: &BTreeSet<usize>) -> Range<usize> {
        if self.chain == Chain::Alone {
            return range;
        }
        let (first, last) = (range.start / self.cluster, (range.end - 1) / self.cluster);
        let start = if zeroed.contains(&first) { first * self.cluster } else { range.start };
        let end = if zeroed.contains(&last) { (last + 1) * self.cluster } else { range.end };
        start..end.min(self.model.len())
    }

    /// Commands for one qemu-io process; the model is moved along. Never `aio_write`: an allocating write
    /// that meets a drain (`aio_flush`, the end of the process) while the need-check bit is being cleared
    /// stops QEMU 10.0.2 with "qed_aio_write_alloc: Assertion `s->allocating_acb == NULL' failed". In an
    /// image of 12 MiB with clusters of 1 MiB: `truncate 16564224`, `write 13979136 150280`, `aio_write
    /// 14609408 163840`.
    pub fn commands(&mut self, count: usize) -> Vec<String> {
        let mut commands = Vec::new();
        let mut zeroed = self.zero_clusters();
        for _ in 0..count {
            let range = self.some_range();
            let range = self.widened(range, &zeroed);
            let (at, len) = (range.start, range.len());
            let pattern = 1 + self.random.below(255) as u8;
            match self.random.below(16) {
                0 | 1 => {
                    let unmap = if self.random.one_in(2) { "-u " } else { "" };
                    commands.push(format!("write -z {unmap}{at} {len}"));
                    zeroed.extend(at / self.cluster..range.end.div_ceil(self.cluster));
                    self.model[range].fill(0);
                }
                2 => commands.push(format!("discard {at} {len}")),
                3 => commands.push("flush".into()),
                4 if self.can_grow() => {
                    let size = self.grown();
                    commands.push(format!("truncate {size}"));
                    self.model.resize(size, 0);
                }
                5..=7 => {
                    let byte = self.model[at];
                    let same = self.model[range].iter().take_while(|&&other| other == byte).count();
                    commands.push(format!("read -P {byte} {at} {same}"));
                }
                8 | 9 if len > 1 => {
                    commands.push(format!("writev -P {pattern} {at} {} {}", len / 2, len - len / 2));
                    self.model[range].fill(pattern);
                }
                _ => {
                    commands.push(format!("write -P {pattern} {at} {len}"));
                    self.model[range].fill(pattern);
                }
            }
        }
        commands
    }
}

/// A range that likes boundaries: of clusters, sectors, the disk.
pub fn some_range(random: &mut Random, size: usize, cluster: usize, most: usize) -> Range<usize> {
    let unit = random.pick(&[1, 1, 512, 4096, cluster, cluster]);
    let mut start = random.below(size as u64) as usize / unit * unit;
    if random.one_in(6) {
        start = (start + random.below(7) as usize).saturating_sub(3).min(size - 1);
    }
    let len = match random.below(6) {
        0 => 1 + random.below(600) as usize,
        1 => 512 * (1 + random.below(16) as usize),
        2 => cluster - start % cluster,
        3 => cluster,
        _ => 1 + random.below(most as u64) as usize,
    };
    let end = if random.one_in(20) { size } else { size.min(start + len) };
    start..end.min(start + most)
}
