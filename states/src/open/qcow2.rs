//! Opening a qcow2 image, as a machine: header, and if the image may be written what has to be in order
//! before the first write.
//!
//! Knows: the order of the steps. Must never know: requests.
//!
//! Invariants:
//! * nothing is written to an image that is open for reading only, nor before the whole header is valid;
//! * autoclear bits that quod does not keep up, those of persistent bitmaps among them, are clear, durably,
//!   before anything is repaired (QC14, QC15): no bitmap looks valid that missed a change. Where nothing is
//!   repaired they stay until the first change (`image/change.rs`);
//! * a dirty image is checked and repaired, durably, before it is ready (QC13); one that cannot be repaired
//!   is refused;
//! * the refcount table is read whole, 8 MiB at most, and of an image that may be written the active L1
//!   table, if it has at most `L1_MAX` entries: so that it is known where L2 tables lie. Of the refcounts
//!   only those of the end of the file are looked at (`tail.rs`). No other table is.

use super::opened::Opened;
use crate::base::geometry::{L1_BYTES_MAX, align_up};
use crate::base::span::Span;
use crate::check::{Repair, Report};
use crate::error::Error;
use crate::fault::{Fault, HeaderFault, Lack, Op, SnapshotFault};
use crate::image::Image;
use crate::info::{Backing, Bitmaps, Info};
use crate::io::{Io, IoId, IoOp, Outcome};
use crate::machine::Machine;
use crate::options::Options;
use crate::qcow2::header::RAW_DATA_FILE;
use crate::qcow2::snapshot::{FIXED, Parsed, Selector, Snapshot};
use crate::qcow2::tail::{Next, Tail};
use crate::qcow2::{self, Header, L1, Purpose, bitmap};
use crate::rule::Rule;
use crate::space::counts::OpenedMetadata;
use crate::space::tracking::Tracking;
use crate::steps::Steps;
use alloc::boxed::Box;
use alloc::string::String;

/// Bytes of a table that are read at once.
const CHUNK: u64 = 64 << 10;
/// Entries of an L1 table that is read: 1 MiB.
const L1_MAX: u32 = 128 << 10;

#[derive(Clone, Debug)]
enum MetadataStep {
    /// The names in the directory of the bitmaps.
    Bitmaps,
    ClearAutoclear,
    SyncAutoclear,
    Check(Box<qcow2::Check>),
    /// An entry of the snapshot table.
    Snapshot,
    Reftable,
    L1,
    /// Counts of the last clusters of the file.
    Tail(Tail),
}

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Qcow2Opening {
    header: Header,
    file_len: u64,
    options: Options,
    steps: Steps<MetadataStep, Box<Opened>>,
    info: Info,
    report: Option<Report>,
    /// Entries of the snapshot table that were read, where the next one begins, and how much of it is read.
    snapshots: (u32, u64, usize),
    tables: OpenedMetadata,
    /// Entries of the L1 table that were read.
    l1_done: u64,
    wanted: Option<Wanted>,
}

/// The snapshot whose disk is to be read, and the one of those that were met that fits best: how well, which
/// it is.
type Wanted = (Selector, u8, Option<(u64, Snapshot)>);

impl Qcow2Opening {
    /// `bytes`: the header's region.
    pub(crate) fn new(
        bytes: &[u8],
        file_len: u64,
        options: Options,
        wanted: Option<Selector>,
    ) -> Result<Qcow2Opening, Error> {
        debug_assert!(wanted.is_none() || options.read_only, "a snapshot is only read");
        let purpose = if options.read_only { Purpose::Read } else { Purpose::Write };
        let header = Header::parse(bytes, purpose)?;
        let align = u64::from(options.align);
        if !options.read_only && header.cluster_size() < align {
            return Err(Error::Unsupported(Lack::SmallClusters(header.cluster_size())));
        }
        debug_assert!(options.read_only || !header.is_corrupt(), "to be written such an image is refused");
        let info = Info::of_qcow2(&header);
        if let Some(Backing { format: None, format_name: Some(name), .. }) = &info.backing {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(Error::Unsupported(Lack::BackingFormat(name)));
        }
        let mut opening = Qcow2Opening {
            file_len,
            options,
            steps: Steps::new(),
            info,
            report: None,
            snapshots: (0, header.snapshots_offset, FIXED),
            tables: OpenedMetadata::default(),
            l1_done: 0,
            wanted: wanted.map(|selector| (selector, 0, None)),
            header,
        };
        opening.begin();
        Ok(opening)
    }

    /// The outcome, once.
    pub(crate) fn poll_result(&mut self) -> Option<Result<Box<Opened>, Error>> {
        self.steps.poll_result()
    }

    fn begin(&mut self) {
        debug_assert!(self.steps.step().is_none(), "it begins once");
        if self.wanted.is_some() {
            return self.next_snapshot();
        }
        if self.options.read_only {
            return self.finish();
        }
        let Some(list) = self.header.bitmaps() else { return self.put_in_order() };
        let (offset, len) = (list.directory_offset, list.directory_size.min(CHUNK) as u32);
        if len == 0 {
            return self.bitmaps_read(&[]);
        }
        self.steps.emit(MetadataStep::Bitmaps, IoOp::ReadTable { offset, len });
    }

    /// What can be told of the bitmaps; a directory that is damaged, or cannot be read, is no reason not to
    /// open.
    fn bitmaps_read(&mut self, directory: &[u8]) {
        let Some(list) = self.header.bitmaps() else { return self.put_in_order() };
        let (names, invalid) = bitmap::names(directory, list.count);
        let valid = list.count.saturating_sub(invalid);
        let block = u64::from(self.options.align.max(512));
        self.tables.tracking = Tracking::new(&self.header, directory, block);
        let kept = self.tables.tracking.is_some();
        debug_assert!(valid + invalid <= list.count, "each is one or the other");
        self.info.bitmaps = (valid > 0).then_some(Bitmaps { valid, names, dropped: false, kept });
        self.put_in_order();
    }

    /// What is to be repaired is changed: autoclear bits that are not kept up go before it.
    fn put_in_order(&mut self) {
        if self.header.stale_autoclear(RAW_DATA_FILE) == 0 || !self.header.is_dirty() {
            return self.check();
        }
        self.header.clear_autoclear(RAW_DATA_FILE);
        if let Some(bitmaps) = &mut self.info.bitmaps {
            (bitmaps.dropped, bitmaps.kept) = (true, false);
        }
        self.tables.tracking = None;
        debug_assert!(!self.options.read_only, "what is read alone is not written");
        let len = self.header.block_len();
        self.steps.emit(MetadataStep::ClearAutoclear, IoOp::WriteTable { offset: 0, len });
    }

    fn check(&mut self) {
        if !self.header.is_dirty() || self.options.sabotaged(Rule::CheckBeforeUse) {
            return self.next_snapshot();
        }
        let check = qcow2::Check::new(self.header.clone(), self.file_len, Some(Repair::All));
        let check = check.on_device(self.options.fixed_len);
        debug_assert!(!self.options.read_only, "what is read alone is not repaired");
        self.steps.enter(MetadataStep::Check(Box::new(check)));
        self.check_ended();
    }

    fn check_ended(&mut self) {
        let Some(MetadataStep::Check(check)) = self.steps.step_mut() else { return };
        let Some(result) = check.poll_result() else { return };
        let Some(MetadataStep::Check(check)) = self.steps.leave() else { return };
        let (header, file_len) = check.into_parts();
        self.header = header;
        if !self.options.fixed_len {
            self.file_len = file_len;
        }
        self.snapshots.1 = self.header.snapshots_offset;
        match result {
            Err(error) => self.steps.fail(error),
            Ok(report) if !report.is_sound() => {
                let (value, why) = (self.header.incompatible, HeaderFault::NotRepaired);
                self.steps.fail(Error::Corrupt(Fault::Header { value, why }));
            }
            Ok(report) => {
                debug_assert!(!self.header.is_dirty() && !self.header.is_corrupt(), "the bits are gone");
                self.report = Some(report);
                self.next_snapshot();
            }
        }
    }

    /// Where snapshots have their metadata: nothing may be written there.
    fn next_snapshot(&mut self) {
        debug_assert!(self.snapshots.0 <= self.header.snapshots, "no more than there are");
        let (count, offset, len) = self.snapshots;
        if count < self.header.snapshots {
            return self.steps.emit(MetadataStep::Snapshot, IoOp::ReadTable { offset, len: len as u32 });
        }
        if let Some((_, _, found)) = self.wanted.take() {
            return self.choose(found);
        }
        // of no bytes, if there are none
        self.tables.snapshots.push(Span::new(self.header.snapshots_offset, offset));
        self.next_chunk();
    }

    fn snapshot_read(&mut self, bytes: &[u8]) {
        match Snapshot::parse(bytes, u64::from(self.snapshots.0), false) {
            Err(error) => self.steps.fail(error),
            Ok(Parsed::Needs(len)) if len > self.snapshots.2 => {
                self.snapshots.2 = len;
                self.next_snapshot();
            }
            Ok(Parsed::Needs(_)) => {
                self.steps.fail(Error::Misuse("a table read was completed with too few bytes"))
            }
            Ok(Parsed::Entry(snapshot, len)) => {
                let table = Span::at(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8);
                debug_assert!(len >= FIXED, "an entry has its fixed part");
                if let Some((selector, best, found)) = &mut self.wanted {
                    let fit = selector.fit(&snapshot);
                    if fit > *best {
                        (*best, *found) = (fit, Some((self.snapshots.0.into(), snapshot)));
                    }
                } else {
                    self.tables.snapshots.push(table);
                }
                self.snapshots = (self.snapshots.0 + 1, self.snapshots.1 + len as u64, FIXED);
                self.next_snapshot();
            }
        }
    }

    /// The disk is the one that the snapshot shows: its L1 table, its size. (An old entry does not say its
    /// size; the disk had the one that it has now, as such an image is not resized.)
    fn choose(&mut self, found: Option<(u64, Snapshot)>) {
        let Some((index, snapshot)) = found else { return self.steps.fail(Error::NoSnapshot) };
        debug_assert!(self.options.read_only, "a snapshot is only read");
        let size = snapshot.disk_size().unwrap_or(self.header.size);
        let needed = self.header.shape().l1_entries(size);
        let fault = |value, why| Error::Corrupt(Fault::Snapshot { index, value, why });
        let checked = match snapshot.check_l1(index, self.header.cluster_size()) {
            _ if self.header.has_data_file() => Err(fault(index, SnapshotFault::DataFile)),
            Ok(()) if u64::from(snapshot.l1_entries) < needed => {
                Err(fault(snapshot.l1_entries.into(), SnapshotFault::L1TooSmall))
            }
            checked => checked,
        };
        if let Err(error) = checked {
            return self.steps.fail(error);
        }
        (self.header.l1_offset, self.header.l1_entries) = (snapshot.l1_offset, snapshot.l1_entries);
        self.header.size = size;
        self.info.virtual_size = self.header.guest_size();
        self.finish();
    }

    fn next_chunk(&mut self) {
        let bytes = u64::from(self.header.reftable_clusters) << self.header.cluster_bits;
        let done = self.tables.reftable.len() as u64 * 8;
        debug_assert!(bytes <= 8 << 20, "a longer table was refused");
        if done >= bytes {
            return self.next_l1();
        }
        let (offset, len) = (self.header.reftable_offset + done, (bytes - done).min(CHUNK) as u32);
        self.steps.emit(MetadataStep::Reftable, IoOp::ReadTable { offset, len });
    }

    fn next_l1(&mut self) {
        let bytes = u64::from(self.header.l1_entries) * 8;
        debug_assert!(bytes <= L1_BYTES_MAX, "a longer table was refused");
        if bytes > 0 && !self.header.l1_is_in_reach(self.file_len) {
            let (value, why) = (self.header.l1_offset, HeaderFault::L1Beyond);
            return self.steps.fail(Error::Corrupt(Fault::Header { value, why }));
        }
        let done = self.l1_done * 8;
        if self.header.l1_entries > L1_MAX || done >= bytes {
            return self.begin_tail();
        }
        // a cluster has at least so many bytes, and the table has whole ones
        let block = u64::from(self.options.align.max(512));
        let len = align_up(bytes - done, block).min(CHUNK) as u32;
        self.steps.emit(MetadataStep::L1, IoOp::ReadTable { offset: self.header.l1_offset + done, len });
    }

    /// Where L2 tables lie is kept in mind, also beyond the end of the file: no space may be taken there.
    /// What is wrong with an entry is told when it is used.
    fn l1_read(&mut self, bytes: &[u8]) {
        let shape = self.header.shape();
        for bytes in bytes.as_chunks::<8>().0 {
            let index = self.l1_done;
            debug_assert!(index <= u64::from(L1_MAX), "a longer table is not read");
            self.l1_done += 1;
            if index >= u64::from(self.header.l1_entries) {
                break;
            }
            if let Ok(L1::Table { host, copied }) = shape.decode_l1(index, u64::from_be_bytes(*bytes))
                && !self.tables.l2.add(host, index, copied)
                && self.tables.twice.is_none()
            {
                self.tables.twice = Some((index, host));
            }
        }
        self.next_l1();
    }

    /// What is free at the end of the file?
    fn begin_tail(&mut self) {
        debug_assert!(!self.options.read_only, "only what is written needs space");
        let header = &self.header;
        let tail = Tail::new(header.refcounts(), header.shape(), self.file_len >> header.cluster_bits);
        self.next_tail(tail);
    }

    fn next_tail(&mut self, mut tail: Tail) {
        match tail.next(&self.tables.reftable) {
            Next::Read { offset, len } => {
                self.steps.emit(MetadataStep::Tail(tail), IoOp::ReadTable { offset, len })
            }
            Next::End(cluster) => self.tail_known(cluster),
        }
    }

    fn tail_read(&mut self, mut tail: Tail, bytes: &[u8]) {
        match tail.read(bytes) {
            true => self.next_tail(tail),
            false => self.tail_known(tail.end()),
        }
    }

    fn tail_known(&mut self, cluster: u64) {
        debug_assert!(self.tables.tail.is_none(), "the free end is looked for once");
        debug_assert!(cluster <= self.file_len >> self.header.cluster_bits, "it begins in the file");
        self.tables.tail = Some(cluster << self.header.cluster_bits);
        self.finish();
    }

    fn finish(&mut self) {
        let written = (!self.options.read_only).then(|| core::mem::take(&mut self.tables));
        let unchecked = self.header.is_dirty() && !self.options.read_only;
        debug_assert!(!unchecked || self.options.sabotaged(Rule::CheckBeforeUse), "a dirty image is checked");
        let image = Image::qcow2(&self.header, self.file_len, written, &self.options);
        let (info, report) = (self.info.clone(), self.report.take());
        self.steps.end(Ok(Box::new(Opened { image, info, report })));
    }
}

impl Machine for Qcow2Opening {
    fn poll_io(&mut self) -> Option<Io> {
        if let Some(MetadataStep::Check(check)) = self.steps.step_mut() {
            let io = check.poll_io()?;
            let late = check.syncs_dropped() && self.options.sabotaged(Rule::DropBeforePlace);
            if io.op == IoOp::Sync && (late || self.options.sabotaged(Rule::RepairDurably)) {
                self.handle_completion(io.id, Outcome::Done);
                return self.poll_io();
            }
            return Some(io);
        }
        self.steps.poll_io()
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        match self.steps.step_mut() {
            Some(MetadataStep::Check(check)) => check.encode(id, buf),
            Some(MetadataStep::ClearAutoclear) => self.header.encode_block(buf),
            _ => debug_assert!(false, "nothing to encode"),
        }
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        if let Some(MetadataStep::Check(check)) = self.steps.step_mut() {
            check.handle_completion(id, outcome);
            return self.check_ended();
        }
        let Some(step) = self.steps.answered(id) else { return };
        if let Outcome::Failed(errno) = outcome {
            return match step {
                // names of bitmaps are told as far as they are known
                MetadataStep::Bitmaps => self.bitmaps_read(&[]),
                // what is wrong with counts is told when they are needed
                MetadataStep::Tail(tail) => self.tail_known(tail.end()),
                _ => self.steps.fail(Error::Device { op: Op::Open, offset: 0, errno }),
            };
        }
        match (step, outcome) {
            (MetadataStep::Bitmaps, Outcome::Table(bytes)) => self.bitmaps_read(bytes),
            (MetadataStep::ClearAutoclear, _) if self.options.sabotaged(Rule::AutoclearFirst) => self.check(),
            (MetadataStep::ClearAutoclear, _) => self.steps.emit(MetadataStep::SyncAutoclear, IoOp::Sync),
            (MetadataStep::SyncAutoclear, _) => self.check(),
            (MetadataStep::Snapshot, Outcome::Table(bytes)) => self.snapshot_read(bytes),
            (MetadataStep::Reftable, Outcome::Table(bytes)) if bytes.len() >= 8 => {
                self.tables
                    .reftable
                    .extend(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)));
                self.next_chunk();
            }
            (MetadataStep::L1, Outcome::Table(bytes)) if bytes.len() >= 8 => self.l1_read(bytes),
            (MetadataStep::Tail(tail), Outcome::Table(bytes)) => self.tail_read(tail, bytes),
            _ => self.steps.fail(Error::Misuse("a completion that was not asked for")),
        }
    }
}
