//! The L1 table on its way to another place, a chunk at a time.
//!
//! Knows: the table's bytes. Must never know: what its entries say, why it moves (`resize.rs`).
//!
//! Invariant: nothing else is accepted meanwhile, so the file has all of the old table.

use crate::acb::job::Resizing;
use crate::base::geometry::{L1_BYTES_MAX, align_up};
use crate::base::queue::Queue;
#[cfg(feature = "sabotage")]
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::Op;
use crate::image::value::Image;
use crate::io::{IoOp, Outcome};
use crate::outbox::Purpose;
#[cfg(feature = "sabotage")]
use crate::rule::Rule;
use crate::space::kind::ClusterRun;

/// Bytes of the L1 table that are copied at once.
const CHUNK: u64 = 64 << 10;

impl Image {
    /// Bytes of the old table, and how much of the file they take.
    fn old_l1(&self) -> (u64, u64) {
        let bytes = self.refcounted.as_deref().map_or(0, |counted| u64::from(counted.header.l1_entries) * 8);
        debug_assert!(bytes <= L1_BYTES_MAX, "a longer table was refused");
        (bytes, align_up(bytes, u64::from(self.options.align.max(512))))
    }

    pub(super) fn read_l1(&mut self) {
        debug_assert!(self.jobs.copying_ref().is_some(), "it moves");
        let Some(from) = self.layout.geometry().map(|geometry| geometry.l1_offset) else { return };
        let (_, whole) = self.old_l1();
        let Some(copying) = self.jobs.copying() else { return };
        if copying.done >= whole {
            // all of it is there
            let mut waiter = core::mem::replace(&mut copying.waiter, Queue::new());
            return self.requests.wake(&mut waiter);
        }
        let (offset, len) = (from + copying.done, (whole - copying.done).min(CHUNK) as u32);
        self.outbox.emit(Purpose::L1Read, Op::ReadL1, offset, IoOp::ReadTable { offset, len });
    }

    /// A chunk of the old L1 table was read.
    pub(crate) fn l1_read(&mut self, outcome: Outcome<'_>, result: Result<(), Error>) {
        debug_assert!(self.jobs.copying_ref().is_some(), "it moves");
        let (bytes, _) = self.old_l1();
        let poisoned = self.health.is_halted();
        let Some(copying) = self.jobs.copying() else { return };
        let Outcome::Table(read) = outcome else {
            let error = result.err().unwrap_or(Error::Misuse("a table read was completed without its bytes"));
            return self.l1_failed(&error);
        };
        if poisoned {
            return self.l1_failed(&Error::Poisoned);
        }
        copying.chunk.clear();
        copying.chunk.extend_from_slice(read);
        // what lies behind the table in its last block is none of it
        let keep = bytes.saturating_sub(copying.done).min(read.len() as u64) as usize;
        copying.chunk.iter_mut().skip(keep).for_each(|byte| *byte = 0);
        let (offset, len) = (copying.to + copying.done, copying.chunk.len() as u32);
        self.outbox.emit(Purpose::L1Write, Op::WriteL1, offset, IoOp::WriteTable { offset, len });
    }

    pub(crate) fn encode_l1(&self, buf: &mut [u8]) {
        let chunk = self.jobs.copying_ref().map(|copying| &copying.chunk);
        if let Some(bytes) = chunk.and_then(|chunk| chunk.get(..buf.len())) {
            buf.copy_from_slice(bytes);
        }
        debug_assert!(chunk.is_some_and(|chunk| chunk.len() == buf.len()), "the chunk that was named");
    }

    /// A chunk of the new L1 table was written.
    pub(crate) fn l1_written(&mut self, result: Result<(), Error>) {
        debug_assert!(self.jobs.copying_ref().is_some_and(|copying| !copying.chunk.is_empty()));
        self.commit.wrote();
        if let Err(error) = result {
            return self.l1_failed(&error);
        }
        if let Some(copying) = self.jobs.copying() {
            copying.done += copying.chunk.len() as u64;
        }
        self.read_l1();
    }

    fn l1_failed(&mut self, error: &Error) {
        debug_assert!(self.jobs.copying_ref().is_some(), "it moves");
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let Some(Resizing::Copy(mut copying)) = self.jobs.take() else { return };
        self.requests.fail_all(&copying.waiter, error);
        self.requests.wake(&mut copying.waiter);
        self.free_clusters(ClusterRun::new(copying.to >> bits, copying.bytes >> bits), 0);
    }

    /// QC11: the old L1 table's clusters before the header leads to the new one.
    #[cfg(feature = "sabotage")]
    pub(super) fn free_l1_early(&mut self, old: Span) {
        debug_assert!(self.options.sabotaged(Rule::SwitchBeforeFree));
        let Some((bits, cluster)) =
            self.layout.geometry().map(|geometry| (geometry.cluster_bits, geometry.cluster_size()))
        else {
            return;
        };
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.map.remove_fixed(old);
        }
        self.free_clusters(ClusterRun::new(old.start >> bits, old.len().div_ceil(cluster).max(1)), 0);
    }
}
