//! Check and repair of a QED image, as a machine: walks the L1 table and every L2 table, one read at a time.
//!
//! Knows: tables in chunks, which clusters are referred to. Must never know: guest data.
//!
//! Invariants:
//! * memory is bounded by what the file's tables refer to, not by what the header claims;
//! * repairs are durable before the need-check bit is cleared (QE5), and it is cleared only when the image is
//!   sound;
//! * with repair, trailing space that nothing refers to is given back only when the image is sound, and of
//!   a dirty image durably before the bit is cleared (QE12): a clear bit says that there is none.

use super::Header;
use crate::base::clusters::ClusterSet;
use crate::base::geometry::{Geometry, align_down};
use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::{ClusterFault, Fault, Op};
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use crate::steps::Steps;
use alloc::vec::Vec;

/// Bytes read at once.
const CHUNK: u64 = 64 << 10;
/// Bytes of tables that are told to be read soon, at most: a disk's queue is full of them.
const AHEAD: u64 = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CheckStep {
    ReadL1,
    ReadL2,
    WriteL2,
    WriteL1,
    SyncRepairs,
    Trim,
    SyncTrim,
    WriteHeader,
    SyncHeader,
}

/// Referenced clusters.
#[derive(Clone, Debug)]
struct Used {
    clusters: ClusterSet,
    count: u64,
    /// First cluster behind the last.
    end: u64,
}

impl Used {
    /// Those from `first` on, up to one that was already, or `end`: which that is.
    fn claim(&mut self, first: u64, end: u64) -> u64 {
        debug_assert!(first < end);
        let reached = self.clusters.claim(first, end);
        self.count += reached - first;
        self.end = self.end.max(end);
        reached
    }
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Check {
    header: Header,
    geometry: Geometry,
    /// The file's length, and rounded down to clusters: what entries may refer to.
    len: u64,
    end: u64,
    repair: Option<Repair>,
    device: bool,
    steps: Steps<CheckStep, Report>,
    used: Used,
    report: Report,
    /// The chunk of the L1 table: entry index of its first, and entries.
    l1: Vec<u64>,
    l1_at: u64,
    l1_next: usize,
    /// Entries of the chunk up to here were told to be read soon.
    l1_ahead: usize,
    l1_fixed: bool,
    /// The chunk of the L2 table: entry index of its first, how many, and what they shall be if that is
    /// something else.
    l2_table: u64,
    l2_at: u64,
    l2_count: u64,
    l2: Vec<u64>,
    last_data: u64,
    repaired: bool,
}

impl Check {
    /// A check of the image with this header in a file of `len` bytes. Without `repair` nothing is written.
    pub fn new(header: Header, len: u64, repair: Option<Repair>) -> Check {
        let geometry = header.geometry();
        let report = Report {
            total_clusters: header.image_size.div_ceil(geometry.cluster_size()),
            ..Report::default()
        };
        let mut check = Check {
            end: align_down(len, geometry.cluster_size()),
            geometry,
            len,
            repair,
            device: false,
            steps: Steps::new(),
            used: Used { clusters: ClusterSet::new(), count: 0, end: 0 },
            report,
            l1: Vec::new(),
            l1_at: 0,
            l1_next: 0,
            l1_ahead: 0,
            l1_fixed: false,
            l2_table: 0,
            l2_at: 0,
            l2_count: 0,
            l2: Vec::new(),
            last_data: 0,
            repaired: false,
            header,
        };
        debug_assert!(check.end <= check.len, "what entries may refer to is of the file");
        let l1 = check.geometry.l1_offset;
        check.mark_used(l1, u64::from(check.header.table_size));
        check.read_l1();
        check
    }

    /// The file is a device: what nothing refers to behind the last cluster in use is no leak, and is not
    /// given back. To be said at once.
    pub fn on_device(self, device: bool) -> Check {
        debug_assert!(!self.repaired, "it is said at once");
        Check { device, ..self }
    }

    /// The outcome, once. An error means that the check could not be made; what it found wrong is in the
    /// report.
    pub fn poll_result(&mut self) -> Option<Result<Report, Error>> {
        self.steps.poll_result()
    }

    /// The header as the check left it, and the file's length.
    pub(crate) fn into_parts(self) -> (Header, u64) {
        debug_assert!(self.steps.step().is_none(), "it has ended");
        (self.header, self.len)
    }

    /// First byte behind all clusters that something refers to, as far as tables could be read.
    pub(crate) fn end_in_use(&self) -> u64 {
        debug_assert!(self.used.count <= self.used.end, "each cluster is counted once");
        self.used.end << self.geometry.cluster_bits
    }

    /// False: one was used already.
    fn mark_used(&mut self, offset: u64, clusters: u64) -> bool {
        debug_assert!(offset.is_multiple_of(self.geometry.cluster_size()), "others were refused");
        let first = offset >> self.geometry.cluster_bits;
        self.mark(first, first + clusters, Some(offset))
    }

    /// The same; `value` is what led there, if it is not the cluster's own offset.
    fn mark(&mut self, first: u64, end: u64, value: Option<u64>) -> bool {
        debug_assert!(first < end);
        let (mut at, mut sound) = (first, true);
        while at < end {
            at = self.used.claim(at, end);
            if at < end {
                sound = false;
                self.report.corruptions += 1;
                let value = value.unwrap_or(at << self.geometry.cluster_bits);
                let fault = Fault::Cluster { index: at, value, why: ClusterFault::Shared };
                self.report.problem(Error::Corrupt(fault));
                at += 1;
            }
        }
        sound
    }

    fn entries(&self) -> u64 {
        debug_assert!(self.geometry.table_bytes / 8 == 1 << self.geometry.table_bits, "a table is entries");
        1 << self.geometry.table_bits
    }

    /// Bytes of the chunk that starts with entry `at` of a table.
    fn chunk_len(&self, at: u64) -> u32 {
        debug_assert!(at < self.entries());
        (self.geometry.table_bytes - at * 8).min(CHUNK) as u32
    }

    fn read_l1(&mut self) {
        let offset = self.geometry.l1_offset + self.l1_at * 8;
        debug_assert!(offset + 8 <= self.geometry.l1_offset + self.geometry.table_bytes, "within the table");
        self.steps.emit(CheckStep::ReadL1, IoOp::ReadTable { offset, len: self.chunk_len(self.l1_at) });
    }

    /// Goes on with the next L1 entry of the chunk that has an L2 table to walk.
    fn next_table(&mut self) {
        while let Some(&entry) = self.l1.get(self.l1_next) {
            let index = self.l1_at + self.l1_next as u64;
            debug_assert!(index < self.entries(), "an index of the table");
            self.l1_next += 1;
            if entry == 0 {
                continue;
            }
            if let Err(error) = self.geometry.check_table(index, entry, self.end) {
                self.l1_fixed |= self.bad_entry(error);
                if self.repair.is_some()
                    && let Some(entry) = self.l1.get_mut(self.l1_next - 1)
                {
                    *entry = 0;
                }
                continue;
            }
            if !self.mark_used(entry, u64::from(self.header.table_size)) {
                continue;
            }
            (self.l2_table, self.l2_at, self.last_data) = (entry, 0, 0);
            return self.read_l2();
        }
        if core::mem::take(&mut self.l1_fixed) {
            let offset = self.geometry.l1_offset + self.l1_at * 8;
            return self
                .steps
                .emit(CheckStep::WriteL1, IoOp::WriteTable { offset, len: self.l1.len() as u32 * 8 });
        }
        self.next_l1_chunk();
    }

    fn next_l1_chunk(&mut self) {
        debug_assert!(self.l1_next >= self.l1.len(), "every entry of the chunk was seen");
        self.l1_at += self.l1.len() as u64;
        (self.l1_next, self.l1_ahead) = (0, 0);
        if self.l1_at < self.entries() {
            return self.read_l1();
        }
        self.walked();
    }

    fn bad_entry(&mut self, error: Error) -> bool {
        self.report.problem(error);
        if self.repair.is_some() {
            self.report.corruptions_fixed += 1;
            self.repaired = true;
            return true;
        }
        self.report.corruptions += 1;
        false
    }

    fn read_l2(&mut self) {
        debug_assert!(self.l2_table > 0);
        let offset = self.l2_table + self.l2_at * 8;
        debug_assert!(offset + 8 <= self.l2_table + self.geometry.table_bytes, "within the table");
        self.steps.emit(CheckStep::ReadL2, IoOp::ReadTable { offset, len: self.chunk_len(self.l2_at) });
    }

    fn walk_l2(&mut self, bytes: &[u8]) {
        debug_assert!(self.l1_next > 0, "an entry led here");
        let entries = bytes.as_chunks::<8>().0;
        self.l2_count = entries.len() as u64;
        self.l2.clear();
        let mut index = 0;
        while let Some(rest) = entries.get(index..).filter(|rest| !rest.is_empty()) {
            let run = run(rest, self.geometry.cluster_size());
            let entry = rest.first().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if entry > 1 && !self.mark_run(entry, run as u64) {
                self.walk_entries(entries, index, run);
            }
            index += run;
        }
        if !self.l2.is_empty() {
            let offset = self.l2_table + self.l2_at * 8;
            return self
                .steps
                .emit(CheckStep::WriteL2, IoOp::WriteTable { offset, len: self.l2.len() as u32 * 8 });
        }
        self.next_l2_chunk();
    }

    /// Counts a run of entries that lead to clusters one behind the other. False: each is to be looked at.
    fn mark_run(&mut self, entry: u64, count: u64) -> bool {
        debug_assert!(entry > 1 && count > 0);
        let cluster = self.geometry.cluster_size();
        let sound = |entry| self.geometry.check_data(0, entry, self.end).is_ok();
        // the last as well: then all of them are in the file
        if !sound(entry) || !sound(entry + (count - 1) * cluster) {
            return false;
        }
        self.report.allocated_clusters += count;
        if self.last_data != 0 && self.last_data.wrapping_add(cluster) != entry {
            self.report.fragmented_clusters += 1;
        }
        self.last_data = entry + (count - 1) * cluster;
        let first = entry >> self.geometry.cluster_bits;
        self.mark(first, first + count, None);
        true
    }

    fn walk_entries(&mut self, entries: &[[u8; 8]], first: usize, count: usize) {
        debug_assert!(first + count <= entries.len());
        let table = (self.l1_at + self.l1_next as u64 - 1) << self.geometry.table_bits;
        for (index, bytes) in entries.iter().enumerate().skip(first).take(count) {
            let entry = u64::from_le_bytes(*bytes);
            if entry <= 1 {
                continue;
            }
            self.report.allocated_clusters += 1;
            if self.last_data != 0 && self.last_data.wrapping_add(self.geometry.cluster_size()) != entry {
                self.report.fragmented_clusters += 1;
            }
            self.last_data = entry;
            // only for the message: an index beyond what 64 bits address cannot be named
            let guest = table + self.l2_at + index as u64;
            let guest = guest.checked_shl(self.geometry.cluster_bits).unwrap_or(u64::MAX);
            if let Err(error) = self.geometry.check_data(guest, entry, self.end) {
                if self.bad_entry(error) {
                    if self.l2.is_empty() {
                        self.l2 = entries.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
                    }
                    if let Some(entry) = self.l2.get_mut(index) {
                        *entry = 0;
                    }
                }
                continue;
            }
            self.mark_used(entry, 1);
        }
    }

    fn next_l2_chunk(&mut self) {
        debug_assert!(self.l2_at < self.entries());
        self.l2_at += self.l2_count;
        if self.l2_at < self.entries() { self.read_l2() } else { self.next_table() }
    }

    /// All tables are walked: count leaks; with repair go on to make it durable.
    fn walked(&mut self) {
        debug_assert!(self.l1_at >= self.entries(), "all of the L1 table was seen");
        let clusters = if self.device { self.used.end } else { self.end >> self.geometry.cluster_bits };
        let usable = clusters.saturating_sub(u64::from(self.header.header_size));
        debug_assert!(self.l2_at <= self.entries(), "no table goes on behind its end");
        if self.report.check_errors == 0 {
            self.report.leaks = usable.saturating_sub(self.used.count);
        }
        if self.repair.is_none() {
            return self.end();
        }
        if self.repaired {
            return self.steps.emit(CheckStep::SyncRepairs, IoOp::Sync);
        }
        self.repairs_durable();
    }

    fn repairs_durable(&mut self) {
        debug_assert!(self.repair.is_some());
        if !self.report.is_sound() {
            self.header.keep_need_check();
            return self.end();
        }
        let len = self.end_in_use();
        // also a part of a cluster, which nothing may refer to
        match len < self.len && !self.device {
            true => self.steps.emit(CheckStep::Trim, IoOp::SetLen { len }),
            false => self.clear(),
        }
    }

    fn trimmed(&mut self) {
        debug_assert!(self.repair.is_some() && self.report.is_sound());
        let len = self.end_in_use();
        let given_back =
            ((self.end - len.min(self.end)) >> self.geometry.cluster_bits).min(self.report.leaks);
        self.report.leaks -= given_back;
        self.report.leaks_fixed += given_back;
        self.len = len;
        match self.header.need_check() {
            true => self.steps.emit(CheckStep::SyncTrim, IoOp::Sync),
            false => self.end(),
        }
    }

    /// Everything is in order: the bit may say so.
    fn clear(&mut self) {
        debug_assert!(self.repair.is_some());
        if !self.header.need_check() {
            return self.end();
        }
        self.header.set_need_check(false);
        let len = self.header.block_len();
        self.steps.emit(CheckStep::WriteHeader, IoOp::WriteTable { offset: 0, len });
    }

    fn end(&mut self) {
        debug_assert!(self.repair.is_some() || !self.repaired, "without leave nothing is repaired");
        let report = core::mem::take(&mut self.report);
        self.steps.end(Ok(report));
    }

    fn unreadable(&mut self, error: Error) {
        self.report.check_errors += 1;
        debug_assert!(self.l2_table > 0, "an L2 table could not be read");
        self.report.problem(error);
        self.next_table();
    }
}

/// How many entries from the first on lead to nothing, or to clusters one behind the other.
fn run(entries: &[[u8; 8]], cluster: u64) -> usize {
    let Some((first, others)) = entries.split_first() else { return 0 };
    let first = u64::from_le_bytes(*first);
    if first <= 1 {
        return 1 + others.iter().take_while(|bytes| u64::from_le_bytes(**bytes) <= 1).count();
    }
    let expected = |n: u64| first.wrapping_add(n.wrapping_mul(cluster));
    let follows = |(bytes, n): &(&[u8; 8], u64)| u64::from_le_bytes(**bytes) == expected(*n);
    let run = 1 + others.iter().zip(1..).take_while(follows).count();
    debug_assert!(run <= entries.len(), "a run of the table");
    run
}

fn decode(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

impl Machine for Check {
    fn poll_io(&mut self) -> Option<Io> {
        let io = self.steps.poll_io();
        let changes = io.is_some_and(|io| io.op.changes_file());
        debug_assert!(self.repair.is_some() || !changes, "without leave nothing is written");
        io
    }

    fn poll_ahead(&mut self) -> Option<(u64, u64)> {
        if self.steps.step() != Some(&CheckStep::ReadL2) {
            return None;
        }
        let len = self.geometry.table_bytes.min(AHEAD);
        let end = self.l1_next + (AHEAD / len) as usize;
        self.l1_ahead = self.l1_ahead.max(self.l1_next);
        while self.l1_ahead < end {
            let offset = *self.l1.get(self.l1_ahead)?;
            self.l1_ahead += 1;
            if offset != 0 {
                return Some((offset, len));
            }
        }
        None
    }

    fn encode(&mut self, _id: IoId, buf: &mut [u8]) {
        let entries = match self.steps.step() {
            Some(CheckStep::WriteHeader) => return self.header.encode_block(buf),
            Some(CheckStep::WriteL1) => &self.l1,
            _ => &self.l2,
        };
        debug_assert_eq!(buf.len(), entries.len() * 8, "the chunk that was named");
        for (bytes, entry) in buf.chunks_exact_mut(8).zip(entries) {
            bytes.copy_from_slice(&entry.to_le_bytes());
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        let Some(step) = self.steps.answered(id) else { return };
        if let Outcome::Failed(errno) = outcome {
            let offset = self.l2_table + self.l2_at * 8;
            let error = |op| Error::Device { op, offset, errno };
            match step {
                CheckStep::ReadL2 => return self.unreadable(error(Op::CheckL2)),
                // the space is a leak as before
                CheckStep::Trim => return self.clear(),
                _ => {
                    let error = Error::Device { op: Op::Check, offset: self.geometry.l1_offset, errno };
                    return self.steps.fail(error);
                }
            }
        }
        match (step, outcome) {
            (CheckStep::ReadL1, Outcome::Table(bytes)) => {
                self.l1 = decode(bytes);
                self.next_table();
            }
            (CheckStep::ReadL2, Outcome::Table(bytes)) => self.walk_l2(bytes),
            (CheckStep::WriteL2, _) => self.next_l2_chunk(),
            (CheckStep::WriteL1, _) => self.next_l1_chunk(),
            (CheckStep::SyncRepairs, _) => self.repairs_durable(),
            (CheckStep::WriteHeader, _) => self.steps.emit(CheckStep::SyncHeader, IoOp::Sync),
            (CheckStep::Trim, _) => self.trimmed(),
            (CheckStep::SyncTrim, _) => self.clear(),
            (CheckStep::SyncHeader, _) => self.end(),
            (CheckStep::ReadL1 | CheckStep::ReadL2, _) => {
                self.steps.fail(Error::Misuse("a table read was completed without its bytes"));
            }
        }
    }
}
