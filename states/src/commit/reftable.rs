//! The refcount table on its way into the file (qcow2).
//!
//! Knows: which of its blocks the file lacks. Must never know: why clusters are counted.
//!
//! Invariants (docs/ordering.md):
//! * an entry of the refcount table is written when its block is durable (QC9), and is durable before a
//!   pointer to anything that the block counts is written;
//! * a new refcount table is complete and durable before the header leads to it, which is durable before
//!   the old one's clusters are free (QC10).

use super::pipeline::{Commit, Phase};
use super::progress::TABLE_WRITES_MAX;
use crate::fault::Op;
use crate::io::IoOp;
use crate::options::Options;
use crate::outbox::{Outbox, Purpose};
use crate::space::counts::Refcounted;

/// Bytes of a new refcount table that are written at once.
const CHUNK: u64 = 64 << 10;

impl Commit {
    /// Names writes of the refcount table: the blocks that changed, or all of a new one. True: all are
    /// written.
    pub(crate) fn write_reftable(
        &mut self,
        counted: &Refcounted,
        options: &Options,
        out: &mut Outbox,
    ) -> bool {
        debug_assert_eq!(self.phase, Phase::Reftable);
        let (durable, align) = (self.windows.durable(), options.align.max(512));
        let moving = counted.moving.as_ref().filter(|moving| moving.is_due(durable));
        let (offset, step, moved) = match moving {
            Some(moving) => (moving.offset.unwrap_or(0), CHUNK, true),
            None => (counted.header.reftable_offset, u64::from(align), false),
        };
        let bytes = if moved { counted.table.len() * 8 } else { counted.file_entries() * 8 } as u64;
        debug_assert!(offset > 0 && bytes > 0, "a refcount table has a place");
        let mut next = self.writing.cursor as u64;
        while next * step < bytes && self.writing.in_flight() < TABLE_WRITES_MAX {
            let (at, len) = (next * step, step.min(bytes - next * step));
            next += 1;
            debug_assert!(len > 0 && at < bytes, "a piece of the table");
            let due = counted.changed.iter().any(|(index, window)| {
                let place = *index as u64 * 8;
                *window <= durable && place >= at && place < at + len
            });
            if !moved && !due {
                continue;
            }
            self.writing.emitted();
            let op = IoOp::WriteTable { offset: offset + at, len: len as u32 };
            out.emit(Purpose::Reftable(at), Op::WriteReftable, offset + at, op);
        }
        self.writing.cursor = next as usize;
        self.writing.in_flight() == 0
    }

    /// One of them ended.
    pub(crate) fn reftable_write_ended(&mut self) {
        debug_assert!(
            matches!(self.phase, Phase::Reftable | Phase::Idle),
            "nothing goes on before, but a stop"
        );
        self.writing.ended();
        self.wrote();
    }
}
