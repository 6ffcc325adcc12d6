//! Check and repair of a qcow2 image, as a machine: counts what every table refers to and compares with the
//! refcounts.
//!
//! Knows: all metadata of the image, table by table. Must never know: guest data.
//!
//! Invariants:
//! * the counts are those of `qemu-img check`; after a repair they are those of a second run, as qemu-img's
//!   are. An image that is sound by them is not if the machine would refuse it (`hidden.rs`);
//! * memory is bounded by the refcount blocks that the file has and by what its entries refer to;
//! * without `repair` nothing is written; with it, a table that other metadata overlaps is not written (on a
//!   bitmap's table, what could be a valid entry there is not changed);
//! * repairs are durable before the dirty and corrupt bits are cleared, and these only when the image is
//!   sound; new refcount structures are durable before the header leads to them;
//! * with repair, the file ends with its last cluster in use, if the image is sound: cut when all else is
//!   durable.

use super::be;
use super::bitmap::{self, Bitmap, Piece};
use super::entry::{COMPRESSED, OFFSET, Shape, ZERO};
use super::header::Header;
use super::refcount::BlockShape;
use super::snapshot::{Snapshot, TABLE_MAX};
use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::{Fault, Lack, Op};
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

mod beyond;
mod copied;
mod counts;
mod finding;
mod hidden;
mod refcounts;
mod snapshots;
mod walk;
use beyond::Beyond;
use counts::Counts;
pub use finding::Finding;
use finding::Findings;
use hidden::Hidden;
use snapshots::After;
use walk::decode;

/// Bytes read or written at once.
const CHUNK: usize = 64 << 10;
/// QEMU counts clusters in 31 bits.
const CLUSTERS_MAX: u64 = i32::MAX as u64;

/// What is being read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
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
    Ended,
}

/// A table on its way: read or written a chunk at a time.
#[derive(Clone, Debug, Default)]
struct Job {
    offset: u64,
    len: usize,
    done: usize,
    bytes: Vec<u8>,
    write: bool,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Check {
    header: Header,
    shape: Shape,
    layout: BlockShape,
    /// The file's length in bytes, and in clusters.
    len: u64,
    clusters: u64,
    /// What this run may repair; the last run never repairs.
    fix: Option<Repair>,
    /// The free end of the file is to be cut off.
    cut: bool,
    step: Step,
    id: u32,
    out: Option<IoOp>,
    job: Job,
    report: Report,
    findings: Findings,
    result: Option<Result<Report, Error>>,
    /// Repaired by the run before this one: corruptions, leaks.
    fixed: Option<(u64, u64, u64)>,
    snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table.
    snapshots_len: u64,
    snapshot_corruptions: u64,
    /// References found, and refcounts stored.
    computed: Counts,
    stored: Counts,
    /// References to L2 tables by L1 entries, when entries may be dropped.
    tables: Counts,
    /// What is wrong though all counts are right.
    hidden: Hidden,
    reftable: Vec<u64>,
    /// Refcount blocks that cannot be read, because of their place in the refcount table.
    bad_blocks: BTreeSet<u64>,
    /// Which L1 table: 0 is the active one, n the snapshot n - 1.
    which: usize,
    l1: Vec<u64>,
    l1_offset: u64,
    l1_next: usize,
    l1_fixed: bool,
    l1_overlaps: bool,
    l1_writable: bool,
    l2_offset: u64,
    bitmaps: Vec<Bitmap>,
    next: usize,
    beyond: Beyond,
    /// The refcount structures have to be rebuilt.
    rebuild: bool,
    /// They have been: corruptions and leaks before that.
    rebuilt: Option<(u64, u64)>,
    /// Blocks to be written.
    dirty: BTreeSet<u64>,
    after: After,
    wrote: bool,
    highest: u64,
}

impl Check {
    /// A check of the image with this header, read for [`super::Purpose::Check`], in a file of `len` bytes.
    pub fn new(header: Header, len: u64, repair: Option<Repair>) -> Check {
        let (shape, layout) = (header.shape(), header.refcounts());
        let mut check = Check {
            shape,
            layout,
            len: len.next_multiple_of(512),
            clusters: len.div_ceil(shape.cluster_size()),
            fix: repair,
            cut: repair.is_some(),
            step: Step::Ended,
            id: 0,
            out: None,
            job: Job::default(),
            report: Report::default(),
            findings: Findings::default(),
            result: None,
            fixed: None,
            snapshots: Vec::new(),
            snapshots_len: 0,
            snapshot_corruptions: 0,
            computed: Counts::new(layout),
            stored: Counts::new(layout),
            tables: Counts::new(layout),
            hidden: Hidden::new(layout),
            reftable: Vec::new(),
            bad_blocks: BTreeSet::new(),
            which: 0,
            l1: Vec::new(),
            l1_offset: 0,
            l1_next: 0,
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

    /// The outcome, once. An error means that the check could not be made; what it found wrong is in the
    /// report.
    pub fn poll_result(&mut self) -> Option<Result<Report, Error>> {
        self.result.take()
    }

    /// The header as it is now, and the file's length.
    pub fn into_parts(self) -> (Header, u64) {
        (self.header, self.len)
    }

    /// Where the last used cluster ends: qemu-img's image-end-offset.
    pub const fn image_end(&self) -> u64 {
        (self.highest + 1) << self.shape.cluster_bits
    }

    /// One pass over everything.
    fn run(&mut self) {
        let total_clusters = self.header.guest_size().div_ceil(self.shape.cluster_size());
        self.report = Report { total_clusters, ..Report::default() };
        if self.clusters > CLUSTERS_MAX {
            let error = Error::Unsupported(Lack::Check(self.clusters));
            return self.fail(error);
        }
        if let Err(error) = self.header.check_snapshots() {
            return self.fail(error);
        }
        self.snapshots = Vec::new();
        self.snapshots_len = 0;
        self.snapshot_corruptions = 0;
        self.rebuilt = None;
        self.rebuild = false;
        self.beyond = Beyond::new(self.len);
        self.after = After::Copied;
        self.job = Job::default();
        self.parse_snapshots();
    }

    fn fail(&mut self, error: Error) {
        self.step = Step::Ended;
        self.result = Some(Err(error));
    }

    /// The next finding, in the order in which qemu-img tells them. After a repair those of the second run
    /// follow.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        self.findings.next()
    }

    fn say(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Counts a corruption whose finding has a form of its own.
    fn wrong(&mut self, finding: Finding, fault: Fault) {
        self.say(finding);
        self.report.corruptions += 1;
        self.report.problem(Error::Corrupt(fault));
    }

    fn corrupt(&mut self, fault: Fault) {
        self.wrong(Finding::Fault(fault), fault);
    }

    /// Makes the one just counted a repaired one.
    fn repaired(&mut self) {
        self.report.corruptions -= 1;
        self.report.corruptions_fixed += 1;
    }

    fn emit(&mut self, step: Step, op: IoOp) {
        debug_assert!(self.out.is_none());
        self.step = step;
        self.id = self.id.wrapping_add(1);
        self.out = Some(op);
    }

    /// Reads a table whole; `len` is bounded by the format's limits.
    fn load(&mut self, step: Step, offset: u64, len: usize) {
        debug_assert!(len > 0 && len as u64 <= TABLE_MAX);
        self.job = Job { offset, len, done: 0, bytes: Vec::new(), write: false };
        self.go_on(step);
    }

    fn store(&mut self, step: Step, offset: u64, bytes: Vec<u8>) {
        debug_assert!(self.fix.is_some() && !bytes.is_empty());
        self.wrote = true;
        self.job = Job { offset, len: bytes.len(), done: 0, bytes, write: true };
        self.go_on(step);
    }

    fn write_header(&mut self, step: Step) {
        // a job without bytes: they come from the header when they are asked for
        self.job = Job { write: true, ..Job::default() };
        let len = self.header.block_len();
        self.emit(step, IoOp::WriteTable { offset: 0, len });
    }

    fn go_on(&mut self, step: Step) {
        let offset = self.job.offset + self.job.done as u64;
        let len = (self.job.len - self.job.done).min(CHUNK) as u32;
        let write = self.job.write;
        self.emit(
            step,
            if write { IoOp::WriteTable { offset, len } } else { IoOp::ReadTable { offset, len } },
        );
    }

    /// Everything is looked at: make repairs durable, clear the bits, look again.
    fn finish(&mut self) {
        if self.snapshot_corruptions > 0 && self.fix == Some(Repair::All) && self.move_snapshots() {
            return;
        }
        self.report.corruptions += self.snapshot_corruptions;
        if self.report.is_sound() {
            let fixed = self.report.corruptions_fixed + self.report.leaks_fixed;
            self.tell_hidden(self.fix.is_none() || fixed == 0);
        }
        if self.wrote {
            return self.emit(Step::SyncRepairs, IoOp::Sync);
        }
        self.durable();
    }

    fn durable(&mut self) {
        let marked = self.header.is_dirty() || self.header.is_corrupt();
        if self.fix == Some(Repair::All) && self.beyond.entries_stay() && !self.header.is_corrupt() {
            // whoever writes the image next would put other things there
            self.header.set_corrupt(true);
            if self.header.is_corrupt() {
                return self.write_header(Step::MarkCorrupt);
            }
        }
        if self.fix.is_none() || !self.report.is_sound() || !marked {
            return self.end();
        }
        self.header.set_dirty(false);
        self.header.set_corrupt(false);
        self.write_header(Step::WriteHeader);
    }

    fn end(&mut self) {
        let Report { corruptions_fixed, leaks_fixed, dropped, .. } = self.report;
        let fixed = (corruptions_fixed, leaks_fixed, dropped);
        if self.fix.take().is_some() && fixed != (0, 0, 0) {
            self.fixed = Some(fixed);
            self.wrote = false;
            return self.run();
        }
        if let Some((corruptions, leaks, dropped)) = self.fixed {
            (self.report.corruptions_fixed, self.report.leaks_fixed) = (corruptions, leaks);
            self.report.dropped = dropped;
        }
        if core::mem::take(&mut self.cut) && self.report.is_sound() && self.image_end() < self.len {
            return self.emit(Step::Cut, IoOp::SetLen { len: self.image_end() });
        }
        self.step = Step::Ended;
        self.result = Some(Ok(core::mem::take(&mut self.report)));
    }

    /// The file ends with its last cluster in use; or does not, as a device that has the length it has.
    fn cut(&mut self, result: Result<(), ()>) {
        if result.is_ok() {
            self.len = self.image_end();
        }
        self.end();
    }

    fn loaded(&mut self, step: Step, bytes: Vec<u8>) {
        match step {
            Step::Snapshots => {
                self.job.bytes = bytes;
                self.parse_snapshots();
            }
            Step::Reftable => {
                self.reftable = decode(&bytes);
                self.walk();
            }
            Step::L1 => self.l1_loaded(&bytes),
            Step::L2 => self.l2_loaded(bytes),
            Step::DropL1 => self.drop_l1_loaded(&bytes),
            Step::DropL2 => self.drop_l2_loaded(bytes),
            Step::Directory => self.directory_loaded(&bytes),
            Step::BitmapTable => self.bitmap_loaded(&bytes),
            Step::Block => self.block_loaded(&bytes),
            Step::CopiedL1 => self.copied_l1_loaded(&bytes),
            Step::CopiedL2 => self.copied_l2_loaded(bytes),
            _ => self.fail(Error::Misuse("a read that was not asked for")),
        }
    }

    fn done(&mut self, step: Step) {
        match step {
            Step::FixL2 => self.next_l2(),
            Step::ExtendL1 => self.l1_reached(true),
            Step::StoreL2 => self.drop_next(),
            Step::StoreL1 => self.next_dropping(),
            Step::SyncDropped => self.load_blocks(),
            Step::Extend => self.extended(),
            Step::FixBlock => self.write_blocks(),
            Step::NewBlock => self.write_new_blocks(),
            Step::SyncNewBlocks => self.write_new_reftable(),
            Step::NewReftable => self.emit(Step::SyncNewReftable, IoOp::Sync),
            Step::SyncNewReftable => self.write_header(Step::Switch),
            Step::Switch => self.emit(Step::SyncSwitch, IoOp::Sync),
            Step::SyncSwitch => self.walk(),
            Step::FixCopiedL2 => self.next_copied(),
            Step::FixCopiedL1 => self.finish(),
            Step::NewSnapshots => self.emit(Step::SyncNewSnapshots, IoOp::Sync),
            Step::SyncNewSnapshots => self.write_header(Step::SwitchSnapshots),
            Step::SwitchSnapshots => self.emit(Step::SyncSwitchSnapshots, IoOp::Sync),
            Step::SyncSwitchSnapshots => self.write_blocks(),
            Step::SyncRepairs => self.durable(),
            Step::WriteHeader | Step::MarkCorrupt => self.emit(Step::SyncHeader, IoOp::Sync),
            Step::SyncHeader => self.end(),
            Step::Cut => self.cut(Ok(())),
            _ => self.fail(Error::Misuse("a table read was completed without its bytes")),
        }
    }
}

impl Machine for Check {
    fn poll_io(&mut self) -> Option<Io> {
        self.out.take().map(|op| Io { id: IoId { index: 0, generation: self.id }, op })
    }

    fn encode(&mut self, _id: IoId, buf: &mut [u8]) {
        if matches!(self.step, Step::WriteHeader | Step::MarkCorrupt | Step::Switch | Step::SwitchSnapshots) {
            return self.header.encode_block(buf);
        }
        if let Some(bytes) = self.job.bytes.get(self.job.done..self.job.done + buf.len()) {
            buf.copy_from_slice(bytes);
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if id.generation != self.id || self.step == Step::Ended {
            return;
        }
        let step = self.step;
        match outcome {
            Outcome::Failed(_) if step == Step::Extend => self.not_extended(),
            Outcome::Failed(_) if step == Step::ExtendL1 => self.l1_reached(false),
            Outcome::Failed(_) if step == Step::Cut => self.cut(Err(())),
            Outcome::Failed(errno) => {
                let offset = self.job.offset + self.job.done as u64;
                self.fail(Error::Device { op: Op::Check, offset, errno });
            }
            Outcome::Table(bytes) if !self.job.write => {
                self.job.bytes.extend(bytes);
                self.job.done += bytes.len();
                if bytes.is_empty() || self.job.done >= self.job.len {
                    let bytes = core::mem::take(&mut self.job.bytes);
                    return self.loaded(step, bytes);
                }
                self.go_on(step);
            }
            _ => {
                let tables = [Step::FixL2, Step::FixBlock, Step::NewBlock, Step::NewReftable];
                let others = [Step::FixCopiedL1, Step::FixCopiedL2, Step::NewSnapshots];
                let dropped = [Step::StoreL1, Step::StoreL2];
                if tables.contains(&step) || others.contains(&step) || dropped.contains(&step) {
                    self.job.done = (self.job.done + CHUNK).min(self.job.len);
                    if self.job.done < self.job.len {
                        return self.go_on(step);
                    }
                }
                self.done(step);
            }
        }
    }
}

#[cfg(test)]
mod tests;
