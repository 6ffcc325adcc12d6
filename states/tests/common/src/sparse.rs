//! A file of any length that keeps only what is not zero, qcow2 metadata put into it by hand, and a check of
//! it that tells every I/O.
//!
//! Clusters have 1 KiB and counts 64 bits unless a plan says otherwise: all of metadata is big-endian words,
//! and a refcount block counts 128 clusters.

use quod_states::qcow2::{Check, Finding, Header, Purpose};
use quod_states::{Error, IoOp, Machine, Outcome, Repair, Report};
use std::collections::BTreeMap;

/// Bytes of a cluster.
pub const K: u64 = 1024;
/// Nobody else refers to what the entry leads to.
pub const COPIED: u64 = 1 << 63;

/// Where [`sound`] has its refcount table.
pub const REFTABLE: u64 = K;
/// Where [`sound`] has its refcount block.
pub const BLOCK: u64 = 2 * K;
/// Where [`sound`] has its L1 table.
pub const L1: u64 = 3 * K;
/// Where [`sound`] has its L2 table.
pub const L2: u64 = 4 * K;

const SECTOR: usize = 512;

#[derive(Clone, PartialEq, Debug)]
/// A file: its length, and the sectors that are not zero.
pub struct File {
    /// Bytes.
    pub len: u64,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

impl File {
    /// Fills `bytes` from `offset` on; zeros behind the end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let (sector, from) = sector_of(offset + at as u64);
            let n = (SECTOR - from).min(bytes.len() - at);
            match self.sectors.get(&sector) {
                Some(sector) => bytes[at..at + n].copy_from_slice(&sector[from..from + n]),
                None => bytes[at..at + n].fill(0),
            }
            at += n;
        }
    }

    /// Writes there; the file gets as long as it must.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let (sector, from) = sector_of(offset + at as u64);
            let n = (SECTOR - from).min(bytes.len() - at);
            let kept = self.sectors.entry(sector).or_insert([0; SECTOR]);
            kept[from..from + n].copy_from_slice(&bytes[at..at + n]);
            if kept.iter().all(|byte| *byte == 0) {
                self.sectors.remove(&sector);
            }
            at += n;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// The big-endian word there.
    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// Words from `at` on; the file does not get longer.
    pub fn put(&mut self, at: u64, words: &[u64]) {
        let len = self.len;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.write(at, &bytes);
        self.len = len;
    }

    fn put32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_be_bytes());
    }

    /// The words that are not what they were: where, and what they are now.
    pub fn changes(&self, before: &File) -> Vec<(u64, u64)> {
        let mut sectors: Vec<u64> = self.sectors.keys().chain(before.sectors.keys()).copied().collect();
        sectors.sort_unstable();
        sectors.dedup();
        let words = sectors.into_iter().flat_map(|n| (0..64).map(move |word| n * 512 + word * 8));
        words.filter(|at| self.word(*at) != before.word(*at)).map(|at| (at, self.word(at))).collect()
    }
}

fn sector_of(offset: u64) -> (u64, usize) {
    (offset / SECTOR as u64, (offset % SECTOR as u64) as usize)
}

/// What a header says: offsets, and how much there is.
pub struct Plan {
    /// 2 or 3.
    pub version: u32,
    /// Clusters have this power of two of bytes.
    pub cluster_bits: u32,
    /// Counts have this power of two of bits.
    pub order: u32,
    /// Bytes of the guest disk.
    pub size: u64,
    /// Place and entries of the L1 table.
    pub l1: (u64, u32),
    /// Place and clusters of the refcount table.
    pub reftable: (u64, u32),
    /// Place and entries of the snapshot table.
    pub snapshots: (u64, u32),
    /// Bits of features that a reader must know.
    pub incompatible: u64,
    /// Bitmaps, size and place of their directory.
    pub bitmaps: Option<(u32, u64, u64)>,
    /// Bytes of the file.
    pub len: u64,
}

/// The plan of [`sound`].
pub const PLAN: Plan = Plan {
    version: 3,
    cluster_bits: 10,
    order: 6,
    size: 128 * K,
    l1: (L1, 1),
    reftable: (REFTABLE, 1),
    snapshots: (0, 0),
    incompatible: 0,
    bitmaps: None,
    len: 8 * K,
};

impl Plan {
    /// A file with this header and nothing else.
    pub fn file(&self) -> File {
        let mut file = File { len: self.len, sectors: BTreeMap::new() };
        for (at, value) in [
            (0, 0x5146_49fb),
            (4, self.version),
            (20, self.cluster_bits),
            (36, self.l1.1),
            (56, self.reftable.1),
            (60, self.snapshots.1),
        ] {
            file.put32(at, value);
        }
        for (at, value) in [(24, self.size), (40, self.l1.0), (48, self.reftable.0), (64, self.snapshots.0)] {
            file.put(at, &[value]);
        }
        if self.version == 3 {
            file.put(72, &[self.incompatible, 0, self.bitmaps.is_some().into()]);
            file.put32(96, self.order);
            file.put32(100, 104);
        }
        if let Some((count, size, offset)) = self.bitmaps {
            file.put(104, &[0x2385_2875 << 32 | 24, u64::from(count) << 32, size, offset]);
        }
        file
    }
}

/// Header, refcount table, block, L1 table, L2 table, and three clusters of data for the first three of the
/// guest; each is counted once.
pub fn sound() -> File {
    filled(PLAN)
}

/// The same with another header.
pub fn filled(plan: Plan) -> File {
    let mut file = plan.file();
    file.put(REFTABLE, &[BLOCK]);
    file.put(BLOCK, &[1; 8]);
    file.put(L1, &[COPIED | L2]);
    file.put(L2, &[COPIED | (5 * K), COPIED | (6 * K), COPIED | (7 * K)]);
    file
}

/// What a check of [`sound`] reports.
pub fn sound_report() -> Report {
    Report { total_clusters: 128, allocated_clusters: 3, ..Report::default() }
}

/// A check that has ended.
pub struct Run {
    /// How it ended.
    pub report: Result<Report, Error>,
    /// What it found, in order.
    pub findings: Vec<Finding>,
    /// All that it asked for.
    pub io: Vec<IoOp>,
    /// The header as the check believes it to be.
    pub header: Header,
    /// The file's length as the check believes it to be.
    pub len: u64,
    /// The end of the last cluster.
    pub end: u64,
}

impl Run {
    /// I/O but for reads.
    pub fn changing(&self) -> Vec<IoOp> {
        self.io.iter().filter(|op| !matches!(op, IoOp::ReadTable { .. })).copied().collect()
    }

    /// Its reads: where, and how many bytes.
    pub fn reads(&self) -> Vec<(u64, u32)> {
        let read = |op: &IoOp| match *op {
            IoOp::ReadTable { offset, len } => Some((offset, len)),
            _ => None,
        };
        self.io.iter().filter_map(read).collect()
    }
}

/// A check that has not begun.
pub fn start(file: &File, repair: Option<Repair>) -> Check {
    let mut region = vec![0; 512];
    file.read(0, &mut region);
    region.resize(Header::region(&region), 0);
    file.read(0, &mut region);
    Check::new(Header::parse(&region, Purpose::Check).unwrap(), file.len, repair)
}

/// Runs a check; a repair changes the file.
pub fn run(file: &mut File, repair: Option<Repair>) -> Run {
    run_failing(file, repair, |_| false)
}

/// The same; I/O that `fails` names fails with error number 5.
pub fn run_failing(file: &mut File, repair: Option<Repair>, mut fails: impl FnMut(&IoOp) -> bool) -> Run {
    let mut check = start(file, repair);
    let (mut io, mut findings, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let report = loop {
        findings.extend(std::iter::from_fn(|| check.poll_finding()));
        if let Some(report) = check.poll_result() {
            break report;
        }
        let next = check.poll_io().unwrap();
        io.push(next.op);
        assert!(io.len() < 100_000, "the check comes to an end");
        let outcome = match next.op {
            op if fails(&op) => Outcome::Failed(5),
            IoOp::ReadTable { offset, len } => {
                bytes.resize(len as usize, 0);
                file.read(offset, &mut bytes);
                Outcome::Table(&bytes)
            }
            IoOp::WriteTable { offset, len } => {
                bytes.resize(len as usize, 0);
                check.encode(next.id, &mut bytes);
                file.write(offset, &bytes);
                Outcome::Done
            }
            IoOp::SetLen { len } => {
                file.len = len;
                Outcome::Done
            }
            IoOp::Sync => Outcome::Done,
            other => panic!("no I/O of a check: {other:?}"),
        };
        check.handle_completion(next.id, outcome);
    };
    let end = check.image_end();
    let (header, len) = check.into_parts();
    Run { report, findings, io, header, len, end }
}

/// A read, to compare with.
pub fn read(offset: u64, len: u32) -> IoOp {
    IoOp::ReadTable { offset, len }
}

/// A write, to compare with.
pub fn write(offset: u64, len: u32) -> IoOp {
    IoOp::WriteTable { offset, len }
}

pub use crate::faults::corrupt;

/// An entry that contradicts the format, as a finding.
pub fn entry(place: &'static str, index: u64, value: u64, what: &'static str) -> Finding {
    Finding::Fault(crate::faults::fault(place, index, value, what))
}

/// A count that is not the number of references.
pub fn refcount(cluster: u64, stored: u64, computed: u64, repaired: bool) -> Finding {
    Finding::Refcount { cluster, stored, computed, repaired }
}

/// An entry of the snapshot table, padded: place and length of an L1 table, extra data, identifier and name.
pub fn snapshot(l1: (u64, u32), extra: &[u8], id: &[u8], name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(l1.0.to_be_bytes());
    bytes.extend(l1.1.to_be_bytes());
    bytes.extend((id.len() as u16).to_be_bytes());
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend([0; 20]);
    bytes.extend((extra.len() as u32).to_be_bytes());
    bytes.extend([extra, id, name].concat());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// Extra data as version 3 asks for: no VM state, and the size of [`sound`]'s disk.
pub fn complete() -> Vec<u8> {
    [0, PLAN.size].iter().flat_map(|word: &u64| word.to_be_bytes()).collect()
}
