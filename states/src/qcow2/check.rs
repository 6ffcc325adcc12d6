//! Check and repair of a qcow2 image, as a machine: counts what every table refers to and compares with the
//! refcounts.
//!
//! Knows: all metadata of the image, table by table. Must never know: guest data.
//!
//! Invariants:
//! * the counts are those of `qemu-img check`; after a repair they are those of a second run, as qemu-img's
//!   are. An image that is sound by them is not if the machine would refuse it (`hidden.rs`);
//! * memory is bounded by the refcount blocks that the file has and by what its entries refer to: a bit for
//!   most clusters, and less where neighbours are as one another (`counts.rs`);
//! * without `repair` nothing is written; with it, a table that other metadata overlaps is not written (on a
//!   bitmap's table, what could be a valid entry there is not changed);
//! * repairs are durable before the dirty and corrupt bits are cleared, and these only when the image is
//!   sound; new refcount structures are durable before the header leads to them;
//! * with repair, the file ends with its last cluster in use, if the image is sound: cut when all else is
//!   durable.

mod beyond;
mod copied;
mod counts;
mod finding;
mod hidden;
mod places;
mod refcounts;
mod snapshots;
mod state;
mod suspects;
mod walk;

pub use finding::Finding;
pub use state::Check;

use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::{Lack, Op};
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use alloc::vec::Vec;
use places::Beyond;
use state::{After, CHUNK, CLUSTERS_MAX, CheckStep, Job, decode};

impl Check {
    /// One pass over everything.
    fn run(&mut self) {
        let total_clusters = self.header.guest_size().div_ceil(self.shape.cluster_size());
        debug_assert!(self.steps.step().is_none(), "a run begins between two steps");
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
        self.parse_snapshots(Vec::new());
    }

    /// Everything is looked at: make repairs durable, clear the bits, look again.
    fn finish(&mut self) {
        debug_assert!(self.steps.step().is_none(), "the step before is done");
        debug_assert!(self.dirty.is_empty(), "all blocks are written");
        if self.snapshot_corruptions > 0 && self.fix == Some(Repair::All) && self.move_snapshots() {
            return;
        }
        self.report.corruptions += self.snapshot_corruptions;
        if self.report.is_sound() {
            let fixed = self.report.corruptions_fixed + self.report.leaks_fixed;
            self.tell_hidden(self.fix.is_none() || fixed == 0);
        }
        if self.wrote {
            return self.emit(CheckStep::SyncRepairs, IoOp::Sync);
        }
        self.durable();
    }

    fn durable(&mut self) {
        let marked = self.header.is_dirty() || self.header.is_corrupt();
        debug_assert!(self.dirty.is_empty(), "what is repaired is written");
        if self.fix == Some(Repair::All) && self.beyond.entries_stay() && !self.header.is_corrupt() {
            // whoever writes the image next would put other things there
            self.header.set_corrupt(true);
            if self.header.is_corrupt() {
                return self.write_header(CheckStep::MarkCorrupt);
            }
        }
        if self.fix.is_none() || !self.report.is_sound() || !marked {
            return self.end();
        }
        self.header.set_dirty(false);
        self.header.set_corrupt(false);
        self.write_header(CheckStep::WriteHeader);
    }

    fn end(&mut self) {
        let Report { corruptions_fixed, leaks_fixed, dropped, .. } = self.report;
        let fixed = (corruptions_fixed, leaks_fixed, dropped);
        debug_assert!(self.steps.step().is_none(), "the last step is done");
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
            return self.emit(CheckStep::Cut, IoOp::SetLen { len: self.image_end() });
        }
        let report = core::mem::take(&mut self.report);
        self.steps.end(Ok(report));
    }

    /// The file ends with its last cluster in use; or does not, as a device that has the length it has.
    fn cut(&mut self, result: Result<(), ()>) {
        debug_assert!(self.image_end() <= self.len, "only what nothing refers to is cut");
        if result.is_ok() {
            self.len = self.image_end();
        }
        self.end();
    }

    fn loaded(&mut self, step: CheckStep, bytes: &[u8]) {
        match step {
            CheckStep::Snapshots => self.parse_snapshots(bytes.to_vec()),
            CheckStep::Reftable => {
                self.reftable = decode(bytes);
                self.walk();
            }
            CheckStep::L1 => self.l1_loaded(bytes),
            CheckStep::L2 => self.l2_loaded(bytes),
            CheckStep::DropL1 => self.drop_l1_loaded(bytes),
            CheckStep::DropL2 => self.drop_l2_loaded(bytes.to_vec()),
            CheckStep::Directory => self.directory_loaded(bytes),
            CheckStep::BitmapTable => self.bitmap_loaded(bytes),
            CheckStep::Block => self.block_loaded(bytes),
            CheckStep::CopiedL1 => self.copied_l1_loaded(bytes),
            CheckStep::CopiedL2 => self.copied_l2_loaded(bytes),
            _ => self.fail(Error::Misuse("a read that was not asked for")),
        }
    }

    /// A table, or the next piece of it.
    fn table(&mut self, step: CheckStep, bytes: &[u8]) {
        self.job.done += bytes.len();
        let whole = bytes.is_empty() || self.job.done >= self.job.len;
        if whole && self.job.bytes.is_empty() {
            return self.loaded(step, bytes);
        }
        self.job.bytes.extend(bytes);
        if !whole {
            return self.go_on(step);
        }
        let bytes = core::mem::take(&mut self.job.bytes);
        self.loaded(step, &bytes);
        if !self.job.write && self.job.bytes.is_empty() {
            // for the next table
            self.job.bytes = bytes;
            self.job.bytes.clear();
        }
    }

    fn done(&mut self, step: CheckStep) {
        match step {
            CheckStep::FixL2 => self.next_l2(),
            CheckStep::ExtendL1 => self.l1_reached(true),
            CheckStep::StoreL2 => self.drop_next(),
            CheckStep::StoreL1 => self.next_dropping(),
            CheckStep::SyncDropped => self.load_blocks(),
            CheckStep::Extend => self.extended(),
            CheckStep::FixBlock => self.write_blocks(),
            CheckStep::NewBlock => self.write_new_blocks(),
            CheckStep::SyncNewBlocks => self.write_new_reftable(),
            CheckStep::NewReftable => self.emit(CheckStep::SyncNewReftable, IoOp::Sync),
            CheckStep::SyncNewReftable => self.write_header(CheckStep::Switch),
            CheckStep::Switch => self.emit(CheckStep::SyncSwitch, IoOp::Sync),
            CheckStep::SyncSwitch => self.walk(),
            CheckStep::FixCopiedL2 => self.next_copied(),
            CheckStep::FixCopiedL1 => self.finish(),
            CheckStep::NewSnapshots => self.emit(CheckStep::SyncNewSnapshots, IoOp::Sync),
            CheckStep::SyncNewSnapshots => self.write_header(CheckStep::SwitchSnapshots),
            CheckStep::SwitchSnapshots => self.emit(CheckStep::SyncSwitchSnapshots, IoOp::Sync),
            CheckStep::SyncSwitchSnapshots => self.write_blocks(),
            CheckStep::SyncRepairs => self.durable(),
            CheckStep::WriteHeader | CheckStep::MarkCorrupt => self.emit(CheckStep::SyncHeader, IoOp::Sync),
            CheckStep::SyncHeader => self.end(),
            CheckStep::Cut => self.cut(Ok(())),
            _ => self.fail(Error::Misuse("a table read was completed without its bytes")),
        }
    }
}

impl Machine for Check {
    fn poll_io(&mut self) -> Option<Io> {
        self.steps.poll_io()
    }

    fn poll_ahead(&mut self) -> Option<(u64, u64)> {
        self.next_ahead()
    }

    fn encode(&mut self, _id: IoId, buf: &mut [u8]) {
        let headers =
            [CheckStep::WriteHeader, CheckStep::MarkCorrupt, CheckStep::Switch, CheckStep::SwitchSnapshots];
        if self.steps.step().is_some_and(|step| headers.contains(step)) {
            return self.header.encode_block(buf);
        }
        debug_assert!(self.job.write && self.job.done + buf.len() <= self.job.bytes.len());
        if let Some(bytes) = self.job.bytes.get(self.job.done..self.job.done + buf.len()) {
            buf.copy_from_slice(bytes);
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        let Some(step) = self.steps.answered(id) else { return };
        match outcome {
            Outcome::Failed(_) if step == CheckStep::Extend => self.not_extended(),
            Outcome::Failed(_) if step == CheckStep::ExtendL1 => self.l1_reached(false),
            Outcome::Failed(_) if step == CheckStep::Cut => self.cut(Err(())),
            Outcome::Failed(errno) => {
                let offset = self.job.offset + self.job.done as u64;
                self.fail(Error::Device { op: Op::Check, offset, errno });
            }
            Outcome::Table(bytes) if !self.job.write => self.table(step, bytes),
            _ => {
                let tables =
                    [CheckStep::FixL2, CheckStep::FixBlock, CheckStep::NewBlock, CheckStep::NewReftable];
                let others = [CheckStep::FixCopiedL1, CheckStep::FixCopiedL2, CheckStep::NewSnapshots];
                let dropped = [CheckStep::StoreL1, CheckStep::StoreL2];
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
