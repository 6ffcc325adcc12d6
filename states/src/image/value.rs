//! An open image as a value: its parts, and how they begin.
//!
//! Knows: which parts there are. Must never know: what follows from what.
//!
//! Invariants:
//! * each live acb is in exactly one place: own I/O in flight, one wait list, or the ready queue;
//! * shared I/O (table loads and writes, header, sync, growth) belongs to the shared object, never to the acb
//!   that came first;
//! * every queue is bounded by the number of acbs or requests.

use super::format::{Layout, Start};
use crate::acb::edges::EdgeCounts;
use crate::acb::job::Jobs;
use crate::acb::requests::Requests;
use crate::acb::waits::Waits;
use crate::base::aside::Aside;
use crate::base::geometry::SLICE_BYTES;
use crate::commit::{Commit, TABLE_WRITES_MAX};
use crate::counters::Counters;
use crate::error::Error;
use crate::health::Health;
use crate::options::Options;
use crate::outbox::Outbox;
use crate::qcow2;
use crate::qed::Header;
use crate::snapshots::Editing;
use crate::space::Cx;
use crate::space::append::Append;
use crate::space::counts::{OpenedMetadata, Refcounted};
use crate::space::quarantine::PUNCHES_MAX;
use crate::tables::cache::TableCache;
use crate::tables::dangling::Dangling;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// One open image. See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Image {
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) size: u64,
    pub(super) backing_len: Option<u64>,
    pub(super) requests: Requests,
    pub(super) outbox: Outbox,
    pub(super) tables: TableCache,
    /// qcow2, open for writing.
    pub(super) refcounted: Option<Box<Refcounted>>,
    pub(super) dangling: Dangling,
    pub(super) space: Append,
    pub(super) commit: Commit,
    pub(super) waits: Waits,
    pub(super) jobs: Jobs,
    /// What is asked of the snapshots, if anything is.
    pub(super) edit: Option<Box<Editing>>,
    pub(super) health: Health,
    /// What is being encoded.
    pub(super) scratch: Aside<Vec<u64>>,
}

impl Image {
    /// A raw image of `len` bytes. A guest's disk has whole sectors: behind the end of the file are zeros,
    /// and what is written there makes it longer.
    pub fn raw(len: u64, options: &Options) -> Image {
        debug_assert!(len <= u64::MAX - 511, "a file's length is signed");
        Image::new(Layout::raw(), len.next_multiple_of(512), len, false, options)
    }

    /// A QED image whose header was validated against a file of `file_len` bytes. `free_end`: nothing is in
    /// use from there on; else all of the file is.
    pub(crate) fn qed(header: Header, file_len: u64, free_end: Option<u64>, options: &Options) -> Image {
        let size = header.image_size;
        let stale = header.autoclear_features != 0;
        debug_assert!(size.is_multiple_of(512), "the header was validated");
        let mut image = Image::new(Layout::qed(header), size, file_len, stale, options);
        if let Some(free_end) = free_end {
            image.space.begin_at(free_end);
        }
        image
    }

    /// A qcow2 image whose header was validated, in a file of `file_len` bytes. To be written it needs its
    /// refcount table, and the places of snapshots' tables.
    pub(crate) fn qcow2(
        header: &qcow2::Header,
        file_len: u64,
        written: Option<OpenedMetadata>,
        options: &Options,
    ) -> Image {
        debug_assert!(options.read_only || written.is_some());
        let size = header.guest_size();
        let mut image = Image::new(Layout::qcow2(header), size, file_len, false, options);
        if let Some(tables) = written {
            let tail = tables.tail;
            let mut counted = Refcounted::new(header.clone(), tables, image.space.end());
            // counts that forget metadata are not believed
            if let Some(tail) = tail.filter(|tail| counted.metadata_end() <= *tail) {
                image.space.begin_at(tail);
            }
            counted.unseen.end = image.space.used_end() >> header.cluster_bits;
            image.health = Health::new(counted.is_stale());
            image.refcounted = Some(Box::new(counted));
            if header.l1_entries > 0 {
                image.space.reach(header.l1_offset + u64::from(header.l1_entries) * 8);
            }
        }
        debug_assert!(image.refcounted.is_some() != options.read_only, "what may be written counts");
        image
    }

    fn new(layout: Layout, size: u64, file_len: u64, stale: bool, options: &Options) -> Image {
        debug_assert!(options.align.is_power_of_two());
        let (acbs, requests) = (options.acbs.max(1), options.requests.max(1));
        let marked = layout.qed_header().is_some_and(Header::need_check);
        let Start { edges, space, slices, slots_min } = layout.start(size, file_len, options);
        let slots = (options.cache_bytes / u64::from(SLICE_BYTES)).clamp(slots_min, 1 << 24) as usize;
        debug_assert!(slots >= 2 && acbs > 0 && requests > 0, "an image works with what it has");
        Image {
            layout,
            options: *options,
            size,
            backing_len: None,
            requests: Requests::new(edges, acbs, requests, options.trace),
            // one load or copy an acb at most, the tables, holes, and header, sync, growth, counts going down
            outbox: Outbox::new(acbs, acbs + TABLE_WRITES_MAX + PUNCHES_MAX + 10, requests),
            tables: TableCache::new(slots, slices).without(options),
            refcounted: None,
            dangling: Dangling::new(space.end()),
            space,
            commit: Commit::new(marked),
            waits: Waits::new(acbs),
            jobs: Jobs::default(),
            edit: None,
            health: Health::new(stale && !options.read_only),
            scratch: Aside::default(),
        }
    }

    /// Length of the backing layer's guest disk; call before the first request. None: no backing layer.
    pub fn set_backing_len(&mut self, len: Option<u64>) {
        debug_assert!(self.requests.is_empty());
        debug_assert!(self.commit.is_idle(), "nothing has begun");
        self.backing_len = len;
    }

    /// Size of the guest disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        debug_assert!(self.size.is_multiple_of(512), "a disk has whole sectors");
        self.size
    }

    /// Counts.
    pub fn counters(&self) -> Counters {
        Counters { lost_transitions: self.requests.lost_transitions(), ..*self.outbox.counters }
    }

    /// How often each edge was taken.
    pub fn edge_counts(&self) -> &EdgeCounts {
        self.requests.edge_counts()
    }

    /// Why nothing changes any more, if that is so: a failure of metadata or a sync, or a corruption.
    pub fn poisoned(&self) -> Option<&Error> {
        self.health.reason()
    }

    /// Requests that were accepted and have not ended.
    pub fn open_requests(&self) -> usize {
        self.requests.len()
    }

    /// Up to where the file had, when it was opened, what entries of it may lead to: up to its free end, and
    /// up to its end. What an entry of then says beyond one of these is not its own.
    pub(crate) fn old_borders(&self) -> [u64; 2] {
        debug_assert!(self.refcounted.is_some(), "of the formats qcow2 alone has a free end, and counts");
        [self.space.found().0, self.dangling.file_end()]
    }

    /// What counting works with, where clusters are counted.
    pub(super) fn counting(&mut self) -> Option<(&mut Refcounted, Cx<'_>)> {
        let counted = self.refcounted.as_deref_mut()?;
        debug_assert!(self.layout.shape().is_some(), "of the formats qcow2 alone counts");
        let windows = &self.commit.windows;
        let cx = Cx {
            append: &mut self.space,
            tables: &mut self.tables,
            out: &mut self.outbox,
            geometry: self.layout.geometry()?,
            options: &self.options,
            window: windows.open(),
            durable: windows.durable(),
            halted: self.health.is_halted(),
        };
        Some((counted, cx))
    }
}
