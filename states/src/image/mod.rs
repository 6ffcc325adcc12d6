//! The machine of one open image: requests go in, named I/O comes out, each request an explicit state
//! machine.
//!
//! Grammar (as quinn-proto and str0m have it): *mutators* are `submit`, `handle_completion`,
//! `handle_timeout`; after each of them drain `poll_io`, `poll_timeout`, `poll_event` (and `poll_transition`)
//! until all are empty.
//!
//! Knows: acbs, requests, tables, space, the commit pipeline. Must never know: file descriptors, clocks,
//! threads, guest bytes.
//!
//! Invariants:
//! * each live acb is in exactly one place: own I/O in flight, one wait list, or the ready queue;
//! * nothing recurses: waking an acb puts it into the ready queue, which `run_ready` empties before a mutator
//!   returns;
//! * shared I/O (table loads and writes, header, sync, growth) belongs to the shared object, never to the acb
//!   that came first;
//! * every queue is bounded by the number of acbs or requests.

mod change;
mod commit;
mod dangling;
mod format;
mod full;
mod job;
mod metadata;
mod outbox;
mod overlap;
mod owners;
mod quarantine;
mod reclaim;
mod refcounts;
mod run;
#[cfg(feature = "sabotage")]
mod sabotage;
mod space;
mod sweep;
mod wait;

pub use commit::Timer;
pub(crate) use owners::Owners;

use crate::acb::Want;
use crate::acb::edges::EdgeCounts;
use crate::acb::request::{Event, Flags, Kind, Refused, Request, RequestId};
use crate::acb::requests::Requests;
use crate::acb::{State, Transition};
use crate::base::aside::Aside;
use crate::base::geometry::{Geometry, SLICE_BYTES, SliceNumber};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::health::Health;
use crate::options::{Options, Policy};
use crate::qcow2;
use crate::qcow2::header::RAW_DATA_FILE;
use crate::qed::Header;
use crate::rule::Rule;
use crate::tables::cache::TableCache;
use alloc::boxed::Box;
use alloc::vec::Vec;
use commit::Commit;
use dangling::Dangling;
use format::{Layout, Start};
use job::resize::Resizing;
use outbox::{Outbox, Purpose};
use refcounts::Refcounted;
use space::Space;
use wait::claims::Claim;

/// Table writes in flight at once.
const TABLE_WRITES_MAX: u32 = 32;
/// Uncommitted mappings that are remembered at most; half of it asks for a commit.
const YOUNG_MAX: usize = 16384;

/// Set or clear a timer: a new alarm replaces the timer's old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Alarm {
    /// Which.
    pub timer: Timer,
    /// Milliseconds from now; None: off.
    pub after_ms: Option<u32>,
}

/// Counts since the image was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Lookups that found their slice in the cache.
    pub hits: u64,
    /// Lookups that had to wait for a slice.
    pub misses: u64,
    /// Clusters allocated for data.
    pub allocations: u64,
    /// Slices read.
    pub table_reads: u64,
    /// Writes of table slices.
    pub table_writes: u64,
    /// Bytes in them.
    pub table_bytes_written: u64,
    /// Syncs of the file.
    pub syncs: u64,
    /// Times the file was grown ahead.
    pub grows: u64,
    /// Rounds of the commit pipeline.
    pub commits: u64,
    /// L2 tables allocated.
    pub new_tables: u64,
    /// Writes of the header.
    pub header_writes: u64,
    /// Completions that named no I/O in flight: the embedder's mistake.
    pub stale_completions: u64,
    /// Transitions that nobody polled in time.
    pub lost_transitions: u64,
}

/// What is known of a qcow2 image's metadata when it is opened for writing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    /// The refcount table.
    pub(crate) reftable: Vec<u64>,
    /// Where snapshots have their metadata: first byte and the one behind.
    pub(crate) snapshots: Vec<(u64, u64)>,
    /// L2 tables, and which L1 entries lead there.
    pub(crate) l2: Owners,
    /// The first L1 entry that leads to a table that is another one's alone, or its own, and which.
    pub(crate) twice: Option<(u64, u64)>,
    /// Of the clusters from here on, bytes, the counts are 0.
    pub(crate) tail: Option<u64>,
}

/// What only observes.
#[derive(Clone, Debug, Default)]
struct Observed {
    counters: Counters,
    scratch: Vec<u64>,
}

/// One open image. See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Image {
    layout: Layout,
    options: Options,
    size: u64,
    backing_len: Option<u64>,
    requests: Requests,
    outbox: Outbox,
    tables: TableCache,
    /// qcow2, open for writing.
    refcounted: Option<Box<Refcounted>>,
    dangling: Dangling,
    space: Space,
    commit: Commit,
    claims: Vec<Claim>,
    /// Acbs that wait for a sector (see `wait/sectors.rs`).
    sector_waiters: Queue,
    /// Acbs that write only parts of sectors just now.
    modifying: u32,
    /// Acbs that wait for room in the cache.
    slot_waiters: Queue,
    closing: bool,
    /// The size is being changed (qcow2).
    resizing: Option<Resizing>,
    /// Nothing is accepted until that is done.
    exclusive: bool,
    health: Health,
    observed: Aside<Observed>,
}

impl Image {
    /// A raw image of `len` bytes. A guest's disk has whole sectors: behind the end of the file are zeros,
    /// and what is written there makes it longer.
    pub fn raw(len: u64, options: &Options) -> Image {
        Image::new(Layout::raw(), len.next_multiple_of(512), len, false, options)
    }

    /// A QED image whose header was validated against a file of `file_len` bytes.
    pub(crate) fn qed(header: Header, file_len: u64, options: &Options) -> Image {
        let size = header.image_size;
        let stale = header.autoclear_features != 0;
        Image::new(Layout::qed(header), size, file_len, stale, options)
    }

    /// A qcow2 image whose header was validated, in a file of `file_len` bytes. To be written it needs its
    /// refcount table, and the places of snapshots' tables.
    pub(crate) fn qcow2(
        header: &qcow2::Header,
        file_len: u64,
        written: Option<Tables>,
        options: &Options,
    ) -> Image {
        debug_assert!(options.read_only || written.is_some());
        let stale = header.stale_autoclear(RAW_DATA_FILE) != 0;
        let size = header.guest_size();
        let mut image = Image::new(Layout::qcow2(header), size, file_len, stale, options);
        if let Some(tables) = written {
            let tail = tables.tail;
            let mut counted = Refcounted::new(header.clone(), tables, image.space.end());
            // counts that forget metadata are not believed
            if let Some(tail) = tail.filter(|tail| counted.metadata_end() <= *tail) {
                image.space.begin_at(tail);
            }
            counted.unseen.1 = image.space.next() >> header.cluster_bits;
            image.refcounted = Some(Box::new(counted));
            if header.l1_entries > 0 {
                image.space.reach(header.l1_offset + u64::from(header.l1_entries) * 8);
            }
        }
        image
    }

    fn new(layout: Layout, size: u64, file_len: u64, stale: bool, options: &Options) -> Image {
        let (acbs, requests) = (options.acbs.max(1), options.requests.max(1));
        let marked = layout.qed_header().is_some_and(Header::need_check);
        let Start { edges, space, slices, slots_min } = layout.start(size, file_len, options);
        let slots = (options.cache_bytes / u64::from(SLICE_BYTES)).clamp(slots_min, 1 << 24) as usize;
        Image {
            layout,
            options: *options,
            size,
            backing_len: None,
            requests: Requests::new(edges, acbs, requests, options.trace),
            // one load or copy an acb at most, the tables, holes, and header, sync, growth, counts going down
            outbox: Outbox::new(acbs, acbs + TABLE_WRITES_MAX + quarantine::PUNCHES_MAX + 10, requests),
            tables: TableCache::new(slots, slices).without(options),
            refcounted: None,
            dangling: Dangling::new(space.end()),
            space,
            commit: Commit::new(marked),
            claims: Vec::with_capacity(acbs as usize),
            sector_waiters: Queue::new(),
            modifying: 0,
            slot_waiters: Queue::new(),
            closing: false,
            resizing: None,
            exclusive: false,
            health: Health::new(stale && !options.read_only),
            observed: Aside::default(),
        }
    }

    /// Length of the backing layer's guest disk; call before the first request. None: no backing layer.
    pub fn set_backing_len(&mut self, len: Option<u64>) {
        debug_assert!(self.requests.is_empty());
        self.backing_len = len;
    }

    /// Size of the guest disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Counts.
    pub fn counters(&self) -> Counters {
        Counters { lost_transitions: self.requests.lost_transitions(), ..self.observed.counters }
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

    /// Takes a request, or says why not.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refused> {
        // the common case at one glance, the reasons for a refusal apart
        let inside = request.offset.checked_add(request.len).is_some_and(|end| end <= self.size);
        if !inside || self.closing || request.kind as u8 > Kind::Write as u8 || self.options.read_only {
            self.admit(&request)?;
        }
        // one condition: computed before it, the last part cost a read hit 28 instructions
        if self.requests.is_full() || self.exclusive && !self.options.sabotaged(Rule::Exclusive) {
            return Err(Refused::Busy);
        }
        let (pos, end) = match request.kind {
            Kind::Read | Kind::Write | Kind::WriteZeroes | Kind::Discard | Kind::Map => {
                (request.offset, request.offset + request.len)
            }
            Kind::Flush | Kind::Quiesce | Kind::Close | Kind::Resize => (0, 0),
        };
        // room was checked above
        let Some((acb, id)) = self.requests.begin(&request, pos, end) else { return Err(Refused::Busy) };
        // the hot path: a read within one cluster that is there
        if request.kind == Kind::Read
            && let Some(host) = self.hit(pos, end)
        {
            self.read_hit(acb, id, request.len, host);
            return Ok(id);
        }
        self.start(acb, request.kind);
        self.run_ready();
        Ok(id)
    }

    fn admit(&self, request: &Request) -> Result<(), Refused> {
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        if self.closing {
            return Err(Refused::Invalid(Error::Closed));
        }
        if request.kind.changes() && self.options.read_only {
            return misuse("the image is open for reading only");
        }
        match request.kind {
            Kind::Flush | Kind::Quiesce | Kind::Close => Ok(()),
            Kind::Resize => self.admit_resize(request.offset),
            _ => match request.offset.checked_add(request.len) {
                Some(end) if end <= self.size => Ok(()),
                _ => misuse("the range lies beyond the end of the disk"),
            },
        }
    }

    /// Begins nothing more for the requests with this `user` value: reads, writes, write-zeroes, discards and
    /// maps; the others run to their end. One that is left undone, or in part, ends with
    /// [`Error::Cancelled`]: of its range any part may have been done. How many are so.
    pub fn cancel(&mut self, user: u64) -> usize {
        self.requests.cancel(user)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outbox.events.pop_front()
    }

    /// The next change of a timer.
    pub fn poll_timeout(&mut self) -> Option<Alarm> {
        self.outbox.alarms.pop_front()
    }

    /// The next transition, if tracing is on: from a ring of 4096, whose oldest go first.
    pub fn poll_transition(&mut self) -> Option<Transition> {
        self.requests.poll_transition()
    }

    /// The first step of a new acb.
    fn start(&mut self, a: u32, kind: Kind) {
        match kind {
            Kind::Read | Kind::Write | Kind::WriteZeroes | Kind::Discard | Kind::Map => self.look(a),
            Kind::Flush | Kind::Quiesce => self.start_flush(a, kind),
            Kind::Close => self.start_close(a),
            Kind::Resize => self.start_resize(a),
        }
    }

    /// Empties the ready queue.
    fn run_ready(&mut self) {
        while let Some(a) = self.requests.next_ready() {
            self.advance(a);
        }
    }

    /// All the control flow: what an acb does when the thing that its state waits for has happened.
    fn advance(&mut self, a: u32) {
        let acb = self.requests.acb(a);
        debug_assert_eq!(acb.pending, 0);
        match acb.state {
            // nothing of it is written yet: look again, the world may have changed
            State::Free
            | State::ReadL2
            | State::WaitCluster
            | State::WaitSector
            | State::WaitSlot
            | State::GrowFile
            | State::AllocL2
            | State::AllocRefcount => self.look(a),
            State::FindCluster => self.find_cluster(a),
            State::ReadData | State::ReadBacking | State::ReadCompressed => self.extent_read(a),
            State::ReadModify => self.neighbours_read(a),
            State::CopyOnWrite => self.write_piece(a),
            State::WriteData => self.piece_written(a),
            State::ZeroData => self.extent_zeroed(a),
            State::ClearAutoclear => self.cleared(a),
            State::MarkDirty | State::SyncData | State::UpdateL2 | State::SyncTables => self.committed(a),
            State::WaitRequests => self.all_requests_ended(a),
            State::Resize => self.resized(a),
            State::Done => self.finish(a, Ok(())),
        }
    }

    /// To `FindCluster`, and on from there; an error met while waiting ends it instead.
    fn look(&mut self, a: u32) {
        if let Some(error) = self.requests.acb_mut(a).error.take() {
            return self.fail(a, error);
        }
        self.requests.set_state(a, State::FindCluster);
        self.find_cluster(a);
    }

    /// The acb's range is finished, or failed: the acb goes; with its last acb the request ends.
    fn finish(&mut self, a: u32, result: Result<(), Error>) {
        match result {
            Ok(()) => self.end_acb(a, None),
            Err(error) => self.end_acb(a, Some(Box::new(error))),
        }
    }

    fn fail(&mut self, a: u32, error: Box<Error>) {
        self.end_acb(a, Some(error));
    }

    fn end_acb(&mut self, a: u32, error: Option<Box<Error>>) {
        let acb = self.requests.acb(a);
        let kind = acb.kind;
        if acb.state == State::ReadData {
            debug_assert!(!acb.claims && acb.pinned.is_none() && !acb.modifies);
        } else {
            if error.is_some() {
                self.give_back(a);
            }
            self.let_go(a);
            if kind == Kind::Resize {
                self.resize_ended();
            }
        }
        self.requests.set_state_through(a, State::Done, State::Free);
        self.requests.end(a, error, &mut self.outbox.events);
    }

    /// Tables are written and durable, and the header says so: the pipeline's answer to the acbs that wait
    /// for it.
    fn committed(&mut self, a: u32) {
        if let Some(error) = self.requests.acb_mut(a).error.take() {
            return self.fail(a, error);
        }
        match self.requests.acb(a).kind {
            Kind::Close => self.trim(a),
            Kind::Resize => self.size_durable(a),
            _ => self.finish(a, Ok(())),
        }
    }

    /// The acb's range is done: complete, or first through the commit pipeline.
    fn range_done(&mut self, a: u32) {
        let acb = self.requests.acb(a);
        if acb.kind == Kind::Resize {
            return self.range_resized(a);
        }
        let (uncommitted, mut want) = (acb.uncommitted, acb.want);
        // what the range already was may not be durable yet, even if nothing had to be written
        let fua = acb.flags.contains(Flags::FUA) && matches!(acb.kind, Kind::Write | Kind::WriteZeroes);
        if fua {
            want = Want::Durable;
        }
        if uncommitted || fua { self.join_commit(a, want) } else { self.finish(a, Ok(())) }
    }

    /// After a write: does its completion have to wait for the pipeline?
    fn note_written(&mut self, a: u32, allocated: bool) {
        let through = allocated && self.options.policy == Policy::Writethrough;
        let window = self.commit.window;
        self.commit.unsynced = true;
        let acb = self.requests.acb_mut(a);
        acb.window = window;
        acb.uncommitted |= through;
    }
}

/// Names a slice in messages and asserts.
pub(crate) fn slice_read(geometry: &Geometry, number: SliceNumber) -> Op {
    match number {
        _ if geometry.is_l1(number) => Op::ReadL1,
        _ if geometry.is_refcount(number) => Op::ReadRefcounts,
        _ => Op::ReadL2,
    }
}
