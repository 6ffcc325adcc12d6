//! A check on its way, as a value: what it has counted and found so far, the table at hand, and the one I/O
//! that it waits for.
//!
//! Knows: steps by their names, how a table is read and written a chunk at a time. Must never know: which
//! step follows which (`check.rs`), what a step looks for.
//!
//! Invariant: one I/O is in flight at a time (`steps.rs`).

use super::counts::Counts;
use super::finding::{Finding, Findings};
use super::places::Beyond;
use super::suspects::Hidden;
use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::Fault;
use crate::io::IoOp;
use crate::qcow2::bitmap::Bitmap;
use crate::qcow2::entry::{OFFSET, Shape};
use crate::qcow2::header::Header;
use crate::qcow2::refcount::BlockShape;
use crate::qcow2::snapshot::{Snapshot, TABLE_MAX};
use crate::steps::Steps;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Bytes read or written at once.
pub(super) const CHUNK: usize = 64 << 10;
/// Bytes of tables that are told to be read soon, at most: a disk's queue is full of them.
const AHEAD: u64 = 2 << 20;
/// QEMU counts clusters in 31 bits.
pub(super) const CLUSTERS_MAX: u64 = i32::MAX as u64;

/// What is being read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CheckStep {
    Snapshots,
    Reftable,
    L1,
    ExtendL1,
    L2,
    FixL2,
    DropL1,
    DropL2,
    StoreL1,
    StoreL2,
    SyncDropped,
    Directory,
    BitmapTable,
    Extend,
    Block,
    FixBlock,
    NewBlock,
    SyncNewBlocks,
    NewReftable,
    SyncNewReftable,
    Switch,
    SyncSwitch,
    CopiedL1,
    CopiedL2,
    FixCopiedL2,
    FixCopiedL1,
    NewSnapshots,
    SyncNewSnapshots,
    SwitchSnapshots,
    SyncSwitchSnapshots,
    SyncRepairs,
    WriteHeader,
    MarkCorrupt,
    SyncHeader,
    Cut,
}

/// What comes when the corrected refcount blocks are written.
#[derive(Clone, Debug)]
pub(super) enum After {
    /// The look at the copied flags.
    Copied,
    /// The new snapshot table: its offset and bytes.
    Snapshots(u64, Vec<u8>),
    /// The end of the run.
    Finish,
}

/// A table on its way: read or written a chunk at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) done: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) write: bool,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Check {
    pub(super) header: Header,
    pub(super) shape: Shape,
    pub(super) layout: BlockShape,
    /// The file's length in bytes, and in clusters.
    pub(super) len: u64,
    pub(super) clusters: u64,
    /// What this run may repair; the last run never repairs.
    pub(super) fix: Option<Repair>,
    /// The free end of the file is to be cut off.
    pub(super) cut: bool,
    /// Whole clusters of a device: nothing is placed behind them.
    pub(super) room: Option<u64>,
    /// Something found no place there.
    pub(super) full: bool,
    pub(super) steps: Steps<CheckStep, Report>,
    pub(super) job: Job,
    pub(super) report: Report,
    pub(super) findings: Findings,
    /// Repaired by the run before this one: corruptions, leaks.
    pub(super) fixed: Option<(u64, u64, u64)>,
    pub(super) snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table.
    pub(super) snapshots_len: u64,
    pub(super) snapshot_corruptions: u64,
    /// References found, and refcounts stored.
    pub(super) computed: Counts,
    pub(super) stored: Counts,
    /// Every active entry that has a cluster has the copied flag.
    pub(super) all_copied: bool,
    /// What is wrong though all counts are right.
    pub(super) hidden: Hidden,
    pub(super) reftable: Vec<u64>,
    /// Refcount blocks that cannot be read, because of their place in the refcount table.
    pub(super) bad_blocks: BTreeSet<u64>,
    /// Which L1 table: 0 is the active one, n the snapshot n - 1.
    pub(super) which: usize,
    pub(super) l1: Vec<u64>,
    pub(super) l1_offset: u64,
    pub(super) l1_next: usize,
    /// Entries of the L1 table, or refcount blocks, up to here were told to be read soon.
    pub(super) ahead: u64,
    pub(super) l1_fixed: bool,
    pub(super) l1_overlaps: bool,
    pub(super) l1_writable: bool,
    pub(super) l2_offset: u64,
    pub(super) bitmaps: Vec<Bitmap>,
    pub(super) next: usize,
    pub(super) beyond: Beyond,
    /// The refcount structures have to be rebuilt.
    pub(super) rebuild: bool,
    /// They have been: corruptions and leaks before that.
    pub(super) rebuilt: Option<(u64, u64)>,
    /// Blocks to be written.
    pub(super) dirty: BTreeSet<u64>,
    pub(super) after: After,
    pub(super) wrote: bool,
    pub(super) highest: u64,
}

/// The words of a table.
pub(super) fn decode(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect()
}

impl Check {
    /// A check of the image with this header, read for [`crate::qcow2::Purpose::Check`], in a file of `len`
    /// bytes.
    pub fn new(header: Header, len: u64, repair: Option<Repair>) -> Check {
        let (shape, layout) = (header.shape(), header.refcounts());
        let mut check = Check {
            shape,
            layout,
            len: len.next_multiple_of(512),
            clusters: len.div_ceil(shape.cluster_size()),
            fix: repair,
            cut: repair.is_some(),
            room: None,
            full: false,
            steps: Steps::new(),
            job: Job::default(),
            report: Report::default(),
            findings: Findings::default(),
            fixed: None,
            snapshots: Vec::new(),
            snapshots_len: 0,
            snapshot_corruptions: 0,
            computed: Counts::new(layout),
            stored: Counts::new(layout),
            all_copied: true,
            hidden: Hidden::new(),
            reftable: Vec::new(),
            bad_blocks: BTreeSet::new(),
            which: 0,
            l1: Vec::new(),
            l1_offset: 0,
            l1_next: 0,
            ahead: 0,
            l1_fixed: false,
            l1_overlaps: false,
            l1_writable: false,
            l2_offset: 0,
            bitmaps: Vec::new(),
            next: 0,
            beyond: Beyond::default(),
            rebuild: false,
            rebuilt: None,
            dirty: BTreeSet::new(),
            after: After::Copied,
            wrote: false,
            highest: 0,
            header,
        };
        check.run();
        check
    }

    /// The file is a device: it keeps its length, and what a repair places has to fit. To be said at once.
    pub fn on_device(mut self, device: bool) -> Check {
        if device {
            self.cut = false;
            self.room = Some(self.len >> self.shape.cluster_bits);
        }
        self
    }

    /// The outcome, once. An error means that the check could not be made; what it found wrong is in the
    /// report.
    pub fn poll_result(&mut self) -> Option<Result<Report, Error>> {
        self.steps.poll_result()
    }

    /// The header as it is now, and the file's length.
    pub fn into_parts(self) -> (Header, u64) {
        (self.header, self.len)
    }

    /// Where the last used cluster ends: qemu-img's image-end-offset.
    pub const fn image_end(&self) -> u64 {
        debug_assert!(self.highest < 1 << 55, "no file has as many clusters");
        (self.highest + 1) << self.shape.cluster_bits
    }

    pub(super) fn fail(&mut self, error: Error) {
        self.steps.fail(error);
    }

    /// The next finding, in the order in which qemu-img tells them. After a repair those of the second run
    /// follow.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        self.findings.next()
    }

    pub(super) fn say(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Counts a corruption whose finding has a form of its own.
    pub(super) fn wrong(&mut self, finding: Finding, fault: Fault) {
        self.say(finding);
        self.report.corruptions += 1;
        self.report.problem(Error::Corrupt(fault));
    }

    pub(super) fn corrupt(&mut self, fault: Fault) {
        self.wrong(Finding::Fault(fault), fault);
    }

    /// Makes the one just counted a repaired one.
    pub(super) fn repaired(&mut self) {
        debug_assert!(self.report.corruptions > 0, "it was counted when it was told");
        self.report.corruptions -= 1;
        self.report.corruptions_fixed += 1;
    }

    pub(super) fn emit(&mut self, step: CheckStep, op: IoOp) {
        let may = self.fix.is_some() || step == CheckStep::Cut;
        debug_assert!(may || !op.changes_file(), "without leave nothing is written");
        self.steps.emit(step, op);
    }

    /// Reads a table whole; `len` is bounded by the format's limits.
    pub(super) fn load(&mut self, step: CheckStep, offset: u64, len: usize) {
        debug_assert!(len > 0 && len as u64 <= TABLE_MAX);
        let mut bytes = core::mem::take(&mut self.job.bytes);
        bytes.clear();
        self.job = Job { offset, len, done: 0, bytes, write: false };
        self.go_on(step);
    }

    pub(super) fn store(&mut self, step: CheckStep, offset: u64, bytes: Vec<u8>) {
        debug_assert!(self.fix.is_some() && !bytes.is_empty());
        self.wrote = true;
        self.job = Job { offset, len: bytes.len(), done: 0, bytes, write: true };
        self.go_on(step);
    }

    pub(super) fn write_header(&mut self, step: CheckStep) {
        // a job without bytes: they come from the header when they are asked for
        self.job = Job { write: true, ..Job::default() };
        let len = self.header.block_len();
        debug_assert!(self.fix.is_some(), "without leave nothing is written");
        self.emit(step, IoOp::WriteTable { offset: 0, len });
    }

    /// The next table behind the one that is read now, and not far behind it.
    pub(super) fn next_ahead(&mut self) -> Option<(u64, u64)> {
        let cluster = self.shape.cluster_size();
        let tables = (AHEAD / cluster).max(1);
        if self.steps.step() == Some(&CheckStep::Block) {
            let first = self.dirty.first()? + 1;
            let index = *self.dirty.range(self.ahead.max(first)..first + tables).next()?;
            self.ahead = index + 1;
            return Some((*self.reftable.get(index as usize)?, cluster));
        }
        if !matches!(self.steps.step(), Some(CheckStep::L2 | CheckStep::CopiedL2 | CheckStep::DropL2)) {
            return None;
        }
        let end = self.l1_next as u64 + tables;
        self.ahead = self.ahead.max(self.l1_next as u64);
        while self.ahead < end {
            let offset = self.l1.get(self.ahead as usize)? & OFFSET;
            self.ahead += 1;
            if offset != 0 {
                return Some((offset, cluster));
            }
        }
        None
    }

    pub(super) fn go_on(&mut self, step: CheckStep) {
        let offset = self.job.offset + self.job.done as u64;
        let len = (self.job.len - self.job.done).min(CHUNK) as u32;
        debug_assert!(len > 0 || self.job.len == 0, "a step moves bytes");
        let write = self.job.write;
        self.emit(
            step,
            if write { IoOp::WriteTable { offset, len } } else { IoOp::ReadTable { offset, len } },
        );
    }
}
