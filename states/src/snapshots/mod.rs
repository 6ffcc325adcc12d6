//! A snapshot is made, applied or deleted, or a persistent bitmap changed: what the image shall be is written
//! beside what it is, and one write of the header leads from the one to the other.
//!
//! New are all refcount blocks and their table, the L1 table, those L2 tables whose entries come to say
//! something else, and the list of snapshots; or the directory of bitmaps, and the table and bits of the one
//! that changes. They lie where nobody counts anything, so until the header is written the image is what it
//! was, with no cluster counted that nobody refers to; and when it is, the new counts say that the old blocks
//! and tables are free. A power cut finds the old image or the new one, and a check finds nothing in either
//! ([ordering.md], QC21, QC22 and QC25).
//!
//! Knows: the format. Must never know: requests; that the image rests meanwhile, with all that it had to
//! write in the file, is its owner's business.
//!
//! Invariants:
//! * one I/O at a time; what an answer leads to is done again from where it was stopped;
//! * until the header is on its way nothing that the image leads to has changed;
//! * bounded: 16 MiB of counts, the L1 tables (32 MiB each at most), the list (64 MiB at most), the directory
//!   of bitmaps (64 MiB at most) and of one bitmap the table and the bits (8 and 32 MiB at most).

mod ask;
mod bitmap;
mod bits;
mod counts;
mod editing;
mod list;
mod maps;
mod parts;
mod place;
mod stop;
mod walk;

pub(crate) use ask::Task;
pub use ask::{Ask, BitmapAsk, BitmapBits, BitmapChange};
pub use bits::BITS_MAX;
pub(crate) use editing::Editing;
pub(crate) use maps::admit as admit_bitmap;

use crate::base::span::Span;
use crate::error::Error;
use crate::io::IoOp;
use crate::qcow2::Header;
use crate::qcow2::Shape;
use crate::rule::Rule;
use crate::space::counts::{OpenedMetadata, Refcounted};
use crate::space::kind::ClusterRun;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use counts::Counts;
use list::{List, Plan};
use maps::Maps;
use place::Places;
use stop::Stop;
use walk::Walk;

/// Bytes of a table that are read or written at once.
const CHUNK: u64 = 64 << 10;

/// A part of the work; which follow which is `parts`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Part {
    /// What the file holds is durable.
    Settle,
    List,
    /// The directory of bitmaps.
    Directory,
    /// The L1 table that was read is the disk's.
    Keep,
    /// The table that was read is that of the bitmap.
    Map,
    /// The bits that it leads to.
    Bits,
    /// Places for all refcount blocks.
    Blocks,
    /// An L1 table is read: where it lies, its entries.
    Load(u64, u32),
    /// What it leads to has one reference more,
    Add,
    /// or less;
    Remove,
    /// it becomes the disk's.
    Flag,
    PlaceL1,
    /// The bits of a bitmap, and its table.
    PlaceBits,
    PlaceMap,
    PlaceList,
    PlaceTable,
    /// What nothing leads to any more.
    Forget,
    /// Refcount blocks,
    Flush,
    /// and the other new tables, are written.
    Write,
    Durable,
    Header,
    HeaderDurable,
}

/// What is written in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Region {
    L1,
    /// Of snapshots, or the directory of bitmaps.
    List,
    Table,
    Bits,
    /// Of a bitmap.
    Map,
}

/// What the owner does next.
#[derive(Debug)]
pub(crate) enum Turn {
    Io(IoOp),
    Done(Result<Box<Edited>, Error>),
}

/// The image as it is now, for its owner.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(crate) header: Header,
    pub(crate) metadata: OpenedMetadata,
    /// Nothing of the image lies from here on.
    pub(crate) end: u64,
    pub(crate) file_len: u64,
    /// Nobody counts these any more, though a request in flight may have found them.
    pub(crate) freed: Vec<ClusterRun>,
    /// The directory of bitmaps, if it is a new one.
    pub(crate) directory: Option<Vec<u8>>,
}

/// What the image is like where the work begins.
pub(crate) struct Before<'a> {
    pub(crate) header: &'a Header,
    pub(crate) table: &'a [u64],
    /// Nothing of it lies from here on.
    pub(crate) end: u64,
    pub(crate) file_len: u64,
    /// The file has the length that it has.
    pub(crate) device: bool,
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Edit {
    ask: Task,
    /// The old header; the new one, from `Part::Header` on.
    header: Header,
    /// What is written in the file's first bytes, one block after the other.
    blocks: VecDeque<Vec<u8>>,
    shape: Shape,
    parts: VecDeque<Part>,
    /// How far the part at hand is.
    at: u64,
    /// What was named and is not answered.
    waits: Option<Stop>,
    list: List,
    plan: Option<Plan>,
    maps: Maps,
    counts: Counts,
    places: Places,
    walk: Walk,
    /// The L1 table as it was read.
    loading: Vec<u64>,
    /// The disk's new L1 table, and whether it differs from the old one.
    active: Vec<u64>,
    new_l1: bool,
    /// The list's new bytes.
    bytes: Vec<u8>,
    /// What is placed: where it lies, and its clusters.
    placed: Vec<(Region, u64, u64)>,
    /// Clusters of the new refcount table, once they are known.
    table_clusters: u64,
    old: Vec<Span>,
    end: u64,
    file_len: u64,
    /// Clusters of a bitmap's bits, once they are known.
    bits_clusters: u64,
    skips: (bool, bool, bool),
    header_sent: bool,
}

impl Edit {
    /// `rules`: is this one removed?
    pub(crate) fn new(ask: Task, on: &Before<'_>, removed: impl Fn(Rule) -> bool) -> Edit {
        let bits = on.header.cluster_bits;
        debug_assert!(on.end.is_multiple_of(1 << bits), "what is in use is whole clusters");
        debug_assert!(!on.header.is_dirty(), "what is dirty is in order before");
        let snapshot = matches!(ask, Task::Snapshot(_));
        debug_assert!(!snapshot || !on.header.has_data_file(), "such images were refused");
        Edit {
            ask,
            header: on.header.clone(),
            blocks: VecDeque::new(),
            shape: on.header.shape(),
            parts: [Part::Settle, Part::List].into(),
            at: 0,
            waits: None,
            list: List::default(),
            plan: None,
            maps: Maps::default(),
            counts: Counts::new(on.header.refcounts(), on.table),
            places: Places::new(on.end >> bits, on.device.then_some(on.file_len >> bits)),
            walk: Walk::default(),
            loading: Vec::new(),
            active: Vec::new(),
            new_l1: false,
            bytes: Vec::new(),
            placed: Vec::new(),
            table_clusters: 0,
            old: Vec::new(),
            end: on.end,
            file_len: on.file_len,
            bits_clusters: 0,
            skips: (
                removed(Rule::SnapshotBeforeHeader),
                removed(Rule::SnapshotBeforeFree),
                removed(Rule::HeaderSteps),
            ),
            header_sent: false,
        }
    }

    /// The I/O that was named has failed, and nothing goes on.
    pub(crate) fn failed(&mut self) {
        debug_assert!(self.waits.is_some(), "something was named");
        if let Some(Stop::Grow { from }) = self.waits.take() {
            self.file_len = from;
        }
    }

    /// The header leads to the new image, or may: what fails from here on leaves it unknown which it is.
    pub(crate) const fn is_switching(&self) -> bool {
        let planned = self.plan.is_some() || self.maps.table.is_some();
        debug_assert!(!self.header_sent || planned, "it is known what the header says");
        self.header_sent
    }

    /// Where the file ends, and from where on nothing of the image, old or new, lies in it.
    pub(crate) const fn reached(&self) -> (u64, u64) {
        debug_assert!(self.places.end() > 0, "the header is in use");
        (self.file_len, self.places.end() << self.shape.cluster_bits)
    }

    /// Goes on as far as it can without an answer.
    pub(crate) fn turn(&mut self, counted: &Refcounted) -> Turn {
        debug_assert!(self.waits.is_none(), "one I/O at a time");
        loop {
            let Some(part) = self.parts.front().copied() else {
                return Turn::Done(Ok(Box::new(self.edited())));
            };
            match self.go_on(part, counted) {
                Ok(()) => {
                    self.parts.pop_front();
                    self.at = 0;
                }
                Err(Stop::Bad(error)) => return Turn::Done(Err(error)),
                Err(stop) => return Turn::Io(self.name(stop)),
            }
        }
    }

    fn cluster(&self) -> u64 {
        debug_assert!(self.shape.cluster_bits == self.header.cluster_bits, "one image, one size of clusters");
        self.header.cluster_size()
    }

    /// The I/O that the work waits for.
    fn name(&mut self, stop: Stop) -> IoOp {
        let cluster = self.cluster() as u32;
        let (offset, len, writes) = match stop {
            Stop::ReadOld { host, .. } | Stop::ReadBlock { host, .. } | Stop::ReadTable(host) => {
                (host, cluster, false)
            }
            Stop::WriteBlock(index) => (self.counts.new_block(index), cluster, true),
            Stop::WriteTable(host) => (host, cluster, true),
            Stop::ReadPiece { offset, len } => (offset, len as u32, false),
            Stop::WritePiece { offset, len } => (offset, len as u32, true),
            Stop::Header => (0, self.blocks.front().map_or(0, |block| block.len() as u32), true),
            Stop::Sync | Stop::Grow { .. } | Stop::Bad(_) => {
                self.waits = Some(Stop::Sync);
                return IoOp::Sync;
            }
        };
        debug_assert!(len > 0, "nothing is no I/O");
        let behind = offset + u64::from(len);
        if writes && behind > self.file_len {
            // the file has what is written before it is
            let to = (self.places.end() << self.shape.cluster_bits).max(behind);
            let from = core::mem::replace(&mut self.file_len, to);
            self.waits = Some(Stop::Grow { from });
            return IoOp::Grow { from, to };
        }
        self.header_sent |= stop == Stop::Header;
        self.waits = Some(stop);
        match writes {
            true => IoOp::WriteTable { offset, len },
            false => IoOp::ReadTable { offset, len },
        }
    }

    /// The bytes of the write that was named.
    pub(crate) fn encode(&self, buf: &mut [u8]) {
        match &self.waits {
            Some(Stop::WriteBlock(index)) => self.counts.encode(*index, buf),
            Some(Stop::WriteTable(_)) => self.walk.encode(buf),
            Some(Stop::WritePiece { .. }) => self.encode_piece(buf),
            Some(Stop::Header) => {
                if let Some(block) = self.blocks.front().filter(|block| block.len() == buf.len()) {
                    buf.copy_from_slice(block);
                }
            }
            other => debug_assert!(false, "nothing to encode: {other:?}"),
        }
    }

    /// The I/O ended well; `bytes` of a read.
    pub(crate) fn answered(&mut self, bytes: &[u8]) {
        debug_assert!(self.waits.is_some(), "something was named");
        match self.waits.take() {
            Some(Stop::ReadOld { index, .. }) => self.places.loaded(index, bytes),
            Some(Stop::ReadBlock { index, .. }) => self.counts.loaded(index, bytes),
            Some(Stop::ReadTable(host)) => self.walk.loaded(host, bytes),
            Some(Stop::ReadPiece { .. }) => self.piece_read(bytes),
            Some(Stop::WriteBlock(index)) => self.counts.wrote(index),
            Some(Stop::WriteTable(_)) => self.walk.wrote(),
            Some(Stop::WritePiece { .. }) => self.at += 1,
            Some(Stop::Sync) => self.at = 1,
            Some(Stop::Header) => {
                self.blocks.pop_front();
                self.at = 1;
            }
            // the file is longer
            Some(Stop::Grow { .. } | Stop::Bad(_)) | None => {}
        }
    }

    fn piece_read(&mut self, bytes: &[u8]) {
        debug_assert!(!bytes.is_empty(), "a piece has bytes");
        match self.parts.front() {
            Some(Part::List) => self.list.read(bytes),
            Some(Part::Directory) => self.maps.read(bytes),
            Some(Part::Bits) => {
                self.maps.piece_read(self.at, self.header.cluster_size(), bytes);
                self.at += 1;
            }
            _ => {
                let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
                self.loading.extend(words);
            }
        }
    }
}
