//! Transforms of guest bytes on their way between an image and the backend: what decompresses, and what
//! compresses.
//!
//! Knows: the clusters that layers want, how much a turn may do. Must never know: table entries, control
//! blocks, what a turn does besides.
//!
//! Invariants:
//! * a transform does not hold the thread: it is done by `workers`, or, where nothing could wake the event
//!   loop, a slice a turn; what is made is copied at most [`COPY`] bytes a turn, what is there at most
//!   [`serve::AT_ONCE`] bytes a want. What is left to do on this thread waits in queues while `next_timeout`
//!   is zero;
//! * a stream yields one cluster or the I/O fails with EIO; a cluster becomes shorter, or is left as it is;
//! * one stream is open per worker: the memory of decoders (zstd: a window of up to 128 MiB if the image says
//!   so) and of encoders is bounded however many disks there are.

mod drive;
pub(crate) mod inflate;
pub(crate) mod pack;
mod serve;
mod shrink;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod work;
mod workers;

use crate::layer::out::Out;
use inflate::{Decoders, Stream};
use pack::{Encoders, Packing};
use quod_backend::pool::Crew;
use quod_backend::{Backend, CpuSet, Segments};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use work::{Copying, PackWork, Work};
use workers::Workers;

/// Bytes that one slice takes or makes at most.
const SLICE: usize = 32 << 10;
/// Bytes that a turn copies to those that wait, at most.
pub(crate) const COPY: u64 = 64 << 10;

/// What waits for its turn on this thread, and the workers.
pub(crate) struct Transform {
    /// What no worker does.
    queue: VecDeque<(Work, Stream)>,
    decoders: Decoders,
    /// The same of what is to become shorter, with the guest's bytes.
    packing: VecDeque<(PackWork, Packing, Segments)>,
    encoders: Encoders,
    /// A slice of those bytes.
    piece: Vec<u8>,
    copies: VecDeque<Copying>,
    /// Streams that have not ended, and copies.
    open: usize,
    /// The workers that there may be.
    crew: Crew,
    /// Made when first used; None: they could not be made.
    workers: Option<Option<Workers>>,
}

impl Transform {
    /// With at most so many workers, on these processors.
    pub(crate) fn new(most: usize, cpus: Option<CpuSet>) -> Transform {
        Transform {
            queue: VecDeque::new(),
            decoders: Decoders::default(),
            packing: VecDeque::new(),
            encoders: Encoders::default(),
            piece: Vec::new(),
            copies: VecDeque::new(),
            open: 0,
            crew: Crew { first: 1, most, cpus },
            workers: None,
        }
    }

    /// Those who do it off this thread, if there can be any.
    fn workers<B: Backend>(&mut self, out: &Out<'_, B>) -> Option<&mut Workers> {
        let crew = self.crew;
        let workers = self.workers.get_or_insert_with(|| {
            let notify = out.port.backend.notify_fd().filter(|_| crew.most > 0)?;
            Workers::new(notify, crew).ok()
        });
        workers.as_mut()
    }

    /// There is nothing to transform.
    pub(crate) fn is_unused(&self) -> bool {
        let waits = self.queue.len() + self.packing.len() + self.copies.len();
        debug_assert!(self.open >= waits, "more waits than there is");
        self.open == 0
    }

    /// Nothing waits for its turn on this thread.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.packing.is_empty() && self.copies.is_empty()
    }

    /// Workers are at it: they tell the descriptor, but a backend that sleeps may not listen.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(&self.workers, Some(Some(workers)) if workers.is_busy())
    }

    /// Sleeps until the backend's descriptor is readable.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.workers {
            Some(Some(workers)) => workers.sleep(timeout),
            _ => Ok(()),
        }
    }
}
